r"""The step along a direction: the minimum of a convex function of one variable, nearly.

The scores along a line are affine, z + t dz, so that a trial costs no product with the features.
The first trial is nearly always the last: what only another one needs is computed there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import problem as problems

TRIALS = 30
FLAT = 0.4  # a slope this small, relative to the first one, is small enough


class _Trial(NamedTuple):
    step: Array  # t: [L]
    low: Array  # a step that is too short
    high: Array  # a step that is too long, inf while none is known
    point: problems.Point
    slope: Array  # F'(t)
    done: Array
    trials: Array | int


def along(
    problem: problems.Problem, head: problems.Head, at: problems.Point, d: Array, dz: Array
) -> tuple[problems.Point, Array]:
    """The point at t d with |F'(t)| <= FLAT |F'(0)| and F(t) <= F(0), and t; t = 1 is tried first.

    A lane whose direction does not descend keeps its point, with t = 0.
    """
    first = _slope(problem, at, d, dz)
    slack = 4 * jnp.finfo(at.value.dtype).eps * jnp.abs(at.value)
    penalty = problem.l2.astype(first.dtype) * jnp.sum(d[..., :-1] ** 2, (1, 2))

    def moved(a: Array, step: Array, by: Array) -> Array:
        wide = step[:, None, None]
        return jnp.where(wide == 0, a, a + wide * by)

    def tried(step: Array, low: Array, high: Array, trials: Array | int) -> _Trial:
        theta, z = moved(at.theta, step, d), moved(at.scores, step, dz)
        point = problems.point(problem, head, theta, z)
        slope = _slope(problem, point, d, dz)
        lower = point.value <= at.value + slack
        done = ((jnp.abs(slope) <= FLAT * jnp.abs(first)) & lower) | (step == 0)
        return _Trial(step, low, high, point, slope, done, trials)

    def body(last: _Trial) -> _Trial:
        step, short = last.step, last.slope < 0
        low, high = jnp.where(short, step, last.low), jnp.where(short, last.high, step)
        bend = problems.bend(problem, head, last.point, dz) + penalty
        newton = step - last.slope / bend
        middle = jnp.where(jnp.isinf(high), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high) & (newton <= 4 * step)
        following = jnp.where(inside, newton, middle)
        # A lane that found nothing in all its trials stays.
        following = jnp.where(last.trials == TRIALS, 0, following)
        return tried(jnp.where(last.done, step, following), low, high, last.trials + 1)

    zeros = jnp.zeros_like(first)
    one = jnp.where(first < 0, 1.0, 0.0).astype(first.dtype)
    start = tried(one, zeros, zeros + jnp.inf, jnp.array(1))
    found = lax.while_loop(lambda last: ~jnp.all(last.done), body, start)
    return found.point, found.step


def _slope(problem: problems.Problem, at: problems.Point, d: Array, dz: Array) -> Array:
    """F'(t), of the smooth part."""
    penalty = jnp.where(d == 0, 0, at.theta * d)[..., :-1].sum((1, 2))
    return jnp.sum(at.residual * dz, (1, 2)) + problem.l2.astype(dz.dtype) * penalty
