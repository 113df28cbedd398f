"""Counts of right and wrong predictions, and precision, recall and F1 computed from them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import calls, validation
from jaxsoftmax.metrics.arguments import (
    decide,
    mark_undefined,
    overflows,
    prepare_binary,
    prepare_label_weights,
)
from jaxsoftmax.metrics.sums import divide, sum_by_index
from jaxsoftmax.validation import ArrayLike


class Counts(NamedTuple):
    """Total weights of right and wrong predictions of each class: `[K]` each, or `[]`.

    Positive means predicted, and false means wrongly so: a false negative is an example of the
    class for which another class was predicted, or whose label was not predicted. Counts are
    integers or floats. An undefined count is NaN, or negative among integers.

    Attributes:
        true_positive: the weight of the examples of a class that are predicted so.
        false_positive: the weight of the examples of other classes that are predicted so.
        false_negative: the weight of the examples of a class that are not predicted so.
    """

    true_positive: Array
    false_positive: Array
    false_negative: Array


@calls.compiled()
def confusion_matrix(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Return the total weight of the examples of each true class (row) and prediction (column).

    C_jk = sum_i w_i [y_i = j] [argmax z_i = k]

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: numbers or bools, `[...]` or a scalar.

    Returns:
        `[K, K]`, integers, or float32 or float64 if weights are floats. All entries are -1, or NaN,
        if one example that counts is undefined. Zeros for no examples and for zero total weight.

    Numerics:
        Integers are exact up to a total weight of 2 10^9, and all are -1 if it reaches 2^31. Floats
        are added in blocks, so that no sum of ones stops at 2^24.

    Raises:
        TypeError: logits are not floats, labels are not integers, or weights are not numbers.
        ValueError: shapes do not match.

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
    w, label, predicted, is_undefined = decide(logits, labels, weights)
    num_classes = jnp.shape(logits)[-1]
    sums = sum_by_index(w, (label, predicted), (num_classes, num_classes))
    return mark_undefined(sums, is_undefined)


@calls.compiled()
def class_counts(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Counts:
    r"""Return the counts of each class of a single-label classifier.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: numbers or bools, `[...]` or a scalar.

    Returns:
        `Counts` of `[K]`, with the dtype and the meaning of `confusion_matrix`: its diagonal, and
        the sums of the other entries of its columns and rows.

    Numerics:
        Those of `confusion_matrix`, with memory O(N + K). Nothing is subtracted.

    Raises:
        TypeError: logits are not floats, labels are not integers, or weights are not numbers.
        ValueError: shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
        >>> print(metrics.class_counts(logits, jnp.array([0, 1, 1])).false_positive)
        [1 0]

    Reference:
        scikit-learn's `multilabel_confusion_matrix`.
    """
    w, label, predicted, is_undefined = decide(logits, labels, weights)

    def total(condition: Array, index: Array) -> Array:
        sums = sum_by_index(jnp.where(condition, w, 0), (index,), jnp.shape(logits)[-1:])
        return mark_undefined(sums, is_undefined)

    is_correct = label == predicted
    return Counts(
        true_positive=total(is_correct, label),
        false_positive=total(~is_correct, predicted),
        false_negative=total(~is_correct, label),
    )


@calls.compiled()
def label_counts(
    logits: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Counts:
    r"""Return the counts of each label of a multi-label or binary classifier.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: 0 or 1 as numbers or bools, of the logits' shape.
        weights: numbers or bools, `[N]` or a scalar.

    Returns:
        `Counts` of `[L]`, or of scalars for one label, with the dtype of `confusion_matrix`. The
        counts of a label are -1, or NaN, if one example that counts is undefined for it. Zeros for
        no examples and for zero total weight.

    Numerics:
        A logit of 0, that is, a probability of one half, predicts 0. Integers are exact up to a
        total weight of 2 10^9, and -1 if it reaches 2^31.

    Raises:
        TypeError: logits are not floats, or targets or weights are not numbers.
        ValueError: shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[1.0, -1.0], [1.0, 2.0]])
        >>> print(metrics.label_counts(logits, jnp.array([[1, 1], [0, 1]])).false_negative)
        [0 1]

    Reference:
        scikit-learn's `multilabel_confusion_matrix`.
    """
    z, is_positive, is_undefined = prepare_binary(logits, targets, "logits")
    w, label_is_undefined = prepare_label_weights(weights, is_undefined, z.dtype)
    is_predicted = z > 0

    def total(condition: Array) -> Array:
        return mark_undefined(jnp.sum(jnp.where(condition, w, 0), 0), label_is_undefined)

    return Counts(
        true_positive=total(is_predicted & is_positive),
        false_positive=total(is_predicted & ~is_positive),
        false_negative=total(~is_predicted & is_positive),
    )


def micro(counts: Counts) -> Counts:
    """Return the counts of all classes together, whose `precision` and others are micro-averages.

    Args:
        counts: from `class_counts` or `label_counts`, `[K]`, integers or floats.

    Returns:
        `Counts` of scalars, integers if the counts are integers; 0 for no classes.

    Numerics:
        A sum of integers is exact up to 2 10^9. It is -1 if it reaches 2^31 or if one of them is
        negative.

    Raises:
        TypeError: counts is not a `Counts` of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([2.0, 1.0]), jnp.zeros(2), jnp.array([2.0, 0.0]))
        >>> print(metrics.f1(metrics.micro(counts)))
        0.75

    Reference:
        scikit-learn's `average="micro"`; for a single-label classifier it is the accuracy.
    """
    return Counts(*map(_sum_counts, _as_arrays(counts)))


def macro(values: ArrayLike) -> Array:
    """Return the mean of a metric over the classes for which it is defined.

    Args:
        values: floats, `[K]`, NaN for a class for which the metric is undefined; or counts as
            integers, negative for such a class.

    Returns:
        A scalar; NaN if no class has a value, or if there are no classes.

    Numerics:
        NaN is left out. scikit-learn's `average="macro"` of ROC-AUC is NaN if one label has only
        one value; `jnp.mean` gives that.

    Raises:
        TypeError: values are not numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.macro(jnp.array([0.5, 1.0, jnp.nan])))
        0.75

    Reference:
        scikit-learn's `average="macro"`.
    """
    return _mean_of_defined(_as_counts(values, "values"))


def precision(counts: Counts) -> Array:
    """Return the fraction of the predictions of a class that are right, tp / (tp + fp).

    Args:
        counts: from `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`, floats; 0 for a class that is never predicted, and NaN for undefined counts.

    Numerics:
        Integer counts of any size are rounded once, to floats.

    Raises:
        TypeError: counts is not a `Counts` of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), jnp.zeros(2))
        >>> print(metrics.precision(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `precision_score` with `zero_division=0`, `labels=range(K)`.
    """
    true_positive, false_positive, _ = _as_arrays(counts)
    return _fraction([true_positive], [false_positive])


def recall(counts: Counts) -> Array:
    """Return the fraction of the examples of a class that are found, tp / (tp + fn).

    Args:
        counts: from `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`, floats; 0 for a class without examples, and NaN for undefined counts.

    Numerics:
        Integer counts of any size are rounded once, to floats.

    Raises:
        TypeError: counts is not a `Counts` of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.zeros(2), jnp.array([1.0, 0.0]))
        >>> print(metrics.recall(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `recall_score` with `zero_division=0`, `labels=range(K)`.
    """
    true_positive, _, false_negative = _as_arrays(counts)
    return _fraction([true_positive], [false_negative])


def f1(counts: Counts) -> Array:
    """Return the harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn).

    Args:
        counts: from `class_counts`, `label_counts` or `micro`.

    Returns:
        `[K]` or `[]`, floats; 0 for a class that neither occurs nor is predicted, which `macro`
        includes, and NaN for undefined counts.

    Numerics:
        Integer counts of any size are rounded once, to floats.

    Raises:
        TypeError: counts is not a `Counts` of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> counts = metrics.Counts(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), jnp.ones(2))
        >>> print(metrics.f1(counts))
        [0.75 0.  ]

    Reference:
        scikit-learn's `f1_score` with `zero_division=0`, `labels=range(K)`.
    """
    true_positive, *false = _as_arrays(counts)
    return _fraction([true_positive, true_positive], false)


def _as_arrays(counts: Counts) -> list[Array]:
    """Return true positives, false positives and false negatives."""
    if not isinstance(counts, tuple) or len(counts) != 3:
        raise TypeError(f"counts: expected Counts, as of class_counts, got {type(counts).__name__}")
    return [*map(_as_counts, counts)]


def _as_counts(x: ArrayLike, name: str = "counts") -> Array:
    """Return counts as an array; NumPy integers that are too large for JAX's become floats."""
    if isinstance(x, int | np.integer | np.ndarray):
        host = np.asarray(x)
        if host.dtype.kind in "iu" and host.max(initial=0) > jnp.iinfo(jnp.result_type(int)).max:
            x = host.astype(np.float32)
    return validation.as_numbers(x, name)


@jax.jit
def _sum_counts(counts: Array) -> Array:
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        return jnp.sum(counts)
    return mark_undefined(jnp.sum(counts), jnp.any(counts < 0) | overflows(counts))


@jax.jit
def _fraction(part: list[Array], rest: list[Array]) -> Array:
    """Return the sum of the part over the sum of both, as floats: no integer holds that sum."""
    numerator, remainder = (
        functools.reduce(jnp.add, map(_counts_to_floats, counts)) for counts in (part, rest)
    )
    return divide(numerator, numerator + remainder)


@jax.jit
def _mean_of_defined(values: Array) -> Array:
    return jnp.nanmean(_counts_to_floats(values))


def _counts_to_floats(x: Array) -> Array:
    """Return counts as floats, with NaN for negative integers."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return validation.to_sum_dtype(x)
    x = x.astype(jnp.result_type(float))
    return jnp.where(x < 0, jnp.nan, x)
