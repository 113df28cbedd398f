"""Maxima and sums of integers over devices, of 64 bits on TPUs too, and of float64 there.

XLA for TPUs keeps an integer of 64 bits as two words of 32. It has no maximum of such pairs over
devices, and no sum of them where the mesh has other axes than those of a `shard_map`. What crosses
there is of 32 bits: the high words and then the low words of a maximum, and the pieces of a sum,
which have room for the carries of all devices.

A sum of float64 over devices is there a gather of all their terms, each of two float32. In its
place the largest terms cross, in float32, and then two or three int32 of a sum in fixed point,
which loses less than sums of float64 do: from four devices on that is less to send, and it takes
the memory of one term whatever their number.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import exponential, fixed_point
from jaxsoftmax.placement import select

FIXED_POINT_BITS = 47  # behind the point: of the largest term, 2^-49 is lost at most


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


def float_total(tree: Any, axes: tuple[str, ...]) -> Any:
    """Return the sums of the floats of all devices; on a TPU NaN for a float64 that is infinite."""

    def each(a: Array) -> Array:
        is_gathered = axes and exponential.is_double_single(a.dtype)
        return total_in_fixed_point(a, axes) if is_gathered else lax.psum(a, axes)

    return jax.tree.map(each, tree)


def total_in_fixed_point(a: Array, axis_name: tuple[str, ...]) -> Array:
    """Return the sums of float64 of all devices from those of integers of 32 bits."""
    places = _places(lax.axis_size(axis_name))
    bound = lax.pmax(_round_up_to_float32(jnp.abs(a)), axis_name)
    b = fixed_point.power_above(bound)
    rest, pieces = a * _inverse_of_power(b).astype(a.dtype), []
    for bits in places:
        rest = rest * 2.0**bits
        whole = lax.round(rest, lax.RoundingMethod.TO_NEAREST_EVEN)
        pieces.append(whole.astype(jnp.int32))
        rest = rest - whole
    found = lax.full_like(b, 0, a.dtype)
    for piece, bits in reversed(list(zip(lax.psum(pieces, axis_name), places, strict=True))):
        found = (piece.astype(a.dtype) + found) * 2.0**-bits
    return select(bound < jnp.inf, found * b.astype(a.dtype), jnp.nan)


def _places(devices: int) -> list[int]:
    """Return the bits behind the point of each integer, whose sums of all devices have 31.

    The first one also has the two bits of a term that is up to 4 b (`fixed_point.power_above`); the
    others have what rounding leaves of it, up to a half.
    """
    carries = math.ceil(math.log2(devices))
    places = [28 - carries]
    while sum(places) < FIXED_POINT_BITS + carries:
        places.append(31 - carries)
    return places


def _inverse_of_power(b: Array) -> Array:
    """Return 1 / b of a float32 that is a power of two; a TPU's division may round."""
    exponents = (254 << 23) - lax.bitcast_convert_type(b, jnp.int32)
    return lax.bitcast_convert_type(exponents, jnp.float32)


def _round_up_to_float32(size: Array) -> Array:
    """Return a float32 that is not less, and infinite where a number is not finite."""
    above = size.astype(jnp.float32) * jnp.float32(1 + 2.0**-22)
    return select(above < jnp.inf, above, jnp.inf)


def _mask(bits: int) -> int:
    return (1 << bits) - 1
