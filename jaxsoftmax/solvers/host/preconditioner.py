r"""Approximate inverses of the Hessian at a point, each more exact and more expensive.

SHARED  one block for all classes, sum_i h_i x_i x_i' + l2, with h_i the mean curvature of the
        classes. It is the Hessian of two classes, of one sigmoid, and of any softmax where all
        probabilities are equal, as they are at the start.
BLOCKS  a block for each class, with h_ik = s_i p_ik (1 - p_ik): the Hessian of sigmoids.
FULL    the Hessian of a softmax in all unknowns. Moving all classes by the same u changes no
        probability, so that it maps u to l2 u. What is left are the parameters relative to those
        of one class, the reference: K - 1 blocks of unknowns, with the penalty l2 (1 - 11' / K).

All are factorized by Cholesky's method after scaling to a unit diagonal. Those of a softmax act on
parameters that sum to zero over the classes, and 1 / l2 on what all classes have in common:

    M = P F^-1 P + (1 - P) / l2.
"""

import enum
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack  # type: ignore[import-untyped]

from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host import products
from jaxsoftmax.solvers.host.problem import HostProblem, Point

# Seconds, of one core: an overhead of any step, an entry of the scores, and a multiplication with
# an addition in a product of matrices; only their ratios matter.
OVERHEAD, ENTRY, FLOP = 5e-5, 4e-9, 6e-11
MAX_PAIRED_COLUMNS = 40  # up to here the products of all pairs of columns are formed
CHUNK_ENTRIES = 2**20  # of products of columns that are formed at a time


class Level(enum.IntEnum):
    """How much of the Hessian a preconditioner knows."""

    SHARED = 0
    BLOCKS = 1
    FULL = 2


class Factor(NamedTuple):
    """A Cholesky factor of a symmetric matrix scaled to a unit diagonal."""

    upper: np.ndarray
    scale: np.ndarray  # one over the root of the diagonal

    def solve(self, r: np.ndarray) -> np.ndarray:
        """Return the inverse times r, `[..., n]`."""
        scaled = (self.scale * r).reshape(-1, len(self.scale))
        return self.scale * lapack.dpotrs(self.upper, scaled.T, lower=0)[0].T.reshape(r.shape)


class Preconditioner(NamedTuple):
    """A factorized approximation of the Hessian."""

    level: Level
    factors: list[Factor]
    reference: int  # the class that the others are relative to, of Level.FULL


def levels(problem: HostProblem, classes: int, memory: int) -> list[Level]:
    """Return the levels that `memory` allows and that are worth their cost, cheapest first."""
    known = [level for level in Level if level <= exact_level(problem, classes)]
    fitting = [level for level in known if num_bytes(problem, classes, level) <= memory]
    kept: list[Level] = []
    for level in reversed(fitting):
        if not kept or seconds(problem, classes, level) < 0.5 * seconds(problem, classes, kept[0]):
            kept.insert(0, level)
    return kept


def exact_level(problem: HostProblem, classes: int) -> Level:
    """Return the level that is the Hessian itself."""
    if problem.link == "sigmoid":
        return Level.BLOCKS if classes > 1 else Level.SHARED
    return Level.FULL if classes > 2 else Level.SHARED


def num_bytes(problem: HostProblem, classes: int, level: Level) -> int:
    """Return the bytes of the matrices and of one temporary copy."""
    p = len(problem.columns)
    entries = {Level.SHARED: p**2, Level.BLOCKS: classes * p**2, Level.FULL: (classes * p) ** 2}
    return 2 * 8 * entries[level]


def seconds(problem: HostProblem, classes: int, level: Level) -> float:
    """Return an estimate of the time to build a preconditioner."""
    p, n = problem.columns.shape
    blocks = {Level.SHARED: 1, Level.BLOCKS: classes, Level.FULL: classes * (classes - 1) // 2}[
        level
    ]
    size = (classes - 1) * p if level == Level.FULL else p
    factors = classes if level == Level.BLOCKS else 1
    paired = _uses_pairs(p, blocks)
    grams = (
        n * blocks * (ENTRY + p**2 * FLOP * (0.5 if paired else 1) + (0 if paired else p * 4e-10))
    )
    return OVERHEAD * (1 + blocks / 10) + grams + factors * size**3 / 3 * FLOP


def product_seconds(problem: HostProblem, classes: int) -> float:
    """Return an estimate of the time of one Hessian product."""
    p, n = problem.columns.shape
    return OVERHEAD + n * classes * (ENTRY + 2 * p * FLOP)


def build(problem: HostProblem, point: Point, level: Level) -> Preconditioner:
    """Return the preconditioner at a point."""
    s, p, complement = problem.weights, point.probability, point.complement
    match level:
        case Level.SHARED:
            h = (p * complement).sum(0, keepdims=True)
            h /= max(1, len(p) - 1) if problem.link == "softmax" else len(p)
            matrices = _add_penalty(problem, _grams(problem.columns, s * h))
        case Level.BLOCKS:
            matrices = _add_penalty(problem, _grams(problem.columns, s * (p * complement)))
        case Level.FULL:
            reference = int(np.argmax((p * complement) @ s))
            return Preconditioner(level, [factorize(_full(problem, point, reference))], reference)
    return Preconditioner(level, [factorize(a) for a in matrices], 0)


def apply(problem: HostProblem, preconditioner: Preconditioner, r: np.ndarray) -> np.ndarray:
    """Return M r, `[K, P]`."""
    if problem.link == "sigmoid":
        return _solve(preconditioner, r)
    shared = r.mean(0)
    z = _solve(preconditioner, r - shared)
    z -= z.mean(0)
    if problem.l2 > 0:
        weights = problems.weight_part(problem, z)
        weights += shared[: weights.shape[1]] / problem.l2
    return z


def _solve(preconditioner: Preconditioner, r: np.ndarray) -> np.ndarray:
    """Return F^-1 r, where parameters relative to a class are 0 for that class."""
    factors = preconditioner.factors
    if preconditioner.level == Level.BLOCKS:
        return np.stack([factor.solve(row) for factor, row in zip(factors, r, strict=True)])
    if preconditioner.level == Level.SHARED:
        return factors[0].solve(r)
    others = np.delete(r, preconditioner.reference, 0)
    solved = factors[0].solve(others.ravel()).reshape(others.shape)
    return np.insert(solved, preconditioner.reference, 0, 0)


def _full(problem: HostProblem, point: Point, reference: int) -> np.ndarray:
    """Return the Hessian in the parameters relative to the reference class, `[(K - 1) P] * 2`."""
    p, complement = (np.delete(a, reference, 0) for a in (point.probability, point.complement))
    classes, size = len(p), len(problem.columns)
    first, second = np.tril_indices(classes)
    same = (first == second)[:, None]
    # Each block is a sum of terms of one sign, in which nothing cancels.
    h = p[first] * np.where(same, complement[first], p[second])
    blocks = _grams(problem.columns, problem.weights * h)
    blocks[first != second] *= -1
    ridge = np.arange(size - problem.intercept)
    blocks[:, ridge, ridge] += problem.l2 * (same - 1 / (classes + 1))
    full = np.empty((classes, size, classes, size))
    full[first, :, second] = blocks
    full[second, :, first] = blocks
    return full.reshape(classes * size, -1)


def _grams(columns: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Return sum_i h_mi x_i x_i', `[M, P, P]`."""
    if not _uses_pairs(len(columns), len(h)):
        return np.stack([products.gram(columns, row) for row in h])
    first, second = np.tril_indices(len(columns))
    chunk = max(1, CHUNK_ENTRIES // (len(first) + len(h)))
    sums = np.zeros((len(h), len(first)))
    for start in range(0, columns.shape[1], chunk):
        x = columns[:, start : start + chunk]
        sums += h[:, start : start + chunk] @ (x[first] * x[second]).T
    grams = np.empty((len(h), len(columns), len(columns)))
    grams[:, first, second] = sums
    grams[:, second, first] = sums
    return grams


def _uses_pairs(columns: int, blocks: int) -> bool:
    """Return whether one product with all pairs of columns is faster than one for each block."""
    return columns <= MAX_PAIRED_COLUMNS and blocks > 4


def _add_penalty(problem: HostProblem, grams: np.ndarray) -> np.ndarray:
    ridge = np.arange(len(problem.columns) - problem.intercept)
    grams[:, ridge, ridge] += problem.l2
    return grams


def factorize(a: np.ndarray) -> Factor:
    """Return the factor of a symmetric matrix, which is overwritten.

    Where rounding has left it not positive definite, its diagonal is raised by as little as helps.
    """
    diagonal = np.diagonal(a)
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1))
    a *= scale[:, None]
    a *= scale
    on_diagonal = np.diag_indices_from(a)
    raised = np.finfo(float).eps
    while True:
        upper, failed = lapack.dpotrf(a.T, lower=0, clean=0)
        if not failed:
            return Factor(upper, scale)
        a[on_diagonal] = 1 + raised * len(a)
        raised *= 100
