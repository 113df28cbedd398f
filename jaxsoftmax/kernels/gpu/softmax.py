"""The softmax on a GPU: statistics of the tiles of logits, and gradients of logits computed again.

Subtiles have the classes that one warpgroup finishes. A kernel writes a few numbers for each row of
each of them, and XLA combines these in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.kernels import primitives, xla_chunked
from jaxsoftmax.kernels.chunks import round_up
from jaxsoftmax.kernels.gpu import blocks, epilogues, launch, logit_tiles, whole_tiles
from jaxsoftmax.kernels.gpu.blocks import Block
from jaxsoftmax.kernels.gpu.epilogues import (
    TILE_CLASSES,
    TILE_ROWS,
    ClassVectors,
    SoftmaxOutputs,
    SubtileStats,
)
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    NeedsGrad,
    Options,
    RowCotangents,
    Stats,
)
from jaxsoftmax.linear_map import with_derivatives_of


def forward(head: Head, options: Options) -> LSEParts:
    """Return the parts of each row's loss, with statistics if the options ask for them."""
    head = whole_tiles.pad_head(head)
    outputs = statistics_outputs(head, options, stats=options.stats)
    return combine_subtiles(run_statistics(head, outputs, options), head, options)


def statistics_outputs(head: Head, options: Options, *, stats: bool) -> SoftmaxOutputs:
    """Return the types of the statistics of subtiles, `[subtiles, N]` in whole tiles."""
    classes = round_up(head.w.shape[1], TILE_CLASSES)
    size = launch.generation(options).SUBTILE_CLASSES
    row = jax.ShapeDtypeStruct((classes // size, round_up(head.x.shape[0], TILE_ROWS)), jnp.float32)
    return SoftmaxOutputs(row, row, row, stats=SubtileStats(row, row, row) if stats else None)


def run_statistics(
    head: Head, outputs: SoftmaxOutputs, options: Options, first_cap: int = 0
) -> SoftmaxOutputs:
    """Return the statistics of the subtiles, `[subtiles, N]`, and what else the outputs have.

    From the row `first_cap` on, if any, the exponentials have the derivatives of the softcap.
    """
    found = logit_tiles.run(
        partial(epilogues.softmax_statistics, first_cap=first_cap),
        head,
        outputs,
        options,
        name="softmax_statistics",
        num_classes=round_up(head.w.shape[1], TILE_CLASSES),
        by_class=ClassVectors(bias=whole_tiles.bias_and_mask(head)),
        by_row=[head.targets],
    )
    by_row = jax.tree.map(lambda a: a[:, : head.x.shape[0]], found._replace(exponentials=None))
    return by_row._replace(exponentials=found.exponentials)


def combine_subtiles(found: SoftmaxOutputs, head: Head, options: Options) -> LSEParts:
    """Return the statistics of the rows from those of their subtiles."""
    maximum = jnp.max(found.maximum, 0)
    factor = relative_exp(found.maximum, maximum[None, :])
    subtile = head.targets // launch.generation(options).SUBTILE_CLASSES
    label_logit = jnp.take_along_axis(found.label_logit, subtile[None, :], 0, mode="fill")[0]
    is_here = (head.targets >= 0) & (head.targets < head.w.shape[1])
    label_logit = whole_tiles.restore_infinities(jnp.where(is_here, label_logit, 0))
    sum_exp_rest = jnp.sum(found.sum_exp_rest * factor, 0)
    parts = LSEParts(whole_tiles.restore_infinities(maximum), sum_exp_rest, label_logit, None)
    if found.stats is None:
        return parts
    total, count, argmax = found.stats
    best = jnp.argmax(found.maximum, 0).astype(jnp.int32)
    position = jnp.take_along_axis(argmax, best[None, :], 0)[0].astype(jnp.int32)
    predicted = best * launch.generation(options).SUBTILE_CLASSES + position
    sums = Stats(jnp.sum(total, 0), jnp.sum(count, 0), predicted)
    return primitives.with_mean(parts._replace(stats=sums))


@with_derivatives_of(xla_chunked.backward)
def backward(
    head: Head, parts: LSEParts, cotangents: RowCotangents, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of the tangent: return the gradients of x, w and bias that are needed."""
    shape, head = head.w.shape, whole_tiles.pad_head(head)
    found = gradients_again(head, parts, cotangents, needs_grad, options)
    return whole_tiles.crop(found, shape)


def gradients_again(
    head: Head, parts: LSEParts, cotangents: RowCotangents, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Return the gradients of a head of whole tiles, from logits that are computed again."""
    maximum = jnp.where(parts.maximum == -jnp.inf, 0, parts.maximum)
    by_row = [
        whole_tiles.clip_infinities(maximum),
        cotangents.sum_exp_rest,
        cotangents.label_logit,
    ]
    share = primitives.per_class(cotangents.mean, parts)
    if share is not None:
        by_row.append(share)

    def gradient(block: Block) -> tuple[None, Array]:
        dz = logit_tiles.run(
            epilogues.softmax_gradient,
            head,
            blocks.entries(head, block.size),
            options,
            name="softmax_gradient",
            num_classes=block.num_classes,
            by_class=ClassVectors(bias=block.bias_and_mask(head)),
            by_row=[head.targets - block.start, *by_row],
            start=block.start,
        )
        return None, dz[: head.x.shape[0]]

    size = blocks.classes_per_block(head, needs_grad, options)
    return blocks.scan_classes(gradient, None, head, needs_grad, options, size)[1]
