"""A linear map with a handwritten transpose that can be differentiated in every mode.

`jax.custom_vjp` takes a handwritten reverse pass and refuses forward mode. `jax.custom_jvp` allows
every mode and leaves the reverse pass to automatic transposition, which here accumulates in the
dtype of the argument and multiplies in the dtype of the cotangent. A `custom_jvp` whose tangent is
a `linear_map` has both: forward mode runs `push`, reverse mode runs `pull`, and the derivatives of
either with respect to the residuals, which give Hessians, are those of its code.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

type FlatMap = Callable[[Sequence[Array], Sequence[Array]], list[Array]]


def linear_map(push: Callable, pull: Callable, residuals: Any, tangents: Any) -> Any:
    """Return push(residuals, tangents), which is linear in the tangents.

    Args:
        push: `(residuals, tangents) -> outputs`.
        pull: `(residuals, cotangents of the outputs) -> cotangents of the tangents`.
        residuals: any tree of arrays.
        tangents: any tree of floating arrays.

    Returns:
        The outputs of `push`.
    """
    leaves, unflatten = jax.tree.leaves, jax.tree.unflatten
    res, res_tree = jax.tree.flatten(residuals)
    lin, lin_tree = jax.tree.flatten(tangents)
    out_tree = jax.tree.structure(jax.eval_shape(push, residuals, tangents))

    def flat_push(res: Sequence[Array], lin: Sequence[Array]) -> list[Array]:
        return leaves(push(unflatten(res_tree, res), unflatten(lin_tree, lin)))

    def flat_pull(res: Sequence[Array], out: Sequence[Array]) -> list[Array]:
        return leaves(pull(unflatten(res_tree, res), unflatten(out_tree, out)))

    out = linear_map_p.bind(*res, *lin, split=len(res), push=flat_push, pull=flat_pull)
    return unflatten(out_tree, out)


def call_opaque(function: Callable, arguments: Any) -> Any:
    """Return function(arguments), whose code derivatives enter only when they are taken of it.

    JAX 0.11 loses the rule of a `custom_jvp` that is inside a scan inside the rule of another one
    where both are differentiated at once, and differentiates the bits of the exact exponential.
    """
    return linear_map(
        lambda residuals, _: function(residuals), lambda residuals, _: (), arguments, ()
    )


def with_derivatives_of(plain: Callable, options: int = 2) -> Callable[[Callable], Callable]:
    """Return a decorator that gives a function the derivatives of the same one in plain JAX.

    The last arguments of both, as many as there are options, are known at compile time.
    """

    def decorate(lean: Callable) -> Callable:
        count = len(signature(lean).parameters)
        function = jax.custom_jvp(lean, nondiff_argnums=tuple(range(count - options, count)))

        @function.defjvp
        def _(*known: Any) -> tuple:
            *chosen, primals, tangents = known
            _, out_tangents = jax.jvp(lambda *arrays: plain(*arrays, *chosen), primals, tangents)
            return function(*primals, *chosen), out_tangents

        return function

    return decorate


linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


def _apply(*arguments: Array, split: int, push: FlatMap, pull: FlatMap) -> list[Array]:
    del pull
    return push(arguments[:split], arguments[split:])


def _abstract_eval(*arguments: Any, **params: Any) -> list[Any]:
    """Return the full types of the results, with the axes they vary over and their sharding."""
    return jax.make_jaxpr(lambda *a: _apply(*a, **params))(*arguments).out_avals


def _jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    split: int,
    push: FlatMap,
    pull: FlatMap,
) -> tuple[list[Any], list[Any]]:
    res, lin = list(primals[:split]), list(primals[split:])
    res_tangents, lin_tangents = tangents[:split], tangents[split:]
    out = linear_map_p.bind(*primals, split=split, push=push, pull=pull)
    terms = []
    if any(not isinstance(t, ad.Zero) for t in lin_tangents):
        dlin = map(ad.instantiate_zeros, lin_tangents)
        terms.append(linear_map_p.bind(*res, *dlin, split=split, push=push, pull=pull))
    active = [i for i, t in enumerate(res_tangents) if _is_active(t)]
    if active:

        def push_active(*values: Array) -> list[Array]:
            replaced = dict(zip(active, values, strict=True))
            return push([replaced.get(i, r) for i, r in enumerate(res)], lin)

        dres = [res_tangents[i] for i in active]
        terms.append(jax.jvp(push_active, [res[i] for i in active], dres)[1])
    return out, [sum(term[1:], term[0]) for term in zip(*terms, strict=True)]


def _is_active(tangent: Any) -> bool:
    """Return whether a tangent is a number other than a known zero."""
    return not isinstance(tangent, ad.Zero) and tangent.dtype != jax.dtypes.float0


def _transpose(
    cotangents: Sequence[Any], *arguments: Any, split: int, push: FlatMap, pull: FlatMap
) -> list[Any]:
    res, out_bar = arguments[:split], map(ad.instantiate_zeros, cotangents)
    lin_bar = linear_map_p.bind(*res, *out_bar, split=split, push=pull, pull=push)
    return [None] * split + lin_bar


def _batch(
    arguments: Sequence[Any], axes: Sequence[Any], *, split: int, push: FlatMap, pull: FlatMap
) -> tuple[list[Any], list[int]]:
    res_axes, lin_axes = list(axes[:split]), list(axes[split:])
    batched_push = jax.vmap(push, in_axes=(res_axes, lin_axes))
    if None in lin_axes:
        # One tangent for the whole batch: the transpose contracts the batch in its products, which
        # only automatic transposition finds.
        out = batched_push(list(arguments[:split]), list(arguments[split:]))
    else:
        batched_pull = jax.vmap(pull, in_axes=(res_axes, 0), out_axes=lin_axes)
        out = linear_map_p.bind(
            *arguments,
            split=split,
            push=lambda res, lin: batched_push(list(res), list(lin)),
            pull=lambda res, out_bar: batched_pull(list(res), list(out_bar)),
        )
    return out, [0] * len(out)


linear_map_p.def_impl(_apply)
linear_map_p.def_abstract_eval(_abstract_eval)
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(linear_map_p, mlir.lower_fun(_apply, multiple_results=True))
