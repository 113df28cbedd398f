"""Maxima of rows whose classes are sharded, in one all-reduce of integers.

A maximum is that of the floats' bits, which are in the order of the floats with NaN above all:
XLA's maximum of floats loses a NaN among devices. On TPUs those of float64 take two all-reduces
(see `integer_reductions`).

A softmax also needs the second largest logit of a row: the sum of the entries below the largest is
in fixed point (see `fixed_point`), and where the largest has nearly all the mass, the digits of
that sum begin at the second. The second largest is not a maximum of one number from each shard,
since no shard knows whether its own largest is that of all. It is one of a few, however. Give each
shard a set of numbers among k, none of which contains another, and let it contribute its largest
logit to those of its set, and its second largest to the others. The numbers of the leading shard's
set become the largest logit. Every other shard has its largest among the remaining ones, and the
leading shard its second. By Sperner's theorem k numbers, in sets of k // 2, serve C(k, k // 2)
shards, and no fewer do: 2 numbers for 2 shards, 4 for 4, 5 for 8, 6 for 16, and 13 for 1,024.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import integer_reductions, placement
from jaxsoftmax.placement import is_static, select

CPU_BLOCK_ENTRIES = 2**20  # 4 MB, which stay in a CPU's cache
VECTOR_LENGTH = 8  # of a CPU's maxima


class RowMaxima(NamedTuple):
    """The largest logit of each row, that of its label, and the largest of the other classes."""

    all: Array
    label: Array
    rest: Array


def max_over_shards(z: Array, axis: int, axes: Any) -> Array:
    """Return the maximum along an axis, over all shards; NaN if an entry is."""
    return from_order(_pmax(_max_order(z, axis), axes), z.dtype)


def extremes_over_shards(x: Array, axis: int, axes: Any) -> tuple[Array, Array]:
    """Return the maximum and the minimum along an axis, over all shards; NaN if an entry is."""
    largest, least = _pmax((_max_order(x, axis), _max_order(-x, axis)), axes)
    return from_order(largest, x.dtype), -from_order(least, x.dtype)


def _pmax(tree: Any, axes: Any) -> Any:
    return integer_reductions.largest(tree, axes) if axes else tree


def max_around_label(z: Array, label: Array, index: Array, axis: int, axes: Any) -> RowMaxima:
    """Return the maxima of rows whose classes are sharded, in one all-reduce.

    Args:
        z: the logits of the local classes.
        label: z_y, and anything where the label is on another device.
        index: the label's index among the local classes, and anything else where it is not one.
        axis: the class axis.
        axes: the mesh axes.
    """
    masked = _order_of(-jnp.inf, z.dtype)

    def of_rows(axis: int, z: Array, index: Array) -> Array:
        is_label = lax.broadcasted_iota(index.dtype, z.shape, axis) == jnp.expand_dims(index, axis)
        return _max_of_rows(select(is_label, masked, to_order(z)), axis)

    order = by_rows(of_rows, axis, z, index)
    is_local = (index >= 0) & (index < z.shape[axis])
    label_order = select(is_local, to_order(label), _below_all(z.dtype))
    order, label_order = integer_reductions.largest((order, label_order), axes)
    rest, label = from_order(order, z.dtype), from_order(label_order, z.dtype)
    return RowMaxima(from_order(jnp.maximum(order, label_order), z.dtype), label, rest)


class Leaders(NamedTuple):
    """The two largest logits of each row, and maxima of other values without those of the largest.

    Where two entries are the largest, `second` is the same number, `is_tied` is True, and no value
    is left out.
    """

    largest: Array
    second: Array
    is_tied: Array
    others: tuple[Array, ...]  # for each of `values`, the maximum over the other entries
    maxima: tuple[Array, ...]  # for each of `values`, and of `more`, the maximum over all entries


def find_leaders(
    z: Array, axis: int, axes: Any, values: tuple[Array, ...] = (), more: tuple[Array, ...] = ()
) -> Leaders:
    """Return the leaders of rows, in one all-reduce of k (1 + values) + more numbers a row.

    Args:
        z: the logits of the local classes.
        axis: the class axis.
        axes: the mesh axes.
        values: `[..., K]` each, whose maxima without the largest logit's entries are found as well.
        more: `[..., K]` each, whose maxima over all entries are found.
    """
    sets = _antichain(placement.count_shards(axes, z))
    order = to_order(z)
    top = jnp.max(order, axis)
    is_top = order == jnp.expand_dims(top, axis)
    is_alone = jnp.sum(is_top, axis, dtype=jnp.int32) == 1
    without = [_max_unless(is_top, a, axis) for a in (z, *values)]
    without[0] = select(is_alone, without[0], top)
    pairs = list(zip((top, *(_max_order(a, axis) for a in values)), without, strict=True))
    belongs = jnp.asarray(sets)[lax.axis_index(axes) if axes else 0]
    sent = [[select(_like(belongs[i], a), a, b) for i in range(len(sets[0]))] for a, b in pairs]
    sent, rest = _pmax((sent, [_max_order(a, axis) for a in more]), axes)
    return _read_leaders(sent, rest, int(sets[0].sum()), z.dtype)


def _read_leaders(sent: Any, rest: Any, size: int, dtype: Any) -> Leaders:
    """Return the leaders from the numbers of all shards, whose sets have this size."""
    largest = _max_of(sent[0])
    leads = [a == largest for a in sent[0]]
    is_tied = sum(a.astype(jnp.int32) for a in leads) > size
    others = [
        select(is_tied, _max_of(numbers), _max_of([
            select(skip, _below_all(dtype), a) for a, skip in zip(numbers, leads, strict=True)
        ]))
        for numbers in sent
    ]  # fmt: skip
    second, *others = (from_order(a, dtype) for a in others)
    maxima = (*map(_max_of, sent[1:]), *rest)
    return Leaders(
        from_order(largest, dtype),
        second,
        is_tied,
        tuple(others),
        tuple(from_order(a, dtype) for a in maxima),
    )


def _antichain(shards: int) -> np.ndarray:
    """Return a set for each shard, `[shards, k]` bools, of which none contains another."""
    k = 2
    while math.comb(k, k // 2) < shards:
        k += 1
    sets = itertools.islice(itertools.combinations(range(k), k // 2), shards)
    return np.array([[i in chosen for i in range(k)] for chosen in sets])


def _max_unless(skip: Array, x: Array, axis: int) -> Array:
    """Return the maximum of the entries that are not skipped."""

    def of_rows(axis: int, skip: Array, x: Array) -> Array:
        return _max_of_rows(select(skip, _below_all(x.dtype), to_order(x)), axis)

    return by_rows(of_rows, axis, skip, x)


def _max_order(x: Array, axis: int) -> Array:
    return by_rows(lambda axis, x: _max_of_rows(to_order(x), axis), axis, x)


def _max_of_rows(order: Array, axis: int) -> Array:
    """Return the maximum; of one row, as `by_rows` gives it, that of vectors first."""
    if order.ndim > 1 or order.size % VECTOR_LENGTH:
        return jnp.max(order, axis)
    return jnp.max(jnp.max(lax.optimization_barrier(order).reshape(-1, VECTOR_LENGTH), 0))


def by_rows(function: Callable[..., Array], axis: int, *arrays: Any) -> Array:
    """Return function(axis, *arrays), on a CPU computed for a few of many large rows at a time.

    What is computed for an entry then stays in a CPU's cache. XLA would store it for all rows.

    Args:
        function: of the class axis and the arrays; of one row, without the axis of the rows.
        axis: the class axis.
        arrays: the first is `[..., K]`, and the others like it or `[...]`.
    """
    first, many = arrays[0], functools.partial(function, axis)
    can_be_large = first.ndim == 2 and axis == 1 and is_static(*first.shape)
    if not can_be_large or first.size <= 2 * CPU_BLOCK_ENTRIES:
        return many(*arrays)
    rows = max(CPU_BLOCK_ENTRIES // first.shape[1], 1)

    def few(*arrays: Any) -> Array:
        return lax.map(lambda row: function(0, *row), arrays, batch_size=rows)

    return lax.platform_dependent(*arrays, cpu=few, default=many)


def _max_of(arrays: list[Array]) -> Array:
    return functools.reduce(jnp.maximum, arrays)


def _like(scalar: Array, x: Array) -> Array:
    return jnp.broadcast_to(scalar, x.shape)


def _integer(dtype: Any) -> Any:
    return jnp.dtype(f"int{jnp.finfo(dtype).bits}")


def _below_all(dtype: Any) -> int:
    """Return an integer below those of all floats; `from_order` gives a NaN."""
    return int(jnp.iinfo(_integer(dtype)).min)


def to_order(x: Array) -> Array:
    """Return integers in the order of the floats; NaN is the largest."""
    integer = _integer(x.dtype)
    bits = lax.bitcast_convert_type(x, integer)
    largest = int(jnp.iinfo(integer).max)
    # The bits of a negative number are its sign and its size, whose order is the other way around.
    return select(x != x, largest, bits ^ (bits >> (jnp.finfo(x.dtype).bits - 1) & largest))


def _order_of(x: float, dtype: Any) -> int:
    """Return the integer of a number."""
    bits = int(np.asarray(x, dtype).view(_integer(dtype)))
    return bits ^ int(jnp.iinfo(_integer(dtype)).max) if bits < 0 else bits


def from_order(order: Array, dtype: Any) -> Array:
    """Undo `to_order`."""
    largest = int(jnp.iinfo(order.dtype).max)
    bits = select(order < 0, order ^ largest, order)
    return lax.bitcast_convert_type(bits, dtype)
