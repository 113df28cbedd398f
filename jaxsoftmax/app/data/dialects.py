"""How a file of text writes a table: encoding, delimiter, decimal mark, and names or none."""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsoftmax.app.data.cells import MISSING, MISSING_NUMBER

DELIMITERS = ("\t", ";", "|", ",")
"""The delimiters that are recognized; of several that suit, the first."""

SAMPLE_SIZE = 2**16
"""The number of bytes at the beginning of a file that are looked at."""

_NUMBER = re.compile(r"[+-]?(\d[\d.,]*|\.\d+)([eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?(\d*\.(\d{1,2}|\d{4,})|\d{1,3}(,\d{3})+\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(\d*,(\d{1,2}|\d{4,})|\d{1,3}([.  ']\d{3})+,\d+)([eE][+-]?\d+)?")
_SPACED = re.compile(r"\d {2,}\d")
_AMBIGUOUS = re.compile(r"[+-]?\d{1,3}(,\d{3})?")


class Dialect(NamedTuple):
    """The dialect of a file of text; None stands for what is to be detected.

    delimiter: one character; a space stands for any number of them. decimal: '.' or ','. encoding:
    a name that Python knows. has_header: whether the first row has the names of the columns.
    """

    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    has_header: bool | None = None


DETECT = Dialect()
"""The dialect of which all is to be detected."""


def check(given: Dialect) -> Dialect:
    """Return a dialect that a user gives, with 'tab' as a tab; raise a ValueError if it is bad."""
    delimiter = {"tab": "\t", "\\t": "\t", "space": " "}.get(given.delimiter or "", given.delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\n\r'):
        raise ValueError(f"--delimiter must be one character, tab or space, got {delimiter!r}")
    if given.decimal not in (None, ".", ","):
        raise ValueError(f"--decimal must be . or a comma, got {given.decimal!r}")
    if given.encoding is not None:
        try:
            codecs.lookup(given.encoding)
        except LookupError as error:
            raise ValueError(
                f"--encoding must be the name of an encoding, such as latin-1 or utf-16, "
                f"got {given.encoding!r}"
            ) from error
    return given._replace(delimiter=delimiter)


def detect_encoding(sample: bytes) -> str:
    """Return the encoding that the first bytes of a file state, or UTF-8."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8"


def complete(given: Dialect, sample: bytes, *, names: Sequence[str] = ()) -> Dialect:
    """Complete a dialect by what the beginning of a file looks like.

    Args:
        given: what is known.
        sample: the first bytes of the file.
        names: the columns that the file should have. If they are in the first row it is a header.

    Returns:
        A dialect without None.
    """
    encoding = given.encoding or detect_encoding(sample)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(sample).removeprefix("\ufeff")
    if len(sample) == SAMPLE_SIZE and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    delimiter = given.delimiter or _detect_delimiter(text)
    text = collapse_spaces(text) if delimiter == " " else text
    rows = [[cell.strip() for cell in row] for row in _split(text, delimiter) or []]
    decimal = given.decimal or _detect_decimal(rows[1:] or rows, delimiter)
    has_header = given.has_header
    if has_header is None:
        has_header = not rows or (names and set(names) <= set(rows[0])) or _has_header(rows)
    return Dialect(delimiter, decimal, encoding, bool(has_header))


def _split(text: str, delimiter: str) -> list[list[str]] | None:
    try:
        return [r for r in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if r]
    except csv.Error:
        return None


def _detect_delimiter(text: str) -> str:
    """Return the first delimiter that divides all rows into the same number of cells."""
    for delimiter in DELIMITERS:
        widths = {len(row) for row in _split(text, delimiter) or [[]]}
        if len(widths) == 1 and max(widths) > 1:
            # A tab may stand among spaces, as before the last column.
            return " " if delimiter == "\t" and _SPACED.search(text) else delimiter
    header = text.partition("\n")[0]
    if not any(map(header.count, DELIMITERS)) and _has_spaced_numbers(text):
        return " "
    return max(reversed(DELIMITERS), key=header.count)


def _has_spaced_numbers(text: str) -> bool:
    """Return whether all rows have the same number of words, of which most are numbers."""
    rows = _split(collapse_spaces(text), " ") or []
    cells = [cell for row in rows for cell in row]
    is_even = len({len(row) for row in rows}) == 1 and len(cells) > len(rows)
    num_numbers = sum(bool(_NUMBER.fullmatch(cell)) for cell in cells)
    return is_even and 2 * num_numbers > len(cells)


def collapse_spaces(text: str) -> str:
    """Return text with one space between words, as between the cells of a table."""
    return re.sub(r"(?m)^ +| +$", "", re.sub(r"[ \t]+", " ", text))


def _detect_decimal(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    """Return a comma if the numbers of some column must have one, and none a point."""
    has_comma = has_point = is_ambiguous = False
    for cells in zip(*rows, strict=False):
        present = {cell for cell in cells if cell not in (*MISSING, MISSING_NUMBER)}
        if not all(_NUMBER.fullmatch(cell) or _COMMA.fullmatch(cell) for cell in present):
            continue
        has_comma |= any(_COMMA.fullmatch(cell) for cell in present)
        has_point |= any(_POINT.fullmatch(cell) for cell in present)
        is_ambiguous |= any("," in cell for cell in present if _AMBIGUOUS.fullmatch(cell))
    is_comma = has_comma or (is_ambiguous and delimiter == ";")
    return "," if is_comma and not has_point else "."


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row has names rather than values.

    A text above numbers is a name. A number above numbers is none, and neither are texts that half
    of the columns have again further down. The numbers 0, 1, 2, ... are names: pandas writes them.
    """
    first, rest = rows[0], rows[1:]
    if len(first) > 1 and list(first) in ([str(i + j) for i in range(len(first))] for j in (0, 1)):
        return True
    num_names = num_numbers = num_repeated = 0
    for name, cells in zip(first, zip(*rest, strict=False), strict=False):
        present = [cell for cell in cells if cell not in (*MISSING, MISSING_NUMBER)]
        if not present or name in (*MISSING, MISSING_NUMBER):
            continue
        if np.mean([bool(_NUMBER.fullmatch(cell)) for cell in present]) >= 0.9:
            num_numbers += bool(_NUMBER.fullmatch(name))
            num_names += not _NUMBER.fullmatch(name)
        else:
            num_repeated += name in present
    return num_names > 0 or not (num_numbers or 2 * num_repeated >= max(1, len(first)))


def describe(dialect: Dialect, given: Dialect) -> list[str]:
    """Describe what was detected and may surprise, in a line each."""
    lines = []
    if given.has_header is None and not dialect.has_header:
        lines.append(
            "no names in the first row: the columns are numbered from 1 "
            "(--header if it has the names)"
        )
    if given.decimal is None and dialect.decimal == ",":
        lines.append("numbers have decimal commas (--decimal . if they do not)")
    return lines
