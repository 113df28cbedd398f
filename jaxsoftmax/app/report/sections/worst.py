"""The worst mistakes: as images, or with the features that contributed most to them."""

from collections.abc import Iterator, Sequence

from jaxsoftmax.app import plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report import mistakes
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, Table, Text, figure, isolate
from jaxsoftmax.app.report.mistakes import Mistake
from jaxsoftmax.app.report.sections import formats


def render(context: Context) -> Iterator[Element]:
    """Yield the worst mistakes among the test examples."""
    worst = mistakes.find_worst(
        context.task,
        context.scores,
        context.targets,
        w=context.w,
        probabilities=context.compute_probabilities(),
    )
    if not worst:
        yield Text("None: every test example is right.")
    elif context.has_images:
        yield from _images(context, worst)
    else:
        yield from _rows(context, worst)


def _images(context: Context, worst: Sequence[Mistake]) -> Iterator[Element]:
    images = context.run.test.features[[mistake.example for mistake in worst]]
    content = {
        Task.classes: f"the predicted class, the true class, and the {_severity_name(context)}",
        Task.labels: f"the label, the prediction, and the {_severity_name(context)}",
        Task.numbers: "the number, the predicted value, and the true value",
    }[context.task]
    yield figure(
        plots.mistakes(
            images.reshape(len(worst), *context.schema.shape),
            [_caption(context, mistake) for mistake in worst],
        ),
        name="worst-mistakes",
        label=f"{len(worst)} images; the table below has their predictions.",
        caption=f"{_title(context, worst)}: {content}.",
    )
    rows = [_cells(context, mistake) for mistake in worst]
    headings = _headings(context)
    yield Table("The same as a table", headings, rows, "l" * len(headings))


def _rows(context: Context, worst: Sequence[Mistake]) -> Iterator[Element]:
    rows = [(*_cells(context, m), _list_contributions(context, m)) for m in worst]
    headings = (*_headings(context), "largest contributions")
    yield Table(_title(context, worst), headings, rows, "l" * (len(headings) - 1) + "w")
    average = "training" if context.is_standardized else "test"
    yield Text(
        "Largest contributions: the features, at most five, that moved the score most toward this "
        f"prediction and away from the true value, compared with an average {average} example; "
        "each with its stored value and, in parentheses, its contribution to the score.",
        "muted",
    )


def _title(context: Context, worst: Sequence[Mistake]) -> str:
    adjective = "largest" if context.task is Task.numbers else "most confident"
    return f"The {len(worst)} {adjective} mistakes among the test examples"


def _severity_name(context: Context) -> str:
    return "lead of the score" if context.logits is None else "probability"


def _headings(context: Context) -> tuple[str, ...]:
    output = (context.singular,) if context.has_named_outputs else ()
    severity = () if context.task is Task.numbers else (_severity_name(context),)
    return ("example", *output, "true", "predicted", *severity)


def _cells(context: Context, mistake: Mistake) -> tuple[str, ...]:
    identifier = str(context.run.test.ids[mistake.example])
    pair = (_format_target(context, mistake.true), _format_target(context, mistake.predicted))
    output = (context.classes[mistake.output],) if context.has_named_outputs else ()
    severity = () if context.task is Task.numbers else (_format_severity(context, mistake),)
    return (identifier, *output, *pair, *severity)


def _caption(context: Context, mistake: Mistake) -> str:
    """Return three lines to write below an image."""
    true, predicted = (
        _format_target(context, value) for value in (mistake.true, mistake.predicted)
    )
    output = context.classes[mistake.output]
    match context.task:
        case Task.classes:
            return f"{predicted}\ntrue: {true}\n{_format_severity(context, mistake)}"
        case Task.labels:
            return f"{output}\n{predicted}\n{_format_severity(context, mistake)}"
        case Task.numbers:
            return f"{output}\n{predicted}\ntrue: {true}"


def _format_severity(context: Context, mistake: Mistake) -> str:
    return format(mistake.severity, ".3g" if context.logits is None else ".1%")


def _format_target(context: Context, value: float) -> str:
    match context.task:
        case Task.classes:
            return context.classes[int(value)]
        case Task.labels:
            return ("no", "yes")[int(value)]
        case Task.numbers:
            return formats.number(value)


def _list_contributions(context: Context, mistake: Mistake) -> str:
    stored = context.run.test.features[mistake.example]
    features = context.preprocess(slice(mistake.example, mistake.example + 1))[0]
    largest = mistakes.largest_contributions(mistake, features - context.average_features)
    contributions = (
        f"{isolate(context.columns[j])} = {formats.number(stored[j])} ({formats.signed(c)})"
        for j, c in largest
    )
    return "; ".join(contributions) or formats.ABSENT
