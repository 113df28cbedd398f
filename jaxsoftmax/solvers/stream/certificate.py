"""The certificate of a source's fit: the bound of `solvers.certificate`, mostly in one pass."""

import jax.numpy as jnp
from jax import Array

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import newton
from jaxsoftmax.solvers.certificate import (
    MAX_INTERCEPT_STEPS,
    MAX_ROUNDING,
    Certificate,
    coupled_step,
    dual_scaling,
    least_subgradient,
    penalty_gap,
    rounding_floor,
)
from jaxsoftmax.solvers.problem import Link, Point
from jaxsoftmax.solvers.stream import sums
from jaxsoftmax.solvers.stream.state import Run, State


def certify(run: Run, state: State) -> Certificate:
    """Bound F at the state's parameters rounded to the dtype that is returned.

    The trial intercepts are improved until Newton's next step of them, which q makes, leaves
    probabilities and meets the intercept's condition.
    """
    stream, link, trial, spent = run.stream, run.config.link, state.theta, 0
    of_intercepts = None if state.coupling is None else (state.gradient[..., -1], state.coupling)
    for _ in range(MAX_INTERCEPT_STEPS):
        if run.config.intercept and of_intercepts is None:
            of_intercepts, spent = sums.intercept_curvature(stream, link, trial), spent + 1
        beta = None if of_intercepts is None else _intercept_step(link, *of_intercepts)
        theta = trial.astype(run.config.dtype).astype(jnp.float64)
        found, spent = sums.dual(stream, link, theta, trial, beta), spent + 4
        is_met = beta is None or bool(_is_met(found))
        if beta is None or is_met:
            break
        trial, of_intercepts = trial.at[..., -1].add(jnp.clip(beta, -1, 1)), None
    scaling = dual_scaling(run.sample, found.slope[..., :-1])
    if bool(jnp.any(scaling < 1)):
        found, spent = sums.dual(stream, link, theta, trial, beta, scaling), spent + 4
    certificate = _make_certificate(run, theta, found)
    gap = certificate.gap if is_met else jnp.full_like(certificate.gap, jnp.inf)
    return certificate._replace(gap=gap, products=spent)


def _intercept_step(link: Link, excess: Array, coupling: Array) -> Array:
    """Return Newton's step of the intercepts."""
    if link == "softmax":
        return coupled_step(coupling, excess)
    return -excess / (coupling + float_limits(coupling.dtype).eps)


def _is_met(found: sums.Dual) -> Array:
    """Return whether q are probabilities that meet the intercept's condition up to rounding."""
    violation = jnp.abs(found.slope[..., -1])
    met = violation <= MAX_ROUNDING * float_limits(violation.dtype).eps
    return jnp.all(met) & jnp.all(jnp.isfinite(found.divergence))


def _make_certificate(run: Run, theta: Array, found: sums.Dual) -> Certificate:
    penalty, has_intercept = run.sample, run.config.intercept
    w, l2, l1 = theta[..., :-1], penalty.l2, penalty.l1
    value = found.value + 0.5 * l2 * jnp.sum(w**2, (1, 2)) + l1 * jnp.sum(jnp.abs(w), (1, 2))
    gap = found.divergence + penalty_gap(penalty, w, found.slope[..., :-1])
    squares = jnp.sum(found.size**2, (1, 2))
    violation = jnp.sum(jnp.abs(found.slope[..., -1]), -1) * has_intercept
    floor = rounding_floor(penalty, Point(theta, theta, value, theta), squares, violation)
    gradient = found.gradient.at[..., :-1].add(l2[:, None, None] * w)
    gradient = gradient.at[..., -1].multiply(has_intercept)
    length = newton.norm(least_subgradient(penalty, theta, gradient))
    return Certificate(theta, value, gap, floor, length, 0)
