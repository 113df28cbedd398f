"""Arguments of metrics as checked arrays, and which examples make a metric undefined."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsoftmax import placement, softmax_core, validation
from jaxsoftmax.validation import ArrayLike


def prepare_classes(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """Return logits, labels clipped to the range of classes, and which labels were in range."""
    z = validation.to_sum_dtype(validation.as_floats(logits))
    return z, *validation.prepare_labels(labels, z, validation.normalize_axis(z, -1))


class BinaryExamples(NamedTuple):
    """Values and binary targets, `[N, L]`, `[N]` or for probabilities any shape."""

    values: Array
    is_positive: Array  # whether the target is 1
    is_undefined: Array  # whether the value is NaN, or the target neither 0 nor 1


def prepare_binary(values: ArrayLike, targets: ArrayLike, name: str) -> BinaryExamples:
    """Return logits, confidences or probabilities (the name of the values) with their targets."""
    v = validation.to_sum_dtype(validation.as_floats(values, name))
    t = validation.as_numbers(targets, "targets").astype(v.dtype)
    validation.check_shape(t, v.shape, "targets", f"that of {name}")
    if name != "probabilities" and v.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [N] or [N, L], got {v.shape}")
    return BinaryExamples(v, t == 1, jnp.isnan(v) | ((t != 0) & (t != 1)))


class Decisions(NamedTuple):
    """The decisions of a single-label classifier about examples `[N]`."""

    weights: Array
    labels: Array
    predicted: Array
    is_undefined: Array  # [], whether an example that counts is undefined


def decide(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None) -> Decisions:
    """Return the predicted class of each example beside its label and weight.

    On an Explicit mesh these numbers, but no logits, are gathered on all devices.
    """
    z, label_index, in_range = prepare_classes(logits, labels)
    predicted = jnp.argmax(z, -1).astype(label_index.dtype)  # the first NaN if there is one
    has_nan = jnp.isnan(softmax_core.label_logit(z, predicted, z.ndim - 1))
    w, is_undefined = prepare_weights(weights, ~in_range | has_nan, z.dtype)
    return Decisions(
        flatten_replicated(w),
        flatten_replicated(label_index),
        flatten_replicated(predicted),
        is_undefined,
    )


def flatten_replicated(x: Array) -> Array:
    """Return all entries in one axis, on every device.

    An array that is sharded on an Explicit mesh cannot be sorted.
    """
    return placement.replicate(x).ravel()


def prepare_weights(
    weights: ArrayLike | None, is_undefined: Array, dtype: Any
) -> tuple[Array, Array]:
    """Return weights, 0 for undefined examples, and whether an undefined example counts."""
    w = _broadcast_weights(weights, is_undefined.shape, dtype)
    return jnp.where(is_undefined, 0, w), _any_undefined(w, is_undefined, None)


def prepare_label_weights(
    weights: ArrayLike | None, is_undefined: Array, dtype: Any
) -> tuple[Array, Array]:
    """Return `prepare_weights` label by label, with one weight for all labels of an example."""
    w = _broadcast_weights(weights, is_undefined.shape[:1], dtype)
    w = w if is_undefined.ndim == 1 else jnp.broadcast_to(w[:, None], is_undefined.shape)
    return jnp.where(is_undefined, 0, w), _any_undefined(w, is_undefined, 0)


def _broadcast_weights(weights: ArrayLike | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return one weight per example: integers, or floats of this dtype if given as floats."""
    w = validation.as_numbers(True if weights is None else weights, "weights")
    if w.ndim:
        validation.check_shape(w, shape, "weights", "one per example")
    kind = dtype if jnp.issubdtype(w.dtype, jnp.floating) else jnp.result_type(int)
    return jnp.broadcast_to(w.astype(kind), shape)


def _any_undefined(w: Array, is_undefined: Array, axis: int | None) -> Array:
    """Return whether an example that counts is undefined, or the total cannot be counted."""
    result = jnp.any((w != 0) & (is_undefined | ~jnp.isfinite(w)), axis)
    return result | overflows(w, axis) if jnp.issubdtype(w.dtype, jnp.integer) else result


def overflows(counts: Array, axis: int | None = None) -> Array:
    """Return whether the sum of integers exceeds the range of their dtype."""
    return jnp.sum(counts.astype(jnp.float32), axis) >= float(jnp.iinfo(counts.dtype).max)


def mark_undefined(x: Array, is_undefined: Array) -> Array:
    """Return x, with NaN, or -1 among integers, where it is undefined."""
    return jnp.where(is_undefined, -1 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.nan, x)
