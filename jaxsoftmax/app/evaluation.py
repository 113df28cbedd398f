"""What a fitted head says of examples, and how right it is: scores, probabilities, figures.

    scores           of features, K (or one) per example
    log_confidences  logits of the K classes, or of each label, where the loss gives probabilities
    probabilities    their softmax, or sigmoids
    predicted        a class, labels or numbers
    figures          every metric of a task that its loss gives meaning to, in JSON's types
    calibrate        temperature and vector scaling on validation scores, before and after

Softmax and sigmoid are fitted to give probabilities; hinge and squared error are not, and the
softmax of their scores would be none. Their heads have no probabilities here, nor the figures that
need them. A sigmoid against the rest for each of K > 2 classes gives K numbers that do not sum to
1; the probabilities are those numbers divided by their sum.
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


def scores(
    params: LinearParams, features: np.ndarray, *, preprocessing: Preprocessing = IDENTITY
) -> np.ndarray:
    """Scores of a linear model, on the host.

    Args:
        params: the model, `w: [D, K]`.
        features: float32 `[N, D]` as they are stored; they are mapped by parts of some rows, never
            as a whole.
        preprocessing: what the model was fitted on.

    Returns:
        float32 `[N, K]`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.scores(linear.init(3, 2), np.ones((4, 3), np.float32)).shape
        (4, 2)
    """
    w, bias = np.asarray(params.w), None if params.bias is None else np.asarray(params.bias)
    result = np.empty((len(features), w.shape[1]), np.float32)
    rows = max(1, 2**22 // w.shape[0])
    for start in range(0, len(features), rows):
        part = slice(start, start + rows)
        np.matmul(preprocessing.apply(features[part]), w, out=result[part])
    if bias is not None:
        result += bias
    return result


def log_confidences(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray | None:
    """Return what to hand to metrics and calibration as logits.

    Args:
        scores: `[N, K]`, or `[N, 1]` of a binary sigmoid.
        schema: of the data.
        loss: that the head was fitted with.

    Returns:
        `[N, K]`: of classes, logits whose softmax is the probabilities, (0, z) of one score and
        log sigmoid(z) of a sigmoid against the rest; of labels, the logits of sigmoids. None where
        the loss gives no probabilities.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.log_confidences(np.array([[2.0]]), schema, "sigmoid"))
        [[0. 2.]]
    """
    if schema.task is Task.numbers or loss not in (LossName.softmax, LossName.sigmoid):
        return None
    if scores.shape[1] == 1 and schema.task is Task.classes:
        return np.concatenate([np.zeros_like(scores), scores], axis=1)
    if schema.task is Task.classes and loss == LossName.sigmoid:
        return np.asarray(links.log_sigmoid(scores))
    return scores


def probabilities(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray | None:
    """Return the probabilities of classes or labels.

    Args:
        scores: `[N, K]`, or `[N, 1]` of a binary sigmoid.
        schema: of the data.
        loss: that the head was fitted with.

    Returns:
        `[N, K]`, of classes with sum 1; None where the loss gives none.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.probabilities(np.array([[0.0]]), schema, "sigmoid"))
        [[0.5 0.5]]
    """
    logits = log_confidences(scores, schema, loss)
    if logits is None:
        return None
    link = links.sigmoid if schema.task is Task.labels else links.softmax
    return np.asarray(link(logits))


def predicted(scores: np.ndarray, schema: Schema) -> np.ndarray:
    """Return what the head decides.

    Args:
        scores: `[N, K]`, or `[N, 1]` of a binary sigmoid.
        schema: of the data.

    Returns:
        Of classes int `[N]`, that of the greatest score, or the second of two where one score is
        above 0, and -1 where a score is NaN; of labels bool `[N, K]`, scores above 0, which NaN is
        not; of numbers the scores.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.predicted(np.array([[2.0], [-1.0]]), schema))
        [1 0]
    """
    if schema.task is Task.numbers:
        return scores
    if schema.task is Task.labels:
        return scores > 0
    z = _class_scores(scores)
    return np.where(np.isnan(z).any(1), -1, z.argmax(1))


def figures(
    scores: np.ndarray,
    targets: np.ndarray,
    schema: Schema,
    *,
    loss: LossName,
    rankings: bool = True,
    intervals: bool = False,
) -> dict[str, Any]:
    """Return every figure of the task that the loss gives meaning to, in JSON's types.

    Of classes: examples, loss, accuracy, top_3 and top_5 (of more than 5), macro_f1, micro_f1 and
    per_class with name, precision, recall, f1 and support; with probabilities also nll, brier,
    ece, roc_auc and average_precision (of two classes the second's, else the mean of each against
    the rest, which per_class has too).

    Of labels: examples, loss, accuracy (of all labels together), subset_accuracy (all of an
    example's right), macro_f1, micro_f1, roc_auc, average_precision (means over labels), and
    per_label as above; with probabilities also nll (mean over labels), ece, and log_loss per label.

    Of numbers: examples, loss, mse, mae, r2, and per_number with the same. r2 is 1 - sum of squared
    errors / sum of squared deviations from the mean, for several numbers the mean of theirs.

    Args:
        scores: `[N, K]`, or `[N, 1]` of a binary sigmoid.
        targets: `[N]` or `[N, K]`, as a `Split` has them.
        schema: of the data.
        loss: that the head was fitted with.
        rankings: whether to tell roc_auc and average_precision, for which all scores are sorted,
            class by class.
        intervals: whether to add accuracy_interval and nll_interval (or mse_interval): two numbers,
            the 95 % bootstrap interval of 1,000 resamples (of more than 200,000 examples fewer,
            down to 200), the same at each call.

    Returns:
        Names to numbers, lists and dictionaries; None for what the data leave undefined.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> scores, targets = np.array([[2.0], [-1.0], [3.0]]), np.array([1, 0, 0])
        >>> told = evaluation.figures(scores, targets, schema, loss="sigmoid")
        >>> print(f"{told['accuracy']:.2f} {told['nll']:.2f} {told['roc_auc']:.1f}")
        0.67 1.16 0.5
    """
    logits = log_confidences(scores, schema, loss)
    if schema.task is Task.numbers:
        told = _of_numbers(scores, targets)
    else:
        tell = _of_classes if schema.task is Task.classes else _of_labels
        decided = _class_scores(scores) if tell is _of_classes else scores
        decided = decided if logits is None else logits
        probable = logits is not None
        told = tell(*_padded(decided, targets), probable=probable, rankings=rankings)
    whole = {name: told.whole[name] for name in _ORDER if name in told.whole}
    if schema.task is Task.classes and len(schema.classes) == 2:
        whole |= {name: told.each[name][1] for name in _RANKINGS if name in told.each}
    return _plain(
        {"examples": len(scores), "loss": _mean_loss(scores, targets, schema, loss)}
        | whole
        | (_intervals(told.means, len(scores)) if intervals else {})
        | {_EACH[schema.task]: _rows(schema.classes, told.each)}
    )


def sections(told: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Part figures into those of all examples and those of each class, label or number.

    Args:
        told: of `figures`.

    Returns:
        The former, and the latter's list.

    Example:
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.sections({"mse": 2.0, "per_number": [{"name": "price", "mse": 2.0}]})
        ({'mse': 2.0}, [{'name': 'price', 'mse': 2.0}])
    """
    each = [name for name in _EACH.values() if name in told]
    return {name: v for name, v in told.items() if name not in each}, told[each[0]]


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
"""What figures are called."""


def written(name: str, value: float | None) -> str:
    """Write a figure as it usually is: shares of examples in per cent, others in few digits.

    Args:
        name: of the figure.
        value: its value, None where it is undefined.

    Returns:
        A few characters.

    Example:
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.written("accuracy", 0.5), evaluation.written("r2", None)
        ('50.00%', '–')
    """
    if value is None:
        return "–"
    if name in ("examples", "support"):
        return f"{value:,.0f}"
    if "accuracy" in name or name.startswith("top_"):
        return f"{value:.2%}"
    return f"{value:.4g}" if name in ("mse", "mae") or abs(value) >= 1000 else f"{value:.4f}"


_EACH = {Task.classes: "per_class", Task.labels: "per_label", Task.numbers: "per_number"}
_RANKINGS = ("roc_auc", "average_precision")
_ORDER = ("accuracy", "top_3", "top_5", "subset_accuracy", "nll", "brier", "ece",
          "macro_f1", "micro_f1", "precision", "recall", "f1", "support", *_RANKINGS, "log_loss",
          "mse", "mae", "r2")  # fmt: skip


class _Told(NamedTuple):
    """Figures of all examples, of each class `[K]`, and each example's values `[N]` of means."""

    whole: dict[str, Any]
    each: dict[str, Any]
    means: dict[str, Any]


def _padded(
    scores: np.ndarray, targets: np.ndarray, *, least: int = 4096
) -> tuple[np.ndarray, ...]:
    """Add rows of weight 0 up to a power of 2, so that splits of about one size compile once.

    Large ones stay as they are: there compiling is not what takes time.
    """
    size = len(scores)
    missing = max(least, 1 << (size - 1).bit_length()) - size if size < 2**16 else 0
    weights = np.ones(len(scores), np.float32)
    return tuple(
        np.pad(a, [(0, missing), *[(0, 0)] * (a.ndim - 1)]) for a in (scores, targets, weights)
    )


@partial(jax.jit, static_argnames=("probable", "rankings"))
def _of_classes(
    z: Array, labels: Array, weights: Array, *, probable: bool, rankings: bool
) -> _Told:
    counts = metrics.class_counts(z, labels, weights=weights > 0)  # in integers
    whole, each = _averages(counts), _per_class(counts)
    means = {"accuracy": metrics.hits(z, labels)}
    if z.shape[1] > 5:
        means |= {f"top_{k}": metrics.hits(z, labels, k=k) for k in (3, 5)}
    if probable:
        means |= {"nll": losses.cross_entropy(z, labels), "brier": losses.brier(z, labels)}
        whole["ece"] = metrics.expected_calibration_error(z, labels, weights=weights).error
    if probable and rankings:
        ranked = _rankings(*metrics.one_vs_rest(z, labels), weights)
        each |= ranked
        whole |= {name: metrics.macro(values) for name, values in ranked.items()}
    return _Told(whole | _averaged(means, weights), each, means)


@partial(jax.jit, static_argnames=("probable", "rankings"))
def _of_labels(
    z: Array, targets: Array, weights: Array, *, probable: bool, rankings: bool
) -> _Told:
    counts = metrics.label_counts(z, targets, weights=weights > 0)  # in integers
    right = (z > 0) == targets
    ranked = _rankings(z, targets, weights) if rankings else {}
    whole, each = _averages(counts), _per_class(counts) | ranked
    whole |= {name: metrics.macro(values) for name, values in ranked.items()}
    nan = jnp.any(jnp.isnan(z), 1)  # which is no label, and not right for that
    means = {
        "accuracy": jnp.where(nan, jnp.nan, jnp.mean(right, 1)),
        "subset_accuracy": jnp.where(nan, jnp.nan, jnp.all(right, 1).astype(z.dtype)),
    }
    if probable:
        means["nll"] = jnp.mean(losses.binary_cross_entropy(z, targets), 1)
        whole["ece"] = _label_ece(z, targets, weights)
        each["log_loss"] = metrics.log_loss(z, targets, weights=weights)
    return _Told(whole | _averaged(means, weights), each, means)


def _of_numbers(scores: np.ndarray, targets: np.ndarray) -> _Told:
    t = targets.reshape(scores.shape).astype(np.float64)
    squares = np.square(scores - t)
    spread = np.sum(np.square(t - t.mean(0)), 0)
    each = {"mse": squares.mean(0), "mae": np.abs(scores - t).mean(0)}
    each["r2"] = 1 - squares.sum(0) / np.where(spread > 0, spread, np.nan)
    return _Told(
        {name: np.mean(values) for name, values in each.items()}, each, {"mse": squares.mean(1)}
    )


def _class_scores(scores: np.ndarray) -> np.ndarray:
    """Scores `[N, K]` of which the greatest decides, (0, z) of a single one."""
    return (
        scores if scores.shape[1] > 1 else np.concatenate([np.zeros_like(scores), scores], axis=1)
    )


def _per_class(counts: metrics.Counts) -> dict[str, Array]:
    return {
        "precision": metrics.precision(counts),
        "recall": metrics.recall(counts),
        "f1": metrics.f1(counts),
        "support": counts.true_positive + counts.false_negative,
    }


def _rankings(confidences: Array, targets: Array, weights: Array) -> dict[str, Array]:
    """Of one class after the other: sorting all at once would take many copies of the scores."""

    def of_class(column: tuple[Array, Array]) -> dict[str, Array]:
        return {
            "roc_auc": metrics.roc_auc(*column, weights=weights),
            "average_precision": metrics.average_precision(*column, weights=weights),
        }

    return jax.lax.map(of_class, (confidences.T, targets.T))


def _averages(counts: metrics.Counts) -> dict[str, Array]:
    return {
        "macro_f1": metrics.macro(metrics.f1(counts)),
        "micro_f1": metrics.f1(metrics.micro(counts)),
    }


def _averaged(means: dict[str, Array], weights: Array) -> dict[str, Array]:
    return {name: losses.weighted_mean(values, weights=weights) for name, values in means.items()}


def _rows(names: tuple[str, ...], each: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary a class, of its name and figures; a count that is negative nobody can tell."""
    columns = {name: np.asarray(each[name]).tolist() for name in _ORDER if name in each}
    if "support" in columns:
        columns["support"] = [count if count >= 0 else None for count in columns["support"]]
    return [
        {"name": name} | {figure: values[k] for figure, values in columns.items()}
        for k, name in enumerate(names)
    ]


def _mean_loss(scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName) -> Array:
    """Of the scores themselves: those of a model whose weights are the identity."""
    identity = LinearParams(jnp.eye(scores.shape[1], dtype=jnp.float32), None)
    z, t, weights = _padded(scores, targets)
    values = defaults.make_loss(loss, schema)
    return training.evaluate(identity, z, t, loss=values, weights=weights, score=None)["loss"]


def _intervals(means: dict[str, Array], size: int) -> dict[str, list[Array]]:
    chosen = {name: means[name][:size] for name in ("accuracy", "nll", "mse") if name in means}
    table = jnp.stack([jnp.asarray(values, jnp.float32) for values in chosen.values()], 1)
    resamples = min(1000, max(200, 2 * 10**8 // size))  # some seconds at most
    interval = metrics.bootstrap(
        _column_means, (table,), key=jax.random.key(0), resamples=resamples
    )
    return {
        f"{name}_interval": [interval.low[k], interval.high[k]] for k, name in enumerate(chosen)
    }


def _column_means(table: Array) -> Array:
    return jnp.mean(table, 0)


def _plain(value: Any) -> Any:
    """Of arrays and numbers, JSON's; None for what is no finite number."""
    if isinstance(value, Mapping):
        return {name: _plain(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inside) for inside in value]
    if isinstance(value, str | int | bool | None):
        return value
    number = float(value)
    return number if np.isfinite(number) else None


# -- Calibration --

FEWEST = 30
"""Examples below which a temperature says little; vector scaling asks for ten of each class too."""

ENOUGH = 50_000
"""Examples to which a calibration is fitted at most, every second or third of larger data."""


def calibrate(
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    schema: Schema,
    *,
    loss: LossName,
) -> dict[str, Any]:
    """Fit temperature and vector scaling to validation scores, and tell what they do to both.

    Args:
        validation: scores `[N, K]` and targets.
        test: the same of data that neither the model nor the calibration was fitted to.
        schema: of the data.
        loss: that the head was fitted with.

    Returns:
        "temperature" and "vector", each a dictionary of either "skipped", the reason, or of
        "scale" and "bias" (a number, or a list of K), "converged", and "validation" and "test",
        each with "nll" and "ece" as `[before, after]`.

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
    told: dict[str, Any] = {}
    for name, method in methods.items():
        reason = _no_calibration(name, *validation, schema, loss)
        if reason:
            told[name] = {"skipped": reason}
            continue
        logits = _logits(validation[0], schema, loss)
        some = slice(None, None, -(-len(logits) // ENOUGH))
        z, t, weights = _padded(logits[some], validation[1][some], least=512)
        fitted = method(z, t, weights=weights)
        told[name] = {
            "scale": np.asarray(fitted.scale).tolist(),
            "bias": np.asarray(fitted.bias).tolist(),
            "converged": fitted.converged,
            "validation": _before_and_after(fitted, *validation, schema, loss),
            "test": _before_and_after(fitted, *test, schema, loss),
        }
    return _plain(told)


def _no_calibration(
    name: str, scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName
) -> str | None:
    """Why not, or None."""
    if schema.task is Task.numbers:
        return "numbers have no probabilities"
    if log_confidences(scores, schema, loss) is None:
        return f"a head fitted with {loss} gives no probabilities"
    if len(scores) < FEWEST:
        return f"it needs {FEWEST} validation examples, and there are {len(scores)}"
    if name == "temperature":
        return None
    one = (
        targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(schema.classes))
    )
    fewest = min(one.min(), (len(targets) - one).min())
    if fewest >= 10:
        return None
    return f"it needs ten validation examples of each class, and one class has {fewest}"


def _logits(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray:
    logits = log_confidences(scores, schema, loss)
    assert logits is not None
    return logits


def _before_and_after(
    fitted: calibration.Fit, scores: np.ndarray, targets: np.ndarray, schema: Schema, loss: LossName
) -> dict[str, list[Array]]:
    z, t, weights = map(jnp.asarray, _padded(_logits(scores, schema, loss), targets))
    both = [_nll_and_ece(logits, t, weights) for logits in (z, fitted.apply(z))]
    return {"nll": [nll for nll, _ in both], "ece": [ece for _, ece in both]}


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
    """Of all labels together."""
    each = jnp.broadcast_to(weights[:, None], logits.shape)
    return metrics.reliability(links.sigmoid(logits), targets, weights=each).error
