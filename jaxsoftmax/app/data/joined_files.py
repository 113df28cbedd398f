"""A file with features and a file with labels, which may be the same: opened and joined."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app import file_formats
from jaxsoftmax.app.data.arrays import ArrayFile
from jaxsoftmax.app.data.dialects import Dialect
from jaxsoftmax.app.data.tables import TableFile, format_names, suggest


class JoinedFiles(NamedTuple):
    """A file with features and a file with labels, which may be the same.

    label_rows: the row of the labels of each row of features, or None where both files have the
    same order. num_unmatched: the number of rows of labels that belong to no row of features.
    """

    feature_file: TableFile | ArrayFile
    label_file: TableFile | ArrayFile
    identifier: str | None
    label_rows: np.ndarray | None = None
    num_unmatched: int = 0

    @property
    def is_single(self) -> bool:
        """Whether features and labels are in one file."""
        return self.label_file is self.feature_file

    @property
    def description(self) -> str:
        """The origin of the data, in one line."""
        text = str(self.feature_file.path)
        if not self.is_single:
            text += f", labels of {self.label_file.path}"
        if self.num_unmatched:
            text += f" without the {self.num_unmatched} rows that match no example"
        return text

    @property
    def notes(self) -> list[str]:
        """Lines about what was detected in files of text."""
        files = {id(file): file for file in (self.feature_file, self.label_file)}.values()
        return [note for file in files if isinstance(file, TableFile) for note in file.notes]

    def read_labels(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read columns of labels in the order of the features."""
        for name in names:
            if name not in self.label_file.names:
                raise ValueError(
                    f"{self.label_file.path} has no {name!r}, which should be the label; "
                    f"it has {format_names(self.label_file.names)}" + hint(self.label_file, name)
                )
        columns = self.label_file.read_columns(names)
        if self.label_rows is None:
            return columns
        return {name: column.take(pa.array(self.label_rows)) for name, column in columns.items()}

    def describe_row(self, row: int | None) -> str:
        """Describe the labels of a row of features; the file of the labels where row is None."""
        if row is None:
            return str(self.label_file.path)
        return self.label_file.describe_row(
            row if self.label_rows is None else int(self.label_rows[row])
        )

    def read_ids(self, num_rows: int) -> np.ndarray:
        """Return the ids of the examples: the identifier's values, or row numbers from 1."""
        if self.identifier is None:
            return np.arange(1, num_rows + 1)
        ids = _read_id_column(self.feature_file, self.identifier).to_numpy(zero_copy_only=False)
        if len(ids) != num_rows:
            raise ValueError(f"{self.feature_file.path}: expected {num_rows} ids, got {len(ids)}")
        return ids


def _open(path: Path, dialect: Dialect, names: Sequence[str]) -> TableFile | ArrayFile:
    if file_formats.is_table(path):
        return TableFile(path, dialect, names)
    if file_formats.is_array(path):
        return ArrayFile(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    raise ValueError(f"{path}: expected a file that ends in {', '.join(file_formats.ALL)}")


def open_files(
    path: str | Path,
    labels: str | Path | None,
    identifier: str | None,
    dialect: Dialect,
    names: Sequence[str] = (),
    *,
    require_id: bool = True,
) -> JoinedFiles:
    """Open a file of features and, if it is another, one of labels, and join them by their ids.

    Args:
        path: the file of features.
        labels: the file of labels, or None if the first has them.
        identifier: the column of the ids, or None.
        dialect: what is known of the dialect of files of text.
        names: the columns that the file of features should have, if they are known.
        require_id: whether it is an error if the first file has no such ids.
    """
    feature_file = _open(Path(path), dialect, names)
    feature_id = _find_identifier(feature_file, identifier, required=require_id)
    if labels is None:
        return JoinedFiles(feature_file, feature_file, feature_id)
    label_file = _open(Path(labels), dialect, () if identifier is None else (identifier,))
    if not (isinstance(feature_file, TableFile) and isinstance(label_file, TableFile)):
        return JoinedFiles(feature_file, label_file, feature_id)
    if identifier is None:
        remedy = "name" if require_id else "to evaluate them, fit with the name of"
        raise ValueError(
            f"{path} and {labels}: {remedy} the column that joins them (--id); the first has "
            f"{format_names(feature_file.names)}, the second {format_names(label_file.names)}"
        )
    label_id = _find_identifier(label_file, identifier)
    feature_id = _find_identifier(feature_file, identifier)
    assert feature_id is not None
    assert label_id is not None
    return _join(feature_file, feature_id, label_file, label_id)


def hint(file: TableFile | ArrayFile, name: str) -> str:
    """Return what may be wrong where a file has no column or array of some name, or nothing."""
    if isinstance(file, TableFile) and len(file.names) == 1:
        return " only, one column; name what separates the columns by --delimiter"
    return suggest(name, file.names)


def _find_identifier(
    file: TableFile | ArrayFile, name: str | None, *, required: bool = True
) -> str | None:
    found = None if name is None else file.find(name)
    if name is not None and found is None and required:
        raise ValueError(
            f"{file.path} has no {name!r}, which should be the id; "
            f"it has {format_names(file.names)}" + hint(file, name)
        )
    return found


def _read_id_column(file: TableFile | ArrayFile, name: str) -> pa.Array:
    """Read a column of ids as large text or int64."""
    columns = file.read_columns([name])
    if len(columns) != 1:
        raise ValueError(f"{file.path}: ids must be [N], got {len(columns)} columns of {name!r}")
    (column,) = columns.values()
    if isinstance(file, TableFile) and types.is_string(column.type):
        column = _to_integers_if_exact(column)
    column = column.cast(pa.int64() if types.is_integer(column.type) else pa.large_string())
    is_text = types.is_large_string(column.type)
    is_missing = pc.fill_null(pc.equal(column, ""), True) if is_text else column.is_null()
    row = is_missing.index(True).as_py()
    if row >= 0:
        raise ValueError(f"{file.describe_row(row)}, column {name!r}: the id is missing")
    return column


def _to_integers_if_exact(text: pa.Array) -> pa.Array:
    """Convert text to integers if nothing is lost: 7, but not 007."""
    try:
        numbers = text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text
    return numbers if numbers.cast(pa.string()).equals(text) else text


def _join(
    feature_file: TableFile, feature_id: str, label_file: TableFile, label_id: str
) -> JoinedFiles:
    """Find the one row of labels of each row of features."""
    ids, label_ids = (
        _read_id_column(feature_file, feature_id),
        _read_id_column(label_file, label_id),
    )
    if ids.type != label_ids.type:
        ids, label_ids = ids.cast(pa.large_string()), label_ids.cast(pa.large_string())
    counts = label_ids.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    rows = pc.index_in(ids, value_set=label_ids)
    for problem, bad in (("no row", rows.is_null()), ("several rows", pc.is_in(ids, repeated))):
        row = bad.index(True).as_py()
        if row >= 0:
            raise ValueError(
                f"{label_file.path} has {problem} with {label_id} {ids[row].as_py()!r}, "
                f"as {feature_file.describe_row(row)}"
            )
    label_rows = rows.to_numpy(zero_copy_only=False)
    num_unmatched = len(label_ids) - len(np.unique(label_rows))
    return JoinedFiles(feature_file, label_file, feature_id, label_rows, num_unmatched)
