"""The columns of a table: their types, missing values, distributions, and what became of them."""

from collections.abc import Iterator

import numpy as np

from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.report.context import MAX_NAME_WIDTH, Context
from jaxsoftmax.app.report.elements import Bars, Details, Element, Table, isolate
from jaxsoftmax.app.report.sections.formats import ABSENT
from jaxsoftmax.app.text import shorten

MAX_COLUMNS = 100  # of more columns, all are in a table that is folded


def render(context: Context) -> Iterator[Element]:
    """Yield a table of the columns, with a histogram for each; nothing if there are no columns."""
    columns = context.run.columns
    if not columns:
        return
    headings = ("column", "type", "missing", "distribution", "what became of it")
    rows = [
        (
            shorten(column.name, MAX_NAME_WIDTH),
            column.kind,
            f"{column.missing_share:.1%}" if column.missing_share else ABSENT,
            Bars(column.counts, _describe_values(column)) if column.counts else ABSENT,
            _describe_outcome(column),
        )
        for column in columns
    ]
    table = Table("Columns, in the training examples", headings, rows, "llrww")
    is_short = len(columns) <= MAX_COLUMNS
    yield table if is_short else Details(f"All {len(columns):,} columns", [table])


def _describe_outcome(column: ColumnSummary) -> str:
    if column.is_omitted:
        return f"left out: {column.outcome}"
    if column.fill:
        return f"{column.outcome}; missing values: {column.fill}, and a feature that marks them"
    return column.outcome


def _describe_values(column: ColumnSummary) -> str:
    """Return the range or the most common values in words."""
    if column.labels:
        total = sum(column.counts)
        pairs = [p for p in zip(column.labels, column.counts, strict=True) if 100 * p[1] >= total]
        if 20 * column.counts[0] < total:  # no value is worth a name
            return f"{column.num_values:,} values, {column.counts[0] / total:.1%} at most"
        shares = [f"{isolate(shorten(label, 24))} {c / total:.0%}" for label, c in pairs[:3]]
        return ", ".join(shares) or f"{column.num_values:,} values"
    ends = column.edges[0], column.edges[-1]
    if column.kind == "date":
        return " to ".join(str(np.datetime64(int(np.floor(end)), "D")) for end in ends)
    return " to ".join(f"{end:,.6g}".replace("-", "−") for end in ends)
