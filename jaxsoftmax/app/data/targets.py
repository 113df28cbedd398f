"""Columns of labels as targets: the task that they pose, and the numbers that encode them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from jaxsoftmax.app.data.cells import (
    MISSING,
    MISSING_NUMBER,
    decode,
    describe_invalid,
    find_missing,
    is_list_type,
    is_numeric_type,
    is_text,
    match_names,
    to_decimal,
    to_numbers,
    to_text,
)
from jaxsoftmax.app.data.column_kinds import abbreviate
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.data.tables import format_names

type Columns = Mapping[str, pa.Array]
MAX_CLASSES, MAX_FLOAT_CLASSES, MIN_EXAMPLES = 100, 20, 50
"""Of more different whole numbers with fewer examples each, a column holds amounts."""

type DescribeRow = Callable[[int | None], str]
"""A function that describes a row, counted from 0, to a reader; the file where it is given None."""


class Targets(NamedTuple):
    """The task and classes, for a `dataset.Schema`, and the values, for a `dataset.Split`."""

    task: Task
    classes: tuple[str, ...]
    values: np.ndarray


def infer(columns: Columns, describe_row: DescribeRow, task: Task | None = None) -> Targets:
    """Infer the task and the classes from columns of labels, and encode their values.

    One column of text, Booleans or whole numbers holds classes, and one column of lists holds
    labels. One column of numbers holds a number if some have fractions, or if there are many
    different ones: more than 100, or 20 that are written with a point, and less than 50 examples
    for each. Several columns hold labels where all values are 0 or 1, and otherwise numbers. The
    name of a class is the text in its cell. Classes are sorted as numbers where all are numbers,
    and otherwise as text.

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
    check_labeled(columns, describe_row)
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
    # For a model's schema: where labels are inferred, they have been checked.
    check_labeled(columns, describe_row, advice="leave such rows out of the file")
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
    if len(columns) == 1:
        (column,) = columns.values()
        if is_list_type(column.type):
            return Task.labels
        return Task.numbers if _holds_amounts(column) else Task.classes
    for name, column in columns.items():
        if not _is_numeric(column):
            raise ValueError(
                f"{describe_row(None)}: several label columns must be labels (0 or 1) or numbers, "
                f"but {name!r} holds {_describe_type(column)}"
            )
    values = [to_numbers(column).values for column in columns.values()]
    return Task.labels if all(np.isin(v, (0, 1)).all() for v in values) else Task.numbers


def _holds_amounts(column: pa.Array) -> bool:
    """Return whether a column holds numbers to predict rather than classes."""
    if types.is_boolean(column.type) or not _is_numeric(column):
        return False
    values = to_numbers(column).values
    if (values != np.floor(values)).any():
        return True
    is_written_as_float = types.is_floating(column.type) or (
        is_text(column.type) and pc.any(pc.match_substring_regex(column, "[.eE]")).as_py()
    )
    num_values = len(np.unique(values))
    limit = MAX_FLOAT_CLASSES if is_written_as_float else MAX_CLASSES
    return num_values > limit and len(values) < MIN_EXAMPLES * num_values


def describe_guess(columns: Columns, targets: Targets, *, is_given: bool) -> list[str]:
    """Describe in a line what was inferred of labels where it could be wrong, else in none.

    Args:
        columns: the columns of labels.
        targets: the result of `infer`.
        is_given: whether the task was not inferred.
    """
    name = next(iter(columns))
    absent = [c for c in targets.classes if c in MISSING] if targets.task is Task.classes else []
    if absent:
        return [
            f"label {name!r}: {', '.join(absent)} is taken for a class (if it stands for a missing "
            f"label: --missing {absent[0]} --skip-unlabeled)"
        ]
    if is_given or targets.task is not Task.numbers or len(columns) > 1:
        return []
    count = len(np.unique(targets.values))
    return [
        f"label {name!r} has {count:,} different numbers, so this is a regression "
        "(--task classes if they are classes)"
    ]


def find_unlabeled(columns: Columns, missing: Sequence[str] = ()) -> np.ndarray:
    """Return which rows have a missing label, bool `[N]`.

    A missing label is null, NaN or no text, and among numbers any text that stands for a missing
    value, such as NA. Elsewhere NA may be the name of a class, unless it is one of `missing`.
    """
    is_missing = [np.zeros(0, bool)]
    for column in columns.values():
        if is_text(column.type) and not _is_numeric(column):
            texts = pa.array(["", *missing], column.type)
            is_missing.append(
                np.asarray(pc.is_in(column, value_set=texts)) | np.asarray(column.is_null())
            )
        else:
            is_missing.append(find_missing(column, (*missing, MISSING_NUMBER)))
    return np.any(is_missing[1:], 0)


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


def check_labeled(
    columns: Columns,
    describe_row: DescribeRow,
    missing: Sequence[str] = (),
    *,
    advice: str = "fit without such rows by --skip-unlabeled",
) -> None:
    """Raise a ValueError that names the first row without a label, if there is one."""
    for name, column in columns.items():
        rows = np.flatnonzero(find_unlabeled({name: column}, missing))
        if rows.size:
            others = f", as in {len(rows) - 1:,} more rows" if len(rows) > 1 else ""
            raise ValueError(
                f"{describe_row(int(rows[0]))}, column {name!r}: the label is missing{others}; "
                f"{advice}"
            )


def _find_classes(name: str, column: pa.Array, describe_row: DescribeRow) -> tuple[str, ...]:
    """Return the distinct values, sorted as numbers if all are numbers, and otherwise as text."""
    names = _to_class_names(name, column, describe_row).unique().to_pylist()
    numbers = {name: to_decimal(name) for name in names}
    if None in numbers.values():
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def _encode_classes(
    name: str, column: pa.Array, describe_row: DescribeRow, classes: tuple[str, ...]
) -> np.ndarray:
    """Return the class of each value; each distinct value is looked up once."""
    encoded = _to_class_names(name, column, describe_row).dictionary_encode()
    codes = match_names(encoded.dictionary.to_pylist(), classes)
    labels = codes[encoded.indices.to_numpy(zero_copy_only=False)]
    rows = np.flatnonzero(labels < 0)
    if rows.size:
        unknown = column.take(pa.array(rows)).unique().to_pylist()
        shown = ", ".join(map(abbreviate, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        verb = "is none" if len(unknown) == 1 else "are none"
        raise ValueError(
            f"{describe_row(int(rows[0]))}, column {name!r}: {shown} {verb} of the classes "
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


def _to_class_names(name: str, column: pa.Array, describe_row: DescribeRow) -> pa.Array:
    """Convert values to the names of classes: text as it is, 3 and 3.0 to '3', true to 'true'."""
    _check_can_name_classes(name, column, describe_row)
    if types.is_floating(column.type):
        for row in np.flatnonzero(~np.isfinite(to_numbers(column).values))[:1].tolist():
            raise ValueError(f"{describe_row(row)}, column {name!r}: {column[row]} is not a class")
    return to_text(column)


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
    numbers = to_numbers(column)
    if numbers.is_bad.all():
        raise ValueError(
            f"{describe_row(None)}: column {name!r} holds {_describe_type(column)}, where numbers "
            "are expected"
        )
    for row in np.flatnonzero(numbers.is_bad)[:1].tolist():
        value = abbreviate(column[row].as_py())
        raise ValueError(f"{describe_row(row)}, column {name!r}: {value} is not a number")
    with np.errstate(over="ignore"):
        values = numbers.values.astype(np.float32)
    for row in np.flatnonzero(~np.isfinite(values))[:1].tolist():
        problem = describe_invalid(numbers.values[row])
        raise ValueError(f"{describe_row(row)}, column {name!r}: {problem}")
    return values


def _describe_type(column: pa.Array) -> str:
    return "text" if is_text(column.type) else str(column.type)


def _flatten(
    name: str, column: pa.Array, describe_row: DescribeRow
) -> tuple[pa.Array, DescribeRow]:
    """Return the elements of all lists, and a function that describes the row of an element."""
    rows, elements = pc.list_parent_indices(column), decode(column.flatten())

    def describe_element(element: int | None) -> str:
        return describe_row(None if element is None else rows[element].as_py())

    check_labeled({name: elements}, describe_element)
    return elements, describe_element


def _check_can_name_classes(name: str, column: pa.Array, describe_row: DescribeRow) -> None:
    dtype = column.type
    if not (
        is_text(dtype) or is_numeric_type(dtype) or types.is_temporal(dtype) or types.is_null(dtype)
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


def _is_numeric(column: pa.Array) -> bool:
    """Return whether all values are numbers, as text or not."""
    if is_numeric_type(column.type):
        return True
    numbers = to_numbers(column)
    return not numbers.is_bad.any() and not numbers.is_missing.all()
