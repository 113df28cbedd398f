"""The linear model that the package fits: scores that are affine in the features."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from jaxsoftmax import placement
from jaxsoftmax.kernels import primitives
from jaxsoftmax.linear_map import linear_map
from jaxsoftmax.linear_params import LinearParams
from jaxsoftmax.validation import ArrayLike


def init(
    num_features: int,
    num_classes: int,
    *,
    key: Array | None = None,
    scale: float = 0.01,
    bias: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> LinearParams:
    """Return initial parameters of a linear model: zeros, or small normal weights.

    w = 0 without a key, else w ~ scale * Normal(0, 1); the bias is 0. The convex losses of this
    package reach the same optimum from any start. A key matters for losses that are not convex,
    such as focal losses, and for lanes of a sweep that should differ.

    Args:
        num_features: D, at least 1.
        num_classes: K, at least 1; 1 for a single score (binary or regression).
        key: a random key, or None for zeros.
        scale: the standard deviation of the weights. With standardized features, or features from
            0 to 1, the default keeps the first scores near 0 and the first probabilities near
            uniform.
        bias: whether the model has a bias.
        dtype: the dtype of the parameters.

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
    """Return the scores of a linear model, z = x w + bias.

    Args:
        params: `w: [D, K]`, `bias: [K]` or None.
        features: `[..., D]`.
        dtype: the dtype of the operands of products, for instance `jnp.bfloat16` for training in
            mixed precision. None means the promoted dtype of w and features. For training, pass
            `on_logits(loss, logits=partial(linear.logits, dtype=jnp.bfloat16))`.

    Returns:
        `[..., K]` scores in the promoted dtype of w and features. With a `dtype` they are float32,
        or float64 where w or `dtype` is float64.

    Numerics:
        The product runs in the platform's default precision, which on a TPU, and on a GPU with
        TF32 enabled, is below float32; `jax.default_matmul_precision` raises it. With a `dtype`,
        w, features and the derivative in the scores are rounded to it where they are multiplied;
        sums, scores, bias and w's gradient are not. On the CPU the product and its gradient are
        computed with the classes outermost, see `_class_major`.

    Derivatives:
        Of any order, in both modes; the scores are linear in each of w, bias and features.

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
    w, bias = _replicate_classes(rows, w.astype(sums), bias)
    scores = jax.lax.platform_dependent(w, bias, rows, cpu=_class_major, default=_scores)
    return placement.unflatten_rows(scores.T, x, x.ndim - 1)


def _dtypes(w: Array, x: Array, dtype: DTypeLike | None) -> tuple[DTypeLike, DTypeLike]:
    """Return the dtypes of the operands and of the sums of products."""
    if dtype is None:
        return (jnp.promote_types(w.dtype, x.dtype),) * 2
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype: expected a floating dtype, got {jnp.dtype(dtype)}")
    return dtype, jnp.float64 if jnp.float64 in (w.dtype, jnp.dtype(dtype)) else jnp.float32


def _replicate_classes(rows: Array, w: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """Return the model with all classes on each device, where classes and rows share a mesh axis.

    A data-parallel model may be sharded so in memory, but no array has two dimensions over one
    axis.
    """
    inner, classes = placement.partition_spec(w)
    row_axes = placement.axis_names(placement.partition_spec(rows)[0])
    if not {*row_axes} & {*placement.axis_names(classes)}:
        return w, bias
    w = placement.reshard(w, w, inner, None)
    return w, None if bias is None else placement.replicate(bias)


def _scores(
    w: Array, bias: Array | None, rows: Array, pin_layout: Callable[[Array], Array] = lambda a: a
) -> Array:
    """Return the scores as `[K, N]`; `pin_layout` wraps arrays that XLA would transpose back."""
    inner, classes = placement.partition_spec(w)
    examples, features = placement.partition_spec(rows)
    # An Explicit mesh needs to know that the parts of a sum over sharded features are added up.
    in_parts = inner is not None and features is not None
    out = placement.sharding(rows, classes, examples) if in_parts else None
    scores = _product(pin_layout(w.T), rows, out)
    return pin_layout(scores if bias is None else scores + bias[:, None])


def _product(w: Array, rows: Array, out: NamedSharding | None) -> Array:
    """Return `[K, D]` times `[N, D]`, with sums in the dtype of w and operands in that of the rows.

    Where these differ, automatic transposition would round w's gradient to the dtype of the
    operands, and would multiply by the unrounded derivative in the scores.
    """
    contract_features = ((1,), (1,)), ((), ())
    if w.dtype == rows.dtype:
        return jax.lax.dot_general(w, rows, contract_features, out_sharding=out)
    dot = partial(jax.lax.dot_general, preferred_element_type=w.dtype)
    gradient_sharding = None
    if placement.partition_spec(rows)[0] is not None:  # as in `_scores`, for sharded examples
        gradient_sharding = placement.sharding(rows, *placement.partition_spec(w))

    def push(rows: Array, w: Array) -> Array:
        return dot(w.astype(rows.dtype), rows, contract_features, out_sharding=out)

    def pull(rows: Array, z_bar: Array) -> Array:
        contract_examples = ((1,), (0,)), ((), ())
        z_bar = z_bar.astype(rows.dtype)
        return dot(z_bar, rows, contract_examples, out_sharding=gradient_sharding)

    return linear_map(push, pull, rows, w)


def _class_major(w: Array, bias: Array | None, rows: Array) -> Array:
    """Return the scores as w^T x^T, whose gradient is dz^T x: 2 to 5 times faster on a CPU.

    For few classes the output of x w has short rows, which leave vector units idle; the outputs of
    w^T x^T, and of dz^T x in the gradient, have long ones. XLA's simplifier moves the transposes
    back out of the products, so barriers hold them in place. Under `vmap` over many w and one x
    this remains one product, `[L * K, D]` by `[D, N]`.
    """
    return _scores(w, bias, rows, primitives.pin_layout)
