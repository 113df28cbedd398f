"""Linear heads of language models' size on a GPU: the share of the products' own rate.

Command: `python experiments/gpu_head.py [--torch-python PATH]` on an H100 or H200, under 10
minutes with every shape and library; `--shapes 2048x4096x128256 ...` and `--rounds` select what
runs. The record is results/gpu_head.json, written again after each shape. `--smoke` interprets the
kernels on a CPU at a tiny shape, in under a minute, and writes nothing. `--compile h200` or `b200`
compiles the kernels for an absent GPU and prints registers, shared memory and spills; it needs
`jax[cuda13]`, in a separate environment.

Question. Value and gradients of a head of M examples, H features and V classes in bfloat16, whose
logits have a standard deviation of about 1, need three products of M H V, or four where the loss of
each example has its own cotangent. What share of the rate of these products alone, measured in the
same run, is reached, and how do other installed libraries compare? The bars:
- sum: `linear_cross_entropy_sum`, counted as 6 M H V: 0.93;
- per example: `linear_cross_entropy`, nll and lse with random cotangents, counted as 8 M H V: 0.93;
- forward: `linear_cross_entropy` alone, counted as 2 M H V against its one product: 0.95;
- logits: value and gradient of `cross_entropy` for existing logits, one read and one write: 0.90 of
  the bytes per second of a copy;
- and faster than torch, Liger, cut-cross-entropy, QuACK and tokamax, side by side.
The sigmoid's head (`linear_binary_cross_entropy` and its sum, with M x V targets as bools, one in
1,000 of them true) has the same bars, at one shape.

Findings. None of the bars has been measured yet, because no GPU was available. The kernels pass the
contract's tests in interpret mode, and compile for an H200 and a B200 without the device: 168
registers a thread at entry and 225 KiB of shared memory a block. Under jax 0.11.2 the warpgroups
that finish tiles then take 232 registers; on an H200 12 bytes a thread are spilled in the sum's
kernel and none in the others, the sigmoid's included; on a B200 4 with softcap, bias, mask and
statistics at once, at most 16 in the sigmoid's and none in the others. Under jax 0.12.0.1 the
assembler is run in a way that ignores the instruction by which they take more: on an H200 it spills
332 bytes in the sum's kernel, 40 in the gradient and none in the forward pass; on a B200 92 in the
sum's and none in the other two. The sigmoid's kernel that computes losses and gradients at once
spills 588 and 620 there (1,644 with softcap, bias, mask and weights on an H200), its forward pass
nothing.

On an H200 the inner loop is four products of 64 x 256 x 16 in a row and one wait; the end of a tile
is some 1,400 instructions a warp, about 2% of the time of a tile at H = 4096 if nothing hid it. On
a B200 it is four products of 128 x 256 x 16, or 256 x 256 x 16 by two cores together, issued by one
thread; the end of one tile overlaps the products of the next.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import optax

from jaxsoftmax import cross_entropy, kernels
from jaxsoftmax.kernels import target

SHAPES = ("2048x4096x128256", "4096x4096x128256", "8192x4096x262144", "8192x2304x256000")
LABELS = "8192x4096x32768"
SMOKE = "5x16x128"
BARS = {"sum": 0.93, "per example": 0.93, "forward": 0.95}
BAR_OF_LOGITS = 0.90
PRODUCTS = {"sum": 3, "per example": 4, "forward": 1}
PEERS = ("torch", "liger", "cut", "quack")  # in a separate process, where they are installed
# Short calls are timed several times in a row, so that their start does not count.
SECONDS = 0.05
# the memory of blocks where a budget is given
MEMORY = 2**32


class Shape(NamedTuple):
    """Examples, features and classes."""

    m: int
    h: int
    v: int

    @property
    def operations(self) -> int:
        """Return the operations of one product."""
        return 2 * self.m * self.h * self.v


def main() -> None:
    """Measure or compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
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
            run((SMOKE,), SMOKE, rounds=1, python=None, small=True)
    else:
        # The other libraries need the rest of the memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
        python = arguments.torch_python
        run(arguments.shapes, LABELS, rounds=arguments.rounds, python=python, small=False)


def run(
    texts: tuple[str, ...], labels: str, *, rounds: int, python: str | None, small: bool
) -> None:
    """Measure every shape, and the sigmoid's; the record grows with each."""
    record: dict[str, Any] = {"logits": logits(small), "labels": {}, "shapes": {}}
    entry = record["logits"]
    print(f"copy {entry['copy bytes per second'] / 1e9:.0f} GB/s, cross-entropy over logits "
          f"{entry['share']:.3f} of it (bar {BAR_OF_LOGITS})")  # fmt: skip
    for text, of in [(labels, OF_LABELS), *((text, PROGRAMS) for text in texts)]:
        shape = Shape(*map(int, text.split("x")))
        has_labels = of is OF_LABELS
        entry = measured(of, shape, rounds, None if has_labels else python, small)
        record["labels" if has_labels else "shapes"] |= {text: entry}
        show(f"{text}, sigmoid" if has_labels else text, shape, entry)
        if not small:
            path = measure.write_record("gpu_head", record)
            print("written:", path.name, flush=True)


def measured(
    of: dict[str, Callable[..., Any]], shape: Shape, rounds: int, python: str | None, small: bool
) -> dict[str, Any]:
    """Return paired times, shares of the products' rate, memory and errors at one shape."""
    head = data_of_labels(shape) if of is OF_LABELS else data(shape)
    built = {name: compiled(function, head) for name, function in of.items()}
    calls = {name: partial(program, *head) for name, program in built.items()}
    jax.block_until_ready(calls["sum"]())
    repeat = 1 if small else max(1, round(SECONDS / measure.clock(calls["sum"])))
    timed = {name: partial(repeated, call, repeat) for name, call in calls.items()}
    others = None if python is None else Peers(python, shape)
    clocks = {} if others is None else {n: partial(others.seconds, n, repeat) for n in others.names}
    timing = measure.paired(timed, rounds=rounds, clocks=clocks)
    if others is not None:
        others.close()
    medians = {name: s["median"] / repeat for name, s in timing["seconds"].items()}
    rates = {3: 3 * shape.operations / medians["three products"]}
    rates[1] = shape.operations / medians["one product"]
    rates[4] = 4 * shape.operations / (medians["three products"] + medians["one product"])
    return timing | {
        "repeat": repeat,
        "milliseconds": {name: 1e3 * s for name, s in medians.items()},
        "products per second": {str(count): rate for count, rate in rates.items()},
        "operations per second": {
            n: c * shape.operations / medians[n] for n, c in PRODUCTS.items()
        },
        "share": {n: c * shape.operations / medians[n] / rates[c] for n, c in PRODUCTS.items()},
        "temporary_bytes": {name: measure.temporary_bytes(p) for name, p in built.items()},
        "errors": (errors_of_labels if of is OF_LABELS else errors)(head, built),
        "peers": None if others is None else others.versions,
    }


def repeated(call: Callable[[], Any], times: int) -> Any:
    """Return the last of several results; a device runs its programs one after the other."""
    for _ in range(times - 1):
        call()
    return call()


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


def total(
    implementation: str, options: dict, x: Any, w: Any, labels: Any, nll: Any, lse: Any
) -> Any:
    """Return the mean as a weighted sum, and its gradients."""
    del nll, lse

    def value(x: Any, w: Any) -> Any:
        weights = jnp.full(labels.shape, 1 / labels.size)
        return kernels.linear_cross_entropy_sum(
            x, w, labels, weights=weights, implementation=implementation, **options
        )

    return jax.value_and_grad(value, (0, 1))(x, w)


def per_example(implementation: str, x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return both outputs, and gradients with a random cotangent for each."""
    loss = partial(kernels.linear_cross_entropy, memory=MEMORY // 8, implementation=implementation)
    found, back = jax.vjp(lambda x, w: loss(x, w, labels), x, w)
    return found, back(type(found)(nll, lse))


def forward(implementation: str, x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the values alone."""
    del nll, lse
    return kernels.linear_cross_entropy(x, w, labels, implementation=implementation)


def dense(x: Any, w: Any, labels: Any, nll: Any, lse: Any) -> Any:
    """Return the mean loss as users write it without a library of heads."""
    del nll, lse

    def value(x: Any, w: Any) -> Any:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ w, labels))

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


OURS: dict[str, Callable[..., Any]] = {
    # All rows at once, without a sum of w's gradient in float32.
    "sum": partial(total, "mosaic_gpu", {"tiles": kernels.Tiles(rows=8192, classes=8192)}),
    "per example": partial(per_example, "mosaic_gpu"),
    "forward": partial(forward, "mosaic_gpu"),
}
PROGRAMS: dict[str, Callable[..., Any]] = OURS | {
    "sum, usual memory": partial(total, "mosaic_gpu", {}),
    "sum, xla": partial(total, "xla_chunked", {"memory": MEMORY}),
    "per example, xla": partial(per_example, "xla_chunked"),
    "dense": dense,
    "three products": three_products,
    "one product": one_product,
}
if importlib.util.find_spec("tokamax"):
    PROGRAMS["tokamax"] = tokamax


# -- The sigmoid's --


def data_of_labels(shape: Shape) -> tuple[jax.Array, ...]:
    """Return the same features and weights, targets with one in 1,000 true, and cotangents."""
    x, w, _, cotangents, unused = data(shape)
    targets = jax.random.bernoulli(jax.random.key(3), 1e-3, (shape.m, shape.v))
    return x, w, targets, cotangents, unused


def labels_total(implementation: str, x: Any, w: Any, targets: Any, c: Any, unused: Any) -> Any:
    """Return the weighted sum of the examples' losses, and its gradients."""
    del unused

    def value(x: Any, w: Any) -> Any:
        return kernels.linear_binary_cross_entropy_sum(
            x, w, targets, weights=c, implementation=implementation, memory=MEMORY // 8
        )

    return jax.value_and_grad(value, (0, 1))(x, w)


def labels_per_example(
    implementation: str, x: Any, w: Any, targets: Any, c: Any, unused: Any
) -> Any:
    """Return each example's loss, and gradients with a random cotangent for each."""
    del unused
    loss = partial(
        kernels.linear_binary_cross_entropy, memory=MEMORY // 8, implementation=implementation
    )
    found, back = jax.vjp(lambda x, w: loss(x, w, targets), x, w)
    return found, back(c)


def labels_forward(implementation: str, x: Any, w: Any, targets: Any, c: Any, unused: Any) -> Any:
    """Return the values alone."""
    del c, unused
    return kernels.linear_binary_cross_entropy(
        x, w, targets, memory=MEMORY // 8, implementation=implementation
    )


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


OURS_OF_LABELS: dict[str, Callable[..., Any]] = {
    "sum": partial(labels_total, "mosaic_gpu"),
    "per example": partial(labels_per_example, "mosaic_gpu"),
    "forward": partial(labels_forward, "mosaic_gpu"),
}
OF_LABELS = OURS_OF_LABELS | {
    "sum, xla": partial(labels_total, "xla_chunked"),
    "per example, xla": partial(labels_per_example, "xla_chunked"),
    "dense": labels_dense,
    "three products": three_products,
    "one product": one_product,
}


# -- Errors --


def compiled(function: Callable[..., Any], head: tuple[jax.Array, ...]) -> jax.stages.Compiled:
    """Compile for these arguments."""
    return jax.jit(function).lower(*head).compile()


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


def show(text: str, shape: Shape, entry: dict[str, Any]) -> None:
    """Print one line per function."""
    rates = {n: f"{r / 1e12:.1f}" for n, r in entry["products per second"].items()}
    print(f"\n{text}: products at {rates} TFLOP/s, errors {entry['errors']}")
    for name, milliseconds in entry["milliseconds"].items():
        count = PRODUCTS.get(name.split(",")[0], 1 if name == "one product" else 3)
        rate = count * shape.operations / milliseconds / 1e9
        share, memory = entry["share"].get(name), entry["temporary_bytes"].get(name)
        bar = "" if share is None else f"  {share:.3f} of the products, bar {BARS[name]}"
        bar += "" if memory is None else f"  {memory / 1e6:.0f} MB"
        print(f"{name:18}{milliseconds:10.3f} ms{rate:8.1f} TFLOP/s{bar}")


# -- Compilation without the device --


def compile_for(name: str, *, as_json: bool) -> None:
    """Print each kernel's registers, shared memory and spills, from the assembler's reports."""
    jax.config.update("jax_platforms", "cpu")
    found = resources(name)
    if as_json:
        print(json.dumps({name: found}))
    else:
        for kernel, entry in found.items():
            print(f"{name} {kernel:48} {entry}")


def resources(name: str) -> dict[str, Any]:
    """Return the resources of each program's kernels, on a device that is only described."""
    import compile_targets

    device = compile_targets.device_of(name)
    place = jax.sharding.SingleDeviceSharding(device)
    found: dict[str, Any] = {}
    for program, function in (COMPILED | COMPILED_OF_LABELS).items():
        head = of_labels() if program in COMPILED_OF_LABELS else of_classes()
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in head]
        with compile_targets.traced_for(name, device), compile_targets.dumped() as folder:
            built = jax.jit(function).lower(*shapes).compile()
            kernels = compile_targets.kernels(folder)
        megabytes = measure.temporary_bytes(built) / 1e6
        for kernel, entry in kernels.items():
            found[f"{program}: {kernel}"] = entry | {"program's temporary MB": megabytes}
    return found


def of_classes() -> Any:
    """Return the shapes of the largest head's arrays."""
    return jax.eval_shape(lambda: data(Shape(8192, 4096, 262_144)))


def of_labels() -> Any:
    """Return the shapes of the sigmoid's arrays."""
    return jax.eval_shape(lambda: data_of_labels(Shape(8192, 4096, 32_768)))


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
    return forward("mosaic_gpu", x[:128], w, labels[:128], nll, lse)


COMPILED = OURS | {"everything": with_everything, "forward, a core alone": alone}
COMPILED_OF_LABELS = {f"labels, {name}": program for name, program in OURS_OF_LABELS.items()}
COMPILED_OF_LABELS |= {"labels, everything": labels_with_everything}


if __name__ == "__main__":
    main()
