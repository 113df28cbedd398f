"""The derivative rules of the fused losses.

call                                   what runs
a value                                forward: one pass over blocks of classes
jvp, jacfwd                            forward, and the tangent blocks (`tangent`)
grad, vjp                              forward, and a handwritten reverse pass (`backward`)
vmap(grad), each lane with its own w   the same, batched
grad of a sum over lanes that share w  forward, and the automatic transpose of `tangent`
Hessian-vector products                derivatives of the code of `backward`, in blocks
grad of a weighted sum                 gradients in the forward pass (`value_and_gradients`)
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftmax import placement
from jaxsoftmax.kernels import dispatch, primitives
from jaxsoftmax.kernels.linear_map import linear_map, opaque
from jaxsoftmax.kernels.types import Head, LSEParts, ModelTangents, NeedsGrad, Options, RowTangents


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def lse_parts(name: str, options: Options, head: Head) -> LSEParts:
    """Return the parts of each row's loss; a predicted class is in the bits of a float."""
    return _as_floats(dispatch.load(name).forward(dispatch.cast_operands(head, options), options))


def _as_floats(rows: LSEParts) -> LSEParts:
    """The predicted class as the bits of a float.

    The tangent of an integer is of JAX's `float0`, for which a rule cannot say over which mesh axes
    it varies.
    """
    return _with_predicted(rows, jnp.float32)


def as_integers(rows: LSEParts) -> LSEParts:
    """The reverse of `_as_floats`."""
    return _with_predicted(rows, jnp.int32)


def _with_predicted(rows: LSEParts, dtype: Any) -> LSEParts:
    if rows.stats is None:
        return rows
    predicted = lax.bitcast_convert_type(rows.stats.predicted, dtype)
    return rows._replace(stats=rows.stats._replace(predicted=predicted))


def _rows_jvp(
    name: str, options: Options, primals: tuple, tangents: tuple
) -> tuple[LSEParts, LSEParts]:
    (head,) = primals
    module, moved, needs_grad = dispatch.load(name), *_perturbed(tangents[0])
    rows = lse_parts(name, options, head)
    still = jax.tree.map(jnp.zeros_like, rows)
    if not any(needs_grad):
        return rows, still

    def push(at: tuple[Head, LSEParts], t: ModelTangents) -> RowTangents:
        head, rows = at
        return module.tangent(
            dispatch.cast_operands(head, options), rows, _widened(t, options), options
        )

    def pull(at: tuple[Head, LSEParts], c: RowTangents) -> ModelTangents:
        head, rows = at
        return module.backward(dispatch.cast_operands(head, options), rows, c, needs_grad, options)

    found = linear_map(push, pull, (head, lax.stop_gradient(as_integers(rows))), moved)
    if still.stats is not None:
        still = still._replace(stats=still.stats._replace(mean=found.mean))
    return rows, still._replace(sum_exp_rest=found.sum_exp_rest, label_logit=found.label_logit)


lse_parts.defjvp(_rows_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def weighted_sum(
    name: str, options: Options, head: Head, counts: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the losses; its gradients come from the forward pass."""
    given = dispatch.cast_operands(head, options), counts, weights
    return primitives.weighted_total(
        dispatch.load(name).value_and_gradients(*given, NeedsGrad(), options)[0], weights
    )


def _sum_jvp(name: str, options: Options, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    head, counts, weights = primals
    moved, needs_grad = _perturbed(tangents[0])
    module = dispatch.load(name)

    def both(at: tuple[Head, Array | None, Array]) -> tuple[Array, ModelTangents]:
        head, *rest = at
        return module.value_and_gradients(
            dispatch.cast_operands(head, options), *rest, needs_grad, options
        )

    nll, gradients = opaque(both, (head, counts, weights))
    return primitives.weighted_total(nll, weights), _change(nll, gradients, moved, tangents[2])


weighted_sum.defjvp(_sum_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def binary_values(name: str, options: Options, head: Head) -> Array:
    """Return the sigmoid losses, `[N]`, summed over the labels of a row."""
    return dispatch.load(name).binary_forward(dispatch.cast_operands(head, options), options)


def _binary_rows_jvp(
    name: str, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (head,) = primals
    module, moved, needs_grad = dispatch.load(name), *_perturbed(tangents[0])
    values = binary_values(name, options, head)
    if not any(needs_grad):
        return values, jnp.zeros_like(values)

    def push(head: Head, t: ModelTangents) -> Array:
        return module.binary_tangent(
            dispatch.cast_operands(head, options), _widened(t, options), options
        )

    def pull(head: Head, c: Array) -> ModelTangents:
        return module.binary_backward(dispatch.cast_operands(head, options), c, needs_grad, options)

    return values, linear_map(push, pull, head, moved)


binary_values.defjvp(_binary_rows_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def binary_weighted_sum(name: str, options: Options, head: Head, weights: Array) -> Array:
    """Return the weighted sum of the sigmoid losses, as `weighted_sum` does."""
    return primitives.weighted_total(
        dispatch.load(name).binary_forward(dispatch.cast_operands(head, options), options), weights
    )


def _binary_sum_jvp(
    name: str, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    head, weights = primals
    moved, needs_grad = _perturbed(tangents[0])
    module = dispatch.load(name)

    def both(at: tuple[Head, Array]) -> tuple[Array, ModelTangents]:
        head, weights = at
        return module.binary_value_and_gradients(
            dispatch.cast_operands(head, options), weights, needs_grad, options
        )

    values, gradients = opaque(both, (head, weights))
    return primitives.weighted_total(values, weights), _change(
        values, gradients, moved, tangents[1]
    )


binary_weighted_sum.defjvp(_binary_sum_jvp, symbolic_zeros=True)


def _perturbed(tangents: Head) -> tuple[ModelTangents, NeedsGrad]:
    """The tangents of x, w and bias that are not known to be 0, and which those are."""
    moved = ModelTangents(*(None if isinstance(t, SymbolicZero) else t for t in tangents.model))
    return moved, NeedsGrad(*(None if t is None else t.dtype for t in moved))


def _widened(moved: ModelTangents, options: Options) -> ModelTangents:
    return ModelTangents(*primitives.widen(moved, options.dtype))


def _change(values: Array, gradients: ModelTangents, moved: ModelTangents, weights: Any) -> Array:
    """The change of a sum along tangents of the model and of the weights."""
    parts = [
        jnp.sum(g.astype(values.dtype) * t.astype(values.dtype))
        for g, t in zip(gradients, moved, strict=True)
        if g is not None and t is not None
    ]
    if not isinstance(weights, SymbolicZero):
        parts.append(jnp.sum(values * weights))
    return sum(parts[1:], parts[0]) if parts else placement.full(values, 0, (), values.dtype)
