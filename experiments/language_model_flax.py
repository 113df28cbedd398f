"""A small transformer language model in Flax NNX whose head never stores its logits, to copy.

Command: `python experiments/language_model_flax.py [--text comments.parquet]`, about two minutes on
two cores. It learns to predict the next word of 20,000 comments, among 16,384 words; `--smoke` is
smaller, reads pages of this repository, and takes seconds. The head shares its weights with the
embedding of the words, caps its scores, adds a z-loss, and ignores padding and rare words. It needs
`pip install flax pyarrow`. language_model_cost.py compares it with a head that stores the logits.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import words
from flax import nnx

from jaxsoftmax import linear_cross_entropy, weighted_mean

VOCABULARY, LENGTH, WIDTH, LAYERS, BATCH_SIZE, STEPS = 16_384, 64, 128, 2, 32, 200
SMOKE = {"vocabulary": 512, "width": 32, "batch_size": 8, "steps": 40}
SOFTCAP, Z_LOSS, MEMORY = 30.0, 1e-4, 16 * 2**20  # the last in bytes, for a block of logits


class Block(nnx.Module):
    """Causal attention and a perceptron, each added to what it reads."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Transform features `[B, T, D]`."""
        causal = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norms[0](x), mask=causal)
        return x + self.narrow(nnx.gelu(self.widen(self.norms[1](x))))


class Transformer(nnx.Module):
    """Word numbers `[B, T]` to features `[B, T, D]` that predict the next word."""

    def __init__(self, vocabulary: int, length: int, width: int, *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.words = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the features."""
        x = self.words(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def head(features: jax.Array, embedding: jax.Array, labels: jax.Array) -> Any:
    """Return the loss and the log-sum-exp of each word; the embedding `[K, D]` is the head's w."""
    return linear_cross_entropy(
        features, embedding.T, labels, softcap=SOFTCAP, valid=labels > 0, memory=MEMORY
    )


def mean_loss(params: nnx.State, windows: jax.Array, *, model: Any, head: Any = head) -> jax.Array:
    """Mean over the words that count of the loss and a z-loss."""
    transformer = nnx.merge(model, params)
    tokens, labels = windows[:, :-1], windows[:, 1:]
    nll, lse = head(transformer(tokens), transformer.words.embedding[...], labels)
    return weighted_mean(nll + Z_LOSS * lse**2, valid=labels > 0)


@partial(jax.jit, static_argnames=("loss", "optimizer"), donate_argnums=(0, 1))
def train_step(
    params: nnx.State, opt_state: optax.OptState, windows: jax.Array,
    *, loss: Any, optimizer: optax.GradientTransformation,
) -> tuple[nnx.State, optax.OptState, jax.Array]:  # fmt: skip
    """Take one step of the optimizer."""
    value, gradient = jax.value_and_grad(loss)(params, windows)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def train(
    windows: np.ndarray, *, vocabulary: int = VOCABULARY, width: int = WIDTH,
    batch_size: int = BATCH_SIZE, steps: int = STEPS,
) -> nnx.State:  # fmt: skip
    """Train on random windows; print the loss and the speed ten times."""
    model, params = nnx.split(Transformer(vocabulary, LENGTH, width, rngs=nnx.Rngs(0)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps))
    opt_state, loss = optimizer.init(params), partial(mean_loss, model=model)
    rng, start = np.random.default_rng(0), time.perf_counter()
    for step in range(1, steps + 1):
        batch = windows[rng.integers(len(windows), size=batch_size)]
        params, opt_state, value = train_step(
            params, opt_state, batch, loss=loss, optimizer=optimizer
        )
        if step % (steps // 10) == 0:
            speed = step * batch_size * LENGTH / (time.perf_counter() - start)
            print(f"step {step}: loss {value:.3f}, {speed:,.0f} words per second")
    return params


if __name__ == "__main__":
    options = words.arguments(__doc__)
    sizes = SMOKE if options.smoke else {}
    train(words.windows(options.texts, sizes.get("vocabulary", VOCABULARY), LENGTH), **sizes)
