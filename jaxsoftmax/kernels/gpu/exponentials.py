"""Weighted sums of rows on a GPU, whose gradients come from the exponentials of the forward pass.

The pass that finds the maxima also stores the exponentials, relative to the maximum of each
subtile, in half precision, 2 N K bytes. Once a row's statistics are known, they give its cotangents
and with them the factors of one pass over the exponentials, which computes the gradient in the
logits: three products of N D K.

    dz = factor e        e = exp(z - maximum of the subtile) times the derivative of the softcap

The gradient of the mean logit adds a number to each class that exists: the exponential of another
one is stored as -0. With a softcap the number is multiplied by the derivative of each cap, which
exponentials that round to 0 do not tell, so these derivatives are stored as well, below all rows'
exponentials. Writing and reading them takes 4 bytes a logit, a tenth of a fourth product's time at
D = 4096 on an H200 by its rates.

`plan` says where the exponentials lie: in memory of their own, all at once or of a chunk of rows,
or where w's gradient will be. Where they have no place, the logits are computed twice: four
products.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxsoftmax.kernels import chunks, primitives, tiles, xla_chunked
from jaxsoftmax.kernels.chunks import round_up
from jaxsoftmax.kernels.gpu import blocks, launch, softmax, whole_tiles
from jaxsoftmax.kernels.gpu.blocks import HALF_BYTES, Block
from jaxsoftmax.kernels.gpu.epilogues import TILE_CLASSES, TILE_ROWS
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.row_sums import RowSum
from jaxsoftmax.kernels.types import Head, ModelCotangents, NeedsGrad, Options, RowRule

# The rows of a chunk, at least, that make reading and writing the sum of w's gradient once more
# cheaper than another product: 8 D K bytes at 3.5 TB/s, 2 R D K operations at 700 TFLOP/s (H200).
MIN_CHUNK_ROWS = 1024


def sum_rows(
    of: RowSum,
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelCotangents]:
    """Return the numbers of each row, and the gradients of a weighted sum."""
    shape, head = head.w.shape, whole_tiles.pad_head(head)
    has_caps = of.uses_mean and options.softcap is not None
    chosen = plan(head, needs_grad, options, has_caps=has_caps)
    if isinstance(chosen, int):
        arguments = head, valid, weights, needs_grad, options
        rows, found = _scan_chunks(of, *arguments, chosen, has_caps=has_caps)
        return rows, whole_tiles.crop(found, shape)
    head, weights = xla_chunked.ignore_rows(head, valid, weights)
    kept = head, weights, needs_grad, options
    if chosen == "in place":
        rows, found = _gradients_in_place(of.rule, *kept, has_caps=has_caps)
    else:
        passes = softmax.forward, softmax.gradients_again
        rows, found = xla_chunked.compute_twice(*kept, *passes, of.rule)
    return rows, whole_tiles.crop(found, shape)


def plan(
    head: Head, needs_grad: NeedsGrad, options: Options, *, has_caps: bool = False
) -> int | Literal["in place", "again"]:
    """Return how many rows' exponentials are kept at a time, or how to do without their memory.

    They are the rows of a chunk, or all. Several chunks need the sum of w's gradient in float32,
    4 D K bytes of the budget, and read and write it once each. "in place": all rows' exponentials
    lie where w's gradient will, which they fit where there are no more of them than features.
    "again": the logits are computed again for the gradient, as they are per example.
    """
    n, (d, k) = head.x.shape[0], head.w.shape
    memory, row_bytes = chunk_memory(head, options), HALF_BYTES * k * (1 + has_caps)
    if row_bytes * n <= memory + blocks.sum_bytes(head, needs_grad):
        return n
    if needs_grad.w is None:
        return _even_chunk(n, memory // row_bytes)
    if _first_cap(n, has_caps) + n <= d and needs_grad.w == head.x.dtype:
        return "in place"
    limit = (memory - primitives.FLOAT_BYTES * d * k) // row_bytes
    return _even_chunk(n, limit) if limit >= MIN_CHUNK_ROWS else "again"


def chunk_memory(head: Head, options: Options) -> int:
    """Return the budget of the sum in bytes."""
    return options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT * head.w.shape[1]


def _even_chunk(n: int, limit: int) -> int:
    """Return the rows of a chunk: whole tiles, which are as few as the limit allows."""
    return min(round_up(chunks.even_size(n, max(limit, TILE_ROWS)), TILE_ROWS), n)


def _first_cap(n: int, has_caps: bool) -> int:
    """Return the row from which the softcap's derivatives are stored, 0 where they are not.

    The tiles of the exponentials, which are written in any order, end before it.
    """
    return round_up(n, TILE_ROWS) if has_caps else 0


def _scan_chunks(
    of: RowSum,
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
    *,
    has_caps: bool,
) -> tuple[Any, ModelCotangents]:
    """Return numbers of rows and gradients from the exponentials of a chunk of rows at a time."""

    def gradient(chunk: Head, valid: Array, weights: Array) -> tuple[Any, Array]:
        del valid  # of weight 0
        k = chunk.w.shape[1]
        entries = blocks.entries(chunk, round_up(k, TILE_CLASSES))
        rows = _first_cap(chunk.x.shape[0], has_caps) + entries.shape[0]
        entries = jax.ShapeDtypeStruct((rows, entries.shape[1]), entries.dtype)
        found = _run(of.rule, chunk, weights, entries, options, has_caps=has_caps)
        return found.rows, found.gradient(found.entries, Block(0, k))

    return xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size, zeros=of.zeros
    )


def _gradients_in_place(
    rule: RowRule,
    head: Head,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    *,
    has_caps: bool,
) -> tuple[Any, ModelCotangents]:
    """Return numbers of rows and gradients from exponentials that lie where w's gradient will.

    A block of them becomes a gradient in the logits, and that the block of w's gradient: in its
    place nothing is needed any more.
    """
    entries = jax.ShapeDtypeStruct(head.w.shape, head.x.dtype)
    found = _run(rule, head, weights, entries, options, has_caps=has_caps)

    def gradient(block: Block, entries: Array) -> tuple[None, Array]:
        return None, found.gradient(entries, block)

    size = blocks.classes_per_block(head, needs_grad, options, chunk_memory(head, options))
    _, gradients = blocks.scan_classes(
        gradient, None, head, needs_grad, options, size, found.entries
    )
    return found.rows, gradients


class _Kept(NamedTuple):
    """The exponentials of the logits of rows, and what makes them gradients."""

    rows: Any  # the numbers of each row that are returned
    entries: Array  # as in `SoftmaxOutputs`
    factor: Array  # [N, subtiles]
    label_gradient: Array  # [N]
    share: Array | None  # [N], of each class that exists in the gradient of the mean logit
    labels: Array  # [N]
    is_ignored: Array  # [N]
    subtile_classes: int
    first_cap: int  # 0 without derivatives of the softcap

    def gradient(self, entries: Array, block: Block) -> Array:
        """Return the weighted gradients in a block of the logits, from what was kept of it."""
        e = self._take(entries, 0, block)
        dz = e.astype(jnp.float32) * self._factor_of_entries(block)
        if self.share is not None:
            dz += self._gradient_of_mean(e, entries, block)
        classes = block.start + jnp.arange(block.size, dtype=jnp.int32)
        is_label = classes[None, :] == self.labels[:, None]
        dz = jnp.where(is_label, self.label_gradient[:, None], dz)
        return jnp.where(self.is_ignored[:, None], 0, dz)

    def _take(self, entries: Array, first_row: int, block: Block) -> Array:
        size = self.labels.shape[0], block.size
        return lax.dynamic_slice(entries, (first_row, block.start), size)

    def _factor_of_entries(self, block: Block) -> Array:
        """Return the factors of the subtiles of a block, each for all of its classes."""
        n, size = self.labels.shape[0], self.subtile_classes
        shape = n, pl.cdiv(block.size, size), size
        factor = lax.dynamic_slice_in_dim(self.factor, block.start // size, shape[1], 1)
        factor = jnp.broadcast_to(factor[:, :, None], shape).reshape(n, -1)
        return factor[:, : block.size]

    def _gradient_of_mean(self, e: Array, entries: Array, block: Block) -> Array:
        share = self.share[:, None]  # type: ignore[index]
        if not self.first_cap:
            return jnp.where(jnp.signbit(e), 0, share)
        return self._take(entries, self.first_cap, block).astype(jnp.float32) * share


def _run(
    rule: RowRule,
    head: Head,
    weights: Array,
    entries: jax.ShapeDtypeStruct,
    options: Options,
    *,
    has_caps: bool,
) -> _Kept:
    """Return the exponentials of the logits, stored as `entries`, and the cotangents of rows."""
    first_cap = _first_cap(head.x.shape[0], has_caps)
    outputs = softmax.statistics_outputs(head, options, stats=options.stats)
    outputs = outputs._replace(exponentials=entries)
    found = softmax.run_statistics(head, outputs, options, first_cap=first_cap)
    parts = softmax.combine_subtiles(found, head, options)
    rows, bars, is_ignored = rule(parts, weights)
    maximum = whole_tiles.clip_infinities(parts.maximum)
    factor = relative_exp(found.maximum.T, maximum[:, None])
    share, label_gradient = primitives.per_class(bars.mean, parts), bars.label_logit
    if share is not None:
        label_gradient += share
    if options.softcap is not None:
        label_gradient *= 1 - (parts.label_logit / options.softcap) ** 2
    return _Kept(
        rows,
        found.exponentials,
        factor * bars.sum_exp_rest[:, None],
        jnp.where(parts.label_logit == -jnp.inf, 0, label_gradient),
        share,
        head.targets,
        is_ignored,
        launch.generation(options).SUBTILE_CLASSES,
        first_cap,
    )
