r"""The smooth problem of one lane in float64 on the host.

    F(w, b) = sum_i s_i l(w x_i + b, y_i) + l2 / 2 ||w||^2,    sum_i s_i = 1,

as in `solvers.problem`, with parameters `theta: [K, P]`: P is D + 1 with the intercept last, or D
without one. Arrays of examples have the examples innermost, where NumPy's loops are long. Every
class has examples: those without any have left the problem.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.solvers.host import products
from jaxsoftmax.solvers.outcome import Link

EPS = float(np.finfo(float).eps)


class HostProblem(NamedTuple):
    """Arrays that define the problem."""

    columns: np.ndarray  # x', with a last row of ones if there is an intercept: [P, N]
    targets: np.ndarray  # softmax: integers [N] or distributions [K, N]; sigmoid: [K, N]
    weights: np.ndarray  # s, positive: [N]
    l2: float
    link: Link
    intercept: bool
    column_max_abs: np.ndarray  # of the user's features, or a bound within a factor of 3: [D]
    implied: bool = False  # whether the columns are without the row of ones: [D, N]


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """Parameters, and what follows from their scores without a product with the features."""

    theta: np.ndarray  # [K, P]
    scores: np.ndarray  # z: [K, N]
    value: float  # F
    residual: np.ndarray  # p - t, accurate relative to each entry: [K, N]
    pull: np.ndarray  # s (p - t): [K, N]
    probability: np.ndarray  # p: [K, N]
    lead: np.ndarray | None  # of a softmax, 1.0 where the score is the greatest: [K, N]
    rest: np.ndarray  # 1 - p where p is a softmax's greatest, [N], or a sigmoid, [K, N]

    @functools.cached_property
    def complement(self) -> np.ndarray:
        """1 - p, as accurate relative to each entry: [K, N]. Steps of BFGS never use it."""
        if self.lead is None:
            return self.rest
        return np.where(self.lead, self.rest, 1 - self.probability)


def point_at(problem: HostProblem, theta: np.ndarray, scores: np.ndarray | None = None) -> Point:
    """Return the point at theta; scores that are known save a product."""
    z = scores_of(problem, theta) if scores is None else scores
    if problem.link == "sigmoid":
        loss, residual, *others = _sigmoid(z, problem.targets)
    else:
        loss, residual, *others = _softmax(z, problem.targets)
    w = weight_part(problem, theta)
    value = problem.weights @ loss + 0.5 * problem.l2 * np.vdot(w, w)
    return Point(theta, z, float(value), residual, problem.weights * residual, *others)


def weight_part(problem: HostProblem, theta: np.ndarray) -> np.ndarray:
    """Return the weights without the intercepts, `[K, D]`, a view."""
    return theta[:, :-1] if problem.intercept else theta


def _softmax(z: np.ndarray, targets: np.ndarray) -> tuple[Any, ...]:
    """Return the losses `[N]`, p - t, p, where z is the greatest, and 1 - p there `[N]`.

    With e = exp(z - max z), p is e / (1 + o), and 1 - p is o / (1 + o) where e is 1, for the sum o
    of e without the greatest term: nothing cancels.
    """
    shifted = z - z.max(0)
    greatest = shifted == 0
    lead = greatest.astype(float)
    p = np.exp(shifted)
    others = (p - lead).sum(0)
    if np.count_nonzero(greatest) > z.shape[1]:  # all greatest terms but one count as others
        others += lead.sum(0) - 1
    total = 1 + others
    p /= total
    rest = others / total
    if targets.ndim == 2:
        target_score = np.sum(targets * np.where(targets == 0, 0, shifted), 0)
        residual = _difference(targets, p, np.where(greatest, rest, 1 - p))
    else:
        at = targets * z.shape[1] + np.arange(z.shape[1])
        target_score, residual = shifted.take(at), p.copy()
        residual.put(at, -np.where(target_score == 0, rest, 1 - p.take(at)))
    return np.log1p(others) - target_score, residual, p, lead, rest


def _sigmoid(z: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
    """Return the losses summed over the labels, p - t, p, None and 1 - p."""
    e = np.exp(-np.abs(z))
    larger = 1 / (1 + e)
    smaller = e * larger
    positive = z > 0
    p, complement = np.where(positive, larger, smaller), np.where(positive, smaller, larger)
    loss = np.log1p(e) + t * np.maximum(-z, 0) + (1 - t) * np.maximum(z, 0)
    return loss.sum(0), _difference(t, p, complement), p, None, complement


def _difference(targets: np.ndarray, p: np.ndarray, complement: np.ndarray) -> np.ndarray:
    """Return p - t as p (1 - t) - t (1 - p), which does not cancel for targets of 0 and 1."""
    return p * (1 - targets) - targets * complement


def gradient(problem: HostProblem, point: Point) -> np.ndarray:
    """Return the gradient of F, `[K, P]`."""
    return add_ridge(problem, pull_back(problem, point.pull), point.theta)


def pull_back(problem: HostProblem, r: np.ndarray) -> np.ndarray:
    """Return sum_i r_ki x_i', `[K, P]`, for r `[K, N]`."""
    g = products.apply_transpose(problem.columns, r)
    return np.concatenate([g, r.sum(1, keepdims=True)], 1) if problem.implied else g


def scores_of(problem: HostProblem, v: np.ndarray) -> np.ndarray:
    """Return v x', `[K, N]`, for v `[K, P]`."""
    if problem.implied:
        return products.apply(problem.columns, v[:, :-1]) + v[:, -1:]
    return products.apply(problem.columns, v)


def add_ridge(problem: HostProblem, a: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Add l2 w to the weights of `a`, in place, and return it."""
    weight_part(problem, a)[:] += problem.l2 * weight_part(problem, theta)
    return a


def hessian_product(problem: HostProblem, point: Point, v: np.ndarray) -> np.ndarray:
    """Return the Hessian times v, `[K, P]`."""
    u = scores_hessian_product(problem, point, scores_of(problem, v))
    u *= problem.weights
    return add_ridge(problem, pull_back(problem, u), v)


def scores_hessian_product(problem: HostProblem, point: Point, u: np.ndarray) -> np.ndarray:
    """Return the Hessian of each example's loss in its scores times u, `[K, N]`."""
    p = point.probability
    if point.lead is None:
        return p * point.complement * u
    # Relative to the leading class, the terms that a confident example has left are small.
    u = u - np.einsum("kn,kn->n", point.lead, u)
    u -= np.einsum("kn,kn->n", p, u)
    u *= p
    return u


def directional_curvature(problem: HostProblem, point: Point, u: np.ndarray) -> float:
    """Return u' H u of the Hessian in the scores."""
    return float(np.vdot(problem.weights * u, scores_hessian_product(problem, point, u)))
