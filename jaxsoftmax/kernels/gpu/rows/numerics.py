"""The exact exponential of the row kernels, and the constants that its two forms share.

With n = round(z log2 e), an exponential is exp(z) = 2^n 2^f, where f = z log2 e - n comes from a
fused multiply-add, so that no subtraction of numbers as large as z is rounded. The device computes
2^f to 2 ulp, and the integer n - n_row + 64 is added to the bits of its exponent: what a row's
exponentials share, exp(-z_max), is only ever the power of two 2^(64 - n_row).

Where the maximum of a row is at least FAR in size, n is no longer exact. There the maximum is
subtracted first, which is exact for every term that matters, as in `jaxsoftmax.exponential`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

LOG2E = np.float32(np.log2(np.e))
LOG2E_LOW = np.float32(np.log2(np.e) - np.float64(LOG2E))
ROUNDING = np.float32(1.5 * 2**23)  # a number to which this is added is rounded to an integer
SCALE_EXPONENT = np.float32(64)  # keeps small terms normal
FAR = np.float32(2.0**20)
REACH = np.float32(128)  # a term this far below the maximum is negligible
THREADS = 128  # of a warpgroup


class State(NamedTuple):
    """The maxima and sums of each thread over its entries of a row, `[128]`."""

    maximum: Any  # -inf at first
    total: Any  # the sum of exp(z) 2^(64 - n), n = round(maximum log2 e)


class Scale(NamedTuple):
    """The terms that the exponentials exp(z - offset) 2^(64 - n) of a row share."""

    magic: Any  # ROUNDING + 64 - n
    floor: Any  # what z is at least taken for
    maximum: Any = None  # the offset of a row that is far from 0: entries equal to it have z = 0


def far_scale(maximum: Any) -> Scale:
    """Return the scale of a row whose maximum is far from 0: exp(z - maximum) 2^64."""
    return Scale(jnp.float32(ROUNDING + SCALE_EXPONENT), jnp.float32(-REACH), maximum)
