"""The fused losses of all rows and classes, or of the parts that a device holds in a shard_map."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement, validation
from jaxsoftmax.class_shards import ClassShards
from jaxsoftmax.kernels import derivative_rules, dispatch, primitives, reference, sharded
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.types import Head, LSEParts, Options


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
    weights = weights * jnp.where(in_range, 1, jnp.nan).astype(weights.dtype)
    run = sharded.on_shards(dispatch.load(name), axes)
    total = derivative_rules.weighted_sum(run, options, head, valid, weights)
    return lax.psum(total, axes.local_row_axes)


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
        nll, lse, mean, predicted = _from_parts(derivative_rules.as_integers(parts))
    # A factor rather than a selection, so that the gradient is NaN as well.
    nll = nll * jnp.where(in_range, 1, jnp.nan).astype(nll.dtype)
    return tuple(
        None if a is None else validation.zero_ignored(a, valid)
        for a in (nll, lse, mean, predicted)
    )


def _binary_per_example(
    name: str, options: Options, axes: ClassShards, head: Head, valid: Array | None
) -> Array:
    if name == "reference":
        values = reference.sigmoid_losses(head, options)
    else:
        run = sharded.on_shards(dispatch.load(name), axes)
        values = derivative_rules.binary_values(run, options, head)
    return validation.zero_ignored(values, valid)


def _from_parts(parts: LSEParts) -> tuple[Array, Array, Array | None, Array | None]:
    """Return nll, lse = maximum + log S and, with stats, mean logit and predicted class."""
    nll, total = primitives.row_loss(parts)
    maximum = lax.stop_gradient(parts.maximum)
    leads = parts.label_logit == maximum
    lse = jnp.where(leads, parts.label_logit + nll, maximum + jnp.log(total))
    lse = jnp.where(maximum == -jnp.inf, -jnp.inf, lse)
    lse = jnp.where(jnp.isnan(nll), nll, lse)  # a maximum may lose a NaN
    if parts.stats is None:
        return nll, lse, None, None
    return nll, lse, parts.stats.mean, parts.stats.predicted
