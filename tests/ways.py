"""The same function of a batch of rows, called in every way that may change its arithmetic.

Each way takes f(logits, labels, where, axis=...), logits [B, K], labels [B], where [B, K] or None,
and returns what f returns (a tree of arrays [B] and [B, K]) in that layout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import adversaries
import jax
import jax.numpy as jnp

Function = Callable[..., Any]


def eager(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    return f(logits, labels, where, axis=-1)


def jit(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    return jax.jit(partial(f, axis=-1))(logits, labels, where)


def vmap(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    return jax.jit(jax.vmap(partial(f, axis=-1)))(logits, labels, where)


def alone(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    one = jax.jit(partial(f, axis=-1))
    rows = range(logits.shape[0])
    found = [one(logits[i], labels[i], None if where is None else where[i]) for i in rows]
    return jax.tree.map(lambda *results: jnp.stack(results), *found)


def first_axis(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    found = jax.jit(partial(f, axis=0))(logits.T, labels, None if where is None else where.T)
    return jax.tree.map(jnp.transpose, found)


def middle_axis(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    batch, classes = logits.shape

    def fold(x: jax.Array) -> jax.Array:
        return x.reshape(2, batch // 2, classes).swapaxes(1, 2)

    def unfold(x: jax.Array) -> jax.Array:
        return x.reshape(batch) if x.ndim == 2 else x.swapaxes(1, 2).reshape(batch, classes)

    masks = None if where is None else fold(where)
    found = jax.jit(partial(f, axis=1))(fold(logits), labels.reshape(2, -1), masks)
    return jax.tree.map(unfold, found)


def other_layout(f: Function, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> Any:
    """The logits come transposed, so that XLA chooses how to read them."""

    @jax.jit
    def call(columns: jax.Array) -> Any:
        return f(columns.T, labels, where, axis=-1)

    return call(logits.T)


COMMON = (eager, jit, vmap)
# What a compiler may do differently depends on the number of classes, and less on the way.
COMMON_CASES = [
    *((classes, jit) for classes in adversaries.CLASSES),
    *((classes, way) for classes in (10, 1000) for way in (eager, vmap)),
]
AXES = (first_axis, middle_axis, other_layout)


def name_of(value: Any) -> str:
    """The name of a parameter that is a way, and any other parameter itself."""
    return getattr(value, "__name__", str(value))
