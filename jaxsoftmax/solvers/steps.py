r"""One step of each method: a direction, how far to go along it, and the new gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import lbfgs, line_search, newton, proximal
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner


class Sample(NamedTuple):
    """A cheaper problem with nearly the same Hessian: fewer examples, or float32 features."""

    problem: problems.Problem
    rows: Array | None  # which examples they are; None for all


class Step(NamedTuple):
    """Where a step leads; the arrays of numbers are `[L]`."""

    point: problems.Point
    gradient: Array  # of the smooth part: [L, K, D + 1]
    length: Array  # t, 0 for a lane that found no descent
    decrement: Array  # -g d / 2, Newton's estimate of the gap before the step
    products: Array  # passes over all the features: one number
    memory: Any  # what the method hands to its next step


@jax.jit(static_argnames=("head", "intercept"))
def evaluate(
    problem: problems.Problem,
    head: problems.Head,
    theta: Array,
    scores: Array | None = None,
    *,
    intercept: bool,
) -> tuple[problems.Point, Array]:
    """The point at theta and its gradient: two passes over the features; with scores, one."""
    z = problems.scores(problem, theta) if scores is None else scores
    at = problems.point(problem, head, theta, z)
    return at, problems.gradient(problem, at, intercept=intercept)


@jax.jit(static_argnames=("head", "intercept"))
def newton_cg(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    pre: Preconditioner | Blocks,
    goal: Array,
    memory: None,
    sample: Sample | None,
    *,
    intercept: bool,
) -> Step:
    """Newton's direction by conjugate gradients, to a residual within the goal."""
    of, mass, share = problem, problems.mass(problem, head, at), 1.0
    if sample is not None:
        of = sample.problem
        if sample.rows is not None:
            mass, share = mass[..., sample.rows], len(sample.rows) / mass.shape[-1]
    d, count = newton.direction(of, head, mass, g, pre, goal, intercept=intercept)
    return _along(problem, head, at, g, d, 2 * share * count, None, intercept)


@jax.jit(static_argnames=("head", "intercept"))
def l_bfgs(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    pre: Preconditioner,
    goal: Array,
    memory: lbfgs.History | None,
    sample: Sample | None,
    *,
    intercept: bool,
) -> Step:
    """The direction of L-BFGS, whose initial inverse Hessian is the preconditioner."""
    memory = lbfgs.empty(g) if memory is None else memory
    mass = problems.mass(problem, head, at)
    d = lbfgs.direction(problem, head, mass, g, pre, memory, intercept=intercept)
    d = jnp.where((newton.norm(g) > goal)[:, None, None], d, 0)
    step = _along(problem, head, at, g, d, 0, None, intercept)
    memory = lbfgs.remember(memory, step.point.theta - at.theta, step.gradient - g)
    return step._replace(memory=memory)


@jax.jit(static_argnames=("head", "intercept"))
def proximal_newton(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    pre: Preconditioner,
    goal: Array,
    memory: Array | None,
    sample: Sample | None,
    *,
    intercept: bool,
) -> Step:
    """A proximal gradient step, which finds the zeros, then Newton's among what is not zero."""
    at, g, stiffness, first = proximal.shrink(problem, head, at, g, goal, memory, intercept)
    end, decrement, second = proximal.on_face(problem, head, at, g, pre, goal, intercept)
    g = problems.gradient(problem, end, intercept=intercept)
    moved = jnp.any(end.theta != at.theta, (1, 2)) | (first.length > 0)
    return Step(end, g, moved.astype(g.dtype), decrement, first.products + second + 1, stiffness)


def _along(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    d: Array,
    products: Array | float,
    memory: Any,
    intercept: bool,
) -> Step:
    end, length = line_search.along(problem, head, at, d, problems.scores(problem, d))
    decrement = -0.5 * jnp.sum(g * d, (1, 2))
    gradient = problems.gradient(problem, end, intercept=intercept)
    return Step(end, gradient, length, decrement, jnp.asarray(products + 2), memory)


METHODS = {"newton-cg": newton_cg, "lbfgs": l_bfgs, "proximal": proximal_newton}
