r"""The certificate of `solvers.certificate` for one lane on the host, with an l2 penalty.

    F(w, b) - min F <= sum_i s_i KL(q_i || p_i) + 1 / (2 l2) ||G + l2 w||^2

for any probabilities q that meet the intercept's condition sum_i s_i (q_i - y_i) = 0, and G =
sum_i s_i (q_i - y_i) x_i'. q is what the last Newton step expected, see `expectation`, or the
prediction p of a predictor, tilted by the next Newton step beta of its intercepts, q =
p (1 + beta - p beta), which meets the condition exactly; what rounding or a step that is too long
leaves is met by moving probability between the outcomes. All arithmetic is in the user's own
coordinates, at the parameters that are returned.
"""

from typing import NamedTuple

import numpy as np

from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.expectation import Expectation
from jaxsoftmax.solvers.host.problem import EPS, HostProblem, Point
from jaxsoftmax.solvers.limits import MAX_INTERCEPT_DECREMENT, MAX_INTERCEPT_STEPS, MAX_ROUNDING

MAX_LOSS = 0.9  # share of a probability that an expectation may take away


class Certificate(NamedTuple):
    """Parameters with the best intercept for their weights, and what is proven about them."""

    theta: np.ndarray  # [K, P], rounded to the dtype that was asked for
    value: float  # F
    gap: float  # bound on F - min F, inf without a penalty
    floor: float  # by how much rounding may have changed the gap
    gradient_norm: float
    products: int


class _Predictions(NamedTuple):
    """q, and q - y with the relative accuracy of its terms, by outcome: [O, M, N].

    The K classes of a softmax are outcomes and M is 1; sigmoids have two outcomes and M is K.
    """

    log_q: np.ndarray
    difference: np.ndarray


def certify(
    problem: HostProblem,
    theta: np.ndarray,
    goal: float,
    dtype: np.dtype,
    expected: Expectation | None = None,
) -> Certificate:
    """Bound F at theta rounded to dtype.

    The bound is that of the predictions which the last step expected, if they are given and it
    reaches the goal. Else it is that of theta's own predictions, or better. If it is above the
    goal, as the intercepts alone may tell beforehand, they are replaced by the best ones for the
    rounded weights. If these miss it too, the smallest bound counts.
    """
    if expected is None or problem.l2 == 0:
        return _certify_own(problem, theta, goal, dtype)
    point = problems.point_at(problem, theta.astype(dtype).astype(float))
    q = _expected_predictions(problem, expected)
    found = _bound(problem, point, q, _predictions(problem, point).log_q, 2)
    if found.gap <= goal:
        return found
    own = _certify_own(problem, theta, goal, dtype)
    best = own if own.gap < found.gap else found
    return best._replace(products=found.products + own.products)


def _certify_own(
    problem: HostProblem, theta: np.ndarray, goal: float, dtype: np.dtype
) -> Certificate:
    """Bound F at theta rounded to dtype by its own predictions."""
    predictor = problems.point_at(problem, theta)
    rounded = theta.astype(dtype).astype(float)
    exact = np.array_equal(rounded, theta)
    point = predictor if exact else problems.point_at(problem, rounded)
    centers = problem.intercept and problem.l2 > 0
    found, products = None, 1 if exact else 2
    if not centers or _intercept_decrement(problem, predictor) <= goal:
        products += 1
        found = _certify_point(problem, point, predictor, products)
        if found.gap <= goal or not centers:
            return found
    centered = _center_intercepts(problem, predictor)
    moved = _center_intercepts(problem, point).theta.astype(dtype).astype(float)
    other = centered if exact else problems.point_at(problem, moved)
    better = _certify_point(problem, other, centered, products + (1 if exact else 2))
    if found is None and better.gap > goal:
        better = better._replace(products=better.products + 1)
        found = _certify_point(problem, point, predictor, better.products)
    if found is None or better.gap < found.gap:
        return better
    return found._replace(products=better.products)


def _intercept_decrement(problem: HostProblem, point: Point) -> float:
    """Return about by how much the best intercepts would lower the gap, which is larger."""
    excess = point.pull.sum(1)
    return -0.5 * float(_by_class(problem, _intercept_step(problem, point, excess)) @ excess)


def _certify_point(problem: HostProblem, point: Point, predictor: Point, spent: int) -> Certificate:
    """Return the certificate at a point by the predictions of another one."""
    if problem.l2 == 0:
        norm = float(np.linalg.norm(problems.gradient(problem, point)))
        return Certificate(point.theta, point.value, np.inf, 0.0, norm, spent)
    q = own = _predictions(problem, predictor)
    if problem.intercept:
        beta = _intercept_step(problem, predictor, predictor.pull.sum(1))
        q = _meet_intercept_condition(problem, q, beta)
    log_p = own.log_q if point is predictor else _predictions(problem, point).log_q
    return _bound(problem, point, q, log_p, spent)


def _bound(
    problem: HostProblem, point: Point, q: _Predictions, log_p: np.ndarray, spent: int
) -> Certificate:
    """Return the certificate at a point by predictions that meet the intercept's condition."""
    pull = problem.weights * q.difference
    own = pull[:, 0] if problem.link == "softmax" else pull[0]
    both = problems.pull_back(problem, np.concatenate([own, point.pull]))
    g, gradient = (problems.add_ridge(problem, each, point.theta) for each in np.split(both, 2))
    slope = problems.weight_part(problem, g)
    gap = _divergence(problem.weights, q.log_q, log_p) + float(np.sum(slope**2)) / (2 * problem.l2)
    floor = _rounding_floor(problem, point, pull)
    norm = float(np.linalg.norm(gradient))
    return Certificate(point.theta, point.value, gap, floor, norm, spent)


def _predictions(problem: HostProblem, point: Point) -> _Predictions:
    """Return the predictions of a point."""
    z, r = point.scores, point.residual
    if problem.link == "softmax":
        shifted = z - z.max(0)
        log_p = shifted - np.log(np.exp(shifted).sum(0))
        return _Predictions(log_p[:, None], r[:, None])
    smooth = np.log1p(np.exp(-np.abs(z)))
    log_p = np.stack([np.minimum(z, 0) - smooth, np.minimum(-z, 0) - smooth])
    return _Predictions(log_p, np.stack([r, -r]))


def _expected_predictions(problem: HostProblem, expected: Expectation) -> _Predictions:
    """Return what a step expected, near it where that does not meet the conditions.

    A step of the intercepts removes the excess that Newton's system was left with. Of an example
    where the expectations are no probabilities, a part of the step is taken.
    """
    point, change = expected.point, expected.change
    if problem.intercept:
        excess = (point.residual + change) @ problem.weights
        beta = _by_class(problem, _intercept_step(problem, point, excess))[:, None]
        change = change + problems.scores_hessian_product(problem, point, beta)
    p, difference = point.probability[:, None], point.residual[:, None]
    change = change[:, None]
    if problem.link == "sigmoid":
        p = np.stack([point.probability, point.complement])
        change, difference = (np.stack([a[:, 0], -a[:, 0]]) for a in (change, difference))
    tilt = np.divide(change, p, out=np.zeros_like(p), where=p > 0)
    loss = -tilt.min(0)
    share = np.where(loss > MAX_LOSS, MAX_LOSS / loss, 1)
    q = _Predictions(np.log(p) + np.log1p(share * tilt), difference + share * change)
    return _remove_excess(problem, q) if problem.intercept else q


def _intercept_step(problem: HostProblem, point: Point, excess: np.ndarray) -> np.ndarray:
    """Return Newton's step of the intercepts by outcome, `[O, M, 1]`, for their gradient `[K]`."""
    s, p = problem.weights, point.probability
    if problem.link == "sigmoid":
        beta = -excess / ((p * point.complement) @ s + EPS)
        return np.stack([beta, np.zeros_like(beta)])[..., None]
    hessian = -(p * s) @ p.T
    np.fill_diagonal(hessian, 0)
    # The Hessian's rows sum to 0, and this sum of the others is without cancellation.
    np.fill_diagonal(hessian, EPS - hessian.sum(1))
    # Equal shifts of all classes change nothing: the added constant makes that direction stiff.
    hessian += np.trace(hessian) / len(p) ** 2
    beta = np.linalg.solve(hessian, -excess)
    return np.where(np.isfinite(beta), beta, 0)[:, None, None]


def _by_class(problem: HostProblem, step: np.ndarray) -> np.ndarray:
    """Return a step of the intercepts by outcome, `[O, M, 1]`, as one by class, `[K]`."""
    return step[:, 0, 0] if problem.link == "softmax" else step[0, :, 0]


def _center_intercepts(problem: HostProblem, point: Point) -> Point:
    """Return the point after Newton's steps of its intercepts."""
    for _ in range(MAX_INTERCEPT_STEPS):
        excess = point.pull.sum(1)
        beta = _by_class(problem, _intercept_step(problem, point, excess))
        if -beta @ excess <= MAX_INTERCEPT_DECREMENT * abs(point.value):
            break
        b = np.clip(beta, -1, 1)[:, None]
        theta = point.theta.copy()
        theta[:, -1:] += b
        point = problems.point_at(problem, theta, point.scores + b)
    return point


def _meet_intercept_condition(
    problem: HostProblem, predictions: _Predictions, beta: np.ndarray
) -> _Predictions:
    """Return predictions with sum_i s_i (q_i - y_i) = 0, near those given."""
    log_q, difference = predictions
    q = np.exp(log_q)
    tilt = beta - np.sum(q * beta, 0)
    # Where Newton's method is still far, a longer step than half would not leave probabilities.
    largest = np.abs(tilt).max(axis=(0, 2), keepdims=True)
    tilt *= np.minimum(1, 0.5 / np.where(largest > 0, largest, 1))
    return _remove_excess(problem, _Predictions(log_q + np.log1p(tilt), difference + q * tilt))


def _remove_excess(problem: HostProblem, given: _Predictions) -> _Predictions:
    """Return predictions with sum_i s_i (q_i - y_i) = 0, up to rounding."""
    excess = given.difference @ problem.weights
    if np.all(np.abs(excess) <= MAX_ROUNDING * EPS):
        return given
    return _move_excess(problem.weights, given, excess[..., None])


def _move_excess(s: np.ndarray, given: _Predictions, excess: np.ndarray) -> _Predictions:
    """Return predictions after probability has moved from outcomes with too much to the others."""
    q = np.exp(given.log_q)
    over, under = np.maximum(excess, 0), np.maximum(-excess, 0)
    mass = (q @ s)[..., None]
    loss = np.where(over > 0, over / np.where(mass > 0, mass, 1), 0)
    moved = np.sum(loss * q, 0)
    total = under.sum(0)
    gain = moved * (under / np.where(total > 0, total, 1))
    log_gained = np.logaddexp(given.log_q, np.log(gain))
    log_q = np.where(gain > 0, log_gained, given.log_q + np.log1p(-loss))
    return _Predictions(log_q, given.difference + gain - loss * q)


def _divergence(s: np.ndarray, log_q: np.ndarray, log_p: np.ndarray) -> float:
    """Return sum_i s_i KL(q_i || p_i) as a sum of terms q log(q / p) - q + p, none negative."""
    p, q = np.exp(log_p), np.exp(log_q)
    d = np.where(q > 0, log_q - log_p, 0)
    large = np.abs(d) >= 0.01
    terms = 0.5 + d * (1 / 3 + d * (1 / 8 + d * (1 / 30 + d * (1 / 144 + d / 840))))
    terms *= p * d * d
    terms[large] = (q * d - q + p)[large]
    return float(np.sum(np.where(q > 0, terms, p) @ s))


def _rounding_floor(problem: HostProblem, point: Point, difference: np.ndarray) -> float:
    """Return an estimate of what rounding may have done to the gap; see `solvers.certificate`."""
    w = problems.weight_part(problem, point.theta)
    terms = np.sum(np.abs(difference).sum(-1) ** 2) * np.sum(problem.column_max_abs**2)
    terms += problem.l2**2 * np.sum(w**2)
    violation = np.abs(difference.sum(-1)).sum() if problem.intercept else 0.0
    intercept_size = 1 + np.abs(point.theta[:, -1]).max(initial=0)
    return float(
        4 * EPS**2 * terms / problem.l2 + 4 * EPS * abs(point.value) + violation * intercept_size
    )
