"""The page of a record, for a wall: roofline, rate and memory by the number of classes, peers.

It is drawn from the record alone, and shows what was measured.
"""

import math
import re
from pathlib import Path
from typing import Any

import figures
import matplotlib.style
import numpy as np
from figures import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.table import NAMES, entries, heading

SIZE, DPI = (16, 10.5), 100
INTENSITY = "useful operations for each byte moved; over 100%: from a cache"
APART = 15  # points between two names
STYLE = figures.STYLE | {"font.size": 11, "axes.titlesize": 13, "axes.titleweight": "bold"}
# Left, bottom, width and height of each panel; the labels of the roofline are to its right.
PLACES = {
    "roofline": (0.045, 0.585, 0.27, 0.32),
    "peers": (0.69, 0.585, 0.29, 0.32),
    "memory": (0.055, 0.07, 0.31, 0.34),
    "rates": (0.58, 0.07, 0.29, 0.34),
}
# Other ways and libraries: names, colors and marks.
PEERS = {
    "optax": ("Optax", ORANGE, "s"),
    "torch": ("torch", PURPLE, "^"),
    "torch fused": ("torch, fused", GREEN, "D"),
    "liger": ("Liger", GREEN, "v"),
    "cut": ("cut-cross-entropy", PURPLE, "P"),
    "quack": ("QuACK", GREEN, "*"),
    "tokamax": ("tokamax", MUTED, "X"),
    "jax_cce": ("jax-cce", MUTED, "d"),
    "python loop": ("Python loop with Optax", ORANGE, "<"),
    "torch bare": ("torch's loop", PURPLE, "<"),
    "torch loader": ("torch's DataLoader", PURPLE, ">"),
    "cyanure": ("cyanure-gpu", GREEN, "p"),
    "scikit-learn": ("scikit-learn", INK, "X"),
    "LogisticRegressionCV": ("scikit-learn", INK, "X"),
    "Cyanure": ("Cyanure", GREEN, "p"),
}
DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
ROOFED = {
    "heads": "head {}",
    "rows": "logits {}",
    "epoch": "epoch {}",
    "solver": "solve {}",
    "sigmoid": "labels {}",
}
COMPARED = ROOFED | {"path": "{}"} | NAMES


def draw(record: dict[str, Any]) -> Figure:
    """Return the page of a record."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=SIZE)
        title = f"jaxsoftmax on {heading(record)}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=18, fontweight="bold", color=INK)
        for part in (roofline, peers, memory, rates):
            axes = figure.add_axes(PLACES[part.__name__])
            if not part(axes, record):
                axes.set_axis_off()
                axes.text(0.4, 0.5, "not measured", transform=axes.transAxes, color=MUTED)
        return figure


def save(figure: Figure, path: Path) -> None:
    """Write the page as a PNG."""
    with matplotlib.style.context(STYLE):
        figures.save(figure, path, dpi=DPI)


# -- Roofline --


def roofline(axes: Axes, record: dict[str, Any]) -> bool:
    """Draw useful operations a second by operations a byte, under the measured ceilings."""
    ceilings, found = entries(record, "ceilings"), points(record)
    if "copy" not in ceilings or not found:
        return False
    copied = ceilings["copy"]["bytes per second"]
    peaks = {name.removeprefix("product, "): entry["operations per second"]
             for name, entry in ceilings.items() if name != "copy"}  # fmt: skip
    peaks = {name: peaks[name] for name in peaks if name in {point["dtype"] for point in found}}
    roofs(axes, copied, peaks, [point["intensity"] for point in found])
    for point in found:
        roof = min(copied * point["intensity"], peaks.get(point["dtype"], np.inf))
        point["label"] += f"  {point['rate'] / roof:.0%}"
        marked(axes, point)
    labeled(axes, found)
    axes.set(xscale="log", yscale="log", xlabel=INTENSITY)
    axes.set_title("Operations a second: how near to the limits of copy and product", loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_text(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    return True


def points(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of the roofline: this library's, and Optax's beside it."""
    found = []
    for part, title in ROOFED.items():
        for name, entry in measured(record, part).items():
            seconds = {way: s["median"] for way, s in entry["seconds"].items()}
            rates = {way: entry["operations"] / s for way, s in seconds.items()}
            found.append(
                {
                    "label": f"{title.format(shortened(name))} {DTYPES[entry['dtype']]}",
                    "intensity": entry["operations"] / entry["bytes"],
                    "rate": rates[entry["baseline"]],
                    "optax": rates.get("optax"),
                    "dtype": entry["dtype"],
                }
            )
    return found


def measured(record: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a part that have operations, without the interpreter's."""
    found = entries(record, part)
    return {n: e for n, e in found.items() if "operations" in e and n != "interpreted"}


def shortened(name: str) -> str:
    """Return an entry's title for a label: its sizes, if it has them."""
    sizes = re.search(r"\d+(?: ?x ?\d+)+", name)
    if sizes is None:
        return name
    text = " x ".join(f"{int(size):,}" for size in re.findall(r"\d+", sizes[0]))
    return text + " (w alone)" * ("/parameters" in name)


def roofs(axes: Axes, copied: float, peaks: dict[str, float], at: list[float]) -> None:
    """Draw the slope of the copy, and the rate of the products of each dtype."""
    left, right = min(at) / 2, max(at) * 2
    top = max(peaks.values())
    axes.plot([left, top / copied], [copied * left, top], color=MUTED, linewidth=1.5)
    middle = (left * top / copied) ** 0.5
    axes.annotate(f"copy, {copied / 1e9:,.0f} GB/s", (middle, copied * middle), (12, -4),
                  textcoords="offset points", color=MUTED, fontsize=9.5, va="top")  # fmt: skip
    names: dict[float, list[str]] = {}
    for dtype, peak in sorted(peaks.items(), key=lambda item: item[1]):
        axes.plot([peak / copied, right], [peak, peak], color=MUTED, linewidth=1.5)
        near = next((other for other in names if peak < 1.2 * other), peak)
        names.setdefault(near, []).append(DTYPES.get(dtype, dtype))
    for peak, dtypes in names.items():
        where = 1.2 * peak / copied, peak * 0.93
        figures.label(axes, f"product, {' and '.join(dtypes)}", where, va="top", fontsize=8.5)
    axes.set_xlim(left, right)


def marked(axes: Axes, point: dict[str, Any]) -> None:
    """Draw this library's rate, and Optax's as a hollow mark on a line with it."""
    at = point["intensity"]
    if point["optax"]:
        axes.plot([at, at], [point["rate"], point["optax"]], color=GRID, linewidth=1.5, zorder=2)
        axes.plot(at, point["optax"], "s", color=ORANGE, markerfacecolor="white", markersize=7)
    axes.plot(at, point["rate"], "o", color=BLUE, markersize=8, zorder=3)


def labeled(axes: Axes, found: list[dict[str, Any]]) -> None:
    """Write every point's label beside the panel, from the highest to the lowest, with a line."""
    found = sorted(found, key=lambda point: (point["rate"], point["intensity"]))
    heights = np.linspace(0.04, 0.96, len(found)) if len(found) > 1 else [0.5]
    for point, height in zip(found, heights, strict=True):
        axes.annotate(
            point["label"], (point["intensity"], point["rate"]), (1.06, height),
            textcoords="axes fraction", va="center", fontsize=9.5, color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkB": 5,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
    for name, color, mark in (("this library", BLUE, "o"), ("Optax", ORANGE, "s")):
        axes.plot([], [], mark, color=color, markerfacecolor=color if mark == "o" else "white",
                  label=name)  # fmt: skip
    axes.legend(loc="upper left", frameon=True, fontsize=10)


def rate_text(value: float) -> str:
    """Return a rate in the unit that is usual for it."""
    return f"{value / 1e12:g} T" if value >= 1e12 else f"{value / 1e9:g} G"


# -- Peers --


def peers(axes: Axes, record: dict[str, Any]) -> bool:
    """Draw each alternative's time over this library's."""
    found = {
        title.format(shortened(name)): entry
        for part, title in COMPARED.items()
        for name, entry in entries(record, part).items()
        if entry["seconds"].keys() & PEERS.keys() and name != "interpreted"
    }
    drawn = {}
    for row, entry in enumerate(found.values()):
        for name in (peer for peer in PEERS if peer in entry["ratios"]):
            text, color, mark = PEERS[name]
            (drawn[text],) = axes.plot(1 / entry["ratios"][name]["median"], row, mark, color=color,
                                       linestyle="", markersize=9, alpha=0.85)  # fmt: skip
    figures.rows_of(axes, found)
    axes.axvline(1, color=BLUE, linewidth=2, zorder=0)
    axes.set(xscale="log", xlabel="time over this library's, which is faster where it is above 1")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([tick for tick in (0.5, 1, 2, 4, 8, 16, 32, 64) if within(axes, tick)])
    axes.set_title("How much longer other libraries take", loc="left")
    axes.legend(drawn.values(), drawn, loc="upper center", bbox_to_anchor=(0.25, -0.13), ncols=4,
                frameon=False, fontsize=10, columnspacing=1.2, handletextpad=0.3)  # fmt: skip
    return bool(found)


def within(axes: Axes, value: float) -> bool:
    """Return whether an axis shows a value."""
    low, high = axes.get_xlim()
    return low <= value <= high


# -- By the number of classes --


def memory(axes: Axes, record: dict[str, Any]) -> bool:
    """Draw the temporary memory of heads by the number of classes."""
    found = entries(record, "heads_by_classes")
    ways = {
        "optax": ("Optax, dense logits", ORANGE, "s-"),
        "sum": ("linear_cross_entropy_sum", GREEN, "D-"),
        "per example": ("linear_cross_entropy", BLUE, "o-"),
    }
    axes.set(yscale="log", ylabel="MB of temporaries")
    lines(axes, {
        name: ({k: e["temporary_bytes"][way] / 1e6 for k, e in found.items()}, *look)
        for way, (name, *look) in ways.items()
    })  # fmt: skip
    axes.set_title("How the memory of a head grows with the number of classes", loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    return bool(found)


def rates(axes: Axes, record: dict[str, Any]) -> bool:
    """Draw the rate of value and gradient over logits by the number of classes."""
    found = {
        k: e for group in entries(record, "rows_by_classes").values() for k, e in group.items()
    }
    ways = {
        "copy": ("a copy", MUTED, "--"),
        "mean": ("mean_cross_entropy", BLUE, "o-"),
        "optax": ("Optax", ORANGE, "s-"),
    }
    highest = max((max(e["share of the copy"].values()) for e in found.values()), default=1)
    axes.set(ylim=(0, 1.1 * highest), ylabel="share of the rate of XLA's copy")
    lines(axes, {
        name: ({k: e["share of the copy"][way] for k, e in found.items()}, *look)
        for way, (name, *look) in ways.items()
    })  # fmt: skip
    axes.set_title("How near to a copy loss and gradient of logits come", loc="left")
    return bool(found)


def lines(axes: Axes, ways: dict[str, tuple[dict[str, float], str, str]]) -> None:
    """Draw each way's values by the number of classes in its color and style."""
    ends = []
    for name, (values, color, style) in ways.items():
        classes = sorted(map(int, values))
        axes.plot(classes, [values[str(k)] for k in classes], style, color=color, markersize=5)
        ends += [(values[str(k)], k, name, color) for k in classes[-1:]]
    axes.set(xscale="log", xlabel="classes")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    name_ends(axes, ends)


def name_ends(axes: Axes, ends: list[tuple[float, int, str, str]]) -> None:
    """Write each line's name at its end, from the lowest to the highest, apart from each other."""
    lowest = -math.inf
    for value, classes, name, color in sorted(ends):
        at = axes.transData.transform((classes, value))[1] * 72 / axes.figure.dpi  # in points
        lowest = max(at, lowest + APART)
        axes.annotate(name, (classes, value), (6, lowest - at), textcoords="offset points",
                      color=color, va="center", fontweight="bold")  # fmt: skip
