"""Linear heads, from features to gradients of features and weights: shares of the products' rate.

Value and gradients of a head of N examples, D features and K classes need three products of N D K,
two where the features are data, and one more where the loss of each example has its own cotangent.
What share of the rate of these products alone, measured in the same run, is reached by
`linear_cross_entropy_sum`, by `linear_cross_entropy`, and by Optax's loss on dense logits, in how
much memory, and how do other installed libraries compare? A GPU has bars, in `BARS`. The default
(`implementation=None`) is compared with dense logits at 40 shapes: no more than 1.05 of their time,
and no more memory than theirs and the budget.

Findings, on two CPU cores. The sum against dense Optax: 1.88 times as fast where features are data
(60000 x 784 x 10, w and bias alone), 1.69 at 8192 x 128 x 1000, 1.24 at 8192 x 768 x 1000, and
about equal where only the products count (1.10 and 0.99 at the two largest). It is never slower
than torch's, dense or fused; the fused one, in chunks of its own choice, takes 17.0 times as long
at 512 x 1024 x 131072.
- At 8192 x 768 x 1000 it runs at 89% of the rate of a square product. At 8192 x 128 x 1000 it is
  as fast as the three products alone, and it saves memory: a call of Optax's maps 21,674 pages for
  logits above glibc's threshold, a call of the sum none. The ratio was 1.36 to 1.69 in five runs;
  the likely cause, which is not measured, is that the price of a page varies with time.
- Where features are data, their single read is the limit: classes are the outermost axis, and each
  chunk of 1,024 rows is used for both the scores and the gradient while it is in the cache.
- The per-example route computes the logits twice, four products in place of three, and is 0.92 to
  1.69 times as slow; it saves memory, 134 MB against Optax's 537 at 2048 x 512 x 32768.
- With a budget of 32 MiB, 1,024 rows and 256 features, the per-example loss needs 50.3 MB of
  temporary memory from 16,000 classes on, where dense logits need 1,048.6 at 128,000, and takes
  1.03 to 1.17 times their time. The sum takes 0.87 to 1.01 times the time of the per-example loss:
  at 16,000 classes in chunks of rows, in 8.2 MB, and from 64,000 on, where chunks would be of a few
  rows each, it computes the logits twice, in 50.4 MB.
- The default takes 0.55 to 1.43 times as long as dense logits at the 40 shapes, 0.93 in the median,
  at most 1.05 at 35 and 1.2 at 39. Above is 768 x 10 x 10, a call of 0.21 milliseconds.
- With a z-loss, as a function of a row's statistics, the sum takes 0.98 times as long and the same
  67 MB; from the losses of each example it takes 1.19 times as long and 134 MB, and from dense
  logits 1.17 times.

On a GPU this version has been compiled and not timed. One H200 under jax 0.11.2 (November 2026) ran
prototypes of its changes, in milliseconds and MB of temporaries at 2048 x 4096 x 128256:

    dense Optax, bfloat16 logits         9.6 to 9.8     559
    dense Optax, float32 logits          21.1         2,202
    three products alone                 8.1 to 9.3     559
    sum                                  9.75 to 9.86   559
    sum, 128 MiB                         10.4 to 10.6   144
    per example, 512 MiB                 12.6 to 12.7   559
    per example                          13.5           166
    forward, of x @ w                    0.965 to 0.98
    torch 2.11 dense, cut-cross-entropy 25.1.1, tokamax 0.0.17, Liger 0.8.5: 10.8, 24.6, 25.7, 45.8

and, of the version before: sigmoid's sum 11.8 ms, 0.82 of the products, and its forward pass 0.76.
Compiled for an H200 without Triton's products, as a real device multiplies, this version takes 530
MB for the sum, 144 with 128 MiB, 530 and 140 per example, 16 for the forward pass; at 8192 x 4096 x
262144 252 MB for the sum and per example; for the sigmoid's head 189, 189 and 55.
A loss of each row's statistics keeps the sum's three products and memory: label smoothing and a
z-loss take 144 MB with 128 MiB, and a z-loss of 8192 x 768 x 50257 in float32 422 MB, as the sum;
its logits are read once more, 12 bytes each where XLA's operations take 16 (477 MB).

The kernels have 168 registers a thread at entry and 225 KiB of shared memory a block. Under jax
0.11.2 the warpgroups that finish tiles then take 232 registers. Under jax 0.12.0.1 the assembler is
run in a way that ignores the instruction by which they take more: on an H200 it spills 124 bytes in
the sum's kernel, 192 in the gradient's, 124 in the sigmoid's that computes losses and gradients at
once, and nothing in the forward passes and in the two products of blocks. The sum's kernel that
also finds means and predictions, for label smoothing, spills 688 bytes there and 788 on a B200;
with a softcap, whose derivatives it stores as well, 1,172 and 832. Then 2048 x 4096 x 128256 takes
299 and 306 MB with 512 MiB, three products, and 4 bytes a logit more.

On an H200 the inner loop is four products of 64 x 256 x 16 in a row and one wait; the end of a tile
is some 1,400 instructions a warp, about 2% of the time of a tile at H = 4096 if nothing hid it. On
a B200 it is four products of 128 x 256 x 16, or 256 x 256 x 16 by two cores together, issued by one
thread; the end of one tile overlaps the products of the next.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import head_programs as heads
from benchmarks import peers
from benchmarks.head_programs import MIB, Head, Program, Shape
from benchmarks.timing import Conditions, Step, compiled, memory, timed
from jaxsoftmax.kernels import target

LARGEST, MORE_ROWS = Shape(2048, 4096, 128_256), Shape(8192, 4096, 262_144)
LABELS, INTERPRETED = Shape(8192, 4096, 32_768), Shape(5, 16, 128)
OF_CPUS = (
    "8192x768x1000",
    "60000x784x10/parameters",
    "2048x512x32768",
    "8192x128x1000",
    "60000x784x10",
    "512x1024x131072",
)
# Shapes and their programs, the most telling first.
SHAPES: dict[str, dict[Shape, dict[str, Program]]] = {
    "cpu": {heads.parsed(text): heads.ANYWHERE for text in OF_CPUS},
    "gpu": {
        LARGEST: heads.SOFTMAX_OF_GPUS,
        heads.FLOAT32: heads.OF_FLOAT32,
        MORE_ROWS: heads.OF_MORE_ROWS,
    },
    "tpu": {LARGEST: heads.OF_TPUS},
    "smoke": {heads.parsed("64x8x10/parameters"): heads.ANYWHERE},
}
WITH_Z_LOSS = {"cpu": Shape(1024, 128, 16_384, "float32"), "gpu": heads.FLOAT32,
               "tpu": heads.FLOAT32, "smoke": Shape(16, 8, 24, "float32")}  # fmt: skip
OF_LABELS = {"cpu": Shape(2048, 512, 8192, "float32"), "gpu": LABELS, "tpu": LABELS,
             "smoke": Shape(16, 8, 24, "float32")}  # fmt: skip
# On a GPU: the share of the products' rate, and megabytes of temporaries.
BARS: dict[tuple[str, Shape], dict[str, tuple[float | None, float]]] = {
    ("softmax", LARGEST): {
        "sum": (0.95, 559),
        "sum, 128 MiB": (0.88, 150),
        "per example, 512 MiB": (0.95, 559),
        "per example": (0.90, 170),
        "forward": (0.98, 20),
    },
    ("softmax", MORE_ROWS): {
        "sum": (None, 512),
        "per example": (None, 256),
        "forward": (None, 110),
    },
    ("sigmoid", LABELS): {
        "sum": (0.90, 300),
        "per example": (None, 300),
        "forward": (0.92, 100),
    },
}
# Rows, features and dtype of heads of more and more classes, and their budget of memory.
GROWING = {
    "cpu": (1024, 256, "float32", 32 * MIB),
    "gpu": (2048, 4096, "bfloat16", 128 * MIB),
    "tpu": (2048, 4096, "bfloat16", 128 * MIB),
    "smoke": (8, 16, "float32", 2**12),
}
CLASSES = (128_000, 1000, 16_000, 64_000, 4000)
SWEPT = 40  # shapes of the default


def steps(conditions: Conditions) -> list[Step]:
    """Return a step for each shape, with other libraries at the first ones."""
    given = {heads.parsed(text): heads.ANYWHERE for text in conditions.shapes}
    shapes = given or conditions.of(SHAPES)
    found = [Step(str(s), partial(softmax, s, of, conditions)) for s, of in shapes.items()]
    if conditions.smoke:
        found.append(Step("interpreted", interpreted))
    return found


def steps_by_classes(conditions: Conditions) -> list[Step]:
    """Return a step for each number of classes."""
    classes = (64,) if conditions.smoke else CLASSES
    return [Step(str(k), partial(growing, k, conditions)) for k in classes]


def steps_of_z_loss(conditions: Conditions) -> list[Step]:
    """Return the step of a loss of a row's statistics."""
    shape = conditions.of(WITH_Z_LOSS)
    return [Step(str(shape), partial(softmax, shape, heads.OF_Z_LOSS, conditions))]


def steps_of_sigmoid(conditions: Conditions) -> list[Step]:
    """Return the step of the sigmoid's head."""
    shape = conditions.of(OF_LABELS)
    programs = heads.SIGMOID_OF_GPUS if conditions.platform == "gpu" else heads.SIGMOID
    return [Step(str(shape), partial(labels, shape, programs, conditions))]


def steps_of_default(conditions: Conditions) -> list[Step]:
    """Return steps of a few shapes each, of the default beside dense logits."""
    shapes = drawn(1 if conditions.smoke else SWEPT, conditions)
    groups = [shapes[first : first + 8] for first in range(0, len(shapes), 8)]
    titles = (f"{8 * i + 1} to {8 * i + len(group)}" for i, group in enumerate(groups))
    return [Step(t, partial(defaults, g, conditions)) for t, g in zip(titles, groups, strict=True)]


def softmax(shape: Shape, programs: dict[str, Program], conditions: Conditions) -> dict[str, Any]:
    """Return what is measured of the softmax's head, with other libraries in turn."""
    head = heads.data(shape)
    if not shape.parameters:
        programs = programs | heads.PEERS
    wants_torch = conditions.torch is not None and shape != MORE_ROWS
    with peers.of_head(conditions.torch if wants_torch else None, shape) as others:
        entry = measured("softmax", shape, programs, head, conditions, others.clocks())
        return entry | {"versions": others.versions | peers.versions_of(heads.PEERS)}


def labels(shape: Shape, programs: dict[str, Program], conditions: Conditions) -> dict[str, Any]:
    """Return what is measured of the sigmoid's head."""
    return measured("sigmoid", shape, programs, heads.data_of_labels(shape), conditions, {})


def interpreted() -> dict[str, Any]:
    """Run one kernel as an interpreted GPU would, and trace the others."""
    head, labeled = heads.data(INTERPRETED), heads.data_of_labels(INTERPRETED)
    programs = {"sum": heads.OF_GPUS["sum"], "optax": Program(heads.dense)}
    with target.assumed("gpu", interpret=True):
        jax.eval_shape(heads.OF_GPUS["per example"].run, head)
        for program in heads.sigmoid(heads.KERNEL).values():
            jax.eval_shape(program.run, labeled)
        conditions = Conditions("gpu", smoke=True)
        return measured("softmax", INTERPRETED, programs, head, conditions, {})


def measured(
    kind: str,
    shape: Shape,
    programs: dict[str, Program],
    head: Head,
    conditions: Conditions,
    clocks: dict[str, Callable[[], float]],
) -> dict[str, Any]:
    """Return paired times, shares of the products' rate, memory and errors at one shape."""
    smoke = conditions.smoke
    wanted = programs | heads.PRODUCTS
    built = compiled({name: (p.run, (head,)) for name, p in wanted.items()}, smoke=smoke)
    calls = {name: partial(program, head) for name, program in built.items()}
    entry = timed(calls, smoke=smoke, clocks=clocks)
    seconds = {name: s["median"] for name, s in entry["seconds"].items()}
    entry |= shares(shape, {n: p for n, p in wanted.items() if n in built}, seconds)
    entry["temporary_bytes"] = memory(built)
    entry["errors"] = errors(kind, head, built)
    show(entry, BARS.get((kind, shape), {}))
    return entry


def shares(shape: Shape, programs: dict[str, Program], seconds: dict[str, float]) -> dict[str, Any]:
    """Return useful operations and least bytes, and shares of as many products' rate alone."""
    count = 2 if shape.parameters else 3
    alone = {count: seconds["products"], 1: seconds["one product"]}
    alone[count + 1] = seconds["products"] + seconds["one product"]
    needed = {n: p.products - (shape.parameters and p.products > 1) for n, p in programs.items()}
    return {
        "operations": count * shape.operations,
        "bytes": shape.bytes,
        "dtype": shape.dtype,
        "operations per second": {
            n: count * shape.operations / s for n, s in seconds.items() if n not in heads.PRODUCTS
        },
        "share of the products": {n: alone[needed[n]] / seconds[n] for n in programs},
    }


def errors(kind: str, head: Head, built: dict[str, Any]) -> dict[str, float]:
    """Return the largest errors of values, and distances from dense gradients, by their norms."""
    if not built.keys() >= {"forward", "sum", "optax"}:
        return {}
    rows = slice(0, 128)
    # A GPU's default rounds float32 to TF32.
    z = jnp.matmul(*(a.astype(jnp.float32) for a in (head.x[rows], head.w)), precision="highest")
    found = built["forward"](head)
    if kind == "sigmoid":
        each = optax.sigmoid_binary_cross_entropy(z, head.labels[rows].astype(jnp.float32))
        values = {"values, relative": found[rows] / jnp.sum(each, 1) - 1}
    else:
        lse = jax.nn.logsumexp(z, 1)
        nll = lse - jnp.take_along_axis(z, head.labels[rows, None], 1)[:, 0]
        values = {"nll": found.nll[rows] - nll, "lse": found.lse[rows] - lse}
    off = {name: float(jnp.max(jnp.abs(error))) for name, error in values.items()}
    return off | from_dense(head, built)


def from_dense(head: Head, built: dict[str, Any]) -> dict[str, float]:
    """Return the distances of the sum's gradients from the dense ones, by their norms."""

    def off(a: jax.Array, b: jax.Array) -> float:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

    names = ("dx", "dw") if head.bias is None else ("dw", "dbias")
    pairs = zip(names, built["sum"](head)[1], built["optax"](head)[1], strict=True)
    return {f"{name} from dense": off(a, b) for name, a, b in pairs}


def show(entry: dict[str, Any], bars: dict[str, tuple[float | None, float]]) -> None:
    """Print one line per program, with its bars."""
    print(f"errors {entry['errors']}")
    for name, seconds in entry["seconds"].items():
        text = f"{name:24}{1e3 * seconds['median']:10.3f} ms"
        text += f"{1 / entry['ratios'][name]['median']:8.2f} of the first"
        share, megabytes = bars.get(name, (None, None))
        if name in entry["share of the products"]:
            text += f"{entry['share of the products'][name]:8.3f} of the products"
            text += "" if share is None else f" (bar {share:.2f})"
            text += f"{entry['temporary_bytes'][name] / 1e6:8.0f} MB"
        print(text + ("" if megabytes is None else f" (bar {megabytes:.0f})"), flush=True)


# -- By the number of classes --


def growing(classes: int, conditions: Conditions) -> dict[str, Any]:
    """Return times and memory with some number of classes, within a budget of memory."""
    n, d, dtype, budget = conditions.of(GROWING)
    head = heads.data(Shape(n, d, classes, dtype))
    options = {"memory": budget}
    programs = {
        "per example": partial(heads.per_example, options),
        "sum": partial(heads.total, options),
        "optax": heads.dense,
    }
    built = compiled({name: (f, (head,)) for name, f in programs.items()}, smoke=conditions.smoke)
    calls = {name: partial(program, head) for name, program in built.items()}
    entry = timed(calls, smoke=conditions.smoke) | {"temporary_bytes": memory(built)}
    megabytes = {name: f"{size / 1e6:,.0f} MB" for name, size in entry["temporary_bytes"].items()}
    print(f"{classes} classes: {megabytes}")
    return entry


# -- The default and dense logits --


def drawn(count: int, conditions: Conditions) -> tuple[Shape, ...]:
    """Return shapes whose sizes are drawn evenly in their logarithms, every third one aligned."""
    random = np.random.default_rng(0)
    # The dense logits and gradients take at most 17 GB, a product at most 0.1 s.
    logits, operations, dtype = (2**31, 7e13, "bfloat16")
    if conditions.platform == "cpu":
        logits, operations, dtype = (2**26, 1e10, "float32")
    largest = (64, 64, 256) if conditions.smoke else (32_768, 8192, 262_144)
    found: list[Shape] = []
    while len(found) < count:
        sizes = random.uniform(np.log2([min(128, largest[0]) / 2, 16, 10]), np.log2(largest))
        unit = 1 if len(found) % 3 else 64
        shape = Shape(*(max(int(2**size) // unit * unit, 10) for size in sizes), dtype)
        if shape.n * shape.k <= logits and shape.operations <= operations:
            found.append(shape)
    return tuple(found)


def defaults(shapes: tuple[Shape, ...], conditions: Conditions) -> dict[str, Any]:
    """Compile the programs of some shapes together, and time one shape after the other."""
    of = {"default": partial(heads.total, {}), "optax": heads.dense}
    types = {shape: jax.eval_shape(partial(heads.data, shape)) for shape in shapes}
    wanted = {f"{s} {n}": (f, (t,)) for s, t in types.items() for n, f in of.items()}
    built = compiled(wanted, smoke=conditions.smoke)
    found = {}
    for shape in shapes:
        head = heads.data(shape)
        programs = {name: built[f"{shape} {name}"] for name in of}
        calls = {name: partial(program, head) for name, program in programs.items()}
        needed = memory(programs)
        entry = timed(calls, smoke=conditions.smoke) | {"temporary_bytes": needed}
        entry["excess_bytes"] = needed["default"] - needed["optax"]
        found[str(shape)] = entry
        ratio, excess = entry["ratios"]["optax"]["median"], entry["excess_bytes"] / 1e6
        print(f"{shape!s:32}{ratio:6.2f} of dense, {excess:+9.0f} MB{'  SLOWER' * (ratio > 1.05)}")
    return found
