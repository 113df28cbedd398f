"""Cross-entropy over logits that exist, on a GPU: the share of the rate of a copy.

Command: `python experiments/gpu_rows.py [--minutes 3]` on an H100 or H200. The most telling
measurements come first, and what does not fit the minutes is left out. The record is
results/gpu_rows_DEVICE.json, with a figure of the same name, written again after each part.
`--tune` measures the candidates for the table in kernels/gpu/rows/plans.py and writes nothing.
`--smoke` interprets the kernels on a CPU at tiny shapes, in a minute, and writes nothing.
`--compile h200` or `b200` compiles the kernels for an absent GPU and prints registers,
shared memory, spills and temporary bytes; it needs `jax[cuda13]`, in a separate environment.

Question. Value and gradient of a mean loss over logits in memory need one read and one write. What
share of the rate of XLA's own copy is reached, in the same run, by `mean_cross_entropy`, whose
gradient is written in the forward pass; by `cross_entropy` with a cotangent for each example, which
reads the logits twice; by this library's form for XLA; and by Optax? Is any of them slower than
Optax's at some number of classes from 2 to 262,144? How far are values and gradients from float64,
in ulps? And what of softmax, its logarithm, logsumexp, and the losses with soft and binary targets,
which XLA computes?

Findings. This version was compiled and interpreted, and not timed. On one H200 under jax 0.11.2
(November 2026) a prototype of the kernel took, in microseconds, beside Optax and the form for XLA:

    bfloat16 8192 x 32768      303    1155    1044    1.18 of the copy's rate
    bfloat16 8192 x 131072    1236    4610    3840    1.12
    bfloat16 4096 x 262144    1711    4487    3820    0.82
    bfloat16 8192 x 50257      732    1963    2455    0.74, in blocks that share rows
    bfloat16 16384 x 4096      120     316     311    0.81
    bfloat16 65536 x 1000      169     314     299    0.56
    float32 2048 x 32768       169     304     350    0.86

with values within 3.1 ulp, gradients within 5.5 in float32 and 0.51 of half precision. Compiled for
an H200 or a B200, a kernel has at most 128 registers a thread and spills nothing, and a program has
no temporary array of the size of the logits. XLA's form, for other GPUs and sizes, computes
exponentials again where it stored them in float32: at 8192 x 32768 in bfloat16 8 bytes are moved
for each logit in place of 14, and 1,074 MB of temporaries are gone; with 10 classes 17 in place of
28. Softmax and logsumexp with its gradient have 8 in place of 14, the gradient of log_softmax 16 in
place of 27, and the mean of binary_cross_entropy with its gradient 6 in place of 32, in one pass.
The gradient of softmax (26, jax.nn 14) and soft_cross_entropy (22, Optax 12) still store
exponentials.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

import jaxsoftmax as js
from jaxsoftmax import softmax_core
from jaxsoftmax.kernels import target
from jaxsoftmax.kernels.gpu.rows import implementation, plans
from jaxsoftmax.kernels.gpu.rows.plans import Tuning

START = time.perf_counter()
SECONDS = 0.02  # short calls are timed several times in a row
ROUNDS = 9
EXACT_ROWS = 64  # compared with float64 on the host


class Shape(NamedTuple):
    """Rows, classes and dtype of logits."""

    n: int
    k: int
    dtype: str = "bfloat16"

    @property
    def bytes(self) -> int:
        """Return the bytes of one read and one write."""
        return 2 * self.n * self.k * jnp.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        """Return the shape as it is printed."""
        return f"{self.dtype} {self.n} x {self.k}"


# Shapes, and the bars: the share of the rate of XLA's copy.
BARS = {
    Shape(8192, 32_768): 1.0,
    Shape(8192, 131_072): 1.0,
    Shape(8192, 50_257): 0.9,
    Shape(2048, 32_768, "float32"): 0.9,
    Shape(65_536, 1000): 0.7,
    Shape(16_384, 4096): 0.8,
    Shape(8192, 128_256): 0.9,
    Shape(4096, 262_144): 0.9,
    Shape(8192, 32_000, "float32"): 0.9,
    Shape(2048, 131_072, "float32"): 0.9,
    Shape(65_536, 1009): 0.7,
    Shape(8192, 32_768, "float16"): 1.0,
    Shape(1_048_576, 10): 0.6,
    Shape(1_048_576, 10, "float32"): 0.6,
}
EXACT = (
    *(Shape(8448, k) for k in (1000, 1009, 4096, 32_768, 50_257, 131_072)),
    Shape(2048, 262_144, "float16"),
    Shape(2112, 30_001, "float32"),
    Shape(2112, 32_768, "float32"),
)
SWEEP = (2, 3, 10, 32, 33, 100, 257, 512, 767, 768, 1000, 1536, 2049, 4096, 8192, 12_289, 24_576,
         32_001, 49_152, 65_536, 98_304, 131_072, 196_608, 250_002, 262_144)  # fmt: skip
SWEEP_ENTRIES = 2**27
SIBLINGS = Shape(8192, 32_768)
SMOKE = Shape(32, 1000)

# What was not tried, or only in one dtype: a group's warpgroups, a cluster's blocks, whether rows
# overlap, waves.
CANDIDATES = {
    Shape(2048, 131_072, "float32"): [Tuning(4, c, o, w) for c in (4, 8) for o in (False, True)
                                      for w in (1, 4)],
    Shape(4096, 262_144): [Tuning(4, c, o, w) for c in (4, 8) for o in (False, True)
                           for w in (2, 4, 8)],
    Shape(8192, 50_257): [Tuning(4, 1, False), Tuning(4, 2, True), Tuning(4, 2, False, 4)],
    Shape(8192, 128_256): [Tuning(4, 2, False, w) for w in (1, 2, 4)],
    Shape(8192, 32_000, "float32"): [Tuning(4, 1, False, w) for w in (1, 2, 4)],
    Shape(65_536, 1000): [Tuning(1, 1, False, w) for w in (2, 3, 4, 6)],
    Shape(16_384, 4096): [Tuning(1, 1, True, w) for w in (1, 2)] + [Tuning(2, 1, True)],
}  # fmt: skip


def main() -> None:
    """Measure or compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3, help="no part is started later")
    parser.add_argument("--tune", action="store_true", help="measure candidates for the table")
    parser.add_argument("--compile", metavar="TARGET", help="h200 or b200")
    parser.add_argument("--json", action="store_true", help="print compiled resources as JSON")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU, no record")
    arguments = parser.parse_args()
    if arguments.compile:
        compile_for(arguments.compile, as_json=arguments.json)
    elif arguments.tune:
        tune(60 * arguments.minutes)
    elif arguments.smoke:
        jax.config.update("jax_platforms", "cpu")
        with target.assumed("gpu", interpret=True):
            # The interpreter takes seconds a call, and a kernel more classes than 40.
            run((SMOKE,), {SMOKE._replace(k=40): 0.0}, (2,), SMOKE._replace(k=40), small=True)
    else:
        run(EXACT, BARS, SWEEP, SIBLINGS, seconds=60 * arguments.minutes)


def run(
    exact: tuple[Shape, ...],
    bars: dict[Shape, float],
    classes: tuple[int, ...],
    siblings: Shape,
    *,
    seconds: float = math.inf,
    small: bool = False,
) -> None:
    """Measure part after part while there is time; the record grows with each."""
    parts: dict[str, Callable[[], Any]] = {
        **{f"errors, {shape}": partial(errors, shape) for shape in exact},
        **{f"rates, {s}": partial(rates, s, LOSSES, small, bar) for s, bar in bars.items()},
        **{f"sweep, {k}": partial(rates, swept(k, small), SWEPT, small) for k in classes},
        "siblings": lambda: rates(siblings, SIBLING_PROGRAMS, small),
    }
    record: dict[str, Any] = {}
    for title, part in parts.items():
        if time.perf_counter() - START > seconds:
            print(f"{title}: no time left")
            continue
        print(f"\n{title}, after {time.perf_counter() - START:.0f} s", flush=True)
        record[title] = part()
        if not small:
            written(record)


def written(record: dict[str, Any]) -> None:
    """Write the record and the figure, named by the device."""
    device = jax.devices()[0].device_kind.lower().replace(" ", "_")
    path = measure.write_record(f"gpu_rows_{device}", record)
    draw(record, path.with_suffix(".png"))


# -- Exactness --


def errors(shape: Shape) -> dict[str, float]:
    """Return the largest errors of values and gradients against float64, in ulps."""
    z, labels, cotangents = data(shape)
    run = jax.jit(lambda *arrays: jax.vjp(lambda z: js.cross_entropy(z, arrays[1]), arrays[0]))
    values, back = run(z, labels)
    gradient = back(cotangents)[0]
    some = slice(0, EXACT_ROWS)
    want, slope = truth(np.float64(z[some]), np.asarray(labels[some]))
    slope *= np.float64(cotangents[some, None])
    found = {
        "value": ulps(np.float64(values[some]), want, jnp.float32),
        "gradient": ulps(np.float64(gradient[some]), slope, z.dtype),
    }
    limit = 8 if shape.dtype == "float32" else 0.51
    is_right = found["value"] <= 8 and found["gradient"] <= limit
    print(f"{found}{'' if is_right else '  WRONG'}", flush=True)
    return found


def truth(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return losses and gradients in float64, without a difference of nearly equal numbers."""
    rows = np.arange(len(z))
    largest = z.max(1)
    e = np.exp(z - largest[:, None])
    own = e[rows, labels].copy()
    e[rows, labels] = 0
    others = e.sum(1)
    leads = np.log1p(others / own)
    values = np.where(own == 1, leads, np.log(others + own) + largest - z[rows, labels])
    gradient = e / (others + own)[:, None]
    gradient[rows, labels] = -others / (others + own)
    return values, gradient


def ulps(found: np.ndarray, want: np.ndarray, dtype: Any) -> float:
    """Return the largest error in units of the last place, of normal numbers."""
    info = jnp.finfo(dtype)
    size = np.maximum(np.abs(want), float(info.tiny))
    error = np.abs(found - want) / np.exp2(np.floor(np.log2(size)) - info.nmant)
    return float(np.max(np.where(np.abs(want) < 4 * float(info.tiny), 0, error)))


# -- Rates --


def data(shape: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return logits of standard deviation 3, labels and cotangents."""
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(lambda key: jax.random.normal(key, (shape.n, shape.k), jnp.bfloat16))
    z = (jnp.bfloat16(3) * draw(keys[0])).astype(shape.dtype)
    labels = jax.random.randint(keys[1], (shape.n,), 0, shape.k, jnp.int32)
    return z, labels, jax.random.normal(keys[2], (shape.n,))


def mean(z: Any, labels: Any, cotangents: Any) -> Any:
    """Return the mean loss and its gradient: one read and one write."""
    del cotangents
    return jax.value_and_grad(js.mean_cross_entropy)(z, labels)


def per_example(z: Any, labels: Any, cotangents: Any) -> Any:
    """Return the weighted sum and its gradient: two reads and one write."""
    return jax.value_and_grad(lambda z: jnp.vdot(cotangents, js.cross_entropy(z, labels)))(z)


def values(z: Any, labels: Any, cotangents: Any) -> Any:
    """Return the losses: one read."""
    del cotangents
    return js.cross_entropy(z, labels)


def by_xla(z: Any, labels: Any, cotangents: Any) -> Any:
    """Return what `per_example` returns, without a kernel."""

    def value(z: Any) -> Any:
        rows = softmax_core.prepare_labeled_rows(z, labels, -1, None, None)
        return jnp.vdot(cotangents, softmax_core.value_and_gradient(*rows)[0])

    return jax.value_and_grad(value)(z)


def by_optax(z: Any, labels: Any, cotangents: Any) -> Any:
    """Return what `mean` returns, with float32 sums as here."""
    del cotangents
    loss = optax.softmax_cross_entropy_with_integer_labels
    return jax.value_and_grad(lambda z: jnp.mean(loss(z.astype(jnp.float32), labels)))(z)


def copy(z: Any, labels: Any, cotangents: Any) -> Any:
    """Return the negative logits: XLA's own one read and one write."""
    del labels, cotangents
    return -z


def of_logits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return value and gradient of the sum of a function of the logits in float32."""

    def program(z: Any, labels: Any, cotangents: Any) -> Any:
        del labels, cotangents
        return jax.value_and_grad(lambda z: jnp.sum(function(z).astype(jnp.float32)))(z)

    return program


def forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the logits as a program."""
    return lambda z, labels, cotangents: function(z)


def soft(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return value and gradient of a mean loss whose targets are the reversed logits, bounded."""

    def program(z: Any, labels: Any, cotangents: Any) -> Any:
        del labels, cotangents
        targets = jnp.clip(z[::-1], 0, 1)
        return jax.value_and_grad(lambda z: jnp.mean(loss(z, targets)))(z)

    return program


def optax_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return Optax's loss with float32 sums as here."""
    return lambda z, targets: loss(z.astype(jnp.float32), targets.astype(jnp.float32))


LOSSES = {
    "copy": copy,
    "mean": mean,
    "per example": per_example,
    "values": values,
    "xla": by_xla,
    "optax": by_optax,
}
SWEPT = {name: LOSSES[name] for name in ("copy", "mean", "optax")}
SIBLING_PROGRAMS = {
    "copy": copy,
    "softmax": forward(js.softmax),
    "softmax, jax.nn": forward(jax.nn.softmax),
    "log_softmax": forward(js.log_softmax),
    "log_softmax, jax.nn": forward(jax.nn.log_softmax),
    "logsumexp": of_logits(js.logsumexp),
    "logsumexp, jax.nn": of_logits(lambda z: jax.nn.logsumexp(z.astype(jnp.float32), -1)),
    "soft": soft(js.soft_cross_entropy),
    "soft, optax": soft(optax_loss(optax.softmax_cross_entropy)),
    "binary": soft(js.binary_cross_entropy),
    "binary, optax": soft(optax_loss(optax.sigmoid_binary_cross_entropy)),
}


def swept(k: int, small: bool) -> Shape:
    """Return the shape of the sweep at this number of classes."""
    return Shape(16 if small else SWEEP_ENTRIES // k, k)


def rates(
    shape: Shape, programs: dict[str, Callable[..., Any]], small: bool, bar: float | None = None
) -> dict[str, Any]:
    """Return paired times, shares of the copy's rate, and temporary bytes."""
    arrays = data(shape)
    built = {name: jax.jit(f).lower(*arrays).compile() for name, f in programs.items()}
    entry = timed({name: partial(f, *arrays) for name, f in built.items()}, small)
    entry["temporary_bytes"] = {name: measure.temporary_bytes(f) for name, f in built.items()}
    show(shape, entry, bar)
    return entry


def timed(calls: dict[str, Callable[[], Any]], small: bool) -> dict[str, Any]:
    """Return microseconds and shares of the first call's rate, of calls that take turns."""
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = 1 if small else max(1, round(SECONDS / measure.clock(call)))
    repeated = {name: partial(last, call, repeats[name]) for name, call in calls.items()}
    timing = measure.paired(repeated, rounds=1 if small else ROUNDS)
    seconds = {name: s["median"] / repeats[name] for name, s in timing["seconds"].items()}
    first = next(iter(seconds.values()))
    return {
        "microseconds": {name: 1e6 * s for name, s in seconds.items()},
        "share of the copy": {name: first / s for name, s in seconds.items()},
    }


def last(call: Callable[[], Any], times: int) -> Any:
    """Return the last of several results; a device runs its programs one after the other."""
    for _ in range(times - 1):
        call()
    return call()


def show(shape: Shape, entry: dict[str, Any], bar: float | None) -> None:
    """Print one line per program."""
    for name, microseconds in entry["microseconds"].items():
        text = f"{name:22}{microseconds:12.1f} us {shape.bytes / microseconds / 1e3:8.0f} GB/s"
        text += f"{entry['share of the copy'][name]:7.2f} of the copy"
        temporary = entry.get("temporary_bytes", {}).get(name)
        text += "" if temporary is None else f"{temporary / 1e6:9.1f} MB"
        text += f"  bar {bar:.2f}" if name == "mean" and bar else ""
        print(text, flush=True)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the share of the copy's rate by the number of classes, where it was measured."""
    import figures

    swept = {int(t.split(", ")[1]): e for t, e in record.items() if t.startswith("sweep")}
    if not swept:
        return
    with figures.matplotlib.style.context(figures.STYLE):
        title = "Value and gradient over logits in memory, in bfloat16, at any number of classes"
        figure, axes = figures.slide(title, height=3.6)
        plot = axes[0, 0]
        for name, color in (("mean", figures.BLUE), ("optax", figures.ORANGE)):
            shares = [entry["share of the copy"][name] for entry in swept.values()]
            plot.plot(list(swept), shares, "o-", color=color, markersize=4)
            text = {"mean": "mean_cross_entropy", "optax": "Optax"}[name]
            figures.label(plot, text, (max(swept), shares[-1]), color, ha="right", va="bottom")
        plot.set(xscale="log", ylim=(0, None), xlabel="classes", ylabel="share of a copy's rate")
        figure.savefig(path, dpi=120)


# -- Tuning --


def tune(seconds: float) -> None:
    """Print the rates of the candidates for the table."""
    cores = target.current().core_count
    for shape, tunings in CANDIDATES.items():
        arrays = data(shape)
        calls = {"copy": partial(jax.jit(copy), *arrays)}
        for tuning in dict.fromkeys(tunings):
            plan = plans.plan(shape.k, jnp.dtype(shape.dtype).itemsize, tuning)
            if plan.fits:
                run = partial(
                    implementation.losses_and_gradient, plan=plan, cores=cores, interpret=False
                )
                group, cluster, overlaps, waves = tuning[:4]
                name = f"{group} x {cluster}{', overlapping' * overlaps}, {waves} waves"
                calls[name] = partial(jax.jit(run), *arrays)
        print(f"\n{shape}, after {time.perf_counter() - START:.0f} s", flush=True)
        show(shape, timed(calls, small=False), None)
        if time.perf_counter() - START > seconds:
            break


# -- Compilation without the device --


def compile_for(name: str, *, as_json: bool) -> None:
    """Print each kernel's registers, shared memory and spills, and its program's temporaries."""
    jax.config.update("jax_platforms", "cpu")
    found = resources(name)
    if as_json:
        print(json.dumps({name: found}))
    else:
        for title, entry in found.items():
            print(f"{name} {title:40} {entry}")


def resources(name: str) -> dict[str, Any]:
    """Return the resources of each plan's kernels, on a device that is only described."""
    import compile_targets

    device = compile_targets.device_of(name)
    place = jax.sharding.SingleDeviceSharding(device)
    found: dict[str, Any] = {}
    for shape in COMPILED:
        tuning = plans.choose(shape.k, jnp.dtype(shape.dtype).itemsize)
        plan = plans.plan(shape.k, jnp.dtype(shape.dtype).itemsize, tuning)
        for title, program in compiled_programs(plan).items():
            arrays = [
                jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
                for a in jax.eval_shape(partial(data, shape))
            ]
            with compile_targets.dumped() as folder:
                with compile_targets.traced_for(name, device):
                    donated = (0,) if title == "in place" else ()
                    lowered = jax.jit(program, donate_argnums=donated).lower(*arrays)
                built = lowered.compile()
                (kernel,) = compile_targets.kernels(folder).values()
            temporary = {"temporary_bytes": measure.temporary_bytes(built)}
            found[f"{shape}, {title}"] = kernel | temporary
    return found


# One shape for each plan, aligned or not.
COMPILED = (
    Shape(65_536, 1000),
    Shape(16_385, 4097, "float32"),
    Shape(8192, 32_768),
    Shape(8191, 50_257),
    Shape(8192, 131_072, "float16"),
    Shape(4096, 262_144),
)


def compiled_programs(plan: plans.Plan) -> dict[str, Callable[..., Any]]:
    """Return the kernels of a plan, as programs of logits, labels and cotangents."""
    options = {"plan": plan, "cores": 132, "interpret": False}
    both = partial(implementation.losses_and_gradient, **options)
    return {
        "losses": lambda z, labels, _: implementation.losses(z, labels, **options),
        "in place": partial(both, in_place=True),
    }


if __name__ == "__main__":
    main()
