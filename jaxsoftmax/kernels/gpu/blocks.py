"""Blocks of classes: their gradients are written to memory, and multiplied there.

All classes make one block where the gradients in all logits fit the budget. Else the last block
comes first, which may be smaller; the others have a loop. `hopper_products` multiplies blocks where
they lie; where it cannot, XLA copies the block's part of w and of its gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxsoftmax import placement
from jaxsoftmax.kernels import chunks, primitives, tiles, xla_chunked
from jaxsoftmax.kernels.chunks import round_up
from jaxsoftmax.kernels.gpu import hopper, hopper_products, launch, whole_tiles
from jaxsoftmax.kernels.gpu.epilogues import SWIZZLE_TILE, TILE_CLASSES
from jaxsoftmax.kernels.types import Head, ModelCotangents, NeedsGrad, Options
from jaxsoftmax.placement import Cut

HALF_BYTES = 2  # of an entry of a gradient in the logits, and of an exponential
# Of the budget, where there are several blocks: the rest is for vectors over rows and classes.
BLOCK_SHARE = 7 / 8


class Block(NamedTuple):
    """A block of classes."""

    start: Array | int
    size: int

    @property
    def num_classes(self) -> int:
        """The classes of the block's tiles."""
        return round_up(self.size, TILE_CLASSES)

    def take(self, vector: Array | None, fill: float) -> Array | None:
        """Return the block of a vector over classes in whole tiles, with a number beyond it.

        None stays None where the block has whole tiles.
        """
        if vector is None:
            return None
        block = lax.dynamic_slice_in_dim(vector, self.start, self.size)
        return whole_tiles.pad_vector(block, self.num_classes, fill)

    def bias_and_mask(self, head: Head) -> Array | None:
        """Return the vector that is added to the products of the block, if any."""
        whole = self.size == self.num_classes
        return self.take(whole_tiles.bias_and_mask(head, has_tail=not whole), -jnp.inf)


def entries(head: Head, size: int) -> jax.ShapeDtypeStruct:
    """Return the type of the entries of some classes of the logits, in half precision."""
    rows = round_up(head.x.shape[0], SWIZZLE_TILE[0])
    return jax.ShapeDtypeStruct((rows, size), head.x.dtype)


def classes_per_block(
    head: Head, needs_grad: NeedsGrad, options: Options, kept_beside: int | None = None
) -> int:
    """Return how many classes make a block within the budget: all, or whole tiles of them.

    A block has the gradients of its logits and, for the sigmoid, a copy of its targets; and, where
    XLA multiplies blocks, copies of their part of w and of its gradient. Several blocks need the
    float32 sum of x's gradient beside the budget, so all classes may take its place. Where numbers
    are kept in the memory of w's gradient, the budget is another one, and there is always a sum.
    """
    n, (d, k) = head.x.shape[0], head.w.shape
    memory = options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT * n
    memory = memory if kept_beside is None else kept_beside
    class_bytes = n * HALF_BYTES
    if head.targets.ndim == 2:
        class_bytes += n * max(HALF_BYTES, head.targets.dtype.itemsize)
    if kept_beside is None and k * class_bytes <= memory + sum_bytes(head, needs_grad):
        return k
    if not _multiplies_in_place(head, needs_grad, options):
        class_bytes += 2 * d * HALF_BYTES
    limit = max(int(memory * BLOCK_SHARE) // class_bytes, 1)
    return min(round_up(chunks.even_size(k, limit), TILE_CLASSES), k)


def sum_bytes(head: Head, needs_grad: NeedsGrad) -> int:
    """Return the bytes of the float32 sum of x's gradient over blocks of classes."""
    n, d = head.x.shape
    return primitives.FLOAT_BYTES * n * d if needs_grad.x else 0


def _multiplies_in_place(head: Head, needs_grad: NeedsGrad, options: Options) -> bool:
    """Return whether `hopper_products` can multiply blocks."""
    is_hopper = launch.generation(options) is hopper
    return is_hopper and needs_grad.w in (None, head.x.dtype)


def scan_classes(
    function: Callable[..., tuple[Any, Any]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
    kept: Array | None = None,
) -> tuple[Any, ModelCotangents]:
    """Return the sum of the blocks' values, and the gradients of x, w and bias.

    `function` returns the values of a block and the gradient in its logits. Where numbers were kept
    in the memory of w's gradient, they are its second argument: those of the blocks to come.
    """
    if size == head.w.shape[1] and kept is None:
        values, dz = function(Block(0, size))
        if dz is None:
            return values, ModelCotangents(None, None, None)
        return values, xla_chunked.gradients_of_rows(head, dz, needs_grad, options)
    in_place = _multiplies_in_place(head, needs_grad, options)

    def step(carry: tuple[Any, ModelCotangents], block: Block) -> tuple[Any, ModelCotangents]:
        total, found = carry
        value, dz = function(block) if kept is None else function(block, found.w)
        if in_place:
            found = _add_block_in_place(found, head, dz, block, needs_grad, options)
        elif dz is not None:
            cut = Cut(block.start, block.size)
            found = xla_chunked.add_block(found, head, dz, cut, options)
        return None if value is None else total + value, found

    found = ModelCotangents(None, None, _bias_zeros(head, needs_grad))
    if not in_place:
        found = xla_chunked.init_gradients(head, needs_grad)
    if kept is not None:
        found = found._replace(w=kept)
    total, found = _fold_blocks(step, (values, found), head.w.shape[1], size)
    if found.x is not None:
        n, d = head.x.shape
        found = found._replace(x=found.x[:n, :d].astype(needs_grad.x))
    return total, found


def _bias_zeros(head: Head, needs_grad: NeedsGrad) -> Array | None:
    shape = head.w.shape[1:]
    return placement.full(head.w, 0, shape, jnp.float32) if needs_grad.bias else None


def _fold_blocks[T](step: Callable[[T, Block], T], carry: T, k: int, size: int) -> T:
    """Fold k classes in blocks: the last one, which may be smaller, then the others in a loop."""
    count = pl.cdiv(k, size) - 1
    carry = step(carry, Block(count * size, k - count * size))
    if count == 0:
        return carry
    starts = size * jnp.arange(count, dtype=jnp.int32)
    return lax.scan(lambda carry, i: (step(carry, Block(i, size)), None), carry, starts)[0]


def _add_block_in_place(
    found: ModelCotangents,
    head: Head,
    dz: Array | None,
    block: Block,
    needs_grad: NeedsGrad,
    options: Options,
) -> ModelCotangents:
    """Do what `xla_chunked.add_block` does; x and w are None before the first block."""
    if dz is None:
        return found
    x, w, bias = found
    dz = dz.astype(head.x.dtype)
    if needs_grad.x is not None:
        x = hopper_products.feature_gradient(dz, head.w, x, block.start, options)
    if needs_grad.w is not None:
        k = head.w.shape[1]
        w = hopper_products.weight_gradient(head.x, dz, w, block.start, k, options)
    if bias is not None:
        sums = jnp.sum(dz, 0, dtype=bias.dtype)
        bias = lax.dynamic_update_slice_in_dim(bias, sums, block.start, 0)
    return ModelCotangents(x, w, bias)
