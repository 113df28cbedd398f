"""The columns of a table as features, learned from its training rows.

The kind of a column (numbers, categories, dates, ...) is that of all rows. What is computed from
values (medians, the common values, the first date) is computed from the training rows alone.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data.cells import (
    DATE_FORMATS,
    MISSING_NUMBER,
    Values,
    describe_invalid,
    find_date_format,
    find_missing,
    is_date_type,
    is_list_type,
    is_numeric_type,
    is_text,
    to_days,
    to_numbers,
    to_text,
)
from jaxsoftmax.app.data.column_kinds import (
    NO,
    YES,
    Boolean,
    Category,
    CellError,
    Column,
    Date,
    Number,
    Text,
    Vector,
    abbreviate,
    hash_words,
    split_words,
)
from jaxsoftmax.app.data.column_summaries import (
    ColumnSummary,
    bin_values,
    count_values,
    describe,
    describe_most_common,
    summarize_counts,
)
from jaxsoftmax.app.data.table_schema import TableSchema

MIN_COUNT = 5
"""The number of training rows below which a value of a category is rare and joined with others."""
MAX_VALUES = 250
"""The number of values of a category that have a feature of their own, the most common ones."""
MAX_DISTINCT = 10_000
"""The number of different values above which a column is no category."""
MIN_IDENTIFIERS = 20
"""The number of rows below which different values do not make a column an identifier."""
MAX_CELLS = 2**24
"""The number of cells that are held in memory at once to learn from."""
NUM_TEXT_FEATURES = 2048
"""The number of features that the words of a column of text are hashed to."""

_MIN_NUMBER_SHARE = 0.9  # of the cells, above which the others are taken for errors
_MIN_WORDS = 8  # the mean number of words above which different values are text
_IDENTIFIER = re.compile(r"(?i:(^|[^a-z])(id|key|index|no|nr|number|rowid)$)|[a-z](Id|ID)$")
_PAIRS = [set(pair) for pair in zip(YES, NO, strict=True)]


class ColumnOptions(NamedTuple):
    """The options of a user for the columns of a table.

    numeric_only: whether each column must hold numbers, and no cell may be missing. categories,
    texts: the columns of numbers to take as categories, and of text to hash. keep: the columns to
    keep though they look like identifiers. missing: further texts that stand for a missing cell.
    """

    numeric_only: bool = False
    categories: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


DEFAULT = ColumnOptions()
"""The options if a user gives none."""


class TableSource(Protocol):
    """A file with a table, as far as its columns are learned from it."""

    path: Path
    num_rows: int

    @property
    def has_header(self) -> bool:
        """Whether it has names for its columns."""

    def read_columns(self, names: Sequence[str]) -> Mapping[str, pa.Array]:
        """Read whole columns."""

    def raise_problems(self, problems: Sequence[CellError]) -> None:
        """Raise one error for all problems, if there are any."""


class LearnedTable(NamedTuple):
    """The schema of a table, and a summary of each of its columns."""

    schema: TableSchema
    summaries: tuple[ColumnSummary, ...]


def learn_table(
    table: TableSource, names: Sequence[str], is_train: np.ndarray, options: ColumnOptions
) -> LearnedTable:
    """Learn what the columns of a table become as features, some columns at a time.

    Args:
        table: the file.
        names: the columns that may be features.
        is_train: bool `[N]`, the training rows.
        options: those of the user.

    Returns:
        The schema and the summaries.

    Raises:
        ValueError: if columns cannot become features; names all of them and says how to continue.
    """
    group_size = max(1, MAX_CELLS // table.num_rows)
    learned, problems = [], []
    for start in range(0, len(names), group_size):
        for name, cells in table.read_columns(names[start : start + group_size]).items():
            try:
                learned.append(learn(name, cells, is_train, options))
            except CellError as error:
                problems.append(error)
    table.raise_problems(problems)
    columns = tuple(one.column for one in learned if one.column is not None)
    summaries = tuple(one.summary for one in learned)
    _check_columns(table, columns, summaries)
    schema = TableSchema(columns, options.missing, table.has_header)
    schema.check_names()
    return LearnedTable(schema, summaries)


def _check_columns(
    table: TableSource, columns: Sequence[Column], summaries: Sequence[ColumnSummary]
) -> None:
    if not columns:
        reasons = "".join(f"\n  {line}" for line in describe(summaries))
        raise ValueError(f"{table.path} has no column that could be a feature{reasons}")


class LearnedColumn(NamedTuple):
    """A column that gives features, or None if it is left out, and its summary."""

    column: Column | None
    summary: ColumnSummary


def learn(
    name: str, cells: pa.Array, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    """Learn what a column becomes.

    Args:
        name: its name.
        cells: the decoded column.
        is_train: bool `[N]`, the training rows.
        options: those of the user.

    Returns:
        The column and its summary.

    Raises:
        CellError: if the column cannot become features; says how to continue.
    """
    cells = cells.cast(pa.string()) if types.is_null(cells.type) else cells
    if is_list_type(cells.type):
        return _learn_vector(name, cells, is_train)
    if name in options.texts:
        return _learn_text(name, cells, is_train, options)
    if options.numeric_only:
        return _learn_strict_number(name, cells, is_train)
    if find_missing(cells, options.missing)[is_train].all():
        return _omit(name, "empty", 1.0, "no value in the training rows")
    if name in options.categories:
        return _learn_category(name, cells, is_train, options)
    if types.is_boolean(cells.type):
        cells = to_text(cells)
    if types.is_floating(cells.type) or types.is_decimal(cells.type):  # these identify nothing
        return _learn_number(name, to_numbers(cells), is_train, options._replace(keep=(name,)))
    if is_numeric_type(cells.type):
        return _learn_number(name, to_numbers(cells), is_train, options)
    if is_date_type(cells.type):
        return _learn_date(name, cells, DATE_FORMATS[0], is_train, options)
    if not is_text(cells.type):
        raise CellError(0, name, f"holds {cells.type}: leave the column out (--drop)")
    return _learn_from_text(name, cells, is_train, options)


def _learn_from_text(
    name: str, cells: pa.Array, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    numbers = to_numbers(cells, options.missing)
    num_present = np.count_nonzero(~numbers.is_missing)
    num_bad = np.count_nonzero(numbers.is_bad)
    if num_present and not num_bad:
        _check_finite(name, cells, numbers)
        return _learn_number(name, numbers, is_train, options)
    if 0 < num_bad <= (1 - _MIN_NUMBER_SHARE) * num_present:
        _raise_mixed(name, cells, numbers)
    is_missing = find_missing(cells, (*options.missing, MISSING_NUMBER))
    folded = pc.utf8_lower(cells.filter(pa.array(~is_missing))).unique().to_pylist()
    if len(folded) == 2 and set(folded) in _PAIRS:
        return _learn_boolean(name, cells, is_train, options)
    date_format = find_date_format(cells, options.missing)
    if date_format is not None:
        return _learn_date(name, cells, date_format, is_train, options)
    return _learn_category(name, cells, is_train, options)


def _check_finite(name: str, cells: pa.Array, numbers: Values) -> None:
    rows = np.flatnonzero(~np.isfinite(numbers.values) & ~numbers.is_missing)
    if len(rows):
        row = int(rows[0])
        remedy = f"treat it as missing (--missing {quote(cells[row].as_py())})"
        raise CellError(row, name, f"{describe_invalid(numbers.values[row])}; {remedy}")


def _raise_mixed(name: str, cells: pa.Array, numbers: Values) -> None:
    rows = np.flatnonzero(numbers.is_bad)
    bad = cells.take(pa.array(rows)).unique().to_pylist()
    shown = ", ".join(map(abbreviate, bad[:5])) + (", ..." if len(bad) > 5 else "")
    verb = "is not a number" if len(bad) == 1 else "are not numbers"
    others = f"as {np.count_nonzero(~numbers.is_bad & ~numbers.is_missing):,} others are"
    raise CellError(
        int(rows[0]),
        name,
        f"{shown} {verb}, {others}; treat it as missing (--missing TEXT), or take the column as "
        "categories (--category)",
    )


# Numbers.


def _learn_strict_number(name: str, cells: pa.Array, is_train: np.ndarray) -> LearnedColumn:
    column = Number(name)
    if find_missing(cells).all():
        raise CellError(0, name, "no value, as in all rows; leave the column out (--drop)")
    try:
        column.encode(cells)
    except CellError as error:
        if "is not a number" in str(error):
            remedy = "; leave the column out (--drop), or fit without --numeric-only"
            raise CellError(error.row, name, f"{error}{remedy}") from None
        raise
    return LearnedColumn(column, _summarize_numbers(name, to_numbers(cells), is_train))


def _learn_number(
    name: str, numbers: Values, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    train = numbers.values[is_train & ~numbers.is_missing]
    if not len(train):
        return _omit(name, "empty", 1.0, "no value in the training rows")
    if name not in options.keep and _is_identifier(name, numbers.values[~numbers.is_missing]):
        reason = "all values are different integers, as in an identifier (use it with --keep)"
        return _omit(name, "number", 0.0, reason)
    has_indicator = bool(numbers.is_missing[is_train].any())
    fill = float(np.median(train[np.isfinite(train)])) if np.isfinite(train).any() else 0.0
    column = Number(name, fill, has_indicator)
    summary = _summarize_numbers(name, numbers, is_train)
    return LearnedColumn(column, summary._replace(fill=f"median {fill:.6g}" * has_indicator))


def _is_identifier(name: str, values: np.ndarray) -> bool:
    """Return whether numbers are different integers that count rows, or are called so."""
    for part in (values[:100], values):  # most columns of fractions show it at once
        if len(values) < MIN_IDENTIFIERS or (part != np.floor(part)).any():
            return False
    span = values.max() - values.min() + 1
    counts_rows = span <= 1.5 * len(values)
    return bool((counts_rows or _IDENTIFIER.search(name)) and len(np.unique(values)) == len(values))


def _summarize_numbers(name: str, numbers: Values, is_train: np.ndarray) -> ColumnSummary:
    values = numbers.values[is_train & np.isfinite(numbers.values)]
    share = float(numbers.is_missing[is_train].mean())
    return ColumnSummary(name, "number", share, "the number", **bin_values(values))


def _learn_vector(name: str, cells: pa.Array, is_train: np.ndarray) -> LearnedColumn:
    if not is_numeric_type(cells.type.value_type):
        raise CellError(
            0, name, f"{abbreviate(cells[0].as_py())} is not a number; leave it out (--drop)"
        )
    first = cells[0].as_py()
    if not first:
        raise CellError(0, name, "no value" if first is None else "a list without numbers")
    column = Vector(name, len(first))
    return LearnedColumn(column, ColumnSummary(name, "list", 0.0, f"{len(first)} numbers"))


# Categories, and yes and no.


def _learn_boolean(
    name: str, cells: pa.Array, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    missing = (*options.missing, MISSING_NUMBER)
    is_missing = find_missing(cells, missing)
    present = cells.filter(pa.array(is_train & ~is_missing))
    if not len(present):
        return _omit(name, "yes or no", 1.0, "no value in the training rows")
    counts = count_values(present)
    all_values = cells.filter(pa.array(~is_missing)).unique().to_pylist()
    yes = next(value for value in all_values if value.lower() in YES)
    no = next(value for value in all_values if value.lower() in NO)
    num_yes = sum(count for value, count in counts if value.lower() in YES)
    fill = float(2 * num_yes > len(present))
    has_indicator = bool(is_missing[is_train].any())
    column = Boolean(name, yes, fill, has_indicator)
    share = float(is_missing[is_train].mean())
    summary = summarize_counts(name, "yes or no", share, f"1 for {yes}, 0 for {no}", counts)
    return LearnedColumn(
        column, summary._replace(fill=describe_most_common(counts) * has_indicator)
    )


def _learn_category(
    name: str, cells: pa.Array, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    text = to_text(cells)
    is_missing = find_missing(text, options.missing)
    share = float(is_missing[is_train].mean())
    present = text.filter(pa.array(~is_missing))
    num_distinct = len(present.unique())
    if name not in options.categories:
        _check_not_text(name, present, num_distinct, int(np.argmin(is_missing)))
        if num_distinct == len(present) >= MIN_IDENTIFIERS:
            return _omit(
                name, "text", share, "all values are different, as in names or identifiers"
            )
    if num_distinct > MAX_DISTINCT:
        return _omit(
            name, "text", share, f"{num_distinct:,} different values (hash its words with --text)"
        )
    counts = count_values(text.filter(pa.array(is_train & ~is_missing)))
    common = [value for value, count in counts if count >= MIN_COUNT][:MAX_VALUES]
    rare = [value for value, _ in counts[len(common) :]]
    if len(common) + bool(rare) < 2 and not share:
        reason = (
            "one value" if len(counts) == 1 else f"no value is in {MIN_COUNT} training rows or more"
        )
        return _omit(name, "category", share, reason)
    column = Category(name, tuple(sorted(common)), tuple(sorted(rare)), counts[0][0], share > 0)
    outcome = f"one-hot: {len(common)} values" + (f", {len(rare)} rare ones joined" * bool(rare))
    fill = describe_most_common(counts)
    if not common:  # a missing value is one of the rare ones, and told from them by its feature
        outcome = (
            f"whether there is a value: none of {len(rare):,} is in {MIN_COUNT} training rows or "
            "more"
        )
        fill = "no value is common"
    summary = summarize_counts(name, "category", share, outcome, counts)
    return LearnedColumn(column, summary._replace(fill=fill * (share > 0)))


def _check_not_text(name: str, present: pa.Array, num_distinct: int, row: int) -> None:
    """Refuse a column whose cells are mostly different and have many words."""
    if 2 * num_distinct <= len(present):
        return
    num_words = pc.mean(pc.add(pc.count_substring_regex(present[:1000], r"\s+"), 1)).as_py()
    if num_words > _MIN_WORDS:
        raise CellError(
            row,
            name,
            f"text of about {num_words:.0f} words; leave the column out (--drop {name}) or hash "
            f"its words to features (--text {name})",
        )


# Dates and text.


def _learn_date(
    name: str, cells: pa.Array, date_format: str, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    days = to_days(cells, date_format, options.missing)
    train = days.values[is_train & ~days.is_missing]
    if not len(train):
        return _omit(name, "date", 1.0, "no value in the training rows")
    fill = float(np.sort(train)[(len(train) - 1) // 2])
    has_indicator = bool(days.is_missing[is_train].any())
    has_hours = bool((train != np.floor(train)).any())
    column = Date(name, date_format, float(train.min()), fill, has_hours, has_indicator)
    outcome = "date as year, month, day of week, days since first" + ", hour" * has_hours
    if "/" in date_format[:3]:  # either order may be meant
        order = "month/day" if date_format.startswith("%m") else "day/month"
        outcome += f" (read as {order}/year)"
    share = float(days.is_missing[is_train].mean())
    shown = f"median {np.datetime64(int(np.floor(fill)), 'D')}" * has_indicator
    summary = ColumnSummary(name, "date", share, outcome, shown, **bin_values(train))
    return LearnedColumn(column, summary)


def _learn_text(
    name: str, cells: pa.Array, is_train: np.ndarray, options: ColumnOptions
) -> LearnedColumn:
    is_missing = find_missing(cells, options.missing)
    _, encoded = split_words(cells.filter(pa.array(is_train)), options.missing)
    words = encoded.dictionary.to_pylist()
    counts = np.bincount(encoded.indices.to_numpy(), minlength=len(words))
    buckets = hash_words(words, NUM_TEXT_FEATURES)
    common = [""] * NUM_TEXT_FEATURES
    for i in np.argsort(counts, kind="stable").tolist():  # the most common word comes last
        common[buckets[i]] = words[i]
    share = float(is_missing[is_train].mean())
    outcome = f"words hashed to {NUM_TEXT_FEATURES:,} features"
    pairs = [(words[i], int(counts[i])) for i in np.argsort(-counts, kind="stable")[:10].tolist()]
    summary = summarize_counts(name, "text", share, outcome, pairs or [("no words", 0)])
    return LearnedColumn(Text(name, tuple(common)), summary)


def _omit(name: str, kind: str, share: float, reason: str) -> LearnedColumn:
    return LearnedColumn(None, ColumnSummary(name, kind, share, reason, is_omitted=True))
