r"""One iteration: a direction, a step along it, and the gradient where it ends.

A smooth objective takes Newton's step, one with an l1 penalty the proximal Newton step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import line_search, newton, proximal, row_shards
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner


class Sample(NamedTuple):
    """A cheaper problem with nearly the same Hessian: fewer examples, or float32 features."""

    problem: problems.Problem
    rows: Array | None  # positions of the examples in each shard, None for all


class Step(NamedTuple):
    """The result of a step; numbers by lane are `[L]`."""

    point: problems.Point
    gradient: Array  # of the smooth part: [L, K, D + 1]
    length: Array  # t, 0 for a lane that found no descent
    decrement: Array  # -g d / 2, Newton's estimate of the gap before the step
    products: Array  # passes over all the features: one number
    stiffness: Array | None = None  # of the proximal step: [L]


@jax.jit(static_argnames=("link", "intercept"))
def point_and_gradient(
    problem: problems.Problem,
    link: problems.Link,
    theta: Array,
    scores: Array | None = None,
    *,
    intercept: bool,
) -> tuple[problems.Point, Array]:
    """Return the point at theta and its gradient, in two passes over the features.

    One pass is enough if the scores are given.
    """
    z = problems.linear_scores(problem, theta) if scores is None else scores
    point = problems.point_from_scores(problem, link, theta, z)
    return point, problems.gradient(problem, point, intercept=intercept)


@jax.jit(static_argnames=("link", "intercept"))
def newton_cg(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    preconditioner: Preconditioner | Blocks,
    tolerance: Array,
    sample: Sample | None,
    *,
    intercept: bool,
) -> Step:
    """Take Newton's step by conjugate gradients, to a residual within the tolerance.

    With a sample, its Hessian replaces that of the problem.
    """
    variance = problems.class_variance(problem, link, point)
    hessian_problem, cost = problem, 1.0
    if sample is not None:
        hessian_problem = sample.problem
        if sample.rows is not None:
            cost = hessian_problem.features.shape[0] / variance.shape[-1]
            variance = row_shards.take_columns(problem.features, variance, sample.rows)
    d, hessian_products = newton.direction(
        hessian_problem, link, variance, gradient, preconditioner, tolerance, intercept=intercept
    )
    return _step_along(
        problem, link, point, gradient, d, 2 * cost * hessian_products, intercept=intercept
    )


@jax.jit(static_argnames=("link", "intercept"))
def proximal_newton(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    preconditioner: Preconditioner,
    tolerance: Array,
    stiffness: Array | None,
    *,
    intercept: bool,
) -> Step:
    """Take a proximal gradient step, then Newton's among the parameters that are not 0.

    The stiffness is that with which the last proximal step descended, None before the first.
    """
    first = proximal.shrink(
        problem, link, point, gradient, preconditioner, tolerance, stiffness, intercept=intercept
    )
    second = proximal.step_on_face(
        problem, link, first.point, first.gradient, preconditioner, tolerance, intercept=intercept
    )
    end = second.point
    end_gradient = problems.gradient(problem, end, intercept=intercept)
    moved = jnp.any(end.theta != first.point.theta, (1, 2)) | first.moved
    products = jnp.asarray(first.products + second.products + 1)
    length = moved.astype(end_gradient.dtype)
    return Step(end, end_gradient, length, second.decrement, products, first.stiffness)


def _step_along(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    d: Array,
    products: Array | float,
    *,
    intercept: bool,
) -> Step:
    """Return the step along a direction that has taken some products."""
    dz = problems.linear_scores(problem, d)
    end, length = line_search.minimize_along(problem, link, point, d, dz)
    decrement = -0.5 * jnp.sum(gradient * d, (1, 2))
    end_gradient = problems.gradient(problem, end, intercept=intercept)
    return Step(end, end_gradient, length, decrement, jnp.asarray(products + 2))
