"""A small transformer language model in Equinox whose head never stores its logits, to copy.

Command: `python experiments/language_model_equinox.py [--text comments.parquet]`, about two minutes
on two cores. It learns to predict the next word of 20,000 comments, among 16,384 words; `--smoke`
is smaller, reads pages of this repository, and takes seconds. The head shares its weights with the
embedding of the words, caps its scores, adds a z-loss, and ignores padding and rare words. It needs
`pip install equinox pyarrow`. language_model_cost.py compares it with a head that stores logits.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import words

from jaxsoftmax import linear_cross_entropy, weighted_mean

VOCABULARY, LENGTH, WIDTH, LAYERS, BATCH_SIZE, STEPS = 16_384, 64, 128, 2, 32, 200
SMOKE = {"vocabulary": 512, "width": 32, "batch_size": 8, "steps": 40}
SOFTCAP, Z_LOSS, MEMORY = 30.0, 1e-4, 16 * 2**20  # the last in bytes, for a block of logits


class Block(eqx.Module):
    """Causal attention and a perceptron, each added to what it reads."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, width: int, *, key: jax.Array) -> None:
        """Make the layers."""
        keys = jax.random.split(key)
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(4, width, key=keys[0])
        self.mlp = eqx.nn.MLP(width, width, 4 * width, 1, activation=jax.nn.gelu, key=keys[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Transform the features `[T, D]` of one window."""
        causal = jnp.tri(len(x), dtype=bool)
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y, mask=causal)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class Transformer(eqx.Module):
    """Word numbers `[T]` to features `[T, D]` that predict the next word."""

    words: jax.Array
    positions: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __init__(self, vocabulary: int, length: int, width: int, *, key: jax.Array) -> None:
        """Make the layers."""
        for_words, for_positions, *for_blocks = jax.random.split(key, 2 + LAYERS)
        self.words = jax.random.normal(for_words, (vocabulary, width)) / width**0.5
        self.positions = jax.random.normal(for_positions, (length, width)) / width**0.5
        self.blocks = [Block(width, key=key) for key in for_blocks]
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the features."""
        x = self.words[tokens] + self.positions[: len(tokens)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x)


def head(features: jax.Array, embedding: jax.Array, labels: jax.Array) -> Any:
    """Return the loss and the log-sum-exp of each word; the embedding `[K, D]` is the head's w."""
    return linear_cross_entropy(
        features, embedding.T, labels, softcap=SOFTCAP, valid=labels > 0, memory=MEMORY
    )


def mean_loss(model: Transformer, windows: jax.Array, *, head: Any = head) -> jax.Array:
    """Mean over the words that count of the loss and a z-loss."""
    tokens, labels = windows[:, :-1], windows[:, 1:]
    nll, lse = head(jax.vmap(model)(tokens), model.words, labels)
    return weighted_mean(nll + Z_LOSS * lse**2, valid=labels > 0)


@eqx.filter_jit(donate="all-except-first")
def train_step(
    windows: jax.Array, model: Transformer, opt_state: optax.OptState,
    optimizer: optax.GradientTransformation,
) -> tuple[Transformer, optax.OptState, jax.Array]:  # fmt: skip
    """Take one step of the optimizer."""
    value, gradient = eqx.filter_value_and_grad(mean_loss)(model, windows)
    updates, opt_state = optimizer.update(gradient, opt_state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), opt_state, value


def train(
    windows: np.ndarray, *, vocabulary: int = VOCABULARY, width: int = WIDTH,
    batch_size: int = BATCH_SIZE, steps: int = STEPS,
) -> Transformer:  # fmt: skip
    """Train on random windows; print the loss and the speed ten times."""
    model = Transformer(vocabulary, LENGTH, width, key=jax.random.key(0))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    rng, start = np.random.default_rng(0), time.perf_counter()
    for step in range(1, steps + 1):
        batch = windows[rng.integers(len(windows), size=batch_size)]
        model, opt_state, value = train_step(batch, model, opt_state, optimizer)
        if step % (steps // 10) == 0:
            speed = step * batch_size * LENGTH / (time.perf_counter() - start)
            print(f"step {step}: loss {value:.3f}, {speed:,.0f} words per second")
    return model


if __name__ == "__main__":
    options = words.arguments(__doc__)
    sizes = SMOKE if options.smoke else {}
    train(words.windows(options.texts, sizes.get("vocabulary", VOCABULARY), LENGTH), **sizes)
