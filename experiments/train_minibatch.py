"""Minibatch softmax regression in plain JAX and Optax with this library's losses, to copy.

Command: `python experiments/train_minibatch.py`, seconds. It trains on the handwritten digits of
the package and prints loss and accuracy after some epochs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxsoftmax import check_labels, cross_entropy, weighted_mean
from jaxsoftmax.app import data

EPOCHS, BATCH_SIZE = 30, 64
optimizer = optax.adam(2e-2)  # or any other optimizer of Optax

type Params = dict[str, jax.Array]


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Return the scores of a linear model; replace it with your own."""
    return x @ params["w"] + params["bias"]


def mean_loss(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of one value per example; examples without a label have -1 and are ignored."""
    valid = labels >= 0
    values = cross_entropy(logits(params, x), labels, valid=valid)
    return weighted_mean(values, valid=valid)


@partial(jax.jit, donate_argnums=(0, 1))
def train_epoch(
    params: Params, opt_state: optax.OptState, key: jax.Array, x: jax.Array, labels: jax.Array
) -> tuple[Params, optax.OptState, jax.Array]:
    """Run one epoch as one compiled scan over shuffled minibatches; also return their mean loss."""

    def step(
        carry: tuple[Params, optax.OptState], rows: jax.Array
    ) -> tuple[tuple[Params, optax.OptState], jax.Array]:
        params, opt_state = carry
        loss, gradient = jax.value_and_grad(mean_loss)(params, x[rows], labels[rows])
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    # The rows that are left over come in other epochs, whose order differs.
    steps = len(labels) // BATCH_SIZE
    order = jax.random.permutation(key, len(labels))[: steps * BATCH_SIZE]
    carry, losses = jax.lax.scan(step, (params, opt_state), order.reshape(steps, BATCH_SIZE))
    return *carry, losses.mean()


@jax.jit
def accuracy(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of examples whose largest score is that of their label."""
    return (logits(params, x).argmax(-1) == labels).mean()


def main() -> None:
    """Train on the digits."""
    digits = data.load("digits")
    classes = len(digits.schema.classes)
    x, labels = jnp.asarray(digits.train.features), jnp.asarray(digits.train.targets)
    check_labels(labels, classes)

    params = {"w": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
    opt_state = optimizer.init(params)
    for epoch, key in enumerate(jax.random.split(jax.random.key(0), EPOCHS), 1):
        params, opt_state, loss = train_epoch(params, opt_state, key, x, labels)
        if epoch % 5 == 0:
            held_out = accuracy(params, digits.validation.features, digits.validation.targets)
            print(f"epoch {epoch:3}: loss {loss:.4f}, validation accuracy {held_out:.2%}")
    print(f"test accuracy {accuracy(params, digits.test.features, digits.test.targets):.2%}")


if __name__ == "__main__":
    main()
