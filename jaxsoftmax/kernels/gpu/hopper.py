"""Tiles of logits on Hopper: wgmma instructions, with sums in registers.

The three warpgroups of a block have two roles:

    producer       one warpgroup copies tiles of x and w, 64 features at a time, into four stages of
                   shared memory (TMA)
    two consumers  multiply them (wgmma, sums in float32), 64 examples by 256 classes each, and
                   apply the kernel's epilogue to their subtiles

The two blocks of a cluster each copy one half of the tiles of w to both. The second consumer runs a
few stages behind the first, so that the tensor cores have work while one of them computes
exponentials.
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


class Scratch(NamedTuple):
    """Shared memory and barriers of a block: types outside of the kernel, references inside."""

    x: Any  # stages of the tiles of x
    w: Any  # stages of the tiles of w
    staging: Any  # two buffers for each consumer, for what is copied to global memory
    full: Any  # barriers of each stage: x and w have been copied
    free: Any  # barriers of each stage: both consumers have multiplied it
    turn: Any  # the barrier at which consumer 1 waits for consumer 0


def scratch(dtype: Any, pair: bool) -> Scratch:
    """Return the types of the scratch memory and barriers."""
    barriers = partial(gpu.Barrier, num_arrivals=2, num_barriers=NUM_STAGES)
    shared = partial(gpu.ClusterBarrier, collective_axes=("pair",), num_arrivals=2)
    return Scratch(
        x=swizzled_smem(dtype, NUM_STAGES, TILE_ROWS, STEP_FEATURES),
        w=swizzled_smem(dtype, NUM_STAGES, STEP_FEATURES, TILE_CLASSES),
        staging=swizzled_smem(dtype, 2, 2, SUBTILE_ROWS, PART_CLASSES),
        full=barriers(),
        free=shared(num_barriers=NUM_STAGES) if pair else barriers(),
        turn=gpu.Barrier(),
    )


class Pipeline(NamedTuple):
    """What the warpgroups of a block share."""

    kernel: Kernel
    scratch: Scratch
    warpgroup: Any  # the index of this one
    num_tiles: Any
    tile_indices: Callable[[Any], tuple[Any, Any]]


def body(kernel: Kernel, scratch: Scratch) -> None:
    """Compute the tiles of one block."""
    warpgroup = lax.axis_index("group")
    pipeline = Pipeline(kernel, scratch, warpgroup, *schedule_tiles(kernel))
    pl.when(warpgroup == PRODUCER)(partial(_produce, pipeline))
    pl.when(warpgroup != PRODUCER)(partial(_consume, pipeline))


def _stage(step: Any) -> Any:
    """Return the stage of a step; steps are counted through all tiles of a block."""
    return lax.rem(step, NUM_STAGES)


# -- The producer --


def _produce(pipeline: Pipeline) -> None:
    """Copy the tiles of x and w, as far ahead as there are free stages."""
    gpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
    steps, num_tiles = pipeline.kernel.steps, pipeline.num_tiles
    start = pl.multiple_of(pipeline.kernel.arguments.start[0], SWIZZLE_TILE[1])

    @pl.loop(0, num_tiles)
    def _tile(t: Any) -> None:
        tile = pipeline.tile_indices(t)
        pl.loop(0, steps)(partial(_copy_step, pipeline, start, t, tile))

    # Every arrival is waited for, also the last ones.
    @pl.loop(lax.max(num_tiles * steps - NUM_STAGES, 0), num_tiles * steps)
    def _drain(step: Any) -> None:
        gpu.barrier_wait(pipeline.scratch.free.at[_stage(step)])


def _copy_step(pipeline: Pipeline, start: Any, t: Any, tile: tuple[Any, Any], s: Any) -> None:
    """Start the copies of step s of the t-th tile, whose row and class indices are given."""
    kernel, scratch = pipeline.kernel, pipeline.scratch
    step = t * kernel.steps + s
    stage = _stage(step)
    pl.when(step >= NUM_STAGES)(lambda: gpu.barrier_wait(scratch.free.at[stage]))
    features = pl.ds(s * STEP_FEATURES, STEP_FEATURES)
    rows = pl.ds(tile[0] * TILE_ROWS, TILE_ROWS)
    classes = pl.ds(start + tile[1] * TILE_CLASSES, TILE_CLASSES)
    gpu.copy_gmem_to_smem(
        kernel.arguments.x.at[rows, features], scratch.x.at[stage], scratch.full.at[stage]
    )
    gpu.copy_gmem_to_smem(
        kernel.arguments.w.at[features, classes], scratch.w.at[stage], scratch.full.at[stage],
        collective_axes="pair" if kernel.pair else None,
    )  # fmt: skip


# -- The consumers --


def _consume(pipeline: Pipeline) -> None:
    """Multiply one half of the rows of each tile, and apply the epilogue."""
    gpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
    kernel, warpgroup = pipeline.kernel, pipeline.warpgroup
    staging = [pipeline.scratch.staging.at[warpgroup, buffer] for buffer in range(2)]

    @pl.loop(0, pipeline.num_tiles)
    def _tile(t: Any) -> None:
        i, j = pipeline.tile_indices(t)
        acc = gpu.ACC((SUBTILE_ROWS, SUBTILE_CLASSES), jnp.float32)
        products = pl.run_scoped(partial(_multiply, pipeline, t), acc)
        subtile = Subtile(
            kernel=kernel,
            products=lambda p: products[:, p * PART_CLASSES : (p + 1) * PART_CLASSES],
            layout=gpu.Layout.WGMMA,
            part_shape=(SUBTILE_ROWS, PART_CLASSES),
            num_classes=SUBTILE_CLASSES,
            rows=pl.ds(i * TILE_ROWS + warpgroup * SUBTILE_ROWS, SUBTILE_ROWS),
            index=j,
            staging=staging,
        )
        kernel.epilogue(subtile)

    gpu.wait_smem_to_gmem(0)


def _multiply(pipeline: Pipeline, t: Any, acc: Any) -> Array:
    """Return the products of the t-th tile, summed over its steps in the accumulator."""
    steps, (x, w, _, full, free, turn) = pipeline.kernel.steps, pipeline.scratch
    warpgroup, first = pipeline.warpgroup, t * steps
    takes_turns = steps >= NUM_STAGES
    if takes_turns:
        pl.when(warpgroup == 1)(lambda: gpu.barrier_wait(turn))

    @pl.loop(0, steps)
    def _step(s: Any) -> None:
        stage = _stage(first + s)
        gpu.barrier_wait(full.at[stage])
        gpu.wgmma(acc, x.at[stage, pl.ds(warpgroup * SUBTILE_ROWS, SUBTILE_ROWS)], w.at[stage])
        gpu.wgmma_wait(1)
        previous = _stage(first + s + NUM_STAGES - 1)
        pl.when(s > 0)(lambda: gpu.barrier_arrive(free.at[previous]))
        if takes_turns:
            pl.when((warpgroup == 0) & (s == LEAD_STAGES - 1))(lambda: gpu.barrier_arrive(turn))

    gpu.wgmma_wait(0)
    gpu.barrier_arrive(free.at[_stage(first + steps - 1)])
    return acc[...]
