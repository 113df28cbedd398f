"""Newton systems over a source: conjugate gradients, whose every product is a pass."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import newton
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.newton import System
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.stream import sums
from jaxsoftmax.solvers.stream.state import Run, State, tolerance


def system_at(
    run: Run, state: State, gradient: Array, free: Array | None = None
) -> tuple[System, Array, Array]:
    """Return what `newton.scale_system` does of the state's system."""
    c = state.curvature.astype(run.sample.features.dtype)
    enough = jnp.full(1, tolerance(run, state))
    return _scale(run.sample.l2, c, gradient, state.preconditioner, enough, free)


def solve_system(run: Run, theta: Array, system: System, r: Array) -> tuple[Array, int]:
    """Return the solution for the scaled right side r, and the number of Hessian products."""
    link, intercept, l2 = run.config.link, run.config.intercept, run.sample.l2
    last = _begin(system, link, r, intercept)
    while newton.is_unfinished(last):
        h = sums.hessian_product(run.stream, link, theta, last.p, intercept=intercept)
        h = h.at[..., :-1].add(l2[:, None, None] * last.p[..., :-1])
        last = _advance(system, link, last, h.astype(last.p.dtype), intercept)
    return last.d.astype(jnp.float64), int(last.products)


_scale = jax.jit(newton.scale_system)
_begin = jax.jit(newton.start, static_argnums=(1, 3))
_advance = jax.jit(newton.advance, static_argnums=(1, 4))


@partial(jax.jit, static_argnums=1)
def sample_variance(sample: Problem, link: problems.Link, theta: Array) -> Array:
    """Return what determines the Hessian of the sample, see `problems.class_variance`."""
    scores = problems.linear_scores(sample, theta)
    point = problems.point_from_scores(sample, link, theta, scores)
    return problems.class_variance(sample, link, point)
