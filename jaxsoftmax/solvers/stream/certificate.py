"""The certificate of a source's fit: the bound of `solvers.certificate`, in at least 3 passes."""

from typing import Any

import jax.numpy as jnp
from jax import Array

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
from jaxsoftmax.solvers.outcome import SolverConfig
from jaxsoftmax.solvers.problem import Point, Problem
from jaxsoftmax.solvers.stream import sums
from jaxsoftmax.solvers.stream.survey import Stream


def certify(stream: Stream, penalty: Problem, config: SolverConfig, trial: Array) -> Certificate:
    """Bound F at the trial parameters rounded to the dtype that is returned.

    The trial intercepts are improved until Newton's next step of them, which q makes, leaves
    probabilities and meets the intercept's condition.
    """
    spent = 0
    for _ in range(MAX_INTERCEPT_STEPS):
        beta = _intercept_step(stream, config, trial)
        theta = trial.astype(config.dtype).astype(jnp.float64)
        found = sums.dual(stream, config.link, theta, trial, beta)
        spent += 4
        is_met = beta is None or bool(_is_met(found))
        if beta is None or is_met:
            break
        trial = trial.at[..., -1].add(jnp.clip(beta, -1, 1))
    scaling = dual_scaling(penalty, found.slope[..., :-1])
    if bool(jnp.any(scaling < 1)):
        found = sums.dual(stream, config.link, theta, trial, beta, scaling)
        spent += 3
    certificate = _make_certificate(stream, penalty, config, theta, found)
    gap = certificate.gap if is_met else jnp.full_like(certificate.gap, jnp.inf)
    return certificate._replace(gap=gap, products=spent + 2)


def _intercept_step(stream: Stream, config: SolverConfig, trial: Array) -> Array | None:
    """Return Newton's step of the intercepts, None without intercepts."""
    if not config.intercept:
        return None
    excess, coupling = sums.intercept_curvature(stream, config.link, trial)
    if config.link == "softmax":
        return coupled_step(coupling, excess)
    return -excess / (coupling + jnp.finfo(coupling.dtype).eps)


def _is_met(found: sums.Dual) -> Array:
    """Return whether q are probabilities that meet the intercept's condition up to rounding."""
    violation = jnp.abs(found.slope[..., -1])
    met = violation <= MAX_ROUNDING * jnp.finfo(violation.dtype).eps
    return jnp.all(met) & jnp.all(jnp.isfinite(found.divergence))


def _make_certificate(
    stream: Stream, penalty: Problem, config: SolverConfig, theta: Array, found: sums.Dual
) -> Certificate:
    at: Any = sums.mean_loss(stream, config.link, theta, intercept=config.intercept)
    w, l2, l1 = theta[..., :-1], penalty.l2, penalty.l1
    value = at.value + 0.5 * l2 * jnp.sum(w**2, (1, 2)) + l1 * jnp.sum(jnp.abs(w), (1, 2))
    gap = found.divergence + penalty_gap(penalty, w, found.slope[..., :-1])
    squares = jnp.sum(found.size**2, (1, 2))
    violation = jnp.sum(jnp.abs(found.slope[..., -1]), -1) * config.intercept
    floor = rounding_floor(penalty, Point(theta, theta, value, theta), squares, violation)
    gradient = at.gradient.at[..., :-1].add(l2[:, None, None] * w)
    length = newton.norm(least_subgradient(penalty, theta, gradient))
    return Certificate(theta, value, gap, floor, length, 0)
