"""The linear model that everything fits: scores that are affine in the features."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from jaxsoftmax import placement
from jaxsoftmax.kernels.linear_map import linear_map
from jaxsoftmax.validation import ArrayLike


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


def logits(params: LinearParams, features: ArrayLike, *, dtype: DTypeLike | None = None) -> Array:
    """Scores of a linear model, z = x w + bias.

    Args:
        params: `w: [D, K]`, `bias: [K]` or None.
        features: `[..., D]`.
        dtype: of the operands of products, for instance `jnp.bfloat16` for training in mixed
            precision; None for the promoted dtype of w and features. In training it is
            `on_logits(loss, logits=partial(linear.logits, dtype=jnp.bfloat16))`.

    Returns:
        `[..., K]` scores in the promoted dtype of w and features; with a `dtype` in float32, or
        float64 where w or `dtype` is.

    Numerics:
        The product runs in the platform's default precision, which on a TPU, and on a GPU with
        TF32 enabled, is below float32; `jax.default_matmul_precision` raises it. With a `dtype`
        w, features and the derivative in the scores are rounded to it where they are multiplied;
        sums, scores, bias and w's gradient are not. On the CPU the
        product and its gradient are computed with the classes outermost, see `_class_major`.

    Derivatives:
        Of any order and both modes; linear in w, bias and features each.

    Raises:
        ValueError: if the last axis of features is not D.
        TypeError: if dtype is not floating.

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
    operands, sums = _dtypes(w, x, dtype)
    rows = placement.flatten_rows(x, x.ndim - 1).astype(operands)
    bias = None if params.bias is None else params.bias.astype(sums)
    w, bias = _beside(rows, w.astype(sums), bias)
    scores = jax.lax.platform_dependent(w, bias, rows, cpu=_class_major, default=_scores)
    return placement.unflatten_rows(scores.T, x, x.ndim - 1)


def _dtypes(w: Array, x: Array, dtype: DTypeLike | None) -> tuple[DTypeLike, DTypeLike]:
    """Return the dtypes of the operands and of the sums of products."""
    if dtype is None:
        return (jnp.promote_types(w.dtype, x.dtype),) * 2
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype: expected a floating dtype, got {jnp.dtype(dtype)}")
    return dtype, jnp.float64 if jnp.float64 in (w.dtype, jnp.dtype(dtype)) else jnp.float32


def _beside(rows: Array, w: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """The model, with all classes on each device where these share the rows' axis of a mesh.

    So a data-parallel model may lie in memory, but no array has two dimensions over one axis.
    """
    inner, classes = placement.partition_spec(w)
    if not {*placement.axis_names(placement.partition_spec(rows)[0])} & {
        *placement.axis_names(classes)
    }:
        return w, bias
    w = placement.reshard(w, w, inner, None)
    return w, None if bias is None else placement.replicate(bias)


def _scores(
    w: Array, bias: Array | None, rows: Array, hold: Callable[[Array], Array] = lambda a: a
) -> Array:
    """`[K, N]` scores; `hold` wraps what XLA would like to transpose back."""
    (inner, classes), (examples, features) = (
        placement.partition_spec(w),
        placement.partition_spec(rows),
    )
    # An Explicit mesh must be told that the parts of a sum over sharded features are added up.
    in_parts = inner is not None and features is not None
    out = placement.sharding(rows, classes, examples) if in_parts else None
    scores = _product(hold(w.T), rows, out)
    return hold(scores if bias is None else scores + bias[:, None])


def _product(w: Array, rows: Array, out: NamedSharding | None) -> Array:
    """`[K, D]` by `[N, D]`, with sums in the dtype of w and operands in that of the rows.

    Where these differ, automatic transposition would round w's gradient to the operands' dtype,
    and multiply by the scores' derivative in full.
    """
    over = ((1,), (1,)), ((), ())
    if w.dtype == rows.dtype:
        return jax.lax.dot_general(w, rows, over, out_sharding=out)
    dot = partial(jax.lax.dot_general, preferred_element_type=w.dtype)
    examples, back = placement.partition_spec(rows)[0], None
    if examples is not None:  # as above, of a sum over sharded examples
        back = placement.sharding(rows, *placement.partition_spec(w))

    def push(rows: Array, w: Array) -> Array:
        return dot(w.astype(rows.dtype), rows, over, out_sharding=out)

    def pull(rows: Array, dz: Array) -> Array:
        return dot(dz.astype(rows.dtype), rows, (((1,), (0,)), ((), ())), out_sharding=back)

    return linear_map(push, pull, rows, w)


def _class_major(w: Array, bias: Array | None, rows: Array) -> Array:
    """The product as w^T x^T, and so its gradient as dz^T x, which a CPU does 2 to 5 times faster.

    For few classes the output of x w has short rows, which leave vector units idle; that of
    w^T x^T, and that of dz^T x in the gradient, have long ones. XLA's simplifier moves the
    transposes back out of the products, so barriers hold them where they are. Under `vmap` over
    many w and one x it stays one product, `[L * K, D]` by `[D, N]`.
    """
    return _scores(w, bias, rows, jax.lax.optimization_barrier)
