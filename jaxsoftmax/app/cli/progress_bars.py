"""The progress of a command: bars on a terminal, lines in a pipe."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from jaxsoftmax.app.cli.console import is_terminal
from jaxsoftmax.app.data.dataset import Progress as Callback
from jaxsoftmax.app.evaluation import format_metric

MAX_EPOCH_LINES = 10  # epochs that are printed in a pipe, besides the first and the last


@contextmanager
def reading_progress(console: Console, name: str) -> Iterator[Callback]:
    """Yield a callback that shows how many examples have been read.

    Args:
        console: the console, which shows it only on a terminal.
        name: the name of the data.

    Example:
        >>> from jaxsoftmax.app.cli import console, progress_bars
        >>> screen = console.make_console(quiet=True)
        >>> with progress_bars.reading_progress(screen, "digits") as callback:
        ...     callback(3, 9)
    """
    is_live = is_terminal(console)
    with Progress(*_columns(), console=console, transient=True, disable=not is_live) as bar:
        task = bar.add_task(f"reading {name}", figures="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def epoch_progress(console: Console, epochs: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a callback that shows each epoch, as a moving bar or as about ten lines in all.

    Args:
        console: the console.
        epochs: the largest number of epochs.

    Raises:
        FloatingPointError: from the callback, if the loss is not finite.

    Example:
        >>> from jaxsoftmax.app.cli import console, progress_bars
        >>> with progress_bars.epoch_progress(console.make_console(quiet=True), 9) as callback:
        ...     callback({"epoch": 1, "loss": 0.5})
    """
    is_live, interval = is_terminal(console), math.ceil(epochs / MAX_EPOCH_LINES)
    with Progress(*_columns(), console=console, disable=not is_live) as bar:
        # Without a total the bar moves by itself, until the first epoch is compiled and over.
        task = bar.add_task("compiling", total=None, figures="")

        def callback(metrics: Mapping[str, Any]) -> None:
            _check_finite(metrics)
            epoch, figures = metrics["epoch"], _format_epoch(metrics)
            description = f"epoch {epoch}/{epochs}"
            bar.update(
                task, total=epochs, completed=epoch, figures=figures, description=description
            )
            if not is_live and (epoch % interval == 0 or epoch in (1, epochs)):
                console.print(f"{description}: {figures}")

        yield callback


@contextmanager
def sweep_progress(
    console: Console, points: int, folds: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a callback that shows each C of a path, as a moving bar or as a line.

    Args:
        console: the console.
        points: the number of values of C.
        folds: the number of fits at each C.

    Example:
        >>> from jaxsoftmax.app.cli import console, progress_bars
        >>> with progress_bars.sweep_progress(console.make_console(quiet=True), 9, 5) as callback:
        ...     callback({"stage": 1, "C": 0.01, "converged": [True] * 5})
    """
    is_live = is_terminal(console)
    with Progress(*_columns(), console=console, disable=not is_live) as bar:
        task = bar.add_task("sweeping C", total=None, figures="")  # moves before the first

        def callback(stage: Mapping[str, Any]) -> None:
            figures = f"C = {stage['C']:.4g}: {sum(stage['converged'])} of {folds} certified"
            bar.update(task, total=points, completed=stage["stage"], figures=figures)
            if not is_live:
                console.print(f"{stage['stage']}/{points}, {figures}")

        yield callback


@contextmanager
def status(console: Console, message: str) -> Iterator[None]:
    """Show on a terminal what a command is busy with.

    Args:
        console: the console.
        message: the activity.

    Example:
        >>> from jaxsoftmax.app.cli import console, progress_bars
        >>> with progress_bars.status(console.make_console(quiet=True), "computing metrics"):
        ...     pass
    """
    if not is_terminal(console):
        yield
        return
    with console.status(message):
        yield


def _columns() -> tuple[ProgressColumn, ...]:
    bar, time_left = BarColumn(bar_width=24), TimeRemainingColumn(compact=True)
    return TextColumn("{task.description}"), bar, TextColumn("{task.fields[figures]}"), time_left


def _check_finite(metrics: Mapping[str, Any]) -> None:
    if not math.isfinite(metrics["loss"]):
        raise FloatingPointError(
            f"the loss is {metrics['loss']} in epoch {metrics['epoch']}: the fit diverged. "
            "Try a lower --learning-rate, or --standardize."
        )


def _format_epoch(metrics: Mapping[str, Any]) -> str:
    """Format an epoch as in "loss 0.4, accuracy 90.00%; validation 0.5, 85.00%"."""
    train = _format_values(metrics, {"loss": "loss ", "accuracy": "accuracy "})
    if "validation_loss" not in metrics:
        return train
    validation = _format_values(metrics, {"validation_loss": "", "validation_accuracy": ""})
    return f"{train}; validation {validation}"


def _format_values(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    return ", ".join(
        title + format_metric(name.removeprefix("validation_"), metrics[name])
        for name, title in titles.items()
        if name in metrics
    )
