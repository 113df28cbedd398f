"""Sums of floats as integers: exact in any order, and so for any number of shards.

An all-reduce of floats rounds at every shard, in an order that the network chooses. Here each term
|x| <= 4 b, with b a power of two, is rounded to a multiple of one unit 2^-f b, and sums of integers
are exact. Two int32 numbers ("limbs") hold a sum, or three,

    sum x / (2^-f b) = n_0 2^l + n_1,    0 <= n_1 < 2^l at each shard,

with l = 32 - 10 bits, so that the sum of n_1 over 1,024 shards has 32 bits. (More shards leave
fewer, and float64 has limbs of 64 bits.) With K classes n_0 has to hold K terms as large as 4 b,
so f = 61 - 10 - log2 K.

A term is the sum of a block of consecutive classes, by a tree of additions that are written out:
XLA's own sums depend on the size of the array. The result is then the same, bit for bit, wherever
the blocks lie. What is lost is half a unit a block. A block has 128 classes up to 2^18 classes.
Above, the sums of several of them are added as longer integers before they are rounded, 8 of them
at 2^20 classes, so that an ulp of the bound is lost at most (float32).

Fewer limbs cannot do. A sum of K terms up to the bound, of which each of P blocks may lose half a
unit, and all together 8 ulp or 2^-20 of the bound, takes log2 K + log2 P + 19 bits: 49 at 2^20
classes with a block on each of 1,024 shards, and one int32 has 32. For the same reason no two sums
share three limbs: 98 bits, of at most 96.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import exponential

BLOCK_CLASSES = 128
# The tree's first additions are of vectors of this length. On a CPU, a tree that ends with single
# numbers is not vectorized at all unless its first part is a program of its own.
VECTOR_LENGTH = 8
LOG2_SHARDS = 10  # the same units, and so the same bits, for up to 1,024 shards


class Format(NamedTuple):
    """How a sum is written in limbs."""

    first_bits: int  # behind the point in the first limb
    limb_bits: int  # in each of the other limbs, an even number
    limbs: int
    group: int  # how many blocks are rounded at once

    @property
    def piece_bits(self) -> int:
        """The bits of half a limb: the sum of a device's blocks is in pieces of these."""
        return self.limb_bits // 2


def choose_format(dtype: jnp.dtype, blocks: int, *, shards: int = 1, limbs: int = 2) -> Format:
    """Return the format for sums of this number of blocks of classes on all shards."""
    bits = jnp.finfo(dtype).bits
    headroom = max(LOG2_SHARDS, 2 * math.ceil(_log2_ceil(shards) / 2))
    classes = _log2_ceil(blocks * BLOCK_CLASSES)
    # Half a unit a group is half an ulp of the bound if these are not more than the spare bits.
    spare = bits - headroom + bits - 1 - jnp.finfo(dtype).nmant - classes
    group = 2 ** max(0, _log2_ceil(blocks) - spare)
    return Format(bits - 3 - classes, bits - headroom, limbs, group)


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

    The quarter is for bounds near the largest number: 4 b may be infinite, and 1 / b is normal. A
    TPU's float64 have the range of float32.
    """
    info = jnp.finfo(bound.dtype)
    integer = jnp.dtype(f"int{info.bits}")
    exponent = lax.bitcast_convert_type(bound, integer) >> info.nmant
    least = 1 - info.minexp - 126 if exponential.is_double_single(bound.dtype) else 1
    exponent = jnp.maximum(exponent - 1, least)
    return lax.bitcast_convert_type(exponent << info.nmant, bound.dtype)


def to_limbs(blocks: Array, scale: Array, axis: int, form: Format) -> list[Array]:
    """Return the sum along an axis of the sums of blocks, relative to b, as integers."""
    pieces = _to_pieces(blocks * jnp.expand_dims(1 / scale, axis), axis, form)
    *pieces, beyond = [_sum_groups(piece, axis, form.group) for piece in pieces]
    pieces[-1] += _round_shift(beyond, form.piece_bits)
    return _join([jnp.sum(piece, axis, dtype=piece.dtype) for piece in pieces], form)


def _to_pieces(rest: Array, axis: int, form: Format) -> list[Array]:
    """Return integers for each block: those of the first limb, of half limbs, and of one more.

    All operations are exact: products with powers of two, and what rounding to an integer leaves.
    """
    integer, pieces = jnp.dtype(f"int{jnp.finfo(rest.dtype).bits}"), []
    for bits in (form.first_bits, *[form.piece_bits] * (2 * form.limbs - 1)):
        rest = rest * rest.dtype.type(2.0**bits)
        whole = lax.round(rest, lax.RoundingMethod.TO_NEAREST_EVEN)
        pieces.append(whole.astype(integer))
        rest = rest - whole
    return pieces


def _sum_groups(x: Array, axis: int, group: int) -> Array:
    """Return the sums of groups of consecutive blocks."""
    if group == 1:
        return x
    missing = -x.shape[axis] % group
    x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    shape = (*x.shape[:axis], -1, group, *x.shape[axis + 1 :])
    return jnp.sum(x.reshape(shape), axis + 1, dtype=x.dtype)


def _round_shift(x: Array, bits: int) -> Array:
    """Return x 2^-bits, rounded to an integer."""
    return (x + (1 << (bits - 1))) >> bits


def _join(pieces: list[Array], form: Format) -> list[Array]:
    """Return limbs, of which all but the first are from 0 on, from sums of pieces."""
    bits, limbs, carry = form.piece_bits, [], jnp.zeros_like(pieces[0])
    first, *pieces = pieces
    for high, low in zip(pieces[-2::-2], pieces[::-2], strict=True):
        low = low + carry
        high = high + (low >> bits)
        limbs.append(((high & _mask(bits)) << bits) | (low & _mask(bits)))
        carry = high >> bits
    return [first + carry, *reversed(limbs)]


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def from_limbs(limbs: list[Array], scale: Array, form: Format) -> Array:
    """Return the sum as a float, rounded about once."""
    first, *others = limbs
    bits, carry = form.limb_bits, jnp.zeros_like(first)
    # Carries, so that each limb is less than a unit of the one before. The sums have no sign.
    fraction, unit = jnp.zeros_like(scale), scale.dtype.type(2.0**-bits)
    for limb in reversed(others):
        limb = limb + carry
        carry = lax.shift_right_logical(limb, jnp.full_like(limb, bits))
        fraction = ((limb & _mask(bits)).astype(scale.dtype) + fraction) * unit
    # The first limb may have more bits than a float: it is two floats.
    first = first + carry
    half = jnp.iinfo(first.dtype).bits // 2 - 1
    high, low = (first >> half) << half, first & _mask(half)
    total = high.astype(scale.dtype) + (low.astype(scale.dtype) + fraction)
    return total * scale.dtype.type(2.0**-form.first_bits) * scale


def _log2_ceil(n: int) -> int:
    return math.ceil(math.log2(n)) if n > 1 else 0
