"""Newton systems over a source: conjugate gradients, whose every product is a pass."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import newton
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.newton import Iterate, SampleHessian, System
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.stream import sums
from jaxsoftmax.solvers.stream.state import Run, State, tolerance

ENOUGH_ROWS = 4  # examples for each feature of a sample whose Hessian is right for large curvature


def system_at(
    run: Run, state: State, gradient: Array, damping: float, free: Array | None = None
) -> tuple[System, Array, Array]:
    """Return what `newton.scale_system` does of the state's system, with the sample's Hessian.

    The damping is added to the penalty of the sample, whose inverse Hessian is the preconditioner.
    """
    sample = run.sample
    if state.is_exact:
        sample = sample._replace(features=sample.features.astype(jnp.float64))
    c, enough = state.curvature.astype(sample.features.dtype), jnp.full(1, tolerance(run, state))
    system, r, scale = _scale(sample.l2, c, gradient, state.preconditioner, enough, free)
    variance = sample_variance(sample, run.config.link, state.theta).astype(r.dtype)
    damped = sample._replace(l2=sample.l2 + damping)
    hessian = SampleHessian(damped, variance, state.preconditioner)
    return system._replace(preconditioner=hessian), r, scale


def sampling_error(run: Run, state: State) -> float:
    """Return about what the sample's Hessian lacks where the curvature is small, as a penalty.

    A sample of n examples is in error by the share D / n of the mean curvature. Where the scales of
    the features differ, that is too much for some: no more is added than what makes the penalty as
    strong for each example of the sample as that of all examples, and less the larger it is.
    """
    shortage = run.sample.features.shape[1] / len(run.stream.sample.weights)
    lacking = shortage * float(jnp.mean(state.curvature)) * run.spread
    enough = min(1, ENOUGH_ROWS * shortage) * float(run.sample.l2[0]) * (1 / run.share - 1)
    return min(lacking, enough)


def solve_system(run: Run, theta: Array, system: System, r: Array) -> tuple[Array, int]:
    """Return the solution for the scaled right side r, and the number of Hessian products."""
    link, intercept, l2 = run.config.link, run.config.intercept, run.sample.l2
    last = _agreed(run, _begin(system, link, r, intercept))
    while newton.is_unfinished(last):
        h = sums.hessian_product(run.stream, link, theta, last.p, intercept=intercept)
        h = h.at[..., :-1].add(l2[:, None, None] * last.p[..., :-1])
        last = _agreed(run, _advance(system, link, last, h.astype(last.p.dtype), intercept))
    return last.d.astype(jnp.float64), int(last.products)


def _agreed(run: Run, last: Iterate) -> Iterate:
    """Return the first process's iterate, as the sample's products may be rounded in other ways."""
    numbers = run.stream.processes.agree(last._replace(active=last.active.astype(jnp.int32)))
    return numbers._replace(active=numbers.active > 0)


_scale = jax.jit(newton.scale_system)
_begin = jax.jit(newton.start, static_argnums=(1, 3))
_advance = jax.jit(newton.advance, static_argnums=(1, 4))


@partial(jax.jit, static_argnums=1)
def sample_variance(sample: Problem, link: problems.Link, theta: Array) -> Array:
    """Return what determines the Hessian of the sample, see `problems.class_variance`."""
    scores = problems.linear_scores(sample, theta)
    point = problems.point_from_scores(sample, link, theta, scores)
    return problems.class_variance(sample, link, point)
