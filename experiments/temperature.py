"""Softmax and argmax: a temperature from hard to flat, and the hard one's gradient.

Command: `python experiments/temperature.py [--data-dir DIR]`, about 3 minutes on two cores. DIR
holds MNIST as TensorFlow Datasets prepares it. `--smoke` uses the digits and writes nothing. The
record is results/temperature.json.

Question. softmax(z / T) tends to the one-hot argmax as T goes to 0, and to 1 / K as it grows. How
do accuracy, loss, entropy and the derivative d softmax(z / T) / dz change in between, on the test
images of a model of MNIST? And can a model train through it: at each T, with the loss
|softmax(z / T) - e|^2 or -log softmax(z / T)_y, with the best of 13 learning rates, and through the
argmax itself?

Findings: No temperature changes the accuracy (92.15%), and the loss is lowest at the temperature of
training: 0.277 at T = 1, 1.64 at T = 0.1, 1.54 at T = 10. The mean entropy goes from 0.002 bits at
T = 0.01 to 3.32 of 3.32 at T = 100. The median derivative is largest near T = 2.5 (0.12) and
vanishes towards the argmax (1e-17 at T = 0.1), whose gradient is exactly 0: training through the
argmax stays at the initial 9.8% at every rate. A small T does not prevent training, however, but
changes the unit of the rate: from zeros, T and a rate proportional to T^2 follow the same path, and
every T reaches the same 92.15% with cross-entropy and 92.30% with squared error. What stalls is a T
that is lowered after training.
"""

from typing import Any

import document
import jax
import jax.numpy as jnp
import numpy as np
from document import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxsoftmax import brier, cross_entropy, entropy, linear, metrics, on_logits, softmax
from jaxsoftmax.app.data.dataset import Dataset

TEMPERATURES = np.geomspace(0.01, 100, 41).astype(np.float32)
TRAINED = (0.01, 0.1, 1.0, 10.0, 100.0)
RATES = np.geomspace(1e-6, 1e6, 13)


def main() -> None:
    """Fit once, vary the temperature, then train at several."""
    options = document.arguments(__doc__)
    dataset = document.images("mnist", options)
    epochs = 1 if options.smoke else 5
    rates = np.geomspace(0.01, 1, 5)
    fit = document.tuned(on_logits(cross_entropy), dataset, rates=rates, epochs=epochs)
    scores = linear.logits(fit["params"], dataset.test.features)
    labels = dataset.test.targets
    curves = [at(temperature, scores, labels) for temperature in TEMPERATURES]
    record = {
        "curves": {name: [row[name] for row in curves] for name in curves[0]},
        "example": example(scores, labels),
        "gradient through the argmax": hard_gradient(scores[:100], labels[:100]),
        "trained": {
            name: {
                f"T = {t:g}": trained(loss, t, dataset, epochs)
                for t in (TRAINED[1:4] if options.smoke else TRAINED)
            }
            for name, loss in {"squared error": brier, "cross-entropy": cross_entropy}.items()
        },
        "trained through the argmax": trained(hard_squared_error, 1.0, dataset, epochs),
    }
    document.show({f"T = {row['temperature']:.3g}": row for row in curves[::5]})
    for name, runs in record["trained"].items():
        print(
            f"trained, {name}:", {t: (run["test accuracy"], run["rate"]) for t, run in runs.items()}
        )
    for name in ("trained through the argmax", "gradient through the argmax"):
        print(f"{name}:", record[name])
    document.publish(
        "temperature", document.rounded(record, 5), lambda: draw(record, dataset),
        smoke=options.smoke,
    )  # fmt: skip


def at(temperature: float, scores: jax.Array, labels: np.ndarray) -> dict[str, float]:
    """Return means over the test images at one temperature."""
    z = scores / temperature
    return {
        "temperature": float(temperature),
        "accuracy": float(metrics.accuracy(z, labels)),
        "loss": float(cross_entropy(z, labels).mean()),
        "entropy, bits": float(entropy(z).mean() / np.log(2)),
        "largest probability": float(softmax(z).max(-1).mean()),
        "derivative": float(jnp.median(derivative_size(softmax(z)) / temperature)),
    }


def derivative_size(p: jax.Array) -> jax.Array:
    """Return the Frobenius norm of diag(p) - p p'.

    The diagonal is minus the sum of the other entries of its row: p - p^2 itself would cancel where
    p is close to 1.
    """
    others = p[..., None] * p[..., None, :] * (1 - jnp.eye(p.shape[-1]))
    return jnp.sqrt((others**2).sum((-1, -2)) + (others.sum(-1) ** 2).sum(-1))


def example(scores: jax.Array, labels: np.ndarray) -> dict[str, Any]:
    """Return the test image whose two largest probabilities are closest to 0.6 and 0.3."""
    top, _ = jax.lax.top_k(softmax(scores), 2)
    row = int(abs(top - jnp.array([0.6, 0.3])).sum(-1).argmin())
    scores_of_row = np.asarray(scores[row])
    p = softmax(scores_of_row / TEMPERATURES[:, None])
    return {"test image": row + 1, "label": int(labels[row]), "p by temperature": p}


def hard_squared_error(logits: jax.Array, label: jax.Array) -> jax.Array:
    """|onehot(argmax z) - e|^2."""
    classes = logits.shape[-1]
    hard = jax.nn.one_hot(logits.argmax(-1), classes) - jax.nn.one_hot(label, classes)
    # 0 times the scores, so that there is a path for a gradient.
    return (hard**2).sum(-1) + 0 * logits.sum(-1)


def hard_gradient(scores: jax.Array, labels: np.ndarray) -> dict[str, float]:
    """Return the argmax's gradient by autodiff and by finite differences."""
    slope = jax.grad(lambda z: jax.vmap(hard_squared_error)(z, labels).sum())(scores)
    steps = 1e-3 * jnp.eye(scores.shape[-1])
    value = jax.vmap(jax.vmap(hard_squared_error, in_axes=(0, None)))
    moved = [value(scores[:, None] + sign * steps, labels) for sign in (1, -1)]
    return {
        "largest, by autodiff": float(abs(slope).max()),
        "largest, by differences of 0.001": float(abs(moved[0] - moved[1]).max() / 2e-3),
    }


def trained(loss: Any, temperature: float, dataset: Dataset, epochs: int) -> dict[str, float]:
    """Return the test accuracy of a model trained at a temperature, at its best rate."""
    at_temperature = on_logits(lambda z, y: loss(z / temperature, y))
    fit = document.tuned(at_temperature, dataset, rates=RATES, epochs=epochs)
    scores = linear.logits(fit["params"], dataset.test.features)
    accuracy = float(metrics.accuracy(scores, dataset.test.targets))
    by_rate = fit["validation_accuracy"]
    return {"test accuracy": accuracy, "rate": fit["rate"], "accuracy by rate": by_rate}


# The figure


def draw(record: dict[str, Any], dataset: Dataset) -> Figure:
    """Draw an image's probabilities, the means over the test images, and training."""
    figure, axes = document.panels(2, 2, height=6.4)
    one_image(axes[0, 0], record["example"], dataset)
    curves = record["curves"]
    lines = (("loss", BLUE, "-"), ("entropy, bits", ORANGE, "--"), ("accuracy", MUTED, ":"))
    for name, color, style in lines:
        axes[0, 1].plot(TEMPERATURES, curves[name], style, color=color, label=name)
    axes[0, 1].set_ylim(0, 6)
    axes[0, 1].legend()
    axes[0, 1].set_title("means over the test images")
    axes[1, 0].plot(TEMPERATURES, np.maximum(curves["derivative"], 1e-12), color=BLUE)
    axes[1, 0].set_yscale("log")
    axes[1, 0].set_ylim(1e-12, 1)
    axes[1, 0].set_title("size of d softmax(z / T) / dz, median test image")
    training(axes[1, 1], record)
    for panel in axes.flat[:3]:
        panel.set(xscale="log", xlabel="temperature")
    return figure


def one_image(axes: Axes, example: dict[str, Any], dataset: Dataset) -> None:
    """Draw the probability of each class by temperature, and the image."""
    p = np.asarray(example["p by temperature"])
    order = np.argsort(-p[len(p) // 2])
    for k in order[3:]:
        axes.plot(TEMPERATURES, p[:, k], color=MUTED, linewidth=0.7)
    for k, color, style in zip(order[:3], (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True):
        name = f"class {dataset.schema.classes[k]}"
        axes.plot(TEMPERATURES, p[:, k], style, color=color, label=name)
    axes.set_ylim(0, 1.02)
    axes.legend(loc="center right")
    axes.set_title(f"softmax(z / T) of test image {example['test image']}")
    inset = axes.inset_axes((0.72, 0.68, 0.28, 0.32))
    pixels = dataset.test.features[example["test image"] - 1]
    inset.imshow(pixels.reshape(dataset.schema.shape[:2]), cmap="Greys")
    inset.set_axis_off()


def training(axes: Axes, record: dict[str, Any]) -> None:
    """Draw accuracy by learning rate, trained at each temperature."""
    runs = record["trained"]["cross-entropy"]
    styles = ((ORANGE, "--"), (PURPLE, "-."), (BLUE, "-"), (GREEN, ":"), (MUTED, (0, (4, 1, 1, 1))))
    for (name, run), (color, style) in zip(runs.items(), styles, strict=False):
        axes.plot(RATES, run["accuracy by rate"], linestyle=style, color=color, label=name)
    hard = record["trained through the argmax"]["accuracy by rate"]
    axes.plot(RATES, hard, color=INK, linewidth=3, label="argmax")
    axes.set(xscale="log", xlabel="learning rate", ylim=(0, 1))
    axes.legend(fontsize=8, loc="center right")
    axes.set_title("validation accuracy, trained at a temperature")


if __name__ == "__main__":
    main()
