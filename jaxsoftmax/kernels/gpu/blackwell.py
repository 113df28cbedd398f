"""How tiles of logits come to be on Blackwell: tcgen05, with sums in tensor memory.

    producer       one warp copies tiles of x and w, 64 features at a time, into stages of shared
                   memory (TMA)
    multiplier     one warp has the tensor core multiply them (tcgen05.mma) into one of two sums of
                   128 examples by 256 classes in float32, which take all of tensor memory
    two finishers  a warpgroup each brings 128 examples by 128 classes of a sum that is done into
                   its registers, gives the sum back, and brings its share to the kernel's end

So one tile is multiplied while the one before it is finished. Neighbours in a cluster multiply
together (cta_group::2): each copies its own rows of x and one half of the classes of w, the first
one's multiplier gives the instructions for both, and each finds the sums of its rows, for all
classes, in its own tensor memory. A stage is smaller for it, so there are six in place of four.

The interpreter has no such pairs; what it runs is one core on its own.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels.gpu.epilogues import (
    CLASSES,
    FEATURES,
    PARTS,
    ROWS,
    TILING,
    Tile,
    Work,
    swizzled,
    walk,
)

DEVICES = ("B200", "B300")  # also GB200 and GB300; other Blackwells have no tensor memory

SHARE = CLASSES // 2  # of a finisher: a warp reaches 32 rows alone, so they share the classes
PART = SHARE // len(PARTS)
BYTES = 192 * 1024  # of stages, of the 227 KiB that a block may have
CONTROL = 2  # the warpgroup of producer and multiplier; the finishers are 0 and 1


def _stages(pair: bool) -> int:
    return BYTES // (2 * FEATURES * (ROWS + CLASSES // (1 + pair)))


def scratch(dtype: Any, pair: bool) -> list[Any]:
    """Stages of x and w, what goes to memory, sums; stages full and free, sums done and read."""
    count = _stages(pair)
    barriers = partial(gpu.Barrier, orders_tensor_core=True)
    led = partial(gpu.ClusterBarrier, collective_axes=("pair",), leader_tracked=True)
    return [
        swizzled(dtype, count, ROWS, FEATURES),
        swizzled(dtype, count, FEATURES, CLASSES // (1 + pair)),
        swizzled(dtype, 2, 2, ROWS, PART),
        gpu.TMEM((ROWS, 2 * CLASSES), jnp.float32, collective=pair),
        gpu.Barrier(num_arrivals=2, num_barriers=count),
        barriers(num_barriers=count),
        barriers(num_barriers=2),
        (led if pair else gpu.Barrier)(num_arrivals=2, num_barriers=2, orders_tensor_core=True),
    ]


def body(
    work: Work, xs: Any, ws: Any, staged: Any, sums: Any, full: Any, free: Any, done: Any, read: Any
) -> None:
    """One core's tiles: copies, products and ends, each as far ahead as there is room."""
    steps, pair = work.steps, work.pair
    stages, both = _stages(pair), "pair" if pair else None
    group = lax.axis_index("group")
    count, place = walk(work)
    offset = pl.multiple_of(work.start[0], TILING[1])

    def copy(source: Any, to: Any, barrier: Any, axis: int) -> None:
        halves = gpu.CopyPartition.PARTITIONED(axis) if pair else None
        gpu.copy_gmem_to_smem(source, to, barrier, collective_axes=both, leader_tracked=halves)

    def wait_until_read(t: Any) -> None:
        pl.when(t >= 2)(lambda: gpu.barrier_wait(read.at[lax.rem(t, 2)]))

    def produce() -> None:
        @pl.loop(0, count)
        def _tile(t: Any) -> None:
            i, j = place(t)
            rows = pl.ds((i - lax.axis_index("pair") if pair else i) * ROWS, ROWS * (1 + pair))

            @pl.loop(0, steps)
            def _step(s: Any) -> None:
                slot = lax.rem(t * steps + s, stages)
                pl.when(t * steps + s >= stages)(lambda: gpu.barrier_wait(free.at[slot]))
                features = pl.ds(s * FEATURES, FEATURES)
                classes = pl.ds(offset + j * CLASSES, CLASSES)
                copy(work.x.at[rows, features], xs.at[slot], full.at[slot], 0)
                copy(work.w.at[features, classes], ws.at[slot], full.at[slot], 1)

        # Every arrival is waited for, also the last.
        @pl.loop(lax.max(count * steps - stages, 0), count * steps)
        def _rest(s: Any) -> None:
            gpu.barrier_wait(free.at[lax.rem(s, stages)])

    def multiply() -> None:
        @pl.loop(0, count)
        def _tile(t: Any) -> None:
            wait_until_read(t)
            acc = sums.at[:, pl.ds(lax.rem(t, 2) * CLASSES, CLASSES)]

            @pl.loop(0, steps)
            def _step(s: Any) -> None:
                slot = lax.rem(t * steps + s, stages)
                gpu.barrier_wait(full.at[slot])
                gpu.tcgen05_mma(
                    acc, xs.at[slot], ws.at[slot], free.at[slot],
                    accumulate=s > 0, collective_axis=both,
                )  # fmt: skip

            gpu.tcgen05_commit_arrive(done.at[lax.rem(t, 2)], collective_axis=both)

        pl.loop(lax.max(count, 2), count + 2)(wait_until_read)

    def control() -> None:
        gpu.set_max_registers(40, action="decrease")

        @gpu.warp_map
        def _warps(warp: Any) -> None:
            leads = lax.axis_index("pair") == 0 if pair else True
            pl.when(warp == 0)(produce)
            pl.when((warp == 1) & leads)(multiply)

    def finish() -> None:
        gpu.set_max_registers(232, action="increase")
        slots = [staged.at[group, slot] for slot in range(2)]

        @pl.loop(0, count)
        def _tile(t: Any) -> None:
            i, j = place(t)
            slot = lax.rem(t, 2)
            gpu.barrier_wait(done.at[slot])
            first = slot * CLASSES + group * SHARE
            z = [_loaded(sums.at[:, pl.ds(first + p * PART, PART)]) for p in PARTS]
            gpu.wait_load_tmem()
            gpu.barrier_arrive(read.at[slot])
            row, column = pl.ds(i * ROWS, ROWS), 2 * j + group
            tile = Tile(
                work, z.__getitem__, gpu.Layout.TCGEN05, (ROWS, PART), SHARE, column, row, slots
            )
            work.end(tile)

        gpu.wait_smem_to_gmem(0)

    pl.when(group == CONTROL)(control)
    pl.when(group != CONTROL)(finish)


def _loaded(part: Any) -> Array:
    return gpu.async_load_tmem(part, layout=gpu.Layout.TCGEN05)
