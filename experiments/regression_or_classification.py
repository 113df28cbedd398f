"""Regression or classification: class numbers 1, 2, 3 as the target, or a code for each class.

Command: `python experiments/regression_or_classification.py`, under a minute. `--smoke` draws few
renumberings and writes nothing. The record is results/regression_or_classification.json.

Question. Can classes be numbered and their number fitted by least squares, or does each class need
its own column, with 0 and 1 for least squares or with a probability for softmax? The answer is
measured by 5-fold cross-validation on three data sets: one whose classes have no order (the ten
digits), one whose classes have an order (the disease progression of 442 diabetes patients, cut at
its quintiles into five grades), and three species of iris by the length of their petals, which
happen to lie in order. Each class number is fitted under many numberings, and the nearest number is
the prediction. Diabetes and iris come with scikit-learn. The softmax is fitted by 100 steps of
L-BFGS.

Findings: Numbers fail where classes have no order: digits as numbers are classified correctly in
23.1% of cases (36.8% for the best of 200 numberings), with a column for each class in 93.3% and by
softmax in 96.3%. Numbers work where the classes lie in order: 94.7% for iris by its petals, but
33.3% when another species is in the middle. There the columns fail: least squares on 0 and 1 never
predicts the middle species (66.7%), because its line is nowhere the highest; softmax does (94.7%).
On diabetes grades the numbers are the least accurate (34.6%; columns 38.9%, softmax 38.0%), but
they are the closest: 0.83 grades off on average, columns 0.98 and softmax 0.90. The median of the
softmax's distribution is as close, 0.83. So classification loses nothing from an order of the
classes if the prediction is the right statistic of its distribution.
"""

import itertools
from collections.abc import Callable
from typing import Any

import document
import jax
import jax.numpy as jnp
import numpy as np
import optax
from document import BLUE, GREEN, INK, MUTED, ORANGE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes, load_iris

from jaxsoftmax import LinearParams, cross_entropy, fit, linear, on_logits, softmax
from jaxsoftmax.app import data

LBFGS = optax.lbfgs()
DATA_LOSS = on_logits(cross_entropy)


def loss(params: LinearParams, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy, with a small ridge: the largest margin of separable classes is infinite."""
    return DATA_LOSS(params, x, y) + 1e-4 * jnp.sum(params.w**2)


def main() -> None:
    """Cross-validate every head on every data set."""
    options = document.arguments(__doc__)
    problems = {"iris petals": iris(), "digits": digits(), "diabetes grades": diabetes()}
    effort = {"limit": 4, "folds": 2} if options.smoke else {"limit": 200, "folds": 5}
    record = {name: compare(x, y, **effort) for name, (x, y) in problems.items()}
    rows = {name: {key: found[key] for key in ACCURACIES} for name, found in record.items()}
    document.show(rows, ".1%")
    print("mean absolute error in grades:", record["diabetes grades"]["grades off"])
    document.publish(
        "regression_or_classification",
        document.rounded(record),
        lambda: draw(record, *problems["iris petals"]),
        smoke=options.smoke,
    )


def iris() -> tuple[np.ndarray, np.ndarray]:
    """Return petal length in cm, and species."""
    bunch = load_iris()
    return bunch.data[:, 2:3].astype(np.float32), bunch.target


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all digits of the package."""
    splits = data.load("digits")
    parts = (splits.train, splits.validation, splits.test)
    x, y = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return x, y


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Return ten measurements, and the grade 0 to 4 of the disease's progression."""
    bunch = load_diabetes()
    grades = np.searchsorted(np.quantile(bunch.target, (0.2, 0.4, 0.6, 0.8)), bunch.target)
    return bunch.data.astype(np.float32), grades


ACCURACIES = ("numbers as given", "worst numbering", "best numbering", "one-hot", "softmax")


def compare(x: np.ndarray, y: np.ndarray, *, limit: int, folds: int) -> dict[str, Any]:
    """Return the accuracy of each head, and of class numbers under up to `limit` numberings."""
    numberings = renumberings(y.max() + 1, limit)
    by_number = cross_validated(lambda *split: nearest_number(*split, numberings), x, y, folds)
    one_hot = cross_validated(best_score, x, y, folds)
    probabilities = cross_validated(softmax_probabilities, x, y, folds)
    predicted = probabilities.argmax(-1)
    accuracies = (by_number == y[:, None]).mean(0)
    grades = np.arange(y.max() + 1)
    middle = y == (y.max() + 1) // 2
    return {
        "numbers as given": accuracies[0],
        "worst numbering": accuracies.min(),
        "best numbering": accuracies.max(),
        "one-hot": (one_hot == y).mean(),
        "softmax": (predicted == y).mean(),
        "numberings": np.sort(accuracies),
        "recall of the middle class": {
            "numbers as given": (by_number[middle, 0] == y[middle]).mean(),
            "one-hot": (one_hot[middle] == y[middle]).mean(),
            "softmax": (predicted[middle] == y[middle]).mean(),
        },
        "grades off": {
            "numbers as given": abs(by_number[:, 0] - y).mean(),
            "one-hot": abs(one_hot - y).mean(),
            "softmax, likeliest": abs(predicted - y).mean(),
            "softmax, median": abs((probabilities.cumsum(-1) < 0.5).sum(-1) - y).mean(),
            "always the middle": abs(grades[len(grades) // 2] - y).mean(),
        },
        "examples": len(y),
    }


def renumberings(classes: int, limit: int) -> np.ndarray:
    """Return the given numbering, then others, all of them if there are few, `[R, K]`."""
    if classes <= 5:
        return np.array(list(itertools.permutations(range(classes))))[:limit]
    rng = np.random.default_rng(0)
    return np.array([np.arange(classes), *(rng.permutation(classes) for _ in range(limit - 1))])


# Heads: functions of training examples, their labels and test examples that predict the latter


def nearest_number(
    x: np.ndarray, y: np.ndarray, test: np.ndarray, numberings: np.ndarray
) -> np.ndarray:
    """Fit class numbers by least squares; return each numbering's nearest class, `[N, R]`."""
    numbers = least_squares(x, numberings[:, y].T.astype(float), test)
    nearest = np.clip(np.rint(numbers), 0, numberings.shape[1] - 1).astype(int)
    return np.take_along_axis(np.argsort(numberings, 1).T, nearest, 0)


def best_score(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit a column of 0 and 1 for each class by least squares; return the largest."""
    return least_squares(x, np.eye(y.max() + 1)[y], test).argmax(-1)


def softmax_probabilities(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the probabilities of softmax regression, `[N, K]`."""
    how: dict[str, Any] = {"epochs": 100, "batch_size": len(x), "key": jax.random.key(0)}
    start = linear.init(x.shape[1], int(y.max()) + 1)
    params = fit(loss, x, y, optimizer=LBFGS, params=start, **how).params
    return np.asarray(softmax(linear.logits(params, test)))


def least_squares(x: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the predictions of the least-squares fit with a constant."""
    ones = [np.c_[np.ones(len(part)), part].astype(float) for part in (x, test)]
    return ones[1] @ np.linalg.lstsq(ones[0], targets)[0]


def cross_validated(
    head: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray, folds: int
) -> np.ndarray:
    """Return a head's output for each example when the example's fold is left out."""
    fold = data.assign_folds(y, folds)
    said: dict[int, np.ndarray] = {}
    for k in range(folds):
        kept = fold != k
        spread = x[kept].std(0)
        scaled = (x - x[kept].mean(0)) / np.where(spread > 0, spread, 1)
        said[k] = head(scaled[kept], y[kept], scaled[~kept])
    out = np.empty((len(y), *said[0].shape[1:]), said[0].dtype)
    for k, values in said.items():
        out[fold == k] = values
    return out


# The figure


def draw(record: dict[str, Any], x: np.ndarray, y: np.ndarray) -> Figure:
    """Draw two numberings of iris, the accuracy of all heads on all data, and grades off."""
    figure, axes = document.panels(2, 2, height=6.2, width_ratios=(1.25, 1))
    names = np.array(["setosa", "versicolor", "virginica"])
    number(axes[0, 0], x[:, 0], y, names, order=[0, 1, 2])
    number(axes[0, 1], x[:, 0], y, names, order=[1, 0, 2])
    axes[0, 0].set_title("iris: species numbered by petal length ...")
    axes[0, 1].set_title("... and in another order")
    accuracies(axes[1, 0], record)
    off = record["diabetes grades"]["grades off"]
    colors = (INK, ORANGE, BLUE, BLUE, MUTED)
    axes[1, 1].barh(list(off), list(off.values()), color=colors, height=0.6)
    for row, value in enumerate(off.values()):
        document.note(axes[1, 1], f"{value:.2f}", (value + 0.02, row), va="center", color=INK)
    axes[1, 1].invert_yaxis()
    axes[1, 1].grid(visible=False, axis="y")
    axes[1, 1].set(xlabel="mean distance from the true grade", xlim=(0, 1.4))
    axes[1, 1].set_title("diabetes: how many grades off")
    return figure


def number(axes: Axes, x: np.ndarray, y: np.ndarray, names: np.ndarray, order: list[int]) -> None:
    """Draw the least-squares line of the class number, and the classes that it gives."""
    numbers = np.argsort(order)[y]
    span = np.linspace(x.min(), x.max(), 200)
    line = least_squares(x[:, None], numbers.astype(float), span[:, None])
    jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(x))
    for k, color in zip(range(3), (BLUE, ORANGE, GREEN), strict=True):
        axes.scatter(x[y == k], numbers[y == k] + jitter[y == k], s=8, color=color, alpha=0.7)
    axes.plot(span, line, color=INK)
    said = np.clip(np.rint(line), 0, 2)
    axes.plot(span, said, color=MUTED, linewidth=1.2, linestyle="--")
    right = (np.clip(np.rint(np.interp(x, span, line)), 0, 2) == numbers).mean()
    document.note(axes, f"{right:.0%} right", (1.2, 2.25), color=INK, fontsize=9)
    axes.set_yticks(range(3), [f"{names[k]}  {i + 1}" for i, k in enumerate(order)])
    axes.set(xlabel="petal length, cm", ylim=(-0.5, 2.5))


def accuracies(axes: Axes, record: dict[str, Any]) -> None:
    """Draw a row for each data set: numberings as ticks, heads as marks."""
    marks = {
        "numbers as given": (INK, "D", "class number, as given"),
        "one-hot": (ORANGE, "s", "0 and 1 for each class"),
        "softmax": (BLUE, "o", "softmax"),
    }
    for row, found in enumerate(record.values()):
        axes.scatter(
            found["numberings"],
            np.full(len(found["numberings"]), row),
            marker="|",
            s=90,
            linewidth=0.8,
            color=MUTED,
            alpha=0.6,
            label="class number, other numberings" if row == 0 else None,
        )
        for lift, (key, (color, marker, label)) in zip(
            (-0.2, 0.2, 0.32), marks.items(), strict=True
        ):
            named = {"label": label} if row == 0 else {}
            axes.scatter(found[key], row + lift, color=color, marker=marker, s=36, **named)
    axes.set_yticks(range(len(record)), list(record))
    axes.set(xlabel="accuracy, cross-validated", xlim=(0, 1.03), ylim=(2.6, -1.6))
    axes.legend(loc="upper left", fontsize=8, handletextpad=0.3, ncols=2)
    axes.set_title("accuracy of each head")


if __name__ == "__main__":
    main()
