r"""The shared preconditioner: one eigendecomposition of the Gram matrix for all lanes and classes.

With curvature c_k = sum_i s_i p_ik (1 - p_ik) in place of each example's own, the Hessian of class
k is c_k (x - m)'(x - m) + l2 for the weights, after the intercept has been centered with the mean m
of the features. In the eigenvectors U of the centered Gram matrix, with eigenvalues e, its inverse
is

    U diag(1 / (c_k e + l2)) U',

which costs two small products for any c and l2: one factorization serves all classes, iterations,
penalties and folds. With fewer examples than features, U `[D, N]` and e come from the N x N matrix
of the products of examples, and what is orthogonal to U is divided by l2. Where both N and D are
too large, or the features are sparse, the diagonal of the Gram matrix replaces e and the identity
replaces U.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import matvec, row_shards
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.row_shards import RowShards
from jaxsoftmax.solvers.sparse import Sparse

MAX_FEATURES = 2048  # an eigendecomposition of a larger matrix takes longer than it saves
ROWS_PER_FEATURE = 8  # examples per feature, and at least MIN_ROWS, that estimate the Gram matrix
MIN_ROWS = 4096


class Preconditioner(NamedTuple):
    """The preconditioner that all lanes share; `basis` is None for a diagonal one."""

    basis: Array | None  # U: [D, R], where R is D, or N where that is less
    spectrum: Array  # e: [R]
    mean: Array  # m: [D]


def build(features: matvec.Features, weights: Array, memory: int) -> Preconditioner:
    """Return the eigendecomposition of the centered Gram matrix, or its diagonal.

    The diagonal alone is used where the features are sparse, where both N and D (of sharded rows:
    where D) are above MAX_FEATURES, or where `memory` does not allow a matrix.
    """
    if isinstance(features, Sparse):
        return _build_sparse(features, weights)
    n, d = features.shape
    # Products of examples on different devices would pass all features over the network.
    least = d if isinstance(features, RowShards) else min(n, d)
    diagonal = least > MAX_FEATURES or 4 * 8 * d * least > memory
    if n < d and not (diagonal or isinstance(features, RowShards)):
        return _build_from_rows(features, weights)
    num_rows = n if diagonal else min(n, max(MIN_ROWS, ROWS_PER_FEATURE * d))
    x, s = _take_random_rows(features, weights, num_rows)
    mean, second_moment = _moments(x, s / jnp.sum(s), diagonal)
    if diagonal:
        return Preconditioner(None, second_moment, mean)
    # The decomposition is LAPACK's in float64: float32 loses what badly scaled columns hold.
    values, vectors = np.linalg.eigh(np.asarray(second_moment, np.float64))
    values, vectors = (row_shards.agree(features, a) for a in (values, vectors))
    dtype = features.dtype
    return Preconditioner(
        jnp.asarray(vectors, dtype), jnp.asarray(np.maximum(values, 0), dtype), mean
    )


def _build_from_rows(features: Array, weights: Array) -> Preconditioner:
    """Return the eigenvectors of the Gram matrix from those of the products of examples."""
    s = np.asarray(weights, np.float64)
    x, s = np.asarray(features, np.float64), s / s.sum()
    mean = s @ x
    rows = np.sqrt(s)[:, None] * (x - mean)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > len(s) * np.finfo(float).eps * values.max()  # the others are rounding
    basis = rows.T @ (vectors * np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0))
    arrays = basis, np.where(kept, values, 0), mean
    return Preconditioner(*(jnp.asarray(a, features.dtype) for a in arrays))


def _take_random_rows(features: Any, weights: Array, count: int) -> tuple[Array, Array]:
    """Return random examples: the first ones of sorted examples would not be a sample."""
    n, size = features.shape[0], row_shards.rows_per_shard(features)
    if count < n:
        rows = np.random.default_rng(0).permutation(size)[: -(-count * size // n)]
        weights = row_shards.take_columns(features, weights, rows)
        features = row_shards.take_rows(features, rows)
    return row_shards.as_array(features), weights


@jax.jit
def _build_sparse(x: Sparse, s: Array) -> Preconditioner:
    """Return the variance of each column, computed from the stored entries alone."""
    s = (s / jnp.sum(s)).astype(x.dtype)[None]
    mean = matvec.apply_transpose(x, s)[0]
    variance = matvec.weighted_square_sums(x, s)[0] - mean**2
    return Preconditioner(None, jnp.maximum(variance, 0), mean)


@jax.jit(static_argnames="diagonal")
def _moments(x: Array, s: Array, diagonal: bool) -> tuple[Array, Array]:
    """Return the mean of the features, and their covariance or the diagonal of it."""
    s = s.astype(x.dtype)
    mean = s @ x
    centered = x - mean
    if diagonal:
        return mean, s @ centered**2
    scaled = (centered * s[:, None]).T
    return mean, jnp.dot(scaled, centered, precision=lax.Precision.HIGHEST)


def mean_curvature(problem: problems.Problem, link: problems.Link, class_variance: Array) -> Array:
    """Return c, the mean curvature of each class, `[L, K]`."""
    p = class_variance
    h = p * (1 - p) if link == "softmax" else p
    c = jnp.einsum("ln,lkn->lk", problem.weights.astype(p.dtype), h)
    # One number for all classes of a softmax, whose Hessian couples them, saves products.
    return jnp.broadcast_to(c.mean(1, keepdims=True), c.shape) if link == "softmax" else c


def apply(preconditioner: Preconditioner, c: Array, l2: Array, r: Array) -> Array:
    """Return the approximate inverse Hessian times r, `[L, K, D + 1]`."""
    dtype = r.dtype
    c = jnp.maximum(c, float_limits(dtype).eps * jnp.max(c, 1, keepdims=True))[..., None]
    c = jnp.maximum(c, float_limits(dtype).tiny ** 0.5)
    l2 = l2.astype(dtype)[:, None, None]
    eigenvalues = c * preconditioner.spectrum + l2
    least = float_limits(dtype).eps * jnp.max(eigenvalues, -1, keepdims=True)
    least = jnp.maximum(least, float_limits(dtype).tiny ** 0.5)
    rb = r[..., -1:]
    w = _solve(preconditioner, r[..., :-1] - rb * preconditioner.mean, eigenvalues, l2, least)
    b = rb / c - jnp.sum(w * preconditioner.mean, -1, keepdims=True)
    # jaxlib 0.11 cannot compile for a GPU the fusion of these sums with the concatenation.
    return jnp.concatenate(lax.optimization_barrier([w, b]), -1)


def _solve(
    preconditioner: Preconditioner, r: Array, eigenvalues: Array, l2: Array, least: Array
) -> Array:
    """Return r by the inverse of the matrix with these eigenvalues, l2 orthogonally to U."""
    factor, orthogonal = 1 / jnp.maximum(eigenvalues, least), 1 / jnp.maximum(l2, least)
    return scale_along(preconditioner, r, factor, orthogonal)


def scale_along(
    preconditioner: Preconditioner, v: Array, factor: Array, orthogonal: Array
) -> Array:
    """Return v with its part along each eigenvector, and that orthogonal to all, scaled."""
    along = _to_eigenbasis(preconditioner, v)
    w = _from_eigenbasis(preconditioner, factor * along)
    if preconditioner.basis is None or preconditioner.basis.shape[1] == v.shape[-1]:
        return w
    return w + orthogonal * (v - _from_eigenbasis(preconditioner, along))


def _to_eigenbasis(preconditioner: Preconditioner, r: Array) -> Array:
    """Return r U."""
    if preconditioner.basis is None:
        return r
    return jnp.dot(r, preconditioner.basis, precision=lax.Precision.HIGHEST)


def _from_eigenbasis(preconditioner: Preconditioner, r: Array) -> Array:
    """Return r U'."""
    basis = preconditioner.basis
    if basis is None:
        return r
    return lax.dot_general(
        r, basis, (((r.ndim - 1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
