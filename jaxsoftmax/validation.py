"""Validation that every public function shares: clear errors, and one place that makes arrays.

An error names the argument, what was expected and what came. Shapes are asserted with chex. What is
looked at is shapes and dtypes alone, so that it costs nothing once a program is traced.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from jaxsoftmax.placement import select

type ArrayLike = jax.typing.ArrayLike

ROUNDING_ULPS = 4  # ulp by which a probability may leave [0, 1] by rounding


def as_argument(x: Any, name: str) -> Any:
    """What a caller passed as one array, as something that `jax.jit` takes.

    Where NumPy's integers of 64 bits become 32, none wraps: 2^32 is no label, and 0 would be one.
    """
    if x is None or isinstance(x, Array):
        return x
    if isinstance(x, tuple | dict):
        fields = getattr(x, "_fields", ())
        advice = f"; pass one of {', '.join(f'.{field}' for field in fields)}" if fields else ""
        raise TypeError(f"{name}: expected one array, got {type(x).__name__}{advice}")
    if hasattr(x, "__jax_array__") or any(isinstance(leaf, Array) for leaf in jax.tree.leaves(x)):
        return jnp.asarray(x)
    try:
        a = np.asarray(x)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{name}: expected an array, got {error}") from None
    if a.dtype.kind in "OSUMm" or a.dtype == np.longdouble != np.float64:
        kind = f"{type(x).__name__} of dtype {a.dtype}"
        raise TypeError(f"{name}: expected an array of numbers, got {kind}")
    if a.dtype.kind in "iu" and a.dtype.itemsize > 4 and jnp.result_type(int) == np.int32:
        return np.clip(a, -(2**31), 2**31 - 1).astype(np.int32)
    return a


def as_array(x: Any, name: str) -> Array:
    """x as an array of JAX; a TypeError that names it where it is None."""
    if x is None:
        raise TypeError(f"{name}: expected an array, got None")
    return jnp.asarray(as_argument(x, name))


def as_scalar(x: Any, name: str, dtype: Any) -> Array:
    """x as one number of the dtype."""
    x = as_numbers(x, name)
    if x.ndim:
        raise ValueError(f"{name}: expected a scalar, got shape {x.shape}")
    return x.astype(dtype)


def as_setting(x: Any, name: str) -> Any:
    """An argument that is no array, such as an axis, as something that can be compared."""
    x = x.item() if isinstance(x, np.generic) else x
    if isinstance(x, Array | np.ndarray | list | dict):
        raise TypeError(f"{name}: expected one value, got {x!r}")
    return x


def as_floats(x: ArrayLike, name: str = "logits") -> Array:
    """x as an array of floats; a TypeError where it holds anything else.

    Only floats are scores: an integer is most often a label in the wrong place.
    """
    x = as_array(x, name)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected a floating dtype, got {x.dtype}; "
            f"convert it, for example {name}.astype(jnp.float32)"
        )
    return x


def as_numbers(x: ArrayLike, name: str) -> Array:
    """x as an array of real numbers or bools; a TypeError where it holds anything else."""
    x = as_array(x, name)
    if not (jnp.issubdtype(x.dtype, jnp.bool_) or jnp.issubdtype(x.dtype, jnp.number)) or (
        jnp.issubdtype(x.dtype, jnp.complexfloating)
    ):
        raise TypeError(f"{name}: expected real numbers or bools, got {x.dtype}")
    return x


def to_sum_dtype(x: Array) -> Array:
    """x in the dtype in which sums are taken: float64 for float64, else float32."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def as_binary_targets(targets: ArrayLike, logits: Array) -> Array:
    """Targets of a sigmoid in the logits' shape and dtype: of their rank, or a scalar for all."""
    t = as_numbers(targets, "targets")
    if t.ndim not in (0, logits.ndim):
        check_shape(t, logits.shape, "targets", "that of the logits")
    return clip_probabilities(broadcast_to(t, logits.shape, "targets"), logits.dtype)


def as_distributions(targets: ArrayLike, logits: Array, axis: int, *, logs: bool = False) -> Array:
    """Targets of a softmax in the logits' shape and dtype, or of one row `[K]` for all.

    Integers, such as one-hot codes, have the full shape; with an axis less they would be labels.
    """
    t = as_numbers(targets, "targets")
    if t.ndim == 1 < logits.ndim and t.shape == logits.shape[axis : axis + 1]:
        as_floats(t, "targets")
        t = jnp.expand_dims(t, [i for i in range(logits.ndim) if i != axis])
    if t.ndim != logits.ndim:
        check_shape(t, logits.shape, "targets", "that of the logits")
    slack = rounding_slack(t)
    t = broadcast_to(t, logits.shape, "targets").astype(logits.dtype)
    if logs:
        return t
    # One minus a sum of others may be less than 0 by rounding.
    return select((t < 0) & (t >= -slack), 0, t)


def clip_probabilities(t: Array, dtype: Any) -> Array:
    """Probabilities: what is outside [0, 1] by a few ulp is rounding, and NaN what is so by more.

    A sum of float32 probabilities is 1 + 2^-23 as often as not.
    """
    slack = rounding_slack(t)
    t = t.astype(dtype)
    # Selections, for the derivative of a clip is one half at its ends.
    nearest = select(t < 0, 0, select(t > 1, 1, t))
    return select(jnp.abs(t - 0.5) <= 0.5 + slack, nearest, jnp.nan)


def rounding_slack(t: Array) -> float:
    return ROUNDING_ULPS * float(jnp.finfo(t.dtype).eps) if jnp.issubdtype(t.dtype, jnp.floating) else 0


def normalize_axis(logits: Array, axis: int) -> int:
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


def prepare_logits(logits: ArrayLike, axis: int, where: ArrayLike | None = None) -> tuple[Array, int]:
    """Logits in the accumulation dtype, -inf where a class does not exist, and their axis."""
    logits = as_floats(logits)
    axis = normalize_axis(logits, axis)
    z = to_sum_dtype(logits)
    return (z if where is None else jnp.where(broadcast_where(where, z, axis), z, -jnp.inf)), axis


def broadcast_where(where: ArrayLike, logits: Array, axis: int) -> Array:
    """`where` as bools that broadcast to the logits: of their rank, or one for each class."""
    where = as_bools(where, "where")
    if where.ndim == 1 < logits.ndim and where.shape == logits.shape[axis : axis + 1]:
        where = jnp.expand_dims(where, [i for i in range(logits.ndim) if i != axis])
    if where.ndim != logits.ndim:
        check_shape(where, logits.shape, "where", "that of the logits, or one per class")
    return broadcast_to(where, logits.shape, "where")


def as_bools(x: ArrayLike, name: str) -> Array:
    """x as an array of bools; a TypeError where it holds anything else."""
    x = as_array(x, name)
    if x.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected bool, got {x.dtype}")
    return x


def check_shape(x: Any, shape: tuple[int, ...], name: str, like: str) -> Any:
    """x, after an assertion that it has this shape."""
    try:
        chex.assert_shape(x, shape)
    except AssertionError:
        message = f"{name}: expected shape {shape} ({like}), got {x.shape}"
        raise ValueError(message) from None
    return x


def broadcast_to(x: Array, shape: tuple[int, ...], name: str) -> Array:
    """x broadcast to a shape; a ValueError that names it where that cannot be."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError:
        message = f"{name}: expected a shape that broadcasts to {shape}, got {x.shape}"
        raise ValueError(message) from None


def broadcast_valid(valid: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """`valid` as bools of the given leading shape, or None; integers count where they are not 0.

    With fewer axes it is of the first ones, as weights are: `[B]` of `[B, T]` examples.
    """
    if valid is None:
        return None
    valid = as_flags(valid, "valid")
    if 0 < valid.ndim < len(shape):
        first = shape[: valid.ndim]
        check_shape(valid, first, "valid", "one per example, or a leading part of that")
        valid = valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim))
    return broadcast_to(valid, shape, "valid")


def as_flags(x: ArrayLike, name: str) -> Array:
    """x as bools: an integer is one unless it is 0; a TypeError for floats."""
    x = as_numbers(x, name)
    if 0 in x.shape:
        return x != 0  # an empty list has no dtype to show
    if jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected bools, or integers 0 and 1, got {x.dtype}")
    return x if x.dtype == jnp.bool_ else x != 0


def broadcast_leading(x: Array, values: Array, name: str) -> Array:
    """x, whose shape is a leading part of the values', broadcast to them."""
    check_shape(
        x, values.shape[: x.ndim], name, "that of the values, or a leading part of it"
    )
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (values.ndim - x.ndim)), values.shape)


def zero_ignored(values: Array, valid: Array | None) -> Array:
    """The values, and 0 where an example does not count."""
    return values if valid is None else jnp.where(valid, values, jnp.zeros((), values.dtype))


def zero_ignored_rows(x: Array, valid: Array | None, axis: int) -> Array:
    """The rows, and zeros where an example does not count: before a NaN can spread."""
    return zero_ignored(x, None if valid is None else jnp.expand_dims(valid, axis))


def drop_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape without its class axis."""
    return shape[:axis] + shape[axis + 1 :]


def prepare_labels(
    labels: Any, logits: Array, axis: int, name: str = "labels"
) -> tuple[Array, Array]:
    """Labels as indices that exist, and which of them were in range.

    The range is checked in the labels' own dtype, or a wider one, and in NumPy where they come
    from there: a cast to int32 first would wrap 2^32 to the class 0.
    """
    given = as_array(labels, name) if labels is None else as_argument(labels, name)
    # An empty list has no integers to show.
    labels = jnp.zeros(given.shape, jnp.int32) if 0 in given.shape else given
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, got {labels.dtype}")
    check_shape(labels, drop_axis(logits.shape, axis), name, "logits without the class axis")
    if jnp.iinfo(labels.dtype).bits < 32:
        labels = labels.astype(jnp.int32)
    known = jnp.asarray((labels >= 0) & (labels < logits.shape[axis]))
    return jnp.where(known, labels, 0).astype(jnp.int32), known


def as_concrete(x: ArrayLike, name: str) -> np.ndarray:
    """x as a NumPy array of values to look at now; a TypeError under jit, vmap or grad."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{name}: expected an array with values, got a tracer; check before jit")
    return to_host(x)


def to_host(x: ArrayLike) -> np.ndarray:
    """x as a NumPy array, all of it, also where each of several processes holds a part."""
    if isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def prepare_binary(
    logits: ArrayLike,
    targets: ArrayLike,
    pos_weight: ArrayLike | None,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Logits, targets and positive weights of one shape and dtype; 0 where a label is ignored."""
    z = to_sum_dtype(as_floats(logits))
    t = as_binary_targets(targets, z)
    w = None
    if pos_weight is not None:
        w = as_numbers(pos_weight, "pos_weight").astype(z.dtype)
        w = broadcast_to(w, z.shape, "pos_weight")
    counts = broadcast_valid(valid, z.shape)
    if where is not None:
        exists = broadcast_where(where, z, z.ndim - 1)
        counts = exists if counts is None else counts & exists
    return zero_ignored(z, counts), zero_ignored(t, counts), w, counts
