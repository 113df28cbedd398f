"""Columns of labels as targets: which task they make, and the numbers that stand for them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.data.row_blocks import fault
from jaxsoftmax.app.data.tables import is_list, is_number, listed, plain, to_numpy

type Columns = Mapping[str, pa.Array]
type Where = Callable[[int | None], str]
"""Names a row, counted from 0, to a reader; of None, the file."""


class Targets(NamedTuple):
    """What `dataset.Schema` and `dataset.Split` keep of the columns of labels."""

    task: Task
    classes: tuple[str, ...]
    values: np.ndarray


def learn(columns: Columns, where: Where, task: Task | None = None) -> Targets:
    """Find the task and the classes that columns show, and number their values.

    One column of text, integers, true and false, or whole numbers makes classes; of other numbers
    a number. One column of lists makes labels. Several columns make labels where all are 0 or 1,
    and else numbers. Classes are in the order of numbers where they are numbers, else of text.

    Args:
        columns: by name, one at least.
        where: names a row for errors.
        task: where the columns shall be taken otherwise.

    Returns:
        `Targets`.

    Raises:
        ValueError: if a value is missing, does not suit the task, or there is one class only;
            names row and column.

    Example:
        >>> import pyarrow as pa
        >>> from jaxsoftmax.app.data import targets
        >>> targets.learn({"kind": pa.array(["cat", "ant", "cat"])}, "row {}".format)
        Targets(task=<Task.classes: 'classes'>, classes=('ant', 'cat'), values=array([1, 0, 1], ...
    """
    _check_missing(columns, where)
    task = _natural_task(columns, where) if task is None else task
    name, column = next(iter(columns.items()))
    if task is Task.classes:
        if len(columns) > 1:
            raise ValueError(
                f"{where(None)}: classes come from one column, got {listed(list(columns))}"
            )
        classes = _class_names(name, column, where)
        if len(classes) < 2:
            raise ValueError(f"{where(None)}: column {name!r} has one class only, {classes[0]!r}")
    elif task is Task.labels and is_list(column.type):
        classes = _class_names(name, *_flattened(name, column, where))
        _check_no_vectors(name, column, classes, where)
        if not classes:
            raise ValueError(f"{where(None)}: column {name!r} has no label in any row")
    else:
        classes = tuple(columns)
    return Targets(task, classes, number(columns, where, task, classes))


def number(columns: Columns, where: Where, task: Task, classes: tuple[str, ...]) -> np.ndarray:
    """Number the values of columns as a model's schema has them.

    Args:
        columns: by name, one at least.
        where: names a row for errors.
        task: what the targets are.
        classes: the names of the classes, labels or numbers.

    Returns:
        As `dataset.Split` has targets.

    Raises:
        ValueError: if a value is missing, is no class of the model, or does not suit the task;
            names row and column.
    """
    _check_missing(columns, where)
    name, column = next(iter(columns.items()))
    if task is Task.classes:
        return _numbered(name, column, where, classes)
    if task is Task.labels and is_list(column.type):
        values = np.zeros((len(column), len(classes)), bool)
        rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        values[rows, _numbered(name, *_flattened(name, column, where), classes)] = True
        return values
    if len(columns) != len(classes):
        raise ValueError(
            f"{where(None)}: expected {len(classes)} columns of labels, got {listed(list(columns))}"
        )
    arrays = [_floats(name, column, where) for name, column in columns.items()]
    if task is Task.labels:
        for name, array in zip(columns, arrays, strict=True):
            other = np.flatnonzero((array != 0) & (array != 1))
            if other.size:
                value = columns[name][other[0]]
                raise ValueError(
                    f"{where(int(other[0]))}, column {name!r}: a label is 0 or 1, got {value}"
                )
        return np.stack(arrays, axis=1) == 1
    return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1)


def _natural_task(columns: Columns, where: Where) -> Task:
    name, column = next(iter(columns.items()))
    if len(columns) == 1:
        if is_list(column.type):
            return Task.labels
        if types.is_floating(column.type) or types.is_decimal(column.type):
            stored = _stored(column)
            return Task.classes if (np.floor(stored) == stored).all() else Task.numbers
        return Task.classes
    for name, column in columns.items():
        if not is_number(column.type):
            raise ValueError(
                f"{where(None)}: several label columns must be labels (0 or 1) or numbers, "
                f"but {name!r} holds {column.type}"
            )
    binary = all(np.isin(_stored(column), (0, 1)).all() for column in columns.values())
    return Task.labels if binary else Task.numbers


def _check_missing(columns: Columns, where: Where) -> None:
    for name, column in columns.items():
        if not column.null_count and not _is_text(column.type):
            continue
        absent = column.is_null()
        if _is_text(column.type):
            absent = pc.or_(absent, pc.fill_null(pc.equal(column, ""), True))
        row = absent.index(True).as_py()
        if row >= 0:
            raise ValueError(f"{where(row)}, column {name!r}: the label is missing")


def _class_names(name: str, column: pa.Array, where: Where) -> tuple[str, ...]:
    """Every value once: in the order of numbers if they are numbers, else of text."""
    _check_nameable(name, column, where)
    values = column.dictionary_encode().dictionary
    names = set(_names(name, column, values, where))
    return tuple(sorted(names, key=int if _is_whole(column.type) else None))


def _numbered(name: str, column: pa.Array, where: Where, classes: tuple[str, ...]) -> np.ndarray:
    """Give each value its class, by way of every value once."""
    _check_nameable(name, column, where)
    encoded = column.dictionary_encode()
    place = {known: i for i, known in enumerate(classes)}
    numbers = [place.get(value, -1) for value in _names(name, column, encoded.dictionary, where)]
    labels = np.array(numbers, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
    if (labels < 0).any():
        row = int(np.flatnonzero(labels < 0)[0])
        raise ValueError(
            f"{where(row)}, column {name!r}: {column[row].as_py()!r} is none of the classes that "
            f"the model was fitted to, {listed(classes)}"
        )
    return labels


def _names(name: str, column: pa.Array, values: pa.Array, where: Where) -> list[str]:
    """Write values as the names of classes: 3 and 3.0 are '3', true is 'true'."""
    kind = values.type
    if types.is_floating(kind) or types.is_decimal(kind):
        stored = _stored(column)
        bad = np.flatnonzero(~np.isfinite(stored) | (stored != np.floor(stored)))
        if bad.size:
            row = int(bad[0])
            raise ValueError(
                f"{where(row)}, column {name!r}: {stored[row]} is a number, not a class"
            )
        return [str(int(value)) for value in values.to_pylist()]
    if types.is_boolean(kind):
        return [str(value).lower() for value in values.to_pylist()]
    return [str(value) for value in values.to_pylist()]


def _floats(name: str, column: pa.Array, where: Where) -> np.ndarray:
    if not is_number(column.type):
        raise ValueError(
            f"{where(None)}: column {name!r} holds {column.type}, where numbers are expected"
        )
    stored = _stored(column)
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{where(int(bad[0]))}, column {name!r}: {fault(stored[bad[0]])}")
    return values


def _flattened(name: str, column: pa.Array, where: Where) -> tuple[pa.Array, Where]:
    """Return the members of all lists, and what names the row of one."""
    rows, members = pc.list_parent_indices(column), plain(column.flatten())

    def where_is(member: int | None) -> str:
        return where(None if member is None else rows[member].as_py())

    _check_missing({name: members}, where_is)
    return members, where_is


def _check_nameable(name: str, column: pa.Array, where: Where) -> None:
    kind = column.type
    if not (_is_text(kind) or is_number(kind) or types.is_temporal(kind) or types.is_null(kind)):
        raise ValueError(
            f"{where(None)}: column {name!r} holds {kind}: labels must be text or numbers"
        )


def _check_no_vectors(name: str, column: pa.Array, classes: tuple[str, ...], where: Where) -> None:
    """Refuse lists such as [0, 1, 1], which name the labels 0 and 1 and hardly mean them."""
    lengths = pc.unique(pc.list_value_length(column))
    equal = len(lengths) == 1 and lengths[0].as_py() > 1
    if equal and (set(classes) <= {"0", "1"} or set(classes) <= {"false", "true"}):
        raise ValueError(
            f"{where(None)}: column {name!r} holds lists of {lengths[0]} zeros and ones, where "
            "a list names the labels that an example has: give each label a column of its own"
        )


def _stored(column: pa.Array) -> np.ndarray:
    return to_numpy(column).astype(np.float64)


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind)


def _is_whole(kind: pa.DataType) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
