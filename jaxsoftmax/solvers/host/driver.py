"""The loop around Newton's steps on the host: when to certify, and why to stop."""

import functools
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.solvers.host import certificate, line_search, newton, quasi_newton
from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.expectation import Expectation
from jaxsoftmax.solvers.host.lane import Lane
from jaxsoftmax.solvers.host.newton import Choice, Iterate
from jaxsoftmax.solvers.host.problem import HostProblem, Point
from jaxsoftmax.solvers.host.quasi_newton import History
from jaxsoftmax.solvers.limits import (
    MAX_FORCING,
    MAX_IDLE_ITERATIONS,
    MAX_SLOPE_RATIO,
)
from jaxsoftmax.solvers.outcome import Callback, Outcome, SolverConfig, explain
from jaxsoftmax.solvers.solution import SolverStatus

LAST_STEP = 100.0  # the gap's estimate over its target, from which a Newton step costs less
LAST_STEP_ERROR = 20.0  # factor of the square that predicts the distance after a Newton step


class _State(NamedTuple):
    """Where the lane is, in its reduced coordinates, and how it got there."""

    point: Point
    gradient: np.ndarray
    estimate: float  # of the gap
    choice: Choice
    history: History | None  # of quasi-Newton steps, None once Newton's are taken
    iterations: int = 0
    products: int = 0
    trust: float = 1.0  # factor of the estimate's target, below 1 where the estimate was too low
    idle: int = 0  # iterations without progress
    distance: float = np.inf  # about the value's distance from the optimum, or more
    expected: Expectation | None = None  # of the last step, if it was Newton's
    best_value: float = np.inf
    best_estimate: float = np.inf


def minimize(
    lane: Lane, theta: np.ndarray, config: SolverConfig, *, callback: Callback | None = None
) -> Outcome:
    """Minimize a lane to a certified relative gap.

    Args:
        lane: the problem.
        theta: parameters to start from, `[K, D + 1]`.
        config: the settings.
        callback: called after each iteration with a dictionary of figures.

    Returns:
        The outcome, with an axis of length 1 for the lane.
    """
    with np.errstate(all="ignore"):  # a value that is not finite has a status
        state = _initial_state(lane, theta, config)
        found, status = _certify_if_ready(lane, config, state)
        while status is None and not _is_over(config, state):
            state = _iterate(lane.reduced, config, state)
            found, status = _certify_if_ready(lane, config, state)
            if found is None and _is_over(config, state):
                found = _certify(lane, config, state)
                status = _status(lane, config, state, found)
            elif found is not None and status is None:
                state = state._replace(trust=0.2 * state.trust)
            if callback is not None:
                callback(_report(lane, state, found or _certify(lane, config, state)))
    assert found is not None
    return _outcome(lane, config, state, found, status)


def _is_over(config: SolverConfig, state: _State) -> bool:
    """Return whether there are no more steps, wherever the last one has led."""
    return state.idle >= MAX_IDLE_ITERATIONS or state.iterations >= config.max_iterations


def _initial_state(lane: Lane, theta: np.ndarray, config: SolverConfig) -> _State:
    """Return the state before the first iteration."""
    point = problems.point_at(lane.reduced, lane.coordinates.reduce(lane.pack(theta)))
    g = problems.gradient(lane.reduced, point)
    choice = Choice.initial(lane.reduced, len(g), config.memory)
    history = None
    if quasi_newton.suits(lane.reduced, choice):
        choice = choice.at_new_point(lane.reduced, point)
        history = History.begin(lane.reduced, choice, g)
    estimate = _estimate(lane.reduced, g, np.inf)
    state = _State(point, g, estimate, choice, history, products=2)
    return _note_progress(state, point=point, estimate=estimate)


def _iterate(problem: HostProblem, config: SolverConfig, state: _State) -> _State:
    """Take one step."""
    point, g = state.point, state.gradient
    step, choice, expects = _step(problem, config, state)
    dz = problems.scores_of(problem, step.d)
    ratio = MAX_SLOPE_RATIO if state.history is None else quasi_newton.MAX_SLOPE_RATIO
    end = line_search.minimize_along(problem, point, step.d, dz, g, slope_ratio=ratio)
    gradient = problems.gradient(problem, end)
    decrement = -0.5 * float(np.vdot(g, step.d))
    expects &= decrement**4 <= _target(config, state) * abs(point.value) ** 3  # else it is far off
    expected = Expectation.of_step(problem, point, dz, end, step.r) if expects else None
    state = _note_progress(
        state,
        point=end,
        gradient=gradient,
        estimate=_estimate(problem, gradient, decrement),
        expected=expected,
        choice=choice,
        distance=decrement if expected is None else expected.divergence + step.left,
        iterations=state.iterations + 1,
        products=state.products + 2 * step.products + 2,
    )
    if state.history is None:
        return state
    return state._replace(history=_extend(problem, config, state, point))


def _step(
    problem: HostProblem, config: SolverConfig, state: _State
) -> tuple[Iterate, Choice, bool]:
    """Return the step, the choice, and whether the step is Newton's, with its residual."""
    point, g = state.point, state.gradient
    if state.history is None:
        tolerance = _sufficient_residual(problem, config, state)
        size = np.inf if _is_last_step(config, state) else abs(point.value)
        found = newton.direction(problem, point, g, tolerance, state.choice, size=size)
        return *found, True
    if not _is_last_step(config, state):
        d = quasi_newton.direction(state.history).reshape(g.shape)
        return Iterate(d, -g), state.choice, False
    precondition = functools.partial(quasi_newton.apply_inverse, problem, state.history)
    tolerance = _sufficient_residual(problem, config, state)
    return newton.solve_system(problem, point, g, tolerance, precondition), state.choice, True


def _extend(
    problem: HostProblem, config: SolverConfig, state: _State, last: Point
) -> History | None:
    """Return the history with the step from `last`, None where Newton's method is to continue."""
    assert state.history is not None
    if state.point is last:
        return None
    step = state.point.theta - last.theta
    history = state.history.add(problem, step, state.gradient, state.estimate)
    return history if history.is_on_course(_target(config, state)) else None


def _target(config: SolverConfig, state: _State) -> float:
    """Return the estimate of the gap at which a certificate is computed."""
    return 0.9 * config.gap * state.trust * abs(state.point.value)


def _estimate(problem: HostProblem, gradient: np.ndarray, decrement: float) -> float:
    """Return the gap as if the intercept were optimal; without a penalty, Newton's decrement."""
    if problem.l2 == 0:
        return decrement
    slope = problems.weight_part(problem, gradient)
    return float(np.vdot(slope, slope)) / (2 * problem.l2)


def _is_last_step(config: SolverConfig, state: _State) -> bool:
    """Return whether a Newton step is to replace all quasi-Newton steps that are left.

    It converges quadratically: relative to the objective, the distance from the optimum after it,
    which is about the bound by its expectation, is a multiple of the distance's square. Where C is
    large, the gap's estimate is far above the distance, and then many steps would be left.
    """
    target, size = _target(config, state), abs(state.point.value)
    expected = LAST_STEP_ERROR * state.distance**2
    return state.estimate > LAST_STEP * target and expected <= target * size


def _sufficient_residual(problem: HostProblem, config: SolverConfig, state: _State) -> float:
    """Return the residual of a Newton system that its step may leave in the last gradient."""
    size, norm = abs(state.point.value), float(np.linalg.norm(state.gradient))
    enough = 0.8 * np.sqrt(2 * problem.l2 * config.gap * state.trust * size)
    return float(min(enough, MAX_FORCING * norm))


def _note_progress(state: _State, *, point: Point, estimate: float, **others: Any) -> _State:
    """Return the state at a new point; note whether the value fell, or the gap's estimate by half.

    `others` are its other fields that have changed.
    """
    value = point.value
    rounding = 4 * problems.EPS * abs(value)
    better = value + rounding < state.best_value or estimate < 0.5 * state.best_estimate
    return state._replace(
        point=point,
        estimate=estimate,
        idle=0 if better else state.idle + 1,
        best_value=min(state.best_value, value),
        best_estimate=min(state.best_estimate, estimate),
        **others,
    )


def _certify_if_ready(
    lane: Lane, config: SolverConfig, state: _State
) -> tuple[certificate.Certificate | None, SolverStatus | None]:
    """Return a certificate and the status it gives, if the figures indicate the end."""
    value = state.point.value
    expected = np.inf if state.expected is None else state.expected.gap
    done = min(state.estimate, expected) <= _target(config, state)
    if not (done or not np.isfinite(value) or _is_separated(lane.reduced, state.point)):
        return None, None
    found = _certify(lane, config, state)
    return found, _status(lane, config, state, found)


def _certify(lane: Lane, config: SolverConfig, state: _State) -> certificate.Certificate:
    """Return the certificate in the user's coordinates, by what promises the smaller bound."""
    theta = lane.coordinates.expand(state.point.theta)
    goal = config.gap * abs(state.point.value)
    expected = state.expected
    if expected is not None and expected.gap > max(state.estimate, _target(config, state)):
        expected = None
    return certificate.certify(lane.original, theta, goal, np.dtype(config.dtype), expected)


def _status(
    lane: Lane, config: SolverConfig, state: _State, found: certificate.Certificate
) -> SolverStatus | None:
    """Return the status of a lane that is done, None for one that is to continue."""
    size = abs(found.value) or 1.0
    if not np.isfinite(found.value):
        return SolverStatus.NOT_FINITE
    if lane.reduced.l2 > 0:
        return SolverStatus.CONVERGED if found.gap <= config.gap * size else None
    if _is_separated(lane.reduced, state.point):
        return SolverStatus.SEPARABLE
    enough = state.estimate <= config.gap * size
    return SolverStatus.CONVERGED_WITHOUT_BOUND if enough else None


def _is_separated(problem: HostProblem, point: Point) -> bool:
    """Return whether there is no penalty and everything is classified: no optimum is attained."""
    if problem.l2 > 0:
        return False
    t = problem.targets
    if t.ndim == 2 and np.any((t > 0) & (t < 1)):  # such targets are never fitted with loss 0
        return False
    if point.lead is None:
        return bool(np.all(np.where(t > 0, point.scores, -point.scores) > 0))
    labels = t if t.ndim == 1 else t.argmax(0)
    rows = np.arange(len(labels))
    others = point.scores.copy()
    others[labels, rows] = -np.inf
    return bool(np.all(point.scores[labels, rows] > others.max(0)))


def _report(lane: Lane, state: _State, found: certificate.Certificate) -> dict[str, Any]:
    """Return the figures of the last step, as of one lane, with what a stop there would return."""
    return {
        "iteration": state.iterations,
        "lanes": [0],
        "objective": [found.value],
        "estimate": [state.estimate],
        "products": state.products,
        "theta": lane.unpack(found.theta)[None],
    }


def _outcome(
    lane: Lane,
    config: SolverConfig,
    state: _State,
    found: certificate.Certificate,
    status: SolverStatus | None,
) -> Outcome:
    """Return the outcome, relative to the objective, with a reason."""
    size = abs(found.value) or 1.0
    outcome = Outcome.initial(lane.unpack(found.theta)[None])._replace(
        value=np.array([found.value]),
        gap=np.array([found.gap / size]),
        floor=np.array([found.floor / size]),
        gradient_norm=np.array([found.gradient_norm]),
        iterations=np.array([state.iterations]),
        products=np.array([state.products + found.products]),
        status=np.array([status], object),
    )
    return explain(config, outcome, np.array([lane.reduced.l2 == 0]))
