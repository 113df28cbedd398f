r"""The smooth problem of one lane in float64 on the host.

    F(w, b) = sum_i s_i l(w x_i + b, y_i) + l2 / 2 ||w||^2,    sum_i s_i = 1,

as in `solvers.problem`, with parameters `theta: [K, P]`: P is D + 1 with the intercept last, or D
without one. Arrays of examples have the examples innermost, where NumPy's loops are long. Every
class has examples: those without any have left the problem.
"""

from typing import NamedTuple

import numpy as np

from jaxsoftmax.solvers.host import products
from jaxsoftmax.solvers.problem import Link


class HostProblem(NamedTuple):
    """Arrays that define the problem."""

    columns: np.ndarray  # x', with a last row of ones if there is an intercept: [P, N]
    targets: np.ndarray  # softmax: integers [N] or distributions [K, N]; sigmoid: [K, N]
    weights: np.ndarray  # s, positive: [N]
    l2: float
    link: Link
    intercept: bool


class Point(NamedTuple):
    """Parameters, and what follows from their scores without a product with the features."""

    theta: np.ndarray  # [K, P]
    scores: np.ndarray  # z: [K, N]
    value: float  # F
    residual: np.ndarray  # p - t, accurate relative to each entry: [K, N]
    probability: np.ndarray  # p: [K, N]
    complement: np.ndarray  # 1 - p, as accurate: [K, N]
    lead: np.ndarray | None  # of a softmax, 1 where the score is the greatest, else 0: [K, N]


def point_at(problem: HostProblem, theta: np.ndarray, scores: np.ndarray | None = None) -> Point:
    """Return the point at theta; scores that are known save a product."""
    z = products.apply(problem.columns, theta) if scores is None else scores
    lead = None
    if problem.link == "sigmoid":
        loss, p, complement = _sigmoid(z, problem.targets)
    else:
        loss, p, complement, lead = _softmax(z, problem.targets)
    residual = _residual(problem.targets, p, complement)
    w = weight_part(problem, theta)
    value = problem.weights @ loss + 0.5 * problem.l2 * np.vdot(w, w)
    return Point(theta, z, float(value), residual, p, complement, lead)


def weight_part(problem: HostProblem, theta: np.ndarray) -> np.ndarray:
    """Return the weights without the intercepts, `[K, D]`, a view."""
    return theta[:, :-1] if problem.intercept else theta


def _softmax(
    z: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the losses `[N]`, p, 1 - p, and where z is the greatest.

    With e = exp(z - max z), p is e / (1 + o) and 1 - p is (1 - e + o) / (1 + o), where o is the sum
    of e without the greatest term, which is 1: nothing cancels.
    """
    shifted = z - z.max(0)
    lead = (shifted == 0).astype(float)
    p = np.exp(shifted)
    others = (p - lead).sum(0)
    if np.count_nonzero(lead) > z.shape[1]:  # all greatest terms but one count as others
        others += lead.sum(0) - 1
    complement = 1 - p
    complement += others
    total = 1 + others
    p /= total
    complement /= total
    if targets.ndim == 1:
        target_score = shifted[targets, np.arange(z.shape[1])]
    else:
        target_score = np.sum(targets * np.where(targets == 0, 0, shifted), 0)
    return np.log1p(others) - target_score, p, complement, lead


def _sigmoid(z: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the losses summed over the labels, p and 1 - p."""
    e = np.exp(-np.abs(z))
    larger, smaller = 1 / (1 + e), e / (1 + e)
    positive = z > 0
    p, complement = np.where(positive, larger, smaller), np.where(positive, smaller, larger)
    loss = np.log1p(e) + t * np.maximum(-z, 0) + (1 - t) * np.maximum(z, 0)
    return loss.sum(0), p, complement


def _residual(targets: np.ndarray, p: np.ndarray, complement: np.ndarray) -> np.ndarray:
    """Return p - t as p (1 - t) - t (1 - p), which does not cancel for targets of 0 and 1."""
    if targets.ndim == 2:
        return p * (1 - targets) - targets * complement
    residual, rows = p.copy(), np.arange(len(targets))
    residual[targets, rows] = -complement[targets, rows]
    return residual


def gradient(problem: HostProblem, point: Point) -> np.ndarray:
    """Return the gradient of F, `[K, P]`."""
    g = products.apply_transpose(problem.columns, problem.weights * point.residual)
    return add_ridge(problem, g, point.theta)


def add_ridge(problem: HostProblem, a: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Add l2 w to the weights of `a`, in place, and return it."""
    weight_part(problem, a)[:] += problem.l2 * weight_part(problem, theta)
    return a


def hessian_product(problem: HostProblem, point: Point, v: np.ndarray) -> np.ndarray:
    """Return the Hessian times v, `[K, P]`."""
    u = scores_hessian_product(problem, point, products.apply(problem.columns, v))
    u *= problem.weights
    return add_ridge(problem, products.apply_transpose(problem.columns, u), v)


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
