"""Cross-entropy over logits that exist: rates beside XLA's copy and Optax's loss.

Value and gradient of a mean loss over logits in memory need one read and one write. What share of
the rate of XLA's own copy is reached, in the same run, by `mean_cross_entropy`, whose gradient is
written in the forward pass; by `cross_entropy` with a cotangent for each example, which reads the
logits twice; by this library's form for XLA; and by Optax? Is any of them slower than Optax's at
some number of classes from 2 to 262,144? And what of softmax, its logarithm, logsumexp, and the
losses with soft and binary targets, which XLA computes?

Findings, on two CPU cores, of value and gradient of the mean of `cross_entropy` (in the record "per
example"): 0.96, 1.07, 1.01 and 0.92 times Optax's time, with no more temporary memory, also for a
prime number of classes, where the bound is 9 ulp. Both are bound by passes over memory; this
library has one pass more over an array that is still in the cache, and a cheaper exponential. When
neighbors on the machine used the cache, other runs of the same code gave 1.1 to 1.5, with wide
quartiles, at (4096, 1000), whose two arrays of 16 MB just fit. Three details of XLA count for a
tenth or more each on the CPU: row quantities as [N] rather than [N, 1], no constant -inf shared
with the initial value of the maximum, and masking the label's entry before the sum rather than in
it.

On a GPU this version was compiled and interpreted, and not timed. On one H200 under jax 0.11.2
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
28. With a cotangent for each value, and value and gradient together, a sibling moves as few bytes
for a bfloat16 logit as its passes need, for an H200 and a B200 alike: one read for the maxima, one
for the sums, and a read and a write for each result. softmax and log_softmax move 14 in place of 28
(jax.nn 16 and 14), soft_cross_entropy and kl_divergence 12, also of log-targets (22; Optax 12 and
14), logsumexp, entropy, brier and smoothed_cross_entropy 8 (18, 24, 40 and 13), multiclass_hinge 6
(8), and binary_cross_entropy 10, in one pass. This took three things: no sum needs another sum, the
sums of value and gradient are the same expressions, and the maximum is reduced together with the
number of its ties.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsoftmax as js
from benchmarks.timing import Conditions, Step, compiled, memory, timed
from jaxsoftmax import softmax_core

OPERATIONS = 4  # of a logit: a difference, an exponential, a sum, a product


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


# Shapes, and on a GPU the bars: the share of the rate of XLA's copy.
OF_ACCELERATORS = {
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
OF_CPUS = ((4096, 1000), (2048, 32_768), (60_000, 10), (4096, 1009))
SHAPES: dict[str, dict[Shape, float | None]] = {
    "cpu": dict.fromkeys((Shape(*sizes, "float32") for sizes in OF_CPUS), None),
    "gpu": OF_ACCELERATORS,
    "tpu": dict.fromkeys(OF_ACCELERATORS, None),
    "smoke": {Shape(64, 100, "float32"): None},
}
CLASSES = (1000, 32, 32_001, 131_072, 2, 4096, 257, 65_536, 10, 262_144, 100, 2049, 12_289,
           98_304, 33, 768, 8192, 24_576, 196_608, 3, 512, 1536, 49_152, 250_002, 767)  # fmt: skip
TOGETHER = 5  # numbers of classes of a step
SWEPT = {"cpu": (2**24, "float32"), "gpu": (2**27, "bfloat16"), "tpu": (2**27, "bfloat16"),
         "smoke": (2**10, "float32")}  # fmt: skip
SIBLINGS = {"cpu": Shape(2048, 4096, "float32"), "gpu": Shape(8192, 32_768),
            "tpu": Shape(8192, 32_768), "smoke": Shape(16, 40, "float32")}  # fmt: skip


def steps(conditions: Conditions) -> list[Step]:
    """Return a step for each shape."""
    return [
        Step(str(shape), partial(rates, shape, LOSSES, conditions.smoke, bar))
        for shape, bar in conditions.of(SHAPES).items()
    ]


def steps_by_classes(conditions: Conditions) -> list[Step]:
    """Return a step for some numbers of classes after the other, far apart at first."""
    classes = (40,) if conditions.smoke else CLASSES
    groups = [classes[first : first + TOGETHER] for first in range(0, len(classes), TOGETHER)]
    return [Step(f"{group}", partial(by_classes, group, conditions)) for group in groups]


def steps_of_siblings(conditions: Conditions) -> list[Step]:
    """Return the step of the functions beside cross-entropy."""
    shape = conditions.of(SIBLINGS)
    return [Step(str(shape), partial(rates, shape, SIBLING_PROGRAMS, conditions.smoke))]


def by_classes(classes: tuple[int, ...], conditions: Conditions) -> dict[str, Any]:
    """Return rates for some numbers of classes, in arrays of one size."""
    entries, dtype = conditions.of(SWEPT)
    programs = {name: LOSSES[name] for name in ("mean", "copy", "optax")}
    shapes = {k: Shape(max(1, entries // k), k, dtype) for k in classes}
    return {str(k): rates(shape, programs, conditions.smoke) for k, shape in shapes.items()}


def rates(
    shape: Shape, programs: dict[str, Callable[..., Any]], smoke: bool, bar: float | None = None
) -> dict[str, Any]:
    """Return paired times, shares of the copy's rate, and temporary bytes."""
    arrays = data(shape)
    built = compiled({name: (f, arrays) for name, f in programs.items()}, smoke=smoke)
    entry = timed({name: partial(f, *arrays) for name, f in built.items()}, smoke=smoke)
    entry["temporary_bytes"] = memory(built)
    entry |= {"operations": OPERATIONS * shape.n * shape.k, "bytes": shape.bytes}
    entry["dtype"] = shape.dtype
    if "copy" in programs:
        seconds = {name: s["median"] for name, s in entry["seconds"].items()}
        entry["share of the copy"] = {name: seconds["copy"] / s for name, s in seconds.items()}
    show(shape, entry, bar)
    return entry


def show(shape: Shape, entry: dict[str, Any], bar: float | None) -> None:
    """Print one line per program."""
    for name, seconds in entry["seconds"].items():
        text = f"{name:22}{1e6 * seconds['median']:12.1f} us"
        text += f"{shape.bytes / seconds['median'] / 1e9:8.1f} GB/s"
        if "share of the copy" in entry:
            text += f"{entry['share of the copy'][name]:7.2f} of the copy"
        text += f"{entry['temporary_bytes'][name] / 1e6:9.1f} MB"
        if name == "mean":
            text += f"  bar {bar:.2f}" if bar else ""
            text += "  SLOWER THAN OPTAX" if entry["ratios"]["optax"]["median"] > 1 else ""
        print(text, flush=True)


# -- The functions --


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
    "mean": mean,
    "per example": per_example,
    "values": values,
    "xla": by_xla,
    "optax": by_optax,
    "copy": copy,
}
SIBLING_PROGRAMS = {
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
    "copy": copy,
}
