"""Memory, time and exactness on a GPU by the number of classes: the picture of the main page.

Command: `python experiments/gpu_by_classes.py`, about two minutes on a CPU, in an environment with
`jax[cuda13]` and `.[app]`: the programs are compiled for an H200 that is only described. `--smoke`
draws the figure from the committed records and writes nothing. The record is
results/gpu_by_classes.json.

Question. How does the temporary memory of a head's value and gradients grow with the number of
classes on an NVIDIA H200, with 2,048 examples of 4,096 features in bfloat16 and a budget of 128
MiB, beside Optax's loss on dense logits? The figure also shows the time of value and gradient of
logits that exist, and the errors of both. These come from results/benchmark_nvidia_h200.json, which
`benchmark.py` writes on such a GPU, and until then from results/h200_prototypes.json, the first
measurements of prototypes of the kernels.

Findings: With 256,000 classes, `linear_cross_entropy_sum` needs 146.6 MB of temporary memory and
`linear_cross_entropy` 151.0; dense logits need 1,052.8 MB in bfloat16 and 4,232.1 in float32. Up to
16,000 classes the logits fit into the budget, and the fused losses need as much as dense logits in
bfloat16. On an H200 the prototype of the row kernel took 27% to 61% of the time of Optax's loss.
Its largest error was 10 units in the last place under ties, and 5 elsewhere.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import document
import figures
import jax
import jax.numpy as jnp
import measure
from benchmarks import head_programs as heads
from benchmarks.heads import GROWING
from benchmarks.table import entries
from figures import BLUE, GREEN, MUTED, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

NAME, DEVICE = "gpu_by_classes", "h200"
ROWS, FEATURES, DTYPE, BUDGET = GROWING["gpu"]
CLASSES = (1000, 4000, 16_000, 64_000, 128_000, 256_000)
PROGRAMS: dict[str, Callable[[heads.Head], Any]] = {
    "per example": partial(heads.per_example, {"memory": BUDGET}),
    "sum": partial(heads.total, {"memory": BUDGET}),
    "optax": heads.dense,
    "optax, float32 logits": partial(heads.dense, dtype=jnp.float32),
}


def main() -> None:
    """Compile every program for every number of classes, or draw what was compiled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="draw from the records alone")
    smoke = parser.parse_args().smoke
    record = document.recorded(NAME) if smoke else {"temporary MB": compiled()}
    for name, sizes in record["temporary MB"].items():
        for classes, size in sizes.items():
            print(f"{name}, {int(classes):,} classes: {size:,.1f} MB")
    document.publish(NAME, record, draw, smoke=smoke)


def compiled() -> dict[str, dict[str, float]]:
    """Return the megabytes of temporary memory of each program by the number of classes."""
    from benchmarks import without_device  # it sets what JAX must know before it starts

    jax.config.update("jax_platforms", "cpu")
    found: dict[str, dict[str, float]] = {name: {} for name in PROGRAMS}
    for k in CLASSES:
        head = jax.eval_shape(partial(heads.data, heads.Shape(ROWS, FEATURES, k, DTYPE)))
        for name, program in PROGRAMS.items():
            needed = without_device.resources(DEVICE, program, (head,))["temporary_bytes"]
            found[name][str(k)] = needed / 1e6
    return found


# The figure

HERE = "jaxsoftmax"
LOOKS = {
    HERE: (BLUE, "o"),
    "optax": (ORANGE, "s"),
    "jax.nn": (GREEN, "D"),
    "torch": (PURPLE, "^"),
}
# Cases of the exactness part of benchmark.py, as the figure names them.
EXACTNESS = {
    "10 classes, scale 10, confident": "10 classes, confident",
    "763 classes, two ahead of exact ties": "763 classes, ties",
    "1,000 classes, scale 3": "1,000 classes",
    "100,000 classes, scale 10": "100,000 classes",
}
# The row in which a library is named, and the side of its mark.
NAMED = {HERE: (0, "left"), "optax": (1, "right"), "jax.nn": (3, "right"), "torch": (3, "left")}
WHOLE = 2**23  # units in the last place from which a number is lost


def draw(record: dict[str, Any], measured: dict[str, Any] | None = None) -> Figure:
    """Draw memory, time and exactness; `measured` is a record of benchmark.py on the GPU."""
    measured = on_device() if measured is None else measured
    prototypes = document.recorded("h200_prototypes")
    figure = Figure(figsize=(figures.WIDTH, 5.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    figures.entitle(figure, "On a GPU: less memory, less time, and every digit of a small loss")
    figure.supxlabel(source(measured), x=0.012, ha="left", fontsize=9, color=MUTED)
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = above.subplots(1, 2)
    memory(left, record["temporary MB"])
    time(right, measured_times(measured) or prototype_times(prototypes))
    exactness(below.subplots(), measured_errors(measured) or prototypes["errors_in_ulps"])
    return figure


def on_device() -> dict[str, Any]:
    """Return the record of benchmark.py on the GPU, empty if there is none."""
    path = measure.RESULTS / f"benchmark_nvidia_{DEVICE}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def source(measured: dict[str, Any]) -> str:
    """Return the line below the panels: where their numbers are from."""
    timed = "time and errors were measured"
    if not (measured_times(measured) and measured_errors(measured)):
        timed = "time and errors are those of prototypes of its kernels, November 2026"
    return f"NVIDIA H200. Memory is that of this version's compiled programs;\n{timed}."


def memory(axes: Axes, found: dict[str, dict[str, float]]) -> None:
    """Draw the temporary memory of a head by the number of classes."""
    lines = {
        "optax, float32 logits": ("Optax,\n  float32", ORANGE, "s-", "center"),
        "optax": ("Optax,\n  bfloat16", ORANGE, "s--", "center"),
        "sum": (HERE, BLUE, "o-", "top"),
    }
    for name, (text, color, style, va) in lines.items():
        values = {int(k): size for k, size in found[name].items()}
        by_classes(axes, values, color, style)
        figures.label(axes, f"  {text}", (CLASSES[-1], values[CLASSES[-1]]), color, va=va)
    axes.set(yscale="log", ylim=(5, 9000))
    axes.set_yticks((10, 100, 1000), ("10", "100", "1,000"))
    axes.set_title("A head's memory stops growing: loss and\ngradient, MB of temporary memory")


def by_classes(axes: Axes, values: dict[int, float], color: str, style: str) -> None:
    """Draw a line by the number of classes."""
    classes = sorted(values)
    axes.plot(classes, [values[k] for k in classes], style, color=color, markersize=5)
    axes.set(xscale="log", xlabel="classes", xlim=(700, 4e5))
    axes.set_xticks((1e3, 1e4, 1e5), ("1,000", "10,000", "100,000"), fontsize=9)
    axes.xaxis.set_minor_formatter(NullFormatter())


def time(axes: Axes, found: dict[str, dict[int, float]]) -> None:
    """Draw the time of value and gradient of a million logits by the number of classes.

    Marks are not joined, because each size has a variant of the kernel of its own.
    """
    looks = {"optax": (ORANGE, "s"), HERE: (BLUE, "o"), "copy": (MUTED, "_")}
    for name, (color, mark) in looks.items():
        by_classes(axes, found[name], color, mark)
    middle = {name: of[min(of, key=lambda k: abs(k - 4000))] for name, of in found.items()}
    figures.label(axes, "Optax", (8e3, middle["optax"]), ORANGE)
    figures.label(axes, HERE, (4.5e3, middle[HERE] + 0.3), BLUE)
    figures.label(axes, "a copy", (4.5e3, middle["copy"] - 0.3), va="top")
    axes.set(ylim=(0, 1.15 * max(found["optax"].values())))
    faster = max(found["optax"][k] / spent for k, spent in found[HERE].items())
    axes.set_title(
        f"Up to {faster:.1f} times as fast as Optax: loss\nand gradient of a million logits, µs"
    )


def prototype_times(record: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Return microseconds for a million bfloat16 logits, of the prototype and beside it."""
    found: dict[str, dict[int, float]] = {HERE: {}, "optax": {}, "copy": {}}
    for shape, times in record["rows, value and gradient"]["microseconds"].items():
        dtype, n, k = shape.replace(" x ", " ").split()
        if dtype == DTYPE:
            for name in found:
                spent = times["kernel" if name == HERE else name]
                found[name][int(k)] = spent / (int(n) * int(k) / 1e6)
    return found


def measured_times(record: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Return the same from a record of benchmark.py; empty if it has no such part."""
    found: dict[str, dict[int, float]] = {HERE: {}, "optax": {}, "copy": {}}
    for group in entries(record, "rows_by_classes").values():
        for k, entry in group.items():
            millions = entry["bytes"] / (2 * jnp.dtype(entry["dtype"]).itemsize) / 1e6
            for name in found if int(k) >= CLASSES[0] else ():
                seconds = entry["seconds"]["mean" if name == HERE else name]["median"]
                found[name][int(k)] = 1e6 * seconds / millions
    return found if found[HERE] else {}


def measured_errors(record: dict[str, Any]) -> dict[str, Any]:
    """Return the errors of each case from a record of benchmark.py; empty if one is not there."""
    found = entries(record, "exactness")
    errors = {case: found[case]["errors in ulps"] for case in EXACTNESS if case in found}
    return errors if errors.keys() == EXACTNESS.keys() else {}


def exactness(axes: Axes, errors: dict[str, Any]) -> None:
    """Draw the larger error of loss and gradient of each library, case by case."""
    for row, case in enumerate(EXACTNESS):
        peers = [peer for peer in LOOKS if peer in errors[case]]
        for place, peer in enumerate(peers):
            color, mark = LOOKS[peer]
            largest = min(max(errors[case][peer].values()), WHOLE)
            height = row + 0.19 * (place - (len(peers) - 1) / 2)
            axes.plot(largest, height, mark, color=color, markersize=5.5)
            if NAMED[peer][0] == row:
                figures.label(
                    axes,
                    f"  {peer.replace('optax', 'Optax')}  ",
                    (largest, height),
                    color,
                    va="center",
                    ha=NAMED[peer][1],
                )
    figures.rows_of(axes, EXACTNESS.values())
    axes.set(xscale="log", xlim=(0.8, 6e7))
    axes.set_xticks(
        (1, 10, 100, 1e3, 1e4, 1e5, WHOLE),
        ("1", "10", "100", "1,000", "10,000", "100,000", "all lost"),
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(
        "Errors stay in the last digits: the largest\nof loss and gradient, units in the last place"
    )


if __name__ == "__main__":
    main()
