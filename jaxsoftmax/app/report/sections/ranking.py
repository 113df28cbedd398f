"""How well each class or label is ranked before the others: ROC and precision-recall curves."""

from collections.abc import Iterator

from jaxsoftmax.app import plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.ranking_curves import RankingCurve
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, figure

MAX_CLASSES = 100  # of more classes, which take long to sort and to draw, there are no curves


def render(context: Context) -> Iterator[Element]:
    """Yield the curves of the second of two classes, or of each class or label."""
    curves = _drawable_curves(context)
    if not curves:
        return
    names = list(curves)
    if len(names) == 1:
        meaning = f"The examples are ranked by their probability of {names[0]}."
    else:
        meaning = (
            f"One curve for each {context.singular}, whose examples are ranked against all others; "
            "the lowest is orange."
        )
    if context.logits is None:
        meaning = meaning.replace("probability", "score")
    yield figure(
        plots.ranking_curves(list(curves.values()), names),
        name="ranking-curves",
        label=f"ROC and precision-recall curves of {len(names)} {context.task}.",
        caption=f"Test examples. {meaning} A dashed line is what a guess gives.",
    )


def _drawable_curves(context: Context) -> dict[str, RankingCurve]:
    """Return the curves that have positives and negatives, by name."""
    if context.task is Task.numbers or not 1 < len(context.classes) <= MAX_CLASSES:
        return {}
    curves = list(zip(context.classes, context.ranking_curves, strict=False))
    if context.task is Task.classes and len(context.classes) == 2:
        curves = curves[1:]
    return {
        name: curve
        for name, curve in curves
        if curve is not None and curve.positives and curve.negatives
    }
