"""Weights of examples, and rows of weight 0, whose features and targets may hold anything."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax import placement, validation
from jaxsoftmax.training.types import Examples
from jaxsoftmax.validation import ArrayLike


def as_float_weights(weights: ArrayLike, shape: tuple[int, ...], prefix: str = "") -> Array:
    """Return weights of one float per example, given as bools, integers, floats or one number.

    Args:
        weights: `[N]` or a scalar.
        shape: `(N,)`.
        prefix: precedes the names of arguments in errors.
    """
    w = validation.as_numbers(weights, f"{prefix}weights")
    if w.shape not in ((), shape):
        raise ValueError(
            f"{prefix}weights must have shape {shape}, as {prefix}features, or be one number, "
            f"got shape {w.shape}"
        )
    return jnp.broadcast_to(w.astype(jnp.promote_types(w.dtype, jnp.float32)), shape)


def with_float_weights(examples: Examples) -> Examples:
    """Return the examples with weights of one float per example, or None as before."""
    if examples.weights is None:
        return examples
    weights = as_float_weights(examples.weights, examples.features.shape[:1])
    return examples._replace(weights=weights)


@jax.jit
def replace_ignored(examples: Examples) -> Examples:
    """Return the examples with a copy of the first valid row in place of each row of weight 0.

    A weight of 0 acts too late on a NaN, because their product in the gradient is NaN. A row of
    zeros would not do either: it is not a row of the data, and a norm has no gradient there.
    """
    features, targets, weights = examples
    assert weights is not None

    def replace(a: Array) -> Array:
        is_valid = placement.shard_rows(weights != 0, a, placement.partition_spec(a)[0])
        row = placement.take_rows(a, first_valid(weights)[None], a, None, mode="promise_in_bounds")
        return jnp.where(is_valid.reshape(-1, *(1,) * (a.ndim - 1)), a, row)

    return Examples(replace(features), replace(targets), weights)


def first_valid(weights: Array) -> Array:
    """Return the index of the first row whose weight is not 0."""
    return jnp.argmax(placement.replicate(weights) != 0)


def run_on_valid[T](function: Callable[[Examples], T], examples: Examples) -> T:
    """Return function(examples), with ignored rows replaced if there are any.

    The function is in both branches of the condition, so that examples that are all valid are not
    copied.
    """
    examples = with_float_weights(examples)
    assert examples.weights is not None
    all_valid = jnp.all(examples.weights != 0)
    return jax.lax.cond(
        all_valid, function, lambda examples: function(replace_ignored(examples)), examples
    )
