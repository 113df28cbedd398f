"""Tables of predictions: what a score that is no number says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from jaxsoftmax.app import predictions
from jaxsoftmax.app.data.dataset import Schema, Task

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_scores_of_nan_predict_no_class() -> None:
    scores = np.array([[np.nan, 1.0], [0.0, 1.0]])
    schema = Schema(Task.classes, ("x", "y"), shape=(3,))
    ids = np.array(["a", "b"])
    made = predictions.make_table(scores, ids, schema, loss="softmax", identifier="ID").to_pylist()
    assert [row["label"] for row in made] == [None, "y"]
    assert np.isnan(made[0]["p_x"])


def test_formulas_are_escaped_in_csv_unless_they_are_kept(tmp_path: Path) -> None:
    ids = ["=HYPERLINK(1)", "@SUM(1)", "+1", "-2.5", "-x", "\tx", "a=b", None]
    made = pa.table({"=id": ids, "n": [-1.0] * len(ids)})
    path = tmp_path / "p.csv"
    predictions.write(path, made)
    written = pa.csv.read_csv(path)
    assert written.column_names == ["'=id", "n"]
    escaped = ["'=HYPERLINK(1)", "'@SUM(1)", "+1", "-2.5", "'-x", "'\tx", "a=b", ""]
    assert written["'=id"].to_pylist() == escaped
    predictions.write(path, made, keep_formulas=True)
    assert pa.csv.read_csv(path)["=id"].to_pylist()[:-1] == ids[:-1]
    predictions.write(tmp_path / "p.parquet", made)
    assert pa.parquet.read_table(tmp_path / "p.parquet").equals(made)
