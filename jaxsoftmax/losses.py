r"""Losses of a classification head: one value per example, exact, with closed derivatives.

    name                   of logits z, truth y or t                      gradient in z
    cross_entropy          -log p_y                                       p - onehot(y)
    smoothed_cross_entropy -sum_k t_k c_k log p_k                         p sum(t c) - t c
    soft_cross_entropy     -sum_k t_k log p_k                             p sum(t) - t
    kl_divergence          sum_k t_k (log t_k - log p_k)                  p sum(t) - t
    entropy                -sum_k p_k log p_k                             -p (log p + entropy)
    binary_cross_entropy   -w t log p - (1 - t) log(1 - p)                (1 - t) p - w t (1 - p)
    squared_error          sum_k (z_k - t_k)^2                            2 (z - t)
    brier                  sum_k (p_k - [k = y])^2
    hinge                  max(0, 1 - (2 t - 1) z)
    multiclass_hinge       max(0, 1 + max over k != y of z_k - z_y)

with p the softmax or, for the binary one, the sigmoid of z. The shared rules:

- a loss returns one value per example (per label where it is binary), float32 for half-precision
  logits; `weighted_mean` is the one way to average;
- `where` says which classes exist (a logit of -inf says it too), `valid` which examples count:
  the others have value 0 and gradient 0, whatever their label or their logits hold;
- a label out of range gives NaN for its example alone, a label on a masked class +inf, and a row
  that is masked whole 0. `check_labels` names a bad label before training;
- what cuts across losses composes outside: temperature divides logits, z-loss adds
  `logsumexp(z)**2`, and `focal` is a function of a loss's values. Label smoothing and class weights
  change the target of each class: `smoothed_cross_entropy`; and `mean_cross_entropy` is the mean
  that most training steps minimize, with what does not count left out of sum and denominator.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import calls, links, placement, softmax_core, validation
from jaxsoftmax.placement import select
from jaxsoftmax.validation import ArrayLike


@calls.compiled("axis")
def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Softmax cross-entropy with integer labels, -log p_y = lse(z) - z_y.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        log1p(sum over k != y of exp(z_k - z_y)), never lse - z_y, which cancels to 0 on a confident
        example: right to 8 ulp at any margin and offset (to 9 on a CPU where from 257 to 10,000
        classes have no divisor from 32 to 256, such as 1009). +inf for a label on a masked class,
        0 for a row masked whole and for valid=False, NaN for a label out of range.

    Derivatives:
        p - onehot(y), see `cross_entropy_gradient`; of any order and in both modes.

    Raises:
        TypeError: logits are not floats, labels not integers, or a mask not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(cross_entropy(jnp.array([[20.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])))
        [2.0611537e-09 6.9314718e-01]

    Reference:
        Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021), and `exponential`.
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    return _cross_entropy(*softmax_core.prepare(labels, valid, z, axis), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _cross_entropy(z: Array, index: Array, known: Array, valid: Array, axis: int) -> Array:
    arrays = (z, index, known, valid)
    whole = functools.partial(_values, axis=axis)
    if z.ndim == 1 or axis < z.ndim - 1 or not _is_large(z):
        return whole(*arrays)
    return lax.platform_dependent(*arrays, cpu=_values_by_blocks, default=whole)


CPU_BLOCK_ENTRIES = 2**20  # entries: 4 MB of exponentials, which stay in a CPU's cache


def _values(z: Array, index: Array, known: Array, valid: Array, *, axis: int) -> Array:
    return softmax_core.value_and_gradient(z, index, known, valid, axis)[0]


def _is_large(z: Array) -> bool:
    """Whether the values go by blocks on a CPU: not where a size is a symbol."""
    return placement.is_static(*z.shape) and z.size > 8 * CPU_BLOCK_ENTRIES


def _values_by_blocks(z: Array, *rows: Array) -> Array:
    """The values of blocks of rows, one after the other, for a CPU.

    Without the gradient the exponentials have no array of their own to lie in, and XLA's CPU
    backend would store as many as there are logits: three times the time of this at 32,768 classes.
    The longest axis of examples is cut, in groups, so that all devices work on what they hold.
    """
    arrays, lead = (z, *rows), z.shape[:-1]
    if placement.count_devices(z) == 1:
        arrays = tuple(a.reshape(-1, *a.shape[len(lead) :]) for a in arrays)
    longest = max(range(arrays[1].ndim), key=arrays[1].shape.__getitem__)
    groups = placement.count_groups(arrays[0], longest)
    count = arrays[1].shape[longest] // groups
    size = -(-count // -(-z.size // CPU_BLOCK_ENTRIES))

    def block(number: Array, values: Array) -> Array:
        # The last may take rows again.
        cut = placement.Cut(jnp.minimum(number * size, count - size), size, groups)
        part = [placement.take_block(a, cut, longest) for a in arrays]
        return placement.put_block(values, _values(*part, axis=values.ndim), cut, longest)

    # Out of the context of a mesh zeros have no place of their own.
    zeros = jnp.zeros_like(arrays[1], z.dtype)
    start = placement.shard_like_rows(zeros, arrays[0], zeros.ndim)
    return lax.fori_loop(0, -(-count // size), block, start).reshape(lead)


@_cross_entropy.defjvp
def _cross_entropy_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, gradient = softmax_core.value_and_gradient(*primals, axis)
    return value, softmax_core.directional_derivative(gradient, tangents[0], primals[3], axis)


@calls.compiled("axis", constant="smoothing")
def smoothed_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    smoothing: float | Array,
    class_weights: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy with smoothed labels and class weights, sum_k t_k c_k (-log p_k).

    The target t gives the label 1 - a + a / K and every other class a / K, where K counts the
    classes that exist in the row; c are the class weights.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        smoothing: a, a scalar from 0 to 1.
        class_weights: c >= 0, numbers `[K]`; None for ones.
        axis: the class axis.
        where: bool, broadcastable to the logits, or `[K]`: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64. Their mean divides by the sum of the labels' weights:
        `mean_cross_entropy` does both.

    Numerics:
        A sum of non-negative terms, right to 8 ulp of the largest. A masked class has no share in
        the smoothing. +inf for a label on a masked class, unless its target is 0; 0 for a row
        masked whole and for valid=False, NaN for a label out of range. With smoothing 0, a number,
        it is c_y times `cross_entropy`, exact in each entry of the gradient.

    Derivatives:
        p sum_k(t_k c_k) - t c; of any order.

    Raises:
        TypeError: logits are not floats, labels not integers, or where not bool.
        ValueError: shapes that do not fit, or smoothing, if it is a number, outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{smoothed_cross_entropy(jnp.array([2.0, 0.0]), 0, smoothing=0.1):.4f}")
        0.2269

    Reference:
        Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016); weights
        and smoothing together as in torch.nn.CrossEntropyLoss, which weights the uniform part too.
    """
    rows = _labelled_rows(logits, labels, axis, where, valid)
    return _smoothed(rows, smoothing, class_weights)[0]


class _Rows(NamedTuple):
    """Logits, labels as indices, which of them are labels, which examples count, the class axis."""

    z: Array
    label: Array
    known: Array
    counts: Array
    axis: int

    def hot(self) -> Array:
        """Which entries are the labels'."""
        classes = lax.broadcasted_iota(self.label.dtype, self.z.shape, self.axis)
        return classes == jnp.expand_dims(self.label, self.axis)

    def along(self, by_class: Array) -> Array:
        """Numbers of the classes, `[K]`, of the logits' rank."""
        return jnp.expand_dims(by_class, [i for i in range(self.z.ndim) if i != self.axis])


def _labelled_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    valid: ArrayLike | None,
) -> _Rows:
    z, axis = validation.prepare_logits(logits, axis, where)
    z, label, known, counts = softmax_core.prepare(labels, valid, z, axis)
    return _Rows(z, label, known, counts, axis)


def _smoothed(
    rows: _Rows, smoothing: float | Array, class_weights: ArrayLike | None
) -> tuple[Array, Array]:
    """The losses, and the class weight of each label."""
    z, axis = rows.z, rows.axis
    a = validation.as_scalar(smoothing, "smoothing", z.dtype)
    if not isinstance(smoothing, Array) and not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a number from 0 to 1, got {smoothing}")
    c = None
    own = jnp.ones_like(rows.label, z.dtype)
    if class_weights is not None:
        c = validation.as_numbers(class_weights, "class_weights").astype(z.dtype)
        validation.check_shape(c, (z.shape[axis],), "class_weights", "one per class")
        own = _of_labels(c, rows)
    if not isinstance(smoothing, Array) and smoothing == 0:
        values = _cross_entropy(*rows)
        return (values if c is None else softmax_core.weighted_term(own, values)), own
    t = _smooth_targets(rows, a, c)
    z, t, counts, axis = _soft_arguments(z, t, axis, None, rows.counts)
    return validation.zero_ignored(_soft_cross_entropy(z, t, axis), counts), own


def _of_labels(by_class: Array, rows: _Rows) -> Array:
    """The number of each label's class; a sum of one term where an Explicit mesh has no gather."""
    if not any(placement.partition_spec(rows.z)):
        return by_class[rows.label]
    return jnp.sum(jnp.where(rows.hot(), rows.along(by_class), 0), rows.axis)


def _smooth_targets(rows: _Rows, smoothing: Array, class_weights: Array | None) -> Array:
    """t c: 1 - a more for the label, and the share of a of each class that exists."""
    z, axis = rows.z, rows.axis
    exists = z != -jnp.inf
    share = smoothing / jnp.maximum(jnp.sum(exists, axis, keepdims=True, dtype=z.dtype), 1)
    t = jnp.where(rows.hot(), 1 - smoothing, 0) + jnp.where(exists, share, 0)
    t = t if class_weights is None else t * rows.along(class_weights)
    # NaN for a label that is none, but not where a gradient would multiply it by 0.
    factor = jnp.where(rows.known | ~rows.counts, 1, jnp.nan).astype(z.dtype)
    return t * jnp.expand_dims(factor, axis)


@calls.compiled("axis")
def soft_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy with target probabilities, -sum_k t_k log p_k.

    Args:
        logits: floats, `[..., K]`.
        targets: t >= 0, of the logits' shape, or floats `[K]`; they are not normalised.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        A sum of non-negative terms, with 0 log 0 = 0: right to 8 ulp of the largest. +inf where a
        masked class has a positive target; 0 for a row masked whole and for valid=False.

    Derivatives:
        p sum(t) - t in the logits, -log p in the targets (0 where p is 0); of any order.

    Raises:
        TypeError: logits or targets are not floats, or a mask not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(soft_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([0.25, 0.75])))
        0.6931472

    Reference:
        Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015).
    """
    z, t, counts, axis = _soft_arguments(logits, targets, axis, where, valid)
    return validation.zero_ignored(_soft_cross_entropy(z, t, axis), counts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft_cross_entropy(z: Array, t: Array, axis: int) -> Array:
    return _expected(links.softmax_and_log(z, axis)[1], t, axis)


@_soft_cross_entropy.defjvp
def _soft_cross_entropy_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z, t), (dz, dt) = primals, tangents
    p, log_p = links.softmax_and_log(z, axis)
    # A masked class is a constant: neither its logit nor its target moves the loss; and where
    # another logit is +inf, neither does the target of a class without mass.
    gradient = select(z == -jnp.inf, 0, p * jnp.sum(t, axis, keepdims=True) - t)
    change = gradient * dz - select(jnp.isinf(log_p), 0, log_p) * dt
    return _expected(log_p, t, axis), jnp.sum(change, axis)


def _expected(log_p: Array, t: Array, axis: int) -> Array:
    """-sum_k t_k log p_k, with 0 log 0 = 0."""
    return -jnp.sum(select(t == 0, 0, t * log_p), axis)


@calls.compiled("axis", "log_targets")
def kl_divergence(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    log_targets: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence KL(t || p) = sum_k t_k (log t_k - log p_k).

    Args:
        logits: floats, `[..., K]`.
        targets: t >= 0, of the logits' shape, or floats `[K]`; they are not normalised.
        log_targets: whether the targets are log t, at most a little above 0, with -inf for t = 0.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64; `soft_cross_entropy` minus the targets' entropy.

    Numerics:
        The difference of two sums of terms of one sign, right to 8 ulp of the larger; 0 log 0 = 0.
        NaN for a negative t: give log-probabilities with log_targets=True.

    Derivatives:
        p sum(t) - t in the logits, 1 + log t - log p in the targets (0 at t = 0), t times that in
        their logarithms; of any order.

    Raises:
        TypeError: logits or targets are not floats, or a mask not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(kl_divergence(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0])))
        0.6931472

    Reference:
        Kullback and Leibler, "On information and sufficiency" (1951).
    """
    z, t, counts, axis = _soft_arguments(logits, targets, axis, where, valid, logs=log_targets)
    if log_targets:
        t, log_t = jnp.exp(t), select(t == -jnp.inf, 0, t)
    else:
        log_t = jnp.log(select(t == 0, 1, t))
    negative_entropy = jnp.sum(select(t == 0, 0, t * log_t), axis)
    return validation.zero_ignored(_soft_cross_entropy(z, t, axis) + negative_entropy, counts)


@calls.compiled("axis")
def entropy(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Entropy of the softmax, H(p) = -sum_k p_k log p_k.

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        A sum of non-negative terms, each right to a few ulp: 0 for one class, log K for K equal
        logits, and the small entropy of a confident row keeps its digits.

    Derivatives:
        -p (log p + H), of any order.

    Raises:
        TypeError: logits are not floats, or a mask not bool. ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(entropy(jnp.zeros(4)))
        1.3862944

    Reference:
        Shannon, "A mathematical theory of communication" (1948).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    z = validation.zero_ignored_rows(z, valid, axis)
    p, log_p = links.softmax_and_log(z, axis)
    return validation.zero_ignored(-jnp.sum(p * select(p == 0, 0, log_p), axis), valid)


@calls.compiled()
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Sigmoid cross-entropy per label, w t softplus(-z) + (1 - t) softplus(z).

    Args:
        logits: floats, `[...]`; a trailing axis of labels makes it multi-label.
        targets: t in [0, 1], floats, integers or bools of the logits' shape, or a scalar.
        pos_weight: w >= 0, broadcastable to the logits: the weight of the positive term.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count; the same as `where`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        Right to 8 ulp where the loss without weight is a normal number: both terms are
        non-negative. A coefficient of 0 silences an infinite term, so infinite logits give 0 or
        +inf and never NaN. A target outside [0, 1] by up to 4 ulp of its dtype is rounding, and is
        clipped; NaN for one farther out. 0 where valid or where is False.

    Derivatives:
        sigmoid(z) - t for w = 1, see `binary_cross_entropy_gradient`; of any order.

    Raises:
        TypeError: logits are not floats, or targets no numbers. ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(binary_cross_entropy(jnp.array([20.0, -jnp.inf]), jnp.array([1, 0])))
        [2.0611537e-09 0.0000000e+00]

    Reference:
        softplus is minus the log of the sigmoid: Bishop (2006), equation 4.90.
    """
    z, t, w, valid = validation.prepare_binary(logits, targets, pos_weight, where, valid)
    positive = softmax_core.weighted_term(t if w is None else w * t, links.softplus_values(-z))
    return validation.zero_ignored(positive + softmax_core.weighted_term(1 - t, links.softplus_values(z)), valid)


@calls.compiled("axis")
def squared_error(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Squared error of the scores themselves, sum_k (z_k - t_k)^2.

    Args:
        logits: floats, `[..., K]`.
        targets: floats `[..., K]`, a regression; floats `[...]` where K = 1; or integers `[...]`,
          labels whose one-hot code is the target.
        axis: the class axis.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        A sum of squares, right to a few ulp of the largest. NaN for a label out of range.

    Derivatives:
        2 (z - t).

    Raises:
        TypeError: logits are not floats, or targets neither floats nor integers.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(squared_error(jnp.array([1.0, 3.0]), jnp.array(0)))
        9.0

    Reference:
        Gauss, "Theoria motus" (1809), in the form of scikit-learn's and Optax's `squared_error`,
        without the factor of one half.
    """
    z, axis = validation.prepare_logits(logits, axis)
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    t = _regression_targets(jnp.asarray(targets), z, axis)
    z, t = validation.zero_ignored_rows(z, valid, axis), validation.zero_ignored_rows(t, valid, axis)
    return validation.zero_ignored(jnp.sum((z - t) ** 2, axis), valid)


def _regression_targets(targets: Array, z: Array, axis: int) -> Array:
    """Targets of the logits' shape: one-hot codes of labels, or the numbers themselves."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        hot, known = _one_hot(targets, z, axis, "targets")
        return jnp.where(known, hot.astype(z.dtype), jnp.nan)
    targets = validation.as_floats(targets, "targets").astype(z.dtype)
    if z.shape[axis] == 1 and targets.ndim == z.ndim - 1:
        targets = jnp.expand_dims(targets, axis)
    return validation.check_shape(targets, z.shape, "targets", "that of the logits")


@calls.compiled("axis")
def brier(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Brier score of the softmax, sum_k (p_k - [k = y])^2, the squared size of the gradient.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]` between 0 and 2, float32 or float64.

    Numerics:
        1 - p_y is the sum of the others, so a confident example keeps its digits. A label on a
        masked class counts its one: 1 + sum_k p_k^2. NaN for a label out of range.

    Derivatives:
        2 (diag(p) - p p') (p - onehot(y)); of any order.

    Raises:
        TypeError: logits are not floats, labels not integers, or a mask not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(brier(jnp.array([0.0, 0.0]), 1))
        0.5

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability" (1950).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    residual = softmax_core.value_and_gradient(*softmax_core.prepare(labels, valid, z, axis), axis)[
        1
    ]
    return jnp.sum(residual**2, axis)


@calls.compiled()
def hinge(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Hinge loss per label, max(0, 1 - s z) with the sign s = 2 t - 1.

    Args:
        logits: floats, `[...]`.
        targets: t in {0, 1} (in between, s is too), of the logits' shape, or a scalar.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count; the same as `where`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        One rounding of 1 - s z. NaN for a target outside [0, 1] by more than 4 ulp.

    Derivatives:
        -s where the margin s z is below 1, else 0.

    Raises:
        TypeError: logits are not floats, or targets no numbers. ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(hinge(jnp.array([0.25, 0.25]), jnp.array([1, 0])))
        [0.75 1.25]

    Reference:
        Cortes and Vapnik, "Support-vector networks" (1995).
    """
    z, t, _, valid = validation.prepare_binary(logits, targets, None, where, valid)
    return validation.zero_ignored(_ramp(1 - (2 * t - 1) * z), valid)


@calls.compiled("axis")
def multiclass_hinge(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Multi-class hinge (large margin), max(0, 1 + max over k != y of z_k - z_y).

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        0 where no other class exists, +inf for a label on a masked class, NaN out of range.

    Derivatives:
        onehot(best other) - onehot(y) where the margin is below 1, else 0; equal bests share.

    Raises:
        TypeError: logits are not floats, labels not integers, or a mask not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(multiclass_hinge(jnp.array([2.0, 0.5, 1.75]), 0))
        0.75

    Reference:
        Crammer and Singer, "On the algorithmic implementation of multiclass kernel-based vector
        machines" (2001).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    z = validation.zero_ignored_rows(z, valid, axis)
    hot, known = _one_hot(labels, z, axis, "labels")
    # A factor, not a selection: the NaN of a label that is none reaches the gradient too.
    counted = known if valid is None else known | ~jnp.expand_dims(valid, axis)
    z = z * jnp.where(counted, 1, jnp.nan).astype(z.dtype)
    truth = jnp.sum(select(hot, z, 0), axis)
    best_other = jnp.max(select(hot, -jnp.inf, z), axis)
    # XLA's maxima may lose a NaN.
    best_other = select(jnp.any(z != z, axis), jnp.nan, best_other)
    # Where no other class exists there is no margin to keep.
    alone = best_other == -jnp.inf
    # Two infinite scores are equal; so are finite ones, but those keep their slope.
    tied = (truth == jnp.inf) & (best_other == jnp.inf)
    margin = select(tied, 0, truth - select(alone | tied, 0, best_other))
    loss = select(alone, 0, _ramp(1 - margin))
    return validation.zero_ignored(select(jnp.squeeze(known, axis), loss, jnp.nan), valid)


def _ramp(x: Array) -> Array:
    """max(0, x), with derivative 0 at 0; NaN passes."""
    return select(x <= 0, 0, x)


@calls.compiled(constant="gamma")
def focal(values: ArrayLike, *, gamma: float | Array) -> Array:
    r"""Focal loss as a function of the cross-entropy l, (1 - exp(-l))^gamma l.

    Args:
        values: a loss's values l >= 0 (so that exp(-l) is a probability), floats `[...]`.
        gamma: the focusing exponent, a scalar >= 0; 0 returns the values.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        1 - exp(-l) is -expm1(-l): right for small l too. 0 at l = 0, +inf at +inf.

    Derivatives:
        q^gamma (1 + gamma l / expm1(l)), q = 1 - exp(-l): finite at l = 0 for every gamma, where
        the derivative of q^gamma alone is not; q^gamma l log q in gamma.

    Raises:
        TypeError: values are not floats. ValueError: gamma is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> print(focal(jnp.log(jnp.array([2.0])), gamma=2.0))
        [0.1732868]

    Reference:
        Lin et al., "Focal loss for dense object detection" (2017).
    """
    values = validation.to_sum_dtype(validation.as_floats(values, "values"))
    exponent = validation.as_scalar(gamma, "gamma", values.dtype)
    if not isinstance(gamma, Array) and not gamma >= 0:
        raise ValueError(f"gamma: expected a number >= 0, got {gamma}")
    return _focal(values, exponent)


@jax.custom_jvp
def _focal(values: Array, gamma: Array) -> Array:
    return _power(-jnp.expm1(-values), gamma) * values


@_focal.defjvp
def _focal_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (loss, gamma), (change, dgamma) = primals, tangents
    q = -jnp.expm1(-loss)
    power = _power(q, gamma)
    slope = power * (1 + gamma * _bernoulli(loss))
    # q^gamma l log q, which is 0 at both ends.
    inside = (q > 0) & (q < 1)
    logs = select(inside, power * loss * jnp.log(select(inside, q, 1)), 0)
    return power * loss, slope * change + logs * dgamma


def _power(q: Array, gamma: Array) -> Array:
    """q^gamma, a constant at q = 0 where its slope would be infinite."""
    edge = (q == 0) & (gamma < 1)
    return select(edge, (gamma == 0).astype(q.dtype), select(edge, 1, q) ** gamma)


def _bernoulli(x: Array) -> Array:
    """x / (exp(x) - 1) for x >= 0: 1 at 0 and 0 at infinity, with derivatives to match.

    Its series there is 1 - x / 2 + x^2 / 12 - x^4 / 720 + x^6 / 30240.
    """
    inside = (x > 0.03) & (x < jnp.inf)
    y = jnp.where(inside, x, 1)
    near = jnp.where(x > 0.03, 0, x)
    square = near * near
    series = 1 - near / 2 + square * (1 / 12 - square * (1 / 720 - square / 30240))
    limit = jnp.where(x > 0.03, 0, series)
    return jnp.where(inside, y * jnp.exp(-y) / -jnp.expm1(-y), limit)


@calls.compiled()
def weighted_mean(
    values: ArrayLike, *, valid: ArrayLike | None = None, weights: ArrayLike | None = None
) -> Array:
    r"""Weighted mean of a loss's values, sum(weights * valid * values) / sum(weights * valid).

    Args:
        values: floats `[...]`.
        valid: bools, or integers 0 and 1: which examples count; of the values' shape, a leading
            part of it, or a scalar.
        weights: non-negative numbers or bools, likewise.

    Returns:
        A scalar, float32 or float64; 0 where the total weight is 0.

    Numerics:
        A value without weight has no say, NaN and infinity included.

    Derivatives:
        The weight over the total weight, in each value; (value - mean) / total, in each weight.

    Raises:
        TypeError: values are not one array of floats, weights no numbers, or valid floats.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), weights=jnp.array([1.0, 3.0, 0.0])))
        2.5

    Reference:
        The ratio estimator of a mean, as scikit-learn's `sample_weight` has it.
    """
    v = validation.to_sum_dtype(validation.as_floats(values, "values"))
    if valid is None and weights is None:
        return jnp.sum(v) / max(v.size, 1) if placement.is_static(*v.shape) else jnp.mean(v)
    w = _mean_weights(v, valid, weights)
    return _ratio(v, w, w)


def _mean_weights(values: Array, valid: ArrayLike | None, weights: ArrayLike | None) -> Array:
    """The weight of each value, 0 where it does not count."""
    w = jnp.ones_like(values)
    if weights is not None:
        w = validation.as_numbers(weights, "weights").astype(values.dtype)
        w = validation.broadcast_leading(w, values, "weights")
    if valid is not None:
        w = select(validation.broadcast_leading(validation.as_flags(valid, "valid"), values, "valid"), w, 0)
    return w


def _ratio(values: Array, weights: Array, shares: Array) -> Array:
    """The weighted sum over that of the shares; a weight of 0 silences NaN and infinity."""
    total = jnp.sum(shares)
    heard = select((weights == 0) & ~jnp.isfinite(values), 0, values)
    return jnp.sum(weights * heard) / select(total == 0, 1, total)


@calls.compiled("axis", constant="smoothing")
def mean_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    smoothing: float | Array = 0.0,
    class_weights: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    r"""Mean cross-entropy of the examples that count, what most training steps minimize.

    sum_i v_i w_i l_i / sum_i v_i w_i c_{y_i}, with v valid, w the weights, c the class weights.

    It is `weighted_mean(cross_entropy(z, y, valid=v), valid=v, weights=w)`, in which `valid` stands
    twice: in the loss it keeps NaN out of the gradient, in the mean it is in the denominator.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        smoothing: a, a scalar from 0 to 1: see `smoothed_cross_entropy`.
        class_weights: c >= 0, numbers `[K]`; None for ones.
        axis: the class axis.
        where: bool, broadcastable to the logits, or `[K]`: which classes exist.
        valid: bools, or integers 0 and 1, `[...]`: which examples count, such as `labels != -100`.
        weights: w >= 0, numbers or bools `[...]`, or a leading part of that shape.

    Returns:
        A scalar, float32 or float64; 0 where the total weight is 0.

    Numerics:
        Of the values as in `cross_entropy` and `smoothed_cross_entropy`. An example that does not
        count has neither a value nor a gradient, whatever its label or its logits hold.

    Derivatives:
        (p - onehot(y)) w / sum(w) in the logits; of any order.

    Raises:
        TypeError: logits are not floats, labels not integers, or where not bool.
        ValueError: shapes that do not fit, or smoothing, if it is a number, outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> logits, labels = jnp.zeros((3, 2)), jnp.array([0, 1, -100])
        >>> print(mean_cross_entropy(logits, labels, valid=labels != -100))
        0.6931472

    Reference:
        The denominator is that of torch.nn.CrossEntropyLoss(weight, ignore_index,
        label_smoothing), reduction "mean".
    """
    rows = _labelled_rows(logits, labels, axis, where, valid)
    w = _mean_weights(rows.counts.astype(rows.z.dtype), rows.counts, weights)
    if weights is not None:
        # Nothing that an example without weight holds can spoil the gradient in the logits; where
        # it holds numbers its value stays, for the gradient in the weight.
        sound = rows.known & jnp.all(rows.z < jnp.inf, rows.axis)
        rows = rows._replace(counts=rows.counts & (sound | (w != 0)))
    values, own = _smoothed(rows, smoothing, class_weights)
    return _ratio(values, w, w * own)


def check_labels(
    labels: ArrayLike,
    num_classes: int,
    *,
    valid: ArrayLike | None = None,
    name: str = "labels",
) -> None:
    r"""Raise if a label that counts is not one of 0, ..., num_classes - 1.

    The losses cannot raise under jit: a label out of range gives NaN there. Call this before.

    Args:
        labels: integers of any dtype and shape, with values: not under jit.
        num_classes: K.
        valid: bool of the labels' shape: which examples count.
        name: what the error calls the labels.

    Returns:
        None.

    Numerics:
        None: integers are compared.

    Derivatives:
        None.

    Raises:
        ValueError: names the first label out of range, its position and the range.
        TypeError: labels are not integers, or are traced.

    Example:
        >>> import jax.numpy as jnp
        >>> check_labels(jnp.array([0, 3, 2]), 3)
        Traceback (most recent call last):
        ...
        ValueError: labels[1]: expected a label from 0 to 2, got 3 (1 of 3 are out of range)

    Reference:
        The contract of `cross_entropy`.
    """
    y = validation.as_concrete(labels, name)
    if y.size and not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, got {y.dtype}")
    wide = y.astype(np.int64) if y.dtype != np.uint64 else y
    bad = (wide < 0) | (wide >= num_classes)
    if valid is not None:
        bad &= np.asarray(validation.broadcast_valid(validation.as_concrete(valid, "valid"), y.shape))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        where = "".join(f"[{i}]" for i in first)
        raise ValueError(
            f"{name}{where}: expected a label from 0 to {num_classes - 1}, got {y[first]} "
            f"({bad.sum()} of {y.size} are out of range)"
        )


MAX_INFERRED_CLASSES = 65_536  # classes that a label may make of itself


def inferred_classes(labels: Array | np.ndarray, name: str) -> int:
    """Return one more than the largest label; a ValueError where that is no number of classes."""
    largest = int(labels.max())
    if largest < max(MAX_INFERRED_CLASSES, 2 * labels.size):
        return max(1, largest + 1)
    first = int(np.argmax(validation.to_host(labels)))
    raise ValueError(
        f"{name}[{first}]: label {largest} makes {largest + 1} classes of {labels.size} examples; "
        "renumber the labels as 0 ... K - 1 (numpy.unique(labels, return_inverse=True)), or say "
        "how many classes there are"
    )


def _soft_arguments(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    valid: ArrayLike | None,
    *,
    logs: bool = False,
) -> tuple[Array, Array, Array, int]:
    """Logits and targets of one shape and dtype, which rows count, and the axis.

    A row that is masked whole has no distribution, and does not count either.
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    t = validation.as_distributions(targets, z, axis, logs=logs)
    counts = jnp.any(z != -jnp.inf, axis)
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    if valid is not None:
        counts = counts & valid
        z, t = (validation.zero_ignored_rows(a, valid, axis) for a in (z, t))
    return z, t, counts, axis


def _one_hot(labels: ArrayLike, z: Array, axis: int, name: str) -> tuple[Array, Array]:
    """Which entries of z are the labels', and which rows' labels are labels (kept axis)."""
    index, known = (
        jnp.expand_dims(a, axis) for a in validation.prepare_labels(labels, z, axis, name)
    )
    return lax.broadcasted_iota(index.dtype, z.shape, axis) == index, known
