"""Metrics of a finished run on the host, in NumPy and float64: nothing is compiled.

They agree with `jaxsoftmax.metrics` and `jaxsoftmax.losses`, which compute the same on a device.

    log_probabilities                     of scores `[N, K]`
    softmax_losses, brier_scores          of scores `[N, K]` and classes `[N]`
    sigmoid_losses, hinge_losses          of scores and labels of one shape
    label_ranks                           how many classes come before the true one
    count_classes, count_labels           right and wrong predictions
    reliability                           frequencies against probabilities
    bootstrap_means                       confidence intervals
"""

from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.app.ranking_curves import divide


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of the classes.

    Args:
        scores: `[N, K]`. A score of infinity has probability 1.

    Returns:
        float64 `[N, K]`, without ties where probabilities round to 1.

    Numerics:
        A score of infinity has all the probability, and several share it; classes are equally
        probable if all scores are -inf. A row with NaN is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.log_probabilities(np.array([[40.0, 0.0]])))
        [[-4.24835426e-18 -4.00000000e+01]]
    """
    return _shift(scores) - log_normalizers(scores)[:, None]


def log_normalizers(scores: np.ndarray) -> np.ndarray:
    """Return the log-sum-exp of the scores of each example, minus the largest of them.

    Args:
        scores: `[N, K]`.

    Returns:
        float64 `[N]`.

    Numerics:
        log1p of the sum of the others, so that no digits of a small value are lost. NaN where a
        score is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.log_normalizers(np.array([[40.0, 0.0]])))
        [4.24835426e-18]
    """
    shifted = _shift(scores)
    return np.log1p(_sum_others(shifted, shifted.argmax(1)))


def softmax_losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each example.

    Args:
        scores: `[N, K]`.
        labels: classes, `[N]`.

    Returns:
        float64 `[N]`.

    Numerics:
        No confident example cancels to 0: that is log1p of the sum of the others, down to 1e-308.
        Infinite where the label has probability 0, and NaN where a score is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.softmax_losses(np.array([[0.0, 0.0]]), np.array([1])))
        [0.69314718]
    """
    shifted = _shift(scores)
    own, others = _at(shifted, labels), _sum_others(shifted, labels)
    # lse - z_y would cancel to 0 on a confident example.
    with np.errstate(divide="ignore"):
        return np.where(own == 0, np.log1p(others), np.log(others + np.exp(own)) - own)


def brier_scores(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the squared distance of the probabilities of each example from its one-hot label.

    Args:
        scores: `[N, K]`.
        labels: classes, `[N]`.

    Returns:
        float64 `[N]`.

    Numerics:
        From 0 to 2, without cancellation where the label has a probability near 1. NaN where a
        score is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.brier_scores(np.array([[0.0, 0.0]]), np.array([1])))
        [0.5]
    """
    p = np.exp(log_probabilities(scores))
    missing = -np.expm1(-softmax_losses(scores, labels))  # 1 - p_y, without cancellation
    np.put_along_axis(p, labels[:, None], missing[:, None], 1)
    return np.square(p).sum(1)


def sigmoid_losses(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the binary cross-entropy of each score.

    Args:
        scores: of any shape.
        targets: 0 or 1, of the same shape.

    Returns:
        float64 of the same shape.

    Numerics:
        As exact as log1p for scores of any size; |score| where a confident score is wrong, infinite
        for an infinite one, and NaN for NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.sigmoid_losses(np.array([0.0, -9.0]), np.array([1, 0])))
        [6.93147181e-01 1.23402190e-04]
    """
    z = np.where(targets, -1.0, 1.0) * scores
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def hinge_losses(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the hinge loss of each label, or that of several classes of each example.

    Args:
        scores: `[N, K]`.
        targets: labels `[N, K]`, or classes `[N]`.

    Returns:
        float64 of the shape of the targets.

    Numerics:
        For finite scores; 0 beyond the margin.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.hinge_losses(np.array([[0.25, 0.0]]), np.array([0])))
        [0.75]
    """
    z = np.asarray(scores, np.float64)
    if targets.ndim == z.ndim:
        return np.maximum(0, 1 - np.where(targets, 1.0, -1.0) * z)
    others = z.copy()
    np.put_along_axis(others, targets[:, None], -np.inf, 1)
    return np.maximum(0, 1 + others.max(1) - _at(z, targets))


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes come before the true one by their scores.

    Of equal scores the class of lower index comes first, as in argmax.

    Args:
        scores: `[N, K]`.
        labels: classes, `[N]`.

    Returns:
        float64 `[N]`, NaN where a score is NaN.

    Numerics:
        Of equal scores the class of lower index comes first, as in argmax. NaN where a score is
        NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.label_ranks(np.array([[2.0, 1.0, 1.0]]), np.array([2])))
        [2.]
    """
    own = _at(scores, labels)[:, None]
    is_earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & is_earlier)).sum(1)
    return np.where(np.isnan(scores).any(1), np.nan, ranks)


class Counts(NamedTuple):
    """Right and wrong predictions of each class or label, `[K]` each; -1 if they are undefined."""

    true_positive: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """The share of the predictions of each class that are right; 0 without a prediction."""
        return self._share(self.true_positive, self.false_positive)

    @property
    def recall(self) -> np.ndarray:
        """The share of the examples of each class that are found; 0 without an example."""
        return self._share(self.true_positive, self.false_negative)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall."""
        return self._share(2 * self.true_positive, self.false_positive + self.false_negative)

    @property
    def support(self) -> np.ndarray:
        """The number of examples of each class."""
        return np.where(self.true_positive < 0, -1, self.true_positive + self.false_negative)

    def total(self) -> "Counts":
        """Return the counts of all classes together, `[1]`."""
        is_undefined = any((count < 0).any() for count in self)
        return Counts(*(np.array([-1 if is_undefined else count.sum()]) for count in self))

    @staticmethod
    def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
        return np.where(part < 0, np.nan, divide(part, part + rest))


def count_classes(predicted: np.ndarray, labels: np.ndarray, size: int) -> Counts:
    """Count the right and wrong predictions of each class.

    Args:
        predicted: classes, `[N]`; -1 for an example without a prediction, which makes all counts
            undefined.
        labels: the true classes, `[N]`.
        size: the number of classes, K.

    Returns:
        `Counts` of `[K]`.

    Numerics:
        Integers, exact. A prediction of -1 is unknown, and then all counts are: -1, whose
        precision, recall and F1 are NaN. They are 0 for a class that is neither predicted nor true.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.count_classes(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).recall)
        [1.  0.5]
    """
    if (predicted < 0).any():
        return Counts(*(np.full(size, -1) for _ in range(3)))
    is_right = predicted == labels
    found = (labels[is_right], predicted[~is_right], labels[~is_right])
    return Counts(*(np.bincount(each, minlength=size) for each in found))


def count_labels(scores: np.ndarray, targets: np.ndarray) -> Counts:
    """Count the right and wrong predictions of each label; a score above 0 predicts it.

    Args:
        scores: `[N, K]`. One that is NaN makes the counts of its label undefined.
        targets: 0 or 1, `[N, K]`.

    Returns:
        `Counts` of `[K]`.

    Numerics:
        Integers, exact. A score of 0 predicts 0, and NaN makes the counts of its label -1.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> print(host_metrics.count_labels(np.array([[1.0], [2.0]]), np.array([[1], [0]])).f1)
        [0.66666667]
    """
    is_predicted, is_true, is_undefined = scores > 0, targets == 1, np.isnan(scores).any(0)
    cells = (is_predicted & is_true, is_predicted & ~is_true, ~is_predicted & is_true)
    return Counts(*(np.where(is_undefined, -1, cell.sum(0)) for cell in cells))


class Reliability(NamedTuple):
    """A reliability diagram, as `jaxsoftmax.metrics.Reliability`."""

    error: float
    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    edges: np.ndarray


def reliability(probabilities: np.ndarray, targets: np.ndarray, *, bins: int = 15) -> Reliability:
    """Compare probabilities with frequencies, in bins of equal mass.

    All examples of one probability are in the bin that holds the middle of their weight.

    Args:
        probabilities: of any shape.
        targets: 0 or 1, of the same shape.
        bins: the number of bins, B.

    Returns:
        `Reliability`, with arrays of `[B]`; edges has one more. All are NaN if a probability is.

    Numerics:
        Bins are by rank, and equal probabilities are in one of them, so that others may be empty:
        their count is 0 and their means are NaN. A target of NaN makes the error and the mean of
        its bin NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> p, t = np.array([0.25, 0.5, 0.5, 1.0]), np.array([0, 0, 1, 1])
        >>> host_metrics.reliability(p, t, bins=2).error
        0.0625
    """
    p, t = probabilities.ravel().astype(np.float64), targets.ravel()
    if np.isnan(p).any():
        undefined = np.full(bins, np.nan)
        return Reliability(np.nan, undefined, undefined, undefined, np.append(undefined, np.nan))
    values, group, own = np.unique(p, return_inverse=True, return_counts=True)
    bin_of_value = np.floor(bins * (np.cumsum(own) - own / 2) / p.size).astype(int)
    index = bin_of_value[group]
    counts, confidence, hits, gaps = (
        np.bincount(index, x, minlength=bins) for x in (np.ones_like(p), p, t, t - p)
    )
    highest = np.full(bins, -np.inf)
    np.maximum.at(highest, bin_of_value, values)
    edges = np.maximum.accumulate(np.append(values[:1], highest))
    filled = np.where(counts > 0, counts, np.nan)
    return Reliability(
        float(np.abs(gaps).sum() / p.size), confidence / filled, hits / filled, counts, edges
    )


def bootstrap_means(values: np.ndarray, *, resamples: int) -> np.ndarray:
    """Return the 95% percentile bootstrap interval of the mean of each column.

    Args:
        values: `[N, M]`.
        resamples: the number of samples of N examples that are drawn with replacement.

    Returns:
        `[M, 2]`, the same at each call.

    Numerics:
        The same resamples at each call. NaN for a metric with NaN in an example; there must be an
        example.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_metrics
        >>> low, high = host_metrics.bootstrap_means(np.arange(100.0)[:, None], resamples=500)[0]
        >>> bool(43 < low < 45 < 54 < high < 56)
        True
    """
    rng, size = np.random.default_rng(0), len(values)
    means = np.stack([values[rng.integers(size, size=size)].mean(0) for _ in range(resamples)])
    return np.quantile(means, [0.025, 0.975], axis=0).T


def _shift(scores: np.ndarray) -> np.ndarray:
    """Return scores minus the largest of their row, in float64; infinity minus itself is 0."""
    z = np.asarray(scores, np.float64)
    largest = z.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(z == largest, 0.0, z - largest)


def _sum_others(shifted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the sum of the exponentials of all classes but one of each row."""
    exponentials = np.exp(shifted)
    np.put_along_axis(exponentials, classes[:, None], 0.0, 1)
    # A class left out must not hide a NaN.
    return np.where(np.isnan(shifted).any(1), np.nan, exponentials.sum(1))


def _at(values: np.ndarray, classes: np.ndarray) -> Any:
    return np.take_along_axis(values, classes[:, None], 1)[:, 0]
