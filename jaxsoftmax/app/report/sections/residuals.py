"""Predicted against true numbers, and their differences."""

from collections.abc import Iterator

from jaxsoftmax.app import plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, figure

MAX_PANELS = 6  # of more numbers, the residuals of the first are drawn


def render(context: Context) -> Iterator[Element]:
    """Yield the figure of a regression."""
    if context.task is not Task.numbers:
        return
    names = context.classes[:MAX_PANELS]
    is_cut = len(context.classes) > MAX_PANELS
    omission = f" Only the first {MAX_PANELS} are drawn." if is_cut else ""
    yield figure(
        plots.residuals(context.scores[:, :MAX_PANELS], context.targets[:, :MAX_PANELS], names),
        name="residuals",
        label=f"Predicted against true values of {', '.join(names)}, and their differences.",
        caption="Test examples: predicted against true values, at most 1,000 points, and the "
        f"distribution of all differences.{omission}",
    )
