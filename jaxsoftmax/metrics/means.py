"""Metrics that are weighted means over examples of one value per example."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import calls, losses, softmax_core, validation
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.metrics.arguments import prepare_binary, prepare_classes
from jaxsoftmax.validation import ArrayLike


@calls.compiled("k")
def hits(logits: ArrayLike, labels: ArrayLike, *, k: int = 1) -> Array:
    r"""Return 1 if a label is among the k classes with the largest logits, else 0.

    [#{j: z_j > z_y} + #{j < y: z_j = z_y} < k]

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        k: the number of classes that are predicted for an example.

    Returns:
        `[...]`, float32 or float64; NaN where a logit is NaN or the label is out of range.

    Numerics:
        Exact. Of equal logits the class of lower index comes first, as in argmax.

    Raises:
        TypeError: logits are not floats, or labels are not integers.
        ValueError: shapes do not match, or k is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> print(metrics.hits(jnp.array([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), jnp.array([1, 0])))
        [0. 1.]

    Reference:
        Russakovsky et al., "ImageNet large scale visual recognition challenge" (2015), for k = 5.
    """
    validation.check_at_least_one(k=k)
    z, label_index, in_range = prepare_classes(logits, labels)
    is_undefined = ~in_range | jnp.any(jnp.isnan(z), -1)
    label_logit = softmax_core.label_logit(z, label_index, z.ndim - 1)[..., None]
    is_earlier = (
        lax.broadcasted_iota(label_index.dtype, z.shape, z.ndim - 1) < label_index[..., None]
    )
    rank = jnp.sum((z > label_logit) | ((z == label_logit) & is_earlier), -1)
    return jnp.where(is_undefined, jnp.nan, (rank < k).astype(z.dtype))


@calls.compiled()
def accuracy(logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    r"""Return the fraction of examples whose label has the largest logit.

    sum_i w_i [argmax_k z_ik = y_i] / sum_i w_i

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        A scalar; 0 for zero total weight.

    Numerics:
        The `weighted_mean` of `hits`: the first of equal logits is the prediction.

    Raises:
        TypeError: logits are not floats, or labels are not integers.
        ValueError: shapes do not match.

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
    r"""Return the fraction of examples whose label is among the k largest logits.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        k: the number of classes that are predicted for an example.
        weights: floats, `[...]`.

    Returns:
        A scalar; 0 for zero total weight.

    Numerics:
        The `weighted_mean` of `hits`: of equal logits the class of lower index comes first, so that
        k = 1 is `accuracy`. In scikit-learn the class of higher index comes first.

    Raises:
        TypeError: logits are not floats, or labels are not integers.
        ValueError: shapes do not match, or k is below 1.

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
    r"""Return the mean cross-entropy, -sum_i w_i log p_i(y_i) / sum_i w_i.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        A scalar; 0 for zero total weight.

    Numerics:
        The `weighted_mean` of `cross_entropy`, with its exactness and its infinities.

    Derivatives:
        Those of `cross_entropy`.

    Raises:
        TypeError: logits are not floats, or labels are not integers.
        ValueError: shapes do not match.

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
    r"""Return the mean Brier loss, sum_i w_i sum_k (p_ik - [k = y_i])^2 / sum_i w_i.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        weights: floats, `[...]`.

    Returns:
        A scalar from 0 to 2; 0 for zero total weight.

    Numerics:
        The `weighted_mean` of `brier`.

    Derivatives:
        Those of `brier`.

    Raises:
        TypeError: logits are not floats, or labels are not integers.
        ValueError: shapes do not match.

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
    r"""Return the mean binary cross-entropy of each label, sum_i w_i l(z_il, t_il) / sum_i w_i.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: numbers in [0, 1] or bools, of the logits' shape.
        weights: floats, `[N]`.

    Returns:
        `[L]`, or a scalar for one label; 0 for zero total weight.

    Numerics:
        The `weighted_mean` of `binary_cross_entropy`, label by label.

    Derivatives:
        Those of `binary_cross_entropy`.

    Raises:
        TypeError: logits are not floats, or targets are not numbers.
        ValueError: shapes do not match.

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
    r"""Return the fraction of examples for which each label is predicted correctly, [z > 0] = t.

    Args:
        logits: floats, `[N, L]`, or `[N]` for one label.
        targets: 0 or 1 as numbers or bools, of the logits' shape.
        weights: floats, `[N]`.

    Returns:
        `[L]`, or a scalar for one label, which is the accuracy of a binary classifier. 0 for zero
        total weight.

    Numerics:
        A logit of 0, that is, a probability of one half, predicts 0.

    Raises:
        TypeError: logits are not floats, or targets are not numbers.
        ValueError: shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits = jnp.array([[1.0, -1.0], [1.0, 2.0]])
        >>> print(metrics.label_accuracy(logits, jnp.array([[1, 1], [1, 1]])))
        [1.  0.5]

    Reference:
        scikit-learn's `accuracy_score` of each column; their mean is 1 minus its `hamming_loss`.
    """
    z, is_positive, is_undefined = prepare_binary(logits, targets, "logits")
    is_correct = ((z > 0) == is_positive).astype(z.dtype)
    return _mean_per_label(jnp.where(is_undefined, jnp.nan, is_correct), weights)


def _mean_per_label(values: Array, weights: ArrayLike | None) -> Array:
    """Return the `weighted_mean` over the examples `[N]` of each label."""
    if values.ndim not in (1, 2):
        raise ValueError(f"logits: expected shape [N] or [N, L], got {values.shape}")
    mean = functools.partial(weighted_mean, weights=weights)
    return mean(values) if values.ndim == 1 else jax.vmap(mean, in_axes=1)(values)
