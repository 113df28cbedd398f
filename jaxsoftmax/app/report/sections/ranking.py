"""How well each class or label is ranked before the others: ROC and precision-recall curves."""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from jaxsoftmax.app import host_metrics, plots, ranking_curves
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.evaluation import TITLES, format_metric
from jaxsoftmax.app.ranking_curves import RankingCurve
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, Table, figure

MAX_CLASSES = 100  # of more classes, the averages and the extremes are drawn
NUM_EXTREMES = 10  # classes with the lowest, and as many with the highest area
MAX_PAIRS = 2**23  # of examples and classes, that are ranked together


def render(context: Context) -> Iterator[Element]:
    """Yield the curves of the second of two classes, or of each class or label."""
    if context.task is not Task.numbers and len(context.classes) > MAX_CLASSES:
        yield from _render_many(context)
        return
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
    if context.task is Task.numbers or len(context.classes) < 2:
        return {}
    curves = list(zip(context.classes, context.ranking_curves, strict=False))
    if context.task is Task.classes and len(context.classes) == 2:
        curves = curves[1:]
    return {
        name: curve
        for name, curve in curves
        if curve is not None and curve.positives and curve.negatives
    }


def _render_many(context: Context) -> Iterator[Element]:
    """Yield the averages of the curves of many classes or labels, and the extreme ones."""
    extremes: list[tuple[str, RankingCurve]] = []
    macro = ranking_curves.average(_collect_extremes(context, extremes))
    if macro is None:
        return
    micro = ranking_curves.average([_rank_all(context)])
    assert micro is not None
    yield figure(
        plots.average_ranking_curves({"macro": macro, "micro": micro}),
        name="average-ranking-curves",
        label=f"Average ROC and precision-recall curves of {len(context.classes):,} "
        f"{context.task}.",
        caption=f"Test examples. Macro: the mean over all {context.task}. Micro: all pairs of an "
        f"example and a {context.singular} are ranked together.",
    )
    names, curves = zip(*extremes, strict=True)
    half = (len(names) + 1) // 2
    yield figure(
        plots.ranking_curves(curves, names),
        name="ranking-curves",
        label=f"ROC and precision-recall curves of {len(names)} {context.task}.",
        caption=f"Test examples of the {context.task} with the lowest and the highest area under "
        "the ROC curve; the lowest is orange.",
    )
    for order, some in (("lowest", extremes[:half]), ("highest", extremes[half:][::-1])):
        yield _areas_table(context, order, some)


def _collect_extremes(
    context: Context, extremes: list[tuple[str, RankingCurve]]
) -> Iterator[RankingCurve]:
    """Yield all curves, and leave those with the lowest and the highest areas in a list."""
    for name, curve in zip(context.classes, context.rank(), strict=False):
        if curve is None or not (curve.positives and curve.negatives):
            continue
        bisect.insort(extremes, (name, curve), key=lambda pair: pair[1].roc_auc)
        if len(extremes) > 2 * NUM_EXTREMES:
            del extremes[NUM_EXTREMES]
        yield curve


def _rank_all(context: Context) -> RankingCurve:
    """Rank the pairs of examples and classes, of every second example or third where many."""
    every = slice(None, None, -(-context.scores.size // MAX_PAIRS))
    if context.task is Task.labels:
        confidences, targets = context.scores[every], context.targets[every]
    else:
        assert context.logits is not None
        confidences = host_metrics.log_probabilities(context.logits[every])
        targets = context.targets[every, None] == np.arange(confidences.shape[1])
    curve = ranking_curves.rank(confidences.ravel(), targets.ravel())
    assert curve is not None  # else no class would have one
    return curve


def _areas_table(context: Context, order: str, some: Sequence[tuple[str, RankingCurve]]) -> Element:
    rows = [
        (
            name,
            f"{curve.positives:,}",
            *(format_metric(area, getattr(curve, area)) for area in _AREAS),
        )
        for name, curve in some
    ]
    headings = (context.singular, "examples", *(TITLES[area] for area in _AREAS))
    return Table(f"The {context.task} with the {order} ROC-AUC", headings, rows, "lrrr")


_AREAS = ("roc_auc", "average_precision")
