"""The schema of the table that a model was fitted to: its columns, and the features of each."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa

from jaxsoftmax.app.data.column_kinds import KINDS, Column

_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class TableSchema:
    """The columns that give the features of a table, in their order.

    Args:
        columns: records of `column_kinds`, learned from training rows by `column_learning`.
        missing: further texts that stand for a missing cell.
        has_header: whether the first row of the file had the names; otherwise they are numbers.

    Example:
        >>> import pyarrow as pa
        >>> from jaxsoftmax.app.data import column_kinds, table_schema
        >>> columns = column_kinds.Number("age", fill=30.0), column_kinds.Boolean("smoker", "yes")
        >>> schema = table_schema.TableSchema(columns)
        >>> print(schema.apply({"age": pa.array(["NA", "7"]), "smoker": pa.array(["Yes", "no"])}))
        [[30.  1.]
         [ 7.  0.]]
        >>> table_schema.TableSchema.from_json(schema.to_json()) == schema
        True
    """

    columns: tuple[Column, ...]
    missing: tuple[str, ...] = ()
    has_header: bool = True

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the D features."""
        return tuple(name for column in self.columns for name in column.features)

    def check_names(self) -> None:
        """Raise a ValueError if two features have the same name."""
        for name, count in Counter(self.features).most_common(1):
            if count > 1:
                raise ValueError(f"two features would be called {name!r}: rename a column")

    def apply(
        self, cells: Mapping[str, pa.Array], clean: Callable[[pa.Array], pa.Array] = lambda a: a
    ) -> np.ndarray:
        """Compute the features of some rows.

        Args:
            cells: the columns, by name.
            clean: called with each column first.

        Returns:
            float32 `[N, D]`.

        Raises:
            column_kinds.CellError: at the first bad cell of the first bad column.
        """
        num_rows = len(next(iter(cells.values())))
        features = np.empty((num_rows, len(self.features)), np.float32)
        start = 0
        for column in self.columns:
            block = column.encode(clean(cells[column.name]), self.missing)
            features[:, start : start + block.shape[1]] = block
            start += block.shape[1]
        return features

    def to_json(self) -> dict[str, Any]:
        """Return the schema in JSON's types."""
        columns = [{"kind": _NAMES[type(c)], **asdict(cast(Any, c))} for c in self.columns]
        return {"columns": columns, "missing": self.missing, "has_header": self.has_header}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read the result of `to_json`; lists become tuples.

        Raises:
            TypeError: if an entry is missing or has another type.
            KeyError: if a kind is unknown.
        """
        columns = tuple(_read_column(entry) for entry in content["columns"])
        schema = cls(columns, tuple(content["missing"]), bool(content["has_header"]))
        if not all(isinstance(text, str) for text in schema.missing):
            raise TypeError(f"missing must be texts, got {schema.missing!r}")
        return schema


def _read_column(content: Mapping[str, Any]) -> Column:
    kind = KINDS[content["kind"]]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k != "kind"}
    expected = {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        if not _has_type(value, expected.get(name)):
            raise TypeError(f"{name} of column {content.get('name')!r} cannot be {value!r}")
    return kind(**values)


def _has_type(value: Any, expected: Any) -> bool:
    if expected == _TEXTS:
        return isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    return isinstance(value, _JSON_TYPES.get(expected, ()))


_TEXTS = tuple[str, ...]
_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    str | None: (str, type(None)),
    float: (int, float),
    float | None: (int, float, type(None)),
    bool: (bool,),
    int: (int,),
}
