"""The weighted sum of a function of each row's statistics, with gradients in the forward pass.

A z-loss, label smoothing or a focal loss is a function of a row's nll, log-sum-exp and mean logit.
Once the logits of a chunk of rows are there, so are these, and by the derivatives of the function
the gradients in the logits: three products of N D K, as for the sum of the losses alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from jaxsoftmax import softmax_core
from jaxsoftmax.kernels import chunks, derivative_rules, dispatch, primitives, xla_chunked
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    NeedsGrad,
    Options,
    RowCotangents,
    Stats,
)
from jaxsoftmax.linear_map import call_opaque


class RowLoss(NamedTuple):
    """A function of one row's nll, log-sum-exp and mean logit, and what it closes over."""

    function: Callable
    constants: tuple[Array, ...]  # which may be differentiated, such as the weight of a z-loss

    def uses_mean(self, dtype: DTypeLike) -> bool:
        """Return whether the function depends on the mean logit, whose gradient takes a pass."""
        number = jnp.zeros((), dtype)
        program = jax.make_jaxpr(self.function)(number, number, number, *self.constants).jaxpr
        mean = program.invars[2]
        return mean in program.outvars or any(mean in line.invars for line in program.eqns)

    @classmethod
    def of(cls, function: Callable | None, dtype: DTypeLike) -> Self:
        """Return a user's function, checked; without one, the nll itself."""
        if function is None:
            return cls(lambda nll, lse, mean_logit: nll, ())
        number = jax.ShapeDtypeStruct((), dtype)
        found = jax.eval_shape(function, number, number, number)
        if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(f"row_loss: expected one floating number for a row, got {found}")
        converted, constants = jax.closure_convert(function, *[jnp.zeros((), dtype)] * 3)
        return cls(converted, tuple(constants))

    def __call__(self, nll: Array, lse: Array, mean_logit: Array) -> Array:
        """Return the function's value for each row."""
        return jax.vmap(lambda *row: self.function(*row, *self.constants))(nll, lse, mean_logit)


class RowTerms(NamedTuple):
    """The terms of each row that its logits give, `[N]` each."""

    nll: Array
    lse: Array
    mean: Array  # of the logits that exist
    classes: Array  # the number of classes that exist
    predicted: Array  # the first class of the largest logit, as the bits of a float

    def statistics(self) -> tuple[Array, Array, Array, Array]:
        """Return nll, lse, mean logit and predicted class."""
        predicted = lax.bitcast_convert_type(self.predicted, jnp.int32)
        return self.nll, self.lse, self.mean, predicted


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def weighted_sum(
    options: Options, function: Callable, head: Head, weights: Array, constants: tuple[Array, ...]
) -> tuple[Array, RowTerms]:
    """Return the weighted sum and the terms of each row.

    Called with an implementation's options, on arrays that no mesh divides.
    """
    head, loss = dispatch.cast_operands(head, options), RowLoss(function, constants)
    rows, _ = _rows_and_gradients(loss, head, weights, NeedsGrad(), options)
    return _total(loss, rows, weights), rows


@partial(weighted_sum.defjvp, symbolic_zeros=True)
def _weighted_sum_jvp(
    options: Options, function: Callable, primals: tuple, tangents: tuple
) -> tuple[tuple[Array, RowTerms], tuple[Array, RowTerms]]:
    head, weights, constants = primals
    model_tangents, needs_grad = derivative_rules.nonzero_tangents(tangents[0])

    def rows_and_gradients(arguments: tuple) -> tuple[RowTerms, ModelCotangents]:
        head, weights, constants = arguments
        head, loss = dispatch.cast_operands(head, options), RowLoss(function, constants)
        return _rows_and_gradients(loss, head, weights, needs_grad, options)

    rows, gradients = call_opaque(rows_and_gradients, (head, weights, constants))

    def sum_of(constants: tuple[Array, ...]) -> tuple[Array, Array]:
        loss = RowLoss(function, constants)
        return _total(loss, rows, weights), loss(rows.nll, rows.lse, rows.mean)

    moves = jax.tree.map(_or_zeros, tangents[2])
    total, change, values = jax.jvp(sum_of, (constants,), (moves,), has_aux=True)
    change += derivative_rules.total_tangent(values, gradients, model_tangents, tangents[1])
    return (total, rows), (change, _rows_tangents(options, head, rows, tangents[0]))


def _total(loss: RowLoss, rows: RowTerms, weights: Array) -> Array:
    return primitives.weighted_total(loss(rows.nll, rows.lse, rows.mean), weights)


def _or_zeros(tangent: Any) -> Array:
    return jnp.zeros(tangent.shape, tangent.dtype) if isinstance(tangent, SymbolicZero) else tangent


def _rows_tangents(options: Options, head: Head, rows: RowTerms, tangents: Head) -> RowTerms:
    """Return the tangents of the terms of each row, from another pass over the classes.

    Relative to lse the exponentials are probabilities: with p = exp(-nll) of the label and q of the
    others, d lse = sum q dz + p dz_y and d nll = sum q dz - (1 - p) dz_y.
    """
    predicted = lax.bitcast_convert_type(rows.predicted, jnp.int32)
    rest = -jnp.expm1(-rows.nll)
    stats = Stats(rows.mean, rows.classes, predicted)
    parts = derivative_rules.as_floats(LSEParts(rows.lse, rest, rows.lse - rows.nll, stats))
    found = derivative_rules.parts_tangents(xla_chunked, options, head, parts, tangents)
    assert found.stats is not None
    others, of_label = found.sum_exp_rest, found.label_logit
    return RowTerms(
        others - rest * of_label,
        others + jnp.exp(-rows.nll) * of_label,
        found.stats.mean,
        jnp.zeros_like(rows.classes),
        jnp.zeros_like(rows.predicted),
    )


def _rows_and_gradients(
    loss: RowLoss, head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[RowTerms, ModelCotangents]:
    """Return the terms of each row, and the gradients of the weighted sum."""

    def gradient(chunk: Head, valid: Array, weights: Array, axis: int) -> tuple[RowTerms, Array]:
        del valid  # of weight 0
        logits = xla_chunked.row_logits(chunk, options, axis)
        rows, gradient = _rows_and_gradient(logits.z, chunk.targets, axis)
        dz = _weighted_gradient(loss, rows, gradient, logits.z, chunk.targets, weights, axis)
        return rows, logits.through_cap_and_mask(dz)

    size = chunks.rows_per_chunk(head, needs_grad, options)
    if size is None:
        return _compute_twice(loss, head, weights, needs_grad, options)
    zero = xla_chunked.row_zeros(head)
    zeros = RowTerms(zero, zero, zero, zero, zero.astype(jnp.float32))
    return xla_chunked.scan_whole_rows(
        gradient, head, None, weights, needs_grad, options, size, zeros
    )


def _rows_and_gradient(z: Array, labels: Array, axis: int) -> tuple[RowTerms, Array]:
    """Return the terms of rows of logits, and the gradient of nll in them."""
    nll, gradient, lse = softmax_core.value_gradient_and_lse(z, labels, axis)
    exists = z != -jnp.inf
    classes = jnp.sum(exists, axis, dtype=z.dtype)
    mean = jnp.sum(jnp.where(exists, z, 0), axis) / jnp.maximum(classes, 1)
    k = jnp.int32(z.shape[axis])
    index = lax.broadcasted_iota(jnp.int32, z.shape, axis)
    is_largest = z >= lax.stop_gradient(jnp.max(z, axis, keepdims=True))
    predicted = jnp.min(jnp.where(is_largest, index, k), axis)
    return RowTerms(
        nll, lse, mean, classes, lax.bitcast_convert_type(predicted, jnp.float32)
    ), gradient


def _weighted_gradient(
    loss: RowLoss,
    rows: RowTerms,
    gradient: Array,
    z: Array,
    labels: Array,
    weights: Array,
    axis: int,
) -> Array:
    """Return the gradient of the weighted sum in the logits of rows, from that of nll.

    With cotangents a, b and c of nll, lse and the mean of K logits it is a (p - e) + b p + c / K.
    """
    is_ignored, bars = _cotangents(loss.__call__, (rows.nll, rows.lse, rows.mean), weights)
    a, b, c = (jnp.expand_dims(bar, axis) for bar in bars)
    dz = (a + b) * gradient + jnp.where(softmax_core.label_mask(z, labels, axis), b, 0)
    if loss.uses_mean(rows.mean.dtype):
        share = c / jnp.maximum(jnp.expand_dims(rows.classes, axis), 1)
        dz += jnp.where(z == -jnp.inf, 0, share)
    return jnp.where(jnp.expand_dims(is_ignored, axis), 0, dz)


def _cotangents(
    function: Callable[..., Array], terms: tuple[Array, ...], weights: Array
) -> tuple[Array, list[Array]]:
    """Return which rows of weight 0 are ignored, as not finite, and the weighted cotangents."""
    values, pull = jax.vjp(function, *terms)
    is_ignored = (weights == 0) & ~jnp.isfinite(values)
    bars = pull(weights.astype(values.dtype))
    return is_ignored, [jnp.where(is_ignored, 0, bar) for bar in bars]


def _compute_twice(
    loss: RowLoss, head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[RowTerms, ModelCotangents]:
    """Return rows and gradients from logits that are computed once for each, in blocks."""
    parts = xla_chunked.forward(head, options)
    stats = parts.stats
    assert stats is not None

    def values_of(sum_exp_rest: Array, label_logit: Array, mean: Array) -> Array:
        terms = LSEParts(parts.maximum, sum_exp_rest, label_logit, None)
        return loss(*primitives.statistics(terms)[:2], mean)

    terms = parts.sum_exp_rest, parts.label_logit, stats.mean
    is_ignored, bars = _cotangents(values_of, terms, weights)
    left = xla_chunked.leave_out(is_ignored, head, parts)
    gradients = xla_chunked.backward(*left, RowCotangents(*bars), needs_grad, options)
    nll, lse = primitives.statistics(parts)[:2]
    predicted = lax.bitcast_convert_type(stats.predicted, jnp.float32)
    return RowTerms(nll, lse, stats.mean, stats.classes.astype(nll.dtype), predicted), gradients
