"""Temperature and vector scaling, fitted to validation scores, and their effect."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsoftmax.app import host_calibration, host_metrics
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.evaluation.results import to_json
from jaxsoftmax.app.evaluation.scores import link, to_logits
from jaxsoftmax.app.host_calibration import Scaling
from jaxsoftmax.app.names import LossName

if TYPE_CHECKING:  # for hundreds of classes alone, since it imports JAX
    from jaxsoftmax import calibration

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

    Numerics:
        For finite scores. Newton's method in float64; `converged` is False if the likelihood has no
        optimum, as where the scores separate the classes.

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
    return to_json(result)


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
