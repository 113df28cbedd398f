"""The columns of a table: their types, missing values, distributions, and what became of them."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.report import page
from jaxsoftmax.app.text import shorten

MAX_COLUMNS = 100  # of more columns, all are in a table that is folded
MAX_NAME_WIDTH = 60
_WIDTH, _HEIGHT = 120, 28  # of a histogram, in pixels


def render(columns: Sequence[ColumnSummary]) -> str:
    """Return a table of the columns, with a histogram for each.

    Args:
        columns: what was learned about the columns from the training examples.

    Returns:
        HTML; nothing if there are no columns.

    Example:
        >>> from jaxsoftmax.app.data.column_summaries import ColumnSummary
        >>> from jaxsoftmax.app.report import columns
        >>> age = ColumnSummary("age", "number", 0.2, "the number", counts=(3, 1), edges=(0, 4, 8))
        >>> "0 to 8" in columns.render([age])
        True
    """
    if not columns:
        return ""
    headings = ("column", "type", "missing", "distribution", "what became of it")
    rows = [
        (
            shorten(column.name, MAX_NAME_WIDTH),
            column.kind,
            f"{column.missing_share:.1%}" if column.missing_share else "–",
            page.Markup(_draw(column)),
            _describe_outcome(column),
        )
        for column in columns
    ]
    table = page.table("Columns, in the training examples", headings, rows, align="llrww")
    if len(columns) <= MAX_COLUMNS:
        return table
    return page.details(f"All {len(columns):,} columns", table)


def _describe_outcome(column: ColumnSummary) -> str:
    if column.is_omitted:
        return f"left out: {column.outcome}"
    if column.fill:
        return f"{column.outcome}; missing values: {column.fill}, and a feature that says so"
    return column.outcome


def _draw(column: ColumnSummary) -> str:
    """Return a histogram as SVG, and the range or the most common values in words."""
    if not column.counts:
        return "–"
    words = _describe_values(column)
    bars = "".join(_bars(column.counts))
    return (
        f'<svg class=bars viewBox="0 0 {_WIDTH} {_HEIGHT}" width={_WIDTH} height={_HEIGHT} '
        f'role=img aria-label="{page.text(words)}">{bars}</svg> {page.text(words)}'
    )


def _bars(counts: Sequence[int]) -> Iterator[str]:
    step, highest = _WIDTH / len(counts), max(counts) or 1
    for i, count in enumerate(counts):
        height = max(_HEIGHT * count / highest, 1 if count else 0)
        yield (
            f'<rect x="{i * step:.1f}" y="{_HEIGHT - height:.1f}" width="{max(step - 1, 1):.1f}" '
            f'height="{height:.1f}" fill="var(--blue)"></rect>'
        )


def _describe_values(column: ColumnSummary) -> str:
    if column.labels:
        total = sum(column.counts)
        pairs = [p for p in zip(column.labels, column.counts, strict=True) if 100 * p[1] >= total]
        shares = [f"{page.isolate(shorten(label, 24))} {c / total:.0%}" for label, c in pairs[:3]]
        return ", ".join(shares) or f"{len(column.labels)} values"
    ends = column.edges[0], column.edges[-1]
    if column.kind == "date":
        return " to ".join(str(np.datetime64(int(np.floor(end)), "D")) for end in ends)
    return " to ".join(f"{end:,.6g}".replace("-", "−") for end in ends)
