"""Speed and memory of a linear head's value and gradient: fused, dense, and other libraries'.

Command: `python experiments/benchmark.py [--torch-python PATH]`, about 5 minutes on two cores, and
12 with torch. `--shapes 8192x768x1000 ...`, `--dtypes`, `--functions` and `--rounds` select what
runs, and a shape that ends in `/parameters` differentiates w and bias alone. `--tune` measures the
candidates of kernels/tiles.py, in about 2 minutes. `--smoke` runs tiny shapes and writes no record.
The record is results/benchmark_PLATFORM.json (tiles_PLATFORM.json for the tuning), with a figure of
the same name.

Question. How long do value and gradient of a mean loss take, from features to gradients of features
and weights? The functions take turns in one run:
- sum: `linear_cross_entropy_sum`; per example: the mean of `linear_cross_entropy`'s nll;
- reference: this library's dense definition; optax: its loss on `x @ w`;
- torch and torch fused: `F.cross_entropy` of `F.linear`, and `F.linear_cross_entropy` in chunks, in
  a process that has PyTorch and not JAX.
Useful operations are 6 N D K (4 N D K where features are data). The ceilings are measured in the
same run: the rate of a square matrix product; the rate of the three products of the shape itself,
without a loss; and the bytes per second of a copy to newly mapped pages, as for most large results.
Arrays that stay in memory that is already mapped can be faster.

Findings, on two cores. The sum against dense Optax: 1.88 times as fast where features are data
(60000 x 784 x 10, w and bias alone), 1.69 at 8192 x 128 x 1000, 1.24 at 8192 x 768 x 1000, and
about equal where only the products count (1.10 and 0.99 at the two largest). It is never slower
than torch's, dense or fused; the fused one, in chunks of its own choice, takes 17.0 times as long
at 512 x 1024 x 131072.
- At 8192 x 768 x 1000 it runs at 106% of the rate of a square product. At 8192 x 128 x 1000 it is
  as fast as the three products alone, and it saves memory: a call of Optax's maps 21,674 pages for
  logits above glibc's threshold, a call of the sum none. The ratio was 1.36 to 1.69 in five runs;
  the likely cause, which is not measured, is that the price of a page varies with time.
- Where features are data, their single read is the limit: classes are the outermost axis, and each
  chunk of 1,024 rows is used for both the scores and the gradient while it is in the cache.
- The per-example route computes the logits twice, four products in place of three, and is 0.92 to
  1.69 times as slow; it saves memory, 134 MB against Optax's 537 at 2048 x 512 x 32768.
"""

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import document
import figures
import jax
import jax.numpy as jnp
import measure
import optax
from figures import BLUE, GREEN, ORANGE, PURPLE
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from jaxsoftmax import kernels

SHAPES = (
    "60000x784x10",
    "60000x784x10/parameters",
    "8192x128x1000",
    "8192x768x1000",
    "2048x512x32768",
    "512x1024x131072",
)
SMOKE = ("64x8x10/parameters", "32x16x200")
FUNCTIONS = ("sum", "per example", "reference", "optax", "torch", "torch fused")
TORCH = {"torch": "cross_entropy", "torch fused": "linear_cross_entropy"}


class Shape(NamedTuple):
    """Examples, features, classes, and whether the features are differentiated."""

    n: int
    d: int
    k: int
    wanted: str

    @property
    def operations(self) -> int:
        """Return the useful floating-point operations of value and gradient."""
        return (6 if self.wanted == "all" else 4) * self.n * self.d * self.k


def main() -> None:
    """Measure every shape, print the table, and write the record and the figure."""
    parser = argparse.ArgumentParser(description="Speed and memory of a linear head.")
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    parser.add_argument("--functions", nargs="*", default=FUNCTIONS, choices=FUNCTIONS)
    parser.add_argument("--torch-python", help="an interpreter with PyTorch")
    parser.add_argument("--rounds", type=int, help="paired rounds (default: 20 seconds a shape)")
    parser.add_argument("--tune", action="store_true", help="measure the choice of tiles")
    parser.add_argument("--name", help="name of the record")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no record")
    arguments = parser.parse_args()
    if arguments.tune:
        tune(arguments.smoke)
        return
    texts = SMOKE if arguments.smoke else arguments.shapes
    rounds = 2 if arguments.smoke else arguments.rounds
    python = arguments.torch_python
    if python is None and importlib.util.find_spec("torch") is not None:
        python = sys.executable
    ceilings = {"copy bytes per second": copy_rate()}
    found: dict[str, Any] = {}
    print(f"copy {ceilings['copy bytes per second'] / 1e9:.1f} GB/s")
    for dtype in arguments.dtypes:
        for text in texts:
            shape = parsed(text)
            entry = measured(shape, dtype, arguments.functions, python, rounds)
            found[f"{text} {dtype}"] = entry
            show(f"{text} {dtype}", entry)
    if not arguments.smoke:
        name = arguments.name or f"benchmark_{jax.default_backend()}"
        document.publish(name, {"ceilings": ceilings, "shapes": found}, draw, smoke=False)


def parsed(text: str) -> Shape:
    """Parse a shape from NxDxK or NxDxK/parameters."""
    sizes, _, wanted = text.partition("/")
    return Shape(*map(int, sizes.split("x")), wanted or "all")  # type: ignore[call-arg]


def measured(
    shape: Shape, dtype: str, names: tuple[str, ...], python: str | None, rounds: int | None
) -> dict[str, Any]:
    """Return paired times of the named functions at one shape, their rates and temporary bytes."""
    head = data(shape, dtype)
    programs = {name: compiled(PROGRAMS[name], shape, head) for name in names if name in PROGRAMS}
    calls = {name: partial(program, *head) for name, program in programs.items()}
    calls["three products"] = partial(compiled(three_products, shape, head), *head)
    calls["square product"] = square_product(dtype)
    processes = {n: Torch(python, shape, dtype) for n in TORCH if n in names and python}
    clocks = {n: partial(p.seconds, TORCH[n]) for n, p in processes.items()}
    if rounds is None:
        # About 20 seconds a shape, and at least 5 rounds.
        seconds = measure.paired(calls, rounds=1, clocks=clocks)["seconds"].values()
        rounds = min(41, max(5, round(20 / sum(s["median"] for s in seconds))))
    timing = measure.paired(calls, rounds=rounds, clocks=clocks)
    for process in processes.values():
        process.close()
    medians = {name: s["median"] for name, s in timing["seconds"].items()}
    square = 2 * 2048**3 / medians.pop("square product")
    names = [name for name in medians if name != "three products"]
    first = timing["baseline"]
    return timing | {
        "speed of the baseline over each": {n: 1 / timing["ratios"][n]["median"] for n in names},
        "operations per second": {n: shape.operations / medians[n] for n in names},
        "share of the square product's rate": {
            n: shape.operations / medians[n] / square for n in names
        },
        "share of the three products' rate": {
            n: medians["three products"] / medians[n] for n in names
        },
        "square product": square,
        "bytes per second": least_bytes(shape, dtype) / medians[first],
        "bytes": least_bytes(shape, dtype),
        "temporary_bytes": {n: measure.temporary_bytes(p) for n, p in programs.items()},
        "page_faults": {n: page_faults(calls[n]) for n in programs},
        "torch": next((p.versions for p in processes.values()), None),
    }


# -- The functions --


def data(shape: Shape, dtype: str) -> tuple[jax.Array, ...]:
    """Return random features, weights and labels whose logits have standard deviation 1."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (shape.n, shape.d), dtype)
    w = jax.random.normal(keys[1], (shape.d, shape.k), dtype) * jnp.asarray(shape.d**-0.5, dtype)
    labels = jax.random.randint(keys[2], (shape.n,), 0, shape.k)
    return x, w, jnp.zeros(shape.k, dtype), labels


def total(x: jax.Array, w: jax.Array, bias: jax.Array | None, y: jax.Array) -> jax.Array:
    """Return the mean as a weighted sum, whose gradients are computed in the forward pass."""
    weights = jnp.full(y.shape, 1 / y.size)
    return kernels.linear_cross_entropy_sum(x, w, y, bias=bias, weights=weights)


def per_example(x: jax.Array, w: jax.Array, bias: jax.Array | None, y: jax.Array) -> jax.Array:
    """Return the mean of one value per example."""
    return jnp.mean(kernels.linear_cross_entropy(x, w, y, bias=bias).nll)


def reference(x: jax.Array, w: jax.Array, bias: jax.Array | None, y: jax.Array) -> jax.Array:
    """Return the mean loss by the dense definition."""
    return jnp.mean(
        kernels.linear_cross_entropy(x, w, y, bias=bias, implementation="reference").nll
    )


def dense_optax(x: jax.Array, w: jax.Array, bias: jax.Array | None, y: jax.Array) -> jax.Array:
    """Return the mean loss as users write it without this library."""
    z = x @ w if bias is None else x @ w + bias
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, y))


PROGRAMS = {
    "sum": total,
    "per example": per_example,
    "reference": reference,
    "optax": dense_optax,
}


def three_products(x: jax.Array, w: jax.Array, bias: jax.Array | None, y: jax.Array) -> Any:
    """Multiply what any dense method must multiply, without a loss."""
    del bias, y
    z = jax.lax.optimization_barrier(x @ w)
    return z @ w.T, x.T @ z


def compiled(loss: Callable, shape: Shape, head: tuple[jax.Array, ...]) -> jax.stages.Compiled:
    """Compile value and gradient, in w and bias or in x and w, as the shape asks."""
    if loss is three_products:
        if shape.wanted == "all":
            return jax.jit(loss).lower(*head).compile()
        return jax.jit(lambda *a: loss(*a)[1]).lower(*head).compile()
    if shape.wanted == "all":
        both = jax.value_and_grad(lambda x, w, bias, y: loss(x, w, None, y), (0, 1))
    else:
        both = jax.value_and_grad(loss, (1, 2))
    return jax.jit(both).lower(*head).compile()


def square_product(dtype: str) -> Callable[[], jax.Array]:
    """Time the product of two square matrices, 2 * 2048^3 operations."""
    a = jax.random.normal(jax.random.key(1), (2048, 2048), dtype)
    return partial(jax.jit(jnp.matmul), a, a)


def copy_rate() -> float:
    """Return the bytes per second, read and written, of adding one to 64 million numbers."""
    a = jnp.zeros(2**26)
    timing = measure.paired({"copy": partial(jax.jit(lambda a: a + 1), a)}, rounds=5)
    return 2 * a.nbytes / timing["seconds"]["copy"]["minimum"]


def page_faults(function: Callable[[], Any], calls: int = 9) -> float:
    """Return the pages that the system newly maps during one call, a median.

    An allocation above glibc's threshold, at most 32 MB, is returned to the system at once and
    costs its pages in each call.
    """
    counts = []
    for _ in range(calls):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        jax.block_until_ready(function())
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts)


def least_bytes(shape: Shape, dtype: str) -> int:
    """Return the bytes of features, weights and gradients, each read or written once."""
    x, w = shape.n * shape.d, shape.d * shape.k
    return jnp.dtype(dtype).itemsize * (x * (2 if shape.wanted == "all" else 1) + 2 * w)


class Torch:
    """A head in another process."""

    def __init__(self, python: str, shape: Shape, dtype: str) -> None:
        """Start the process; its first line has the versions."""
        script = str(Path(__file__).with_name("torch_head.py"))
        sizes = map(str, (shape.n, shape.d, shape.k))
        self.process = subprocess.Popen(
            [python, script, *sizes, dtype, shape.wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self.process.stdout.readline().strip()  # type: ignore[union-attr]

    def seconds(self, name: str) -> float:
        """Run one pass there and return its time in seconds."""
        self.process.stdin.write(name + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        seconds = float(self.process.stdout.readline())  # type: ignore[union-attr]
        # OpenMP's threads spin for some milliseconds more, at the cost of the next contestant.
        time.sleep(0.05)
        return seconds

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


# -- Output --


def show(title: str, entry: dict[str, Any]) -> None:
    """Print one line per function."""
    print(f"\n{title}: square product {entry['square product'] / 1e9:.0f} GFLOP/s")
    print(f"{'':14}{'median ms':>10}{'quartiles':>20}{'sum is x times':>16}{'GFLOP/s':>9}"
          f"{'of square':>11}{'of products':>12}{'temp MB':>9}")  # fmt: skip
    for name, rate in entry["operations per second"].items():
        s = entry["seconds"][name]
        memory = entry["temporary_bytes"].get(name)
        print(
            f"{name:14}{1e3 * s['median']:10.1f}"
            f"{1e3 * s['lower']:10.1f} -{1e3 * s['upper']:8.1f}"
            f"{entry['speed of the baseline over each'][name]:16.2f}{rate / 1e9:9.0f}"
            f"{entry["share of the square product's rate"][name]:11.2f}"
            f"{entry["share of the three products' rate"][name]:12.2f}"
            + (f"{memory / 1e6:9.1f}" if memory is not None else "")
        )


LOOKS = {
    "sum": (BLUE, "o"),
    "optax": (ORANGE, "s"),
    "torch": (PURPLE, "^"),
    "torch fused": (GREEN, "D"),
}


def draw(record: dict[str, Any]) -> Figure:
    """Draw each alternative's time over that of the sum, and temporary memory, at every shape."""
    figure, axes = figures.slide(
        "The fused loss is as fast as a dense one, and with many classes needs less memory",
        columns=2, height=4.2, sharey=True, width_ratios=(1.2, 1),
    )  # fmt: skip
    speed, memory = axes[0]
    shapes = sorted(record["shapes"], key=lambda name: parsed(name.split()[0]).k)
    for row, of in enumerate(record["shapes"][name] for name in shapes):
        for name, (color, mark) in LOOKS.items():
            times, needed = of["speed of the baseline over each"], of["temporary_bytes"]
            if name in times:
                speed.plot(times[name], row, mark, color=color, markersize=7, alpha=0.85)
            if name in needed:
                memory.plot(needed[name] / 1e6, row, mark, color=color, markersize=7, alpha=0.85)
    figures.rows_of(speed, map(readable, shapes))
    for name, at, lift in (("sum", 1, -0.4), ("torch", 1.63, -0.75), ("torch fused", 4, -0.4)):
        text = "this library" if name == "sum" else name
        figures.label(speed, text, (at, lift), LOOKS[name][0], ha="center")
    figures.label(speed, "Optax", (1.15, 0.42), ORANGE)
    speed.set(xscale="log", xlim=(0.8, 25), ylim=(len(shapes) - 0.5, -1.1))
    speed.set_xticks((1, 2, 4, 8, 16), ("1", "2", "4", "8", "16"))
    memory.set(xscale="log", xlabel="temporary memory, MB")
    memory.set_xticks((10, 100), ("10", "100"))
    for panel in axes[0]:
        panel.xaxis.set_minor_formatter(NullFormatter())
    speed.set(xlabel="time over this library's, on two cores")
    return figure


def readable(name: str) -> str:
    """Return a shape as rows x features x classes."""
    shape = parsed(name.split()[0])
    text = f"{shape.n:,} x {shape.d}\nx {shape.k:,} classes"
    return text if shape.wanted == "all" else text + ", w alone"


# -- The table of tiles.py --


def tune(smoke: bool) -> None:
    """Measure rows per chunk, and the number of classes up to which class-major is faster."""
    shapes = ("64x8x40",) if smoke else ("8192x128x1000", "8192x768x1000", "2048x512x32768")
    sizes = (16, 32) if smoke else (256, 512, 1024, 2048)
    rounds = 2 if smoke else 7
    record: dict[str, Any] = {"rows": {}, "few classes": {}}
    for text in shapes:
        shape = parsed(text)
        head = data(shape, "float32")
        calls = {str(rows): with_tiles(head, shape, kernels.Tiles(rows, shape.k)) for rows in sizes}
        record["rows"][text] = measure.paired(calls, rounds=rounds)
    counts = (4, 8) if smoke else (10, 24, 32, 48, 64, 100)
    n, d = (64, 8) if smoke else (60_000, 784)
    for k in counts:
        shape = Shape(n, d, k, "parameters")
        head = data(shape, "float32")
        calls = {}
        for few in (0, 2**30):
            kernels.primitives.FEW_CLASSES_LIMIT = few
            jax.clear_caches()
            tiles = kernels.Tiles(1024, k)
            calls["class-major" if few else "row-major"] = with_tiles(head, shape, tiles)
        record["few classes"][str(k)] = measure.paired(calls, rounds=rounds)
    for part, entries in record.items():
        for name, entry in entries.items():
            medians = {n: f"{1e3 * s['median']:.1f}" for n, s in entry["seconds"].items()}
            print(f"{part:12} {name:16} ms {medians}")
    if not smoke:
        print("written:", measure.write_record(f"tiles_{jax.default_backend()}", record).name)


def with_tiles(
    head: tuple[jax.Array, ...], shape: Shape, tiles: kernels.Tiles
) -> Callable[[], Any]:
    """Return the scalar route with the given block sizes."""

    def loss(x: jax.Array, w: jax.Array, bias: jax.Array | None, y: jax.Array) -> jax.Array:
        weights = jnp.full(y.shape, 1 / y.size)
        return kernels.linear_cross_entropy_sum(x, w, y, bias=bias, weights=weights, tiles=tiles)

    return partial(compiled(loss, shape, head), *head)


if __name__ == "__main__":
    main()
