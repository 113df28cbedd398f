r"""Closed-form derivatives of the softmax and sigmoid losses.

    loss                     gradient in z            Hessian in z
    cross_entropy            p - onehot(y)            diag(p) - p p'            p = softmax(z)
    binary_cross_entropy     (1 - t) p - w t (1 - p)  (1 - t + w t) p (1 - p)   p = sigmoid(z)

The gradient is prediction minus truth, and that identity is the derivative rule of the losses:
what `jax.grad` returns is what stands here. No entry is the difference of two nearly equal
numbers: at the true class the gradient is minus the sum of the others' probabilities, and 1 - p
is sigmoid(-z).

The Hessian of a softmax does not depend on the label. It is a product B B' with B of
`gauss_newton_factor`, so a Gauss-Newton or Fisher matrix never has to be formed.
"""

import jax.numpy as jnp
from jax import Array

from jaxsoftmax import calls, links, placement, softmax_core, validation
from jaxsoftmax.validation import ArrayLike


@calls.compiled("axis")
def cross_entropy_gradient(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Gradient of each example's cross-entropy in its logits, p_k - [k = y].

    Args:
        logits: floats, `[..., K]`.
        labels: integers of any dtype, `[...]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        Each entry is right to 8 ulp; the true class's is -sum of the others. 0 for a masked class,
        an example with valid=False and a row that is masked whole; NaN in the row of a label that
        is out of range. Where the label's own logit is -inf, so that the loss is infinite, its
        entry is -1.

    Derivatives:
        `cross_entropy_hessian_product`, of any order.

    Raises:
        TypeError: logits are not floats, labels not integers, or a mask not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(cross_entropy_gradient(jnp.array([20.0, 0.0]), 0))
        [-2.0611537e-09  2.0611537e-09]

    Reference:
        Bishop, "Pattern Recognition and Machine Learning" (2006), equation 4.109.
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    g = softmax_core.value_and_gradient(*softmax_core.prepare(labels, valid, z, axis), axis)[1]
    if where is not None:
        # The label may name a masked class: the loss is infinite there, but not by its logit.
        g = jnp.where(validation.broadcast_where(where, z, axis), g, 0)
    return g.astype(jnp.asarray(logits).dtype)


@calls.compiled("axis")
def cross_entropy_hessian_product(
    logits: ArrayLike,
    tangents: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Hessian of each example's cross-entropy times a vector, (diag(p) - p p') v.

    Args:
        logits: floats, `[..., K]`.
        tangents: v, floats of the logits' shape.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        valid: bool, `[...]`: which examples count.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        p * (u - sum_k p_k u_k) with u = v minus the v of the class above one half: small entries
        of a confident row keep their digits.

    Derivatives:
        Of any order, in both arguments.

    Raises:
        TypeError: logits or tangents are not floats, or a mask not bool.
        ValueError: shapes that do not fit.

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
    p = links.softmax_values(z, valid, axis)
    return links.covariance_product(p, v, axis).astype(jnp.asarray(logits).dtype)


@calls.compiled()
def gauss_newton_factor(probabilities: ArrayLike) -> Array:
    r"""B with B B' = diag(p) - p p': the factor of a softmax's Hessian, diag(q) - p q', q = sqrt p.

    Args:
        probabilities: floats, `[..., K]`, each row of sum 1.

    Returns:
        `[..., K, K]`, float32 or float64.

    Numerics:
        B B' is right to rounding of its largest entry; a class of probability 0 gives a zero row
        and column.

    Derivatives:
        None at p = 0, where the square root has none.

    Raises:
        TypeError: probabilities are not floats. ValueError: no class axis.

    Example:
        >>> import jax.numpy as jnp
        >>> b = gauss_newton_factor(jnp.array([0.25, 0.75]))
        >>> print(b @ b.T)
        [[ 0.1875 -0.1875]
         [-0.1875  0.1875]]

    Reference:
        B B' = diag(p) - 2 p p' + p (q'q) p', and q'q = 1; Martens and Grosse, "Optimizing neural
        networks with Kronecker-factored approximate curvature" (2015).
    """
    p = validation.to_sum_dtype(validation.as_floats(probabilities, "probabilities"))
    validation.normalize_axis(p, -1)
    q = placement.gather_axis(jnp.sqrt(p)[..., None, :], -1)
    return q * jnp.expand_dims(jnp.eye(p.shape[-1], dtype=p.dtype), tuple(range(p.ndim - 1))) - (
        p[..., :, None] * q
    )


@calls.compiled()
def binary_cross_entropy_gradient(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> Array:
    r"""Gradient of each label's sigmoid cross-entropy, (1 - t) sigmoid(z) - w t sigmoid(-z).

    With w = 1 that is sigmoid(z) - t.

    Args:
        logits: floats, `[...]`.
        targets: t in [0, 1], floats, integers or bools of the logits' shape, or a scalar.
        pos_weight: w >= 0, broadcastable to the logits.
        where: bool, broadcastable to the logits: which labels exist.
        valid: bool, broadcastable to the logits: which labels count.

    Returns:
        `[...]` in the dtype of the logits.

    Numerics:
        Right to 8 ulp for t = 0 and t = 1, else to 8 ulp of the larger term. 0 where valid
        or where is False, NaN where a target is outside [0, 1] by more than rounding.

    Derivatives:
        Of any order.

    Raises:
        TypeError: logits are not floats, or targets no numbers. ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(binary_cross_entropy_gradient(jnp.array([20.0, 20.0]), jnp.array([1, 0])))
        [-2.0611537e-09  1.0000000e+00]

    Reference:
        Bishop, "Pattern Recognition and Machine Learning" (2006), equation 4.91.
    """
    z, t, w, valid = validation.prepare_binary(logits, targets, pos_weight, where, valid)
    positive = t if w is None else w * t
    p, other = links.sigmoid_pair(z)
    gradient = (1 - t) * p - positive * other
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
    r"""Second derivative of each label's loss times v, (1 - t + w t) sigmoid(z) sigmoid(-z) v.

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
        A product of numbers that are each right to a few ulp: so is every entry.

    Derivatives:
        Of any order.

    Raises:
        TypeError: logits or tangents are not floats. ValueError: shapes that do not fit.

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
    p, other = links.sigmoid_pair(z)
    curvature = ((1 - t) + (t if w is None else w * t)) * (p * other)
    return validation.zero_ignored(curvature * v, valid).astype(jnp.asarray(logits).dtype)


@calls.compiled()
def binary_gauss_newton_factor(logits: ArrayLike) -> Array:
    r"""b with b^2 = p (1 - p), p = sigmoid(z): the factor of the sigmoid's Hessian.

    Args:
        logits: floats, `[...]`: 1 - p cannot be had exactly from p.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        exp(-|z| / 2) / (1 + exp(-|z|)): right to a few ulp.

    Derivatives:
        The first, at every z; higher ones except at z = 0, where |z| has a kink.

    Raises:
        TypeError: logits are not floats.

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
