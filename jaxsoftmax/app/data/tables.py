"""Tables in files, CSV and Parquet: whole columns by name, and features by blocks of rows."""

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

from jaxsoftmax.app.data.row_blocks import Features, divide, fault, rows_at_once

SUFFIXES = (".csv", ".tsv", ".parquet")


class Table:
    """A CSV or Parquet file with a header.

    Args:
        path: its suffix says which: .csv, .tsv (tabs part the columns) or .parquet.
        identifier: a column that a CSV gives as text where numbers would lose its zeros (007).

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read as what it says it is, has no rows, rows of several widths
            or two columns of one name; names file and row.
    """

    def __init__(self, path: Path, identifier: str | None = None) -> None:
        self.path = path
        self._whole: pa.Table | None = None
        with _naming(path):
            if path.suffix.lower() == ".parquet":
                # Pages are read as they are needed: a whole group of rows may be the whole file.
                self._file = pa.parquet.ParquetFile(path, buffer_size=2**16, pre_buffer=False)
                self.schema, self.num_rows = self._file.schema_arrow, self._file.metadata.num_rows
            else:
                self._whole = _read_csv(path, identifier)
                self.schema, self.num_rows = self._whole.schema, self._whole.num_rows
        # pandas keeps an index that has no name of its own as such a column.
        self.names = [n for n in self.schema.names if not re.fullmatch(r"__index_level_\d+__", n)]
        twice = [name for i, name in enumerate(self.names) if name in self.names[:i]]
        if twice:
            raise ValueError(f"{path}: its header has the name {twice[0]!r} twice")
        if not self.num_rows:
            raise ValueError(f"{path} has no rows")

    def find(self, name: str) -> str | None:
        """Return the column of that name, or else the only one that differs in case, or None."""
        if name in self.names:
            return name
        alike = [other for other in self.names if other.casefold() == name.casefold()]
        return alike[0] if len(alike) == 1 else None

    def column(self, name: str) -> pa.Array:
        """Read a whole column."""
        with _naming(self.path):
            table = self._file.read([name]) if self._whole is None else self._whole
            array = plain(table[name].combine_chunks())
        if types.is_binary(array.type) and self._whole is not None:
            row = next(i for i, cell in enumerate(array) if not _is_utf8(cell.as_py()))
            raise ValueError(f"{self.where(row)}, column {name!r}: not text in UTF-8")
        return array

    def columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read whole columns, by name."""
        return {name: self.column(name) for name in names}

    def where(self, row: int) -> str:
        """Name a row, counted from 0: its file, its number from 1, and its line in a CSV."""
        if self._whole is None:
            return f"{self.path}, row {row + 1}"
        with suppress(ValueError):  # a cell before it is too long for the line to be known
            line, _ = next(islice(_lines(self.path), row + 1, None))  # past the header
            return f"{self.path}, row {row + 1} (line {line})"
        return f"{self.path}, row {row + 1}"

    def features(
        self, *, without: Sequence[str] = (), only: Sequence[str] | None = None, divisor: float = 1
    ) -> Features:
        """Plan the reading of features: columns of numbers, or of lists with equally many.

        Args:
            without: columns that are none.
            only: the names of the features, in the order that is wanted; by default all.
            divisor: of integers, see `blocks.divide`.

        Returns:
            Features with names; `name[0]`, `name[1]`, ... from a column of lists.

        Raises:
            ValueError: if there is none, one is missing, or one holds anything but numbers.
        """
        if only is None:
            groups = [self._group(name) for name in self.names if name not in without]
        else:
            groups = self._wanted(only)
        names = tuple(name for group in groups for name in group.names)
        if not names:
            raise ValueError(f"{self.path} has no column that could be a feature")
        return Features(
            num_rows=self.num_rows,
            shape=(len(names),),
            columns=names,
            blocks=lambda: self._blocks(groups, len(names), divisor),
            divisor=divisor,
        )

    def _wanted(self, names: Sequence[str]) -> list["_Group"]:
        """Find each feature as a column, or as a place in a column of lists."""
        groups: list[_Group] = []
        missing = []
        for name in names:
            inside = re.fullmatch(r"(.*)\[(\d+)\]", name, re.DOTALL)
            if name in self.names:
                groups.append(self._group(name))
            elif inside and inside[1] in self.names and is_list(self.schema.field(inside[1]).type):
                if int(inside[2]) == 0:
                    groups.append(self._group(inside[1]))
            else:
                missing.append(name)
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(
                f"{self.path} has no column {missing[0]!r}{more}, "
                f"which the model was fitted to; its columns are {listed(self.names)}"
            )
        found = [name for group in groups for name in group.names]
        if found != list(names):
            raise ValueError(
                f"{self.path}: expected {len(names)} features, got {len(found)}: "
                "a column of lists has another length"
            )
        return groups

    def _group(self, name: str) -> "_Group":
        kind = self.schema.field(name).type
        if not name.strip():
            place = self.names.index(name) + 1
            raise ValueError(
                f"{self.path}: column {place} has no name in the header; "
                "name it, or leave it out (drop '')"
            )
        if is_number(kind):
            return _Group(name, (name,), types.is_integer(kind))
        if not (is_list(kind) and is_number(kind.value_type)):
            self._refuse(name)
        first = next(self.batches([name], 1))[name][0].as_py()
        if not first:
            fault = "no value" if first is None else "a list without numbers"
            raise ValueError(f"{self.where(0)}, column {name!r}: {fault}")
        names = tuple(f"{name}[{i}]" for i in range(len(first)))
        return _Group(name, names, types.is_integer(kind.value_type))

    def _refuse(self, name: str) -> None:
        """Raise, naming the first cell of a column that is not a number."""
        values = self.column(name)
        if values.null_count == len(values):
            raise ValueError(f"{self.where(0)}, column {name!r}: no value, as in all rows; drop it")
        cells = ((row, cell.as_py()) for row, cell in enumerate(values) if cell.is_valid)
        row, value = next(((r, v) for r, v in cells if not _is_float(v)), (0, values[0].as_py()))
        raise ValueError(
            f"{self.where(row)}, column {name!r}: {_short(value)} is not a number; "
            "leave the column out (drop) or encode it as numbers"
        )

    def batches(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Read columns by at most `size` rows at once."""
        if self._whole is not None:
            yield from self._whole.select(names).to_batches(max_chunksize=size)
            return
        with _naming(self.path):
            batches = self._file.iter_batches(size, columns=list(names))
        while True:
            with _naming(self.path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.select(list(names))  # "a.b" may be a column, or a part of the column "a"

    def _slices(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Read many rows at once, which is quicker, and hand out few."""
        try:
            for batch in self.batches(names, 16 * size):
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size)
        finally:
            pa.default_memory_pool().release_unused()  # it would keep what a group of rows needs

    def _blocks(self, groups: list["_Group"], width: int, divisor: float) -> Iterator[np.ndarray]:
        whole = all(group.whole for group in groups)
        start = 0
        for batch in self._slices([group.column for group in groups], rows_at_once(width)):
            block = np.empty((len(batch), width), np.float32)
            left = 0
            for group, array in zip(groups, batch.columns, strict=True):
                right = left + len(group.names)
                with np.errstate(over="ignore"):
                    block[:, left:right] = self._numbers(group, array, start)
                left = right
            if not np.isfinite(block).all():
                self._raise_not_finite(groups, batch, block, start)
            divide(block, divisor, whole=whole, path=self.path)
            yield block
            start += len(batch)

    def _numbers(self, group: "_Group", array: pa.Array, start: int) -> np.ndarray:
        array = plain(array)
        if array.null_count:
            row = start + array.is_null().index(True).as_py()
            raise ValueError(f"{self.where(row)}, column {group.column!r}: no value")
        if not is_list(array.type):
            return to_numpy(array)[:, None]
        other = pc.not_equal(pc.list_value_length(array), len(group.names))
        if pc.any(other).as_py():
            row = other.index(True).as_py()
            raise ValueError(
                f"{self.where(start + row)}, column {group.column!r}: "
                f"expected {len(group.names)} numbers as in the first row, got {len(array[row])}"
            )
        cells = plain(array.flatten())
        if cells.null_count:
            row, place = divmod(cells.is_null().index(True).as_py(), len(group.names))
            raise ValueError(f"{self.where(start + row)}, column {group.names[place]!r}: no value")
        return to_numpy(cells).reshape(len(array), -1)

    def _raise_not_finite(
        self, groups: list["_Group"], batch: pa.RecordBatch, block: np.ndarray, start: int
    ) -> None:
        row, place = np.argwhere(~np.isfinite(block))[0].tolist()
        owners = [(group, i) for group in groups for i in range(len(group.names))]
        group, inside = owners[place]
        value = batch[group.column][row].as_py()
        value = value[inside] if isinstance(value, list) else value
        raise ValueError(
            f"{self.where(start + row)}, column {group.names[inside]!r}: {fault(value)}"
        )


class _Group(NamedTuple):
    """The features that one column gives, and whether they are stored as integers."""

    column: str
    names: tuple[str, ...]
    whole: bool


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of that type has numbers, or true and false."""
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
    )


def listed(names: Sequence[str], most: int = 8) -> str:
    """Write names for an error, the first few of many."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of that type has a list in each row."""
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def plain(array: pa.Array) -> pa.Array:
    """Turn dictionaries and views into what they stand for."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if types.is_float16(array.type):  # of which Arrow computes little
        return pa.array(
            array.to_numpy(zero_copy_only=False).astype(np.float32),
            mask=np.asarray(array.is_null()),
        )
    return array


def to_numpy(array: pa.Array) -> np.ndarray:
    """Turn numbers, or true and false, none of them missing, into an array."""
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


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# CSV.


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _read_csv(path: Path, identifier: str | None) -> pa.Table:
    header = _header(path)
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise ValueError(
            f"{path}: one column is called {header[0]!r}: columns must be parted by commas (.csv) "
            "or tabs (.tsv)"
        )
    as_text = [name for name in header if identifier and name.casefold() == identifier.casefold()]
    try:
        table = _parse_csv(path, as_text)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise ValueError(f"{path} has no rows") from error
        if "straddling" in str(error):
            raise ValueError(f"{path}: a row of over 8 MB; is a quote never closed?") from error
        if "Expected" in str(error):
            _raise_ragged(path)
        raise
    for name in as_text if len(set(header)) == len(header) else ():
        table = table.set_column(table.schema.get_field_index(name), name, _whole(table[name]))
    return table


def _header(path: Path) -> list[str]:
    _, header = next(_lines(path), (0, []))
    if any("\ufffd" in name for name in header):
        raise ValueError(f"{path}: not text in UTF-8")
    if not header:
        raise ValueError(f"{path} is empty")
    return header


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read rows slowly, the header first: the line that each ends in, and its cells."""
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
    """Read again, for the number of the row."""
    width = len(_header(path))
    for row, (line, cells) in enumerate(_lines(path)):
        if len(cells) != width:
            raise ValueError(
                f"{path}, row {row} (line {line}): expected {width} cells, as the header has, "
                f"got {len(cells)}: {_short(_delimiter(path).join(cells))}"
            )


def _whole(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn text into integers where that loses nothing: 7, but not 007."""
    try:
        numbers = text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text
    return numbers if numbers.cast(pa.string()).equals(text) else text


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file where the library that reads it would not."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder, not a file") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
