"""Linear heads of language models' size on a GPU: the share of the products' own rate.

Command: `python experiments/gpu_head.py [--minutes 5] [--torch-python PATH]` on an H100 or H200.
The most telling measurements come first, and what does not fit the minutes is left out. The record
is results/gpu_head.json, written again after each part. `--smoke` interprets the kernels on a CPU
at a tiny shape, in under a minute, and writes nothing. `--compile h200` or `b200` compiles the
programs for an absent GPU and prints registers, shared memory, spills and temporary bytes; it needs
`jax[cuda13]`, in a separate environment.

Question. Value and gradients of a head of M examples, H features and V classes in bfloat16, whose
logits have a standard deviation of about 1, need three products of M H V, or four where the loss of
each example has its own cotangent. What share of the rate of these products alone, measured in the
same run, is reached, in how much memory, and how do other installed libraries compare? The bars at
2048 x 4096 x 128256 are in `SOFTMAX`, and those of the sigmoid's head, whose M x V targets are
bools, at 8192 x 4096 x 32768 in `SIGMOID`; at 8192 x 4096 x 262144, with more examples than
features, there are bars of memory alone. Logits that exist (value and gradient of `cross_entropy`,
one read and one write) are compared with a copy. The default (`implementation=None`) is compared
with Optax on dense bfloat16 logits at 40 shapes: no more than 1.05 of its time, and no more memory
than its and the budget.

Findings. This version has been compiled and not timed. One H200 under jax 0.11.2 (November 2026)
ran prototypes of its changes, in milliseconds and MB of temporaries:

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

The kernels have 168 registers a thread at entry and 225 KiB of shared memory a block. Under jax
0.11.2 the warpgroups that finish tiles then take 232 registers. Under jax 0.12.0.1 the assembler is
run in a way that ignores the instruction by which they take more: on an H200 it spills 124 bytes in
the sum's kernel, 192 in the gradient's, 124 in the sigmoid's that computes losses and gradients at
once, and nothing in the forward passes and in the two products of blocks.

On an H200 the inner loop is four products of 64 x 256 x 16 in a row and one wait; the end of a tile
is some 1,400 instructions a warp, about 2% of the time of a tile at H = 4096 if nothing hid it. On
a B200 it is four products of 128 x 256 x 16, or 256 x 256 x 16 by two cores together, issued by one
thread; the end of one tile overlaps the products of the next.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from jaxsoftmax import cross_entropy, kernels
from jaxsoftmax.kernels import target

MIB = 2**20
PEERS = ("torch", "liger", "cut", "quack")  # in a separate process, where they are installed
# Short calls are timed several times in a row, so that their start does not count.
SECONDS = 0.05
START = time.perf_counter()


class Shape(NamedTuple):
    """Examples, features and classes."""

    m: int
    h: int
    v: int

    @property
    def operations(self) -> int:
        """Return the operations of one product."""
        return 2 * self.m * self.h * self.v

    def __str__(self) -> str:
        """Return the sizes as they are printed."""
        return "x".join(map(str, self))


SHAPE, MORE_ROWS = Shape(2048, 4096, 128_256), Shape(8192, 4096, 262_144)
LABELS, SMOKE = Shape(8192, 4096, 32_768), Shape(5, 16, 128)


class Program(NamedTuple):
    """A function of the data, the products that it needs, and its bars."""

    run: Callable[..., Any]
    products: int = 3
    share: float | None = None  # of the rate of as many products alone
    megabytes: float | None = None  # of temporaries


def main() -> None:
    """Measure or compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="no part is started later")
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds per shape")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="an interpreter with the other libraries"
    )
    parser.add_argument("--compile", metavar="TARGET", help="h200 or b200")
    parser.add_argument(
        "--json", action="store_true", help="print the results of compilation as JSON"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny shape on the CPU, no record")
    arguments = parser.parse_args()
    if arguments.compile:
        compile_for(arguments.compile, as_json=arguments.json)
    elif arguments.smoke:
        jax.config.update("jax_platforms", "cpu")
        with target.assumed("gpu", interpret=True):
            run(SMOKE, SMOKE, (SMOKE,), rounds=1, small=True)
    else:
        # The other libraries need the rest of the memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
        record = partial(run, SHAPE, LABELS, SWEEP, rounds=arguments.rounds, small=False)
        record(python=arguments.torch_python, seconds=60 * arguments.minutes)


def run(
    shape: Shape,
    labels: Shape,
    sweep: tuple[Shape, ...],
    *,
    rounds: int,
    small: bool,
    python: str | None = None,
    seconds: float = math.inf,
) -> None:
    """Measure part after part while there is time; the record grows with each."""
    parts: dict[str, Callable[[], Any]] = {
        f"softmax, {shape}": lambda: measured(SOFTMAX, shape, data(shape), rounds, small),
        f"sigmoid, {labels}": lambda: measured(
            SIGMOID, labels, data_of_labels(labels), rounds, small
        ),
        "default and dense": lambda: swept(sweep, seconds, small),
        "logits that exist": lambda: logits(small),
    }
    if python is not None:
        parts["peers"] = lambda: peers(python, shape, rounds)
        parts[f"softmax, {MORE_ROWS}"] = lambda: measured(
            OF_MORE_ROWS, MORE_ROWS, data(MORE_ROWS), 3, small
        )
    record: dict[str, Any] = {}
    for title, part in parts.items():
        if time.perf_counter() - START > seconds:
            print(f"{title}: no time left")
            continue
        print(f"\n{title}, after {time.perf_counter() - START:.0f} s", flush=True)
        record[title] = part()
        if not small:
            print("written:", measure.write_record("gpu_head", record).name, flush=True)


def measured(
    programs: dict[str, Program],
    shape: Shape,
    head: tuple[jax.Array, ...],
    rounds: int,
    small: bool,
) -> dict[str, Any]:
    """Return paired times, shares of the products' rate, memory and errors at one shape."""
    built = compiled_together({name: (p.run, head) for name, p in programs.items()}, small)
    calls = {name: partial(program, *head) for name, program in built.items()}
    jax.block_until_ready(calls["sum"]())
    repeat = 1 if small else max(1, round(SECONDS / measure.clock(calls["sum"])))
    timed = {name: partial(repeated, call, repeat) for name, call in calls.items()}
    timing = measure.paired(timed, rounds=rounds)
    medians = {name: s["median"] / repeat for name, s in timing["seconds"].items()}
    rates = {3: 3 * shape.operations / medians["three products"]}
    rates[1] = shape.operations / medians["one product"]
    rates[4] = 4 * shape.operations / (medians["three products"] + medians["one product"])
    entry = timing | {
        "repeat": repeat,
        "milliseconds": {name: 1e3 * s for name, s in medians.items()},
        "products per second": {str(count): rate for count, rate in rates.items()},
        "share": {
            name: p.products * shape.operations / medians[name] / rates[p.products]
            for name, p in programs.items()
        },
        "temporary_bytes": {name: measure.temporary_bytes(p) for name, p in built.items()},
        "errors": (errors_of_labels if programs is SIGMOID else errors)(head, built),
    }
    show(programs, entry)
    return entry


def show(programs: dict[str, Program], entry: dict[str, Any]) -> None:
    """Print one line per program, with its bars."""
    rates = {n: f"{r / 1e12:.1f}" for n, r in entry["products per second"].items()}
    print(f"products at {rates} TFLOP/s, errors {entry['errors']}")
    for name, program in programs.items():
        share, megabytes = entry["share"][name], entry["temporary_bytes"][name] / 1e6
        text = f"{name:24}{entry['milliseconds'][name]:10.3f} ms  {share:.3f} of the products"
        text += "" if program.share is None else f" (bar {program.share:.2f})"
        text += f"{megabytes:8.0f} MB"
        text += "" if program.megabytes is None else f" (bar {program.megabytes:.0f})"
        print(text, flush=True)


def compiled_together(
    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]], small: bool
) -> dict[str, jax.stages.Compiled]:
    """Compile functions of arguments, several at a time: tracing holds a lock, compiling none."""
    lowered = {name: jax.jit(f).lower(*arguments) for name, (f, arguments) in programs.items()}
    with ThreadPoolExecutor(1 if small else 8) as pool:
        return dict(
            zip(lowered, pool.map(lambda each: each.compile(), lowered.values()), strict=True)
        )


def repeated(call: Callable[[], Any], times: int) -> Any:
    """Return the last of several results; a device runs its programs one after the other."""
    for _ in range(times - 1):
        call()
    return call()


# -- The default and dense logits --


def draw_shapes(count: int) -> tuple[Shape, ...]:
    """Return shapes whose sizes are drawn evenly in their logarithms, every third one aligned."""
    random = np.random.default_rng(0)
    found: list[Shape] = []
    while len(found) < count:
        sizes = random.uniform(np.log2([128, 64, 10]), np.log2([32_768, 8192, 262_144]))
        unit = 1 if len(found) % 3 else 64
        shape = Shape(*(max(int(2**size) // unit * unit, 10) for size in sizes))
        # The dense logits and gradients take at most 17 GB, a product at most 0.1 s.
        if shape.m * shape.v <= 2**31 and shape.operations <= 7e13:
            found.append(shape)
    return tuple(found)


SWEEP = (SHAPE, *draw_shapes(39))


def swept(shapes: tuple[Shape, ...], seconds: float, small: bool) -> dict[str, Any]:
    """Return times and memory of the default and of dense logits, a few shapes at a time."""
    found: dict[str, Any] = {}
    for first in range(0, len(shapes), 8):
        if time.perf_counter() - START > seconds:
            print(f"{len(shapes) - first} shapes: no time left")
            break
        found |= swept_together(shapes[first : first + 8], small)
    slower = [name for name, entry in found.items() if entry["ratio"] > 1.05]
    larger = [name for name, entry in found.items() if entry["excess_bytes"] > 512 * MIB]
    print(f"{len(found)} shapes; slower by more than 5%: {slower}; more memory: {larger}")
    return found


def swept_together(shapes: tuple[Shape, ...], small: bool) -> dict[str, Any]:
    """Compile the programs of some shapes together, and time one shape after the other."""
    of = {"default": partial(total, {}), "dense": dense}
    types = {str(shape): jax.eval_shape(partial(data, shape)) for shape in shapes}
    built = compiled_together(
        {f"{shape} {name}": (f, types[shape]) for shape in types for name, f in of.items()}, small
    )
    found = {}
    for shape in shapes:
        head = data(shape)
        programs = {name: built[f"{shape} {name}"] for name in of}
        calls = {name: partial(program, *head) for name, program in programs.items()}
        jax.block_until_ready(calls["dense"]())
        repeat = 1 if small else max(1, round(SECONDS / 4 / measure.clock(calls["dense"])))
        timed = {name: partial(repeated, call, repeat) for name, call in calls.items()}
        timing = measure.paired(timed, rounds=3)["seconds"]
        memory = {name: measure.temporary_bytes(program) for name, program in programs.items()}
        entry = {
            "milliseconds": {n: 1e3 * s["median"] / repeat for n, s in timing.items()},
            "ratio": timing["default"]["median"] / timing["dense"]["median"],
            "temporary_bytes": memory,
            "excess_bytes": memory["default"] - memory["dense"],
        }
        found[str(shape)] = entry
        print(f"{shape!s:24}{entry['ratio']:6.2f} of dense, {entry['excess_bytes'] / 1e6:+9.0f} MB")
    return found


# -- The functions --


def data(shape: Shape) -> tuple[jax.Array, ...]:
    """Return normal features, weights for logits of standard deviation 1, labels, cotangents."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (shape.m, shape.h), jnp.bfloat16)
    w = jax.random.normal(keys[1], (shape.h, shape.v), jnp.bfloat16)
    w = w * jnp.asarray(shape.h**-0.5, jnp.bfloat16)
    labels = jax.random.randint(keys[2], (shape.m,), 0, shape.v, jnp.int32)
    nll, lse = jax.random.normal(keys[3], (2, shape.m))
    return x, w, labels, nll / shape.m, lse / shape.m


def total(options: dict[str, Any], x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the mean as a weighted sum, and its gradients."""
    del nll, lse

    def value(x: Any, w: Any) -> Any:
        weights = jnp.full(labels.shape, 1 / labels.size)
        return kernels.linear_cross_entropy_sum(x, w, labels, weights=weights, **options)

    return jax.value_and_grad(value, (0, 1))(x, w)


def per_example(options: dict[str, Any], x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return both outputs, and gradients with a random cotangent for each."""
    loss = partial(kernels.linear_cross_entropy, **options)
    found, back = jax.vjp(lambda x, w: loss(x, w, labels), x, w)
    return found, back(type(found)(nll, lse))


def forward(options: dict[str, Any], x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the values alone."""
    del nll, lse
    return kernels.linear_cross_entropy(x, w, labels, **options)


def dense(x: Any, w: Any, labels: Any, nll: Any, lse: Any, dtype: Any = jnp.bfloat16) -> Any:
    """Return the mean loss as users write it without a library of heads."""
    del nll, lse

    def value(x: Any, w: Any) -> Any:
        z = jnp.matmul(x, w, preferred_element_type=dtype)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, labels))

    return jax.value_and_grad(value, (0, 1))(x, w)


def tokamax(x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the loss of another JAX library, a kernel for TPUs and chunks of XLA elsewhere."""
    from tokamax import linear_softmax_cross_entropy_loss as loss

    del nll, lse

    def value(x: Any, w: Any) -> Any:
        return loss(x, labels, w, reduction="mean", implementation="chunked_xla")

    return jax.value_and_grad(value, (0, 1))(x, w)


def three_products(x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Multiply what any method with gradients must multiply, without a loss."""
    del labels, nll, lse
    z = jax.lax.optimization_barrier(x @ w)
    return z @ w.T, x.T @ z


def one_product(x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Multiply what the values alone need."""
    del labels, nll, lse
    return x @ w


KERNEL = {"implementation": "mosaic_gpu"}
SMALL, LARGE = {"memory": 128 * MIB}, {"memory": 512 * MIB}
XLA = {"implementation": "xla_chunked"}
OURS = {
    "sum": Program(partial(total, KERNEL | LARGE), 3, 0.95, 559),
    "sum, 128 MiB": Program(partial(total, KERNEL | SMALL), 3, 0.88, 150),
    "per example, 512 MiB": Program(partial(per_example, KERNEL | LARGE), 4, 0.95, 559),
    "per example": Program(partial(per_example, KERNEL | SMALL), 4, 0.90, 170),
    "forward": Program(partial(forward, KERNEL), 1, 0.98, 20),
}
PRODUCTS = {
    "three products": Program(three_products),
    "one product": Program(one_product, 1),
}
SOFTMAX = OURS | {
    "dense": Program(dense),
    "dense, float32 logits": Program(partial(dense, dtype=jnp.float32)),
    "sum, xla": Program(partial(total, XLA | LARGE)),
    "per example, xla": Program(partial(per_example, XLA | SMALL), 4),
}
SOFTMAX |= PRODUCTS
if importlib.util.find_spec("tokamax"):
    SOFTMAX["tokamax"] = Program(tokamax)
OF_MORE_ROWS = {
    "sum": Program(partial(total, KERNEL), 3, None, 512),
    "per example": OURS["per example"]._replace(share=None, megabytes=256),
    "forward": OURS["forward"]._replace(share=None, megabytes=110),
    "dense": Program(dense),
} | PRODUCTS


# -- The sigmoid's --


def data_of_labels(shape: Shape) -> tuple[jax.Array, ...]:
    """Return the same features and weights, targets with one in 1,000 true, and cotangents."""
    x, w, _, cotangents, unused = data(shape)
    targets = jax.random.bernoulli(jax.random.key(3), 1e-3, (shape.m, shape.v))
    return x, w, targets, cotangents, unused


def labels_total(options: dict[str, Any], x: Any, w: Any, targets: Any, c: Any, unused: Any) -> Any:
    """Return the weighted sum of the examples' losses, and its gradients."""
    del unused

    def value(x: Any, w: Any) -> Any:
        return kernels.linear_binary_cross_entropy_sum(x, w, targets, weights=c, **options)

    return jax.value_and_grad(value, (0, 1))(x, w)


def labels_per_example(
    options: dict[str, Any], x: Any, w: Any, targets: Any, c: Any, unused: Any
) -> Any:
    """Return each example's loss, and gradients with a random cotangent for each."""
    del unused
    loss = partial(kernels.linear_binary_cross_entropy, **options)
    found, back = jax.vjp(lambda x, w: loss(x, w, targets), x, w)
    return found, back(c)


def labels_forward(
    options: dict[str, Any], x: Any, w: Any, targets: Any, c: Any, unused: Any
) -> Any:
    """Return the values alone."""
    del c, unused
    return kernels.linear_binary_cross_entropy(x, w, targets, **options)


def labels_dense(x: Any, w: Any, targets: Any, c: Any, unused: Any) -> Any:
    """Return the loss as users write it without a library of heads."""
    del unused

    def value(x: Any, w: Any) -> Any:
        each = optax.sigmoid_binary_cross_entropy(x @ w, targets.astype(x.dtype))
        return jnp.vdot(c, jnp.sum(each, 1, dtype=jnp.float32))

    return jax.value_and_grad(value, (0, 1))(x, w)


def labels_with_everything(x: Any, w: Any, targets: Any, c: Any, unused: Any) -> Any:
    """Return the losses with softcap, bias, mask and weights of the positives."""
    del unused
    ones = jnp.ones(w.shape[1])

    def value(x: Any, w: Any) -> Any:
        return kernels.linear_binary_cross_entropy_sum(
            x, w, targets, weights=c, bias=c.sum() * ones, pos_weight=c.max() * ones,
            where=targets.any(0), softcap=30.0, implementation="mosaic_gpu",
        )  # fmt: skip

    return jax.value_and_grad(value, (0, 1))(x, w)


OURS_OF_LABELS = {
    "sum": Program(partial(labels_total, KERNEL), 3, 0.90, 300),
    "per example": Program(partial(labels_per_example, KERNEL), 4, None, 300),
    "forward": Program(partial(labels_forward, KERNEL), 1, 0.92, 100),
}
SIGMOID = OURS_OF_LABELS | {
    "dense": Program(labels_dense),
    "sum, xla": Program(partial(labels_total, XLA)),
    "per example, xla": Program(partial(labels_per_example, XLA), 4),
}
SIGMOID |= PRODUCTS


# -- Errors --


def errors(head: tuple[jax.Array, ...], built: dict[str, Any]) -> dict[str, float]:
    """Return the largest errors of values, and distances from dense gradients, by their norms."""
    x, w, labels, *_ = head
    rows = slice(0, 128)
    # A GPU's default rounds float32 to TF32.
    z = jnp.matmul(*(a.astype(jnp.float32) for a in (x[rows], w)), precision="highest")
    lse = jax.nn.logsumexp(z, 1)
    nll = lse - jnp.take_along_axis(z, labels[rows, None], 1)[:, 0]
    values = built["forward"](*head)
    return {
        "nll": float(jnp.max(jnp.abs(values.nll[rows] - nll))),
        "lse": float(jnp.max(jnp.abs(values.lse[rows] - lse))),
    } | from_dense(head, built)


def errors_of_labels(head: tuple[jax.Array, ...], built: dict[str, Any]) -> dict[str, float]:
    """Return the same for the sigmoid, whose values are sums over labels."""
    x, w, targets, *_ = head
    rows = slice(0, 128)
    z = jnp.matmul(*(a.astype(jnp.float32) for a in (x[rows], w)), precision="highest")
    each = optax.sigmoid_binary_cross_entropy(z, targets[rows].astype(jnp.float32))
    off = jnp.abs(built["forward"](*head)[rows] / jnp.sum(each, 1) - 1)
    return {"values, relative": float(jnp.max(off))} | from_dense(head, built)


def from_dense(head: tuple[jax.Array, ...], built: dict[str, Any]) -> dict[str, float]:
    """Return the distances of the sum's gradients from the dense ones, by their norms."""

    def off(a: jax.Array, b: jax.Array) -> float:
        norm = jnp.linalg.norm(b.astype(jnp.float32))
        return float(jnp.linalg.norm(a.astype(jnp.float32) - b.astype(jnp.float32)) / norm)

    pairs = zip(built["sum"](*head)[1], built["dense"](*head)[1], strict=True)
    return dict(zip(("dx from dense", "dw from dense"), (off(*p) for p in pairs), strict=True))


def logits(small: bool) -> dict[str, float]:
    """Return value and gradient of cross-entropy over logits, and a copy, in bytes per second."""
    m, v = (8, 64) if small else (8192, 131_072)
    z = jax.random.normal(jax.random.key(1), (m, v), jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(2), (m,), 0, v)
    run = jax.jit(jax.value_and_grad(lambda z: jnp.mean(cross_entropy(z, labels))))
    calls = {"logits": partial(run, z), "copy": partial(jax.jit(lambda a: -a), z)}
    timing = measure.paired(calls, rounds=3 if small else 15)["seconds"]
    rates = {name: 2 * z.nbytes / s["median"] for name, s in timing.items()}
    return {f"{name} bytes per second": rate for name, rate in rates.items()} | {
        "share": rates["logits"] / rates["copy"]
    }


class Peers:
    """Heads of other libraries, in a process that has PyTorch."""

    def __init__(self, python: str, shape: Shape) -> None:
        """Start the process; its first line has the installed libraries."""
        script = str(Path(__file__).with_name("gpu_peers.py"))
        self.process = subprocess.Popen(
            [python, script, *map(str, shape), *PEERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        self.versions: dict[str, str] = json.loads(line or "{}")
        self.names = [name for name in PEERS if name in self.versions]

    def seconds(self, name: str, times: int) -> float:
        """Run that number of passes there, and return their time in seconds."""
        self.process.stdin.write(f"{name} {times}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return float(self.process.stdout.readline())  # type: ignore[union-attr]

    def close(self) -> None:
        """End the process, which releases its memory."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def peers(python: str, shape: Shape, rounds: int) -> dict[str, Any]:
    """Return the times of the heads of other libraries that are installed."""
    others = Peers(python, shape)
    clocks = {name: partial(others.seconds, name, 3) for name in others.names}
    found = measure.paired({}, rounds=rounds, clocks=clocks)["seconds"] if clocks else {}
    others.close()
    for name, seconds in found.items():
        print(f"{name:24}{1e3 * seconds['median'] / 3:10.3f} ms")
    return {"versions": others.versions, "seconds of three": found}


# -- Compilation without the device --


def compile_for(name: str, *, as_json: bool) -> None:
    """Print each kernel's registers, shared memory and spills, and each program's temporaries."""
    jax.config.update("jax_platforms", "cpu")
    found = {}
    for program, entry in compiled_without(name):
        found[program] = entry
        if not as_json:
            limit = "" if entry["limit"] is None else f" (bar {entry['limit']:.0f})"
            print(f"{name} {program:40}{entry['megabytes']:8.1f} MB{limit}", flush=True)
            for kernel, resources in entry["kernels"].items():
                print(f"    {kernel:48} {resources}")
    if as_json:
        print(json.dumps({name: found}))


def compiled_without(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each program's memory and its kernels' resources, on a device that is only described.

    Without Triton's products, as a real device multiplies.
    """
    import compile_targets

    device = compile_targets.device_of(name)
    place = jax.sharding.SingleDeviceSharding(device)
    for title, (program, make, shape) in COMPILED.items():
        types = jax.eval_shape(partial(make, shape))
        types = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in types]
        with compile_targets.traced_for(name, device), compile_targets.dumped() as folder:
            built = jax.jit(program.run).lower(*types)
            built = built.compile(compiler_options=compile_targets.GPU_OPTIONS)
            kernels = compile_targets.kernels(folder)
        megabytes = measure.temporary_bytes(built) / 1e6
        yield title, {"megabytes": megabytes, "limit": program.megabytes, "kernels": kernels}


def with_everything(x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the losses with statistics, softcap, bias and mask, the most work at a tile's end."""
    del lse
    options = {
        "bias": nll.sum() * jnp.ones(w.shape[1]),
        "where": labels.sum() > jnp.arange(w.shape[1]),
    }
    return kernels.linear_cross_entropy_stats(
        x, w, labels, softcap=30.0, implementation="mosaic_gpu", **options
    )


def alone(x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the values of rows that fill one tile, which shares no tiles of w with another."""
    return forward(KERNEL, x[:128], w, labels[:128], nll, lse)


# Compared with dense logits: GPT-2's head, whose classes are padded, and a small one.
COMPARED = (SHAPE, Shape(2048, 768, 50_257), Shape(4096, 1024, 1000))
COMPILED: dict[str, tuple[Program, Callable[..., Any], Shape]] = {
    **{name: (program, data, SHAPE) for name, program in OURS.items()},
    "more rows, sum": (OF_MORE_ROWS["sum"], data, MORE_ROWS),
    "more rows, per example": (OF_MORE_ROWS["per example"], data, MORE_ROWS),
    "everything": (Program(with_everything), data, SHAPE),
    "forward, a core alone": (Program(alone), data, SHAPE),
    **{f"labels, {n}": (p, data_of_labels, LABELS) for n, p in OURS_OF_LABELS.items()},
    "labels, everything": (Program(labels_with_everything), data_of_labels, LABELS),
    **{f"default, {shape}": (Program(partial(total, {})), data, shape) for shape in COMPARED},
    **{f"dense, {shape}": (Program(dense), data, shape) for shape in COMPARED},
}


if __name__ == "__main__":
    main()
