"""ROC and precision-recall curves, the areas under them, and the thresholds between decisions."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

GRID = np.linspace(0, 1, 201)
"""The false positive rates and the recalls at which curves are averaged."""


class RankingCurve(NamedTuple):
    """The predictions of each threshold: the examples at or above it, the highest threshold first.

    There is one entry for each distinct confidence, so that the order of ties decides nothing.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def positives(self) -> int:
        """The number of positive examples."""
        return int(self.true_positives[-1])

    @property
    def negatives(self) -> int:
        """The number of negative examples."""
        return int(self.false_positives[-1])

    @property
    def recall(self) -> np.ndarray:
        """The share of the positives that are predicted, the true positive rate."""
        return divide(self.true_positives, self.positives)

    @property
    def false_positive_rate(self) -> np.ndarray:
        """The share of the negatives that are predicted."""
        return divide(self.false_positives, self.negatives)

    @property
    def precision(self) -> np.ndarray:
        """The share of the predictions that are right."""
        return divide(self.true_positives, self.true_positives + self.false_positives)

    @property
    def roc_auc(self) -> float:
        """The area under the ROC curve, by trapezoids; NaN without a positive or a negative."""
        if not (self.positives and self.negatives):
            return np.nan
        x, y = (np.append(0.0, rate) for rate in (self.false_positive_rate, self.recall))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    @property
    def average_precision(self) -> float:
        """The mean precision over the positives, by steps; NaN without a positive."""
        if not self.positives:
            return np.nan
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))


def rank(confidences: np.ndarray, targets: np.ndarray) -> RankingCurve | None:
    """Rank examples by their confidence.

    Args:
        confidences: `[N]`, any number that grows with the belief that the target is 1.
        targets: 0 or 1, `[N]`.

    Returns:
        The curve of all thresholds; None if a confidence is NaN.

    Numerics:
        Equal scores are one step, whatever their order; infinite scores are ranked as others.
        Without a positive or without a negative, the areas that need one are NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import ranking_curves
        >>> curve = ranking_curves.rank(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
        >>> curve.roc_auc, curve.true_positives.tolist()
        (0.875, [1, 2, 2])
    """
    if np.isnan(confidences).any():
        return None
    order = np.argsort(-confidences, kind="stable")
    ranked, is_positive = confidences[order], targets[order] == 1
    is_last = np.append(ranked[1:] != ranked[:-1], True)
    true_positives = np.cumsum(is_positive)[is_last]
    predicted = np.flatnonzero(is_last) + 1
    return RankingCurve(ranked[is_last], true_positives, predicted - true_positives)


class AverageCurve(NamedTuple):
    """Means of curves over classes: true positive rates and precisions at `GRID`, and the areas."""

    true_positive_rate: np.ndarray
    precision: np.ndarray
    roc_auc: float
    average_precision: float


def average(curves: Iterable[RankingCurve]) -> AverageCurve | None:
    """Average curves, each of which counts the same; they are read one at a time.

    Args:
        curves: curves that have positives and negatives.

    Returns:
        The mean of the true positive rates at each false positive rate, by lines between the
        thresholds, and of the precisions at the first threshold that reaches each recall. None
        without curves.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import ranking_curves
        >>> curve = ranking_curves.rank(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
        >>> mean = ranking_curves.average([curve, curve])
        >>> mean.roc_auc, float(mean.precision[0]), mean.true_positive_rate[[0, 50, -1]].tolist()
        (0.875, 1.0, [0.5, 0.75, 1.0])
    """
    rates, precisions, areas = np.zeros(len(GRID)), np.zeros(len(GRID)), []
    for curve in curves:
        x, y = (np.append(0, rate) for rate in (curve.false_positive_rate, curve.recall))
        last = np.append(np.diff(x) > 0, True)  # the top of each vertical step
        rates += np.interp(GRID, x[last], y[last])
        precisions += curve.precision[np.searchsorted(curve.recall, GRID - 1e-12)]
        areas.append((curve.roc_auc, curve.average_precision))
    if not areas:
        return None
    count = len(areas)
    return AverageCurve(rates / count, precisions / count, *np.mean(areas, 0).tolist())


def divide(part: np.ndarray, whole: np.ndarray | int) -> np.ndarray:
    """Return part / whole, or 0 where the whole is 0.

    Args:
        part: numbers.
        whole: numbers, or one number.

    Returns:
        float64.

    Numerics:
        0 / 0 is 0, as of a precision without a prediction.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import ranking_curves
        >>> print(ranking_curves.divide(np.array([1, 0]), np.array([2, 0])))
        [0.5 0. ]
    """
    return part / np.where(np.equal(whole, 0), 1, whole)
