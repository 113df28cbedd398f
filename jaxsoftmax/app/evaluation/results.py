"""The result of `compute_metrics`: its parts, and the names and formats of its metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsoftmax.app.data.dataset import Task

PER_ITEM = {Task.classes: "per_class", Task.labels: "per_label", Task.numbers: "per_number"}

RANKINGS = ("roc_auc", "average_precision")

TITLES = {
    "examples": "examples",
    "loss": "loss",
    "accuracy": "accuracy",
    "top_3": "top-3 accuracy",
    "top_5": "top-5 accuracy",
    "subset_accuracy": "all labels correct",
    "nll": "log loss (NLL)",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "support": "examples",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "r2": "R²",
    "mean": "true mean",
}
"""The names of the metrics in tables."""


def format_metric(name: str, value: float | None) -> str:
    """Format a metric the usual way: shares of examples in percent, others with few digits.

    Args:
        name: the name of the metric.
        value: its value, or None if it is undefined.

    Returns:
        A few characters.

    Example:
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.format_metric("accuracy", 0.5), evaluation.format_metric("r2", None)
        ('50.00%', '–')
        >>> evaluation.format_metric("mse", 123456.7)
        '123,457'
    """
    if value is None:
        return "–"
    if name in ("examples", "support"):
        return f"{value:,.0f}"
    if "accuracy" in name or name.startswith("top_"):
        return f"{value:.2%}"
    if 1000 <= abs(value) < 1e12:
        return f"{value:,.0f}"
    has_unit = name in ("mse", "rmse", "mae", "mean")
    return f"{value:.4g}" if has_unit or abs(value) >= 1e12 else f"{value:.4f}"


def separate_items(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Separate the metrics of all examples from those of each class, label or number.

    Args:
        metrics: the result of `compute_metrics`.

    Returns:
        The metrics of all examples, and a list with the metrics of each class, label or number.

    Example:
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.separate_items({"mse": 2.0, "per_number": [{"name": "price", "mse": 2.0}]})
        ({'mse': 2.0}, [{'name': 'price', 'mse': 2.0}])
    """
    (key,) = (name for name in PER_ITEM.values() if name in metrics)
    return {name: value for name, value in metrics.items() if name != key}, metrics[key]


def supports(metrics: Mapping[str, Any]) -> list[int | None]:
    """Return the number of examples of each class or label.

    Args:
        metrics: the result of `compute_metrics` for classes or labels.

    Returns:
        A count for each; None if it is undefined.

    Example:
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.supports({"per_class": [{"name": "yes", "support": 3}]})
        [3]
    """
    return [item["support"] for item in separate_items(metrics)[1]]


def to_json(value: Any) -> Any:
    """Return arrays and numbers as JSON types, with None for a number that is not finite."""
    match value:
        case Mapping():
            return {name: to_json(item) for name, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
        case str() | int() | None:  # bool is an int
            return value
        case _:
            number = float(value)
            return number if np.isfinite(number) else None
