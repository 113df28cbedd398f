"""Maxima and sums of integers over devices, of 64 bits on TPUs too.

XLA for TPUs keeps an integer of 64 bits as two words of 32. It has no maximum of such pairs over
devices, and no sum of them where the mesh has other axes than those of a `shard_map`. What crosses
there is of 32 bits: the high words and then the low words of a maximum, and the pieces of a sum,
which have room for the carries of all devices.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.placement import select


def largest(tree: Any, axes: tuple[str, ...]) -> Any:
    """Return the largest integers of all devices, in one all-reduce, or in two of words."""
    return _reduce(lax.pmax, largest_words, tree, axes)


def total(tree: Any, axes: tuple[str, ...]) -> Any:
    """Return the sums of the integers of all devices, in one all-reduce."""
    return _reduce(lax.psum, total_pieces, tree, axes)


def _reduce(whole: Callable, in_parts: Callable, tree: Any, axes: tuple[str, ...]) -> Any:
    """Return the result of a reduction, on a TPU that of a reduction in parts of 32 bits."""
    if all(a.dtype.itemsize <= 4 for a in jax.tree.leaves(tree)):
        return whole(tree, axes)
    tpu, default = (functools.partial(each, axis_name=axes) for each in (in_parts, whole))
    return lax.platform_dependent(tree, tpu=tpu, default=default)


def largest_words(tree: Any, axis_name: tuple[str, ...]) -> Any:
    """Return the largest integers of 64 bits: the low words count where the high ones are equal."""
    high = jax.tree.map(lambda a: (a >> 32).astype(jnp.int32), tree)
    low = jax.tree.map(lambda a: (a & _mask(32)).astype(jnp.uint32), tree)
    found = lax.pmax(high, axis_name)
    low = jax.tree.map(lambda a, own, most: select(own == most, a, 0), low, high, found)

    def join(high: Array, low: Array) -> Array:
        return (high.astype(jnp.int64) << 32) | low.astype(jnp.int64)

    return jax.tree.map(join, found, lax.pmax(low, axis_name))


def total_pieces(tree: Any, axis_name: tuple[str, ...]) -> Any:
    """Return the sums of integers of 64 bits from those of pieces, modulo 2^64 as sums are."""
    bits = 32 - math.ceil(math.log2(lax.axis_size(axis_name)))
    places = range(0, 64, bits)

    def cut(a: Array) -> list[Array]:
        return [((a >> place) & _mask(bits)).astype(jnp.uint32) for place in places]

    def join(pieces: list[Array]) -> Array:
        terms = [a.astype(jnp.int64) << place for a, place in zip(pieces, places, strict=True)]
        return functools.reduce(jnp.add, terms)

    leaves, form = jax.tree.flatten(tree)
    totals = map(join, lax.psum(list(map(cut, leaves)), axis_name))
    return jax.tree.unflatten(form, totals)


def _mask(bits: int) -> int:
    return (1 << bits) - 1
