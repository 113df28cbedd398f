"""Numerical stability: four ways to write cross-entropy, and four libraries, against the truth.

Command: `python experiments/stability.py [--torch-python PATH]`, under a minute. PATH is an
interpreter with PyTorch, by default this one if it has PyTorch; without one, the record says that
PyTorch is absent. `--smoke` uses few points and writes nothing. The record is
results/stability.json.

Question. -log softmax(z)_y can be written as

    naive         -log(exp z_y / sum exp z)
    shifted       the same for z - max z
    log-sum-exp   (max z + log sum exp(z - max z)) - z_y
    log-softmax   log sum exp(z - max z) - (z_y - max z)

How large may a margin or an offset be before value and gradient are lost? The logits are two,
(m, 0), with the first as the label (right by m) or the second (wrong by m), and ten normal logits
plus an offset, in float32, bfloat16 and float16. The truth is computed in 80-bit extended precision
from the rounded logits. Only entries whose true value is a normal float32 count. An error of 1
means that the value is lost completely, and a value that is not finite counts as 10. benchmark.py
measures the exactness of this library in units in the last place.

Findings: Every textbook form of cross-entropy, and every library tried, loses the loss of an answer
that is right and sure; this library keeps it.

- Where the label leads by 13 or more, float32 loses over a percent of the loss in all four forms
  and three peers, and beyond 17 all of it; in bfloat16 that starts at a lead of 1 to 1.5.
- A shift by the maximum removes the overflow (the naive form has no value beyond an offset of 85 in
  float32 and 8 in float16), but not this cancellation.
- This library's loss is within 1.1e-07 everywhere, in half precision too, because it returns
  float32.

Log-sum-exp, and Optax with it, also loses the loss to an offset: 0.009% at 10,000 in float32, all
of it in half precision. Wrong answers are easy: all forms have them right except the naive form
and, in float16, the shifted form. The gradient of this library has the dtype of the logits: 9.9e-08
in float32, 0.4% in bfloat16, and in float16 lost beyond a margin of 14, where it is below the range
of that type.
"""

import io
import subprocess
from collections.abc import Callable
from typing import Any

import document
import figures
import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks.exactness import truth
from figures import BLUE, MUTED
from matplotlib.figure import Figure

from jaxsoftmax import cross_entropy

DTYPES = ("float32", "bfloat16", "float16")
TORCH = """
import sys, io, numpy as np, torch
data = np.load(io.BytesIO(sys.stdin.buffer.read()))
out = {}
for name in {k[2:] for k in data}:
    z = torch.tensor(data["z/" + name]).to(getattr(torch, name.split("/")[0])).requires_grad_()
    y = torch.tensor(data["y/" + name], dtype=torch.long)
    value = torch.nn.functional.cross_entropy(z, y, reduction="none")
    value.sum().backward()
    out["v/" + name], out["g/" + name] = value.detach().float().numpy(), z.grad.float().numpy()
np.savez(sys.stdout.buffer, version=torch.__version__, **out)
"""


def naive(z: jax.Array, y: jax.Array) -> jax.Array:
    """-log(exp z_y / sum exp z)."""
    e = jnp.exp(z)
    return -jnp.log(picked(e, y) / e.sum(-1))


def shifted(z: jax.Array, y: jax.Array) -> jax.Array:
    """The same for z - max z."""
    return naive(z - jax.lax.stop_gradient(z.max(-1, keepdims=True)), y)


def log_sum_exp(z: jax.Array, y: jax.Array) -> jax.Array:
    """(max z + log sum exp(z - max z)) - z_y."""
    top = jax.lax.stop_gradient(z.max(-1))
    return (top + jnp.log(jnp.exp(z - top[:, None]).sum(-1))) - picked(z, y)


def log_softmax(z: jax.Array, y: jax.Array) -> jax.Array:
    """Log sum exp(z - max z) - (z_y - max z)."""
    below = z - jax.lax.stop_gradient(z.max(-1, keepdims=True))
    return jnp.log(jnp.exp(below).sum(-1)) - picked(below, y)


def jax_nn(z: jax.Array, y: jax.Array) -> jax.Array:
    """Return the label's entry of jax.nn.log_softmax."""
    return -picked(jax.nn.log_softmax(z), y)


def picked(values: jax.Array, y: jax.Array) -> jax.Array:
    """Return each row's entry at its label."""
    return jnp.take_along_axis(values, y[:, None], -1)[:, 0]


FORMS: dict[str, Callable] = {
    "naive": naive,
    "shifted": shifted,
    "log-sum-exp": log_sum_exp,
    "log-softmax": log_softmax,
    "jax.nn": jax_nn,
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "jaxsoftmax": cross_entropy,
}


# as the figure's rows show them
ORDER = ("naive", "shifted", "log-sum-exp", "log-softmax", "jax.nn", "optax", "torch", "jaxsoftmax")


def main() -> None:
    """Evaluate every form on every sweep, print where it fails, and draw."""
    options = document.arguments(__doc__, torch=True)
    points = 9 if options.smoke else 175
    sweeps = {name: (x, *rows(x)) for name, (x, rows) in sweep(points).items()}
    cases = {
        f"{dtype}/{name}": (np.asarray(jnp.asarray(z, dtype), np.float32), y)
        for dtype in DTYPES
        for name, (_, z, y) in sweeps.items()
    }
    found = {
        form: {case: evaluate(loss, case, *zy) for case, zy in cases.items()}
        for form, loss in FORMS.items()
    }
    version, torch = in_torch(options.torch_python, cases)
    found |= torch
    errors = {
        form: {case: relative_errors(*got[case], *truth(*cases[case])) for case in cases}
        for form, got in found.items()
    }
    axis = {name: x for name, (x, _, _) in sweeps.items()}
    record = {
        "torch": version,
        "good to one percent up to": {
            f"{what}, {case}": {
                form: reach(e[case][what], case, axis) for form, e in errors.items()
            }
            for what in ("value", "gradient")
            for case in cases
        },
        "largest error": {
            f"{what}, {case}": {form: float(e[case][what].max()) for form, e in errors.items()}
            for what in ("value", "gradient")
            for case in cases
        },
    }
    for name in ("good to one percent up to", "largest error"):
        print(name)
        document.show(record[name], ".3g")
    document.publish("stability", document.rounded(record, 3), draw, smoke=options.smoke)


def sweep(points: int) -> dict[str, tuple[np.ndarray, Callable]]:
    """Return, for each sweep, its margins or offsets, and the function that makes its rows."""
    margins = np.linspace(0, 87, points)  # exp(-87) is about the smallest normal float32
    offsets = np.geomspace(1, 1e4, points)
    ten = np.random.default_rng(0).normal(size=10)
    return {
        "right by": (margins, lambda m: (np.stack([m, 0 * m], -1), np.zeros(len(m), int))),
        "wrong by": (margins, lambda m: (np.stack([m, 0 * m], -1), np.ones(len(m), int))),
        "offset": (offsets, lambda o: (ten + o[:, None], np.full(len(o), 3))),
    }


def evaluate(loss: Callable, case: str, z: np.ndarray, y: np.ndarray) -> tuple:
    """Return each row's loss and gradient under jit, in the case's dtype."""
    logits = jnp.asarray(z, case.split("/")[0])
    values = jax.jit(loss)(logits, y)
    gradient = jax.jit(jax.grad(lambda z: loss(z, y).sum()))(logits)
    return np.asarray(values, np.float32), np.asarray(gradient, np.float32)


def in_torch(python: str | None, cases: dict[str, tuple]) -> tuple[str, dict[str, Any]]:
    """Return the same from PyTorch's cross_entropy, in a separate process."""
    if python is None:
        print("PyTorch is absent (see --torch-python) and is left out")
        return "absent", {}
    parts = {
        f"{kind}/{name}": a for name, zy in cases.items() for kind, a in zip("zy", zy, strict=True)
    }
    sent = io.BytesIO()
    np.savez(sent, **parts)
    answer = subprocess.run(
        [python, "-c", TORCH], input=sent.getvalue(), stdout=subprocess.PIPE, check=True
    ).stdout
    out = np.load(io.BytesIO(answer))
    return str(out["version"]), {"torch": {n: (out[f"v/{n}"], out[f"g/{n}"]) for n in cases}}


def relative_errors(
    value: np.ndarray, gradient: np.ndarray, true_value: np.ndarray, true_gradient: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each row's relative error; for a gradient, that of its worst entry."""
    return {
        "value": relative(value, true_value),
        "gradient": relative(gradient, true_gradient).max(-1),
    }


def relative(got: np.ndarray, true: np.ndarray) -> np.ndarray:
    """|got - true| / |true|; 0 where the truth is not a normal float32, 10 if not finite."""
    normal = abs(true) >= np.finfo(np.float32).tiny
    error = np.where(normal, abs(got - true) / np.where(normal, abs(true), 1), 0)
    return np.where(np.isfinite(got), np.minimum(error, 10), 10).astype(float)


def reach(error: np.ndarray, case: str, axis: dict[str, np.ndarray]) -> float:
    """Return the margin or offset before the first error over one percent."""
    good = np.logical_and.accumulate(error <= 0.01)
    return float(axis[case.split("/")[1]][good].max(initial=0))


# The figure


def draw(record: dict[str, Any]) -> Figure:
    """Draw how far a right answer may lead before its loss is wrong by a percent."""
    figure, axes = figures.slide(
        "Where the answer is right and sure, every textbook form and library loses the loss; "
        "this one keeps it", columns=2, height=3.6, sharey=True,
    )  # fmt: skip
    for panel, dtype in zip(axes[0], ("float32", "bfloat16"), strict=True):
        found = record["good to one percent up to"][f"value, {dtype}/right by"]
        order = [form for form in ORDER if form in found]
        reach = {form: found[form] for form in order}
        colors = [BLUE if form == "jaxsoftmax" else MUTED for form in order]
        figures.bars(panel, reach, colors=colors, form=lambda lead: f"{lead:g}{'+' * (lead > 86)}")
        panel.set(xlabel="lead of the label's logit", xlim=(0, 100))
        panel.set_title(f"{dtype}: good to 1% up to a lead of")
    return figure


if __name__ == "__main__":
    main()
