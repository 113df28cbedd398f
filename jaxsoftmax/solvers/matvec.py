r"""Products with the features, the two linear maps that an optimizer of a linear model needs.

    apply              v [..., D] -> v x' [..., N]       scores of rows of weights
    apply_transpose    r [..., N] -> r x  [..., D]       the adjoint

The leading axes are those of the rows of weights, such as lanes and classes. Both run at HIGHEST
precision, with the classes outermost, which is 2 to 5 times faster on a CPU (see `linear`). Float32
features meet float64 vectors chunk by chunk: the result is right to float64's rounding, and no
float64 copy of all features ever exists. Sparse features have products in `sparse`, and of features
in `row_shards` each device multiplies its own rows.

A Hessian-vector product is the one after the other, with an elementwise function in between.
`gram_product` does both for a chunk of rows while the chunk is in the cache, which takes two thirds
of the time at 60,000 x 784 and 10 classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.solvers import row_shards, sparse
from jaxsoftmax.solvers.row_shards import RowShards
from jaxsoftmax.solvers.sparse import Sparse

type Features = Array | Sparse | RowShards

CONVERTED_CHUNK_BYTES = 64 * 2**20  # features that are converted to float64 at a time
CACHED_CHUNK_BYTES = 4 * 2**20  # features that stay in a CPU's cache between the two products


def apply(features: Features, v: Array) -> Array:
    """Return v x', `[..., N]`, in the dtype of v."""
    if isinstance(features, Sparse):
        return _flatten(sparse.apply, features, v)
    if isinstance(features, RowShards):
        return row_shards.map_rows(apply, features, v)
    if features.dtype == v.dtype:
        return _dot(v, features, 1)
    size, starts = _conversion_chunks(features)

    def body(i: Array, scores: Array) -> Array:
        chunk = lax.dynamic_slice_in_dim(features, starts[i], size).astype(v.dtype)
        return lax.dynamic_update_slice_in_dim(scores, _dot(v, chunk, 1), starts[i], -1)

    zeros = _zeros(features, v, (*v.shape[:-1], len(features)))
    return lax.fori_loop(0, len(starts), body, zeros)


def apply_transpose(features: Features, r: Array) -> Array:
    """Return r x, `[..., D]`, in the dtype of r."""
    if isinstance(features, Sparse):
        return _flatten(sparse.apply_transpose, features, r)
    if isinstance(features, RowShards):
        return row_shards.sum_rows(apply_transpose, features, r)
    if features.dtype == r.dtype:
        return _dot(r, features, 0)
    size, starts = _conversion_chunks(features)

    def body(i: Array, total: Array) -> Array:
        chunk = lax.dynamic_slice_in_dim(features, starts[i], size).astype(r.dtype)
        part = lax.dynamic_slice_in_dim(r, starts[i], size, -1)
        return total + _dot(jnp.where(_is_new_row(i, starts[i], size), part, 0), chunk, 0)

    zeros = _zeros(features, r, (*r.shape[:-1], features.shape[1]))
    return lax.fori_loop(0, len(starts), body, zeros)


def gram_product(
    features: Features, v: Array, rowwise: Callable[..., Array], *operands: Array
) -> tuple[Array, Array]:
    """Return r x and the sums of r over the examples for r = rowwise(v x', *operands).

    Args:
        features: `[N, D]`.
        v: `[..., D]`.
        rowwise: a function of `[..., N]` that acts on each example separately.
        *operands: arrays whose last axis is that of the examples.

    Returns:
        `[..., D]` and `[...]`.
    """
    # Where classes are sharded too, the compiler takes the sums over them that `rowwise` needs.
    if isinstance(features, RowShards) and not features.class_axes:

        def own_part(x: Array, v: Array, *operands: Array) -> tuple[Array, Array]:
            return gram_product(x, v, rowwise, *operands)

        return row_shards.sum_rows(own_part, features, *operands, replicated=(v,))
    if isinstance(features, Sparse | RowShards) or features.dtype != v.dtype:
        return _gram_product_unchunked(features, v, rowwise, *operands)
    return lax.platform_dependent(
        features, v, *operands,
        cpu=lambda x, v, *operands: _gram_product_chunked(x, v, rowwise, *operands),
        default=lambda x, v, *operands: _gram_product_unchunked(x, v, rowwise, *operands),
    )  # fmt: skip


def _gram_product_unchunked(
    features: Features, v: Array, rowwise: Callable[..., Array], *operands: Array
) -> tuple[Array, Array]:
    r = rowwise(apply(features, v), *operands)
    return apply_transpose(features, r), r.sum(-1)


def _gram_product_chunked(
    features: Array, v: Array, rowwise: Callable[..., Array], *operands: Array
) -> tuple[Array, Array]:
    n, d = features.shape
    count = -(-n // max(1, CACHED_CHUNK_BYTES // (features.dtype.itemsize * d)))
    size = -(-n // count)
    if count == 1:
        return _gram_product_unchunked(features, v, rowwise, *operands)

    def body(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        start = jnp.minimum(i * size, n - size)
        x = lax.dynamic_slice_in_dim(features, start, size)
        chunks = [lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1) for a in operands]
        r = jnp.where(_is_new_row(i, start, size), rowwise(_dot(v, x, 1), *chunks), 0)
        return sums[0] + _dot(r, x, 0), sums[1] + r.sum(-1)

    zeros = (_zeros(features, v, shape) for shape in (v.shape, v.shape[:-1]))
    return lax.fori_loop(0, count, body, tuple(zeros))


def _is_new_row(i: Array, start: Array, size: int) -> Array:
    """Return whether each row of chunk i is in no chunk before it, `[size]`.

    The last chunk reaches back into the one before it, so that all are of one size.
    """
    return start + jnp.arange(size) >= i * size


def weighted_square_sums(features: Features, s: Array) -> Array:
    """Return s x^2, `[R, D]`: weighted sums of the squares of each column."""
    if isinstance(features, Sparse):
        return sparse.apply_transpose(sparse.square(features), s)
    if isinstance(features, RowShards):
        return row_shards.sum_rows(weighted_square_sums, features, s)
    return s @ features**2


@jax.jit
def column_max_abs(features: Features) -> Array:
    """Return the largest |x| of each column, `[D]`."""
    if isinstance(features, Sparse):
        return sparse.column_max_abs(features)
    return jnp.max(jnp.abs(row_shards.as_array(features)), 0)


def _dot(a: Array, features: Array, axis: int) -> Array:
    """Return a product whose operands XLA's simplifier is kept from transposing back."""

    def product(features: Array, a: Array) -> Array:
        a, features = lax.optimization_barrier((a, features))
        product = lax.dot_general(
            a, features, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST
        )
        return lax.optimization_barrier(product)

    return _flatten(product, features, a)


def _flatten(product: Callable[..., Array], features: Features, a: Array) -> Array:
    """Return a product `[..., M]` by a function of a matrix."""
    return product(features, a.reshape(-1, a.shape[-1])).reshape(*a.shape[:-1], -1)


def _zeros(features: Array, a: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum that a loop over the features starts from, which varies where both do."""
    _, like = placement.match_varying_axes(a, features)
    return placement.full(like, 0, shape, a.dtype)


def _conversion_chunks(features: Array) -> tuple[int, Array]:
    """Return the rows of a chunk and where each chunk starts; the last ends with the features."""
    n, d = features.shape
    size = min(n, max(1, CONVERTED_CHUNK_BYTES // (8 * d)))
    return size, jnp.minimum(size * jnp.arange(-(-n // size)), n - size)
