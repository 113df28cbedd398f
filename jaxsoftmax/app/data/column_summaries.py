"""Summaries of the columns of a table for a reader: types, missing values, values, outcomes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa


class ColumnSummary(NamedTuple):
    """A column for a reader: its type, what became of it, and its values in the training rows.

    outcome: the features, or why it is left out. fill: what missing cells become, where there are
    any. counts: of the values in bins between `edges`, or of each of the most common values
    `labels`, the last of which may stand for all others. num_values: the number of different values
    of text.
    """

    name: str
    kind: str
    missing_share: float
    outcome: str
    fill: str = ""
    is_omitted: bool = False
    counts: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    num_values: int = 0


def count_values(text: pa.Array) -> list[tuple[str, int]]:
    """Return the distinct values and their counts, the most common first."""
    counted = text.value_counts()
    pairs = zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def describe_most_common(counts: Sequence[tuple[str, int]]) -> str:
    """Describe what missing values become, from the result of `count_values`."""
    return f"most common {counts[0][0]!r}"


def summarize_counts(
    name: str, kind: str, share: float, outcome: str, counts: Sequence[tuple[str, int]]
) -> ColumnSummary:
    """Return the summary of a column of text, with its ten most common values."""
    shown = list(counts[:10])
    if len(counts) > len(shown):
        shown.append((f"{len(counts) - len(shown)} others", sum(c for _, c in counts[10:])))
    labels, numbers = zip(*shown, strict=True)
    summary = ColumnSummary(name, kind, share, outcome, num_values=len(counts))
    return summary._replace(counts=tuple(numbers), labels=tuple(labels))


def bin_values(values: np.ndarray) -> dict[str, Any]:
    """Return the counts and edges of a histogram of numbers, or nothing if there is none."""
    if not len(values) or not np.isfinite(values.max() - values.min()):
        return {}
    num_bins = min(20, len(np.unique(values[:10_000])))
    try:
        counts, edges = np.histogram(values, num_bins)  # by division, where edges would be sorted
    except ValueError:  # the values are so close that float64 has no room for bins
        counts, edges = np.array([len(values)]), np.array([values.min(), values.max()])
    return {"counts": tuple(counts.tolist()), "edges": tuple(edges.tolist())}


def describe(summaries: Sequence[ColumnSummary]) -> list[str]:
    """Describe in a line each what was left out, what became of the others, and what was filled in.

    Example:
        >>> from jaxsoftmax.app.data.column_summaries import ColumnSummary, describe
        >>> describe([ColumnSummary("age", "number", 0.25, "the number", fill="median 3")])
        ["missing values, with a feature that marks them: 'age' 25% (median 3)"]
    """
    used = [summary for summary in summaries if not summary.is_omitted]
    omitted = [(s.outcome, repr(s.name)) for s in summaries if s.is_omitted]
    lines = [f"left out {_list(names)}: {reason}" for reason, names in _group(omitted)]
    encoded = []
    for summary in (s for s in used if s.kind not in ("number", "list")):
        heading, _, detail = summary.outcome.partition(": ")
        encoded.append((heading, f"{summary.name!r} ({detail})" if detail else repr(summary.name)))
    lines += [f"{heading}: {_list(names)}" for heading, names in _group(encoded)]
    filled = [f"{s.name!r} {_percent(s.missing_share)} ({s.fill})" for s in used if s.fill]
    if filled:
        lines.append(f"missing values, with a feature that marks them: {_list(filled)}")
    return lines


def _group(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Return each first element with the second ones that belong to it."""
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _list(names: Sequence[str], limit: int = 8) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
