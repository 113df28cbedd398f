r"""The sharper preconditioner: an inverse for each class, of the curvature where the lane stands.

The Hessian's block of class k is H_k = sum_i h_ik (x_i, 1)'(x_i, 1) + l2 with h_ik = s_i p_ik
(1 - p_ik): not every example counts alike, as in the Gram matrix, but those near a boundary of the
class. It is estimated from examples drawn with probabilities that grow with their curvature, each
weighted by one over its probability, and inverted. Of a softmax the blocks know nothing of the
other classes; but moving all classes by the same u changes no probability, so that the Hessian
maps it to l2 u, exactly. With P the projection on what sums to zero over the classes,

    M = P diag(H_1^-1, ..., H_K^-1) P + (1 - P) / l2.

Near the optimum of Fashion-MNIST (C = 1) the Gram matrix needs 430 Hessian products to reduce a
residual a hundredfold, and this needs 48; without P it never does in float32. It costs as much as
`price` products, and so it is made where as many have been spent.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from jax import Array, lax

from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.sparse import Sparse

WIDEST = 2048  # features: inverses of more take longer than they save
ROWS = 5  # examples per feature, and at least LEAST, that a block is estimated from
LEAST = 4096
DRAWN = 0.9  # of the probability by which an example is drawn, what goes by its curvature


class Blocks(NamedTuple):
    """The inverses, and which classes have examples."""

    inverse: Array  # [L, K, D + 1, D + 1]
    present: Array  # [L, K], 1 or 0


def price(problem: problems.Problem, lanes: int, classes: int, memory: int) -> float:
    """What `build` takes, in passes over all the features; inf where it cannot be done."""
    if isinstance(problem.features, Sparse):
        return np.inf
    n, d = problem.features.shape
    if d > WIDEST or lanes * classes * problem.features.dtype.itemsize * (d + 1) ** 2 > memory:
        return np.inf
    return d * (_size(n, d) + 2 * d) / n


def build(problem: problems.Problem, head: problems.Head, mass: Array) -> Blocks | None:
    """The blocks at these probabilities; None where one is not positive definite."""
    assert not isinstance(problem.features, Sparse)
    curvature, importance, present = _curvature(problem, head, mass)
    rng = np.random.default_rng(0)
    found = []
    for lane, weight in enumerate(np.asarray(importance, np.float64)):
        rows, scale = _drawn(rng, weight, np.asarray(problem.weights[lane], np.float64),
                             _size(*problem.features.shape))  # fmt: skip
        grams = _grams(problem.features, curvature[lane], rows, scale)
        inverses = _inverses(np.array(grams, np.float64), float(problem.l2[lane]))
        if inverses is None:
            return None
        found.append(inverses.astype(problem.features.dtype))
    return Blocks(jnp.asarray(np.stack(found)), present)


def apply(blocks: Blocks, head: problems.Head, l2: Array, r: Array) -> Array:
    """M r, `[L, K, D + 1]`."""
    product = partial(jnp.einsum, "lkde,lke->lkd", precision=lax.Precision.HIGHEST)
    if head == "sigmoid":
        return product(blocks.inverse, r)
    shared = _mean(blocks, r)
    z = product(blocks.inverse, r - shared)
    l2 = l2.astype(r.dtype)[:, None, None]
    across = jnp.where(l2 > 0, shared / jnp.where(l2 > 0, l2, 1), 0).at[..., -1].set(0)
    return z - _mean(blocks, z) + across


def _mean(blocks: Blocks, r: Array) -> Array:
    """The mean over the classes that have examples, for each of them."""
    there = blocks.present[..., None]
    # Where every example is certain to the last bit, no class has any curvature left.
    count = jnp.maximum(there.sum(1, keepdims=True), 1)
    return there * (there * r).sum(1, keepdims=True) / count


def _size(n: int, d: int) -> int:
    return min(n, max(LEAST, ROWS * d))


@jax.jit(static_argnames="head")
def _curvature(
    problem: problems.Problem, head: problems.Head, mass: Array
) -> tuple[Array, Array, Array]:
    """h `[L, K, N]`, its sum over the classes, and which classes have any."""
    each = mass * (1 - mass) if head == "softmax" else mass
    h = problem.weights.astype(mass.dtype)[:, None] * each
    return h, h.sum(1), (h.max(2) > 0).astype(problem.features.dtype)


def _drawn(
    rng: np.random.Generator, weight: np.ndarray, s: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which examples stand for all, and for how many each of them stands."""
    n = len(weight)
    if size == n or not weight.sum() > 0:
        return np.arange(size), np.ones(size)
    chance = DRAWN * weight / weight.sum() + (1 - DRAWN) * s / s.sum()
    rows = np.sort(rng.choice(n, size, p=chance / chance.sum()))
    return rows, 1 / (size * chance[rows])


@jax.jit
def _grams(features: Array, curvature: Array, rows: Array, scale: Array) -> Array:
    """The block of each class without the penalty, `[K, D + 1, D + 1]`."""
    x = jnp.concatenate([features[rows], jnp.ones((len(rows), 1), features.dtype)], 1)

    def gram(h: Array) -> Array:
        return jnp.dot((x * h[:, None]).T, x, precision=lax.Precision.HIGHEST)

    return lax.map(gram, (curvature[:, rows] * scale).astype(features.dtype))


def _inverses(grams: np.ndarray, l2: float) -> np.ndarray | None:
    """Inverses in float64, by Cholesky's factors of what is scaled to a diagonal of ones."""
    grams[:, range(grams.shape[1] - 1), range(grams.shape[1] - 1)] += l2
    for a in grams:
        size = np.sqrt(np.where(np.diag(a) > 0, np.diag(a), 1))
        a /= size[:, None] * size
        # The sums were rounded to float32, and a column may be another's multiple.
        a[np.diag_indices_from(a)] += 32 * np.finfo(np.float32).eps
        factor, bad = scipy.linalg.lapack.dpotrf(a, lower=1)
        if bad:
            return None
        lower = np.tril(scipy.linalg.lapack.dpotri(factor, lower=1)[0])
        a[:] = (lower + np.tril(lower, -1).T) / (size[:, None] * size)
    return grams
