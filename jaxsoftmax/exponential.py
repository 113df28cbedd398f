"""The exact exponential: exp(z - max z) up to scale, without rounding z - max z.

The exponential itself is accurate; its argument is what ruins a softmax in floating point. Half an
ulp of z - max z near 80 is 32 ulp of exp(-80), and with an offset of 1e4 on the logits it is 4,000.
So this module subtracts the binary exponents of the exponentials instead of the logits. With
n = round(z / ln 2),

    exp(z) = 2^n exp(t),    t = z - n ln 2,    |t| <= ln(2) / 2,

where ln 2 = high + low and n * high is exact, so that the error of t is half an ulp of a number
below 0.35. A row shares n_max, and each entry is

    scaled_exp(z) = c exp(t) 2^(n - n_max + s) = exp(z - max z) c exp(t_max) 2^s,

whose factor c exp(t_max) 2^s cancels in every ratio. The scale 2^s turns entries as small as the
smallest normal number, relative to the maximum, into normal numbers; c puts the largest entry of
the row where a sum loses the least (`LARGEST_TERM`). exp(t) is a minimax polynomial, and the power
of two is built from its exponent bits as an integer.

A maximum outside the range in which n * high is exact is subtracted first. There the subtraction
is exact for every term that matters, because such a term is within a factor of two of the maximum
(Sterbenz). An entry equal to the maximum never goes through a subtraction. Rows with infinite
entries therefore need no special case, and neither do compilers that fuse the product c * x of
`softmax(c * x)` into the subtraction (jax issue 37234).

Reference: the range reduction is due to Cody and Waite (Software Manual for the Elementary
Functions, 1980); Blanchard, Higham and Higham (IMA J. Numer. Anal. 41, 2021) bound the error
that it removes.
"""

import functools
from importlib import import_module
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.placement import select


class _Format(NamedTuple):
    """Constants of the algorithm for one floating-point format."""

    integer_dtype: Any  # the integer type of the same width
    mantissa_bits: int  # number of stored mantissa bits
    exponent_bias: int
    scale_exponent: int  # s: the factor 2^s keeps small terms normal
    exact_limit: float  # maxima of at least this magnitude are subtracted first
    cutoff: float  # a term this far below the maximum is negligible
    ln2_high_bits: int  # bits of the high part of ln 2; n * high is exact
    polynomial: tuple[float, ...]  # q in exp(t) = 1 + t + t^2 q(t), lowest order first


# The minimax polynomials' relative errors are 2^-28.2 (float32) and 2^-57.9 (float64) on
# |t| <= 1.0005 ln(2) / 2; they come from a Remez exchange in 200-bit arithmetic.
_FORMATS = {
    "float32": _Format(
        integer_dtype=jnp.int32,
        mantissa_bits=23,
        exponent_bias=127,
        scale_exponent=64,
        exact_limit=256.0,
        cutoff=128.0,
        ln2_high_bits=14,
        polynomial=(
            0.49999993432129290236,
            0.16666520399042530069,
            0.041668390783547913136,
            0.0083687451089425906506,
            0.0013814540176801306354,
        ),
    ),
    "float64": _Format(
        integer_dtype=jnp.int64,
        mantissa_bits=52,
        exponent_bias=1023,
        scale_exponent=512,
        exact_limit=2048.0,
        cutoff=1024.0,
        ln2_high_bits=40,
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
# A TPU computes float64 as the sum of two float32: 48 bits at most, in the range of float32.
_FORMATS["float64 of a TPU"] = _FORMATS["float64"]._replace(
    scale_exponent=64, exact_limit=256.0, cutoff=128.0, ln2_high_bits=36
)


# Limits of summation, measured with XLA on a CPU (see `_sum`).
#
# LARGEST_TERM is the largest entry of a row, times 2^s. Where many equal entries are added to a
# large one, each addition may round the same way, by half an ulp of the large one. Relative to that
# entry, the error is least just below a power of two. A second large entry, however, must not carry
# the sum past that power, where ulps double.
LARGEST_TERM = 1.6875
SEQUENTIAL_SUM_LIMIT = 8192  # entries; arrays of up to half this size were summed in sequence
SHORT_SUM_CLASSES = 4  # a sequential sum this short loses at most 1.5 ulp
MIN_BLOCK_CLASSES = 32  # smaller blocks would be too many
MAX_BLOCK_CLASSES = 256  # a vectorized sum this long is off by at most 7 ulp
BLOCKED_SUM_LIMIT = 10_000  # classes; longer vectorized sums are off by at most 7 ulp again


class FloatLimits(NamedTuple):
    """The limits of floating-point numbers."""

    eps: float  # the rounding of a number next to 1
    tiny: float  # the least positive normal number
    lowest: float  # the least finite number


class RowScale(NamedTuple):
    """Values that the exponentials of a row share, with no class axis or one of length 1."""

    maximum: Array
    offset: Array  # subtracted from z before the reduction: 0 or the maximum
    peak: Array  # maximum - offset
    floor: Array  # the least argument; terms below it are negligible
    exponent_bits: Array  # s - n_max plus the exponent bias, shifted to the exponent's bits
    factor: Array  # c = LARGEST_TERM / exp(t_max), to about one percent
    remainder: Array  # t_max

    def expand_dims(self, axis: int) -> "RowScale":
        """Return the fields that `scaled_exp` reads with a class axis of length 1."""
        shared = {name: jnp.expand_dims(getattr(self, name), axis) for name in self._fields[:6]}
        return self._replace(**shared)


def prepare_rows(maximum: Array) -> RowScale:
    """Return what the exponentials of rows with these maxima share."""
    form = _form_of(maximum.dtype)
    is_far = jnp.abs(maximum) >= form.exact_limit
    offset, peak = select(is_far, maximum, 0), select(is_far, 0, maximum)
    n, t = _reduce(peak, form)
    factor = t.dtype.type(LARGEST_TERM) * (1 - t + t * t * t.dtype.type(0.5))
    exponent_bits = ((form.scale_exponent + form.exponent_bias) - n) << form.mantissa_bits
    return RowScale(maximum, offset, peak, peak - form.cutoff, exponent_bits, factor, t)


def scale_exponent(dtype: Any) -> int:
    """Return s, where scaled exponentials are those relative to the maximum times about 2^s."""
    return _form_of(dtype).scale_exponent


def exp_of_maximum(row: RowScale) -> Array:
    """Return the value of `scaled_exp` at the maximum itself."""
    form = _form_of(row.maximum.dtype)
    scale = row.remainder.dtype.type(2.0**form.scale_exponent)
    return _scale_exp(row.remainder, row.factor * scale, form)


def scaled_exp(z: Array, row: RowScale) -> Array:
    """Return exp(z - max) LARGEST_TERM 2^s, approximately, for z <= max; shapes broadcast.

    The factor that approximates LARGEST_TERM is the same number in the whole row, and each entry is
    accurate to two ulp relative to it.

    Any entry more than `cutoff` below the maximum, -inf included, gives a number less than half of
    the smallest subnormal relative to the maximum: any ratio rounds it to 0.

    A NaN gives NaN, and sums propagate it. The maximum may not: XLA's maxima lose NaNs in vectors
    on a CPU and among devices over which the classes are sharded. So the comparisons are written to
    be false for entries that should pass through unchanged.
    """
    form = _form_of(z.dtype)
    shifted = select(z >= row.maximum, row.peak, z - row.offset)
    n, t = _reduce(select(shifted <= row.floor, row.floor, shifted), form)
    # One addition forms the exponent of 2^(n - n_max + s): the bits above the integer in n are
    # shifted out. The power multiplies the polynomial in floating point, because an integer added
    # to the bits of a NaN would turn it into a number.
    power = lax.bitcast_convert_type((n << form.mantissa_bits) + row.exponent_bits, z.dtype)
    return _scale_exp(t, row.factor, form) * power


def recompute(e: Array, z: Array, row: RowScale) -> Array:
    """Return e = scaled_exp(z, row) for another pass over memory: on a GPU it is computed again.

    XLA for a GPU would store what two passes share: for half precision, exponentials twice as large
    as the logits, which are written and read. Memory is the limit there, not arithmetic. A CPU
    keeps them in the memory of the result.
    """
    return scaled_exp(again(z), row) if is_for_gpu() else e


def again(z: Array, times: int = 1) -> Array:
    """Return z, on a GPU in a form whose functions XLA does not share with those of z.

    Nor are they shared with the form for another number of times.
    """
    if not is_for_gpu():
        return z
    return z + lax.optimization_barrier([jnp.zeros((), z.dtype)] * times)[0]


def is_for_gpu() -> bool:
    """Return whether the program is traced for a GPU."""
    return _platform() == "gpu"


def is_double_single(dtype: Any) -> bool:
    """Return whether numbers are sums of two float32, as a TPU's float64 are."""
    return jnp.dtype(dtype) == jnp.float64 and _platform() == "tpu"


def float_limits(dtype: Any) -> FloatLimits:
    """Return the limits of a dtype on the device that the program is traced for."""
    if is_double_single(dtype):
        # The lowest float32, and below it the most that does not round to another one.
        lowest = -(2.0**128) + 2.0**103 + 2.0**79
        return FloatLimits(2.0**-48, float(jnp.finfo(jnp.float32).tiny), lowest)
    info = jnp.finfo(dtype)
    return FloatLimits(float(info.eps), float(info.tiny), float(info.min))


def _platform() -> str:
    return import_module("jaxsoftmax.kernels.target").current().platform


def _form_of(dtype: Any) -> _Format:
    return _FORMATS["float64 of a TPU" if is_double_single(dtype) else jnp.dtype(dtype).name]


def sum_terms(terms: Array, row: RowScale, axis: int) -> Array:
    """Return the sums of the rows along the axis; NaN where the maximum is NaN."""
    return select(row.maximum != row.maximum, jnp.nan, _sum(terms, axis))


def _sum(terms: Array, axis: int) -> Array:
    """Return the sum along the axis, to a few ulp in whatever order XLA adds.

    One large entry and many equal small ones make every addition round the same way. Where XLA adds
    windows of 32 entries in sequence, as in small arrays, the error is 15 ulp: there the sum is
    split.

    XLA's vectorized sums, of float32 along the last axis of a large array, are 32 sums of up to 16
    entries each on a CPU. They are accurate to 1.4 ulp on random rows. With hundreds of exact ties,
    `LARGEST_TERM` makes them accurate to 7 ulp at up to 256 classes and at more than 10,000. In
    between, one or two classes ahead of ties, in the worst places, gave errors of 9 ulp, so the sum
    goes by blocks where the number of classes has a divisor of a suitable size. Where it has none,
    any other sum costs a third of the loss or more, and the bound there is 9 ulp.
    """
    classes = terms.shape[axis]
    if not _is_vectorized(terms, axis):
        is_short = placement.is_static(classes) and classes <= SHORT_SUM_CLASSES
        return jnp.sum(terms, axis) if is_short else _split_sum(terms, axis)
    # An explicitly sharded axis cannot be cut at arbitrary positions.
    is_sharded = placement.partition_spec(terms)[axis] is not None
    limit = BLOCKED_SUM_LIMIT * placement.count_groups(terms, axis)
    if is_sharded or not MAX_BLOCK_CLASSES < classes <= limit:
        return jnp.sum(terms, axis)
    return lax.platform_dependent(terms, cpu=_sum_by_blocks, default=lambda e: jnp.sum(e, -1))


def _is_vectorized(terms: Array, axis: int) -> bool:
    """Return whether XLA sums in vectors on a CPU, which it does if a device's part is large.

    If the size is symbolic, the result is False, because a split sum is correct for every size.
    """
    is_last = axis == terms.ndim - 1 and terms.dtype == jnp.float32
    return (
        is_last
        and placement.is_static(*terms.shape)
        and (terms.size > SEQUENTIAL_SUM_LIMIT * placement.count_devices(terms))
    )


def _sum_by_blocks(terms: Array) -> Array:
    """Return the sum along the last axis, by equal blocks where the number of classes allows it.

    A barrier keeps the blocks apart; otherwise XLA would merge the two sums. The blocks cost almost
    nothing.
    """
    classes = terms.shape[-1]
    group = classes // placement.count_groups(terms, -1)  # a block lies on one device
    size = max(size for size in range(1, MAX_BLOCK_CLASSES + 1) if group % size == 0)
    if size < MIN_BLOCK_CLASSES:
        return jnp.sum(terms, -1)
    blocks = jnp.sum(terms.reshape(*terms.shape[:-1], classes // size, size), -1)
    return _split_sum(lax.optimization_barrier(blocks), -1)


def _split_sum(terms: Array, axis: int) -> Array:
    """Return the sum, to half an ulp, as the sum of a coarse and a fine part.

    The coarse part holds multiples of 2^-18 of the scale, whose sum is exact for 32 of them. The
    fine part holds the remainders, which are small.
    """
    form = _form_of(terms.dtype)
    unit = terms.dtype.type(2.0 ** (form.scale_exponent - form.mantissa_bits + 5))
    coarse = lax.round(terms / unit, lax.RoundingMethod.TO_NEAREST_EVEN) * unit
    fine = jnp.sum(terms - coarse, axis)
    return jnp.sum(coarse, axis) + fine


def _reduce(x: Array, form: _Format) -> tuple[Array, Array]:
    """Return n, as an integer in the low bits of the first result, and t = x - n ln 2."""
    high, low = _ln2(form)
    n = lax.round(x * x.dtype.type(1 / np.log(2)), lax.RoundingMethod.TO_NEAREST_EVEN)
    t = (x - n * x.dtype.type(high)) - n * x.dtype.type(low)
    # Adding 1.5 * 2^mantissa_bits puts the integer into the low bits, which is cheaper than a
    # conversion. It does not do the rounding: XLA of jaxlib 0.11 simplifies (x + c) - c to x.
    return _bits(n + x.dtype.type(1.5 * 2.0**form.mantissa_bits), form), t


def _scale_exp(t: Array, factor: Array, form: _Format) -> Array:
    """Return factor * exp(t)."""
    q = functools.reduce(
        lambda q, c: q * t + t.dtype.type(c),
        reversed(form.polynomial[:-1]),
        t.dtype.type(form.polynomial[-1]),
    )
    return factor + factor * (t + t * t * q)


def _bits(x: Array, form: _Format) -> Array:
    return lax.bitcast_convert_type(x, form.integer_dtype)


def _ln2(form: _Format) -> tuple[float, float]:
    """Return ln 2 as high + low, with high a multiple of 2^-ln2_high_bits."""
    scale = 2.0**form.ln2_high_bits
    high = float(np.round(np.ldexp(np.log(2), form.ln2_high_bits)) / scale)
    # The constant is ln 2 minus log(2) in float64, so that low itself has 53 correct bits.
    return high, (float(np.log(2)) - high) + 2.3190468138462996e-17
