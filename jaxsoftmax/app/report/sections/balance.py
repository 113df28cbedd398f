"""How many examples each class or label has, and what a model without features would reach."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxsoftmax.app import evaluation
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import MAX_NAME_WIDTH, Context
from jaxsoftmax.app.report.elements import Details, Element, Table
from jaxsoftmax.app.report.sections import formats
from jaxsoftmax.app.text import shorten

MAX_ROWS = 20


def render(context: Context) -> Iterator[Element]:
    """Yield a table of the examples of each class or label by split."""
    metrics = context.run.metrics
    if context.task is Task.numbers or not metrics:
        return
    supports = {split: evaluation.supports(values) for split, values in metrics.items()}
    rows = [
        (shorten(name, MAX_NAME_WIDTH), *cells)
        for name, cells in zip(context.classes, _cells(metrics, supports), strict=True)
    ]
    headings = (context.singular, *metrics, "share")
    title = f"Examples by {context.singular}"
    table = Table(title, headings, rows, "l" + "r" * (len(metrics) + 1))
    is_short = len(rows) <= MAX_ROWS
    yield table if is_short else Details(f"Examples of all {len(rows)} {context.task}", [table])


def _cells(
    metrics: Mapping[str, Any], supports: Mapping[str, Sequence[int | None]]
) -> Iterator[tuple[str, ...]]:
    total = sum(values["examples"] for values in metrics.values())
    for counts in zip(*supports.values(), strict=True):
        known = [count for count in counts if count is not None]
        is_known = len(known) == len(counts)
        share = f"{sum(known) / total:.1%}" if is_known and total else formats.ABSENT
        yield (*(formats.ABSENT if count is None else f"{count:,}" for count in counts), share)
