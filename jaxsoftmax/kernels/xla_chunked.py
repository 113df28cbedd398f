"""The fused losses in pure JAX, on any platform: a block of classes, or a chunk of rows, at a time.

There are two routes, which differ in memory and in the number of products of N D K:

- per example (`forward`, `tangent`, `backward`): blocks of classes, with a running maximum and
  sum (on a TPU `fused_sums`, of all classes at once where they are not too many). The reverse pass
  computes each block's logits again (four products) and writes its part of w's gradient in place.
  Where one block holds all classes, XLA finds that both passes compute the same logits and keeps
  them.
- a weighted sum (`value_and_gradients`): chunks of rows with all their classes, whose gradient is
  known at once (three products). The gradient of w is summed in float32. Where the chunks would be
  too small (`chunks`), the sum takes the other route. The sigmoid loss, whose classes are
  independent, uses blocks of classes here as well.

Where the arrays are on a mesh, a block takes a part of each group of classes, or of rows
(`placement.count_groups`), so that no device waits for another.

K need not be a multiple of the block size. The last block starts at K - block, with the classes
that another block has masked, the label's entry included. It is processed first, so that the other
block overwrites its part of w's gradient. Padding w, or using a smaller block for the tail, would
copy w. Rows are cut in the same way.

The logits' own rounding is that of a sum of D products, so plain exponentials of z - max are enough
where rows come in blocks. Whole rows use `softmax_core.value_and_gradient`, whose exact
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
from jax.typing import DTypeLike

from jaxsoftmax import derivatives, losses, placement, softmax_core, validation
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.exponential import again
from jaxsoftmax.kernels import chunks, fused_sums, loop_operands, primitives, row_losses, tiles
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    ModelTangents,
    NeedsGrad,
    Options,
    RowCotangents,
    RowRule,
    RowTangents,
    Stats,
)
from jaxsoftmax.linear_map import with_derivatives_of
from jaxsoftmax.placement import Cut


def unsupported(head: Head, options: Options) -> str | None:
    """Return None: this implementation runs everywhere."""
    del head, options
    return None


class _Block(NamedTuple):
    """A block of classes with its logits."""

    head: Head  # of all classes
    cut: Cut  # which classes
    w: Array  # [D, B]
    z: Array  # [N, B], -inf where a class does not exist or belongs to another block
    dcap: Array | None  # [N, B], the derivative of the softcap
    exists: Array | None  # [1 or N, B], this block of `where`
    is_new: Array | None  # [1, B], False where a class belongs to another block


# -- Softmax, per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Return the terms of each row's loss; with stats, also mean logit and predicted class."""
    run = _fused_forward if fused_sums.is_fused(head, options) else _forward
    return primitives.with_mean(run(head, options))


def _forward(head: Head, options: Options) -> LSEParts:
    """Return the terms, with the sum of the logits in place of their mean."""
    k = head.w.shape[1]

    def step(parts: LSEParts, block: _Block) -> LSEParts:
        # A constant here as well, where `compute_twice` is differentiated: sums are rescaled by it.
        block_max = lax.stop_gradient(jnp.max(block.z, 1))
        maximum = jnp.maximum(parts.maximum, block_max)
        rescale = relative_exp(parts.maximum, maximum)
        is_label = _is_label(head, block)
        return LSEParts(
            maximum,
            parts.sum_exp_rest * rescale + jnp.sum(_exp_rest(block, is_label, maximum), 1),
            parts.label_logit + jnp.sum(jnp.where(is_label, block.z, 0), 1),
            None if parts.stats is None else _add_stats(parts, parts.stats, block, block_max, k),
        )

    return _scan_classes(step, _no_classes(head, options), head, options)


@with_derivatives_of(_forward, options=1)
def _fused_forward(head: Head, options: Options) -> LSEParts:
    """Return the terms from products whose logits are nowhere in memory: one of them, if it may."""
    k = head.w.shape[1]

    def terms(block: _Block) -> LSEParts:
        column = block.cut.indices(k)[None, :] if options.stats else None
        return fused_sums.reduce_classes(block.z, _is_label(head, block), column)

    def step(parts: LSEParts, block: _Block) -> LSEParts:
        return fused_sums.combine(parts, terms(block))

    if k <= fused_sums.MOST_CLASSES:
        return terms(_make_block(head, 0, k, 1, options))
    return _scan_classes(step, _no_classes(head, options), head, options)


def _no_classes(head: Head, options: Options) -> LSEParts:
    zero = row_zeros(head)
    stats = Stats(zero, zero, zero.astype(jnp.int32)) if options.stats else None
    return LSEParts(zero - jnp.inf, zero, zero, stats)


def _add_stats(parts: LSEParts, stats: Stats, block: _Block, block_max: Array, k: int) -> Stats:
    """Add a block to the sum and count of the logits, and to the first class of the largest."""
    exists = block.z != -jnp.inf
    # Not an argmax, which gathers where the classes are sharded.
    candidates = jnp.where(block.z < block_max[:, None], k, block.cut.indices(k)[None, :])
    first = jnp.min(candidates, 1)
    is_tied = block_max == parts.maximum
    tied = jnp.where(is_tied, jnp.minimum(first, stats.predicted), stats.predicted)
    return Stats(
        stats.mean + jnp.sum(jnp.where(exists, block.z, 0), 1),
        stats.classes + jnp.sum(exists, 1, dtype=stats.classes.dtype),
        jnp.where(block_max > parts.maximum, first, tied),
    )


def tangent(head: Head, parts: LSEParts, tangents: ModelTangents, options: Options) -> RowTangents:
    """Return the tangents of the loss terms and the mean, given those of x, w and bias."""
    zero = row_zeros(head)

    def step(sums: RowTangents, block: _Block) -> RowTangents:
        dz = _logit_tangents(tangents, block, options)
        is_label = _is_label(head, block)
        mean = sums.mean
        if mean is not None:
            mean += jnp.sum(jnp.where(block.z == -jnp.inf, 0, dz), 1)
        return RowTangents(
            sums.sum_exp_rest + jnp.sum(_exp_rest(block, is_label, parts.maximum) * dz, 1),
            sums.label_logit + jnp.sum(jnp.where(is_label, dz, 0), 1),
            mean,
        )

    zeros = RowTangents(zero, zero, None if parts.stats is None else zero)
    rows = _scan_classes(step, zeros, head, options)
    return rows._replace(mean=primitives.per_class(rows.mean, parts))


def backward(
    head: Head,
    parts: LSEParts,
    cotangents: RowCotangents,
    needs_grad: NeedsGrad,
    options: Options,
) -> ModelCotangents:
    """Return the gradients of x, w and bias that are needed: the transpose of `tangent`."""
    mean = primitives.per_class(cotangents.mean, parts)

    def gradient(block: _Block) -> tuple[None, Array]:
        is_label = _is_label(head, block)
        e = _exp_rest(block, is_label, parts.maximum)
        z_bar = jnp.where(
            is_label, cotangents.label_logit[:, None], e * cotangents.sum_exp_rest[:, None]
        )
        if mean is not None:
            z_bar += jnp.where(block.z == -jnp.inf, 0, mean[:, None])
        return None, z_bar

    return _sum_gradients(gradient, None, head, needs_grad, options)[1]


# -- Softmax, a weighted sum --


def value_and_gradients(
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Array, ModelCotangents]:
    """Return each row's loss, and the gradients of the weighted sum; an ignored row adds 0."""
    size = chunks.rows_per_chunk(head, needs_grad, options)
    if size is not None:
        return chunks_of_rows(head, valid, weights, needs_grad, options, size)
    head, weights = ignore_rows(head, valid, weights)
    nll, gradients = compute_twice(head, weights, needs_grad, options, forward, backward)
    return validation.zero_ignored(nll, valid), gradients


def rows_and_gradients(
    head: Head,
    weights: Array,
    constants: tuple[Array, ...],
    function: Callable,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[row_losses.RowTerms, ModelCotangents]:
    """Return the terms of each row, and the gradients of the weighted sum of a function of them."""
    loss = row_losses.RowLoss(function, constants)
    size = chunks.rows_per_chunk(head, needs_grad, options)
    if size is not None:
        return chunks_of_row_losses(loss, head, weights, needs_grad, options, size)
    arguments = head, weights, needs_grad, options
    return compute_twice(*arguments, forward, backward, loss.part_cotangents)


def chunks_of_row_losses(
    loss: row_losses.RowLoss,
    head: Head,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
    shards: ClassShards = UNSHARDED,
) -> tuple[row_losses.RowTerms, ModelCotangents]:
    """Return `rows_and_gradients`, a chunk of rows with all their classes at a time.

    Sharded classes are those of `chunks_of_rows`.
    """

    def gradient(
        chunk: Head, valid: Array, weights: Array, axis: int
    ) -> tuple[row_losses.RowTerms, Array]:
        del valid  # of weight 0
        logits = row_logits(chunk, options, axis)
        rows, dz = loss.weighted_gradient(logits.z, chunk.targets, weights, axis, shards)
        return rows, logits.through_cap_and_mask(dz)

    zeros = row_losses.RowTerms.zeros(row_zeros(head, shards))
    return scan_whole_rows(gradient, head, None, weights, needs_grad, options, size, zeros)


def chunks_of_rows(
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
    shards: ClassShards = UNSHARDED,
) -> tuple[Array, ModelCotangents]:
    """Return losses and gradients, a chunk of rows with all their classes at a time.

    Where the classes are sharded, w has those of this device, and labels count all of them.
    """

    def gradient(chunk: Head, valid: Array, weights: Array, axis: int) -> tuple[Array, Array]:
        rows = row_logits(chunk, options, axis)
        nll, dz = softmax_core.value_and_gradient(
            rows.z, chunk.targets, jnp.ones_like(valid), valid, axis, shards
        )
        dz = rows.through_cap_and_mask(dz)
        return nll, _scale_gradients(dz, jnp.expand_dims(weights, axis))

    zeros = row_zeros(head, shards)
    return scan_whole_rows(gradient, head, valid, weights, needs_grad, options, size, zeros)


def scan_whole_rows[Rows](
    gradient: Callable[[Head, Array, Array, int], tuple[Rows, Array]],
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
    zeros: Rows | None = None,
) -> tuple[Rows, ModelCotangents]:
    """Return `scan_rows` of a gradient that takes the axis of the classes in w too."""
    class_major = _is_class_major(head, needs_grad, options)
    axis, w = (0, primitives.pin_layout(head.w.T)) if class_major else (1, head.w)
    rows, gradients = scan_rows(
        partial(gradient, axis=axis),  # type: ignore[call-arg]
        head._replace(w=w),
        valid,
        weights,
        needs_grad,
        options,
        chunk_size=size,
        class_axis=axis,
        zeros=zeros,
    )
    if class_major and gradients.w is not None:
        gradients = gradients._replace(w=gradients.w.T)
    return rows, gradients


def _is_class_major(head: Head, needs_grad: NeedsGrad, options: Options) -> bool:
    """Return whether the logits are laid out class-major, as few classes are.

    Features that are data are then read once from memory on a CPU, and used for the scores and the
    gradient: 60000 x 784 x 10 takes 0.9 of the time. With the gradient of the features, products
    with the classes outermost take up to 1.6 times as long.
    """
    is_few = head.w.shape[1] <= primitives.FEW_CLASSES_LIMIT
    return is_few and (needs_grad.x is None or options.target.platform != "cpu")


def ignore_rows(head: Head, valid: Array | None, weights: Array) -> tuple[Head, Array]:
    """Return the head with features of 0, and weights of 0, for the rows that are not valid."""
    if valid is None:
        return head, weights
    x = validation.zero_ignored_rows(head.x, valid, 1)
    return head._replace(x=x), jnp.where(valid, weights, 0)


def compute_twice(
    head: Head,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    forward: Callable[[Head, Options], LSEParts],
    backward: Callable[..., ModelCotangents],
    cotangents: RowRule = primitives.nll_cotangents,
) -> tuple[Any, ModelCotangents]:
    """Return numbers of each row and gradients from logits that are computed once for each.

    `cotangents` returns the numbers of the rows, which are their losses unless another one is
    given, and the cotangents of their terms. A row of weight 0 adds nothing to the gradients, not
    even NaN.
    """
    parts = forward(head, options)
    rows, bars, is_ignored = cotangents(parts, weights)
    head, parts = leave_out(is_ignored, head, parts)
    return rows, backward(head, parts, bars, needs_grad, options)


def leave_out(is_ignored: Array, head: Head, parts: LSEParts) -> tuple[Head, LSEParts]:
    """Return head and terms whose rows of cotangent 0 add 0 where they are ignored, not NaN."""
    kept = head._replace(x=jnp.where(is_ignored[:, None], 0, head.x))
    return kept, parts._replace(maximum=jnp.where(is_ignored, jnp.inf, parts.maximum))


def scan_rows[Rows](
    gradient: Callable[[Head, Array, Array], tuple[Rows, Array]],
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    *,
    chunk_size: int,
    class_axis: int = 1,
    zeros: Rows | None = None,
) -> tuple[Rows, ModelCotangents]:
    """Return each row's loss, and the gradients of the weighted sum, a chunk of rows at a time.

    Args:
        gradient: `(chunk, valid, weights) -> (losses, gradient in the logits)`, weighted.
        head: the head of all rows.
        valid: which rows count, or None for all.
        weights: the weights of the rows.
        needs_grad: which gradients are needed.
        options: for the precision of the products.
        chunk_size: the number of rows in a chunk.
        class_axis: the axis of the classes in w and in the gradient in the logits.
        zeros: of all rows what `gradient` returns in place of losses, if anything else.
    """
    groups = placement.count_groups(head.x, 0)
    group_size, size = head.x.shape[0] // groups, max(chunk_size // groups, 1)

    def compute(head: Head, cut: Cut, is_new: Array | bool) -> tuple[Rows, Head, Array]:
        chunk, chunk_valid, chunk_weights = _take_rows(head, valid, weights, cut)
        # A row that belongs to another chunk adds nothing to the sums.
        chunk_weights = jnp.where(is_new & chunk_valid, chunk_weights, 0)
        rows, dz = gradient(chunk, chunk_valid, chunk_weights)
        return rows, chunk, dz

    if size >= group_size:
        rows, chunk, dz = compute(head, Cut(0, group_size, groups), True)
        return rows, gradients_of_rows(chunk, dz, needs_grad, options, class_axis)

    operands = loop_operands.hold(head, options)

    def step(carry: tuple[Rows, ModelCotangents], i: Array | int) -> tuple[Rows, ModelCotangents]:
        rows, gradients = carry
        cut = Cut(jnp.minimum(i * size, group_size - size), size, groups)
        found, chunk, dz = compute(operands(), cut, cut.since(i * size))
        put = partial(placement.put_block, cut=cut, axis=0)
        gradients = _add_chunk(gradients, chunk, dz, cut, needs_grad, options, class_axis)
        return jax.tree.map(put, rows, found), gradients

    start: Any = row_zeros(head) if zeros is None else zeros
    start = start, _init_chunk_gradients(head, needs_grad, class_axis)
    rows, gradients = checkpointed_scan(step, start, -(-group_size // size))
    if gradients.w is not None:
        gradients = gradients._replace(w=gradients.w.astype(needs_grad.w))
    return rows, gradients


def _init_chunk_gradients(head: Head, needs_grad: NeedsGrad, class_axis: int) -> ModelCotangents:
    """Return zeros: sums for w and bias, and space for the rows of x's gradient."""
    sums, classes = primitives.sum_dtype(head.x.dtype), head.w.shape[class_axis : class_axis + 1]
    return ModelCotangents(
        None if needs_grad.x is None else jnp.zeros_like(head.x, needs_grad.x),
        placement.full(head.x, 0, head.w.shape, sums) if needs_grad.w else None,
        placement.full(head.x, 0, classes, sums) if needs_grad.bias else None,
    )


def _take_rows(
    head: Head, valid: Array | None, weights: Array, cut: Cut
) -> tuple[Head, Array, Array]:
    """Return a chunk of the rows, which of them count, and their weights."""
    take = partial(placement.take_block, cut=cut, axis=0)
    chunk = head._replace(x=take(head.x), targets=take(head.targets))
    if head.where is not None and head.where.shape[0] > 1:
        chunk = chunk._replace(where=take(head.where))
    chunk_weights = take(weights)
    if valid is None:
        return chunk, jnp.ones_like(chunk_weights, bool), chunk_weights
    chunk_valid = take(valid)
    return chunk._replace(x=jnp.where(chunk_valid[:, None], chunk.x, 0)), chunk_valid, chunk_weights


def gradients_of_rows(
    rows: Head,
    dz: Array,
    needs_grad: NeedsGrad,
    options: Options,
    class_axis: int = 1,
) -> ModelCotangents:
    """Return the gradients that are needed, from the gradient in all logits of some rows."""
    x = w = bias = None
    # At the device's full half-precision rate: the gradient in the logits is cast down first.
    low = dz.astype(rows.x.dtype)
    if needs_grad.x is not None:
        dtype = primitives.rounded_dtype(needs_grad.x, options)
        x = primitives.contract_classes(low, rows.w, class_axis, options, dtype)
        x = x.astype(needs_grad.x)
    if needs_grad.w is not None:
        w = _gradient_of_w(rows, dz, needs_grad.w, options, class_axis)
    if needs_grad.bias is not None:
        bias = jnp.sum(dz, 1 - class_axis, dtype=primitives.sum_dtype(rows.x.dtype))
    return ModelCotangents(x, w, bias)


def _gradient_of_w(
    rows: Head, dz: Array, wanted: DTypeLike, options: Options, class_axis: int
) -> Array:
    """Return the gradient of w, from the gradient in some logits of all these rows."""
    low, dtype = dz.astype(rows.x.dtype), primitives.rounded_dtype(wanted, options)
    if class_axis == 0:
        w = primitives.dot(low, rows.x, (1, 0), options.precision, dtype)
    else:
        w = primitives.weight_gradient(rows.x, low, options.precision, dtype)
    return w.astype(wanted)


def _add_chunk(
    sums: ModelCotangents,
    chunk: Head,
    dz: Array,
    cut: Cut,
    needs_grad: NeedsGrad,
    options: Options,
    class_axis: int,
) -> ModelCotangents:
    """Add a chunk's gradients to the sums for w and bias, and write its rows for x."""
    found = gradients_of_rows(chunk, dz, needs_grad._replace(w=None), options, class_axis)
    x, w, bias = sums
    if x is not None and found.x is not None:
        x = placement.put_block(x, found.x, cut, 0)
    if w is not None:
        w = _add_weight_gradient(w, chunk, dz, options, class_axis)
    if bias is not None and found.bias is not None:
        bias = bias + found.bias
    return ModelCotangents(x, w, bias)


def _add_weight_gradient(
    total: Array, chunk: Head, dz: Array, options: Options, class_axis: int
) -> Array:
    """Return the sum of w's gradient and that of a chunk, which is nowhere whole in memory."""
    k, wanted = dz.shape[class_axis], total.dtype
    size = chunks.classes_per_addition(total, dz.shape[1 - class_axis], options)
    if size >= k or class_axis == 0:
        return total + _gradient_of_w(chunk, dz, wanted, options, class_axis)

    def add(i: Array | int, total: Array) -> Array:
        cut = Cut(jnp.minimum(i * size, k - size), size)
        # Classes that another block has as well do not count twice.
        part = jnp.where(cut.since(i * size)[None, :], placement.take_block(dz, cut, 1), 0)
        found = _gradient_of_w(chunk, part, wanted, options, class_axis)
        return placement.put_block(total, placement.take_block(total, cut, 1) + found, cut, 1)

    return lax.fori_loop(0, -(-k // size), add, total)


class RowLogits(NamedTuple):
    """The logits of whole rows."""

    z: Array  # -inf where a class does not exist
    dcap: Array | None  # the derivative of the softcap
    where: Array | None  # which classes exist

    def through_cap_and_mask(self, dz: Array) -> Array:
        """Return the gradient in the logits before the softcap, 0 for classes that do not exist."""
        dz = dz if self.dcap is None else dz * self.dcap
        return dz if self.where is None else jnp.where(self.where, dz, 0)


def row_logits(chunk: Head, options: Options, axis: int) -> RowLogits:
    """Return the logits of whole rows, with the classes along `axis`, as in `chunk.w`."""
    a, b = (chunk.w, chunk.x) if axis == 0 else (chunk.x, chunk.w)
    z = primitives.dot(a, b, (1, 1 - axis), options.precision)
    z = primitives.pin_layout(z) if axis == 0 else z
    if chunk.bias is not None:
        z = z + jnp.expand_dims(chunk.bias, 1 - axis)
    where = chunk.where if chunk.where is None or axis == 1 else chunk.where.T
    return RowLogits(*primitives.mask_and_cap(z, where, options.softcap), where)


# -- Sigmoid --


def binary_forward(head: Head, options: Options) -> Array:
    """Return the sum of each row's losses over its labels that exist."""

    def step(total: Array, block: _Block) -> Array:
        return total + _binary_loss(head, block)

    return _scan_classes(step, row_zeros(head), head, options)


def binary_tangent(head: Head, tangents: ModelTangents, options: Options) -> Array:
    """Return the tangent of `binary_forward`, given those of x, w and bias."""

    def step(total: Array, block: _Block) -> Array:
        dz = _logit_tangents(tangents, block, options)
        return total + jnp.sum(_binary_gradient(head, block) * dz, 1)

    return _scan_classes(step, row_zeros(head), head, options)


def binary_backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Return the gradients of x, w and bias that are needed: the transpose of `binary_tangent`."""

    def gradient(block: _Block) -> tuple[None, Array]:
        return None, _scale_gradients(_binary_gradient(head, block), cotangents[:, None])

    return _sum_gradients(gradient, None, head, needs_grad, options)[1]


def binary_value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelCotangents]:
    """Return each row's loss, and the gradients of the weighted sum.

    The classes are independent, so one pass over blocks of classes computes both.
    """

    def gradient(block: _Block) -> tuple[Array, Array]:
        dz = _scale_gradients(_binary_gradient(head, block), weights[:, None])
        return _binary_loss(head, block), dz

    return _sum_gradients(gradient, row_zeros(head), head, needs_grad, options)


def _binary_loss(head: Head, block: _Block) -> Array:
    """Return the sum of each row's losses over the labels of a block."""
    targets, options = _binary_arguments(head, block)
    return jnp.sum(losses.binary_cross_entropy(block.z, targets, **options), 1)


def _binary_gradient(head: Head, block: _Block) -> Array:
    """Return the gradient of the losses in the logits of a block.

    A GPU would store the exponentials that it shares with the losses, 8 bytes a logit.
    """
    targets, options = _binary_arguments(head, block)
    return derivatives.binary_cross_entropy_gradient(again(block.z), targets, **options)


def _binary_arguments(head: Head, block: _Block) -> tuple[Array, dict[str, Array | None]]:
    """Return a block's targets, and its positive weights and which of its labels count."""
    targets = placement.take_block(head.targets, block.cut, 1)
    pos_weight = None
    if head.pos_weight is not None:
        pos_weight = placement.take_block(head.pos_weight, block.cut, 1)
    valid = _and(block.exists, block.is_new)
    if valid is not None:
        valid = jnp.broadcast_to(valid, block.z.shape)
    return targets, {"pos_weight": pos_weight, "valid": valid}


# -- Blocks of classes --


def _scan_classes[T](step: Callable[[T, _Block], T], start: T, head: Head, options: Options) -> T:
    """Fold the blocks of classes, the last one first; derivatives compute them again."""
    groups = placement.count_groups(head.w, 1)
    group_size = head.w.shape[1] // groups
    size = max(min(classes_of_block(head, options) // groups, group_size), 1)
    count = -(-group_size // size)
    operands = loop_operands.hold(head, options) if count > 1 else lambda: head

    def block_step(carry: T, i: Array | int) -> T:
        return step(carry, _make_block(operands(), i, size, groups, options))

    return checkpointed_scan(block_step, start, count)


def classes_of_block(head: Head, options: Options) -> int:
    """Return the classes of a block: all of them where several blocks take more memory.

    Several blocks need the float32 sum of x's gradient, 4 N D bytes, unless that is the result. On
    a CPU they are multiplied by copies of their parts of w, D numbers a class.
    """
    (d, k), limit = head.w.shape, options.tiles.classes
    n, platform = head.x.shape[0], options.target.platform
    is_static = placement.is_static(n)
    if platform == "cpu" and is_static:
        copies = jnp.dtype(options.dtype).itemsize * d * limit
        limit += copies // (tiles.BYTES_PER_BLOCK_LOGIT * n)
    if primitives.rounded_dtype(options.dtype, options) != primitives.sum_dtype(options.dtype):
        limit += primitives.FLOAT_BYTES * d // tiles.BYTES_PER_BLOCK_LOGIT
    if platform != "gpu" or not is_static:
        return k if k <= limit else options.tiles.classes
    row_bytes = tiles.BYTES_PER_BLOCK_LOGIT * n
    fits = row_bytes * k + chunks.padded_bytes(head, options) <= row_bytes * limit
    return k if fits else _classes_beside_copies(head, options)


def _classes_beside_copies(head: Head, options: Options) -> int:
    """Return the classes of one of several blocks on a GPU, whose budget has room for copies.

    The matrix library takes a copy of a block's part of w, and the block's part of w's gradient
    takes its place: D numbers a class, beside the logits of N rows.
    """
    limit = options.tiles.classes
    logits = tiles.BYTES_PER_BLOCK_LOGIT * head.x.shape[0]
    copies = jnp.dtype(options.dtype).itemsize * head.w.shape[0]
    return tiles.within_limit(limit * logits // (logits + copies), limit, tiles.MIN_BLOCK_CLASSES)


def _make_block(head: Head, i: Array | int, size: int, groups: int, options: Options) -> _Block:
    """Return the i-th block of classes, of `size` classes in each group, with its logits."""
    group_size = head.w.shape[1] // groups
    divides = group_size % size == 0
    cut = Cut(i * size if divides else jnp.minimum(i * size, group_size - size), size, groups)
    is_new = None if divides else cut.since(i * size)[None, :]
    exists = None if head.where is None else placement.take_block(head.where, cut, 1)
    w = placement.take_block(head.w, cut, 1)
    z = primitives.dot(head.x, w, (1, 0), options.precision)
    if head.bias is not None:
        z = z + placement.take_block(head.bias, cut, 0)[None, :]
    z, dcap = primitives.mask_and_cap(z, _and(exists, is_new), options.softcap)
    return _Block(head, cut, w, z, dcap, exists, is_new)


def checkpointed_scan[T](step: Callable[[T, Array | int], T], start: T, count: int) -> T:
    """Fold count - 1, ..., 1, 0 under a checkpoint; a single step is applied without a loop."""
    if count == 1:
        return step(start, 0)
    checkpointed = jax.checkpoint(step, prevent_cse=False)
    indices = jnp.arange(count, dtype=jnp.int32)
    carry, _ = lax.scan(lambda c, i: (checkpointed(c, i), None), start, indices, reverse=True)
    return carry


def _logit_tangents(tangents: ModelTangents, block: _Block, options: Options) -> Array:
    """Return the tangents of a block of logits."""
    dz = jnp.zeros_like(block.z)
    if tangents.x is not None:
        dz += primitives.dot(tangents.x, block.w, (1, 0), options.precision)
    if tangents.w is not None:
        dw = placement.take_block(tangents.w, block.cut, 1)
        dz += primitives.dot(block.head.x, dw, (1, 0), options.precision)
    if tangents.bias is not None:
        dz += placement.take_block(tangents.bias, block.cut, 0)[None, :]
    return _through_cap_and_mask(block, dz)


def _sum_gradients(
    gradient: Callable[[_Block], tuple[Any, Array]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelCotangents]:
    """Return the sum of the blocks' values, and the gradients of x, w and bias.

    `gradient` returns a block's value, or None where `values` is None, and the gradient in its
    logits.
    """

    def step(carry: tuple[Any, ModelCotangents], block: _Block) -> tuple[Any, ModelCotangents]:
        total, gradients = carry
        value, dz = gradient(block)
        dz = _through_cap_and_mask(block, dz)
        if dz.shape[1] == head.w.shape[1]:
            gradients = gradients_of_rows(block.head, dz, needs_grad, options)
        else:
            gradients = add_block(gradients, block.head, dz, block.cut, options)
        return None if value is None else total + value, gradients

    zeros = init_gradients(head, needs_grad)
    values, gradients = _scan_classes(step, (values, zeros), head, options)
    if gradients.x is not None:
        gradients = gradients._replace(x=gradients.x.astype(needs_grad.x))
    return values, gradients


def init_gradients(head: Head, needs_grad: NeedsGrad) -> ModelCotangents:
    """Return zeros: a sum for x, and space for the classes of w's and the bias's gradients."""
    sums = primitives.sum_dtype(head.x.dtype)
    return ModelCotangents(
        jnp.zeros_like(head.x, sums) if needs_grad.x else None,
        None if needs_grad.w is None else jnp.zeros_like(head.w, needs_grad.w),
        placement.full(head.w, 0, head.w.shape[1:], sums) if needs_grad.bias else None,
    )


def add_block(
    gradients: ModelCotangents, head: Head, dz: Array | None, cut: Cut, options: Options
) -> ModelCotangents:
    """Add the gradient in a block of logits to x's sum, and write the classes of w and bias.

    dz is None where no gradient is needed.
    """
    if dz is None:
        return gradients
    x, w, bias = gradients
    precision = options.precision
    # At the device's full half-precision rate: the gradient in the logits is cast down first.
    low = dz.astype(head.x.dtype)
    if x is not None:
        x = x + primitives.dot(low, placement.take_block(head.w, cut, 1), (1, 1), precision)
    if w is not None:
        dtype = primitives.rounded_dtype(w.dtype, options)
        dw = primitives.weight_gradient(head.x, low, precision, dtype)
        w = placement.put_block(w, dw.astype(w.dtype), cut, 1)
    if bias is not None:
        sums = jnp.sum(dz, 0, dtype=bias.dtype)
        bias = placement.put_block(bias, sums, cut, 0)
    return ModelCotangents(x, w, bias)


def _through_cap_and_mask(block: _Block, dz: Array) -> Array:
    """Apply the derivative of the softcap and the mask to tangents or gradients of the logits."""
    dz = dz if block.dcap is None else dz * block.dcap
    return dz if block.exists is None else jnp.where(block.exists, dz, 0)


def _is_label(head: Head, block: _Block) -> Array:
    """Return which of a block's entries are the labels'."""
    column = block.cut.indices(head.w.shape[1])
    is_label = column[None, :] == head.targets[:, None]
    return is_label if block.is_new is None else is_label & block.is_new


def _exp_rest(block: _Block, is_label: Array, maximum: Array) -> Array:
    """Return exp(z - maximum), and 0 for the label, whose term is added at the end."""
    return jnp.where(is_label, 0, relative_exp(block.z, maximum[:, None]))


def _scale_gradients(dz: Array, weights: Array) -> Array:
    """Return the weighted gradients, in which NaN with weight 0 is ignored.

    Others are multiplied: their derivative in a weight of 0 is the gradient.
    """
    return jnp.where((weights == 0) & ~jnp.isfinite(dz), 0, dz) * weights


def row_zeros(head: Head, shards: ClassShards = UNSHARDED) -> Array:
    """Return a zero for each row, in the dtype of sums, for what does not vary over the classes."""
    sums = primitives.sum_dtype(head.x.dtype)
    return placement.full(head.x, 0, head.x.shape[:1], sums, shards.local_axes)


def _and(a: Array | None, b: Array | None) -> Array | None:
    """Return a & b, where None is True."""
    return b if a is None else a if b is None else a & b
