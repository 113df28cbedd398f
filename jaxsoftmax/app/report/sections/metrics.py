"""The metrics: of all examples by split, and of each class, label or number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxsoftmax.app import evaluation
from jaxsoftmax.app.report.context import MAX_NAME_WIDTH, Context
from jaxsoftmax.app.report.elements import Details, Element, Table
from jaxsoftmax.app.report.sections import formats
from jaxsoftmax.app.text import shorten

MAX_TABLE_ROWS = 20  # of more classes, the worst have a table, and all one that is folded


def render(context: Context) -> Iterator[Element]:
    """Yield the tables of metrics."""
    if context.test_metrics:
        yield _overall_table(context)
        yield from _item_tables(context)


def _overall_table(context: Context) -> Table:
    splits = context.run.metrics
    rows = [
        (title, *(formats.metric(name, values.get(name)) for values in splits.values()))
        for name, title in evaluation.TITLES.items()
        if name in context.test_metrics
        and name != "examples"
        and not (name == "loss" and context.loss_is_nll)
    ]
    return Table("All examples", ("", *splits), rows, "l" + "r" * len(splits))


def _item_tables(context: Context) -> Iterator[Element]:
    """Yield a table with a row for each class, label or number."""
    _, items = evaluation.separate_items(context.test_metrics)
    if len(items) <= MAX_TABLE_ROWS or "f1" not in items[0]:
        yield _item_table(context, f"Test examples by {context.singular}", items)
        return
    occurring = [item for item in items if item["support"]]
    worst = sorted(occurring, key=lambda item: item["f1"])[:MAX_TABLE_ROWS]
    title = f"Test examples: the {len(worst)} {context.task} with the lowest F1"
    yield _item_table(context, title, worst)
    everything = _item_table(context, f"Test examples: all {context.task}", items)
    yield Details(f"All {len(items)} {context.task}", [everything])


def _item_table(context: Context, title: str, items: Sequence[Mapping[str, Any]]) -> Table:
    columns = [name for name in evaluation.TITLES if name in items[0]]
    headings = (context.singular, *(evaluation.TITLES[name] for name in columns))
    rows = [
        (
            shorten(item["name"], MAX_NAME_WIDTH),
            *(formats.metric(c, item[c]) for c in columns),
        )
        for item in items
    ]
    return Table(title, headings, rows, "l" + "r" * len(columns))
