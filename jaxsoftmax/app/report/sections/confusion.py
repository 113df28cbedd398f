"""The confusion matrix, and the classes that are confused most often."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxsoftmax.app import plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, Table, Text, figure

MAX_MATRIX_CLASSES = 1000  # of more classes, no confusion matrix is drawn


def render(context: Context) -> Iterator[Element]:
    """Yield the matrix of a classifier, and a table of the largest cells off its diagonal."""
    if context.task is not Task.classes:
        return
    classes = context.classes
    if len(classes) > MAX_MATRIX_CLASSES:
        yield Text(f"No matrix is drawn for more than {MAX_MATRIX_CLASSES:,} classes.")
        return
    counts = context.confusion_counts
    total = int(counts.sum())
    num_wrong = total - int(np.trace(counts))
    yield figure(
        plots.confusion_matrix(counts, classes),
        name="confusion-matrix",
        label=f"Confusion matrix: {num_wrong:,} of {total:,} test examples are wrong.",
        caption=f"The {total:,} test examples, of which {num_wrong:,} are wrong, by true class "
        "(rows) and predicted class (columns). Colors are shares of a row: blue for the correct "
        "predictions, and orange, on a scale of its own, for the mistakes.",
    )
    if len(classes) > 2:
        yield from _confused_pairs(counts, classes)


def _confused_pairs(counts: np.ndarray, classes: Sequence[str]) -> Iterator[Element]:
    rows = [
        (classes[j], classes[k], f"{counts[j, k]:,}", f"{counts[j, k] / counts[j].sum():.1%}")
        for j, k in plots.most_confused_pairs(counts, limit=8)
    ]
    if rows:
        headings = ("true", "predicted", "examples", "share of the true class")
        yield Table("Most frequent confusions", headings, rows, "llrr")
