r"""The two products that a linear model's optimisation consists of.

    forward    v [R, D] -> v x' [R, N]       scores of R rows of weights
    backward   r [R, N] -> r x  [R, D]       their adjoint

at HIGHEST precision, with the classes outermost, which a CPU does 2 to 5 times faster (`linear`).
Float32 features meet float64 vectors chunk by chunk: what comes out is right to float64's rounding,
and no float64 copy of all features ever exists. Sparse features have products of their own.

A Hessian's product is one after the other, with something small in between. `there_and_back` does
both for a chunk of rows while it is in the cache, which takes two thirds of the time at 60,000 x
784 and 10 classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import sparse
from jaxsoftmax.solvers.sparse import Sparse

CHUNK_BYTES = 64 * 2**20  # of float64 features at a time
CACHED_BYTES = 4 * 2**20  # of features that a CPU's cache keeps from one product to the next


def forward(features: Array | Sparse, v: Array) -> Array:
    """v x', `[R, N]` in the dtype of v."""
    if isinstance(features, Sparse):
        return sparse.forward(features, v)
    if features.dtype == v.dtype:
        return _dot(v, features, 1)
    size, starts = _chunks(features)

    def body(i: Array, scores: Array) -> Array:
        chunk = lax.dynamic_slice_in_dim(features, starts[i], size).astype(v.dtype)
        return lax.dynamic_update_slice_in_dim(scores, _dot(v, chunk, 1), starts[i], 1)

    return lax.fori_loop(0, len(starts), body, jnp.zeros((len(v), len(features)), v.dtype))


def backward(features: Array | Sparse, r: Array) -> Array:
    """r x, `[R, D]` in the dtype of r."""
    if isinstance(features, Sparse):
        return sparse.backward(features, r)
    if features.dtype == r.dtype:
        return _dot(r, features, 0)
    size, starts = _chunks(features)

    def body(i: Array, total: Array) -> Array:
        chunk = lax.dynamic_slice_in_dim(features, starts[i], size).astype(r.dtype)
        part = lax.dynamic_slice_in_dim(r, starts[i], size, 1)
        # The last chunk reaches back into the one before it, so that all are of one size.
        fresh = starts[i] + jnp.arange(size) >= i * size
        return total + _dot(jnp.where(fresh, part, 0), chunk, 0)

    start = jnp.zeros((len(r), features.shape[1]), r.dtype)
    return lax.fori_loop(0, len(starts), body, start)


def there_and_back(
    features: Array | Sparse, v: Array, between: Callable[..., Array], *rows: Array
) -> tuple[Array, Array]:
    """r x and the sums of r over the examples, `[R, D]` and `[R]`, for r = between(v x', *rows).

    `between` acts on each example alone; the last axis of each of `rows` is that of the examples.
    """
    if isinstance(features, Sparse) or features.dtype != v.dtype:
        return _one_after_the_other(features, v, between, *rows)
    return lax.platform_dependent(
        features, v, *rows,
        cpu=lambda x, v, *rows: _in_chunks(x, v, between, *rows),
        default=lambda x, v, *rows: _one_after_the_other(x, v, between, *rows),
    )  # fmt: skip


def _one_after_the_other(
    features: Array | Sparse, v: Array, between: Callable[..., Array], *rows: Array
) -> tuple[Array, Array]:
    r = between(forward(features, v), *rows)
    return backward(features, r), r.sum(1)


def _in_chunks(
    features: Array, v: Array, between: Callable[..., Array], *rows: Array
) -> tuple[Array, Array]:
    n, d = features.shape
    count = -(-n // max(1, CACHED_BYTES // (features.dtype.itemsize * d)))
    size = -(-n // count)
    if count == 1:
        return _one_after_the_other(features, v, between, *rows)

    def step(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        start = jnp.minimum(i * size, n - size)
        x = lax.dynamic_slice_in_dim(features, start, size)
        part = [lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1) for a in rows]
        # The last chunk reaches back into the one before it, so that all are of one size.
        fresh = start + jnp.arange(size) >= i * size
        r = jnp.where(fresh, between(_dot(v, x, 1), *part), 0)
        return sums[0] + _dot(r, x, 0), sums[1] + r.sum(1)

    zero = jnp.zeros((len(v), d), v.dtype), jnp.zeros(len(v), v.dtype)
    return lax.fori_loop(0, count, step, zero)


def squares(features: Array | Sparse, s: Array) -> Array:
    """s x^2, `[R, D]`: sums of the squares of each column."""
    if isinstance(features, Sparse):
        return sparse.backward(sparse.squares(features), s)
    return s @ features**2


@jax.jit
def largest(features: Array | Sparse) -> Array:
    """The largest |x| of each column, `[D]`."""
    if isinstance(features, Sparse):
        return sparse.largest(features)
    return jnp.max(jnp.abs(features), 0)


def _dot(a: Array, features: Array, axis: int) -> Array:
    """A product that XLA's simplifier is kept from transposing back."""
    a, features = lax.optimization_barrier((a, features))
    product = lax.dot_general(
        a, features, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    return lax.optimization_barrier(product)


def _chunks(features: Array) -> tuple[int, Array]:
    """The rows of a chunk, and where each chunk starts; the last one ends with the features."""
    n, d = features.shape
    size = min(n, max(1, CHUNK_BYTES // (8 * d)))
    return size, jnp.minimum(size * jnp.arange(-(-n // size)), n - size)
