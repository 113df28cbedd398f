"""Columns of labels as targets: the task that they pose, and the numbers that encode them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.data.row_blocks import describe_invalid
from jaxsoftmax.app.data.tables import (
    decode,
    format_names,
    is_list_type,
    is_numeric_type,
    to_numpy,
)

type Columns = Mapping[str, pa.Array]
type DescribeRow = Callable[[int | None], str]
"""A function that describes a row, counted from 0, to a reader; the file where it is given None."""


class Targets(NamedTuple):
    """The task and classes, for a `dataset.Schema`, and the values, for a `dataset.Split`."""

    task: Task
    classes: tuple[str, ...]
    values: np.ndarray


def infer(columns: Columns, describe_row: DescribeRow, task: Task | None = None) -> Targets:
    """Infer the task and the classes from columns of labels, and encode their values.

    One column of text, integers, Booleans or whole numbers holds classes; one column of other
    numbers holds a number, and one column of lists holds labels. Several columns hold labels where
    all values are 0 or 1, and otherwise numbers. Classes are sorted as numbers where they are
    numbers, and otherwise as text.

    Args:
        columns: one or more, by name.
        describe_row: describes a row in errors.
        task: the task, if it is not to be inferred.

    Returns:
        `Targets`.

    Raises:
        ValueError: if a value is missing or does not suit the task, or if there is only one class;
            names the row and the column.

    Example:
        >>> import pyarrow as pa
        >>> from jaxsoftmax.app.data import targets
        >>> targets.infer({"kind": pa.array(["cat", "ant", "cat"])}, "row {}".format)
        Targets(task=<Task.classes: 'classes'>, classes=('ant', 'cat'), values=array([1, 0, 1], ...
    """
    _check_missing(columns, describe_row)
    task = _infer_task(columns, describe_row) if task is None else task
    classes = _infer_classes(columns, describe_row, task)
    return Targets(task, classes, encode(columns, describe_row, task, classes))


def encode(
    columns: Columns, describe_row: DescribeRow, task: Task, classes: tuple[str, ...]
) -> np.ndarray:
    """Encode the values of columns as numbers, by the classes of a model's schema.

    Args:
        columns: one or more, by name.
        describe_row: describes a row in errors.
        task: the kind of target.
        classes: the names of the classes, labels or numbers.

    Returns:
        The targets of a `dataset.Split`.

    Raises:
        ValueError: if a value is missing, is not one of the model's classes, or does not suit the
            task; names the row and the column.
    """
    _check_missing(columns, describe_row)
    name, column = next(iter(columns.items()))
    if task is Task.classes:
        return _encode_classes(name, column, describe_row, classes)
    if task is Task.labels and is_list_type(column.type):
        return _encode_label_lists(name, column, describe_row, classes)
    if len(columns) != len(classes):
        raise ValueError(
            f"{describe_row(None)}: expected {len(classes)} columns of labels, "
            f"got {format_names(list(columns))}"
        )
    if task is Task.labels:
        arrays = [_to_binary(name, column, describe_row) for name, column in columns.items()]
        return np.stack(arrays, axis=1)
    arrays = [_to_float32(name, column, describe_row) for name, column in columns.items()]
    return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1)


def _infer_task(columns: Columns, describe_row: DescribeRow) -> Task:
    name, column = next(iter(columns.items()))
    if len(columns) == 1:
        if is_list_type(column.type):
            return Task.labels
        if types.is_floating(column.type) or types.is_decimal(column.type):
            values = _to_float64(column)
            return Task.classes if (np.floor(values) == values).all() else Task.numbers
        return Task.classes
    for name, column in columns.items():
        if not is_numeric_type(column.type):
            raise ValueError(
                f"{describe_row(None)}: several label columns must be labels (0 or 1) or numbers, "
                f"but {name!r} holds {column.type}"
            )
    is_binary = all(np.isin(_to_float64(column), (0, 1)).all() for column in columns.values())
    return Task.labels if is_binary else Task.numbers


def _infer_classes(columns: Columns, describe_row: DescribeRow, task: Task) -> tuple[str, ...]:
    """Return the names of the classes, labels or numbers."""
    name, column = next(iter(columns.items()))
    if task is Task.classes:
        if len(columns) > 1:
            raise ValueError(
                f"{describe_row(None)}: classes come from one column, "
                f"got {format_names(list(columns))}"
            )
        classes = _find_classes(name, column, describe_row)
        if len(classes) < 2:
            raise ValueError(
                f"{describe_row(None)}: column {name!r} has only one class, {classes[0]!r}"
            )
        return classes
    if task is Task.labels and is_list_type(column.type):
        classes = _find_classes(name, *_flatten(name, column, describe_row))
        _check_not_indicators(name, column, classes, describe_row)
        if not classes:
            raise ValueError(f"{describe_row(None)}: column {name!r} has no label in any row")
        return classes
    return tuple(columns)


def _check_missing(columns: Columns, describe_row: DescribeRow) -> None:
    for name, column in columns.items():
        if not column.null_count and not _is_text(column.type):
            continue
        is_missing = column.is_null()
        if _is_text(column.type):
            is_missing = pc.or_(is_missing, pc.fill_null(pc.equal(column, ""), True))
        row = is_missing.index(True).as_py()
        if row >= 0:
            raise ValueError(f"{describe_row(row)}, column {name!r}: the label is missing")


def _find_classes(name: str, column: pa.Array, describe_row: DescribeRow) -> tuple[str, ...]:
    """Return the distinct values, sorted as numbers if they are numbers, and otherwise as text."""
    _check_can_name_classes(name, column, describe_row)
    values = column.dictionary_encode().dictionary
    names = set(_to_class_names(name, column, values, describe_row))
    return tuple(sorted(names, key=int if _is_number(column.type) else None))


def _encode_classes(
    name: str, column: pa.Array, describe_row: DescribeRow, classes: tuple[str, ...]
) -> np.ndarray:
    """Return the class of each value; each distinct value is looked up once."""
    _check_can_name_classes(name, column, describe_row)
    encoded = column.dictionary_encode()
    index = {class_name: i for i, class_name in enumerate(classes)}
    names = _to_class_names(name, column, encoded.dictionary, describe_row)
    codes = np.array([index.get(class_name, -1) for class_name in names], np.int32)
    labels = codes[encoded.indices.to_numpy(zero_copy_only=False)]
    if (labels < 0).any():
        row = int(np.flatnonzero(labels < 0)[0])
        raise ValueError(
            f"{describe_row(row)}, column {name!r}: {column[row].as_py()!r} is none of the classes "
            f"that the model was fitted to, {format_names(classes)}"
        )
    return labels


def _encode_label_lists(
    name: str, column: pa.Array, describe_row: DescribeRow, classes: tuple[str, ...]
) -> np.ndarray:
    """Return which labels the list of each row has, bool `[N, K]`."""
    has_label = np.zeros((len(column), len(classes)), bool)
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    has_label[rows, _encode_classes(name, *_flatten(name, column, describe_row), classes)] = True
    return has_label


def _to_class_names(
    name: str, column: pa.Array, values: pa.Array, describe_row: DescribeRow
) -> list[str]:
    """Convert values to the names of classes: 3 and 3.0 to '3', true to 'true'."""
    dtype = values.type
    if types.is_floating(dtype) or types.is_decimal(dtype):
        numbers = _to_float64(column)
        bad = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.floor(numbers)))
        if bad.size:
            row = int(bad[0])
            raise ValueError(
                f"{describe_row(row)}, column {name!r}: {numbers[row]} is a number, not a class"
            )
        return [str(int(value)) for value in values.to_pylist()]
    if types.is_boolean(dtype):
        return [str(value).lower() for value in values.to_pylist()]
    return [str(value) for value in values.to_pylist()]


def _to_binary(name: str, column: pa.Array, describe_row: DescribeRow) -> np.ndarray:
    """Convert a column of zeros and ones to Booleans."""
    values = _to_float32(name, column, describe_row)
    bad = np.flatnonzero((values != 0) & (values != 1))
    if bad.size:
        row = int(bad[0])
        raise ValueError(
            f"{describe_row(row)}, column {name!r}: a label is 0 or 1, got {column[row]}"
        )
    return values == 1


def _to_float32(name: str, column: pa.Array, describe_row: DescribeRow) -> np.ndarray:
    if not is_numeric_type(column.type):
        raise ValueError(
            f"{describe_row(None)}: column {name!r} holds {column.type}, where numbers are expected"
        )
    stored = _to_float64(column)
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        row = int(bad[0])
        raise ValueError(f"{describe_row(row)}, column {name!r}: {describe_invalid(stored[row])}")
    return values


def _flatten(
    name: str, column: pa.Array, describe_row: DescribeRow
) -> tuple[pa.Array, DescribeRow]:
    """Return the elements of all lists, and a function that describes the row of an element."""
    rows, elements = pc.list_parent_indices(column), decode(column.flatten())

    def describe_element(element: int | None) -> str:
        return describe_row(None if element is None else rows[element].as_py())

    _check_missing({name: elements}, describe_element)
    return elements, describe_element


def _check_can_name_classes(name: str, column: pa.Array, describe_row: DescribeRow) -> None:
    dtype = column.type
    if not (
        _is_text(dtype)
        or is_numeric_type(dtype)
        or types.is_temporal(dtype)
        or types.is_null(dtype)
    ):
        raise ValueError(
            f"{describe_row(None)}: column {name!r} holds {dtype}: labels must be text or numbers"
        )


def _check_not_indicators(
    name: str, column: pa.Array, classes: tuple[str, ...], describe_row: DescribeRow
) -> None:
    """Refuse lists such as [0, 1, 1]: they name the labels 0 and 1, which is hardly intended."""
    lengths = pc.unique(pc.list_value_length(column))
    have_one_length = len(lengths) == 1 and lengths[0].as_py() > 1
    if have_one_length and (set(classes) <= {"0", "1"} or set(classes) <= {"false", "true"}):
        raise ValueError(
            f"{describe_row(None)}: column {name!r} holds lists of {lengths[0]} zeros and ones, "
            "but a list must hold the names of the labels that an example has: put each label in "
            "its own column"
        )


def _to_float64(column: pa.Array) -> np.ndarray:
    return to_numpy(column).astype(np.float64)


def _is_text(dtype: pa.DataType) -> bool:
    return types.is_string(dtype) or types.is_large_string(dtype)


def _is_number(dtype: pa.DataType) -> bool:
    return types.is_integer(dtype) or types.is_floating(dtype) or types.is_decimal(dtype)
