"""The threshold from which on a class or label is predicted, by the costs of its two mistakes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxsoftmax.app import plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, Table, Text, figure
from jaxsoftmax.app.report.sections import formats

COSTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""The cost of a missed positive, in costs of a false alarm."""
LABEL_COSTS = (0.2, 1.0, 5.0)
MAX_LABELS = 20  # of more labels, the first have thresholds

MEANING = (
    "A false alarm costs 1. If a missed one costs c and probabilities are frequencies, the best "
    "threshold is 1 / (1 + c). The cost is that of all test examples, beside the cost of the "
    "threshold of 50%."
)


class _Outcome(NamedTuple):
    """The outcome of a threshold on the test examples."""

    cost_ratio: float
    found: int
    missed: int
    false_alarms: int

    @property
    def cost(self) -> float:
        return self.false_alarms + self.cost_ratio * self.missed


def render(context: Context) -> Iterator[Element]:
    """Yield curves and a table for two classes, or a table for labels."""
    probabilities = context.compute_probabilities()
    if probabilities is None:
        return
    if context.task is Task.classes and len(context.classes) == 2:
        p, targets = probabilities[:, 1], context.targets == 1
        yield from _curves(context, p, context.classes[1])
        title = f"Thresholds of {context.classes[1]} by the cost of missing one"
        rows = [_row(p, targets, ratio) for ratio in COSTS]
        yield _table(title, ("cost of a missed one",), rows)
        yield Text(MEANING, "muted")
    elif context.task is Task.labels:
        rows = [
            (name, *_row(probabilities[:, k], context.targets[:, k] == 1, ratio))
            for k, name in enumerate(context.classes[:MAX_LABELS])
            for ratio in LABEL_COSTS
        ]
        yield _table(
            "Thresholds by the cost of a missed label", ("label", "cost of a missed one"), rows
        )
        yield Text(MEANING, "muted")


def _curves(context: Context, probabilities: np.ndarray, name: str) -> Iterator[Element]:
    curve = context.ranking_curves[1]
    if curve is None or not (curve.positives and curve.negatives):
        return
    thresholds = np.exp(curve.thresholds)  # the examples are ranked by log probabilities
    yield figure(
        plots.threshold_curves(curve, thresholds, name),
        name="threshold-curves",
        label=f"Precision, recall and F1 by the threshold of {name}.",
        caption=f"Test examples: {name} is predicted from a probability on. The dashed line is "
        "50%, the threshold of the other figures.",
    )


def _outcome(probabilities: np.ndarray, targets: np.ndarray, cost: float, at: float) -> _Outcome:
    is_predicted = probabilities > at
    found, missed, false_alarms = (
        int(np.count_nonzero(cell))
        for cell in (is_predicted & targets, ~is_predicted & targets, is_predicted & ~targets)
    )
    return _Outcome(cost, found, missed, false_alarms)


def _row(probabilities: np.ndarray, targets: np.ndarray, ratio: float) -> tuple[str, ...]:
    threshold = 1 / (1 + ratio)
    there, usual = (_outcome(probabilities, targets, ratio, at) for at in (threshold, 0.5))
    return (
        f"{ratio:g}",
        f"{threshold:.1%}",
        _share(there.found, there.found + there.false_alarms),
        _share(there.found, there.found + there.missed),
        f"{there.missed:,}",
        f"{there.false_alarms:,}",
        f"{there.cost:,.4g}",
        f"{usual.cost:,.4g}",
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else formats.ABSENT


def _table(title: str, first: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    headings = (*first, "threshold", "precision", "recall", "missed", "false alarms", "cost",
                "cost at 50%")  # fmt: skip
    return Table(title, headings, rows, "l" * (len(first) - 1) + "r" * 8)
