"""The loss and its gradient in one: what the losses, the kernels and the solvers share.

Cross-entropy and softmax(z) - onehot(y) come from the same exponentials, one for each entry.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import exponential, links, placement, validation
from jaxsoftmax.placement import select
from jaxsoftmax.validation import ArrayLike


def prepare(labels: ArrayLike, valid: ArrayLike | None, z: Array, axis: int) -> tuple[Array, ...]:
    """The logits and, of each row, the label, whether it is one, and whether the row counts.

    A derivative rule returns the types of its primal results, so all four vary over the same axes.
    """
    index, known = validation.prepare_labels(labels, z, axis)
    valid = validation.broadcast_valid(valid, index.shape)
    valid = jnp.ones_like(known) if valid is None else valid
    numbers = (placement.shard_like_rows(a, z, axis) for a in (index, known, valid))
    return placement.match_varying_axes(z, *numbers)


def label_logit(z: Array, index: Array, axis: int) -> Array:
    """z_y of each row.

    A class axis that is sharded explicitly has no gather; there it is a sum with one term.
    """
    wide = jnp.expand_dims(index, axis)
    if placement.partition_spec(z)[axis] is None:
        return jnp.squeeze(jnp.take_along_axis(z, wide, axis), axis)
    hot = lax.broadcasted_iota(index.dtype, z.shape, axis) == wide
    return jnp.sum(select(hot, z, 0), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def value_and_gradient(
    z: Array, index: Array, known: Array, valid: Array, axis: int
) -> tuple[Array, Array]:
    """Cross-entropy and its gradient from one exponential an entry.

    With s_o = sum over k != y of exp(z_k - z_max), the loss is log1p(s_o / e_y) where the label
    leads, and log(S) + (z_max - z_y), S = s_o + e_y, where it does not: both are sums of terms of
    one sign. The gradient is e_k / S, and -s_o / S at the label.
    """
    wide = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    dead = ~valid | links.is_fully_masked(maximum)
    # A row's maximum is what every entry of it passes through: NaN for a label that is none.
    maximum = select(valid, select(known, maximum, jnp.nan), 0)
    row = exponential.prepare_rows(maximum)
    z_y = select(valid, label_logit(z, index, axis), 0)
    e_y = exponential.scaled_exp(z_y, row)
    hot = lax.broadcasted_iota(index.dtype, z.shape, axis) == wide(index)
    # All of a row that does not count is left out, NaN included.
    out = hot | wide(~valid)
    others = select(out, 0, exponential.scaled_exp(z, row.expand_dims(axis)))
    # A dead row is one whose others weigh nothing and whose label leads: value and gradient are 0.
    # A factor, for the maximum of NaN alone may be -inf, and their sum is NaN.
    s_o = exponential.sum_terms(others, row, axis) * (~dead).astype(z.dtype)
    total = s_o + e_y
    leads = (z_y == maximum) | dead
    excess = select(leads, s_o / e_y, total / exponential.exp_of_maximum(row) - 1)
    value = jnp.log1p(excess) + select(leads, 0, maximum - z_y)
    inverse = 1 / (total + select(dead, jnp.inf, jnp.zeros_like(total)))
    return value, jnp.where(out, wide(0 - s_o * inverse), others * wide(inverse))


@value_and_gradient.defjvp
def _value_and_gradient_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple:
    z, _, _, valid = primals
    value, gradient = value_and_gradient(*primals, axis)
    p = links.softmax_values(z, valid, axis)
    product = links.covariance_product(p, tangents[0], axis)
    return (value, gradient), (directional_derivative(gradient, tangents[0], valid, axis), product)


def directional_derivative(gradient: Array, tangents: Array, valid: Array, axis: int) -> Array:
    """The loss's change along the tangents: 0 for an example that does not count, NaN or not."""
    return validation.zero_ignored(jnp.sum(gradient * tangents, axis), valid)


def weighted_term(coefficient: Array, value: Array) -> Array:
    """coefficient * value, where a coefficient of 0 silences an infinite value."""
    return coefficient * select((coefficient == 0) & (value == jnp.inf), 0, value)
