"""Predicted against true numbers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jaxsoftmax.app.plots.style import (
    BLUE,
    ORANGE,
    PALETTE,
    WIDTH,
    escape_math,
    format_number,
    format_power,
    new_figure,
)
from jaxsoftmax.app.text import shorten


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

    Numerics:
        Numbers that are NaN or infinite are outside, like those beyond the edges.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.residuals(np.array([1.0, 2.0]), np.array([1.1, 2.2]), ["price"])
        >>> [axes.get_title("left") for axes in figure.axes]
        ['price', 'predicted minus true']
    """
    num_rows = len(names)
    predicted, targets = (np.asarray(a, float).reshape(-1, num_rows) for a in (predicted, targets))
    with new_figure(WIDTH, 2.6 * num_rows) as figure:
        panels = figure.subplots(num_rows, 2, squeeze=False)
        for (left, right), name, z, t in zip(panels, names, predicted.T, targets.T, strict=True):
            left.set_title(escape_math(shorten(name)), fontweight="bold")
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
        axis.set_major_formatter(FuncFormatter(format_power if is_log else format_number))


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
