"""Losses that are sums over sharded classes, with closed-form derivatives of exact sums.

The values are those of `sharded_softmax`. Where a derivative needs a sum that the value has as
well, it is the same sum. Derivatives of derivatives are those of the plain formulas, whose sums
over shards are of floats.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import (
    class_maxima,
    class_shards,
    exponential,
    fixed_point,
    links,
    sharded_softmax,
    softmax_core,
    validation,
)
from jaxsoftmax.class_shards import ClassShards, Summand
from jaxsoftmax.exponential import RowScale
from jaxsoftmax.placement import select
from jaxsoftmax.softmax_core import LabeledRows


def _with_derivatives_of(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator of function(arrays, axis, shards): derivatives are those of `plain`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        rule = jax.custom_jvp(function, nondiff_argnums=(1, 2))

        def jvp(axis: int, shards: ClassShards, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
            tangent = jax.jvp(lambda a: plain(a, axis, shards), primals, tangents)[1]
            return rule(*primals, axis, shards), tangent

        rule.defjvp(jvp)
        return rule

    return decorate


# -- Integer labels, without the gradient --


def label_values(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> Array:
    """Return cross-entropy with integer labels."""
    return class_shards.run(_local_label_values, (z, labels, in_range, valid), axis, shards)


def _local_label_values(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> Array:
    """Return the values; on a CPU the exponentials are those of a few rows at a time.

    Without the gradient there is no output array that could hold them.
    """
    terms = softmax_core.label_terms(z, labels, in_range, valid, axis, shards)

    def blocks(axis: int, z: Array, labels: Array, valid: Array, row: RowScale) -> Array:
        is_label = softmax_core.label_mask(z, labels, axis, shards)
        left_out = is_label | jnp.expand_dims(~valid, axis)
        e = select(left_out, 0, exponential.scaled_exp(z, row.expand_dims(axis)))
        return fixed_point.sum_blocks(lax.optimization_barrier(e) if e.ndim == 1 else e, axis)

    found = class_maxima.by_rows(blocks, axis, z, labels, valid, terms.row)
    summand = Summand(found, exponential.scaled_exp(terms.maxima.rest, terms.row))
    (s_o,) = class_shards.sum_exactly((summand,), axis, shards)
    s_o = select(jnp.isnan(terms.row.maximum), jnp.nan, s_o)
    return softmax_core.losses_of_sums(terms, s_o)[1]


# -- Soft targets --


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def soft_values(z: Array, t: Array, further: Array | None, axis: int, shards: ClassShards) -> Array:
    """Return -sum_k t_k log p_k plus the sum of further terms; 0 for a fully masked row."""
    return _soft_parts((z, t, further), axis, shards)[0]


@soft_values.defjvp
def _soft_values_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (z, t, _), (dz, dt, dfurther) = primals, tangents
    value, mass, exists, p, log_p = _soft_parts(primals, axis, shards)
    products = _soft_products((z, p, log_p), t, (dz, dt), mass, axis, shards)
    products = products if dfurther is None else products + jnp.expand_dims(exists, axis) * dfurther
    return value, class_shards.sum_classes(products, axis, shards)


def _soft_products(
    rows: tuple, t: Array, tangents: tuple, mass: Array, axis: int, shards: ClassShards
) -> Array:
    """Return the terms of the change of -sum_k t_k log p_k."""
    (z, p, log_p), (dz, dt) = rows, tangents
    gradient = p * class_shards.spread(mass, p, axis, shards) - t
    return select(z == -jnp.inf, 0, gradient) * dz - select(jnp.isinf(log_p), 0, log_p) * dt


def _plain_soft_parts(arrays: tuple, axis: int, shards: ClassShards) -> tuple:
    z, t, _ = arrays
    value, mass = (
        soft_values(*arrays, axis, shards),
        class_shards.sum_classes(t, axis, shards),
    )
    exists = class_shards.any_class(z != -jnp.inf, axis, shards).astype(z.dtype)
    return value, mass, exists, *links.softmax_and_log(z, axis, shards)


@_with_derivatives_of(_plain_soft_parts)
def _soft_parts(arrays: tuple, axis: int, shards: ClassShards) -> tuple:
    """Return values, sum_k t_k, 1 or 0 for rows with a class or none, softmax and logarithm."""
    return class_shards.run(_local_soft_parts, arrays, axis, shards)


def _local_soft_parts(
    z: Array, t: Array, further: Array | None, axis: int, shards: ClassShards
) -> tuple:
    value, mass, exists, found = sharded_softmax.soft_sums(z, t, further, axis, shards)
    return value, mass, exists.astype(z.dtype), *links.shares_and_logs(z, found, axis)


# -- Smoothed labels --


class _Smoothed(NamedTuple):
    """The values of rows, and what their derivatives need."""

    value: Array
    weight: Array  # as in `sharded_softmax.SmoothedSums`, like the next two
    mean_weight: Array
    classes: Array
    p: Array
    log_p: Array


def smoothed_values(rows: LabeledRows, a: Array, c: Array | None) -> Array:
    """Return cross-entropy with smoothed labels; `c` are class weights, with the rank of z."""
    c = None if c is None else jnp.broadcast_to(c, rows.z.shape)
    z = validation.zero_ignored_rows(rows.z, rows.valid, rows.axis)
    values = _smoothed_values(z, rows.labels, rows.range_factor, a, c, rows.axis, rows.shards)
    return validation.zero_ignored(values, rows.valid)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _smoothed_values(
    z: Array,
    labels: Array,
    factor: Array,
    a: Array,
    c: Array | None,
    axis: int,
    shards: ClassShards,
) -> Array:
    return _smoothed_parts((z, labels, factor, a, c), axis, shards).value


@_smoothed_values.defjvp
def _smoothed_values_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (z, labels, factor, a, c), (dz, _, _, da, dc) = primals, tangents
    parts = _smoothed_parts(primals, axis, shards)
    is_label = softmax_core.label_mask(z, labels, axis, shards)
    classes, factors = (jnp.expand_dims(x, axis) for x in (parts.classes, factor))

    def targets(a: Array, c: Array | None) -> Array:
        return softmax_core.smooth_targets(z, is_label, classes, a, c) * factors

    t, dt = jax.jvp(targets, (a, c), (da, dc))
    mass = (1 - a) * parts.weight + a * parts.mean_weight
    rows = z, parts.p, parts.log_p
    products = _soft_products(rows, t, (dz, dt), mass * factor, axis, shards)
    return parts.value, class_shards.sum_classes(products, axis, shards)


def _plain_smoothed_parts(arrays: tuple, axis: int, shards: ClassShards) -> _Smoothed:
    """Return the parts, of which the value is that of the rule: it may be infinite."""
    z, labels, _, _, c = arrays
    value = _smoothed_values(*arrays, axis, shards)
    p, log_p = links.softmax_and_log(z, axis, shards)
    c = jnp.ones_like(z) if c is None else c
    is_label = softmax_core.label_mask(z, labels, axis, shards)
    exists = (z != -jnp.inf).astype(z.dtype)
    classes = jnp.maximum(class_shards.sum_classes(exists, axis, shards), 1)
    weight = class_shards.take_class(select(is_label, c, 0), axis, shards)
    mean_weight = class_shards.sum_classes(c * exists, axis, shards) / classes
    return _Smoothed(value, weight, mean_weight, classes, p, log_p)


@_with_derivatives_of(_plain_smoothed_parts)
def _smoothed_parts(arrays: tuple, axis: int, shards: ClassShards) -> _Smoothed:
    z, labels, factor, a, c = arrays
    found = class_shards.run(_local_smoothed_parts, (z, labels, c), axis, shards)
    nll, weight, mean, mean_weight, *rest = found
    value = softmax_core.weighted_term((1 - a) * weight, nll) + softmax_core.weighted_term(a, mean)
    return _Smoothed(value * factor, weight, mean_weight, *rest)


def _local_smoothed_parts(
    z: Array, labels: Array, c: Array | None, axis: int, shards: ClassShards
) -> tuple:
    is_label = softmax_core.label_mask(z, labels, axis, shards)
    sums = sharded_softmax.smoothed_sums(z, c, is_label, axis, shards)
    return *sums[:-1], *links.shares_and_logs(z, sums.exponentials, axis)


# -- The entropy of the softmax --


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def entropy_values(z: Array, axis: int, shards: ClassShards) -> Array:
    """Return -sum_k p_k log p_k; 0 for a fully masked row."""
    return _entropy_parts((z,), axis, shards)[0]


@entropy_values.defjvp
def _entropy_values_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    value, gradient = _entropy_parts(primals, axis, shards)
    return value, class_shards.sum_classes(gradient * tangents[0], axis, shards)


def _plain_entropy_parts(arrays: tuple, axis: int, shards: ClassShards) -> tuple:
    value = entropy_values(*arrays, axis, shards)
    p, log_p = links.softmax_and_log(*arrays, axis, shards)
    mean = class_shards.spread(value, p, axis, shards)
    return value, -p * (select(p == 0, 0, log_p) + mean)


@_with_derivatives_of(_plain_entropy_parts)
def _entropy_parts(arrays: tuple, axis: int, shards: ClassShards) -> tuple:
    """Return the entropies and their gradients."""
    return class_shards.run(_local_entropy_parts, arrays, axis, shards)


def _local_entropy_parts(z: Array, axis: int, shards: ClassShards) -> tuple:
    """Return the gradient as p_k (g_k - sum p g), with the gaps g = max z - z.

    Where probabilities are nearly equal, log p_k and the entropy cancel, and gaps are small.
    """
    value, gaps, mean_gap, found = sharded_softmax.entropy_sums(z, axis, shards)
    p, _ = links.shares_and_logs(z, found, axis)
    gaps = select(p == 0, 0, gaps)
    return value, p * (gaps - jnp.expand_dims(mean_gap, axis))


# -- The Brier score --


def brier_values(rows: LabeledRows) -> Array:
    """Return sum_k (p_k - [k = y])^2."""
    return _brier(rows[:4], rows.axis, rows.shards)


def _plain_brier(arrays: tuple, axis: int, shards: ClassShards) -> Array:
    residual = softmax_core.value_and_gradient(*arrays, axis, shards)[1]
    return class_shards.sum_classes(residual**2, axis, shards)


@_with_derivatives_of(_plain_brier)
def _brier(arrays: tuple, axis: int, shards: ClassShards) -> Array:
    return class_shards.run(_local_brier, arrays, axis, shards)


def _local_brier(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> Array:
    terms = softmax_core.label_terms(z, labels, in_range, valid, axis, shards)
    score = sharded_softmax.squared_residuals(
        terms.others, terms.row, terms.maxima.rest, terms.of_label, axis, shards
    )
    return select(terms.is_zero, 0, score)


# -- The multi-class hinge --


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def label_and_best_other(
    z: Array, labels: Array, axis: int, shards: ClassShards
) -> tuple[Array, Array]:
    """Return z_y and max over k != y of z_k, in one all-reduce; NaN where a logit of the row is."""
    return class_shards.run(_local_label_and_best_other, (z, labels), axis, shards)


def _local_label_and_best_other(
    z: Array, labels: Array, axis: int, shards: ClassShards
) -> tuple[Array, Array]:
    largest, label, rest = softmax_core.row_maxima(z, labels, axis, shards)
    return label, select(jnp.isnan(largest), jnp.nan, rest)


@label_and_best_other.defjvp
def _label_and_best_other_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The best others share the derivative, as in `jnp.max`; one more all-reduce counts them."""
    (z, labels), (dz, _) = primals, tangents
    label, best = label_and_best_other(z, labels, axis, shards)
    is_label = softmax_core.label_mask(z, labels, axis, shards)
    is_best = ~is_label & (z == class_shards.spread(best, z, axis, shards))
    count = lax.psum(jnp.sum(is_best, axis, dtype=jnp.int32), shards.local_axes)
    change = class_shards.take_class(select(is_label, dz, 0), axis, shards)
    shared = class_shards.sum_classes(select(is_best, dz, 0), axis, shards)
    return (label, best), (change, shared / jnp.maximum(count, 1).astype(z.dtype))
