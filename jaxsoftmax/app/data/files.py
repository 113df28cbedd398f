"""A person's own files as data sets: features and labels, joined, split and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data import arrays, tables, targets
from jaxsoftmax.app.data.arrays import Arrays
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.row_blocks import Features, fill
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION, stratified
from jaxsoftmax.app.data.tables import Table, listed
from jaxsoftmax.app.data.targets import number

SUFFIXES = (*tables.SUFFIXES, *arrays.SUFFIXES)


def is_file(source: str | Path) -> bool:
    """Whether a source of data names a file: by its suffix, or because there is one."""
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

    CSV (.csv, .tsv) and Parquet have a column for each feature, or one of lists of numbers, and
    label columns. In .npz features and labels are arrays; of .npy the labels are another file.
    Features become float32: integers beyond 2^24 lose digits. Bytes of rank 3 and more are images
    and are divided by 255.

    The task follows from the labels (`targets.learn`). With classes the split is stratified
    (`splits.stratified`); with labels or numbers it is chance alone.

    Args:
        path: of the file with the features.
        label: the label columns, or the array of labels; by default, in .npz, the only one called
            labels, label, targets or y, and in a table `labels` the only one beside the ids.
        labels: a second file with the labels. Two tables are joined by `id`; arrays have their
            rows in one order.
        features: the array of features in .npz; by default the only one of rank 2 or more.
        id: the column that names the examples; it is no feature. Upper and lower case are alike.
        drop: columns to leave out.
        task: where the labels shall be taken otherwise.
        test: a file of the same kind that is the test split.
        validation_share: of the examples.
        test_share: of the examples; without effect where `test` is given.
        seed: of the split.
        progress: called with the numbers of rows read and to read.

    Returns:
        A `Dataset`; the rows of a split are in the order of the file.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if something in it cannot be used: names file, row and column.

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
    pair = _open_pair(path, labels, id)
    names = _label_names(pair, [label] if isinstance(label, str) else label)
    columns = pair.label_columns(names)
    plan = _plan(pair, names, drop, features)
    _check_least(pair, plan, 2 if test else 3)
    learned = targets.learn(columns, pair.where, task)
    _check_count(pair, learned.values, plan)

    strata = learned.values if learned.task is Task.classes else np.zeros(plan.num_rows, int)
    parts = stratified(
        strata,
        validation_share=validation_share,
        test_share=0 if test else test_share,
        seed=seed,
    )
    ids = pair.ids(plan.num_rows)
    splits = [
        Split(x, learned.values[parts == part], ids[parts == part], pair.identifier)
        for part, x in enumerate(fill(plan, parts, 3, progress))
    ]
    schema = Schema(
        task=learned.task,
        classes=learned.classes,
        shape=plan.shape,
        columns=plan.columns,
        divisor=plan.divisor,
        target=tuple(names),
        identifier=pair.identifier,
    )
    if test is not None:
        splits[TEST] = read_file(test, schema, targets=True, labels=labels, progress=progress)
    return Dataset(
        name=Path(path).stem,
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        test=splits[TEST],
        schema=schema,
        source=pair.described + (f", test examples of {test}" if test else ""),
    )


def read_file(
    path: str | Path,
    schema: Schema,
    *,
    targets: bool,
    labels: str | Path | None = None,
    progress: Progress | None = None,
) -> Split:
    """Read more of the data that a model was fitted to, whole and in the order of the file.

    Columns are found by name, wherever they stand; others are ignored. Features without names,
    on either side, are taken as they come and must be as many. Integers are divided as the
    training data were.

    Args:
        path: of the file with the features.
        schema: of the model.
        targets: whether to read labels too; if not, the targets have length 0.
        labels: a second file with the labels, as in `load_file`.
        progress: called with the numbers of rows read and to read.

    Returns:
        A `Split`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if features are missing or of another number, or a label is none of the
            model's: names file, row and column.
    """
    pair = _open_pair(path, labels if targets else None, schema.identifier, needed=False)
    plan = _plan_for(pair, schema)
    values = np.empty(0, np.int32)
    if targets:
        columns = pair.label_columns(_known_label_names(pair, schema))
        values = number(columns, pair.where, schema.task, schema.classes)
        _check_count(pair, values, plan)
    (x,) = fill(plan, np.zeros(plan.num_rows, np.int8), 1, progress)
    return Split(x, values, pair.ids(plan.num_rows), pair.identifier)


class _Pair(NamedTuple):
    """A file with features and the one with labels, which may be the same.

    rows: for each row of features the row of its labels, or None where both are in one order.
    """

    source: Table | Arrays
    origin: Table | Arrays
    identifier: str | None
    rows: np.ndarray | None = None
    left_out: int = 0

    @property
    def described(self) -> str:
        """Where the data come from, in a line."""
        text = str(self.source.path)
        if self.origin is not self.source:
            text += f", labels of {self.origin.path}"
        if self.left_out:
            text += f" without the {self.left_out} rows that match no example"
        return text

    def label_columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read columns of labels in the order of the features."""
        for name in names:
            if name not in self.origin.names:
                raise ValueError(
                    f"{self.origin.path} has no {name!r}, which is to be the label; "
                    f"it has {listed(self.origin.names)}"
                )
        columns = self.origin.columns(names)
        if self.rows is None:
            return columns
        return {name: column.take(pa.array(self.rows)) for name, column in columns.items()}

    def where(self, row: int | None) -> str:
        """Name a row of labels by that of its features, or their file."""
        if row is None:
            return str(self.origin.path)
        return self.origin.where(row if self.rows is None else int(self.rows[row]))

    def ids(self, count: int) -> np.ndarray:
        """Return what names the examples: the identifier's values, or numbers from 1."""
        if self.identifier is None:
            return np.arange(1, count + 1)
        found = _identifiers(self.source, self.identifier).to_numpy(zero_copy_only=False)
        if len(found) != count:
            raise ValueError(f"{self.source.path}: expected {count} ids, got {len(found)}")
        return found


def _open(path: Path, identifier: str | None) -> Table | Arrays:
    suffix = path.suffix.lower()
    if suffix in tables.SUFFIXES:
        return Table(path, identifier)
    if suffix in arrays.SUFFIXES:
        return Arrays(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")


def _open_pair(
    path: str | Path, labels: str | Path | None, identifier: str | None, *, needed: bool = True
) -> _Pair:
    source = _open(Path(path), identifier)
    mine = _find_identifier(source, identifier, needed=needed)
    if labels is None:
        return _Pair(source, source, mine)
    origin = _open(Path(labels), identifier)
    if not (isinstance(source, Table) and isinstance(origin, Table)):
        return _Pair(source, origin, mine)
    if identifier is None:
        how = "name" if needed else "to evaluate them, fit with the name of"
        raise ValueError(
            f"{path} and {labels}: {how} the column that joins them (id); the first has "
            f"{listed(source.names)}, the second {listed(origin.names)}"
        )
    theirs = _find_identifier(origin, identifier)
    mine = _find_identifier(source, identifier)
    assert mine is not None
    assert theirs is not None
    return _joined(source, mine, origin, theirs)


def _find_identifier(
    source: Table | Arrays, name: str | None, *, needed: bool = True
) -> str | None:
    found = None if name is None else source.find(name)
    if name is not None and found is None and needed:
        raise ValueError(
            f"{source.path} has no {name!r}, which is to be the id; it has {listed(source.names)}"
        )
    return found


def _identifiers(source: Table | Arrays, name: str) -> pa.Array:
    """Read a column of ids as large text or int64."""
    columns = source.columns([name])
    if len(columns) != 1:
        raise ValueError(f"{source.path}: ids must be [N], got {len(columns)} columns of {name!r}")
    (column,) = columns.values()
    column = column.cast(pa.int64() if types.is_integer(column.type) else pa.large_string())
    is_text = types.is_large_string(column.type)
    absent = pc.fill_null(pc.equal(column, ""), True) if is_text else column.is_null()
    row = absent.index(True).as_py()
    if row >= 0:
        raise ValueError(f"{source.where(row)}, column {name!r}: the id is missing")
    return column


def _joined(source: Table, mine: str, origin: Table, theirs: str) -> _Pair:
    """Find the one row of labels that each row of features has."""
    left, right = _identifiers(source, mine), _identifiers(origin, theirs)
    if left.type != right.type:
        left, right = left.cast(pa.large_string()), right.cast(pa.large_string())
    counted = right.value_counts()
    twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    rows = pc.index_in(left, value_set=right)
    for problem, bad in (("no row", rows.is_null()), ("several rows", pc.is_in(left, twice))):
        row = bad.index(True).as_py()
        if row >= 0:
            raise ValueError(
                f"{origin.path} has {problem} with {theirs} {left[row].as_py()!r}, "
                f"as {source.where(row)}"
            )
    used = rows.to_numpy(zero_copy_only=False)
    return _Pair(source, origin, mine, used, left_out=len(right) - len(np.unique(used)))


# Which columns or arrays are what.


def _label_names(pair: _Pair, label: Sequence[str]) -> list[str]:
    """Return the names that are given, or the only ones that there can be."""
    if label:
        return list(label)
    if isinstance(pair.origin, Arrays):
        if pair.origin is pair.source and pair.source.path.suffix.lower() == ".npy":
            raise ValueError(f"{pair.source.path}: name the file of its labels (labels)")
        return [pair.origin.label()]
    names = pair.origin.names
    if pair.origin is not pair.source:
        mine = (pair.identifier or "").casefold()
        others = [name for name in names if name.casefold() != mine]
        if len(others) == 1:
            return others
    raise ValueError(f"{pair.origin.path}: name the label column (label) of {listed(names)}")


def _known_label_names(pair: _Pair, schema: Schema) -> Sequence[str]:
    if isinstance(pair.origin, Arrays) and not set(schema.target) <= set(pair.origin.names):
        return [pair.origin.label()]
    if not schema.target:
        raise ValueError(f"{pair.origin.path}: the model knows no label column")
    return schema.target


def _plan(pair: _Pair, names: Sequence[str], drop: Sequence[str], features: str | None) -> Features:
    """Take for features all that is nothing else."""
    source = pair.source
    for name in drop:
        if name not in source.names:
            raise ValueError(
                f"{source.path} has no {name!r} to drop; it has {listed(source.names)}"
            )
    without = [*drop, *_no_features(pair, names)]
    if isinstance(source, Arrays):
        if features in without:
            raise ValueError(f"{source.path}: {features!r} cannot be features as well")
        return source.features(features, without=without)
    if features is not None:
        raise ValueError(f"features names an array of .npz; {source.path} has columns")
    return source.features(without=without)


def _no_features(pair: _Pair, labels: Sequence[str]) -> list[str]:
    """The names in the first file that are the id's or a label's.

    Another table may call its label `Class` that the first, which has it too, calls `class`. Arrays
    of another file may have the names of the features.
    """
    found = [] if pair.identifier is None else [pair.identifier]
    if pair.origin is pair.source:
        return [*found, *labels]
    if isinstance(pair.source, Arrays):
        return found
    alike = {name.casefold() for name in labels}
    return [*found, *(name for name in pair.source.names if name.casefold() in alike)]


def _plan_for(pair: _Pair, schema: Schema) -> Features:
    """Take for features those of the schema."""
    source = pair.source
    without = _no_features(pair, schema.target)
    if isinstance(source, Arrays):
        if len(source.names) == 1:
            without = []
        plan = source.features(without=without, width=schema.num_features, divisor=schema.divisor)
    elif schema.columns is None:
        plan = source.features(without=without, divisor=schema.divisor)
    else:
        plan = source.features(only=schema.columns, divisor=schema.divisor)
    if plan.width != schema.num_features:
        raise ValueError(
            f"{source.path}: expected {schema.num_features} features, got {plan.width}"
        )
    return plan


def _check_least(pair: _Pair, plan: Features, least: int) -> None:
    if plan.num_rows < least:
        raise ValueError(
            f"{pair.source.path}: expected at least {least} examples, got {plan.num_rows}"
        )


def _check_count(pair: _Pair, values: np.ndarray, plan: Features) -> None:
    if len(values) != plan.num_rows:
        raise ValueError(
            f"{pair.origin.path}: expected {plan.num_rows} labels, one for each row of "
            f"{pair.source.path}, got {len(values)}"
        )
