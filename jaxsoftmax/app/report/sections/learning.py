"""The fit: learning curves by epoch, or held-out losses by the strength of the penalty."""

from collections.abc import Iterator, Mapping

import numpy as np

from jaxsoftmax.app import plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, figure


def render_curves(context: Context) -> Iterator[Element]:
    """Yield the learning curves, in the units of the main metric."""
    history = context.run.history
    if not len(history.get("loss", ())):
        return
    epoch = context.header.get("kept_epoch")
    kept = "" if epoch is None else f" The model is that of epoch {epoch}."
    yield figure(
        plots.learning_curves(_in_units(history, context)),
        name="learning-curves",
        label="Loss and accuracy by epoch, of training and validation data.",
        caption="Training values are means over an epoch, during which the model changes; "
        f"validation values are those of the model at the end of the epoch.{kept}",
    )


def _in_units(history: Mapping[str, np.ndarray], context: Context) -> Mapping[str, np.ndarray]:
    """Return the history of numbers in their own unit: the loss is a sum of squared errors."""
    if context.task is not Task.numbers:
        return history
    count = len(context.classes)
    return {
        name.replace("loss", "rmse"): np.sqrt(np.asarray(values) / count)
        for name, values in history.items()
        if name.endswith("loss")
    }


def render_regularization(context: Context) -> Iterator[Element]:
    """Yield the curve of a probe."""
    path = context.run.path
    if path is None:
        return
    best = context.header["C"]
    yield figure(
        plots.regularization_curve(path["C"], path["loss"], error=path["error"]),
        name="regularization-curve",
        label=f"Held-out loss by C; it is lowest at C = {best:.4g}.",
        caption="The loss of training examples held out from the fit, over "
        f"{context.header['folds']} folds, with its standard error; every fit is within "
        f"{max(path['gap']):.0e} of its optimum. The model is the optimum at C = {best:.4g}.",
    )
