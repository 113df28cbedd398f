"""Sums by index and by ties that do not stop at 2^24, and quotients."""

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement

# A float32 sum of up to this many ones by a scatter, which adds one by one, is exact.
SEQUENTIAL_SUM_LIMIT = 2**12


def sum_by_index(values: Array, index: tuple[Array, ...], shape: tuple[int, ...]) -> Array:
    """Return the sums, of this shape, of the values `[N]` of each index.

    A scatter adds one by one, and a float32 sum of ones stops at 2^24. Each block of examples
    therefore has its own sums, which are then added. The memory is O(N + size of the sums).
    """
    size, cells = values.shape[0], math.prod(shape)
    block = max(SEQUENTIAL_SUM_LIMIT, cells) if placement.is_static(cells) else cells
    if placement.is_static(size, cells) and size <= block:
        return jnp.zeros(shape, values.dtype).at[index].add(values)
    block_index = lax.iota(jnp.int32, size) // block
    block_sums = jnp.zeros((-(-size // block), *shape), values.dtype)
    return jnp.sum(block_sums.at[block_index, *index].add(values), 0)


def group_ties(values: Array) -> tuple[Array, Array]:
    """Return the order that sorts the values, and in that order the index of each group of ties."""
    order = jnp.argsort(values)
    ascending = values[order]
    is_new = jnp.concatenate([jnp.zeros_like(ascending[:1], bool), ascending[1:] != ascending[:-1]])
    return order, jnp.cumsum(is_new, dtype=jnp.int32)


def sum_ties(weights: Array, group: Array) -> Array:
    """Return the sums `[N]` of the weights of each group of ties, both in sorted order.

    The terms of a group are added in parts of at most `SEQUENTIAL_SUM_LIMIT` terms, and then the
    parts: a scatter adds one by one, and a float32 sum of ones stops at 2^24. The indices of groups
    and of blocks of terms both ascend, so that their sum is the index of the part.
    """
    size = weights.shape[0]
    part = group + lax.iota(jnp.int32, size) // SEQUENTIAL_SUM_LIMIT
    part_sums = jnp.zeros(size + size // SEQUENTIAL_SUM_LIMIT + 1, weights.dtype)
    part_sums = part_sums.at[part].add(weights)
    group_of_part = jnp.zeros(part_sums.shape, jnp.int32).at[part].set(group)
    return jnp.zeros_like(weights).at[group_of_part].add(part_sums)


def divide(part: Array, whole: Array) -> Array:
    """Return part / whole, or 0 where the whole is 0."""
    return part / jnp.where(whole == 0, 1, whole)
