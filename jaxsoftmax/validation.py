"""Validation and conversion of the arguments of public functions.

An error names the argument, the value expected and the value received. Shapes are asserted with
chex, so `chex.disable_asserts` turns these checks off too. Only shapes and dtypes are inspected, so
a traced program pays nothing for it.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import exponential
from jaxsoftmax.host_arrays import ROUNDING_ULPS, check_at_least_one, to_host  # noqa: F401
from jaxsoftmax.placement import enter_mesh, select

# A named alias, so that signatures print `ArrayLike` rather than the union that it stands for.
type ArrayLike = jax.typing.ArrayLike


def as_argument(x: Any, name: str) -> Any:
    """Return an array argument as a value that `jax.jit` accepts.

    NumPy integers of 64 bits are clipped, not wrapped, where they become 32-bit: 2^32 is not a
    label, but it would wrap to 0, which is one.
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
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: expected an array, got {error}") from None
    if a.dtype.kind in "OSUMm" or a.dtype == np.longdouble != np.float64:
        kind = f"{type(x).__name__} of dtype {a.dtype}"
        raise TypeError(f"{name}: expected an array of numbers, got {kind}")
    if a.dtype.kind in "iu" and a.dtype.itemsize > 4 and jnp.result_type(int) == np.int32:
        return np.clip(a, -(2**31), 2**31 - 1).astype(np.int32)
    return a


def as_array(x: Any, name: str) -> Array:
    """Return x as a JAX array; raise a TypeError with its name if it is None."""
    if x is None:
        raise TypeError(f"{name}: expected an array, got None")
    return enter_mesh(jnp.asarray(as_argument(x, name)))


def as_scalar(x: Any, name: str, dtype: Any) -> Array:
    """Return x as a scalar of the given dtype."""
    x = as_numbers(x, name)
    if x.ndim:
        raise ValueError(f"{name}: expected a scalar, got shape {x.shape}")
    return x.astype(dtype)


def as_setting(x: Any, name: str) -> Any:
    """Return an argument that is not an array, such as an axis, as a value that can be compared."""
    x = x.item() if isinstance(x, np.generic) else x
    if isinstance(x, Array | np.ndarray | list | dict):
        raise TypeError(f"{name}: expected one value, got {x!r}")
    return x


def as_floats(x: ArrayLike, name: str = "logits") -> Array:
    """Return x as an array of floats, or raise a TypeError.

    Integers are refused, because an integer passed as a logit is most often a misplaced label.
    """
    x = as_array(x, name)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected a floating dtype, got {x.dtype}; "
            f"convert it, for example {name}.astype(jnp.float32)"
        )
    return x


def as_numbers(x: ArrayLike, name: str) -> Array:
    """Return x as an array of real numbers or bools, or raise a TypeError."""
    x = as_array(x, name)
    if not (jnp.issubdtype(x.dtype, jnp.bool_) or jnp.issubdtype(x.dtype, jnp.number)) or (
        jnp.issubdtype(x.dtype, jnp.complexfloating)
    ):
        raise TypeError(f"{name}: expected real numbers or bools, got {x.dtype}")
    return x


def to_sum_dtype(x: Array) -> Array:
    """Return x in the dtype of sums: float64 for float64, and float32 otherwise."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def as_binary_targets(targets: ArrayLike, logits: Array) -> Array:
    """Return targets of a sigmoid in the logits' shape and dtype.

    They are given with the logits' rank, or as one scalar for all logits.
    """
    t = as_numbers(targets, "targets")
    if t.ndim not in (0, logits.ndim):
        check_shape(t, logits.shape, "targets", "that of the logits")
    return clip_probabilities(broadcast_to(t, logits.shape, "targets"), logits.dtype)


def as_distributions(targets: ArrayLike, logits: Array, axis: int, *, logs: bool = False) -> Array:
    """Return targets of a softmax in the logits' shape and dtype.

    They are given in the logits' shape, or as one row `[K]` for all examples. Integers, such as
    one-hot codes, must have the full shape, because with one axis less they would be labels.
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
    # One minus a sum of other probabilities may be below 0 by rounding. One comparison after the
    # other: XLA for a GPU would store both, combined, for the passes that read the targets.
    return select(t < 0, select(t >= -slack, 0, t), t)


def clip_probabilities(t: Array, dtype: Any) -> Array:
    """Return probabilities clipped to [0, 1]; NaN for those outside by more than a few ulp.

    Up to `ROUNDING_ULPS` are taken for a rounding error: a sum of float32 probabilities is often
    1 + 2^-23.
    """
    slack = rounding_slack(t)
    t = t.astype(dtype)
    # Selections, because the derivative of a clip is one half at its ends.
    nearest = select(t < 0, 0, select(t > 1, 1, t))
    return select(jnp.abs(t - 0.5) <= 0.5 + slack, nearest, jnp.nan)


def rounding_slack(t: Array) -> float:
    """Return how far rounding may put a probability of this dtype outside [0, 1]."""
    if not jnp.issubdtype(t.dtype, jnp.floating):
        return 0
    return ROUNDING_ULPS * exponential.float_limits(t.dtype).eps


def normalize_axis(logits: Array, axis: int) -> int:
    """Return the class axis, counted from the front; it must have at least one class."""
    if logits.ndim == 0:
        raise ValueError("logits: expected a class axis, got a scalar")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis: expected one integer, got {axis!r}")
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"axis: expected an axis of logits {logits.shape}, got {axis}")
    if logits.shape[axis] == 0:
        raise ValueError(f"logits: expected at least one class, got shape {logits.shape}")
    return axis % logits.ndim


def prepare_logits(
    logits: ArrayLike, axis: int, where: ArrayLike | None = None
) -> tuple[Array, int]:
    """Return logits in the dtype of sums, -inf where a class does not exist, and their axis."""
    logits = as_floats(logits)
    axis = normalize_axis(logits, axis)
    z = to_sum_dtype(logits)
    if where is not None:
        z = jnp.where(broadcast_where(where, z, axis), z, -jnp.inf)
    return z, axis


def broadcast_where(where: ArrayLike, logits: Array, axis: int) -> Array:
    """Return `where` broadcast to the logits, from an array of their rank or one bool per class."""
    where = as_bools(where, "where")
    if where.ndim == 1 < logits.ndim and where.shape == logits.shape[axis : axis + 1]:
        where = jnp.expand_dims(where, [i for i in range(logits.ndim) if i != axis])
    if where.ndim != logits.ndim:
        check_shape(where, logits.shape, "where", "that of the logits, or one per class")
    return broadcast_to(where, logits.shape, "where")


def as_bools(x: ArrayLike, name: str) -> Array:
    """Return x as an array of bools, or raise a TypeError."""
    x = as_array(x, name)
    if x.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected bool, got {x.dtype}")
    return x


def check_shape(x: Any, shape: tuple[int, ...], name: str, like: str) -> Any:
    """Return x, or raise a ValueError if it does not have this shape."""
    try:
        chex.assert_shape(x, shape)
    except AssertionError:
        message = f"{name}: expected shape {shape} ({like}), got {x.shape}"
        raise ValueError(message) from None
    return x


def broadcast_to(x: Array, shape: tuple[int, ...], name: str) -> Array:
    """Return x broadcast to a shape, or raise a ValueError with its name."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError:
        message = f"{name}: expected a shape that broadcasts to {shape}, got {x.shape}"
        raise ValueError(message) from None


def broadcast_valid(valid: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Return `valid` as bools of the shape of the examples, or None; nonzero integers are True.

    With fewer axes it belongs to the first ones, as weights do: `[B]` for `[B, T]` examples.
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
    """Return x as bools: nonzero integers are True; raise a TypeError for floats."""
    x = as_numbers(x, name)
    if x.dtype == jnp.bool_:
        return x
    if jnp.issubdtype(x.dtype, jnp.floating) and 0 not in x.shape:  # an empty list becomes floats
        raise TypeError(f"{name}: expected bools, or integers 0 and 1, got {x.dtype}")
    return x != 0


def broadcast_leading(x: Array, values: Array, name: str) -> Array:
    """Return x, whose shape is a leading part of the shape of the values, broadcast to them."""
    leading = values.shape[: x.ndim]
    check_shape(x, leading, name, "that of the values, or a leading part of it")
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (values.ndim - x.ndim)), values.shape)


def zero_ignored(values: Array, valid: Array | None) -> Array:
    """Return the values, with 0 for ignored examples."""
    return values if valid is None else jnp.where(valid, values, jnp.zeros((), values.dtype))


def zero_ignored_rows(x: Array, valid: Array | None, axis: int) -> Array:
    """Return the rows, with zeros for ignored examples, so that no NaN of theirs can spread."""
    return zero_ignored(x, None if valid is None else jnp.expand_dims(valid, axis))


def drop_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return a shape without one of its axes."""
    return shape[:axis] + shape[axis + 1 :]


def prepare_labels(
    labels: Any, logits: Array, axis: int, name: str = "labels", num_classes: int | None = None
) -> tuple[Array, Array]:
    """Return labels as int32 class indices, and which of them are in range; the others become 0.

    The logits may be a part of `num_classes` classes. The range is checked in the dtype of the
    labels or a wider one, and in NumPy for NumPy arrays: a cast to int32 before the check would
    wrap 2^32 to class 0.
    """
    given = as_array(labels, name) if labels is None else as_argument(labels, name)
    # An empty list has no integer dtype.
    labels = jnp.zeros(given.shape, jnp.int32) if 0 in given.shape else given
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        hint = "; soft_cross_entropy takes one-hot targets and probabilities"
        raise TypeError(
            f"{name}: expected an integer dtype, got {labels.dtype}"
            f"{hint if labels.shape == logits.shape else ''}"
        )
    check_shape(labels, drop_axis(logits.shape, axis), name, "logits without the class axis")
    if jnp.iinfo(labels.dtype).bits < 32:
        labels = labels.astype(jnp.int32)
    classes = logits.shape[axis] if num_classes is None else num_classes
    in_range = jnp.asarray((labels >= 0) & (labels < classes))
    return jnp.where(in_range, labels, 0).astype(jnp.int32), in_range


def as_concrete(x: ArrayLike, name: str) -> np.ndarray:
    """Return x as a NumPy array of concrete values; raise a TypeError for a tracer."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{name}: expected an array with values, got a tracer; check before jit")
    return to_host(x)


def prepare_binary(
    logits: ArrayLike,
    targets: ArrayLike,
    pos_weight: ArrayLike | None,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Return logits, targets and positive weights of one shape and dtype, and the valid labels.

    Logits and targets are 0 where a label is ignored.
    """
    z = to_sum_dtype(as_floats(logits))
    t = as_binary_targets(targets, z)
    w = None
    if pos_weight is not None:
        w = as_numbers(pos_weight, "pos_weight").astype(z.dtype)
        w = broadcast_to(w, z.shape, "pos_weight")
    valid = broadcast_valid(valid, z.shape)
    if where is not None:
        exists = broadcast_where(where, z, z.ndim - 1)
        valid = exists if valid is None else valid & exists
    return zero_ignored(z, valid), zero_ignored(t, valid), w, valid
