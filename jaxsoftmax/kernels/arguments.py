"""The arrays of a call, checked and converted to the form that implementations take.

Leading axes become one axis of rows, a mask becomes `[1, K]` or `[N, K]`, and the features of an
ignored example become 0, before a NaN can spread.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax import class_shards, placement, validation
from jaxsoftmax.class_shards import ClassShards
from jaxsoftmax.kernels import primitives, shards
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.types import Head, Model
from jaxsoftmax.validation import ArrayLike

type Unflatten = Callable[[Array], Array]  # from [N] to the leading shape of the features


class SoftmaxInputs(NamedTuple):
    """The arrays of a softmax loss, with one axis of rows."""

    axes: ClassShards
    head: Head
    in_range: Array  # bool [N]: which labels are classes
    valid: Array | None  # bool [N]: which examples count
    unflatten: Unflatten


class SigmoidInputs(NamedTuple):
    """The arrays of a sigmoid loss, with one axis of rows."""

    axes: ClassShards
    head: Head
    valid: Array | None  # bool [N]: which examples count
    unflatten: Unflatten


def prepare_softmax(
    call: Call,
    *,
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> SoftmaxInputs:
    """Check the arrays of a softmax loss and flatten their leading axes."""
    model, features = _linear_model(call.dtype, x, w, bias)
    lead, k = features.shape[:-1], model.w.shape[1]
    axes = shards.resolve(call, model)
    model = shards.gather_features(model, axes)
    mask = _classes_as_in(model.w, _mask(where, features, k))
    classes = class_shards.count_classes(model.w, 1, axes)
    scores = jax.ShapeDtypeStruct((*lead, classes), jnp.float32)
    index, in_range = validation.prepare_labels(labels, scores, len(lead))  # type: ignore[arg-type]
    valid = validation.broadcast_valid(valid, lead)
    index, in_range = _flatten(index, features), _flatten(in_range, features)
    valid = None if valid is None else _flatten(valid, features)
    has_class = _rows_with_a_class(mask, model.x, axes)
    model = model._replace(x=validation.zero_ignored_rows(model.x, has_class, 1))
    head, unflatten = Head(*model, mask, index), partial(_unflatten, features)
    arrays = _match_varying_axes(axes, head, in_range, valid)
    return SoftmaxInputs._make((axes, *arrays, unflatten))


def prepare_sigmoid(
    call: Call,
    *,
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    bias: ArrayLike | None,
    pos_weight: ArrayLike | None,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> SigmoidInputs:
    """Check the arrays of a sigmoid loss and flatten their leading axes."""
    model, features = _linear_model(call.dtype, x, w, bias)
    k = model.w.shape[1]
    axes = shards.resolve(call, model)
    model = shards.gather_features(model, axes)
    mask, valid = _mask_and_valid(where, valid, features, k)
    mask, t = (_classes_as_in(model.w, a) for a in (mask, _targets(targets, features, k)))
    weight = (
        None if pos_weight is None else _pos_weight(pos_weight, k, _sum_dtype(call.dtype, model))
    )
    if (has_class := _rows_with_a_class(mask, model.x, axes)) is not None:
        valid = has_class if valid is None else has_class & valid
    model = model._replace(x=validation.zero_ignored_rows(model.x, valid, 1))
    t = lax.stop_gradient(validation.zero_ignored_rows(t, valid, 1))
    head, unflatten = Head(*model, mask, t, weight), partial(_unflatten, features)
    return SigmoidInputs._make((axes, *_match_varying_axes(axes, head, valid), unflatten))


def _match_varying_axes(axes: ClassShards, head: Head, *row_arrays: Any) -> tuple[Any, ...]:
    """Return arrays that vary over the same mesh axes, so that JAX sums gradients of shared ones.

    Arrays of the rows stay the same for all shards of the classes, and so do the results per row;
    the implementation sums x's gradient over them (see `sharded`). Outside a shard_map nothing
    varies.
    """
    if not axes.local_axes:
        return placement.match_varying_axes(head, *row_arrays)
    (matched,) = placement.match_varying_axes(head)
    return matched._replace(x=head.x, targets=head.targets), *row_arrays


def prepare_weights(
    call: Call,
    weights: ArrayLike | None,
    valid: Array | None,
    features: ArrayLike,
    head: Head,
) -> Array:
    """Return the weights of the rows, `[N]`, with 0 for an ignored example."""
    features = jnp.asarray(features)
    values: Any = jax.ShapeDtypeStruct(features.shape[:-1], _sum_dtype(call.dtype, head.model))
    w = validation.as_numbers(1 if weights is None else weights, "weights").astype(values.dtype)
    w = _flatten(validation.broadcast_leading(w, values, "weights"), features)
    return validation.zero_ignored(w, valid)


def _linear_model(
    dtype: DTypeLike | None, x: ArrayLike, w: ArrayLike, bias: ArrayLike | None
) -> tuple[Model, Array]:
    """Return the model with one axis of rows, and the features in their own shape."""
    features, w = validation.as_floats(x, "x"), validation.as_floats(w, "w")
    if not placement.is_static(*w.shape):
        raise ValueError(f"w: expected sizes that are numbers, got {w.shape}; x's may be symbols")
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"w: expected [D, K] with D and K at least 1, got {w.shape}")
    if features.ndim < 1 or features.shape[-1] != w.shape[0]:
        raise ValueError(f"x: expected [..., D] with D = {w.shape[0]}, got {features.shape}")
    model = Model(placement.flatten_rows(features, features.ndim - 1), w, None)
    if bias is not None:
        b = validation.as_floats(bias, "bias")
        b = validation.check_shape(b, w.shape[1:], "bias", "one per class")
        model = model._replace(bias=b.astype(_sum_dtype(dtype, model)))
    return model, features


def _sum_dtype(dtype: DTypeLike | None, model: Model) -> DTypeLike:
    """Return the dtype of sums of products."""
    return primitives.sum_dtype(primitives.operand_dtype(dtype, model))


def _mask(where: ArrayLike | None, features: Array, k: int) -> Array | None:
    """Return `where` as `[1, K]` if all examples share one mask, else as `[N, K]`."""
    if where is None:
        return None
    mask = validation.as_bools(where, "where")
    if mask.shape == (k,):
        return mask[None, :]
    return _flatten(validation.broadcast_to(mask, (*features.shape[:-1], k), "where"), features)


def _mask_and_valid(
    where: ArrayLike | None, valid: ArrayLike | None, features: Array, k: int
) -> tuple[Array | None, Array | None]:
    """Return the mask of the labels and which rows count.

    `valid` of shape `[..., K]` is part of the mask.
    """
    lead, mask = features.shape[:-1], _mask(where, features, k)
    if valid is None:
        return mask, None
    flags = validation.as_flags(valid, "valid")
    if _broadcasts_to(flags, lead):
        return mask, _flatten(validation.broadcast_to(flags, lead, "valid"), features)
    label_valid = _flatten(validation.broadcast_to(flags, (*lead, k), "valid"), features)
    return (label_valid if mask is None else mask & label_valid), None


def _targets(targets: ArrayLike, features: Array, k: int) -> Array:
    """Return the targets as `[N, K]`."""
    shape = (*features.shape[:-1], k)
    t = validation.as_numbers(targets, "targets")
    if t.ndim > 0:
        validation.check_shape(t, shape, "targets", "one per label")
    return _flatten(jnp.broadcast_to(t, shape), features)


def _pos_weight(pos_weight: ArrayLike, k: int, dtype: DTypeLike) -> Array:
    """Return the weights of the positive labels as a constant `[1, K]`."""
    weight = validation.as_numbers(pos_weight, "pos_weight").astype(dtype)
    return lax.stop_gradient(validation.broadcast_to(weight, (k,), "pos_weight")[None, :])


def _classes_as_in(w: Array, a: Array | None) -> Any:
    """Return an array `[N, K]` with all classes on each device, unless w's are sharded."""
    if a is None or placement.partition_spec(w)[1] is not None:
        return a
    return placement.gather_axis(a, 1)


def _rows_with_a_class(mask: Array | None, x: Array, axes: ClassShards) -> Array | None:
    """Return which rows have a class that exists; the features of the other rows are ignored."""
    if mask is None or (mask.shape[0] == 1 and x.shape[0] != 1):
        return None
    return class_shards.any_class(mask, 1, axes)


def _broadcasts_to(x: Array, shape: tuple[Any, ...]) -> bool:
    """Return whether x broadcasts to a shape."""
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    return x.ndim <= len(shape) and all(a in (1, b) for a, b in pairs)


def _flatten(a: Array, features: Array) -> Array:
    """Return an array of the examples as `[N, ...]`, ordered and sharded as the features' rows."""
    lead = features.ndim - 1
    return placement.flatten_rows(placement.shard_like_rows(a, features, lead), lead)


def _unflatten(features: Array, a: Array) -> Array:
    """Return an array of the rows in the leading shape of the features."""
    return placement.unflatten_rows(a, features, features.ndim - 1)
