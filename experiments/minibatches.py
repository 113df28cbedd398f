"""Minibatches: the gradient's noise, and the path to one loss, by batch size.

Command: `python experiments/minibatches.py [--data-dir DIR]`, about 4 minutes on two cores. DIR
holds MNIST as TensorFlow Datasets prepares it. `--smoke` uses the digits and writes nothing. The
record is results/minibatches.json.

Question. A mean over B of N examples differs from the gradient over all of them with a variance of
trace(S) / B (times (N - B) / (N - 1) without replacement). Does it, at the start and later? And
what does a batch size cost on the path from zeros to a training loss of 0.3 on MNIST, in updates,
images and seconds? For each size, SGD has the best of 13 constant rates from 0.004 to 16, each
twice the previous one. Images are drawn with replacement. The loss over a fifth of them is computed
every 1,024 images or, for larger batches, after every update, and its time is not counted. The
seconds are the number of updates times the seconds of one update, a median of turns that all sizes
take within one process.

Findings: A larger minibatch has a gradient with less noise and needs fewer updates, but soon it
needs more images, and more time.

- The noise falls as 1 / B: on 20 to 200 draws it is within 20% of the formula at every size,
  without replacement too.
- From 1 to 16 images the path to the loss takes the same 37,888 images; beyond, the images grow to
  2,867,200, some 53 epochs where small batches need less than one.
- In seconds of updates, on two cores, a batch of 16 was the fastest with 0.099; one image at a time
  took 0.383 and 16,384 at a time 3.84.

At the start the squared noise of one image is 70.4 times the squared gradient, and later 1,368
times, because the gradient shrinks faster than its noise; a batch is mostly noise up to 64 images
at the start and up to 1,024 later. Up to 16 images the rate grows with the batch (0.0156, 0.0625,
0.25), and a batch is as good as its images one by one. Beyond, the rate stops growing at 2, and the
number of updates falls less and less (2,368 at 16, 304 at 256, 162 at 4,096) and then not at all
(175 at 16,384). 64 and 256 images took 0.148 and 0.174 seconds. So the lecture's "larger batches
point better" is true, but it does not pay here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import document
import figures
import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
from figures import BLUE, MUTED, ORANGE
from matplotlib.figure import Figure

from jaxsoftmax import LinearParams, cross_entropy, cross_entropy_gradient, linear
from jaxsoftmax.app.data.dataset import Split

SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384)
RATES = 2.0 ** np.arange(-8, 5)
TARGET, EVERY, MOST = 0.3, 1024, 400  # loss; images between two checks; checks
SGD = optax.inject_hyperparams(optax.sgd)(0.1)


def main() -> None:
    """Measure noise, paths and seconds."""
    options = document.arguments(__doc__)
    train = document.images("mnist", options).train
    sizes, most, rounds = ((1, 16, 256), 20, 3) if options.smoke else (SIZES, MOST, 15)
    x, y = jnp.asarray(train.features), jnp.asarray(train.targets)
    ways: dict[int, dict[str, float]] = {}
    guess = 0.01
    for size in sizes:
        ways[size] = best_way(x, y, size, guess=guess, most=most)
        guess = ways[size]["rate"]
        print(f"batch {size}: {ways[size]}", flush=True)
    timing = seconds_of_an_update(x, y, sizes, rounds)
    record = {
        "noise": noise(train, sizes),
        "images": len(y),
        "to the loss": {
            str(size): way
            | {"seconds of an update": timing[size], "seconds": timing[size] * way["updates"]}
            for size, way in ways.items()
        },
    }
    for when, of_size in record["noise"].items():
        print(f"noise of the gradient, {when}")
        document.show(of_size)
    document.show({f"batch {size}": way for size, way in record["to the loss"].items()})
    document.publish("minibatches", document.rounded(record, 4), draw, smoke=options.smoke)


# Noise


def noise(train: Split, sizes: tuple[int, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean square errors of minibatch gradients, drawn and by formula, at two points."""
    x, y = jnp.asarray(train.features), jnp.asarray(train.targets)
    start = linear.init(x.shape[1], int(y.max()) + 1)
    later, *_ = way(start, x, y, 0.1, 60, size=64)
    points = {"at the start": start, "later": later}
    return {
        when: {f"batch {size}": noise_at(params, x, y, size) for size in sizes}
        for when, params in points.items()
    }


def noise_at(params: LinearParams, x: jax.Array, y: jax.Array, size: int) -> dict[str, float]:
    """Return E |g_B - g|^2 over draws without replacement, and trace(S) / B (N - B) / (N - 1).

    An example's gradient in W is x (p - e)', whose square is |x|^2 |p - e|^2.
    """
    error = cross_entropy_gradient(linear.logits(params, x), y)
    whole = x.T @ error / len(y)
    trace = ((x**2).sum(-1) * (error**2).sum(-1)).mean() - (whole**2).sum()
    size = min(size, len(y) // 2)

    def one(key: jax.Array) -> jax.Array:
        rows = jax.random.choice(key, len(y), (size,), replace=False)
        return ((x[rows].T @ error[rows] / size - whole) ** 2).sum()

    draws = 20 if size > 1000 else 200
    found = jax.lax.map(one, jax.random.split(jax.random.key(size), draws))
    factor = (len(y) - size) / (len(y) - 1)
    return {
        "drawn": float(found.mean()),
        "formula": float(trace / size * factor),
        "of |gradient|^2": float(found.mean() / (whole**2).sum()),
    }


# The path to one loss


def best_way(x: jax.Array, y: jax.Array, size: int, *, guess: float, most: int) -> dict[str, float]:
    """Return the fewest updates to the loss over the rates, in order of distance from a guess."""
    start = linear.init(x.shape[1], int(y.max()) + 1)
    looks, best = most, {"rate": guess, "looks": np.inf}
    for rate in sorted(RATES, key=lambda rate: abs(np.log(rate / guess))):
        _, loss, found = way(start, x, y, rate, looks, size=size)
        if loss <= TARGET:  # the others must be faster, or stop there
            best, looks = {"rate": float(rate), "looks": float(found)}, int(found) - 1
    updates = best.pop("looks") * max(1, EVERY // size)
    return best | {"updates": updates, "images": updates * size}


@partial(jax.jit, static_argnames="size")
def way(
    params: LinearParams, x: jax.Array, y: jax.Array, rate: float, most: int, *, size: int
) -> tuple[LinearParams, jax.Array, jax.Array]:
    """Train until the target loss or the last check; return model, loss and number of checks."""
    fifth = x[::5], y[::5]

    def look(carry: tuple) -> tuple:
        params, opt_state, _, looks = carry
        key = jax.random.fold_in(jax.random.key(0), looks)
        updates = max(1, EVERY // size)
        params, opt_state = run(params, opt_state, key, x, y, size=size, updates=updates)
        return params, opt_state, mean_loss(params, *fifth), looks + 1

    def on_the_way(carry: tuple) -> jax.Array:
        *_, loss, looks = carry
        return (loss > TARGET) & (looks < most)  # a loss that is NaN stops too

    opt_state = SGD.init(params)
    opt_state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
    carry = params, opt_state, jnp.asarray(jnp.inf), jnp.asarray(0)
    params, _, loss, looks = jax.lax.while_loop(on_the_way, look, carry)
    return params, loss, looks


def run(
    params: LinearParams,
    opt_state: Any,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    size: int,
    updates: int,
) -> tuple[LinearParams, Any]:
    """Run some updates as one scan, each on images drawn with replacement."""

    def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        params, opt_state = carry
        slope = jax.grad(mean_loss)(params, x[rows], y[rows])
        change, opt_state = SGD.update(slope, opt_state)
        return (optax.apply_updates(params, change), opt_state), None

    rows = jax.random.randint(key, (updates, size), 0, len(y))
    return jax.lax.scan(step, (params, opt_state), rows)[0]


def mean_loss(params: LinearParams, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return cross_entropy(linear.logits(params, x), y).mean()


def seconds_of_an_update(
    x: jax.Array, y: jax.Array, sizes: tuple[int, ...], rounds: int
) -> dict[int, float]:
    """Return median seconds of an update, from runs of 4,096 images or of four updates."""
    params = linear.init(x.shape[1], int(y.max()) + 1)
    counts = {size: max(4, 4096 // size) for size in sizes}

    def timed(size: int) -> Callable[[], Any]:
        program = jax.jit(partial(run, size=size, updates=counts[size]))
        return lambda: program(params, SGD.init(params), jax.random.key(0), x, y)

    timing = measure.paired({str(size): timed(size) for size in sizes}, rounds=rounds)
    return {size: timing["seconds"][str(size)]["median"] / counts[size] for size in sizes}


# The figure


def draw(record: dict[str, Any]) -> Figure:
    """Draw updates and images, and seconds, by batch size."""
    figure, axes = figures.slide(
        "Larger batches need fewer updates, but soon more images: here batches of 16 are fastest",
        columns=2, height=3.6,
    )  # fmt: skip
    sizes = sorted(map(int, record["to the loss"]))
    ways = [record["to the loss"][str(size)] for size in sizes]
    for name, color, mark in (("updates", BLUE, "o-"), ("images", ORANGE, "s--")):
        axes[0, 0].plot(sizes, [way[name] for way in ways], mark, color=color)
    axes[0, 0].axhline(record["images"], color=MUTED, linewidth=1, linestyle=":")
    figures.label(axes[0, 0], "one epoch", (14_000, record["images"] * 0.85), va="top", ha="right")
    figures.label(axes[0, 0], "images", (500, 4e5), ORANGE, ha="right")
    figures.label(axes[0, 0], "updates", (60, 1500), BLUE)
    axes[0, 0].set_title(f"until the training loss is {TARGET}")
    seconds = [way["seconds"] for way in ways]
    axes[0, 1].plot(sizes, seconds, "o-", color=BLUE)
    for size, second in ((16, seconds[sizes.index(16)]), (sizes[-1], seconds[-1])):
        away = {"va": "top"} if size == 16 else {"ha": "right", "va": "bottom"}
        figures.label(axes[0, 1], f"{size:,}: {second:.2g} s ", (size, second * 0.9), BLUE, **away)
    axes[0, 1].set_title("seconds of updates until then")
    for panel in axes[0]:
        panel.set(xscale="log", yscale="log", xlabel="images in a batch")
    axes[0, 1].set(ylim=(0.06, 6))
    axes[0, 1].set_yticks((0.1, 1), ("0.1 s", "1 s"))
    return figure


if __name__ == "__main__":
    main()
