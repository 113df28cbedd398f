"""Metrics of a ranking by confidence: ROC-AUC and average precision."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import calls, links, placement, softmax_core
from jaxsoftmax.metrics.arguments import (
    mark_undefined,
    prepare_binary,
    prepare_classes,
    prepare_label_weights,
)
from jaxsoftmax.metrics.sums import divide, group_ties, sum_ties
from jaxsoftmax.validation import ArrayLike

# Confidences that are ranked at once: each label needs ten arrays of N.
MAX_RANKED_AT_ONCE = 2**20


@calls.compiled()
def one_vs_rest(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    r"""Return confidences and targets of each class of a softmax against the rest.

    The logit of a class alone does not rank examples, but its probability does. log p_k gives the
    same ranking, and does not round to a tie where p_k rounds to 1.

    Args:
        logits: floats, `[N, K]`.
        labels: integers, `[N]`.

    Returns:
        log p `[N, K]` and one-hot labels `[N, K]`, NaN for a label out of range: the arguments of
        `roc_auc` and `average_precision`.

    Numerics:
        Those of `log_softmax`.

    Raises:
        TypeError: logits are not floats, or labels are not integers.
        ValueError: shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[2.0, 1.0], [9.0, 7.0], [0.0, 1.0]])
        >>> print(metrics.roc_auc(*metrics.one_vs_rest(logits, jnp.array([0, 1, 1]))))
        [0.5 0.5]

    Reference:
        scikit-learn's `multi_class="ovr"`.
    """
    z, label_index, in_range = prepare_classes(logits, labels)
    is_undefined = ~in_range | jnp.any(jnp.isnan(z), -1)
    is_label = softmax_core.label_mask(z, label_index, z.ndim - 1)
    targets = jnp.where(is_undefined[..., None], jnp.nan, is_label.astype(z.dtype))
    return links.log_softmax(z), targets


@calls.compiled()
def roc_auc(
    confidences: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Return the area under the ROC curve: how often a positive is ranked above a negative.

    sum_ij w_i w_j ([c_i > c_j] + [c_i = c_j] / 2) / sum_ij w_i w_j, over positives i, negatives j.

    Args:
        confidences: floats, `[N, L]`, or `[N]` for one label: any number that grows with the belief
            that the target is 1, such as the logit of a sigmoid; for a softmax see `one_vs_rest`.
        targets: 0 or 1 as numbers or bools, of the same shape.
        weights: numbers or bools, `[N]` or a scalar.

    Returns:
        `[L]`, or a scalar for one label; NaN without a positive or without a negative
        of any weight, and so for no examples.

    Numerics:
        Equal confidences are one step of the curve, whatever their order, so that rounding does not
        decide it. Examples are counted in integers unless weights are floats.

    Raises:
        TypeError: confidences are not floats, or targets or weights are not numbers.
        ValueError: shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.roc_auc(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])))
        0.875

    Reference:
        Hanley and McNeil, Radiology 143 (1982); scikit-learn's `roc_auc_score`.
    """

    def area(curve: _Curve) -> Array:
        positives, negatives = jnp.sum(curve.positives), jnp.sum(curve.negatives)
        positives_above = curve.true_positives - curve.positives / 2
        pairs_won = jnp.sum(curve.negatives / negatives * (positives_above / positives))
        return jnp.where((positives > 0) & (negatives > 0), pairs_won, jnp.nan)

    return _map_curves(area, confidences, targets, weights)


@calls.compiled()
def average_precision(
    confidences: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Return the mean precision over the positives, sum_n (R_n - R_(n-1)) P_n.

    P_n and R_n are precision and recall of the examples at or above the n-th distinct confidence:
    the step definition, without interpolation.

    Args:
        confidences: floats, `[N, L]`, or `[N]` for one label, as in `roc_auc`.
        targets: 0 or 1 as numbers or bools, of the same shape.
        weights: numbers or bools, `[N]` or a scalar.

    Returns:
        `[L]`, or a scalar for one label; NaN without a positive of any weight, and so for no
        examples, where scikit-learn warns and returns 0. Without a negative it is 1.

    Numerics:
        Equal confidences are one step, whatever their order. Examples are counted in integers
        unless weights are floats.

    Raises:
        TypeError: confidences are not floats, or targets or weights are not numbers.
        ValueError: shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.average_precision(jnp.array([0.8, 0.6, 0.4]), jnp.array([1, 0, 1])))
        0.8333334

    Reference:
        scikit-learn's `average_precision_score`.
    """

    def mean_precision(curve: _Curve) -> Array:
        positives = jnp.sum(curve.positives)
        precision = divide(curve.true_positives, curve.true_positives + curve.false_positives)
        mean = jnp.sum(curve.positives / positives * precision)
        return jnp.where(positives > 0, mean, jnp.nan)

    return _map_curves(mean_precision, confidences, targets, weights)


class _Curve(NamedTuple):
    """Total weights of examples at each distinct confidence, the largest first, `[N]`.

    Unused entries at the end have weight 0.
    """

    positives: Array  # at this confidence
    negatives: Array
    true_positives: Array  # positives at this confidence or above
    false_positives: Array  # negatives at this confidence or above


def _map_curves(
    summarize: Callable[[_Curve], Array],
    confidences: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None,
) -> Array:
    """Return the summary of each label's curve."""
    c, is_positive, undefined_entries = prepare_binary(confidences, targets, "confidences")
    w, is_undefined = prepare_label_weights(weights, undefined_entries, c.dtype)
    columns = [_gather_examples(a, c) for a in (c, is_positive, w)]

    def summarize_label(c: Array, is_positive: Array, w: Array) -> Array:
        curve = _curve(c, is_positive, w)
        return summarize(_Curve(*(weight.astype(c.dtype) for weight in curve)))

    if c.ndim == 1:
        return mark_undefined(summarize_label(*columns), is_undefined)
    size, num_labels = c.shape
    batch_size = max(1, MAX_RANKED_AT_ONCE // max(1, size)) if placement.is_static(size) else 1
    columns = [a.T for a in columns]
    if batch_size < num_labels:
        columns = [placement.replicate(a) for a in columns]  # no loop steps over a sharded axis
    summaries = lax.map(lambda label: summarize_label(*label), columns, batch_size=batch_size)
    return mark_undefined(summaries, is_undefined)


def _curve(c: Array, is_positive: Array, w: Array) -> _Curve:
    order, step = group_ties(-c)
    w, is_positive = w[order], is_positive[order]
    positives, negatives = (
        sum_ties(jnp.where(condition, w, 0), step) for condition in (is_positive, ~is_positive)
    )
    return _Curve(positives, negatives, jnp.cumsum(positives), jnp.cumsum(negatives))


def _gather_examples(x: Array, like: Array) -> Array:
    """Return x with all examples of a label on one device.

    An axis that is sharded on an Explicit mesh cannot be sorted.
    """
    return placement.reshard(x, like, None, *placement.partition_spec(like)[1:])
