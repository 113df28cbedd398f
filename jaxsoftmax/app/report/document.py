"""The report of a run: one self-contained HTML page for a screen, a phone or paper."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxsoftmax.app import evaluation, host_metrics, plots
from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.data.dataset import Schema, Split, Task
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.app.report import columns, mistakes, page
from jaxsoftmax.app.report.mistakes import Mistake
from jaxsoftmax.app.text import shorten
from jaxsoftmax.linear import LinearParams

ABSENT = "–"
MAX_NAME_WIDTH = 60  # names are cut to this width
MAX_LISTED_NAMES = 20  # of more classes or features, the first are named
MAX_TABLE_ROWS = 20  # of more classes, the worst have a table, and all one that is folded
MAX_MATRIX_CLASSES = 1000  # of more classes, no confusion matrix is drawn
MAX_TEMPLATES = 100  # of more classes, the weights of the first are drawn as images
MAX_WEIGHT_PANELS = 15  # of more classes, a table has the largest weights in place of a figure
MAX_RESIDUAL_PANELS = 6  # of more numbers, the residuals of the first are drawn
SHOWN_ELSEWHERE = {"command", "created", "format", "format_version", "generation", "interrupted"}


@dataclass(frozen=True, eq=False)
class Run:
    """A run, as its report needs it.

    Args:
        header: the header of the run: "loss" and, optionally, "command", "created", "interrupted",
            "data" with "name" and "source", and settings and versions by their names.
        schema: the schema of the data.
        metrics: the result of `evaluation.compute_metrics` for each split.
        history: one number per epoch under each name.
        params: the model.
        scores: the scores of the test examples, `[N, K]`, or `[N, 1]` for a binary sigmoid.
        test: the test examples with features as stored, before preprocessing.
        calibration: the result of `evaluation.calibrate`, or None.
        preprocessing: the map that the model applies to features first.
        path: the result of `linear_probe.ProbePath.to_json` for a probe, or None.
        columns: what was learned about the columns of a table.
    """

    header: Mapping[str, Any]
    schema: Schema
    metrics: Mapping[str, Mapping[str, Any]]
    history: Mapping[str, np.ndarray]
    params: LinearParams
    scores: np.ndarray
    test: Split
    calibration: Mapping[str, Any] | None = None
    preprocessing: Preprocessing = IDENTITY
    path: Mapping[str, Any] | None = None
    columns: Sequence[ColumnSummary] = ()


def write(path: str | Path, run: Run) -> None:
    """Write the report of a run as one HTML file.

    Args:
        path: the path of the file; an existing file is replaced.
        run: the run to report.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from jaxsoftmax.app import report
        >>> from jaxsoftmax.app.data.dataset import Schema, Split, Task
        >>> from jaxsoftmax.linear import LinearParams
        >>> x = np.ones((3, 1), np.float32)
        >>> run = report.Run(
        ...     header={"loss": "squared_error", "command": "jaxsoftmax fit houses.csv"},
        ...     schema=Schema(Task.numbers, ("price",), (1,), columns=("rooms",)),
        ...     metrics={}, history={"loss": np.array([2.0, 1.0])},
        ...     params=LinearParams(w=np.ones((1, 1)), bias=None), scores=x,
        ...     test=Split(x, np.array([1.0, 1.5, 2.0]), np.arange(1, 4)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.write(pathlib.Path(folder) / "report.html", run)
        ...     (pathlib.Path(folder) / "report.html").read_text(encoding="utf-8")[:15]
        '<!DOCTYPE html>'
    """
    Path(path).write_text(html(run), encoding="utf-8")


def html(run: Run) -> str:
    """Return the report of a run as one HTML page, which loads nothing and runs no script.

    Args:
        run: the run to report.

    Returns:
        The page. The same run gives the same text.
    """
    context = _Context(run)
    rendered = [(name, title, render(context)) for name, title, render in _SECTIONS]
    sections = [section for section in rendered if section[2]]
    links_to_sections = "\n".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = [
        _render_opening(context),
        f'<nav aria-label="Sections">\n{links_to_sections}\n</nav>\n',
    ]
    for name, title, content in sections:
        body.append(f'<section id="{name}">\n<h2>{title}</h2>\n{content}</section>\n')
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    title = page.text(_describe_model(context))
    return Template(template).substitute(title=title, body="".join(body))


class _Context:
    """What all sections share: the run, and its test scores in one form for all tasks.

    A binary sigmoid has one score, that of the second class. Here the first class has the score 0
    beside it, so that the class with the larger score is predicted, as everywhere.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.schema, self.header = run, run.schema, run.header
        self.task = run.schema.task
        self.classes = tuple(shorten(name, MAX_NAME_WIDTH) for name in run.schema.classes)
        self.test_metrics = run.metrics.get("test", {})
        self.scores = np.asarray(run.scores, np.float32)
        self.logits = evaluation.to_logits(self.scores, self.schema, self.loss)
        self.w = np.asarray(run.params.w, np.float32)
        self.has_one_score = self.task is Task.classes and self.w.shape[1] == 1
        if self.has_one_score:
            self.scores, self.w = (
                np.concatenate([np.zeros_like(a), a], 1) for a in (self.scores, self.w)
            )
        self.targets = np.asarray(run.test.targets)
        if self.task is not Task.classes:
            self.targets = self.targets.reshape(self.scores.shape)

    @property
    def loss(self) -> LossName:
        return LossName(self.header["loss"])

    @property
    def loss_is_nll(self) -> bool:
        return self.loss == LossName.softmax or self.has_one_score

    @property
    def has_named_outputs(self) -> bool:
        """Whether a mistake is one of several labels or numbers, and must name it."""
        return self.task is Task.labels or (self.task is Task.numbers and len(self.classes) > 1)

    @property
    def has_images(self) -> bool:
        shape = self.schema.shape
        return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))

    @property
    def is_standardized(self) -> bool:
        return self.run.preprocessing.mean is not None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        numbered = (f"feature {number}" for number in range(1, self.schema.num_features + 1))
        names = self.schema.columns or numbered
        return tuple(shorten(name, MAX_NAME_WIDTH) for name in names)

    def compute_probabilities(self, scale: float = 1.0) -> np.ndarray | None:
        """Return the probabilities of scale times the logits; None where the loss has none."""
        if self.logits is None:
            return None
        return evaluation.link(scale * self.logits, self.task)

    @property
    def confusion_counts(self) -> np.ndarray:
        """The confusion matrix, without examples that have no prediction."""
        num_classes = len(self.classes)
        predicted = evaluation.predict(self.scores, self.schema)
        cells = (self.targets.astype(np.int64) * num_classes + predicted)[predicted >= 0]
        return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)

    def preprocess(self, examples: np.ndarray | slice) -> np.ndarray:
        """Return the features of some test examples after preprocessing."""
        return self.run.preprocessing.apply(self.run.test.features[examples])

    @cached_property
    def average_features(self) -> np.ndarray | float:
        """The average features after preprocessing; standardization makes their training mean 0."""
        if self.is_standardized:
            return 0.0
        return self.preprocess(slice(10_000)).mean(0, dtype=np.float64)


# -- The opening: the model, its quality, and the command that reproduces it --


def _describe_model(context: _Context) -> str:
    size = len(context.classes)
    model = {
        Task.classes: f"a linear classifier of {size:,} classes",
        Task.labels: f"linear classifiers of {size:,} labels",
        Task.numbers: "a linear regression"
        if size == 1
        else f"linear regressions of {size:,} numbers",
    }[context.task]
    return f"{context.header.get('data', {}).get('name', 'A run')}: {model}"


def _render_opening(context: _Context) -> str:
    parts = [
        f"<h1>{page.text(_describe_model(context))}</h1>\n",
        f"<p class=muted>{page.text(_describe_fit(context))}</p>\n",
    ]
    if context.header.get("interrupted"):
        num_epochs = len(context.run.history.get("loss", ()))
        parts.append(
            f"<p class=warning><strong>This run was interrupted</strong> after epoch {num_epochs}. "
            "The model is the best one up to then; a full run may give a better one.</p>\n"
        )
    parts.append(_render_summary(context))
    if "command" in context.header:
        parts.append(
            "<p>Command to reproduce this run:</p>\n" + page.command(context.header["command"])
        )
    return "".join(parts)


def _describe_fit(context: _Context) -> str:
    parts = [
        f"{context.schema.num_features:,} features",
        f"{str(context.loss).replace('_', ' ')} loss",
    ]
    created = str(context.header.get("created", "")).replace("+00:00", " UTC")
    return " · ".join([*parts, created] if created else parts)


def _render_summary(context: _Context) -> str:
    boxes = "".join(
        f"<div><dt>{page.text(name)}</dt><dd>{page.text(value)}"
        f"{f'<small>{page.text(note)}</small>' if note else ''}</dd></div>\n"
        for name, value, note in _summary_boxes(context)
    )
    return f"<dl class=summary>\n{boxes}</dl>\n"


def _summary_boxes(context: _Context) -> Iterator[tuple[str, str, str]]:
    """Yield the names of the main test metrics, their values, and notes below them."""
    values = context.test_metrics
    for name in {
        Task.classes: ("accuracy", "nll", "ece"),
        Task.labels: ("accuracy", "macro_f1", "nll", "ece"),
        Task.numbers: ("r2", "mse", "mae"),
    }[context.task]:
        if values.get(name) is not None:
            interval = values.get(f"{name}_interval")
            ends = " to ".join(_format_metric(name, end) for end in interval or ())
            note = f"95% interval {ends}" if ends else ""
            yield f"test {evaluation.TITLES[name]}", _format_metric(name, values[name]), note
    yield "test examples", f"{len(context.targets):,}", ""


def _format_metric(name: str, value: float | None) -> str:
    """Format a metric as everywhere, but large errors without powers of ten."""
    if value is not None and abs(value) >= 1000 and name in ("loss", "mse", "mae"):
        return _format_value(value)
    return evaluation.format_metric(name, value)


# -- The sections, each empty where it has nothing to show --


def _render_data(context: _Context) -> str:
    schema, data = context.schema, context.header.get("data", {})
    sizes = [f"{values['examples']:,} {split}" for split, values in context.run.metrics.items()]
    rows = [
        ("source", data.get("source", ABSENT)),
        ("examples", ", ".join(sizes) or ABSENT),
        ("features", _describe_features(context)),
        ("preprocessing", _describe_preprocessing(context)),
        (str(schema.task), f"{len(schema.classes):,}: {_list_names(context.classes)}"),
    ]
    return page.table("Source, examples and features", ("", ""), rows, align="ll")


def _describe_features(context: _Context) -> str:
    schema = context.schema
    if schema.columns is not None:
        return f"{schema.num_features:,}: {_list_names(context.columns)}"
    if len(schema.shape) == 1:
        return f"{schema.num_features:,}"
    return f"{schema.num_features:,}, of shape {' × '.join(map(str, schema.shape))}"


def _list_names(names: Sequence[str]) -> str:
    listed = ", ".join(map(page.isolate, names[:MAX_LISTED_NAMES]))
    return listed + (", …" if len(names) > MAX_LISTED_NAMES else "")


def _describe_preprocessing(context: _Context) -> str:
    divisor = context.schema.divisor
    steps = [f"divided by {divisor:g}"] if divisor != 1 else []
    steps += ["logarithm of 1 + x"] if context.run.preprocessing.log1p else []
    steps += ["standardized with the training data"] if context.is_standardized else []
    return ", then ".join(steps) or "none"


def _render_columns(context: _Context) -> str:
    return columns.render(context.run.columns)


def _render_learning_curves(context: _Context) -> str:
    history = context.run.history
    if not len(history.get("loss", ())):
        return ""
    epoch = context.header.get("kept_epoch")
    kept = "" if epoch is None else f" The model is that of epoch {epoch}."
    return _render_figure(
        plots.learning_curves(history),
        name="learning-curves",
        label="Loss and accuracy by epoch, of training and validation data.",
        caption="Training values are means over an epoch, during which the model changes; "
        f"validation values are those of the model at the end of the epoch.{kept}",
    )


def _render_regularization(context: _Context) -> str:
    path = context.run.path
    if path is None:
        return ""
    best = context.header["C"]
    return _render_figure(
        plots.regularization_curve(path["C"], path["loss"], error=path["error"]),
        name="regularization-curve",
        label=f"Held-out loss by C; it is lowest at C = {best:.4g}.",
        caption="The loss of training examples held out from the fit, over "
        f"{context.header['folds']} folds, with its standard error; every fit is within "
        f"{max(path['gap']):.0e} of its optimum. The model is the optimum at C = {best:.4g}.",
    )


def _render_metrics(context: _Context) -> str:
    if not context.test_metrics:
        return ""
    return _render_overall_metrics(context) + _render_item_metrics(context)


def _render_overall_metrics(context: _Context) -> str:
    splits = context.run.metrics
    rows = [
        (title, *(_format_metric(name, values.get(name)) for values in splits.values()))
        for name, title in evaluation.TITLES.items()
        if name in context.test_metrics
        and name != "examples"
        and not (name == "loss" and context.loss_is_nll)
    ]
    return page.table("All examples", ("", *splits), rows, align="l" + "r" * len(splits))


def _render_item_metrics(context: _Context) -> str:
    """Return a table with a row for each class, label or number."""
    _, items = evaluation.separate_items(context.test_metrics)
    if len(items) <= MAX_TABLE_ROWS or "f1" not in items[0]:
        return _item_table(f"Test examples by {_singular(context.task)}", items)
    occurring = [item for item in items if item["support"]]
    worst = sorted(occurring, key=lambda item: item["f1"])[:MAX_TABLE_ROWS]
    return _item_table(
        f"Test examples: the {len(worst)} {context.task} with the lowest F1", worst
    ) + page.details(
        f"All {len(items)} {context.task}", _item_table(f"Test examples: all {context.task}", items)
    )


def _item_table(title: str, items: Sequence[Mapping[str, Any]]) -> str:
    columns = [name for name in evaluation.TITLES if name in items[0]]
    headings = ("", *(evaluation.TITLES[name] for name in columns))
    rows = [
        (shorten(item["name"], MAX_NAME_WIDTH), *(_format_metric(c, item[c]) for c in columns))
        for item in items
    ]
    return page.table(title, headings, rows, align="l" + "r" * len(columns))


def _singular(task: Task) -> str:
    return {Task.classes: "class", Task.labels: "label", Task.numbers: "number"}[task]


def _render_residuals(context: _Context) -> str:
    if context.task is not Task.numbers:
        return ""
    limit = MAX_RESIDUAL_PANELS
    names = context.classes[:limit]
    omission = f" Only the first {limit} are drawn." if len(context.classes) > limit else ""
    return _render_figure(
        plots.residuals(context.scores[:, :limit], context.targets[:, :limit], names),
        name="residuals",
        label=f"Predicted against true values of {', '.join(names)}, and their differences.",
        caption="Test examples: predicted against true values, at most 1,000 points, and the "
        f"distribution of all differences.{omission}",
    )


def _render_confusion_matrix(context: _Context) -> str:
    if context.task is not Task.classes:
        return ""
    classes = context.classes
    if len(classes) > MAX_MATRIX_CLASSES:
        return f"<p>No matrix is drawn for more than {MAX_MATRIX_CLASSES:,} classes.</p>\n"
    counts = context.confusion_counts
    total = int(counts.sum())
    num_wrong = total - int(np.trace(counts))
    figure = _render_figure(
        plots.confusion_matrix(counts, classes),
        name="confusion-matrix",
        label=f"Confusion matrix: {num_wrong:,} of {total:,} test examples are wrong.",
        caption=f"The {total:,} test examples, of which {num_wrong:,} are wrong, by true class "
        "(rows) and predicted class (columns). Colors are shares of a row.",
    )
    return figure + (_render_confused_pairs(counts, classes) if len(classes) > 2 else "")


def _render_confused_pairs(counts: np.ndarray, classes: Sequence[str]) -> str:
    rows = [
        (classes[j], classes[k], f"{counts[j, k]:,}", f"{counts[j, k] / counts[j].sum():.1%}")
        for j, k in plots.most_confused_pairs(counts, limit=8)
    ]
    if not rows:
        return ""
    headings = ("true class", "predicted class", "examples", "share of the true class")
    return page.table("Most frequent confusions", headings, rows, align="llrr")


def _render_calibration(context: _Context) -> str:
    before, after = _compute_reliability(context), None
    if before is None:
        return ""
    calibrations = context.run.calibration or {}
    temperature = calibrations.get("temperature", {})
    if "scale" in temperature:
        after = _compute_reliability(context, temperature["scale"])
    output = "the predicted class" if context.task is Task.classes else "each label"
    figure = _render_figure(
        plots.reliability_diagram(before, after=after),
        name="reliability",
        label=f"Reliability diagram, calibration error {float(before.error):.3f}.",
        caption=f"Test examples: the probability of {output} against the frequency with which it "
        "is right, in bins with equal counts; thin lines are 95% intervals. Below the diagonal the "
        "probabilities are too high."
        + (" Calibrated: with the temperature below." if after is not None else ""),
    )
    return figure + _render_calibration_table(calibrations)


def _render_calibration_table(calibrations: Mapping[str, Any]) -> str:
    fitted = {name: method for name, method in calibrations.items() if "scale" in method}
    notes = "".join(
        f"<p class=muted>No {name} scaling: {page.text(method['skipped'])}.</p>\n"
        for name, method in calibrations.items()
        if "skipped" in method
    )
    if not fitted:
        return notes
    columns = [(split, name) for split in ("validation", "test") for name in ("nll", "ece")]
    before = next(iter(fitted.values()))  # the metrics before calibration are those of any method
    rows = [("as fitted", *(_format_metric(m, before[split][m][0]) for split, m in columns))]
    for name, method in fitted.items():
        title = (
            f"temperature {1 / method['scale']:.3g}" if name == "temperature" else f"{name} scaling"
        )
        title += "" if method["converged"] else ", not determined by the data"
        rows.append((title, *(_format_metric(m, method[split][m][1]) for split, m in columns)))
    headings = ("", *(f"{split} {m.upper()}" for split, m in columns))
    title = "Calibrations fitted to the validation examples"
    return page.table(title, headings, rows, align="lrrrr") + notes


def _compute_reliability(context: _Context, scale: float = 1.0) -> host_metrics.Reliability | None:
    """Return the reliability of the probabilities of all labels, or of the predicted class."""
    probabilities = context.compute_probabilities(scale)
    if probabilities is None:
        return None
    if context.task is Task.labels:
        return host_metrics.reliability(probabilities, context.targets)
    is_right = probabilities.argmax(1) == context.targets
    return host_metrics.reliability(probabilities.max(1), is_right)


def _render_weights(context: _Context) -> str:
    w, classes = context.w, context.classes
    if context.has_one_score:  # the weights of the first class are 0
        w, classes = w[:, 1:], (f"{classes[1]} against {classes[0]}",)
    if context.has_images:
        return _render_templates(w, context.schema.shape, classes)
    meaning = (
        "Features are standardized, so weights are comparable: each is the change of the score "
        "for one standard deviation of its feature."
        if context.is_standardized
        else "Features are not standardized: each weight is the change of the score for one unit "
        "of its feature, and the weights of features of different scales are not comparable."
    )
    if len(classes) > MAX_WEIGHT_PANELS:
        return f"<p>{meaning}</p>\n{_render_weight_table(w, context.columns, classes)}"
    return _render_figure(
        plots.top_features(w, context.columns, classes, limit=6 if len(classes) > 1 else 15),
        name="top-features",
        label=f"The features with the largest weights for {_list_names(classes)}.",
        caption="The features with the largest weights. Blue raises the score, orange lowers it. "
        f"{meaning}",
    )


def _render_templates(w: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> str:
    meaning = (
        "Gray is no weight; any other color is the one that raises the score."
        if shape[2:] == (3,)
        else "Blue: a bright pixel raises the score. Orange: it lowers the score."
    )
    if len(classes) > MAX_TEMPLATES:
        meaning += f" The first {MAX_TEMPLATES} of {len(classes):,} are drawn."
        w, classes = w[:, :MAX_TEMPLATES], classes[:MAX_TEMPLATES]
    return _render_figure(
        plots.class_templates(w, shape, classes),
        name="templates",
        label=f"The weights as images: {_list_names(classes)}.",
        caption=f"The weights of each score as an image, all on one scale. {meaning}",
    )


def _render_weight_table(w: np.ndarray, columns: Sequence[str], classes: Sequence[str]) -> str:
    rows = []
    for name, weights in zip(classes, w.T, strict=True):
        order = np.argsort(-weights, kind="stable")
        largest, smallest = order[:4], order[::-1][:4]
        rows.append(
            (
                name,
                _list_weights(columns, weights, largest),
                _list_weights(columns, weights, smallest),
            )
        )
    headings = ("", "raise its score", "lower its score")
    title = f"The features with the largest weights for each of {len(classes)}"
    return page.details(title, page.table(title, headings, rows, align="lww"))


def _list_weights(columns: Sequence[str], weights: np.ndarray, features: np.ndarray) -> str:
    return ", ".join(f"{page.isolate(columns[j])} ({_format_signed(weights[j])})" for j in features)


def _format_signed(value: float) -> str:
    return (f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.2g}").replace("-", "−")


# -- Mistakes --


def _render_mistakes(context: _Context) -> str:
    worst = mistakes.find_worst(
        context.task,
        context.scores,
        context.targets,
        w=context.w,
        probabilities=context.compute_probabilities(),
    )
    if not worst:
        return "<p>None: every test example is right.</p>\n"
    if context.has_images:
        return _render_mistaken_images(context, worst)
    return _render_mistaken_rows(context, worst)


def _render_mistaken_images(context: _Context, worst: Sequence[Mistake]) -> str:
    images = context.run.test.features[[mistake.example for mistake in worst]]
    content = {
        Task.classes: f"the prediction, the truth, and the {_severity_name(context)}",
        Task.labels: f"the label, the prediction, and the {_severity_name(context)}",
        Task.numbers: "the number, the prediction, and the truth",
    }[context.task]
    figure = _render_figure(
        plots.mistakes(
            images.reshape(len(worst), *context.schema.shape),
            [_mistake_caption(context, mistake) for mistake in worst],
        ),
        name="worst-mistakes",
        label=f"{len(worst)} images; the table below has their predictions.",
        caption=f"{_mistakes_title(context, worst)}: {content}.",
    )
    rows = [_mistake_cells(context, mistake) for mistake in worst]
    headings = _mistake_headings(context)
    return figure + page.table("The same as a table", headings, rows, align="l" * len(headings))


def _render_mistaken_rows(context: _Context, worst: Sequence[Mistake]) -> str:
    rows = [(*_mistake_cells(context, m), _list_contributions(context, m)) for m in worst]
    headings = (*_mistake_headings(context), "largest contributions")
    average = "training" if context.is_standardized else "test"
    return page.table(
        _mistakes_title(context, worst), headings, rows, align="l" * (len(headings) - 1) + "w"
    ) + (
        "<p class=muted>Largest contributions: the features, at most five, that moved the score "
        "most towards this prediction and away from the truth, compared with an average "
        f"{average} example; each with its stored value and, in parentheses, its contribution to "
        "the score.</p>\n"
    )


def _mistakes_title(context: _Context, worst: Sequence[Mistake]) -> str:
    adjective = "largest" if context.task is Task.numbers else "most confident"
    return f"The {len(worst)} {adjective} mistakes among the test examples"


def _severity_name(context: _Context) -> str:
    return "lead of the score" if context.logits is None else "probability"


def _mistake_headings(context: _Context) -> tuple[str, ...]:
    output = (_singular(context.task),) if context.has_named_outputs else ()
    severity = () if context.task is Task.numbers else (_severity_name(context),)
    return ("example", *output, "true", "predicted", *severity)


def _mistake_cells(context: _Context, mistake: Mistake) -> tuple[str, ...]:
    identifier = str(context.run.test.ids[mistake.example])
    true, predicted = (
        _format_target(context, mistake.true),
        _format_target(context, mistake.predicted),
    )
    output = (context.classes[mistake.output],) if context.has_named_outputs else ()
    severity = () if context.task is Task.numbers else (_format_severity(context, mistake),)
    return (identifier, *output, true, predicted, *severity)


def _mistake_caption(context: _Context, mistake: Mistake) -> str:
    """Return three lines to write below an image."""
    true, predicted = (
        _format_target(context, mistake.true),
        _format_target(context, mistake.predicted),
    )
    output = context.classes[mistake.output]
    match context.task:
        case Task.classes:
            return f"{predicted}\nnot {true}\n{_format_severity(context, mistake)}"
        case Task.labels:
            return f"{output}\n{predicted}\n{_format_severity(context, mistake)}"
        case Task.numbers:
            return f"{output}\n{predicted}\nnot {true}"


def _format_severity(context: _Context, mistake: Mistake) -> str:
    return format(mistake.severity, ".3g" if context.logits is None else ".1%")


def _format_target(context: _Context, value: float) -> str:
    match context.task:
        case Task.classes:
            return context.classes[int(value)]
        case Task.labels:
            return ("no", "yes")[int(value)]
        case Task.numbers:
            return _format_value(value)


def _format_value(value: float) -> str:
    """Format a number of the data: from 1,000 on without decimals, below with four digits."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return text.replace("-", "−")


def _list_contributions(context: _Context, mistake: Mistake) -> str:
    stored = context.run.test.features[mistake.example]
    features = context.preprocess(slice(mistake.example, mistake.example + 1))[0]
    largest = mistakes.largest_contributions(mistake, features - context.average_features)
    contributions = (
        f"{page.isolate(context.columns[j])} = {_format_value(stored[j])} ({_format_signed(c)})"
        for j, c in largest
    )
    return "; ".join(contributions) or ABSENT


# -- Settings --


def _render_settings(context: _Context) -> str:
    rows = list(_list_settings(context.header))
    return page.table("Settings and versions", ("", ""), rows, align="ll") if rows else ""


def _list_settings(header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in header.items():
        if isinstance(value, str | int | float) and key not in SHOWN_ELSEWHERE:
            yield key.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value)


def _render_figure(figure: Figure, *, name: str, label: str, caption: str) -> str:
    return page.figure(figure, name=name, label=label, caption=page.text(caption),
                       colors=plots.PALETTE)  # fmt: skip


_SECTIONS = (
    ("data", "Data", _render_data),
    ("columns", "Columns", _render_columns),
    ("learning", "Learning curves", _render_learning_curves),
    ("regularization", "Regularization", _render_regularization),
    ("metrics", "Metrics", _render_metrics),
    ("confusion", "Confusion matrix", _render_confusion_matrix),
    ("predictions", "Residuals", _render_residuals),
    ("calibration", "Calibration", _render_calibration),
    ("weights", "Weights", _render_weights),
    ("mistakes", "Mistakes", _render_mistakes),
    ("settings", "Settings", _render_settings),
)
