"""Several runs in one figure: a metric with its intervals, and the validation losses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from jaxsoftmax.app.plots.style import (
    BLUE,
    ORANGE,
    WIDTH,
    escape_math,
    format_number,
    format_percent,
    name_ticks,
    new_figure,
    scale_losses,
    whole_numbers,
)
from jaxsoftmax.app.text import shorten


def compare_intervals(
    values: Sequence[float],
    intervals: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    is_share: bool = False,
) -> Figure:
    """A metric of several runs, each with its interval.

    Args:
        values: the metric of each run, `[R]`.
        intervals: the ends of its interval, `[R, 2]`.
        names: the names of the runs.
        title: the name of the metric.
        is_share: whether the metric is a share of the examples, written in percent.

    Returns:
        A figure.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.compare_intervals([0.8], [[0.7, 0.9]], ["a"], title="accuracy")
        >>> figure.axes[0].get_xlabel()
        'accuracy'
    """
    rows = np.arange(len(names))
    low, high = np.asarray(intervals, float).T
    with new_figure(WIDTH, 0.7 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        axes.hlines(rows, low, high, color=BLUE, alpha=0.5, linewidth=2)
        axes.plot(values, rows, "o", color=BLUE, markersize=5)
        name_ticks(axes.yaxis, rows.tolist(), names, font_size=8, width=28)
        axes.invert_yaxis()
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        formatter = format_percent if is_share else format_number
        axes.xaxis.set_major_formatter(FuncFormatter(formatter))
    return figure


MAX_COMPARED_CURVES = 8
"""The largest number of runs whose curves are drawn in one figure, each in a style of its own."""


def compare_curves(curves: Mapping[str, ArrayLike]) -> Figure:
    """Validation losses of several runs by epoch.

    Args:
        curves: one loss per epoch for each run, by its name; those of the first eight are drawn.

    Returns:
        A figure.

    Numerics:
        A loss of NaN or infinity is left out.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.compare_curves({"a": [1.0, 0.5], "b": [1.1, 0.7]})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['a', 'b']
    """
    shown = list(curves.items())[:MAX_COMPARED_CURVES]
    with new_figure(WIDTH, 2.6 + 0.17 * len(shown)) as figure:
        axes = figure.subplots()
        for index, (name, values) in enumerate(shown):
            color, style = (BLUE, ORANGE)[index % 2], ("-", "--", ":", "-.")[index // 2]
            losses = np.asarray(values, float)
            axes.plot(np.arange(1, len(losses) + 1), losses, style, color=color,
                      marker="o" if len(losses) == 1 else "",
                      label=escape_math(shorten(name, 28)))  # fmt: skip
        scale_losses(axes)
        axes.set_title("validation loss")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_numbers())
        figure.legend(loc="outside lower left", ncols=1)
    return figure
