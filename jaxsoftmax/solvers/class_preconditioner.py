r"""The class preconditioner: an approximate inverse Hessian for each class at the lane's point.

The Hessian's block of class k is H_k = sum_i h_ik (x_i, 1)'(x_i, 1) + l2 with h_ik = s_i p_ik
(1 - p_ik): unlike in the Gram matrix, the examples near a boundary of the class count more than the
others. It is estimated from examples drawn with probabilities that grow with their curvature, each
weighted by one over its probability, and inverted. For a softmax the blocks know nothing of the
other classes; but moving all classes by the same u changes no probability, so that the Hessian
maps it to l2 u, exactly. With P the projection onto vectors that sum to zero over the classes,

    M = P diag(H_1^-1, ..., H_K^-1) P + (1 - P) / l2.

Near the optimum of Fashion-MNIST (C = 1), reducing a residual a hundredfold takes 430 Hessian
products with the Gram matrix and 48 with this preconditioner; without P it never happens in
float32. Building it costs as much as `cost_in_products` products, so it is built once as many have
been spent.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from jax import Array, lax

from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers import row_shards
from jaxsoftmax.solvers.row_shards import RowShards
from jaxsoftmax.solvers.sparse import Sparse

MAX_FEATURES = 2048  # inverses of wider blocks take longer than they save
ROWS_PER_FEATURE = 5  # examples per feature, and at least MIN_ROWS, that estimate a block
MIN_ROWS = 4096
# The sums were rounded to float32, and a column may be a multiple of another.
DIAGONAL_ROUNDING = 32 * float(np.finfo(np.float32).eps)
CURVATURE_SHARE = 0.9  # share of an example's probability of being drawn that is by its curvature


class Blocks(NamedTuple):
    """The inverse of each class's block, and which classes have examples."""

    inverse: Array  # [L, K, D + 1, D + 1]
    present: Array  # [L, K], 1 or 0


def cost_in_products(problem: problems.Problem, lanes: int, classes: int, memory: int) -> float:
    """Return the cost of `build` in passes over all the features, inf if it cannot be built."""
    if isinstance(problem.features, Sparse):
        return np.inf
    n, d = problem.features.shape
    own_classes = classes // row_shards.class_count(problem.features)
    num_bytes = lanes * own_classes * problem.features.dtype.itemsize * (d + 1) ** 2
    if d > MAX_FEATURES or num_bytes > memory:
        return np.inf
    return d * (_num_rows(n, d) + 2 * d) / n


def build(problem: problems.Problem, link: problems.Link, class_variance: Array) -> Blocks | None:
    """Return the blocks at these probabilities, or None if one is not positive definite."""
    x = problem.features
    assert not isinstance(x, Sparse)
    curvature, present = _curvature(problem, link, class_variance)
    size, inverses = _num_rows(*x.shape), []
    for lane, key in enumerate(jax.random.split(jax.random.key(0), len(curvature))):
        grams = _gram_matrices(x, problem.weights[lane], curvature[lane : lane + 1], key, size)
        inverse = _invert(x, grams, float(problem.l2[lane]))
        if inverse is None:
            return None
        inverses.append(inverse)
    return Blocks(jnp.concatenate(inverses), present)


def apply(blocks: Blocks, link: problems.Link, l2: Array, r: Array) -> Array:
    """Return M r, `[L, K, D + 1]`."""
    product = partial(jnp.einsum, "lkde,lke->lkd", precision=lax.Precision.HIGHEST)
    if link == "sigmoid":
        return product(blocks.inverse, r)
    shared = _class_mean(blocks, r)
    z = product(blocks.inverse, r - shared)
    l2 = l2.astype(r.dtype)[:, None, None]
    shift = jnp.where(l2 > 0, shared / jnp.where(l2 > 0, l2, 1), 0).at[..., -1].set(0)
    return z - _class_mean(blocks, z) + shift


def _class_mean(blocks: Blocks, r: Array) -> Array:
    """Return the mean over the classes that have examples, repeated for each of them."""
    present = blocks.present[..., None]
    # Where every example is certain to the last bit, no class has any curvature left.
    count = jnp.maximum(present.sum(1, keepdims=True), 1)
    return present * (present * r).sum(1, keepdims=True) / count


def _num_rows(n: int, d: int) -> int:
    """Return the number of examples that blocks are estimated from."""
    return min(n, max(MIN_ROWS, ROWS_PER_FEATURE * d))


@jax.jit(static_argnames="link")
def _curvature(
    problem: problems.Problem, link: problems.Link, class_variance: Array
) -> tuple[Array, Array]:
    """Return h `[L, K, N]`, and which classes have any."""
    p = class_variance
    h = problem.weights.astype(p.dtype)[:, None] * (p * (1 - p) if link == "softmax" else p)
    return h, (h.max(2) > 0).astype(problem.features.dtype)


@jax.jit(static_argnames="size")
def _gram_matrices(
    features: Array | RowShards, s: Array, curvature: Array, key: Array, size: int
) -> Array:
    """Return the block of each class without the penalty, of drawn examples.

    `s` is `[N]`, `curvature` `[1, K, N]` and the result `[1, K, D + 1, D + 1]`. Every shard of the
    rows draws from its own examples.
    """
    if not isinstance(features, RowShards):
        return _draw_gram_matrices(features, s, curvature, curvature.sum((0, 1)), key, size)

    def own_part(x: Array, key: Array, s: Array, curvature: Array) -> Array:
        own_key = jax.random.fold_in(key, lax.axis_index(features.axes))
        importance = lax.psum(curvature.sum((0, 1)), features.class_axes)
        own_size = -(-size // features.count)
        return _draw_gram_matrices(x, s, curvature, importance, own_key, own_size)

    return row_shards.sum_rows(own_part, features, s, curvature, replicated=(key,))


def _draw_gram_matrices(
    x: Array, s: Array, curvature: Array, importance: Array, key: Array, size: int
) -> Array:
    rows, scale = _draw_rows(key, importance, s, size)
    x = jnp.concatenate([x[rows], jnp.ones_like(x, shape=(len(rows), 1))], 1)

    def gram(h: Array) -> Array:
        return jnp.dot((x * h[:, None]).T, x, precision=lax.Precision.HIGHEST)

    return lax.map(gram, (curvature[0, :, rows].T * scale).astype(x.dtype))[None]


def _draw_rows(key: Array, importance: Array, s: Array, size: int) -> tuple[Array, Array]:
    """Return the positions of the drawn examples, and how many examples each of them represents.

    The draws divide the total probability into equal parts and fall anywhere in each of them, which
    has less variance than independent draws.
    """
    n = len(s)
    if size >= n:
        return jnp.arange(n), jnp.ones(n)
    importance, s = importance.astype(jnp.float64), s.astype(jnp.float64)
    chance = CURVATURE_SHARE * _normalize(importance) + (1 - CURVATURE_SHARE) * _normalize(s)
    cumulative = jnp.cumsum(chance)
    drawn = (jnp.arange(size) + jax.random.uniform(key, (size,))) / size * cumulative[-1]
    rows = jnp.minimum(jnp.searchsorted(cumulative, drawn, side="right"), n - 1)
    # The last row may have no chance, and no curvature then.
    chosen = chance[rows] / jnp.where(cumulative[-1] > 0, cumulative[-1], 1)
    return rows, jnp.where(chosen > 0, 1 / (size * jnp.where(chosen > 0, chosen, 1)), 0)


def _normalize(a: Array) -> Array:
    total = jnp.sum(a)
    return a / jnp.where(total > 0, total, 1)


def _invert(features: Array | RowShards, grams: Array, l2: float) -> Array | None:
    """Return the inverses of grams + l2, `[1, K, D + 1, D + 1]`, where the grams are, or None."""
    if isinstance(features, RowShards) and features.class_axes:
        inverse = _invert_on_devices(features, grams, l2)
        return inverse if jnp.all(jnp.isfinite(inverse)) else None
    found = _invert_on_host(np.array(grams[0], np.float64), l2)
    if found is None:
        return None
    return jnp.asarray(row_shards.agree(features, found.astype(features.dtype))[None])


@jax.jit
def _invert_on_devices(features: RowShards, grams: Array, l2: float) -> Array:
    """Return the inverses by the devices that have the grams; NaN for one that has none."""

    def invert(gram: Array) -> Array:
        a = gram.astype(jnp.float64)
        on_diagonal = jnp.arange(len(a))
        a = a.at[on_diagonal[:-1], on_diagonal[:-1]].add(l2)
        size = jnp.sqrt(jnp.where(jnp.diag(a) > 0, jnp.diag(a), 1))
        a = a / (size[:, None] * size)
        a = a.at[on_diagonal, on_diagonal].add(DIAGONAL_ROUNDING)
        inverse = lax.platform_dependent(a, tpu=_invert_by_sweeps, default=_invert_by_cholesky)
        return (inverse / (size[:, None] * size)).astype(gram.dtype)

    return row_shards.map_classes(lambda own: lax.map(invert, own[0])[None], features, grams)


def _invert_by_cholesky(a: Array) -> Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), jnp.eye(len(a)))


def _invert_by_sweeps(a: Array) -> Array:
    """Return the inverse by Gauss and Jordan's method; NaN if a pivot is not positive.

    XLA for TPUs (jax 0.12) does not compile Cholesky's in float64 for several devices.
    """
    on_axis = jnp.arange(len(a))

    def sweep(k: Array, a: Array) -> Array:
        """Exchange one unknown for its equation, with the signs that keep the matrix symmetric."""
        is_k, column = on_axis == k, a[k]
        pivot = jnp.where(column[k] > 0, column[k], jnp.nan)
        scaled = column / pivot
        swept = a - column[:, None] * scaled
        swept = jnp.where(is_k[:, None], scaled, jnp.where(is_k, scaled[:, None], swept))
        return jnp.where(is_k[:, None] & is_k, -1 / pivot, swept)

    return -lax.fori_loop(0, len(a), sweep, a)


def _invert_on_host(grams: np.ndarray, l2: float) -> np.ndarray | None:
    """Return the inverses of grams + l2 in float64, or None if one is not positive definite.

    They are computed from the Cholesky factors of the matrices scaled to a unit diagonal.
    """
    grams[:, range(grams.shape[1] - 1), range(grams.shape[1] - 1)] += l2
    for a in grams:
        size = np.sqrt(np.where(np.diag(a) > 0, np.diag(a), 1))
        a /= size[:, None] * size
        a[np.diag_indices_from(a)] += DIAGONAL_ROUNDING
        factor, failed = scipy.linalg.lapack.dpotrf(a, lower=1)
        if failed:
            return None
        lower = np.tril(scipy.linalg.lapack.dpotri(factor, lower=1)[0])
        a[:] = (lower + np.tril(lower, -1).T) / (size[:, None] * size)
    return grams
