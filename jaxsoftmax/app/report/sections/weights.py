"""The weights of the model: as images, as bars, or in a table."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxsoftmax.app import plots
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Details, Element, Table, Text, figure, isolate
from jaxsoftmax.app.report.sections import formats

MAX_TEMPLATES = 100  # of more classes, the weights of the first are drawn as images
MAX_PANELS = 15  # of more classes, a table has the largest weights in place of a figure


def render(context: Context) -> Iterator[Element]:
    """Yield the weights of each class, label or number."""
    w, classes = context.w, context.classes
    if context.has_one_score:  # the weights of the first class are 0
        w, classes = w[:, 1:], (f"{classes[1]} against {classes[0]}",)
    if context.has_images:
        yield _templates(w, context.schema.shape, classes)
        return
    meaning = (
        "Features are standardized, so weights are comparable: each is the change of the score "
        "for one standard deviation of its feature."
        if context.is_standardized
        else "Features are not standardized: each weight is the change of the score for one unit "
        "of its feature, and the weights of features of different scales are not comparable."
    )
    if len(classes) > MAX_PANELS:
        yield Text(meaning)
        yield _table(w, context.columns, classes)
        return
    yield figure(
        plots.top_features(w, context.columns, classes, limit=6 if len(classes) > 1 else 15),
        name="top-features",
        label=f"The features with the largest weights for {formats.list_names(classes)}.",
        caption="The features with the largest weights. Blue raises the score, orange lowers it. "
        f"{meaning}",
    )


def _templates(w: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> Element:
    meaning = (
        "Gray is no weight; any other color is the one that raises the score."
        if shape[2:] == (3,)
        else "Blue: a bright pixel raises the score. Orange: it lowers the score."
    )
    if len(classes) > MAX_TEMPLATES:
        meaning += f" The first {MAX_TEMPLATES} of {len(classes):,} are drawn."
        w, classes = w[:, :MAX_TEMPLATES], classes[:MAX_TEMPLATES]
    return figure(
        plots.class_templates(w, shape, classes),
        name="templates",
        label=f"The weights as images: {formats.list_names(classes)}.",
        caption=f"The weights of each score as an image, all on one scale. {meaning}",
    )


def _table(w: np.ndarray, columns: Sequence[str], classes: Sequence[str]) -> Element:
    rows = []
    for name, weights in zip(classes, w.T, strict=True):
        order = np.argsort(-weights, kind="stable")
        ends = (order[:4], order[::-1][:4])
        rows.append((name, *(_list_weights(columns, weights, end) for end in ends)))
    headings = ("", "raise its score", "lower its score")
    title = f"The features with the largest weights for each of {len(classes)}"
    return Details(title, [Table(title, headings, rows, "lww")])


def _list_weights(columns: Sequence[str], weights: np.ndarray, features: np.ndarray) -> str:
    return ", ".join(f"{isolate(columns[j])} ({formats.signed(weights[j])})" for j in features)
