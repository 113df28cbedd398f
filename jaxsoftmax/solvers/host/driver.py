"""The loop around Newton's steps on the host: when to certify, and why to stop."""

import functools
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.solvers.host import certificate, line_search, newton, quasi_newton
from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.lane import Lane
from jaxsoftmax.solvers.host.newton import Choice
from jaxsoftmax.solvers.host.problem import HostProblem, Point
from jaxsoftmax.solvers.host.quasi_newton import History
from jaxsoftmax.solvers.limits import (
    MAX_FORCING,
    MAX_IDLE_ITERATIONS,
    MAX_SLOPE_RATIO,
    MIN_FORCING,
)
from jaxsoftmax.solvers.outcome import Callback, Outcome, SolverConfig, explain
from jaxsoftmax.solvers.solution import SolverStatus

LAST_STEP = 100.0  # the gap's estimate over its target, from which a Newton step costs less
LAST_STEP_ERROR = 5.0  # factor of the product that predicts the estimate after a Newton step


class _State(NamedTuple):
    """Where the lane is, in its reduced coordinates, and how it got there."""

    point: Point
    gradient: np.ndarray
    estimate: float  # of the gap
    first_norm: float  # of the first gradient
    choice: Choice
    history: History | None  # of quasi-Newton steps, None once Newton's are taken
    iterations: int = 0
    products: int = 0
    trust: float = 1.0  # factor of the estimate's target, below 1 where the estimate was too low
    idle: int = 0  # iterations without progress
    decrement: float = np.inf  # about by how much the last step has lowered the value
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
        while status is None and state.idle < MAX_IDLE_ITERATIONS:
            state = _iterate(lane.reduced, config, state)
            found, status = _certify_if_ready(lane, config, state)
            if callback is not None:
                callback(_report(lane, state, found or _certify(lane, config, state)))
            if found is not None and status is None:
                state = state._replace(trust=0.2 * state.trust)
            if state.iterations >= config.max_iterations:
                break
        if found is None:
            found = _certify(lane, config, state)
            status = _status(lane, config, state, found)
    return _outcome(lane, config, state, found, status)


def _initial_state(lane: Lane, theta: np.ndarray, config: SolverConfig) -> _State:
    """Return the state before the first iteration."""
    point = problems.point_at(lane.reduced, lane.coordinates.reduce(lane.pack(theta)))
    g = problems.gradient(lane.reduced, point)
    choice = Choice.initial(lane.reduced, len(g), config.memory)
    history = None
    if quasi_newton.suits(lane.reduced, choice):
        choice = choice.at_new_point(lane.reduced, point)
        history = History.begin(lane.reduced, choice, g)
    norm, estimate = float(np.linalg.norm(g)), _estimate(lane.reduced, g, np.inf)
    state = _State(point, g, estimate, norm if norm > 0 else 1.0, choice, history, products=2)
    return _note_progress(state, point=point, estimate=estimate)


def _iterate(problem: HostProblem, config: SolverConfig, state: _State) -> _State:
    """Take one step."""
    point, g = state.point, state.gradient
    d, products, choice = _direction(problem, config, state)
    ratio = MAX_SLOPE_RATIO if state.history is None else quasi_newton.MAX_SLOPE_RATIO
    end = line_search.minimize_along(problem, point, d, g, slope_ratio=ratio)
    gradient = problems.gradient(problem, end)
    decrement = -0.5 * float(np.vdot(g, d))
    state = _note_progress(
        state,
        point=end,
        gradient=gradient,
        estimate=_estimate(problem, gradient, decrement),
        choice=choice,
        decrement=decrement,
        iterations=state.iterations + 1,
        products=state.products + 2 * products + 2,
    )
    if state.history is None:
        return state
    return state._replace(history=_extend(problem, config, state, point))


def _direction(
    problem: HostProblem, config: SolverConfig, state: _State
) -> tuple[np.ndarray, int, Choice]:
    """Return the direction, the number of Hessian products it took, and the choice."""
    if state.history is None:
        tolerance = _tolerance(problem, config, state)
        return newton.direction(problem, state.point, state.gradient, tolerance, state.choice)
    if not _is_last_step(config, state):
        return quasi_newton.direction(state.history).reshape(state.gradient.shape), 0, state.choice
    precondition = functools.partial(quasi_newton.apply_inverse, problem, state.history)
    tolerance = _sufficient_residual(problem, config, state)
    step = newton.solve_system(problem, state.point, state.gradient, tolerance, precondition)
    return step.d, step.products, state.choice


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

    It converges quadratically: it multiplies the gap's estimate by about the distance from the
    optimum relative to the objective, most of which the last step has covered. Where C is large,
    the estimate is far above the distance, and then many steps would be left.
    """
    target, size = _target(config, state), abs(state.point.value)
    many_are_left = state.estimate > LAST_STEP * target
    expected = LAST_STEP_ERROR * state.estimate * state.decrement
    return many_are_left and 0 < expected <= target * size


def _tolerance(problem: HostProblem, config: SolverConfig, state: _State) -> float:
    """Return the residual that the Newton system may leave, as in `solvers.driver`."""
    size, norm = abs(state.point.value), float(np.linalg.norm(state.gradient))
    distance = np.sqrt(state.estimate / max(size, np.finfo(float).tiny))
    forcing = min(np.sqrt(norm / state.first_norm), 0.5 * distance)
    loose = np.clip(forcing, MIN_FORCING, MAX_FORCING) * norm
    enough = _sufficient_residual(problem, config, state)
    return float(max(loose, min(enough, MAX_FORCING * norm)))


def _sufficient_residual(problem: HostProblem, config: SolverConfig, state: _State) -> float:
    """Return the residual of a Newton system that its step may leave in the last gradient."""
    size = abs(state.point.value)
    return float(0.8 * np.sqrt(2 * problem.l2 * config.gap * state.trust * size))


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
    done = state.estimate <= _target(config, state)
    if not (done or not np.isfinite(value) or _is_separated(lane.reduced, state.point)):
        return None, None
    found = _certify(lane, config, state)
    return found, _status(lane, config, state, found)


def _certify(lane: Lane, config: SolverConfig, state: _State) -> certificate.Certificate:
    """Return the certificate in the user's coordinates."""
    theta = lane.coordinates.expand(state.point.theta)
    goal = config.gap * abs(state.point.value)
    return certificate.certify(lane.original, theta, goal, np.dtype(config.dtype))


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
