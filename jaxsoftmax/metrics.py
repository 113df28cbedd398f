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

- every function is of arrays alone and runs under jit; `weights` is one non-negative number per
  example, or one for all, and an example of weight 0 does not count, whatever it holds;
- the class predicted is the first of the largest logits; a label is predicted where its logit is
  above 0, which is a probability above one half;
- what a metric cannot say is NaN, never an exception: a logit that is NaN, a label out of range or
  a target other than 0 and 1 makes NaN of every metric in which it counts, and so do data without
  what the metric needs (for ROC-AUC one positive and one negative); a mean over no examples, or
  over none of any weight, is 0, as `weighted_mean` has it;
- sums are float32, or float64 for float64 logits, and none of them is one long running sum, which
  would stop at 2^24 examples;
- counts are integers unless weights are floats: exact to a total of 2 10^9, int64 where
  `jax_enable_x64` is set. An integer cannot be NaN: there a count without an answer is -1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import calls, links, losses, placement, softmax_core, validation
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.validation import ArrayLike

TOGETHER = 2**20  # confidences that are ranked at once, of some labels of all
IN_SEQUENCE = 2**12  # at least so many terms are added one by one, in float32


@calls.compiled("k")
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
    z, index, known = _classes(logits, labels)
    bad = ~known | jnp.any(jnp.isnan(z), -1)
    own = softmax_core.label_logit(z, index, z.ndim - 1)[..., None]
    earlier = lax.broadcasted_iota(index.dtype, z.shape, z.ndim - 1) < index[..., None]
    rank = jnp.sum((z > own) | ((z == own) & earlier), -1)
    return jnp.where(bad, jnp.nan, (rank < k).astype(z.dtype))


@calls.compiled()
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


@calls.compiled("k")
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


@calls.compiled()
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


@calls.compiled()
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


@calls.compiled()
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


@calls.compiled()
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
    class to which another class was given, or which lacks the label. Integers or floats; a count
    that nobody can tell is NaN, among integers negative.
    """

    true_positive: Array
    false_positive: Array
    false_negative: Array


@calls.compiled()
def confusion_matrix(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Weight of the examples of each true class (row) and predicted class (column).

    C_jk = sum_i w_i [y_i = j] [argmax z_i = k]

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: numbers or bools, `[...]` or a scalar.

    Returns:
        `[K, K]`, integers, or float32 or float64 where weights are floats; all -1, or NaN, where
        one example that counts has no answer. Zeros for no examples and for zero total weight.

    Numerics:
        Integers are exact to a total weight of 2 10^9, and all -1 where it reaches 2^31; floats are
        added in blocks, so that no sum of ones stops at 2^24.

    Raises:
        TypeError: logits are not floats, labels not integers, or weights no numbers.
        ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
        >>> print(metrics.confusion_matrix(logits, jnp.array([0, 1, 1])))
        [[1 0]
         [1 1]]

    Reference:
        scikit-learn's `confusion_matrix` with `labels=range(K)`.
    """
    w, true, predicted, lost = _decisions(logits, labels, weights)
    classes = jnp.shape(logits)[-1]
    return _answer(_sums(w, (true, predicted), (classes, classes)), lost)


@calls.compiled()
def class_counts(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Counts:
    r"""Right and wrong of each class of a single-label classifier.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: numbers or bools, `[...]` or a scalar.

    Returns:
        `Counts` of `[K]`, of the dtype and with the meaning of `confusion_matrix`: its diagonal and
        the sums beside it.

    Numerics:
        Those of `confusion_matrix`, in memory O(N + K). Nothing is subtracted.

    Raises:
        TypeError: logits are not floats, labels not integers, or weights no numbers.
        ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
        >>> print(metrics.class_counts(logits, jnp.array([0, 1, 1])).false_positive)
        [1 0]

    Reference:
        scikit-learn's `multilabel_confusion_matrix`.
    """
    w, true, predicted, lost = _decisions(logits, labels, weights)

    def total(chosen: Array, index: Array) -> Array:
        return _answer(_sums(jnp.where(chosen, w, 0), (index,), jnp.shape(logits)[-1:]), lost)

    right = true == predicted
    return Counts(total(right, true), total(~right, predicted), total(~right, true))


@calls.compiled()
def label_counts(
    logits: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Counts:
    r"""Right and wrong of each label of a multi-label or binary classifier.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: 0 or 1 as numbers or bools, of the logits' shape.
        weights: numbers or bools, `[N]` or a scalar.

    Returns:
        `Counts` of `[L]`, or of scalars for one label, of the dtype of `confusion_matrix`; a label
        for which one example that counts has no answer has -1, or NaN. Zeros for no examples and
        for zero total weight.

    Numerics:
        A logit of 0, a probability of one half, predicts 0. Integers are exact to a total weight of
        2 10^9, and -1 where it reaches 2^31.

    Raises:
        TypeError: logits are not floats, or targets or weights no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[1.0, -1.0], [1.0, 2.0]])
        >>> print(metrics.label_counts(logits, jnp.array([[1, 1], [0, 1]])).false_negative)
        [0 1]

    Reference:
        scikit-learn's `multilabel_confusion_matrix`.
    """
    z, positive, bad = _labels(logits, targets, "logits")
    w, lost = _counted_labels(weights, bad, z.dtype)
    predicted = z > 0

    def total(chosen: Array) -> Array:
        return _answer(jnp.sum(jnp.where(chosen, w, 0), 0), lost)

    return Counts(total(predicted & positive), total(predicted & ~positive),
                  total(~predicted & positive))  # fmt: skip


def micro(counts: Counts) -> Counts:
    """Counts of all classes together: of these, `precision`, `recall` and `f1` are micro-averages.

    Args:
        counts: of `class_counts` or `label_counts`, `[K]`, integers or floats.

    Returns:
        `Counts` of scalars, integers of integers; 0 of no classes.

    Numerics:
        A sum of integers is exact to 2 10^9, and -1 where it reaches 2^31 or one of them is
        negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([2.0, 1.0]), jnp.zeros(2), jnp.array([2.0, 0.0]))
        >>> print(metrics.f1(metrics.micro(counts)))
        0.75

    Reference:
        scikit-learn's `average="micro"`; of a single-label classifier the accuracy.
    """
    return Counts(*(_total(_count(count)) for count in counts))


def macro(values: ArrayLike) -> Array:
    """Mean of a metric over the classes for which it is defined.

    Args:
        values: floats, `[K]`, NaN for a class of which the metric says nothing, or counts as
            integers, negative likewise.

    Returns:
        A scalar; NaN where no class has a value, or there are no classes.

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
    return _mean_of_known(_count(values, "values"))


def precision(counts: Counts) -> Array:
    """Share of the predictions of a class that are right, tp / (tp + fp).

    Args:
        counts: of `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`, floats; 0 for a class that is never predicted, and NaN where a count is.

    Numerics:
        Integer counts of any size are rounded once, to floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), jnp.zeros(2))
        >>> print(metrics.precision(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `precision_score` with `zero_division=0`, `labels=range(K)`.
    """
    true_positive, false_positive, _ = map(_count, counts)
    return _share([true_positive], [false_positive])


def recall(counts: Counts) -> Array:
    """Share of the examples of a class that are found, tp / (tp + fn).

    Args:
        counts: of `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`, floats; 0 for a class without examples, and NaN where a count is.

    Numerics:
        Integer counts of any size are rounded once, to floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.zeros(2), jnp.array([1.0, 0.0]))
        >>> print(metrics.recall(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `recall_score` with `zero_division=0`, `labels=range(K)`.
    """
    true_positive, _, false_negative = map(_count, counts)
    return _share([true_positive], [false_negative])


def f1(counts: Counts) -> Array:
    """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn).

    Args:
        counts: of `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`, floats; 0 for a class that neither occurs nor is predicted, which `macro`
        counts in, and NaN where a count is.

    Numerics:
        Integer counts of any size are rounded once, to floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), jnp.ones(2))
        >>> print(metrics.f1(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `f1_score` with `zero_division=0`, `labels=range(K)`.
    """
    true_positive, *wrong = map(_count, counts)
    return _share([true_positive, true_positive], wrong)


# -- Rankings --


@calls.compiled()
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
    z, index, known = _classes(logits, labels)
    bad = ~known | jnp.any(jnp.isnan(z), -1)
    hot = lax.broadcasted_iota(index.dtype, z.shape, z.ndim - 1) == index[..., None]
    return links.log_softmax(z), jnp.where(bad[..., None], jnp.nan, hot.astype(z.dtype))


@calls.compiled()
def roc_auc(
    confidences: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Area under the ROC curve: how often a positive outranks a negative.

    sum_ij w_i w_j ([c_i > c_j] + [c_i = c_j] / 2) / sum_ij w_i w_j, over positives i, negatives j.

    Args:
        confidences: floats, `[N, L]`, or `[N]` for one label: whatever grows with the belief that
            the target is 1, such as the logit of a sigmoid; for a softmax see `one_vs_rest`.
        targets: 0 or 1 as numbers or bools, of the same shape.
        weights: numbers or bools, `[N]` or a scalar.

    Returns:
        `[L]`, or a scalar for one label; NaN without a positive or without a negative
        of any weight, and so for no examples.

    Numerics:
        Equal confidences are one step of the curve, whatever their order: no rounding decides it.
        Examples are counted in integers unless weights are floats.

    Raises:
        TypeError: confidences are not floats, or targets or weights no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.roc_auc(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])))
        0.875

    Reference:
        Hanley and McNeil, Radiology 143 (1982); scikit-learn's `roc_auc_score`.
    """

    def area(steps: _Steps) -> Array:
        positives, negatives = jnp.sum(steps.true), jnp.sum(steps.false)
        above = steps.found - steps.true / 2
        won = jnp.sum(steps.false / negatives * (above / positives))
        return jnp.where((positives > 0) & (negatives > 0), won, jnp.nan)

    return _of_steps(area, confidences, targets, weights)


@calls.compiled()
def average_precision(
    confidences: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Mean precision over the positives, sum_n (R_n - R_(n-1)) P_n.

    P_n and R_n are precision and recall of the examples at or above the n-th distinct confidence:
    the step definition, without interpolation.

    Args:
        confidences: floats, `[N, L]`, or `[N]` for one label, as of `roc_auc`.
        targets: 0 or 1 as numbers or bools, of the same shape.
        weights: numbers or bools, `[N]` or a scalar.

    Returns:
        `[L]`, or a scalar for one label; NaN without a positive of any weight, and so for no
        examples, where scikit-learn warns and says 0. Without a negative it is 1.

    Numerics:
        Equal confidences are one step, whatever their order. Examples are counted in integers
        unless weights are floats.

    Raises:
        TypeError: confidences are not floats, or targets or weights no numbers. ValueError: shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.average_precision(jnp.array([0.8, 0.6, 0.4]), jnp.array([1, 0, 1])))
        0.8333334

    Reference:
        scikit-learn's `average_precision_score`.
    """

    def mean_precision(steps: _Steps) -> Array:
        positives = jnp.sum(steps.true)
        at_each = _ratio(steps.found, steps.found + steps.mistaken)
        mean = jnp.sum(steps.true / positives * at_each)
        return jnp.where(positives > 0, mean, jnp.nan)

    return _of_steps(mean_precision, confidences, targets, weights)


class _Steps(NamedTuple):
    """Weights of positives and of negatives at each step, `[N]`, and at it or above.

    A step is one distinct confidence, the largest first; unused steps at the end have weight 0.
    """

    true: Array
    false: Array
    found: Array
    mistaken: Array


def _of_steps(
    summary: Callable[[_Steps], Array],
    confidences: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None,
) -> Array:
    """A summary of each label's steps."""
    c, positive, bad = _labels(confidences, targets, "confidences")
    w, lost = _counted_labels(weights, bad, c.dtype)
    c, positive, w = (_whole_columns(a, c) for a in (c, positive, w))

    def of_label(c: Array, positive: Array, w: Array) -> Array:
        order, step = _ties(-c)
        w, positive = w[order], positive[order]
        true, false = (_tied(jnp.where(p, w, 0), step) for p in (positive, ~positive))
        steps = _Steps(true, false, jnp.cumsum(true), jnp.cumsum(false))
        return summary(_Steps(*(weight.astype(c.dtype) for weight in steps)))

    if c.ndim == 1:
        return _answer(of_label(c, positive, w), lost)
    # Some labels at a time: each needs ten arrays of N.
    together = max(1, TOGETHER // max(1, c.shape[0])) if placement.is_static(c.shape[0]) else 1
    columns = [c.T, positive.T, w.T]
    if together < c.shape[1]:
        columns = [placement.replicate(a) for a in columns]  # no loop steps over a sharded axis
    return _answer(lax.map(lambda label: of_label(*label), columns, batch_size=together), lost)


def _whole_columns(x: Array, like: Array) -> Array:
    """All examples of a label on one device: an Explicit mesh does not sort what it shards."""
    return placement.reshard(x, like, None, *placement.partition_spec(like)[1:])


def _ties(values: Array) -> tuple[Array, Array]:
    """The order that sorts the values, and in that order the number of each one's group of ties."""
    order = jnp.argsort(values)
    ascending = values[order]
    starts = jnp.concatenate([jnp.zeros_like(ascending[:1], bool), ascending[1:] != ascending[:-1]])
    return order, jnp.cumsum(starts, dtype=jnp.int32)


def _tied(w: Array, group: Array) -> Array:
    """Sums `[N]` of the weights of each group of ties, of weights in the order that sorts them.

    They are taken by parts of a group of `IN_SEQUENCE` terms at most, and then of the parts: a
    scatter adds one by one, and a float32 sum of ones stops at 2^24. Groups and blocks of terms
    both ascend, so that the sum of their numbers is the number of the part.
    """
    size = w.shape[0]
    part = group + lax.iota(jnp.int32, size) // IN_SEQUENCE
    parts = jnp.zeros(size + size // IN_SEQUENCE + 1, w.dtype).at[part].add(w)
    whose = jnp.zeros(parts.shape, jnp.int32).at[part].set(group)
    return jnp.zeros_like(w).at[whose].add(parts)


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


Binning = Literal["equal_mass", "equal_width"]


@calls.compiled("bins", "binning")
def reliability(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal_mass",
    weights: ArrayLike | None = None,
) -> Reliability:
    r"""Probabilities against frequencies, in bins of equal mass or of equal width.

    error = sum_b |sum over i in b of w_i (t_i - p_i)| / sum_i w_i

    Of equal mass: ties are never split: an example, or all examples of one probability together, is
    in the bin that holds the middle of its weight among the sorted weights,
    floor(B (below + own / 2) / all). So the order of the examples does not matter, and without ties
    the bins' counts differ by at most 1 (of unit weights).

    Of equal width: bin b holds the probabilities in (b / B, (b + 1) / B], the first bin 0 too.

    Args:
        probabilities: floats of any shape, all of which go into the same bins.
        targets: the events' outcomes, of the same shape: 0 or 1 as numbers or bools.
        bins: B.
        binning: `"equal_mass"` or `"equal_width"`, as most published figures have it.
        weights: numbers or bools of the same shape, or a scalar.

    Returns:
        `Reliability`, of floats; for no examples and for zero total weight counts of 0, and all
        else NaN.

    Numerics:
        Within a bin the gaps t - p are summed, not the difference of two sums taken. The edges of
        bins of equal width are b / B in the dtype of the sums, with which probabilities are
        compared: a float32 0.2 is in the third of fifteen bins. What rounding leaves outside of
        [0, 1] is in the first or the last.

    Raises:
        TypeError: probabilities are not floats, or targets or weights no numbers.
        ValueError: shapes that do not fit, bins below 1, or another binning.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> p, t = jnp.array([0.25, 0.5, 0.5, 1.0]), jnp.array([0, 0, 1, 1])
        >>> result = metrics.reliability(p, t, bins=2)
        >>> print(result.counts, result.edges, result.error)
        [1. 3.] [0.25 0.25 1.  ] 0.0625
        >>> result = metrics.reliability(p, t, bins=2, binning="equal_width")
        >>> print(result.counts, result.edges, result.error)
        [3. 1.] [0.  0.5 1. ] 0.0625

    Reference:
        Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language
        processing models" (2015), for bins of equal mass; Guo, Pleiss, Sun and Weinberger, "On
        calibration of modern neural networks" (2017), for fifteen of equal width.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if binning not in get_args(Binning):
        raise ValueError(f"binning: expected one of {get_args(Binning)}, got {binning!r}")
    p, positive, bad = _labels(probabilities, targets, "probabilities")
    w, lost = _counted(weights, bad, p.dtype)
    p, t, w = map(_flat, (p, positive.astype(p.dtype), w))
    divide = _equal_mass if binning == "equal_mass" else _equal_width
    index, edges = divide(p, w, bins)
    w = w.astype(p.dtype)

    def total(x: Array) -> Array:
        return _sums(jnp.where(w == 0, 0, w * x), (index,), (bins,))

    mass, counts = jnp.sum(w), total(jnp.ones_like(w))
    result = Reliability(
        error=jnp.sum(jnp.abs(total(t - p))) / mass,
        confidence=total(p) / counts,
        accuracy=total(t) / counts,
        counts=counts,
        edges=jnp.where(mass > 0, edges, jnp.nan),
    )
    return Reliability(*(_answer(part, lost) for part in result))


def _flat(x: Array) -> Array:
    """All numbers in one axis, on every device: an Explicit mesh does not sort what it shards."""
    return placement.replicate(x).ravel()


def _equal_mass(p: Array, w: Array, bins: int) -> tuple[Array, Array]:
    """The bin in which the middle of the weight of an example's ties lies, and the bins' edges."""
    order, group = _ties(p)
    own = _tied(w[order], group)
    middle = jnp.cumsum(own).astype(p.dtype) - own.astype(p.dtype) / 2
    ascending = jnp.floor(bins * middle / jnp.sum(w.astype(p.dtype)))[group]
    ascending = jnp.clip(jnp.nan_to_num(ascending), 0, bins - 1).astype(jnp.int32)
    index = jnp.zeros_like(ascending).at[order].set(ascending)
    lowest = jnp.min(jnp.where(w == 0, jnp.inf, p), initial=jnp.inf, keepdims=True)
    highest = jax.ops.segment_max(jnp.where(w == 0, -jnp.inf, p), index, num_segments=bins)
    return index, lax.cummax(jnp.concatenate([lowest, highest]))


def _equal_width(p: Array, w: Array, bins: int) -> tuple[Array, Array]:
    """The bin (lower, upper] of each probability, and the bins' edges."""
    edges = jnp.asarray(np.arange(bins + 1) / bins, p.dtype)
    index = jnp.searchsorted(edges[1:-1], p, side="left", method="compare_all")
    return index.astype(jnp.int32), edges


@calls.compiled("bins", "binning")
def expected_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal_mass",
    weights: ArrayLike | None = None,
) -> Reliability:
    r"""Expected calibration error of the predicted class, with its bins.

    `reliability` of max_k p_k against whether that class is the label. For a sigmoid head take
    `reliability(sigmoid(logits), targets)`.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        bins: how many.
        binning: `"equal_mass"`, or `"equal_width"` for figures to compare with published ones.
        weights: numbers or bools, `[...]` or a scalar.

    Returns:
        `Reliability`, of which `error` is the expected calibration error: NaN for no examples and
        for zero total weight.

    Numerics:
        Equal confidences stay in one bin, so that those that round to 1 do too; see `reliability`.

    Raises:
        TypeError: logits are not floats, labels not integers, or weights no numbers.
        ValueError: shapes that do not fit, bins below 1, or another binning.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits, labels = jnp.zeros((3, 2)), jnp.array([0, 0, 1])
        >>> print(metrics.expected_calibration_error(logits, labels, bins=2).error)
        0.16666667

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017), whose
        fifteen bins are of equal width.
    """
    # In the accumulation dtype: half-precision confidences would be off by more than they err.
    z = validation.to_sum_dtype(validation.as_floats(logits))
    confidence = jnp.max(links.softmax(z), -1)
    return reliability(confidence, hits(z, labels), bins=bins, binning=binning, weights=weights)


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
        values = metric(
            *(placement.take_rows(a, rows, a, placement.row_axes(a, size)) for a in arrays)
        )
        return jax.tree.map(lambda v: validation.to_sum_dtype(jnp.asarray(v)), values)

    return lax.map(one, jax.random.split(key, resamples), batch_size=batch_size)


# -- What they share --


def _classes(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """Logits, labels that exist, and which of them were in range."""
    z = validation.to_sum_dtype(validation.as_floats(logits))
    return z, *validation.prepare_labels(labels, z, validation.normalize_axis(z, -1))


def _labels(values: ArrayLike, targets: ArrayLike, name: str) -> tuple[Array, Array, Array]:
    """Values of each label, whether its target is 1, and where there is no answer."""
    v = validation.to_sum_dtype(validation.as_floats(values, name))
    t = validation.as_numbers(targets, "targets").astype(v.dtype)
    validation.check_shape(t, v.shape, "targets", f"that of {name}")
    if name != "probabilities" and v.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [N] or [N, L], got {v.shape}")
    return v, t == 1, jnp.isnan(v) | ((t != 0) & (t != 1))


def _decisions(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """Of the examples `[N]` the weight, class and predicted class, and whether one has no answer.

    Numbers of each example, and no logits, go to all devices where an Explicit mesh shards them.
    """
    z, index, known = _classes(logits, labels)
    predicted = jnp.argmax(z, -1).astype(index.dtype)  # the first NaN where there is one
    nan = jnp.isnan(softmax_core.label_logit(z, predicted, z.ndim - 1))
    w, lost = _counted(weights, ~known | nan, z.dtype)
    return _flat(w), _flat(index), _flat(predicted), lost


def _counted(weights: ArrayLike | None, bad: Array, dtype: Any) -> tuple[Array, Array]:
    """The examples' weights, 0 for one without an answer, and whether such a one counts."""
    w = _weights(weights, bad.shape, dtype)
    return jnp.where(bad, 0, w), _lost(w, bad, None)


def _counted_labels(weights: ArrayLike | None, bad: Array, dtype: Any) -> tuple[Array, Array]:
    """As `_counted` label by label, with one weight for all of an example's labels `[N, L]`."""
    w = _weights(weights, bad.shape[:1], dtype)
    w = w if bad.ndim == 1 else jnp.broadcast_to(w[:, None], bad.shape)
    return jnp.where(bad, 0, w), _lost(w, bad, 0)


def _weights(weights: ArrayLike | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """One weight an example: integers, unless they are given as floats, which get this dtype."""
    w = validation.as_numbers(True if weights is None else weights, "weights")
    if w.ndim:
        validation.check_shape(w, shape, "weights", "one per example")
    kind = dtype if jnp.issubdtype(w.dtype, jnp.floating) else jnp.result_type(int)
    return jnp.broadcast_to(w.astype(kind), shape)


def _lost(w: Array, bad: Array, axis: int | None) -> Array:
    """Whether an example that counts has no answer, or all weigh more than can be counted."""
    lost = jnp.any((w != 0) & (bad | ~jnp.isfinite(w)), axis)
    return lost | _overflows(w, axis) if jnp.issubdtype(w.dtype, jnp.integer) else lost


def _overflows(counts: Array, axis: int | None = None) -> Array:
    """Whether integers sum to more than their dtype holds."""
    return jnp.sum(counts.astype(jnp.float32), axis) >= float(jnp.iinfo(counts.dtype).max)


def _answer(x: Array, lost: Array) -> Array:
    """x, or where nobody can tell NaN, among integers -1."""
    return jnp.where(lost, -1 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.nan, x)


def _sums(values: Array, index: tuple[Array, ...], shape: tuple[int, ...]) -> Array:
    """Sums of this shape of the values `[N]` of each index, in memory O(N + size of the sums).

    A scatter adds one by one, and a float32 sum of ones stops at 2^24: each block of examples has
    sums of its own, and their sum is taken.
    """
    size, cells = values.shape[0], math.prod(shape)
    block = max(IN_SEQUENCE, cells) if placement.is_static(cells) else cells
    if placement.is_static(size, cells) and size <= block:
        return jnp.zeros(shape, values.dtype).at[index].add(values)
    own = lax.iota(jnp.int32, size) // block
    return jnp.sum(
        jnp.zeros((-(-size // block), *shape), values.dtype).at[own, *index].add(values), 0
    )


def _count(x: ArrayLike, name: str = "counts") -> Array:
    """Counts as an array; NumPy's integers that JAX's cannot hold as floats."""
    if isinstance(x, int | np.integer | np.ndarray):
        host = np.asarray(x)
        if host.dtype.kind in "iu" and host.max(initial=0) > jnp.iinfo(jnp.result_type(int)).max:
            x = host.astype(np.float32)
    return validation.as_numbers(x, name)


@jax.jit
def _total(counts: Array) -> Array:
    """The sum of counts."""
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        return jnp.sum(counts)
    return _answer(jnp.sum(counts), jnp.any(counts < 0) | _overflows(counts))


@jax.jit
def _share(part: list[Array], rest: list[Array]) -> Array:
    """Counts over themselves and the rest, as floats, whose sum no integer need hold."""
    own, others = (functools.reduce(jnp.add, map(_floats, counts)) for counts in (part, rest))
    return _ratio(own, own + others)


@jax.jit
def _mean_of_known(values: Array) -> Array:
    return jnp.nanmean(_floats(values))


def _floats(x: Array) -> Array:
    """Floats as they are, and counts as floats: NaN where an integer is negative."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return validation.to_sum_dtype(x)
    x = x.astype(jnp.result_type(float))
    return jnp.where(x < 0, jnp.nan, x)


def _mean_per_label(values: Array, weights: ArrayLike | None) -> Array:
    """`weighted_mean` over the examples `[N]` of each label."""
    if values.ndim not in (1, 2):
        raise ValueError(f"logits: expected shape [N] or [N, L], got {values.shape}")
    mean = functools.partial(weighted_mean, weights=weights)
    return mean(values) if values.ndim == 1 else jax.vmap(mean, in_axes=1)(values)


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, 0 where the whole is 0."""
    return part / jnp.where(whole == 0, 1, whole)
