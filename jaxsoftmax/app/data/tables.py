"""Tables in files of text, Parquet and Excel: whole columns by name, and features by blocks."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pyarrow.types as types

from jaxsoftmax.app.data.cells import decode, is_list_type, is_text, to_numbers
from jaxsoftmax.app.data.column_kinds import Category, CellError, Number, Vector
from jaxsoftmax.app.data.dialects import DETECT, Dialect, describe
from jaxsoftmax.app.data.row_blocks import FeatureReader, apply_divisor, rows_per_block
from jaxsoftmax.app.data.table_schema import TableSchema
from jaxsoftmax.app.data.text_files import TextFile
from jaxsoftmax.app.file_formats import PARQUET


class ColumnsError(ValueError):
    """An error in one or several columns; `columns` has their names."""

    def __init__(self, message: str, columns: Sequence[str]) -> None:
        super().__init__(message)
        self.columns = tuple(columns)


class TableFile:
    """A file with a table: text such as CSV, a workbook, or Parquet.

    The cells of text stay text: the schema of a model says what they are.

    Args:
        path: the path of the file, whose suffix gives its format: .parquet, .xlsx, .xls, .xlsb,
            .ods, or .csv, .tsv, .txt or .data, which may be packed (.gz); `-` is standard input.
        dialect: what is known of the dialect of a file of text.
        names: the columns that the file should have, if they are known.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read in the format of its suffix, has no rows, has rows of
            different widths or two columns of one name; names the file and the row.
    """

    def __init__(self, path: Path, dialect: Dialect = DETECT, names: Sequence[str] = ()) -> None:
        self.path = path
        self._whole: pa.Table | None = None
        self._text: TextFile | None = None
        self.notes: list[str] = []
        with _name_file_in_errors(path):
            if path.suffix.lower() == PARQUET:
                # Read pages when they are needed: one row group may be the whole file.
                self._file = pa.parquet.ParquetFile(path, buffer_size=2**16, pre_buffer=False)
                self.schema, self.num_rows = self._file.schema_arrow, self._file.metadata.num_rows
            else:
                self._text = TextFile(path, dialect, names)
                self.path = self._text.path
                self.notes = describe(self._text.dialect, dialect)
                _check_names(path, self._text.names)
                self._whole = self._text.parse()
                self.schema, self.num_rows = self._whole.schema, self._whole.num_rows
        # pandas stores an index without a name as such a column.
        self.names = [n for n in self.schema.names if not re.fullmatch(r"__index_level_\d+__", n)]
        _check_names(path, self.names)
        if not self.num_rows:
            raise ValueError(f"{path} has no rows")

    @property
    def has_header(self) -> bool:
        """Whether the file has names for its columns."""
        return self._text is None or bool(self._text.dialect.has_header)

    def find(self, name: str) -> str | None:
        """Return the column of that name, else the only one that differs in case alone, or None."""
        if name in self.names:
            return name
        matches = [other for other in self.names if other.casefold() == name.casefold()]
        return matches[0] if len(matches) == 1 else None

    def read_column(self, name: str) -> pa.Array:
        """Read a whole column; text has no spaces around it."""
        return self.read_columns([name])[name]

    def read_columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read whole columns, by name."""
        with _name_file_in_errors(self.path):
            # "a.b" may be a column, or a field of the column "a".
            table = self._file.read(list(names)) if self._whole is None else self._whole
            return {name: self._clean(table[name].combine_chunks()) for name in names}

    def describe_row(self, row: int) -> str:
        """Describe a row, counted from 0: its file, its number from 1, and its line in a CSV."""
        described = f"row {row + 1}" if self._text is None else self._text.describe_row(row)
        return f"{self.path}, {described}"

    def open_features(self, schema: TableSchema, *, divisor: float = 1) -> FeatureReader:
        """Return a reader of the features.

        Args:
            schema: the columns, and the features that they give.
            divisor: the number that integers are divided by; see `row_blocks.apply_divisor`.

        Returns:
            A `FeatureReader` with names.

        Raises:
            ValueError: if there is no feature, or if a column is missing.
        """
        if not schema.features:
            raise ValueError(f"{self.path} has no column that could be a feature")
        sources = self._find_columns(schema)
        return FeatureReader(
            num_rows=self.num_rows,
            shape=(len(schema.features),),
            columns=schema.features,
            read_blocks=lambda: self._read_blocks(schema, sources, divisor),
            divisor=divisor,
        )

    def _find_columns(self, schema: TableSchema) -> list[str]:
        """Return the columns to read; a column of lists may be stored as one for each element."""
        columns = {column.name: column for column in schema.columns}
        sources: list[str] = []
        missing = []
        for name, column in columns.items():
            if name in self.names:
                sources.append(name)
            elif isinstance(column, Vector) and set(column.features) <= set(self.names):
                sources += column.features
            else:
                missing.append(name)
        if missing:
            raise ColumnsError(
                f"{self.path} has no column {format_names(missing)}, "
                f"which the model was fitted to; its columns are {format_names(self.names)}",
                (),
            )
        return sources

    def strict_schema(self, exclude: Sequence[str]) -> TableSchema:
        """Return the schema of all columns but some, as numbers that must not be missing."""
        columns: list[Number | Vector] = []
        for name in self.names:
            if name in exclude:
                continue
            if is_list_type(self.schema.field(name).type):
                first = next(self._read_batches([name], 1))[name][0].as_py()
                columns.append(Vector(name, len(first or ())))
            else:
                columns.append(Number(name))
        return TableSchema(tuple(columns))

    def _read_batches(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Read columns in batches of at most `size` rows."""
        if self._whole is not None:
            yield from self._whole.select(names).to_batches(max_chunksize=size)
            return
        with _name_file_in_errors(self.path):
            batches = self._file.iter_batches(size, columns=list(names))
        try:
            while True:
                with _name_file_in_errors(self.path):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch.select(list(names))
        finally:
            pa.default_memory_pool().release_unused()  # or it keeps the memory of a row group

    def _read_blocks(
        self, schema: TableSchema, sources: list[str], divisor: float
    ) -> Iterator[np.ndarray]:
        """Encode many rows at once, which is faster, and yield some at a time."""
        size = rows_per_block(len(schema.features))
        is_integer = divisor != 1 and self._holds_integers(sources)
        start = 0
        for batch in self._read_batches(sources, 16 * size):
            try:
                features = schema.apply(_to_cells(schema, batch), self._clean)
            except CellError:
                self._raise_bad_cells(schema, sources, start)
                raise
            apply_divisor(features, divisor, is_integer=is_integer, path=self.path)
            for row in range(0, len(batch), size):
                yield features[row : row + size]
            start += len(batch)

    def _raise_bad_cells(self, schema: TableSchema, sources: list[str], start: int) -> None:
        """Raise a ColumnsError that names the first bad cell of each column, if there is one."""
        table = self._whole if self._whole is not None else self._file.read(sources)
        cells = _to_cells(schema, table.combine_chunks())
        problems = []
        for column in schema.columns:
            try:
                column.encode(self._clean(cells[column.name]), schema.missing)
            except CellError as error:
                problems.append(error)
        self.raise_problems(problems)

    def raise_problems(self, problems: Sequence[CellError]) -> None:
        """Raise one ColumnsError for the problems of several columns, if there are any."""
        lines = [f"{self.describe_row(p.row)}, column {p.column!r}: {p}" for p in problems]
        if len(lines) > 1:
            lines.insert(0, f"{self.path}: {len(problems)} columns cannot be used")
        if lines:
            raise ColumnsError("\n".join(lines), [p.column for p in problems])

    def describe_unseen(self, schema: TableSchema) -> list[str]:
        """Describe in a line each the columns with values that no training row had."""
        lines = []
        for column in schema.columns:
            if isinstance(column, Category) and column.name in self.names:
                cells = column.find_unseen(self.read_column(column.name), schema.missing)
                values = sorted(set(cells))
                if values:
                    rows = f"{len(cells):,} rows have" if len(cells) > 1 else "1 row has"
                    named = format_names(values, 3)
                    lines.append(f"{rows} a value of {column.name!r} not seen in training: {named}")
        return lines

    def _holds_integers(self, names: Sequence[str]) -> bool:
        """Return whether all columns hold integers, as numbers or as text."""
        try:
            for name in names:
                dtype = self.schema.field(name).type
                if is_text(dtype):
                    self.read_column(name).cast(pa.int64())
                elif not types.is_integer(dtype):
                    return False
        except pa.ArrowInvalid:
            return False
        return True

    def _clean(self, array: pa.Array) -> pa.Array:
        array = decode(array)
        return pc.utf8_trim_whitespace(array) if self._text and is_text(array.type) else array


def _to_cells(schema: TableSchema, batch: pa.RecordBatch | pa.Table) -> Mapping[str, pa.Array]:
    """Return the columns by name; lists that are stored apart are put together."""
    cells = dict(zip(batch.schema.names, batch.columns, strict=True))
    for column in schema.columns:
        if isinstance(column, Vector) and column.name not in cells:
            elements = [to_numbers(decode(cells[name])).values for name in column.features]
            lists = pa.array(np.stack(elements, 1).ravel())
            cells[column.name] = pa.FixedSizeListArray.from_arrays(lists, column.length)
    return cells


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise ValueError(
            f"{path}: its header has the name {repeated[0]!r} twice; rename one of the columns, "
            "or use --no-header if these are values"
        )


def suggest(name: str, names: Sequence[str]) -> str:
    """Return a question for the names of which one may have been meant, or nothing."""
    close = {n.casefold(): n for n in reversed(names)}
    found = difflib.get_close_matches(name.casefold(), close, n=1, cutoff=0.7)
    return f"; did you mean {close[found[0]]!r}?" if found else ""


def format_names(names: Sequence[str], limit: int = 8) -> str:
    """Format names for an error message, at most the first `limit`."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


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
