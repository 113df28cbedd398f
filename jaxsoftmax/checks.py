"""Validation that every public function shares: clear errors, and one place that makes arrays.

An error names the argument, what was expected and what came. Shapes are asserted with chex.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.typing import ArrayLike


def floating(x: ArrayLike, name: str = "logits") -> Array:
    """x as an array of floats; a TypeError where it holds anything else.

    Only floats are scores: an integer is most often a label in the wrong place.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected a floating dtype, got {x.dtype}; "
            f"convert it, for example {name}.astype(jnp.float32)"
        )
    return x


def numbers(x: ArrayLike, name: str) -> Array:
    """x as an array of real numbers or bools; a TypeError where it holds anything else."""
    x = jnp.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.bool_) or jnp.issubdtype(x.dtype, jnp.number)) or (
        jnp.issubdtype(x.dtype, jnp.complexfloating)
    ):
        raise TypeError(f"{name}: expected real numbers or bools, got {x.dtype}")
    return x


def accumulated(x: Array) -> Array:
    """x in the dtype in which sums are taken: float64 for float64, else float32."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def class_axis(logits: Array, axis: int) -> int:
    """The class axis, counted from the front; it must exist and hold at least one class."""
    if logits.ndim == 0:
        raise ValueError("logits: expected a class axis, got a scalar")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis: expected one integer, got {axis!r}")
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"axis: expected an axis of logits {logits.shape}, got {axis}")
    if logits.shape[axis] == 0:
        raise ValueError(f"logits: expected at least one class, got shape {logits.shape}")
    return axis % logits.ndim


def scores(logits: ArrayLike, axis: int, where: ArrayLike | None = None) -> tuple[Array, int]:
    """Logits in the accumulation dtype, -inf where a class does not exist, and their axis."""
    logits = floating(logits)
    axis = class_axis(logits, axis)
    z = accumulated(logits)
    if where is None:
        return z, axis
    where = boolean(where, "where")
    chex.assert_rank(
        where,
        logits.ndim,
        custom_message=f"where: expected the rank of logits {logits.shape}, got {where.shape}",
        include_default_message=False,
        exception_type=ValueError,
    )
    return jnp.where(broadcast(where, logits.shape, "where"), z, -jnp.inf), axis


def boolean(x: ArrayLike, name: str) -> Array:
    """x as an array of bools; a TypeError where it holds anything else."""
    x = jnp.asarray(x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected bool, got {x.dtype}")
    return x


def shaped(x: Any, shape: tuple[int, ...], name: str, like: str) -> Any:
    """x, after an assertion that it has this shape."""
    chex.assert_shape(
        x,
        shape,
        custom_message=f"{name}: expected shape {shape} ({like}), got {x.shape}",
        include_default_message=False,
        exception_type=ValueError,
    )
    return x


def broadcast(x: Array, shape: tuple[int, ...], name: str) -> Array:
    """x broadcast to a shape; a ValueError that names it where that cannot be."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError:
        message = f"{name}: expected a shape that broadcasts to {shape}, got {x.shape}"
        raise ValueError(message) from None


def valid_rows(valid: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """`valid` as bools of the given leading shape, or None."""
    if valid is None:
        return None
    return shaped(boolean(valid, "valid"), shape, "valid", "one per example")


def count(values: Array, valid: Array | None) -> Array:
    """The values, and 0 where an example does not count."""
    return values if valid is None else jnp.where(valid, values, jnp.zeros((), values.dtype))


def count_rows(x: Array, valid: Array | None, axis: int) -> Array:
    """The rows, and zeros where an example does not count: before a NaN can spread."""
    return count(x, None if valid is None else jnp.expand_dims(valid, axis))


def leading(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape without its class axis."""
    return shape[:axis] + shape[axis + 1 :]


def class_labels(
    labels: ArrayLike, logits: Array, axis: int, name: str = "labels"
) -> tuple[Array, Array]:
    """Labels as indices that exist, and which of them were in range.

    The range is checked in the labels' own dtype, or a wider one, and in NumPy where they come
    from there: a cast to int32 first would wrap 2^32 to the class 0.
    """
    labels = labels if isinstance(labels, Array) else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, got {labels.dtype}")
    shaped(labels, leading(logits.shape, axis), name, "logits without the class axis")
    if jnp.iinfo(labels.dtype).bits < 32:
        labels = labels.astype(jnp.int32)
    known = jnp.asarray((labels >= 0) & (labels < logits.shape[axis]))
    return jnp.where(known, labels, 0).astype(jnp.int32), known


def concrete(x: ArrayLike, name: str) -> np.ndarray:
    """x as a NumPy array of values to look at now; a TypeError under jit, vmap or grad."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{name}: expected an array with values, got a tracer; check before jit")
    return on_host(x)


def on_host(x: ArrayLike) -> np.ndarray:
    """x as a NumPy array, all of it, also where each of several processes holds a part."""
    if isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
