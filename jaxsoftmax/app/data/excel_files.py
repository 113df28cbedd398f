"""Excel and OpenDocument workbooks: the first sheet with content, as text."""

import csv
import datetime
import io
from pathlib import Path
from typing import Any


def to_csv(path: Path) -> bytes:
    """Return the first sheet of a workbook that has rows as CSV in UTF-8.

    Args:
        path: the workbook.

    Raises:
        ModuleNotFoundError: if python-calamine is not installed.
        ValueError: if the workbook cannot be read, is encrypted or has no rows.

    Reference:
        https://pypi.org/project/python-calamine
    """
    try:
        import python_calamine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs python-calamine: pip install 'jaxsoftmax[excel]'"
        ) from error
    try:
        with python_calamine.CalamineWorkbook.from_path(path) as workbook:
            sheets = (workbook.get_sheet_by_name(name) for name in workbook.sheet_names)
            contents = (sheet.to_python() for sheet in sheets)
            rows: list[list[Any]] = next((content for content in contents if content), [])
    except python_calamine.CalamineError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    file = io.StringIO(newline="")
    csv.writer(file).writerows([_to_text(cell) for cell in row] for row in rows)
    return file.getvalue().encode()


def _to_text(cell: Any) -> str:
    """Return what a cell shows: workbooks store 3 as 3.0."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    if isinstance(cell, datetime.datetime | datetime.date):
        return cell.isoformat(sep=" ") if isinstance(cell, datetime.datetime) else str(cell)
    return str(cell)
