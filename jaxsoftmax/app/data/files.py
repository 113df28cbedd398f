"""Data sets from a user's own files: features and labels, joined, split and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data import arrays, tables
from jaxsoftmax.app.data.arrays import ArrayFile
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.row_blocks import FeatureReader, read_splits
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION, assign_splits
from jaxsoftmax.app.data.tables import TableFile, format_names
from jaxsoftmax.app.data.targets import encode, infer

SUFFIXES = (*tables.SUFFIXES, *arrays.SUFFIXES)


def is_file(source: str | Path) -> bool:
    """Return whether a data source names a file: by its suffix, or because the file exists."""
    path = Path(source)
    return path.suffix.lower() in SUFFIXES or path.is_file()


def load_file(
    path: str | Path,
    *,
    label: str | Sequence[str] = (),
    labels: str | Path | None = None,
    features: str | None = None,
    id: str | None = None,
    drop: Sequence[str] = (),
    task: Task | None = None,
    test: str | Path | None = None,
    validation_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    r"""Read a data set from a file and split it.

    A CSV (.csv, .tsv) or Parquet file has a column for each feature, or one column of lists of
    numbers, and label columns. In an .npz file features and labels are arrays; the labels of an
    .npy file are in a second file. Features become float32, so that integers beyond 2^24 lose
    digits. Bytes of rank 3 or more are images and are divided by 255.

    The task is inferred from the labels (`targets.infer`). The split of classes is stratified
    (`splits.assign_splits`); the split of labels or numbers is random.

    Args:
        path: the file with the features.
        label: the label columns, or the array of labels. The default for .npz is the only array
            named labels, label, targets or y; for a table with `labels`, it is the only column
            there beside the ids.
        labels: a second file with the labels. Two tables are joined by `id`; two files of arrays
            have their rows in the same order.
        features: the array of features in .npz; by default the only one of rank 2 or more.
        id: the column that identifies the examples, which is not a feature. Upper and lower case
            are alike.
        drop: columns to leave out.
        task: the task, if it is not to be inferred.
        test: a file of the same kind that is the test split.
        validation_share: the share of the examples for validation.
        test_share: the share of the examples for testing; ignored where `test` is given.
        seed: the seed of the split.
        progress: called with the number of rows read and the total number.

    Returns:
        A `Dataset`; the rows of a split are in the order of the file.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if its content cannot be used; names the file, the row and the column.

    Example:
        >>> import tempfile
        >>> from jaxsoftmax.app import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/flowers.csv"
        ...     with open(path, "w") as file:
        ...         _ = file.write("petal,kind\n" + "1.5,iris\n" * 10 + "4,rose\n" * 10)
        ...     flowers = data.load_file(path, label="kind")
        >>> flowers.schema.classes, [len(s.ids) for s in (flowers.train, flowers.test)]
        (('iris', 'rose'), [14, 3])
    """
    files = _open_files(path, labels, id)
    label_names = _find_label_names(files, [label] if isinstance(label, str) else label)
    columns = files.read_labels(label_names)
    reader = _open_features(files, label_names, drop, features)
    _check_num_examples(files, reader, at_least=2 if test else 3)
    targets = infer(columns, files.describe_row, task)
    _check_num_labels(files, targets.values, reader)
    schema = Schema(
        task=targets.task,
        classes=targets.classes,
        shape=reader.shape,
        columns=reader.columns,
        divisor=reader.divisor,
        target=tuple(label_names),
        identifier=files.identifier,
    )
    assignment = assign_splits(
        targets.values if targets.task is Task.classes else np.zeros(reader.num_rows, int),
        validation_share=validation_share,
        test_share=0 if test else test_share,
        seed=seed,
    )
    splits = _read_splits(files, reader, targets.values, assignment, progress)
    if test is not None:
        splits[TEST] = read_file(test, schema, targets=True, labels=labels, progress=progress)
    return Dataset(
        name=Path(path).stem,
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        test=splits[TEST],
        schema=schema,
        source=files.description + (f", test examples of {test}" if test else ""),
    )


def read_file(
    path: str | Path,
    schema: Schema,
    *,
    targets: bool,
    labels: str | Path | None = None,
    progress: Progress | None = None,
) -> Split:
    """Read all examples of a file for a fitted model, in the order of the file.

    Columns are found by name, in any order, and others are ignored. Where the features of the file
    or of the model have no names, they are taken in order and must agree in number. Integers are
    divided as the training data were.

    Args:
        path: the file with the features.
        schema: the schema of the model.
        targets: whether to read labels too; if not, the targets have length 0.
        labels: a second file with the labels, as in `load_file`.
        progress: called with the number of rows read and the total number.

    Returns:
        A `Split`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if features are missing or differ in number, or if a label is not one of the
            model's; names the file, the row and the column.
    """
    files = _open_files(path, labels if targets else None, schema.identifier, require_id=False)
    reader = _open_model_features(files, schema)
    values = np.empty(0, np.int32)
    if targets:
        columns = files.read_labels(_find_model_label_names(files, schema))
        values = encode(columns, files.describe_row, schema.task, schema.classes)
        _check_num_labels(files, values, reader)
    (features,) = read_splits(reader, np.zeros(reader.num_rows, np.int8), 1, progress)
    return Split(features, values, files.read_ids(reader.num_rows), files.identifier)


class _Files(NamedTuple):
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

    def read_labels(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read columns of labels in the order of the features."""
        for name in names:
            if name not in self.label_file.names:
                raise ValueError(
                    f"{self.label_file.path} has no {name!r}, which should be the label; "
                    f"it has {format_names(self.label_file.names)}"
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


def _open(path: Path, identifier: str | None) -> TableFile | ArrayFile:
    suffix = path.suffix.lower()
    if suffix in tables.SUFFIXES:
        return TableFile(path, identifier)
    if suffix in arrays.SUFFIXES:
        return ArrayFile(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")


def _open_files(
    path: str | Path, labels: str | Path | None, identifier: str | None, *, require_id: bool = True
) -> _Files:
    feature_file = _open(Path(path), identifier)
    feature_id = _find_identifier(feature_file, identifier, required=require_id)
    if labels is None:
        return _Files(feature_file, feature_file, feature_id)
    label_file = _open(Path(labels), identifier)
    if not (isinstance(feature_file, TableFile) and isinstance(label_file, TableFile)):
        return _Files(feature_file, label_file, feature_id)
    if identifier is None:
        remedy = "name" if require_id else "to evaluate them, fit with the name of"
        raise ValueError(
            f"{path} and {labels}: {remedy} the column that joins them (id); the first has "
            f"{format_names(feature_file.names)}, the second {format_names(label_file.names)}"
        )
    label_id = _find_identifier(label_file, identifier)
    feature_id = _find_identifier(feature_file, identifier)
    assert feature_id is not None
    assert label_id is not None
    return _join(feature_file, feature_id, label_file, label_id)


def _find_identifier(
    file: TableFile | ArrayFile, name: str | None, *, required: bool = True
) -> str | None:
    found = None if name is None else file.find(name)
    if name is not None and found is None and required:
        raise ValueError(
            f"{file.path} has no {name!r}, which should be the id; "
            f"it has {format_names(file.names)}"
        )
    return found


def _read_id_column(file: TableFile | ArrayFile, name: str) -> pa.Array:
    """Read a column of ids as large text or int64."""
    columns = file.read_columns([name])
    if len(columns) != 1:
        raise ValueError(f"{file.path}: ids must be [N], got {len(columns)} columns of {name!r}")
    (column,) = columns.values()
    column = column.cast(pa.int64() if types.is_integer(column.type) else pa.large_string())
    is_text = types.is_large_string(column.type)
    is_missing = pc.fill_null(pc.equal(column, ""), True) if is_text else column.is_null()
    row = is_missing.index(True).as_py()
    if row >= 0:
        raise ValueError(f"{file.describe_row(row)}, column {name!r}: the id is missing")
    return column


def _join(feature_file: TableFile, feature_id: str, label_file: TableFile, label_id: str) -> _Files:
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
    return _Files(feature_file, label_file, feature_id, label_rows, num_unmatched)


def _read_splits(
    files: _Files,
    reader: FeatureReader,
    targets: np.ndarray,
    assignment: np.ndarray,
    progress: Progress | None,
) -> list[Split]:
    ids = files.read_ids(reader.num_rows)
    return [
        Split(features, targets[assignment == split], ids[assignment == split], files.identifier)
        for split, features in enumerate(read_splits(reader, assignment, 3, progress))
    ]


# The roles of columns and arrays


def _find_label_names(files: _Files, label: Sequence[str]) -> list[str]:
    """Return the given names, or the only possible ones."""
    if label:
        return list(label)
    if isinstance(files.label_file, ArrayFile):
        if files.is_single and files.feature_file.path.suffix.lower() == ".npy":
            raise ValueError(f"{files.feature_file.path}: name the file of its labels (labels)")
        return [files.label_file.find_label()]
    names = files.label_file.names
    if not files.is_single:
        identifier = (files.identifier or "").casefold()
        others = [name for name in names if name.casefold() != identifier]
        if len(others) == 1:
            return others
    raise ValueError(
        f"{files.label_file.path}: name the label column (label) of {format_names(names)}"
    )


def _find_model_label_names(files: _Files, schema: Schema) -> Sequence[str]:
    file = files.label_file
    if isinstance(file, ArrayFile) and not set(schema.target) <= set(file.names):
        return [file.find_label()]
    if not schema.target:
        raise ValueError(f"{file.path}: the model has no label column")
    return schema.target


def _open_features(
    files: _Files, label_names: Sequence[str], drop: Sequence[str], features: str | None
) -> FeatureReader:
    """Return a reader of all columns that have no other role."""
    file = files.feature_file
    for name in drop:
        if name not in file.names:
            raise ValueError(
                f"{file.path} has no {name!r} to drop; it has {format_names(file.names)}"
            )
    exclude = [*drop, *_find_other_roles(files, label_names)]
    if isinstance(file, ArrayFile):
        if features in exclude:
            raise ValueError(f"{file.path}: {features!r} cannot be features as well")
        return file.open_features(features, exclude=exclude)
    if features is not None:
        raise ValueError(f"features names an array of .npz; {file.path} has columns")
    return file.open_features(exclude=exclude)


def _find_other_roles(files: _Files, label_names: Sequence[str]) -> list[str]:
    """Return the names in the file of features that are the identifier or a label.

    A separate table of labels may call its label `Class` where the table of features, which has it
    too, calls it `class`. Arrays in a separate file may have the names of the features.
    """
    found = [] if files.identifier is None else [files.identifier]
    if files.is_single:
        return [*found, *label_names]
    if isinstance(files.feature_file, ArrayFile):
        return found
    folded = {name.casefold() for name in label_names}
    return [*found, *(name for name in files.feature_file.names if name.casefold() in folded)]


def _open_model_features(files: _Files, schema: Schema) -> FeatureReader:
    """Return a reader of the features of a model's schema."""
    file = files.feature_file
    exclude = _find_other_roles(files, schema.target)
    if isinstance(file, ArrayFile):
        if len(file.names) == 1:
            exclude = []
        reader = file.open_features(
            exclude=exclude, width=schema.num_features, divisor=schema.divisor
        )
    elif schema.columns is None:
        reader = file.open_features(exclude=exclude, divisor=schema.divisor)
    else:
        reader = file.open_features(only=schema.columns, divisor=schema.divisor)
    if reader.width != schema.num_features:
        raise ValueError(
            f"{file.path}: expected {schema.num_features} features, got {reader.width}"
        )
    return reader


def _check_num_examples(files: _Files, reader: FeatureReader, *, at_least: int) -> None:
    if reader.num_rows < at_least:
        raise ValueError(
            f"{files.feature_file.path}: expected at least {at_least} examples, "
            f"got {reader.num_rows}"
        )


def _check_num_labels(files: _Files, values: np.ndarray, reader: FeatureReader) -> None:
    if len(values) != reader.num_rows:
        raise ValueError(
            f"{files.label_file.path}: expected {reader.num_rows} labels, one for each row of "
            f"{files.feature_file.path}, got {len(values)}"
        )
