"""Data sets from a user's own files: features and labels, joined, split and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data import arrays, tables, text_files
from jaxsoftmax.app.data.arrays import ArrayFile
from jaxsoftmax.app.data.column_learning import (
    DEFAULT,
    ColumnOptions,
    ColumnSummary,
    describe,
    learn_table,
)
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.dialects import DETECT, Dialect
from jaxsoftmax.app.data.row_blocks import FeatureReader, read_splits
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION, assign_splits
from jaxsoftmax.app.data.table_schema import TableSchema
from jaxsoftmax.app.data.tables import TableFile, format_names, suggest
from jaxsoftmax.app.data.targets import check_labeled, describe_guess, encode, find_unlabeled, infer

SUFFIXES = (*tables.SUFFIXES, *arrays.SUFFIXES)


def is_file(source: str | Path) -> bool:
    """Return whether a data source names a file: by its suffix, or because the file exists.

    `-` is standard input, and a named pipe is read as text.
    """
    path = Path(source)
    return tables.is_table(path) or path.suffix.lower() in arrays.SUFFIXES or path.is_file()


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
    files = _open_files(path, labels, id, dialect)
    label_names = _find_label_names(files, [label] if isinstance(label, str) else label)
    _check_roles(files, label_names, drop, options)
    columns = files.read_labels(label_names)
    num_labels = len(next(iter(columns.values())))
    arrays_reader = _open_arrays(files, label_names, drop, features)
    file = arrays_reader or files.feature_file
    assert isinstance(file, FeatureReader | TableFile)
    _check_num_labels(files, num_labels, file.num_rows)
    is_missing = find_unlabeled(columns, options.missing)
    rows = np.flatnonzero(~is_missing) if skip_unlabeled else np.arange(num_labels)
    if is_missing.any() and not skip_unlabeled:
        check_labeled(columns, files.describe_row, options.missing)
    columns = {name: column.take(pa.array(rows)) for name, column in columns.items()}
    _check_num_examples(files, len(rows), at_least=2 if test else 3)
    targets = infer(columns, lambda row: files.describe_row(_select(rows, row)), task)
    split_of_rows = assign_splits(
        targets.values if targets.task is Task.classes else np.zeros(len(rows), int),
        validation_share=validation_share,
        test_share=0 if test else test_share,
        seed=seed,
    )
    assignment = np.full(num_labels, -1, np.int8)
    assignment[rows] = split_of_rows
    if arrays_reader is None:
        opened = _learn_features(files, label_names, drop, assignment == TRAIN, options)
    else:
        opened = _Features(arrays_reader)
    reader = opened.reader
    schema = Schema(
        task=targets.task,
        classes=targets.classes,
        shape=reader.shape,
        columns=reader.columns,
        divisor=reader.divisor,
        target=tuple(label_names),
        identifier=files.identifier,
        table=opened.table,
    )
    values = np.zeros((num_labels, *targets.values.shape[1:]), targets.values.dtype)
    values[rows] = targets.values
    splits = _read_splits(files, reader, values, assignment, progress)
    if test is not None:
        splits[TEST] = read_file(
            test, schema, targets=True, labels=labels, dialect=dialect, progress=progress
        )
    notes = [*files.notes, *describe_guess(columns, targets, is_given=task is not None)]
    if len(rows) < num_labels:
        notes.append(f"left out {num_labels - len(rows):,} rows without a label")
    return Dataset(
        name=_name_dataset(Path(path)),
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        test=splits[TEST],
        schema=schema,
        source=files.description + (f", test examples of {test}" if test else ""),
        columns=opened.summaries,
        notes=(*notes, *describe(opened.summaries)),
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
    files = _open_files(
        path, labels if targets else None, schema.identifier, dialect, names, require_id=False
    )
    reader = _open_model_features(files, schema)
    values = np.empty(0, np.int32)
    if targets:
        columns = files.read_labels(_find_model_label_names(files, schema))
        values = encode(columns, files.describe_row, schema.task, schema.classes)
        _check_num_labels(files, len(values), reader.num_rows)
    (features,) = read_splits(reader, np.zeros(reader.num_rows, np.int8), 1, progress)
    return Split(features, values, files.read_ids(reader.num_rows), files.identifier)


def _name_dataset(path: Path) -> str:
    if str(path) == text_files.STDIN:
        return "stdin"
    return path.with_suffix("").stem if path.suffix.lower() == ".gz" else path.stem


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

    @property
    def notes(self) -> list[str]:
        """What was detected about files of text."""
        files = {id(file): file for file in (self.feature_file, self.label_file)}.values()
        return [note for file in files if isinstance(file, TableFile) for note in file.notes]

    def read_labels(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read columns of labels in the order of the features."""
        for name in names:
            if name not in self.label_file.names:
                raise ValueError(
                    f"{self.label_file.path} has no {name!r}, which should be the label; "
                    f"it has {format_names(self.label_file.names)}"
                    + suggest(name, self.label_file.names)
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
    if tables.is_table(path):
        return TableFile(path, dialect, names)
    if path.suffix.lower() in arrays.SUFFIXES:
        return ArrayFile(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")


def _open_files(
    path: str | Path,
    labels: str | Path | None,
    identifier: str | None,
    dialect: Dialect,
    names: Sequence[str] = (),
    *,
    require_id: bool = True,
) -> _Files:
    feature_file = _open(Path(path), dialect, names)
    feature_id = _find_identifier(feature_file, identifier, required=require_id)
    if labels is None:
        return _Files(feature_file, feature_file, feature_id)
    label_file = _open(Path(labels), dialect, () if identifier is None else (identifier,))
    if not (isinstance(feature_file, TableFile) and isinstance(label_file, TableFile)):
        return _Files(feature_file, label_file, feature_id)
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


def _names_of_model(schema: Schema) -> tuple[str, ...]:
    """Return the columns that a file for a model has, by which its header is recognized."""
    return () if schema.table is None else tuple(column.name for column in schema.table.columns)


def _find_identifier(
    file: TableFile | ArrayFile, name: str | None, *, required: bool = True
) -> str | None:
    found = None if name is None else file.find(name)
    if name is not None and found is None and required:
        raise ValueError(
            f"{file.path} has no {name!r}, which should be the id; "
            f"it has {format_names(file.names)}" + suggest(name, file.names)
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


def _select(rows: np.ndarray, row: int | None) -> int | None:
    return None if row is None else int(rows[row])


def _find_label_names(files: _Files, label: Sequence[str]) -> list[str]:
    """Return the given names, or the only possible ones."""
    if label:
        return list(label)
    if isinstance(files.label_file, ArrayFile):
        if files.is_single and files.feature_file.path.suffix.lower() == ".npy":
            raise ValueError(f"{files.feature_file.path}: name the file of its labels (--labels)")
        return [files.label_file.find_label()]
    names = files.label_file.names
    if not files.is_single:
        identifier = (files.identifier or "").casefold()
        others = [name for name in names if name.casefold() != identifier]
        if len(others) == 1:
            return others
    raise ValueError(
        f"{files.label_file.path}: name the label column (--label) of {format_names(names)}"
    )


def _check_roles(
    files: _Files, label_names: Sequence[str], drop: Sequence[str], options: ColumnOptions
) -> None:
    """Check that columns exist, and that none is named twice or for two things at once."""
    file = files.feature_file
    named = {
        "label": label_names,
        "drop": drop,
        "category": options.categories,
        "text": options.texts,
        "keep": options.keep,
    }
    for flag, names in named.items():
        repeated = [name for i, name in enumerate(names) if name in names[:i]]
        if repeated:
            raise ValueError(f"--{flag} {repeated[0]} is given twice")
        unknown = [name for name in names if flag != "label" and name not in file.names]
        if unknown:
            purpose = {"drop": " to drop", "keep": " to keep"}.get(flag, f" (--{flag})")
            raise ValueError(
                f"{file.path} has no {', '.join(map(repr, unknown))}{purpose}; "
                f"it has {format_names(file.names)}" + suggest(unknown[0], file.names)
            )
        both = [name for name in names if name == files.identifier]
        if both:
            raise ValueError(f"--{flag} {both[0]} and --id {both[0]} contradict each other")
    for flag in ("drop", "category", "text", "keep") if files.is_single else ():
        both = [name for name in named[flag] if name in label_names]
        if both:
            raise ValueError(f"--{flag} {both[0]} and --label {both[0]} contradict each other")


def _find_model_label_names(files: _Files, schema: Schema) -> Sequence[str]:
    file = files.label_file
    if isinstance(file, ArrayFile) and not set(schema.target) <= set(file.names):
        return [file.find_label()]
    if not schema.target:
        raise ValueError(f"{file.path}: the model has no label column")
    return schema.target


class _Features(NamedTuple):
    """A reader of features, and for a table what its columns become."""

    reader: FeatureReader
    table: TableSchema | None = None
    summaries: tuple[ColumnSummary, ...] = ()


def _open_arrays(
    files: _Files, label_names: Sequence[str], drop: Sequence[str], features: str | None
) -> FeatureReader | None:
    """Open the array of features, or return None for a table."""
    file = files.feature_file
    exclude = [*drop, *_find_other_roles(files, label_names)]
    if isinstance(file, ArrayFile):
        if features in exclude:
            raise ValueError(f"{file.path}: {features!r} cannot be features as well")
        return file.open_features(features, exclude=exclude)
    if features is not None:
        raise ValueError(f"--features names an array of .npz; {file.path} has columns")
    return None


def _learn_features(
    files: _Files,
    label_names: Sequence[str],
    drop: Sequence[str],
    is_train: np.ndarray,
    options: ColumnOptions,
) -> _Features:
    """Learn what all columns of a table that have no other role become, and open them."""
    file = files.feature_file
    assert isinstance(file, TableFile)
    exclude = {*drop, *_find_other_roles(files, label_names)}
    names = [name for name in file.names if name not in exclude]
    learned = learn_table(file, names, is_train, options)
    return _Features(file.open_features(learned.schema), learned.schema, learned.summaries)


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
    else:
        reader = file.open_features(
            schema.table or file.strict_schema(exclude), divisor=schema.divisor
        )
    if reader.width != schema.num_features:
        raise ValueError(
            f"{file.path}: expected {schema.num_features} features, got {reader.width}"
        )
    return reader


def _check_num_examples(files: _Files, num_rows: int, *, at_least: int) -> None:
    if num_rows < at_least:
        raise ValueError(
            f"{files.feature_file.path}: expected at least {at_least} examples, got {num_rows}"
        )


def _check_num_labels(files: _Files, num_labels: int, num_rows: int) -> None:
    if num_labels != num_rows:
        raise ValueError(
            f"{files.label_file.path}: expected {num_rows} labels, one for each row of "
            f"{files.feature_file.path}, got {num_labels}"
        )
