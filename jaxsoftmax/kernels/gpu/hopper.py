"""Tiles of products on Hopper: wgmma instructions, with sums in registers.

The three warpgroups of a block have two roles:

    producer       one warpgroup copies tiles of both matrices, 64 entries of the sums at a time,
                   into four stages of shared memory (TMA)
    two consumers  multiply them (wgmma, sums in float32), 64 rows by 256 columns each, and finish
                   them: for logits, with the kernel's epilogue

The two blocks of a cluster each copy one half of the tiles of the right matrix to both. The second
consumer runs a few stages behind the first, so that the tensor cores have work while one of them
computes exponentials.

The tensor cores of a Hopper GPU round toward zero as they add, once every 16 entries of a sum: a
logit of D products loses up to D / 16 units in the last place, as in every product on this GPU that
is not split into shorter sums. A test computes an example.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels.gpu.epilogues import (
    NUM_PARTS,
    STEP_FEATURES,
    SWIZZLE_TILE,
    TILE_CLASSES,
    TILE_ROWS,
    Kernel,
    Subtile,
    schedule_tiles,
    swizzled_smem,
)

DEVICES = ("H100", "H200", "H800", "H20")  # also GH200

# A consumer's subtile: the consumers divide the rows of a tile.
SUBTILE_ROWS, SUBTILE_CLASSES = TILE_ROWS // 2, TILE_CLASSES
PART_CLASSES = SUBTILE_CLASSES // NUM_PARTS
NUM_STAGES = 4  # 192 KiB of the 227 KiB that a block may have
PRODUCER = 2  # the consumers are the warpgroups 0 and 1
# The stages by which consumer 0 is ahead of consumer 1: more leave none to be copied in time.
LEAD_STAGES = 2
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232  # a thread


class Product(NamedTuple):
    """A product of two matrices in global memory, each of which may be read transposed."""

    left: Any
    right: Any
    start: Any  # the column of the right matrix, as it is stored, at which the product starts
    grid: tuple[int, int]  # tiles of rows and of columns
    steps: int  # of 64 entries of the sums
    pair: bool  # whether the two blocks of a cluster share tiles of the right matrix
    transposes_left: bool = False
    transposes_right: bool = False

    def left_tile(self, i: Any, s: Any) -> Any:
        """Return the entries of step s of the i-th tile of rows."""
        rows, inner = pl.ds(i * TILE_ROWS, TILE_ROWS), pl.ds(s * STEP_FEATURES, STEP_FEATURES)
        return self.left.at[inner, rows] if self.transposes_left else self.left.at[rows, inner]

    def right_tile(self, j: Any, s: Any) -> Any:
        """Return the entries of step s of the j-th tile of columns."""
        column, inner = j * TILE_CLASSES, s * STEP_FEATURES
        if self.transposes_right:
            inner = self.start + inner
            return self.right.at[pl.ds(column, TILE_CLASSES), pl.ds(inner, STEP_FEATURES)]
        return self.right.at[pl.ds(inner, STEP_FEATURES), pl.ds(self.start + column, TILE_CLASSES)]


class Scratch(NamedTuple):
    """Shared memory and barriers of a block: types outside of the kernel, references inside."""

    left: Any  # stages of the tiles of the left matrix
    right: Any  # stages of the tiles of the right matrix
    staging: Any  # two buffers for each consumer, for what is copied to global memory
    full: Any  # barriers of each stage: both tiles have been copied
    free: Any  # barriers of each stage: both consumers have multiplied it
    turn: Any  # the barrier at which consumer 1 waits for consumer 0


def scratch(
    dtype: Any, pair: bool, *, transposes_left: bool = False, transposes_right: bool = False
) -> Scratch:
    """Return the types of the scratch memory and barriers."""
    barriers = partial(gpu.Barrier, num_arrivals=2, num_barriers=NUM_STAGES)
    shared = partial(gpu.ClusterBarrier, collective_axes=("pair",), num_arrivals=2)
    left, right = (TILE_ROWS, STEP_FEATURES), (STEP_FEATURES, TILE_CLASSES)
    return Scratch(
        left=swizzled_smem(dtype, NUM_STAGES, *left[:: -1 if transposes_left else 1]),
        right=swizzled_smem(dtype, NUM_STAGES, *right[:: -1 if transposes_right else 1]),
        staging=swizzled_smem(dtype, 2, 2, SUBTILE_ROWS, PART_CLASSES),
        full=barriers(),
        free=shared(num_barriers=NUM_STAGES) if pair else barriers(),
        turn=gpu.Barrier(),
    )


class Sums(NamedTuple):
    """One consumer's sums of a tile, in registers."""

    products: Array  # [64, 256]
    rows: Any  # the slice of their rows
    tile: Any  # the index of their tile of columns
    staging: list[Any]  # its two buffers

    def part(self, p: int) -> Array:
        """Return the p-th part of the columns."""
        return self.products[:, p * PART_CLASSES : (p + 1) * PART_CLASSES]


class Pipeline(NamedTuple):
    """The state that the warpgroups of a block share."""

    product: Product
    finish: Callable[[Sums], None]
    scratch: Scratch
    warpgroup: Any  # the index of this one
    num_tiles: Any
    tile_indices: Callable[[Any], tuple[Any, Any]]


def body(kernel: Kernel, scratch: Scratch) -> None:
    """Compute the tiles of logits of one block."""
    arguments = kernel.arguments
    start = pl.multiple_of(arguments.start[0], SWIZZLE_TILE[1])
    product = Product(arguments.x, arguments.w, start, kernel.grid, kernel.steps, kernel.pair)
    multiply(product, partial(_apply_epilogue, kernel), scratch)


def _apply_epilogue(kernel: Kernel, sums: Sums) -> None:
    subtile = Subtile(
        kernel=kernel,
        products=sums.part,
        layout=gpu.Layout.WGMMA,
        part_shape=(SUBTILE_ROWS, PART_CLASSES),
        num_classes=SUBTILE_CLASSES,
        rows=sums.rows,
        index=sums.tile,
        staging=sums.staging,
    )
    kernel.epilogue(subtile)


def multiply(product: Product, finish: Callable[[Sums], None], scratch: Scratch) -> None:
    """Compute one block's tiles of a product, and finish each consumer's sums of each of them."""
    warpgroup = lax.axis_index("group")
    schedule = schedule_tiles(product.grid, pair=product.pair)
    pipeline = Pipeline(product, finish, scratch, warpgroup, *schedule)
    pl.when(warpgroup == PRODUCER)(partial(_produce, pipeline))
    pl.when(warpgroup != PRODUCER)(partial(_consume, pipeline))


def _stage(step: Any) -> Any:
    """Return the stage of a step; steps are counted through all tiles of a block."""
    return lax.rem(step, NUM_STAGES)


# -- The producer --


def _produce(pipeline: Pipeline) -> None:
    """Copy the tiles of both matrices, as far ahead as there are free stages."""
    gpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
    steps, num_tiles = pipeline.product.steps, pipeline.num_tiles

    @pl.loop(0, num_tiles)
    def _tile(t: Any) -> None:
        tile = pipeline.tile_indices(t)
        pl.loop(0, steps)(partial(_copy_step, pipeline, t, tile))

    # Every arrival is waited for, also the last ones.
    @pl.loop(lax.max(num_tiles * steps - NUM_STAGES, 0), num_tiles * steps)
    def _drain(step: Any) -> None:
        gpu.barrier_wait(pipeline.scratch.free.at[_stage(step)])


def _copy_step(pipeline: Pipeline, t: Any, tile: tuple[Any, Any], s: Any) -> None:
    """Start the copies of step s of the t-th tile, whose row and column indices are given."""
    product, scratch = pipeline.product, pipeline.scratch
    step = t * product.steps + s
    stage = _stage(step)
    pl.when(step >= NUM_STAGES)(lambda: gpu.barrier_wait(scratch.free.at[stage]))
    left, right = product.left_tile(tile[0], s), product.right_tile(tile[1], s)
    gpu.copy_gmem_to_smem(left, scratch.left.at[stage], scratch.full.at[stage])
    gpu.copy_gmem_to_smem(
        right, scratch.right.at[stage], scratch.full.at[stage],
        collective_axes="pair" if product.pair else None,
    )  # fmt: skip


# -- The consumers --


def _consume(pipeline: Pipeline) -> None:
    """Multiply one half of the rows of each tile, and finish the sums."""
    gpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
    warpgroup = pipeline.warpgroup
    staging = [pipeline.scratch.staging.at[warpgroup, buffer] for buffer in range(2)]

    @pl.loop(0, pipeline.num_tiles)
    def _tile(t: Any) -> None:
        i, j = pipeline.tile_indices(t)
        acc = gpu.ACC((SUBTILE_ROWS, SUBTILE_CLASSES), jnp.float32)
        products = pl.run_scoped(partial(_sum_steps, pipeline, t), acc)
        rows = pl.ds(i * TILE_ROWS + warpgroup * SUBTILE_ROWS, SUBTILE_ROWS)
        pipeline.finish(Sums(products, rows, j, staging))

    gpu.wait_smem_to_gmem(0)


def _sum_steps(pipeline: Pipeline, t: Any, acc: Any) -> Array:
    """Return the products of the t-th tile, summed over its steps in the accumulator."""
    steps, scratch = pipeline.product.steps, pipeline.scratch
    warpgroup, first, turn = pipeline.warpgroup, t * steps, pipeline.scratch.turn
    takes_turns = steps >= NUM_STAGES
    if takes_turns:
        pl.when(warpgroup == 1)(lambda: gpu.barrier_wait(turn))

    @pl.loop(0, steps)
    def _step(s: Any) -> None:
        stage = _stage(first + s)
        gpu.barrier_wait(scratch.full.at[stage])
        gpu.wgmma(acc, *_operands(pipeline, stage))
        gpu.wgmma_wait(1)
        previous = _stage(first + s + NUM_STAGES - 1)
        pl.when(s > 0)(lambda: gpu.barrier_arrive(scratch.free.at[previous]))
        if takes_turns:
            pl.when((warpgroup == 0) & (s == LEAD_STAGES - 1))(lambda: gpu.barrier_arrive(turn))

    gpu.wgmma_wait(0)
    gpu.barrier_arrive(scratch.free.at[_stage(first + steps - 1)])
    return acc[...]


def _operands(pipeline: Pipeline, stage: Any) -> tuple[Any, Any]:
    """Return a consumer's rows of the left tile in a stage, and the right tile."""
    product, scratch = pipeline.product, pipeline.scratch
    rows = pl.ds(pipeline.warpgroup * SUBTILE_ROWS, SUBTILE_ROWS)
    left, right = scratch.left, scratch.right.at[stage]
    left = left.at[stage, :, rows].T if product.transposes_left else left.at[stage, rows]
    return left, right.T if product.transposes_right else right
