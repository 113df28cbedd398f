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

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoftmax import checks, exponential


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
    z, axis = checks.scores(logits, axis, where)
    return _logsumexp(z, axis)


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
    z, axis = checks.scores(logits, axis, where)
    return _log_softmax(z, axis).astype(jnp.asarray(logits).dtype)


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
    z, axis = checks.scores(logits, axis, where)
    return _softmax(z, None, axis).astype(jnp.asarray(logits).dtype)


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
    z = checks.floating(logits)
    return _sigmoid(checks.accumulated(z)).astype(z.dtype)


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
    z = checks.floating(logits)
    return -_softplus(-checks.accumulated(z)).astype(z.dtype)


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
    z = checks.floating(logits)
    return _softplus(checks.accumulated(z)).astype(z.dtype)


def center(p: Array, tangents: Array, axis: int) -> Array:
    """u - sum_k p_k u_k, where u is the tangents less that of the class above one half.

    Softmax does not feel a shift of its logits, and this shift makes the centred tangents of a
    confident row exact: what remains of the leading class is the small sum itself.
    """
    u = tangents - jnp.sum(jnp.where(p > 0.5, tangents, 0), axis, keepdims=True)
    return u - jnp.sum(_no_mass_no_say(p, p * u), axis, keepdims=True)


def covariance_product(p: Array, tangents: Array, axis: int) -> Array:
    """(diag(p) - p p') times the tangents, to a few ulp of each entry's largest term."""
    return _no_mass_no_say(p, p * center(p, tangents, axis))


def _no_mass_no_say(p: Array, products: Array) -> Array:
    """The products p * x, but 0 where p is: also where x is infinite or NaN."""
    return jnp.where(p == 0, 0, products)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _softmax(z: Array, valid: Array | None, axis: int) -> Array:
    """Softmax; rows with valid=False are 0 whatever they hold."""
    wide = functools.partial(jnp.expand_dims, axis=axis)
    maximum = jnp.max(z, axis)
    dead = maximum < jnp.finfo(z.dtype).min  # not `== -inf`, see derivatives.value_and_gradient
    if valid is not None:
        maximum = jnp.where(valid, maximum, 0)
    row = exponential.row(maximum)
    e = exponential.scaled_exp(z, jax.tree.map(wide, row))
    total = exponential.total(e, row, axis)
    # The maximum of NaN alone may be -inf, but their sum is NaN.
    p = e * wide(1 / jnp.where(dead & ~jnp.isnan(total), jnp.inf, total))
    return p if valid is None else jnp.where(wide(valid), p, 0)


@_softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    p = _softmax(*primals, axis)
    return p, covariance_product(p, tangents[0], axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@functools.partial(jax.jit, static_argnums=1)
def _log_softmax(z: Array, axis: int) -> Array:
    maximum = jnp.max(z, axis)
    wide, excess = (jnp.expand_dims(a, axis) for a in (maximum, _log_excess(z, maximum, axis)))
    # Equal infinities differ by 0, and a product fused into z may exceed its own rounded maximum.
    below = jnp.where(z < wide, z - wide, jnp.where(jnp.isnan(z), jnp.nan, 0))
    return jnp.where(z == -jnp.inf, -jnp.inf, below - excess)


@_log_softmax.defjvp
def _log_softmax_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    centered = center(_softmax(z, None, axis), dz, axis)
    return _log_softmax(z, axis), jnp.where(z == -jnp.inf, 0, centered)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@functools.partial(jax.jit, static_argnums=1)
def _logsumexp(z: Array, axis: int) -> Array:
    maximum = jnp.max(z, axis)
    excess = _log_excess(z, maximum, axis)
    masked = (maximum == -jnp.inf) & ~jnp.isnan(excess)
    return jnp.where(masked, -jnp.inf, maximum + excess)


@_logsumexp.defjvp
def _logsumexp_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p = _softmax(z, None, axis)
    return _logsumexp(z, axis), jnp.sum(_no_mass_no_say(p, p * dz), axis)


def _log_excess(z: Array, maximum: Array, axis: int) -> Array:
    """Log of sum_k exp(z_k - max z), as log1p of what comes on top of one maximum."""
    wide = functools.partial(jnp.expand_dims, axis=axis)
    row = exponential.row(maximum)
    peak = exponential.scaled_exp(maximum, row)
    below = z < wide(maximum)
    lower = jnp.where(below, exponential.scaled_exp(z, jax.tree.map(wide, row)), 0)
    ties = jnp.sum(jnp.where(below, 0, jnp.where(z == z, 1, z)), axis)
    return jnp.log1p(exponential.total(lower, row, axis) / peak + (ties - 1))


@jax.custom_jvp
@jax.jit
def _sigmoid(z: Array) -> Array:
    tail = jnp.exp(-jnp.abs(z))
    return jnp.where(z >= 0, 1, tail) / (1 + tail)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p = _sigmoid(z)
    return p, p * _sigmoid(-z) * dz


@jax.custom_jvp
@jax.jit
def _softplus(z: Array) -> Array:
    return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return _softplus(z), _sigmoid(z) * dz
