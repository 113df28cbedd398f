"""Tables of metrics."""

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.evaluation import TITLES, format_metric, separate_items
from jaxsoftmax.app.text import replace_unprintable

MAX_TABLE_ROWS = 20  # of more classes, labels or numbers, the worst are shown
MAX_HEADING = 13  # letters in a line of a heading, such as "root mean" and "squared error"

_SPLIT_METRICS = {
    Task.classes: ("loss", "accuracy"),
    Task.labels: ("loss", "accuracy", "macro_f1"),
    Task.numbers: ("loss", "rmse", "mae", "r2"),
}


def make_table(first: str, *others: str) -> Table:
    """Make a table without rows.

    Args:
        first: the heading of the first column.
        others: the headings of the other columns, which are aligned to the right. Long ones take
            several lines.

    Returns:
        A table for the console.

    Example:
        >>> from jaxsoftmax.app.cli import tables
        >>> len(tables.make_table("", "accuracy").columns)
        2
    """
    table = Table(box=SIMPLE_HEAD if sys.stdout.isatty() else None)
    # What has no room is folded: two names that are cut short may look the same.
    table.add_column(first, overflow="fold")
    for heading in others:
        lines = textwrap.fill(heading, MAX_HEADING, break_long_words=False)
        table.add_column(lines, justify="right", overflow="fold")
    return table


def make_splits_table(metrics: Mapping[str, Mapping[str, Any]], task: Task) -> Table:
    """Make a table of the main metrics of each split.

    Args:
        metrics: the result of `evaluation.compute_metrics`, by split.
        task: the task of the model.

    Returns:
        A table for the console.

    Example:
        >>> from jaxsoftmax.app.cli import tables
        >>> metrics = {"test": {"loss": 0.5, "accuracy": 0.75}}
        >>> tables.make_splits_table(metrics, Task.classes).row_count
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
        >>> from jaxsoftmax.app.cli import tables
        >>> metrics = {"mse": 2.0, "per_number": [{"name": "price", "mse": 2.0}]}
        >>> [table.row_count for table in tables.make_metrics_tables(metrics)]
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
