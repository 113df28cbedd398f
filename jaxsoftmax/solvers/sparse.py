r"""Sparse features: their entries by rows, and once more by columns.

A product gathers one number of each row of weights for each entry and adds what belongs to one
example; its adjoint does the same by columns. In their own order both are sums of neighbours, which
on a CPU takes a third of the time of scattering. An entry costs about as much as a hundred entries
of dense features, so that only what is sparser than DENSE is kept sparse.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

DENSE = 0.01  # the share of entries that are not 0 from which dense features are faster


class Entries(NamedTuple):
    """Numbers that are not 0, `[nnz]`, in the order of `to`."""

    value: Array
    to: Array  # where a product of it is added
    of: Array  # what it multiplies


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparse:
    """Features `[N, D]`, with what the solvers ask of an array."""

    by_row: Entries
    by_column: Entries
    shape: tuple[int, int] = field(metadata={"static": True})

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return self.by_row.value.dtype

    @property
    def size(self) -> int:
        """The number of entries: what a product costs."""
        return self.by_row.value.size

    def __len__(self) -> int:
        return self.shape[0]

    def astype(self, dtype: Any) -> Self:
        """The same features with other numbers."""
        rows, columns = (
            e._replace(value=e.value.astype(dtype)) for e in (self.by_row, self.by_column)
        )
        return replace(self, by_row=rows, by_column=columns)


def stored(matrix: Any) -> Sparse:
    """A SciPy CSR matrix on the device; duplicates are summed."""
    by_row, by_column = matrix.tocsr(), matrix.tocsc()
    return Sparse(_entries(by_row), _entries(by_column), matrix.shape)


def needed(matrix: Any) -> int:
    """Bytes that `stored` takes."""
    return matrix.nnz * 2 * (matrix.dtype.itemsize + 2 * np.dtype(np.int32).itemsize)


def forward(features: Sparse, v: Array) -> Array:
    """v x', `[R, N]`."""
    return _product(features.by_row, v, features.shape[0])


def backward(features: Sparse, r: Array) -> Array:
    """r x, `[R, D]`."""
    return _product(features.by_column, r, features.shape[1])


def squares(features: Sparse) -> Sparse:
    """x^2, entry by entry."""
    rows, columns = (e._replace(value=e.value**2) for e in (features.by_row, features.by_column))
    return replace(features, by_row=rows, by_column=columns)


def largest(features: Sparse) -> Array:
    """The largest |x| of each column, `[D]`."""
    value, to, _ = features.by_column
    found = jax.ops.segment_max(jnp.abs(value), to, features.shape[1], indices_are_sorted=True)
    return jnp.maximum(found, 0)  # -inf of an empty column


def _entries(matrix: Any) -> Entries:
    outer = np.repeat(np.arange(len(matrix.indptr) - 1, dtype=np.int32), np.diff(matrix.indptr))
    inner = matrix.indices.astype(np.int32)
    return Entries(jnp.asarray(matrix.data), jnp.asarray(outer), jnp.asarray(inner))


def _product(entries: Entries, v: Array, size: int) -> Array:
    """Rows outermost while gathering: all that one entry multiplies lies side by side."""
    terms = v.T[entries.of] * entries.value.astype(v.dtype)[:, None]
    return jax.ops.segment_sum(terms, entries.to, size, indices_are_sorted=True).T
