"""The style of the figures: a sentence as the title, direct labels, few colors, large letters.

A figure shows one thing. It is drawn from its document's record, so that `gallery.py --draw` draws
all of them again without measuring anything. At a width of 600 pixels, as on a web page, the
smallest letters are 10 pixels high.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from jaxsoftmax.app.plots import PALETTE
from jaxsoftmax.app.plots import STYLE as REPORT

INK, MUTED, GRID = (PALETTE[name] for name in ("ink", "muted", "grid"))
# Distinguishable for color-blind readers and in gray; a document uses them in this order, and
# gives each line a style or a mark as well.
BLUE, ORANGE, GREEN, PURPLE = PALETTE["blue"], PALETTE["orange"], "#1b9e77", "#a6519c"
WIDTH = 7.2  # inches
STYLE = REPORT | {"font.size": 10, "axes.titlesize": 10, "lines.linewidth": 2, "axes.titlepad": 8}


def slide(
    title: str, rows: int = 1, columns: int = 1, *, height: float, **how: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure under a sentence, and its axes `[rows, columns]`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    entitle(figure, title)
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def entitle(figure: Figure, title: str) -> None:
    """Write the sentence above a figure."""
    figure.suptitle(
        balanced(title), x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK
    )


def balanced(text: str, widest: int = 66) -> str:
    """Break a sentence into lines of about one length."""
    lines = len(textwrap.wrap(text, widest))
    width = next(w for w in range(1, widest + 1) if len(textwrap.wrap(text, w)) <= lines)
    return textwrap.fill(text, width)


def label(axes: Axes, text: str, at: tuple[float, float], color: str = MUTED, **how: Any) -> None:
    """Write a label beside what it names, at data coordinates."""
    axes.text(*at, text, color=color, **{"fontsize": 9.5, **how})


def bars(
    axes: Axes, values: Mapping[str, float], *, colors: Sequence[str] | str, form: Callable | str
) -> None:
    """Draw a horizontal bar for each name, the first on top, with its value at its end."""
    axes.barh(list(values), list(values.values()), 0.62, color=colors)
    write = form if callable(form) else form.format
    for row, value in enumerate(values.values()):
        label(axes, f" {write(value)}", (value, row), INK, va="center")
    axes.set(ylim=(len(values) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def rows_of(axes: Axes, names: Iterable[str]) -> None:
    """Give each row its name, the first on top."""
    names = list(names)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)


def move(axes: Axes, row: float, start: float, end: float, *, color: str) -> None:
    """Draw a change in a row: a hollow mark, and an arrow to a filled one."""
    if start != end:
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 1.6}
        axes.annotate("", (end, row), (start, row), arrowprops=arrow)
    axes.plot(start, row, "o", color=color, markerfacecolor="white", markersize=6.5)
    axes.plot(end, row, "o", color=color, markersize=6.5)


def save(figure: Figure, path: Path, *, dpi: int = 170) -> None:
    """Write a PNG; 256 colors show no difference, and the file names no version of matplotlib."""
    pixels = io.BytesIO()
    with matplotlib.style.context(STYLE):
        figure.savefig(pixels, dpi=dpi)
    image = Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
