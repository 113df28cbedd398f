"""Sums of floats over the devices that share rows; on TPUs those of float64 cross as integers.

XLA for TPUs sums float64 over devices by a gather of all terms, each of two float32. In its place
the largest terms cross, in float32, and then two or three int32 of a sum in fixed point, which
loses less than sums of float64 do there. From four devices on that is less to send, and it takes
the memory of one term whatever their number.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import exponential, fixed_point
from jaxsoftmax.placement import select

FIXED_POINT_BITS = 47  # behind the point: of the largest term, 2^-49 is lost at most


def total(tree: Any, axes: tuple[str, ...]) -> Any:
    """Return the sums of the floats of all devices; on a TPU NaN for a float64 that is infinite."""

    def each(a: Array) -> Array:
        is_gathered = axes and exponential.is_double_single(a.dtype)
        return _total_in_fixed_point(a, axes) if is_gathered else lax.psum(a, axes)

    return jax.tree.map(each, tree)


def _total_in_fixed_point(a: Array, axis_name: tuple[str, ...]) -> Array:
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
