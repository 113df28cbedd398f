"""What the command line shows: progress as bars on a terminal and lines in a pipe, and tables."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.data.dataset import Progress as Callback
from jaxsoftmax.app.evaluation import TITLES, sections, written
from jaxsoftmax.solvers import Solution

WORST = 20
"""So many classes are shown; of more the worst."""


def make(*, quiet: bool) -> Console:
    """Make the console on which a command shows what it does.

    Args:
        quiet: whether nothing is shown.

    Returns:
        A rich console that neither folds lines nor colours numbers.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> console.make(quiet=True).print("nothing")
    """
    return Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def reading(console: Console, name: str) -> Iterator[Callback]:
    """Yield a callback that shows how much of something has been read.

    Args:
        console: to show it on, if it is a terminal.
        name: of what is read.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> with console.reading(console.make(quiet=True), "digits") as progress:
        ...     progress(3, 9)
    """
    with Progress(*_columns(), console=console, transient=True, disable=not _live(console)) as bar:
        task = bar.add_task(f"reading {name}", figures="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def fitting(console: Console, epochs: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a callback that shows an epoch, as a moving bar or as some ten plain lines.

    Args:
        console: to show it on.
        epochs: how many there will be at most.

    Raises:
        FloatingPointError: from the callback, if the loss is no number.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> with console.fitting(console.make(quiet=True), 9) as report:
        ...     report({"epoch": 1, "loss": 0.5})
    """
    live, every = _live(console), math.ceil(epochs / 10)
    with Progress(*_columns(), console=console, disable=not live) as bar:
        task = bar.add_task("epoch", total=epochs, figures="")

        def report(metrics: Mapping[str, Any]) -> None:
            epoch, figures = metrics["epoch"], _epoch_figures(metrics)
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(
                    f"the loss is {metrics['loss']} in epoch {epoch}: the fit diverged. "
                    "Try a lower --learning-rate, or --standardize."
                )
            bar.update(
                task, completed=epoch, figures=figures, description=f"epoch {epoch}/{epochs}"
            )
            if not live and (epoch % every == 0 or epoch in (1, epochs)):
                console.print(f"epoch {epoch}/{epochs}: {figures}")

        yield report


@contextmanager
def sweeping(
    console: Console, points: int, folds: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a callback that shows each C of a path, as a moving bar or a plain line.

    Args:
        console: to show it on.
        points: how many C there are.
        folds: how many fits each has.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> with console.sweeping(console.make(quiet=True), 9, 5) as report:
        ...     report({"stage": 1, "C": 0.01, "converged": [True] * 5})
    """
    live = _live(console)
    with Progress(*_columns(), console=console, disable=not live) as bar:
        task = bar.add_task("sweeping C", total=points, figures="")

        def report(stage: Mapping[str, Any]) -> None:
            certified = f"C = {stage['C']:.4g}: {sum(stage['converged'])} of {folds} certified"
            bar.update(task, completed=stage["stage"], figures=certified)
            if not live:
                console.print(f"{stage['stage']}/{points}, {certified}")

        yield report


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Show that something takes its time, on a terminal.

    Args:
        console: to show it on.
        what: takes its time.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> with console.working(console.make(quiet=True), "measuring"):
        ...     pass
    """
    if not _live(console):
        yield
        return
    with console.status(what):
        yield


def describe(dataset: Dataset) -> str:
    """Tell a data set in two lines.

    Args:
        dataset: of any task.

    Returns:
        Where it comes from, and how much it is.

    Example:
        >>> from jaxsoftmax.app import data
        >>> from jaxsoftmax.app.cli import console
        >>> print(console.describe(data.load("digits")).splitlines()[1])
        1,085 train, 357 validation, 355 test examples of 64 features, 10 classes
    """
    schema = dataset.schema
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    sizes = ", ".join(f"{len(split.features):,} {name}" for name, split in splits.items())
    count = len(schema.classes)
    of = "1 number" if count == 1 else f"{count} {schema.task}"
    return (
        f"{dataset.name}: {dataset.source}\n"
        f"{sizes} examples of {schema.num_features:,} features, {of}"
    )


def sentence(choices: Mapping[str, Any]) -> str:
    """Tell settings in a line.

    Args:
        choices: values by name; None is left out.

    Returns:
        Names and values.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> console.sentence({"loss": "softmax", "batch_size": 32, "patience": None})
        'loss softmax, batch size 32'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in choices.items()
        if value is not None
    )


def certified(best: float, solution: Solution) -> str:
    """Tell how near a solution is to the optimum.

    Args:
        best: the C that was chosen.
        solution: at it.

    Returns:
        One line.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> from jaxsoftmax.app.cli import console
        >>> solution = solvers.solve(np.array([[0.0], [1.0]]), np.array([0, 1]), C=1.0)
        >>> console.certified(1.0, solution).partition(":")[0]
        'C = 1'
    """
    if np.isfinite(solution.gap):
        proof = f"within {solution.gap:.1e} of the optimum, proven"
        return f"C = {best:.4g}: objective {solution.objective:.6f}, {proof}"
    return f"C = {best:.4g}: {solution.reason}"


def headline(told: Mapping[str, Any]) -> str:
    """Tell the figure that says most, with its interval.

    Args:
        told: of `evaluation.figures` of the test split, with intervals.

    Returns:
        One line.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> console.headline({"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]})
        'test accuracy 50.00%, 95 % interval 40.00% to 60.00%'
    """
    name = "accuracy" if "accuracy" in told else "mse"
    low, high = (written(name, end) for end in told[f"{name}_interval"])
    return f"test {TITLES[name]} {written(name, told[name])}, 95 % interval {low} to {high}"


_SHOWN = {
    Task.classes: ("loss", "accuracy"),
    Task.labels: ("loss", "accuracy", "macro_f1"),
    Task.numbers: ("loss", "mae", "r2"),
}


def splits_table(figures: Mapping[str, Mapping[str, Any]], task: Task) -> Table:
    """Show the main figures of each split.

    Args:
        figures: of `evaluation.figures`, by split.
        task: of the model.

    Returns:
        A table for the console.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> figures = {"test": {"loss": 0.5, "accuracy": 0.75}}
        >>> console.splits_table(figures, console.Task.classes).row_count
        1
    """
    table = _table("", *(TITLES[name] for name in _SHOWN[task]))
    for split, told in figures.items():
        table.add_row(split, *(written(name, told[name]) for name in _SHOWN[task]))
    return table


def figures_tables(told: Mapping[str, Any]) -> list[Table | str]:
    """Show all figures of one data set.

    Args:
        told: of `evaluation.figures`.

    Returns:
        A table of those of all examples, then one of each class, label or number; of more than 20
        the worst 20 by F1 or R².

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> told = {"mse": 2.0, "per_number": [{"name": "price", "mse": 2.0}]}
        >>> [table.row_count for table in console.figures_tables(told)]
        [1, 1]
    """
    whole, each = sections(told)
    overall = _table("", "", "95 % interval")
    for name, value in whole.items():
        if name in TITLES:
            ends = whole.get(f"{name}_interval")
            between = " to ".join(written(name, end) for end in ends) if ends else ""
            overall.add_row(TITLES[name], written(name, value), between)
    if len(each) <= WORST:
        return [overall, _each_table(each)]
    figure = "f1" if "f1" in each[0] else "r2"
    worst = sorted(each, key=lambda one: -math.inf if one[figure] is None else one[figure])
    said = f"the {WORST} of {len(each)} with the least {TITLES[figure]}:"
    return [overall, said, _each_table(worst[:WORST])]


def _each_table(each: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in each[0] if name != "name"]
    table = _table("", *(TITLES[name] for name in names))
    for one in each:
        table.add_row(_visible(one["name"]), *(written(name, one[name]) for name in names))
    return table


def _visible(name: str) -> str:
    """A name from a file, which may hold what would steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE_HEAD if sys.stdout.isatty() else None)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _live(console: Console) -> bool:
    """Whether lines may be rewritten; rich alone would say so of a pipe under FORCE_COLOR."""
    return sys.stdout.isatty() and console.is_interactive


def _columns() -> tuple[ProgressColumn, ...]:
    bar, left = BarColumn(bar_width=24), TimeRemainingColumn(compact=True)
    return TextColumn("{task.description}"), bar, TextColumn("{task.fields[figures]}"), left


def _epoch_figures(metrics: Mapping[str, Any]) -> str:
    return "; validation ".join(
        ", ".join(
            f"{title}{written(name, metrics[prefix + name])}"
            for name, title in titles.items()
            if prefix + name in metrics
        )
        for prefix, titles in (
            ("", {"loss": "loss ", "accuracy": "accuracy "}),
            ("validation_", {"loss": "", "accuracy": ""}),
        )
        if f"{prefix}loss" in metrics
    )
