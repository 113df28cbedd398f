r"""Metrics of a classifier: how often it is right, how well it ranks, how far to trust it.

    of logits [..., K] and labels [...]    hits, accuracy, top_k_accuracy, negative_log_likelihood,
                                           brier_score, expected_calibration_error
    of logits and targets, per label       label_accuracy, log_loss
    counts of a single-label classifier    confusion_matrix, class_counts
    counts of a multi-label one            label_counts
    of either's counts                     precision, recall, f1, and micro, which sums counts
    of confidences and targets             roc_auc, average_precision, reliability
    of anything                            macro, the mean over classes; bootstrap, its interval

so that macro F1 is `macro(f1(counts))`, micro F1 `f1(micro(counts))`, and the one-vs-rest ROC-AUC
of a softmax `roc_auc(*one_vs_rest(logits, labels))`. The shared rules:

- every function is of arrays alone and runs under jit; `weights` is one non-negative float per
  example, and an example of weight 0 does not count, whatever it holds;
- the class predicted is the first of the largest logits; a label is predicted where its logit is
  above 0, which is a probability above one half;
- what a metric cannot say is NaN, never an exception: a logit that is NaN, a label out of range or
  a target other than 0 and 1 makes NaN of every metric in which it counts, and so do data without
  what the metric needs (for ROC-AUC one positive and one negative);
- sums are float32, or float64 for float64 logits: counts of examples are exact to 2^24 a cell.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsoftmax import checks, derivatives, links, losses, placement
from jaxsoftmax.losses import weighted_mean

TOGETHER = 2**20  # confidences that are ranked at once, of some labels of all


def hits(logits: ArrayLike, labels: ArrayLike, *, k: int = 1) -> Array:
    r"""Whether each label is among the k classes of largest logit: 1 or 0.

    [#{j: z_j > z_y} + #{j < y: z_j = z_y} < k]

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        k: how many classes an example may name.

    Returns:
        `[...]`, float32 or float64; NaN where a logit is NaN or the label out of range.

    Numerics:
        Exact. Of equal logits the class of lower index comes first, as in argmax.

    Raises:
        TypeError: logits are not floats, or labels not integers.
        ValueError: shapes that do not fit, or k below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.hits(jnp.array([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), jnp.array([1, 0])))
        [0. 1.]

    Reference:
        Russakovsky et al., "ImageNet large scale visual recognition challenge" (2015), for k = 5.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    z, index, bad = _classes(logits, labels)
    own = derivatives.label_logit(z, index, z.ndim - 1)[..., None]
    earlier = lax.broadcasted_iota(index.dtype, z.shape, z.ndim - 1) < index[..., None]
    rank = jnp.sum((z > own) | ((z == own) & earlier), -1)
    return jnp.where(bad, jnp.nan, (rank < k).astype(z.dtype))


def accuracy(logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    r"""Share of the examples whose label has the largest logit.

    sum_i w_i [argmax_k z_ik = y_i] / sum_i w_i

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        A scalar; 0 for zero total weight.

    Numerics:
        `weighted_mean` of `hits`: the first of equal logits is the prediction.

    Raises:
        TypeError: logits are not floats, or labels not integers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.accuracy(jnp.array([[2.0, 1.0], [3.0, 1.0]]), jnp.array([0, 1])))
        0.5

    Reference:
        scikit-learn's `accuracy_score`.
    """
    return weighted_mean(hits(logits, labels), weights=weights)


def top_k_accuracy(
    logits: ArrayLike, labels: ArrayLike, *, k: int, weights: ArrayLike | None = None
) -> Array:
    r"""Share of the examples whose label is among the k largest logits.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        k: how many classes an example may name.
        weights: floats, `[...]`.

    Returns:
        A scalar; 0 for zero total weight.

    Numerics:
        `weighted_mean` of `hits`: of equal logits the class of lower index comes first, so that
        k = 1 is `accuracy`; scikit-learn lets the higher one come first.

    Raises:
        TypeError: logits are not floats, or labels not integers.
        ValueError: shapes that do not fit, or k below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.top_k_accuracy(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([1]), k=2))
        1.0

    Reference:
        scikit-learn's `top_k_accuracy_score`.
    """
    return weighted_mean(hits(logits, labels, k=k), weights=weights)


def negative_log_likelihood(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Mean cross-entropy, -sum_i w_i log p_i(y_i) / sum_i w_i.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        A scalar; 0 for zero total weight.

    Numerics:
        `weighted_mean` of `cross_entropy`, with its exactness and its infinities.

    Derivatives:
        Those of `cross_entropy`.

    Raises:
        TypeError: logits are not floats, or labels not integers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.negative_log_likelihood(jnp.zeros((4, 2)), jnp.array([0, 1, 1, 1])))
        0.6931472

    Reference:
        scikit-learn's `log_loss`, which clips probabilities.
    """
    return weighted_mean(losses.cross_entropy(logits, labels), weights=weights)


def brier_score(logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    r"""Mean Brier loss, sum_i w_i sum_k (p_ik - [k = y_i])^2 / sum_i w_i.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        A scalar from 0 to 2; 0 for zero total weight.

    Numerics:
        `weighted_mean` of `brier`.

    Derivatives:
        Those of `brier`.

    Raises:
        TypeError: logits are not floats, or labels not integers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.brier_score(jnp.zeros((1, 2)), jnp.array([0])))
        0.5

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability" (1950), the original;
        scikit-learn's `brier_score_loss` with `scale_by_half=False`.
    """
    return weighted_mean(losses.brier(logits, labels), weights=weights)


def log_loss(logits: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    r"""Mean binary cross-entropy of each label, sum_i w_i l(z_il, t_il) / sum_i w_i.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: numbers in [0, 1] or bools of the logits' shape.
        weights: floats, `[N]`.

    Returns:
        `[L]`, or a scalar for one label; 0 for zero total weight.

    Numerics:
        `weighted_mean` of `binary_cross_entropy`, label by label.

    Derivatives:
        Those of `binary_cross_entropy`.

    Raises:
        TypeError: logits are not floats, or targets no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.log_loss(jnp.array([[0.0, 2.0]]), jnp.array([[1, 1]])))
        [0.6931472 0.126928 ]

    Reference:
        scikit-learn's `log_loss` of each column.
    """
    return _mean_per_label(losses.binary_cross_entropy(logits, targets), weights)


def label_accuracy(
    logits: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Share of the examples on which each label is right, [z > 0] = t.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: 0 or 1 as numbers or bools, of the logits' shape.
        weights: floats, `[N]`.

    Returns:
        `[L]`, or a scalar for one label: of a binary classifier its accuracy. 0 for zero total
        weight.

    Numerics:
        A logit of 0, a probability of one half, predicts 0.

    Raises:
        TypeError: logits are not floats, or targets no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[1.0, -1.0], [1.0, 2.0]])
        >>> print(metrics.label_accuracy(logits, jnp.array([[1, 1], [1, 1]])))
        [1.  0.5]

    Reference:
        scikit-learn's `accuracy_score` of each column; of all, 1 minus its `hamming_loss`.
    """
    z, positive, bad = _labels(logits, targets, "logits")
    right = ((z > 0) == positive).astype(z.dtype)
    return _mean_per_label(jnp.where(bad, jnp.nan, right), weights)


# -- Counts --


class Counts(NamedTuple):
    """Weight of the examples that are right and wrong about a class: `[K]` each, or `[]`.

    Positive is what is predicted, false what is not so: a false negative is an example of the
    class to which another class was given, or which lacks the label.
    """

    true_positive: Array
    false_positive: Array
    false_negative: Array


def confusion_matrix(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Weight of the examples of each true class (row) and predicted class (column).

    C_jk = sum_i w_i [y_i = j] [argmax z_i = k]

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        `[K, K]`, float32 or float64; all NaN where one example that counts has no answer.

    Numerics:
        Unit weights are exact to 2^24 a cell; others are added one by one.

    Raises:
        TypeError: logits are not floats, or labels not integers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
        >>> print(metrics.confusion_matrix(logits, jnp.array([0, 1, 1])))
        [[1. 0.]
         [1. 1.]]

    Reference:
        scikit-learn's `confusion_matrix` with `labels=range(K)`.
    """
    z, index, bad = _classes(logits, labels)
    # Numbers of each example, and no logits, go to all devices where an Explicit mesh shards them.
    numbers = (_counted(weights, bad, z.dtype), index, jnp.argmax(z, -1))
    w, true, predicted = map(placement.replicated, numbers)
    cells = jnp.zeros((z.shape[-1], z.shape[-1]), z.dtype)
    # An example without an answer has no cell: 0 * NaN says so in every one.
    return cells.at[true, predicted].add(w) + 0 * jnp.sum(w)


def class_counts(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Counts:
    r"""Right and wrong of each class of a single-label classifier.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        `Counts` of `[K]`.

    Numerics:
        Those of `confusion_matrix`, its diagonal and the sums beside it; nothing is subtracted.

    Raises:
        TypeError: logits are not floats, or labels not integers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
        >>> print(metrics.class_counts(logits, jnp.array([0, 1, 1])).false_positive)
        [1. 0.]

    Reference:
        scikit-learn's `multilabel_confusion_matrix`.
    """
    cells = confusion_matrix(logits, labels, weights=weights)
    wrong = cells * (1 - jnp.eye(len(cells), dtype=cells.dtype))
    return Counts(jnp.diagonal(cells), jnp.sum(wrong, 0), jnp.sum(wrong, 1))


def label_counts(
    logits: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Counts:
    r"""Right and wrong of each label of a multi-label or binary classifier.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: 0 or 1 as numbers or bools, of the logits' shape.
        weights: floats, `[N]`.

    Returns:
        `Counts` of `[L]`, or of scalars for one label.

    Numerics:
        A logit of 0, a probability of one half, predicts 0.

    Raises:
        TypeError: logits are not floats, or targets no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[1.0, -1.0], [1.0, 2.0]])
        >>> print(metrics.label_counts(logits, jnp.array([[1, 1], [0, 1]])).false_negative)
        [0. 1.]

    Reference:
        scikit-learn's `multilabel_confusion_matrix`.
    """
    z, positive, bad = _labels(logits, targets, "logits")
    w, predicted = _counted_labels(weights, bad, z.dtype), z > 0

    def total(chosen: Array) -> Array:
        return jnp.sum(w * chosen.astype(w.dtype), 0)

    return Counts(total(predicted & positive), total(predicted & ~positive),
                  total(~predicted & positive))  # fmt: skip


def micro(counts: Counts) -> Counts:
    """Counts of all classes together: of these, `precision`, `recall` and `f1` are micro-averages.

    Args:
        counts: of `class_counts` or `label_counts`, `[K]`.

    Returns:
        `Counts` of scalars.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([2.0, 1.0]), jnp.zeros(2), jnp.array([2.0, 0.0]))
        >>> print(metrics.f1(metrics.micro(counts)))
        0.75

    Reference:
        scikit-learn's `average="micro"`; of a single-label classifier the accuracy.
    """
    return Counts(*(jnp.sum(count) for count in counts))


def macro(values: ArrayLike) -> Array:
    """Mean of a metric over the classes for which it is defined.

    Args:
        values: floats, `[K]`, NaN for a class of which the metric says nothing.

    Returns:
        A scalar; NaN where no class has a value.

    Numerics:
        NaN is left out. scikit-learn's `average="macro"` of ROC-AUC is NaN with one label that
        has one value only; `jnp.mean` says that.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.macro(jnp.array([0.5, 1.0, jnp.nan])))
        0.75

    Reference:
        scikit-learn's `average="macro"`.
    """
    return jnp.nanmean(checks.accumulated(checks.floating(values, "values")))


def precision(counts: Counts) -> Array:
    """Share of the predictions of a class that are right, tp / (tp + fp).

    Args:
        counts: of `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`; 0 for a class that is never predicted.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), jnp.zeros(2))
        >>> print(metrics.precision(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `precision_score` with `zero_division=0`, `labels=range(K)`.
    """
    return _ratio(counts.true_positive, counts.true_positive + counts.false_positive)


def recall(counts: Counts) -> Array:
    """Share of the examples of a class that are found, tp / (tp + fn).

    Args:
        counts: of `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`; 0 for a class without examples.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.zeros(2), jnp.array([1.0, 0.0]))
        >>> print(metrics.recall(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `recall_score` with `zero_division=0`, `labels=range(K)`.
    """
    return _ratio(counts.true_positive, counts.true_positive + counts.false_negative)


def f1(counts: Counts) -> Array:
    """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn).

    Args:
        counts: of `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`; 0 for a class that neither occurs nor is predicted, which `macro` counts in.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), jnp.ones(2))
        >>> print(metrics.f1(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `f1_score` with `zero_division=0`, `labels=range(K)`.
    """
    twice = 2 * counts.true_positive
    return _ratio(twice, twice + counts.false_positive + counts.false_negative)


# -- Rankings --


def one_vs_rest(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    r"""Confidences and targets of each class of a softmax against the rest.

    A class's logit alone does not rank examples, its probability does; log p_k ranks alike, and
    does not round to a tie where p_k rounds to 1.

    Args:
        logits: floats, `[N, K]`.
        labels: integers, `[N]`.

    Returns:
        log p `[N, K]` and one-hot labels `[N, K]`, NaN for a label out of range: the arguments of
        `roc_auc` and `average_precision`.

    Numerics:
        Those of `log_softmax`.

    Raises:
        TypeError: logits are not floats, or labels not integers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [9.0, 7.0], [0.0, 1.0]])
        >>> print(metrics.roc_auc(*metrics.one_vs_rest(logits, jnp.array([0, 1, 1]))))
        [0.5 0.5]

    Reference:
        scikit-learn's `multi_class="ovr"`.
    """
    z, index, bad = _classes(logits, labels)
    hot = lax.broadcasted_iota(index.dtype, z.shape, z.ndim - 1) == index[..., None]
    return links.log_softmax(z), jnp.where(bad[..., None], jnp.nan, hot.astype(z.dtype))


def roc_auc(
    confidences: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Area under the ROC curve: how often a positive outranks a negative.

    sum_ij w_i w_j ([c_i > c_j] + [c_i = c_j] / 2) / sum_ij w_i w_j, over positives i, negatives j.

    Args:
        confidences: floats, `[N, L]`, or `[N]` for one label: whatever grows with the belief that
            the target is 1, such as the logit of a sigmoid; for a softmax see `one_vs_rest`.
        targets: 0 or 1 as numbers or bools, of the same shape.
        weights: floats, `[N]`.

    Returns:
        `[L]`, or a scalar for one label; NaN without a positive or without a negative
        of any weight.

    Numerics:
        Equal confidences are one step of the curve, whatever their order: no rounding decides it.

    Raises:
        TypeError: confidences are not floats, or targets no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.roc_auc(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])))
        0.875

    Reference:
        Hanley and McNeil, Radiology 143 (1982); scikit-learn's `roc_auc_score`.
    """

    def area(true: Array, false: Array) -> Array:
        above = jnp.cumsum(true) - true / 2
        return jnp.sum(false / jnp.sum(false) * (above / jnp.sum(true)))

    return _of_steps(area, confidences, targets, weights)


def average_precision(
    confidences: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Mean precision over the positives, sum_n (R_n - R_(n-1)) P_n.

    P_n and R_n are precision and recall of the examples at or above the n-th distinct confidence:
    the step definition, without interpolation.

    Args:
        confidences: floats, `[N, L]`, or `[N]` for one label, as of `roc_auc`.
        targets: 0 or 1 as numbers or bools, of the same shape.
        weights: floats, `[N]`.

    Returns:
        `[L]`, or a scalar for one label; NaN without a positive of any weight, where scikit-learn
        warns and says 0. Without a negative it is 1.

    Numerics:
        Equal confidences are one step, whatever their order.

    Raises:
        TypeError: confidences are not floats, or targets no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.average_precision(jnp.array([0.8, 0.6, 0.4]), jnp.array([1, 0, 1])))
        0.8333334

    Reference:
        scikit-learn's `average_precision_score`.
    """

    def mean_precision(true: Array, false: Array) -> Array:
        found = jnp.cumsum(true)
        return jnp.sum(true / jnp.sum(true) * _ratio(found, found + jnp.cumsum(false)))

    return _of_steps(mean_precision, confidences, targets, weights)


def _of_steps(
    summary: Callable[[Array, Array], Array],
    confidences: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None,
) -> Array:
    """Of each label, a summary of the weights of positives and of negatives at each step.

    A step is one distinct confidence, the largest first; unused steps at the end have weight 0.
    """
    c, positive, bad = _labels(confidences, targets, "confidences")
    w = _counted_labels(weights, bad, c.dtype)
    c, positive, w = (_whole_columns(a, c) for a in (c, positive, w))

    def of_label(c: Array, positive: Array, w: Array) -> Array:
        order, step = _ties(-c)
        total = functools.partial(jax.ops.segment_sum, segment_ids=step, num_segments=c.shape[0])
        w, positive = w[order], positive[order]
        return summary(total(jnp.where(positive, w, 0)), total(jnp.where(positive, 0, w)))

    if c.ndim == 1:
        return of_label(c, positive, w)
    # Some labels at a time: each needs ten arrays of N.
    together = max(1, TOGETHER // max(1, c.shape[0])) if placement.known(c.shape[0]) else 1
    columns = [c.T, positive.T, w.T]
    if together < c.shape[1]:
        columns = [placement.replicated(a) for a in columns]  # no loop steps over a sharded axis
    return lax.map(lambda label: of_label(*label), columns, batch_size=together)


def _whole_columns(x: Array, like: Array) -> Array:
    """All examples of a label on one device: an Explicit mesh does not sort what it shards."""
    return placement.resharded(x, like, None, *placement.spec(like)[1:])


def _ties(values: Array) -> tuple[Array, Array]:
    """The order that sorts the values, and in that order the number of each one's group of ties."""
    order = jnp.argsort(values)
    ascending = values[order]
    starts = jnp.concatenate([jnp.zeros_like(ascending[:1], bool), ascending[1:] != ascending[:-1]])
    return order, jnp.cumsum(starts, dtype=jnp.int32)


# -- Calibration --


class Reliability(NamedTuple):
    """A reliability diagram and the expected calibration error, its mean gap.

    Bin b holds the confidences in (edges[b], edges[b + 1]], the first bin its lower edge too. A bin
    may be empty where ties outweigh it: its count is 0 and its means are NaN.
    """

    error: Array  # [], sum_b counts_b |accuracy_b - confidence_b| / sum_b counts_b
    confidence: Array  # [B], mean probability
    accuracy: Array  # [B], mean target
    counts: Array  # [B], weight of the examples
    edges: Array  # [B + 1]


def reliability(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    bins: int = 15,
    weights: ArrayLike | None = None,
) -> Reliability:
    r"""Probabilities against frequencies, in bins of equal mass.

    error = sum_b |sum over i in b of w_i (t_i - p_i)| / sum_i w_i

    Ties are never split: an example, or all examples of one probability together, is in the bin
    that holds the middle of its weight among the sorted weights, floor(B (below + own / 2) / all).
    So the order of the examples does not matter, and without ties the bins' counts differ by at
    most 1 (of unit weights).

    Args:
        probabilities: floats of any shape, all of which go into the same bins.
        targets: the events' outcomes, of the same shape: 0 or 1 as numbers or bools.
        bins: B.
        weights: floats of the same shape.

    Returns:
        `Reliability`; all NaN for zero total weight.

    Numerics:
        Within a bin the gaps t - p are summed, not the difference of two sums taken.

    Raises:
        TypeError: probabilities are not floats, or targets no numbers.
        ValueError: shapes that do not fit, or bins below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> p, t = jnp.array([0.25, 0.5, 0.5, 1.0]), jnp.array([0, 0, 1, 1])
        >>> result = metrics.reliability(p, t, bins=2)
        >>> print(result.counts, result.edges, result.error)
        [1. 3.] [0.25 0.25 1.  ] 0.0625

    Reference:
        Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language
        processing models" (2015), for bins of equal mass.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    p, positive, bad = map(_flat, _labels(probabilities, targets, "probabilities"))
    w = _counted(None if weights is None else _flat(jnp.asarray(weights)), bad, p.dtype)
    order, group = _ties(p)
    p, w, t = p[order], w[order], positive[order].astype(p.dtype)
    index = _equal_mass(w, group, bins)

    def total(x: Array) -> Array:
        return jax.ops.segment_sum(jnp.where(w == 0, 0, w * x), index, num_segments=bins)

    mass = jnp.sum(w)
    counts = total(jnp.ones_like(w)) + 0 * mass  # NaN in every bin where one has no answer
    lowest = jnp.min(jnp.where(w == 0, jnp.inf, p), initial=jnp.inf, keepdims=True)
    highest = jax.ops.segment_max(jnp.where(w == 0, -jnp.inf, p), index, num_segments=bins)
    edges = lax.cummax(jnp.concatenate([lowest, highest]))
    return Reliability(
        error=jnp.sum(jnp.abs(total(t - p))) / mass,
        confidence=total(p) / counts,
        accuracy=total(t) / counts,
        counts=counts,
        edges=jnp.where(mass > 0, edges, jnp.nan),
    )


def _flat(x: Array) -> Array:
    """All numbers in one axis, on every device: an Explicit mesh does not sort what it shards."""
    return placement.replicated(x).ravel()


def _equal_mass(w: Array, group: Array, bins: int) -> Array:
    """Of examples in order, the bin in which the middle of the weight of their ties lies."""
    own = jax.ops.segment_sum(w, group, num_segments=w.shape[0])
    middle = (jnp.cumsum(own) - own / 2)[group]
    index = jnp.floor(bins * middle / jnp.sum(w))
    return jnp.clip(jnp.nan_to_num(index), 0, bins - 1).astype(jnp.int32)


def expected_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    weights: ArrayLike | None = None,
) -> Reliability:
    r"""Expected calibration error of the predicted class, with its bins.

    `reliability` of max_k p_k against whether that class is the label. For a sigmoid head take
    `reliability(sigmoid(logits), targets)`.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        bins: how many bins of equal mass.
        weights: floats, `[...]`.

    Returns:
        `Reliability`, of which `error` is the expected calibration error.

    Numerics:
        Equal confidences stay in one bin, so that those that round to 1 do too; see `reliability`.

    Raises:
        TypeError: logits are not floats, or labels not integers.
        ValueError: shapes that do not fit, or bins below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits, labels = jnp.zeros((3, 2)), jnp.array([0, 0, 1])
        >>> print(metrics.expected_calibration_error(logits, labels, bins=2).error)
        0.16666667

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017), with
        bins of equal mass in place of equal width.
    """
    # In the accumulation dtype: half-precision confidences would be off by more than they err.
    z = checks.accumulated(checks.floating(logits))
    confidence = jnp.max(links.softmax(z), -1)
    return reliability(confidence, hits(z, labels), bins=bins, weights=weights)


# -- Intervals --


class Interval(NamedTuple):
    """A metric's estimate and its bootstrap interval; each of the metric's own form."""

    estimate: Any
    low: Any
    high: Any


def bootstrap(
    metric: Callable[..., Any],
    data: tuple[ArrayLike, ...],
    *,
    key: Array,
    resamples: int = 1000,
    level: float = 0.95,
    batch_size: int = 16,
) -> Interval:
    r"""Percentile bootstrap interval of a metric of example-aligned arrays.

    Draws N examples with replacement, R times; the interval is from the (1 - level) / 2 to the
    (1 + level) / 2 quantile of metric(*resample).

    Args:
        metric: a function of the arrays that runs under jit and vmap, returning an array or a tree
            of them: `accuracy`, or a `functools.partial` of another.
        data: its arguments, arrays of `[N, ...]`, weights too if the metric takes them so.
        key: a random key; the same key gives the same interval.
        resamples: R.
        level: the interval's coverage, between 0 and 1.
        batch_size: how many resamples are computed at once, by vmap; each holds a copy of the data.

    Returns:
        `Interval(estimate, low, high)`: the metric of the data, and the ends.

    Numerics:
        Resamples on which the metric is NaN (a ROC-AUC that drew no positive) are left out. Where
        the metric is a mean, hand in its values: `bootstrap(weighted_mean, (hits(z, y),), ...)`
        draws one number an example.

    Raises:
        ValueError: arrays of different lengths, or none; resamples or batch_size below 1; level
            outside (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits, labels = jnp.eye(2)[jnp.arange(100) % 2], jnp.arange(100) % 4 % 2
        >>> labels = labels.at[:20].set(0)
        >>> result = metrics.bootstrap(metrics.accuracy, (logits, labels), key=jax.random.key(0))
        >>> print(f"{result.low:.2f} < {result.estimate:.2f} < {result.high:.2f}")
        0.84 < 0.90 < 0.96

    Reference:
        Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapter 13.
    """
    for name, value in (("resamples", resamples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    arrays = tuple(jnp.asarray(a) for a in data)
    if len({a.shape[:1] for a in arrays}) != 1 or 0 in arrays[0].shape[:1] or not arrays[0].ndim:
        raise ValueError(
            "data: expected arrays of one length, at least 1, got shapes "
            f"{[a.shape for a in arrays]}"
        )
    values = _resampled(arrays, key, metric, resamples, min(batch_size, resamples))
    ends = (1 - level) / 2, (1 + level) / 2
    low, high = (
        jax.tree.map(lambda v, end=end: jnp.nanquantile(v, end, axis=0), values) for end in ends
    )
    return Interval(metric(*arrays), low, high)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _resampled(
    arrays: tuple[Array, ...], key: Array, metric: Callable, resamples: int, batch_size: int
) -> Any:
    size = len(arrays[0])

    def one(key: Array) -> Any:
        rows = jax.random.randint(key, (size,), 0, size)
        values = metric(*(placement.taken(a, rows, a, placement.row_axes(a, size)) for a in arrays))
        return jax.tree.map(lambda v: checks.accumulated(jnp.asarray(v)), values)

    return lax.map(one, jax.random.split(key, resamples), batch_size=batch_size)


# -- What they share --


def _classes(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """Logits, labels that exist, and which examples have no answer."""
    z = checks.accumulated(checks.floating(logits))
    index, known = checks.class_labels(labels, z, checks.class_axis(z, -1))
    return z, index, ~known | jnp.any(jnp.isnan(z), -1)


def _labels(values: ArrayLike, targets: ArrayLike, name: str) -> tuple[Array, Array, Array]:
    """Values of each label, whether its target is 1, and where there is no answer."""
    v = checks.accumulated(checks.floating(values, name))
    t = checks.numbers(targets, "targets").astype(v.dtype)
    checks.shaped(t, v.shape, "targets", f"that of {name}")
    if name != "probabilities" and v.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [N] or [N, L], got {v.shape}")
    return v, t == 1, jnp.isnan(v) | ((t != 0) & (t != 1))


def _counted(weights: ArrayLike | None, bad: Array, dtype: Any) -> Array:
    """The examples' weights, NaN for one that counts and has no answer."""
    if weights is None:
        return jnp.where(bad, jnp.nan, jnp.ones(bad.shape, dtype))
    w = checks.floating(weights, "weights").astype(dtype)
    checks.shaped(w, bad.shape, "weights", "one per example")
    return jnp.where(bad & (w != 0), jnp.nan, w)


def _counted_labels(weights: ArrayLike | None, bad: Array, dtype: Any) -> Array:
    """As `_counted`, with one weight `[N]` for all of an example's labels `[N, L]`."""
    if weights is None or bad.ndim == 1:
        return _counted(weights, bad, dtype)
    return jax.vmap(lambda bad: _counted(weights, bad, dtype), in_axes=1, out_axes=1)(bad)


def _mean_per_label(values: Array, weights: ArrayLike | None) -> Array:
    """`weighted_mean` over the examples `[N]` of each label."""
    if values.ndim not in (1, 2):
        raise ValueError(f"logits: expected shape [N] or [N, L], got {values.shape}")
    mean = functools.partial(weighted_mean, weights=weights)
    return mean(values) if values.ndim == 1 else jax.vmap(mean, in_axes=1)(values)


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, 0 where the whole is 0."""
    return part / jnp.where(whole == 0, 1, whole)
