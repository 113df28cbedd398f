"""The compiled call of a public function.

Public functions are written as if they ran operation by operation: they validate their arguments,
then compute. Eager execution of that would take dozens of dispatches per call. The decorator
`compiled` turns each function into one program, and its validation, which reads only shapes and
dtypes, runs only when the function is traced for a new kind of arguments.
"""

import functools
import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
from jax import Array

from jaxsoftmax import validation


def compiled[**P, R](
    *static: str, constant: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that turns a function into one jitted call.

    Args:
        static: names of the arguments that are not arrays.
        constant: name of an option that may be an array, and is static if it is a number.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = tuple(inspect.signature(function).parameters)
        program = jax.jit(function, static_argnames=static)
        constant_names = () if constant is None else (constant,)
        constant_program = jax.jit(function, static_argnames=(*static, *constant_names))

        def convert(x: object, name: str) -> object:
            if name in static:
                return validation.as_setting(x, name)
            return validation.as_argument(x, name)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not kwargs and all(isinstance(x, Array) for x in args):  # the most common call
                return program(*args)
            _check_keywords(function, names, kwargs)
            arrays = [convert(x, name) for x, name in zip(args, names, strict=False)]
            is_constant = constant is not None and isinstance(kwargs.get(constant), Real)
            options = {
                name: x if is_constant and name == constant else convert(x, name)
                for name, x in kwargs.items()
            }
            run = constant_program if is_constant else program
            return run(*arrays, *args[len(names) :], **options)

        return call

    return decorate


def _check_keywords(function: Callable, names: tuple[str, ...], kwargs: dict[str, Any]) -> None:
    for name in kwargs.keys() - set(names):
        raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")
