"""A linear head's time and memory by the number of classes: the picture of the main page.

Command: `python experiments/head_by_classes.py`, about two minutes on two cores. `--smoke` uses few
classes and writes nothing. The record is results/head_by_classes_PLATFORM.json.

Question. How do time and temporary memory of a training step's value and gradient grow with the
number of classes, for the mean of `linear_cross_entropy` with a budget of 32 MiB and for Optax's
loss on dense logits? 1,024 examples of 256 features, in float32; both take turns in one run.

Findings: At 128,000 classes the fused loss needs 50.4 MB of temporary memory, where dense logits
need 1,048.6 MB; from 16,000 classes on its memory is constant. It takes 1.06 times the processor
time of the dense head at 1,000 classes and 1.16 times at 16,000, because it computes the logits
twice once they do not fit.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import document
import figures
import jax
import measure
import optax
from figures import BLUE, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from jaxsoftmax import linear_cross_entropy

ROWS, FEATURES, MEMORY = 1024, 256, 32 * 2**20
CLASSES = (1_000, 4_000, 16_000, 64_000, 128_000)
HERE, OPTAX = "jaxsoftmax", "optax"


def main() -> None:
    """Measure every number of classes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few classes, no record")
    smoke = parser.parse_args().smoke
    record: dict[str, Any] = {
        str(k): compared(k, rounds=2 if smoke else 9) for k in ((64,) if smoke else CLASSES)
    }
    for k, found in record.items():
        print(f"{k} classes: {found}")
    name = f"head_by_classes_{jax.default_backend()}"
    document.publish(name, document.rounded({"classes": record}, 5), draw, smoke=smoke)


def fused(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss, without the logits."""
    return linear_cross_entropy(x, w, labels, memory=MEMORY).nll.mean()


def dense(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss, from the logits."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, labels).mean()


def compared(classes: int, *, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds and temporary bytes of value and gradient of both."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (ROWS, FEATURES))
    w = jax.random.normal(keys[1], (FEATURES, classes)) / FEATURES**0.5
    labels = jax.random.randint(keys[2], (ROWS,), 0, classes)
    losses: dict[str, Callable] = {OPTAX: dense, HERE: fused}
    programs = {
        name: jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, w, labels).compile()
        for name, loss in losses.items()
    }
    clocks = {name: partial(processor_seconds, p, x, w, labels) for name, p in programs.items()}
    timing = measure.paired({}, rounds=rounds, clocks=clocks)
    return {
        "seconds": {name: timing["seconds"][name]["median"] for name in programs},
        "temporary MB": {name: measure.temporary_bytes(p) / 1e6 for name, p in programs.items()},
        "time over Optax's": 1 / timing["ratios"][HERE]["median"],
    }


def processor_seconds(program: Callable, *arguments: jax.Array) -> float:
    """Return the seconds that all cores together spend on one call."""
    start = time.process_time()
    jax.block_until_ready(program(*arguments))
    return time.process_time() - start


# The figure

# Cases of benchmark.py's exactness, as the figure names them.
EXACTNESS = {
    "10 classes, scale 10, confident": "10 classes,\nconfident",
    "1,000 classes, scale 3": "1,000\nclasses",
    "100,000 classes, scale 10": "100,000\nclasses",
}
LOOKS = {HERE: (BLUE, "o", "-"), OPTAX: (ORANGE, "s", "--"), "torch": (PURPLE, "^", ":")}


def draw(record: dict[str, Any]) -> Figure:
    """Draw exactness, memory and time."""
    figure, axes = figures.slide(
        "Exact to the last digits, in about the time of a dense head, without its logits in memory",
        columns=3, height=3.2, width_ratios=(1.3, 1, 1),
    )  # fmt: skip
    exactness(axes[0, 0])
    classes = sorted(map(int, record["classes"]))
    found = [record["classes"][str(k)] for k in classes]
    memory, seconds = axes[0, 1:]
    for name in (HERE, OPTAX):
        color, mark, style = LOOKS[name]
        needed = [of["temporary MB"][name] for of in found]
        spent = [of["seconds"][name] for of in found]
        memory.plot(classes, needed, style, marker=mark, color=color)
        seconds.plot(classes, spent, style, marker=mark, color=color)
        at = classes[-1], needed[-1] * (0.7 if name == HERE else 1.3)
        figures.label(memory, name, at, color, ha="right", va="top" if name == HERE else "bottom")
    for panel in (memory, seconds):
        panel.set(xscale="log", yscale="log", xlabel="classes, 1,024 rows")
        panel.set_xticks((1e3, 1e4, 1e5), ("1,000", "10,000", "100,000"), fontsize=8.5)
        panel.xaxis.set_minor_formatter(NullFormatter())
    memory.set_yticks((10, 100, 1000), ("10", "100", "1,000"))
    memory.set_ylim(5, 3000)
    memory.set_title("temporary memory, MB")
    seconds.set_yticks((0.1, 1), ("0.1", "1"))
    seconds.set_title("CPU seconds")
    return figure


def exactness(axes: Axes) -> None:
    """Draw the larger error of loss and gradient, for some rows of the record of exactness."""
    errors = document.recorded("benchmark_cpu")["exactness"]["found"]
    for row, name in enumerate(EXACTNESS):
        for peer, (color, mark, _) in LOOKS.items():
            largest = max(errors[name]["errors in ulps"][peer].values())
            axes.plot(largest, row, mark, color=color, markersize=7, alpha=0.85)
    figures.label(axes, "jaxsoftmax", (8, 0), BLUE, va="center")
    figures.label(axes, "optax", (60, 1.72), ORANGE, ha="center")
    figures.label(axes, "torch", (300, 2), PURPLE, va="center")
    figures.rows_of(axes, EXACTNESS.values())
    axes.set(xscale="log", xlim=(0.8, 1e9))
    axes.set_xticks((1, 1e3, 2**24), ("1", "1,000", "all lost"))
    axes.set_title("largest error of loss and\ngradient, units in the last place")


if __name__ == "__main__":
    main()
