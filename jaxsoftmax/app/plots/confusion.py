"""The confusion matrix, readable for 2 to 100 classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxsoftmax.app.plots.style import (
    BLUE,
    ORANGE,
    PALETTE,
    WIDE,
    WIDTH,
    blue_orange_image,
    format_percent,
    name_ticks,
    new_figure,
)
from jaxsoftmax.app.text import shorten

MAX_CLASSES_WITH_COUNTS = 15
"""The largest number of classes for which the cells of a confusion matrix show their counts."""

MAX_CLASSES_WITH_NAMES = 40
"""The largest number of classes for which a confusion matrix names all rows and columns."""


def most_confused_pairs(counts: np.ndarray, *, limit: int) -> list[tuple[int, int]]:
    """Find the largest cells off the diagonal of a confusion matrix.

    Args:
        counts: the result of `metrics.confusion_matrix`, `[K, K]`.
        limit: the largest number of pairs to return.

    Returns:
        Pairs of a true class and a predicted class, the largest count first; pairs that never
        occur are left out.

    Numerics:
        Of equal counts the pair that comes first by row, then by column, is first.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> plots.most_confused_pairs(np.array([[5, 1, 0], [3, 5, 0], [0, 0, 5]]), limit=9)
        [(1, 0), (0, 1)]
    """
    off_diagonal = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order[off_diagonal.ravel()[order] > 0], off_diagonal.shape)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Examples of each true class (row) by predicted class (column).

    Blue, on the diagonal, shows the share of a class that is classified correctly. Orange shows the
    share that is confused with another class, on a separate square-root scale, so that rare
    mistakes are visible. With up to 15 classes the cells show their counts, and with up to 40 all
    rows and columns are named; with more classes the most confused pairs are circled and named.

    Args:
        counts: the result of `metrics.confusion_matrix`, `[K, K]`.
        classes: K names.

    Returns:
        A figure with the matrix and the keys of its two colors.

    Numerics:
        A class without examples has an empty row. Counts must be finite.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.confusion_matrix(np.array([[8, 2], [1, 9]]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['8', '2', '1', '9']
    """
    counts, num_classes = np.asarray(counts), len(classes)
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.where(totals == 0, 1, totals)
    largest_mistake = float(np.max(shares, where=~np.eye(num_classes, dtype=bool), initial=0))
    width = WIDTH if num_classes <= MAX_CLASSES_WITH_COUNTS else WIDE
    with new_figure(width, width + 0.4) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=(width, 0.12), width_ratios=(1, 0.1, 1))
        axes = figure.add_subplot(grid[0, :])
        _draw_matrix(axes, counts, shares, largest_mistake)
        _name_classes(axes, counts, classes)
        ramp = np.linspace(0, 1, 128)[None]
        _draw_color_key(figure.add_subplot(grid[1, 0]), ramp, BLUE, 1.0, "correct")
        if largest_mistake:
            key_axes = figure.add_subplot(grid[1, 2])
            _draw_color_key(key_axes, np.sqrt(ramp), ORANGE, largest_mistake, "confused")
    return figure


def _draw_matrix(
    axes: Axes, counts: np.ndarray, shares: np.ndarray, largest_mistake: float
) -> None:
    num_classes = len(counts)
    is_diagonal = np.eye(num_classes, dtype=bool)
    opacity = np.where(is_diagonal, shares, np.sqrt(shares / (largest_mistake or 1)))
    axes.imshow(blue_orange_image(is_diagonal, opacity), interpolation="none")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
    if num_classes <= MAX_CLASSES_WITH_NAMES:
        for boundary in np.arange(num_classes - 1) + 0.5:
            axes.axhline(boundary, color=PALETTE["grid"], linewidth=0.5)
            axes.axvline(boundary, color=PALETTE["grid"], linewidth=0.5)
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        _write_counts(axes, counts, opacity)


def _name_classes(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    num_classes = len(classes)
    rows = columns = set(range(num_classes))
    if num_classes > MAX_CLASSES_WITH_NAMES:
        pairs = most_confused_pairs(counts, limit=8)
        rows, columns = ({pair[side] for pair in pairs} for side in (0, 1))
        axes.plot(*np.array(pairs).reshape(-1, 2).T[::-1], "o", color=PALETTE["ink"],
                  markersize=9, markerfacecolor="none", markeredgewidth=1)  # fmt: skip
    font_size = 9 if num_classes <= MAX_CLASSES_WITH_COUNTS else 7
    name_ticks(axes.yaxis, _thin_out(rows, num_classes), classes, font_size=font_size)
    name_ticks(axes.xaxis, _thin_out(columns, num_classes), classes, font_size=font_size)
    if max(len(shorten(classes[k])) for k in columns or {0}) > 3:
        axes.tick_params("x", labelrotation=90 if num_classes > MAX_CLASSES_WITH_COUNTS else 45)
        for label in axes.get_xticklabels():
            if num_classes <= MAX_CLASSES_WITH_COUNTS:
                label.set(ha="right", rotation_mode="anchor")


def _thin_out(indices: set[int], num_classes: int) -> list[int]:
    """Return the indices, in order, whose names do not overlap the previous name."""
    gap = num_classes / 50
    kept: list[int] = []
    for index in sorted(indices):
        if not kept or index - kept[-1] >= gap:
            kept.append(index)
    return kept


def _write_counts(axes: Axes, counts: np.ndarray, opacity: np.ndarray) -> None:
    font_size = 9 if len(counts) <= 10 else 7
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # White is readable on the full color on every page; on a faint color, the page's ink.
            color = "#fffffe" if opacity[row, column] > 0.85 else PALETTE["ink"]
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=color,
                      fontsize=font_size)  # fmt: skip


def _draw_color_key(
    axes: Axes, opacity: np.ndarray, color: str, largest_share: float, title: str
) -> None:
    image = blue_orange_image(np.array(color == BLUE), opacity)
    axes.imshow(image, interpolation="none", aspect="auto", extent=(0, largest_share, 0, 1))
    axes.set_title(title)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(format_percent))
