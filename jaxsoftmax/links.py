"""Links: the functions between scores and probabilities.

A link is a map from logits z to probabilities p, or to their logarithms. All of them work along
one class axis (`axis`), on arrays of any shape, and share these rules:

    p_k = exp(z_k) / sum_j exp(z_j)              softmax        p = 1 / (1 + exp(-z))    sigmoid
    log p_k = z_k - log sum_j exp(z_j)           log_softmax    log p = -log(1 + exp(-z))

- every entry is right to a few units in its own last place, however far the others lie above it
  (see `exponential`);
- links keep the dtype of the logits and compute in float32 at least; sums (`logsumexp`) are
  float32 for half-precision logits;
- a masked class has the logit -inf or `where=False`: its probability is 0 and so is its
  derivative. In a row that is masked whole, every probability is 0;
- +inf is a limit: the infinite entries of a row share its mass equally.
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
    r"""Logarithm of the sum of exponentials, lse(z) = log sum_k exp(z_k).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.

    Returns:
        `[...]`, float32 or float64.

    Numerics:
        max z + log1p(sum of the others' exp(z_k - max z)): right to 8 ulp of the larger term. -inf
        in a row that is masked whole, +inf where a logit is.

    Derivatives:
        d lse = sum_k p_k dz_k, of any order.

    Raises:
        TypeError: logits are not floats. ValueError: no class axis, or a mask that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> print(logsumexp(jnp.array([1000.0, 1000.0])))
        1000.6932

    Reference:
        Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021).
    """
    z, axis = validation.prepare_logits(logits, axis, where)
    return _logsumexp(z, axis)


@calls.compiled("axis")
def log_softmax(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    r"""Logarithm of the softmax, log p_k = z_k - lse(z).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        Each entry is right to 8 ulp, that of the leading class too: it is -log1p(sum of the others
        over it), which never cancels to 0. A masked class gives -inf.

    Derivatives:
        d log p = dz - sum_k p_k dz_k, of any order; 0 for a masked class.

    Raises:
        TypeError: logits are not floats. ValueError: no class axis, or a mask that does not fit.

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
    r"""Softmax, p_k = exp(z_k) / sum_j exp(z_j).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.

    Returns:
        `[..., K]` in the dtype of the logits.

    Numerics:
        Each entry is right to 8 ulp wherever it is a normal number. A masked class gives 0, also in
        a row that is masked whole; +inf logits share the mass.

    Derivatives:
        dp = p * (u - sum_k p_k u_k) with u = dz minus the dz of the class above one half, so that
        nothing cancels where one class has nearly all the mass; of any order.

    Raises:
        TypeError: logits are not floats. ValueError: no class axis, or a mask that does not fit.

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
    r"""Logistic sigmoid, 1 / (1 + exp(-z)): the softmax of (z, 0).

    Args:
        logits: floats of any shape.

    Returns:
        The same shape and dtype.

    Numerics:
        With e = exp(-|z|), 1 / (1 + e) or e / (1 + e): each is right to 8 ulp where it is normal.

    Derivatives:
        sigmoid(z) * sigmoid(-z), of any order; 1 - sigmoid(z) would cancel.

    Raises:
        TypeError: logits are not floats.

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
    r"""Logarithm of the sigmoid, log sigmoid(z) = -softplus(-z).

    Args:
        logits: floats of any shape.

    Returns:
        The same shape and dtype.

    Numerics:
        Right to 8 ulp wherever it is normal: -exp(-z) far to the right, z far to the left.

    Derivatives:
        sigmoid(-z), of any order.

    Raises:
        TypeError: logits are not floats.

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
    r"""Softplus, log(1 + exp(z)) = lse(z, 0).

    Args:
        logits: floats of any shape.

    Returns:
        The same shape and dtype.

    Numerics:
        max(z, 0) + log1p(exp(-|z|)): both terms are non-negative, so it is right to 8 ulp.

    Derivatives:
        sigmoid(z), of any order.

    Raises:
        TypeError: logits are not floats.

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
    """u - sum_k p_k u_k, where u is the tangents less that of the class above one half.

    Softmax does not feel a shift of its logits, and this shift makes the centred tangents of a
    confident row exact: what remains of the leading class is the small sum itself.
    """
    u = _less_leader(p, tangents, axis)
    return u - jnp.sum(_no_mass_no_say(p, p * u), axis, keepdims=True)


def _less_leader(p: Array, tangents: Array, axis: int) -> Array:
    return tangents - jnp.sum(select(p > 0.5, tangents, 0), axis, keepdims=True)


def covariance_product(p: Array, tangents: Array, axis: int) -> Array:
    """(diag(p) - p p') times the tangents, to a few ulp of each entry's largest term."""
    u = _less_leader(p, _no_mass_no_say(p, tangents), axis)
    return p * (u - jnp.sum(p * u, axis, keepdims=True))


def _no_mass_no_say(p: Array, products: Array) -> Array:
    """What is multiplied by p, but 0 where p is: also where it is infinite or NaN."""
    return select(p == 0, 0, products)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_values(z: Array, valid: Array | None, axis: int) -> Array:
    """Softmax; rows with valid=False are 0 whatever they hold."""
    wide = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    alive = ~is_fully_masked(maximum)
    if valid is not None:
        maximum = select(valid, maximum, 0)
    row = exponential.prepare_rows(maximum)
    e = exponential.scaled_exp(z, row.expand_dims(axis))
    total = exponential.sum_terms(e, row, axis)
    p = e * wide(_inverse(total, alive))
    return p if valid is None else jnp.where(wide(valid), p, 0)


@softmax_values.defjvp
def _softmax_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p = softmax_values(*primals, axis)
    return p, covariance_product(p, tangents[0], axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax_values(z: Array, axis: int) -> Array:
    return softmax_and_log(z, axis)[1]


@log_softmax_values.defjvp
def _log_softmax_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p, log_p = softmax_and_log(z, axis)
    return log_p, select(z == -jnp.inf, 0, center(p, dz, axis))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_and_log(z: Array, axis: int) -> tuple[Array, Array]:
    """The softmax and its logarithm from one exponential an entry."""
    wide = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    e, total, excess = _sums(z, maximum, axis)
    # Equal infinities differ by 0.
    peak = wide(maximum)
    below = select(z >= peak, 0, z - peak)
    p = e * wide(_inverse(total, ~is_fully_masked(maximum)))
    return p, select(z == -jnp.inf, -jnp.inf, below - wide(excess))


@softmax_and_log.defjvp
def _softmax_and_log_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    (z,), (dz,) = primals, tangents
    p, log_p = softmax_and_log(z, axis)
    centered = center(p, dz, axis)
    return (p, log_p), (_no_mass_no_say(p, p * centered), select(z == -jnp.inf, 0, centered))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _logsumexp(z: Array, axis: int) -> Array:
    return _softmax_and_lse(z, axis)[1]


@_logsumexp.defjvp
def _logsumexp_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p, lse = _softmax_and_lse(*primals, axis)
    return lse, jnp.sum(_no_mass_no_say(p, p * tangents[0]), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_and_lse(z: Array, axis: int) -> tuple[Array, Array]:
    maximum = jnp.max(z, axis)
    e, total, excess = _sums(z, maximum, axis)
    p = e * jnp.expand_dims(_inverse(total, ~is_fully_masked(maximum)), axis)
    return p, maximum + excess


@_softmax_and_lse.defjvp
def _softmax_and_lse_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    p, lse = _softmax_and_lse(*primals, axis)
    product = covariance_product(p, tangents[0], axis)
    return (p, lse), (product, jnp.sum(_no_mass_no_say(p, p * tangents[0]), axis))


def _sums(z: Array, maximum: Array, axis: int) -> tuple[Array, Array, Array]:
    """The exponentials, scaled, their sums S, and log S / e_max, as log1p of the rest over e_max.

    The rest is what is below the maximum and the further entries that are equal to it. S is not
    made of them: what a compiler computes twice, such as a product in z, it may round in two ways,
    and the shares of the mass are quotients of the very entries that S is the sum of.
    """
    row = exponential.prepare_rows(maximum)
    top = exponential.exp_of_maximum(row)
    # A product fused into z may exceed its own rounded maximum. A NaN is nowhere above.
    leads = z >= jnp.expand_dims(maximum, axis)
    e = exponential.scaled_exp(z, row.expand_dims(axis))
    ties = jnp.sum(leads, axis, dtype=z.dtype)
    lower = exponential.sum_terms(select(leads, 0, e), row, axis)
    return e, exponential.sum_terms(e, row, axis), jnp.log1p(lower / top + (ties - 1))


def _inverse(total: Array, alive: Array) -> Array:
    """1 / total, and 0 for a row that is masked whole.

    A quotient, not a choice: the maximum of NaN alone may be -inf, but their sum is NaN.
    """
    return alive.astype(total.dtype) / total


def is_fully_masked(maximum: Array) -> Array:
    """Whether a row is masked whole.

    Not `== -inf`: sharing that constant with the maximum's start keeps XLA's fast reduction away.
    """
    return maximum < jnp.finfo(maximum.dtype).min


@jax.custom_jvp
def sigmoid_values(z: Array) -> Array:
    return sigmoid_pair(z)[0]


@sigmoid_values.defjvp
def _sigmoid_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p, other = sigmoid_pair(*primals)
    return p, p * other * tangents[0]


@jax.custom_jvp
def sigmoid_pair(z: Array) -> tuple[Array, Array]:
    """The sigmoids of z and -z from one exponential."""
    tail = jnp.exp(-jnp.abs(z))
    positive, one = z >= 0, jnp.ones_like(z)
    total = 1 + tail
    return select(positive, one, tail) / total, select(positive, tail, one) / total


@sigmoid_pair.defjvp
def _sigmoids_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    p, other = sigmoid_pair(*primals)
    change = p * other * tangents[0]
    return (p, other), (change, -change)


@jax.custom_jvp
def softplus_values(z: Array) -> Array:
    return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


@softplus_values.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return softplus_values(z), sigmoid_values(z) * dz
