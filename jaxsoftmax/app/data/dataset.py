"""Data sets: examples in three splits, and the schema that a model keeps of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.data.table_schema import TableSchema
from jaxsoftmax.app.names import Task

type Progress = Callable[[int, int], object]
"""A function that is called with the number of examples read so far and their total number."""


class Split(NamedTuple):
    """The examples of one split, with their targets and ids.

    features: float32 `[N, D]`. targets: int32 `[N]` classes; bool `[N, K]` labels; float32 `[N]` or
    `[N, K]` numbers. ids: `[N]` names of the examples for a reader, either the values of an
    identifier column or the row numbers in the file, counted from 1. identifier: the name of that
    column, or None where the ids are row numbers. notes: what is said about them, in a line each.
    """

    features: np.ndarray
    targets: np.ndarray
    ids: np.ndarray
    identifier: str | None = None
    notes: tuple[str, ...] = ()

    def select(self, index: np.ndarray) -> "Split":
        """Return the examples that a mask or an array of row numbers selects."""
        return self._replace(
            features=self.features[index], targets=self.targets[index], ids=self.ids[index]
        )


@dataclass(frozen=True)
class Schema:
    """The layout of the data that a model was fitted to, by which more data are read for it.

    Args:
        task: the kind of target.
        classes: the names of the K classes, labels or numbers, in the order of the scores.
        shape: the shape of one example before it was flattened to D features, for instance
            `(28, 28, 1)`.
        columns: the names of the D features, or None where they have none.
        divisor: the number that stored values were divided by to give the features; 1 for tables.
        target: the names of the columns or arrays that hold the targets.
        identifier: the name of the column that holds the ids, or None.
        table: the columns of the table that the model was fitted to, and what they become, or None
            for arrays.
    """

    task: Task
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    columns: tuple[str, ...] | None = None
    divisor: float = 1.0
    target: tuple[str, ...] = ()
    identifier: str | None = None
    table: TableSchema | None = None

    @property
    def num_features(self) -> int:
        """D, the product of the shape."""
        return int(np.prod(self.shape))

    def to_json(self) -> dict[str, Any]:
        """Return the schema in JSON's types, for a model's header."""
        table = None if self.table is None else self.table.to_json()
        return {**asdict(replace(self, table=None)), "task": str(self.task), "table": table}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the result of `to_json`; lists become tuples.

        Raises:
            TypeError: if an entry has another type.
            KeyError: if an entry of a column is missing.
            ValueError: if the task is unknown.
        """
        if not isinstance(content, dict):
            raise TypeError(f"a schema must be a dict, got {content!r}")
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        table = frozen.get("table")
        frozen["table"] = None if table is None else TableSchema.from_json(table)
        schema = cls(**{**frozen, "task": Task(str(frozen.get("task")))})
        schema._check_types()
        return schema

    def _check_types(self) -> None:
        for name, value, element_type in (
            ("classes", self.classes, str),
            ("columns", self.columns or (), str),
            ("target", self.target, str),
            ("shape", self.shape, int),
        ):
            if type(value) is not tuple or not all(type(v) is element_type for v in value):
                raise TypeError(f"{name} must be a list of {element_type.__name__}, got {value!r}")
        if not isinstance(self.divisor, int | float):
            raise TypeError(f"divisor must be a number, got {self.divisor!r}")
        if not isinstance(self.identifier, str | None):
            raise TypeError(f"identifier must be text, got {self.identifier!r}")
        if self.table is not None and self.table.features != self.columns:
            raise TypeError("the columns must be the features of the table")


@dataclass(frozen=True, eq=False)
class Dataset:
    """The training, validation and test examples of one problem.

    Args:
        name: the name of the data set.
        train: the examples that a model is fitted to.
        validation: the examples that settings are chosen on.
        test: the examples that results are reported on.
        schema: the layout of the examples.
        source: the origin of the data and, if it is known, their license, in one line.
        columns: a summary of each column of a table, for a reader.
        notes: what was guessed or learned about a file, in a line each.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    schema: Schema
    source: str
    columns: tuple[ColumnSummary, ...] = ()
    notes: tuple[str, ...] = ()
