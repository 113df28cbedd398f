"""Functions of rows in few passes over memory: their form for XLA on a GPU.

XLA reads the logits once for all sums that need nothing but the maximum, and once more to write a
result. So here no sum needs another sum: exponentials are relative to the largest, and their sums
are divided by each other afterwards. No exponential is stored, which takes care: XLA stores what
two sums or two passes share, so to XLA each sum has exponentials of its own, of `again(z, times)`.
They are the same expressions in one kernel, where its compiler merges them.

The functions but `maximum` have no derivative rules. Their callers take derivatives of the form for
a CPU, see `linear_map.with_derivatives_of`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
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
    is_scaled: bool  # whether exponentials are as `scaled_exp` returns them


LEAST_ENTRIES = 2**16  # as many as the registers of a core hold


def are_used(z: Array, axis: int) -> bool:
    """Return whether these functions are used for z: on a GPU that has all classes of a row.

    A small array is read from a cache. It may also be in a kernel of the user, for which Mosaic
    lowers no gather, and no primitive of ours. One without an axis of rows may be a row of many.
    """
    if not exponential.is_for_gpu() or placement.partition_spec(z)[axis] is not None:
        return False
    return z.ndim == 1 or not placement.is_static(*z.shape) or z.size >= LEAST_ENTRIES


def prepare(
    z: Array, axis: int, valid: Array | None = None, *, is_scaled: bool = False
) -> RowTerms:
    """Return rows with their maxima; the exponentials of an ignored row mean nothing.

    Scaled exponentials keep sums below the smallest normal number; others have finite products.
    """
    maximum = jnp.max(z, axis)
    has_mass = ~(maximum < exponential.float_limits(maximum.dtype).lowest)
    row = exponential.prepare_rows(maximum if valid is None else select(valid, maximum, 0))
    top = exponential.exp_of_maximum(row)
    top = top if is_scaled else unscaled(top)
    top, has_mass = (jnp.expand_dims(a, axis) for a in (top, has_mass))
    return RowTerms(z, axis, row.expand_dims(axis), top, has_mass, is_scaled)


def relative_exp(z: Array, rows: RowTerms) -> Array:
    """Return exponentials of which the largest is between 1 and 2, times the scale if any."""
    e = exponential.scaled_exp(z, rows.row)
    return e if rows.is_scaled else unscaled(e)


def unscaled(e: Array) -> Array:
    """Return scaled exponentials without the power of two, so that their squares are finite."""
    return e * e.dtype.type(2.0 ** -exponential.scale_exponent(e.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def maximum(z: Array, axis: int) -> Array:
    """Return the maximum of rows, whose derivative the largest entries share, as in `jnp.max`."""
    return max_and_ties(z, axis)[0]


@maximum.defjvp
def _maximum_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    largest, ties = max_and_ties(lax.stop_gradient(z), axis)
    change = jnp.sum(select(z == jnp.expand_dims(largest, axis), dz, 0), axis)
    return maximum(z, axis), change / ties


def max_and_ties(z: Array, axis: int) -> tuple[Array, Array]:
    """Return the maximum of rows and the number of entries equal to it, in one pass."""

    def merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        count = select(a[0] >= b[0], a[1], 0) + select(b[0] >= a[0], b[1], 0)
        return jnp.maximum(a[0], b[0]), count

    least, none = (jnp.asarray(x, z.dtype) for x in (-jnp.inf, 0))
    return lax.reduce((z, jnp.ones_like(z)), (least, none), merge, (axis,))


def sums(rows: RowTerms, *terms: Callable[[Array, Array], Array]) -> list[Array]:
    """Return the sums of functions of logits and their exponentials, with an axis of length 1."""
    copies = [again(rows.z, times) for times in range(2, 2 + len(terms))]
    each = [term(z, relative_exp(z, rows)) for z, term in zip(copies, terms, strict=True)]
    return [jnp.sum(a, rows.axis, keepdims=True) for a in each]


def shares(rows: RowTerms, total: Array) -> Array:
    """Return the softmax, from the sum of exponentials: 0 in a fully masked row."""
    return relative_exp(again(rows.z), rows) * (rows.has_mass.astype(total.dtype) / total)


def sums_beside_mass(rows: RowTerms, *terms: Callable[[Array, Array], Array]) -> tuple[Array, ...]:
    """Return the sum of exponentials, its logarithm relative to the largest, and other sums."""
    lower, ties, *others = sums(
        rows,
        lambda z, e: select(z >= rows.row.maximum, 0, e),
        lambda z, e: (z >= rows.row.maximum).astype(e.dtype),
        *terms,
    )
    return lower + ties * rows.top, jnp.log1p(lower / rows.top + (ties - 1)), *others


def probabilities(z: Array, valid: Array | None, axis: int) -> Array:
    """Return the softmax: 0 in a fully masked row, and in an ignored one whatever it holds."""
    rows = prepare(z, axis, valid)
    (total,) = sums(rows, lambda z, e: e)
    p = shares(rows, total)
    return p if valid is None else jnp.where(jnp.expand_dims(valid, axis), p, 0)


def log_probabilities(z: Array, axis: int) -> Array:
    """Return the logarithm of the softmax, z - max z - log(sum exp(z - max z))."""
    rows = prepare(z, axis, is_scaled=True)
    _, log_excess = sums_beside_mass(rows)
    z = again(z)
    return select(z == -jnp.inf, -jnp.inf, -_depth(z, rows) - log_excess)


def _depth(z: Array, rows: RowTerms) -> Array:
    """Return max z - z, where equal infinities differ by 0."""
    return select(z >= rows.row.maximum, 0, rows.row.maximum - z)


def covariance_product(z: Array, valid: Array | None, tangents: Array, axis: int) -> Array:
    """Return (diag(p) - p p') times the tangents, with p the softmax of z.

    Two means of the tangents are computed together: that of the tangents themselves, and that of
    their differences from the leading class, which is right where it has more than half the mass.
    """
    rows = prepare(z, axis, valid)
    of_leader = jnp.take_along_axis(tangents, jnp.expand_dims(jnp.argmax(z, axis), axis), axis)
    # XLA would gather it beside what depends on a sum, and so the other sums after that one.
    row, of_leader = lax.optimization_barrier((rows.row, of_leader))
    rows = rows._replace(row=row)

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
    rows = prepare(z, axis, is_scaled=True)
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
    rows = prepare(z, axis, is_scaled=True)

    def depth(z: Array) -> Array:
        maximum = rows.row.maximum
        is_left_out = (z >= maximum) | (z <= maximum - NEGLIGIBLE[z.dtype.name])
        return select(is_left_out, 0, maximum - z)

    total, log_excess, depths = sums_beside_mass(rows, lambda z, e: e * depth(z))
    mean = depths / total
    # A product: a row of NaNs may have the maximum of one that is fully masked.
    value = (log_excess + mean) * rows.has_mass.astype(total.dtype)
    return jnp.squeeze(value, axis), shares(rows, total) * (depth(again(z)) - mean)


class SoftTerms(NamedTuple):
    """The functions of the targets' array that make a loss with soft targets, class by class."""

    probabilities: Callable[[Array], Array]
    products: Callable[[Array], Array] | None = None  # whose sum is added to the cross-entropy


def soft_loss_with_gradient(
    z: Array, targets: Array, terms: SoftTerms, axis: int
) -> tuple[Array, Array]:
    """Return -sum_k t_k log p_k, plus the sum of the products, and its gradient p sum t - t.

    The first sum is sum t (max z - z) + log(sum exp(z - max z)) sum t, of terms of one sign.
    """
    rows = prepare(z, axis, is_scaled=True)

    t_of = [terms.probabilities(again(targets, times)) for times in (2, 3)]
    of_classes = [lambda z, e: t_of[0], lambda z, e: _weigh(t_of[1], _depth(z, rows))]
    if terms.products is not None:
        products = terms.products(again(targets, 4))
        of_classes.append(lambda z, e: products)
    total, log_excess, mass, *rest = sums_beside_mass(rows, *of_classes)
    z, t = again(z), terms.probabilities(again(targets))
    gradient = select(z == -jnp.inf, 0, shares(rows, total) * mass - t)
    return jnp.squeeze(sum(rest, log_excess * mass), axis), gradient


def smoothed_with_gradient(
    z: Array,
    labels: Array,
    range_factor: Array,
    smoothing: Array,
    class_weights: Array | None,
    axis: int,
) -> tuple[Array, Array]:
    """Return -sum_k t_k c_k log p_k of smoothed labels, and its gradient.

    With b = a / K the sum is b sum c (max z - z) + b sum c log(sum exp(z - max z)), and the label's
    term (1 - a) c_y (-log p_y), so that no sum needs the number K of classes that exist.
    """
    rows = prepare(z, axis, is_scaled=True)
    expand = partial(jnp.expand_dims, axis=axis)
    labels, known = expand(labels), expand(range_factor)
    c = jnp.ones((1,) * z.ndim, z.dtype) if class_weights is None else class_weights
    is_label = lax.broadcasted_iota(labels.dtype, z.shape, axis) == labels
    total, log_excess, count, c_y, weight, depths = sums_beside_mass(
        rows,
        lambda z, e: _exists(z),
        lambda z, e: select(is_label, c, 0),
        lambda z, e: _exists(z) * c,
        lambda z, e: _weigh(_exists(z) * c, _depth(z, rows)),
    )
    share, of_label = smoothing / jnp.maximum(count, 1) * known, (1 - smoothing) * c_y * known
    nll = _depth(jnp.take_along_axis(z, labels, axis), rows) + log_excess
    mass = share * weight
    value = _weigh(share, depths) + mass * log_excess + _weigh(of_label, nll)
    t = select(is_label, of_label, 0) + share * c
    gradient = shares(rows, total) * (mass + of_label) - t
    return jnp.squeeze(value, axis), select(again(z) == -jnp.inf, 0, gradient)


def _exists(z: Array) -> Array:
    """Return 1 for classes that are not masked, and 0 for the others."""
    return (z != -jnp.inf).astype(z.dtype)


def _weigh(coefficient: Array, value: Array) -> Array:
    """Return the product, where the coefficient 0 makes infinity 0."""
    return select(coefficient == 0, 0, coefficient * value)


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
