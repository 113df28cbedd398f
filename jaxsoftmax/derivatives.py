r"""Closed-form derivatives of the softmax and sigmoid losses.

    loss                     gradient in z            Hessian in z
    cross_entropy            p - onehot(y)            diag(p) - p p'            p = softmax(z)
    binary_cross_entropy     (1 - t) p - w t (1 - p)  (1 - t + w t) p (1 - p)   p = sigmoid(z)

The gradient is prediction minus target. That identity is the derivative rule of the losses, so
`jax.grad` of a loss returns the gradients computed here. No entry is computed as the difference of
two nearly equal numbers: at the label the gradient is minus the sum of the others' probabilities,
and 1 - p is sigmoid(-z).

The Hessian of the softmax loss does not depend on the label. It is a product B B' with B from
`gauss_newton_factor`, so a Gauss-Newton or Fisher matrix never has to be formed.
"""

import jax.numpy as jnp
from jax import Array

from jaxsoftmax import calls, class_shards, links, placement, softmax_core, validation
from jaxsoftmax.sharding import Shards
from jaxsoftmax.validation import ArrayLike


@calls.compiled("axis", "shards")
def cross_entropy_gradient(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the gradient of each example's cross-entropy in its logits, p_k - [k = y].

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        Each entry is accurate to 8 ulp; that of the label is minus the sum of the others. 0 for a
        masked class, for an example with valid=False and for a fully masked row; NaN in the row of
        a label out of range. If the logit of the label is -inf, so that the loss is infinite, its
        entry is -1.

    Derivatives:
        See `cross_entropy_hessian_product`; of any order.

    Raises:
        TypeError: the logits are not floats, the labels not integers, or a mask not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(cross_entropy_gradient(jnp.array([20.0, 0.0]), 0))
        [-2.0611537e-09  2.0611537e-09]

    Reference:
        Bishop, "Pattern Recognition and Machine Learning" (2006), equation 4.109.
    """
    rows = softmax_core.prepare_labeled_rows(logits, labels, axis, where, valid, shards)
    g = softmax_core.value_and_gradient(*rows)[1]
    if where is not None:
        # The label may name a masked class, whose loss is infinite but independent of its logit.
        g = jnp.where(validation.broadcast_where(where, rows.z, rows.axis), g, 0)
    return g.astype(jnp.asarray(logits).dtype)


@calls.compiled("axis", "shards")
def cross_entropy_hessian_product(
    logits: ArrayLike,
    tangents: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return each example's Hessian of cross-entropy times a vector, (diag(p) - p p') v.

    Args:
        logits: floats, `[..., K]`.
        tangents: v, floats of the logits' shape.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        p * (u - sum_k p_k u_k), where u is v minus the v of the class with probability above one
        half, so that small entries of a confident row keep their digits.

    Derivatives:
        Of any order, in both arguments.

    Raises:
        TypeError: the logits or tangents are not floats, or a mask is not bool.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(cross_entropy_hessian_product(jnp.array([20.0, 0.0]), jnp.array([0.0, 1.0])))
        [-2.0611537e-09  2.0611537e-09]

    Reference:
        Bohning, "Multinomial logistic regression algorithm" (1992).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    v = validation.to_sum_dtype(validation.as_floats(tangents, "tangents")).astype(z.dtype)
    validation.check_shape(v, z.shape, "tangents", "that of the logits")
    valid = validation.broadcast_valid(valid, validation.drop_axis(z.shape, axis))
    class_axes = class_shards.resolve(shards, z)
    product = links.softmax_tangents(z, valid, v, axis, class_axes)
    return product.astype(jnp.asarray(logits).dtype)


@calls.compiled()
def gauss_newton_factor(probabilities: ArrayLike) -> Array:
    r"""Return B with B B' = diag(p) - p p', the factor of the softmax's Hessian.

    It is B = diag(q) - p q' with q = sqrt(p).

    Args:
        probabilities: floats, `[..., K]`, whose rows sum to 1.

    Returns:
        `[..., K, K]`, float32 or float64.

    Numerics:
        B B' is accurate to the rounding of its largest entry; a class with probability 0 gives a
        zero row and column.

    Derivatives:
        None at p = 0, where the square root has no derivative.

    Raises:
        TypeError: the probabilities are not floats.
        ValueError: there is no class axis.

    Example:
        >>> import jax.numpy as jnp
        >>> b = gauss_newton_factor(jnp.array([0.25, 0.75]))
        >>> print(b @ b.T)
        [[ 0.1875 -0.1875]
         [-0.1875  0.1875]]

    Reference:
        B B' = diag(p) - 2 p p' + p (q'q) p', and q'q = 1. Martens and Grosse, "Optimizing neural
        networks with Kronecker-factored approximate curvature" (2015).
    """
    p = validation.to_sum_dtype(validation.as_floats(probabilities, "probabilities"))
    validation.normalize_axis(p, -1)
    q = placement.gather_axis(jnp.sqrt(p)[..., None, :], -1)
    identity = jnp.expand_dims(jnp.eye(p.shape[-1], dtype=p.dtype), tuple(range(p.ndim - 1)))
    return q * identity - p[..., :, None] * q


@calls.compiled()
def binary_cross_entropy_gradient(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Return each label's sigmoid cross-entropy gradient, (1 - t) sigmoid(z) - w t sigmoid(-z).

    With w = 1 it is sigmoid(z) - t.

    Args:
        logits: floats, `[...]`.
        targets: t in [0, 1], floats, integers or bools of the logits' shape, or a scalar.
        pos_weight: w >= 0, broadcastable to the logits.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count.

    Returns:
        `[...]` in the dtype of the logits.

    Numerics:
        Accurate to 8 ulp for t = 0 and t = 1, and to 8 ulp of the larger term otherwise. 0 where
        valid or where is False, NaN where a target is outside [0, 1] by more than rounding.

    Derivatives:
        Of any order.

    Raises:
        TypeError: the logits are not floats, or the targets not numbers.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(binary_cross_entropy_gradient(jnp.array([20.0, 20.0]), jnp.array([1, 0])))
        [-2.0611537e-09  1.0000000e+00]

    Reference:
        Bishop, "Pattern Recognition and Machine Learning" (2006), equation 4.91.
    """
    z, t, w, valid = validation.prepare_binary(logits, targets, pos_weight, where, valid)
    positive = t if w is None else w * t
    p, q = links.sigmoid_pair(z)
    gradient = (1 - t) * p - positive * q
    return validation.zero_ignored(gradient, valid).astype(jnp.asarray(logits).dtype)


@calls.compiled()
def binary_cross_entropy_hessian_product(
    logits: ArrayLike,
    targets: ArrayLike,
    tangents: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Return each label's second derivative of sigmoid cross-entropy times a vector.

    It is (1 - t + w t) sigmoid(z) sigmoid(-z) v.

    Args:
        logits: floats, `[...]`.
        targets: t in [0, 1], floats, integers or bools of the logits' shape, or a scalar.
        tangents: v, floats of the logits' shape.
        pos_weight: w >= 0, broadcastable to the logits.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count.

    Returns:
        `[...]` in the dtype of the logits.

    Numerics:
        Accurate to a few ulp, as a product of numbers that each are.

    Derivatives:
        Of any order.

    Raises:
        TypeError: the logits or tangents are not floats.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> print(binary_cross_entropy_hessian_product(jnp.array([0.0]), jnp.array([1]),
        ...                                            jnp.array([2.0])))
        [0.5]

    Reference:
        Bishop, "Pattern Recognition and Machine Learning" (2006), equation 4.97.
    """
    z, t, w, valid = validation.prepare_binary(logits, targets, pos_weight, where, valid)
    v = validation.to_sum_dtype(validation.as_floats(tangents, "tangents")).astype(z.dtype)
    validation.check_shape(v, z.shape, "tangents", "that of the logits")
    p, q = links.sigmoid_pair(z)
    curvature = ((1 - t) + (t if w is None else w * t)) * (p * q)
    return validation.zero_ignored(curvature * v, valid).astype(jnp.asarray(logits).dtype)


@calls.compiled()
def binary_gauss_newton_factor(logits: ArrayLike) -> Array:
    r"""Return b with b^2 = p (1 - p), p = sigmoid(z), the factor of the sigmoid's Hessian.

    Args:
        logits: floats, `[...]`. The argument is not p, because 1 - p cannot be computed exactly
          from p.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        exp(-|z| / 2) / (1 + exp(-|z|)), accurate to a few ulp.

    Derivatives:
        The first at every z; higher ones except at z = 0, where |z| has a kink.

    Raises:
        TypeError: the logits are not floats.

    Example:
        >>> import jax.numpy as jnp
        >>> print(binary_gauss_newton_factor(jnp.array([0.0])))
        [0.5]

    Reference:
        Bishop, "Pattern Recognition and Machine Learning" (2006), equation 4.97.
    """
    z = validation.to_sum_dtype(validation.as_floats(logits))
    half = jnp.exp(-jnp.abs(z) / 2)
    return half / (1 + half * half)
