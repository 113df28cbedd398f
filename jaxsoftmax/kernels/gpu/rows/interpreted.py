"""The arithmetic of the row kernels in JAX, for the interpreter: what `device` does in PTX."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxsoftmax.kernels.gpu.rows.numerics import (
    FAR,
    LOG2E,
    LOG2E_LOW,
    REACH,
    ROUNDING,
    SCALE_EXPONENT,
    THREADS,
    Scale,
    State,
)


def accumulate(entries: Any, state: State) -> State:
    """Return the state with the entries of a reference."""
    z = _per_thread(entries)
    maximum = jnp.maximum(state.maximum, jnp.max(z, 1))
    n = _exponent(maximum)
    scale = Scale((ROUNDING + SCALE_EXPONENT - n)[:, None], (_bounded(maximum) - REACH)[:, None])
    kept = state.total * _power(_exponent(state.maximum) - n)
    return State(maximum, kept + _sum(exponential(z, scale)))


def add_exponentials(entries: Any, total: Array, scale: Scale) -> Array:
    """Return the sums of the threads with the exponentials of the entries of a reference."""
    return total + _sum(exponential(_per_thread(entries), scale))


def publish(state: State, place: Any, peers: int) -> None:
    """Write the maximum and the sum of each warp to `[4, 2]`: here all of them as the first's."""
    del peers
    maximum = jnp.max(state.maximum)
    powers = _power(_exponent(state.maximum) - _exponent(maximum))
    place[0, 0], place[0, 1] = maximum, _sum(state.total * powers)
    for warp in range(1, place.shape[0]):
        place[warp, 0], place[warp, 1] = jnp.float32(-jnp.inf), jnp.float32(0)


def collect(place: Any, own: Array) -> tuple[Array, Array, Array]:
    """Return the maximum of what all warps found and of `own`, its n, and the sum relative to n."""
    warps = range(place.shape[0])
    maxima = jnp.stack([place[i, 0] for i in warps])
    totals = jnp.stack([place[i, 1] for i in warps])
    maximum = jnp.maximum(jnp.max(maxima), own)
    n = _exponent(maximum)
    return maximum, n, _sum(totals * _power(_exponent(maxima) - n))


def exponential(z: Array, scale: Scale) -> Array:
    """Return the exponentials, exp(z - offset) 2^(64 - n)."""
    if scale.maximum is not None:
        z = jnp.where(z >= scale.maximum, 0, z - scale.maximum)
    z = jnp.maximum(z, scale.floor)
    n = lax.round(z * LOG2E, lax.RoundingMethod.TO_NEAREST_EVEN)
    product, error = _two_product(z, LOG2E)
    f = ((product - n) + error) + z * LOG2E_LOW
    bits = lax.bitcast_convert_type(jnp.exp2(f), jnp.int32)
    shift = (n + (scale.magic - ROUNDING)).astype(jnp.int32) << 23
    return lax.bitcast_convert_type(bits + shift, jnp.float32)


def replace_by_gradient(entries: Any, scale: Scale, factor: Array) -> None:
    """Replace the entries of a reference by factor exp(z - offset) 2^(64 - n)."""
    z = entries[...]
    entries[...] = (exponential(z.astype(jnp.float32), scale) * factor).astype(z.dtype)


def copy_entries(
    chunk: Any, out: Any, base: Array, start: int, count: int, low: Any, high: Any, offset: int
) -> None:
    """Set out[base + c] = chunk[c - offset] for c from start, where low <= c < high."""
    for c in range(start, start + count):

        def copy(c: int = c) -> None:
            out[base + c] = chunk[c - offset]

        pl.when((c >= low) & (c < high))(copy)


def fence() -> None:
    """Order what blocks wrote for each other."""


def _per_thread(entries: Any) -> Array:
    return entries[...].astype(jnp.float32).reshape(THREADS, -1)


def _bounded(maximum: Array) -> Array:
    return jnp.maximum(maximum, -FAR)


def _exponent(maximum: Array) -> Array:
    return lax.round(_bounded(maximum) * LOG2E, lax.RoundingMethod.TO_NEAREST_EVEN)


def _power(n: Array) -> Array:
    """Return 2^n for integers n <= 0, and 0 below the smallest normal number."""
    k = jnp.maximum(n, -127.0).astype(jnp.int32) + 127
    return lax.bitcast_convert_type(k << 23, jnp.float32)


def _sum(e: Array) -> Array:
    """Return the sum along the last axis by pairs, as threads and warps take it.

    XLA's own sum of a small array is one chain of additions.
    """
    while e.shape[-1] > 1:
        e = jnp.pad(e, [(0, 0)] * (e.ndim - 1) + [(0, e.shape[-1] % 2)])
        e = e[..., ::2] + e[..., 1::2]
    return e[..., 0]


def _two_product(a: Array, b: np.float32) -> tuple[Array, Array]:
    """Return a * b as an exact sum, since JAX has no fused multiply-add (Dekker)."""

    def halves(x: Any) -> tuple[Any, Any]:
        c = x * jnp.float32(4097)
        high = c - (c - x)
        return high, x - high

    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(jnp.full_like(a, b))
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
