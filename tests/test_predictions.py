"""Tables of predictions: what a score that is no number says."""

import numpy as np
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
