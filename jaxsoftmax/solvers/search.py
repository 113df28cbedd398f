r"""The step along a direction: the minimum of a convex function of one variable, nearly.

The scores along a line are affine, z + t dz, so that a trial costs no product with the features.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import problem as problems

TRIALS = 30
FLAT = 0.4  # a slope this small, relative to the first one, is small enough


class _Trial(NamedTuple):
    step: Array  # t to try next, or of the point where the lane is done: [L]
    low: Array  # a step that is too short
    high: Array  # a step that is too long, inf while none is known
    point: problems.Point
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

    def body(last: _Trial) -> _Trial:
        step, wide = last.step, last.step[:, None, None]
        point = problems.point(problem, head, at.theta + wide * d, at.scores + wide * dz)
        slope = _slope(problem, point, d, dz)
        lower = point.value <= at.value + slack
        done = ((jnp.abs(slope) <= FLAT * jnp.abs(first)) & lower) | (step == 0)
        short = slope < 0
        low, high = jnp.where(short, step, last.low), jnp.where(short, last.high, step)
        bend = jnp.sum(problems.curvature(problem, head, point.mass, dz) * dz, (1, 2)) + penalty
        newton = step - slope / bend
        middle = jnp.where(jnp.isinf(high), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high) & (newton <= 4 * step)
        following = jnp.where(inside, newton, middle)
        return _Trial(jnp.where(done, step, following), low, high, point, done, last.trials + 1)

    zeros = jnp.zeros_like(first)
    one = jnp.where(first < 0, 1.0, 0.0).astype(first.dtype)
    start = _Trial(one, zeros, zeros + jnp.inf, at, zeros > 0, 0)
    found = lax.while_loop(lambda t: (t.trials < TRIALS) & ~jnp.all(t.done), body, start)
    # A lane that found nothing in all its trials stays.
    return problems.where(found.done, found.point, at), jnp.where(found.done, found.step, 0)


def _slope(problem: problems.Problem, at: problems.Point, d: Array, dz: Array) -> Array:
    """F'(t), of the smooth part."""
    penalty = jnp.where(d == 0, 0, at.theta * d)[..., :-1].sum((1, 2))
    return jnp.sum(at.residual * dz, (1, 2)) + problem.l2.astype(dz.dtype) * penalty
