r"""The preconditioner: one eigendecomposition of the Gram matrix for every lane and class.

With curvature c_k = sum_i s_i p_ik (1 - p_ik) in place of each example's own, the Hessian of class
k is c_k (x - m)'(x - m) + l2 for the weights, after the intercept has been centred with the mean m
of the features. In the eigenvectors U of the centred Gram matrix, with eigenvalues e, its inverse
is

    U diag(1 / (c_k e + l2)) U',

which costs two small products for any c and l2: one factorisation serves all classes, iterations,
penalties and folds. Where D is too large for a Gram matrix, or the features are sparse, its
diagonal takes the part of e and the identity that of U.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax.solvers import matvec
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.sparse import Sparse

WIDEST = 2048  # features: an eigendecomposition of more takes longer than it saves
ROWS = 8  # examples per feature, and at least LEAST, that the Gram matrix is estimated from
LEAST = 4096


class Preconditioner(NamedTuple):
    """Shared by all lanes; `basis` is None for a diagonal one."""

    basis: Array | None  # U: [D, D]
    spectrum: Array  # e: [D]
    mean: Array  # m: [D]


def build(features: Array | Sparse, weights: Array, memory: int) -> Preconditioner:
    """Eigenvectors of the centred Gram matrix, or its diagonal where D or `memory` forbids it."""
    if isinstance(features, Sparse):
        return _of_columns(features, weights)
    n, d = features.shape
    diagonal = d > WIDEST or 4 * 8 * d * d > memory
    rows = n if diagonal else min(n, max(LEAST, ROWS * d))
    # Examples in an order of their own, such as by class, are no sample if one takes the first.
    chosen = (
        slice(None) if rows == n else jnp.asarray(np.random.default_rng(0).permutation(n)[:rows])
    )
    x, s = features[chosen], weights[chosen]
    mean, spread = _moments(x, s / jnp.sum(s), diagonal)
    if diagonal:
        return Preconditioner(None, spread, mean)
    # LAPACK in float64: float32 loses what badly scaled columns hold.
    values, vectors = np.linalg.eigh(np.asarray(spread, np.float64))
    dtype = features.dtype
    return Preconditioner(
        jnp.asarray(vectors, dtype), jnp.asarray(np.maximum(values, 0), dtype), mean
    )


@jax.jit
def _of_columns(x: Sparse, s: Array) -> Preconditioner:
    """The variance of each column, of whose entries only those that are not 0 are looked at."""
    s = (s / jnp.sum(s)).astype(x.dtype)[None]
    mean = matvec.backward(x, s)[0]
    spread = matvec.squares(x, s)[0] - mean**2
    return Preconditioner(None, jnp.maximum(spread, 0), mean)


@jax.jit(static_argnames="diagonal")
def _moments(x: Array, s: Array, diagonal: bool) -> tuple[Array, Array]:
    s = s.astype(x.dtype)
    mean = s @ x
    centred = x - mean
    if diagonal:
        return mean, s @ centred**2
    scaled = (centred * s[:, None]).T
    return mean, jnp.dot(scaled, centred, precision=lax.Precision.HIGHEST)


def curvatures(problem: problems.Problem, head: problems.Head, mass: Array) -> Array:
    """c: `[L, K]`, the mean curvature of each class."""
    h = mass * (1 - mass) if head == "softmax" else mass
    each = jnp.einsum("ln,lkn->lk", problem.weights.astype(mass.dtype), h)
    # One number for all classes of a softmax, whose Hessian couples them, saves products.
    return jnp.broadcast_to(each.mean(1, keepdims=True), each.shape) if head == "softmax" else each


def apply(pre: Preconditioner, c: Array, l2: Array, r: Array) -> Array:
    """The approximate inverse Hessian times r, `[L, K, D + 1]`."""
    dtype = r.dtype
    c = jnp.maximum(c, jnp.finfo(dtype).eps * jnp.max(c, 1, keepdims=True))[..., None]
    c = jnp.maximum(c, jnp.finfo(dtype).tiny ** 0.5)
    stiffness = c * pre.spectrum + l2.astype(dtype)[:, None, None]
    floor = jnp.finfo(dtype).eps * jnp.max(stiffness, -1, keepdims=True)
    stiffness = jnp.maximum(stiffness, jnp.maximum(floor, jnp.finfo(dtype).tiny ** 0.5))
    rb = r[..., -1:]
    w = _into(pre, r[..., :-1] - rb * pre.mean) / stiffness
    w = _out_of(pre, w)
    b = rb / c - jnp.sum(w * pre.mean, -1, keepdims=True)
    return jnp.concatenate([w, b], -1)


def _into(pre: Preconditioner, r: Array) -> Array:
    if pre.basis is None:
        return r
    return jnp.dot(r, pre.basis, precision=lax.Precision.HIGHEST)


def _out_of(pre: Preconditioner, r: Array) -> Array:
    if pre.basis is None:
        return r
    return lax.dot_general(
        r, pre.basis, (((r.ndim - 1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
