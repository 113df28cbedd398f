"""The public functions of the fused losses: linear_cross_entropy and its family.

The functions take features and a linear model, and return losses without ever storing the logits
of all classes. Every function runs under jit, vmap, scan, remat and export, inside shard_map, and
on Auto and Explicit meshes (see `shards`), and is differentiable to any order in both modes (see
`derivative_rules`).
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array, export
from jax.typing import DTypeLike

from jaxsoftmax import validation
from jaxsoftmax.kernels import arguments, per_device, settings, target
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.target import Target
from jaxsoftmax.kernels.tiles import Tiles
from jaxsoftmax.kernels.types import Head, Precision
from jaxsoftmax.sharding import Shards
from jaxsoftmax.validation import ArrayLike


class LinearLoss(NamedTuple):
    """The loss -log p_y of each example, and the log-sum-exp of its logits.

    Attributes:
        nll: the loss, `[...]` as the labels, float32 or float64.
        lse: log sum_k exp(z_k), in the shape and dtype of nll.
    """

    nll: Array
    lse: Array


class LinearStats(NamedTuple):
    """`LinearLoss` and, from the same pass, the mean logit and the predicted class.

    Attributes:
        nll: the loss, `[...]` as the labels, float32 or float64.
        lse: log sum_k exp(z_k), in the shape and dtype of nll.
        mean_logit: the mean of the logits of the classes that exist, likewise.
        predicted: int32, the first class with the largest logit.
        correct: bool, whether that is the label.
    """

    nll: Array
    lse: Array
    mean_logit: Array
    predicted: Array
    correct: Array


# An exported program is stored with the types of its results. Where this module is reloaded, they
# are registered already.
for result in (LinearLoss, LinearStats):
    with suppress(ValueError):
        export.register_namedtuple_serialization(
            result, serialized_name=f"jaxsoftmax.{result.__name__}"
        )


def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    precision: Precision = None,
    dtype: DTypeLike | None = None,
    memory: int | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
    shards: Shards | None = None,
) -> LinearLoss:
    r"""Return the softmax cross-entropy of a linear model, computed in blocks of classes.

    nll = log sum_k exp(z_k) - z_y and lse = log sum_k exp(z_k) with z = x w + bias.

    Args:
        x: features, floats `[..., D]`.
        w: weights, floats `[D, K]`.
        labels: integers of any dtype, `[...]`.
        bias: floats `[K]`.
        softcap: c in z <- c tanh(z / c), a positive number known at compile time. A masked class
            stays masked.
        where: bool `[K]` or `[..., K]`: which classes exist.
        valid: bools, or integers 0 and 1, `[...]`: which examples count.
        precision: of the products, as in `jax.lax.dot_general`. JAX's default rounds float32 to
            TF32 on a GPU and to bfloat16 on a TPU; "highest" keeps float32.
        dtype: the floating dtype of the operands of the products. x and w are cast to it, and sums
            are float32 in any case. None means the promoted dtype of both. With jnp.bfloat16,
            parameters stay float32 while products run at the rate of bfloat16: a bfloat16 copy of
            w is needed beside the memory below, and w's gradient is the float32 sum of products,
            never rounded to bfloat16. Tangents of forward mode are not rounded either.
        memory: the budget in bytes for a block of logits, and on a GPU for the copies that are
            multiplied; None means 128 MiB. The float32 sum of x's gradient, an array as large as x,
            is not part of it; on a GPU, all logits at once may take its place. Blocks have at least
            128 classes. Under vmap it is the budget of each lane.
        implementation: "xla_chunked", "mosaic_gpu", "mosaic_gpu_rows", "mosaic_tpu" or "reference"
            (dense). None means, on a Hopper GPU, "mosaic_gpu" where x and w are bfloat16 or float16
            and the logits are many, and "mosaic_gpu_rows" where they are float32 (see `defaults`),
            and "xla_chunked" elsewhere.
        tiles: block sizes, in place of a budget.
        shards: the mesh axes of rows and classes, see `Shards`: each device computes the rows and
            classes that it holds, with blocks of the size of its part, and gradients of w stay
            where w is. Inside a shard_map over the classes, w, bias and `where` are local. None
            reads the types on an Explicit mesh; on an Auto mesh the compiler divides the blocks.

    Returns:
        `LinearLoss(nll, lse)`, `[...]` each, float32 (float64 for products in float64).

    Numerics:
        Sums and statistics are float32 for any input, and gradients have the dtype of their
        argument. On an Explicit mesh, and inside `jax.shard_map`, each device computes the rows and
        classes that it holds; on an Auto mesh, blocks are cut along its devices. In half precision
        the gradient in the logits is cast down before the two products of the reverse pass, so that
        they run at the device's full rate. The label's term e_y is kept out of the sum s_o of the
        other classes' exponentials, so a confident example's nll is log1p(s_o / e_y), which does
        not cancel to 0, and its gradient is as exact. An example with valid=False has 0 for both
        results, whatever its features and label are. A label out of range gives NaN for its
        example, a row whose classes are all masked has nll 0 and lse -inf, whatever its features
        are, and a label on a masked class gives +inf.

    Derivatives:
        Of any order in x, w and bias. grad runs a handwritten reverse pass, jvp the tangents of
        the blocks, and Hessian-vector products (jvp of grad) the derivative of that reverse pass.
        All of them compute the logits again block by block. Only the derivatives that are needed
        are computed. Where all classes fit in one block, their logits are kept instead.

    Raises:
        TypeError: x or w are not floats, labels are not integers, a mask is not bool, or a setting
            has the wrong type or is not known at compile time.
        ValueError: shapes do not fit, or a setting has a value that it cannot take.
        NotImplementedError: a named implementation cannot run here; the error gives the reason.

    Example:
        Class weights, z-loss, focal loss and temperature compose outside the function.

        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import focal, linear_cross_entropy, weighted_mean
        >>> x, w = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.eye(2)
        >>> labels, class_weights = jnp.array([0, 1]), jnp.array([1.0, 3.0])
        >>> nll, lse = linear_cross_entropy(x, w, labels)
        >>> print(jnp.array_str(nll, precision=4))
        [0.1269 0.3133]
        >>> z_loss = 1e-4 * lse**2
        >>> print(f"{weighted_mean(nll + z_loss, weights=class_weights[labels]):.4f}")
        0.2669
        >>> print(jnp.array_str(focal(nll, gamma=2.0), precision=4))
        [0.0018 0.0227]
        >>> temperature = 2.0
        >>> print(jnp.array_str(linear_cross_entropy(x / temperature, w, labels).nll, precision=4))
        [0.3133 0.4741]

    Reference:
        Wijmans et al., "Cut your losses in large-vocabulary language models" (2025).
    """
    call = settings.check(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
        shards=shards,
    )
    return _run(_linear_loss, call, x=x, w=w, labels=labels, bias=bias, where=where, valid=valid)


def linear_cross_entropy_stats(
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    precision: Precision = None,
    dtype: DTypeLike | None = None,
    memory: int | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
    shards: Shards | None = None,
) -> LinearStats:
    r"""Return `linear_cross_entropy` with the mean logit and the predicted class in one pass.

    mean_logit = mean of z_k over the classes that exist; predicted = argmax_k z_k. Label smoothing
    by a is (1 - a) nll + a (lse - mean_logit).

    Args:
        x: features, floats `[..., D]`.
        w: weights, floats `[D, K]`.
        labels: integers of any dtype, `[...]`.
        bias: floats `[K]`.
        softcap: c in z <- c tanh(z / c). The mean is over the capped logits.
        where: bool `[K]` or `[..., K]`: which classes exist. The mean is over those.
        valid: bools, or integers 0 and 1, `[...]`: which examples count.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: the dtype of the operands of the products, as in `linear_cross_entropy`.
        memory: the budget in bytes for a block of logits.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.
        shards: the mesh axes of rows and classes, as in `linear_cross_entropy`.

    Returns:
        `LinearStats(nll, lse, mean_logit, predicted, correct)`, `[...]` each. The first three are
        float32 (float64 for products in float64). predicted is int32, the first class of the
        largest logit, and correct is bool, whether that class is the label.

    Numerics:
        As in `linear_cross_entropy`. Where valid is False, all results are 0 (False). The mean of a
        row whose classes are all masked is 0.

    Derivatives:
        Of nll, lse and mean_logit, of any order in x, w and bias.

    Raises:
        As `linear_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_cross_entropy_stats
        >>> x, w, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.eye(2), jnp.array([0, 0])
        >>> nll, lse, mean_logit, predicted, correct = linear_cross_entropy_stats(x, w, labels)
        >>> print(predicted, correct)
        [0 1] [ True False]
        >>> print(jnp.array_str(0.9 * nll + 0.1 * (lse - mean_logit), precision=4))
        [0.2269 1.2633]

    Reference:
        Szegedy et al., "Rethinking the Inception architecture" (2016), for label smoothing.
    """
    call = settings.check(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
        shards=shards,
        stats=True,
    )
    return _run(_linear_stats, call, x=x, w=w, labels=labels, bias=bias, where=where, valid=valid)


def linear_cross_entropy_sum(
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    row_loss: Callable[[Array, Array, Array], Array] | None = None,
    return_stats: bool = False,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    precision: Precision = None,
    dtype: DTypeLike | None = None,
    memory: int | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
    shards: Shards | None = None,
) -> Any:
    r"""Return the weighted sum of the losses, with gradients computed in the forward pass.

    sum_i weights_i nll_i, or of weights_i row_loss(nll_i, lse_i, mean_logit_i). The
    gradient of a chunk of rows is known as soon as its logits are, so value and gradient take three
    products of N D K where `linear_cross_entropy` takes four. For a mean, pass weights that sum to
    1: dividing afterwards reads the gradient of w once more.

    Args:
        x: features, floats `[..., D]`.
        w: weights of the model, floats `[D, K]`.
        labels: integers of any dtype, `[...]`.
        weights: of the examples, numbers or bools `[...]`, a leading part of that shape, or a
            scalar; None means 1. A loss that is not finite is ignored where its weight is 0;
            features that are not finite need valid=False.
        row_loss: a function of three numbers of a row, its nll, log-sum-exp and mean logit, that
            returns the row's loss, one number: a z-loss is `nll + 1e-4 * lse**2`, label smoothing
            `nll + s * (lse - mean_logit - nll)`, a focal loss `focal(nll, gamma=2)`. Its
            derivatives are JAX's, also in arrays that it closes over. None means nll. A row
            whose classes are all masked has a loss of 0, as its nll is 0 and its lse -inf.
        return_stats: whether to return the statistics of the rows too.
        bias: floats `[K]`.
        softcap: c in z <- c tanh(z / c), a positive number.
        where: bool `[K]` or `[..., K]`: which classes exist.
        valid: bools, or integers 0 and 1, `[...]`: which examples count.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: the dtype of the operands of the products, as in `linear_cross_entropy`.
        memory: the budget in bytes for a chunk of logits; None means 512 MiB, and 2 GiB on a CPU.
            On a CPU and a TPU the float32 sum of w's gradient is not part of it. Where the budget
            leaves a chunk too few rows, the logits are computed twice, in blocks of classes as in
            `linear_cross_entropy`: four products in place of three, which then take less time.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.
        shards: the mesh axes of rows and classes, as in `linear_cross_entropy`.

    Returns:
        A scalar, float32 or float64; with return_stats, a pair of it and a `LinearStats`.

    Numerics:
        As in `linear_cross_entropy`, with the exact exponentials of `cross_entropy` in XLA's own
        chunks of rows. A row_loss takes three products as well, but four in a kernel of a GPU or
        TPU where it depends on the mean of capped logits, and on arrays that are whole on a mesh
        where it closes over traced ones.

    Derivatives:
        Of any order in x, w, bias and weights, in both modes. Only the derivatives that are needed
        are computed; those of the statistics take further products.

    Raises:
        As `linear_cross_entropy`. ValueError if row_loss returns something else than one number.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_cross_entropy_sum
        >>> x, w, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.eye(2), jnp.array([0, 1])
        >>> def mean(w):
        ...     return linear_cross_entropy_sum(x, w, labels, weights=jnp.full(2, 0.5))
        >>> value, gradient = jax.value_and_grad(mean)(w)
        >>> print(f"{value:.4f}")
        0.2201
        >>> print(jnp.array_str(gradient, precision=4))
        [[-0.1192  0.1192]
         [ 0.1345 -0.1345]]

    Reference:
        Liger-Kernel's and torch's fused linear cross-entropy, which compute gradients in the
        forward pass as well.
    """
    call = settings.check(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
        stats=return_stats,
        shards=shards,
        row_loss=row_loss,
    )
    return _run(
        _linear_sum_and_stats if return_stats else _linear_sum,
        call,
        x=x,
        w=w,
        labels=labels,
        weights=weights,
        bias=bias,
        where=where,
        valid=valid,
    )


def linear_binary_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    precision: Precision = None,
    dtype: DTypeLike | None = None,
    memory: int | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the sigmoid cross-entropy of a linear model, computed in blocks of labels.

    sum_k w_k t_k softplus(-z_k) + (1 - t_k) softplus(z_k) with z = x w + bias.

    Args:
        x: features, floats `[..., D]`.
        w: weights, floats `[D, K]`.
        targets: t in [0, 1], floats, integers or bools, `[..., K]` or a scalar for all. They count
            as constants.
        bias: floats `[K]`.
        pos_weight: w_k >= 0, a scalar or `[K]`. It counts as a constant too.
        softcap: c in z <- c tanh(z / c), a positive number.
        where: bool `[K]` or `[..., K]`: which labels count.
        valid: bools, or integers 0 and 1: `[...]`, which examples count, or `[..., K]`, which
            labels count. A shape that fits both is one of examples.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: the dtype of the operands of the products, as in `linear_cross_entropy`.
        memory: the budget in bytes for a block of logits.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.
        shards: the mesh axes of rows and classes, as in `linear_cross_entropy`.

    Returns:
        The losses summed over the labels, `[...]`, float32 or float64.

    Numerics:
        Each label's loss is that of `binary_cross_entropy`: a target that rounding put outside
        [0, 1], by at most 4 ulp, is taken as 0 or 1, and one further outside makes its example NaN.

    Derivatives:
        As `linear_cross_entropy`.

    Raises:
        As `linear_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_binary_cross_entropy
        >>> x, w = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.eye(2)
        >>> targets = jnp.array([[1, 0], [0, 1]])
        >>> print(jnp.array_str(linear_binary_cross_entropy(x, w, targets), precision=4))
        [0.8201 1.0064]

    Reference:
        `binary_cross_entropy`.
    """
    call = settings.check(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
        shards=shards,
    )
    return _run(
        _linear_binary,
        call,
        x=x,
        w=w,
        targets=targets,
        bias=bias,
        pos_weight=pos_weight,
        where=where,
        valid=valid,
    )


def linear_binary_cross_entropy_sum(
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    precision: Precision = None,
    dtype: DTypeLike | None = None,
    memory: int | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
    shards: Shards | None = None,
) -> Array:
    r"""Return the weighted sum of the sigmoid losses, with gradients from the forward pass.

    sum_i weights_i sum_k loss_ik, with the losses of `linear_binary_cross_entropy`. The labels are
    independent, so blocks of labels take three products and need no separate sum of w's gradient.

    Args:
        x: features, floats `[..., D]`.
        w: weights of the model, floats `[D, K]`.
        targets: t in [0, 1], floats, integers or bools, `[..., K]` or a scalar for all. They count
            as constants.
        weights: of the examples, numbers or bools, as in `linear_cross_entropy_sum`.
        bias: floats `[K]`.
        pos_weight: w_k >= 0, a scalar or `[K]`. It counts as a constant too.
        softcap: c in z <- c tanh(z / c), a positive number.
        where: bool `[K]` or `[..., K]`: which labels count.
        valid: bools, or integers 0 and 1: `[...]`, which examples count, or `[..., K]`, which
            labels count. A shape that fits both is one of examples.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: the dtype of the operands of the products, as in `linear_cross_entropy`.
        memory: the budget in bytes for a block of logits.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.
        shards: the mesh axes of rows and classes, as in `linear_cross_entropy`.

    Returns:
        A scalar, float32 or float64.

    Numerics:
        As in `linear_binary_cross_entropy`.

    Derivatives:
        Of any order in x, w, bias and weights, in both modes.

    Raises:
        As `linear_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear_binary_cross_entropy_sum
        >>> x, w = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.eye(2)
        >>> print(f"{linear_binary_cross_entropy_sum(x, w, jnp.array([[1, 0], [0, 1]])):.4f}")
        1.8265

    Reference:
        `linear_cross_entropy_sum`.
    """
    call = settings.check(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
        shards=shards,
    )
    return _run(
        _linear_binary_sum,
        call,
        x=x,
        w=w,
        targets=targets,
        weights=weights,
        bias=bias,
        pos_weight=pos_weight,
        where=where,
        valid=valid,
    )


# -- One compiled program for each call --


def _run(function: Callable, call: Call, **arrays: ArrayLike | None) -> Any:
    """Run a function of a call and its arrays as one compiled program.

    The device that is assumed is read during tracing, and so it is part of the program's key.
    """
    inputs = {name: validation.as_argument(a, name) for name, a in arrays.items()}
    return _program(function, call, target.current(), inputs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _program(
    function: Callable, call: Call, device: Target, inputs: dict[str, Array | None]
) -> Any:
    del device
    return function(call, **inputs)


def _linear_loss(call: Call, **inputs: Any) -> LinearLoss:
    axes, head, in_range, valid, unflatten = arguments.prepare_softmax(call, **inputs)
    nll, lse = per_device.losses(call, axes, head, in_range, valid)[:2]
    return LinearLoss(unflatten(nll), unflatten(lse))


def _linear_stats(call: Call, **inputs: Any) -> LinearStats:
    axes, head, in_range, valid, unflatten = arguments.prepare_softmax(call, **inputs)
    rows = per_device.losses(call, axes, head, in_range, valid)
    return _stats(rows, head, in_range, valid, unflatten)


def _stats(
    rows: tuple[Array, ...], head: Head, in_range: Array, valid: Array | None, unflatten: Callable
) -> LinearStats:
    nll, lse, mean, predicted = rows
    correct = (predicted == head.targets) & in_range
    correct = correct if valid is None else correct & valid
    return LinearStats(*map(unflatten, (nll, lse, mean, predicted, correct)))


def _linear_sum(call: Call, weights: Array | None, **inputs: Any) -> Array:
    axes, head, in_range, valid, _ = arguments.prepare_softmax(call, **inputs)
    weights = arguments.prepare_weights(call, weights, valid, inputs["x"], head)
    if call.row_loss is None:
        return per_device.sum_of_losses(call, axes, head, in_range, valid, weights)
    return per_device.sum_of_row_losses(call, axes, head, in_range, valid, weights)[0]


def _linear_sum_and_stats(
    call: Call, weights: Array | None, **inputs: Any
) -> tuple[Array, LinearStats]:
    axes, head, in_range, valid, unflatten = arguments.prepare_softmax(call, **inputs)
    weights = arguments.prepare_weights(call, weights, valid, inputs["x"], head)
    total, rows = per_device.sum_of_row_losses(call, axes, head, in_range, valid, weights)
    return total, _stats(rows, head, in_range, valid, unflatten)


def _linear_binary(call: Call, **inputs: Any) -> Array:
    axes, head, valid, unflatten = arguments.prepare_sigmoid(call, **inputs)
    return unflatten(per_device.binary_losses(call, axes, head, valid))


def _linear_binary_sum(call: Call, weights: Array | None, **inputs: Any) -> Array:
    axes, head, valid, _ = arguments.prepare_sigmoid(call, **inputs)
    weights = arguments.prepare_weights(call, weights, valid, inputs["x"], head)
    return per_device.sum_of_binary_losses(call, axes, head, valid, weights)
