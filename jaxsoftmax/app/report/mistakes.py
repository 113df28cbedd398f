"""The worst mistakes of a linear model: which examples, how sure it was, what argued for them."""

from typing import NamedTuple

import numpy as np

from jaxsoftmax.app.data.dataset import Task


class Mistake(NamedTuple):
    """One wrong answer.

    example: its row. output: the class predicted, or the label or number that is wrong. true,
    predicted: the class, 0 or 1 of a label, or the number. certainty: of what was predicted; the
    probability, or the lead of its score where there are no probabilities; of a number the
    distance, in units of that number's root mean square. direction: `[D]`, whose product with the
    features is what went wrong.
    """

    example: int
    output: int
    true: float
    predicted: float
    certainty: float
    direction: np.ndarray


def worst(
    task: Task,
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    w: np.ndarray,
    probabilities: np.ndarray | None = None,
    limit: int = 12,
) -> list[Mistake]:
    """Find the mistakes of which a model is surest, or the largest of numbers.

    Args:
        task: what the targets are.
        scores: `[N, K]`.
        targets: `[N]` classes, or `[N, K]` labels or numbers.
        w: the weights, `[D, K]`.
        probabilities: `[N, K]`, or None where the scores have none.
        limit: how many at most.

    Returns:
        The worst first, and of equal ones the first example first.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.report import mistakes
        >>> from jaxsoftmax.app.data.dataset import Task
        >>> scores = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
        >>> for found in mistakes.worst(Task.classes, scores, np.array([0, 0, 1]), w=np.eye(2)):
        ...     print(found.example, found.predicted, found.certainty, found.direction)
        1 1 3.0 [-1.  1.]
        2 0 2.0 [ 1. -1.]
    """
    find = {Task.classes: _classes, Task.labels: _labels, Task.numbers: _numbers}[task]
    predicted, wrong, sure = find(scores, targets, probabilities)
    badness = np.where(wrong, sure, -np.inf).ravel()
    order = np.argsort(-badness, kind="stable")[: min(limit, np.count_nonzero(wrong))]
    return [
        _mistake(task, np.unravel_index(cell, wrong.shape), predicted, targets, sure, w)
        for cell in order.tolist()
    ]


def _mistake(
    task: Task,
    place: tuple[np.intp, ...],
    predicted: np.ndarray,
    targets: np.ndarray,
    sure: np.ndarray,
    w: np.ndarray,
) -> Mistake:
    said, true, certainty = predicted[place].item(), targets[place].item(), float(sure[place])
    if task is Task.classes:
        return Mistake(int(place[0]), said, true, said, certainty, w[:, said] - w[:, true])
    output = int(place[1])
    direction = w[:, output] * np.sign(said - true)
    return Mistake(int(place[0]), output, true, said, certainty, direction)


type _Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # predicted, wrong, certainty


def _classes(scores: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None) -> _Found:
    rows, predicted = np.arange(len(scores)), scores.argmax(1)
    lead = scores[rows, predicted] - scores[rows, targets]
    sure = lead if probabilities is None else probabilities[rows, predicted]
    broken = np.isnan(scores).any(1)  # no prediction: never right, and never sure
    return predicted, (predicted != targets) | broken, np.where(broken, 0, sure)


def _labels(scores: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None) -> _Found:
    predicted = (scores > 0).astype(np.int8)
    sure = np.abs(scores) if probabilities is None else np.maximum(probabilities, 1 - probabilities)
    broken = np.isnan(scores)
    return predicted, (predicted != targets) | broken, np.where(broken, 0, sure)


def _numbers(scores: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None) -> _Found:
    distance = np.abs(scores - targets)
    spread = np.sqrt(np.mean(distance**2, 0))
    return scores, distance > 0, distance / np.where(spread == 0, 1, spread)


def arguments(mistake: Mistake, features: np.ndarray, *, limit: int = 5) -> list[tuple[int, float]]:
    """Find the features that argued most for a mistake.

    direction_j x_j is how much feature j raised the score of what was predicted above that of what
    is true, so the largest of these products are named; those that argued against are left out.

    Args:
        mistake: of `worst`.
        features: of its example as the model sees them, less those of a usual example, `[D]`.
        limit: how many at most.

    Returns:
        Pairs of a feature's number and its product.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.report import mistakes
        >>> found = mistakes.Mistake(0, 1, 0, 1, 0.9, direction=np.array([1.0, -2.0, 3.0]))
        >>> mistakes.arguments(found, np.array([5.0, 1.0, 2.0]))
        [(2, 6.0), (0, 5.0)]
    """
    pushes = mistake.direction * features
    order = np.argsort(-pushes, kind="stable")[:limit]
    return [(int(j), float(pushes[j])) for j in order if pushes[j] > 0]
