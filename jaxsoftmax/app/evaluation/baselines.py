"""The baseline: the result of the best constant prediction."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.app.evaluation.results import supports


class Baseline(NamedTuple):
    """The value of a metric for a model without features, and what it always predicts."""

    metric: str
    value: float
    prediction: str


def baseline(train: Mapping[str, Any], test: Mapping[str, Any]) -> Baseline | None:
    """Return what the best constant prediction would reach on the test examples.

    For classes that is the commonest class of the training examples, for labels the commoner value
    of each label, and for numbers their mean.

    Args:
        train: the result of `compute_metrics` for the training examples.
        test: the same for the test examples.

    Returns:
        The accuracy, or the root mean squared error; None if a count is unknown.

    Example:
        >>> from jaxsoftmax.app import evaluation
        >>> train = {"examples": 9, "per_class": [{"name": "a", "support": 6},
        ...                                       {"name": "b", "support": 3}]}
        >>> test = {"examples": 4, "per_class": [{"name": "a", "support": 1},
        ...                                      {"name": "b", "support": 3}]}
        >>> evaluation.baseline(train, test)
        Baseline(metric='accuracy', value=0.25, prediction='a')
    """
    if "per_number" in test:
        return _mean_baseline(train["per_number"], test["per_number"])
    counts = [supports(train), supports(test)]
    if None in counts[0] + counts[1]:
        return None
    before, now = (np.array(count, float) for count in counts)
    size = max(test["examples"], 1)
    if "per_class" in test:
        commonest = int(before.argmax())
        name = test["per_class"][commonest]["name"]
        return Baseline("accuracy", float(now[commonest] / size), name)
    is_common = 2 * before > train["examples"]
    share = np.where(is_common, now / size, 1 - now / size)
    return Baseline("accuracy", float(share.mean()), "the commoner value of each label")


def _mean_baseline(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Baseline | None:
    """Return the error of the means of the training examples, from R² and the test means."""
    squares = []
    for before, now in zip(train, test, strict=True):
        if None in (before["mean"], now["mean"], now["mse"]):
            return None
        variance = 0.0 if now["r2"] is None else now["mse"] / max(1 - now["r2"], 1e-300)
        squares.append(variance + (now["mean"] - before["mean"]) ** 2)
    return Baseline("rmse", float(np.sqrt(np.mean(squares))), "the mean")
