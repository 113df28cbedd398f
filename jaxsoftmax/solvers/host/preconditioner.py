r"""Approximate inverses of the Hessian at a point, each more exact and more expensive.

DIAGONAL  the diagonal of BLOCKS, in reduced coordinates where the columns are centered.
SHARED    one block for all classes, sum_i h_i x_i x_i' + l2, with h_i the mean curvature of the
          classes. It is the Hessian of two classes, of one sigmoid, and of any softmax where all
          probabilities are equal, as they are at the start.
BLOCKS    a block for each class, with h_ik = s_i p_ik (1 - p_ik): the Hessian of sigmoids.
FULL      the Hessian of a softmax in all unknowns. Moving all classes by the same u changes no
          probability, so that it maps u to l2 u. What is left are the parameters relative to those
          of one class, the reference: K - 1 blocks of unknowns, with the penalty l2 (1 - 11' / K).

Matrices are factorized by Cholesky's method after scaling to a unit diagonal. For a softmax, F^-1
acts on parameters that sum to zero over the classes, and 1 / l2 on what all classes share:

    M = P F^-1 P + (1 - P) / l2.

Of a gradient they share l2 times a mean, and rounding, which a very small l2 would blow up: where
l2 is far below the rounding of the Hessian, a part of that takes its place.
"""

import enum
import functools
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack  # type: ignore[import-untyped]

from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host import products
from jaxsoftmax.solvers.host.problem import HostProblem, Point

# Seconds on one core: of any step, of an entry of the scores or of a product of two columns, and
# of a multiplication in a product of matrices, and in one of which half is computed. Only their
# ratios matter; they hold within a factor of 1.5 from 9 to 500 columns.
OVERHEAD, ENTRY, MULTIPLICATION, HALVED = 5e-5, 4e-9, 5.5e-11, 2.2e-11
COLUMN = 1.4e-9
CHEAP = 4.0  # products that a preconditioner may cost to be built at each point
SOLVED = 8e-10  # of an entry of a block in a product with a vector, which is bound by memory,
CACHED, CACHE = 3e-10, 2**18  # and of one of so few entries that they stay in the cache
MAX_INVERTED = 256  # columns of matrices whose inverses pay: applied in a third of the time
# The least curvature of what all classes share, relative to the Hessian's diagonal. More would slow
# fits at C = 1e8 of columns of length 1e3, and less takes digits from the others at C = 1e300.
ROUNDING = 1e-2 * problems.EPS
MAX_COLUMNS = 20  # for each class, of a shared matrix whose inverse pays
CHUNK_ENTRIES = 2**20  # of products of columns that are formed at a time


class Level(enum.IntEnum):
    """How much of the Hessian a preconditioner knows."""

    DIAGONAL = 0
    SHARED = 1
    BLOCKS = 2
    FULL = 3


USES = 30  # of a preconditioner, about
# Products that a better preconditioner saves: a level is of use if it is cheaper by as much. With
# few rows for a column it saves hardly any, and the diagonal comes first.
SAVED = {Level.DIAGONAL: 15.0, Level.SHARED: 4.0, Level.BLOCKS: 4.0, Level.FULL: 0.0}
FEW_ROWS = 2.0
MAX_DIRECT_COST = 11.0  # of an exact one that is built without a wait: systems rarely take fewer


class Factor(NamedTuple):
    """A Cholesky factor of a symmetric matrix scaled to a unit diagonal."""

    upper: np.ndarray
    scale: np.ndarray  # one over the root of the diagonal
    exact: bool  # whether the matrix was positive definite as it was

    def solve(self, r: np.ndarray) -> np.ndarray:
        """Return the inverse times r, `[..., n]`."""
        scaled = (self.scale * r).reshape(-1, len(self.scale))
        return self.scale * lapack.dpotrs(self.upper, scaled.T, lower=0)[0].T.reshape(r.shape)

    def invert(self) -> np.ndarray:
        """Return the inverse."""
        upper = np.triu(lapack.dpotri(self.upper, lower=0)[0])
        return (upper + np.triu(upper, 1).T) * self.scale * self.scale[:, None]


class Preconditioner(NamedTuple):
    """A factorized approximation of the Hessian."""

    level: Level
    factors: list[Factor]
    diagonal: np.ndarray | None = None  # of Level.DIAGONAL: [K, P]
    others: np.ndarray | None = None  # of Level.FULL, the classes but for the reference
    inverses: np.ndarray | None = None  # of few columns: [P, P], or of Level.BLOCKS [K, P, P]
    shared: float = 0.0  # l2 or more, the curvature of what all classes share

    @property
    def exact(self) -> bool:
        """Whether every matrix was factorized as it was."""
        return all(factor.exact for factor in self.factors)


def levels(problem: HostProblem, classes: int, memory: int) -> list[Level]:
    """Return the levels that `memory` allows and that are worth their cost, cheapest first."""
    last = exact_level(problem, classes)
    kept: list[Level] = []
    for level in reversed(Level):
        if level > last or num_bytes(problem, classes, level) > memory:
            continue
        cost = seconds(problem, classes, level) + SAVED[level] * product_seconds(problem, classes)
        useful = not kept or cost < total_seconds(problem, classes, kept[0])
        if useful and (level == last or pays(problem, classes, level)):
            kept.insert(0, level)
    if Level.DIAGONAL not in kept and _begins_with_diagonal(problem, classes, kept[-1]):
        kept.insert(0, Level.DIAGONAL)
    return kept or [Level.DIAGONAL]


def _begins_with_diagonal(problem: HostProblem, classes: int, best: Level) -> bool:
    """Return whether other levels wait, though they are cheap enough: the rows are few."""
    p, n = problem.columns.shape
    direct = MAX_DIRECT_COST * product_seconds(problem, classes)
    return n <= FEW_ROWS * p and best > Level.SHARED and seconds(problem, classes, best) > direct


def pays(problem: HostProblem, classes: int, level: Level) -> bool:
    """Return whether blocks, which halve the products that SHARED needs, halve their time too."""
    product = product_seconds(problem, classes)
    blocks, shared = (
        product + solve_seconds(problem, classes, each) for each in (Level.BLOCKS, Level.SHARED)
    )
    return level != Level.BLOCKS or blocks < 2 * shared


def total_seconds(problem: HostProblem, classes: int, level: Level) -> float:
    """Return an estimate of the time to build a preconditioner and to solve with it."""
    solves = USES * solve_seconds(problem, classes, level)
    return seconds(problem, classes, level) + solves


def solve_seconds(problem: HostProblem, classes: int, level: Level) -> float:
    """Return an estimate of the time to apply a preconditioner; that of FULL is used once."""
    entries = classes * len(problem.columns) ** 2
    by_memory = SOLVED if entries > CACHE else CACHED
    rates = {Level.SHARED: 2 * MULTIPLICATION, Level.BLOCKS: by_memory}
    return entries * rates.get(level, 0.0)


def exact_level(problem: HostProblem, classes: int) -> Level:
    """Return the level that is the Hessian itself."""
    if problem.link == "sigmoid":
        return Level.BLOCKS if classes > 1 else Level.SHARED
    return Level.FULL if classes > 2 else Level.SHARED


def num_bytes(problem: HostProblem, classes: int, level: Level) -> int:
    """Return the bytes of the matrices and of one temporary copy."""
    p = len(problem.columns)
    unknowns = classes * p
    entries = {Level.DIAGONAL: unknowns, Level.SHARED: p**2, Level.BLOCKS: classes * p**2}
    return 2 * 8 * entries.get(level, unknowns**2)


def seconds(problem: HostProblem, classes: int, level: Level) -> float:
    """Return an estimate of the time to build a preconditioner."""
    p, n = problem.columns.shape
    match level:
        case Level.DIAGONAL:
            return 2 * product_seconds(problem, classes)
        case Level.SHARED:
            blocks, factors, size = 1, 1, p
        case Level.BLOCKS:
            blocks, factors, size = classes, classes, p
        case Level.FULL:
            blocks, factors, size = classes * (classes - 1) // 2, 1, (classes - 1) * p
    grams = min(_paired_seconds(p, n, blocks), _separate_seconds(p, n, blocks))
    return (
        OVERHEAD
        + n * blocks * ENTRY
        + grams
        + factors * (0.2 * OVERHEAD + size**3 / 3 * MULTIPLICATION)
    )


def _paired_seconds(columns: int, n: int, blocks: int) -> float:
    """Return the seconds to form all products of columns, and to add them up for each block."""
    pairs = columns * (columns + 1) / 2
    return n * pairs * (COLUMN + blocks * MULTIPLICATION)


def _separate_seconds(columns: int, n: int, blocks: int) -> float:
    """Return the seconds of a symmetric product for each block."""
    return blocks * (0.5 * OVERHEAD + n * columns * (COLUMN + columns * HALVED))


def product_seconds(problem: HostProblem, classes: int) -> float:
    """Return an estimate of the time of one Hessian product."""
    p, n = problem.columns.shape
    return OVERHEAD + n * classes * (ENTRY + 2 * p * MULTIPLICATION)


def build(problem: HostProblem, point: Point, level: Level) -> Preconditioner:
    """Return the preconditioner at a point."""
    built = _build(problem, point, level)
    diagonal = built.diagonal
    if diagonal is None:
        scales = [factor.scale.reshape(-1, len(problem.columns)) for factor in built.factors]
        diagonal = np.concatenate(scales) ** -2.0
    stiffest = problems.weight_part(problem, diagonal).max(initial=0)
    return built._replace(shared=max(problem.l2, ROUNDING * stiffest))


def _build(problem: HostProblem, point: Point, level: Level) -> Preconditioner:
    """Return the preconditioner, without the curvature of what all classes share."""
    h = problem.weights * (point.probability * point.complement)  # [K, N]
    match level:
        case Level.DIAGONAL:
            return Preconditioner(level, [], _diagonal(problem, h))
        case Level.SHARED:
            count = max(1, len(h) - 1) if problem.link == "softmax" else len(h)
            matrices = _add_penalty(problem, _grams(problem.columns, h.sum(0)[None] / count))
        case Level.BLOCKS:
            matrices = _add_penalty(problem, _grams(problem.columns, h))
        case Level.FULL:
            others = np.flatnonzero(np.arange(len(h)) != np.argmax(h.sum(1)))
            full = factorize(_full(problem, point, others))
            return Preconditioner(level, [full], others=others)
    factors = [factorize(a) for a in matrices]
    # The Hessian of two classes or of sigmoids ends a system at once.
    often = problem.link == "softmax" and len(h) > 2
    many = MAX_INVERTED if level == Level.BLOCKS else max(MAX_INVERTED, MAX_COLUMNS * len(h))
    if not often or len(problem.columns) > many:
        return Preconditioner(level, factors)
    inverses = [factor.invert() for factor in factors]
    return Preconditioner(
        level, factors, inverses=inverses[0] if level == Level.SHARED else np.stack(inverses)
    )


def apply(problem: HostProblem, preconditioner: Preconditioner, r: np.ndarray) -> np.ndarray:
    """Return M r, `[K, P]`."""
    if problem.link == "sigmoid":
        return _solve(preconditioner, r)
    shared = r.sum(0) / len(r)
    z = _solve(preconditioner, r - shared)
    z -= z.sum(0) / len(z)
    if problem.l2 > 0:
        weights = problems.weight_part(problem, z)
        weights += shared[: weights.shape[1]] / preconditioner.shared
    return z


def _solve(preconditioner: Preconditioner, r: np.ndarray) -> np.ndarray:
    """Return F^-1 r, where parameters relative to a class are 0 for that class."""
    factors = preconditioner.factors
    if preconditioner.diagonal is not None:
        return r / preconditioner.diagonal
    if preconditioner.inverses is not None:
        inverses = preconditioner.inverses
        return r @ inverses if inverses.ndim == 2 else np.matmul(inverses, r[..., None])[..., 0]
    if preconditioner.level == Level.BLOCKS:
        return np.stack([factor.solve(row) for factor, row in zip(factors, r, strict=True)])
    if preconditioner.others is None:
        return factors[0].solve(r)
    solved = np.zeros_like(r)
    own = r[preconditioner.others]
    solved[preconditioner.others] = factors[0].solve(own.ravel()).reshape(own.shape)
    return solved


def _diagonal(problem: HostProblem, h: np.ndarray) -> np.ndarray:
    """Return the diagonal of the blocks, `[K, P]`, at least as large as rounding makes it."""
    diagonal = products.apply_transpose_squared(problem.columns, h)
    problems.weight_part(problem, diagonal)[:] += problem.l2
    return np.maximum(diagonal, np.finfo(float).eps * diagonal.max())


def _full(problem: HostProblem, point: Point, others: np.ndarray) -> np.ndarray:
    """Return the Hessian in the parameters relative to the reference class, `[(K - 1) P] * 2`."""
    p, complement = point.probability[others], point.complement[others]
    classes, size = len(p), len(problem.columns)
    first, second = _triangle(classes)
    same = (first == second)[:, None]
    # Each block is a sum of terms of one sign, in which nothing cancels.
    h = p[first] * np.where(same, complement[first], p[second])
    h *= problem.weights
    blocks = _grams(problem.columns, h) * np.where(same, 1, -1)[..., None]
    ridge = np.arange(size - problem.intercept)
    blocks[:, ridge, ridge] += problem.l2 * (same - 1 / (classes + 1))
    full = np.empty((classes, size, classes, size))
    full[first, :, second] = blocks
    full[second, :, first] = blocks
    return full.reshape(classes * size, -1)


def _grams(columns: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Return sum_i h_mi x_i x_i', `[M, P, P]`, for h of at least 0."""
    size, blocks = len(columns), len(h)
    if h.size * size <= products.SINGLE_THREAD // 8:  # one call for all
        return np.matmul(h[:, None] * columns, columns.T)
    n = columns.shape[1]
    if _separate_seconds(size, n, blocks) <= _paired_seconds(size, n, blocks):
        return np.stack([products.gram(columns, row) for row in h])
    first, second = _triangle(size)
    chunk = max(1, CHUNK_ENTRIES // (len(first) + blocks))
    sums = np.zeros((blocks, len(first)))
    for start in range(0, n, chunk):
        x = columns[:, start : start + chunk]
        sums += h[:, start : start + chunk] @ (x[first] * x[second]).T
    grams = np.empty((blocks, size, size))
    grams[:, first, second] = sums
    grams[:, second, first] = sums
    return grams


@functools.lru_cache(16)
def _triangle(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the lower triangle of a matrix."""
    return np.tril_indices(size)


def _add_penalty(problem: HostProblem, grams: np.ndarray) -> np.ndarray:
    ridge = np.arange(len(problem.columns) - problem.intercept)
    grams[:, ridge, ridge] += problem.l2
    return grams


def factorize(a: np.ndarray) -> Factor:
    """Return the factor of a symmetric matrix, which is overwritten.

    Where rounding has left it not positive definite, its diagonal is raised by as little as helps.
    """
    diagonal = a.diagonal()
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1))
    a *= scale[:, None]
    a *= scale
    raised = 0.0
    while True:
        upper, failed = lapack.dpotrf(a.T, lower=0, clean=0)
        if not failed:
            return Factor(upper, scale, exact=raised == 0)
        raised = max(100 * raised, len(a) * np.finfo(float).eps)
        if raised > 1e6:  # numbers that are not finite
            a = np.eye(len(a))
        np.fill_diagonal(a, 1 + raised)
