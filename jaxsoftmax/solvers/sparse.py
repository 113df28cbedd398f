r"""Sparse features, with their entries stored twice: sorted by row and sorted by column.

A product with the features gathers one number of each row of weights per entry and sums the entries
of each example; the transposed product does the same by columns. On an accelerator both are segment
sums of neighbors. On a CPU they are SciPy's products with a CSR matrix, which take an eighth of the
time, unless they are small: a program that calls the host is compiled in each process.

An entry costs up to as much as a hundred entries of dense features, so that only features with a
smaller share of nonzeros than MAX_SPARSE_DENSITY are kept sparse.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from jax import Array

MAX_SPARSE_DENSITY = 0.01  # the share of nonzeros from which dense features are faster
MIN_SCIPY_TERMS = 2**22  # of a product, from which SciPy's speed outweighs a compilation


class Entries(NamedTuple):
    """The nonzeros, `[nnz]`, sorted by `segment`."""

    value: Array
    segment: Array  # index of the sum that the entry is added to
    source: Array  # index of the number that the entry multiplies
    start: Array  # index of the first entry of each segment, and the number of entries


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparse:
    """Sparse features `[N, D]`, with the parts of an array's interface that the solvers use."""

    by_row: Entries
    by_column: Entries
    shape: tuple[int, int] = field(metadata={"static": True})

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return self.by_row.value.dtype

    @property
    def size(self) -> int:
        """The number of stored entries, which determines the cost of a product."""
        return self.by_row.value.size

    def __len__(self) -> int:
        return self.shape[0]

    def astype(self, dtype: Any) -> Self:
        """Return the same features with values of another dtype."""
        rows, columns = (
            e._replace(value=e.value.astype(dtype)) for e in (self.by_row, self.by_column)
        )
        return replace(self, by_row=rows, by_column=columns)


def from_scipy(matrix: Any) -> Sparse:
    """Return a SciPy CSR matrix as `Sparse` features on the device; duplicates are summed."""
    by_row, by_column = matrix.tocsr(), matrix.tocsc()
    return Sparse(_entries(by_row), _entries(by_column), matrix.shape)


def num_bytes(matrix: Any) -> int:
    """Return the number of bytes that `from_scipy` takes."""
    return matrix.nnz * 2 * (matrix.dtype.itemsize + 2 * np.dtype(np.int32).itemsize)


def apply(features: Sparse, v: Array) -> Array:
    """Return v x', `[R, N]`."""
    return _product(features.by_row, v, features.shape[0])


def apply_transpose(features: Sparse, r: Array) -> Array:
    """Return r x, `[R, D]`."""
    return _product(features.by_column, r, features.shape[1])


def square(features: Sparse) -> Sparse:
    """Return x^2, entry by entry."""
    rows, columns = (e._replace(value=e.value**2) for e in (features.by_row, features.by_column))
    return replace(features, by_row=rows, by_column=columns)


def column_max_abs(features: Sparse) -> Array:
    """Return the largest |x| of each column, `[D]`."""
    entries = features.by_column
    largest = jax.ops.segment_max(jnp.abs(entries.value), entries.segment, features.shape[1],
                                  indices_are_sorted=True)  # fmt: skip
    return jnp.maximum(largest, 0)  # an empty column has -inf


def _entries(matrix: Any) -> Entries:
    """Return the entries of a CSR or CSC matrix in the order in which it stores them."""
    outer = np.repeat(np.arange(len(matrix.indptr) - 1, dtype=np.int32), np.diff(matrix.indptr))
    inner = matrix.indices.astype(np.int32)
    start = matrix.indptr.astype(np.int32)
    return Entries(*map(jnp.asarray, (matrix.data, outer, inner, start)))


def _product(entries: Entries, v: Array, size: int) -> Array:
    """Return the sums of each segment, `[R, size]`."""
    if entries.value.size * len(v) < MIN_SCIPY_TERMS:
        return _by_segment_sum(entries, v, size=size)
    ways = {"cpu": _by_scipy, "default": _by_segment_sum}
    return jax.lax.platform_dependent(
        entries, v, **{name: functools.partial(way, size=size) for name, way in ways.items()}
    )


def _by_segment_sum(entries: Entries, v: Array, *, size: int) -> Array:
    """Gather, multiply and sum, with the rows of v innermost.

    All the numbers that one entry multiplies are then adjacent in memory.
    """
    terms = v.T[entries.source] * entries.value.astype(v.dtype)[:, None]
    return jax.ops.segment_sum(terms, entries.segment, size, indices_are_sorted=True).T


def _by_scipy(entries: Entries, v: Array, *, size: int) -> Array:
    """Call SciPy on the host, with numbers as words: a callback's thread may have no float64."""
    dtype = np.dtype(v.dtype)
    width = (dtype.itemsize // 4,)

    def multiply(*arrays: Any) -> np.ndarray:
        words, source, start, v_words = map(np.asarray, arrays)
        value, v = words.view(dtype)[..., 0], v_words.view(dtype)[..., 0]
        matrix = scipy.sparse.csr_array((value, source, start), shape=(size, v.shape[1]))
        return np.ascontiguousarray((matrix @ v.T).T)[..., None].view(np.uint32)

    def as_words(a: Array) -> Array:
        return jax.lax.bitcast_convert_type(a, jnp.uint32).reshape(a.shape + width)

    result = jax.pure_callback(
        multiply,
        jax.ShapeDtypeStruct((v.shape[0], size, *width), jnp.uint32),
        as_words(entries.value.astype(dtype)),
        entries.source,
        entries.start,
        as_words(v),
        vmap_method="sequential",
    )
    return jax.lax.bitcast_convert_type(result if width[0] > 1 else result[..., 0], dtype)
