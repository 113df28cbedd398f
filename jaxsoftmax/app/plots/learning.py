"""Curves of a fit: losses by epoch, and the held-out loss by the penalty."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike

from jaxsoftmax.app.plots.style import (
    BLUE,
    ORANGE,
    WIDTH,
    format_percent,
    new_figure,
    scale_losses,
    whole_numbers,
)


def learning_curves(history: Mapping[str, np.ndarray]) -> Figure:
    """Loss and accuracy by epoch, of training and validation data.

    The epoch of lowest validation loss is marked; a fit with patience keeps its parameters.

    Args:
        history: the history of a `FitResult`: one number per epoch under "loss" and, optionally,
            "accuracy", "validation_loss" and "validation_accuracy". For numbers there may be
            "rmse" and "validation_rmse", the root mean squared error, in place of the loss.

    Returns:
        A figure with a panel for the loss and, if there is one, a panel for the accuracy.

    Numerics:
        A loss of NaN or infinity is left out, and has no mark. Losses that span more than two
        decades have a log scale.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> losses = {"loss": np.array([1.0, 0.5]), "validation_loss": np.array([1.1, 0.7])}
        >>> len(plots.learning_curves(losses).axes)
        1
    """
    panels = [name for name in _CURVES if name in history]
    with new_figure(WIDTH, 0.9 + 2.1 * len(panels)) as figure:
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(column, panels, strict=True):
            _draw_curve(axes, history[name], "training", ORANGE)
            if f"validation_{name}" in history:
                _draw_curve(axes, history[f"validation_{name}"], "validation", BLUE)
                _mark_best_epoch(axes, history, name)
            axes.set_title(_CURVES[name])
        scale_losses(column[0])
        if "accuracy" in panels:
            column[-1].yaxis.set_major_formatter(FuncFormatter(format_percent))
        # Outside, because no place within is free of curves that swing.
        known = column[0].get_legend_handles_labels()
        figure.legend(*known, loc="outside lower center", ncols=2)
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.set_major_locator(whole_numbers())
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

    Numerics:
        A loss of NaN or infinity is left out.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.regularization_curve([0.1, 1, 10], [2, 1, 1.5], error=[0.1, 0.1, 0.2])
        >>> len(figure.axes)
        1
    """
    strengths, losses, errors = (np.asarray(a, float) for a in (C, loss, error))
    with new_figure(WIDTH, 2.6) as figure:
        axes = figure.subplots()
        axes.fill_between(strengths, losses - errors, losses + errors, color=BLUE, alpha=0.2)
        axes.plot(strengths, losses, color=BLUE, marker="o", markersize=3)
        if np.isfinite(losses).any():
            best = int(np.nanargmin(losses))
            axes.plot(strengths[best], losses[best], "o", color=ORANGE, label="lowest")
            axes.legend(loc="best")
        axes.set_xscale("log")
        scale_losses(axes)
        axes.set_xlabel("C (the penalty weakens to the right)")
        axes.set_title("held-out loss")
    return figure


def _draw_curve(axes: Axes, values: np.ndarray, label: str, color: str) -> None:
    epochs = np.arange(1, len(values) + 1)
    marker = "o" if len(values) == 1 else ""  # a line through one point is invisible
    axes.plot(epochs, values, label=label, color=color, marker=marker)


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
