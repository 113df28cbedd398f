"""Candidates for the tables of the library: tiles of the fused losses, plans of the row kernels.

`--tune heads` measures, on a CPU, rows per chunk and the number of classes up to which class-major
is faster, for kernels/tiles.py; the record is results/tiles_DEVICE.json. `--tune rows` measures, on
a GPU, what was not tried, or only in one dtype, for kernels/gpu/rows/plans.py, and writes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure

from benchmarks import head_programs as heads
from benchmarks import rows
from benchmarks.head_programs import Head, Shape
from benchmarks.timing import timed
from jaxsoftmax import kernels
from jaxsoftmax.kernels import target
from jaxsoftmax.kernels.gpu.rows import implementation, plans
from jaxsoftmax.kernels.gpu.rows.plans import Tuning

# A group's warpgroups, a cluster's blocks, whether rows overlap, waves.
PLANS = {
    rows.Shape(2048, 131_072, "float32"): [
        Tuning(4, c, o, w) for c in (4, 8) for o in (False, True) for w in (1, 4)
    ],
    rows.Shape(4096, 262_144): [
        Tuning(4, c, o, w) for c in (4, 8) for o in (False, True) for w in (2, 4, 8)
    ],
    rows.Shape(8192, 50_257): [Tuning(4, 1, False), Tuning(4, 2, True), Tuning(4, 2, False, 4)],
    rows.Shape(8192, 128_256): [Tuning(4, 2, False, w) for w in (1, 2, 4)],
    rows.Shape(8192, 32_000, "float32"): [Tuning(4, 1, False, w) for w in (1, 2, 4)],
    rows.Shape(65_536, 1000): [Tuning(1, 1, False, w) for w in (2, 3, 4, 6)],
    rows.Shape(16_384, 4096): [Tuning(1, 1, True, w) for w in (1, 2)] + [Tuning(2, 1, True)],
}


def tune(part: str, *, smoke: bool) -> None:
    """Measure the candidates of a part."""
    if part == "rows":
        tune_rows()
    else:
        tune_heads(smoke)


def tune_rows() -> None:
    """Print the rates of the plans of rows."""
    cores = target.current().core_count
    for shape, tunings in PLANS.items():
        arrays = rows.data(shape)
        calls = {"copy": partial(jax.jit(rows.copy), *arrays)}
        for tuning in dict.fromkeys(tunings):
            plan = plans.plan(shape.k, jnp.dtype(shape.dtype).itemsize, tuning)
            if plan.fits:
                options = {"plan": plan, "cores": cores, "interpret": False}
                run = partial(implementation.losses_and_gradient, **options)
                calls[named(tuning)] = partial(jax.jit(run), *arrays)
        print(f"\n{shape}", flush=True)
        for name, seconds in timed(calls, smoke=False)["seconds"].items():
            print(f"{name:32}{1e6 * seconds['median']:12.1f} us")


def named(tuning: Tuning) -> str:
    """Return a plan as it is printed."""
    group, cluster, overlaps, waves = tuning[:4]
    return f"{group} x {cluster}{', overlapping' * overlaps}, {waves} waves"


def tune_heads(smoke: bool) -> None:
    """Measure rows per chunk, and both orders of memory by the number of classes."""
    shapes = ("64x8x40",) if smoke else ("8192x128x1000", "8192x768x1000", "2048x512x32768")
    sizes = (16, 32) if smoke else (256, 512, 1024, 2048)
    record: dict[str, Any] = {"rows": {}, "few classes": {}}
    for text in shapes:
        shape = heads.parsed(text)
        calls = {str(size): with_tiles(shape, kernels.Tiles(size, shape.k)) for size in sizes}
        record["rows"][text] = shown(text, timed(calls, smoke=smoke))
    for k in (4, 8) if smoke else (10, 24, 32, 48, 64, 100):
        n, d = (64, 8) if smoke else (60_000, 784)
        shape = Shape(n, d, k, "float32", parameters=True)
        calls = {}
        for few in (0, 2**30):
            kernels.primitives.FEW_CLASSES_LIMIT = few
            jax.clear_caches()
            name = "class-major" if few else "row-major"
            calls[name] = with_tiles(shape, kernels.Tiles(1024, k))
        record["few classes"][str(k)] = shown(f"{k} classes", timed(calls, smoke=smoke))
    if not smoke:
        print("written:", measure.write_record(f"tiles_{jax.default_backend()}", record).name)


def with_tiles(shape: Shape, tiles: kernels.Tiles) -> Callable[[], Any]:
    """Return the sum with the given sizes of blocks."""
    head: Head = heads.data(shape)
    run = jax.jit(partial(heads.total, {"tiles": tiles}))
    return partial(run.lower(head).compile(), head)


def shown(title: str, timing: dict[str, Any]) -> dict[str, Any]:
    """Print and return times."""
    print(title, "ms", {n: f"{1e3 * s['median']:.1f}" for n, s in timing["seconds"].items()})
    return timing
