"""Sums of non-negative floats as integers: exact in any order, and so for any number of shards.

An all-reduce of floats rounds at every shard, in an order that the network chooses. Here each term
x <= b, with b a power of two, is written in three integers ("limbs"),

    x / b = (n_0 + (n_1 + n_2 2^-l) 2^-l) 2^-h,

and sums of integers are exact. With K classes h = 30 - log2 K bits leave room for K terms as large
as b. The other limbs are remainders of at most one half in units of the one before, so that l is 30
- log2 P for P terms. What is lost is half a unit of n_2 a term, which is less than half an ulp of
the sum up to 2^21 classes in terms of `BLOCK_CLASSES` each (float32).

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


class Limbs(NamedTuple):
    """A sum of terms, relative to a bound of each: three integers."""

    first: Array
    second: Array
    third: Array


class Format(NamedTuple):
    """How many bits are behind the point in the first limb, and in each of the others."""

    first_bits: int
    other_bits: int


def choose_format(dtype: jnp.dtype, classes: int, blocks: int) -> Format:
    """Return the format for sums of `blocks` blocks with `classes` classes in all."""
    bits = jnp.finfo(dtype).bits - 2
    return Format(bits - _log2_ceil(classes), bits - _log2_ceil(blocks))


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


def power_above(x: Array) -> Array:
    """Return the power of two b with x < b <= 2 x, for normal x > 0."""
    info = jnp.finfo(x.dtype)
    integer = jnp.dtype(f"int{info.bits}")
    exponent = lax.bitcast_convert_type(x, integer) >> info.nmant
    return lax.bitcast_convert_type((exponent + 1) << info.nmant, x.dtype)


def to_limbs(terms: Array, bound: Array, axis: int, form: Format) -> Limbs:
    """Return the sum along an axis of terms in [0, BLOCK_CLASSES bound], as integers."""
    integer = jnp.dtype(f"int{jnp.finfo(terms.dtype).bits}")
    # Exact: products with powers of two, and what rounding to an integer leaves.
    rest = terms * jnp.expand_dims(1 / bound, axis)
    limbs = []
    for bits in (form.first_bits, form.other_bits, form.other_bits):
        rest = rest * rest.dtype.type(2.0**bits)
        whole = lax.round(rest, lax.RoundingMethod.TO_NEAREST_EVEN)
        limbs.append(jnp.sum(whole, axis, dtype=integer))
        rest = rest - whole
    return Limbs(*limbs)


def from_limbs(limbs: Limbs, bound: Array, form: Format) -> Array:
    """Return the sum as a float, rounded about once."""
    first, second, third = limbs
    bits = form.other_bits
    # Carries, so that each limb is less than a unit of the one before.
    second, third = second + (third >> bits), third & ((1 << bits) - 1)
    first, second = first + (second >> bits), second & ((1 << bits) - 1)
    # The first limb may have more bits than a float: it is two floats.
    half = jnp.iinfo(first.dtype).bits // 2 - 1
    unit = bound.dtype.type(2.0**-bits)
    fraction = (second.astype(bound.dtype) + third.astype(bound.dtype) * unit) * unit
    high, low = (first >> half) << half, first & ((1 << half) - 1)
    total = high.astype(bound.dtype) + (low.astype(bound.dtype) + fraction)
    return total * bound.dtype.type(2.0**-form.first_bits) * bound


def _log2_ceil(n: int) -> int:
    return math.ceil(math.log2(n)) if n > 1 else 0
