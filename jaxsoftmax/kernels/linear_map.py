"""A linear map that brings its own transpose and can still be differentiated in every way.

`jax.custom_vjp` takes a handwritten reverse pass and refuses forward mode; `jax.custom_jvp` allows
every mode and leaves the reverse pass to automatic transposition, which here accumulates in the
dtype of the argument and multiplies in the dtype of the cotangent. So a `custom_jvp` whose tangent
is a `linear_map` has both: forward mode runs `push`, reverse mode runs `pull`, and derivatives of
either in the residuals, which make Hessians, are those of the code itself.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

type Flat = Callable[[Sequence[Array], Sequence[Array]], list[Array]]


def linear_map(push: Callable, pull: Callable, residuals: Any, tangents: Any) -> Any:
    """Apply push(residuals, tangents), which is linear in the tangents.

    Args:
        push: `(residuals, tangents) -> outputs`.
        pull: `(residuals, cotangents of the outputs) -> cotangents of the tangents`.
        residuals: any tree of arrays.
        tangents: any tree of floating arrays.

    Returns:
        What `push` returns.
    """
    leaves, tree = jax.tree.leaves, jax.tree.unflatten
    res, res_tree = jax.tree.flatten(residuals)
    lin, lin_tree = jax.tree.flatten(tangents)
    out_tree = jax.tree.structure(jax.eval_shape(push, residuals, tangents))

    def flat_push(res: Sequence[Array], lin: Sequence[Array]) -> list[Array]:
        return leaves(push(tree(res_tree, res), tree(lin_tree, lin)))

    def flat_pull(res: Sequence[Array], out: Sequence[Array]) -> list[Array]:
        return leaves(pull(tree(res_tree, res), tree(out_tree, out)))

    out = linear_map_p.bind(*res, *lin, split=len(res), push=flat_push, pull=flat_pull)
    return tree(out_tree, out)


def opaque(function: Callable, arguments: Any) -> Any:
    """function(arguments), which derivatives enter only when they are taken of it.

    JAX 0.11 forgets the rule of a `custom_jvp` inside a scan inside the rule of another one, where
    both are differentiated at once, and differentiates the bits of the exact exponential.
    """
    return linear_map(lambda at, _: function(at), lambda at, _: (), arguments, ())


def with_derivatives_of(plain: Callable) -> Callable[[Callable], Callable]:
    """A kernel has no derivative; the same function in plain JAX has.

    The last two arguments of both, what is wanted and the options, are known at compile time.
    """

    def rule(kernel: Callable) -> Callable:
        traced = len(signature(kernel).parameters) - 2
        function = jax.custom_jvp(kernel, nondiff_argnums=(traced, traced + 1))

        @function.defjvp
        def _(needs_grad: Any, options: Any, primals: tuple, tangents: tuple) -> tuple:
            moved = jax.jvp(lambda *at: plain(*at, needs_grad, options), primals, tangents)[1]
            return function(*primals, needs_grad, options), moved

        return function

    return rule


linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


def _run(*arguments: Array, split: int, push: Flat, pull: Flat) -> list[Array]:
    del pull
    return push(arguments[:split], arguments[split:])


def _shapes(*arguments: Any, **how: Any) -> list[Any]:
    """The results' whole types, with the axes that they vary over and their sharding."""
    return jax.make_jaxpr(lambda *a: _run(*a, **how))(*arguments).out_avals


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, split: int, push: Flat, pull: Flat):  # type: ignore[no-untyped-def]
    res, lin = list(primals[:split]), list(primals[split:])
    out = linear_map_p.bind(*primals, split=split, push=push, pull=pull)
    parts = []
    if any(not isinstance(t, ad.Zero) for t in tangents[split:]):
        moved = map(ad.instantiate_zeros, tangents[split:])
        parts.append(linear_map_p.bind(*res, *moved, split=split, push=push, pull=pull))
    live = [i for i, t in enumerate(tangents[:split]) if not isinstance(t, ad.Zero)]
    live = [i for i in live if tangents[i].dtype != jax.dtypes.float0]
    if live:

        def bent(*values: Array) -> list[Array]:
            at = dict(zip(live, values, strict=True))
            return push([at.get(i, r) for i, r in enumerate(res)], lin)

        parts.append(jax.jvp(bent, [res[i] for i in live], [tangents[i] for i in live])[1])
    return out, [sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)]


def _transpose(cotangents: Sequence[Any], *arguments: Any, split: int, push: Flat, pull: Flat):  # type: ignore[no-untyped-def]
    res, out = arguments[:split], map(ad.instantiate_zeros, cotangents)
    found = linear_map_p.bind(*res, *out, split=split, push=pull, pull=push)
    return [None] * split + found


def _batch(arguments: Sequence[Any], axes: Sequence[Any], *, split: int, push: Flat, pull: Flat):  # type: ignore[no-untyped-def]
    over, along = list(axes[:split]), list(axes[split:])
    many = jax.vmap(push, in_axes=(over, along))
    if None in along:
        # One tangent for the whole batch: the transpose contracts the batch in its products, which
        # only automatic transposition finds.
        out = many(list(arguments[:split]), list(arguments[split:]))
    else:
        back = jax.vmap(pull, in_axes=(over, 0), out_axes=along)
        out = linear_map_p.bind(
            *arguments,
            split=split,
            push=lambda res, lin: many(list(res), list(lin)),
            pull=lambda res, out: back(list(res), list(out)),
        )
    return out, [0] * len(out)


linear_map_p.def_impl(_run)
linear_map_p.def_abstract_eval(_shapes)
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(linear_map_p, mlir.lower_fun(_run, multiple_results=True))
