"""How tiles of logits come to be on Hopper: wgmma, with sums in registers.

    producer       one warpgroup copies tiles of x and w, 64 features at a time, into four stages of
                   shared memory (TMA)
    two consumers  multiply them (wgmma, sums in float32), 64 examples by 256 classes each, and
                   bring their share to the kernel's end

Neighbours in a cluster copy one half of each tile of w to both. The second consumer is kept a few
stages behind the first, so that the tensor cores have work while one of them computes exponentials.
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

DEVICES = ("H100", "H200", "H800", "H20")  # also GH200

SHARE = CLASSES  # of a consumer
HALF, PART = ROWS // 2, SHARE // len(PARTS)
STAGES = 4  # on their way: 192 KiB of the 227 that a block may have
PRODUCER = 2  # the consumers are 0 and 1
LEAD = 2  # stages that consumer 0 is ahead of consumer 1: more leave none to be copied in time


def scratch(dtype: Any, pair: bool) -> list[Any]:
    """Stages of x and w, what goes to memory; stages that are full and free, consumer 1's turn."""
    barriers = partial(gpu.Barrier, num_arrivals=2, num_barriers=STAGES)
    shared = partial(gpu.ClusterBarrier, collective_axes=("pair",), num_arrivals=2)
    return [
        swizzled(dtype, STAGES, ROWS, FEATURES),
        swizzled(dtype, STAGES, FEATURES, CLASSES),
        swizzled(dtype, 2, 2, HALF, PART),
        barriers(),
        shared(num_barriers=STAGES) if pair else barriers(),
        gpu.Barrier(),
    ]


def body(work: Work, xs: Any, ws: Any, staged: Any, full: Any, free: Any, turn: Any) -> None:
    """One core's tiles: the producer copies ahead, the consumers multiply and finish."""
    steps, both = work.steps, "pair" if work.pair else None
    group = lax.axis_index("group")
    count, place = walk(work)

    def produce() -> None:
        gpu.set_max_registers(40, action="decrease")
        offset = pl.multiple_of(work.start[0], TILING[1])

        @pl.loop(0, count)
        def _tile(t: Any) -> None:
            i, j = place(t)

            @pl.loop(0, steps)
            def _step(s: Any) -> None:
                slot = lax.rem(t * steps + s, STAGES)
                pl.when(t * steps + s >= STAGES)(lambda: gpu.barrier_wait(free.at[slot]))
                features = pl.ds(s * FEATURES, FEATURES)
                a = work.x.at[pl.ds(i * ROWS, ROWS), features]
                b = work.w.at[features, pl.ds(offset + j * CLASSES, CLASSES)]
                gpu.copy_gmem_to_smem(a, xs.at[slot], full.at[slot])
                gpu.copy_gmem_to_smem(b, ws.at[slot], full.at[slot], collective_axes=both)

        # Every arrival is waited for, also the last.
        @pl.loop(lax.max(count * steps - STAGES, 0), count * steps)
        def _rest(s: Any) -> None:
            gpu.barrier_wait(free.at[lax.rem(s, STAGES)])

    def multiply(t: Any, acc: Any) -> Array:
        first = t * steps
        if steps >= STAGES:
            pl.when(group == 1)(lambda: gpu.barrier_wait(turn))

        @pl.loop(0, steps)
        def _step(s: Any) -> None:
            slot = lax.rem(first + s, STAGES)
            gpu.barrier_wait(full.at[slot])
            gpu.wgmma(acc, xs.at[slot, pl.ds(group * HALF, HALF)], ws.at[slot])
            gpu.wgmma_wait(1)
            before = lax.rem(first + s + STAGES - 1, STAGES)
            pl.when(s > 0)(lambda: gpu.barrier_arrive(free.at[before]))
            if steps >= STAGES:
                pl.when((group == 0) & (s == LEAD - 1))(lambda: gpu.barrier_arrive(turn))

        gpu.wgmma_wait(0)
        gpu.barrier_arrive(free.at[lax.rem(first + steps - 1, STAGES)])
        return acc[...]

    def consume() -> None:
        gpu.set_max_registers(232, action="increase")
        slots = [staged.at[group, slot] for slot in range(2)]

        @pl.loop(0, count)
        def _tile(t: Any) -> None:
            i, j = place(t)
            acc = gpu.ACC((HALF, CLASSES), jnp.float32)
            z = pl.run_scoped(partial(multiply, t), acc)
            row = pl.ds(i * ROWS + group * HALF, HALF)

            def products(part: int) -> Array:
                return z[:, part * PART : (part + 1) * PART]

            work.end(Tile(work, products, gpu.Layout.WGMMA, (HALF, PART), SHARE, j, row, slots))

        gpu.wait_smem_to_gmem(0)

    pl.when(group == PRODUCER)(produce)
    pl.when(group != PRODUCER)(consume)
