"""The cells of a column: which of them are missing, and their values as text, numbers and dates."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")
"""The texts that stand for a missing value in any column."""

MISSING_NUMBER = "?"
"""The text that stands for a missing value in a column of numbers, dates, or yes and no."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"
_DECORATED = r"^[+-]?[$€£¥]? ?(\d{1,3}([, '\x{a0}\x{202f}]\d{3})+|\d+)(\.\d+)? ?[%€]?$"
_DECIMAL_COMMA = r"^[+-]?(\d+|\d{1,3}([. '\x{a0}\x{202f}]\d{3})+)?(,\d+)?([eE][+-]?\d+)?$"
_LONG_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")
_SHORT_DATES = ("%d.%m.%y", "%m/%d/%y", "%d/%m/%y")
_TIMES = ("", " %H:%M:%S", " %H:%M")
_DATE = r"^(\d{4}[-/]\d\d?[-/]\d\d?|\d\d?[./]\d\d?[./]\d\d(\d\d)?)([ T]\d\d?:\d\d)?"

DATE_FORMATS = (*_LONG_DATES, *_SHORT_DATES)
"""The formats of dates that are recognized, in order of preference; a time may follow."""


class Values(NamedTuple):
    """The values of cells as floats: NaN where a cell is missing, or bad: it has another type."""

    values: np.ndarray  # float64 [N]
    is_missing: np.ndarray  # bool [N]
    is_bad: np.ndarray  # bool [N]


def is_text(dtype: pa.DataType) -> bool:
    """Return whether a column of that type holds text."""
    return types.is_string(dtype) or types.is_large_string(dtype)


def is_numeric_type(dtype: pa.DataType) -> bool:
    """Return whether a column of that type holds numbers or Booleans."""
    return (
        types.is_integer(dtype)
        or types.is_floating(dtype)
        or types.is_decimal(dtype)
        or types.is_boolean(dtype)
    )


def is_date_type(dtype: pa.DataType) -> bool:
    """Return whether a column of that type holds dates, with or without a time of day."""
    return types.is_date(dtype) or types.is_timestamp(dtype)


def is_list_type(dtype: pa.DataType) -> bool:
    """Return whether a column of that type holds a list in each row."""
    return types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)


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


def find_missing(cells: pa.Array, missing: Sequence[str] = ()) -> np.ndarray:
    """Return which cells are missing, bool `[N]`: null, NaN, or text that says so.

    Args:
        cells: a decoded column.
        missing: further texts that stand for a missing value.
    """
    is_missing = cells.is_null(nan_is_null=types.is_floating(cells.type))
    if is_text(cells.type):
        texts = pa.array([*MISSING, *missing], cells.type)
        is_missing = pc.or_(is_missing, pc.is_in(cells, value_set=texts))
    return np.asarray(is_missing)


def to_text(cells: pa.Array) -> pa.Array:
    """Convert cells to text: 3 and 3.0 to '3', true to 'true'; text stays as it is."""
    if is_text(cells.type):
        return cells
    if types.is_floating(cells.type):
        cells = pc.add(cells, pa.scalar(0.0, cells.type))  # -0 is 0
    if types.is_floating(cells.type) or types.is_decimal(cells.type):
        try:
            cells = cells.cast(pa.int64())
        except pa.ArrowInvalid:  # some have fractions
            return cells.cast(pa.string())
    return cells.cast(pa.string())


def to_numbers(cells: pa.Array, missing: Sequence[str] = ()) -> Values:
    """Convert cells to numbers; thousands may be separated, and currencies and % left out.

    Args:
        cells: a decoded column.
        missing: further texts that stand for a missing value.

    Returns:
        The values. A column of a type that is neither text nor a number is bad throughout.
    """
    num_cells = len(cells)
    if is_numeric_type(cells.type):
        values = _to_float64(cells)
        return Values(values, np.isnan(values), np.zeros(num_cells, bool))
    is_missing = find_missing(cells, (*missing, MISSING_NUMBER))
    if not is_text(cells.type):
        return Values(np.full(num_cells, np.nan), is_missing, ~is_missing)
    present = pc.if_else(pa.array(is_missing), None, cells)
    try:
        return Values(_to_float64(present), is_missing, np.zeros(num_cells, bool))
    except pa.ArrowInvalid:
        present = _remove_decoration(present)
    is_number = pc.match_substring_regex(present, _NUMBER)
    values = _to_float64(pc.if_else(is_number, present, None))
    return Values(values, is_missing, np.isnan(values) & ~is_missing)


def _to_float64(cells: pa.Array) -> np.ndarray:
    if types.is_boolean(cells.type):
        cells = cells.cast(pa.uint8())
    return cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _remove_decoration(cells: pa.Array) -> pa.Array:
    is_decorated = pc.match_substring_regex(cells, _DECORATED)
    plain = pc.replace_substring_regex(cells, r"[, '$€£¥%\x{a0}\x{202f}]", "")
    return pc.if_else(is_decorated, plain, cells)


def replace_decimal_commas(cells: pa.Array) -> pa.Array:
    """Write the numbers of a column with points if all of them have commas: 1.234,5 as 1234.5."""
    is_missing = find_missing(cells, (MISSING_NUMBER,))
    is_number = pc.match_substring_regex(cells, _DECIMAL_COMMA)
    if not (is_missing | np.asarray(is_number)).all():
        return cells
    plain = pc.replace_substring_regex(cells, r"[. '\x{a0}\x{202f}]", "")
    return pc.if_else(pa.array(is_missing), cells, pc.replace_substring(plain, ",", "."))


def find_date_format(cells: pa.Array, missing: Sequence[str] = ()) -> str | None:
    """Return the first of `DATE_FORMATS` that suits all cells of text, or None."""
    present = cells.filter(pa.array(~find_missing(cells, (*missing, MISSING_NUMBER))))
    looks_right = pc.match_substring_regex(present[:100], _DATE)
    if not len(present) or not pc.all(looks_right).as_py():
        return None
    present = present.dictionary_encode().dictionary
    is_long = pc.match_substring_regex(present[:1], r"^\d{4}|\d{4}( |$)")[0].as_py()
    formats = (f for f in DATE_FORMATS if ("%Y" in f) == is_long)
    return next((f for f in formats if not to_days(present, f).is_bad.any()), None)


def to_days(cells: pa.Array, date_format: str, missing: Sequence[str] = ()) -> Values:
    """Convert dates to days since 1970, with the time of day as a fraction.

    Args:
        cells: a decoded column of dates, times, or text.
        date_format: one of `DATE_FORMATS`, for text.
        missing: further texts that stand for a missing value.
    """
    is_missing = find_missing(cells, (*missing, MISSING_NUMBER))
    if is_date_type(cells.type):
        dates = cells.cast(pa.timestamp("ms", getattr(cells.type, "tz", None)), safe=False)
    elif is_text(cells.type):
        # Fractions of a second and time zones are left out.
        end = r"(:\d\d)(\.\d+)?( ?(Z|[+-]\d\d:?\d\d))?$"
        plain = pc.replace_substring_regex(cells, end, r"\1")
        plain = pc.replace_substring_regex(plain, r"^(\d{4}-\d\d-\d\d)T", r"\1 ")
        dates = pc.coalesce(*(_parse_dates(plain, date_format + time) for time in _TIMES))
    else:
        return Values(np.full(len(cells), np.nan), is_missing, ~is_missing)
    milliseconds = dates.cast(pa.int64()).cast(pa.float64(), safe=False)
    days = milliseconds.to_numpy(zero_copy_only=False) / 86_400_000
    return Values(days, is_missing, np.isnan(days) & ~is_missing)


def describe_invalid(value: float) -> str:
    """Describe why a stored number has no finite value in float32."""
    if np.isfinite(value):
        return f"{value} is beyond float32"
    return f"{value} is not finite"


def _parse_dates(cells: pa.Array, date_format: str) -> pa.Array:
    dates = pc.strptime(cells, format=date_format, unit="s", error_is_null=True)
    return dates.cast(pa.timestamp("ms"))


# Names that are compared with the cells of a later file, which may write the same value otherwise.


def match_names(values: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return the index of each value among names, -1 where there is none.

    The same text is the same name. If the names are different numbers, or are true and false, a
    value that is none of them is compared as such too: 1.0 is 1, and True is true. Names that are
    text, such as 01, 02 and 1A, or numbers that are written differently (7 and 007), are not.

    Args:
        values: text.
        names: different texts.

    Returns:
        int32 `[len(values)]`.

    Example:
        >>> from jaxsoftmax.app.data import cells
        >>> cells.match_names(["01", "1.0"], ["1", "2"]), cells.match_names(["1"], ["01", "1A"])
        (array([0, 0], dtype=int32), array([-1], dtype=int32))
    """
    by_text = {name: i for i, name in enumerate(names)}
    by_value = {_to_value(name): i for i, name in enumerate(names)}
    if None in by_value or len(by_value) < len(names):
        by_value = {}
    indices = (by_text.get(v, by_value.get(_to_value(v), -1) if by_value else -1) for v in values)
    return np.fromiter(indices, np.int32, len(values))


def _to_value(text: str) -> Decimal | str | None:
    """Return the number or truth value that a text stands for, or None."""
    if text.casefold() in ("true", "false"):
        return text.casefold()
    return to_decimal(text)


def to_decimal(text: str) -> Decimal | None:
    """Return the exact value of a finite number, or None for other text."""
    return (
        Decimal(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", text) else None
    )
