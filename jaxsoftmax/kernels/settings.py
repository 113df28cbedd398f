"""The settings of a call: checked before anything runs, in the form that programs are keyed by.

NumPy's numbers and strings become Python's, and names of dtypes and precisions what they stand for,
so that one setting written in two ways is one compiled program.
"""

from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax.kernels.tiles import Tiles
from jaxsoftmax.kernels.types import Precision


class Implementation(NamedTuple):
    """One of the fused losses' implementations."""

    module: str
    platform: str | None  # the platform it needs, if any


# In the order in which they are tried. The kernels for accelerators come after the implementation
# that runs everywhere until a record shows that they are faster, so they run only when named.
IMPLEMENTATIONS = {
    "xla_chunked": Implementation("jaxsoftmax.kernels.xla_chunked", None),
    "mosaic_gpu": Implementation("jaxsoftmax.kernels.gpu.implementation", "gpu"),
    "mosaic_tpu": Implementation("jaxsoftmax.kernels.tpu.implementation", "tpu"),
}

type Number = float | np.number | Array

# What float32 holds: a softcap that rounds to 0 or infinity would make every logit NaN.
LEAST, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Call:
    """The settings of a user's call, which are known at compile time."""

    softcap: float | None
    precision: Precision
    dtype: np.dtype | None
    memory: int | None
    implementation: str | None
    tiles: Tiles | None
    stats: bool = False


def check(
    *,
    softcap: Number | None,
    precision: Precision,
    dtype: DTypeLike | None,
    memory: Number | None,
    implementation: str | None,
    tiles: Tiles | None,
    stats: bool = False,
) -> Call:
    """Return the settings; a TypeError or ValueError names the one that is none."""
    if tiles is not None and not isinstance(tiles, Tiles):
        raise TypeError(f"tiles: expected Tiles, got {tiles!r}")
    return Call(
        None if softcap is None else _softcap(softcap),
        _precision(precision),
        None if dtype is None else _dtype(dtype),
        None if memory is None else _memory(memory),
        None if implementation is None else _implementation(implementation),
        tiles,
        stats,
    )


def _softcap(softcap: Number) -> float:
    value = _python(softcap, "softcap", "a positive number")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"softcap: expected a positive number, got {softcap!r}")
    if not LEAST <= value <= MOST:  # type: ignore[operator]
        raise ValueError(f"softcap: expected a positive number, got {softcap!r}")
    return float(value)


def _memory(memory: Number) -> int:
    value = _python(memory, "memory", "a number of bytes")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"memory: expected a number of bytes, an integer, got {memory!r}")
    if value < 1:
        raise ValueError(f"memory: expected a positive number of bytes, got {memory}")
    return int(value)


def _python(x: Any, name: str, expected: str) -> Any:
    """A number of NumPy or JAX as Python's."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{name}: expected {expected} that is known when the program is compiled, "
            f"got a tracer, {x}; make it a static argument"
        )
    return np.asarray(x).item() if isinstance(x, np.generic) or _is_scalar_array(x) else x


def _is_scalar_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | Array) and x.ndim == 0


def _precision(precision: Any) -> Any:
    """Strings as what they name; two of them where the operands have one each."""
    if isinstance(precision, list | tuple) and len(precision) == 2:
        return _precision(precision[0]), _precision(precision[1])
    if precision is None or isinstance(
        precision, lax.Precision | lax.DotAlgorithm | lax.DotAlgorithmPreset
    ):
        return precision
    if isinstance(precision, str):
        with suppress(ValueError):
            return lax.Precision(precision)
        with suppress(KeyError):
            return lax.DotAlgorithmPreset[precision]
    raise ValueError(
        "precision: expected None, 'default', 'high', 'highest' or another precision of "
        f"jax.lax.dot_general, got {precision!r}"
    )


def _dtype(dtype: DTypeLike) -> np.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}")
    return jax.dtypes.canonicalize_dtype(found)


def _implementation(implementation: str) -> str:
    known = *IMPLEMENTATIONS, "reference"
    if not isinstance(implementation, str) or implementation not in known:
        expected = ", ".join(known)
        raise ValueError(f"implementation: expected one of {expected}, got {implementation!r}")
    return str(implementation)
