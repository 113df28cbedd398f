"""The state of a fit over a source, and the pass that gives it at any parameters."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.solvers import certificate, newton
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.driver import MAX_FORCING, MIN_FORCING
from jaxsoftmax.solvers.outcome import SolverConfig
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner
from jaxsoftmax.solvers.stream import sums
from jaxsoftmax.solvers.stream.survey import Stream


class Run(NamedTuple):
    """The values that all steps share."""

    stream: Stream
    sample: Problem  # with the penalty
    config: SolverConfig
    spread: float  # the mean variance of the features along the eigenvectors of their Gram matrix

    @property
    def share(self) -> float:
        """The share of all examples that the sample has."""
        return len(self.stream.sample.weights) / self.stream.examples.rows


class State(NamedTuple):
    """Where the fit is, and how it got there."""

    theta: Array
    value: float
    gradient: Array  # of the smooth part, with the ridge: [1, K, D + 1]
    curvature: Array  # [1, K]
    coupling: Array | None  # of the intercepts, see `sums.Evaluation`
    estimate: float  # of the gap
    preconditioner: Preconditioner | Blocks
    sample: Problem  # with the penalty, without l1 drawn for theta
    first_norm: float = 0.0  # of the first gradient
    iterations: int = 0
    products: int = 0
    spent: int = 0  # products of the sample since the preconditioner was built
    sharpened: int = 0  # number of times that a preconditioner was built for the current point
    pairs: tuple[tuple[Array, Array], ...] = ()  # steps, and what they changed of the gradient
    scale: float = 1.0  # of the sample's inverse Hessian, see `quasi_newton`
    caution: float = 1.0  # the damping of the sample's Hessian, relative to its sampling error
    damping: float = 0.0  # of the last step to the optimum of a tilted sample
    gain: float = np.inf  # what that step was to gain
    trust: float = 1.0  # factor of the estimate's target, below 1 where the estimate was too low
    idle: int = 0  # iterations without progress
    is_exact: bool = False  # whether Newton systems are in float64, as others made no progress
    best_value: float = np.inf
    best_estimate: float = np.inf

    def after(self, end: "State", products: int) -> "State":
        """Return the state with the point of another one, which took some products to reach."""
        return self._replace(
            theta=end.theta,
            value=end.value,
            gradient=end.gradient,
            curvature=end.curvature,
            coupling=end.coupling,
            sample=end.sample,
            estimate=end.estimate,
            products=self.products + products,
        )


def evaluate_at(run: Run, theta: Array, preconditioner: Preconditioner | Blocks) -> State:
    """Return the state at some parameters, with no history."""
    config, penalty = run.config, run.sample
    at, drawn = sums.mean_loss(
        run.stream, config.link, theta, intercept=config.intercept, draws=config.smooth
    )
    w, l2, l1 = theta[..., :-1], penalty.l2, penalty.l1
    ridge, size = jnp.sum(w**2, (1, 2)), jnp.sum(jnp.abs(w), (1, 2))
    value = float((at.value + 0.5 * l2 * ridge + l1 * size)[0])
    scaling = certificate.dual_scaling(penalty, at.gradient[..., :-1])
    estimate = float(certificate.penalty_gap(penalty, w, scaling * at.gradient[..., :-1])[0])
    # Where |G| exceeds an l1 penalty without l2, the divergence is about the square of the excess.
    estimate += float((1 - scaling[0, 0, 0]) ** 2) * abs(value)
    gradient = at.gradient.at[..., :-1].add(l2[:, None, None] * w)
    sample = penalty
    if drawn is not None:
        sample = run.stream.to_problem(drawn, len(run.stream.sample.weights))
        sample = sample._replace(l2=penalty.l2, l1=penalty.l1)
    return State(
        theta, value, gradient, at.curvature, at.coupling, estimate, preconditioner, sample
    )


def least_length(problem: Problem, theta: Array, gradient: Array) -> float:
    """Return the length of the least subgradient, which is the gradient without l1."""
    return float(newton.norm(certificate.least_subgradient(problem, theta, gradient))[0])


def tolerance(run: Run, state: State) -> float:
    """Return the residual that a Newton system may leave, as in `solvers.driver`."""
    size, length = abs(state.value), least_length(run.sample, state.theta, state.gradient)
    distance = np.sqrt(state.estimate / max(size, np.finfo(float).tiny))
    forcing = min(np.sqrt(length / state.first_norm), 0.5 * distance)
    loose = np.clip(forcing, MIN_FORCING, MAX_FORCING) * length
    target = 2 * float(run.sample.l2[0]) * run.config.gap * state.trust * size
    return float(max(loose, min(0.8 * np.sqrt(target), MAX_FORCING * length)))
