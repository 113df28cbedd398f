"""Exactness: how far cross-entropy and its gradient are from the true value, entry by entry.

In units in the last place of each entry, how large are the errors of the loss and its gradient in
float32 for jaxsoftmax, Optax, jax.nn's log_softmax and PyTorch? The rows are random, with the label
on the largest logit ("confident") or anywhere, at several scales, offsets and class counts; and
there are rows in which every addition to the sum may round the same way, because one large number
meets hundreds of equal small ones. The truth is computed in 80-bit extended precision, which is
2^-40 finer than the unit. Entries whose true value is below the smallest normal number are left
out. Where a loss is 0 and the truth is 1e-9, the error is about 16.8 million units, the whole
value.

An accelerator's kernels are tried on their own sizes too, in half precision and with a cotangent
for each row; there the bounds are 8 units for values and float32, and 0.51 for a gradient in half
precision.

Findings, on a CPU: the error of this library is at most 4.2 ulp in any entry of random rows, and
5.4 under ties. All peers return 0 for a loss or a gradient entry that is a small normal number
wherever rows are confident, lose up to 1,090 ulp of the loss to an offset (Optax), and 19 to 129
ulp of the gradient to the rounding of z - max z. With 100,000 classes, Optax's value is the
closest, by half an ulp.
"""

import io
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import rows
from benchmarks.rows import Shape
from benchmarks.timing import Conditions, Step
from jaxsoftmax import cross_entropy
from jaxsoftmax.kernels import target

COMPARED_ROWS = 64  # of the kernels' sizes, with the truth on the host


def normal(classes: int, scale: float, offset: float, confident: bool, count: int) -> tuple:
    """Return random logits and labels."""
    rng = np.random.default_rng(classes)
    z = (scale * rng.normal(size=(count, classes)) + offset).astype(np.float32)
    return z, z.argmax(-1) if confident else rng.integers(0, classes, count)


def ties(classes: int, count: int) -> tuple:
    """Return rows where one class leads, another follows, and the others are equal and far behind.

    Any class may be the label.
    """
    rng, index = np.random.default_rng(classes), np.arange(count)
    lead = rng.uniform(-0.4, 0.4, count)
    second = lead - rng.uniform(0.5, 6, count)
    z = np.repeat((second - rng.uniform(9, 17.5, count))[:, None], classes, 1)
    places = rng.integers(0, classes, (3, count))
    z[index, places[1]], z[index, places[0]] = second, lead
    return z.astype(np.float32), places[rng.integers(0, 3, count), index]


# name: (rows, the function that draws them)
CASES = {
    "763 classes, two ahead of exact ties": (4000, partial(ties, 763)),
    "1,000 classes, scale 3": (400, partial(normal, 1000, 3, 0, False)),
    "10 classes, scale 10, confident": (4000, partial(normal, 10, 10, 0, True)),
    "1,000 classes, scale 3, offset 10,000": (400, partial(normal, 1000, 3, 1e4, False)),
    "10 classes, scale 1": (4000, partial(normal, 10, 1, 0, False)),
    "10 classes, scale 30": (4000, partial(normal, 10, 30, 0, False)),
    "100,000 classes, scale 10": (8, partial(normal, 100_000, 10, 0, False)),
}
SMOKE_CASES = ("763 classes, two ahead of exact ties",)
OF_KERNELS = (
    *(Shape(8448, k) for k in (32_768, 1000, 50_257, 1009, 4096, 131_072)),
    Shape(2048, 262_144, "float16"),
    Shape(2112, 30_001, "float32"),
    Shape(2112, 32_768, "float32"),
)
INTERPRETED = Shape(16, 800)  # about the fewest rows and classes that a kernel is for
TORCH = """
import sys, io, numpy as np, torch
data = np.load(io.BytesIO(sys.stdin.buffer.read()))
z = torch.tensor(data["z"], requires_grad=True)
y = torch.tensor(data["y"], dtype=torch.long)
values = torch.nn.functional.cross_entropy(z, y, reduction="none")
values.sum().backward()
np.savez(sys.stdout.buffer, values=values.detach().numpy(), gradient=z.grad.numpy())
"""


def steps(conditions: Conditions) -> list[Step]:
    """Return a step for each case, then for each of the kernels' sizes."""
    cases = SMOKE_CASES if conditions.smoke else CASES
    shapes = () if conditions.platform == "cpu" else OF_KERNELS
    found = [Step(name, partial(compared, name, conditions)) for name in cases]
    if conditions.smoke:
        return [*found, Step("interpreted", interpreted)]
    return [*found, *(Step(str(shape), partial(with_cotangents, shape)) for shape in shapes)]


def compared(name: str, conditions: Conditions) -> dict[str, Any]:
    """Return the largest errors of each peer, in ulps."""
    count, draw = CASES[name]
    z, y = draw(count=4 if conditions.smoke else count)
    found = {peer: evaluate(loss, z, y) for peer, loss in PEERS.items()}
    if conditions.torch is not None:
        found["torch"] = in_torch(conditions.torch, z, y)
    true = truth(z, y)
    errors = {peer: worst(*pair, *true) for peer, pair in found.items()}
    cells = (f"{p} {e['value']:,.1f} / {e['gradient']:,.1f}" for p, e in errors.items())
    print("ulps of value / gradient: " + ", ".join(cells))
    return {"errors in ulps": errors}


def log_softmax_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Return cross-entropy as the label's entry of jax.nn.log_softmax."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1)
    return -jnp.squeeze(picked, -1)


PEERS = {
    "jaxsoftmax": cross_entropy,
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "jax.nn": log_softmax_loss,
}


def evaluate(loss: Callable, z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each example's loss, and its gradient in the logits, under jit."""

    def total(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = loss(z, y)
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(z), jnp.asarray(y))
    return np.asarray(values), np.asarray(gradient)


def in_torch(python: str, z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same from PyTorch, in a separate process."""
    sent = io.BytesIO()
    np.savez(sent, z=z, y=y)
    answer = subprocess.run(
        [python, "-c", TORCH], input=sent.getvalue(), stdout=subprocess.PIPE, check=True
    ).stdout
    found = np.load(io.BytesIO(answer))
    return found["values"], found["gradient"]


def truth(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return loss and gradient in extended precision, in which z - max z is exact."""
    index = np.arange(len(y))
    z = z.astype(np.longdouble)
    below = z - z.max(-1, keepdims=True)
    e = np.exp(below)
    e_y = e[index, y].copy()
    e[index, y] = 0
    others = e.sum(-1)
    leads = below[index, y] == 0
    value = np.where(leads, np.log1p(others / e_y), np.log(others + e_y) - below[index, y])
    gradient = e / (others + e_y)[:, None]
    gradient[index, y] = -others / (others + e_y)
    return value, gradient


def worst(value: np.ndarray, gradient: np.ndarray, *true: np.ndarray) -> dict[str, float]:
    """Return the largest error of an entry, in its own ulps."""
    pairs = {"value": (value, true[0]), "gradient": (gradient, true[1])}
    return {name: ulps(*pair) for name, pair in pairs.items()}


def ulps(found: np.ndarray, want: np.ndarray, dtype: Any = jnp.float32, least: int = 1) -> float:
    """Return the largest error over the spacing of the dtype, from `least` normal numbers up."""
    info = jnp.finfo(dtype)
    size = np.maximum(np.abs(want), float(info.tiny))
    spacing = np.exp2(np.floor(np.log2(size)) - info.nmant)
    errors = np.abs(found.astype(want.dtype) - want) / spacing
    return float(np.max(np.where(np.abs(want) < least * float(info.tiny), 0, errors)))


def interpreted() -> dict[str, Any]:
    """Run the kernels as an interpreted GPU would."""
    with target.assumed("gpu", interpret=True):
        return with_cotangents(INTERPRETED)


def with_cotangents(shape: Shape) -> dict[str, Any]:
    """Return the errors of some rows of a large array, whose gradients have a cotangent each."""
    z, labels, cotangents = rows.data(shape)
    run = jax.jit(lambda *arrays: jax.vjp(lambda z: cross_entropy(z, arrays[1]), arrays[0]))
    values, back = run(z, labels)
    gradient = back(cotangents)[0]
    some = slice(0, COMPARED_ROWS)
    want, slope = truth(np.float64(z[some]), np.asarray(labels[some]))
    slope *= np.asarray(cotangents[some, None])
    # A cotangent may lift a probability that was below the normal numbers.
    errors = {
        "value": ulps(np.float64(values[some]), want),
        "gradient": ulps(np.float64(gradient[some]), slope, z.dtype, least=4),
    }
    limit = 8 if shape.dtype == "float32" else 0.51
    is_right = errors["value"] <= 8 and errors["gradient"] <= limit
    print(f"{errors}{'' if is_right else '  WRONG'}", flush=True)
    return {"errors in ulps": {"jaxsoftmax": errors}}
