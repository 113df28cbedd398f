"""Heads in the whole tiles that a GPU's kernels copy: padding, and numbers that stay finite.

Copies have tiles of 8 by 64. Where D is not a multiple of 8, or K not one of 64, x and w are padded
first. That is fast compared with the products of many rows, but takes a copy of w.

An additive vector with one number for each class carries the bias, and -inf where a class does not
exist; there is none where it would hold zeros.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import placement
from jaxsoftmax.kernels.chunks import round_up
from jaxsoftmax.kernels.gpu.epilogues import SWIZZLE_TILE, TILE_CLASSES
from jaxsoftmax.kernels.types import Head, ModelCotangents

FLOAT32_MAX = float(np.finfo(np.float32).max)


def pad_head(head: Head) -> Head:
    """Return the head with features and classes padded to whole tiles, which copies w, if needed.

    The classes that are added do not exist.
    """
    d, k = head.w.shape
    features, classes = -d % SWIZZLE_TILE[0], -k % SWIZZLE_TILE[1]
    if not features and not classes:
        return head
    where = placement.full(head.w, True, (1, k), bool) if head.where is None else head.where
    if head.targets.ndim == 2:
        head = head._replace(targets=jnp.pad(head.targets, ((0, 0), (0, classes))))
    if head.pos_weight is not None:
        head = head._replace(pos_weight=jnp.pad(head.pos_weight, ((0, 0), (0, classes))))
    return head._replace(
        x=jnp.pad(head.x, ((0, 0), (0, features))),
        w=jnp.pad(head.w, ((0, features), (0, classes))),
        bias=None if head.bias is None else jnp.pad(head.bias, (0, classes)),
        where=jnp.pad(where, ((0, 0), (0, classes))),
    )


def crop(found: ModelCotangents, shape: tuple[int, ...]) -> ModelCotangents:
    """Return the gradients of a head whose w had this shape before it was padded."""
    d, k = shape
    x, w, bias = found
    return ModelCotangents(
        None if x is None else x[:, :d],
        None if w is None else w[:d, :k],
        None if bias is None else bias[:k],
    )


def row_mask(head: Head) -> Array | None:
    """Return the mask if it has a row for each example, `[N, K]`."""
    return None if head.where is None or head.where.shape[0] == 1 else head.where


def bias_and_mask(head: Head, *, has_tail: bool | None = None) -> Array | None:
    """Return the bias, and -inf where a class does not exist, for whole tiles of classes.

    None where it would add nothing: without a bias, a mask and a tail beyond the last class.
    """
    k = head.w.shape[1]
    has_tail = k % TILE_CLASSES != 0 if has_tail is None else has_tail
    if head.bias is None and head.where is None and not has_tail:
        return None
    like = head.x if head.bias is None else head.bias
    vector = placement.full(like, 0, (k,), jnp.float32) if head.bias is None else head.bias
    vector = clip_infinities(vector)
    if head.where is not None:
        vector = jnp.where(head.where[0], vector, -jnp.inf)
    return pad_vector(vector, round_up(k, TILE_CLASSES), -jnp.inf)


def clip_infinities(a: Array) -> Array:
    """Return the largest number in place of +inf, so that its difference from itself is 0."""
    return jnp.minimum(a, FLOAT32_MAX)


def restore_infinities(a: Array) -> Array:
    """Apply the inverse of `clip_infinities`."""
    return jnp.where(a >= FLOAT32_MAX, jnp.inf, a)


def pad_vector(a: Array, size: int, value: float) -> Array:
    """Return a vector of this size that ends with copies of a value."""
    return jnp.pad(a, (0, size - a.shape[0]), constant_values=value)
