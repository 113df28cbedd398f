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
    call: Call, axes: Axes, head: Head, known: Array, counts: Array | None
) -> tuple[Any, ...]:
    """Return nll, lse and, when asked for, the mean logit and the predicted class, `[N]` each."""
    options, name = dispatch.prepare(call, head)
    return _per_example(name, options, axes, head, known, counts)


def sum_of_losses(
    call: Call, axes: Axes, head: Head, known: Array, counts: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the losses over all rows of the mesh."""
    options, name = dispatch.prepare(call, head)
    known |= weights == 0
    # Whole rows cannot be cut where their number is a symbol, nor made where classes are apart.
    if name == "reference" or axes.classes or not placement.is_static(head.x.shape[0]):
        values = _per_example(name, options, axes, head, known, counts)[0]
        return lax.psum(primitives.weighted_total(values, weights), axes.rows)
    # NaN as a weight is what a label out of range does to value and gradient.
    weights = weights * jnp.where(known, 1, jnp.nan).astype(weights.dtype)
    return lax.psum(derivative_rules.weighted_sum(name, options, head, counts, weights), axes.rows)


def binary_losses(call: Call, axes: Axes, head: Head, counts: Array | None) -> Array:
    """Return the sigmoid losses, `[N]`, summed over the labels of a row."""
    options, name = dispatch.prepare(call, head)
    return _binary_per_example(name, options, axes, head, counts)


def sum_of_binary_losses(
    call: Call, axes: Axes, head: Head, counts: Array | None, weights: Array
) -> Array:
    """Return the weighted sum of the sigmoid losses over all rows of the mesh."""
    options, name = dispatch.prepare(call, head)
    if name == "reference":
        return primitives.weighted_total(
            _binary_per_example(name, options, axes, head, counts), weights
        )
    return lax.psum(
        derivative_rules.binary_weighted_sum(name, options, head, weights), axes.rows + axes.classes
    )


def _per_example(
    name: str, options: Options, axes: Axes, head: Head, known: Array, counts: Array | None
) -> tuple[Any, ...]:
    """Nll, lse and, when asked, mean logit and predicted class, by the contract of bad values."""
    if counts is not None:
        # Before a NaN can spread: its product with a gradient of 0 would be NaN.
        head = head._replace(x=jnp.where(counts[:, None], head.x, 0))
        known = known | ~counts
    if name == "reference":
        nll, lse, mean, predicted = reference.softmax_losses(head, options)
    else:
        head, first = shards.local_labels(head, axes)
        rows = derivative_rules.as_integers(derivative_rules.lse_parts(name, options, head))
        nll, lse, mean, predicted = _finished(shards.combine(rows, first, axes))
    # A factor, not a choice: the gradient is to be NaN as well.
    nll = nll * jnp.where(known, 1, jnp.nan).astype(nll.dtype)
    return tuple(
        None if a is None else validation.zero_ignored(a, counts) for a in (nll, lse, mean, predicted)
    )


def _binary_per_example(
    name: str, options: Options, axes: Axes, head: Head, counts: Array | None
) -> Array:
    if name == "reference":
        values = reference.sigmoid_losses(head, options)
    else:
        values = derivative_rules.binary_values(name, options, head)
    return validation.zero_ignored(lax.psum(values, axes.classes), counts)


def _finished(rows: LSEParts) -> tuple[Array, Array, Array | None, Array | None]:
    """Return nll, lse = log S + maximum and, when asked for, mean logit and predicted class."""
    nll, total = primitives.row_loss(rows)
    maximum = lax.stop_gradient(rows.maximum)
    lse = jnp.where(rows.label_logit == maximum, rows.label_logit + nll, maximum + jnp.log(total))
    lse = jnp.where(maximum == -jnp.inf, -jnp.inf, lse)
    lse = jnp.where(jnp.isnan(nll), nll, lse)  # a maximum may lose a NaN
    if rows.stats is None:
        return nll, lse, None, None
    return nll, lse, rows.stats.mean, rows.stats.predicted
