"""The features with the largest weights for each class."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxsoftmax.app.plots.style import (
    BLUE,
    ORANGE,
    PALETTE,
    WIDTH,
    escape_math,
    format_number,
    name_ticks,
    new_figure,
)
from jaxsoftmax.app.text import shorten


def top_features(
    w: np.ndarray, columns: Sequence[str], classes: Sequence[str], *, limit: int = 6
) -> Figure:
    """The features with the largest weights for each class, one panel a class, on one scale.

    Blue raises the score of the class and orange lowers it. Weights are comparable where features
    have the same scale, for instance after standardization.

    Args:
        w: `[D, K]`.
        columns: the names of the D features.
        classes: K names.
        limit: the largest number of features per class.

    Returns:
        A figure with K panels.

    Numerics:
        By size, of either sign; of equal weights the first feature comes first. NaN comes last.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> w = np.array([[1.0], [-3.0], [0.5]])
        >>> axes, = plots.top_features(w, ["width", "height", "age"], ["tall"], limit=2).axes
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['height', 'width']
    """
    num_columns, num_features = min(2, len(classes)), min(limit, len(columns))
    num_rows = math.ceil(len(classes) / num_columns)
    with new_figure(WIDTH, num_rows * (0.55 + 0.19 * num_features) + 0.2) as figure:
        panels = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False).ravel()
        for axes, weights, name in zip(panels, np.asarray(w).T, classes, strict=False):
            axes.set_title(escape_math(shorten(name, 32 // num_columns)), fontweight="bold")
            _draw_largest_weights(axes, weights, columns, num_features, width=28 // num_columns)
        for axes in panels[len(classes) :]:
            axes.remove()
        for axes in panels[max(len(classes) - num_columns, 0) : len(classes)]:
            axes.set_xlabel("weight")
            axes.tick_params("x", labelbottom=True)
    return figure


def _draw_largest_weights(
    axes: Axes, weights: np.ndarray, columns: Sequence[str], limit: int, *, width: int
) -> None:
    largest = np.argsort(-np.abs(weights), kind="stable")[:limit]
    colors = [BLUE if weight > 0 else ORANGE for weight in weights[largest]]
    axes.barh(np.arange(limit), weights[largest], color=colors, height=0.7)
    axes.axvline(0, color=PALETTE["muted"], linewidth=0.8)
    names = [columns[index] for index in largest]
    name_ticks(axes.yaxis, range(limit), names, font_size=8, width=width)
    axes.invert_yaxis()
    axes.tick_params("y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(FuncFormatter(format_number))
