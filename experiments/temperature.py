"""Softmax and argmax: a temperature from hard to flat, and the hard one's gradient.

Command: `python experiments/temperature.py [--data-dir DIR]`, about 3 minutes on two cores. DIR
holds MNIST as TensorFlow Datasets prepares it. `--smoke` uses the digits and writes nothing. The
record is results/temperature.json.

Question. softmax(z / T) tends to the one-hot argmax as T goes to 0, and to 1 / K as it grows. How
do accuracy, loss, entropy and the derivative d softmax(z / T) / dz change in between, on the test
images of a model of MNIST? And can a model train through it: at each T, with the loss
|softmax(z / T) - e|^2 or -log softmax(z / T)_y, with the best of 13 learning rates, and through the
argmax itself?

Findings: A temperature changes how sure softmax is, from the argmax to a uniform guess, but never
which class it picks.

- No temperature changes the accuracy, 92.15%; the loss is lowest at the temperature of training:
  0.277 at T = 1, 1.64 at T = 0.1 and 1.54 at T = 10.
- The gradient vanishes towards the argmax (the median derivative is 0.12 near T = 2.5 and 1e-17 at
  T = 0.1), and training through the argmax itself stays at the initial 9.8% at every rate.
- A small T does not prevent training from zeros, but changes the unit of the rate: T and a rate
  proportional to T^2 follow the same path, and every T reaches the same 92.15%.

The mean entropy goes from 0.002 bits at T = 0.01 to 3.32 of 3.32 at T = 100. With squared error
every T reaches 92.30%. What stalls is a T that is lowered after training.
"""

from typing import Any

import document
import figures
import jax
import jax.numpy as jnp
import numpy as np
from figures import BLUE, GREEN, MUTED, ORANGE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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
                for t in (TRAINED[1:3] if options.smoke else TRAINED)
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
    document.publish("temperature", document.rounded(record, 5), draw, smoke=options.smoke)


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


def draw(record: dict[str, Any]) -> Figure:
    """Draw an image's probabilities, and mean confidence beside accuracy, by temperature."""
    figure, axes = figures.slide(
        "A temperature changes how sure softmax is, never which class it picks",
        columns=2, height=3.5,
    )  # fmt: skip
    one_image(axes[0, 0], record["example"])
    confidence(axes[0, 1], record["curves"])
    for panel in axes[0]:
        panel.set(xscale="log", xlabel="temperature T", xlim=(0.01, 100), ylim=(0, 1.04))
        panel.set_xticks((0.01, 0.1, 1, 10, 100), ("0.01", "0.1", "1", "10", "100"))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def one_image(axes: Axes, example: dict[str, Any]) -> None:
    """Draw the probability of each class of one image."""
    p = np.asarray(example["p by temperature"])
    order = np.argsort(-p[len(p) // 2])
    axes.plot(TEMPERATURES, p[:, order[3:]], color=MUTED, linewidth=0.8)
    for k, color, style in zip(order[:3], (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True):
        axes.plot(TEMPERATURES, p[:, k], style, color=color)
    figures.label(axes, f"class {order[0]}", (0.012, 0.93), BLUE)
    figures.label(axes, f"class {order[1]}", (0.075, 0.34), ORANGE)
    figures.label(axes, f"class {order[2]}", (0.2, 0.13), GREEN, ha="right")
    figures.label(axes, "seven others", (0.012, 0.02), MUTED, va="bottom")
    axes.set_title(f"softmax(z / T) of test image {example['test image']}")


def confidence(axes: Axes, curves: dict[str, Any]) -> None:
    """Draw the mean of the largest probability, and accuracy."""
    axes.plot(TEMPERATURES, curves["largest probability"], color=BLUE)
    axes.plot(TEMPERATURES, curves["accuracy"], "--", color=ORANGE)
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=":")
    accuracy = curves["accuracy"][0]
    figures.label(axes, f"accuracy, {accuracy:.1%}", (0.012, 0.85), ORANGE)
    figures.label(axes, "mean largest\nprobability", (5.5, 0.42), BLUE)
    figures.label(axes, "T = 1 of\ntraining", (0.85, 0.05), MUTED, ha="right", va="bottom")
    axes.set_title("10,000 test images")


if __name__ == "__main__":
    main()
