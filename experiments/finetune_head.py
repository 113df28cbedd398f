"""Fine-tuning that starts from a certified head on frozen features, to copy.

Command: `python experiments/finetune_head.py`, seconds. A small network learns to tell the digits 0
to 4 apart; its features then serve for all ten digits, with few labeled examples. `solve` finds the
best linear head on the frozen features, and says how far from the best it may be at most. Training
of the whole network then starts from that head, where a head of zeros would first send noise
through the features.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsoftmax import LinearParams, cross_entropy, evaluate, fit, on_logits, solve
from jaxsoftmax.app import data

type Params = dict[str, Any]

LABELED, WIDTH = 100, 64


def features(body: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return what the head reads; replace it with your own network."""
    return jax.nn.relu(x @ body["w"] + body["bias"])


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Return the scores of the whole network."""
    return features(params["body"], x) @ params["head"].w + params["head"].bias


loss = on_logits(cross_entropy, logits=logits)  # one object, so that it is compiled once


def zeros(classes: int) -> LinearParams:
    """Return a head that gives every class the same score."""
    return LinearParams(jnp.zeros((WIDTH, classes)), jnp.zeros(classes))


def pretrained(x: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Train a network on the digits 0 to 4 and return it without its head."""
    initial = jax.nn.initializers.he_normal()(jax.random.key(0), (x.shape[1], WIDTH))
    params = {"body": {"w": initial, "bias": jnp.zeros(WIDTH)}, "head": zeros(5)}
    few = labels < 5
    result = fit(
        loss, x[few], labels[few], params=params, optimizer=optax.adam(3e-3),
        key=jax.random.key(1), epochs=20, batch_size=64,
    )  # fmt: skip
    return result.params["body"]


def main() -> None:
    """Pretrain, fit the head, and train on from it and from zeros."""
    digits = data.load("digits")
    x, labels = jnp.asarray(digits.train.features), jnp.asarray(digits.train.targets)
    body = pretrained(x, labels)

    x, labels = x[:LABELED], labels[:LABELED]
    solution = solve(features(body, x), labels, C=1.0, gap=1e-6)
    assert solution.converged, solution.reason
    print(f"the head is within {solution.gap:.1e} of the best objective, a proven bound")

    optimizer = optax.adam(1e-3)
    certified = LinearParams(*map(jnp.asarray, solution.params))
    for name, head in {"the certified head": certified, "zeros": zeros(10)}.items():
        start: Params = {"body": body, "head": head}
        result = fit(
            loss, x, labels, params=start, optimizer=optimizer, key=jax.random.key(2), epochs=10,
            batch_size=20,
        )  # fmt: skip
        before, after = (
            evaluate(params, digits.test.features, digits.test.targets, loss=loss)
            for params in (start, result.params)
        )
        print(
            f"from {name}: test accuracy {before['accuracy']:.1%}, "
            f"after fine-tuning {after['accuracy']:.1%}"
        )


if __name__ == "__main__":
    main()
