"""The settings of a call, checked before anything runs and normalized as keys of programs.

NumPy's numbers and strings become Python's, and names become the dtypes and precisions that they
stand for, so that one setting written in two ways gives one compiled program.
"""

from collections.abc import Callable, Hashable
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
from jaxsoftmax.sharding import Shards


class Implementation(NamedTuple):
    """An implementation of the fused losses."""

    module: str
    platform: str | None  # the platform that it needs, if any


# `defaults` has the ones that run unless one is named.
IMPLEMENTATIONS = {
    "xla_chunked": Implementation("jaxsoftmax.kernels.xla_chunked", None),
    "mosaic_gpu": Implementation("jaxsoftmax.kernels.gpu.implementation", "gpu"),
    "mosaic_gpu_rows": Implementation("jaxsoftmax.kernels.gpu.row_chunks", "gpu"),
    "mosaic_tpu": Implementation("jaxsoftmax.kernels.tpu.implementation", "tpu"),
}

type Number = float | np.number | Array

# The range of float32: a softcap that rounds to 0 or infinity would make every logit NaN.
MIN_SOFTCAP, MAX_SOFTCAP = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Call:
    """The settings that a user passes to a call, which are known at compile time."""

    softcap: float | None
    precision: Precision
    dtype: np.dtype | None
    memory: int | None
    implementation: str | None
    tiles: Tiles | None
    stats: bool = False
    shards: Shards | None = None
    row_loss: Callable | None = None


def check(
    *,
    softcap: Number | None,
    precision: Precision,
    dtype: DTypeLike | None,
    memory: Number | None,
    implementation: str | None,
    tiles: Tiles | None,
    stats: bool = False,
    shards: Shards | None = None,
    row_loss: Callable | None = None,
) -> Call:
    """Return the settings, normalized.

    Raises:
        TypeError: if a setting has the wrong type or is not known at compile time.
        ValueError: if a setting has a value that it cannot take.
    """
    if tiles is not None and not isinstance(tiles, Tiles):
        raise TypeError(f"tiles: expected Tiles, got {tiles!r}")
    if row_loss is not None and not callable(row_loss):
        raise TypeError(f"row_loss: expected a function of three numbers, got {row_loss!r}")
    if not isinstance(row_loss, Hashable):
        raise TypeError(f"row_loss: expected a function that has a hash, got {row_loss!r}")
    if not isinstance(stats, bool | np.bool_):
        raise TypeError(f"return_stats: expected True or False, got {stats!r}")
    return Call(
        None if softcap is None else _check_softcap(softcap),
        _check_precision(precision),
        None if dtype is None else _check_dtype(dtype),
        None if memory is None else _check_memory(memory),
        None if implementation is None else _check_implementation(implementation),
        tiles,
        stats,
        shards,
        row_loss,
    )


def _check_softcap(softcap: Number) -> float:
    value = _to_python(softcap, "softcap", "a positive number")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"softcap: expected a positive number, got {softcap!r}")
    if not MIN_SOFTCAP <= value <= MAX_SOFTCAP:  # type: ignore[operator]
        raise ValueError(f"softcap: expected a positive number, got {softcap!r}")
    return float(value)


def _check_memory(memory: Number) -> int:
    value = _to_python(memory, "memory", "a number of bytes")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"memory: expected a number of bytes, an integer, got {memory!r}")
    if value < 1:
        raise ValueError(f"memory: expected a positive number of bytes, got {memory}")
    return int(value)


def _to_python(x: Any, name: str, expected: str) -> Any:
    """Return a scalar of NumPy or JAX as a Python number, and anything else as it is."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{name}: expected {expected} that is known at compile time, "
            f"got a tracer, {x}; make it a static argument"
        )
    return np.asarray(x).item() if isinstance(x, np.generic) or _is_scalar_array(x) else x


def _is_scalar_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | Array) and x.ndim == 0


def _check_precision(precision: Any) -> Any:
    """Return a precision, or two where each operand has its own; strings become precisions."""
    if isinstance(precision, list | tuple) and len(precision) == 2:
        return _check_precision(precision[0]), _check_precision(precision[1])
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


def _check_dtype(dtype: DTypeLike) -> np.dtype:
    try:
        normalized = jnp.dtype(dtype)
    except TypeError:
        normalized = None
    if normalized is None or not jnp.issubdtype(normalized, jnp.floating):
        raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}")
    return jax.dtypes.canonicalize_dtype(normalized)


def _check_implementation(implementation: str) -> str:
    names = *IMPLEMENTATIONS, "reference"
    if not isinstance(implementation, str) or implementation not in names:
        expected = ", ".join(names)
        raise ValueError(f"implementation: expected one of {expected}, got {implementation!r}")
    return str(implementation)
