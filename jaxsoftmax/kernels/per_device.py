"""The fused losses of all rows and classes, or of the parts that a device holds in a shard_map."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement, validation
from jaxsoftmax.class_shards import ClassShards
from jaxsoftmax.kernels import (
    derivative_rules,
    dispatch,
    primitives,
    reference,
    row_losses,
    sharded,
    xla_chunked,
)
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.types import Head, Options


def losses(
    call: Call, axes: ClassShards, head: Head, in_range: Array, valid: Array | None
) -> tuple[Any, ...]:
    """Return nll, lse and, with stats, the mean logit and the predicted class, `[N]` each."""
    options, name = dispatch.prepare(call, head, axes)
    return _per_example(name, options, axes, head, in_range, valid)


def sum_of_losses(
    call: Call,
    axes: ClassShards,
    head: Head,
    in_range: Array,
    valid: Array | None,
    weights: Array,
) -> Array:
    """Return the weighted sum of the losses over all rows."""
    options, name = dispatch.prepare(call, head, axes)
    in_range |= weights == 0
    # Rows cannot be cut into chunks where their number is a symbol.
    if name == "reference" or not placement.is_static(head.x.shape[0]):
        values = _per_example(name, options, axes, head, in_range, valid)[0]
        return lax.psum(primitives.weighted_total(values, weights), axes.local_row_axes)
    # A weight of NaN has the effect of a label out of range on value and gradient.
    weights = _marked(weights, in_range)
    run = sharded.on_shards(dispatch.load(name), axes)
    total = derivative_rules.weighted_sum(run, options, head, valid, weights)
    return lax.psum(total, axes.local_row_axes)


def sum_of_row_losses(
    call: Call,
    axes: ClassShards,
    head: Head,
    in_range: Array,
    valid: Array | None,
    weights: Array,
) -> tuple[Array, tuple[Any, ...]]:
    """Return the weighted sum of `call.row_loss` over all rows, and the statistics of each row.

    The logits are computed twice where rows cannot be cut into chunks, and where a function closes
    over traced arrays and a shard_map would be made around it: its jaxpr is only for numbers that
    do not vary over the axes.
    """
    options, name = dispatch.prepare(call, head, axes)
    zero = xla_chunked.row_zeros(dispatch.cast_operands(head, options))
    loss = row_losses.RowLoss.of(call.row_loss, zero)
    options = replace(options, stats=options.stats or loss.uses_mean(zero))
    known = in_range if valid is None else in_range | ~valid
    in_range |= weights == 0
    is_typed = axes.mesh is None or not loss.constants
    if name == "reference" or not is_typed or not placement.is_static(head.x.shape[0]):
        rows = _per_example(name, options, axes, head, in_range, valid)
        nll, lse, mean = rows[:3]
        values = loss(nll, lse, jnp.zeros_like(nll) if mean is None else mean)
        total = primitives.weighted_total(values, weights)
    else:
        run = sharded.on_shards(dispatch.load(name), axes)
        kept = xla_chunked.ignore_rows(head, valid, _marked(weights, in_range))
        total, found = row_losses.weighted_sum(run, options, loss.function, *kept, loss.constants)
        rows = found.statistics()
    return lax.psum(total, axes.local_row_axes), _checked(rows, known, valid)


def binary_losses(call: Call, axes: ClassShards, head: Head, valid: Array | None) -> Array:
    """Return the sigmoid losses, `[N]`, summed over the labels of a row."""
    options, name = dispatch.prepare(call, head, axes)
    return _binary_per_example(name, options, axes, head, valid)


def sum_of_binary_losses(
    call: Call, axes: ClassShards, head: Head, valid: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the sigmoid losses over all rows."""
    options, name = dispatch.prepare(call, head, axes)
    if name == "reference":
        values = _binary_per_example(name, options, axes, head, valid)
        return primitives.weighted_total(values, weights)
    run = sharded.on_shards(dispatch.load(name), axes)
    total = derivative_rules.binary_weighted_sum(run, options, head, weights)
    return lax.psum(total, axes.local_row_axes)


def _per_example(
    name: str,
    options: Options,
    axes: ClassShards,
    head: Head,
    in_range: Array,
    valid: Array | None,
) -> tuple[Any, ...]:
    """Return nll, lse and, with stats, mean logit and predicted class.

    An ignored example has 0 for each, and a label that is not in range has an nll of NaN.
    """
    if valid is not None:
        # Before a NaN can spread: its product with a gradient of 0 would be NaN.
        head = head._replace(x=jnp.where(valid[:, None], head.x, 0))
        in_range = in_range | ~valid
    if name == "reference":
        nll, lse, mean, predicted = reference.softmax_losses(head, options)
    else:
        run = sharded.on_shards(dispatch.load(name), axes)
        parts = derivative_rules.lse_parts(run, options, head)
        nll, lse, mean, predicted = primitives.statistics(derivative_rules.as_integers(parts))
    return _checked((nll, lse, mean, predicted), in_range, valid)


def _checked(
    rows: tuple[Array | None, ...], in_range: Array, valid: Array | None
) -> tuple[Any, ...]:
    """Return the numbers of rows, with an nll of NaN for a bad label and 0 where ignored."""
    nll = rows[0]
    assert nll is not None
    marked = (_marked(nll, in_range), *rows[1:])
    return tuple(None if a is None else validation.zero_ignored(a, valid) for a in marked)


def _marked(a: Array, in_range: Array) -> Array:
    """Return numbers of rows, NaN for a label out of range.

    By a factor rather than a selection, so that the gradient is NaN as well.
    """
    return a * jnp.where(in_range, 1, jnp.nan).astype(a.dtype)


def _binary_per_example(
    name: str, options: Options, axes: ClassShards, head: Head, valid: Array | None
) -> Array:
    if name == "reference":
        values = reference.sigmoid_losses(head, options)
    else:
        run = sharded.on_shards(dispatch.load(name), axes)
        values = derivative_rules.binary_values(run, options, head)
    return validation.zero_ignored(values, valid)
