"""The worst mistakes of a linear model, and the features that contributed most to them."""

from typing import NamedTuple

import numpy as np

from jaxsoftmax.app.data.dataset import Task


class Mistake(NamedTuple):
    """One wrong prediction.

    example: the row of the example. output: the predicted class, or the label or number that is
    wrong. true, predicted: the class, 0 or 1 for a label, or the number. severity: for classes and
    labels the probability of the prediction or, where there are no probabilities, the lead of its
    score; for a number the error, in units of that number's root mean square error. direction:
    `[D]`, how much one unit of each feature moves the scores toward the mistake.
    """

    example: int
    output: int
    true: float
    predicted: float
    severity: float
    direction: np.ndarray


def find_worst(
    task: Task,
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    w: np.ndarray,
    probabilities: np.ndarray | None = None,
    limit: int = 12,
) -> list[Mistake]:
    """Find the mistakes with the most confident predictions, or the largest errors of numbers.

    Args:
        task: the kind of target.
        scores: `[N, K]`.
        targets: `[N]` classes, or `[N, K]` labels or numbers.
        w: the weights, `[D, K]`.
        probabilities: `[N, K]`, or None where the scores have none.
        limit: the largest number of mistakes to return.

    Returns:
        The mistakes, the worst first; equal ones in the order of the examples.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.report import mistakes
        >>> from jaxsoftmax.app.data.dataset import Task
        >>> scores = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
        >>> worst = mistakes.find_worst(Task.classes, scores, np.array([0, 0, 1]), w=np.eye(2))
        >>> for mistake in worst:
        ...     print(mistake.example, mistake.predicted, mistake.severity, mistake.direction)
        1 1 3.0 [-1.  1.]
        2 0 2.0 [ 1. -1.]
    """
    judge = {
        Task.classes: _judge_classes,
        Task.labels: _judge_labels,
        Task.numbers: _judge_numbers,
    }[task]
    predictions = judge(scores, targets, probabilities)
    is_wrong = predictions.is_wrong
    badness = np.where(is_wrong, predictions.severity, -np.inf).ravel()
    order = np.argsort(-badness, kind="stable")[: min(limit, np.count_nonzero(is_wrong))]
    return [
        _make_mistake(task, np.unravel_index(cell, is_wrong.shape), predictions, targets, w)
        for cell in order.tolist()
    ]


class _Predictions(NamedTuple):
    """`[N]` for classes, `[N, K]` for labels and numbers."""

    predicted: np.ndarray
    is_wrong: np.ndarray
    severity: np.ndarray


def _make_mistake(
    task: Task,
    index: tuple[np.intp, ...],
    predictions: _Predictions,
    targets: np.ndarray,
    w: np.ndarray,
) -> Mistake:
    predicted, true = predictions.predicted[index].item(), targets[index].item()
    severity = float(predictions.severity[index])
    if task is Task.classes:
        output, direction = predicted, w[:, predicted] - w[:, true]
    else:
        output = int(index[1])
        direction = w[:, output] * np.sign(predicted - true)
    return Mistake(int(index[0]), output, true, predicted, severity, direction)


def _judge_classes(
    scores: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None
) -> _Predictions:
    rows, predicted = np.arange(len(scores)), scores.argmax(1)
    lead = scores[rows, predicted] - scores[rows, targets]
    severity = lead if probabilities is None else probabilities[rows, predicted]
    is_nan = np.isnan(scores).any(1)  # no prediction, which is wrong but the least severe mistake
    return _Predictions(predicted, (predicted != targets) | is_nan, np.where(is_nan, 0, severity))


def _judge_labels(
    scores: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None
) -> _Predictions:
    predicted = (scores > 0).astype(np.int8)
    if probabilities is None:
        severity = np.abs(scores)
    else:
        severity = np.maximum(probabilities, 1 - probabilities)
    is_nan = np.isnan(scores)
    return _Predictions(predicted, (predicted != targets) | is_nan, np.where(is_nan, 0, severity))


def _judge_numbers(
    scores: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None
) -> _Predictions:
    error = np.abs(scores - targets)
    root_mean_square = np.sqrt(np.mean(error**2, 0))
    severity = error / np.where(root_mean_square == 0, 1, root_mean_square)
    return _Predictions(scores, error > 0, severity)


def largest_contributions(
    mistake: Mistake, features: np.ndarray, *, limit: int = 5
) -> list[tuple[int, float]]:
    """Find the features that contributed most to a mistake.

    Feature j raised the score of the prediction above that of the truth by direction_j x_j. The
    largest of these products are returned, and those that are not positive are left out.

    Args:
        mistake: a result of `find_worst`.
        features: the features of its example after preprocessing, minus those of an average
            example, `[D]`.
        limit: the largest number of features to return.

    Returns:
        Pairs of the index of a feature and its product.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.report import mistakes
        >>> mistake = mistakes.Mistake(0, 1, 0, 1, 0.9, direction=np.array([1.0, -2.0, 3.0]))
        >>> mistakes.largest_contributions(mistake, np.array([5.0, 1.0, 2.0]))
        [(2, 6.0), (0, 5.0)]
    """
    contributions = mistake.direction * features
    order = np.argsort(-contributions, kind="stable")[:limit]
    return [(int(j), float(contributions[j])) for j in order if contributions[j] > 0]
