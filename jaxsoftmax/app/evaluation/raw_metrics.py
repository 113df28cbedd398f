"""The metrics of each task as arrays: overall, by item and by example."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.app import host_metrics, ranking_curves
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.evaluation.results import RANKINGS
from jaxsoftmax.app.evaluation.scores import class_scores, in_blocks, link, link_block, to_logits
from jaxsoftmax.app.names import LossName
from jaxsoftmax.app.ranking_curves import RankingCurve


class RawMetrics(NamedTuple):
    """Metrics as arrays."""

    overall: dict[str, Any]  # of all examples together
    per_item: dict[str, Any]  # [K], of each class, label or number
    per_example: dict[str, np.ndarray]  # [N], the values whose means are among the overall metrics


def raw_metrics(
    scores: np.ndarray, targets: np.ndarray, schema: Schema, *, loss: LossName, rankings: bool
) -> RawMetrics:
    """Return the metrics of the schema's task, and those of a ranking if `rankings`."""
    logits = to_logits(scores, schema, loss)
    has_probabilities = logits is not None
    match schema.task:
        case Task.numbers:
            return _number_metrics(scores, targets)
        case Task.classes:
            z = class_scores(scores) if logits is None else logits
            return _class_metrics(z, targets, has_probabilities, rankings and has_probabilities)
        case Task.labels:
            return _label_metrics(scores, targets, has_probabilities, rankings)


def _class_metrics(
    z: np.ndarray, labels: np.ndarray, has_probabilities: bool, rankings: bool
) -> RawMetrics:
    predicted = np.where(np.isnan(z).any(1), -1, z.argmax(1))
    counts = host_metrics.count_classes(predicted, labels, z.shape[1])
    overall, per_class = _f1_averages(counts), _count_metrics(counts)
    per_example = _concatenate(
        _class_values(*block, has_probabilities=has_probabilities) for block in in_blocks(z, labels)
    )
    if has_probabilities:
        is_right = np.where(predicted < 0, np.nan, predicted == labels)
        overall["ece"] = host_metrics.reliability(per_example.pop("confidence"), is_right).error
    if rankings:
        ranked = _ranking_metrics(rank_classes(z, labels))
        per_class |= ranked
        overall |= {name: _mean_of_defined(values) for name, values in ranked.items()}
    return RawMetrics(overall | _means(per_example), per_class, per_example)


def _class_values(
    z: np.ndarray, labels: np.ndarray, *, has_probabilities: bool
) -> dict[str, np.ndarray]:
    ranks = host_metrics.label_ranks(z, labels)
    sizes = {"accuracy": 1, "top_3": 3, "top_5": 5} if z.shape[1] > 5 else {"accuracy": 1}
    values = {name: np.where(np.isnan(ranks), np.nan, ranks < k) for name, k in sizes.items()}
    if has_probabilities:
        values["nll"] = host_metrics.softmax_losses(z, labels)
        values["brier"] = host_metrics.brier_scores(z, labels)
        values["confidence"] = link_block(z, Task.classes).max(1)
    return values


def _label_metrics(
    z: np.ndarray, targets: np.ndarray, has_probabilities: bool, rankings: bool
) -> RawMetrics:
    counts = host_metrics.count_labels(z, targets)
    columns = zip(z.T, targets.T, strict=True)
    ranked = _ranking_metrics(ranking_curves.rank(*c) for c in columns) if rankings else {}
    overall, per_label = _f1_averages(counts), _count_metrics(counts) | ranked
    overall |= {name: _mean_of_defined(values) for name, values in ranked.items()}
    is_right, is_nan = (z > 0) == targets, np.isnan(z).any(1)
    per_example = {
        # NaN predicts no label, which may not count as right.
        "accuracy": np.where(is_nan, np.nan, is_right.mean(1)),
        "subset_accuracy": np.where(is_nan, np.nan, is_right.all(1)),
    }
    if has_probabilities:
        values = host_metrics.sigmoid_losses(z, targets)
        per_example["nll"], per_label["log_loss"] = values.mean(1), values.mean(0)
        overall["ece"] = host_metrics.reliability(link(z, Task.labels), targets).error
    return RawMetrics(overall | _means(per_example), per_label, per_example)


def _number_metrics(scores: np.ndarray, targets: np.ndarray) -> RawMetrics:
    t = targets.reshape(scores.shape).astype(np.float64)
    squared_errors = np.square(scores - t)
    deviations = np.sum(np.square(t - t.mean(0)), 0)
    mean_squares = squared_errors.mean(0)
    per_number = {
        "mse": mean_squares,
        "rmse": np.sqrt(mean_squares),
        "mae": np.abs(scores - t).mean(0),
        "r2": 1 - squared_errors.sum(0) / np.where(deviations > 0, deviations, np.nan),
    }
    overall = {name: np.mean(values) for name, values in per_number.items()}
    overall["rmse"] = np.sqrt(overall["mse"])
    per_number["mean"] = t.mean(0)
    return RawMetrics(overall, per_number, {"mse": squared_errors.mean(1)})


def rank_classes(logits: np.ndarray, labels: np.ndarray) -> Iterator[RankingCurve | None]:
    """Rank the examples by the probability of each class, against the rest.

    The logit of a class alone does not rank them, and probabilities round to ties at 1, so that the
    logarithms of the probabilities are ranked, one class after another.

    Args:
        logits: `[N, K]`.
        labels: classes, `[N]`.

    Yields:
        The curve of each class; None if a score is NaN.

    Numerics:
        In float64, with the difference from the largest logit taken first. None for all classes if
        a score is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> logits, labels = np.array([[2.0, 1.0], [9.0, 7.0], [0.0, 1.0]]), np.array([0, 1, 1])
        >>> [curve.roc_auc for curve in evaluation.rank_classes(logits, labels)]
        [0.5, 0.5]
    """
    normalizers = np.concatenate([host_metrics.log_normalizers(z) for z in in_blocks(logits)])
    largest = logits.max(1)
    for index in range(logits.shape[1]):
        z = logits[:, index]
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            distance = np.where(z == largest, 0.0, z - largest.astype(np.float64))
        yield ranking_curves.rank(distance - normalizers, labels == index)


def _count_metrics(counts: host_metrics.Counts) -> dict[str, np.ndarray]:
    """Return the metrics of each class or label that depend on counts alone."""
    return {name: getattr(counts, name) for name in ("precision", "recall", "f1", "support")}


def _ranking_metrics(curves: Iterable[RankingCurve | None]) -> dict[str, np.ndarray]:
    """Return the metrics of each class or label that depend on the order of its scores."""
    undefined = (np.nan,) * len(RANKINGS)
    rows = [undefined if c is None else [getattr(c, name) for name in RANKINGS] for c in curves]
    return dict(zip(RANKINGS, np.array(rows).T, strict=True))


def _f1_averages(counts: host_metrics.Counts) -> dict[str, float]:
    return {"macro_f1": _mean_of_defined(counts.f1), "micro_f1": counts.total().f1[0]}


def _mean_of_defined(values: np.ndarray) -> float:
    is_defined = ~np.isnan(values)
    return float(values[is_defined].mean()) if is_defined.any() else np.nan


def _concatenate(blocks: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    columns = list(blocks)
    return {name: np.concatenate([block[name] for block in columns]) for name in columns[0]}


def _means(per_example: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in per_example.items()}
