"""Functions of rows in few passes over memory: their form for XLA on a GPU.

XLA reads the logits once for all sums that need nothing but the maximum, and once more to write a
result. So here no sum needs another sum: exponentials are relative to the largest, and their sums
are divided by each other afterwards. No exponential is stored, which takes care: XLA stores what
two sums or two passes share, so to XLA each sum has exponentials of its own, of `again(z, times)`.
They are the same expressions in one kernel, where its compiler merges them.

The functions have no derivative rules. Their callers take derivatives of the form for a CPU, see
`linear_map.with_derivatives_of`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import exponential, placement
from jaxsoftmax.exponential import RowScale, again
from jaxsoftmax.placement import select

NEGLIGIBLE = {"float32": 104.0, "float64": 746.0}  # exp(-x) rounds to 0


class RowTerms(NamedTuple):
    """Rows of logits, and what their exponentials share, with a class axis of length 1."""

    z: Array
    axis: int
    row: RowScale
    top: Array  # the largest exponential
    has_mass: Array  # which rows are not fully masked


def are_used(z: Array, axis: int) -> bool:
    """Return whether these functions are used for z: on a GPU that has all classes of a row."""
    return exponential.is_for_gpu() and placement.partition_spec(z)[axis] is None


def prepare(z: Array, axis: int, valid: Array | None = None) -> RowTerms:
    """Return rows with their maxima; the exponentials of an ignored row mean nothing."""
    maximum = jnp.max(z, axis)
    has_mass = ~(maximum < jnp.finfo(maximum.dtype).min)
    row = exponential.prepare_rows(maximum if valid is None else select(valid, maximum, 0))
    top = unscaled(exponential.exp_of_maximum(row))
    per_row = (jnp.expand_dims(a, axis) for a in (top, has_mass))
    return RowTerms(z, axis, row.expand_dims(axis), *per_row)


def relative_exp(z: Array, rows: RowTerms) -> Array:
    """Return exponentials of which the largest is between 1 and 2."""
    return unscaled(exponential.scaled_exp(z, rows.row))


def unscaled(e: Array) -> Array:
    """Return scaled exponentials without the power of two, so that their squares are finite."""
    return e * e.dtype.type(2.0 ** -exponential.scale_exponent(e.dtype))


def sums(rows: RowTerms, *terms: Callable[[Array, Array], Array]) -> list[Array]:
    """Return the sums of functions of logits and their exponentials, with an axis of length 1."""
    copies = [again(rows.z, times) for times in range(2, 2 + len(terms))]
    each = [term(z, relative_exp(z, rows)) for z, term in zip(copies, terms, strict=True)]
    return [jnp.sum(a, rows.axis, keepdims=True) for a in each]


def shares(rows: RowTerms, total: Array) -> Array:
    """Return the softmax, from the sum of exponentials: 0 in a fully masked row."""
    return relative_exp(again(rows.z), rows) * (rows.has_mass.astype(total.dtype) / total)


def covariance_product(z: Array, valid: Array | None, tangents: Array, axis: int) -> Array:
    """Return (diag(p) - p p') times the tangents, with p the softmax of z.

    Two means of the tangents are computed together: that of the tangents themselves, and that of
    their differences from the leading class, which is right where it has more than half the mass.
    """
    rows = prepare(z, axis, valid)
    of_leader = jnp.take_along_axis(tangents, jnp.expand_dims(jnp.argmax(z, axis), axis), axis)

    def restrict(z: Array, u: Array) -> Array:
        maximum = rows.row.maximum
        is_lost = (z < maximum) & (z <= maximum - NEGLIGIBLE[z.dtype.name])
        return select(is_lost | ~rows.has_mass, 0, u)

    total, sum_, difference = sums(
        rows,
        lambda z, e: e,
        lambda z, e: e * restrict(z, tangents),
        lambda z, e: e * restrict(z, tangents - of_leader),
    )
    p = shares(rows, total)
    leads = rows.has_mass & (total < 2 * rows.top)
    shift = select(leads, of_leader, 0)
    mean = select(leads, difference, select(rows.has_mass, sum_, 0)) / total
    product = select(p == 0, 0, p * (tangents - shift - mean))
    return product if valid is None else jnp.where(jnp.expand_dims(valid, axis), product, 0)


def log_softmax_transpose(z: Array, cotangents: Array, axis: int) -> Array:
    """Return c - p sum c, the cotangents of the logits from those of the logarithms.

    For a leading class it is c (1 - p) minus p times the sum of the others, without 1 - p.
    """
    rows = prepare(z, axis)
    maximum = rows.row.maximum

    def restrict(z: Array) -> Array:
        return select(z == -jnp.inf, 0, cotangents)

    lower, ties, mass, mass_of_lower = sums(
        rows,
        lambda z, e: select(z >= maximum, 0, e),
        lambda z, e: (z >= maximum).astype(e.dtype),
        lambda z, e: restrict(z),
        lambda z, e: select(z >= maximum, 0, restrict(z)),
    )
    total = lower + ties * rows.top
    p = shares(rows, total)
    z = again(z)
    of_leader = restrict(z) * (lower / total) - mass_of_lower * (rows.top / total)
    centered = restrict(z) - select(p == 0, 0, p * mass)
    return select((z >= maximum) & (total < 2 * rows.top), of_leader, centered)


def entropy_with_gradient(z: Array, axis: int) -> tuple[Array, Array]:
    """Return H = log sum exp(z - max z) + sum p (max z - z), and its gradient.

    The gradient, -p (log p + H), is p times max z - z minus the mean of the same.
    """
    rows = prepare(z, axis)

    def depth(z: Array) -> Array:
        maximum = rows.row.maximum
        is_left_out = (z >= maximum) | (z <= maximum - NEGLIGIBLE[z.dtype.name])
        return select(is_left_out, 0, maximum - z)

    lower, ties, depths = sums(
        rows,
        lambda z, e: select(z >= rows.row.maximum, 0, e),
        lambda z, e: (z >= rows.row.maximum).astype(e.dtype),
        lambda z, e: e * depth(z),
    )
    total = lower + ties * rows.top
    mean = depths / total
    # A product: a row of NaNs may have the maximum of one that is fully masked.
    value = (jnp.log1p(lower / rows.top + (ties - 1)) + mean) * rows.has_mass.astype(total.dtype)
    return jnp.squeeze(value, axis), shares(rows, total) * (depth(again(z)) - mean)


def brier_with_gradient(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int
) -> tuple[Array, Array]:
    """Return sum_k r_k^2 with r = p - onehot(y), and its gradient 2 p_k (r_k - sum p r).

    With s the sum of the others' probabilities and q that of their squares, the value is q + s^2
    and the sum of p r is q - p_y s. At the label r_y less that sum is -(q + s^2); at other classes
    with the largest logit, p_k - q is p_k times the mass of the lower ones, less their squares.
    """
    rows = prepare(z, axis, valid)
    expand = partial(jnp.expand_dims, axis=axis)
    maximum = rows.row.maximum
    is_label = lax.broadcasted_iota(labels.dtype, z.shape, axis) == expand(labels)
    e_y = relative_exp(jnp.take_along_axis(z, expand(labels), axis), rows)

    def rest(z: Array, e: Array) -> Array:
        return select(is_label | (z >= maximum), 0, e)

    s, ties, q = sums(
        rows,
        rest,
        lambda z, e: (~is_label & (z >= maximum)).astype(e.dtype),
        lambda z, e: rest(z, e) ** 2,
    )
    known = jnp.where(expand(in_range), 1, jnp.nan).astype(z.dtype)
    ties *= rows.top
    total = (s + ties + e_y) * known
    p, p_y, others = shares(rows, total), e_y / total, (s + ties) / total
    q, ties = q / total / total, ties * rows.top / total / total
    value = (q + ties + others**2) * rows.has_mass.astype(total.dtype)
    spread = p_y * others - q
    of_leader = p * ((s + e_y) / total) + spread
    of_others = select(again(z) >= maximum, of_leader, p + (spread - ties))
    gradient = 2 * p * select(is_label, -value, of_others)
    counts = expand(valid)
    return jnp.squeeze(select(counts, value, 0), axis), select(counts, gradient, 0)
