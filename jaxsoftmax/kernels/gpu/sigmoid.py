"""The sigmoid's losses on a GPU: labels are independent, so one pass gives values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.kernels import xla_chunked
from jaxsoftmax.kernels.chunks import round_up
from jaxsoftmax.kernels.gpu import blocks, epilogues, launch, logit_tiles, whole_tiles
from jaxsoftmax.kernels.gpu.blocks import Block
from jaxsoftmax.kernels.gpu.epilogues import TILE_ROWS, ClassVectors, SigmoidOutputs
from jaxsoftmax.kernels.types import Head, ModelCotangents, NeedsGrad, Options
from jaxsoftmax.linear_map import with_derivatives_of


def forward(head: Head, options: Options) -> Array:
    """Return the sum of the losses of each row's labels that exist."""
    return _run(head, None, NeedsGrad(), options, losses=True)[0]


@with_derivatives_of(xla_chunked.binary_backward)
def backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of the tangent."""
    return _run(head, cotangents, needs_grad, options, losses=False)[1]


@with_derivatives_of(xla_chunked.binary_value_and_gradients)
def value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelCotangents]:
    """Return the loss of each row, and the gradients of their weighted sum, in one pass."""
    gradient_weights = weights if any(needs_grad) else None
    return _run(head, gradient_weights, needs_grad, options, losses=True)


def _run(
    head: Head, weights: Array | None, needs_grad: NeedsGrad, options: Options, *, losses: bool
) -> tuple[Any, ModelCotangents]:
    """Return the loss of each row, if asked for, and with weights the gradients of their sum."""
    shape, head = head.w.shape, whole_tiles.pad_head(head)
    n = head.x.shape[0]

    def losses_and_gradients(block: Block) -> tuple[Array | None, Array | None]:
        found = _run_block(head, weights, block, options, losses=losses)
        values = jnp.sum(found.losses[:, :n], 0) if losses else None
        return values, None if weights is None else found.gradients[:n]

    zero = placement.full(head.x, 0, (n,), jnp.float32) if losses else None
    size = blocks.classes_per_block(head, needs_grad, options)
    values, found = blocks.scan_classes(losses_and_gradients, zero, head, needs_grad, options, size)
    return values, whole_tiles.crop(found, shape)


def _run_block(
    head: Head, weights: Array | None, block: Block, options: Options, *, losses: bool
) -> SigmoidOutputs:
    """Return what the kernel writes for a block of labels."""
    subtiles = block.num_classes // launch.generation(options).SUBTILE_CLASSES
    row = jax.ShapeDtypeStruct((subtiles, round_up(head.x.shape[0], TILE_ROWS)), jnp.float32)
    outputs = SigmoidOutputs(
        losses=row if losses else None,
        gradients=None if weights is None else blocks.entries(head, block.size),
    )
    return logit_tiles.run(
        epilogues.sigmoid_losses_and_gradients,
        head,
        outputs,
        options,
        name=f"sigmoid_{outputs.name}",
        num_classes=block.num_classes,
        by_class=_vectors_of_labels(head, block),
        by_row=() if weights is None else (weights,),
        start=block.start,
        targets=_take_targets(head, block),
    )


def _vectors_of_labels(head: Head, block: Block) -> ClassVectors:
    """Return the vectors over the labels of a block that make a difference."""
    exists = None
    if head.where is not None and whole_tiles.row_mask(head) is None:
        exists = head.where[0].astype(jnp.float32)
    elif block.size < block.num_classes:
        exists = placement.full(head.w, 1, head.w.shape[1:], jnp.float32)
    pos_weight = None if head.pos_weight is None else head.pos_weight[0]
    return ClassVectors(*(block.take(a, 0.0) for a in (head.bias, exists, pos_weight)))


def _take_targets(head: Head, block: Block) -> Array:
    """Return the targets of a block in whole tiles, as floats that a kernel can load.

    With a mask `[N, K]` targets of -inf become NaN, so that only the mask makes a target missing.
    """
    n, size = head.targets.shape[0], block.size
    t = lax.dynamic_slice_in_dim(head.targets, block.start, size, 1)
    if t.dtype == jnp.bool_:
        t = t.astype(jnp.bfloat16)
    elif jnp.issubdtype(t.dtype, jnp.integer):
        t = jnp.where((t == 0) | (t == 1), t, 2).astype(jnp.bfloat16)
    elif t.dtype == jnp.float64:
        t = t.astype(jnp.float32)
    row_mask = whole_tiles.row_mask(head)
    if row_mask is not None:
        exists = lax.dynamic_slice_in_dim(row_mask, block.start, size, 1)
        t = jnp.where(t == epilogues.MISSING_TARGET, jnp.nan, t)
        t = jnp.where(exists, t, epilogues.MISSING_TARGET)
    return jnp.pad(t, ((0, round_up(n, TILE_ROWS) - n), (0, block.num_classes - size)))
