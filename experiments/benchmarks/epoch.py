"""An epoch as one compiled scan, and a sweep beside a loop of fits.

Question 1. One epoch of SGD over 60,000 x 784 float32 in minibatches of 256 with 10 classes:
- train_epoch: this library, with its exact cross-entropy, loss and accuracy reported;
- python loop: a jitted step as users write it, with `x @ w` and Optax's cross-entropy, called 235
  times with its rows, which it gathers from data on the device; nothing is reported;
- torch bare and torch loader: a loop over `x[rows]`, and one over a DataLoader.

Question 2. 1, 8 and 64 fits of the same data: one `fit` after another, all at one learning rate and
with one optimizer object, so that only the first compiles, against one `sweep` over rates.

Findings, as medians on two cores:
- The record: an epoch takes 47 ms, against 105 for the Python loop (2.2 times), 160 for torch's
  bare loop (3.4) and 442 for its DataLoader loop (9.4). In minutes when neighbors on the machine
  used the memory, other runs gave 1.5 to 1.7, 1.7 and 4.2 times: the gathers suffer most.
- Where the time goes, in another run: 4 ms for the one sort of the order (`jax.random.permutation`:
  8), 21 for the gathers of random rows (numpy's `take` is no faster; in order they would take 7),
  the rest for products and the loss. With x w and x^T dz the products alone take 48 ms, with the
  classes outermost about 20. Accuracy costs 1.5 ms: it uses the scores of the loss.
- A sweep of 8 models takes 2.2 times less than 8 fits, one of 64 3.5 times less, one of 1 as long
  as a fit. With 64, a product as wide as 640 takes the time, and there x w would be a tenth faster.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from benchmarks import peers
from benchmarks.timing import Conditions, Step
from jaxsoftmax import cross_entropy, linear, training

LOSS = training.on_logits(cross_entropy)
SGD = optax.sgd(0.1)
FEATURES, CLASSES, BATCH = 784, 10, 256
ROUNDS = 21


def steps(conditions: Conditions) -> list[Step]:
    """Return the step of one epoch."""
    size = examples(conditions)
    return [Step(f"{size}x{FEATURES}x{CLASSES}", partial(epoch, size, conditions))]


def steps_of_sweeps(conditions: Conditions) -> list[Step]:
    """Return a step for each number of models."""
    models = (2,) if conditions.smoke else (8, 64, 1)
    return [Step(str(n), partial(sweep, n, conditions)) for n in models]


def examples(conditions: Conditions) -> int:
    """Return how many examples there are."""
    return 1000 if conditions.smoke else 60_000


def random_data(size: int) -> tuple[jax.Array, jax.Array]:
    """Draw features and labels that a linear model can learn in part."""
    x_key, w_key, noise_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(x_key, (size, FEATURES))
    scores = x @ jax.random.normal(w_key, (FEATURES, CLASSES))
    noise = 20 * jax.random.normal(noise_key, scores.shape)
    return x, jnp.argmax(scores + noise, axis=1)


def epoch(size: int, conditions: Conditions) -> dict[str, Any]:
    """Time one epoch, each way in turn."""
    data = random_data(size)
    ways = {"train_epoch": one_scan(*data), "python loop": python_loop(*data)}
    with peers.of_epoch(conditions.torch, (size, FEATURES, CLASSES, BATCH)) as others:
        rounds = 1 if conditions.smoke else ROUNDS
        timing = measure.paired(ways, rounds=rounds, clocks=others.clocks())
    show(timing)
    work = size * FEATURES
    return timing | {
        "operations": 4 * work * CLASSES,  # of the scores and the gradient
        "bytes": 4 * work,  # the features, read once
        "dtype": "float32",
        "versions": others.versions,
    }


def python_loop(x: jax.Array, y: jax.Array) -> Callable[[], Any]:
    """Return an epoch as a Python loop over a jitted step that gathers its own minibatch."""

    def mean_loss(params: tuple[jax.Array, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        w, bias = params
        scores = x @ w + bias
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, rows: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(mean_loss)(params, x[rows], y[rows])
        updates, opt_state = SGD.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    key = jax.random.key(0)
    params = jnp.zeros((FEATURES, CLASSES)), jnp.zeros(CLASSES)
    carry = params, SGD.init(params)

    def run() -> Any:
        nonlocal carry, key
        key, draw = jax.random.split(key)
        order = np.asarray(jax.random.permutation(draw, len(x)))
        for start in range(0, len(x), BATCH):
            carry = step(*carry, order[start : start + BATCH], x, y)
        return carry

    return run


def one_scan(x: jax.Array, y: jax.Array) -> Callable[[], Any]:
    """Return an epoch as `train_epoch`, on the state of the previous epoch."""
    params = linear.init(FEATURES, CLASSES)
    state = training.init_state(params, optimizer=SGD, key=jax.random.key(0))
    how: dict[str, Any] = {"loss": LOSS, "optimizer": SGD, "batch_size": BATCH}

    def run() -> Any:
        nonlocal state
        state, metrics = training.train_epoch(state, x, y, **how)
        return state, metrics

    return run


def sweep(models: int, conditions: Conditions) -> dict[str, Any]:
    """Time fits one after the other and in one sweep."""
    data = random_data(examples(conditions))
    how: dict[str, Any] = {"epochs": 3, "batch_size": BATCH}
    keys = jax.random.split(jax.random.key(1), models)
    rates = jnp.geomspace(0.01, 1.0, models)

    def at_once() -> Any:
        lanes = {"make_optimizer": optax.sgd, "hyperparams": rates, "keys": keys}
        return training.sweep(LOSS, *data, **lanes, **how).params

    def in_a_loop() -> Any:
        return [training.fit(LOSS, *data, optimizer=SGD, key=key, **how).params for key in keys]

    start = time.perf_counter()
    jax.block_until_ready(at_once())
    first = time.perf_counter() - start
    rounds = 1 if conditions.smoke else max(3, 15 // models)
    timing = measure.paired({"sweep": at_once, "loop of fits": in_a_loop}, rounds=rounds)
    show(timing)
    return timing | {"first call seconds": first}


def show(timing: dict[str, Any]) -> None:
    """Print one line per way."""
    for name, seconds in timing["seconds"].items():
        times = 1 / timing["ratios"][name]["median"]
        print(f"{name:16}{1e3 * seconds['median']:11.1f} ms{times:8.2f} of the first", flush=True)
