"""Image classification by one linear map: its templates, its mistakes, and how far SGD comes.

Command: `python experiments/image_classification.py [--data-dir DIR]`, about 5 minutes on two
cores. DIR holds MNIST, Fashion-MNIST and CIFAR-10 as TensorFlow Datasets prepares them; the
CIFAR-10 used here is a JPEG copy, whose pixels differ slightly from the original's. `--smoke` uses
the digits and writes nothing. The record is results/image_classification.json.

Question 1. How accurate is a softmax on pixels on each data set, what do its weights look like, and
which classes does it confuse? The optimum is certified: the penalty falls by factors of ten until
the validation loss rises, and the best of these fits is kept.

Question 2. How close do minibatches come to that optimum, by the same objective, and does test
accuracy depend on it? SGD takes 256 images at a time for 20 epochs, at the constant rate with the
best validation accuracy after 3, and at one that falls from there to 0 along a cosine.

Question 3. For a head of ImageNet's size, 1,000 classes on 2,048 features of 100,000 images, how
much memory and time does `linear_cross_entropy_sum` take, where the logits would be 400 MB? The
features are SYNTHETIC, with another 10,000 for testing; train_large_head.py, a script to copy,
trains this head.

Findings: One linear map on the pixels reads most digits, sorts clothes well, and hardly sees what a
photo shows.

- The certified optimum classifies 92.6% of MNIST's test images correctly, 84.4% of Fashion-MNIST's
  and 41.1% of those of the CIFAR-10 copy (standard error: at most half a point).
- Its mistakes are those one would expect: it takes 3 for 5, shirts, of which it finds 56.0%, for
  T-shirts, and cats for dogs.
- The gradient of a head of 1,000 classes over 100,000 rows takes 22 MB of temporary memory in place
  of 800.

The templates, the weights of a class as an image, show a stroke or the edge of a shoe where classes
differ, and for CIFAR-10 little more than colors. After 20 epochs SGD at the falling rate is still
3.3%, 8.4% and 7.4% above the optimum's objective, and at the constant rate, whose objective keeps
fluctuating, 4.6%, 9.4% and 6.2%. The test accuracy hardly depends on that for the first two, 92.4%
and 84.3% at the falling rate, and more for the third: 38.9%. The gradient of a minibatch of the
large head takes the same time with and without logits (with over without: 0.99, quartiles 0.95 to
1.18). After 5 epochs that head classifies 85.0% of the held-out rows correctly; the rule that
generated the labels classifies 91.1%.
"""

import argparse
from typing import Any

import document
import figures
import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
import train_large_head
from figures import BLUE, ORANGE
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jaxsoftmax import (
    LinearParams,
    cross_entropy,
    init_state,
    linear,
    metrics,
    solve,
    train_epoch,
    weighted_mean,
)
from jaxsoftmax.app.data.dataset import Dataset, Split
from jaxsoftmax.training import Loss

NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10\n(JPEG copy)"}
RATES = 10.0 ** np.arange(-3, 0.1, 0.5)
BATCH_SIZE = 256
CONSTANT, FALLING = "constant rate", "falling rate"


def main() -> None:
    """Measure three data sets, then the large head."""
    options = document.arguments(__doc__)
    record: dict[str, Any] = {}
    for name in list(NAMES)[: 1 if options.smoke else None]:
        record[name] = of_images(name, options)
        document.show({n: found(of) for n, of in record.items()})
    head = large_head(smoke=options.smoke)
    for name, value in head.items():
        print(f"{name}: {value}")
    document.publish(
        "image_classification",
        document.rounded({"data sets": record, "large head, synthetic features": head}, 5),
        draw,
        smoke=options.smoke,
    )


def found(of: dict[str, Any]) -> dict[str, float]:
    """Return the numbers to print for a data set."""
    kept = ("alpha", "certified gap", "test accuracy", "test loss")
    return {name: of[name] for name in kept} | {
        f"{name}, above": of["minibatches"][name]["above the optimum"][-1]
        for name in (CONSTANT, FALLING)
    }


def of_images(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Answer questions 1 and 2 for one data set."""
    dataset = document.images(name, options)
    best, path = optimum(dataset)
    z = linear.logits(best["params"], dataset.test.features)
    counts = np.asarray(metrics.confusion_matrix(z, dataset.test.targets))
    epochs = 2 if options.smoke else 20
    return {
        "classes": dataset.schema.classes,
        "images": len(dataset.train.targets),
        "alpha": best["alpha"],
        "validation loss by alpha": path,
        "objective": best["objective"],
        "certified gap": best["gap"],
        "passes over the images": best["products"],
        "test accuracy": float(metrics.accuracy(z, dataset.test.targets)),
        "test loss": float(metrics.negative_log_likelihood(z, dataset.test.targets)),
        "confusion": counts,
        "recall": counts.diagonal() / counts.sum(1),
        "most confused": most_confused(counts, dataset.schema.classes),
        "minibatches": minibatches(dataset, best, epochs),
    }


# Question 1


def optimum(dataset: Dataset) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the certified optimum at the penalty of lowest validation loss, and those losses."""
    best: dict[str, Any] = {"validation": np.inf, "params": None}
    path: dict[str, float] = {}
    for alpha in 10.0 ** -np.arange(1, 8):
        train = dataset.train
        at = solve(train.features, train.targets, alpha=alpha, gap=1e-4, init=best["params"])
        path[f"{alpha:.0e}"] = loss = mean_loss(at.params, dataset.validation)
        if loss > best["validation"]:
            break
        best = {"validation": loss, "alpha": float(alpha), "params": at.params,
                "objective": at.objective, "gap": at.gap, "products": at.products}  # fmt: skip
    return best, path


def mean_loss(params: LinearParams, split: Split) -> float:
    """Return the mean cross-entropy."""
    z = linear.logits(params, split.features)
    return float(metrics.negative_log_likelihood(z, split.targets))


def most_confused(counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Return the three pairs of classes that are confused most often."""
    both = np.triu(counts + counts.T, 1)
    pairs = zip(*np.unravel_index(np.argsort(-both, axis=None)[:3], both.shape), strict=True)
    return [f"{classes[a]} and {classes[b]}: {both[a, b]:.0f}" for a, b in pairs]


# Question 2


def minibatches(dataset: Dataset, best: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return the objective above the optimum's and test accuracy, by epoch, for both rates."""
    alpha = best["alpha"]

    def penalized(params: LinearParams, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(linear.logits(params, x), y) + alpha / 2 * (params.w**2).sum()

    rate = document.tuned(penalized, dataset, rates=RATES, epochs=min(epochs, 3))["rate"]
    steps = epochs * -(-len(dataset.train.targets) // BATCH_SIZE)
    rates = {CONSTANT: rate, FALLING: optax.cosine_decay_schedule(rate, steps)}
    return {"rate": rate} | {
        name: followed(penalized, dataset, best["objective"], optax.sgd(each), epochs)
        for name, each in rates.items()
    }


def followed(
    loss: Loss, dataset: Dataset, least: float, optimizer: optax.GradientTransformation, epochs: int
) -> dict[str, list[float]]:
    """Train, and measure accuracy and the objective over all training images after each epoch."""
    x, y = jnp.asarray(dataset.train.features), jnp.asarray(dataset.train.targets)
    start = linear.init(x.shape[1], len(dataset.schema.classes))
    state = init_state(start, optimizer=optimizer, key=jax.random.key(0))
    objective = jax.jit(lambda params: weighted_mean(loss(params, x, y)))
    above, accuracy = [], []
    for _ in range(epochs):
        state, _ = train_epoch(
            state, x, y, loss=loss, optimizer=optimizer, batch_size=BATCH_SIZE, score=None
        )
        above.append(float(objective(state.params)) / least - 1)
        z = linear.logits(state.params, dataset.test.features)
        accuracy.append(float(metrics.accuracy(z, dataset.test.targets)))
    return {"above the optimum": above, "test accuracy": accuracy}


# Question 3


def large_head(*, smoke: bool) -> dict[str, Any]:
    """Train 1,000 classes on 2,048 synthetic features; return accuracy, memory, ratio of times."""
    rows, classes, width = (2_000, 50, 64) if smoke else (100_000, 1_000, 2_048)
    batch_size, epochs = (200, 2) if smoke else (1_000, 5)
    more = rows + rows // 10
    x, y, best = train_large_head.synthetic(jax.random.key(0), more, classes=classes, width=width)
    train = x[:rows], y[:rows]
    heads = train_large_head.train(*train, classes=classes, epochs=epochs, batch_size=batch_size)
    held_out = [
        [float(value) for value in train_large_head.evaluate(head, x[rows:], y[rows:])]
        for head in heads
    ]
    return {
        "rows": rows,
        "held-out loss by epoch": [loss for loss, _ in held_out],
        "held-out accuracy by epoch": [accuracy for _, accuracy in held_out],
        "accuracy of the rule that generated the labels": float((best == y)[rows:].mean()),
    } | price(*train, classes, batch_size)


def price(x: jax.Array, y: jax.Array, classes: int, batch_size: int) -> dict[str, Any]:
    """Compare value and gradient with and without the logits: temporary bytes and time."""
    head = {"w": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
    ways = {"with logits": dense, "without": train_large_head.mean_loss}
    compiled = {name: jax.jit(jax.value_and_grad(way)) for name, way in ways.items()}
    needed = {
        name: measure.temporary_bytes(way.lower(head, x, y).compile())
        for name, way in compiled.items()
    }
    batch = x[:batch_size], y[:batch_size]
    times = measure.paired(
        {name: lambda way=way: way(head, *batch) for name, way in compiled.items()}, rounds=9
    )
    return {
        "temporary bytes of a gradient over all rows": needed,
        "time with logits over time without, a minibatch": times["ratios"]["without"],
    }


def dense(head: train_large_head.Head, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the same mean loss, through the logits of all rows at once."""
    return cross_entropy(x @ head["w"] + head["bias"], y).mean()


# The figure


def draw(record: dict[str, Any]) -> Figure:
    """Draw the accuracy of each class of each data set, and their mean."""
    figure, axes = figures.slide(
        "One linear map reads digits and sorts clothes, but hardly sees what a photo shows",
        height=3.4,
    )  # fmt: skip
    sets = {name: record["data sets"][name] for name in NAMES if name in record["data sets"]}
    for row, of in enumerate(sets.values()):
        share, mean = np.array(of["recall"]), of["test accuracy"]
        axes[0, 0].plot(share, np.full(len(share), row), "o", color=BLUE, alpha=0.5, markersize=8)
        axes[0, 0].plot((mean, mean), (row - 0.25, row + 0.25), color=ORANGE, linewidth=3)
        figures.label(axes[0, 0], f"mean {mean:.1%}", (mean, row - 0.3), ORANGE, ha="center")
        for k, side, away in ((share.argmin(), "right", -0.015), (share.argmax(), "left", 0.015)):
            at = share[k] + away, row
            figures.label(axes[0, 0], of["classes"][k], at, BLUE, ha=side, va="center")
    figures.rows_of(axes[0, 0], (NAMES[name] for name in sets))
    axes[0, 0].set(xlim=(0, 1.12), ylim=(len(sets) - 0.6, -0.6))
    axes[0, 0].set(xlabel="test images of a class that are classified correctly, one point a class")
    axes[0, 0].set_xticks(np.arange(0, 1.1, 0.2))
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


if __name__ == "__main__":
    main()
