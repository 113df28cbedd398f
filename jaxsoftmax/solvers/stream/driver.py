r"""The loop around the steps over a source.

minimize
  _start                    the optimum of the sample, which is in memory
  evaluate_at               the objective and its gradient, in one pass
  _shorten                  a step to shorter parameters, where the sample is overfitted
  until the certificate is small enough, or there is no progress:
    _certify_if_ready       mostly one pass
    _iterate                with l1 `proximal.iterate`, else
      quasi_newton          a direction by a sample's Hessian and the last steps, without a pass
      _search               a step along it, a pass for each trial; the first one mostly suits
        _bracket            where it is far too long, the slopes of many steps in one pass
      _sharpen              the class preconditioner of the sample, each time that it pays
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import arguments, class_preconditioner, shared_preconditioner
from jaxsoftmax.solvers import driver as array_driver
from jaxsoftmax.solvers.certificate import Certificate
from jaxsoftmax.solvers.driver import MAX_IDLE_ITERATIONS
from jaxsoftmax.solvers.limits import MAX_FLOAT64_SIZE
from jaxsoftmax.solvers.outcome import Callback, Outcome, SolverConfig, explain
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner
from jaxsoftmax.solvers.solution import SolverStatus
from jaxsoftmax.solvers.stream import proximal, quasi_newton, sums, systems
from jaxsoftmax.solvers.stream.certificate import certify
from jaxsoftmax.solvers.stream.state import Run, State, evaluate_at, least_length
from jaxsoftmax.solvers.stream.survey import Stream

SAMPLE_GAP = 1e-3  # of the start on the sample, whose optimum is not that of all examples
OVERFITTED = 0.5  # slope along the parameters, relative to the value, from which they are shortened
MAX_TRIALS = 20
MIN_DESCENT = 1e-4  # of a step, relative to what its first slope promises
STEPS = 24  # lengths of a step, whose slopes one pass tells
MAX_SLOPE_RATIO = 0.9  # of a step, relative to the first slope: an exact step would cost a pass
MAX_CUBIC_RATIO = 4  # up to which a cubic shows where the slope is 0

type _Slope = tuple[float, float]  # a step, and the slope there


def minimize(
    stream: Stream,
    theta: np.ndarray | None,
    l2: float,
    l1: float,
    config: SolverConfig,
    *,
    callback: Callback | None = None,
) -> Outcome:
    """Minimize the objective over a source to a certified relative gap.

    Args:
        stream: the examples.
        theta: parameters to start from, `[1, K, D + 1]`, or None for the optimum of a sample.
        l2: the squared penalty in the mean form.
        l1: the l1 penalty; one of the two is above 0.
        config: the settings.
        callback: called after each iteration with a dictionary of figures.

    Returns:
        The outcome, with an axis of length 1 for the lane.
    """
    sample = _sample_problem(stream, l2, l1)
    pre = shared_preconditioner.build(sample.features, sample.weights[0], config.memory)
    pre = stream.processes.agree(pre)
    run = Run(stream, sample, config, float(jnp.mean(pre.spectrum)))
    if run.share == 1:  # all examples are in memory
        first = _initial_theta(run) if theta is None else _with_limits(stream, config, theta)
        return array_driver.minimize(sample, pre, first, config, callback=callback)
    theta = stream.processes.agree(_start(run, pre)) if theta is None else theta
    state = evaluate_at(run, jnp.asarray(_with_limits(stream, config, theta)), pre)
    state = _shorten(run, state._replace(products=4))  # and those of the survey
    length = least_length(sample, state.theta, state.gradient)
    is_small = sample.features.size * state.theta.shape[1] < MAX_FLOAT64_SIZE
    state = state._replace(first_norm=length or 1.0, is_exact=config.smooth and is_small)
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
        found = certify(run, state)
        state = state._replace(products=state.products + int(found.products))
        status = _status(config, found)
    assert found is not None
    return _outcome(config, state, found, status)


def _sample_problem(stream: Stream, l2: float, l1: float) -> Problem:
    """Return the sample as a problem of its own, with weights that sum to one."""
    problem = stream.to_problem(stream.sample, len(stream.sample.weights))
    total = problem.weights.sum(1, keepdims=True)
    total = jnp.maximum(total, float_limits(total.dtype).tiny)
    penalty = {"l2": jnp.full(1, l2), "l1": jnp.full(1, l1)}
    return problem._replace(weights=problem.weights / total, **penalty)


def _start(run: Run, preconditioner: Preconditioner) -> np.ndarray:
    """Return the optimum of the sample, `[1, K, D + 1]`.

    Its penalty is as strong for each example as that of all examples: a weaker one would let the
    fewer examples be overfitted, and Newton's steps begin where the curvature is not that of the
    optimum. A class that the sample lacks has the weights 0 and the intercept that its share
    suggests.
    """
    data, stream, config = run.stream.sample, run.stream, run.config
    theta = _initial_theta(run)
    if not data.weights.any():
        return np.zeros_like(theta)
    near = replace(config, gap=max(config.gap, SAMPLE_GAP))
    penalized = run.sample._replace(l2=run.sample.l2 / run.share, l1=run.sample.l1 / run.share)
    found = array_driver.minimize(penalized, preconditioner, theta, near).theta
    lacking = ~np.isfinite(found[..., -1])
    if config.intercept and config.link == "softmax" and lacking.any():
        share = np.log(np.maximum(stream.share, np.finfo(float).tiny))[None]
        found[lacking, -1] = (share + np.mean((found[..., -1] - share)[~lacking]))[lacking]
    return np.where(np.isfinite(found), found, 0)


def _initial_theta(run: Run) -> np.ndarray:
    """Return weights of 0, and the intercepts that suit the classes of the sample."""
    data = run.stream.sample
    theta = np.zeros((1, data.classes, data.features.shape[1] + 1))
    if run.config.intercept:
        limits = arguments.initial_intercepts(data, data.weights[None], data.targets[None])
        theta[..., -1] = limits
    return theta


def _with_limits(stream: Stream, config: SolverConfig, theta: np.ndarray) -> np.ndarray:
    """Return the parameters with the infinite intercepts, and weights 0 for these classes."""
    infinite = ~np.isfinite(stream.limits) & config.intercept
    theta = np.where(infinite[:, None], 0.0, theta)
    theta[..., -1] = np.where(infinite, stream.limits, theta[..., -1])
    return theta


def _shorten(run: Run, state: State) -> State:
    """Return the state with shorter parameters where those of the sample overfit it.

    Few examples of many classes are separated, and their optimum may be worse than zeros.
    """
    d = jnp.where(jnp.isfinite(state.theta), state.theta, 0)
    if not run.config.smooth or _slope(state, d) <= OVERFITTED * abs(state.value):
        return state
    zeros = evaluate_at(run, jnp.where(d == 0, state.theta, 0), state.preconditioner)
    end, passes = _search(run, zeros, d)
    return state.after(end, 2 + 2 * passes)


def _iterate(run: Run, state: State) -> State:
    """Take one step."""
    iterations = state.iterations + 1
    if not run.config.smooth:
        return _note_progress(proximal.iterate(run, state)._replace(iterations=iterations))
    d, state = quasi_newton.direction(run, state)
    end, trials = _search(run, state, d)
    state = quasi_newton.learn(run, state, end, d).after(end, 2 * trials)
    return _sharpen(run, _note_progress(state._replace(iterations=iterations)))


def _search(run: Run, state: State, d: Array) -> tuple[State, int]:
    """Return the state at a step along d with a smaller slope, and the passes that it took."""
    first_slope, slack = _slope(state, d), 4 * np.finfo(float).eps * abs(state.value)
    low, high, step, is_bracketed = (0.0, first_slope), (np.inf, np.nan), 1.0, False
    for trial in range(1, MAX_TRIALS + 1):
        theta = jnp.where(d == 0, state.theta, state.theta + step * d)
        end = evaluate_at(run, theta, state.preconditioner)
        slope = _slope(end, d)
        decreased = end.value <= state.value + MIN_DESCENT * step * first_slope + slack
        if decreased and abs(slope) <= MAX_SLOPE_RATIO * abs(first_slope):
            return end, trial + is_bracketed
        if decreased and slope < 0:
            low = step, slope
        else:
            high = step, slope
        if trial == 1 and 0 < slope <= -MAX_CUBIC_RATIO * first_slope:
            step = _least_of_cubic(step, end.value - state.value, first_slope, slope)
            continue
        if not is_bracketed:
            low, high = _bracket(run, state, d, low, high)
            is_bracketed = True
        step = _next_step(low, high)
    return state, MAX_TRIALS + is_bracketed


def _least_of_cubic(step: float, gain: float, first_slope: float, slope: float) -> float:
    """Return where the cubic of these slopes at 0 and the step, and of this gain, is least."""
    middle = first_slope + slope - 3 * gain / step
    root = np.sqrt(max(middle**2 - first_slope * slope, 0))
    return step - step * (slope + root - middle) / (slope - first_slope + 2 * root)


def _bracket(run: Run, state: State, d: Array, low: _Slope, high: _Slope) -> tuple[_Slope, _Slope]:
    """Return the closest of many steps between which the slope changes its sign, in one pass."""
    powers = np.arange(-STEPS, 0) if np.isfinite(high[0]) else np.arange(1, STEPS + 1)
    steps = 2.0 ** (powers / 2)
    slopes = sums.slopes_along(run.stream, run.config.link, state.theta, d, jnp.asarray(steps))
    w, dw, l2 = state.theta[..., :-1], d[..., :-1], run.sample.l2[0]
    slopes = slopes + l2 * (jnp.sum(w * dw) + jnp.asarray(steps) * jnp.sum(dw * dw))
    for step in zip(steps.tolist(), slopes.tolist(), strict=True):
        if not step[1] < 0:
            return low, step
        low = step
    return low, high


def _slope(state: State, d: Array) -> float:
    return float(jnp.sum(state.gradient * d))


def _next_step(low: _Slope, high: _Slope) -> float:
    """Return where the slope is about 0 between two steps, well inside, or a longer step."""
    if not np.isfinite(high[0]):
        return 4 * low[0]
    width = high[0] - low[0]
    share = low[1] / (low[1] - high[1]) if high[1] > 0 else 0.5
    return low[0] + width * min(max(share, 0.1), 0.9)


def _note_progress(state: State) -> State:
    """Note whether the value fell, or the estimated gap by half."""
    rounding = 4 * np.finfo(float).eps * abs(state.value)
    better = bool(state.value + rounding < state.best_value)
    better = better or state.estimate < 0.5 * state.best_estimate
    return state._replace(
        idle=0 if better else state.idle + 1,
        is_exact=state.is_exact or not better,
        best_value=min(state.best_value, state.value),
        best_estimate=min(state.best_estimate, state.estimate),
    )


def _sharpen(run: Run, state: State) -> State:
    """Build the class preconditioner of the sample, once its cost has been spent on products.

    As in `solvers.driver` each is of use for longer than the one before.
    """
    sample, config, classes = state.sample, run.config, state.theta.shape[1]
    cost = class_preconditioner.cost_in_products(sample, 1, classes, config.memory)
    if state.spent < cost * 2**state.sharpened:
        return state
    variance = systems.sample_variance(sample, config.link, state.theta)
    blocks = class_preconditioner.build(sample, config.link, variance)
    blocks = None if blocks is None else run.stream.processes.agree(blocks)
    return state._replace(
        preconditioner=state.preconditioner if blocks is None else blocks,
        spent=0,
        sharpened=state.sharpened + 1,
    )


def _certify_if_ready(run: Run, state: State) -> tuple[Certificate | None, SolverStatus | None]:
    """Return a certificate and the status it gives, if the figures indicate the end."""
    target = 0.9 * run.config.gap * state.trust * abs(state.value)
    if state.estimate > target and np.isfinite(state.value):
        return None, None
    found = certify(run, state)
    return found, _status(run.config, found)


def _status(config: SolverConfig, found: Certificate) -> SolverStatus | None:
    """Return the status of a fit that is done, None for one that is to continue."""
    value, gap = float(found.value[0]), float(found.gap[0])
    if not np.isfinite(value):
        return SolverStatus.NOT_FINITE
    return SolverStatus.CONVERGED if gap <= config.gap * (abs(value) or 1.0) else None


def _report(state: State) -> dict[str, Any]:
    return {
        "iteration": state.iterations,
        "lanes": [0],
        "objective": [state.value],
        "estimate": [state.estimate],
        "products": state.products,
        "theta": np.asarray(state.theta, np.float64),
    }


def _outcome(
    config: SolverConfig, state: State, found: Certificate, status: SolverStatus | None
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
