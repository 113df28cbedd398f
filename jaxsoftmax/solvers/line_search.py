r"""A line search: an approximate minimum of the objective, a convex function, along a direction.

The scores along a line are affine, z + t dz, so that a trial costs no product with the features.
The first trial is nearly always accepted, and what only another trial needs is computed there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.limits import MAX_SLOPE_RATIO, MAX_TRIALS


class _Trial(NamedTuple):
    step: Array  # t: [L]
    low: Array  # a step that is too short
    high: Array  # a step that is too long, inf while none is known
    point: problems.Point
    slope: Array  # F'(t)
    done: Array
    trials: Array | int


class _Line(NamedTuple):
    """The line that starts at a point, and what every trial on it is compared with."""

    problem: problems.Problem
    start: problems.Point
    d: Array
    dz: Array
    slope: Array  # F'(0): [L]
    slack: Array  # the increase of F that rounding may cause: [L]


def minimize_along(
    problem: problems.Problem, link: problems.Link, point: problems.Point, d: Array, dz: Array
) -> tuple[problems.Point, Array]:
    """Return the point at t d with |F'(t)| <= 0.4 |F'(0)| and F(t) <= F(0), and t.

    The step t = 1 is tried first. A lane whose direction does not descend, or which finds no such
    step in MAX_TRIALS, keeps its point, with t = 0.
    """
    first_slope = _slope(problem, point, d, dz)
    slack = 4 * float_limits(point.value.dtype).eps * jnp.abs(point.value)
    line = _Line(problem, point, d, dz, first_slope, slack)
    penalty_curvature = problem.l2.astype(first_slope.dtype) * jnp.sum(d[..., :-1] ** 2, (1, 2))

    def body(last: _Trial) -> _Trial:
        curvature = problems.directional_curvature(problem, link, last.point, dz)
        step, low, high = _next_step(last, curvature + penalty_curvature)
        return _try_step(link, line, step, low, high, last.trials + 1)

    zeros = jnp.zeros_like(first_slope)
    step = jnp.where(first_slope < 0, 1.0, 0.0).astype(first_slope.dtype)
    first = _try_step(link, line, step, zeros, zeros + jnp.inf, jnp.array(1))
    last = lax.while_loop(lambda last: ~jnp.all(last.done), body, first)
    return last.point, last.step


def _try_step(
    link: problems.Link, line: _Line, step: Array, low: Array, high: Array, trials: Array | int
) -> _Trial:
    """Return the trial at a step, which is done if the step may be taken or is 0."""
    theta = _move(line.start.theta, step, line.d)
    z = _move(line.start.scores, step, line.dz)
    point = problems.point_from_scores(line.problem, link, theta, z)
    slope = _slope(line.problem, point, line.d, line.dz)
    decreased = point.value <= line.start.value + line.slack
    flat = jnp.abs(slope) <= MAX_SLOPE_RATIO * jnp.abs(line.slope)
    return _Trial(step, low, high, point, slope, (flat & decreased) | (step == 0), trials)


def _next_step(last: _Trial, curvature: Array) -> tuple[Array, Array, Array]:
    """Return the step to try next and its bracket: Newton's step in t, or a bisection."""
    step, too_short = last.step, last.slope < 0
    low, high = jnp.where(too_short, step, last.low), jnp.where(too_short, last.high, step)
    newton = step - last.slope / curvature
    bisection = jnp.where(jnp.isinf(high), 4 * step, 0.5 * (low + high))
    inside = (newton > low) & (newton < high) & (newton <= 4 * step)
    following = jnp.where(inside, newton, bisection)
    # A lane that has found nothing in all its trials stays where it is.
    following = jnp.where(last.trials == MAX_TRIALS, 0, following)
    return jnp.where(last.done, step, following), low, high


def _move(a: Array, step: Array, direction: Array) -> Array:
    step = step[:, None, None]
    return jnp.where(step == 0, a, a + step * direction)


def _slope(problem: problems.Problem, point: problems.Point, d: Array, dz: Array) -> Array:
    """Return F'(t) of the smooth part, `[L]`."""
    penalty = jnp.where(d == 0, 0, point.theta * d)[..., :-1].sum((1, 2))
    return jnp.sum(point.residual * dz, (1, 2)) + problem.l2.astype(dz.dtype) * penalty
