"""The picture of a CPU for the main page: exactness, memory and time by the number of classes.

Memory and time are those of `linear_cross_entropy` within the budget of the part heads_by_classes,
and of Optax's loss on dense logits, value and gradients.
"""

from pathlib import Path
from typing import Any

import figures
import matplotlib.style
from figures import BLUE, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.table import entries

# Cases of the part exactness, as the figure names them.
EXACTNESS = {
    "10 classes, scale 10, confident": "10 classes,\nconfident",
    "1,000 classes, scale 3": "1,000\nclasses",
    "100,000 classes, scale 10": "100,000\nclasses",
}
HERE, OPTAX = "jaxsoftmax", "optax"
LOOKS = {HERE: (BLUE, "o", "-"), OPTAX: (ORANGE, "s", "--"), "torch": (PURPLE, "^", ":")}
PROGRAMS = {HERE: "per example", OPTAX: "optax"}


def draw(record: dict[str, Any]) -> Figure | None:
    """Return the picture of a record, None of another device or where a part was not measured."""
    errors, found = entries(record, "exactness"), entries(record, "heads_by_classes")
    if not errors.keys() >= EXACTNESS.keys() or len(found) < 2 or not of_cpu(record):
        return None
    with matplotlib.style.context(figures.STYLE):
        figure, axes = figures.slide(
            "Exact to the last digits, in about the time of a dense head, without its logits in "
            "memory", columns=3, height=3.2, width_ratios=(1.3, 1, 1),
        )  # fmt: skip
        exactness(axes[0, 0], errors)
        by_classes(*axes[0, 1:], found)
    return figure


def of_cpu(record: dict[str, Any]) -> bool:
    """Return whether a CPU was measured; gpu_by_classes.py draws a GPU."""
    return record["heads_by_classes"]["environment"]["platform"] == "cpu"


def save(figure: Figure, path: Path) -> None:
    """Write the picture as a PNG."""
    figures.save(figure, path)


def by_classes(memory: Axes, seconds: Axes, found: dict[str, dict[str, Any]]) -> None:
    """Draw memory and seconds."""
    classes = [int(k) for k in found]
    for name, program in PROGRAMS.items():
        color, mark, style = LOOKS[name]
        needed = [entry["temporary_bytes"][program] / 1e6 for entry in found.values()]
        spent = [entry["seconds"][program]["median"] for entry in found.values()]
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


def exactness(axes: Axes, errors: dict[str, dict[str, Any]]) -> None:
    """Draw the larger error of loss and gradient of each library, case by case."""
    for row, case in enumerate(EXACTNESS):
        found = errors[case]["errors in ulps"]
        for peer, (color, mark, _) in LOOKS.items():
            if peer not in found:
                continue
            axes.plot(max(found[peer].values()), row, mark, color=color, markersize=7, alpha=0.85)
    figures.label(axes, "jaxsoftmax", (8, 0), BLUE, va="center")
    figures.label(axes, "optax", (60, 1.72), ORANGE, ha="center")
    figures.label(axes, "torch", (300, 2), PURPLE, va="center")
    figures.rows_of(axes, EXACTNESS.values())
    axes.set(xscale="log", xlim=(0.8, 1e9))
    axes.set_xticks((1, 1e3, 2**24), ("1", "1,000", "all lost"))
    axes.set_title("largest error of loss and\ngradient, units in the last place")
