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

from jaxsoftmax import calls, class_shards, exponential, few_passes, sharded_softmax, validation
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.linear_map import linear_map, with_derivatives_of
from jaxsoftmax.placement import select
from jaxsoftmax.sharding import Shards
from jaxsoftmax.validation import ArrayLike


@calls.compiled("axis", "shards")
def logsumexp(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the logarithm of the sum of exponentials, lse(z) = log sum_k exp(z_k).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

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
    return logsumexp_values(z, axis, class_shards.resolve(shards, z))


@calls.compiled("axis", "shards")
def log_softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the logarithm of the softmax, log p_k = z_k - lse(z).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

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
    log_p = log_softmax_values(z, axis, class_shards.resolve(shards, z))
    return log_p.astype(jnp.asarray(logits).dtype)


@calls.compiled("axis", "shards")
def softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the softmax, p_k = exp(z_k) / sum_j exp(z_j).

    Args:
        logits: floats, `[..., K]`.
        axis: the class axis.
        where: bool, broadcastable to the logits: which classes exist.
        shards: the mesh axes of rows and classes, see `Shards`; None as in `cross_entropy`.

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
    p = softmax_values(z, None, axis, class_shards.resolve(shards, z))
    return p.astype(jnp.asarray(logits).dtype)


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


def center(p: Array, tangents: Array, axis: int, shards: ClassShards = UNSHARDED) -> Array:
    """Return u - sum_k p_k u_k, where u is the tangents minus that of the class above one half.

    Softmax is invariant under a shift of its logits, and this shift makes the centered tangents of
    a confident row exact: what remains for the leading class is the small sum itself.
    """
    u = _subtract_leader(p, tangents, axis, shards)
    products = _restrict_to_support(p, p * u)
    return u - class_shards.spread(
        class_shards.sum_classes(products, axis, shards), u, axis, shards
    )


def _subtract_leader(p: Array, tangents: Array, axis: int, shards: ClassShards) -> Array:
    """Return the tangents minus that of the class whose probability is above one half."""
    of_leader = select(p > 0.5, tangents, 0)
    of_leader = class_shards.take_class(of_leader, axis, shards)
    return tangents - class_shards.spread(of_leader, tangents, axis, shards)


def covariance_product(
    p: Array, tangents: Array, axis: int, shards: ClassShards = UNSHARDED
) -> Array:
    """Return (diag(p) - p p') times the tangents, to a few ulp of each entry's largest term."""
    u = _subtract_leader(p, _restrict_to_support(p, tangents), axis, shards)
    mean = class_shards.sum_classes(p * u, axis, shards)
    return p * (u - class_shards.spread(mean, u, axis, shards))


def _restrict_to_support(p: Array, x: Array) -> Array:
    """Return x where p is not 0, and 0 elsewhere, even where x is infinite or NaN."""
    return select(p == 0, 0, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def softmax_values(
    z: Array, valid: Array | None, axis: int, shards: ClassShards = UNSHARDED
) -> Array:
    """Return the softmax of prepared logits; rows with valid=False are 0 whatever they hold."""
    return class_shards.run(_softmax_values, (z, valid), axis, shards)


def _softmax_values(z: Array, valid: Array | None, axis: int, shards: ClassShards) -> Array:
    if not shards.classes and few_passes.are_used(z, axis):
        return few_passes.probabilities(z, valid, axis)
    expand = functools.partial(jnp.expand_dims, axis=axis)
    maximum = class_shards.max_classes(z, axis, shards)
    is_masked = is_fully_masked(maximum)
    if valid is not None:
        maximum = select(valid, maximum, 0)
    row = exponential.prepare_rows(maximum)
    e = exponential.scaled_exp(z, row.expand_dims(axis))
    total = class_shards.sum_terms(e, row, maximum, axis, shards)
    e = exponential.recompute(e, z, row.expand_dims(axis))
    p = e * expand(_reciprocal(total, is_masked))
    return p if valid is None else jnp.where(expand(valid), p, 0)


@softmax_values.defjvp
def _softmax_values_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    z, valid = primals
    p = softmax_values(z, valid, axis, shards)
    return p, softmax_tangents(z, valid, tangents[0], axis, shards)


def softmax_tangents(
    z: Array, valid: Array | None, tangents: Array, axis: int, shards: ClassShards
) -> Array:
    """Return (diag(p) - p p') times the tangents of the logits, with p their softmax."""
    if shards.classes or not few_passes.are_used(z, axis):
        p = softmax_values(z, valid, axis, shards)
        return covariance_product(p, tangents, axis, shards)

    def product(rows: tuple[Array, Array | None], tangents: Array) -> Array:
        return _softmax_tangents_in_few_passes(*rows, tangents, axis)

    # The matrix is symmetric: this map is its own transpose.
    return linear_map(product, product, (z, valid), tangents)


def _softmax_tangents(z: Array, valid: Array | None, tangents: Array, axis: int) -> Array:
    return covariance_product(softmax_values(z, valid, axis), tangents, axis)


@with_derivatives_of(_softmax_tangents, options=1)
def _softmax_tangents_in_few_passes(
    z: Array, valid: Array | None, tangents: Array, axis: int
) -> Array:
    return few_passes.covariance_product(z, valid, tangents, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def log_softmax_values(z: Array, axis: int, shards: ClassShards = UNSHARDED) -> Array:
    """Return the logarithm of the softmax of prepared logits."""
    if not shards.classes and few_passes.are_used(z, axis):
        return few_passes.log_probabilities(z, axis)
    return softmax_and_log(z, axis, shards)[1]


@log_softmax_values.defjvp
def _log_softmax_values_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    if shards.classes or not few_passes.are_used(z, axis):
        p, log_p = softmax_and_log(z, axis, shards)
        return log_p, _log_softmax_tangents(z, p, dz, axis, shards)

    def push(z: Array, dz: Array) -> Array:
        return _log_softmax_tangents(z, softmax_and_log(z, axis)[0], dz, axis)

    def pull(z: Array, cotangents: Array) -> Array:
        return _log_softmax_transpose_in_few_passes(z, cotangents, axis)

    return log_softmax_values(z, axis), linear_map(push, pull, z, dz)


def _log_softmax_tangents(
    z: Array, p: Array, dz: Array, axis: int, shards: ClassShards = UNSHARDED
) -> Array:
    return select(z == -jnp.inf, 0, center(p, dz, axis, shards))


def _log_softmax_transpose(z: Array, cotangents: Array, axis: int) -> Array:
    p = softmax_and_log(z, axis)[0]
    _, pull = jax.vjp(lambda dz: _log_softmax_tangents(z, p, dz, axis), cotangents)
    return pull(cotangents)[0]


@with_derivatives_of(_log_softmax_transpose, options=1)
def _log_softmax_transpose_in_few_passes(z: Array, cotangents: Array, axis: int) -> Array:
    return few_passes.log_softmax_transpose(z, cotangents, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def softmax_and_log(z: Array, axis: int, shards: ClassShards = UNSHARDED) -> tuple[Array, Array]:
    """Return the softmax and its logarithm, computed with one exponential per entry."""
    return class_shards.run(_softmax_and_log, (z,), axis, shards)


def _softmax_and_log(z: Array, axis: int, shards: ClassShards) -> tuple[Array, Array]:
    return shares_and_logs(z, _sum_exponentials(z, axis, shards), axis)


def shares_and_logs(
    z: Array, exponentials: tuple[Array, Array, Array, Array], axis: int
) -> tuple[Array, Array]:
    """Return the softmax and its logarithm, from what `_sum_exponentials` returns."""
    expand = functools.partial(jnp.expand_dims, axis=axis)
    maximum, e, total, log_excess = exponentials
    # Equal infinities differ by 0.
    peak = expand(maximum)
    below = select(z >= peak, 0, z - peak)
    p = e * expand(_reciprocal(total, is_fully_masked(maximum)))
    return p, select(z == -jnp.inf, -jnp.inf, below - expand(log_excess))


@softmax_and_log.defjvp
def _softmax_and_log_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Any, Any]:
    (z,), (dz,) = primals, tangents
    p, log_p = softmax_and_log(z, axis, shards)
    centered = center(p, dz, axis, shards)
    return (p, log_p), (_restrict_to_support(p, p * centered), select(z == -jnp.inf, 0, centered))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def logsumexp_values(z: Array, axis: int, shards: ClassShards = UNSHARDED) -> Array:
    """Return the logarithm of the sum of exponentials of prepared logits."""
    return _softmax_and_logsumexp(z, axis, shards)[1]


@logsumexp_values.defjvp
def _logsumexp_values_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    p, lse = _softmax_and_logsumexp(*primals, axis, shards)
    return lse, _expected_tangent(p, tangents[0], axis, shards)


def _expected_tangent(p: Array, tangents: Array, axis: int, shards: ClassShards) -> Array:
    return class_shards.sum_classes(_restrict_to_support(p, p * tangents), axis, shards)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _softmax_and_logsumexp(z: Array, axis: int, shards: ClassShards) -> tuple[Array, Array]:
    return class_shards.run(_share_and_logsumexp, (z,), axis, shards)


def _share_and_logsumexp(z: Array, axis: int, shards: ClassShards) -> tuple[Array, Array]:
    maximum, e, total, log_excess = _sum_exponentials(z, axis, shards)
    p = e * jnp.expand_dims(_reciprocal(total, is_fully_masked(maximum)), axis)
    return p, maximum + log_excess


@_softmax_and_logsumexp.defjvp
def _softmax_and_logsumexp_jvp(
    axis: int, shards: ClassShards, primals: tuple, tangents: tuple
) -> tuple[Any, Any]:
    p, lse = _softmax_and_logsumexp(*primals, axis, shards)
    product = covariance_product(p, tangents[0], axis, shards)
    return (p, lse), (product, _expected_tangent(p, tangents[0], axis, shards))


def _sum_exponentials(
    z: Array, axis: int, shards: ClassShards
) -> tuple[Array, Array, Array, Array]:
    """Return the maximum, the scaled exponentials, their sum S, and log(S / e_max).

    The logarithm is log1p(rest / e_max). The rest consists of the entries below the maximum and all
    but one of those equal to it. On a CPU S is not computed from it: a compiler may round what it
    computes twice, such as a product in z, in two ways, and the shares of the mass are quotients of
    the very entries whose sum is S. XLA for a GPU stores exponentials of which it takes two sums.
    """
    if shards.local_axes:
        return sharded_softmax.sum_exponentials(z, axis, shards)
    maximum = jnp.max(z, axis)
    row = exponential.prepare_rows(maximum)
    top = exponential.exp_of_maximum(row)
    # A product fused into z may exceed its own rounded maximum. The comparison is False for a NaN.
    leads = z >= jnp.expand_dims(maximum, axis)
    e = exponential.scaled_exp(z, row.expand_dims(axis))
    ties = jnp.sum(leads, axis, dtype=z.dtype)
    lower = exponential.sum_terms(select(leads, 0, e), row, axis)
    for_gpu = exponential.is_for_gpu()
    total = lower + ties * top if for_gpu else exponential.sum_terms(e, row, axis)
    e = exponential.recompute(e, z, row.expand_dims(axis))
    return maximum, e, total, jnp.log1p(lower / top + (ties - 1))


def _reciprocal(total: Array, is_masked: Array) -> Array:
    """Return 1 / total, and 0 for a fully masked row.

    It is a quotient rather than a selection, because the maximum of a row of NaNs may be -inf, but
    their sum is NaN.
    """
    return select(is_masked, jnp.zeros_like(total), 1) / total


def is_fully_masked(maximum: Array) -> Array:
    """Return whether a row with this maximum is fully masked.

    The test is not `== -inf`: if that constant is also the initial value of the maximum, XLA does
    not use its fast reduction.
    """
    return maximum < exponential.float_limits(maximum.dtype).lowest


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
