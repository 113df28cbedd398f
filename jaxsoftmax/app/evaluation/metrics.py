"""All metrics of a task that are meaningful for its loss, in JSON types."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsoftmax.app import host_metrics
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.evaluation.raw_metrics import raw_metrics
from jaxsoftmax.app.evaluation.results import PER_ITEM, RANKINGS, to_json
from jaxsoftmax.app.evaluation.scores import in_blocks
from jaxsoftmax.app.names import LossName

_ORDER = ("accuracy", "top_3", "top_5", "subset_accuracy", "nll", "brier", "ece",
          "macro_f1", "micro_f1", "precision", "recall", "f1", "support", *RANKINGS, "log_loss",
          "mse", "rmse", "mae", "r2", "mean")  # fmt: skip


def compute_metrics(
    scores: np.ndarray,
    targets: np.ndarray,
    schema: Schema,
    *,
    loss: LossName,
    rankings: bool = True,
    intervals: bool = False,
) -> dict[str, Any]:
    """Return all metrics of the task that are meaningful for the loss, in JSON types.

    For classes: examples, loss, accuracy, top_3 and top_5 (if there are more than 5), macro_f1,
    micro_f1 and per_class, which has name, precision, recall, f1 and support. With probabilities
    also nll, brier, ece, roc_auc and average_precision (those of the second of two classes, else
    the mean of each class against the rest, which per_class has too).

    For labels: examples, loss, accuracy (over all labels together), subset_accuracy (the share of
    examples with all labels correct), macro_f1, micro_f1, roc_auc, average_precision (means over
    labels), and per_label, as above. With probabilities also nll (the mean over labels), ece, and
    log_loss for each label.

    For numbers: examples, loss, mse, rmse, mae, r2, and per_number, which has the same and mean,
    that of the true values. rmse is the root of mse. r2 is 1 - (sum of squared errors) / (sum of
    squared deviations from the mean). For several numbers mse, mae and r2 are the means of theirs.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        targets: `[N]` or `[N, K]`, the targets of a `Split`.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.
        rankings: whether to compute roc_auc and average_precision, which sort all scores of one
            class after another.
        intervals: whether to add accuracy_interval and nll_interval (or mse_interval and
            rmse_interval), each two numbers: the 95% bootstrap interval from 1,000 resamples (fewer
            for more than 200,000 examples, at least 200), the same at each call.

    Returns:
        A dictionary of numbers, lists and dictionaries; None for a metric that is undefined.

    Numerics:
        Sums in float64. None for what is undefined or not finite: all metrics of scores with NaN,
        the log loss where a label has probability 0, r2 of numbers that are all equal.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> scores, targets = np.array([[2.0], [-1.0], [3.0]]), np.array([1, 0, 0])
        >>> result = evaluation.compute_metrics(scores, targets, schema, loss="sigmoid")
        >>> print(f"{result['accuracy']:.2f} {result['nll']:.2f} {result['roc_auc']:.1f}")
        0.67 1.16 0.5
    """
    raw = raw_metrics(scores, targets, schema, loss=loss, rankings=rankings)
    overall = {name: raw.overall[name] for name in _ORDER if name in raw.overall}
    if schema.task is Task.classes and len(schema.classes) == 2:
        overall |= {name: raw.per_item[name][1] for name in RANKINGS if name in raw.per_item}
    return to_json(
        {"examples": len(scores), "loss": _mean_loss(scores, targets, schema, loss)}
        | overall
        | (_intervals(raw.per_example) if intervals else {})
        | {PER_ITEM[schema.task]: _rows(schema.classes, raw.per_item)}
    )


def _rows(names: tuple[str, ...], per_item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one dictionary for each class, label or number: its name and its metrics.

    A negative count stands for an unknown one, and becomes None.
    """
    columns = {name: np.asarray(per_item[name]).tolist() for name in _ORDER if name in per_item}
    if "support" in columns:
        columns["support"] = [count if count >= 0 else None for count in columns["support"]]
    return [
        {"name": name} | {metric: values[k] for metric, values in columns.items()}
        for k, name in enumerate(names)
    ]


def _mean_loss(scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName) -> float:
    """Return the mean of the loss that was fitted, one value per example: `defaults.make_loss`."""
    blocks = in_blocks(scores, targets)
    sums = [np.sum(_example_losses(z, t, schema.task, loss)) for z, t in blocks]
    return float(np.sum(sums) / len(scores))


def _example_losses(z: np.ndarray, t: np.ndarray, task: Task, loss: LossName) -> np.ndarray:
    if loss == LossName.softmax:
        return host_metrics.softmax_losses(z, t)
    if loss == LossName.hinge:
        return host_metrics.hinge_losses(z, t)
    t = t[:, None] == np.arange(z.shape[1]) if task is Task.classes and z.shape[1] > 1 else t
    t = t.reshape(z.shape)
    if loss == LossName.sigmoid:
        return host_metrics.sigmoid_losses(z, t)
    return np.square(z - t.astype(np.float64))


def _intervals(per_example: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return bootstrap intervals of means."""
    names = [name for name in ("accuracy", "nll", "mse") if name in per_example]
    values = np.stack([per_example[name] for name in names], 1)
    resamples = min(1000, max(200, 2 * 10**8 // len(values)))  # takes some seconds at most
    ends = host_metrics.bootstrap_means(values, resamples=resamples).tolist()
    intervals = {f"{name}_interval": pair for name, pair in zip(names, ends, strict=True)}
    if "mse_interval" in intervals:
        intervals["rmse_interval"] = np.sqrt(intervals["mse_interval"]).tolist()
    return intervals
