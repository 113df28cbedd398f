"""Curves of a ranking: ROC, precision and recall, and both by the threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxsoftmax.app.plots.style import (
    BLUE,
    ORANGE,
    PALETTE,
    WIDTH,
    escape_math,
    format_percent,
    new_figure,
)
from jaxsoftmax.app.ranking_curves import GRID, AverageCurve, RankingCurve
from jaxsoftmax.app.text import shorten


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
    with new_figure(WIDTH, 2.8) as figure:
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
    with new_figure(WIDTH, 3.0) as figure:
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
            axis.set_major_formatter(FuncFormatter(format_percent))
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
    return f"\nlowest: {escape_math(shorten(names[worst], 12))}\n{title}"


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

    Numerics:
        F1 is 0 where precision and recall are. A curve of more than 400 points is drawn by 400 of
        them.

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
    with new_figure(WIDTH, 2.6) as figure:
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
        axes.set_title(escape_math(f"predict {shorten(name, 28)} from the threshold on"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(format_percent))
        figure.legend(loc="outside lower center", ncols=3)
    return figure
