"""Passes over a source: sums over all examples, of the size of the parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax.solvers import certificate, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.class_preconditioner import CURVATURE_SHARE
from jaxsoftmax.solvers.problem import Link, Problem
from jaxsoftmax.solvers.stream.drawing import Drawing
from jaxsoftmax.solvers.stream.survey import Stream


class Evaluation(NamedTuple):
    """The mean loss at some parameters and its derivatives, without the penalty."""

    value: Array  # [1]
    gradient: Array  # [1, K, D + 1]
    curvature: Array  # the mean curvature of each class: [1, K]
    coupling: Array | None  # see `_coupling`; None where it would take long


class Dual(NamedTuple):
    """The sums that the certificate needs of predictions q, and those of F; see `certificate`."""

    value: Array  # the mean loss: [1]
    gradient: Array  # of it: [1, K, D + 1]
    divergence: Array  # sum_i s_i KL(q_i || p_i): [1]
    slope: Array  # sum_i s_i (q_i - y_i) (x_i, 1): [1, K, D + 1]
    size: Array  # sum_i s_i |q_i - y_i|, of every outcome


def sum_over(
    stream: Stream, function: Callable[[Problem], Any], drawing: Drawing | None = None
) -> Any:
    """Return the sum over the windows of what a function returns of each, in one pass.

    It is that over the windows of all processes, each of which reads its own. For a drawing the
    function returns, beside its part of the sum, the importance of each example.
    """
    total: Any = None
    for window, problem in stream.problems():
        part = function(problem)
        if drawing is not None:
            part, importance = part
            drawing.add(window, np.asarray(importance)[: len(window.weights)])
        total = part if total is None else jax.tree.map(jnp.add, total, part)
        # Without waiting, the windows of all products to come would be in memory.
        jax.block_until_ready(total)
    return stream.processes.sum(total)


def mean_loss(
    stream: Stream, link: Link, theta: Array, *, intercept: bool, draws: bool
) -> tuple[Evaluation, Data | None]:
    """Return the mean loss and its derivatives, in two products of one pass, and maybe a sample.

    Its examples are drawn by their curvature, so that its Hessian is about that of all.
    """
    how: dict[str, Any] = {"link": link, "intercept": intercept}
    evaluate = partial(_evaluate_window, theta=theta, **how)
    if not draws:
        return sum_over(stream, lambda problem: evaluate(problem)[0]), None
    drawing = Drawing(stream.drawn)
    at = sum_over(stream, evaluate, drawing)
    return at, stream.gather(drawing.sample())


@jax.jit(static_argnames=("link", "intercept"))
def _evaluate_window(
    problem: Problem, *, theta: Array, link: Link, intercept: bool
) -> tuple[Evaluation, Array]:
    point = _point(problem, link, theta)
    variance = problems.class_variance(problem, link, point)
    curvature = shared_preconditioner.mean_curvature(problem, link, variance)
    gradient = problems.gradient(problem, point, intercept=intercept)
    is_cheap = link == "sigmoid" or theta.shape[1] <= certificate.MAX_COUPLED_CLASSES
    coupling = _coupling(problem, link, variance) if intercept and is_cheap else None
    importance = _importance(problem, link, variance)
    return Evaluation(point.value, gradient, curvature, coupling), importance


def _importance(problem: Problem, link: Link, variance: Array) -> Array:
    """Return the curvature of each example times its weight, and some for its weight alone."""
    s = problem.weights[0]
    h = jnp.sum(variance * (1 - variance) if link == "softmax" else variance, (0, 1))
    total = jnp.sum(s)
    mean = jnp.sum(s * h) / jnp.where(total > 0, total, 1)
    return s * (CURVATURE_SHARE * h + (1 - CURVATURE_SHARE) * mean)


def _coupling(problem: Problem, link: Link, variance: Array) -> Array:
    """Return what couples the intercepts: `[1, K, K]` of a softmax, `[1, K]` of sigmoids."""
    s = problem.weights[:, None]
    if link == "softmax":
        return certificate.shared_probability(s, variance)
    return jnp.sum(s * variance, -1)


def hessian_product(
    stream: Stream, link: Link, theta: Array, v: Array, *, intercept: bool
) -> Array:
    """Return the Hessian of the mean loss times v, in three products of one pass."""
    how: dict[str, Any] = {"link": link, "intercept": intercept}
    theta = theta.astype(v.dtype)
    return sum_over(stream, partial(_hessian_product_of_window, theta=theta, v=v, **how))


@jax.jit(static_argnames=("link", "intercept"))
def _hessian_product_of_window(
    problem: Problem, *, theta: Array, v: Array, link: Link, intercept: bool
) -> Array:
    variance = problems.class_variance(problem, link, _point(problem, link, theta))
    product = problems.hessian_product(problem, link, variance, v, intercept=intercept)
    return product.astype(jnp.float64)


def slopes_along(stream: Stream, link: Link, theta: Array, d: Array, steps: Array) -> Array:
    """Return the slopes of the mean loss at theta + step d of each step, in two products."""
    how: dict[str, Any] = {"theta": theta, "d": d, "steps": steps}
    return sum_over(stream, partial(_slopes_of_window, **how, link=link))


@jax.jit(static_argnames="link")
def _slopes_of_window(
    problem: Problem, *, theta: Array, d: Array, steps: Array, link: Link
) -> Array:
    z, dz = (problems.linear_scores(problem, each) for each in (theta, d))

    def slope(step: Array) -> Array:
        point = problems.point_from_scores(problem, link, theta, z + step * dz)
        return jnp.sum(point.residual * dz)

    return lax.map(slope, steps)


def intercept_curvature(stream: Stream, link: Link, theta: Array) -> tuple[Array, Array]:
    """Return sum_i s_i (p_i - y_i), and what couples its entries, in one product."""
    return sum_over(stream, partial(_intercept_curvature_of_window, theta=theta, link=link))


@jax.jit(static_argnames="link")
def _intercept_curvature_of_window(
    problem: Problem, *, theta: Array, link: Link
) -> tuple[Array, Array]:
    point = _point(problem, link, theta)
    variance = problems.class_variance(problem, link, point)
    return point.residual.sum(-1), _coupling(problem, link, variance)


def dual(
    stream: Stream,
    link: Link,
    theta: Array,
    trial: Array,
    beta: Array | None,
    scaling: Array | None = None,
) -> Dual:
    """Return the sums of the certificate at theta by the predictions at the trial parameters.

    q is moved by Newton's next step of the intercepts, beta; None leaves it where it is. With a
    scaling, `[1, 1, 1]`, it is then mixed with the targets, see `certificate.dual_scaling`.
    """
    how: dict[str, Any] = {"theta": theta, "trial": trial, "beta": beta, "scaling": scaling}
    return sum_over(stream, partial(_dual_of_window, **how, link=link))


@jax.jit(static_argnames="link")
def _dual_of_window(
    problem: Problem,
    *,
    theta: Array,
    trial: Array,
    beta: Array | None,
    scaling: Array | None,
    link: Link,
) -> Dual:
    scores = [problems.linear_scores(problem, each) for each in (theta, trial)]
    point = problems.point_from_scores(problem, link, theta, scores[0])
    target, log_p, log_q = certificate.outcome_probabilities(link, problem.targets, *scores)
    s = certificate.outcome_weights(problem)
    if beta is not None:
        step = certificate.outcome_steps(link, beta)
        q = jnp.exp(log_q)
        tilt = jnp.where(s * q == 0, 0, step - jnp.sum(q * step, 1, keepdims=True))
        log_q = log_q + jnp.log1p(tilt)  # NaN if it leaves the probabilities
    if scaling is not None:
        log_q = certificate.log_mixture(log_q, target, scaling[..., None])
    residual = certificate.outcome_residual(problem, link, log_q, target)
    size = jnp.sum(jnp.where(s == 0, 0, s * jnp.abs(jnp.exp(log_q) - target)), -1)
    divergence = certificate.weighted_divergence(s, log_q, log_p)
    slope = problems.linear_scores_adjoint(problem, residual)
    gradient = problems.linear_scores_adjoint(problem, point.residual)
    return Dual(point.value, gradient, divergence, slope, size)


def _point(problem: Problem, link: Link, theta: Array) -> problems.Point:
    scores = problems.linear_scores(problem, theta)
    return problems.point_from_scores(problem, link, theta, scores)
