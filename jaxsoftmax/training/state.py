"""The state of training between two epochs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsoftmax.training.checks import check_key, check_optimizer


class TrainState(NamedTuple):
    """Everything that one epoch passes to the next.

    Every leaf is an array, so that a checkpoint can hold the state.

    Attributes:
        params: the parameters of the model.
        opt_state: the state of the Optax optimizer.
        key: the raw data of a random key (`jax.random.key_data`), which determines the order of the
            minibatches.
        step: the number of updates, int32.
        epoch: the number of epochs, int32.
    """

    params: Any
    opt_state: Any
    key: Array
    step: Array
    epoch: Array


def init_state(params: Any, *, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Return the state before the first epoch.

    The parameters and the key are copied, because `train_epoch` overwrites the state it is given.

    Args:
        params: the initial parameters, for instance `linear.init(D, K)` with `w: [D, K]`, or any
            pytree of floating arrays.
        optimizer: any Optax optimizer.
        key: a random key of JAX's default kind, which determines the order of the minibatches.

    Returns:
        A `TrainState`, all arrays: the parameters in their own dtypes, step and epoch int32, the
        key uint32.

    Numerics:
        Copies of the arguments, bit for bit; the optimizer makes its own state of the parameters,
        usually zeros of their dtypes.

    Derivatives:
        With respect to the parameters, which are copied.

    Raises:
        TypeError: if `optimizer` is not one of Optax, or `key` not a random key.
        ValueError: if `key` is not one key of the default kind.

    Example:
        >>> import jax, optax
        >>> from jaxsoftmax import linear, training
        >>> key, sgd = jax.random.key(0), optax.sgd(0.1)
        >>> state = training.init_state(linear.init(3, 2), optimizer=sgd, key=key)
        >>> print(state.step, state.epoch)
        0 0

    Reference:
        Flax's `flax.training.train_state.TrainState`, which also holds the functions.
    """
    check_optimizer(optimizer)
    check_key(key)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(params, optimizer.init(params), key_data(key), zero, zero)
    return jax.tree.map(jnp.copy, state)


def key_data(key: Array) -> Array:
    """Return the raw data of a random key, which may also be given as raw data."""
    is_typed_key = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if is_typed_key else key
    expected = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if data.shape != expected.shape or data.dtype != expected.dtype:
        raise ValueError(
            f"key must be one random key of the default kind "
            f"({expected.dtype}{list(expected.shape)}), got {key.dtype}{list(key.shape)}"
        )
    return data
