"""The derivative rules of the fused losses.

Transformation                         Computation
a value                                forward: one pass over blocks of classes
jvp, jacfwd                            forward, and the tangents of the blocks (`tangent`)
grad, vjp                              forward, and a handwritten reverse pass (`backward`)
vmap(grad), each lane with its own w   the same, batched
grad of a sum over lanes that share w  forward, and the automatic transpose of `tangent`
Hessian-vector products                derivatives of the code of `backward`, in blocks
grad of a weighted sum                 gradients in the forward pass (`value_and_gradients`,
                                       and `row_losses` for a function of a row's statistics)

An implementation is a module, or one with its arrays on a mesh (`sharded`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftmax import placement
from jaxsoftmax.kernels import dispatch, primitives
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    ModelTangents,
    NeedsGrad,
    Options,
    RowCotangents,
    RowTangents,
)
from jaxsoftmax.linear_map import call_opaque, linear_map


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def lse_parts(implementation: Any, options: Options, head: Head) -> LSEParts:
    """Return the terms of each row's loss, with the predicted class as the bits of a float."""
    return as_floats(implementation.forward(dispatch.cast_operands(head, options), options))


def as_floats(parts: LSEParts) -> LSEParts:
    """Return the parts with the predicted class as the bits of a float.

    The tangent of an integer has JAX's `float0` dtype, for which a rule cannot declare the mesh
    axes that it varies over.
    """
    return _bitcast_predicted(parts, jnp.float32)


def as_integers(parts: LSEParts) -> LSEParts:
    """Undo `as_floats`."""
    return _bitcast_predicted(parts, jnp.int32)


def _bitcast_predicted(parts: LSEParts, dtype: Any) -> LSEParts:
    if parts.stats is None:
        return parts
    predicted = lax.bitcast_convert_type(parts.stats.predicted, dtype)
    return parts._replace(stats=parts.stats._replace(predicted=predicted))


def _lse_parts_jvp(
    implementation: Any, options: Options, primals: tuple, tangents: tuple
) -> tuple[LSEParts, LSEParts]:
    (head,) = primals
    parts = lse_parts(implementation, options, head)
    return parts, parts_tangents(implementation, options, head, parts, tangents[0])


lse_parts.defjvp(_lse_parts_jvp, symbolic_zeros=True)


def parts_tangents(
    implementation: Any, options: Options, head: Head, parts: LSEParts, tangents: Head
) -> LSEParts:
    """Return the tangents of the terms of `lse_parts`, as one linear map of those of the head."""
    model_tangents, needs_grad = nonzero_tangents(tangents)
    zeros = jax.tree.map(jnp.zeros_like, parts)
    if not any(needs_grad):
        return zeros

    def push(residuals: tuple[Head, LSEParts], tangents: ModelTangents) -> RowTangents:
        head, parts = residuals
        head, tangents = dispatch.cast_operands(head, options), _widen(tangents, options)
        return implementation.tangent(head, parts, tangents, options)

    def pull(residuals: tuple[Head, LSEParts], cotangents: RowCotangents) -> ModelCotangents:
        head, parts = residuals
        head = dispatch.cast_operands(head, options)
        return implementation.backward(head, parts, cotangents, needs_grad, options)

    residuals = head, lax.stop_gradient(as_integers(parts))
    rows = linear_map(push, pull, residuals, model_tangents)
    stats = None if zeros.stats is None else zeros.stats._replace(mean=rows.mean)
    return LSEParts(zeros.maximum, rows.sum_exp_rest, rows.label_logit, stats)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def weighted_sum(
    implementation: Any, options: Options, head: Head, valid: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the losses, whose gradients come from the forward pass."""
    head = dispatch.cast_operands(head, options)
    nll, _ = implementation.value_and_gradients(head, valid, weights, NeedsGrad(), options)
    return primitives.weighted_total(nll, weights)


def _weighted_sum_jvp(
    implementation: Any, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    head, valid, weights = primals
    model_tangents, needs_grad = nonzero_tangents(tangents[0])

    def value_and_gradients(
        arguments: tuple[Head, Array | None, Array],
    ) -> tuple[Array, ModelCotangents]:
        head, valid, weights = arguments
        head = dispatch.cast_operands(head, options)
        return implementation.value_and_gradients(head, valid, weights, needs_grad, options)

    nll, gradients = call_opaque(value_and_gradients, (head, valid, weights))
    total = primitives.weighted_total(nll, weights)
    return total, total_tangent(nll, gradients, model_tangents, tangents[2])


weighted_sum.defjvp(_weighted_sum_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def binary_values(implementation: Any, options: Options, head: Head) -> Array:
    """Return the sigmoid losses, `[N]`, summed over the labels of a row."""
    return implementation.binary_forward(dispatch.cast_operands(head, options), options)


def _binary_values_jvp(
    implementation: Any, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (head,) = primals
    model_tangents, needs_grad = nonzero_tangents(tangents[0])
    values = binary_values(implementation, options, head)
    if not any(needs_grad):
        return values, jnp.zeros_like(values)

    def push(head: Head, tangents: ModelTangents) -> Array:
        head, tangents = dispatch.cast_operands(head, options), _widen(tangents, options)
        return implementation.binary_tangent(head, tangents, options)

    def pull(head: Head, cotangents: Array) -> ModelCotangents:
        head = dispatch.cast_operands(head, options)
        return implementation.binary_backward(head, cotangents, needs_grad, options)

    return values, linear_map(push, pull, head, model_tangents)


binary_values.defjvp(_binary_values_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def binary_weighted_sum(implementation: Any, options: Options, head: Head, weights: Array) -> Array:
    """Return the weighted sum of the sigmoid losses, whose gradients come from the forward pass."""
    head = dispatch.cast_operands(head, options)
    return primitives.weighted_total(implementation.binary_forward(head, options), weights)


def _binary_weighted_sum_jvp(
    implementation: Any, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    head, weights = primals
    model_tangents, needs_grad = nonzero_tangents(tangents[0])

    def value_and_gradients(arguments: tuple[Head, Array]) -> tuple[Array, ModelCotangents]:
        head, weights = arguments
        head = dispatch.cast_operands(head, options)
        return implementation.binary_value_and_gradients(head, weights, needs_grad, options)

    values, gradients = call_opaque(value_and_gradients, (head, weights))
    total = primitives.weighted_total(values, weights)
    return total, total_tangent(values, gradients, model_tangents, tangents[1])


binary_weighted_sum.defjvp(_binary_weighted_sum_jvp, symbolic_zeros=True)


def nonzero_tangents(tangents: Head) -> tuple[ModelTangents, NeedsGrad]:
    """Return the tangents of x, w and bias that are not known to be zero, and their dtypes."""
    nonzero = ModelTangents(*(None if isinstance(t, SymbolicZero) else t for t in tangents.model))
    return nonzero, NeedsGrad(*(None if t is None else t.dtype for t in nonzero))


def _widen(tangents: ModelTangents, options: Options) -> ModelTangents:
    return ModelTangents(*primitives.widen(tangents, options.dtype))


def total_tangent(
    values: Array, gradients: ModelCotangents, tangents: ModelTangents, weight_tangents: Any
) -> Array:
    """Return the derivative of a weighted sum along tangents of the model and of the weights."""
    # Inside a shard_map over the classes, those of w and bias are sums over local classes.
    terms = [
        placement.sum_like(jnp.sum(g.astype(values.dtype) * t.astype(values.dtype)), values)
        for g, t in zip(gradients, tangents, strict=True)
        if g is not None and t is not None
    ]
    if not isinstance(weight_tangents, SymbolicZero):
        terms.append(jnp.sum(values * weight_tangents))
    return sum(terms[1:], terms[0]) if terms else placement.full(values, 0, (), values.dtype)
