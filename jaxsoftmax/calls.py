"""How a public function is called: arguments become arrays, and one compiled program runs.

The bodies of the public functions are written as if they ran operation by operation: validate, then
compute. Eagerly that would be dozens of dispatches a call. Here each becomes one program, and what
it validates, shapes and dtypes, is looked at only when a new kind of arguments is traced.
"""

import functools
import inspect
from collections.abc import Callable
from numbers import Real

import jax
from jax import Array

from jaxsoftmax import validation


def compiled[**P, R](
    *static: str, constant: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that makes a function one jitted call.

    Args:
        static: names of arguments that are no arrays.
        constant: the name of an option that may be an array, and is static where it is a number.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = tuple(inspect.signature(function).parameters)
        known_names = frozenset(names)
        program = jax.jit(function, static_argnames=static)
        given = () if constant is None else (constant,)
        known = jax.jit(function, static_argnames=(*static, *given))

        def ready(x: object, name: str) -> object:
            return validation.as_setting(x, name) if name in static else validation.as_argument(x, name)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not kwargs and all(isinstance(x, Array) for x in args):  # nothing else is as common
                return program(*args)
            for name in kwargs.keys() - known_names:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}"
                )
            arrays = [ready(x, name) for x, name in zip(args, names, strict=False)]
            number = isinstance(kwargs.get(constant), Real) if constant else False
            options = {
                name: x if number and name == constant else ready(x, name)
                for name, x in kwargs.items()
            }
            return (known if number else program)(*arrays, *args[len(names) :], **options)

        return call

    return decorate
