"""A large head on frozen features, trained without ever storing its logits, to copy.

Command: `python experiments/train_large_head.py`, seconds. The features stand for those of a
network that is no longer trained; here they are SYNTHETIC. It prints the loss and the accuracy of
held-out examples after each epoch.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxsoftmax import linear_cross_entropy_stats, linear_cross_entropy_sum

EPOCHS, BATCH_SIZE, MEMORY = 5, 1000, 64 * 2**20  # the last in bytes, for a block of logits

type Head = dict[str, jax.Array]


def mean_loss(head: Head, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean loss of a minibatch; the weights make it a mean before any gradient is summed."""
    weights = jnp.full(len(labels), 1 / len(labels))
    return linear_cross_entropy_sum(
        x, head["w"], labels, bias=head["bias"], weights=weights, memory=MEMORY
    )


@partial(jax.jit, static_argnames=("optimizer", "batch_size"), donate_argnums=(0, 1))
def train_epoch(
    head: Head, opt_state: optax.OptState, key: jax.Array, x: jax.Array, labels: jax.Array,
    *, optimizer: optax.GradientTransformation, batch_size: int,
) -> tuple[Head, optax.OptState]:  # fmt: skip
    """Run one epoch as one compiled scan over shuffled minibatches."""

    def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        head, opt_state = carry
        gradient = jax.grad(mean_loss)(head, x[rows], labels[rows])
        updates, opt_state = optimizer.update(gradient, opt_state, head)
        return (optax.apply_updates(head, updates), opt_state), None

    steps = len(labels) // batch_size
    order = jax.random.permutation(key, len(labels))[: steps * batch_size]
    return jax.lax.scan(step, (head, opt_state), order.reshape(steps, batch_size))[0]


@jax.jit
def evaluate(head: Head, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean loss and accuracy, from one pass over blocks of logits."""
    found = linear_cross_entropy_stats(x, head["w"], labels, bias=head["bias"], memory=MEMORY)
    return found.nll.mean(), found.correct.mean()


def train(
    x: jax.Array, labels: jax.Array, *, classes: int, epochs: int, batch_size: int
) -> Iterator[Head]:
    """Yield the head after each epoch of Adam, at a rate that falls to 0."""
    head = {"w": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
    rate = optax.cosine_decay_schedule(3e-3, epochs * (len(labels) // batch_size))
    optimizer = optax.adam(rate)
    opt_state = optimizer.init(head)
    for key in jax.random.split(jax.random.key(0), epochs):
        head, opt_state = train_epoch(
            head, opt_state, key, x, labels, optimizer=optimizer, batch_size=batch_size
        )
        yield jax.tree.map(jnp.copy, head)  # the next epoch reuses these buffers


def synthetic(key: jax.Array, rows: int, *, classes: int, width: int) -> tuple[jax.Array, ...]:
    """Draw positive parts of mixtures of 64 numbers that scatter around their class.

    Returns features `[rows, width]` minus their mean, labels, and the best possible label: that of
    the nearest center.
    """
    at, which, scatter, mix = jax.random.split(key, 4)
    centers = jax.random.normal(at, (classes, 64))
    labels = jax.random.randint(which, (rows,), 0, classes)
    hidden = centers[labels] + 1.6 * jax.random.normal(scatter, (rows, 64))
    features = jax.nn.relu(hidden @ jax.random.normal(mix, (64, width)) / 8)
    best = (hidden @ centers.T - (centers**2).sum(-1) / 2).argmax(-1)
    return features - features.mean(0), labels, best


def main() -> None:
    """Train a head of 1,000 classes."""
    x, labels, best = synthetic(jax.random.key(1), 22_000, classes=1000, width=256)
    held_out = x[20_000:], labels[20_000:]
    print(f"no head can do better than {(best == labels).mean():.1%}")
    heads = train(x[:20_000], labels[:20_000], classes=1000, epochs=EPOCHS, batch_size=BATCH_SIZE)
    for epoch, head in enumerate(heads, 1):
        loss, accuracy = evaluate(head, *held_out)
        print(f"epoch {epoch}: held-out loss {loss:.3f}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
