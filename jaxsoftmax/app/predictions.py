"""The table that `jaxsoftmax predict` writes: for each example what the model says of it."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jaxsoftmax.app import atomic_files, evaluation
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.defaults import LossName

SUFFIXES = (".csv", ".parquet")


def table(
    scores: np.ndarray,
    ids: np.ndarray,
    schema: Schema,
    *,
    loss: LossName,
    identifier: str | None = None,
) -> pa.Table:
    """Put predictions beside what names their examples.

    The first column is the identifier, or `row`. Of classes follow `label`, integers where all
    names of classes are, and `p_NAME`, the probability of each class. Of labels follows each under
    its name, 0 or 1, then `p_NAME` of each. Of numbers each under its name. Where the loss gives no
    probabilities there are none.

    Args:
        scores: `[N, K]`, or `[N, 1]` of a binary sigmoid.
        ids: `[N]`.
        schema: of the model.
        loss: that it was fitted with.
        identifier: the name of the column that the ids came from; None of numbers of rows.

    Returns:
        A table of N rows.

    Raises:
        ValueError: if two columns would have one name.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import predictions
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema, ids = Schema(Task.classes, ("0", "1"), shape=(3,)), np.array(["a"])
        >>> made = predictions.table(
        ...     np.array([[0.0]]), ids, schema, loss="sigmoid", identifier="ID")
        >>> made.to_pylist()
        [{'ID': 'a', 'label': 0, 'p_0': 0.5, 'p_1': 0.5}]
    """
    columns: list[tuple[str, pa.Array]] = [(identifier or "row", pa.array(ids))]
    said = evaluation.predicted(scores, schema)
    if schema.task is Task.classes:
        columns.append(("label", _class_names(schema.classes).take(_known(said))))
    else:
        kind = np.int8 if schema.task is Task.labels else np.float32
        columns += zip(schema.classes, map(pa.array, said.astype(kind).T), strict=True)
    probabilities = evaluation.probabilities(scores, schema, loss)
    if probabilities is not None:
        named = (f"p_{name}" for name in schema.classes)
        columns += zip(named, map(pa.array, probabilities.T), strict=True)
    name, count = Counter(name for name, _ in columns).most_common(1)[0]
    if count > 1:
        raise ValueError(f"two columns of predictions would be called {name!r}")
    return pa.table(dict(columns))


def _known(said: np.ndarray) -> pa.Array:
    """The numbers of classes; none, an empty cell, where the scores were NaN."""
    return pa.array(said, mask=said < 0)


def write(path: Path, predictions: pa.Table) -> None:
    r"""Write a table as CSV or Parquet, whole or not at all.

    Args:
        path: that ends in .csv or .parquet; a file that is there is replaced in one step.
        predictions: of `table`.

    Example:
        >>> import pathlib, tempfile, pyarrow as pa
        >>> from jaxsoftmax.app import predictions
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "said.csv"
        ...     predictions.write(path, pa.table({"row": [1], "label": ["a"]}))
        ...     path.read_text()
        '"row","label"\n1,"a"\n'
    """
    form = pa.csv.write_csv if path.suffix.lower() == ".csv" else pa.parquet.write_table
    atomic_files.write(path, lambda partial: form(predictions, partial))


def _class_names(classes: tuple[str, ...]) -> pa.Array:
    """The names as integers where all of them are written as such."""
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) for name in classes):
        return pa.array([int(name) for name in classes], pa.int64())
    return pa.array(classes, pa.string())
