"""Figures of a fit, each a separate matplotlib `Figure`, for a notebook or for the report.

    learning_curves        loss, error and accuracy by epoch
    regularization_curve   held-out loss by the strength of the penalty
    confusion_matrix       true against predicted classes, readable for 2 to 100 of them
    reliability_diagram    frequencies against probabilities, before and after calibration
    ranking_curves         ROC and precision-recall curves
    average_ranking_curves the same, averaged over many classes
    threshold_curves       precision, recall and F1 by the threshold
    class_templates        the weights of a model of images, as images
    top_features           the features with the largest weights for each class
    mistakes               misclassified images, with their predictions
    residuals              predicted against true numbers
    compare_intervals      a metric of several runs with its intervals
    compare_curves         validation losses of several runs

The figures are made without pyplot and have neither state nor a backend: `figure.savefig(path)`
writes one, and a notebook shows one after `%matplotlib inline`. Blue and orange, which color-blind
readers can distinguish, mean right and wrong, or for and against. Heat maps vary the opacity of a
color rather than the color, so that they suit both light and dark pages.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from jaxsoftmax.app.host_metrics import Reliability
from jaxsoftmax.app.ranking_curves import GRID, AverageCurve, RankingCurve
from jaxsoftmax.app.text import JOINERS, replace_unprintable, shorten

PALETTE = {
    "page": "#ffffff",
    "ink": "#22272e",
    "muted": "#68707b",
    "grid": "#dfe3e8",
    "blue": "#0a6ebd",
    "orange": "#cc5500",
}
"""The colors of all text and lines. The report gives each a second value for dark pages."""

BLUE, ORANGE = PALETTE["blue"], PALETTE["orange"]
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["ink"],
    "axes.edgecolor": PALETTE["muted"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PALETTE["page"],
    "grid.color": PALETTE["grid"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": PALETTE["muted"],
    "xtick.labelcolor": PALETTE["ink"],
    "ytick.color": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["ink"],
}

WIDTH = 4.6
"""The width of a figure in inches, at which letters are still readable on a phone."""
WIDE = 7.2
"""The width in inches of figures that need more room."""

MAX_CLASSES_WITH_COUNTS = 15
"""The largest number of classes for which the cells of a confusion matrix show their counts."""
MAX_CLASSES_WITH_NAMES = 40
"""The largest number of classes for which a confusion matrix names all rows and columns."""


def learning_curves(history: Mapping[str, np.ndarray]) -> Figure:
    """Loss and accuracy by epoch, of training and validation data.

    The epoch of lowest validation loss is marked; a fit with patience keeps its parameters.

    Args:
        history: the history of a `FitResult`: one number per epoch under "loss" and, optionally,
            "accuracy", "validation_loss" and "validation_accuracy". For numbers there may be
            "rmse" and "validation_rmse", the root mean squared error, in place of the loss.

    Returns:
        A figure with a panel for the loss and, if there is one, a panel for the accuracy.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> losses = {"loss": np.array([1.0, 0.5]), "validation_loss": np.array([1.1, 0.7])}
        >>> len(plots.learning_curves(losses).axes)
        1
    """
    panels = [name for name in _CURVES if name in history]
    with _new_figure(WIDTH, 0.9 + 2.1 * len(panels)) as figure:
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(column, panels, strict=True):
            _draw_curve(axes, history[name], "training", ORANGE)
            if f"validation_{name}" in history:
                _draw_curve(axes, history[f"validation_{name}"], "validation", BLUE)
                _mark_best_epoch(axes, history, name)
            axes.set_title(_CURVES[name])
        _scale_losses(column[0])
        if "accuracy" in panels:
            column[-1].yaxis.set_major_formatter(FuncFormatter(_format_percent))
        # Outside, because no place within is free of curves that swing.
        known = column[0].get_legend_handles_labels()
        figure.legend(*known, loc="outside lower center", ncols=2)
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.set_major_locator(_whole_numbers())
    return figure


_CURVES = {"loss": "loss", "rmse": "root mean squared error", "accuracy": "accuracy"}


def regularization_curve(C: ArrayLike, loss: ArrayLike, *, error: ArrayLike) -> Figure:
    """Held-out loss against the inverse strength of the penalty.

    Args:
        C: `[P]`, increasing.
        loss: the loss of held-out examples, `[P]`; the lowest is marked.
        error: the standard error of the loss, `[P]`.

    Returns:
        A figure.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.regularization_curve([0.1, 1, 10], [2, 1, 1.5], error=[0.1, 0.1, 0.2])
        >>> len(figure.axes)
        1
    """
    strengths, losses, errors = (np.asarray(a, float) for a in (C, loss, error))
    with _new_figure(WIDTH, 2.6) as figure:
        axes = figure.subplots()
        axes.fill_between(strengths, losses - errors, losses + errors, color=BLUE, alpha=0.2)
        axes.plot(strengths, losses, color=BLUE, marker="o", markersize=3)
        if np.isfinite(losses).any():
            best = int(np.nanargmin(losses))
            axes.plot(strengths[best], losses[best], "o", color=ORANGE, label="lowest")
            axes.legend(loc="best")
        axes.set_xscale("log")
        _scale_losses(axes)
        axes.set_xlabel("C (the penalty weakens to the right)")
        axes.set_title("held-out loss")
    return figure


def _draw_curve(axes: Axes, values: np.ndarray, label: str, color: str) -> None:
    epochs = np.arange(1, len(values) + 1)
    marker = "o" if len(values) == 1 else ""  # a line through one point is invisible
    axes.plot(epochs, values, label=label, color=color, marker=marker)


def _scale_losses(axes: Axes) -> None:
    """Use a log scale where losses span over two decades, and numbers without a common factor."""
    losses = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    losses = losses[np.isfinite(losses)]
    if losses.size and 0 < 100 * losses.min() < losses.max():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_format_number))


def _mark_best_epoch(axes: Axes, history: Mapping[str, np.ndarray], name: str) -> None:
    losses = np.asarray(history.get("validation_loss", history.get("validation_rmse", ())))
    if not np.isfinite(losses).any():
        return
    best = int(np.nanargmin(losses))
    axes.plot(
        best + 1,
        history[f"validation_{name}"][best],
        "o",
        color=BLUE,
        label=f"lowest validation loss, epoch {best + 1}",
    )


def most_confused_pairs(counts: np.ndarray, *, limit: int) -> list[tuple[int, int]]:
    """Find the largest cells off the diagonal of a confusion matrix.

    Args:
        counts: the result of `metrics.confusion_matrix`, `[K, K]`.
        limit: the largest number of pairs to return.

    Returns:
        Pairs of a true class and a predicted class, the largest count first; pairs that never
        occur are left out.

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
    with _new_figure(width, width + 0.4) as figure:
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
    axes.imshow(_blue_orange_image(is_diagonal, opacity), interpolation="none")
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
    _name_ticks(axes.yaxis, _thin_out(rows, num_classes), classes, font_size=font_size)
    _name_ticks(axes.xaxis, _thin_out(columns, num_classes), classes, font_size=font_size)
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


def _blue_orange_image(is_blue: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return an image `[..., 4]`, blue where `is_blue` and orange elsewhere."""
    image = np.empty((*opacity.shape, 4), np.float32)
    image[..., :3] = np.where(np.asarray(is_blue)[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    image[..., 3] = np.clip(opacity, 0, 1)
    return image


def _draw_color_key(
    axes: Axes, opacity: np.ndarray, color: str, largest_share: float, title: str
) -> None:
    image = _blue_orange_image(np.array(color == BLUE), opacity)
    axes.imshow(image, interpolation="none", aspect="auto", extent=(0, largest_share, 0, 1))
    axes.set_title(title)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_format_percent))


def reliability_diagram(before: Reliability, *, after: Reliability | None = None) -> Figure:
    """Frequencies against probabilities and, below, the distribution of the probabilities.

    In the upper panel the points of a calibrated model lie on the diagonal. Each point has its 95%
    interval (Wilson's), which shows whether its distance from the diagonal exceeds chance. The
    lower panel has the share of the examples up to each probability, with a mark at the end of each
    bin.

    Args:
        before: the result of `metrics.expected_calibration_error`, `metrics.reliability` or
            `host_metrics.reliability`.
        after: the same for calibrated probabilities.

    Returns:
        A figure with two panels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> from jaxsoftmax.app import plots
        >>> probabilities, targets = jnp.array([0.2, 0.4, 0.9]), jnp.array([0, 1, 1])
        >>> figure = plots.reliability_diagram(metrics.reliability(probabilities, targets, bins=3))
        >>> figure.axes[0].get_ylabel()
        'frequency'

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    with _new_figure(WIDTH, 5.0) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle="--")
        series = [("as fitted", before, ORANGE, "o")]
        if after is not None:
            series.append(("calibrated", after, BLUE, "s"))
        for name, result, color, marker in series:
            label = f"{name}, ECE {float(result.error):.3f}"
            _draw_frequencies(upper, result, label, color, marker)
            _draw_distribution(lower, result, color, marker)
        upper.set(ylabel="frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.legend(loc="upper left")
        lower.set(xlabel="probability", ylabel="cumulative", ylim=(-0.05, 1.05))
        for axis in (upper.yaxis, lower.xaxis, lower.yaxis):
            axis.set_major_formatter(FuncFormatter(_format_percent))
        lower.set_yticks([0, 0.5, 1])
    return figure


def _draw_frequencies(axes: Axes, result: Reliability, label: str, color: str, marker: str) -> None:
    arrays = (result.counts, result.confidence, result.accuracy)
    counts, confidence, frequency = (np.asarray(a, float) for a in arrays)
    filled = counts > 0
    counts, confidence, frequency = counts[filled], confidence[filled], frequency[filled]
    axes.vlines(confidence, *_wilson(frequency, counts), color=color, alpha=0.5, linewidth=1.2)
    size = 6 if marker == "o" else 3.5
    axes.plot(confidence, frequency, marker, color=color, label=label, markersize=size)


def _draw_distribution(axes: Axes, result: Reliability, color: str, marker: str) -> None:
    counts = np.asarray(result.counts, float)
    cumulative = np.append(0, np.cumsum(counts)) / max(counts.sum(), 1)
    edges = np.asarray(result.edges)
    axes.plot(edges, cumulative, f"{marker}-", color=color, linewidth=1, markersize=3)


def _wilson(share: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95% interval of a share of `size` examples."""
    z = 1.96
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2)
    return middle - half, middle + half


def ranking_curves(curves: Sequence[RankingCurve], names: Sequence[str]) -> Figure:
    r"""ROC and precision-recall curves of one or several classes or labels.

    Of several curves, the one with the smallest area is drawn in orange and named above it. A
    dashed line is what a guess would give: the diagonal, and the share of the positives.

    Args:
        curves: the results of `ranking_curves.rank`, with positives and negatives each.
        names: their names.

    Returns:
        A figure with two panels.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> from jaxsoftmax.app.ranking_curves import rank
        >>> curve = rank(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
        >>> [axes.get_title("left") for axes in plots.ranking_curves([curve], ["yes"]).axes]
        ['ROC\nAUC 0.875', 'precision and recall\nAP 0.833']
    """
    with _new_figure(WIDTH, 2.8) as figure:
        left, right = _ranking_panels(figure)
        left.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle="--")
        left.set_title("ROC" + _draw_rankings(left, curves, names, "roc_auc", "AUC"))
        title = _draw_rankings(right, curves, names, "average_precision", "AP")
        right.set_title(f"precision and recall{title}")
        if len(curves) == 1:
            share = curves[0].positives / (curves[0].positives + curves[0].negatives)
            right.axhline(share, color=PALETTE["muted"], linewidth=1, linestyle="--")
    return figure


def average_ranking_curves(averages: Mapping[str, AverageCurve]) -> Figure:
    r"""ROC and precision-recall curves that are averages over many classes or labels.

    Args:
        averages: one or two results of `ranking_curves.average`, by name.

    Returns:
        A figure with two panels.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> from jaxsoftmax.app.ranking_curves import average, rank
        >>> curve = rank(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
        >>> figure = plots.average_ranking_curves({"macro": average([curve])})
        >>> [axes.get_title("left") for axes in figure.axes]
        ['ROC\nmacro AUC 0.875', 'precision and recall\nmacro AP 0.833']
    """
    with _new_figure(WIDTH, 3.0) as figure:
        left, right = _ranking_panels(figure)
        left.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle="--")
        titles = ["ROC"], ["precision and recall"]
        for (name, curve), color in zip(averages.items(), (BLUE, ORANGE), strict=False):
            x, y = np.append(0, GRID), np.append(0, curve.true_positive_rate)
            left.plot(x, y, color=color, label=name)
            right.plot(GRID, curve.precision, color=color)
            titles[0].append(f"{name} AUC {curve.roc_auc:.3f}")
            titles[1].append(f"{name} AP {curve.average_precision:.3f}")
        for axes, lines in zip((left, right), titles, strict=True):
            axes.set_title("\n".join(lines))
        left.legend(loc="lower right")
    return figure


def _ranking_panels(figure: Figure) -> tuple[Axes, Axes]:
    """Return the empty panels of ROC and precision-recall curves, in percent."""
    left, right = figure.subplots(1, 2)
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    right.set(xlabel="recall", ylabel="precision")
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_format_percent))
    return left, right


def _draw_rankings(
    axes: Axes, curves: Sequence[RankingCurve], names: Sequence[str], area: str, short: str
) -> str:
    """Draw all curves thin and the worst one in orange, or one in blue; return its title."""
    areas = [getattr(curve, area) for curve in curves]
    worst = int(np.argmin(areas))
    for index, curve in enumerate(curves):
        if index != worst:
            _draw_ranking(axes, curve, area, color=BLUE, linewidth=0.8, alpha=0.5)
    _draw_ranking(axes, curves[worst], area, color=ORANGE if len(curves) > 1 else BLUE)
    title = f"{short} {areas[worst]:.3f}"
    if len(curves) == 1:
        return f"\n{title}"
    return f"\nlowest: {_escape_math(shorten(names[worst], 12))}\n{title}"


def _draw_ranking(axes: Axes, curve: RankingCurve, area: str, **style: Any) -> None:
    recall = curve.recall
    steps = np.flatnonzero(np.diff(recall, prepend=0.0))  # where precision has its peaks
    steps = steps[_thin_out_curve(len(steps))]
    chosen = np.union1d(_thin_out_curve(len(recall)), steps)
    if area == "roc_auc":
        x, y = np.append(0, curve.false_positive_rate[chosen]), np.append(0, recall[chosen])
        axes.plot(x, y, **style)
    else:
        axes.plot(recall[chosen], curve.precision[chosen], drawstyle="steps-pre", **style)


def _thin_out_curve(size: int, limit: int = 400) -> np.ndarray:
    """Return the indices of the points to draw of a long curve: both ends, and evenly between."""
    return np.unique(np.linspace(0, size - 1, min(size, limit)).astype(int))


def threshold_curves(curve: RankingCurve, probabilities: np.ndarray, name: str) -> Figure:
    """Precision, recall and F1 by the probability from which on a class is predicted.

    Args:
        curve: the result of `ranking_curves.rank`.
        probabilities: the probability at each threshold of the curve.
        name: the name of the class.

    Returns:
        A figure.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> from jaxsoftmax.app.ranking_curves import rank
        >>> p = np.array([0.1, 0.4, 0.6, 0.8])
        >>> figure = plots.threshold_curves(rank(p, np.array([0, 0, 1, 1])), p[::-1], "yes")
        >>> [line.get_label() for line in figure.axes[0].lines[:3]]
        ['precision', 'recall', 'F1']
    """
    chosen = _thin_out_curve(len(probabilities))
    precision, recall = curve.precision[chosen], curve.recall[chosen]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    with _new_figure(WIDTH, 2.6) as figure:
        axes = figure.subplots()
        for label, values, color in (
            ("precision", precision, ORANGE),
            ("recall", recall, BLUE),
            ("F1", f1, PALETTE["muted"]),
        ):
            axes.plot(probabilities[chosen], values, color=color, label=label)
        axes.axvline(0.5, color=PALETTE["muted"], linewidth=1, linestyle="--")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_xlabel("threshold of the probability")
        axes.set_title(_escape_math(f"predict {shorten(name, 28)} from the threshold on"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_format_percent))
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def class_templates(w: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> Figure:
    """The weights of each class as an image that shows what the class responds to.

    For gray images, a bright pixel raises the score of a class where it is blue and lowers it where
    it is orange. For color images, gray is no weight, and any other color is the one that raises
    the score. All images have the same scale, centered at 0.

    Args:
        w: `[D, K]`.
        shape: the shape of an image, `(height, width)`, optionally followed by 1 or 3 channels.
        classes: K names.

    Returns:
        A figure with K images.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> len(plots.class_templates(np.eye(4, 3), (2, 2), ["a", "b", "c"]).axes[0].images)
        3
    """
    scale = float(np.max(np.abs(w))) or 1.0
    weights = [
        column.reshape(_pixel_shape(shape)) / scale for column in np.asarray(w, np.float32).T
    ]
    images = [
        (1 + weight) / 2 if weight.ndim == 3 else _blue_orange_image(weight > 0, np.abs(weight))
        for weight in weights
    ]
    names = [shorten(name) for name in classes]
    return _draw_tiles(images, names, columns=5 if len(images) < 30 else 10)


def mistakes(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Images with captions below them.

    Args:
        images: `[N, height, width]`, optionally followed by 1 or 3 channels; gray images of any
            scale, color images from 0 to 1.
        captions: N captions of one or more lines, which are cut to the width of an image.

    Returns:
        A figure with N images.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> len(plots.mistakes(np.ones((2, 8, 8)), ["3, read as 8", "1, read as 7"]).axes[0].texts)
        2
    """
    images = np.asarray(images, np.float32)
    images = images.reshape(len(images), *_pixel_shape(images.shape[1:]))
    if images.ndim == 3:
        images = images / (float(images.max(initial=0)) or 1.0)
    colored = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images]
    return _draw_tiles(colored, captions, columns=4)


def _pixel_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image without a single channel."""
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"shape: expected (height, width), optionally followed by 1 or 3 channels, got {shape}"
        )
    return shape[:2] if shape[2:] == (1,) else shape


TILE_GAP = 0.1
"""The gap between captioned images, in units of the width of an image."""


class _TileLayout(NamedTuple):
    """A grid of captioned images, in units of the width of an image.

    inches: the width of an image in inches. height: of an image. pitch: from one row to the next.
    font_size: of the captions, in points.
    """

    rows: int
    columns: int
    inches: float
    height: float
    pitch: float
    font_size: int

    @property
    def size(self) -> tuple[float, float]:
        """The width and the height of the grid."""
        return self.columns * (1 + TILE_GAP), self.rows * self.pitch

    @property
    def letters(self) -> int:
        """The number of letters in a line of a caption; a letter is about 0.6 font sizes wide."""
        return int(72 * self.inches / (0.6 * self.font_size))


def _lay_out_tiles(
    images: Sequence[np.ndarray], captions: Sequence[str], columns: int
) -> _TileLayout:
    columns = min(columns, max(len(images), 1))
    figure_width, font_size = (WIDTH, 8) if columns <= 5 else (WIDE, 6)
    inches = min(1.6, figure_width / (columns * (1 + TILE_GAP)))
    height = max((image.shape[0] / image.shape[1] for image in images), default=1)
    num_lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    line_height = 1.3 * font_size / 72 / inches
    return _TileLayout(
        rows=math.ceil(len(images) / columns),
        columns=columns,
        inches=inches,
        height=height,
        pitch=height + line_height * num_lines + 2 * TILE_GAP,
        font_size=font_size,
    )


def _draw_tiles(images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int) -> Figure:
    """Draw captioned images in rows, placed by hand on one set of axes."""
    layout = _lay_out_tiles(images, captions, columns)
    width, height = layout.size
    with _new_figure(width * layout.inches, height * layout.inches, by_hand=True) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            _draw_tile(axes, layout, index, image, caption)
        axes.set(xlim=(-TILE_GAP / 2, width - TILE_GAP / 2), ylim=(height, 0))
    return figure


def _draw_tile(
    axes: Axes, layout: _TileLayout, index: int, image: np.ndarray, caption: str
) -> None:
    row, column = divmod(index, layout.columns)
    left, top = column * (1 + TILE_GAP), row * layout.pitch + TILE_GAP / 2
    bottom = top + layout.height
    axes.imshow(np.clip(image, 0, 1), interpolation="none", aspect="auto",
                extent=(left, left + 1, bottom, top))  # fmt: skip
    lines = [shorten(line, layout.letters) for line in caption.split("\n")]
    text = _escape_math("\n".join(lines))
    axes.text(left, bottom + TILE_GAP / 3, text, va="top", fontsize=layout.font_size)


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
    with _new_figure(WIDTH, num_rows * (0.55 + 0.19 * num_features) + 0.2) as figure:
        panels = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False).ravel()
        for axes, weights, name in zip(panels, np.asarray(w).T, classes, strict=False):
            axes.set_title(_escape_math(shorten(name, 32 // num_columns)), fontweight="bold")
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
    _name_ticks(axes.yaxis, range(limit), names, font_size=8, width=width)
    axes.invert_yaxis()
    axes.tick_params("y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(FuncFormatter(_format_number))


def residuals(
    predicted: np.ndarray, targets: np.ndarray, names: Sequence[str], *, limit: int = 1000
) -> Figure:
    """Predicted against true numbers, and the distribution of their differences.

    The axes show the bulk of the examples: a few that would squeeze all others are crosses at the
    edge, with their number. Positive numbers of unlike sizes have log scales.

    Args:
        predicted: `[N, K]`, or `[N]` for one number.
        targets: the true numbers, of the same shape.
        names: the names of the K numbers.
        limit: the largest number of points to draw for each, spread evenly over the examples.

    Returns:
        A figure with two panels for each number.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.residuals(np.array([1.0, 2.0]), np.array([1.1, 2.2]), ["price"])
        >>> [axes.get_title("left") for axes in figure.axes]
        ['price', 'predicted minus true']
    """
    num_rows = len(names)
    predicted, targets = (np.asarray(a, float).reshape(-1, num_rows) for a in (predicted, targets))
    with _new_figure(WIDTH, 2.6 * num_rows) as figure:
        panels = figure.subplots(num_rows, 2, squeeze=False)
        for (left, right), name, z, t in zip(panels, names, predicted.T, targets.T, strict=True):
            left.set_title(_escape_math(shorten(name)), fontweight="bold")
            _draw_predictions(left, z, t, limit)
            _draw_errors(right, z - t)
    return figure


def _draw_predictions(axes: Axes, predicted: np.ndarray, true: np.ndarray, limit: int) -> None:
    is_log = _spans_decades(true)
    if is_log:
        low, high = true.min() / 1.5, true.max() * 1.5
        low = max(low, true.min() / 100)
        axes.set(xscale="log", yscale="log")
    else:
        low, high = _robust_range(np.concatenate([true, predicted]))
    chosen = np.linspace(0, len(true) - 1, min(limit, len(true))).astype(int)
    points = np.stack([true, predicted])
    is_inside = ((points >= low) & (points <= high)).all(0)
    axes.plot([low, high], [low, high], color=PALETTE["muted"], linewidth=1, linestyle="--")
    shown = chosen[is_inside[chosen]]
    axes.plot(true[shown], predicted[shown], ".", color=BLUE, alpha=0.4, markersize=4)
    outside = np.flatnonzero(~is_inside)[:limit]
    if outside.size:
        axes.plot(*points[:, outside].clip(low, high), "x", color=ORANGE, markersize=5,
                  clip_on=False)  # fmt: skip
        axes.text(0.03, 0.97, f"× {_count_outside(is_inside)} outside", color=PALETTE["ink"],
                  transform=axes.transAxes, va="top", fontsize=8)  # fmt: skip
    axes.set(xlabel="true", ylabel="predicted", xlim=(low, high), ylim=(low, high))
    _format_axes(axes.xaxis, axes.yaxis, is_log=is_log)


def _draw_errors(axes: Axes, errors: np.ndarray) -> None:
    low, high = _robust_range(errors)
    is_inside = (errors >= low) & (errors <= high)
    inside = errors[is_inside]
    axes.hist(inside, bins="auto" if len(inside) < 10_000 else 100, color=BLUE)
    axes.axvline(0, color=PALETTE["muted"], linewidth=1, linestyle="--")
    axes.set_title("predicted minus true")
    omission = "" if is_inside.all() else f" ({_count_outside(is_inside)} outside)"
    axes.set(xlabel=f"residual{omission}", ylabel="examples")
    _format_axes(axes.xaxis)


def _count_outside(is_inside: np.ndarray) -> str:
    return f"{np.count_nonzero(~is_inside):,}"


def _format_axes(*axes: Axis, is_log: bool = False) -> None:
    for axis in axes:
        if is_log:
            axis.set_major_locator(LogLocator(numticks=4))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(3))
        axis.set_major_formatter(FuncFormatter(_format_power if is_log else _format_number))


def _robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range of values, without the few that would squeeze all others.

    The middle 98% of the values may take a fifth of the range or more; else the range is theirs,
    and half of it more on either side.
    """
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = map(float, np.quantile(values, [0.01, 0.99]))
    margin = (inner_high - inner_low) / 2
    if margin and high - low > 10 * margin:
        low, high = max(low, inner_low - margin), min(high, inner_high + margin)
    margin = 0.03 * (high - low) or max(abs(high), 1.0) * 0.03
    return low - margin, high + margin


def _spans_decades(values: np.ndarray) -> bool:
    """Return whether numbers are amounts of unlike sizes, which a log scale shows better."""
    if not values.size or not values.min() > 0:
        return False
    low, high = np.quantile(values, [0.05, 0.95])
    return bool(high > 100 * low)


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
    with _new_figure(WIDTH, 0.7 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        axes.hlines(rows, low, high, color=BLUE, alpha=0.5, linewidth=2)
        axes.plot(values, rows, "o", color=BLUE, markersize=5)
        _name_ticks(axes.yaxis, rows.tolist(), names, font_size=8, width=28)
        axes.invert_yaxis()
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        formatter = _format_percent if is_share else _format_number
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

    Example:
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.compare_curves({"a": [1.0, 0.5], "b": [1.1, 0.7]})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['a', 'b']
    """
    shown = list(curves.items())[:MAX_COMPARED_CURVES]
    with _new_figure(WIDTH, 2.6 + 0.17 * len(shown)) as figure:
        axes = figure.subplots()
        for index, (name, values) in enumerate(shown):
            color, style = (BLUE, ORANGE)[index % 2], ("-", "--", ":", "-.")[index // 2]
            losses = np.asarray(values, float)
            axes.plot(np.arange(1, len(losses) + 1), losses, style, color=color,
                      marker="o" if len(losses) == 1 else "",
                      label=_escape_math(shorten(name, 28)))  # fmt: skip
        _scale_losses(axes)
        axes.set_title("validation loss")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_whole_numbers())
        figure.legend(loc="outside lower left", ncols=1)
    return figure


# -- Shared parts --


@contextmanager
def _new_figure(width: float, height: float, *, by_hand: bool = False) -> Iterator[Figure]:
    """Yield an empty figure in this module's style, whatever the style of the caller's session."""
    with matplotlib.style.context(["default", STYLE]):
        yield Figure(figsize=(width, height), layout=None if by_hand else "constrained")


def _name_ticks(
    axis: Axis, ticks: Sequence[int], names: Sequence[str], *, font_size: float, width: int = 18
) -> None:
    """Label some ticks of an axis with their names."""
    labels = [_escape_math(shorten(names[tick], width)) for tick in ticks]
    axis.set_ticks(list(ticks), labels, fontsize=font_size)


def _whole_numbers() -> MaxNLocator:
    """Return a locator of ticks at epochs, of which there may be one."""
    return MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def _format_number(value: float, _: int) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _format_power(value: float, _: int) -> str:
    """Format a power of ten: 0.01, 100, 10k, 1M, and others as 1e9."""
    exponent = round(math.log10(value))
    if exponent >= 9 or exponent < -3:
        return f"1e{exponent}".replace("-", "−")
    unit, factor = ("M", 1e6) if exponent >= 6 else ("k", 1e3) if exponent >= 4 else ("", 1)
    return f"{value / factor:g}{unit}"


def _format_percent(value: float, _: int) -> str:
    return f"{100 * value:.4g}%"


def _escape_math(text: str) -> str:
    r"""Return text that matplotlib draws literally: no formula begins at `$`.

    Control characters are blanked. Joiners stay, because some scripts and emoji are written with
    them.
    """
    return replace_unprintable(text, keep="\n" + JOINERS).replace("$", r"\$")
