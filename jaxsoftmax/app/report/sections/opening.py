"""The opening: the model, its quality beside a baseline, and the command that repeats it."""

from collections.abc import Iterator

from jaxsoftmax.app import evaluation
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Command, Element, Summary, Text
from jaxsoftmax.app.report.sections import formats
from jaxsoftmax.app.text import shorten

HEADLINES = {
    Task.classes: ("accuracy", "nll", "ece"),
    Task.labels: ("accuracy", "macro_f1", "nll", "ece"),
    Task.numbers: ("r2", "rmse", "mae"),
}
"""The main metrics of each task."""


def title(context: Context) -> str:
    """Return the name of the data and the kind of model."""
    size = len(context.classes)
    model = {
        Task.classes: f"a linear classifier of {size:,} classes",
        Task.labels: f"linear classifiers of {size:,} labels",
        Task.numbers: "a linear regression"
        if size == 1
        else f"linear regressions of {size:,} numbers",
    }[context.task]
    return f"{context.header.get('data', {}).get('name', 'A run')}: {model}"


def render(context: Context) -> Iterator[Element]:
    """Yield the elements of the opening."""
    yield Text(_describe_fit(context), "muted")
    if context.header.get("interrupted"):
        num_epochs = len(context.run.history.get("loss", ()))
        yield Text(
            f"after epoch {num_epochs}. The model is the best one up to then; a full run may give "
            "a better one.",
            "warning",
            strong="This run was interrupted",
        )
    yield Summary(list(_boxes(context)))
    if "command" in context.header:
        yield Command(context.header["command"])


def _describe_fit(context: Context) -> str:
    parts = [
        f"{context.schema.num_features:,} features",
        f"{str(context.loss).replace('_', ' ')} loss",
    ]
    created = str(context.header.get("created", "")).replace("+00:00", " UTC")
    return " · ".join([*parts, created] if created else parts)


def _boxes(context: Context) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the names of the main test metrics, their values, and notes below them."""
    values, baseline = context.test_metrics, context.baseline
    for name in HEADLINES[context.task]:
        if values.get(name) is not None:
            interval = values.get(f"{name}_interval")
            ends = " to ".join(formats.metric(name, end) for end in interval or ())
            notes = [f"95% interval {ends}"] if ends else []
            if baseline is not None and baseline.metric == name:
                notes.append(
                    f"baseline {formats.metric(name, baseline.value)}, always "
                    f"{shorten(baseline.prediction, 32)}"
                )
            yield (
                f"test {evaluation.TITLES[name]}",
                formats.metric(name, values[name]),
                notes,
            )
    yield "test examples", f"{len(context.targets):,}", []
