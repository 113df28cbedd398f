"""Sums of floats as integers: exact in any order, and so for any number of shards.

An all-reduce of floats rounds at every shard, in an order that the network chooses. Here each term
|x| <= 4 b, with b a power of two, is written in three integers ("limbs"), or more,

    x / b = (n_0 + (n_1 + n_2 2^-l) 2^-l) 2^-h,

and sums of integers are exact. With K classes h = 28 - log2 K bits leave room for K terms as large
as 4 b. The other limbs are remainders of at most one half in units of the one before, so that l is
30 - log2 P for P terms. What is lost is half a unit of n_2 a term, which is less than an ulp of the
bound up to 2^21 classes in terms of `BLOCK_CLASSES` each (float32).

A term is the sum of a block of consecutive classes, by a tree of additions that are written out:
XLA's own sums depend on the size of the array. The result is then the same, bit for bit, wherever
the blocks lie.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

BLOCK_CLASSES = 128
# The tree's first additions are of vectors of this length. On a CPU, a tree that ends with single
# numbers is not vectorized at all unless its first part is a program of its own.
VECTOR_LENGTH = 8


class Format(NamedTuple):
    """How many bits are behind the point in the first limb, and in each of the others."""

    first_bits: int
    other_bits: int
    limbs: int


def choose_format(dtype: jnp.dtype, blocks: int, *, limbs: int = 3) -> Format:
    """Return the format for sums of this number of blocks of classes."""
    bits = jnp.finfo(dtype).bits - 2
    return Format(bits - 2 - _log2_ceil(blocks * BLOCK_CLASSES), bits - _log2_ceil(blocks), limbs)


def count_blocks(classes: int) -> int:
    """Return the number of blocks of a shard."""
    return -(-classes // BLOCK_CLASSES)


def sum_blocks(terms: Array, axis: int) -> Array:
    """Return the sums of the blocks of an axis, `[..., blocks, ...]`, by a tree of additions."""
    blocks = count_blocks(terms.shape[axis])
    missing = blocks * BLOCK_CLASSES - terms.shape[axis]
    widths = [(0, missing if i == axis else 0) for i in range(terms.ndim)]
    terms = jnp.pad(terms, widths) if missing else terms
    lead, rest = terms.shape[:axis], terms.shape[axis + 1 :]
    terms = _halve(terms.reshape(*lead, blocks, BLOCK_CLASSES, *rest), axis + 1, VECTOR_LENGTH)
    terms = lax.platform_dependent(terms, cpu=lax.optimization_barrier, default=lambda a: a)
    return jnp.squeeze(_halve(terms, axis + 1, 1), axis + 1)


def _halve(x: Array, axis: int, length: int) -> Array:
    """Return x with the halves of an axis added until it has this length."""
    while x.shape[axis] > length:
        half = x.shape[axis] // 2
        x = lax.slice_in_dim(x, 0, half, axis=axis) + lax.slice_in_dim(x, half, None, axis=axis)
    return x


def power_above(bound: Array) -> Array:
    """Return the power of two b with bound < 4 b <= 2 bound, or the nearest one that is normal.

    The quarter is for bounds near the largest number: 4 b may be infinite, and 1 / b is normal.
    """
    info = jnp.finfo(bound.dtype)
    integer = jnp.dtype(f"int{info.bits}")
    exponent = lax.bitcast_convert_type(bound, integer) >> info.nmant
    exponent = jnp.maximum(exponent - 1, 1)
    return lax.bitcast_convert_type(exponent << info.nmant, bound.dtype)


def to_limbs(blocks: Array, scale: Array, axis: int, form: Format) -> list[Array]:
    """Return the sum along an axis of the sums of blocks, relative to b, as integers."""
    integer = jnp.dtype(f"int{jnp.finfo(blocks.dtype).bits}")
    # Exact: products with powers of two, and what rounding to an integer leaves.
    rest, limbs = blocks * jnp.expand_dims(1 / scale, axis), []
    for bits in (form.first_bits, *[form.other_bits] * (form.limbs - 1)):
        rest = rest * rest.dtype.type(2.0**bits)
        whole = lax.round(rest, lax.RoundingMethod.TO_NEAREST_EVEN)
        limbs.append(jnp.sum(whole, axis, dtype=integer))
        rest = rest - whole
    return limbs


def from_limbs(limbs: list[Array], scale: Array, form: Format) -> Array:
    """Return the sum as a float, rounded about once."""
    first, *others = limbs
    bits, carry = form.other_bits, jnp.zeros_like(first)
    # Carries, so that each limb is less than a unit of the one before.
    fraction, unit = jnp.zeros_like(scale), scale.dtype.type(2.0**-bits)
    for limb in reversed(others):
        limb = limb + carry
        carry = limb >> bits
        fraction = ((limb & ((1 << bits) - 1)).astype(scale.dtype) + fraction) * unit
    # The first limb may have more bits than a float: it is two floats.
    first = first + carry
    half = jnp.iinfo(first.dtype).bits // 2 - 1
    high, low = (first >> half) << half, first & ((1 << half) - 1)
    total = high.astype(scale.dtype) + (low.astype(scale.dtype) + fraction)
    return total * scale.dtype.type(2.0**-form.first_bits) * scale


def _log2_ceil(n: int) -> int:
    return math.ceil(math.log2(n)) if n > 1 else 0
