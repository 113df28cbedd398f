"""Scores, predictions and metrics of a fitted head.

    compute_scores         K scores (or one) per example, from its features
    to_logits              logits of the K classes or of each label, if the loss has probabilities
    compute_probabilities  their softmax, or their sigmoids
    predict                a class, labels or numbers
    compute_metrics        all metrics of a task that are meaningful for its loss, in JSON types
    calibrate              temperature and vector scaling fitted to validation scores

Heads fitted with softmax or sigmoid give probabilities. Heads fitted with hinge or squared error do
not, since the softmax of their scores would not be a probability, and they have no metrics that
need one. A sigmoid for each of K > 2 classes against the rest gives K numbers that do not sum to 1;
the probabilities are those numbers divided by their sum.

All of it runs on the host, where a few thousand examples take less time than a program to compile;
only the calibration of hundreds of classes is compiled.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsoftmax.app import host_calibration, host_metrics, ranking_curves
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.host_calibration import Scaling
from jaxsoftmax.app.names import LossName
from jaxsoftmax.app.parameters import Params
from jaxsoftmax.app.ranking_curves import RankingCurve

if TYPE_CHECKING:  # for hundreds of classes alone, since it imports JAX
    from jaxsoftmax import calibration


def compute_scores(
    params: Params, features: np.ndarray, *, preprocessing: Preprocessing = IDENTITY
) -> np.ndarray:
    """Return the scores of a linear model, computed on the host.

    Args:
        params: the model, `w: [D, K]`.
        features: float32 `[N, D]`, as they are stored. They are preprocessed a block of rows at a
            time, never as a whole.
        preprocessing: the preprocessing that the model was fitted with.

    Returns:
        float32 `[N, K]`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.compute_scores(linear.init(3, 2), np.ones((4, 3), np.float32)).shape
        (4, 2)
    """
    w, bias = np.asarray(params.w), None if params.bias is None else np.asarray(params.bias)
    scores = np.empty((len(features), w.shape[1]), np.float32)
    block_size = max(1, 2**22 // w.shape[0])
    for start in range(0, len(features), block_size):
        block = slice(start, start + block_size)
        np.matmul(preprocessing.apply(features[block]), w, out=scores[block])
    if bias is not None:
        scores += bias
    return scores


def to_logits(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray | None:
    """Return the logits of the probabilities that the scores stand for.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.

    Returns:
        `[N, K]`. For classes, logits whose softmax is the probabilities: (0, z) for a single score
        and log sigmoid(z) for a sigmoid against the rest. For labels, the logits of their sigmoids.
        None if the loss gives no probabilities.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.to_logits(np.array([[2.0]]), schema, "sigmoid"))
        [[0. 2.]]
    """
    if schema.task is Task.numbers or loss not in (LossName.softmax, LossName.sigmoid):
        return None
    if schema.task is Task.labels:
        return scores
    if loss == LossName.softmax or scores.shape[1] == 1:
        return _class_scores(scores)
    return -host_metrics.sigmoid_losses(scores, np.ones_like(scores)).astype(np.float32)


def compute_probabilities(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray | None:
    """Return the probabilities of classes or labels.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.

    Returns:
        `[N, K]`, which sum to 1 for classes; None if the loss gives no probabilities.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.compute_probabilities(np.array([[0.0]]), schema, "sigmoid"))
        [[0.5 0.5]]
    """
    logits = to_logits(scores, schema, loss)
    if logits is None:
        return None
    return link(logits, schema.task)


def link(logits: np.ndarray, task: Task) -> np.ndarray:
    """Return the probabilities of logits.

    Args:
        logits: `[N, K]`.
        task: classes, whose probabilities sum to 1, or labels.

    Returns:
        float32 `[N, K]`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> print(evaluation.link(np.array([[0.0, 0.0]]), evaluation.Task.classes))
        [[0.5 0.5]]
    """
    return np.concatenate([_link_block(block, task) for block in _blocks(logits)])


def _link_block(logits: np.ndarray, task: Task) -> np.ndarray:
    if task is Task.labels:
        log_p = -host_metrics.sigmoid_losses(logits, np.ones_like(logits))
    else:
        log_p = host_metrics.log_probabilities(logits)
    return np.exp(log_p).astype(np.float32)


def _blocks(*arrays: np.ndarray) -> Any:
    """Yield rows of the arrays, some millions of numbers at a time: float64 copies are large."""
    rows = max(1, 2**21 // max(1, arrays[0].shape[1]))
    for start in range(0, len(arrays[0]), rows):
        blocks = tuple(array[start : start + rows] for array in arrays)
        yield blocks if len(blocks) > 1 else blocks[0]


def predict(scores: np.ndarray, schema: Schema) -> np.ndarray:
    """Return the class, labels or numbers that the head predicts.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        schema: the schema of the data.

    Returns:
        For classes int `[N]`: the class with the largest score, or the second of two classes if
        the single score is above 0, and -1 if a score is NaN. For labels bool `[N, K]`: whether
        each score is above 0, which NaN is not. For numbers, the scores.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.predict(np.array([[2.0], [-1.0]]), schema))
        [1 0]
    """
    match schema.task:
        case Task.numbers:
            return scores
        case Task.labels:
            return scores > 0
        case Task.classes:
            z = _class_scores(scores)
            return np.where(np.isnan(z).any(1), -1, z.argmax(1))


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
            rmse_interval), each two
            numbers: the 95% bootstrap interval from 1,000 resamples (fewer for more than 200,000
            examples, at least 200), the same at each call.

    Returns:
        A dictionary of numbers, lists and dictionaries; None for a metric that is undefined.

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
    raw = _raw_metrics(scores, targets, schema, loss=loss, rankings=rankings)
    overall = {name: raw.overall[name] for name in _ORDER if name in raw.overall}
    if schema.task is Task.classes and len(schema.classes) == 2:
        overall |= {name: raw.per_item[name][1] for name in _RANKINGS if name in raw.per_item}
    return _to_json(
        {"examples": len(scores), "loss": _mean_loss(scores, targets, schema, loss)}
        | overall
        | (_intervals(raw.per_example) if intervals else {})
        | {_PER_ITEM[schema.task]: _rows(schema.classes, raw.per_item)}
    )


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
    (key,) = (name for name in _PER_ITEM.values() if name in metrics)
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


_PER_ITEM = {Task.classes: "per_class", Task.labels: "per_label", Task.numbers: "per_number"}
_RANKINGS = ("roc_auc", "average_precision")
_ORDER = ("accuracy", "top_3", "top_5", "subset_accuracy", "nll", "brier", "ece",
          "macro_f1", "micro_f1", "precision", "recall", "f1", "support", *_RANKINGS, "log_loss",
          "mse", "rmse", "mae", "r2", "mean")  # fmt: skip


class _RawMetrics(NamedTuple):
    """Metrics as arrays."""

    overall: dict[str, Any]  # of all examples together
    per_item: dict[str, Any]  # [K], of each class, label or number
    per_example: dict[str, np.ndarray]  # [N], the values whose means are among the overall metrics


def _raw_metrics(
    scores: np.ndarray, targets: np.ndarray, schema: Schema, *, loss: LossName, rankings: bool
) -> _RawMetrics:
    logits = to_logits(scores, schema, loss)
    has_probabilities = logits is not None
    match schema.task:
        case Task.numbers:
            return _number_metrics(scores, targets)
        case Task.classes:
            z = _class_scores(scores) if logits is None else logits
            return _class_metrics(z, targets, has_probabilities, rankings and has_probabilities)
        case Task.labels:
            return _label_metrics(scores, targets, has_probabilities, rankings)


def _class_metrics(
    z: np.ndarray, labels: np.ndarray, has_probabilities: bool, rankings: bool
) -> _RawMetrics:
    predicted = np.where(np.isnan(z).any(1), -1, z.argmax(1))
    counts = host_metrics.count_classes(predicted, labels, z.shape[1])
    overall, per_class = _f1_averages(counts), _count_metrics(counts)
    per_example = _concatenate(
        _class_values(*block, has_probabilities=has_probabilities) for block in _blocks(z, labels)
    )
    if has_probabilities:
        is_right = np.where(predicted < 0, np.nan, predicted == labels)
        overall["ece"] = host_metrics.reliability(per_example.pop("confidence"), is_right).error
    if rankings:
        ranked = _ranking_metrics(rank_classes(z, labels))
        per_class |= ranked
        overall |= {name: _mean_of_defined(values) for name, values in ranked.items()}
    return _RawMetrics(overall | _means(per_example), per_class, per_example)


def _class_values(
    z: np.ndarray, labels: np.ndarray, *, has_probabilities: bool
) -> dict[str, np.ndarray]:
    ranks = host_metrics.label_ranks(z, labels)
    sizes = {"accuracy": 1, "top_3": 3, "top_5": 5} if z.shape[1] > 5 else {"accuracy": 1}
    values = {name: np.where(np.isnan(ranks), np.nan, ranks < k) for name, k in sizes.items()}
    if has_probabilities:
        values["nll"] = host_metrics.softmax_losses(z, labels)
        values["brier"] = host_metrics.brier_scores(z, labels)
        values["confidence"] = _link_block(z, Task.classes).max(1)
    return values


def _label_metrics(
    z: np.ndarray, targets: np.ndarray, has_probabilities: bool, rankings: bool
) -> _RawMetrics:
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
    return _RawMetrics(overall | _means(per_example), per_label, per_example)


def _number_metrics(scores: np.ndarray, targets: np.ndarray) -> _RawMetrics:
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
    return _RawMetrics(overall, per_number, {"mse": squared_errors.mean(1)})


def rank_classes(logits: np.ndarray, labels: np.ndarray) -> Iterator[RankingCurve | None]:
    """Rank the examples by the probability of each class, against the rest.

    The logit of a class alone does not rank them, and probabilities round to ties at 1, so that the
    logarithms of the probabilities are ranked, one class after another.

    Args:
        logits: `[N, K]`.
        labels: classes, `[N]`.

    Yields:
        The curve of each class; None if a score is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> logits, labels = np.array([[2.0, 1.0], [9.0, 7.0], [0.0, 1.0]]), np.array([0, 1, 1])
        >>> [curve.roc_auc for curve in evaluation.rank_classes(logits, labels)]
        [0.5, 0.5]
    """
    normalizers = np.concatenate([host_metrics.log_normalizers(z) for z in _blocks(logits)])
    largest = logits.max(1)
    for index in range(logits.shape[1]):
        z = logits[:, index]
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            distance = np.where(z == largest, 0.0, z - largest.astype(np.float64))
        yield ranking_curves.rank(distance - normalizers, labels == index)


def _class_scores(scores: np.ndarray) -> np.ndarray:
    """Return scores `[N, K]` whose largest decides: (0, z) for a single score z."""
    if scores.shape[1] > 1:
        return scores
    return np.concatenate([np.zeros_like(scores), scores], axis=1)


def _count_metrics(counts: host_metrics.Counts) -> dict[str, np.ndarray]:
    """Return the metrics of each class or label that depend on counts alone."""
    return {name: getattr(counts, name) for name in ("precision", "recall", "f1", "support")}


def _ranking_metrics(curves: Iterable[RankingCurve | None]) -> dict[str, np.ndarray]:
    """Return the metrics of each class or label that depend on the order of its scores."""
    undefined = (np.nan,) * len(_RANKINGS)
    rows = [undefined if c is None else [getattr(c, name) for name in _RANKINGS] for c in curves]
    return dict(zip(_RANKINGS, np.array(rows).T, strict=True))


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
    blocks = _blocks(scores, targets)
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


def _to_json(value: Any) -> Any:
    """Return arrays and numbers as JSON types, with None for a number that is not finite."""
    match value:
        case Mapping():
            return {name: _to_json(item) for name, item in value.items()}
        case list() | tuple():
            return [_to_json(item) for item in value]
        case str() | int() | None:  # bool is an int
            return value
        case _:
            number = float(value)
            return number if np.isfinite(number) else None


# -- Calibration --

MIN_CALIBRATION_EXAMPLES = 30
"""The least number of validation examples to which a temperature is fitted.

Vector scaling needs ten examples of each class as well.
"""

MAX_CALIBRATION_EXAMPLES = 50_000
"""The largest number of examples to which a calibration is fitted.

Of more examples, every second or third (and so on) is taken.
"""

MAX_HOST_CLASSES = 200
"""The largest number of classes that are calibrated on the host, with a Hessian as a matrix."""


def calibrate(
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    schema: Schema,
    *,
    loss: LossName,
) -> dict[str, Any]:
    """Fit temperature and vector scaling to validation scores, and measure their effect.

    Args:
        validation: scores `[N, K]` and targets.
        test: the same for data to which neither the model nor the calibration was fitted.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.

    Returns:
        A dictionary for "temperature" and one for "vector". If a method does not apply, it has only
        "skipped", the reason. Else it has "scale" and "bias" (a number, or a list of K),
        "converged", and "validation" and "test", each with "nll" and "ece" as `[before, after]`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> few = np.array([[2.0], [-1.0], [3.0]]), np.array([1, 0, 0])
        >>> evaluation.calibrate(few, few, schema, loss="sigmoid")["temperature"]
        {'skipped': 'it needs 30 validation examples, and there are 3'}
    """
    result: dict[str, Any] = {}
    for name, fit in _SCALINGS.items():
        reason = _reason_to_skip(name, *validation, schema, loss)
        if reason is None:
            result[name] = _fit_calibration(fit, validation, test, schema, loss)
        else:
            result[name] = {"skipped": reason}
    return _to_json(result)


def _fit_temperature(logits: np.ndarray, targets: np.ndarray) -> Scaling:
    if logits.shape[1] <= MAX_HOST_CLASSES:
        return host_calibration.fit_temperature(logits, targets)
    from jaxsoftmax import calibration

    return _to_scaling(calibration.temperature_scaling(logits, targets))


def _fit_vector(logits: np.ndarray, targets: np.ndarray) -> Scaling:
    if logits.shape[1] <= MAX_HOST_CLASSES:
        return host_calibration.fit_vector(logits, targets)
    from jaxsoftmax import calibration

    return _to_scaling(calibration.vector_scaling(logits, targets))


def _to_scaling(fitted: "calibration.Fit") -> Scaling:
    return Scaling(np.asarray(fitted.scale), np.asarray(fitted.bias), bool(fitted.converged))


_SCALINGS = {"temperature": _fit_temperature, "vector": _fit_vector}


def _fit_calibration(
    fit: Callable[[np.ndarray, np.ndarray], Scaling],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    schema: Schema,
    loss: LossName,
) -> dict[str, Any]:
    scores, targets = validation
    every = slice(None, None, -(-len(scores) // MAX_CALIBRATION_EXAMPLES))
    scaling = fit(_require_logits(scores, schema, loss)[every], targets[every])
    return {
        "scale": scaling.scale.tolist(),
        "bias": scaling.bias.tolist(),
        "converged": scaling.converged,
        "validation": _before_and_after(scaling, *validation, schema, loss),
        "test": _before_and_after(scaling, *test, schema, loss),
    }


def _reason_to_skip(
    name: str, scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName
) -> str | None:
    """Return the reason why a calibration cannot be fitted, or None."""
    if schema.task is Task.numbers:
        return "numbers have no probabilities"
    if to_logits(scores, schema, loss) is None:
        return f"a head fitted with {loss} gives no probabilities"
    if len(scores) < MIN_CALIBRATION_EXAMPLES:
        return (
            f"it needs {MIN_CALIBRATION_EXAMPLES} validation examples, and there are {len(scores)}"
        )
    if name == "temperature":
        return None
    is_multilabel = targets.ndim == 2
    num_classes = len(schema.classes)
    positives = targets.sum(0) if is_multilabel else np.bincount(targets, minlength=num_classes)
    fewest = min(positives.min(), (len(targets) - positives).min())
    if fewest >= 10:
        return None
    return f"it needs ten validation examples of each class, and one class has {fewest}"


def _require_logits(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray:
    logits = to_logits(scores, schema, loss)
    assert logits is not None
    return logits


def _before_and_after(
    scaling: Scaling, scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName
) -> dict[str, list[float]]:
    z = _require_logits(scores, schema, loss)
    before, after = (_nll_and_ece(logits, targets) for logits in (z, scaling.apply(z)))
    return {"nll": [before[0], after[0]], "ece": [before[1], after[1]]}


def _nll_and_ece(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    is_softmax = targets.ndim == 1
    loss = host_metrics.softmax_losses if is_softmax else host_metrics.sigmoid_losses
    p = link(logits, Task.classes if is_softmax else Task.labels)
    if is_softmax:
        p, outcomes = p.max(1), logits.argmax(1) == targets
    else:
        outcomes = targets
    return float(loss(logits, targets).mean()), host_metrics.reliability(p, outcomes).error
