r"""A line search along a direction, as in `solvers.line_search`, for one lane on the host."""

import numpy as np

from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.problem import EPS, HostProblem, Point
from jaxsoftmax.solvers.limits import MAX_SLOPE_RATIO, MAX_TRIALS


def minimize_along(
    problem: HostProblem,
    point: Point,
    d: np.ndarray,
    dz: np.ndarray,
    g: np.ndarray,
    *,
    slope_ratio: float = MAX_SLOPE_RATIO,
) -> Point:
    """Return the point at t d with |F'(t)| <= slope_ratio |F'(0)| and F(t) <= F(0).

    The step t = 1 is tried first, then Newton's steps in t within a bracket, or bisections. The
    point itself is returned if d does not descend, or if MAX_TRIALS find no such step. `dz` are the
    scores of d, and `g` is the gradient at the point.
    """
    first_slope = float(np.vdot(g, d))
    if not first_slope < 0:
        return point
    dw = problems.weight_part(problem, d)
    ridge = problem.l2 * float(np.vdot(dw, dw))
    highest = point.value + 4 * EPS * abs(point.value)
    step, low, high = 1.0, 0.0, np.inf
    for _ in range(MAX_TRIALS):
        change = (d, dz) if step == 1 else (step * d, step * dz)
        trial = problems.point_at(problem, point.theta + change[0], point.scores + change[1])
        slope = _slope(problem, trial, d, dz)
        if abs(slope) <= slope_ratio * -first_slope and trial.value <= highest:
            return trial
        low, high = (step, high) if slope < 0 else (low, step)
        curvature = problems.directional_curvature(problem, trial, dz) + ridge
        step = _next_step(step, low, high, step - slope / curvature if curvature else np.nan)
    return point


def _slope(problem: HostProblem, point: Point, d: np.ndarray, dz: np.ndarray) -> float:
    """Return F'(t)."""
    w, dw = problems.weight_part(problem, point.theta), problems.weight_part(problem, d)
    return float(np.vdot(point.pull, dz) + problem.l2 * np.vdot(w, dw))


def _next_step(step: float, low: float, high: float, newton: float) -> float:
    """Return Newton's step in t if it is within the bracket, else a bisection."""
    if low < newton < high and newton <= 4 * step:
        return newton
    return 4 * step if np.isinf(high) else 0.5 * (low + high)
