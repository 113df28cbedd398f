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

from jaxsoftmax import exponential, links, placement, validation
from jaxsoftmax.placement import select
from jaxsoftmax.validation import ArrayLike


class LabeledRows(NamedTuple):
    """Logits with one label per row, in the order of the arguments of `value_and_gradient`."""

    z: Array  # -inf for a masked class
    labels: Array  # int32; 0 where the label is out of range
    in_range: Array  # bool: which labels are in range
    valid: Array  # bool: which rows count
    axis: int  # the class axis, from the front


def prepare_labeled_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> LabeledRows:
    """Return the checked arguments of a loss with integer labels.

    A derivative rule returns the types of its primal results, so all four arrays vary over the same
    mesh axes.
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    index, in_range = validation.prepare_labels(labels, z, axis)
    valid = validation.broadcast_valid(valid, index.shape)
    valid = jnp.ones_like(in_range) if valid is None else valid
    per_row = (placement.shard_like_rows(a, z, axis) for a in (index, in_range, valid))
    return LabeledRows._make((*placement.match_varying_axes(z, *per_row), axis))


def find_kernels(logits: Array, axis: int) -> ModuleType | None:
    """Return the row kernels if the program is traced for a GPU on which they are faster.

    They are imported by name at their first use: importing Pallas is slow, and they are built on
    this module.
    """
    if not exponential.is_for_gpu():
        return None
    kernels = import_module("jaxsoftmax.kernels.gpu.rows")
    return kernels if kernels.unsupported(logits, axis) is None else None


def label_mask(z: Array, labels: Array, axis: int) -> Array:
    """Return which entries of z are those of the rows' labels, a bool array of the shape of z."""
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def value_and_gradient(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int
) -> tuple[Array, Array]:
    """Return cross-entropy and its gradient, computed with one exponential per entry.

    With s_o = sum over k != y of exp(z_k - z_max), the loss is log1p(s_o / e_y) where the label
    leads, and log(S) + (z_max - z_y), S = s_o + e_y, where it does not: both are sums of terms of
    one sign. The gradient is e_k / S, and -s_o / S at the label.
    """
    expand = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    is_zero = ~valid | links.is_fully_masked(maximum)
    # Every entry of a row depends on its maximum, so a NaN here reaches the whole row: that is how
    # a label out of range gives NaN.
    maximum = select(valid, select(in_range, maximum, jnp.nan), 0)
    row = exponential.prepare_rows(maximum)
    z_y = select(valid, label_logit(z, labels, axis), 0)
    e_y = exponential.scaled_exp(z_y, row)
    # All entries of an ignored row are left out, NaN included.
    left_out = label_mask(z, labels, axis) | expand(~valid)
    per_entry = row.expand_dims(axis)
    others = select(left_out, 0, exponential.scaled_exp(z, per_entry))
    # A row whose value and gradient are 0 is treated as one whose label leads and whose others sum
    # to 0. The sum is multiplied rather than replaced: the maximum of a row of NaNs may be -inf,
    # but their sum is NaN.
    s_o = exponential.sum_terms(others, row, axis) * (~is_zero).astype(z.dtype)
    total = s_o + e_y
    leads = (z_y == maximum) | is_zero
    excess = select(leads, s_o / e_y, total / exponential.exp_of_maximum(row) - 1)
    value = jnp.log1p(excess) + select(leads, 0, maximum - z_y)
    inverse = 1 / (total + select(is_zero, jnp.inf, jnp.zeros_like(total)))
    others = exponential.recompute(others, z, per_entry)
    return value, jnp.where(left_out, expand(0 - s_o * inverse), others * expand(inverse))


@value_and_gradient.defjvp
def _value_and_gradient_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple:
    z, _, _, valid = primals
    value, gradient = value_and_gradient(*primals, axis)
    p = links.softmax_values(z, valid, axis)
    product = links.covariance_product(p, tangents[0], axis)
    return (value, gradient), (directional_derivative(gradient, tangents[0], valid, axis), product)


def directional_derivative(gradient: Array, tangents: Array, valid: Array, axis: int) -> Array:
    """Return the derivative of the loss along the tangents: 0 for an ignored row, even of NaNs."""
    return validation.zero_ignored(jnp.sum(gradient * tangents, axis), valid)


def weighted_term(coefficient: Array, value: Array) -> Array:
    """Return coefficient * value; an infinite value with the coefficient 0 is ignored."""
    return coefficient * select((coefficient == 0) & (value == jnp.inf), 0, value)
