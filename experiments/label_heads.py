"""Shared parts of the multi-label documents: a head for each label, thresholds, and a figure.

A head whose label is rare hardly ever predicts it at one half. There are two remedies: a weight for
the label's positives in training, with which they count as much as all its negatives (pos_weight),
and a separate threshold for each label, chosen after training for the best F1 on validation data.
"""

from typing import Any, NamedTuple

import document
import jax
import numpy as np
from document import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from jaxsoftmax import LinearParams, binary_cross_entropy, metrics, solve_path

HALF, WEIGHTED, CHOSEN, BOTH, SKLEARN = (
    "at one half", "pos_weight", "thresholds", "pos_weight and thresholds",
    "scikit-learn one-vs-rest",
)  # fmt: skip
COLORS = {HALF: BLUE, WEIGHTED: ORANGE, CHOSEN: GREEN, BOTH: INK, SKLEARN: PURPLE}
MARKS = {HALF: "o", WEIGHTED: "^", CHOSEN: "s", BOTH: "D", SKLEARN: "o"}
DRAWN = (HALF, WEIGHTED, CHOSEN)


class Part(NamedTuple):
    """Features `[N, D]`, dense or sparse, and whether each example has each label, `[N, L]`."""

    features: Any
    targets: np.ndarray


class Heads(NamedTuple):
    """Models at one C or along a path of C, and the largest certified gap, if there is one."""

    params: LinearParams
    gap: float | None


def fitted(train: Part, strengths: np.ndarray, *, gap: float = 1e-6) -> Heads:
    """Return certified heads for all labels at every C: w `[P, D, L]`."""
    path = solve_path(*train, C=strengths, loss=binary_cross_entropy, gap=gap)
    return Heads(LinearParams(*(np.asarray(leaf, np.float64) for leaf in path.params)),
                 float(path.gap.max()))  # fmt: skip


def balanced(train: Part, strengths: np.ndarray, *, gap: float = 1e-6) -> Heads:
    """Fit label by label, with positives that weigh as much as all negatives together.

    Class weights N / 2N- and N / 2N+ are pos_weight = N- / N+ up to the factor that keeps their
    sum at N, and so C comparable.
    """
    paths = []
    for t in train.targets.T:
        weights = len(t) / (2 * np.bincount(t, minlength=2))
        how = {"loss": binary_cross_entropy, "class_weights": weights, "gap": gap}
        paths.append(solve_path(train.features, t, C=strengths, **how))
    w, bias = (
        np.concatenate([path.params[part] for path in paths], -1, dtype=np.float64)
        for part in (0, 1)
    )
    return Heads(LinearParams(w, bias), float(max(path.gap.max() for path in paths)))


def one_vs_rest(train: Part, strengths: np.ndarray) -> Heads:
    """Fit the same unbalanced heads by scikit-learn, which stops at its own tolerance."""
    each = [
        OneVsRestClassifier(LogisticRegression(C=C, max_iter=1000)).fit(*train).estimators_
        for C in strengths
    ]
    w = np.stack([np.concatenate([one.coef_ for one in path]).T for path in each])
    bias = np.stack([np.concatenate([one.intercept_ for one in path]) for path in each])
    return Heads(LinearParams(w, bias), None)


def scores(heads: Heads, features: Any) -> np.ndarray:
    """Return scores `[P, N, L]`."""
    w, bias = heads.params
    return np.stack([features @ w[p] + bias[p] for p in range(len(w))])


def objective(heads: Heads, train: Part, strengths: np.ndarray) -> np.ndarray:
    """Return the unbalanced heads' objective, `[P]`: mean loss and penalty, summed over labels."""
    z = scores(heads, train.features)
    loss = (np.logaddexp(0, z) - train.targets * z).mean(1).sum(-1)
    return loss + (heads.params.w**2).sum((1, 2)) / (2 * strengths * len(train.targets))


def thresholds(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return each label's score of largest F1, `[L]`; -inf where it is always predicted."""
    found = []
    for score, t in zip(z.T, targets.T, strict=True):
        order = np.argsort(-score)
        told = np.arange(1, len(t) + 1)
        f1 = 2 * t[order].cumsum() / (told + t.sum())
        edges, last = np.append(score[order], -np.inf), int(f1.argmax())
        found.append(edges[last : last + 2].mean())
    return np.array(found)


# The study


def study(
    train: Part, validation: Part, test: Part, *, strengths: np.ndarray, names: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fit each way and choose C by validation ROC-AUC; return the record, and the test scores."""
    kinds = {
        HALF: fitted(train, strengths),
        WEIGHTED: balanced(train, strengths),
        SKLEARN: one_vs_rest(train, strengths),
    }
    held_out = {name: scores(heads, validation.features) for name, heads in kinds.items()}
    auc = {name: [mean_auc(z, validation.targets) for z in held_out[name]] for name in kinds}
    best = {name: int(np.argmax(values)) for name, values in auc.items()}
    valid = {name: held_out[name][best[name]] for name in kinds}
    z = {name: scores(heads, test.features)[best[name]] for name, heads in kinds.items()}
    own = {name: thresholds(valid[name], validation.targets) for name in (HALF, WEIGHTED)}
    ways = {
        HALF: (z[HALF], 0), WEIGHTED: (z[WEIGHTED], 0), CHOSEN: (z[HALF], own[HALF]),
        BOTH: (z[WEIGHTED], own[WEIGHTED]), SKLEARN: (z[SKLEARN], 0),
    }  # fmt: skip
    above = objective(kinds[SKLEARN], train, strengths) / objective(kinds[HALF], train, strengths)
    record = {
        "labels": names,
        "examples": {"train": len(train.targets), "validation": len(validation.targets),
                     "test": len(test.targets)},
        "share of training examples": train.targets.mean(0),
        "C": strengths,
        "validation ROC-AUC": auc,
        "best C": {name: strengths[at] for name, at in best.items()},
        "largest certified gap": max(kinds[name].gap for name in (HALF, WEIGHTED)),
        "scikit-learn's objective above ours": above - 1,
        "largest difference of a score from scikit-learn's": abs(
            scores(kinds[SKLEARN], test.features) - scores(kinds[HALF], test.features)
        ).max(),
        "macro F1 of saying all labels always": always(test.targets),
        "test": {name: measured(*way, test.targets) for name, way in ways.items()},
    }  # fmt: skip
    return document.rounded(record), z


def mean_auc(z: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean of the labels' ROC-AUC."""
    return float(metrics.macro(metrics.roc_auc(z, targets)))


def always(targets: np.ndarray) -> float:
    """Return macro F1 of a head that predicts every label for every example: its recall is 1."""
    share = targets.mean(0)
    return float((2 * share / (1 + share)).mean())


def measured(z: np.ndarray, threshold: np.ndarray | float, targets: np.ndarray) -> dict[str, Any]:
    """Return the metrics of scores and thresholds on test data."""
    counts = metrics.label_counts(z - threshold, targets)
    interval = metrics.bootstrap(macro_f1, (z - threshold, targets), key=jax.random.key(0))
    ranked = metrics.bootstrap(auc_of_labels, (z, targets), key=jax.random.key(0), resamples=200)
    f1 = metrics.f1(counts)
    return {
        "macro F1": float(f1.mean()),
        "micro F1": float(metrics.f1(metrics.micro(counts))),
        "mean ROC-AUC": float(ranked.estimate.mean()),
        "mean average precision": float(metrics.macro(metrics.average_precision(z, targets))),
        "mean log loss": float(metrics.log_loss(z, targets).mean()),
        "interval of the macro F1": [float(interval.low), float(interval.high)],
        "F1": f1,
        "precision": metrics.precision(counts),
        "recall": metrics.recall(counts),
        "ROC-AUC": ranked.estimate,
        "interval of the ROC-AUC": [ranked.low, ranked.high],
    }


def macro_f1(z: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean of the labels' F1, 0 for a label that is never predicted."""
    return metrics.macro(metrics.f1(metrics.label_counts(z, targets)))


def auc_of_labels(z: jax.Array, targets: jax.Array) -> jax.Array:
    """Return each label's ROC-AUC."""
    return metrics.roc_auc(z, targets)


def show(record: dict[str, Any]) -> None:
    """Print the metrics of each way, and each label's F1."""
    means = ("macro F1", "micro F1", "mean ROC-AUC", "mean average precision", "mean log loss")
    document.show({name: {m: of[m] for m in means} for name, of in record["test"].items()})
    document.show({
        label: {"share": record["share of training examples"][k]}
        | {name: of["F1"][k] for name, of in record["test"].items()}
        | {"ROC-AUC": record["test"][HALF]["ROC-AUC"][k]}
        for k, label in enumerate(record["labels"])
    })  # fmt: skip
    print({k: v for k, v in record.items() if k not in ("test", "labels")})


# Panels of a figure


def f1_of_labels(axes: Axes, record: dict[str, Any]) -> None:
    """Draw F1 of each label for three ways, the rarest first."""
    share = np.array(record["share of training examples"])
    order = share.argsort()
    for shift, name in zip((-0.27, 0, 0.27), DRAWN, strict=True):
        values = np.array(record["test"][name]["F1"])[order]
        axes.barh(np.arange(len(order)) + shift, values, 0.25, color=COLORS[name], label=name)
    axes.set_yticks(range(len(order)), [f"{record['labels'][k]}, {share[k]:.1%}" for k in order])
    axes.set(ylim=(len(order) - 0.5, -0.5), xlabel="F1 on test data", xlim=(0, 1))
    axes.grid(visible=False, axis="y")
    axes.set_title("label, and its share of the training data")


def macro_f1_of_ways(axes: Axes, record: dict[str, Any]) -> None:
    """Draw macro F1 with its 95% interval, and without a model."""
    nothing = record["macro F1 of saying all labels always"]
    axes.axvline(nothing, color=MUTED, linewidth=1, linestyle=":")
    document.note(axes, " all labels always", (nothing, len(record["test"]) - 0.6))
    for row, (name, of) in enumerate(record["test"].items()):
        axes.plot(of["interval of the macro F1"], (row, row), color=COLORS[name])
        axes.plot(of["macro F1"], row, MARKS[name], color=COLORS[name], markersize=5)
        at = sum(of["interval of the macro F1"]) / 2, row - 0.2
        document.note(axes, name, at, ha="center", color=COLORS[name])
    axes.set(yticks=[], ylim=(len(record["test"]) - 0.5, -0.7))
    axes.margins(x=0.25)
    axes.set_title("macro F1 on test data, with 95% intervals")


def operating_points(
    axes: Axes, z: dict[str, np.ndarray], targets: np.ndarray, record: dict[str, Any], label: int
) -> None:
    """Draw precision against recall of a label's test scores, with the point of each way."""
    for name, style in ((HALF, "-"), (WEIGHTED, "--")):
        t = targets[np.argsort(-z[name][:, label], kind="stable"), label]
        recall, precision = t.cumsum() / t.sum(), t.cumsum() / np.arange(1, len(t) + 1)
        axes.plot(recall, precision, style, color=COLORS[name], linewidth=1, alpha=0.7)
    for name in DRAWN:
        of = record["test"][name]
        at = of["recall"][label], of["precision"][label]
        axes.plot(*at, MARKS[name], color=COLORS[name], markersize=7, clip_on=False, zorder=3)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"{record['labels'][label]}: each way on its curve")


def most_helped(record: dict[str, Any]) -> int:
    """Return the label whose F1 gains most from a threshold."""
    gain = np.subtract(*(record["test"][name]["F1"] for name in (CHOSEN, HALF)))
    return int(gain.argmax())


def figure(record: dict[str, Any], z: dict[str, np.ndarray], targets: np.ndarray) -> Figure:
    """Draw F1 of the labels; beside it the means, and one label's precision and recall."""
    drawn = Figure(figsize=(9.6, 6.2), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=(1.15, 1))
    panel = left.subplots()
    f1_of_labels(panel, record)
    panel.legend(loc="upper right", fontsize=8)
    above, below = right.subplots(2, 1)
    macro_f1_of_ways(above, record)
    operating_points(below, z, targets, record, most_helped(record))
    return drawn
