"""The fused losses in pure JAX, on any platform: a block of classes, or of rows, at a time.

Two routes, with different memory and different numbers of products of N D K:

- per example (`forward`, `tangent`, `backward`): blocks of classes, with a running maximum and
  sum. The reverse pass computes each block's logits again (four products) and writes its part of
  w's gradient in place. Where one block holds all classes, XLA finds the logits of both passes to
  be the same and keeps them.
- a weighted sum (`value_and_gradients`): blocks of rows, each with all its classes, whose gradient
  is known at once (three products); the gradient of w is summed in float32. For the sigmoid, whose
  classes know nothing of each other, blocks of classes do.

Where the arrays live on a mesh, a block takes a part of each group of classes, or of rows
(`placement.count_groups`), so that no device waits for another.

K need not be a multiple of the block. The last block starts at K - block, with the classes that
another block has masked, the label's hit included; it goes first, so that the other overwrites
what it left in w's gradient. A padded w, or a block of its own for the tail, would copy w. LSEParts
are cut in the same way.

The logits' own rounding is that of a sum of D products, so plain exponentials of z - max serve
where rows come in pieces. Whole rows use `softmax_core.value_and_gradient`, whose exact
exponentials cost no more.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Wijmans et
al., "Cut your losses in large-vocabulary language models" (2025).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import derivatives, losses, placement, softmax_core
from jaxsoftmax.kernels import primitives
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelTangents,
    NeedsGrad,
    Options,
    RowTangents,
    Stats,
)
from jaxsoftmax.placement import Cut


def unsupported(head: Head, options: Options) -> str | None:
    """Nothing: it runs everywhere."""
    del head, options
    return None


class _Block(NamedTuple):
    """A block of classes: its logits and where it lies."""

    cut: Cut  # which classes
    w: Array  # [D, B]
    z: Array  # [N, B], -inf where a class does not exist or another block has it
    slope: Array | None  # [N, B], the derivative of the softcap
    exists: Array | None  # [1 or N, B], this block of `where`
    fresh: Array | None  # [1, B], False where another block has the class


# -- Softmax, per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Maximum, sum and label's logit of each row; with stats, mean logit and predicted class."""
    zero, k = _zero(head), head.w.shape[1]
    stats = Stats(zero, zero, zero.astype(jnp.int32)) if options.stats else None

    def step(rows: LSEParts, block: _Block) -> LSEParts:
        peak = jnp.max(block.z, 1)
        maximum = jnp.maximum(rows.maximum, peak)
        kept = relative_exp(rows.maximum, maximum)
        hot = _hot(head, block)
        return LSEParts(
            maximum,
            rows.sum_exp_rest * kept + jnp.sum(_exponentials(block, hot, maximum), 1),
            rows.label_logit + jnp.sum(jnp.where(hot, block.z, 0), 1),
            None if rows.stats is None else _joined(rows, rows.stats, block, peak, k),
        )

    rows = _over_classes(step, LSEParts(zero - jnp.inf, zero, zero, stats), head, options)
    if rows.stats is None:
        return rows
    mean = rows.stats.mean / jnp.maximum(rows.stats.classes, 1)
    return rows._replace(stats=rows.stats._replace(mean=mean))


def _joined(rows: LSEParts, stats: Stats, block: _Block, peak: Array, k: int) -> Stats:
    """Sum and count of the logits that exist so far, and the first class of the largest."""
    exists = block.z != -jnp.inf
    # Not an argmax, which gathers where the classes are sharded.
    column = jnp.where(block.z < peak[:, None], k, block.cut.indices(k)[None, :])
    first = jnp.min(column, 1)
    tied = jnp.where(peak == rows.maximum, jnp.minimum(first, stats.predicted), stats.predicted)
    return Stats(
        stats.mean + jnp.sum(jnp.where(exists, block.z, 0), 1),
        stats.classes + jnp.sum(exists, 1, dtype=stats.classes.dtype),
        jnp.where(peak > rows.maximum, first, tied),
    )


def tangent(head: Head, rows: LSEParts, tangents: ModelTangents, options: Options) -> RowTangents:
    """The derivatives of others, label and mean along tangents of x, w and bias."""
    zero = _zero(head)

    def step(sums: RowTangents, block: _Block) -> RowTangents:
        dz = _moved(head, tangents, block, options)
        hot = _hot(head, block)
        mean = sums.mean
        if mean is not None:
            mean += jnp.sum(jnp.where(block.z == -jnp.inf, 0, dz), 1)
        return RowTangents(
            sums.sum_exp_rest + jnp.sum(_exponentials(block, hot, rows.maximum) * dz, 1),
            sums.label_logit + jnp.sum(jnp.where(hot, dz, 0), 1),
            mean,
        )

    start = RowTangents(zero, zero, None if rows.stats is None else zero)
    found = _over_classes(step, start, head, options)
    return found._replace(mean=_per_class(found.mean, rows))


def backward(
    head: Head, rows: LSEParts, cotangents: RowTangents, needs_grad: NeedsGrad, options: Options
) -> ModelTangents:
    """The transpose of `tangent`: gradients of what is wanted of x, w and bias."""
    mean = _per_class(cotangents.mean, rows)

    def gradient(block: _Block) -> tuple[None, Array]:
        hot = _hot(head, block)
        e = _exponentials(block, hot, rows.maximum)
        dz = jnp.where(hot, cotangents.label_logit[:, None], e * cotangents.sum_exp_rest[:, None])
        if mean is not None:
            dz += jnp.where(block.z == -jnp.inf, 0, mean[:, None])
        return None, dz

    return _pulled(gradient, None, head, needs_grad, options)[1]


def _per_class(change: Array | None, rows: LSEParts) -> Array | None:
    """The change of a mean over the classes that exist, shared among them."""
    if change is None or rows.stats is None:
        return None
    return change / jnp.maximum(rows.stats.classes, 1)


# -- Softmax, a weighted sum --


def value_and_gradients(
    head: Head, valid: Array | None, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of the weighted sum; a row that is not valid counts 0."""
    # Few classes are laid out class-major: see `products`.
    few = head.w.shape[1] <= primitives.FEW_CLASSES_LIMIT
    axis, w = (0, primitives.pin_layout(head.w.T)) if few else (1, head.w)

    def gradient(chunk: Head, valid: Array, scale: Array) -> tuple[Array, Array]:
        value, dz = _row_gradient(chunk, valid, options, axis)
        return value, _times(dz, jnp.expand_dims(scale, axis))

    size = even_size(head.x.shape[0], options.tiles.rows)
    head = head._replace(w=w)
    nll, total = scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size, class_axis=axis
    )
    return nll, total._replace(w=total.w.T) if few and total.w is not None else total


def even_size(size: int, most: int) -> int:
    """How many at a time, where most are."""
    return -(-size // -(-size // min(most, size)))


def scan_rows(
    gradient: Callable[[Head, Array, Array], tuple[Array, Array]],
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    *,
    chunk_size: int,
    class_axis: int = 1,
    times_w: Callable[..., Array] = primitives.contract_classes,
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of the weighted sum, a chunk of rows at a time.

    Args:
        gradient: `(chunk, valid, weights) -> (losses, gradient in the logits)`, weighted.
        head: whose rows are cut.
        valid: which of them count.
        weights: of the rows.
        wanted: which gradients.
        options: for the products' precision.
        times_w: the product that makes x's gradient.
    """
    n, axis = head.x.shape[0], class_axis
    groups, sums = placement.count_groups(head.x, 0), primitives.sum_dtype(head.x.dtype)
    size = max(chunk_size // groups, 1)
    start = ModelTangents(
        None if needs_grad.x is None else jnp.zeros_like(head.x, needs_grad.x),
        placement.full(head.x, 0, head.w.shape, sums) if needs_grad.w else None,
        placement.full(head.x, 0, head.w.shape[axis : axis + 1], sums) if needs_grad.bias else None,
    )

    def step(carry: tuple[Array, ModelTangents], i: Array | int) -> tuple[Array, ModelTangents]:
        nll, (x, w, bias) = carry
        cut = Cut(jnp.minimum(i * size, n // groups - size), size, groups)
        rows = partial(placement.take_block, cut=cut, axis=0)
        chunk = head._replace(x=rows(head.x), targets=rows(head.targets))
        if head.where is not None and head.where.shape[0] > 1:
            chunk = chunk._replace(where=rows(head.where))
        counted = jnp.ones_like(rows(weights), bool) if valid is None else rows(valid)
        if valid is not None:
            chunk = chunk._replace(x=jnp.where(counted[:, None], chunk.x, 0))
        # What another chunk has as well adds nothing to the sums.
        scale = jnp.where(cut.since(i * size) & counted, rows(weights), 0)
        value, dz = gradient(chunk, counted, scale)
        nll = placement.put_block(nll, value, cut, 0)
        # At the device's full half-precision rate: the gradient in the logits is cast down first.
        low = dz.astype(chunk.x.dtype)
        if x is not None:
            dx = times_w(low, chunk.w, axis, options.precision).astype(x.dtype)
            x = placement.put_block(x, dx, cut, 0)
        if w is not None:
            a, b = (low, chunk.x) if axis == 0 else (chunk.x, low)
            w = w + primitives.dot(a, b, (1 - axis, 0), options.precision)
        if bias is not None:
            bias = bias + jnp.sum(dz, 1 - axis, dtype=sums)
        return nll, ModelTangents(x, w, bias)

    nll, found = checkpointed_scan(step, (_zero(head), start), -(-(n // groups) // size))
    return nll, found if found.w is None else found._replace(w=found.w.astype(needs_grad.w))


def _row_gradient(chunk: Head, valid: Array, options: Options, axis: int) -> tuple[Array, Array]:
    """Loss and gradient in the logits of whole rows, with the classes along `axis`."""
    a, b = (chunk.w, chunk.x) if axis == 0 else (chunk.x, chunk.w)
    z = primitives.dot(a, b, (1, 1 - axis), options.precision)
    z = primitives.pin_layout(z) if axis == 0 else z
    if chunk.bias is not None:
        z = z + jnp.expand_dims(chunk.bias, 1 - axis)
    where = chunk.where if chunk.where is None or axis == 1 else chunk.where.T
    z, slope = primitives.mask_and_cap(z, where, options.softcap)
    known = jnp.ones_like(valid)
    value, dz = softmax_core.value_and_gradient(z, chunk.targets, known, valid, axis)
    dz = dz if slope is None else dz * slope
    return value, dz if where is None else jnp.where(where, dz, 0)


# -- Sigmoid --


def binary_forward(head: Head, options: Options) -> Array:
    """The sum of each row's losses over its labels that exist."""

    def step(total: Array, block: _Block) -> Array:
        return total + _binary(losses.binary_cross_entropy, head, block)

    return _over_classes(step, _zero(head), head, options)


def binary_tangent(head: Head, tangents: ModelTangents, options: Options) -> Array:
    """The derivative of `binary_forward` along tangents of x, w and bias."""

    def step(total: Array, block: _Block) -> Array:
        dz = _moved(head, tangents, block, options)
        return total + jnp.sum(_binary_gradient(head, block) * dz, 1)

    return _over_classes(step, _zero(head), head, options)


def binary_backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelTangents:
    """The transpose of `binary_tangent`."""

    def gradient(block: _Block) -> tuple[None, Array]:
        return None, _times(_binary_gradient(head, block), cotangents[:, None])

    return _pulled(gradient, None, head, needs_grad, options)[1]


def binary_value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of their weighted sum: no class waits for another."""

    def gradient(block: _Block) -> tuple[Array, Array]:
        dz = _times(_binary_gradient(head, block), weights[:, None])
        return _binary(losses.binary_cross_entropy, head, block), dz

    return _pulled(gradient, _zero(head), head, needs_grad, options)


def _binary(function: Callable[..., Array], head: Head, block: _Block) -> Array:
    """The row sums of a loss of the block's labels."""
    return jnp.sum(function(block.z, _truth(head, block), **_which(head, block)), 1)


def _binary_gradient(head: Head, block: _Block) -> Array:
    return derivatives.binary_cross_entropy_gradient(
        block.z, _truth(head, block), **_which(head, block)
    )


def _truth(head: Head, block: _Block) -> Array:
    return placement.take_block(head.targets, block.cut, 1)


def _which(head: Head, block: _Block) -> dict[str, Array | None]:
    weight = (
        None if head.pos_weight is None else placement.take_block(head.pos_weight, block.cut, 1)
    )
    live = _both(block.exists, block.fresh)
    return {
        "pos_weight": weight,
        "valid": None if live is None else jnp.broadcast_to(live, block.z.shape),
    }


# -- Blocks of classes --


def _block(head: Head, i: Array | int, size: int, groups: int, options: Options) -> _Block:
    part = head.w.shape[1] // groups
    whole = part % size == 0
    cut = Cut(i * size if whole else jnp.minimum(i * size, part - size), size, groups)
    fresh = None if whole else cut.since(i * size)[None, :]
    exists = None if head.where is None else placement.take_block(head.where, cut, 1)
    w = placement.take_block(head.w, cut, 1)
    z = primitives.dot(head.x, w, (1, 0), options.precision)
    if head.bias is not None:
        z = z + placement.take_block(head.bias, cut, 0)[None, :]
    z, slope = primitives.mask_and_cap(z, _both(exists, fresh), options.softcap)
    return _Block(cut, w, z, slope, exists, fresh)


def _over_classes[T](step: Callable[[T, _Block], T], start: T, head: Head, options: Options) -> T:
    """Fold the blocks of classes, the last one first; derivatives compute them again."""
    groups = placement.count_groups(head.w, 1)
    part = head.w.shape[1] // groups
    size = max(min(options.tiles.classes // groups, part), 1)

    def once(carry: T, i: Array | int) -> T:
        return step(carry, _block(head, i, size, groups, options))

    return checkpointed_scan(once, start, -(-part // size))


def checkpointed_scan[T](step: Callable[[T, Array | int], T], start: T, count: int) -> T:
    """Fold count - 1, ..., 1, 0 under a checkpoint; a single step is just taken."""
    if count == 1:
        return step(start, 0)
    once = jax.checkpoint(step, prevent_cse=False)
    numbers = jnp.arange(count, dtype=jnp.int32)
    return lax.scan(lambda carry, i: (once(carry, i), None), start, numbers, reverse=True)[0]


def _moved(head: Head, tangents: ModelTangents, block: _Block, options: Options) -> Array:
    """The tangents of a block of logits."""
    dz = jnp.zeros_like(block.z)
    if tangents.x is not None:
        dz += primitives.dot(tangents.x, block.w, (1, 0), options.precision)
    if tangents.w is not None:
        dw = placement.take_block(tangents.w, block.cut, 1)
        dz += primitives.dot(head.x, dw, (1, 0), options.precision)
    if tangents.bias is not None:
        dz += placement.take_block(tangents.bias, block.cut, 0)[None, :]
    return _through(block, dz)


def _pulled(
    gradient: Callable[[_Block], tuple[Any, Array]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelTangents]:
    """Sums of values, and what gradients in the logits give for x, w and bias."""

    def step(carry: tuple[Any, ModelTangents], block: _Block) -> tuple[Any, ModelTangents]:
        total, found = carry
        value, dz = gradient(block)
        found = add_block(found, head, _through(block, dz), block.cut, options)
        return None if value is None else total + value, found

    values, found = _over_classes(step, (values, init_gradients(head, needs_grad)), head, options)
    return values, found if found.x is None else found._replace(x=found.x.astype(needs_grad.x))


def init_gradients(head: Head, needs_grad: NeedsGrad) -> ModelTangents:
    """What blocks of classes add to: sums for x, and places of their own in w and bias."""
    sums = primitives.sum_dtype(head.x.dtype)
    return ModelTangents(
        jnp.zeros_like(head.x, sums) if needs_grad.x else None,
        None if needs_grad.w is None else jnp.zeros_like(head.w, needs_grad.w),
        placement.full(head.w, 0, head.w.shape[1:], sums) if needs_grad.bias else None,
    )


def add_block(
    total: ModelTangents, head: Head, dz: Array | None, cut: Cut, options: Options
) -> ModelTangents:
    """Add what the gradients in a block of logits give; w's and bias's part goes into its place.

    They are None where none is wanted.
    """
    if dz is None:
        return total
    x, w, bias = total
    precision = options.precision
    # At the device's full half-precision rate: the gradient in the logits is cast down first.
    low = dz.astype(head.x.dtype)
    if x is not None:
        x = x + primitives.dot(low, placement.take_block(head.w, cut, 1), (1, 1), precision)
    if w is not None:
        dw = primitives.weight_gradient(head.x, low, precision).astype(w.dtype)
        w = placement.put_block(w, dw, cut, 1)
    if bias is not None:
        sums = jnp.sum(dz, 0, dtype=bias.dtype)
        bias = placement.put_block(bias, sums, cut, 0)
    return ModelTangents(x, w, bias)


def _through(block: _Block, dz: Array) -> Array:
    """Gradients or tangents of logits before the softcap and the mask."""
    dz = dz if block.slope is None else dz * block.slope
    return dz if block.exists is None else jnp.where(block.exists, dz, 0)


def _hot(head: Head, block: _Block) -> Array:
    """Which of a block's entries are the labels'."""
    column = block.cut.indices(head.w.shape[1])
    hot = column[None, :] == head.targets[:, None]
    return hot if block.fresh is None else hot & block.fresh


def _exponentials(block: _Block, hot: Array, maximum: Array) -> Array:
    """exp(z - maximum), and 0 for the label, whose term is added at the end."""
    return jnp.where(hot, 0, relative_exp(block.z, maximum[:, None]))


def _times(dz: Array, weights: Array) -> Array:
    """Weighted gradients, where a weight of 0 silences a NaN."""
    return jnp.where(weights == 0, 0, dz * weights)


def _zero(head: Head) -> Array:
    """A sum of each row, to begin with."""
    return placement.full(head.x, 0, head.x.shape[:1], primitives.sum_dtype(head.x.dtype))


def _both(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a & b
