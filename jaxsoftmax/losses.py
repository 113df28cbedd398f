r"""Losses of a classification head: one value per example, exact, with closed-form derivatives.

    name                   of logits z, label y or target t               gradient in z
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

where p is the softmax or, for the binary loss, the sigmoid of z. All losses share these rules:

- A loss returns one value per example (per label if it is binary), in float32 for half-precision
  logits. `weighted_mean` is the only function that averages.
- `where` marks the classes that exist (a logit of -inf marks one that does not), and `valid` the
  examples that count. Ignored examples have value 0 and gradient 0, whatever their label or their
  logits hold.
- A label out of range gives NaN for its example alone, a label on a masked class gives +inf, and a
  fully masked row gives 0. `check_labels` reports a bad label before training.
- Modifications that apply to several losses compose outside them: temperature divides the logits,
  z-loss adds `logsumexp(z)**2`, and `focal` is a function of the values of a loss. Label smoothing
  and class weights change the target of each class, in `smoothed_cross_entropy`.
  `mean_cross_entropy` is the mean that most training steps minimize; it leaves ignored examples out
  of both the sum and the denominator.
"""

import functools
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import (
    calls,
    class_shards,
    exponential,
    few_passes,
    host_arrays,
    links,
    placement,
    sharded_losses,
    softmax_core,
    validation,
)
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.few_passes import SoftTerms
from jaxsoftmax.linear_map import with_derivatives_of
from jaxsoftmax.placement import select
from jaxsoftmax.sharding import Shards
from jaxsoftmax.softmax_core import LabeledRows
from jaxsoftmax.validation import ArrayLike


@calls.compiled("axis", "shards")
def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the softmax cross-entropy with integer labels, -log p_y = lse(z) - z_y.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`. None leaves sharded classes to the
            compiler (on an Auto mesh) or to JAX (on an Explicit one): right, but with sums of
            floats, whose error grows with the number of shards, and more collectives.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        log1p(sum over k != y of exp(z_k - z_y)), never lse - z_y, which cancels to 0 on a confident
        example. Accurate to 8 ulp at any margin and offset (to 9 on a CPU if the number of classes
        is from 257 to 10,000 and has no divisor from 32 to 256, such as 1009). +inf for a label on
        a masked class, 0 for a fully masked row and for valid=False, NaN for a label out of range.

        With `shards` the bound of 8 ulp holds for any number of shards of up to 2^21 classes: two
        all-reduces of two integers a row, in which nothing is rounded, and none for the gradient.
        The sums over classes of directional derivatives and Hessian products are as exact, and take
        two more each. Where the number of classes is a multiple of 128 times the number of shards,
        and at most 2^18, values, gradients and these products have the same bits for any number of
        up to 1,024 shards (tested on CPUs). So have those of the other losses over classes, in two
        all-reduces of more integers (see `sharded_softmax`).

    Derivatives:
        p - onehot(y), see `cross_entropy_gradient`; of any order, in both modes.

    Raises:
        TypeError: the logits are not floats, the labels not integers, or a mask not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(cross_entropy(jnp.array([[20.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])))
        [2.0611537e-09 6.9314718e-01]

    Reference:
        Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021), and `exponential`.
    """
    rows = softmax_core.prepare_labeled_rows(logits, labels, axis, where, valid, shards)
    return _label_losses(logits, rows, where)


def _label_losses(logits: ArrayLike, rows: LabeledRows, where: ArrayLike | None) -> Array:
    """Return the cross-entropy of prepared rows, by a kernel on a GPU where that is faster."""
    logits = jnp.asarray(logits)
    kernels = softmax_core.find_kernels(logits, rows.axis, rows.shards)
    if kernels is None:
        return _cross_entropy(*rows)
    return kernels.losses(logits, rows, is_masked=where is not None)


def _in_few_passes(plain: Callable, both: Callable, options: int = 1) -> Callable[..., Array]:
    """Return the loss `plain` of logits, other arrays and options, by its value and gradient.

    The last of the options is the class axis. `both` computes value and gradient in few passes over
    memory. Other derivatives are those of `plain`.
    """

    def plain_both(z: Array, *rest: Any) -> tuple[Array, Array]:
        value, pull = jax.vjp(lambda z: plain(z, *rest), z)
        return value, pull(jnp.ones_like(value))[0]

    both = with_derivatives_of(plain_both, options)(both)
    count = len(signature(plain).parameters)

    @functools.partial(jax.custom_jvp, nondiff_argnums=tuple(range(count - options, count)))
    def loss(*arguments: Any) -> Array:
        return both(*arguments)[0]

    @loss.defjvp
    def _(*known: Any) -> tuple[Array, Array]:
        *chosen, (z, *others), (dz, *changes) = known
        value, gradient = both(z, *others, *chosen)
        # The tangent of a masked class may be anything.
        change = jnp.sum(gradient * select(z == -jnp.inf, 0, dz), chosen[-1])
        if others:
            change += jax.jvp(lambda *others: plain(z, *others, *chosen), others, changes)[1]
        return value, change

    return loss


CPU_BLOCK_ENTRIES = 2**20  # 4 MB of exponentials, which stay in a CPU's cache


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _cross_entropy(
    z: Array, labels: Array, in_range: Array, valid: Array, axis: int, shards: ClassShards
) -> Array:
    arrays = (z, labels, in_range, valid)
    if shards.classes:
        return sharded_losses.label_values(*arrays, axis, shards)
    values = functools.partial(_values, axis=axis)
    if z.ndim == 1 or axis < z.ndim - 1 or not _is_large(z):
        return values(*arrays)
    return lax.platform_dependent(*arrays, cpu=_values_by_blocks, default=values)


def _values(
    z: Array,
    labels: Array,
    in_range: Array,
    valid: Array,
    *,
    axis: int,
) -> Array:
    return softmax_core.value_and_gradient(z, labels, in_range, valid, axis)[0]


def _is_large(z: Array) -> bool:
    """Return whether a CPU computes the values by blocks: False where a size is symbolic."""
    return placement.is_static(*z.shape) and z.size > 8 * CPU_BLOCK_ENTRIES


def _values_by_blocks(z: Array, *per_row: Array) -> Array:
    """Return the values, computed for one block of rows after the other on a CPU.

    Without the gradient there is no output array that could hold the exponentials, and XLA's CPU
    backend would allocate one of the size of the logits: three times the time of this function at
    32,768 classes. The longest axis of examples is cut within groups, so that every device works on
    the rows it holds.
    """
    arrays, lead = (z, *per_row), z.shape[:-1]
    if placement.count_devices(z) == 1:
        arrays = tuple(a.reshape(-1, *a.shape[len(lead) :]) for a in arrays)
    longest = max(range(arrays[1].ndim), key=arrays[1].shape.__getitem__)
    groups = placement.count_groups(arrays[0], longest)
    length = arrays[1].shape[longest] // groups
    size = -(-length // -(-z.size // CPU_BLOCK_ENTRIES))

    def update_block(number: Array, values: Array) -> Array:
        # The last block may overlap the one before it.
        cut = placement.Cut(jnp.minimum(number * size, length - size), size, groups)
        block = [placement.take_block(a, cut, longest) for a in arrays]
        return placement.put_block(values, _values(*block, axis=values.ndim), cut, longest)

    # Outside the context of a mesh, zeros have no sharding of their own.
    zeros = jnp.zeros_like(arrays[1], z.dtype)
    start = placement.shard_like_rows(zeros, arrays[0], zeros.ndim)
    return lax.fori_loop(0, -(-length // size), update_block, start).reshape(lead)


@_cross_entropy.defjvp
def _cross_entropy_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    valid = primals[3]
    value, gradient = softmax_core.value_and_gradient(*primals, axis, shards)
    change = softmax_core.directional_derivative(gradient, tangents[0], valid, axis, shards)
    return value, change


@calls.compiled("axis", "shards", constant="smoothing")
def smoothed_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    smoothing: float | Array,
    class_weights: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return cross-entropy with smoothed labels and class weights, sum_k t_k c_k (-log p_k).

    The target t is 1 - a + a / K for the label and a / K for every other class, where K is the
    number of classes that exist in the row; c are the class weights.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        smoothing: a, a scalar from 0 to 1.
        class_weights: c >= 0, numbers `[K]`; None for ones.
        axis: the class axis.
        where: bool, broadcastable to the logits, or `[K]`: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]`, float32 or float64. A mean of them divides by the sum of the weights of the labels'
        classes, as `mean_cross_entropy` does.

    Numerics:
        A sum of non-negative terms, accurate to 8 ulp of the largest. A masked class has no share
        of the smoothing. +inf for a label on a masked class, unless its target is 0; 0 for a fully
        masked row and for valid=False, NaN for a label out of range. If smoothing is the number 0,
        the value is c_y times `cross_entropy`, and each entry of the gradient is exact.

    Derivatives:
        p sum_k(t_k c_k) - t c; of any order.

    Raises:
        TypeError: the logits are not floats, the labels not integers, or `where` not bool.
        ValueError: the shapes do not match, or smoothing is a number outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{smoothed_cross_entropy(jnp.array([2.0, 0.0]), 0, smoothing=0.1):.4f}")
        0.2269

    Reference:
        Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016). Class
        weights and smoothing combine as in torch.nn.CrossEntropyLoss, which weights the uniform
        part too.
    """
    rows = softmax_core.prepare_labeled_rows(logits, labels, axis, where, valid, shards)
    return _smoothed_values(logits, rows, smoothing, class_weights, where)[0]


def _smoothed_values(
    logits: ArrayLike,
    rows: LabeledRows,
    smoothing: float | Array,
    class_weights: ArrayLike | None,
    where: ArrayLike | None,
) -> tuple[Array, Array]:
    """Return the losses, and the class weight of each label."""
    z, axis = rows.z, rows.axis
    a = validation.as_scalar(smoothing, "smoothing", z.dtype)
    if not isinstance(smoothing, Array) and not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a number from 0 to 1, got {smoothing}")
    c, label_weights = _prepare_class_weights(class_weights, rows)
    if _is_zero(smoothing):
        values = _label_losses(logits, rows, where)
        if c is not None:
            values = softmax_core.weighted_term(label_weights, values)
        return values, label_weights
    c = None if c is None else _expand_classes(c, rows)
    if rows.shards.classes:
        return sharded_losses.smoothed_values(rows, a, c), label_weights
    loss = _smoothed_in_few_passes if few_passes.are_used(z, axis) else _smoothed
    z = validation.zero_ignored_rows(z, rows.valid, axis)
    values = loss(z, rows.labels, rows.range_factor, a, c, axis)
    return validation.zero_ignored(values, _has_classes(z, axis) & rows.valid), label_weights


def _is_zero(smoothing: float | Array) -> bool:
    """Return whether there is no smoothing, as is known when the call is traced."""
    return not isinstance(smoothing, Array) and smoothing == 0


def _prepare_class_weights(
    class_weights: ArrayLike | None, rows: LabeledRows
) -> tuple[Array | None, Array]:
    """Return the class weights, `[K]` or None, and that of each row's label."""
    z, axis = rows.z, rows.axis
    if class_weights is None:
        return None, jnp.ones_like(rows.labels, z.dtype)
    c = validation.as_numbers(class_weights, "class_weights").astype(z.dtype)
    validation.check_shape(c, (z.shape[axis],), "class_weights", "one per class")
    return c, _take_label_weights(c, rows)


def _take_label_weights(class_weights: Array, rows: LabeledRows) -> Array:
    """Return the weight of each label's class.

    Sharded classes have no gather; there it is a sum with one nonzero term.
    """
    if not any(placement.partition_spec(rows.z)) and not rows.shards.classes:
        return class_weights[rows.labels]
    is_label = softmax_core.label_mask(rows.z, rows.labels, rows.axis, rows.shards)
    terms = jnp.where(is_label, _expand_classes(class_weights, rows), 0)
    return class_shards.take_class(terms, rows.axis, rows.shards)


def _expand_classes(per_class: Array, rows: LabeledRows) -> Array:
    """Return values per class, `[K]`, with the rank of the logits."""
    return jnp.expand_dims(per_class, [i for i in range(rows.z.ndim) if i != rows.axis])


def _smoothed(
    z: Array,
    labels: Array,
    range_factor: Array,
    smoothing: Array,
    class_weights: Array | None,
    axis: int,
) -> Array:
    """Return the losses of classes that are not sharded, -sum t_k c_k log p_k."""
    count = jnp.sum(z != -jnp.inf, axis, dtype=z.dtype, keepdims=True)
    is_label = softmax_core.label_mask(z, labels, axis)
    t = softmax_core.smooth_targets(z, is_label, count, smoothing, class_weights)
    return _soft_cross_entropy(z, t * jnp.expand_dims(range_factor, axis), axis)


_smoothed_in_few_passes = _in_few_passes(_smoothed, few_passes.smoothed_with_gradient)


@calls.compiled("axis", "shards")
def soft_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return cross-entropy with target probabilities, -sum_k t_k log p_k.

    Args:
        logits: floats, `[..., K]`.
        targets: t >= 0, of the logits' shape, or floats `[K]`; they are not normalized.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        A sum of non-negative terms, with 0 log 0 = 0, accurate to 8 ulp of the largest. +inf where
        a masked class has a positive target; 0 for a fully masked row and for valid=False.

    Derivatives:
        p sum(t) - t in the logits, -log p in the targets (0 where p is 0); of any order.

    Raises:
        TypeError: the logits or targets are not floats, or a mask is not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(soft_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([0.25, 0.75])))
        0.6931472

    Reference:
        Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015).
    """
    rows = _prepare_soft(logits, targets, axis, where, valid, shards)
    return _soft_values(rows, PROBABILITIES)


class _SoftRows(NamedTuple):
    """Logits with the targets of all classes."""

    z: Array
    t: Array
    valid: Array | None  # which rows count; a fully masked row has no distribution and does not
    axis: int
    shards: ClassShards


PROBABILITIES = SoftTerms(lambda t: t)


def _soft_values(rows: _SoftRows, terms: SoftTerms) -> Array:
    """Return the cross-entropy of the targets' probabilities plus the sum of their products."""
    z, targets, valid, axis, shards = rows
    if not shards.classes:
        loss = _soft_loss_in_few_passes if few_passes.are_used(z, axis) else _soft_loss
        return validation.zero_ignored(loss(z, targets, terms, axis), valid)
    products = None if terms.products is None else terms.products(targets)
    values = sharded_losses.soft_values(z, terms.probabilities(targets), products, axis, shards)
    return validation.zero_ignored(values, valid)


def _soft_loss(z: Array, targets: Array, terms: SoftTerms, axis: int) -> Array:
    cross_entropies = _soft_cross_entropy(z, terms.probabilities(targets), axis)
    if terms.products is None:
        return cross_entropies
    return cross_entropies + jnp.sum(terms.products(targets), axis)


_soft_loss_in_few_passes = _in_few_passes(_soft_loss, few_passes.soft_loss_with_gradient, options=2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft_cross_entropy(z: Array, t: Array, axis: int) -> Array:
    """Return -sum_k t_k log p_k, with 0 log 0 = 0."""
    log_p = links.softmax_and_log(z, axis)[1]
    return -jnp.sum(select(t == 0, 0, t * log_p), axis)


@_soft_cross_entropy.defjvp
def _soft_cross_entropy_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z, t), (dz, dt) = primals, tangents
    p, log_p = links.softmax_and_log(z, axis)
    # The loss depends on neither the logit nor the target of a masked class. Where a logit is +inf,
    # it does not depend on the targets of the classes with probability 0 either.
    gradient = select(z == -jnp.inf, 0, p * jnp.sum(t, axis, keepdims=True) - t)
    products = gradient * dz - select(jnp.isinf(log_p), 0, log_p) * dt
    # The value comes from the loss itself, whose next derivative is by this rule, also where the
    # loss is infinite and that of its sum would be NaN.
    return _soft_cross_entropy(z, t, axis), jnp.sum(products, axis)


@calls.compiled("axis", "log_targets", "shards")
def kl_divergence(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    log_targets: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the Kullback-Leibler divergence KL(t || p) = sum_k t_k (log t_k - log p_k).

    Args:
        logits: floats, `[..., K]`.
        targets: t >= 0, of the logits' shape, or floats `[K]`; they are not normalized.
        log_targets: whether the targets are log t: at most slightly above 0, and -inf for t = 0.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]`, float32 or float64; `soft_cross_entropy` minus the targets' entropy.

    Numerics:
        The difference of two sums of terms of one sign, accurate to 8 ulp of the larger, with
        0 log 0 = 0. NaN for a negative t: pass log-probabilities with log_targets=True.

    Derivatives:
        p sum(t) - t in the logits, 1 + log t - log p in the targets (0 at t = 0), and t times the
        latter in their logarithms; of any order.

    Raises:
        TypeError: the logits or targets are not floats, or a mask is not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(kl_divergence(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0])))
        0.6931472

    Reference:
        Kullback and Leibler, "On information and sufficiency" (1951).
    """
    rows = _prepare_soft(logits, targets, axis, where, valid, shards, logs=log_targets)
    return _soft_values(rows, LOGARITHMS if log_targets else DIVERGENCE)


def _t_log_t(t: Array) -> Array:
    """Return t log t, 0 at t = 0."""
    return select(t == 0, 0, t * jnp.log(select(t == 0, 1, t)))


def _exp_products(log_t: Array) -> Array:
    """Return t log t of log t, 0 at t = 0."""
    t = jnp.exp(log_t)
    return select(t == 0, 0, t * select(log_t == -jnp.inf, 0, log_t))


DIVERGENCE = SoftTerms(PROBABILITIES.probabilities, _t_log_t)
LOGARITHMS = SoftTerms(jnp.exp, _exp_products)


@calls.compiled("axis", "shards")
def entropy(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the entropy of the softmax, H(p) = -sum_k p_k log p_k.

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        A sum of non-negative terms, each accurate to a few ulp: 0 for one class, log K for K equal
        logits, and the small entropy of a confident row keeps its digits. A class whose probability
        is below the least normal number may add nothing, at most 1.1e-36 in float32.

    Derivatives:
        -p (log p + H), of any order.

    Raises:
        TypeError: the logits are not floats, or a mask is not bool.
        ValueError: the shapes do not match.

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
    class_axes = class_shards.resolve(shards, z)
    if class_axes.classes:
        return validation.zero_ignored(sharded_losses.entropy_values(z, axis, class_axes), valid)
    if few_passes.are_used(z, axis):
        return validation.zero_ignored(_entropy_in_few_passes(z, axis), valid)
    return validation.zero_ignored(_entropy(z, axis), valid)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entropy(z: Array, axis: int) -> Array:
    p, log_p = links.softmax_and_log(z, axis)
    terms = p * select(p == 0, 0, log_p)
    return -class_shards.sum_classes(terms, axis, UNSHARDED)


@_entropy.defjvp
def _entropy_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Return the entropy and its tangent, by gaps d = max z - z in place of log p.

    p (d - sum p d) is the gradient too, and keeps its digits where log p and H are nearly opposite.
    """
    (z,), sums = primals, functools.partial(class_shards.sum_classes, axis=axis, shards=UNSHARDED)
    p = links.softmax(z, axis=axis)
    maximum = lax.stop_gradient(jnp.max(z, axis, keepdims=True))
    gaps = select((p == 0) | (z == jnp.inf), 0, maximum - z)
    gradient = p * (gaps - jnp.expand_dims(sums(p * gaps), axis))
    return _entropy(z, axis), sums(gradient * select(z == -jnp.inf, 0, tangents[0]))


_entropy_in_few_passes = _in_few_passes(_entropy, few_passes.entropy_with_gradient)


@calls.compiled()
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Return sigmoid cross-entropy per label, w t softplus(-z) + (1 - t) softplus(z).

    Args:
        logits: floats, `[...]`, with a trailing axis of labels in multi-label problems.
        targets: t in [0, 1], floats, integers or bools of the logits' shape, or a scalar.
        pos_weight: w >= 0, broadcastable to the logits: the weight of the positive term.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count; has the same effect as
          `where`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        Accurate to 8 ulp where the unweighted loss is a normal number, because both terms are
        non-negative. An infinite term with the coefficient 0 is ignored, so infinite logits give 0
        or +inf and never NaN. A target outside [0, 1] by up to 4 ulp of its dtype is a rounding
        error and is clipped; NaN for one farther out. 0 where valid or where is False.

    Derivatives:
        sigmoid(z) - t for w = 1, see `binary_cross_entropy_gradient`; of any order.

    Raises:
        TypeError: the logits are not floats, or the targets not numbers.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(binary_cross_entropy(jnp.array([20.0, -jnp.inf]), jnp.array([1, 0])))
        [2.0611537e-09 0.0000000e+00]

    Reference:
        softplus(-z) is -log sigmoid(z), so this is equation 4.90 of Bishop, "Pattern Recognition
        and Machine Learning" (2006).
    """
    z, t, w, valid = validation.prepare_binary(logits, targets, pos_weight, where, valid)
    a, b = t if w is None else w * t, 1 - t
    if exponential.is_for_gpu():
        return validation.zero_ignored(_binary_in_one_pass(z, a, b), valid)
    positive = softmax_core.weighted_term(a, links.softplus_values(-z))
    return validation.zero_ignored(
        positive + softmax_core.weighted_term(b, links.softplus_values(z)), valid
    )


@jax.custom_jvp
def _binary_in_one_pass(z: Array, a: Array, b: Array) -> Array:
    """Return a softplus(-z) + b softplus(z), with each transcendental function used once.

    XLA for a GPU stores, in float32, what is used twice. Value and gradient of a mean then took
    four passes over memory.
    """
    term = softmax_core.weighted_term
    tail = jnp.log1p(jnp.exp(-jnp.abs(z)))
    return (a + b) * tail + (term(a, jnp.maximum(-z, 0)) + term(b, jnp.maximum(z, 0)))


@_binary_in_one_pass.defjvp
def _binary_in_one_pass_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z, a, b), (dz, da, db) = primals, tangents
    p, q = links.sigmoid_pair(exponential.again(z))

    def slope(weight: Array, value: Array) -> Array:
        return select((weight == 0) & (value == jnp.inf), 0, value)

    by_weight = slope(a, links.softplus_values(-z)) * da + slope(b, links.softplus_values(z)) * db
    return _binary_in_one_pass(z, a, b), (b * p - a * q) * dz + by_weight


@calls.compiled("axis", "shards")
def squared_error(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the squared error of the logits themselves, sum_k (z_k - t_k)^2.

    Args:
        logits: floats, `[..., K]`.
        targets: floats `[..., K]` for a regression; floats `[...]` if K = 1; or integers `[...]`,
          labels whose one-hot codes are the targets.
        axis: the class axis.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        A sum of squares, accurate to a few ulp of the largest. NaN for a label out of range.

    Derivatives:
        2 (z - t).

    Raises:
        TypeError: the logits are not floats, or the targets neither floats nor integers.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(squared_error(jnp.array([1.0, 3.0]), jnp.array(0)))
        9.0

    Reference:
        Gauss, "Theoria motus" (1809), in the form of `squared_error` in scikit-learn and Optax,
        without a factor of one half.
    """
    z, axis = validation.prepare_logits(logits, axis)
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    class_axes = class_shards.resolve(shards, z)
    t = _regression_targets(jnp.asarray(targets), z, axis, class_axes)
    z, t = (
        validation.zero_ignored_rows(z, valid, axis),
        validation.zero_ignored_rows(t, valid, axis),
    )
    squares = class_shards.sum_classes((z - t) ** 2, axis, class_axes)
    return validation.zero_ignored(squares, valid)


def _regression_targets(targets: Array, z: Array, axis: int, shards: ClassShards) -> Array:
    """Return targets of the logits' shape: one-hot codes of labels, or the numbers themselves."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        classes = class_shards.count_classes(z, axis, shards)
        labels, in_range = validation.prepare_labels(targets, z, axis, "targets", classes)
        onehot = softmax_core.label_mask(z, labels, axis, shards).astype(z.dtype)
        return jnp.where(jnp.expand_dims(in_range, axis), onehot, jnp.nan)
    targets = validation.as_floats(targets, "targets").astype(z.dtype)
    if z.shape[axis] == 1 and targets.ndim == z.ndim - 1:
        targets = jnp.expand_dims(targets, axis)
    return validation.check_shape(targets, z.shape, "targets", "that of the logits")


@calls.compiled("axis", "shards")
def brier(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the Brier score of the softmax, sum_k (p_k - [k = y])^2.

    It is the squared norm of the gradient of `cross_entropy`.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]` between 0 and 2, float32 or float64.

    Numerics:
        1 - p_y is computed as the sum of the others, so a confident example keeps its digits. A
        label on a masked class gives 1 + sum_k p_k^2. NaN for a label out of range.

    Derivatives:
        2 (diag(p) - p p') (p - onehot(y)); of any order.

    Raises:
        TypeError: the logits are not floats, the labels not integers, or a mask not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(brier(jnp.array([0.0, 0.0]), 1))
        0.5

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability" (1950).
    """
    rows = softmax_core.prepare_labeled_rows(logits, labels, axis, where, valid, shards)
    if rows.shards.classes:
        return sharded_losses.brier_values(rows)
    if few_passes.are_used(rows.z, rows.axis):
        return validation.zero_ignored(_brier_in_few_passes(*rows[:5]), rows.valid)
    return _brier(*rows[:5])


def _brier(z: Array, labels: Array, in_range: Array, valid: Array, axis: int) -> Array:
    residual = softmax_core.value_and_gradient(z, labels, in_range, valid, axis)[1]
    return class_shards.sum_classes(residual**2, axis, UNSHARDED)


_brier_in_few_passes = _in_few_passes(_brier, few_passes.brier_with_gradient)


@calls.compiled()
def hinge(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Return the hinge loss per label, max(0, 1 - s z) with the sign s = 2 t - 1.

    Args:
        logits: floats, `[...]`.
        targets: t in {0, 1}, of the logits' shape, or a scalar. For t between 0 and 1, s is
          between -1 and 1.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count; has the same effect as
          `where`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        1 - s z is rounded once. NaN for a target outside [0, 1] by more than 4 ulp.

    Derivatives:
        -s where the margin s z is below 1, and 0 elsewhere.

    Raises:
        TypeError: the logits are not floats, or the targets not numbers.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(hinge(jnp.array([0.25, 0.25]), jnp.array([1, 0])))
        [0.75 1.25]

    Reference:
        Cortes and Vapnik, "Support-vector networks" (1995).
    """
    z, t, _, valid = validation.prepare_binary(logits, targets, None, where, valid)
    return validation.zero_ignored(_ramp(1 - (2 * t - 1) * z), valid)


@calls.compiled("axis", "shards")
def multiclass_hinge(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the multi-class hinge (large margin) loss, max(0, 1 + max over k != y of z_k - z_y).

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        0 where no other class exists, +inf for a label on a masked class, NaN for a label out of
        range.

    Derivatives:
        onehot(best other) - onehot(y) where the margin is below 1, and 0 elsewhere; several best
        other classes share the derivative equally.

    Raises:
        TypeError: the logits are not floats, the labels not integers, or a mask not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(multiclass_hinge(jnp.array([2.0, 0.5, 1.75]), 0))
        0.75

    Reference:
        Crammer and Singer, "On the algorithmic implementation of multiclass kernel-based vector
        machines" (2001).
    """
    rows = softmax_core.prepare_labeled_rows(logits, labels, axis, where, valid, shards)
    z = validation.zero_ignored_rows(rows.z, rows.valid, rows.axis)
    # A factor, not a selection: the NaN of a label out of range reaches the gradient too.
    rows = rows._replace(z=z * jnp.expand_dims(rows.range_factor, rows.axis))
    label_logit, best_other = _label_and_best_other(rows)
    # Where no other class exists there is no margin to keep.
    is_alone = best_other == -jnp.inf
    # Two infinite logits are equal. So may be finite ones, but those keep their derivative.
    is_tied = (label_logit == jnp.inf) & (best_other == jnp.inf)
    margin = select(is_tied, 0, label_logit - select(is_alone | is_tied, 0, best_other))
    loss = select(is_alone, 0, _ramp(1 - margin))
    return validation.zero_ignored(select(rows.in_range, loss, jnp.nan), rows.valid)


def _label_and_best_other(rows: LabeledRows) -> tuple[Array, Array]:
    """Return the label's logit, and the largest of the others; NaN where a logit of the row is."""
    if rows.shards.classes:
        return sharded_losses.label_and_best_other(rows.z, rows.labels, rows.axis, rows.shards)
    z, is_label = rows.z, softmax_core.label_mask(rows.z, rows.labels, rows.axis)
    label_logit = jnp.sum(select(is_label, z, 0), rows.axis)
    maximum = few_passes.maximum if few_passes.are_used(z, rows.axis) else jnp.max
    best_other = maximum(select(is_label, -jnp.inf, z), rows.axis)
    # XLA's maxima may lose a NaN.
    return label_logit, select(jnp.any(z != z, rows.axis), jnp.nan, best_other)


def _ramp(x: Array) -> Array:
    """Return max(0, x), with derivative 0 at 0; NaN gives NaN."""
    return select(x <= 0, 0, x)


@calls.compiled(constant="gamma")
def focal(values: ArrayLike, *, gamma: float | Array) -> Array:
    r"""Return the focal loss as a function of the cross-entropy l, (1 - exp(-l))^gamma l.

    Args:
        values: a loss's values l >= 0 (so that exp(-l) is a probability), floats `[...]`.
        gamma: the focusing exponent, a scalar >= 0; 0 returns the values.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        1 - exp(-l) is computed as -expm1(-l), which is accurate for small l too. 0 at l = 0, +inf
        at l = +inf.

    Derivatives:
        q^gamma (1 + gamma l / expm1(l)) in l, with q = 1 - exp(-l). It is finite at l = 0 for every
        gamma, although the derivative of q^gamma alone is not. q^gamma l log q in gamma.

    Raises:
        TypeError: the values are not floats.
        ValueError: gamma is a negative number.

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
    (values, gamma), (dvalues, dgamma) = primals, tangents
    q = -jnp.expm1(-values)
    power = _power(q, gamma)
    derivative = power * (1 + gamma * _bernoulli(values))
    # q^gamma l log q, which is 0 at both ends.
    inside = (q > 0) & (q < 1)
    gamma_derivative = select(inside, power * values * jnp.log(select(inside, q, 1)), 0)
    return power * values, derivative * dvalues + gamma_derivative * dgamma


def _power(q: Array, gamma: Array) -> Array:
    """Return q^gamma, as a constant at q = 0 if its derivative there would be infinite."""
    is_singular = (q == 0) & (gamma < 1)
    return select(is_singular, (gamma == 0).astype(q.dtype), select(is_singular, 1, q) ** gamma)


def _bernoulli(x: Array) -> Array:
    """Return x / (exp(x) - 1) for x >= 0: 1 at 0 and 0 at infinity, with accurate derivatives.

    Near 0 it is the series 1 - x / 2 + x^2 / 12 - x^4 / 720 + x^6 / 30240.
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
    r"""Return the weighted mean, sum(weights * valid * values) / sum(weights * valid).

    Args:
        values: floats `[...]`.
        valid: bools, or integers 0 and 1: which examples count; of the values' shape, a leading
          part of it, or a scalar.
        weights: non-negative numbers or bools, of the same shapes.

    Returns:
        A scalar, float32 or float64; 0 where the total weight is 0.

    Numerics:
        A value with weight 0 is ignored, NaN and infinity included.

    Derivatives:
        weight / total weight in each value, (value - mean) / total weight in each weight.

    Raises:
        TypeError: values is not one array of floats, weights are not numbers, or valid is floats.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), weights=jnp.array([1.0, 3.0, 0.0])))
        2.5

    Reference:
        The ratio estimator of a mean, as with `sample_weight` in scikit-learn.
    """
    v = validation.to_sum_dtype(validation.as_floats(values, "values"))
    if valid is None and weights is None:
        return jnp.sum(v) / max(v.size, 1) if placement.is_static(*v.shape) else jnp.mean(v)
    w = _mean_weights(v, valid, weights)
    return _ratio(v, w, w)


def _mean_weights(values: Array, valid: ArrayLike | None, weights: ArrayLike | None) -> Array:
    """Return the weight of each value, 0 where it is ignored."""
    w = jnp.ones_like(values)
    if weights is not None:
        w = validation.as_numbers(weights, "weights").astype(values.dtype)
        w = validation.broadcast_leading(w, values, "weights")
    if valid is not None:
        w = select(
            validation.broadcast_leading(validation.as_flags(valid, "valid"), values, "valid"), w, 0
        )
    return w


def _ratio(
    values: Array, weights: Array, denominators: Array, row_axes: tuple[str, ...] = ()
) -> Array:
    """Return the weighted sum over the sum of the denominators, of all rows.

    NaN and infinity are ignored where the weight is 0.
    """
    total = lax.psum(jnp.sum(denominators), row_axes)
    values = select((weights == 0) & ~jnp.isfinite(values), 0, values)
    return lax.psum(jnp.sum(weights * values), row_axes) / _nonzero(total)


def _nonzero(total: Array) -> Array:
    """Return a total weight, and 1 in place of 0."""
    return select(total == 0, 1, total)


@calls.compiled("axis", "shards", constant="smoothing")
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
    shards: Shards | None = None,
) -> Array:
    r"""Return the mean cross-entropy of the valid examples, which most training steps minimize.

    It is sum_i v_i w_i l_i / sum_i v_i w_i c_{y_i}, where v is valid, w the weights and c the class
    weights. Without smoothing and class weights that is
    `weighted_mean(cross_entropy(z, y, valid=v), valid=v, weights=w)`, in which `valid` appears
    twice: in the loss it keeps NaN out of the gradient, and in the mean it is part of the
    denominator.

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        smoothing: a, a scalar from 0 to 1; see `smoothed_cross_entropy`.
        class_weights: c >= 0, numbers `[K]`; None for ones.
        axis: the class axis.
        where: bool, broadcastable to the logits, or `[K]`: which classes exist.
        valid: bools, or integers 0 and 1, `[...]`: which examples count, such as `labels != -100`.
        weights: w >= 0, numbers or bools `[...]`, or a leading part of that shape.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`. Inside
            a shard_map over the rows, the mean is over the rows of all shards.

    Returns:
        A scalar, float32 or float64; 0 where the total weight is 0.

    Numerics:
        The values are as accurate as those of `cross_entropy` and `smoothed_cross_entropy`. An
        ignored example contributes neither to the value nor to the gradient, whatever its label or
        its logits hold.

    Derivatives:
        (p - onehot(y)) w / sum(w) in the logits; of any order.

    Raises:
        TypeError: the logits are not floats, the labels not integers, or `where` not bool.
        ValueError: the shapes do not match, or smoothing is a number outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> logits, labels = jnp.zeros((3, 2)), jnp.array([0, 1, -100])
        >>> print(mean_cross_entropy(logits, labels, valid=labels != -100))
        0.6931472

    Reference:
        The denominator is that of torch.nn.CrossEntropyLoss(weight, ignore_index,
        label_smoothing), reduction "mean".
    """
    rows = softmax_core.prepare_labeled_rows(logits, labels, axis, where, valid, shards)
    w = _mean_weights(rows.valid.astype(rows.z.dtype), rows.valid, weights)
    if weights is not None:
        # Nothing in an example without weight can spoil the gradient in the logits. If its logits
        # are numbers, its value stays, for the gradient in the weight.
        is_sound = ~class_shards.any_class(~(rows.z < jnp.inf), rows.axis, rows.shards)
        is_sound &= rows.in_range
        rows = rows._replace(valid=rows.valid & (is_sound | (w != 0)))
    kernels = softmax_core.find_kernels(jnp.asarray(logits), rows.axis, rows.shards)
    if kernels is not None and _is_zero(smoothing):
        # Value and gradient in one pass over the logits, since the weights are known before it.
        w = w * _prepare_class_weights(class_weights, rows)[1]
        mean_weights = w / _nonzero(jnp.sum(w))
        is_masked = where is not None
        return kernels.weighted_sum(jnp.asarray(logits), rows, mean_weights, is_masked=is_masked)
    values, label_weights = _smoothed_values(logits, rows, smoothing, class_weights, where)
    return _ratio(values, w, w * label_weights, rows.shards.local_row_axes)


def check_labels(
    labels: ArrayLike,
    num_classes: int,
    *,
    valid: ArrayLike | None = None,
    name: str = "labels",
) -> None:
    r"""Raise if a label of a valid example is not one of 0, ..., num_classes - 1.

    The losses cannot raise under jit, where a label out of range gives NaN. Call this function
    before.

    Args:
        labels: integers of any dtype and shape; concrete, so not under jit.
        num_classes: K.
        valid: bool of the labels' shape: which examples count.
        name: the name of the labels in the error message.

    Returns:
        None.

    Numerics:
        Integers are compared exactly.

    Derivatives:
        None.

    Raises:
        ValueError: a label is out of range; the message has the first one, its position and the
            range. Or K is less than 1.
        TypeError: the labels are not integers, or are traced, or K is not an integer.

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
    if valid is not None:
        valid = np.asarray(
            validation.broadcast_valid(validation.as_concrete(valid, "valid"), y.shape)
        )
    host_arrays.require_labels(y, num_classes, name, valid)


def _prepare_soft(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    valid: ArrayLike | None,
    shards: Shards | None,
    *,
    logs: bool = False,
) -> _SoftRows:
    """Return the checked arguments of a loss with soft targets, of one shape and dtype."""
    z, axis = validation.prepare_logits(logits, axis, where)
    t = validation.as_distributions(targets, z, axis, logs=logs)
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    class_axes = class_shards.resolve(shards, z)
    # Where the classes are sharded, the loss finds the fully masked rows itself.
    has_classes = _has_classes(z, axis) if not class_axes.classes else None
    if valid is None:
        return _SoftRows(z, t, has_classes, axis, class_axes)
    z, t = (validation.zero_ignored_rows(a, valid, axis) for a in (z, t))
    valid = valid if has_classes is None else has_classes & valid
    return _SoftRows(z, t, valid, axis, class_axes)


def _has_classes(z: Array, axis: int) -> Array:
    """Return which rows are not fully masked, and so have a distribution."""
    return jnp.any(z != -jnp.inf, axis)
