r"""The problem: weighted cross-entropy of a linear model plus penalties, in lanes that share x.

    F(w, b) = sum_i s_i l(w x_i + b, y_i) + l2 / 2 ||w||^2 + l1 |w|_1,    sum_i s_i = 1,

for L lanes at once, which may differ in everything but the features. Parameters are packed,
`theta: [L, K, D + 1]` with the intercept last, so that a method handles one array. The head is a
softmax over K classes or K sigmoids. The softmax has one label or a distribution for each example.
A class without examples, or whose targets are all 0, has the intercept -inf, the limit in which the
optimum lies: its scores are -inf, its probabilities and its gradient 0.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsoftmax import links, softmax_core
from jaxsoftmax.solvers import matvec
from jaxsoftmax.solvers.sparse import Sparse

type Head = Literal["softmax", "sigmoid"]


class Problem(NamedTuple):
    """Arrays that define L problems; T is L, or 1 where the lanes share the targets."""

    features: Array | Sparse  # [N, D]
    targets: Array  # softmax: integer [T, N] or distributions [T, K, N]; sigmoid: [T, K, N]
    weights: Array  # s: [L, N], each row of sum 1
    l2: Array  # [L]
    l1: Array  # [L]
    largest: Array  # the largest |x| of each column: [D], float64


class Point(NamedTuple):
    """Parameters, and what follows from their scores without another look at the features."""

    theta: Array  # [L, K, D + 1]
    scores: Array  # z: [L, K, N]
    value: Array  # F: [L]
    residual: Array  # s (p - t): [L, K, N], the gradient in the scores


def where(lanes: Array, then: Point, otherwise: Point) -> Point:
    """The lanes of one point or the other, by a bool `[L]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(lanes.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return Point(*map(select, then, otherwise))


def scores(problem: Problem, theta: Array) -> Array:
    """z = w x + b, `[L, K, N]`."""
    lanes, classes, _ = theta.shape
    flat = theta.reshape(lanes * classes, -1)
    z = matvec.forward(problem.features, flat[:, :-1]) + flat[:, -1:]
    return z.reshape(lanes, classes, -1)


def adjoint(problem: Problem, r: Array) -> Array:
    """sum_i r_i (x_i, 1), `[L, K, D + 1]`: the adjoint of `scores`."""
    lanes, classes, size = r.shape
    flat = r.reshape(lanes * classes, size)
    packed = jnp.concatenate([matvec.backward(problem.features, flat), flat.sum(1)[:, None]], 1)
    return packed.reshape(lanes, classes, -1)


def point(problem: Problem, head: Head, theta: Array, z: Array) -> Point:
    """Everything at parameters whose scores are z."""
    loss, residual = _head(head, z, problem.targets)
    s = problem.weights.astype(z.dtype)
    w = theta[..., :-1]
    penalty = 0.5 * problem.l2 * jnp.sum(w**2, (1, 2)) + problem.l1 * jnp.sum(jnp.abs(w), (1, 2))
    # A weight of 0 silences an infinite loss: that of a class which the lane does not have.
    value = jnp.sum(jnp.where(s == 0, 0, s * loss), -1) + penalty.astype(z.dtype)
    return Point(theta, z, value, s[:, None] * jnp.where(s[:, None] == 0, 0, residual))


def mass(problem: Problem, head: Head, at: Point) -> Array:
    """What the Hessian needs, `[L, K, N]`: p of the softmax, p (1 - p) of the sigmoid.

    It comes from the residual, which costs less than to keep it: each entry of p, or of 1 - p of
    a label, has the residual's relative accuracy. Examples without weight have none.
    """
    s = problem.weights.astype(at.residual.dtype)[:, None]
    difference = at.residual / jnp.where(s == 0, 1, s)
    if head == "softmax":
        t = expected(problem.targets, difference.shape[1], difference.dtype)
        return jnp.maximum(t + difference, 0)
    t = problem.targets.astype(difference.dtype)
    return (t + difference) * ((1 - t) - difference)


def expected(targets: Array, classes: int, dtype: Any) -> Array:
    """The softmax's targets as distributions, `[T, K, N]`.

    Those that are stored in float32 sum to one in float64 too: the bound needs it.
    """
    if targets.ndim == 2:
        return (jnp.arange(classes)[:, None] == targets[:, None]).astype(dtype)
    t = targets.astype(dtype)
    return t / jnp.sum(t, 1, keepdims=True)


def _head(head: Head, z: Array, targets: Array) -> tuple[Array, Array]:
    """Each example's loss and its gradient in the scores."""
    if head == "softmax" and targets.ndim == 3:
        return _of_distributions(z, expected(targets, z.shape[1], z.dtype))
    if head == "softmax":
        index = jnp.broadcast_to(targets, (z.shape[0], z.shape[2]))
        every = jnp.ones(index.shape, bool)
        return softmax_core.value_and_gradient(z, index, every, every, 1)
    t = jnp.broadcast_to(targets, z.shape).astype(z.dtype)
    p, rest = links.sigmoid_values(z), links.sigmoid_values(-z)
    loss = _term(t, links.softplus_values(-z)) + _term(1 - t, links.softplus_values(z))
    return loss.sum(1), (1 - t) * p - t * rest


def _of_distributions(z: Array, t: Array) -> tuple[Array, Array]:
    """-sum_k t_k log p_k and p - t, as p (1 - t) - t (1 - p): of one-hot codes nothing cancels."""
    p = links.softmax_values(z, None, 1)
    others = jnp.sum(jnp.where(p > 0.5, 0, p), 1, keepdims=True)
    rest = jnp.where(p > 0.5, others, 1 - p)
    return _term(t, -links.log_softmax_values(z, 1)).sum(1), p * (1 - t) - t * rest


def _term(coefficient: Array, value: Array) -> Array:
    """coefficient * value, where a coefficient of 0 silences an infinite value."""
    return jnp.where(coefficient == 0, 0, coefficient * value)


def gradient(problem: Problem, at: Point, *, intercept: bool) -> Array:
    """Gradient of the smooth part, without the l1 penalty."""
    return _penalised(problem, adjoint(problem, at.residual), at.theta, intercept)


def curvature(problem: Problem, head: Head, mass: Array, u: Array) -> Array:
    """s times the Hessian of each example's loss in its scores, times u: `[L, K, N]`."""
    return _curvature(head, problem.weights.astype(u.dtype), mass, u)


def _curvature(head: Head, s: Array, mass: Array, u: Array) -> Array:
    return s[:, None] * (links.covariance_product(mass, u, 1) if head == "softmax" else mass * u)


def bend(problem: Problem, head: Head, at: Point, u: Array) -> Array:
    """u' H u of the Hessian in the scores, `[L]`, in sums that keep no array of its terms."""
    p = mass(problem, head, at)
    if head == "softmax":
        u = u - jnp.sum(p * u, 1, keepdims=True)
    return jnp.sum(problem.weights.astype(u.dtype)[:, None] * p * u**2, (1, 2))


def hessian_product(
    problem: Problem, head: Head, mass: Array, v: Array, *, intercept: bool
) -> Array:
    """Hessian of the smooth part times v, `[L, K, D + 1]`: two products, and no Hessian."""
    lanes, classes, _ = v.shape
    flat = v.reshape(lanes * classes, -1)

    def between(u: Array, mass: Array, s: Array) -> Array:
        u = (u + flat[:, -1:]).reshape(lanes, classes, -1)
        return _curvature(head, s, mass, u).reshape(lanes * classes, -1)

    s = problem.weights.astype(v.dtype)
    w, b = matvec.there_and_back(problem.features, flat[:, :-1], between, mass, s)
    packed = jnp.concatenate([w, b[:, None]], 1).reshape(v.shape)
    return _penalised(problem, packed, v, intercept)


def _penalised(problem: Problem, packed: Array, theta: Array, intercept: bool) -> Array:
    """packed + l2 w for the weights; the intercept has no penalty, and 0 where there is none."""
    l2 = problem.l2.astype(packed.dtype)[:, None, None]
    w = packed[..., :-1] + l2 * theta[..., :-1].astype(packed.dtype)
    b = packed[..., -1:] if intercept else jnp.zeros_like(packed[..., -1:])
    return jnp.concatenate([w, b], -1)
