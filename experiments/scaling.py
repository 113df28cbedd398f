"""What a step of a large head costs on a mesh, and which mesh is best, from 1 to 1,024 devices.

Command: `python experiments/scaling.py`, about two minutes on two cores. `--smoke` is smaller and
writes nothing. The record is results/scaling.json, and the figure beside it.

Question. A step computes value and gradient of `linear_cross_entropy_sum` in bfloat16, of 32,768
rows, 4,096 features and 1,048,576 classes, on a mesh of rows times classes. What do its products,
its memory traffic and its collectives take on devices of which only the data sheets are at hand?
The bytes of the collectives are held against compiled programs: on eight CPU devices, every array
that is reduced must have the size that the model says. The times are PREDICTIONS: products at 0.6
of the peak, memory and network at their full rates, one after another. They are of three products,
so of a `memory` that has room for the float32 sum of w's gradient; the default takes a fourth.

Findings: The compiled programs reduce what the model says, on every mesh of eight devices: four
numbers of each row and the gradient of x over the classes, and the gradient of w over the rows.
Classes are sharded first: the gradient of w, 17 GB in float32, is the largest array, and it stays
where w is. Predicted for 64 devices, all of them share the classes, and a step is 32.9, 59.6
and 52.6 times as fast as on one H200, TPU v5p and TPU v6e; for 1,024 devices, with four shards of
rows, 162.8, 720.9 and 223.8 times. On CPU devices that share two cores, a division into eight
costs 1.19 to 1.27 times the processor time of one device, and 1.05 where the rows grow with it.
"""

import argparse
import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import document
import figures
import jax
import jax.numpy as jnp
import measure
import numpy as np
from figures import BLUE, GREEN, ORANGE
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from jaxsoftmax import linear_cross_entropy_sum

ROWS, FEATURES, CLASSES = 2**15, 2**12, 2**20
EFFICIENCY = 0.6  # of the peak; the fused sum reached 0.95 of the products of one H200
# Two maxima and two limbs of the sum: what a row has in common.
STATISTICS, PER_ROW = "statistics of the rows", 4
DEVICE_COUNTS = tuple(2**i for i in range(11))


class Device(NamedTuple):
    """The rates of a device, by its maker: operations and bytes a second, and bytes."""

    products: float  # bfloat16, dense
    memory_rate: float
    memory: float
    near: float  # network in one direction, to devices of the same domain
    far: float  # and to others
    domain: int  # number of devices that are near each other
    source: str


DEVICES = {
    "H200": Device(
        989e12, 4.8e12, 141e9, 450e9, 50e9, 8,
        "NVIDIA H200 and DGX H200 data sheets: NVLink 900 GB/s both ways; 400 Gb/s between hosts",
    ),
    "TPU v5p": Device(
        459e12, 2.765e12, 95e9, 300e9, 300e9, 8960,
        "Google Cloud, TPU v5p: 4,800 Gb/s both ways on a 3D torus",
    ),
    "TPU v6e": Device(
        918e12, 1.6e12, 32e9, 200e9, 25e9, 256,
        "Google Cloud, TPU v6e: 3,200 Gb/s both ways on a 2D torus; 200 Gb/s a chip between pods",
    ),
}  # fmt: skip


class Mesh(NamedTuple):
    """Numbers of shards; the devices that share the same rows are next to each other."""

    rows: int
    classes: int


def reduced(mesh: Mesh, n: int, d: int, k: int) -> dict[str, tuple[int, int]]:
    """Return bytes, and number of devices, of each all-reduce on a device."""
    rows, classes = n // mesh.rows, k // mesh.classes
    over_classes = {STATISTICS: 4 * PER_ROW * rows, "dx": 4 * rows * d}
    found = {name: (size, mesh.classes) for name, size in over_classes.items()}
    found["dw"] = 4 * d * classes, mesh.rows
    return {name: (size, devices) for name, (size, devices) in found.items() if devices > 1}


def predict(device: Device, mesh: Mesh) -> dict[str, float]:
    """Return the seconds of each part of a step, and the bytes that a device holds."""
    rows, classes = ROWS / mesh.rows, CLASSES / mesh.classes
    weights = FEATURES * classes
    seconds = {
        # Three products of 2 N D K operations.
        "products": 6 * rows * FEATURES * classes / (EFFICIENCY * device.products),
        # w is read for the logits and for dx, and its gradient is written in float32.
        "memory": 8 * weights / device.memory_rate,
    }
    for name, (size, count) in reduced(mesh, ROWS, FEATURES, CLASSES).items():
        span = count if name != "dw" else mesh.rows * mesh.classes
        rate = device.near if span <= device.domain else device.far
        seconds[name] = 2 * size * (count - 1) / count / rate
    # w, its gradient, x and its gradient.
    held = 6 * weights + 6 * rows * FEATURES
    return {"seconds": sum(seconds.values()), "held": held, **seconds}


def best_mesh(device: Device, count: int) -> tuple[Mesh, dict[str, float]] | None:
    """Return the mesh of the shortest step that fits into memory."""
    meshes = [Mesh(count // c, c) for c in DEVICE_COUNTS if c <= count]
    found = [(mesh, predict(device, mesh)) for mesh in meshes]
    fitting = [item for item in found if item[1]["held"] < 0.9 * device.memory]
    return min(fitting, key=lambda item: item[1]["seconds"], default=None)


def main() -> None:
    """Compare with compiled programs, predict, measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small shapes, no record")
    smoke = parser.parse_args().smoke
    jax.config.update("jax_num_cpu_devices", 8)
    record: dict[str, Any] = {
        "devices": {name: device._asdict() for name, device in DEVICES.items()},
        "head": {"rows": ROWS, "features": FEATURES, "classes": CLASSES, "dtype": "bfloat16"},
        "compiled": compare_with_programs(256 if smoke else 1024, 32, 1024 if smoke else 4096),
        "predicted": {name: predict_all(device) for name, device in DEVICES.items()},
        "measured on CPU devices": measure_work(64 if smoke else 1024, rounds=2 if smoke else 7),
    }
    for name, sizes in record["compiled"].items():
        print(f"{name} devices reduce, in bytes: {sizes}")
    for name, found in record["predicted"].items():
        for count, step in found.items():
            mesh = "{rows} x {classes}".format(**step["mesh"])
            print(f"{count:>5} {name}: {1e3 * step['seconds']:8.2f} ms, rows x classes {mesh}")
    for name, ratio in record["measured on CPU devices"].items():
        print(f"{name}: {ratio:.2f} times the processor time")
    document.publish("scaling", document.rounded(record, 5), draw, smoke=smoke)


def predict_all(device: Device) -> dict[str, Any]:
    """Return the best mesh and its step for each number of devices."""
    alone = predict(device, Mesh(1, 1))["seconds"]
    found = {}
    for count in DEVICE_COUNTS:
        if (best := best_mesh(device, count)) is not None:
            mesh, step = best
            found[str(count)] = {"mesh": mesh._asdict(), **step, "speedup": alone / step["seconds"]}
    return found


def compare_with_programs(n: int, d: int, k: int) -> dict[str, dict[str, int]]:
    """Return the bytes that programs reduce on eight devices, which must be the predicted ones."""
    found = {}
    for mesh in (Mesh(8, 1), Mesh(4, 2), Mesh(2, 4), Mesh(1, 8)):
        program, _ = compile_step(mesh, n, d, k)
        sizes = collective_bytes(program.as_text())
        expected = {name: size for name, (size, _) in reduced(mesh, n, d, k).items()}
        if sorted(sizes) != sorted(all_reduces(expected)):
            raise RuntimeError(f"{mesh}: the program reduces {sizes}, the model says {expected}")
        found[f"{mesh.rows} x {mesh.classes}"] = expected
    return found


def all_reduces(expected: dict[str, int]) -> list[int]:
    """Return the sizes of the arrays; statistics of the rows have one for each number."""
    numbers = [expected[STATISTICS] // PER_ROW] * PER_ROW if STATISTICS in expected else []
    return numbers + [size for name, size in expected.items() if name != STATISTICS]


def collective_bytes(text: str) -> list[int]:
    """Return the bytes of each array that a program's collectives carry, without scalars."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    results = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text)
    arrays = [a for shapes in results for a in re.findall(r"(\w+)\[([\d,]+)\]", shapes)]
    return [
        jnp.dtype(NAMES[dtype]).itemsize * math.prod(map(int, dims.split(",")))
        for dtype, dims in arrays
    ]


NAMES = {"f32": "float32", "bf16": "bfloat16", "s32": "int32", "pred": "bool"}


def compile_step(mesh: Mesh, n: int, d: int, k: int) -> tuple[Any, tuple[jax.Array, ...]]:
    """Compile value and gradient of the mean loss on a mesh of CPU devices."""
    sizes = {name: size for name, size in mesh._asdict().items() if size > 1}
    count = mesh.rows * mesh.classes
    grid = jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=jax.devices()[:count])
    rows, classes = (name if name in sizes else None for name in ("rows", "classes"))
    rng = np.random.default_rng(0)
    arrays = {
        "x": (rng.standard_normal((n, d)), jnp.bfloat16, (rows, None)),
        "w": (rng.standard_normal((d, k)), jnp.bfloat16, (None, classes)),
        "labels": (rng.integers(0, k, n), jnp.int32, (rows,)),
        "weights": (np.full(n, 1 / n), jnp.float32, (rows,)),
    }
    with jax.set_mesh(grid):
        given = tuple(
            jax.device_put(a.astype(dtype), NamedSharding(grid, PartitionSpec(*axes)))
            for a, dtype, axes in arrays.values()
        )
        step = jax.value_and_grad(loss, (0, 1))
        return jax.jit(step).lower(*given).compile(), given


def loss(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the weighted sum of the losses, without the logits."""
    return linear_cross_entropy_sum(x, w, labels, weights=weights)


def measure_work(n: int, *, rounds: int) -> dict[str, float]:
    """Return the processor time of a step on several CPU devices over that on one.

    The devices share the cores, so this shows what is added by the division, and no speedup.
    """
    clocks = {}
    for name, mesh, rows in (
        ("one device", Mesh(1, 1), n),
        ("rows over 8", Mesh(8, 1), n),
        ("classes over 8", Mesh(1, 8), n),
        ("rows over 4, classes over 2", Mesh(4, 2), n),
        ("8 times the rows, rows over 8", Mesh(8, 1), 8 * n),
    ):
        clocks[name] = partial(processor_seconds, *compile_step(mesh, rows, 128, 4096))
    found = measure.paired({}, rounds=rounds, clocks=clocks)
    return {
        name: 1 / found["ratios"][name]["median"] / (8 if name.startswith("8") else 1)
        for name in clocks
    }


def processor_seconds(program: Callable, given: tuple[jax.Array, ...]) -> float:
    """Return the seconds that all cores together spend on one call."""
    start = time.process_time()
    jax.block_until_ready(program(*given))
    return time.process_time() - start


def draw(record: dict[str, Any]) -> Figure:
    """Draw the predicted time of a step by the number of devices, beside a perfect division."""
    figure, axes = figures.slide(
        "Predicted: a head of a million classes gains from each doubling of its devices, "
        "until the network is what it waits for",
        height=3.9,
    )
    panel = axes[0, 0]
    looks = zip((BLUE, ORANGE, GREEN), "os^", (1.1, 0.95, 0.9), strict=True)
    for (name, found), (color, mark, shift) in zip(record["predicted"].items(), looks, strict=True):
        counts = sorted(map(int, found))
        seconds = [1e3 * found[str(count)]["seconds"] for count in counts]
        panel.plot(counts, seconds, marker=mark, color=color, markersize=5)
        panel.plot(counts, [seconds[0] / count for count in counts], ":", color=color, lw=1)
        figures.label(panel, name, (1200, seconds[-1] * shift), color, va="center")
    figures.label(panel, "dotted: one device's time, divided", (1.2, 3), va="center")
    for count in (8, 64, 1024):
        mesh = "{rows} x {classes}".format(**record["predicted"]["TPU v5p"][str(count)]["mesh"])
        figures.label(panel, f"best mesh\n{mesh}", (count, 900), ha="center", va="center")
    panel.set(xscale="log", yscale="log", xlim=(0.8, 4500), xlabel="devices")
    panel.set_ylabel("a step, milliseconds")
    panel.set_xticks([1, 8, 64, 1024], ["1", "8", "64", "1,024"])
    panel.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    return figure


if __name__ == "__main__":
    main()
