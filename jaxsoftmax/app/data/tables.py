"""CSV and Parquet files: whole columns by name, and features in blocks of rows."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pyarrow.types as types

from jaxsoftmax.app.data.row_blocks import (
    FeatureReader,
    apply_divisor,
    describe_invalid,
    rows_per_block,
)

SUFFIXES = (".csv", ".tsv", ".parquet")


class TableFile:
    """A CSV or Parquet file with a header.

    Args:
        path: the path of the file, whose suffix gives its format: .csv, .tsv (columns separated by
            tabs) or .parquet.
        identifier: a column that is read from a CSV as text where integers would lose leading zeros
            (007).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read in the format of its suffix, has no rows, has rows of
            different widths or two columns of one name; names the file and the row.
    """

    def __init__(self, path: Path, identifier: str | None = None) -> None:
        self.path = path
        self._whole: pa.Table | None = None
        with _name_file_in_errors(path):
            if path.suffix.lower() == ".parquet":
                # Read pages when they are needed: one row group may be the whole file.
                self._file = pa.parquet.ParquetFile(path, buffer_size=2**16, pre_buffer=False)
                self.schema, self.num_rows = self._file.schema_arrow, self._file.metadata.num_rows
            else:
                self._whole = _read_csv(path, identifier)
                self.schema, self.num_rows = self._whole.schema, self._whole.num_rows
        # pandas stores an index without a name as such a column.
        self.names = [n for n in self.schema.names if not re.fullmatch(r"__index_level_\d+__", n)]
        repeated = [name for i, name in enumerate(self.names) if name in self.names[:i]]
        if repeated:
            raise ValueError(f"{path}: its header has the name {repeated[0]!r} twice")
        if not self.num_rows:
            raise ValueError(f"{path} has no rows")

    def find(self, name: str) -> str | None:
        """Return the column of that name, else the only one that differs in case alone, or None."""
        if name in self.names:
            return name
        matches = [other for other in self.names if other.casefold() == name.casefold()]
        return matches[0] if len(matches) == 1 else None

    def read_column(self, name: str) -> pa.Array:
        """Read a whole column."""
        with _name_file_in_errors(self.path):
            table = self._file.read([name]) if self._whole is None else self._whole
            array = decode(table[name].combine_chunks())
        if types.is_binary(array.type) and self._whole is not None:
            row = next(i for i, cell in enumerate(array) if not _is_utf8(cell.as_py()))
            raise ValueError(f"{self.describe_row(row)}, column {name!r}: not text in UTF-8")
        return array

    def read_columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read whole columns, by name."""
        return {name: self.read_column(name) for name in names}

    def describe_row(self, row: int) -> str:
        """Describe a row, counted from 0: its file, its number from 1, and its line in a CSV."""
        if self._whole is None:
            return f"{self.path}, row {row + 1}"
        with suppress(
            ValueError
        ):  # an earlier cell is too long for the csv module to find the line
            line, _ = next(islice(_read_lines(self.path), row + 1, None))  # past the header
            return f"{self.path}, row {row + 1} (line {line})"
        return f"{self.path}, row {row + 1}"

    def open_features(
        self, *, exclude: Sequence[str] = (), only: Sequence[str] | None = None, divisor: float = 1
    ) -> FeatureReader:
        """Return a reader of the features: columns of numbers, or of lists of one length.

        Args:
            exclude: the columns that are not features.
            only: the names of the features, in the order to read them in; by default all columns.
            divisor: the number that integers are divided by; see `row_blocks.apply_divisor`.

        Returns:
            A `FeatureReader` with names; a column of lists gives `name[0]`, `name[1]`, ...

        Raises:
            ValueError: if there is no feature, one is missing, or one is not a number.
        """
        if only is None:
            groups = [self._feature_group(name) for name in self.names if name not in exclude]
        else:
            groups = self._find_feature_groups(only)
        names = tuple(name for group in groups for name in group.names)
        if not names:
            raise ValueError(f"{self.path} has no column that could be a feature")
        return FeatureReader(
            num_rows=self.num_rows,
            shape=(len(names),),
            columns=names,
            read_blocks=lambda: self._read_blocks(groups, len(names), divisor),
            divisor=divisor,
        )

    def _find_feature_groups(self, names: Sequence[str]) -> list["_FeatureGroup"]:
        """Find each feature as a column, or as an element of a column of lists."""
        columns = [self._find_feature(name) for name in names]
        missing = [name for name, column in zip(names, columns, strict=True) if column is None]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(
                f"{self.path} has no column {missing[0]!r}{more}, "
                f"which the model was fitted to; its columns are {format_names(self.names)}"
            )
        distinct = dict.fromkeys(column for column in columns if column is not None)
        groups = [self._feature_group(column) for column in distinct]
        found = [name for group in groups for name in group.names]
        if found != list(names):
            raise ValueError(
                f"{self.path}: expected {len(names)} features, got {len(found)}: "
                "a column of lists has another length"
            )
        return groups

    def _find_feature(self, name: str) -> str | None:
        """Return the column that holds a feature, itself or in its lists, or None."""
        if name in self.names:
            return name
        element = re.fullmatch(r"(.*)\[\d+\]", name, re.DOTALL)
        if (
            element
            and element[1] in self.names
            and is_list_type(self.schema.field(element[1]).type)
        ):
            return element[1]
        return None

    def _feature_group(self, column: str) -> "_FeatureGroup":
        dtype = self.schema.field(column).type
        if not column.strip():
            position = self.names.index(column) + 1
            raise ValueError(
                f"{self.path}: column {position} has no name in the header; "
                "name it, or leave it out (drop '')"
            )
        if is_numeric_type(dtype):
            return _FeatureGroup(column, (column,), types.is_integer(dtype))
        if not (is_list_type(dtype) and is_numeric_type(dtype.value_type)):
            self._raise_not_numeric(column)
        first = next(self.read_batches([column], 1))[column][0].as_py()
        if not first:
            problem = "no value" if first is None else "a list without numbers"
            raise ValueError(f"{self.describe_row(0)}, column {column!r}: {problem}")
        names = tuple(f"{column}[{i}]" for i in range(len(first)))
        return _FeatureGroup(column, names, types.is_integer(dtype.value_type))

    def _raise_not_numeric(self, column: str) -> None:
        """Raise a ValueError that names the first cell of a column that is not a number."""
        values = self.read_column(column)
        if values.null_count == len(values):
            raise ValueError(
                f"{self.describe_row(0)}, column {column!r}: no value, as in all rows; drop it"
            )
        cells = ((row, cell.as_py()) for row, cell in enumerate(values) if cell.is_valid)
        row, value = next(((r, v) for r, v in cells if not _is_float(v)), (0, values[0].as_py()))
        raise ValueError(
            f"{self.describe_row(row)}, column {column!r}: {_abbreviate(value)} is not a number; "
            "leave the column out (drop) or encode it as numbers"
        )

    def read_batches(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Read columns in batches of at most `size` rows."""
        if self._whole is not None:
            yield from self._whole.select(names).to_batches(max_chunksize=size)
            return
        with _name_file_in_errors(self.path):
            batches = self._file.iter_batches(size, columns=list(names))
        while True:
            with _name_file_in_errors(self.path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.select(list(names))  # "a.b" may be a column, or a field of the column "a"

    def _read_slices(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Read many rows at once, which is faster, and yield `size` rows at a time."""
        try:
            for batch in self.read_batches(names, 16 * size):
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size)
        finally:
            pa.default_memory_pool().release_unused()  # or it keeps the memory of a row group

    def _read_blocks(
        self, groups: list["_FeatureGroup"], width: int, divisor: float
    ) -> Iterator[np.ndarray]:
        is_integer = all(group.is_integer for group in groups)
        start = 0
        for batch in self._read_slices([group.column for group in groups], rows_per_block(width)):
            block = np.empty((len(batch), width), np.float32)
            left = 0
            for group, array in zip(groups, batch.columns, strict=True):
                right = left + len(group.names)
                with np.errstate(over="ignore"):
                    block[:, left:right] = self._to_matrix(group, array, start)
                left = right
            if not np.isfinite(block).all():
                self._raise_not_finite(groups, batch, block, start)
            apply_divisor(block, divisor, is_integer=is_integer, path=self.path)
            yield block
            start += len(batch)

    def _to_matrix(self, group: "_FeatureGroup", array: pa.Array, start: int) -> np.ndarray:
        """Return the features of a group, of rows from `start` on, as `[B, D]`."""
        array = decode(array)
        if array.null_count:
            row = start + array.is_null().index(True).as_py()
            raise ValueError(f"{self.describe_row(row)}, column {group.column!r}: no value")
        if not is_list_type(array.type):
            return to_numpy(array)[:, None]
        has_other_length = pc.not_equal(pc.list_value_length(array), len(group.names))
        if pc.any(has_other_length).as_py():
            row = has_other_length.index(True).as_py()
            raise ValueError(
                f"{self.describe_row(start + row)}, column {group.column!r}: "
                f"expected {len(group.names)} numbers as in the first row, got {len(array[row])}"
            )
        elements = decode(array.flatten())
        if elements.null_count:
            row, i = divmod(elements.is_null().index(True).as_py(), len(group.names))
            raise ValueError(
                f"{self.describe_row(start + row)}, column {group.names[i]!r}: no value"
            )
        return to_numpy(elements).reshape(len(array), -1)

    def _raise_not_finite(
        self, groups: list["_FeatureGroup"], batch: pa.RecordBatch, block: np.ndarray, start: int
    ) -> None:
        row, column = np.argwhere(~np.isfinite(block))[0].tolist()
        features = [(group, i) for group in groups for i in range(len(group.names))]
        group, i = features[column]
        value = batch[group.column][row].as_py()
        value = value[i] if isinstance(value, list) else value
        raise ValueError(
            f"{self.describe_row(start + row)}, column {group.names[i]!r}: "
            f"{describe_invalid(value)}"
        )


class _FeatureGroup(NamedTuple):
    """The features in one column, and whether they are stored as integers."""

    column: str
    names: tuple[str, ...]
    is_integer: bool


def is_numeric_type(dtype: pa.DataType) -> bool:
    """Return whether a column of that type holds numbers or Booleans."""
    return (
        types.is_integer(dtype)
        or types.is_floating(dtype)
        or types.is_decimal(dtype)
        or types.is_boolean(dtype)
    )


def is_list_type(dtype: pa.DataType) -> bool:
    """Return whether a column of that type holds a list in each row."""
    return types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)


def format_names(names: Sequence[str], limit: int = 8) -> str:
    """Format names for an error message, at most the first `limit`."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def decode(array: pa.Array) -> pa.Array:
    """Convert chunks, dictionaries, string views and float16 to arrays that Arrow computes with."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if types.is_dictionary(array.type):
        return decode(array.dictionary_decode())
    if types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if types.is_float16(array.type):  # Arrow has few functions of float16
        return pa.array(
            array.to_numpy(zero_copy_only=False).astype(np.float32),
            mask=np.asarray(array.is_null()),
        )
    return array


def to_numpy(array: pa.Array) -> np.ndarray:
    """Convert numbers or Booleans, none of them missing, to a NumPy array."""
    if types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False)


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _abbreviate(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# CSV


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _read_csv(path: Path, identifier: str | None) -> pa.Table:
    header = _read_header(path)
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise ValueError(
            f"{path}: one column is called {header[0]!r}: columns must be separated by commas "
            "(.csv) or tabs (.tsv)"
        )
    as_text = [name for name in header if identifier and name.casefold() == identifier.casefold()]
    try:
        table = _parse_csv(path, as_text)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise ValueError(f"{path} has no rows") from error
        if "straddling" in str(error):
            raise ValueError(f"{path}: a row exceeds 8 MB; is a quote never closed?") from error
        if "Expected" in str(error):
            _raise_ragged(path)
        raise
    for name in as_text if len(set(header)) == len(header) else ():
        column = _to_integers_if_exact(table[name])
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _read_header(path: Path) -> list[str]:
    _, header = next(_read_lines(path), (0, []))
    if any("\ufffd" in name for name in header):
        raise ValueError(f"{path}: not text in UTF-8")
    if not header:
        raise ValueError(f"{path} is empty")
    return header


def _read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line number and the cells of each row, the header first; this is slow."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter=_delimiter(path))
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            line = reader.line_num
            raise ValueError(f"{path}, line {line}: {error}; is a quote never closed?") from error


def _parse_csv(path: Path, as_text: list[str]) -> pa.Table:
    return pa.csv.read_csv(
        path,
        pa.csv.ReadOptions(block_size=2**23),
        pa.csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True),
        pa.csv.ConvertOptions(column_types=dict.fromkeys(as_text, pa.string())),
    )


def _raise_ragged(path: Path) -> None:
    """Read the file again, and raise a ValueError that names the first row of another width."""
    width = len(_read_header(path))
    for row, (line, cells) in enumerate(_read_lines(path)):
        if len(cells) != width:
            raise ValueError(
                f"{path}, row {row} (line {line}): expected {width} cells, as the header has, "
                f"got {len(cells)}: {_abbreviate(_delimiter(path).join(cells))}"
            )


def _to_integers_if_exact(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert text to integers if nothing is lost: 7, but not 007."""
    try:
        numbers = text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text
    return numbers if numbers.cast(pa.string()).equals(text) else text


@contextmanager
def _name_file_in_errors(path: Path) -> Iterator[None]:
    """Raise the errors of a library that reads a file again, with the path in their messages."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder, not a file") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
