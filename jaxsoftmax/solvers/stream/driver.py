r"""The loop around Newton's steps over a source.

minimize
  _start                    the optimum of the sample, which is in memory
  _evaluate                 the objective and its gradient, in one pass
  until the certificate is small enough, or there is no progress:
    _certify_if_ready       two passes and one for the objective
    _iterate
      _direction            conjugate gradients, a pass for each product
      _search               a step along it, a pass for each trial; the first one mostly suits
      _sharpen              the class preconditioner of the sample, each time that it pays
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.solvers import arguments, class_preconditioner, newton, shared_preconditioner
from jaxsoftmax.solvers import driver as array_driver
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.certificate import Certificate
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.driver import MAX_FORCING, MAX_IDLE_ITERATIONS, MIN_FORCING
from jaxsoftmax.solvers.outcome import Callback, Outcome, SolverConfig, explain
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner
from jaxsoftmax.solvers.solution import SolverStatus
from jaxsoftmax.solvers.stream import sums
from jaxsoftmax.solvers.stream.certificate import certify
from jaxsoftmax.solvers.stream.survey import Stream

SAMPLE_GAP = 1e-3  # of the start on the sample, whose optimum is not that of all examples
MAX_TRIALS = 20
MAX_SLOPE_RATIO = 0.4  # as in `line_search`


class _Run(NamedTuple):
    """The values that all steps share."""

    stream: Stream
    sample: Problem  # with the penalty
    config: SolverConfig


class _State(NamedTuple):
    """Where the fit is, and how it got there."""

    theta: Array
    value: float
    gradient: Array  # with the penalty's: [1, K, D + 1]
    curvature: Array  # [1, K]
    estimate: float  # of the gap
    preconditioner: Preconditioner | Blocks
    first_norm: float = 0.0  # of the first gradient
    iterations: int = 0
    products: int = 0
    spent: int = 0  # products for Newton systems since the preconditioner was built
    sharpened: int = 0  # number of times that a preconditioner was built for the current point
    trust: float = 1.0  # factor of the estimate's target, below 1 where the estimate was too low
    idle: int = 0  # iterations without progress
    best_value: float = np.inf
    best_estimate: float = np.inf

    @property
    def norm(self) -> float:
        """The length of the gradient."""
        return float(newton.norm(self.gradient)[0])


def minimize(
    stream: Stream,
    theta: np.ndarray | None,
    l2: float,
    config: SolverConfig,
    *,
    callback: Callback | None = None,
) -> Outcome:
    """Minimize the objective over a source to a certified relative gap.

    Args:
        stream: the examples.
        theta: parameters to start from, `[1, K, D + 1]`, or None for the optimum of a sample.
        l2: the penalty in the mean form, above 0.
        config: the settings.
        callback: called after each iteration with a dictionary of figures.

    Returns:
        The outcome, with an axis of length 1 for the lane.
    """
    sample = _sample_problem(stream, l2)
    pre = shared_preconditioner.build(sample.features, sample.weights[0], config.memory)
    pre = stream.processes.agree(pre)
    run = _Run(stream, sample, config)
    theta = stream.processes.agree(_start(run, pre)) if theta is None else theta
    state = _evaluate(run, jnp.asarray(_with_limits(stream, config, theta)), pre)
    state = state._replace(first_norm=state.norm or 1.0, products=4)  # and those of the survey
    found, status = _certify_if_ready(run, state)
    while status is None and state.idle < MAX_IDLE_ITERATIONS:
        state = _iterate(run, state)
        if callback is not None:
            callback(_report(state))
        if state.iterations >= config.max_iterations:
            break
        found, status = _certify_if_ready(run, state)
        if found is not None:
            state = state._replace(
                trust=0.2 * state.trust, products=state.products + int(found.products)
            )
    if status is None:
        found = certify(stream, sample, config, state.theta)
        state = state._replace(products=state.products + int(found.products))
        status = _status(config, found)
    assert found is not None
    return _outcome(config, state, found, status)


def _sample_problem(stream: Stream, l2: float) -> Problem:
    """Return the sample as a problem of its own, with weights that sum to one."""
    problem = stream.to_problem(stream.sample, len(stream.sample.weights))
    total = jnp.maximum(problem.weights.sum(1, keepdims=True), 1e-300)
    return problem._replace(weights=problem.weights / total, l2=jnp.full(1, l2))


def _start(run: _Run, preconditioner: Preconditioner) -> np.ndarray:
    """Return the optimum of the sample, `[1, K, D + 1]`.

    Its penalty is as strong for each example as that of all examples: a weaker one would let the
    fewer examples be overfitted, and Newton's steps begin where the curvature is not that of the
    optimum. A class that the sample lacks has the weights 0 and the intercept that its share
    suggests.
    """
    data, stream, config = run.stream.sample, run.stream, run.config
    theta = np.zeros((1, data.classes, data.features.shape[1] + 1))
    limits = arguments.initial_intercepts(data, data.weights[None], data.targets[None])
    if config.intercept:
        theta[..., -1] = limits
    if not data.weights.any():
        return np.zeros_like(theta)
    near = replace(config, gap=max(config.gap, SAMPLE_GAP if _sample_share(run) < 1 else 0))
    penalized = run.sample._replace(l2=run.sample.l2 / _sample_share(run))
    found = array_driver.minimize(penalized, preconditioner, theta, near).theta
    lacking = ~np.isfinite(found[..., -1])
    if config.intercept and config.link == "softmax" and lacking.any():
        share = np.log(np.maximum(stream.share, np.finfo(float).tiny))[None]
        found[lacking, -1] = (share + np.mean((found[..., -1] - share)[~lacking]))[lacking]
    return np.where(np.isfinite(found), found, 0)


def _sample_share(run: _Run) -> float:
    """Return the share of all examples that the sample has."""
    return len(run.stream.sample.weights) / run.stream.examples.rows


def _with_limits(stream: Stream, config: SolverConfig, theta: np.ndarray) -> np.ndarray:
    """Return the parameters with the infinite intercepts, and weights 0 for these classes."""
    infinite = ~np.isfinite(stream.limits) & config.intercept
    theta = np.where(infinite[:, None], 0.0, theta)
    theta[..., -1] = np.where(infinite, stream.limits, theta[..., -1])
    return theta


def _evaluate(run: _Run, theta: Array, preconditioner: Preconditioner | Blocks) -> _State:
    """Return the state at some parameters, with no history."""
    config, l2 = run.config, run.sample.l2
    at = sums.mean_loss(run.stream, config.link, theta, intercept=config.intercept)
    w = theta[..., :-1]
    value = float((at.value + 0.5 * l2 * jnp.sum(w**2, (1, 2)))[0])
    gradient = at.gradient.at[..., :-1].add(l2[:, None, None] * w)
    estimate = float(jnp.sum(gradient[..., :-1] ** 2) / (2 * l2[0]))
    return _State(theta, value, gradient, at.curvature, estimate, preconditioner)


def _iterate(run: _Run, state: _State) -> _State:
    """Take one step."""
    d, products = _direction(run, state)
    end, trials = _search(run, state, d)
    state = end._replace(
        first_norm=state.first_norm,
        iterations=state.iterations + 1,
        products=state.products + 3 * products + 2 * trials,
        spent=state.spent + 3 * products,
        sharpened=state.sharpened,
        trust=state.trust,
        idle=state.idle,
        best_value=state.best_value,
        best_estimate=state.best_estimate,
    )
    return _sharpen(run, _note_progress(state))


def _direction(run: _Run, state: _State) -> tuple[Array, int]:
    """Return Newton's direction, and the number of Hessian products."""
    link, intercept, l2 = run.config.link, run.config.intercept, run.sample.l2
    system, r, scale = _scale_system(
        l2,
        state.curvature.astype(run.sample.features.dtype),
        state.gradient,
        state.preconditioner,
        jnp.full(1, _tolerance(run, state)),
    )
    last = _begin(system, link, r, intercept)
    while newton.is_unfinished(last):
        h = sums.hessian_product(run.stream, link, state.theta, last.p, intercept=intercept)
        h = h.at[..., :-1].add(l2[:, None, None] * last.p[..., :-1])
        last = _advance(system, link, last, h.astype(last.p.dtype), intercept)
    return last.d.astype(jnp.float64) * scale, int(last.products)


_scale_system = jax.jit(newton.scale_system)
_begin = jax.jit(newton.start, static_argnums=(1, 3))
_advance = jax.jit(newton.advance, static_argnums=(1, 4))


def _tolerance(run: _Run, state: _State) -> float:
    """Return the residual that the Newton system may leave, as in `solvers.driver`."""
    size, norm = abs(state.value), state.norm
    distance = np.sqrt(state.estimate / max(size, np.finfo(float).tiny))
    forcing = min(np.sqrt(norm / state.first_norm), 0.5 * distance)
    loose = np.clip(forcing, MIN_FORCING, MAX_FORCING) * norm
    target = 2 * float(run.sample.l2[0]) * run.config.gap * state.trust * size
    return float(max(loose, min(0.8 * np.sqrt(target), MAX_FORCING * norm)))


def _search(run: _Run, state: _State, d: Array) -> tuple[_State, int]:
    """Return the state at a step along d that `line_search` would take, and the passes it took."""
    first_slope, slack = _slope(state, d), 4 * np.finfo(float).eps * abs(state.value)
    low, high, step = (0.0, first_slope), (np.inf, np.nan), 1.0
    for trial in range(1, MAX_TRIALS + 1):
        theta = jnp.where(d == 0, state.theta, state.theta + step * d)
        end = _evaluate(run, theta, state.preconditioner)
        slope, decreased = _slope(end, d), end.value <= state.value + slack
        if decreased and abs(slope) <= MAX_SLOPE_RATIO * abs(first_slope):
            return end, trial
        if decreased and slope < 0:
            low = step, slope
        else:
            high = step, slope
        step = _next_step(low, high)
    return state, MAX_TRIALS


def _slope(state: _State, d: Array) -> float:
    return float(jnp.sum(state.gradient * d))


def _next_step(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Return where the slope is about 0 between two steps, well inside, or a longer step."""
    if not np.isfinite(high[0]):
        return 4 * low[0]
    width = high[0] - low[0]
    share = low[1] / (low[1] - high[1]) if high[1] > 0 else 0.5
    return low[0] + width * min(max(share, 0.1), 0.9)


def _note_progress(state: _State) -> _State:
    """Note whether the value fell, or the estimated gap by half."""
    rounding = 4 * np.finfo(float).eps * abs(state.value)
    better = bool(state.value + rounding < state.best_value)
    better = better or state.estimate < 0.5 * state.best_estimate
    return state._replace(
        idle=0 if better else state.idle + 1,
        best_value=min(state.best_value, state.value),
        best_estimate=min(state.best_estimate, state.estimate),
    )


def _sharpen(run: _Run, state: _State) -> _State:
    """Build the class preconditioner from the sample, once its cost has been spent on products.

    As in `solvers.driver` each is of use for longer than the one before.
    """
    sample, config, classes = run.sample, run.config, state.theta.shape[1]
    cost = class_preconditioner.cost_in_products(sample, 1, classes, config.memory)
    if state.spent < _sample_share(run) * cost * 2**state.sharpened:
        return state
    variance = _sample_variance(sample, config.link, state.theta)
    blocks = class_preconditioner.build(sample, config.link, variance)
    blocks = None if blocks is None else run.stream.processes.agree(blocks)
    return state._replace(
        preconditioner=state.preconditioner if blocks is None else blocks,
        spent=0,
        sharpened=state.sharpened + 1,
    )


@partial(jax.jit, static_argnums=1)
def _sample_variance(sample: Problem, link: problems.Link, theta: Array) -> Array:
    scores = problems.linear_scores(sample, theta)
    point = problems.point_from_scores(sample, link, theta, scores)
    return problems.class_variance(sample, link, point)


def _certify_if_ready(run: _Run, state: _State) -> tuple[Certificate | None, SolverStatus | None]:
    """Return a certificate and the status it gives, if the figures indicate the end."""
    target = 0.9 * run.config.gap * state.trust * abs(state.value)
    if state.estimate > target and np.isfinite(state.value):
        return None, None
    found = certify(run.stream, run.sample, run.config, state.theta)
    return found, _status(run.config, found)


def _status(config: SolverConfig, found: Certificate) -> SolverStatus | None:
    """Return the status of a fit that is done, None for one that is to continue."""
    value, gap = float(found.value[0]), float(found.gap[0])
    if not np.isfinite(value):
        return SolverStatus.NOT_FINITE
    return SolverStatus.CONVERGED if gap <= config.gap * (abs(value) or 1.0) else None


def _report(state: _State) -> dict[str, Any]:
    return {
        "iteration": state.iterations,
        "lanes": [0],
        "objective": [state.value],
        "estimate": [state.estimate],
        "products": state.products,
        "theta": np.asarray(state.theta, np.float64),
    }


def _outcome(
    config: SolverConfig, state: _State, found: Certificate, status: SolverStatus | None
) -> Outcome:
    """Return the outcome, relative to the objective, with a reason."""
    value, gap, floor, norm = (np.asarray(a, float) for a in found[1:5])
    size = np.where(value == 0, 1.0, np.abs(value))
    outcome = Outcome.initial(np.asarray(found.theta))._replace(
        value=value,
        gap=gap / size,
        floor=floor / size,
        gradient_norm=norm,
        iterations=np.array([state.iterations]),
        products=np.array([state.products]),
        status=np.array([status], object),
    )
    return explain(config, outcome, np.array([False]))
