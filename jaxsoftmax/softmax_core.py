"""The softmax loss and its gradient in one: what losses, kernels and solvers share.

Cross-entropy and softmax(z) - onehot(y) are computed from the same exponentials, one per entry.
"""

import functools
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import class_maxima, class_shards, exponential, links, placement, validation
from jaxsoftmax.class_maxima import RowMaxima
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.exponential import RowScale
from jaxsoftmax.placement import select
from jaxsoftmax.sharding import Shards
from jaxsoftmax.validation import ArrayLike


class LabeledRows(NamedTuple):
    """Logits with one label per row, in the order of the arguments of `value_and_gradient`."""

    z: Array  # -inf for a masked class
    labels: Array  # int32; 0 where the label is out of range
    in_range: Array  # bool: which labels are in range
    valid: Array  # bool: which rows count
    axis: int  # the class axis, from the front
    shards: ClassShards = UNSHARDED  # where the classes are

    @property
    def range_factor(self) -> Array:
        """1, or NaN for a label out of range where the row counts.

        A gradient would multiply the factor of a row that does not count by 0.
        """
        return jnp.where(self.in_range | ~self.valid, 1, jnp.nan).astype(self.z.dtype)


def prepare_labeled_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    valid: ArrayLike | None,
    shards: Shards | None = None,
) -> LabeledRows:
    """Return the checked arguments of a loss with integer labels.

    A derivative rule returns the types of its primal results, so all four arrays vary over the same
    mesh axes.
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    class_axes = class_shards.resolve(shards, z)
    classes = class_shards.count_classes(z, axis, class_axes)
    index, in_range = validation.prepare_labels(labels, z, axis, num_classes=classes)
    valid = validation.broadcast_valid(valid, index.shape)
    valid = jnp.ones_like(in_range) if valid is None else valid
    per_row = [placement.shard_like_rows(a, z, axis) for a in (index, in_range, valid)]
    if class_axes.local_axes:  # rows are the same for all shards of the classes
        arrays = (z, *placement.match_varying_axes(*per_row))
    else:
        arrays = placement.match_varying_axes(z, *per_row)
    return LabeledRows._make((*arrays, axis, class_axes))


def find_kernels(logits: Array, axis: int, shards: ClassShards) -> ModuleType | None:
    """Return the row kernels if the program is traced for a GPU on which they are faster.

    A kernel needs all classes of a row.

    They are imported by name at their first use: importing Pallas is slow, and they are built on
    this module.
    """
    if shards.classes or not exponential.is_for_gpu():
        return None
    kernels = import_module("jaxsoftmax.kernels.gpu.rows")
    return kernels if kernels.unsupported(logits, axis) is None else None


def label_mask(z: Array, labels: Array, axis: int, shards: ClassShards = UNSHARDED) -> Array:
    """Return which entries of z are those of the rows' labels, a bool array of the shape of z."""
    labels = labels - class_shards.first_class(z, axis, shards)
    classes = lax.broadcasted_iota(labels.dtype, z.shape, axis)
    return classes == jnp.expand_dims(labels, axis)


def label_logit(z: Array, labels: Array, axis: int) -> Array:
    """Return z_y of each row.

    There is no gather along a class axis that is sharded explicitly; there it is a sum with one
    nonzero term.
    """
    if placement.partition_spec(z)[axis] is None:
        return jnp.squeeze(jnp.take_along_axis(z, jnp.expand_dims(labels, axis), axis), axis)
    return jnp.sum(select(label_mask(z, labels, axis), z, 0), axis)


def row_maxima(z: Array, labels: Array, axis: int, shards: ClassShards) -> RowMaxima:
    """Return the largest logit of each row, that of its label, and the largest of the others.

    The largest of the others is only needed, and only computed, where classes are sharded.
    """
    if not shards.local_axes:
        maximum = jnp.max(z, axis)
        return RowMaxima(maximum, label_logit(z, labels, axis), maximum)
    index = labels - class_shards.first_class(z, axis, shards)
    z_y = label_logit(z, jnp.clip(index, 0, z.shape[axis] - 1), axis)
    return class_maxima.max_around_label(z, z_y, index, axis, shards.local_axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def value_and_gradient(
    z: Array,
    labels: Array,
    in_range: Array,
    valid: Array,
    axis: int,
    shards: ClassShards = UNSHARDED,
) -> tuple[Array, Array]:
    """Return cross-entropy and its gradient, computed with one exponential per entry.

    With s_o = sum over k != y of exp(z_k - z_max), the loss is log1p(s_o / e_y) where the label
    leads, and log(S) + (z_max - z_y), S = s_o + e_y, where it does not: both are sums of terms of
    one sign. The gradient is e_k / S, and -s_o / S at the label.
    """
    return class_shards.run(_value_and_gradient, (z, labels, in_range, valid), axis, shards)


class LabelTerms(NamedTuple):
    """The exponentials of rows with labels, and what they are relative to."""

    maxima: RowMaxima
    row: RowScale
    others: Array  # the scaled exponentials, `[..., K]`, 0 for what is left out
    of_label: Array  # that of the label
    left_out: Array  # bool, `[..., K]`: the label's entry, and those of ignored rows
    is_zero: Array  # which rows have value and gradient 0


def label_terms(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> LabelTerms:
    """Return the exponentials of local rows, the label's apart from the others."""
    is_label = label_mask(z, labels, axis, shards)
    maximum, z_y, largest_rest = row_maxima(z, labels, axis, shards)
    is_zero = ~valid | links.is_fully_masked(maximum)
    # Every entry of a row depends on its maximum, so a NaN here reaches the whole row: that is how
    # a label out of range gives NaN.
    maximum = select(valid, select(in_range, maximum, jnp.nan), 0)
    row = exponential.prepare_rows(maximum)
    z_y, largest_rest = select(valid, z_y, 0), select(valid, largest_rest, 0)
    e_y = exponential.scaled_exp(z_y, row)
    # All entries of an ignored row are left out, NaN included.
    left_out = is_label | jnp.expand_dims(~valid, axis)
    others = select(left_out, 0, exponential.scaled_exp(z, row.expand_dims(axis)))
    return LabelTerms(RowMaxima(maximum, z_y, largest_rest), row, others, e_y, left_out, is_zero)


def _value_and_gradient(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> tuple[Array, Array]:
    return _value_gradient_and_lse(z, labels, in_range, valid, axis, shards)[:2]


def _value_gradient_and_lse(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> tuple[Array, Array, Array, Array]:
    """Return value and gradient, and the log-sum-exp and the largest logit of each row."""
    expand = functools.partial(jnp.expand_dims, axis=axis)
    terms = label_terms(z, labels, in_range, valid, axis, shards)
    s_o = class_shards.sum_terms(terms.others, terms.row, terms.maxima.rest, axis, shards)
    s_o, value, total = losses_of_sums(terms, s_o)
    inverse = 1 / (total + select(terms.is_zero, jnp.inf, jnp.zeros_like(total)))
    others = exponential.recompute(terms.others, z, terms.row.expand_dims(axis))
    gradient = jnp.where(terms.left_out, expand(0 - s_o * inverse), others * expand(inverse))
    return value, gradient, _lse_of_sums(terms, value, total), terms.maxima.all


def _lse_of_sums(terms: LabelTerms, value: Array, total: Array) -> Array:
    """Return the log-sum-exp of each row, -inf where all classes are masked."""
    (maximum, z_y, _), row = terms.maxima, terms.row
    trailing = maximum + jnp.log(total / exponential.exp_of_maximum(row))
    lse = select(z_y == maximum, z_y + value, trailing)
    return select(links.is_fully_masked(maximum), maximum, lse)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def value_gradient_and_lse(
    z: Array, labels: Array, axis: int, shards: ClassShards = UNSHARDED
) -> tuple[Array, Array, Array, Array]:
    """Return `value_and_gradient`, and the log-sum-exp and the largest logit of each row.

    Labels are in range. Where classes are sharded, this is inside a shard_map. The largest logit
    counts as a constant.
    """
    known = jnp.ones_like(labels, bool)
    return _value_gradient_and_lse(z, labels, known, known, axis, shards)


@value_gradient_and_lse.defjvp
def _value_gradient_and_lse_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple:
    z, labels = primals
    found, dz = value_gradient_and_lse(z, labels, axis, shards), tangents[0]
    valid = jnp.ones_like(labels, bool)
    product = links.softmax_tangents(z, valid, dz, axis, shards)
    change = directional_derivative(found[1], dz, valid, axis, shards)
    of_lse = change + _label_tangent(dz, labels, axis, shards)
    return found, (change, product, of_lse, jnp.zeros_like(found[3]))


def _label_tangent(dz: Array, labels: Array, axis: int, shards: ClassShards) -> Array:
    if not shards.local_axes:
        return label_logit(dz, labels, axis)
    of_label = select(label_mask(dz, labels, axis, shards), dz, 0)
    return class_shards.take_class(of_label, axis, shards)


def losses_of_sums(terms: LabelTerms, s_o: Array) -> tuple[Array, Array, Array]:
    """Return the sums of the others, the losses, and the sums of all, from those of the others."""
    (maximum, z_y, _), row, _, e_y, _, is_zero = terms
    # A row whose value and gradient are 0 is treated as one whose label leads and whose others sum
    # to 0. The sum is multiplied rather than replaced: the maximum of a row of NaNs may be -inf,
    # but their sum is NaN.
    s_o *= (~is_zero).astype(s_o.dtype)
    total = s_o + e_y
    leads = (z_y == maximum) | is_zero
    excess = select(leads, s_o / e_y, total / exponential.exp_of_maximum(row) - 1)
    return s_o, jnp.log1p(excess) + select(leads, 0, maximum - z_y), total


@value_and_gradient.defjvp
def _value_and_gradient_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple:
    z, _, _, valid = primals
    value, gradient = value_and_gradient(*primals, axis, shards)
    product = links.softmax_tangents(z, valid, tangents[0], axis, shards)
    change = directional_derivative(gradient, tangents[0], valid, axis, shards)
    return (value, gradient), (change, product)


def directional_derivative(
    gradient: Array, tangents: Array, valid: Array, axis: int, shards: ClassShards = UNSHARDED
) -> Array:
    """Return the derivative of the loss along the tangents: 0 for an ignored row, even of NaNs."""
    change = class_shards.sum_classes(gradient * tangents, axis, shards)
    return validation.zero_ignored(change, valid)


def weighted_term(coefficient: Array, value: Array) -> Array:
    """Return coefficient * value; an infinite value with the coefficient 0 is ignored."""
    return coefficient * select((coefficient == 0) & (value == jnp.inf), 0, value)


def smooth_targets(
    z: Array, is_label: Array, count: Array, smoothing: Array, class_weights: Array | None
) -> Array:
    """Return t c: a is shared by the `count` classes that exist, and the label has 1 - a more."""
    share = smoothing / jnp.maximum(count, 1)
    t = jnp.where(is_label, 1 - smoothing, 0) + jnp.where(z != -jnp.inf, share, 0)
    return t if class_weights is None else t * class_weights
