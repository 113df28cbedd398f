"""The exact exponential: exp(z - max z), scaled, with no rounding of z - max z.

What ruins a softmax in floating point is not the exponential but its argument: half an ulp of
z - max z near 80 is 32 ulp of exp(-80), and with an offset of 1e4 on the logits it is 4,000. So
the numbers are not subtracted; their binary exponents are. With n = round(z / ln 2),

    exp(z) = 2^n exp(t),    t = z - n ln 2,    |t| <= ln(2) / 2,

where ln 2 = high + low and n * high is exact, so that t carries half an ulp of a number below
0.35. A row shares n_max, and each entry is

    scaled_exp(z) = c exp(t) 2^(n - n_max + s) = exp(z - max z) c exp(t_max) 2^s,

whose factor c exp(t_max) 2^s cancels in every ratio. The scale 2^s keeps what is as small as the
smallest normal number, relative to the maximum, a normal number itself; c puts the row's largest
entry where a sum loses least (`LARGEST_TERM`). exp(t) is a minimax polynomial; the power of two is made
of its exponent bits as an integer.

A maximum beyond the range in which n * high is exact is taken off first. There the subtraction
is exact for each term that matters, because such a term lies within a factor of two of the
maximum (Sterbenz). An entry equal to the maximum never goes through a subtraction, so a row with
infinite entries needs no case of its own, and neither does a compiler that fuses the product
c * x of `softmax(c * x)` into the subtraction (jax issue 37234).

Reference: the range reduction is Cody and Waite's (Software Manual for the Elementary
Functions, 1980); Blanchard, Higham and Higham (IMA J. Numer. Anal. 41, 2021) bound the error
that it removes.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.placement import select


class _Format(NamedTuple):
    """What the algorithm needs to know of a floating-point format."""

    integer: Any  # the integer type of the same width
    mantissa: int  # bits of the stored mantissa
    bias: int  # of the exponent
    scale: int  # s: small terms are kept normal by a factor 2^s
    offset: float  # maxima of at least this size are subtracted first
    reach: float  # a term this far below the maximum counts for nothing
    high_bits: int  # bits of ln 2's high part; n * high is exact
    polynomial: tuple[float, ...]  # q in exp(t) = 1 + t + t^2 q(t), lowest order first


# The minimax polynomials' relative errors are 2^-28.2 (float32) and 2^-57.9 (float64) on
# |t| <= 1.0005 ln(2) / 2; they come from a Remez exchange in 200-bit arithmetic.
_FORMATS = {
    "float32": _Format(
        integer=jnp.int32,
        mantissa=23,
        bias=127,
        scale=64,
        offset=256.0,
        reach=128.0,
        high_bits=14,
        polynomial=(
            0.49999993432129290236,
            0.16666520399042530069,
            0.041668390783547913136,
            0.0083687451089425906506,
            0.0013814540176801306354,
        ),
    ),
    "float64": _Format(
        integer=jnp.int64,
        mantissa=52,
        bias=1023,
        scale=512,
        offset=2048.0,
        reach=1024.0,
        high_bits=40,
        polynomial=(
            0.50000000000000106688,
            0.16666666666666411508,
            0.041666666666529728218,
            0.0083333333334949772613,
            0.0013888888943759965395,
            0.00019841269505773775103,
            0.000024801492949633869166,
            2.7557586803895324478e-6,
            2.7630306250293600047e-7,
            2.5000018833187373177e-8,
        ),
    ),
}


# A row's largest entry, times 2^s. Where many equal entries are added to a large one, each addition
# may round the same way, by half an ulp of the large one: relative to it that is least just below a
# power of two. But a second large entry must not carry it over that power, where ulps double.
LARGEST_TERM = 1.6875
SEQUENTIAL_SUM_LIMIT = 8192  # entries: arrays of up to half as many were seen to be summed in sequence
SHORT_SUM_CLASSES = 4  # classes: a sequence this short loses at most 1.5 ulp
MAX_BLOCK_CLASSES = 256  # classes: the vectorised sum of so many is off by 7 ulp at most
MIN_BLOCK_CLASSES = 32  # classes of a block: with fewer there are too many of them
BLOCKED_SUM_LIMIT = 10_000  # classes: of more the vectorised sum is off by 7 ulp at most


class RowScale(NamedTuple):
    """What the exponentials of a row share: one number a row, or length 1 along the class axis."""

    maximum: Array
    base: Array  # what is subtracted from z before the reduction: 0 or the maximum
    peak: Array  # maximum - base
    shift: Array  # s - n_max in the exponent's bits, with the bias
    factor: Array  # c = LARGEST_TERM / exp(t_max), to a hundredth
    rest: Array  # t_max

    def along(self, axis: int) -> "RowScale":
        """The same with a class axis of length 1."""
        shared = {name: jnp.expand_dims(getattr(self, name), axis) for name in self._fields[:5]}
        return self._replace(**shared)


def prepare_rows(maximum: Array) -> RowScale:
    """Prepare the exponentials of rows with the given maxima."""
    form = _FORMATS[maximum.dtype.name]
    far = jnp.abs(maximum) >= form.offset
    base, peak = select(far, maximum, 0), select(far, 0, maximum)
    n, t = _reduce(peak, form)
    factor = t.dtype.type(LARGEST_TERM) * (1 - t + t * t * t.dtype.type(0.5))
    shift = ((form.scale + form.bias) - n) << form.mantissa
    return RowScale(maximum, base, peak, shift, factor, t)


def exp_of_maximum(row: RowScale) -> Array:
    """What `scaled_exp` gives for the maximum itself."""
    form = _FORMATS[row.maximum.dtype.name]
    return _exp(row.rest, row.factor * row.rest.dtype.type(2.0**form.scale), form)


def scaled_exp(z: Array, row: RowScale) -> Array:
    """exp(z - max) LARGEST_TERM 2^s, nearly, for each entry; z <= max, and shapes broadcast.

    What stands for LARGEST_TERM is the same number in the whole row, and each entry is right to two ulp.

    Whatever lies more than `reach` below the maximum, -inf included, gives a number that is less
    than half of the smallest subnormal relative to the maximum: any ratio rounds it to 0.

    A NaN gives NaN, and sums carry it. The maximum need not: XLA's lose it, in vectors on a CPU and
    among devices over which the classes are sharded. So each comparison is false for what passes.
    """
    form = _FORMATS[z.dtype.name]
    shifted = select(z >= row.maximum, row.peak, z - row.base)
    floor = row.peak - form.reach
    n, t = _reduce(select(shifted <= floor, floor, shifted), form)
    # One addition makes the exponent of 2^(n - n_max + s): what stands above the integer in n is
    # shifted out. A product, for an integer added to the bits of a NaN would make a number of it.
    power = lax.bitcast_convert_type((n << form.mantissa) + row.shift, z.dtype)
    return _exp(t, row.factor, form) * power


def sum_terms(entries: Array, row: RowScale, axis: int) -> Array:
    """The sums of rows of entries, without the axis: NaN where the maximum is."""
    return select(row.maximum != row.maximum, jnp.nan, _sum(entries, axis))


def _sum(entries: Array, axis: int) -> Array:
    """The sum along the axis, to a few ulp in whatever order XLA takes.

    One large entry and many equal small ones make every addition round the same way. Where XLA adds
    a window of 32 in sequence, as in small arrays, that is 15 ulp, and the sum is split.

    XLA's vectorised sums, of float32 along the last axis of a large array, are 32 sums of up to 16
    entries each on a CPU. They are good to 1.4 ulp on random rows. With exact ties by the hundred
    `LARGEST_TERM` makes them good to 7 ulp at up to 256 classes and at more than 10,000. Between, one or two
    classes ahead of ties, placed for the worst, were 9 ulp off, and so the sum goes by blocks where
    the classes have a divisor that is one. Elsewhere any other sum costs a third of the loss or
    more: there 9 ulp is the bound.
    """
    classes = entries.shape[axis]
    if not _vectorised(entries, axis):
        few = placement.is_static(classes) and classes <= SHORT_SUM_CLASSES
        return jnp.sum(entries, axis) if few else _split_sum(entries, axis)
    # An explicitly sharded axis cannot be cut at just any place.
    sharded = placement.partition_spec(entries)[axis] is not None
    if sharded or not MAX_BLOCK_CLASSES < classes <= BLOCKED_SUM_LIMIT * placement.count_groups(entries, axis):
        return jnp.sum(entries, axis)
    return lax.platform_dependent(entries, cpu=_sum_by_blocks, default=lambda e: jnp.sum(e, -1))


def _vectorised(entries: Array, axis: int) -> bool:
    """Whether XLA sums in vectors on a CPU: it does not where what one device holds is small.

    Of an array whose size is a symbol nothing is known, and a split sum is right for every size.
    """
    last = axis == entries.ndim - 1 and entries.dtype == jnp.float32
    return (
        last
        and placement.is_static(*entries.shape)
        and (entries.size > SEQUENTIAL_SUM_LIMIT * placement.count_devices(entries))
    )


def _sum_by_blocks(entries: Array) -> Array:
    """The sum along the last axis: of blocks of one size, where the classes have such a divisor.

    A barrier holds the blocks apart, or XLA would join them again. They cost next to nothing.
    """
    classes = entries.shape[-1]
    group = classes // placement.count_groups(entries, -1)  # a block lies on one device
    size = max(size for size in range(1, MAX_BLOCK_CLASSES + 1) if group % size == 0)
    if size < MIN_BLOCK_CLASSES:
        return jnp.sum(entries, -1)
    blocks = jnp.sum(entries.reshape(*entries.shape[:-1], classes // size, size), -1)
    return _split_sum(lax.optimization_barrier(blocks), -1)


def _split_sum(entries: Array, axis: int) -> Array:
    """The sum to half an ulp, as two.

    One is of multiples of 2^-18 of the scale, exact for 32 of them, and one of what is left, small.
    """
    form = _FORMATS[entries.dtype.name]
    unit = entries.dtype.type(2.0 ** (form.scale - form.mantissa + 5))
    coarse = lax.round(entries / unit, lax.RoundingMethod.TO_NEAREST_EVEN) * unit
    fine = jnp.sum(entries - coarse, axis)
    return jnp.sum(coarse, axis) + fine


def _reduce(x: Array, form: _Format) -> tuple[Array, Array]:
    """n, as an integer in the low bits of what is returned, and t = x - n ln 2."""
    high, low = _ln2(form)
    n = lax.round(x * x.dtype.type(1 / np.log(2)), lax.RoundingMethod.TO_NEAREST_EVEN)
    t = (x - n * x.dtype.type(high)) - n * x.dtype.type(low)
    # Adding 1.5 * 2^mantissa puts the integer into the low bits, cheaper than a conversion. It is
    # not what rounds: XLA of jaxlib 0.11 takes (x + c) - c for x.
    return _bits(n + x.dtype.type(1.5 * 2.0**form.mantissa), form), t


def _exp(t: Array, factor: Array, form: _Format) -> Array:
    """factor * exp(t)."""
    q = functools.reduce(
        lambda q, c: q * t + t.dtype.type(c),
        reversed(form.polynomial[:-1]),
        t.dtype.type(form.polynomial[-1]),
    )
    return factor + factor * (t + t * t * q)


def _bits(x: Array, form: _Format) -> Array:
    return lax.bitcast_convert_type(x, form.integer)


def _ln2(form: _Format) -> tuple[float, float]:
    """ln 2 = high + low, with high a multiple of 2^-high_bits."""
    high = float(np.round(np.ldexp(np.log(2), form.high_bits)) / 2.0**form.high_bits)
    # log(2) in float64 and what float64 leaves of it: low is right to 53 bits of its own.
    return high, (float(np.log(2)) - high) + 2.3190468138462996e-17
