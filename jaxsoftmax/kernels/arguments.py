"""The arrays of a call: checked, and brought into the form that implementations take.

Leading axes become one axis of rows, a mask becomes `[1, K]` or `[N, K]`, and the features of an
example that does not count become 0, before a NaN can spread.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax import placement, validation
from jaxsoftmax.kernels import primitives
from jaxsoftmax.kernels.types import Head, Model
from jaxsoftmax.validation import ArrayLike

type Shaped = Callable[[Array], Array]  # numbers of the rows in the features' leading shape


def softmax_head(
    dtype: DTypeLike | None,
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> tuple[Head, Array, Array | None, Shaped]:
    """Return the head, which labels are labels, which examples count, how results are shaped."""
    model, features = _linear_model(dtype, x, w, bias)
    lead, k = features.shape[:-1], model.w.shape[1]
    mask = _mask(where, features, k)
    scores = jax.ShapeDtypeStruct((*lead, k), jnp.float32)
    index, known = validation.prepare_labels(labels, scores, len(lead))  # type: ignore[arg-type]
    counts = validation.broadcast_valid(valid, lead)
    index, known, counts = (_flat(a, features) for a in (index, known, counts))
    model = model._replace(x=validation.zero_ignored_rows(model.x, _live(mask, model.x), 1))
    return Head(*model, mask, index), known, counts, partial(_shaped, features)


def sigmoid_head(
    dtype: DTypeLike | None,
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    bias: ArrayLike | None,
    pos_weight: ArrayLike | None,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> tuple[Head, Array | None, Shaped]:
    """Return the head, which examples count, how results are shaped."""
    model, features = _linear_model(dtype, x, w, bias)
    lead, k = features.shape[:-1], model.w.shape[1]
    mask, counts = _mask(where, features, k), None
    flags = None if valid is None else validation.as_flags(valid, "valid")
    if flags is not None and _fits(flags, lead):
        counts = _flat(validation.broadcast_to(flags, lead, "valid"), features)
    elif flags is not None:
        each = _flat(validation.broadcast_to(flags, (*lead, k), "valid"), features)
        mask = each if mask is None else mask & each
    t = validation.as_numbers(targets, "targets")
    if t.ndim > 0:
        validation.check_shape(t, (*lead, k), "targets", "one per label")
    t = _flat(jnp.broadcast_to(t, (*lead, k)), features)
    positive = None
    if pos_weight is not None:
        p = validation.as_numbers(pos_weight, "pos_weight").astype(_sums(dtype, model))
        positive = lax.stop_gradient(validation.broadcast_to(p, (k,), "pos_weight")[None, :])
    if (live := _live(mask, model.x)) is not None:
        counts = live if counts is None else live & counts
    model = model._replace(x=validation.zero_ignored_rows(model.x, counts, 1))
    t = lax.stop_gradient(validation.zero_ignored_rows(t, counts, 1))
    return Head(*model, mask, t, positive), counts, partial(_shaped, features)


def row_weights(
    dtype: DTypeLike | None,
    weights: ArrayLike | None,
    counts: Array | None,
    features: ArrayLike,
    head: Head,
) -> Array:
    """Return the weights of the rows, 0 where one does not count."""
    features = jnp.asarray(features)
    values: Any = jax.ShapeDtypeStruct(features.shape[:-1], _sums(dtype, head.model))
    w = validation.as_numbers(1 if weights is None else weights, "weights").astype(values.dtype)
    return validation.zero_ignored(
        _flat(validation.broadcast_leading(w, values, "weights"), features), counts
    )


def _linear_model(
    dtype: DTypeLike | None, x: ArrayLike, w: ArrayLike, bias: ArrayLike | None
) -> tuple[Model, Array]:
    """Features as a matrix, w and bias; and the features as they came."""
    rows, w = validation.as_floats(x, "x"), validation.as_floats(w, "w")
    if not placement.is_static(*w.shape):
        raise ValueError(f"w: expected sizes that are numbers, got {w.shape}; x's may be symbols")
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"w: expected [D, K] with D and K at least 1, got {w.shape}")
    if rows.ndim < 1 or rows.shape[-1] != w.shape[0]:
        raise ValueError(f"x: expected [..., D] with D = {w.shape[0]}, got {rows.shape}")
    model = Model(placement.flatten_rows(rows, rows.ndim - 1), w, None)
    if bias is not None:
        b = validation.check_shape(
            validation.as_floats(bias, "bias"), w.shape[1:], "bias", "one per class"
        )
        model = model._replace(bias=b.astype(_sums(dtype, model)))
    return model, rows


def _sums(dtype: DTypeLike | None, model: Model) -> DTypeLike:
    """The dtype of sums of products."""
    return primitives.sum_dtype(primitives.operand_dtype(dtype, model))


def _mask(where: ArrayLike | None, features: Array, k: int) -> Array | None:
    """`where` as `[1, K]` if it is one for all examples, else as `[N, K]`."""
    if where is None:
        return None
    mask = validation.as_bools(where, "where")
    if mask.shape == (k,):
        return mask[None, :]
    return _flat(validation.broadcast_to(mask, (*features.shape[:-1], k), "where"), features)


def _live(mask: Array | None, x: Array) -> Array | None:
    """Which rows have a class that exists: the features of the others are not looked at."""
    if mask is None or (mask.shape[0] == 1 and x.shape[0] != 1):
        return None
    return jnp.any(mask, 1)


def _fits(x: Array, shape: tuple[Any, ...]) -> bool:
    """Whether x broadcasts to a shape."""
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    return x.ndim <= len(shape) and all(a in (1, b) for a, b in pairs)


def _flat(a: Array | None, features: Array) -> Any:
    """What belongs to the rows, in the order and the place of the features' rows: `[N, ...]`."""
    lead = features.ndim - 1
    return (
        None
        if a is None
        else placement.flatten_rows(placement.shard_like_rows(a, features, lead), lead)
    )


def _shaped(features: Array, a: Array) -> Array:
    """Numbers of the rows in the features' leading shape."""
    return placement.unflatten_rows(a, features, features.ndim - 1)
