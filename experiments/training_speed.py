"""Speed of an epoch as one compiled scan, and of a sweep against a loop of fits.

Command: `python experiments/training_speed.py [--torch-python PATH]`, about 4 minutes on two cores.
PATH is an interpreter with PyTorch, by default this one if it has PyTorch, whose loops then take
part too. `--smoke` runs a tiny problem in seconds, to check that the script works, and writes no
record. The record is results/training_speed.json.

Question 1. One epoch of SGD over 60,000 x 784 float32 in minibatches of 256 with 10 classes:
- python loop: a jitted step as users write it, with `x @ w` and Optax's cross-entropy, called 235
  times with its rows, which it gathers from data on the device; nothing is reported;
- train_epoch: this library, with its exact cross-entropy, loss and accuracy reported;
- torch loop and torch loader: a loop over `x[rows]`, and one over a DataLoader.

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

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from jaxsoftmax import cross_entropy, linear, training

LOSS = training.on_logits(cross_entropy)
SGD = optax.sgd(0.1)


def main() -> None:
    """Run both questions, print their tables and write the record."""
    parser = argparse.ArgumentParser(description="Speed of an epoch and of a sweep.")
    parser.add_argument("--torch-python", help="an interpreter with PyTorch")
    parser.add_argument("--rounds", type=int, default=21, help="paired rounds of question 1")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no record")
    arguments = parser.parse_args()
    size, models, rounds = (1000, (1, 2), 3) if arguments.smoke else (60_000, (1, 8, 64), 0)

    data = random_data(size, features=784, classes=10)
    torch = TorchLoops(arguments.torch_python, (size, 784, 10, 256))
    record = {
        "epoch": epoch(data, torch, rounds=rounds or arguments.rounds),
        "sweep": {str(n): sweep(data, n, rounds=rounds or max(3, 15 // n)) for n in models},
        "torch": torch.versions,
    }
    torch.close()
    print("\nOne epoch")
    show(record["epoch"])
    for n in models:
        print(f"\n{n} models, 3 epochs each")
        show(record["sweep"][str(n)])
    if not arguments.smoke:
        print("\nwritten:", measure.write_record("training_speed", record).name)


def random_data(size: int, *, features: int, classes: int) -> tuple[jax.Array, jax.Array]:
    """Draw features and labels that a linear model can learn in part."""
    x_key, w_key, noise_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(x_key, (size, features))
    scores = x @ jax.random.normal(w_key, (features, classes))
    noise = 20 * jax.random.normal(noise_key, scores.shape)
    return x, jnp.argmax(scores + noise, axis=1)


# Question 1


def epoch(data: tuple[jax.Array, jax.Array], torch: "TorchLoops", *, rounds: int) -> dict[str, Any]:
    """Time one epoch, each way in turn."""
    ways = {"python loop": python_loop(*data), "train_epoch": one_scan(*data)}
    return measure.paired(ways, rounds=rounds, clocks=torch.clocks())


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
    params = jnp.zeros((x.shape[1], 10)), jnp.zeros(10)
    carry = params, SGD.init(params)

    def run() -> Any:
        nonlocal carry, key
        key, draw = jax.random.split(key)
        order = np.asarray(jax.random.permutation(draw, len(x)))
        for start in range(0, len(x), 256):
            carry = step(*carry, order[start : start + 256], x, y)
        return carry

    return run


def one_scan(x: jax.Array, y: jax.Array) -> Callable[[], Any]:
    """Return an epoch as `train_epoch`, on the state of the previous epoch."""
    params = linear.init(x.shape[1], 10)
    state = training.init_state(params, optimizer=SGD, key=jax.random.key(0))

    def run() -> Any:
        nonlocal state
        state, metrics = training.train_epoch(state, x, y, loss=LOSS, optimizer=SGD, batch_size=256)
        return state, metrics

    return run


class TorchLoops:
    """The loops of torch_loops.py in a separate process; without PyTorch, there are none."""

    def __init__(self, python: str | None, sizes: tuple[int, ...]) -> None:
        if python is None and importlib.util.find_spec("torch") is not None:
            python = sys.executable
        self.versions, self.process = None, None
        if python is None:
            print("PyTorch is absent (see --torch-python), and its loops are left out")
            return
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("torch_loops.py")), *map(str, sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self.process.stdout.readline().strip()

    def seconds(self, name: str) -> float:
        """Run one loop there and return its time in seconds."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def clocks(self) -> dict[str, Callable[[], float]]:
        """Return functions that return their own seconds, for `measure.paired`."""
        if self.process is None:
            return {}
        return {f"torch {name}": partial(self.seconds, name) for name in ("bare", "loader")}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()


# Question 2


def sweep(data: tuple[jax.Array, jax.Array], models: int, *, rounds: int) -> dict[str, Any]:
    """Time `models` fits one after the other and in one sweep."""
    how: dict[str, Any] = {"epochs": 3, "batch_size": 256}
    keys = jax.random.split(jax.random.key(1), models)
    rates = jnp.geomspace(0.01, 1.0, models)

    def in_a_loop() -> Any:
        return [training.fit(LOSS, *data, optimizer=SGD, key=key, **how).params for key in keys]

    def at_once() -> Any:
        lanes = {"make_optimizer": optax.sgd, "hyperparams": rates, "keys": keys}
        return training.sweep(LOSS, *data, **lanes, **how).params

    start = time.perf_counter()
    jax.block_until_ready(at_once())
    first = time.perf_counter() - start
    timing = measure.paired({"loop of fits": in_a_loop, "sweep": at_once}, rounds=rounds)
    return timing | {"sweep_first_call_seconds": first}


def show(timing: dict[str, Any]) -> None:
    """Print one line per way: milliseconds, and the speed relative to the first."""
    print(f"{'':16}{'median ms':>11}{'minimum ms':>12}{'faster (quartiles)':>24}{'of minima':>12}")
    for name, seconds in timing["seconds"].items():
        ratio = timing["ratios"][name]
        print(
            f"{name:16}{1e3 * seconds['median']:11.1f}{1e3 * seconds['minimum']:12.1f}"
            f"{ratio['median']:8.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"
            f"{timing['ratios_of_minima'][name]:12.2f}"
        )


if __name__ == "__main__":
    main()
