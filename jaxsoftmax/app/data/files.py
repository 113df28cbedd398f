"""Data sets from a user's own files: features and labels, joined, split and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxsoftmax.app.data import roles
from jaxsoftmax.app.data.arrays import ArrayFile
from jaxsoftmax.app.data.column_learning import DEFAULT, ColumnOptions, learn_table
from jaxsoftmax.app.data.column_summaries import ColumnSummary, describe
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.dialects import DETECT, Dialect
from jaxsoftmax.app.data.joined_files import JoinedFiles, open_files
from jaxsoftmax.app.data.row_blocks import FeatureReader, read_splits
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION, assign_splits
from jaxsoftmax.app.data.table_schema import TableSchema
from jaxsoftmax.app.data.tables import TableFile
from jaxsoftmax.app.data.targets import (
    Targets,
    check_labeled,
    describe_guess,
    encode,
    find_unlabeled,
    infer,
)
from jaxsoftmax.app.file_formats import STDIN


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
    skip_unlabeled: bool = False,
    dialect: Dialect = DETECT,
    options: ColumnOptions = DEFAULT,
    validation_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    r"""Read a data set from a file and split it.

    A file of text (.csv, .tsv, .txt, .data, packed or not) or Parquet has columns of features and
    of labels. The columns of features become numbers (`column_learning`). In an .npz file features
    and labels are arrays; the labels of an .npy file are in a second file. Features become float32,
    so that integers beyond 2^24 lose digits. Bytes of rank 3 or more are images and are divided by
    255.

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
        skip_unlabeled: whether to leave out rows without a label, which are an error otherwise.
        dialect: what is known of the dialect of files of text.
        options: what is known of the columns of a table.
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
    files = open_files(path, labels, id, dialect)
    label_names = roles.find_label_names(files, [label] if isinstance(label, str) else label)
    roles.check(files, label_names, drop, options)
    array = _open_array(files, label_names, drop, features)
    labeled = _read_labels(files, label_names, array, skip_unlabeled, options.missing)
    _check_num_examples(files, len(labeled.rows), at_least=2 if test else 3)
    targets = infer(labeled.columns, labeled.describe_row, task)
    split_of_rows = assign_splits(
        targets.values if targets.task is Task.classes else np.zeros(len(labeled.rows), int),
        validation_share=validation_share,
        test_share=0 if test else test_share,
        seed=seed,
    )
    assignment = labeled.spread(split_of_rows, fill=-1)
    if array is None:
        opened = _learn_features(files, label_names, drop, assignment == TRAIN, options)
    else:
        opened = _Features(array)
    schema = _make_schema(files, targets, opened, label_names)
    splits = _read_splits(
        files, opened.reader, labeled.spread(targets.values), assignment, progress
    )
    if test is not None:
        splits[TEST] = read_file(
            test, schema, targets=True, labels=labels, dialect=dialect, progress=progress
        )
    guess = describe_guess(labeled.columns, targets, is_given=task is not None)
    return Dataset(
        name=_name_dataset(Path(path)),
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        test=splits[TEST],
        schema=schema,
        source=files.description + (f", test examples of {test}" if test else ""),
        columns=opened.summaries,
        notes=(*files.notes, *guess, *labeled.notes, *describe(opened.summaries)),
    )


def read_file(
    path: str | Path,
    schema: Schema,
    *,
    targets: bool,
    labels: str | Path | None = None,
    dialect: Dialect = DETECT,
    progress: Progress | None = None,
) -> Split:
    """Read all examples of a file for a fitted model, in the order of the file.

    Columns are found by name, in any order, and others are ignored. What they hold is what the
    schema says, in whatever types and dialect the file has them. Where the features of the file
    or of the model have no names, they are taken in order and must agree in number. Integers are
    divided as the training data were.

    Args:
        path: the file with the features.
        schema: the schema of the model.
        targets: whether to read labels too; if not, the targets have length 0.
        labels: a second file with the labels, as in `load_file`.
        dialect: what is known of the dialect of files of text.
        progress: called with the number of rows read and the total number.

    Returns:
        A `Split`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if features are missing or differ in number, or if a label is not one of the
            model's; names the file, the row and the column.
    """
    names = _names_of_model(schema)
    if schema.table is not None and not schema.table.has_header and dialect.has_header is None:
        dialect = dialect._replace(has_header=False)  # a row of numbers may look like its names
    files = open_files(
        path, labels if targets else None, schema.identifier, dialect, names, require_id=False
    )
    reader = _open_model_features(files, schema)
    values = np.empty(0, np.int32)
    if targets:
        columns = files.read_labels(roles.find_model_label_names(files, schema))
        values = encode(columns, files.describe_row, schema.task, schema.classes)
        _check_num_labels(files, len(values), reader.num_rows)
    (features,) = read_splits(reader, np.zeros(reader.num_rows, np.int8), 1, progress)
    notes: list[str] = []
    if schema.table is not None and isinstance(files.feature_file, TableFile):
        notes = files.feature_file.describe_unseen(schema.table)
    ids = files.read_ids(reader.num_rows)
    return Split(features, values, ids, files.identifier, notes=tuple(notes))


def _name_dataset(path: Path) -> str:
    if str(path) == STDIN:
        return "stdin"
    return path.with_suffix("").stem if path.suffix.lower() == ".gz" else path.stem


def _names_of_model(schema: Schema) -> tuple[str, ...]:
    """Return the columns that a file for a model has, by which its header is recognized."""
    return () if schema.table is None else tuple(column.name for column in schema.table.columns)


def _read_splits(
    files: JoinedFiles,
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


class _Labels(NamedTuple):
    """The columns of labels, of the rows that have one.

    rows: the numbers of these rows, of num_rows in all.
    """

    files: JoinedFiles
    columns: dict[str, pa.Array]
    rows: np.ndarray
    num_rows: int

    @property
    def notes(self) -> list[str]:
        """A line about the rows that are left out, if there are any."""
        num_others = self.num_rows - len(self.rows)
        return [f"left out {num_others:,} rows without a label"] if num_others else []

    def describe_row(self, row: int | None) -> str:
        """Describe one of the rows that have a label; their file where row is None."""
        return self.files.describe_row(None if row is None else int(self.rows[row]))

    def spread(self, values: np.ndarray, *, fill: int = 0) -> np.ndarray:
        """Return values for all rows, of which those without a label have `fill`."""
        result = np.full((self.num_rows, *values.shape[1:]), fill, values.dtype)
        result[self.rows] = values
        return result


def _read_labels(
    files: JoinedFiles,
    names: Sequence[str],
    array: FeatureReader | None,
    skip_unlabeled: bool,
    missing: Sequence[str],
) -> _Labels:
    """Read the labels, and leave out the rows without one or refuse them."""
    columns = files.read_labels(names)
    num_rows = len(next(iter(columns.values())))
    features = array or files.feature_file
    assert isinstance(features, FeatureReader | TableFile)
    _check_num_labels(files, num_rows, features.num_rows)
    if not skip_unlabeled:
        check_labeled(columns, files.describe_row, missing)
        return _Labels(files, columns, np.arange(num_rows), num_rows)
    rows = np.flatnonzero(~find_unlabeled(columns, missing))
    columns = {name: column.take(pa.array(rows)) for name, column in columns.items()}
    return _Labels(files, columns, rows, num_rows)


def _make_schema(
    files: JoinedFiles, targets: Targets, opened: "_Features", label_names: Sequence[str]
) -> Schema:
    return Schema(
        task=targets.task,
        classes=targets.classes,
        shape=opened.reader.shape,
        columns=opened.reader.columns,
        divisor=opened.reader.divisor,
        target=tuple(label_names),
        identifier=files.identifier,
        table=opened.table,
    )


class _Features(NamedTuple):
    """A reader of features, and for a table what its columns become."""

    reader: FeatureReader
    table: TableSchema | None = None
    summaries: tuple[ColumnSummary, ...] = ()


def _open_array(
    files: JoinedFiles, label_names: Sequence[str], drop: Sequence[str], features: str | None
) -> FeatureReader | None:
    """Open the array of features, or return None for a table."""
    file = files.feature_file
    exclude = [*drop, *roles.find_others(files, label_names)]
    if isinstance(file, ArrayFile):
        if features in exclude:
            raise ValueError(f"{file.path}: {features!r} cannot be features as well")
        return file.open_features(features, exclude=exclude)
    if features is not None:
        raise ValueError(f"--features names an array of .npz; {file.path} has columns")
    return None


def _learn_features(
    files: JoinedFiles,
    label_names: Sequence[str],
    drop: Sequence[str],
    is_train: np.ndarray,
    options: ColumnOptions,
) -> _Features:
    """Learn what all columns of a table that have no other role become, and open them."""
    file = files.feature_file
    assert isinstance(file, TableFile)
    exclude = {*drop, *roles.find_others(files, label_names)}
    names = [name for name in file.names if name not in exclude]
    learned = learn_table(file, names, is_train, options)
    return _Features(file.open_features(learned.schema), learned.schema, learned.summaries)


def _open_model_features(files: JoinedFiles, schema: Schema) -> FeatureReader:
    """Return a reader of the features of a model's schema."""
    file = files.feature_file
    exclude = roles.find_others(files, schema.target)
    if isinstance(file, ArrayFile):
        if len(file.names) == 1:
            exclude = []
        reader = file.open_features(
            exclude=exclude, width=schema.num_features, divisor=schema.divisor
        )
    else:
        reader = file.open_features(
            schema.table or file.strict_schema(exclude), divisor=schema.divisor
        )
    if reader.width != schema.num_features:
        raise ValueError(
            f"{file.path}: expected {schema.num_features} features, got {reader.width}"
        )
    return reader


def _check_num_examples(files: JoinedFiles, num_rows: int, *, at_least: int) -> None:
    if num_rows < at_least:
        raise ValueError(
            f"{files.feature_file.path}: expected at least {at_least} examples, got {num_rows}"
        )


def _check_num_labels(files: JoinedFiles, num_labels: int, num_rows: int) -> None:
    if num_labels != num_rows:
        raise ValueError(
            f"{files.label_file.path}: expected {num_rows} labels, one for each row of "
            f"{files.feature_file.path}, got {num_labels}"
        )
