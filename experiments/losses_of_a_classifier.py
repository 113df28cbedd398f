"""Three losses of a classifier: squared error, squared error of a softmax, and cross-entropy.

Command: `python experiments/losses_of_a_classifier.py [--data-dir DIR]`, about 5 minutes on two
cores. DIR holds MNIST as TensorFlow Datasets prepares it. `--smoke` uses the digits and writes
nothing. The record is results/losses_of_a_classifier.json.

Question. For scores z and the class y as one-hot e, the losses are |z - e|^2, |softmax(z) - e|^2
(the Brier score) and -log softmax(z)_y. How large is each gradient, by the distance from the
answer? What do the losses look like over two scores? How does a linear model of MNIST train under
each, from zeros and from a confidently wrong start (a model of labels shifted by one, with its
weights tripled)? And what happens to rare classes (digits 5 to 9, of which one image in a hundred
is kept)? Each loss has the best of eleven learning rates, by accuracy on validation data.

Findings: Far from the answer (10 behind) the gradients are 15.6 (squared error), 0.00026 (softmax
with squared error) and 1.41 (cross-entropy). At 10 ahead, where nothing is wrong, they are 12.8,
0.00000001 and 0.00006: squared error of the scores pulls a right answer back. Softmax with squared
error is not convex (lowest curvature -0.48) and is flat where it is wrong. From a confidently wrong
start (median probability of the label 2e-11), cross-entropy classifies 83.9% of the validation
images correctly after one epoch and 91.7% after 15. Softmax with squared error, at its best rate,
needs a rate 100 times larger, stalls at 71% from the fifth epoch to the tenth and ends at 82.0%;
squared error of the scores reaches 83.3%. From zeros nothing stalls, and softmax with squared error
is then the best on test data (standard error of a third of a point): 92.8%, against 92.3% for
cross-entropy and 86.2% for squared error. Of the rare classes squared error finds none (0.0%
recall), softmax with squared error 31.4% and cross-entropy 49.0%; with weights against the
imbalance they find 74.8%, 80.8% and 79.3%, at a cost of 2 to 5 points of recall of the frequent
classes.
"""

from dataclasses import replace
from typing import Any

import document
import jax
import jax.numpy as jnp
import numpy as np
from document import BLUE, INK, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxsoftmax import (
    LinearParams,
    brier,
    cross_entropy,
    linear,
    metrics,
    on_logits,
    softmax,
    squared_error,
)
from jaxsoftmax.app.data.dataset import Dataset

LOSSES = {"squared error": squared_error, "softmax, squared error": brier,
          "softmax, cross-entropy": cross_entropy}  # fmt: skip
COLORS = dict(zip(LOSSES, (ORANGE, PURPLE, BLUE), strict=True))
STYLES = dict(zip(LOSSES, (":", "--", "-"), strict=True))
RATES = np.geomspace(1e-3, 100, 11)
MARGINS = np.linspace(-10, 10, 201).astype(np.float32)


def main() -> None:
    """Measure gradients, surfaces, training and imbalance."""
    options = document.arguments(__doc__)
    dataset = document.images("mnist", options)
    epochs = 2 if options.smoke else 15
    wrong, start = wrong_start(dataset, epochs)
    record = {
        "gradient": {name: gradient_sizes(name) for name in LOSSES},
        "least curvature": {name: least_curvature(name) for name in LOSSES},
        "from zeros": train(dataset, epochs),
        "from a wrong start": train(dataset, epochs, params=wrong) | {"start": start},
        "rare classes": imbalance(dataset, epochs),
    }
    show(record)
    document.publish(
        "losses_of_a_classifier", document.rounded(record), lambda: draw(record),
        smoke=options.smoke,
    )  # fmt: skip


# One example with two scores, of which the first class is the answer


def gradient_sizes(name: str) -> dict[str, float]:
    """Return the gradient's length where the answer's score leads by a margin."""
    margins = np.array([-10, -5, 0, 5, 10], np.float32)
    sizes = gradient(name, margins).tolist()
    return {f"margin {m:+g}": size for m, size in zip(margins, sizes, strict=True)}


def gradient(name: str, margins: np.ndarray) -> np.ndarray:
    """Return |dloss/dz| at z = (m / 2, -m / 2)."""
    logits = jnp.stack([margins / 2, -margins / 2], -1)
    slope = jax.vmap(jax.grad(LOSSES[name]), in_axes=(0, None))(logits, jnp.array(0))
    return np.asarray(jnp.linalg.norm(slope, axis=-1))


def least_curvature(name: str) -> float:
    """Return the lowest eigenvalue of a Hessian on the grid of margins; below 0 is not convex."""
    logits = jnp.stack([MARGINS / 2, -MARGINS / 2], -1)
    hessians = jax.vmap(jax.hessian(LOSSES[name]), in_axes=(0, None))(logits, jnp.array(0))
    return float(jnp.linalg.eigvalsh(hessians).min())


# Training


def train(dataset: Dataset, epochs: int, params: LinearParams | None = None) -> dict[str, Any]:
    """Train each loss at its best rate; return accuracy by epoch, and on the test split."""
    found = {}
    for name, loss in LOSSES.items():
        fit = document.tuned(on_logits(loss), dataset, rates=RATES, epochs=epochs, params=params)
        found[name] = {
            "rate": fit["rate"],
            "validation accuracy by epoch": fit["history"]["validation_accuracy"],
            "test accuracy": accuracy(fit["params"], dataset),
            "validation accuracy by rate": fit["validation_accuracy"],
        }
    return found


def wrong_start(dataset: Dataset, epochs: int) -> tuple[LinearParams, dict[str, float]]:
    """Return confidently wrong parameters: those of a model of the next class, tripled."""
    classes = len(dataset.schema.classes)
    moved = (dataset.train.targets + 1) % classes
    x = jnp.asarray(dataset.train.features)

    @jax.jit
    def step(params: LinearParams, _: None) -> tuple[LinearParams, None]:
        slope = jax.grad(lambda p: cross_entropy(linear.logits(p, x), moved).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, slope), None

    params, _ = jax.lax.scan(step, linear.init(x.shape[1], classes), length=20 * epochs)
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    p = softmax(linear.logits(params, x))
    label = jnp.take_along_axis(p, jnp.asarray(dataset.train.targets)[:, None], -1)
    return params, {
        "median probability of the label": float(jnp.median(label)),
        "accuracy": accuracy(params, dataset),
    }


def accuracy(params: LinearParams, dataset: Dataset) -> float:
    """Return the accuracy on the test split."""
    scores = linear.logits(params, dataset.test.features)
    return float(metrics.accuracy(scores, dataset.test.targets))


def imbalance(dataset: Dataset, epochs: int) -> dict[str, Any]:
    """Return recall of frequent and rare classes, with and without weights against imbalance."""
    rng = np.random.default_rng(0)
    train = dataset.train
    kept = (train.targets < 5) | (rng.random(len(train.targets)) < 0.01)
    kept[np.unique(train.targets, return_index=True)[1]] = True
    few = train._replace(
        features=train.features[kept], targets=train.targets[kept], ids=train.ids[kept]
    )
    rare = replace(dataset, train=few)
    counts = np.bincount(rare.train.targets)
    found: dict[str, Any] = {"images of each class": counts}
    for way, weights in {"as it is": np.ones(len(counts)), "weighted": 1 / counts}.items():
        of_rows = weights[rare.train.targets].astype(np.float32)
        for name, loss in LOSSES.items():
            fit = document.tuned(on_logits(loss), rare, rates=RATES, epochs=epochs, weights=of_rows)
            found[f"{name}, {way}"] = recalls(fit["params"], dataset) | {"rate": fit["rate"]}
    return found


def recalls(params: LinearParams, dataset: Dataset) -> dict[str, float]:
    """Return mean recall of classes 0 to 4 and 5 to 9 on the test split, which is balanced."""
    scores = linear.logits(params, dataset.test.features)
    counts = metrics.class_counts(scores, dataset.test.targets)
    recall = np.asarray(metrics.recall(counts))
    return {"frequent": float(recall[:5].mean()), "rare": float(recall[5:].mean())}


def show(record: dict[str, Any]) -> None:
    """Print the numbers of the findings."""
    print("length of the gradient")
    document.show(record["gradient"])
    print("lowest curvature:", record["least curvature"])
    for start in ("from zeros", "from a wrong start"):
        runs = {name: record[start][name] for name in LOSSES}
        print(f"\n{start}:", record[start].get("start", ""))
        document.show({name: summary(run) for name, run in runs.items()})
    print("\nrecall with rare classes")
    document.show({n: r for n, r in record["rare classes"].items() if isinstance(r, dict)})


def summary(run: dict[str, Any]) -> dict[str, float]:
    """Return validation accuracy after some epochs, test accuracy and rate."""
    curve = run["validation accuracy by epoch"]
    some = {f"epoch {e}": curve[e - 1] for e in sorted({1, 2, 5, len(curve)}) if e <= len(curve)}
    return some | {"test": run["test accuracy"], "rate": run["rate"]}


# The figure


def draw(record: dict[str, Any]) -> Figure:
    """Draw gradient and surfaces above, training and imbalance below."""
    figure, axes = document.panels(2, 4, width=11, height=5.8)
    slope = axes[0, 0]
    for name in LOSSES:
        slope.plot(MARGINS, gradient(name, MARGINS), STYLES[name], color=COLORS[name], label=name)
    slope.set(ylim=(0, 5), xlabel="score of the answer minus the other", xlim=(-10, 10))
    slope.set_title("length of the gradient")
    axes[0, 1].set_ylabel("score of the other")
    for column, name in enumerate(LOSSES, 1):
        surface(axes[0, column], name)
    for column, start in enumerate(("from zeros", "from a wrong start")):
        curves(axes[1, column], record[start])
        axes[1, column].set_title(f"accuracy {start}")
    axes[1, 0].sharey(axes[1, 1])
    axes[1, 0].legend(loc="lower right", fontsize=8)
    for column, way in enumerate(("as it is", "weighted"), 2):
        rare(axes[1, column], record["rare classes"], way)
    return figure


def surface(axes: Axes, name: str) -> None:
    """Draw levels of the loss over both scores, equally spaced in each panel."""
    z = np.linspace(-6, 6, 121).astype(np.float32)
    grid = np.stack(np.meshgrid(z, z, indexing="xy"), -1)
    values = np.asarray(LOSSES[name](grid, np.zeros(grid.shape[:-1], np.int32)))
    top = values.max()
    axes.contourf(z, z, values, levels=np.linspace(0, top, 13), cmap="Blues")
    axes.contour(z, z, values, levels=np.linspace(0, top, 13), colors=INK, linewidths=0.4)
    axes.grid(visible=False)
    axes.set_aspect("equal")
    axes.set(xlabel="score of the answer", xticks=(-5, 0, 5), yticks=(-5, 0, 5))
    axes.set_title(f"{name}, 0 to {top:.3g}")


def curves(axes: Axes, runs: dict[str, Any]) -> None:
    """Draw accuracy by epoch."""
    for name in LOSSES:
        values = runs[name]["validation accuracy by epoch"]
        axes.plot(
            np.arange(1, len(values) + 1), values, STYLES[name], color=COLORS[name], label=name
        )
    axes.set(xlabel="epoch", ylim=(0, 1))


def rare(axes: Axes, found: dict[str, Any], way: str) -> None:
    """Draw recall of frequent and rare classes."""
    for place, name in enumerate(LOSSES):
        row = found[f"{name}, {way}"]
        for shift, (kind, alpha) in enumerate({"frequent": 0.35, "rare": 1.0}.items()):
            at = place + 0.38 * shift
            axes.bar(at, row[kind], 0.36, color=COLORS[name], alpha=alpha)
            document.note(axes, f"{row[kind]:.0%}", (at, row[kind] + 0.02), ha="center", color=INK)
    labels = [name.replace(", ", ",\n").replace("red error", "red\nerror") for name in LOSSES]
    axes.set_xticks(np.arange(3) + 0.19, labels, fontsize=7.5)
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 1.12))
    axes.set_title(
        {"as it is": "recall, frequent (pale) and rare", "weighted": "... weighted"}[way]
    )


if __name__ == "__main__":
    main()
