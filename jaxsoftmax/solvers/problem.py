r"""The problem: weighted cross-entropy of a linear model plus penalties, in lanes that share x.

    F(w, b) = sum_i s_i l(w x_i + b, y_i) + l2 / 2 ||w||^2 + l1 |w|_1,    sum_i s_i = 1,

for L lanes at once, which may differ in everything but the features. Parameters are packed,
`theta: [L, K, D + 1]` with the intercept last, so that a step handles one array. The link is a
softmax over K classes or K sigmoids. The softmax takes one label or one distribution per example.
A class without examples, or whose targets are all 0, has the intercept -inf, which is the limit of
the optimum: its scores are -inf, and its probabilities and its gradient are 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax import links, softmax_core
from jaxsoftmax.class_shards import ClassShards
from jaxsoftmax.solvers import matvec, row_shards
from jaxsoftmax.solvers.outcome import Link


class Problem(NamedTuple):
    """Arrays that define L problems; T is L, or 1 where the lanes share the targets."""

    features: matvec.Features  # [N, D]
    targets: Array  # softmax: integer [T, N] or distributions [T, K, N]; sigmoid: [T, K, N]
    weights: Array  # s: [L, N], each row of sum 1
    l2: Array  # [L]
    l1: Array  # [L]
    column_max_abs: Array  # the largest |x| of each column: [D], float64
    tilt: Array | None = None  # adds sum(tilt theta) to F, for `proximal` alone: [L, K, D + 1]


class Point(NamedTuple):
    """Parameters, and what follows from their scores without a product with the features."""

    theta: Array  # [L, K, D + 1]
    scores: Array  # z: [L, K, N]
    value: Array  # F: [L]
    residual: Array  # s (p - t): [L, K, N], the gradient with respect to the scores


def take_rows(problem: Problem, rows: Array) -> Problem:
    """Return the problem of some examples, at these positions in each shard of dense features."""
    x = problem.features
    return problem._replace(
        features=row_shards.take_rows(x, rows),
        targets=row_shards.take_columns(x, problem.targets, rows),
        weights=row_shards.take_columns(x, problem.weights, rows),
    )


def select_points(use_first: Array, first: Point, second: Point) -> Point:
    """Return the first or the second point of each lane, chosen by a bool `[L]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(use_first.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return Point(*map(select, first, second))


def linear_scores(problem: Problem, theta: Array) -> Array:
    """Return z = w x + b, `[L, K, N]`."""
    return matvec.apply(problem.features, theta[..., :-1]) + theta[..., -1:]


def linear_scores_adjoint(problem: Problem, r: Array) -> Array:
    """Return sum_i r_i (x_i, 1), `[L, K, D + 1]`: the adjoint of `linear_scores`."""
    weights = matvec.apply_transpose(problem.features, r)
    return jnp.concatenate([weights, r.sum(-1, keepdims=True)], -1)


def point_from_scores(problem: Problem, link: Link, theta: Array, z: Array) -> Point:
    """Return the point at parameters whose scores are z."""
    shards = row_shards.class_shards(problem.features)
    loss, residual = _loss_and_gradient(link, z, problem.targets, shards)
    s = problem.weights.astype(z.dtype)
    w = theta[..., :-1]
    penalty = 0.5 * problem.l2 * jnp.sum(w**2, (1, 2)) + problem.l1 * jnp.sum(jnp.abs(w), (1, 2))
    # With weight 0 an infinite loss, as of a class that the lane does not have, is ignored.
    value = jnp.sum(jnp.where(s == 0, 0, s * loss), -1) + penalty.astype(z.dtype)
    if problem.tilt is not None:
        value = value + jnp.sum(jnp.where(problem.tilt == 0, 0, problem.tilt * theta), (1, 2))
    return Point(theta, z, value, s[:, None] * jnp.where(s[:, None] == 0, 0, residual))


def class_variance(problem: Problem, link: Link, point: Point) -> Array:
    """Return what determines the Hessian in the scores, `[L, K, N]`.

    For sigmoids this is p (1 - p), the variance of each label; for a softmax it is p, from which
    the covariance diag(p) - p p' of the classes follows. It is computed from the residual, which
    costs less than storing it: each entry of p, or of 1 - p of a label, has the residual's relative
    accuracy. It is 0 for examples without weight.
    """
    s = problem.weights.astype(point.residual.dtype)[:, None]
    difference = point.residual / jnp.where(s == 0, 1, s)
    if link == "softmax":
        t = as_distributions(problem.targets, difference.shape[1], difference.dtype)
        return jnp.maximum(t + difference, 0)
    t = problem.targets.astype(difference.dtype)
    return (t + difference) * ((1 - t) - difference)


def as_distributions(targets: Array, classes: int, dtype: Any) -> Array:
    """Return the targets of a softmax as distributions, `[T, K, N]`.

    Those stored in float32 are normalized to sum to 1 in float64 too, as the bound needs it.
    """
    if targets.ndim == 2:
        return (jnp.arange(classes)[:, None] == targets[:, None]).astype(dtype)
    t = targets.astype(dtype)
    return t / jnp.sum(t, 1, keepdims=True)


def _loss_and_gradient(
    link: Link, z: Array, targets: Array, shards: ClassShards
) -> tuple[Array, Array]:
    """Return the loss of each example, and its gradient with respect to the scores."""
    if link == "softmax" and targets.ndim == 3:
        return _soft_loss_and_gradient(z, as_distributions(targets, z.shape[1], z.dtype), shards)
    if link == "softmax":
        index = jnp.broadcast_to(targets, (z.shape[0], z.shape[2]))
        ones = jnp.ones(index.shape, bool)
        return softmax_core.value_and_gradient(z, index, ones, ones, 1, shards)
    t = jnp.broadcast_to(targets, z.shape).astype(z.dtype)
    p, complement = links.sigmoid_pair(z)
    loss = softmax_core.weighted_term(t, links.softplus_values(-z))
    loss = loss + softmax_core.weighted_term(1 - t, links.softplus_values(z))
    return loss.sum(1), (1 - t) * p - t * complement


def _soft_loss_and_gradient(z: Array, t: Array, shards: ClassShards) -> tuple[Array, Array]:
    """Return -sum_k t_k log p_k and its gradient p - t.

    The gradient is computed as p (1 - t) - t (1 - p), which does not cancel for one-hot targets.
    """
    p = links.softmax_values(z, None, 1, shards)
    others = jnp.sum(jnp.where(p > 0.5, 0, p), 1, keepdims=True)
    complement = jnp.where(p > 0.5, others, 1 - p)
    loss = softmax_core.weighted_term(t, -links.log_softmax_values(z, 1, shards)).sum(1)
    return loss, p * (1 - t) - t * complement


def gradient(problem: Problem, point: Point, *, intercept: bool) -> Array:
    """Return the gradient of the smooth part, without the l1 penalty, `[L, K, D + 1]`."""
    packed = linear_scores_adjoint(problem, point.residual)
    packed = packed if problem.tilt is None else packed + problem.tilt
    return _add_ridge(problem, packed, point.theta, intercept)


def scores_hessian_product(problem: Problem, link: Link, class_variance: Array, u: Array) -> Array:
    """Return s times the Hessian of each example's loss in its scores times u, `[L, K, N]`."""
    return _scores_hessian_product(link, problem.weights.astype(u.dtype), class_variance, u)


def _scores_hessian_product(link: Link, s: Array, class_variance: Array, u: Array) -> Array:
    if link == "softmax":
        return s[:, None] * links.covariance_product(class_variance, u, 1)
    return s[:, None] * (class_variance * u)


def directional_curvature(problem: Problem, link: Link, point: Point, u: Array) -> Array:
    """Return u' H u of the Hessian in the scores, `[L]`, in sums that store none of their terms."""
    p = class_variance(problem, link, point)
    if link == "softmax":
        u = u - jnp.sum(p * u, 1, keepdims=True)
    return jnp.sum(problem.weights.astype(u.dtype)[:, None] * p * u**2, (1, 2))


def hessian_product(
    problem: Problem, link: Link, class_variance: Array, v: Array, *, intercept: bool
) -> Array:
    """Return the Hessian of the smooth part times v, `[L, K, D + 1]`, without forming it."""

    def rowwise(u: Array, class_variance: Array, s: Array) -> Array:
        return _scores_hessian_product(link, s, class_variance, u + v[..., -1:])

    s = problem.weights.astype(v.dtype)
    w, b = matvec.gram_product(problem.features, v[..., :-1], rowwise, class_variance, s)
    packed = jnp.concatenate([w, b[..., None]], -1)
    return _add_ridge(problem, packed, v, intercept)


def _add_ridge(problem: Problem, packed: Array, theta: Array, intercept: bool) -> Array:
    """Return packed + l2 w for the weights; the intercept is not penalized, or 0 without one."""
    l2 = problem.l2.astype(packed.dtype)[:, None, None]
    w = packed[..., :-1] + l2 * theta[..., :-1].astype(packed.dtype)
    b = packed[..., -1:] if intercept else jnp.zeros_like(packed[..., -1:])
    return jnp.concatenate([w, b], -1)


@jax.jit
def extrapolate_scores(first: Array, second: Array, reach: float) -> Array:
    """Return second + reach (second - first); -inf stays -inf."""
    return jnp.where(jnp.isfinite(second), second + reach * (second - first), second)
