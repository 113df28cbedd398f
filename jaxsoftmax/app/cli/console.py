"""The output of the command line: tables, and progress as bars on a terminal or lines in a pipe."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxsoftmax.app.cli import output
from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.data.dataset import Progress as Callback
from jaxsoftmax.app.evaluation import TITLES, baseline, format_metric, separate_items
from jaxsoftmax.app.text import replace_unprintable, shorten

if TYPE_CHECKING:  # for `probe` alone, which imports the solvers
    from jaxsoftmax.solvers import Solution

MAX_TABLE_ROWS = 20  # of more classes, labels or numbers, the worst are shown
MAX_EPOCH_LINES = 10  # epochs that are printed in a pipe, besides the first and the last


def make_console(*, quiet: bool) -> Console:
    """Make the console to which a command prints.

    Args:
        quiet: whether to print nothing.

    Returns:
        A rich console that neither wraps lines nor colors numbers.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> console.make_console(quiet=True).print("nothing")
    """
    is_json = output.is_json()
    return Console(quiet=quiet, stderr=is_json, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def reading_progress(console: Console, name: str) -> Iterator[Callback]:
    """Yield a callback that shows how many examples have been read.

    Args:
        console: the console, which shows it only on a terminal.
        name: the name of the data.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> with console.reading_progress(console.make_console(quiet=True), "digits") as callback:
        ...     callback(3, 9)
    """
    is_live = _is_live(console)
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
        >>> from jaxsoftmax.app.cli import console
        >>> with console.epoch_progress(console.make_console(quiet=True), 9) as callback:
        ...     callback({"epoch": 1, "loss": 0.5})
    """
    is_live, interval = _is_live(console), math.ceil(epochs / MAX_EPOCH_LINES)
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
        >>> from jaxsoftmax.app.cli import console
        >>> with console.sweep_progress(console.make_console(quiet=True), 9, 5) as callback:
        ...     callback({"stage": 1, "C": 0.01, "converged": [True] * 5})
    """
    is_live = _is_live(console)
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
        >>> from jaxsoftmax.app.cli import console
        >>> with console.status(console.make_console(quiet=True), "computing metrics"):
        ...     pass
    """
    if not _is_live(console):
        yield
        return
    with console.status(message):
        yield


def describe(dataset: Dataset) -> str:
    """Describe a data set in two lines.

    Args:
        dataset: data of any task.

    Returns:
        Its source, and its sizes.

    Example:
        >>> from jaxsoftmax.app import data
        >>> from jaxsoftmax.app.cli import console
        >>> print(console.describe(data.load("digits")).splitlines()[1])
        1,085 train, 357 validation, 355 test examples of 64 features, 10 classes
    """
    schema = dataset.schema
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    sizes = ", ".join(f"{len(split.features):,} {name}" for name, split in splits.items())
    features = _count(schema.num_features, "feature", "features")
    targets = _count(len(schema.classes), _SINGULAR[schema.task], schema.task)
    origin = replace_unprintable(f"{dataset.name}: {dataset.source}")
    return f"{origin}\n{sizes} examples of {features}, {targets}"


_SINGULAR = {Task.classes: "class", Task.labels: "label", Task.numbers: "number"}


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


def format_settings(settings: Mapping[str, Any]) -> str:
    """Format settings as one line.

    Args:
        settings: values by name; None is left out.

    Returns:
        Names and values.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> console.format_settings({"loss": "softmax", "batch_size": 32, "patience": None})
        'loss softmax, batch size 32'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items()
        if value is not None
    )


OVERFITTING = 0.01
"""The relative rise of the validation loss after its minimum that is called overfitting."""


def describe_overfitting(
    history: Mapping[str, np.ndarray], *, is_last_kept: bool = False
) -> str | None:
    """Describe how the validation loss rose after its minimum, if it did while training went on.

    Args:
        history: one number per epoch, with "loss" and "validation_loss".
        is_last_kept: whether the model of the last epoch is kept in place of the best one.

    Returns:
        One line, or None.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.cli import console
        >>> losses = {"loss": np.array([3.0, 2, 1]), "validation_loss": np.array([3.0, 2, 4])}
        >>> print(console.describe_overfitting(losses).partition(":")[0])
        overfitting after epoch 2
    """
    train, validation = history["loss"], history["validation_loss"]
    best = int(np.argmin(np.where(np.isnan(validation), np.inf, validation)))
    if not (validation[-1] > (1 + OVERFITTING) * validation[best] and train[-1] < train[best]):
        return None
    kept = f"{len(train)}, the last one, which was asked for" if is_last_kept else str(best + 1)
    return (
        f"overfitting after epoch {best + 1}: the validation loss rose from {validation[best]:.4f} "
        f"to {validation[-1]:.4f} while the training loss fell; the model kept is of epoch {kept}"
    )


def format_certificate(C: float, solution: "Solution") -> str:
    """Format the proven distance of a solution from the optimum.

    Args:
        C: the chosen C.
        solution: the solution at that C.

    Returns:
        One line.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> from jaxsoftmax.app.cli import console
        >>> solution = solvers.solve(np.array([[0.0], [1.0]]), np.array([0, 1]), C=1.0)
        >>> console.format_certificate(1.0, solution).partition(":")[0]
        'C = 1'
    """
    if not np.isfinite(solution.gap):
        return f"C = {C:.4g}: {solution.reason}"
    distance = f"proven to be within {solution.gap:.1e} of the optimum"
    return f"C = {C:.4g}: objective {solution.objective:.6f}, {distance}"


def format_headline(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the most important metric with its interval, and what a constant would reach.

    Args:
        metrics: the result of `evaluation.compute_metrics` for each split, with intervals for the
            test examples.

    Returns:
        One line.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> test = {"examples": 4, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6],
        ...         "per_class": [{"name": "a", "support": 1}, {"name": "b", "support": 3}]}
        >>> console.format_headline({"train": test, "test": test})
        'test accuracy 50.00%, 95% interval 40.00% to 60.00%; baseline 75.00%, always b'
    """
    test = metrics["test"]
    name = "accuracy" if "accuracy" in test else "rmse"
    low, high = (format_metric(name, end) for end in test[f"{name}_interval"])
    line = f"test {TITLES[name]} {format_metric(name, test[name])}, 95% interval {low} to {high}"
    constant = baseline(metrics["train"], test)
    if constant is None:
        return line
    prediction = replace_unprintable(shorten(constant.prediction, 40))
    return f"{line}; baseline {format_metric(name, constant.value)}, always {prediction}"


_SPLIT_METRICS = {
    Task.classes: ("loss", "accuracy"),
    Task.labels: ("loss", "accuracy", "macro_f1"),
    Task.numbers: ("loss", "rmse", "mae", "r2"),
}


def make_splits_table(metrics: Mapping[str, Mapping[str, Any]], task: Task) -> Table:
    """Make a table of the main metrics of each split.

    Args:
        metrics: the result of `evaluation.compute_metrics`, by split.
        task: the task of the model.

    Returns:
        A table for the console.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> metrics = {"test": {"loss": 0.5, "accuracy": 0.75}}
        >>> console.make_splits_table(metrics, console.Task.classes).row_count
        1
    """
    names = _SPLIT_METRICS[task]
    table = make_table("", *(TITLES[name] for name in names))
    for split, values in metrics.items():
        table.add_row(split, *(format_metric(name, values[name]) for name in names))
    return table


def make_metrics_tables(metrics: Mapping[str, Any]) -> list[Table | str]:
    """Make tables of all metrics of one data set.

    Args:
        metrics: the result of `evaluation.compute_metrics`.

    Returns:
        A table of the metrics of all examples, then one of the metrics of each class, label or
        number. If there are more than 20 of these, it has the 20 with the lowest F1 or R², and a
        line before it says so.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> metrics = {"mse": 2.0, "per_number": [{"name": "price", "mse": 2.0}]}
        >>> [table.row_count for table in console.make_metrics_tables(metrics)]
        [1, 1]
    """
    overall, items = separate_items(metrics)
    table = make_table("", "", "95% interval")
    for name, value in overall.items():
        if name in TITLES:
            ends = overall.get(f"{name}_interval")
            interval = " to ".join(format_metric(name, end) for end in ends) if ends else ""
            table.add_row(TITLES[name], format_metric(name, value), interval)
    if len(items) <= MAX_TABLE_ROWS:
        return [table, _make_items_table(items)]
    ranking = "f1" if "f1" in items[0] else "r2"
    worst = sorted(items, key=lambda item: -math.inf if item[ranking] is None else item[ranking])
    note = f"the {MAX_TABLE_ROWS} of {len(items)} with the lowest {TITLES[ranking]}:"
    return [table, note, _make_items_table(worst[:MAX_TABLE_ROWS])]


def _make_items_table(items: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in items[0] if name != "name"]
    table = make_table("", *(TITLES[name] for name in names))
    for item in items:
        # The name comes from a file, and might hold characters that control the terminal.
        title = replace_unprintable(item["name"], replacement="\N{REPLACEMENT CHARACTER}")
        table.add_row(title, *(format_metric(name, item[name]) for name in names))
    return table


def make_table(first: str, *others: str) -> Table:
    """Make a table without rows.

    Args:
        first: the heading of the first column.
        others: the headings of the other columns, which are aligned to the right.

    Returns:
        A table for the console.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> len(console.make_table("", "accuracy").columns)
        2
    """
    table = Table(first, box=SIMPLE_HEAD if sys.stdout.isatty() else None)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _is_live(console: Console) -> bool:
    """Return whether lines can be rewritten; rich alone would say yes for a pipe if FORCE_COLOR."""
    return sys.stdout.isatty() and console.is_interactive


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
