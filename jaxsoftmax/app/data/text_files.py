"""Files of text with a table, such as CSV: packed or not, from a pipe, in any dialect.

A workbook is read as the text of its first sheet.
"""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from jaxsoftmax.app.data import dialects, excel_files
from jaxsoftmax.app.data.cells import decode, replace_decimal_commas
from jaxsoftmax.app.data.column_kinds import abbreviate
from jaxsoftmax.app.data.dialects import Dialect
from jaxsoftmax.app.file_formats import EXCEL, STDIN

MAX_UNPACKED = 2**32
"""The number of bytes that a packed file or a pipe may have, since they are held in memory."""


class TextFile:
    """A file of text that holds a table.

    Args:
        path: the file; `-` is standard input. A pipe is read once, and a file that ends in .gz is
            unpacked, into memory.
        given: what is known of its dialect; the rest is detected.
        names: the columns that the file should have, if they are known.

    Raises:
        ValueError: if it is empty, too large once it is unpacked, or not of its encoding.
    """

    def __init__(self, path: Path, given: Dialect, names: Sequence[str] = ()) -> None:
        self.path = Path("standard input") if str(path) == STDIN else path
        self._content = _read_into_memory(path)
        with self._open() as file:
            sample = file.read(dialects.SAMPLE_SIZE)
        if not sample.strip():
            raise ValueError(f"{self.path} is empty")
        given = dialects.check(given)
        if path.suffix.lower() in EXCEL:
            given = Dialect(",", ".", "utf-8", given.has_header)
        if path.name.lower().removesuffix(".gz").endswith(".tsv") and given.delimiter is None:
            given = given._replace(delimiter="\t")
        encoding = given.encoding or dialects.detect_encoding(sample)
        if encoding == "utf-8" and b"\0" in sample:
            raise ValueError(f"{path}: not text in UTF-8; name its --encoding, for instance utf-16")
        self.dialect = given._replace(encoding=encoding)
        _, first = next(self.read_rows())
        self.dialect = dialects.complete(self.dialect, sample, names=names)
        if self.dialect.delimiter == " ":
            self._content = self._collapse_spaces()
        _, first = next(self.read_rows())
        self.names = _name_columns(first, has_header=bool(self.dialect.has_header))
        if any("\ufffd" in name for name in self.names):
            raise ValueError(
                f"{path}: not text in UTF-8; name its --encoding, for instance latin-1"
            )

    def _collapse_spaces(self) -> bytes:
        with self._open() as file:
            text = file.read().decode(self.dialect.encoding or "utf-8", "surrogateescape")
        plain = dialects.collapse_spaces(text)
        return plain.encode(self.dialect.encoding or "utf-8", "surrogateescape")

    def read_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the last line number and the cells of each row, the header first; this is slow."""
        encoding = "utf-8-sig" if self.dialect.encoding == "utf-8" else self.dialect.encoding
        with io.TextIOWrapper(self._open(), encoding, errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter=self.dialect.delimiter or ",")
            try:
                for cells in reader:
                    if cells:
                        yield reader.line_num, cells
            except csv.Error as error:
                line = reader.line_num
                raise ValueError(
                    f"{self.path}, line {line}: {error}; is a quote never closed?"
                ) from error

    def describe_row(self, row: int) -> str:
        """Return the number of a row of values from 1, and its line; rows are counted from 0."""
        try:
            num_before = row + bool(self.dialect.has_header)
            line, _ = next(islice(self.read_rows(), num_before, None))
        except (ValueError, StopIteration):  # an earlier cell is too long for the csv module
            return f"row {row + 1}"
        return f"row {row + 1} (line {line})"

    def parse(self) -> pa.Table:
        """Return the table: all cells as text, without the spaces around them."""
        try:
            table = self._parse_text()
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error) or self._has_one_line():
                raise ValueError(f"{self.path} has no rows") from error
            if "straddling" in str(error):
                raise ValueError(
                    f"{self.path}: a row exceeds 8 MB; is a quote never closed?"
                ) from error
            if "Expected" in str(error):
                self._raise_ragged()
            if "UTF8" in str(error):
                self._raise_not_utf8()
            raise
        except UnicodeError as error:
            raise ValueError(
                f"{self.path}: not text in {self.dialect.encoding} (--encoding): {error}"
            ) from error
        if self.dialect.decimal == ",":
            columns = [replace_decimal_commas(decode(column)) for column in table.columns]
            table = pa.table(columns, table.column_names)
        return table

    def _has_one_line(self) -> bool:
        with self._open() as file:
            return not file.readline().strip() or not file.read(2).strip()

    def _parse_text(self) -> pa.Table:
        encoding = self.dialect.encoding or "utf-8"
        is_utf8 = encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
        return pa.csv.read_csv(
            self.path if self._content is None else pa.BufferReader(self._content),
            pa.csv.ReadOptions(
                block_size=2**23,
                column_names=self.names,
                skip_rows_after_names=int(bool(self.dialect.has_header)),
                encoding="utf8" if is_utf8 else encoding,
            ),
            pa.csv.ParseOptions(delimiter=self.dialect.delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(self.names, pa.string())),
        )

    def _open(self) -> BinaryIO:
        return self.path.open("rb") if self._content is None else io.BytesIO(self._content)

    def _raise_ragged(self) -> None:
        """Read the file again, and raise a ValueError that names the first row of another width."""
        width, what = len(self.names), "as the header has"
        what = what if self.dialect.has_header else "as the first row has"
        for number, (line, cells) in enumerate(self.read_rows(), not self.dialect.has_header):
            if len(cells) != width:
                text = abbreviate((self.dialect.delimiter or ",").join(cells))
                raise ValueError(
                    f"{self.path}, row {number} (line {line}): expected {width} cells, {what}, "
                    f"got {len(cells)}: {text}"
                )

    def _raise_not_utf8(self) -> None:
        for number, (line, cells) in enumerate(self.read_rows(), not self.dialect.has_header):
            for name, cell in zip(self.names, cells, strict=False):
                if "\ufffd" in cell:
                    raise ValueError(
                        f"{self.path}, row {number} (line {line}), column {name!r}: not text in "
                        "UTF-8; name its --encoding, for instance latin-1"
                    )


def _name_columns(first: Sequence[str], *, has_header: bool) -> list[str]:
    """Return the names in the first row, and the numbers from 1 of columns that have none."""
    names = [name.removeprefix("\ufeff").strip() if has_header else "" for name in first]
    return [name or str(number) for number, name in enumerate(names, 1)]


def _read_into_memory(path: Path) -> bytes | None:
    """Return the content of a pipe or of a packed file, None for a file that can be read twice."""
    if str(path) == STDIN:
        return _read_at_most(sys.stdin.buffer, path)
    if path.suffix.lower() in EXCEL and path.is_file():
        return excel_files.to_csv(path)
    if path.suffix.lower() == ".gz":
        try:
            with gzip.open(path) as packed:
                return _read_at_most(packed, path)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if path.is_fifo():
        with path.open("rb") as pipe:
            return _read_at_most(pipe, path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a device, not a file")
    return None


def _read_at_most(file: BinaryIO, path: Path) -> bytes:
    chunks, size = [], 0
    while chunk := file.read(2**20):
        size += len(chunk)
        if size > MAX_UNPACKED:
            raise ValueError(
                f"{path} has more than {MAX_UNPACKED:,} bytes once it is unpacked, which is the "
                "limit; save it as Parquet"
            )
        chunks.append(chunk)
    return b"".join(chunks)
