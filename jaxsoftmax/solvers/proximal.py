r"""Steps with an l1 penalty: find the zeros by a proximal gradient step, then forget the kinks.

The proximal step in the metric h (one number a parameter) is w <- soft(w - g / h, l1 / h). What it
leaves at 0 is kept there; on the face of the other parameters, with the signs that they have, F is
smooth, and Newton's step by conjugate gradients is made and cut off where a sign would change. The
first kind of step makes it converge, the second fast.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import matvec, newton, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

TRIALS = 40


class Moved(NamedTuple):
    """How far a proximal step went, and its passes over the features."""

    length: Array
    products: Array | int


def shrink(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    goal: Array,
    stiffness: Array | None,
    intercept: bool,
) -> tuple[problems.Point, Array, Array, Moved]:
    """A proximal gradient step: the point, its gradient, the stiffness that sufficed, its length.

    The metric is the Hessian's diagonal under each class's mean curvature times the stiffness,
    which doubles until F falls below the model's value: with it, F descends (Beck and Teboulle).
    """
    dtype = g.dtype
    h = _diagonal(problem, head, problems.mass(problem, head, at))
    l1, l2 = (a.astype(dtype)[:, None, None] for a in (problem.l1, problem.l2))
    smooth = at.value - _l1(problem, at.theta)

    def trial(stiff: Array) -> tuple[problems.Point, Array]:
        metric = stiff[:, None, None] * h + l2
        end = at.theta - g / metric
        w, b = end[..., :-1], end[..., -1:]
        w = jnp.sign(w) * jnp.maximum(jnp.abs(w) - l1 / metric[..., :-1], 0)
        theta = jnp.concatenate([w, b if intercept else jnp.zeros_like(b)], -1)
        point = problems.point(problem, head, theta, problems.scores(problem, theta))
        move = jnp.where(theta == at.theta, 0, theta - at.theta)
        model = smooth + jnp.sum(g * move + 0.5 * metric * move**2, (1, 2))
        slack = 8 * jnp.finfo(dtype).eps * jnp.abs(at.value)
        return point, point.value - _l1(problem, theta) <= model + slack

    def body(carry: tuple) -> tuple:
        stiff, _, below, count = carry
        stiff = jnp.where(below, stiff, 2 * stiff)
        return stiff, *trial(stiff), count + 1

    stiff = jnp.ones_like(goal, dtype) if stiffness is None else 0.5 * stiffness
    carry = lax.while_loop(
        lambda carry: ~jnp.all(carry[2]) & (carry[3] < TRIALS), body, (stiff, *trial(stiff), 1)
    )
    stiff, end, below, count = carry
    going = below & jnp.isfinite(goal)
    end = problems.where(going, end, at)
    length = jnp.any(end.theta != at.theta, (1, 2)).astype(dtype)
    gradient = problems.gradient(problem, end, intercept=intercept)
    return end, gradient, stiff, Moved(length, count + 1)


def on_face(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    pre: Preconditioner,
    goal: Array,
    intercept: bool,
) -> tuple[problems.Point, Array, Array]:
    """Newton's step among the parameters that are not 0: the point, the decrement, the passes."""
    w = at.theta[..., :-1]
    l1 = problem.l1.astype(g.dtype)[:, None, None]
    slope = g.at[..., :-1].add(l1 * jnp.sign(w))
    free = jnp.concatenate([w != 0, jnp.ones_like(w[..., :1], bool)], -1)
    slope = jnp.where(free, slope, 0)
    mass = problems.mass(problem, head, at)
    d, count = newton.direction(
        problem, head, mass, slope, pre, goal, intercept=intercept, free=free
    )
    fall = jnp.sum(slope * d, (1, 2))

    def trial(step: Array) -> tuple[problems.Point, Array]:
        theta = at.theta + step[:, None, None] * d
        crossed = jnp.sign(theta[..., :-1]) * jnp.sign(w) < 0
        theta = theta.at[..., :-1].set(jnp.where(crossed, 0, theta[..., :-1]))
        point = problems.point(problem, head, theta, problems.scores(problem, theta))
        slack = 2 * jnp.finfo(g.dtype).eps * jnp.abs(at.value)
        return point, point.value <= at.value + 1e-4 * step * fall + slack

    def body(carry: tuple) -> tuple:
        step, _, lower, tried = carry
        step = jnp.where(lower, step, 0.4 * step)
        return step, *trial(step), tried + 1

    step = jnp.where(fall < 0, 1.0, 0.0).astype(g.dtype)
    step, end, lower, tried = lax.while_loop(
        lambda carry: ~jnp.all(carry[2]) & (carry[3] < TRIALS // 4), body, (step, *trial(step), 1)
    )
    return problems.where(lower, end, at), -0.5 * fall, 2 * count + tried


def _diagonal(problem: problems.Problem, head: problems.Head, mass: Array) -> Array:
    """The Hessian's diagonal, without the penalty, under each class's mean curvature."""
    c = shared_preconditioner.curvatures(problem, head, mass)[..., None]
    s = problem.weights.astype(problem.features.dtype)
    squares = matvec.squares(problem.features, s)
    h = jnp.concatenate([squares, jnp.ones_like(squares[:, :1])], 1)[:, None].astype(c.dtype)
    eps = jnp.finfo(c.dtype).eps
    return jnp.maximum(c, eps) * jnp.maximum(h, eps * jnp.max(h, -1, keepdims=True))


def _l1(problem: problems.Problem, theta: Array) -> Array:
    return problem.l1.astype(theta.dtype) * jnp.sum(jnp.abs(theta[..., :-1]), (1, 2))
