"""The kinds of columns of a table, and the features that each of them gives.

A kind is an immutable record of what was learned about a column from training rows. `features` are
the names of its features, and `encode` computes them for the cells of any rows.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxsoftmax.app.data.cells import (
    DATE_FORMATS,
    MISSING_NUMBER,
    Values,
    decode,
    describe_invalid,
    find_missing,
    is_list_type,
    is_numeric_type,
    match_names,
    to_days,
    to_numbers,
    to_text,
)

YES, NO = ("yes", "y", "true", "t"), ("no", "n", "false", "f")
OTHER = "(other)"
"""The value under which rare values are joined."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class CellError(ValueError):
    """An error in a cell: its row, counted from 0, its column or an element of it, and the text."""

    def __init__(self, row: int, column: str, message: str) -> None:
        super().__init__(message)
        self.row, self.column = row, column


class Column(Protocol):
    """The fields of all kinds."""

    @property
    def name(self) -> str:
        """The name of the column in the file."""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the D features that the column gives."""

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return the features of N cells, `[N, D]`; raise a CellError at the first bad cell."""


@dataclass(frozen=True)
class Number:
    """Numbers as they are. A missing cell is an error, or takes the value of `fill`.

    fill: the median of the training rows. has_indicator: whether a second feature is 1 where the
    cell is missing.
    """

    name: str
    fill: float | None = None
    has_indicator: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The column, and its indicator."""
        return (self.name, *_indicator(self.name, self.has_indicator))

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return the numbers, and 1 where they are missing."""
        found = to_numbers(cells, missing)
        _check_cells(self.name, cells, found.is_bad, "is not a number")
        return _fill(self, found)


@dataclass(frozen=True)
class Boolean:
    """Yes and no, or true and false: 1 where the cell is `yes`, in the words of the training rows.

    Unseen values are 0. fill: what missing cells take, 0 or 1, the most common value of the
    training rows.
    """

    name: str
    yes: str
    fill: float = 0.0
    has_indicator: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The column with its value, and its indicator."""
        return (f"{self.name}={self.yes}", *_indicator(self.name, self.has_indicator))

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return 1 for yes, and 1 where the value is missing."""
        text = to_text(cells)
        is_missing = find_missing(text, (*missing, MISSING_NUMBER))
        is_yes = pc.is_in(pc.utf8_lower(text), value_set=pa.array(YES, text.type))
        values = np.where(is_missing, self.fill, np.asarray(is_yes))
        return _with_indicator(values, is_missing, self.has_indicator)


@dataclass(frozen=True)
class Category:
    """One feature for each value, 1 where the cell has it; unseen values are 0 everywhere.

    values: those with a feature of their own. rare: the values that are joined in one feature,
    since few training rows have them. fill: what missing cells take, the most common value.
    """

    name: str
    values: tuple[str, ...]
    rare: tuple[str, ...] = ()
    fill: str | None = None
    has_indicator: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """`column=value` for each value, and the indicator."""
        values = (*self.values, OTHER) if self.rare else self.values
        one_hot = (f"{self.name}={value}" for value in values)
        return (*one_hot, *_indicator(self.name, self.has_indicator))

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return one-hot rows; each distinct value is looked up once."""
        text = to_text(cells)
        is_missing = find_missing(text, missing)
        encoded = pc.if_else(
            pa.array(is_missing), pa.scalar(self.fill, text.type), text
        ).dictionary_encode()
        names = [v or "" for v in encoded.dictionary.to_pylist()]
        index = match_names(names, (*self.values, *self.rare))
        width = len(self.values) + bool(self.rare)
        index = np.append(np.minimum(index, width - 1), -1)  # the last is that of null
        codes = index[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
        one_hot = np.zeros((len(cells), width + 1), np.float32)
        one_hot[np.arange(len(cells)), codes] = 1  # of unseen values in the last column
        return _with_indicator(one_hot[:, :-1], is_missing, self.has_indicator)

    def find_unseen(self, cells: pa.Array, missing: Sequence[str] = ()) -> list[str]:
        """Return the text of each cell whose value has no feature."""
        text = to_text(cells)
        present = text.filter(pa.array(~find_missing(text, missing)))
        counts = present.value_counts()
        names = counts.field(0).to_pylist()
        is_unseen = match_names(names, (*self.values, *self.rare)) < 0
        return np.repeat(names, np.where(is_unseen, counts.field(1), 0)).tolist()


@dataclass(frozen=True)
class Date:
    """A date as its year, month and day of the week, 1 on Monday, and the days since the first.

    date_format: one of `cells.DATE_FORMATS`, for text. first, fill: the first and the median date
    of the training rows, in days since 1970.
    """

    name: str
    date_format: str
    first: float
    fill: float
    has_hours: bool = False
    has_indicator: bool = False

    def __post_init__(self) -> None:
        if self.date_format not in DATE_FORMATS:  # Arrow dies of some others
            raise ValueError(f"date_format must be one of {DATE_FORMATS}, got {self.date_format!r}")

    @property
    def features(self) -> tuple[str, ...]:
        """The parts of the date."""
        parts = ["year", "month", "day of week", "days since first"] + ["hour"] * self.has_hours
        return (
            *(f"{self.name} {part}" for part in parts),
            *_indicator(self.name, self.has_indicator),
        )

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return the parts of the dates."""
        found = to_days(cells, self.date_format, missing)
        _check_cells(self.name, cells, found.is_bad, "is not a date as in the training data")
        days = np.where(found.is_missing, self.fill, found.values)
        dates = np.floor(days).astype("datetime64[D]")
        months = dates.astype("datetime64[M]").astype(int)
        parts = [1970 + months // 12, months % 12 + 1, (np.floor(days) + 3) % 7 + 1]
        parts.append(days - self.first)
        if self.has_hours:
            parts.append(24 * (days - np.floor(days)))
        return _with_indicator(np.stack(parts, 1), found.is_missing, self.has_indicator)


@dataclass(frozen=True)
class Text:
    """Words, hashed to a fixed number of features: log(1 + count), scaled to length 1.

    words: for each feature the most common word of the training rows that hashes to it, or ''.
    """

    name: str
    words: tuple[str, ...] = field(repr=False)

    @property
    def features(self) -> tuple[str, ...]:
        """The column with the most common word of each feature."""
        return tuple(f"{self.name}: {word or f'#{i}'}" for i, word in enumerate(self.words))

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return the scaled counts; a missing text has no words."""
        rows, encoded = split_words(cells, missing)
        buckets = hash_words(encoded.dictionary.to_pylist(), len(self.words))
        cell = rows * len(self.words) + buckets[encoded.indices.to_numpy()]
        counts = np.bincount(cell, minlength=len(cells) * len(self.words))
        features = np.log1p(counts.reshape(len(cells), -1), dtype=np.float32)
        norms = np.sqrt(np.square(features).sum(1, keepdims=True))
        return features / np.maximum(norms, 1e-9)


@dataclass(frozen=True)
class Vector:
    """Lists of numbers of one length, `name[0]`, `name[1]`, ...; missing cells are errors."""

    name: str
    length: int

    @property
    def features(self) -> tuple[str, ...]:
        """The elements."""
        return tuple(f"{self.name}[{i}]" for i in range(self.length))

    def encode(self, cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
        """Return the elements of the lists."""
        is_numeric = is_list_type(cells.type) and is_numeric_type(cells.type.value_type)
        _check_cells(self.name, cells, np.full(len(cells), not is_numeric), "is not a number")
        _check_cells(self.name, cells, np.asarray(cells.is_null()), "no value", whole=True)
        lengths = np.asarray(pc.list_value_length(cells))
        message = f"expected {self.length} numbers as in the first row, got "
        for row in np.flatnonzero(lengths != self.length)[:1]:
            raise CellError(int(row), self.name, message + str(lengths[row]))
        elements = decode(cells.flatten())
        found = to_numbers(elements)
        for index in np.flatnonzero(np.asarray(elements.is_null()))[:1]:
            row, i = divmod(int(index), self.length)
            raise CellError(row, self.features[i], "no value")
        _check_float32(self.features, found.values.reshape(len(cells), -1))
        return found.values.reshape(len(cells), -1)


KINDS: dict[str, type[Any]] = {
    "number": Number,
    "boolean": Boolean,
    "category": Category,
    "date": Date,
    "text": Text,
    "vector": Vector,
}
"""The kinds by the names that they have in a run's header."""


# Words.


def split_words(cells: pa.Array, missing: Sequence[str]) -> tuple[np.ndarray, pa.Array]:
    """Return the row of each word, and the words in lower case, encoded as a dictionary."""
    text = to_text(cells)
    text = pc.utf8_lower(pc.if_else(pa.array(find_missing(text, missing)), "", text))
    lists = pc.split_pattern_regex(text, r"[^\pL\pN']+")
    words = lists.flatten()
    is_word = pc.not_equal(words, "")
    rows = pc.list_parent_indices(lists).filter(is_word)
    return rows.to_numpy(), words.filter(is_word).dictionary_encode()


def hash_words(words: Sequence[str], num_features: int) -> np.ndarray:
    """Return the feature of each word, by a hash that is the same everywhere."""
    hashes = (zlib.crc32(word.encode()) % num_features for word in words)
    return np.fromiter(hashes, np.int64, len(words))


# Parts of the kinds.


def _indicator(name: str, has_indicator: bool) -> tuple[str, ...]:
    return (f"{name} is missing",) if has_indicator else ()


def _with_indicator(values: np.ndarray, is_missing: np.ndarray, has_indicator: bool) -> np.ndarray:
    values = values.reshape(len(values), -1)
    return np.column_stack([values, is_missing]) if has_indicator else values


def _fill(column: Number, found: Values) -> np.ndarray:
    for row in np.flatnonzero(found.is_missing)[: column.fill is None]:
        raise CellError(int(row), column.name, "no value")
    values = np.where(found.is_missing, column.fill or 0.0, found.values)
    _check_float32((column.name,), values[:, None])
    return _with_indicator(values, found.is_missing, column.has_indicator)


def _check_float32(names: Sequence[str], values: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        is_bad = ~(np.abs(values) <= _MAX_FLOAT32)
    for row, i in np.argwhere(is_bad)[:1].tolist():
        raise CellError(row, names[i], describe_invalid(values[row, i]))


def _check_cells(
    name: str, cells: pa.Array, is_bad: np.ndarray, message: str, *, whole: bool = False
) -> None:
    for row in np.flatnonzero(is_bad)[:1].tolist():
        value = "" if whole else f"{abbreviate(cells[row].as_py())} "
        raise CellError(row, name, value + message)


def abbreviate(value: object) -> str:
    """Return a value for an error message, on one line and cut to 60 characters."""
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 60 else f"{text[:57]}..."
