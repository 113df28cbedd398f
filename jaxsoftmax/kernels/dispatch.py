"""linear_cross_entropy and its family: the functions, choice of implementation, derivative rules.

The functions take features and a linear model, and return losses without ever storing the logits
of all classes. Every function runs under jit, vmap, scan, remat and export, inside shard_map, and
on Auto and Explicit meshes (see `shards`), and is differentiable to any order in both modes:

    call                                   what runs
    a value                                forward: one pass over blocks of classes
    jvp, jacfwd                            forward, and the tangent blocks (`tangent`)
    grad, vjp                              forward, and a handwritten reverse pass (`backward`)
    vmap(grad), each lane with its own w   the same, batched
    grad of a sum over lanes that share w  forward, and the automatic transpose of `tangent`
    Hessian-vector products                derivatives of the code of `backward`, in blocks
    grad of `linear_cross_entropy_sum`     gradients in the forward pass (`value_and_gradients`)
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, export, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

from jaxsoftmax import checks, placement
from jaxsoftmax.kernels import arguments, products, reference, settings, shards, target
from jaxsoftmax.kernels import tiles as sizes
from jaxsoftmax.kernels.contract import Change, Head, Moved, Options, Precision, Rows, Wanted
from jaxsoftmax.kernels.linear_map import linear_map, opaque
from jaxsoftmax.kernels.settings import IMPLEMENTATIONS, Call
from jaxsoftmax.kernels.shards import Axes
from jaxsoftmax.kernels.target import Target
from jaxsoftmax.kernels.tiles import Tiles


class LinearLoss(NamedTuple):
    """Per example: the loss -log p_y and the logarithm of the sum of exponentials of the logits."""

    nll: Array
    lse: Array


class LinearStats(NamedTuple):
    """`LinearLoss` and, from the same pass, the mean logit and the predicted class."""

    nll: Array
    lse: Array
    mean_logit: Array
    predicted: Array
    correct: Array


# An exported program is stored with the types of its results. A reloaded module finds them there.
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
) -> LinearLoss:
    r"""Softmax cross-entropy of a linear model, from features, in blocks of classes.

    nll = log sum_k exp(z_k) - z_y and lse = log sum_k exp(z_k) with z = x w + bias.

    Args:
        x: features, floats `[..., D]`.
        w: weights, floats `[D, K]`.
        labels: integers of any dtype, `[...]`.
        bias: floats `[K]`.
        softcap: c in z <- c tanh(z / c), a positive number known at compile time; a masked class
            stays masked.
        where: bool `[K]` or `[..., K]`: which classes exist.
        valid: bools, or integers 0 and 1, `[...]`: which examples count.
        precision: of the products, as in `jax.lax.dot_general`. JAX's default takes float32 to
            TF32 on a GPU and to bfloat16 on a TPU; "highest" keeps it.
        dtype: floating, of the operands of the products: x and w are cast to it, and sums are
            float32 as ever. None is the promoted dtype of both. With jnp.bfloat16 parameters
            stay float32 while products run at the rate of bfloat16: a copy of w in it comes on top
            of the memory below, and w's gradient is the float32 sum of products, never rounded to
            bfloat16. Tangents of forward mode are not rounded either.
        memory: budget in bytes for a block of logits; 128 MiB where it is None. What is as large
            as x (its gradient's sum, in float32) comes on top. Blocks have 128 classes at least.
            Under vmap it is the budget of each lane.
        implementation: "xla_chunked", "mosaic_gpu", "mosaic_tpu" or "reference" (dense); None is
            the first of them.
        tiles: block sizes, in place of a budget.

    Returns:
        `LinearLoss(nll, lse)`, `[...]` each, float32 (float64 for products in float64).

    Numerics:
        Sums and statistics are float32 for any input, and gradients have the dtype of their
        argument. On an Explicit mesh, and inside `jax.shard_map`, each device computes the rows and
        classes that it holds; on an Auto mesh blocks are cut along its devices. In half precision
        the gradient in the logits is cast down before the two products of the reverse pass, so that
        they run at the device's full rate. The label's term is kept apart, so a confident example's
        nll is log1p(others / own), which does not cancel to 0, and its gradient is as exact.
        valid=False gives 0 for both, whatever features and label hold; a label out of range NaN for
        its example; a row that is masked whole nll 0 and lse -inf, whatever its features hold; a
        label on a masked class +inf.

    Derivatives:
        Of any order in x, w and bias. grad runs a handwritten reverse pass, jvp the tangent of
        each block, and Hessian-vector products (jvp of grad) the derivative of that reverse pass;
        all compute the logits again block by block. Only what is differentiated is computed. Where
        all classes fit one block their logits are kept instead.

    Raises:
        TypeError: x or w are not floats, labels not integers, a mask not bool, or a setting not
            of its type or not known at compile time.
        ValueError: shapes that do not fit, or a setting that is no such thing.
        NotImplementedError: a named implementation cannot run here, with the reason.

    Example:
        What other libraries have as options composes outside.

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
    call = settings.checked(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
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
) -> LinearStats:
    r"""`linear_cross_entropy` with the mean logit and the predicted class from the same pass.

    mean_logit = mean of z_k over the classes that exist; predicted = argmax_k z_k. Label smoothing
    by a is (1 - a) nll + a (lse - mean_logit).

    Args:
        x: features, floats `[..., D]`.
        w: weights, floats `[D, K]`.
        labels: integers of any dtype, `[...]`.
        bias: floats `[K]`.
        softcap: c in z <- c tanh(z / c); the mean is over the capped logits.
        where: bool `[K]` or `[..., K]`: which classes exist; the mean is over those.
        valid: bools, or integers 0 and 1, `[...]`: which examples count.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: of the operands of the products, as in `linear_cross_entropy`.
        memory: budget in bytes for a block of logits.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.

    Returns:
        `LinearStats(nll, lse, mean_logit, predicted, correct)`, `[...]` each: float32 (float64),
        and predicted int32, the first class of the largest logit, and correct bool, whether it is
        the label.

    Numerics:
        As `linear_cross_entropy`; where valid is False all are 0 (False). The mean of a row that
        is masked whole is 0.

    Derivatives:
        nll, lse and mean_logit, of any order, in x, w and bias.

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
    call = settings.checked(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
        stats=True,
    )
    return _run(_linear_stats, call, x=x, w=w, labels=labels, bias=bias, where=where, valid=valid)


def linear_cross_entropy_sum(
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    precision: Precision = None,
    dtype: DTypeLike | None = None,
    memory: int | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> Array:
    r"""The weighted sum of the losses, with gradients computed in the forward pass.

    sum_i weights_i nll_i. The gradient of a chunk of rows is known as soon as its logits are, so
    value and gradient take three products of N D K where `linear_cross_entropy` takes four. For a
    mean, give weights that sum to 1: dividing afterwards reads the gradient of w once more.

    Args:
        x: features, floats `[..., D]`.
        w: weights of the model, floats `[D, K]`.
        labels: integers of any dtype, `[...]`.
        weights: of the examples, numbers or bools `[...]`, a leading part of that shape, or a
            scalar; 1 where None. Weight 0 silences a loss that is not finite; features that are
            not finite need valid=False.
        bias: floats `[K]`.
        softcap: c in z <- c tanh(z / c), a positive number.
        where: bool `[K]` or `[..., K]`: which classes exist.
        valid: bools, or integers 0 and 1, `[...]`: which examples count.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: of the operands of the products, as in `linear_cross_entropy`.
        memory: budget in bytes for a chunk of logits; where it is None 512 MiB, and 2 GiB on a
            CPU. The sum of w's gradient, in float32, comes on top.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.

    Returns:
        A scalar, float32 or float64.

    Numerics:
        As `linear_cross_entropy`, with the exact exponentials of `cross_entropy`.

    Derivatives:
        Of any order in x, w, bias and weights, in both modes; only what is differentiated is
        computed.

    Raises:
        As `linear_cross_entropy`.

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
        Liger-Kernel's and torch's fused linear cross-entropy compute gradients in the forward pass.
    """
    call = settings.checked(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
    )
    return _run(
        _linear_sum,
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
) -> Array:
    r"""Sigmoid cross-entropy of a linear model with many labels, in blocks of them.

    sum_k w_k t_k softplus(-z_k) + (1 - t_k) softplus(z_k) with z = x w + bias.

    Args:
        x: features, floats `[..., D]`.
        w: weights, floats `[D, K]`.
        targets: t in [0, 1], floats, integers or bools, `[..., K]` or a scalar for all; they count
            as constants.
        bias: floats `[K]`.
        pos_weight: w_k >= 0, a scalar or `[K]`; a constant too.
        softcap: c in z <- c tanh(z / c), a positive number.
        where: bool `[K]` or `[..., K]`: which labels count.
        valid: bools, or integers 0 and 1, `[...]`, which examples count, or `[..., K]`, which
            labels; of `[...]` where a shape fits both.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: of the operands of the products, as in `linear_cross_entropy`.
        memory: budget in bytes for a block of logits.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.

    Returns:
        `[...]`, float32 or float64: summed over the labels.

    Numerics:
        Each label's loss is `binary_cross_entropy`'s: a target that rounding put outside [0, 1], by
        4 ulp at most, is 0 or 1, and one beyond makes its example NaN.

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
    call = settings.checked(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
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
) -> Array:
    r"""The weighted sum of `linear_binary_cross_entropy`, with gradients in the forward pass.

    sum_i weights_i sum_k loss_ik. No label waits for another, so blocks of labels need three
    products and no further sum of w's gradient.

    Args:
        x: features, floats `[..., D]`.
        w: weights of the model, floats `[D, K]`.
        targets: t in [0, 1], floats, integers or bools, `[..., K]` or a scalar for all; they count
            as constants.
        weights: of the examples, numbers or bools, as in `linear_cross_entropy_sum`.
        bias: floats `[K]`.
        pos_weight: w_k >= 0, a scalar or `[K]`; a constant too.
        softcap: c in z <- c tanh(z / c), a positive number.
        where: bool `[K]` or `[..., K]`: which labels count.
        valid: bools, or integers 0 and 1, `[...]`, which examples count, or `[..., K]`, which
            labels; of `[...]` where a shape fits both.
        precision: of the products, as in `jax.lax.dot_general`.
        dtype: of the operands of the products, as in `linear_cross_entropy`.
        memory: budget in bytes for a block of logits.
        implementation: as in `linear_cross_entropy`.
        tiles: block sizes, in place of a budget.

    Returns:
        A scalar, float32 or float64.

    Numerics:
        As `linear_binary_cross_entropy`.

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
    call = settings.checked(
        softcap=softcap,
        precision=precision,
        dtype=dtype,
        memory=memory,
        implementation=implementation,
        tiles=tiles,
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
    """Run a function of a call and its arrays as one program.

    What is assumed of the device is read while it is traced, and so belongs to its key.
    """
    ready = {name: checks.argument(a, name) for name, a in arrays.items()}
    return _program(function, call, target.current(), ready)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _program(function: Callable, call: Call, here: Target, ready: dict[str, Array | None]) -> Any:
    del here
    return function(call, **ready)


def _linear_loss(call: Call, **given: Any) -> LinearLoss:
    head, known, counts, shaped = arguments.softmax_head(call.dtype, **given)
    nll, lse = shards.over_shards(_losses, call, head, known, counts)[:2]
    return LinearLoss(shaped(nll), shaped(lse))


def _linear_stats(call: Call, **given: Any) -> LinearStats:
    head, known, counts, shaped = arguments.softmax_head(call.dtype, **given)
    nll, lse, mean, predicted = shards.over_shards(_losses, call, head, known, counts)
    correct = (predicted == head.truth) & known
    correct = correct if counts is None else correct & counts
    return LinearStats(*map(shaped, (nll, lse, mean, predicted, correct)))


def _linear_sum(call: Call, weights: Array | None, **given: Any) -> Array:
    head, known, counts, _ = arguments.softmax_head(call.dtype, **given)
    weights = arguments.row_weights(call.dtype, weights, counts, given["x"], head)
    return shards.over_shards(_sum_of_losses, call, head, known, counts, weights, per_row=False)


def _linear_binary(call: Call, **given: Any) -> Array:
    head, counts, shaped = arguments.sigmoid_head(call.dtype, **given)
    return shaped(shards.over_shards(_binary_losses, call, head, counts))


def _linear_binary_sum(call: Call, weights: Array | None, **given: Any) -> Array:
    head, counts, _ = arguments.sigmoid_head(call.dtype, **given)
    weights = arguments.row_weights(call.dtype, weights, counts, given["x"], head)
    return shards.over_shards(_sum_of_binary_losses, call, head, counts, weights, per_row=False)


# -- On one device, or on each device's rows and classes --


def _losses(
    call: Call, axes: Axes, head: Head, known: Array, counts: Array | None
) -> tuple[Any, ...]:
    options, name = _prepare(call, head)
    return _per_example(name, options, axes, head, known, counts)


def _sum_of_losses(
    call: Call, axes: Axes, head: Head, known: Array, counts: Array | None, weights: Array
) -> Array:
    options, name = _prepare(call, head)
    known |= weights == 0
    # Whole rows cannot be cut where their number is a symbol, nor made where classes are apart.
    if name == "reference" or axes.classes or not placement.known(head.x.shape[0]):
        values = _per_example(name, options, axes, head, known, counts)[0]
        return lax.psum(_total(values, weights), axes.rows)
    # NaN as a weight is what a label out of range does to value and gradient.
    weights = weights * jnp.where(known, 1, jnp.nan).astype(weights.dtype)
    return lax.psum(_sum(name, options, head, counts, weights), axes.rows)


def _binary_losses(call: Call, axes: Axes, head: Head, counts: Array | None) -> Array:
    options, name = _prepare(call, head)
    return _binary_per_example(name, options, axes, head, counts)


def _sum_of_binary_losses(
    call: Call, axes: Axes, head: Head, counts: Array | None, weights: Array
) -> Array:
    options, name = _prepare(call, head)
    if name == "reference":
        return _total(_binary_per_example(name, options, axes, head, counts), weights)
    return lax.psum(_binary_sum(name, options, head, weights), axes.rows + axes.classes)


# -- Derivative rules: softmax --


def _per_example(
    name: str, options: Options, axes: Axes, head: Head, known: Array, counts: Array | None
) -> tuple[Any, ...]:
    """Nll, lse and, when asked, mean logit and predicted class, by the contract of bad values."""
    if counts is not None:
        # Before a NaN can spread: its product with a gradient of 0 would be NaN.
        head = head._replace(x=jnp.where(counts[:, None], head.x, 0))
        known = known | ~counts
    if name == "reference":
        nll, lse, mean, predicted = reference.softmax_head(head, options)
    else:
        head, first = shards.local_labels(head, axes)
        rows = _as_integers(_rows(name, options, head))
        nll, lse, mean, predicted = _finished(shards.combine(rows, first, axes))
    # A factor, not a choice: the gradient is to be NaN as well.
    nll = nll * jnp.where(known, 1, jnp.nan).astype(nll.dtype)
    return tuple(
        None if a is None else checks.count(a, counts) for a in (nll, lse, mean, predicted)
    )


def _finished(rows: Rows) -> tuple[Array, Array, Array | None, Array | None]:
    """What `Rows` say: nll, lse = log S + maximum, and, when asked, mean logit and prediction."""
    nll, total = products.row_loss(rows)
    maximum = lax.stop_gradient(rows.maximum)
    lse = jnp.where(rows.label == maximum, rows.label + nll, maximum + jnp.log(total))
    lse = jnp.where(maximum == -jnp.inf, -jnp.inf, lse)
    lse = jnp.where(jnp.isnan(nll), nll, lse)  # a maximum may lose a NaN
    if rows.stats is None:
        return nll, lse, None, None
    return nll, lse, rows.stats.mean, rows.stats.predicted


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rows(name: str, options: Options, head: Head) -> Rows:
    return _as_floats(_module(name).forward(_operands(head, options), options))


def _as_floats(rows: Rows) -> Rows:
    """The predicted class as the bits of a float.

    The tangent of an integer is of JAX's `float0`, for which a rule cannot say over which mesh axes
    it varies.
    """
    return _with_predicted(rows, jnp.float32)


def _as_integers(rows: Rows) -> Rows:
    """The reverse of `_as_floats`."""
    return _with_predicted(rows, jnp.int32)


def _with_predicted(rows: Rows, dtype: Any) -> Rows:
    if rows.stats is None:
        return rows
    predicted = lax.bitcast_convert_type(rows.stats.predicted, dtype)
    return rows._replace(stats=rows.stats._replace(predicted=predicted))


def _rows_jvp(name: str, options: Options, primals: tuple, tangents: tuple) -> tuple[Rows, Rows]:
    (head,) = primals
    module, moved, wanted = _module(name), *_perturbed(tangents[0])
    rows = _rows(name, options, head)
    still = jax.tree.map(jnp.zeros_like, rows)
    if not any(wanted):
        return rows, still

    def push(at: tuple[Head, Rows], t: Moved) -> Change:
        head, rows = at
        return module.tangent(_operands(head, options), rows, _widened(t, options), options)

    def pull(at: tuple[Head, Rows], c: Change) -> Moved:
        head, rows = at
        return module.backward(_operands(head, options), rows, c, wanted, options)

    found = linear_map(push, pull, (head, lax.stop_gradient(_as_integers(rows))), moved)
    if still.stats is not None:
        still = still._replace(stats=still.stats._replace(mean=found.mean))
    return rows, still._replace(others=found.others, label=found.label)


_rows.defjvp(_rows_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum(name: str, options: Options, head: Head, counts: Array | None, weights: Array) -> Array:
    given = _operands(head, options), counts, weights
    return _total(_module(name).value_and_gradients(*given, Wanted(), options)[0], weights)


def _sum_jvp(name: str, options: Options, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    head, counts, weights = primals
    moved, wanted = _perturbed(tangents[0])
    module = _module(name)

    def both(at: tuple[Head, Array | None, Array]) -> tuple[Array, Moved]:
        head, *rest = at
        return module.value_and_gradients(_operands(head, options), *rest, wanted, options)

    nll, gradients = opaque(both, (head, counts, weights))
    return _total(nll, weights), _change(nll, gradients, moved, tangents[2])


_sum.defjvp(_sum_jvp, symbolic_zeros=True)


# -- Derivative rules: sigmoid --


def _binary_per_example(
    name: str, options: Options, axes: Axes, head: Head, counts: Array | None
) -> Array:
    if name == "reference":
        values = reference.sigmoid_head(head, options)
    else:
        values = _binary_rows(name, options, head)
    return checks.count(lax.psum(values, axes.classes), counts)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _binary_rows(name: str, options: Options, head: Head) -> Array:
    return _module(name).binary_forward(_operands(head, options), options)


def _binary_rows_jvp(
    name: str, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (head,) = primals
    module, moved, wanted = _module(name), *_perturbed(tangents[0])
    values = _binary_rows(name, options, head)
    if not any(wanted):
        return values, jnp.zeros_like(values)

    def push(head: Head, t: Moved) -> Array:
        return module.binary_tangent(_operands(head, options), _widened(t, options), options)

    def pull(head: Head, c: Array) -> Moved:
        return module.binary_backward(_operands(head, options), c, wanted, options)

    return values, linear_map(push, pull, head, moved)


_binary_rows.defjvp(_binary_rows_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _binary_sum(name: str, options: Options, head: Head, weights: Array) -> Array:
    return _total(_module(name).binary_forward(_operands(head, options), options), weights)


def _binary_sum_jvp(
    name: str, options: Options, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    head, weights = primals
    moved, wanted = _perturbed(tangents[0])
    module = _module(name)

    def both(at: tuple[Head, Array]) -> tuple[Array, Moved]:
        head, weights = at
        return module.binary_value_and_gradients(_operands(head, options), weights, wanted, options)

    values, gradients = opaque(both, (head, weights))
    return _total(values, weights), _change(values, gradients, moved, tangents[1])


_binary_sum.defjvp(_binary_sum_jvp, symbolic_zeros=True)


# -- What the rules share --


def _perturbed(tangents: Head) -> tuple[Moved, Wanted]:
    """The tangents of x, w and bias that are not known to be 0, and which those are."""
    moved = Moved(*(None if isinstance(t, SymbolicZero) else t for t in tangents.model))
    return moved, Wanted(*(None if t is None else t.dtype for t in moved))


def _operands(head: Head, options: Options) -> Head:
    """The head with x and w in the dtype of the products.

    The cast is within a rule, so that gradients have the dtype of the arguments and no rounding.
    """
    return head._replace(x=head.x.astype(options.dtype), w=head.w.astype(options.dtype))


def _widened(moved: Moved, options: Options) -> Moved:
    return Moved(*products.widened(moved, options.dtype))


def _total(values: Array, weights: Array) -> Array:
    """The weighted sum; a weight of 0 silences NaN and infinity, as in `weighted_mean`."""
    return jnp.sum(weights * jnp.where((weights == 0) & ~jnp.isfinite(values), 0, values))


def _change(values: Array, gradients: Moved, moved: Moved, weights: Any) -> Array:
    """The change of a sum along tangents of the model and of the weights."""
    parts = [
        jnp.sum(g.astype(values.dtype) * t.astype(values.dtype))
        for g, t in zip(gradients, moved, strict=True)
        if g is not None and t is not None
    ]
    if not isinstance(weights, SymbolicZero):
        parts.append(jnp.sum(values * weights))
    return sum(parts[1:], parts[0]) if parts else placement.full(values, 0, (), values.dtype)


# -- Implementations --


def _prepare(call: Call, head: Head) -> tuple[Options, str]:
    """The options of a call on these arrays, and the name of the implementation to run."""
    n, k = head.x.shape[0], head.w.shape[1]
    n = max(n, 1) if placement.known(n) else sizes.ROWS
    tiles = sizes.choose(n, k, memory=call.memory) if call.tiles is None else call.tiles
    dtype = products.operand_dtype(call.dtype, head.model)
    options = Options(tiles, target.current(), dtype, call.softcap, call.precision, call.stats)
    return options, _chosen(call.implementation, head, options)


def _chosen(implementation: str | None, head: Head, options: Options) -> str:
    """The named implementation if it can run, or the first that can; no rows need none."""
    if implementation == "reference":
        return "reference"
    names = IMPLEMENTATIONS if implementation is None else (implementation,)
    given = jax.eval_shape(lambda: _operands(head, options))
    reasons = {name: _unsupported(name, given, options) for name in names}
    if implementation is not None and reasons[implementation] is not None:
        raise NotImplementedError(f"implementation {implementation!r}: {reasons[implementation]}")
    if head.x.shape[0] == 0:
        return "reference"
    return next(name for name, reason in reasons.items() if reason is None)


def _unsupported(name: str, head: Head, options: Options) -> str | None:
    """Why an implementation cannot run what is asked for, or None."""
    needed, here = IMPLEMENTATIONS[name], options.target.platform
    if needed not in (None, here):
        return f"it needs the platform {needed!r}, and the program is traced for {here!r}"
    return _module(name).unsupported(head, options)


@cache
def _module(name: str) -> ModuleType:
    """Loaded when it is first needed: Pallas takes longer to import than the rest."""
    return import_module(f"jaxsoftmax.kernels.{name}")
