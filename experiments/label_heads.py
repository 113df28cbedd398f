"""Shared parts of the multi-label documents: a head for each label, thresholds, and panels.

A head whose label is rare hardly ever predicts it at one half. There are two remedies: a weight for
the label's positives in training, with which they count as much as all its negatives (pos_weight),
and a separate threshold for each label, chosen after training for the best F1 on validation data.
"""

from typing import Any, NamedTuple

import document
import figures
import jax
import numpy as np
from figures import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE
from matplotlib.axes import Axes
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from jaxsoftmax import LinearParams, binary_cross_entropy, metrics, solve_path

HALF, WEIGHTED, CHOSEN, BOTH, SKLEARN = (
    "at one half", "pos_weight", "thresholds", "pos_weight and thresholds",
    "scikit-learn one-vs-rest",
)  # fmt: skip
COLORS = {HALF: BLUE, WEIGHTED: ORANGE, CHOSEN: GREEN, BOTH: INK, SKLEARN: PURPLE}
MARKS = {HALF: "o", WEIGHTED: "^", CHOSEN: "s", BOTH: "D", SKLEARN: "o"}


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
) -> dict[str, Any]:
    """Fit each way and choose C by validation ROC-AUC; return the record."""
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
    return document.rounded(record)


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
    """Draw F1 of each label at one half and with its threshold, the rarest first."""
    share = np.array(record["share of training examples"])
    order = share.argsort()
    before, after = (np.array(record["test"][name]["F1"])[order] for name in (HALF, CHOSEN))
    for row, (start, end) in enumerate(zip(before, after, strict=True)):
        figures.move(axes, row, start, end, color=BLUE)
    figures.rows_of(axes, (f"{record['labels'][k]}, {share[k]:.1%}" for k in order))
    axes.set(xlabel="F1 on test data: hollow at one\nhalf, full with a threshold")
    axes.set(xlim=(-0.04, 1.04))
    axes.set_title("label and its share")


def macro_f1_of_ways(axes: Axes, record: dict[str, Any]) -> None:
    """Draw macro F1 with its 95% interval, and without a model."""
    nothing = record["macro F1 of saying all labels always"]
    axes.axvline(nothing, color=MUTED, linewidth=1, linestyle=":")
    figures.label(axes, " every label always", (nothing, len(record["test"]) - 0.55))
    for row, name in enumerate(COLORS):
        of = record["test"][name]
        axes.plot(of["interval of the macro F1"], (row, row), color=COLORS[name])
        axes.plot(of["macro F1"], row, MARKS[name], color=COLORS[name], markersize=6)
        at = sum(of["interval of the macro F1"]) / 2, row - 0.2
        figures.label(axes, name, at, COLORS[name], ha="center")
    axes.set(yticks=[], ylim=(len(record["test"]) - 0.4, -0.7), xlabel="macro F1")
    axes.margins(x=0.5)
    axes.set_title("mean over the labels, 95% intervals")
