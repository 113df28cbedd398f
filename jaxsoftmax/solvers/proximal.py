r"""Steps with an l1 penalty: a proximal gradient step finds the zeros, then Newton moves the rest.

The proximal step minimizes a quadratic model of the loss, whose Hessian is the preconditioner's
matrix, plus the l1 penalty, see `proximal_operator`. The weights that it sets to 0 are kept there.
On the face of the remaining parameters, as long as they keep their signs, F is smooth; Newton's
step is computed there by conjugate gradients, and a weight whose sign would change is set to 0. The
proximal step guarantees convergence, and Newton's step makes it fast. What all classes of a softmax
share, which neither finds, `class_shift` removes at every trial.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import class_shift, newton, proximal_operator, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.proximal_operator import Metric
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

MAX_PROXIMAL_TRIALS = 40
MAX_NEWTON_TRIALS = 10


class ProximalStep(NamedTuple):
    """Where a proximal gradient step leads, and its passes over the features."""

    point: problems.Point
    gradient: Array
    stiffness: Array  # the multiple of the metric with which F descended: [L]
    moved: Array  # whether the lane has another point: [L]
    products: Array | int


class NewtonStep(NamedTuple):
    """Where Newton's step on the face leads, and its passes over the features."""

    point: problems.Point
    decrement: Array  # -g d / 2: [L]
    products: Array | int


class _Trial(NamedTuple):
    """A trial at a stiffness of the metric, or at a length of the step."""

    number: Array  # the stiffness or the length: [L]
    point: problems.Point
    accepted: Array  # [L]
    trials: Array | int


def shrink(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    preconditioner: Preconditioner,
    tolerance: Array,
    stiffness: Array | None,
    *,
    intercept: bool,
) -> ProximalStep:
    """Take a proximal gradient step.

    The metric is the preconditioner's matrix times the stiffness, which doubles until F falls below
    the model's value and its own: with it, F descends (Beck and Teboulle). A lane whose tolerance
    is infinite keeps its point.
    """
    dtype = gradient.dtype
    variance = problems.class_variance(problem, link, point)
    c = shared_preconditioner.mean_curvature(problem, link, variance)
    preconditioner = jax.tree.map(lambda a: a.astype(dtype), preconditioner)
    slack = 8 * float_limits(dtype).eps * jnp.abs(point.value)

    def attempt(stiffness: Array, trials: Array | int) -> _Trial:
        metric = _metric(problem, preconditioner, stiffness[:, None] * c, intercept)
        theta, change = _minimize_model(problem, metric, point.theta, gradient)
        theta = class_shift.remove(problem, link, theta)
        end = problems.point_from_scores(
            problem, link, theta, problems.linear_scores(problem, theta)
        )
        descended = end.value <= point.value + jnp.minimum(change, 0) + slack
        return _Trial(stiffness, end, descended, trials)

    def body(last: _Trial) -> _Trial:
        stiffness = jnp.where(last.accepted, last.number, 2 * last.number)
        return attempt(stiffness, last.trials + 1)

    start = jnp.ones_like(tolerance, dtype) if stiffness is None else 0.5 * stiffness
    first = attempt(start, jnp.array(1))
    last = lax.while_loop(_unfinished(MAX_PROXIMAL_TRIALS), body, first)
    end = problems.select_points(last.accepted & jnp.isfinite(tolerance), last.point, point)
    moved = jnp.any(end.theta != point.theta, (1, 2))
    gradient = problems.gradient(problem, end, intercept=intercept)
    return ProximalStep(end, gradient, last.number, moved, last.trials + 1)


def step_on_face(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    preconditioner: Preconditioner,
    tolerance: Array,
    *,
    intercept: bool,
) -> NewtonStep:
    """Take Newton's step among the parameters that are not 0, shortened until F descends."""
    free, g = face_gradient(problem, point.theta, gradient)
    variance = problems.class_variance(problem, link, point)
    d, hessian_products = newton.direction(
        problem, link, variance, g, preconditioner, tolerance, intercept=intercept, free=free
    )
    slope = jnp.sum(g * d, (1, 2))

    def attempt(step: Array, trials: Array | int) -> _Trial:
        theta = move_on_face(problem, link, point.theta, step, d)
        end = problems.point_from_scores(
            problem, link, theta, problems.linear_scores(problem, theta)
        )
        slack = 2 * float_limits(g.dtype).eps * jnp.abs(point.value)
        accepted = end.value <= point.value + 1e-4 * step * slope + slack
        return _Trial(step, end, accepted, trials)

    def body(last: _Trial) -> _Trial:
        step = jnp.where(last.accepted, last.number, 0.4 * last.number)
        return attempt(step, last.trials + 1)

    start = jnp.where(slope < 0, 1.0, 0.0).astype(g.dtype)
    first = attempt(start, jnp.array(1))
    last = lax.while_loop(_unfinished(MAX_NEWTON_TRIALS), body, first)
    end = problems.select_points(last.accepted, last.point, point)
    return NewtonStep(end, -0.5 * slope, 2 * hessian_products + last.trials)


def face_gradient(problem: problems.Problem, theta: Array, gradient: Array) -> tuple[Array, Array]:
    """Return which parameters are on the face, and the gradient of F along it, 0 elsewhere.

    With the l1 penalty F is smooth where w is not 0.
    """
    w, l1 = theta[..., :-1], problem.l1.astype(gradient.dtype)[:, None, None]
    free = jnp.concatenate([w != 0, jnp.ones_like(w[..., :1], bool)], -1)
    return free, jnp.where(free, gradient.at[..., :-1].add(l1 * jnp.sign(w)), 0)


def move_on_face(
    problem: problems.Problem, link: problems.Link, theta: Array, step: Array, d: Array
) -> Array:
    """Return theta moved by step d, `[L]` times `[L, K, D + 1]`; weights stop at 0."""
    end = jnp.where(d == 0, theta, theta + step[:, None, None] * d)
    crossed = jnp.sign(end[..., :-1]) * jnp.sign(theta[..., :-1]) < 0
    end = end.at[..., :-1].set(jnp.where(crossed, 0, end[..., :-1]))
    return class_shift.remove(problem, link, end)


def _unfinished(max_trials: int) -> Callable[[_Trial], Array]:
    """Return the condition under which trials continue."""
    return lambda last: ~jnp.all(last.accepted) & (last.trials < max_trials)


def _metric(
    problem: problems.Problem, preconditioner: Preconditioner, c: Array, intercept: bool
) -> Metric:
    """Return the metric for curvatures c, `[L, K]`."""
    dtype = preconditioner.spectrum.dtype
    c = jnp.maximum(c, float_limits(dtype).eps)[..., None].astype(dtype)
    return Metric(preconditioner, c, problem.l2.astype(dtype)[:, None, None], intercept)


def _minimize_model(
    problem: problems.Problem, metric: Metric, theta: Array, gradient: Array
) -> tuple[Array, Array]:
    """Return the parameters that minimize the model of F, and by how much that changes it, `[L]`.

    With an intercept, the optimal one follows from the weights: b' = b - g_b / c - (v - w) m.
    """
    w, b, c = theta[..., :-1], theta[..., -1:], metric.curvature
    slope, slope_b = gradient[..., :-1], gradient[..., -1:]
    mean = metric.preconditioner.mean
    if metric.centered:
        slope = slope - slope_b * mean
    l1 = problem.l1.astype(w.dtype)[:, None, None]
    v = proximal_operator.prox(metric, w, slope, l1)
    move = v - w
    change = slope * move + 0.5 * move * proximal_operator.multiply(metric, move)
    change = jnp.sum(change + l1 * (jnp.abs(v) - jnp.abs(w)), (1, 2))
    if metric.centered:
        b = b - slope_b / c - jnp.sum(move * mean, -1, keepdims=True)
        change = change - 0.5 * jnp.sum(slope_b**2 / c, (1, 2))
    return jnp.concatenate([v, b], -1), change
