"""Tiles of logits on Blackwell: tcgen05 instructions, with sums in tensor memory.

The warps of a block have three roles:

    producer       one warp copies tiles of x and w, 64 features at a time, into stages of shared
                   memory (TMA)
    multiplier     one warp has the tensor core multiply them (tcgen05.mma) into one of two
                   accumulators of 128 examples by 256 classes in float32, which fill tensor memory
    two finishers  a warpgroup each loads 128 examples by 128 classes of a complete accumulator into
                   its registers, releases the accumulator, and applies the kernel's epilogue

So one tile is multiplied while the previous one is finished. The two blocks of a cluster multiply
together (cta_group::2): each copies its own rows of x and one half of the classes of w, the first
block's multiplier issues the instructions for both, and each finds the sums of its rows, for all
classes, in its own tensor memory. A stage is smaller in this case, so there are six stages instead
of four.

The interpreter does not support such pairs; it runs single blocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels.gpu.epilogues import (
    NUM_PARTS,
    PARTS,
    STEP_FEATURES,
    SWIZZLE_TILE,
    TILE_CLASSES,
    TILE_ROWS,
    Kernel,
    Subtile,
    schedule_tiles,
    swizzled_smem,
)

DEVICES = ("B200", "B300")  # also GB200 and GB300; other Blackwell GPUs have no tensor memory

# A finisher's subtile: a warp reaches only 32 rows of tensor memory, so the finishers divide the
# classes of a tile.
SUBTILE_ROWS, SUBTILE_CLASSES = TILE_ROWS, TILE_CLASSES // 2
PART_CLASSES = SUBTILE_CLASSES // NUM_PARTS
NUM_ACCUMULATORS = 2
MAX_STAGE_BYTES = 192 * 1024  # of all stages, of the 227 KiB that a block may have
CONTROL = 2  # the warpgroup of producer and multiplier; the finishers are 0 and 1
CONTROL_REGISTERS, FINISHER_REGISTERS = 40, 232  # a thread


class Scratch(NamedTuple):
    """Memory and barriers of a block: types outside of the kernel, references inside."""

    x: Any  # stages of the tiles of x, in shared memory
    w: Any  # stages of the tiles of w, in shared memory
    staging: Any  # two buffers for each finisher, for what is copied to global memory
    accumulators: Any  # in tensor memory
    full: Any  # barriers of each stage: x and w have been copied
    free: Any  # barriers of each stage: it has been multiplied
    complete: Any  # barriers of each accumulator: it has the products of a tile
    released: Any  # barriers of each accumulator: both finishers have loaded it


def scratch(dtype: Any, pair: bool) -> Scratch:
    """Return the types of the scratch memory and barriers."""
    num_stages = _num_stages(pair)
    barriers = partial(gpu.Barrier, orders_tensor_core=True)
    led = partial(gpu.ClusterBarrier, collective_axes=("pair",), leader_tracked=True)
    released = partial(led if pair else gpu.Barrier, num_arrivals=2, orders_tensor_core=True)
    return Scratch(
        x=swizzled_smem(dtype, num_stages, TILE_ROWS, STEP_FEATURES),
        w=swizzled_smem(dtype, num_stages, STEP_FEATURES, TILE_CLASSES // (1 + pair)),
        staging=swizzled_smem(dtype, 2, 2, TILE_ROWS, PART_CLASSES),
        accumulators=gpu.TMEM(
            (TILE_ROWS, NUM_ACCUMULATORS * TILE_CLASSES), jnp.float32, collective=pair
        ),
        full=gpu.Barrier(num_arrivals=2, num_barriers=num_stages),
        free=barriers(num_barriers=num_stages),
        complete=barriers(num_barriers=NUM_ACCUMULATORS),
        released=released(num_barriers=NUM_ACCUMULATORS),
    )


def _num_stages(pair: bool) -> int:
    classes = TILE_CLASSES // (1 + pair)
    return MAX_STAGE_BYTES // (2 * STEP_FEATURES * (TILE_ROWS + classes))


class Pipeline(NamedTuple):
    """The state that the warps of a block share."""

    kernel: Kernel
    scratch: Scratch
    warpgroup: Any  # the index of this one
    start: Any  # the first class
    num_tiles: Any
    tile_indices: Callable[[Any], tuple[Any, Any]]

    @property
    def num_stages(self) -> int:
        """The number of stages of x and w."""
        return _num_stages(self.kernel.pair)

    @property
    def collective_axis(self) -> str | None:
        """The axis of the blocks that copy and multiply together, if they do."""
        return "pair" if self.kernel.pair else None


def body(kernel: Kernel, scratch: Scratch) -> None:
    """Compute the tiles of one block; copies and products run as far ahead as they can."""
    warpgroup = lax.axis_index("group")
    num_tiles, tile_indices = schedule_tiles(kernel.grid, pair=kernel.pair)
    start = pl.multiple_of(kernel.arguments.start[0], SWIZZLE_TILE[1])
    pipeline = Pipeline(kernel, scratch, warpgroup, start, num_tiles, tile_indices)
    pl.when(warpgroup == CONTROL)(partial(_control, pipeline))
    pl.when(warpgroup != CONTROL)(partial(_finish, pipeline))


def _control(pipeline: Pipeline) -> None:
    """Run the producer and the multiplier, each in a warp."""
    gpu.set_max_registers(CONTROL_REGISTERS, action="decrease")

    @gpu.warp_map
    def _warps(warp: Any) -> None:
        is_leader = lax.axis_index("pair") == 0 if pipeline.kernel.pair else True
        pl.when(warp == 0)(partial(_produce, pipeline))
        pl.when((warp == 1) & is_leader)(partial(_multiply, pipeline))


# -- The producer --


def _produce(pipeline: Pipeline) -> None:
    """Copy the tiles of x and w, as far ahead as there are free stages."""
    pair, steps = pipeline.kernel.pair, pipeline.kernel.steps
    num_tiles, num_stages = pipeline.num_tiles, pipeline.num_stages

    @pl.loop(0, num_tiles)
    def _tile(t: Any) -> None:
        i, j = pipeline.tile_indices(t)
        first = i - lax.axis_index("pair") if pair else i
        rows = pl.ds(first * TILE_ROWS, TILE_ROWS * (1 + pair))
        pl.loop(0, steps)(partial(_copy_step, pipeline, t, rows, j))

    # Every arrival is waited for, also the last ones.
    @pl.loop(lax.max(num_tiles * steps - num_stages, 0), num_tiles * steps)
    def _drain(step: Any) -> None:
        gpu.barrier_wait(pipeline.scratch.free.at[lax.rem(step, num_stages)])


def _copy_step(pipeline: Pipeline, t: Any, rows: Any, j: Any, s: Any) -> None:
    """Start the copies of step s of the t-th tile, of these rows and the j-th tile of classes."""
    kernel, scratch, num_stages = pipeline.kernel, pipeline.scratch, pipeline.num_stages
    step = t * kernel.steps + s
    stage = lax.rem(step, num_stages)
    pl.when(step >= num_stages)(lambda: gpu.barrier_wait(scratch.free.at[stage]))
    features = pl.ds(s * STEP_FEATURES, STEP_FEATURES)
    classes = pl.ds(pipeline.start + j * TILE_CLASSES, TILE_CLASSES)
    x, w = kernel.arguments.x.at[rows, features], kernel.arguments.w.at[features, classes]
    for tile, buffers, axis in ((x, scratch.x, 0), (w, scratch.w, 1)):
        # Each block of a pair gets its half along the axis.
        halves = gpu.CopyPartition.PARTITIONED(axis) if kernel.pair else None
        gpu.copy_gmem_to_smem(
            tile, buffers.at[stage], scratch.full.at[stage],
            collective_axes=pipeline.collective_axis, leader_tracked=halves,
        )  # fmt: skip


# -- The multiplier --


def _multiply(pipeline: Pipeline) -> None:
    """Multiply each tile into the accumulator whose turn it is."""
    num_tiles, scratch = pipeline.num_tiles, pipeline.scratch

    @pl.loop(0, num_tiles)
    def _tile(t: Any) -> None:
        _wait_until_released(pipeline, t)
        columns = pl.ds(lax.rem(t, NUM_ACCUMULATORS) * TILE_CLASSES, TILE_CLASSES)
        acc = scratch.accumulators.at[:, columns]
        pl.loop(0, pipeline.kernel.steps)(partial(_multiply_step, pipeline, t, acc))
        gpu.tcgen05_commit_arrive(
            scratch.complete.at[lax.rem(t, NUM_ACCUMULATORS)],
            collective_axis=pipeline.collective_axis,
        )

    last = lax.max(num_tiles, NUM_ACCUMULATORS), num_tiles + NUM_ACCUMULATORS
    pl.loop(*last)(partial(_wait_until_released, pipeline))


def _multiply_step(pipeline: Pipeline, t: Any, acc: Any, s: Any) -> None:
    """Add the products of step s of the t-th tile to the accumulator."""
    scratch = pipeline.scratch
    stage = lax.rem(t * pipeline.kernel.steps + s, pipeline.num_stages)
    gpu.barrier_wait(scratch.full.at[stage])
    gpu.tcgen05_mma(
        acc, scratch.x.at[stage], scratch.w.at[stage], scratch.free.at[stage],
        accumulate=s > 0, collective_axis=pipeline.collective_axis,
    )  # fmt: skip


def _wait_until_released(pipeline: Pipeline, t: Any) -> None:
    """Wait until the previous tile in the accumulator of the t-th tile has been loaded."""
    released = pipeline.scratch.released

    @pl.when(t >= NUM_ACCUMULATORS)
    def _wait() -> None:
        gpu.barrier_wait(released.at[lax.rem(t, NUM_ACCUMULATORS)])


# -- The finishers --


def _finish(pipeline: Pipeline) -> None:
    """Load one half of the classes of each complete tile, and apply the epilogue."""
    gpu.set_max_registers(FINISHER_REGISTERS, action="increase")
    kernel, scratch, warpgroup = pipeline.kernel, pipeline.scratch, pipeline.warpgroup
    staging = [scratch.staging.at[warpgroup, buffer] for buffer in range(2)]

    @pl.loop(0, pipeline.num_tiles)
    def _tile(t: Any) -> None:
        i, j = pipeline.tile_indices(t)
        parts = _load_parts(pipeline, t)
        subtile = Subtile(
            kernel=kernel,
            products=parts.__getitem__,
            layout=gpu.Layout.TCGEN05,
            part_shape=(TILE_ROWS, PART_CLASSES),
            num_classes=SUBTILE_CLASSES,
            rows=pl.ds(i * TILE_ROWS, TILE_ROWS),
            index=2 * j + warpgroup,
            staging=staging,
        )
        kernel.epilogue(subtile)

    gpu.wait_smem_to_gmem(0)


def _load_parts(pipeline: Pipeline, t: Any) -> list[Any]:
    """Return the parts of this warpgroup's subtile of the t-th tile, and release them in memory."""
    scratch, accumulator = pipeline.scratch, lax.rem(t, NUM_ACCUMULATORS)
    gpu.barrier_wait(scratch.complete.at[accumulator])
    first = accumulator * TILE_CLASSES + pipeline.warpgroup * SUBTILE_CLASSES
    refs = (
        scratch.accumulators.at[:, pl.ds(first + p * PART_CLASSES, PART_CLASSES)] for p in PARTS
    )
    parts = [gpu.async_load_tmem(ref, layout=gpu.Layout.TCGEN05) for ref in refs]
    gpu.wait_load_tmem()
    gpu.barrier_arrive(scratch.released.at[accumulator])
    return parts
