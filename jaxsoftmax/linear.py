"""The linear model that everything fits: scores that are affine in the features."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxsoftmax import placement


class LinearParams(NamedTuple):
    """Weights `w: [D, K]` and `bias: [K]`, or None for a model without one.

    A tuple of booleans of the same form selects parameters for an Optax mask, for instance
    `LinearParams(w=True, bias=False)` for weight decay that leaves the bias alone.
    """

    w: Array
    bias: Array | None


def init(
    num_features: int,
    num_classes: int,
    *,
    key: Array | None = None,
    scale: float = 0.01,
    bias: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> LinearParams:
    """Initial parameters of a linear model: zeros, or small normal weights.

    w = 0 without a key, else w ~ scale * Normal(0, 1); the bias is 0. The losses of this package
    that are convex reach the same optimum from any start; a key matters for what is not convex
    (focal losses, several lanes of a sweep that are to differ).

    Args:
        num_features: D, at least 1.
        num_classes: K, at least 1; 1 for a single score (binary or regression).
        key: a random key, or None for zeros.
        scale: standard deviation of the weights. The default keeps the first scores near 0, that
            is the first probabilities near uniform, for standardised or 0-to-1 features.
        bias: whether the model has a bias.
        dtype: of the parameters.

    Returns:
        `LinearParams(w: [D, K], bias: [K] or None)`.

    Raises:
        ValueError: if num_features or num_classes is below 1.

    Example:
        >>> from jaxsoftmax import linear
        >>> linear.init(3, 2).w.shape, linear.init(3, 2, bias=False).bias
        ((3, 2), None)
    """
    for name, size in (("num_features", num_features), ("num_classes", num_classes)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    shape = (num_features, num_classes)
    w = jnp.zeros(shape, dtype) if key is None else scale * jax.random.normal(key, shape, dtype)
    return LinearParams(w, jnp.zeros(num_classes, dtype) if bias else None)


def logits(params: LinearParams, features: ArrayLike) -> Array:
    """Scores of a linear model, z = x w + bias.

    Args:
        params: `w: [D, K]`, `bias: [K]` or None.
        features: `[..., D]`.

    Returns:
        `[..., K]` scores in the promoted dtype of w and features.

    Numerics:
        The product runs in the platform's default precision, which on a TPU, and on a GPU with
        TF32 enabled, is below float32; `jax.default_matmul_precision` raises it. On the CPU the
        product and its gradient are computed with the classes outermost, see `_class_major`.

    Derivatives:
        Of any order and both modes; linear in w, bias and features each.

    Raises:
        ValueError: if the last axis of features is not D.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear
        >>> params = linear.LinearParams(w=jnp.eye(2), bias=jnp.array([1.0, 0.0]))
        >>> print(linear.logits(params, jnp.array([2.0, 3.0])))
        [3. 3.]
    """
    w, x = jnp.asarray(params.w), jnp.asarray(features)
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"features must be [..., D] for w: [D, K], got {x.shape} for w: {w.shape}")
    dtype = jnp.promote_types(w.dtype, x.dtype)
    rows = placement.flat_rows(x, x.ndim - 1).astype(dtype)
    bias = None if params.bias is None else params.bias.astype(dtype)
    w, bias = _beside(rows, w.astype(dtype), bias)
    scores = jax.lax.platform_dependent(w, bias, rows, cpu=_class_major, default=_scores)
    return placement.unflat_rows(scores.T, x, x.ndim - 1)


def _beside(rows: Array, w: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """The model, with all classes on each device where these share the rows' axis of a mesh.

    So a data-parallel model may lie in memory, but no array has two dimensions over one axis.
    """
    inner, classes = placement.spec(w)
    if not {*placement.names(placement.spec(rows)[0])} & {*placement.names(classes)}:
        return w, bias
    w = placement.resharded(w, w, inner, None)
    return w, None if bias is None else placement.replicated(bias)


def _scores(
    w: Array, bias: Array | None, rows: Array, hold: Callable[[Array], Array] = lambda a: a
) -> Array:
    """`[K, N]` scores; `hold` wraps what XLA would like to transpose back."""
    (inner, classes), (examples, features) = placement.spec(w), placement.spec(rows)
    # An Explicit mesh must be told that the parts of a sum over sharded features are added up.
    partial = inner is not None and features is not None
    out = placement.sharding(rows, classes, examples) if partial else None
    scores = jax.lax.dot_general(hold(w.T), rows, (((1,), (1,)), ((), ())), out_sharding=out)
    return hold(scores if bias is None else scores + bias[:, None])


def _class_major(w: Array, bias: Array | None, rows: Array) -> Array:
    """The product as w^T x^T, and so its gradient as dz^T x, which a CPU does 2 to 5 times faster.

    For few classes the output of x w has short rows, which leave vector units idle; that of
    w^T x^T, and that of dz^T x in the gradient, have long ones. XLA's simplifier moves the
    transposes back out of the products, so barriers hold them where they are. Under `vmap` over
    many w and one x it stays one product, `[L * K, D]` by `[D, N]`.
    """
    return _scores(w, bias, rows, jax.lax.optimization_barrier)
