"""The table that `jaxsoftmax predict` writes: the predictions of a model, one row per example."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from jaxsoftmax.app import atomic_files, evaluation
from jaxsoftmax.app.data.cells import is_text
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.names import LossName

SUFFIXES = (".csv", ".parquet")


def make_table(
    scores: np.ndarray,
    ids: np.ndarray,
    schema: Schema,
    *,
    loss: LossName,
    identifier: str | None = None,
) -> pa.Table:
    """Make a table of predictions, with the identifiers of the examples.

    The first column is the identifier, or `row`. For classes, the next columns are `label`, which
    has integers if all class names are integers, and `p_NAME`, the probability of each class. For
    labels, there is a column of 0 or 1 under the name of each label, then `p_NAME` for each. For
    numbers, there is a column under the name of each. There are no probabilities if the loss gives
    none.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        ids: `[N]`.
        schema: the schema of the model.
        loss: the loss that the model was fitted with.
        identifier: the name of the column that the ids came from, or None if they are row numbers.

    Returns:
        A table of N rows.

    Raises:
        ValueError: if two columns would have the same name.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import predictions
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema, ids = Schema(Task.classes, ("0", "1"), shape=(3,)), np.array(["a"])
        >>> table = predictions.make_table(
        ...     np.array([[0.0]]), ids, schema, loss="sigmoid", identifier="ID")
        >>> table.to_pylist()
        [{'ID': 'a', 'label': 0, 'p_0': 0.5, 'p_1': 0.5}]
    """
    columns = [(identifier or "row", pa.array(ids)), *_predicted_columns(scores, schema)]
    probabilities = evaluation.compute_probabilities(scores, schema, loss)
    if probabilities is not None:
        names = (f"p_{name}" for name in schema.classes)
        columns += zip(names, map(pa.array, probabilities.T), strict=True)
    name, count = Counter(name for name, _ in columns).most_common(1)[0]
    if count > 1:
        raise ValueError(f"two columns of predictions would be called {name!r}")
    return pa.table(dict(columns))


def write(path: Path, predictions: pa.Table, *, keep_formulas: bool = False) -> None:
    r"""Write a table as CSV or Parquet, completely or not at all.

    A spreadsheet would run text that begins with =, +, -, @, a tab or a carriage return as a
    formula. In a CSV such text, unless it is a number, has an apostrophe before it.

    Args:
        path: a path that ends in .csv or .parquet. An existing file is replaced in one step.
        predictions: a table from `make_table`.
        keep_formulas: whether to write all text as it is.

    Example:
        >>> import pathlib, tempfile, pyarrow as pa
        >>> from jaxsoftmax.app import predictions
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "predictions.csv"
        ...     predictions.write(path, pa.table({"row": [1, 2], "label": ["a", "=1+1"]}))
        ...     path.read_text()
        '"row","label"\n1,"a"\n2,"\'=1+1"\n'
    """
    is_csv = path.suffix.lower() == ".csv"
    if is_csv and not keep_formulas:
        predictions = _escape_formulas(predictions)
    write_table = pa.csv.write_csv if is_csv else pa.parquet.write_table
    atomic_files.write(path, lambda partial: write_table(predictions, partial))


def _escape_formulas(table: pa.Table) -> pa.Table:
    columns = [
        _escape_texts(column) if is_text(column.type) else column for column in table.columns
    ]
    names = _escape_texts(pa.array(table.column_names)).to_pylist()
    return pa.table(columns, names)


def _escape_texts(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    is_formula = pc.and_(
        pc.match_substring_regex(texts, r"^[=+\-@\t\r]"),
        pc.invert(pc.match_substring_regex(texts, r"^[+-]?[\d.]+$")),
    )
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", texts, ""), texts)


def _predicted_columns(scores: np.ndarray, schema: Schema) -> list[tuple[str, pa.Array]]:
    predicted = evaluation.predict(scores, schema)
    if schema.task is Task.classes:
        # A score of NaN predicts no class, and its cell is empty.
        indices = pa.array(predicted, mask=predicted < 0)
        return [("label", _class_names(schema.classes).take(indices))]
    dtype = np.int8 if schema.task is Task.labels else np.float32
    return list(zip(schema.classes, map(pa.array, predicted.astype(dtype).T), strict=True))


def _class_names(classes: tuple[str, ...]) -> pa.Array:
    """Return the names of classes, as integers if all of them are written as integers."""
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) for name in classes):
        return pa.array([int(name) for name in classes], pa.int64())
    return pa.array(classes, pa.string())
