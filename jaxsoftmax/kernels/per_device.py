"""The fused losses on one device, or on the rows and classes that each device of a mesh holds."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement, validation
from jaxsoftmax.kernels import derivative_rules, dispatch, primitives, reference, shards
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.shards import Axes
from jaxsoftmax.kernels.types import Head, LSEParts, Options


def losses(
    call: Call, axes: Axes, head: Head, in_range: Array, valid: Array | None
) -> tuple[Any, ...]:
    """Return nll, lse and, with stats, the mean logit and the predicted class, `[N]` each."""
    options, name = dispatch.prepare(call, head)
    return _per_example(name, options, axes, head, in_range, valid)


def sum_of_losses(
    call: Call, axes: Axes, head: Head, in_range: Array, valid: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the losses over all rows of the mesh."""
    options, name = dispatch.prepare(call, head)
    in_range |= weights == 0
    # Rows cannot be cut into chunks where their number is a symbol, and a chunk needs all classes.
    if name == "reference" or axes.classes or not placement.is_static(head.x.shape[0]):
        values = _per_example(name, options, axes, head, in_range, valid)[0]
        return lax.psum(primitives.weighted_total(values, weights), axes.rows)
    # A weight of NaN has the effect of a label out of range on value and gradient.
    weights = weights * jnp.where(in_range, 1, jnp.nan).astype(weights.dtype)
    return lax.psum(derivative_rules.weighted_sum(name, options, head, valid, weights), axes.rows)


def binary_losses(call: Call, axes: Axes, head: Head, valid: Array | None) -> Array:
    """Return the sigmoid losses, `[N]`, summed over the labels of a row."""
    options, name = dispatch.prepare(call, head)
    return _binary_per_example(name, options, axes, head, valid)


def sum_of_binary_losses(
    call: Call, axes: Axes, head: Head, valid: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the sigmoid losses over all rows of the mesh."""
    options, name = dispatch.prepare(call, head)
    if name == "reference":
        values = _binary_per_example(name, options, axes, head, valid)
        return primitives.weighted_total(values, weights)
    return lax.psum(
        derivative_rules.binary_weighted_sum(name, options, head, weights), axes.rows + axes.classes
    )


def _per_example(
    name: str, options: Options, axes: Axes, head: Head, in_range: Array, valid: Array | None
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
        head, first = shards.localize_labels(head, axes)
        parts = derivative_rules.as_integers(derivative_rules.lse_parts(name, options, head))
        nll, lse, mean, predicted = _from_parts(shards.combine(parts, first, axes))
    # A factor rather than a selection, so that the gradient is NaN as well.
    nll = nll * jnp.where(in_range, 1, jnp.nan).astype(nll.dtype)
    return tuple(
        None if a is None else validation.zero_ignored(a, valid)
        for a in (nll, lse, mean, predicted)
    )


def _binary_per_example(
    name: str, options: Options, axes: Axes, head: Head, valid: Array | None
) -> Array:
    if name == "reference":
        values = reference.sigmoid_losses(head, options)
    else:
        values = derivative_rules.binary_values(name, options, head)
    return validation.zero_ignored(lax.psum(values, axes.classes), valid)


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
