"""The weighted sum of a function of each row's statistics, with gradients in the forward pass.

A z-loss, label smoothing or a focal loss is a function of a row's nll, log-sum-exp and mean logit.
Once these are known, the derivatives of the function are the cotangents of the terms of the row,
and the gradient in the logits follows from the exponentials that gave the terms: three products of
N D K, as for the sum of the losses alone. An implementation has the gradient in its
`rows_and_gradients`; see `types`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxsoftmax import class_shards, placement, softmax_core
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.kernels import derivative_rules, dispatch, primitives
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


class RowTerms(NamedTuple):
    """The terms of each row that its logits give, `[N]` each.

    Without statistics in the options the last three may be 0.
    """

    nll: Array
    lse: Array
    mean: Array  # of the logits that exist
    classes: Array  # the number of classes that exist
    predicted: Array  # the first class of the largest logit, as the bits of a float

    @classmethod
    def zeros(cls, zero: Array) -> Self:
        """Return the terms of rows that are not computed, from a zero for each row."""
        return cls(zero, zero, zero, zero, zero.astype(jnp.float32))

    @classmethod
    def of(cls, parts: LSEParts) -> Self:
        """Return the terms from the parts that an implementation returns."""
        nll, lse, mean, _ = primitives.statistics(parts)
        terms = cls.zeros(jnp.zeros_like(nll))._replace(nll=nll, lse=lse)
        if parts.stats is None or mean is None:
            return terms
        bits = lax.bitcast_convert_type(parts.stats.predicted, jnp.float32)
        return terms._replace(
            mean=mean, classes=parts.stats.classes.astype(nll.dtype), predicted=bits
        )

    def statistics(self) -> tuple[Array, Array, Array, Array]:
        """Return nll, lse, mean logit and predicted class."""
        predicted = lax.bitcast_convert_type(self.predicted, jnp.int32)
        return self.nll, self.lse, self.mean, predicted


class RowLoss(NamedTuple):
    """A function of one row's nll, log-sum-exp and mean logit, and what it closes over."""

    function: Callable
    constants: tuple[Array, ...]  # which may be differentiated, such as the weight of a z-loss

    def uses_mean(self, like: Array) -> bool:
        """Return whether the function depends on the mean logit, whose gradient takes a pass.

        The numbers of rows vary over the mesh axes of `like`.
        """
        number = placement.full(like, 0, (), like.dtype)
        program = jax.make_jaxpr(self.function)(number, number, number, *self.constants).jaxpr
        mean = program.invars[2]
        return mean in program.outvars or any(mean in line.invars for line in program.eqns)

    @classmethod
    def of(cls, function: Callable | None, like: Array) -> Self:
        """Return a user's function of numbers like those of an array, or nll without one.

        Traced arrays that it closes over become its constants, of any dtype: its code is run again
        when they are gone. Without any it stays as it is, since the function of a jaxpr is only for
        numbers that vary over the same mesh axes.
        """
        if function is None:
            return cls(lambda nll, lse, mean_logit: nll, ())
        numbers = [placement.full(like, 0, (), like.dtype)] * 3
        found = jax.eval_shape(function, *numbers)
        shape = getattr(found, "shape", None)
        if shape != () or not jnp.issubdtype(found.dtype, jnp.floating):
            kind = found if shape is None else f"{found.dtype}{[*shape]}"
            raise ValueError(f"row_loss: expected one floating number for a row, got {kind}")
        program = jax.make_jaxpr(function)(*numbers)
        if not any(isinstance(a, jax.core.Tracer) for a in program.consts):
            return cls(function, ())

        def converted(nll: Array, lse: Array, mean_logit: Array, *constants: Array) -> Array:
            closed = ClosedJaxpr(program.jaxpr, constants)
            return jaxpr_as_fun(closed)(nll, lse, mean_logit)[0]

        return cls(converted, tuple(program.consts))

    def __call__(self, nll: Array, lse: Array, mean_logit: Array) -> Array:
        """Return the function's value for each row, 0 where all classes are masked."""
        is_masked = (lse == -jnp.inf) & ~jnp.isnan(nll)
        # The function's derivatives at an lse of -inf, times 0, would be NaN.
        terms = (jnp.where(is_masked, 0, term) for term in (nll, lse, mean_logit))
        values = jax.vmap(lambda *row: self.function(*row, *self.constants))(*terms)
        return jnp.where(is_masked, 0, values)

    def cotangents(self, rows: RowTerms, weights: Array) -> tuple[Array, list[Array]]:
        """Return which rows of weight 0 are ignored, and the weighted cotangents of three terms.

        They are those of nll, lse and mean logit. A row is ignored if its value is not finite.
        """
        values, pull = jax.vjp(self.__call__, rows.nll, rows.lse, rows.mean)
        is_ignored = (weights == 0) & ~jnp.isfinite(values)
        bars = pull(weights.astype(values.dtype))
        return is_ignored, [jnp.where(is_ignored, 0, bar) for bar in bars]

    def part_cotangents(
        self, parts: LSEParts, weights: Array
    ) -> tuple[RowTerms, RowCotangents, Array]:
        """Return the terms of rows, the cotangents of their parts, and which rows are ignored.

        With S = s_o + e_y, of the others' exponentials and the label's, and with cotangents a and b
        of nll and lse, that of s_o is (a + b) / S, and that of z_y is (b e_y - a s_o) / S.
        """
        rows = RowTerms.of(parts)
        is_ignored, (a, b, mean) = self.cotangents(rows, weights)
        total = primitives.row_loss(parts)[1]
        e_y = primitives.relative_exp(parts.label_logit, lax.stop_gradient(parts.maximum))
        bars = (a + b) / total, (b * e_y - a * parts.sum_exp_rest) / total
        sum_exp_rest, label_logit = (jnp.where(is_ignored, 0, bar) for bar in bars)
        of_mean = mean if self.uses_mean(mean) else None
        return rows, RowCotangents(sum_exp_rest, label_logit, of_mean), is_ignored

    def weighted_gradient(
        self,
        z: Array,
        labels: Array,
        weights: Array,
        axis: int,
        shards: ClassShards = UNSHARDED,
    ) -> tuple[RowTerms, Array]:
        """Return the terms of rows of logits, and the gradient of the weighted sum in the logits.

        With cotangents a, b and c of nll, lse and the mean of K logits it is
        a (p - e) + b p + c / K.
        """
        rows, gradient = terms_and_gradient(z, labels, axis, shards)
        is_ignored, bars = self.cotangents(rows, weights)
        a, b, c = (jnp.expand_dims(bar, axis) for bar in bars)
        is_label = softmax_core.label_mask(z, labels, axis, shards)
        dz = (a + b) * gradient + jnp.where(is_label, b, 0)
        if self.uses_mean(rows.mean):
            share = c / jnp.maximum(jnp.expand_dims(rows.classes, axis), 1)
            dz += jnp.where(z == -jnp.inf, 0, share)
        return rows, jnp.where(jnp.expand_dims(is_ignored, axis), 0, dz)


def terms_and_gradient(
    z: Array, labels: Array, axis: int, shards: ClassShards = UNSHARDED
) -> tuple[RowTerms, Array]:
    """Return the terms of rows of logits, and the gradient of nll in them.

    Where classes are sharded, the terms are those of all classes.
    """
    nll, gradient, lse, largest = softmax_core.value_gradient_and_lse(z, labels, axis, shards)
    return with_statistics(nll, lse, z, largest, axis, shards), gradient


def with_statistics(
    nll: Array,
    lse: Array,
    z: Array,
    largest: Array,
    axis: int,
    shards: ClassShards = UNSHARDED,
) -> RowTerms:
    """Return nll and lse of rows beside what one pass over their logits gives."""
    exists, axes = z != -jnp.inf, shards.local_axes
    sums = jnp.sum(jnp.where(exists, z, 0), axis), jnp.sum(exists, axis, dtype=z.dtype)
    total, classes = lax.psum(sums, axes)
    k = jnp.int32(class_shards.count_classes(z, axis, shards))
    first = class_shards.first_class(z, axis, shards)
    index = lax.broadcasted_iota(jnp.int32, z.shape, axis) + first
    is_largest = z >= lax.stop_gradient(jnp.expand_dims(largest, axis))
    predicted = jnp.min(jnp.where(is_largest, index, k), axis)
    predicted = lax.pmin(predicted, axes) if axes else predicted
    bits = lax.bitcast_convert_type(predicted, jnp.float32)
    return RowTerms(nll, lse, total / jnp.maximum(classes, 1), classes, bits)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def weighted_sum(
    implementation: Any,
    options: Options,
    function: Callable,
    head: Head,
    weights: Array,
    constants: tuple[Array, ...],
) -> tuple[Array, RowTerms]:
    """Return the weighted sum and the terms of each row, from an implementation."""
    head = dispatch.cast_operands(head, options)
    arguments = head, weights, constants, function
    rows, _ = implementation.rows_and_gradients(*arguments, NeedsGrad(), options)
    return _total(RowLoss(function, constants), rows, weights), rows


@partial(weighted_sum.defjvp, symbolic_zeros=True)
def _weighted_sum_jvp(
    implementation: Any, options: Options, function: Callable, primals: tuple, tangents: tuple
) -> tuple[tuple[Array, RowTerms], tuple[Array, RowTerms]]:
    head, weights, constants = primals
    model_tangents, needs_grad = derivative_rules.nonzero_tangents(tangents[0])

    def rows_and_gradients(arguments: tuple) -> tuple[RowTerms, ModelCotangents]:
        head, weights, constants = arguments
        head = dispatch.cast_operands(head, options)
        return implementation.rows_and_gradients(
            head, weights, constants, function, needs_grad, options
        )

    rows, gradients = call_opaque(rows_and_gradients, (head, weights, constants))

    def sum_of(constants: tuple[Array, ...]) -> tuple[Array, Array]:
        loss = RowLoss(function, constants)
        return _total(loss, rows, weights), loss(rows.nll, rows.lse, rows.mean)

    moves = jax.tree.map(_or_zeros, tangents[2])
    total, change, values = jax.jvp(sum_of, (constants,), (moves,), has_aux=True)
    change += derivative_rules.total_tangent(values, gradients, model_tangents, tangents[1])
    moved = _rows_tangents(implementation, options, head, rows, tangents[0])
    return (total, rows), (change, moved)


def _total(loss: RowLoss, rows: RowTerms, weights: Array) -> Array:
    return primitives.weighted_total(loss(rows.nll, rows.lse, rows.mean), weights)


def _or_zeros(tangent: Any) -> Any:
    # Not zeros of JAX: the tangent of an integer has a dtype that is NumPy's alone.
    return np.zeros(tangent.shape, tangent.dtype) if isinstance(tangent, SymbolicZero) else tangent


def _rows_tangents(
    implementation: Any, options: Options, head: Head, rows: RowTerms, tangents: Head
) -> RowTerms:
    """Return the tangents of the terms of each row, from another pass over the classes.

    Relative to lse the exponentials are probabilities: with p = exp(-nll) of the label and q of the
    others, d lse = sum q dz + p dz_y and d nll = sum q dz - (1 - p) dz_y.
    """
    predicted = lax.bitcast_convert_type(rows.predicted, jnp.int32)
    rest = -jnp.expm1(-rows.nll)
    stats = Stats(rows.mean, rows.classes, predicted) if options.stats else None
    parts = derivative_rules.as_floats(LSEParts(rows.lse, rest, rows.lse - rows.nll, stats))
    found = derivative_rules.parts_tangents(implementation, options, head, parts, tangents)
    others, of_label = found.sum_exp_rest, found.label_logit
    return RowTerms(
        others - rest * of_label,
        others + jnp.exp(-rows.nll) * of_label,
        jnp.zeros_like(rows.mean) if found.stats is None else found.stats.mean,
        jnp.zeros_like(rows.classes),
        jnp.zeros_like(rows.predicted),
    )
