"""The softmax and the losses that are sums over its classes, of rows whose classes are sharded.

All take two all-reduces, of maxima and of sums in fixed point. That is possible because each loss
is put together from sums of terms that are known with the maximum M = max z alone. With
S = sum_k exp(z_k - M) and m = sum_k t_k,

    log p_k              = z_k - M - log S
    -sum_k t_k log p_k   = sum_k t_k (M - z_k) + m log S
    -sum_k p_k log p_k   = sum_k exp(z_k - M) (M - z_k) / S + log S
    sum_k (p_k - [k=y])^2 = (sum_{k != y} e_k^2 + (sum_{k != y} e_k)^2) / S^2,    e_k = exp(z_k - M)

where no sum has terms of two signs. An entry that alone is the largest adds to none of them but S,
so log S = log1p(sum of the others), and each sum has the digits of its largest term.

What crosses are int32 numbers a row: k of them for the two largest logits, 2 to 13 on 2 to 1,024
shards, which is the least (see `class_maxima`), and two for a sum, which is the least too (see
`fixed_point`):

                                         maxima    sums
    cross_entropy, its gradient          2         2
    softmax                              1         2
    log_softmax, logsumexp               k         2
    entropy, its gradient                k         5
    brier                                2         4
    smoothed_cross_entropy               k + 2     5, of which one is the number of classes
      with class weights                 2 k + 3   8
    soft_cross_entropy                   2 k + 1   7
    kl_divergence                        2 k + 2   9

The sum of t_k (M - z_k) takes three, as its bound is a product of two and too large by up to 2^25,
and so does that of exp(z_k - M) (M - z_k), whose terms may all be far below 1 / e: the gradient of
the entropy, p_k (M - z_k - sum_j p_j (M - z_j)), needs its digits where log S does not hide them.
A gradient in the logits takes no more than its loss.

The functions are for local arrays inside a shard_map; `class_shards.run` makes it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import class_maxima, class_shards, exponential, fixed_point
from jaxsoftmax.class_maxima import Leaders
from jaxsoftmax.class_shards import ClassShards, Summand
from jaxsoftmax.exponential import RowScale
from jaxsoftmax.placement import select

LOOSE_LIMBS = 3  # of sums whose terms may all be far below their bound


class Exponentials(NamedTuple):
    """The scaled exponentials of rows, and sums of them."""

    maximum: Array
    entries: Array  # [..., K]
    total: Array  # S, in the scale of the entries
    log_total: Array  # log S, relative to the largest entry


class _Rows(NamedTuple):
    """Logits with what the first all-reduce tells about them."""

    z: Array
    axis: int
    leaders: Leaders
    row: RowScale
    left_out: Array  # [..., K]: the largest entry, if it alone is

    def expand(self, x: Array) -> Array:
        return jnp.expand_dims(x, self.axis)

    @property
    def entries(self) -> Array:
        return exponential.scaled_exp(self.z, self.row.expand_dims(self.axis))

    @property
    def gaps(self) -> Array:
        """M - z_k, where equal infinities differ by 0."""
        peak = self.expand(self.leaders.largest)
        return select(self.z >= peak, 0, peak - self.z)

    @property
    def others(self) -> Summand:
        """The entries whose sum is S, without the largest if it alone is."""
        return class_shards.exponentials(
            self.other_entries, self.row, self.leaders.second, self.axis
        )

    @property
    def other_entries(self) -> Array:
        """The entries, and 0 for the largest if it alone is."""
        return select(self.left_out, 0, self.entries)

    def exponentials(self, others: Array) -> Exponentials:
        """Return the exponentials, from the sum of the others."""
        top, is_tied = exponential.exp_of_maximum(self.row), self.leaders.is_tied
        others = select(jnp.isnan(self.leaders.largest), jnp.nan, others)
        excess = others / top - is_tied.astype(top.dtype)
        total = select(is_tied, others, others + top)
        z = exponential.again(self.z)
        return Exponentials(
            self.leaders.largest, self._replace(z=z).entries, total, jnp.log1p(excess)
        )


def _prepare(z: Array, axis: int, leaders: Leaders) -> _Rows:
    # By their bits, as the leaders are found: 0 is above -0.
    order = class_maxima.to_order(z)
    leads = order == jnp.expand_dims(class_maxima.to_order(leaders.largest), axis)
    left_out = leads & ~jnp.expand_dims(leaders.is_tied, axis)
    return _Rows(z, axis, leaders, exponential.prepare_rows(leaders.largest), left_out)


def sum_exponentials(z: Array, axis: int, shards: ClassShards) -> Exponentials:
    """Return the exponentials of rows and their sums."""
    rows = _prepare(z, axis, class_maxima.find_leaders(z, axis, shards.local_axes))
    (others,) = class_shards.sum_exactly((rows.others,), axis, shards)
    return rows.exponentials(others)


class SoftSums(NamedTuple):
    """Sums over the classes of rows with targets."""

    value: Array  # -sum_k t_k log p_k plus the sum of further terms, 0 for a fully masked row
    mass: Array  # sum_k t_k
    exists: Array  # bool: which rows are not fully masked
    exponentials: Exponentials


def soft_sums(
    z: Array, t: Array, further: Array | None, axis: int, shards: ClassShards
) -> SoftSums:
    """Return cross-entropy with soft targets, plus the sum of further terms `[..., K]`.

    t_k (M - z_k) has no maximum that is known with M, but a bound: the largest target of the
    classes but the largest one, times the largest M - z_k of a class with a target. It exceeds the
    largest term by no more than the quotient of the largest M - z_k and the smallest, and where
    that is large because an entry is close to the largest, log S is not small.
    """
    more = (_negative_support(z, t), *(() if further is None else (jnp.abs(further),)))
    leaders = class_maxima.find_leaders(z, axis, shards.local_axes, (jnp.abs(t),), more)
    rows, (largest, lowest, *sizes_of_further) = _prepare(z, axis, leaders), leaders.maxima
    bound = _product(leaders.others[0], _depth(leaders, lowest))
    gaps, unit = _weighted_gaps(rows, t, bound, LOOSE_LIMBS)
    summands = [rows.others, class_shards.summand(t, largest, axis), gaps]
    if further is not None:
        summands.append(class_shards.summand(further, sizes_of_further[0], axis))
    others, mass, distance, *rest = class_shards.sum_exactly(tuple(summands), axis, shards)
    found = rows.exponentials(others)
    value, exists = distance * unit + _product(mass, found.log_total), leaders.largest != -jnp.inf
    value = value + rest[0] if rest else value
    return SoftSums(select(exists, value, 0), mass, exists, found)


def _negative_support(z: Array, t: Array) -> Array:
    """Return -z where there is a target: its maximum is that of the lowest such logit."""
    return select(t == 0, -jnp.inf, -z)


def _depth(leaders: Leaders, lowest: Array) -> Array:
    """Return the largest M - z_k, from the maximum of -z_k."""
    return select(-lowest >= leaders.largest, 0, leaders.largest + lowest)


def _weighted_gaps(rows: _Rows, t: Array, bound: Array, limbs: int) -> tuple[Summand, Array]:
    """Return t_k (M - z_k) in a unit, and the unit: a sum of huge terms must not overflow."""
    unit = fixed_point.power_above(bound)
    is_zero = (t == 0) | rows.left_out
    gaps = select(is_zero, 0, t * rows.gaps * rows.expand(1 / unit))
    relative = select(bound < jnp.inf, bound / unit, bound)
    return class_shards.summand(gaps, relative, rows.axis, limbs), unit


class SmoothedSums(NamedTuple):
    """Sums over the classes of rows with smoothed labels."""

    nll: Array  # -log p_y; 0 for a fully masked row, like the mean
    weight: Array  # c_y
    mean: Array  # of -c_k log p_k over the classes that exist
    mean_weight: Array  # of their c_k
    classes: Array  # their number, or 1
    exponentials: Exponentials


def smoothed_sums(
    z: Array, c: Array | None, is_label: Array, axis: int, shards: ClassShards
) -> SmoothedSums:
    """Return the sums of which cross-entropy with smoothed labels is made, without the smoothing.

    The number of classes comes with the sums, and the label's logit and weight with the maxima.
    Without class weights the largest term of the mean is known.
    """
    exists = z != -jnp.inf
    t = exists.astype(z.dtype) if c is None else select(exists, c, 0)
    of_label = [select(is_label, a, -jnp.inf) for a in (z, c) if a is not None]
    more = (_negative_support(z, t), *of_label)
    sizes = () if c is None else (jnp.abs(t),)
    leaders = class_maxima.find_leaders(z, axis, shards.local_axes, sizes, more)
    rows, one = _prepare(z, axis, leaders), jnp.ones_like(leaders.largest)
    lowest, z_y, *weights = leaders.maxima[len(sizes) :]
    depth = _depth(leaders, lowest)
    bound = depth if c is None else _product(leaders.others[0], depth)
    gaps, unit = _weighted_gaps(rows, t, bound, 2 if c is None else LOOSE_LIMBS)
    summands = [rows.others, gaps, class_shards.summand(exists.astype(z.dtype), one, axis, 1)]
    if c is not None:
        summands.append(class_shards.summand(t, leaders.maxima[0], axis))
    others, distance, count, *mass = class_shards.sum_exactly(tuple(summands), axis, shards)
    found, classes = rows.exponentials(others), jnp.maximum(count, 1)
    weight, mean_weight = (weights[0], mass[0] / classes) if c is not None else (one, one)
    # The sum of huge gaps may be infinite, their mean not.
    mean = distance / classes * unit + _product(mean_weight, found.log_total)
    nll = select(z_y >= leaders.largest, 0, leaders.largest - z_y) + found.log_total
    nll, mean = (select(leaders.largest != -jnp.inf, x, 0) for x in (nll, mean))
    return SmoothedSums(nll, weight, mean, mean_weight, classes, found)


def _product(x: Array, y: Array) -> Array:
    """Return x y, and 0 where a factor is 0 and the other infinite."""
    return select((x == 0) | (y == 0), 0, x * y)


class EntropySums(NamedTuple):
    """The entropy of the softmax, and the mean of the gaps M - z_k of which it is made."""

    value: Array  # the mean gap + log S; 0 for a fully masked row
    gaps: Array  # [..., K]
    mean_gap: Array  # sum_k p_k (M - z_k)
    exponentials: Exponentials


def entropy_sums(z: Array, axis: int, shards: ClassShards) -> EntropySums:
    """Return the entropy of the softmax, and the sums of which it is made.

    exp(-g) g falls from g = 1 on, so that the second largest entry has the largest term. Where it
    is closer than 1, log S is not small, and the term is at most 1 / e.
    """
    leaders = class_maxima.find_leaders(z, axis, shards.local_axes)
    rows = _prepare(z, axis, leaders)
    gap = select(leaders.second >= leaders.largest, 0, leaders.largest - leaders.second)
    top, gaps, others = exponential.exp_of_maximum(rows.row), rows.gaps, rows.others
    # Farther away, a term is less than the smallest normal number.
    limit = 8 - float(np.log(exponential.float_limits(z.dtype).tiny))
    terms = select(gaps < limit, rows.other_entries * gaps, 0)
    largest = select(gap < 1, top, select(gap < limit, others.bound * gap, 0))
    summands = others, class_shards.summand(terms, largest, axis, LOOSE_LIMBS)
    sums = class_shards.sum_exactly(summands, axis, shards)
    found = rows.exponentials(sums[0])
    mean_gap = sums[1] / found.total
    value = select(leaders.largest != -jnp.inf, mean_gap + found.log_total, 0)
    return EntropySums(value, gaps, mean_gap, found)


def squared_residuals(
    others: Array, row: RowScale, largest: Array, e_y: Array, axis: int, shards: ClassShards
) -> Array:
    """Return sum_k (p_k - [k = y])^2 from the exponentials of the classes but the label's.

    Args:
        others: the scaled exponentials, 0 for the label, `[..., K]`.
        row: the scale of the rows.
        largest: the largest logit of the others.
        e_y: the scaled exponential of the label.
        axis: the class axis.
        shards: where the classes are.
    """
    entries = class_shards.exponentials(others, row, largest, axis)
    relative = others * jnp.expand_dims(1 / entries.bound, axis)
    squares = class_shards.summand(relative * relative, jnp.ones_like(largest), axis)
    rest, sum_of_squares = class_shards.sum_exactly((entries, squares), axis, shards)
    rest = select(jnp.isnan(row.maximum), jnp.nan, rest)
    total = rest + e_y
    share, unit = rest / total, entries.bound / total
    return share * share + sum_of_squares * (unit * unit)
