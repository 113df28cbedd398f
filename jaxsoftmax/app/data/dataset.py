"""What data are to a model: examples in three splits, and the schema that a model keeps of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np

type Progress = Callable[[int, int], object]
"""Called with the number of examples read so far and the number there are."""


class Task(StrEnum):
    """What is asked of a model: one of K classes, each of K labels or not, or K numbers."""

    classes = "classes"
    labels = "labels"
    numbers = "numbers"


class Split(NamedTuple):
    """Examples and what is known of them.

    features: float32 `[N, D]`. targets: int32 `[N]` classes; bool `[N, K]` labels; float32 `[N]` or
    `[N, K]` numbers. ids: what names the examples to a reader, `[N]`: an identifier column's
    values, or the numbers of the rows, from 1, as they stand in their file. identifier: the name
    of that column, or None where the ids are numbers of rows.
    """

    features: np.ndarray
    targets: np.ndarray
    ids: np.ndarray
    identifier: str | None = None


@dataclass(frozen=True)
class Schema:
    """What a model expects of data, so that more of the same can be read for it.

    Args:
        task: what the targets are.
        classes: the names of the K classes, labels or numbers, in the order of the scores.
        shape: of one example before it was laid out as D features, for instance `(28, 28, 1)`.
        columns: the names of the D features, or None where they have none.
        divisor: what the stored numbers were divided by to give the features, 1 for tables.
        target: the names of the columns or arrays that the targets came from.
        identifier: the name of the column that the ids came from, or None.
    """

    task: Task
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    columns: tuple[str, ...] | None = None
    divisor: float = 1.0
    target: tuple[str, ...] = ()
    identifier: str | None = None

    @property
    def num_features(self) -> int:
        """D, the product of the shape."""
        return int(np.prod(self.shape))

    def to_json(self) -> dict[str, Any]:
        """The schema in JSON's types, for a model's header."""
        return {**asdict(self), "task": str(self.task)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read what `to_json` wrote; lists come back as tuples.

        Raises:
            TypeError: if something is missing, or of another type.
            ValueError: if there is no such task.
        """
        if not isinstance(content, dict):
            raise TypeError(f"a schema must be a dict, got {content!r}")
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        schema = cls(**{**frozen, "task": Task(str(frozen.get("task")))})
        schema._check()
        return schema

    def _check(self) -> None:
        text = {"classes": self.classes, "columns": self.columns or (), "target": self.target}
        each = [(name, value, str) for name, value in text.items()]
        for name, value, kind in (*each, ("shape", self.shape, int)):
            if type(value) is not tuple or not all(type(one) is kind for one in value):
                raise TypeError(f"{name} must be a list of {kind.__name__}, got {value!r}")
        if not isinstance(self.divisor, int | float):
            raise TypeError(f"divisor must be a number, got {self.divisor!r}")
        if not isinstance(self.identifier, str | None):
            raise TypeError(f"identifier must be text, got {self.identifier!r}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test examples of one problem.

    Args:
        name: what it is called.
        train: what a model is fitted to.
        validation: what settings are chosen on.
        test: what the result is told on.
        schema: what the examples are.
        source: where the data come from, and their licence if it is known, in one line.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    schema: Schema
    source: str
