"""Links: the functions between scores and probabilities.

A link maps logits z to probabilities p, or to their logarithms. The softmax links work along one
class axis (`axis`) of arrays of any shape, and all links share these rules:

    p_k = exp(z_k) / sum_j exp(z_j)              softmax        p = 1 / (1 + exp(-z))    sigmoid
    log p_k = z_k - log sum_j exp(z_j)           log_softmax    log p = -log(1 + exp(-z))

- every entry is accurate to a few units in its own last place, however far the others lie above it
  (see `exponential`);
- links keep the dtype of the logits and compute in at least float32; sums (`logsumexp`) are
  float32 for half-precision logits;
- a masked class has the logit -inf or `where=False`: its probability and its derivative are 0. In
  a fully masked row, every probability is 0;
- +inf is a limit: the infinite entries of a row share its mass equally.

The functions named `*_values`, `softmax_and_log` and `sigmoid_pair` take arrays that `validation`
has prepared. The rest of the package calls them inside its own compiled functions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax import calls, exponential, validation
from jaxsoftmax.placement import select
from jaxsoftmax.validation import ArrayLike


@calls.compiled("axis")
def logsumexp(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    r"""Return the logarithm of the sum of exponentials, lse(z) = log sum_k exp(z_k).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        max z + log1p(sum of the others' exp(z_k - max z)), accurate to 8 ulp of the larger term.
        -inf for a fully masked row, +inf where a logit is +inf.

    Derivatives:
        d lse = sum_k p_k dz_k, of any order.

    Raises:
        TypeError: the logits are not floats.
        ValueError: there is no class axis, or the mask has the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> print(logsumexp(jnp.array([1000.0, 1000.0])))
        1000.6932

    Reference:
        Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    return logsumexp_values(z, axis)


@calls.compiled("axis")
def log_softmax(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    r"""Return the logarithm of the softmax, log p_k = z_k - lse(z).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        Each entry is accurate to 8 ulp. This includes the leading class, whose entry is
        -log1p(sum of the others / its own term) and never cancels to 0. -inf for a masked class.

    Derivatives:
        d log p = dz - sum_k p_k dz_k, of any order; 0 for a masked class.

    Raises:
        TypeError: the logits are not floats.
        ValueError: there is no class axis, or the mask has the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> print(log_softmax(jnp.array([20.0, 0.0])))
        [-2.0611537e-09 -2.0000000e+01]

    Reference:
        Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    return log_softmax_values(z, axis).astype(jnp.asarray(logits).dtype)


@calls.compiled("axis")
def softmax(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    r"""Return the softmax, p_k = exp(z_k) / sum_j exp(z_j).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        Each entry is accurate to 8 ulp wherever it is a normal number. 0 for a masked class, also
        in a fully masked row; +inf logits share the mass.

    Derivatives:
        dp = p * (u - sum_k p_k u_k), where u is dz minus the dz of the class with probability above
        one half, so that nothing cancels where one class has nearly all the mass; of any order.

    Raises:
        TypeError: the logits are not floats.
        ValueError: there is no class axis, or the mask has the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> print(softmax(jnp.array([0.0, -80.0, -jnp.inf])))
        [1.0000000e+00 1.8048513e-35 0.0000000e+00]

    Reference:
        Bridle, "Probabilistic interpretation of feedforward classification network outputs" (1990).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    return softmax_values(z, None, axis).astype(jnp.asarray(logits).dtype)


@calls.compiled()
def sigmoid(logits: ArrayLike) -> Array:
    r"""Return the logistic sigmoid, 1 / (1 + exp(-z)): the softmax of (z, 0).

    Args:
        logits: floats of any shape.

    Returns:
        The same shape and dtype as the logits.

    Numerics:
        1 / (1 + e) or e / (1 + e) with e = exp(-|z|), accurate to 8 ulp wherever it is a normal
        number.

    Derivatives:
        sigmoid(z) * sigmoid(-z), of any order; 1 - sigmoid(z) would cancel.

    Raises:
        TypeError: the logits are not floats.

    Example:
        >>> import jax.numpy as jnp
        >>> print(sigmoid(jnp.array([-80.0, 0.0])))
        [1.8048513e-35 5.0000000e-01]

    Reference:
        Cox, "The regression analysis of binary sequences" (1958).
    """
    z = validation.as_floats(logits)
    return sigmoid_values(validation.to_sum_dtype(z)).astype(z.dtype)


@calls.compiled()
def log_sigmoid(logits: ArrayLike) -> Array:
    r"""Return the logarithm of the sigmoid, log sigmoid(z) = -softplus(-z).

    Args:
        logits: floats of any shape.

    Returns:
        The same shape and dtype as the logits.

    Numerics:
        Accurate to 8 ulp wherever it is a normal number: -exp(-z) far to the right, z far to the
        left.

    Derivatives:
        sigmoid(-z), of any order.

    Raises:
        TypeError: the logits are not floats.

    Example:
        >>> import jax.numpy as jnp
        >>> print(log_sigmoid(jnp.array([-1000.0, 20.0])))
        [-1.0000000e+03 -2.0611537e-09]

    Reference:
        Maechler, "Accurately computing log(1 - exp(-|a|))" (2012).
    """
    z = validation.as_floats(logits)
    return -softplus_values(-validation.to_sum_dtype(z)).astype(z.dtype)


@calls.compiled()
def softplus(logits: ArrayLike) -> Array:
    r"""Return the softplus, log(1 + exp(z)) = lse(z, 0).

    Args:
        logits: floats of any shape.

    Returns:
        The same shape and dtype as the logits.

    Numerics:
        max(z, 0) + log1p(exp(-|z|)), accurate to 8 ulp because both terms are non-negative.

    Derivatives:
        sigmoid(z), of any order.

    Raises:
        TypeError: the logits are not floats.

    Example:
        >>> import jax.numpy as jnp
        >>> print(softplus(jnp.array([-20.0, 0.0, 1000.0])))
        [2.0611537e-09 6.9314718e-01 1.0000000e+03]

    Reference:
        Dugas et al., "Incorporating second-order functional knowledge" (2000).
    """
    z = validation.as_floats(logits)
    return softplus_values(validation.to_sum_dtype(z)).astype(z.dtype)


def center(p: Array, tangents: Array, axis: int) -> Array:
    """Return u - sum_k p_k u_k, where u is the tangents minus that of the class above one half.

    Softmax is invariant under a shift of its logits, and this shift makes the centered tangents of
    a confident row exact: what remains for the leading class is the small sum itself.
    """
    u = _subtract_leader(p, tangents, axis)
    return u - jnp.sum(_restrict_to_support(p, p * u), axis, keepdims=True)


def _subtract_leader(p: Array, tangents: Array, axis: int) -> Array:
    """Return the tangents minus that of the class whose probability is above one half."""
    return tangents - jnp.sum(select(p > 0.5, tangents, 0), axis, keepdims=True)


def covariance_product(p: Array, tangents: Array, axis: int) -> Array:
    """Return (diag(p) - p p') times the tangents, to a few ulp of each entry's largest term."""
    u = _subtract_leader(p, _restrict_to_support(p, tangents), axis)
    return p * (u - jnp.sum(p * u, axis, keepdims=True))


def _restrict_to_support(p: Array, x: Array) -> Array:
    """Return x where p is not 0, and 0 elsewhere, even where x is infinite or NaN."""
    return select(p == 0, 0, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_values(z: Array, valid: Array | None, axis: int) -> Array:
    """Return the softmax of prepared logits; rows with valid=False are 0 whatever they hold."""
    expand = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    has_mass = ~is_fully_masked(maximum)
    if valid is not None:
        maximum = select(valid, maximum, 0)
    row = exponential.prepare_rows(maximum)
    e = exponential.scaled_exp(z, row.expand_dims(axis))
    total = exponential.sum_terms(e, row, axis)
    e = exponential.recompute(e, z, row.expand_dims(axis))
    p = e * expand(_reciprocal(total, has_mass))
    return p if valid is None else jnp.where(expand(valid), p, 0)


@softmax_values.defjvp
def _softmax_values_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p = softmax_values(*primals, axis)
    return p, covariance_product(p, tangents[0], axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax_values(z: Array, axis: int) -> Array:
    """Return the logarithm of the softmax of prepared logits."""
    return softmax_and_log(z, axis)[1]


@log_softmax_values.defjvp
def _log_softmax_values_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p, log_p = softmax_and_log(z, axis)
    return log_p, select(z == -jnp.inf, 0, center(p, dz, axis))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_and_log(z: Array, axis: int) -> tuple[Array, Array]:
    """Return the softmax and its logarithm, computed with one exponential per entry."""
    expand = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    e, total, log_excess = _sum_exponentials(z, maximum, axis)
    # Equal infinities differ by 0.
    peak = expand(maximum)
    below = select(z >= peak, 0, z - peak)
    p = e * expand(_reciprocal(total, ~is_fully_masked(maximum)))
    return p, select(z == -jnp.inf, -jnp.inf, below - expand(log_excess))


@softmax_and_log.defjvp
def _softmax_and_log_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    (z,), (dz,) = primals, tangents
    p, log_p = softmax_and_log(z, axis)
    centered = center(p, dz, axis)
    return (p, log_p), (_restrict_to_support(p, p * centered), select(z == -jnp.inf, 0, centered))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp_values(z: Array, axis: int) -> Array:
    """Return the logarithm of the sum of exponentials of prepared logits."""
    return _softmax_and_logsumexp(z, axis)[1]


@logsumexp_values.defjvp
def _logsumexp_values_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p, lse = _softmax_and_logsumexp(*primals, axis)
    return lse, jnp.sum(_restrict_to_support(p, p * tangents[0]), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_and_logsumexp(z: Array, axis: int) -> tuple[Array, Array]:
    maximum = jnp.max(z, axis)
    e, total, log_excess = _sum_exponentials(z, maximum, axis)
    p = e * jnp.expand_dims(_reciprocal(total, ~is_fully_masked(maximum)), axis)
    return p, maximum + log_excess


@_softmax_and_logsumexp.defjvp
def _softmax_and_logsumexp_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    p, lse = _softmax_and_logsumexp(*primals, axis)
    product = covariance_product(p, tangents[0], axis)
    return (p, lse), (product, jnp.sum(_restrict_to_support(p, p * tangents[0]), axis))


def _sum_exponentials(z: Array, maximum: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return the scaled exponentials, their sum S, and log(S / e_max) as log1p(rest / e_max).

    The rest consists of the entries below the maximum and all but one of those equal to it. S is
    not computed from it: a compiler may round what it computes twice, such as a product in z, in
    two ways, and the shares of the mass are quotients of the very entries whose sum is S.
    """
    row = exponential.prepare_rows(maximum)
    top = exponential.exp_of_maximum(row)
    # A product fused into z may exceed its own rounded maximum. The comparison is False for a NaN.
    leads = z >= jnp.expand_dims(maximum, axis)
    e = exponential.scaled_exp(z, row.expand_dims(axis))
    ties = jnp.sum(leads, axis, dtype=z.dtype)
    lower = exponential.sum_terms(select(leads, 0, e), row, axis)
    total = exponential.sum_terms(e, row, axis)
    e = exponential.recompute(e, z, row.expand_dims(axis))
    return e, total, jnp.log1p(lower / top + (ties - 1))


def _reciprocal(total: Array, has_mass: Array) -> Array:
    """Return 1 / total, and 0 for a fully masked row.

    It is a quotient rather than a selection, because the maximum of a row of NaNs may be -inf, but
    their sum is NaN.
    """
    return has_mass.astype(total.dtype) / total


def is_fully_masked(maximum: Array) -> Array:
    """Return whether a row with this maximum is fully masked.

    The test is not `== -inf`: if that constant is also the initial value of the maximum, XLA does
    not use its fast reduction.
    """
    return maximum < jnp.finfo(maximum.dtype).min


@jax.custom_jvp
def sigmoid_values(z: Array) -> Array:
    """Return the sigmoid of prepared logits."""
    return sigmoid_pair(z)[0]


@sigmoid_values.defjvp
def _sigmoid_values_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p, q = sigmoid_pair(*primals)
    return p, p * q * tangents[0]


@jax.custom_jvp
def sigmoid_pair(z: Array) -> tuple[Array, Array]:
    """Return the sigmoids of z and -z, computed with one exponential."""
    tail = jnp.exp(-jnp.abs(z))
    is_positive, one = z >= 0, jnp.ones_like(z)
    total = 1 + tail
    return select(is_positive, one, tail) / total, select(is_positive, tail, one) / total


@sigmoid_pair.defjvp
def _sigmoid_pair_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    p, q = sigmoid_pair(*primals)
    dp = p * q * tangents[0]
    return (p, q), (dp, -dp)


@jax.custom_jvp
def softplus_values(z: Array) -> Array:
    """Return the softplus of prepared logits."""
    return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


@softplus_values.defjvp
def _softplus_values_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return softplus_values(z), sigmoid_values(exponential.again(z)) * dz
