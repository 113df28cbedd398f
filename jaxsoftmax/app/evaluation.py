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
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import calibration, links, losses, metrics, training
from jaxsoftmax.app import defaults
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.linear import LinearParams


def compute_scores(
    params: LinearParams, features: np.ndarray, *, preprocessing: Preprocessing = IDENTITY
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
    return np.asarray(links.log_sigmoid(scores))


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
    link = links.sigmoid if schema.task is Task.labels else links.softmax
    return np.asarray(link(logits))


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

    For numbers: examples, loss, mse, mae, r2, and per_number, which has the same. r2 is 1 - (sum of
    squared errors) / (sum of squared deviations from the mean); for several numbers it is the mean
    of theirs.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        targets: `[N]` or `[N, K]`, the targets of a `Split`.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.
        rankings: whether to compute roc_auc and average_precision, which sort all scores of one
            class after another.
        intervals: whether to add accuracy_interval and nll_interval (or mse_interval), each two
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
        | (_intervals(raw.per_example, len(scores)) if intervals else {})
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


TITLES = {
    "examples": "examples",
    "loss": "loss",
    "accuracy": "accuracy",
    "top_3": "among the first 3",
    "top_5": "among the first 5",
    "subset_accuracy": "all labels right",
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
    "mae": "mean absolute error",
    "r2": "R²",
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
    """
    if value is None:
        return "–"
    if name in ("examples", "support"):
        return f"{value:,.0f}"
    if "accuracy" in name or name.startswith("top_"):
        return f"{value:.2%}"
    return f"{value:.4g}" if name in ("mse", "mae") or abs(value) >= 1000 else f"{value:.4f}"


_PER_ITEM = {Task.classes: "per_class", Task.labels: "per_label", Task.numbers: "per_number"}
_RANKINGS = ("roc_auc", "average_precision")
_ORDER = ("accuracy", "top_3", "top_5", "subset_accuracy", "nll", "brier", "ece",
          "macro_f1", "micro_f1", "precision", "recall", "f1", "support", *_RANKINGS, "log_loss",
          "mse", "mae", "r2")  # fmt: skip


class _RawMetrics(NamedTuple):
    """Metrics as arrays."""

    overall: dict[str, Any]  # of all examples together
    per_item: dict[str, Any]  # [K], of each class, label or number
    per_example: dict[str, Any]  # [N], the values whose means are among the overall metrics


def _raw_metrics(
    scores: np.ndarray, targets: np.ndarray, schema: Schema, *, loss: LossName, rankings: bool
) -> _RawMetrics:
    logits = to_logits(scores, schema, loss)
    has_probabilities = logits is not None
    match schema.task:
        case Task.numbers:
            return _number_metrics(scores, targets)
        case Task.classes:
            compute, z = _class_metrics, _class_scores(scores) if logits is None else logits
        case Task.labels:
            compute, z = _label_metrics, scores if logits is None else logits
    return compute(*_pad(z, targets), has_probabilities=has_probabilities, rankings=rankings)


def _pad(
    scores: np.ndarray, targets: np.ndarray, *, min_size: int = 4096
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add rows of weight 0 up to a power of 2, so that splits of similar size compile once.

    Large splits are not padded: there, compilation is a small part of the time.
    """
    size = len(scores)
    missing = max(min_size, 1 << (size - 1).bit_length()) - size if size < 2**16 else 0

    def pad(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])

    return pad(scores), pad(targets), pad(np.ones(size, np.float32))


@partial(jax.jit, static_argnames=("has_probabilities", "rankings"))
def _class_metrics(
    z: Array, labels: Array, weights: Array, *, has_probabilities: bool, rankings: bool
) -> _RawMetrics:
    counts = metrics.class_counts(z, labels, weights=weights > 0)  # in integers
    overall, per_class = _f1_averages(counts), _count_metrics(counts)
    per_example = {"accuracy": metrics.hits(z, labels)}
    if z.shape[1] > 5:
        per_example |= {f"top_{k}": metrics.hits(z, labels, k=k) for k in (3, 5)}
    if has_probabilities:
        per_example |= {"nll": losses.cross_entropy(z, labels), "brier": losses.brier(z, labels)}
        overall["ece"] = metrics.expected_calibration_error(z, labels, weights=weights).error
    if has_probabilities and rankings:
        ranked = _ranking_metrics(*metrics.one_vs_rest(z, labels), weights)
        per_class |= ranked
        overall |= {name: metrics.macro(values) for name, values in ranked.items()}
    return _RawMetrics(overall | _weighted_means(per_example, weights), per_class, per_example)


@partial(jax.jit, static_argnames=("has_probabilities", "rankings"))
def _label_metrics(
    z: Array, targets: Array, weights: Array, *, has_probabilities: bool, rankings: bool
) -> _RawMetrics:
    counts = metrics.label_counts(z, targets, weights=weights > 0)  # in integers
    ranked = _ranking_metrics(z, targets, weights) if rankings else {}
    overall, per_label = _f1_averages(counts), _count_metrics(counts) | ranked
    overall |= {name: metrics.macro(values) for name, values in ranked.items()}
    is_correct = (z > 0) == targets
    is_nan = jnp.any(jnp.isnan(z), 1)  # NaN predicts no label, which may not count as correct
    per_example = {
        "accuracy": jnp.where(is_nan, jnp.nan, jnp.mean(is_correct, 1)),
        "subset_accuracy": jnp.where(is_nan, jnp.nan, jnp.all(is_correct, 1).astype(z.dtype)),
    }
    if has_probabilities:
        per_example["nll"] = jnp.mean(losses.binary_cross_entropy(z, targets), 1)
        overall["ece"] = _label_ece(z, targets, weights)
        per_label["log_loss"] = metrics.log_loss(z, targets, weights=weights)
    return _RawMetrics(overall | _weighted_means(per_example, weights), per_label, per_example)


def _number_metrics(scores: np.ndarray, targets: np.ndarray) -> _RawMetrics:
    t = targets.reshape(scores.shape).astype(np.float64)
    squared_errors = np.square(scores - t)
    deviations = np.sum(np.square(t - t.mean(0)), 0)
    per_number = {
        "mse": squared_errors.mean(0),
        "mae": np.abs(scores - t).mean(0),
        "r2": 1 - squared_errors.sum(0) / np.where(deviations > 0, deviations, np.nan),
    }
    overall = {name: np.mean(values) for name, values in per_number.items()}
    return _RawMetrics(overall, per_number, {"mse": squared_errors.mean(1)})


def _class_scores(scores: np.ndarray) -> np.ndarray:
    """Return scores `[N, K]` whose largest decides: (0, z) for a single score z."""
    if scores.shape[1] > 1:
        return scores
    return np.concatenate([np.zeros_like(scores), scores], axis=1)


def _count_metrics(counts: metrics.Counts) -> dict[str, Array]:
    """Return the metrics of each class or label that depend on counts alone."""
    return {
        "precision": metrics.precision(counts),
        "recall": metrics.recall(counts),
        "f1": metrics.f1(counts),
        "support": counts.true_positive + counts.false_negative,
    }


def _ranking_metrics(confidences: Array, targets: Array, weights: Array) -> dict[str, Array]:
    """Return the metrics of each class or label that depend on the order of its scores.

    Classes are sorted one after another: all at once would take many copies of the scores.
    """

    def rank_class(column: tuple[Array, Array]) -> dict[str, Array]:
        return {
            "roc_auc": metrics.roc_auc(*column, weights=weights),
            "average_precision": metrics.average_precision(*column, weights=weights),
        }

    return jax.lax.map(rank_class, (confidences.T, targets.T))


def _f1_averages(counts: metrics.Counts) -> dict[str, Array]:
    return {
        "macro_f1": metrics.macro(metrics.f1(counts)),
        "micro_f1": metrics.f1(metrics.micro(counts)),
    }


def _weighted_means(per_example: dict[str, Array], weights: Array) -> dict[str, Array]:
    return {
        name: losses.weighted_mean(values, weights=weights) for name, values in per_example.items()
    }


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


def _mean_loss(scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName) -> Array:
    """Return the mean loss of the scores, which are the logits of a model with identity weights."""
    identity = LinearParams(jnp.eye(scores.shape[1], dtype=jnp.float32), None)
    z, t, weights = _pad(scores, targets)
    loss_function = defaults.make_loss(loss, schema)
    result = training.evaluate(identity, z, t, loss=loss_function, weights=weights, score=None)
    return result["loss"]


def _intervals(per_example: dict[str, Array], size: int) -> dict[str, list[Array]]:
    """Return bootstrap intervals of means; the values after the first `size` are padding."""
    names = [name for name in ("accuracy", "nll", "mse") if name in per_example]
    columns = [jnp.asarray(per_example[name][:size], jnp.float32) for name in names]
    num_resamples = min(1000, max(200, 2 * 10**8 // size))  # takes some seconds at most
    interval = metrics.bootstrap(
        _column_means, (jnp.stack(columns, 1),), key=jax.random.key(0), resamples=num_resamples
    )
    return {f"{name}_interval": [interval.low[k], interval.high[k]] for k, name in enumerate(names)}


def _column_means(table: Array) -> Array:
    return jnp.mean(table, 0)


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
    methods: dict[str, Callable[..., calibration.Fit]] = {
        "temperature": calibration.temperature_scaling,
        "vector": calibration.vector_scaling,
    }
    result: dict[str, Any] = {}
    for name, fit in methods.items():
        reason = _reason_to_skip(name, *validation, schema, loss)
        if reason is None:
            result[name] = _fit_calibration(fit, validation, test, schema, loss)
        else:
            result[name] = {"skipped": reason}
    return _to_json(result)


def _fit_calibration(
    fit: Callable[..., calibration.Fit],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    schema: Schema,
    loss: LossName,
) -> dict[str, Any]:
    scores, targets = validation
    every = slice(None, None, -(-len(scores) // MAX_CALIBRATION_EXAMPLES))
    logits = _require_logits(scores, schema, loss)
    z, t, weights = _pad(logits[every], targets[every], min_size=512)
    fitted = fit(z, t, weights=weights)
    return {
        "scale": np.asarray(fitted.scale).tolist(),
        "bias": np.asarray(fitted.bias).tolist(),
        "converged": fitted.converged,
        "validation": _before_and_after(fitted, *validation, schema, loss),
        "test": _before_and_after(fitted, *test, schema, loss),
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
    fitted: calibration.Fit, scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName
) -> dict[str, list[Array]]:
    z, t, weights = map(jnp.asarray, _pad(_require_logits(scores, schema, loss), targets))
    before, after = _nll_and_ece(z, t, weights), _nll_and_ece(fitted.apply(z), t, weights)
    return {"nll": [before[0], after[0]], "ece": [before[1], after[1]]}


@jax.jit
def _nll_and_ece(logits: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    if targets.ndim == 1:
        return (
            metrics.negative_log_likelihood(logits, targets, weights=weights),
            metrics.expected_calibration_error(logits, targets, weights=weights).error,
        )
    nll = jnp.mean(metrics.log_loss(logits, targets, weights=weights))
    return nll, _label_ece(logits, targets, weights)


def _label_ece(logits: Array, targets: Array, weights: Array) -> Array:
    """Return the expected calibration error of all labels together."""
    label_weights = jnp.broadcast_to(weights[:, None], logits.shape)
    return metrics.reliability(links.sigmoid(logits), targets, weights=label_weights).error
