"""The report of a run: one HTML page that needs nothing else, for a screen, a phone or paper."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxsoftmax import links, metrics
from jaxsoftmax.app import evaluation, plots
from jaxsoftmax.app.data.dataset import Schema, Split, Task
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.app.report import mistakes, page
from jaxsoftmax.app.report.mistakes import Mistake
from jaxsoftmax.linear import LinearParams

NOTHING = "–"
LETTERS = 60  # to which names are cut
NAMES = 20  # of so many classes or features all are named, of more the first
MATRIX, TEMPLATES = 1000, 100  # of so many classes the confusions, and weights of images, are drawn
PANELS = 15  # of so many classes a figure shows the features that weigh most, of more a table
TOLD_ELSEWHERE = {"command", "created", "format", "format_version", "generation", "interrupted"}
ROWS = 20  # of so many classes a table shows all, of more the worst, and all where it is unfolded


@dataclass(frozen=True, eq=False)
class Content:
    """What a report tells.

    Args:
        header: of the run: "loss", and where they are there "command", "created", "interrupted",
            "data" with "name" and "source", and settings and versions by their names.
        schema: of the data.
        figures: of each split, from `evaluation.figures`.
        history: one number per epoch under each name.
        params: the model.
        scores: of the test examples, `[N, K]`, or `[N, 1]` of a binary sigmoid.
        test: the test examples, their features as stored, before preprocessing.
        calibration: from `evaluation.calibrate`, or None.
        preprocessing: what the model does to features first.
        path: of a probe, `linear_probe.Path.to_json`.
    """

    header: Mapping[str, Any]
    schema: Schema
    figures: Mapping[str, Mapping[str, Any]]
    history: Mapping[str, np.ndarray]
    params: LinearParams
    scores: np.ndarray
    test: Split
    calibration: Mapping[str, Any] | None = None
    preprocessing: Preprocessing = IDENTITY
    path: Mapping[str, Any] | None = None


def write(path: str | Path, content: Content) -> None:
    """Write the report of a run as one HTML file.

    Args:
        path: of the file; one that is there is replaced.
        content: what to tell.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from jaxsoftmax.app import report
        >>> from jaxsoftmax.app.data.dataset import Schema, Split, Task
        >>> from jaxsoftmax.linear import LinearParams
        >>> x = np.ones((3, 1), np.float32)
        >>> content = report.Content(
        ...     header={"loss": "squared_error", "command": "jaxsoftmax fit houses.csv"},
        ...     schema=Schema(Task.numbers, ("price",), (1,), columns=("rooms",)),
        ...     figures={}, history={"loss": np.array([2.0, 1.0])},
        ...     params=LinearParams(w=np.ones((1, 1)), bias=None), scores=x,
        ...     test=Split(x, np.array([1.0, 1.5, 2.0]), np.arange(1, 4)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.write(pathlib.Path(folder) / "report.html", content)
        ...     (pathlib.Path(folder) / "report.html").read_text(encoding="utf-8")[:15]
        '<!DOCTYPE html>'
    """
    Path(path).write_text(html(content), encoding="utf-8")


def html(content: Content) -> str:
    """Tell a run in one HTML page, which loads nothing and runs no script.

    Args:
        content: what to tell.

    Returns:
        The page; of the same content the same text.
    """
    answers = _Answers(content)
    told = [(name, title, tell(answers)) for name, title, tell in _SECTIONS]
    told = [section for section in told if section[2]]
    contents = "\n".join(f'<a href="#{name}">{title}</a>' for name, title, _ in told)
    body = [_opening(answers), f'<nav aria-label="Sections">\n{contents}\n</nav>\n']
    for name, title, inside in told:
        body.append(f'<section id="{name}">\n<h2>{title}</h2>\n{inside}</section>\n')
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=page.text(_title(answers)), body="".join(body))


class _Answers:
    """What the model says of the test examples, in the form in which all tasks are alike.

    A binary sigmoid has one score, that of the second class; here the first has the score 0 beside
    it, so that the larger of two is predicted as everywhere.
    """

    def __init__(self, content: Content) -> None:
        self.content, self.schema, self.header = content, content.schema, content.header
        self.task = content.schema.task
        self.classes = tuple(plots.shortened(name, LETTERS) for name in content.schema.classes)
        self.figures = content.figures.get("test", {})
        self.scores = np.asarray(content.scores, np.float32)
        self.logits = evaluation.log_confidences(self.scores, self.schema, self.loss)
        self.w = np.asarray(content.params.w, np.float32)
        self.one_score = self.task is Task.classes and self.w.shape[1] == 1
        if self.one_score:
            self.scores, self.w = (
                np.concatenate([np.zeros_like(a), a], 1) for a in (self.scores, self.w)
            )
        self.targets = np.asarray(content.test.targets)
        if self.task is not Task.classes:
            self.targets = self.targets.reshape(self.scores.shape)

    @property
    def loss(self) -> LossName:
        return LossName(self.header["loss"])

    @property
    def loss_is_nll(self) -> bool:
        return self.loss == LossName.softmax or self.one_score

    @property
    def names_outputs(self) -> bool:
        """Whether a mistake must say which label or number it is about."""
        return self.task is Task.labels or (self.task is Task.numbers and len(self.classes) > 1)

    @property
    def has_images(self) -> bool:
        shape = self.schema.shape
        return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        numbered = (f"feature {number}" for number in range(1, self.schema.num_features + 1))
        names = self.schema.columns or numbered
        return tuple(plots.shortened(name, LETTERS) for name in names)

    def probabilities(self, scale: float = 1.0) -> np.ndarray | None:
        """Of the logits times scale; None where the loss gives none."""
        if self.logits is None:
            return None
        link = links.sigmoid if self.task is Task.labels else links.softmax
        return np.asarray(link(np.float32(scale) * self.logits))

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix, without examples whose scores say nothing."""
        size, predicted = len(self.classes), evaluation.predicted(self.scores, self.schema)
        cells = (self.targets.astype(np.int64) * size + predicted)[predicted >= 0]
        return np.bincount(cells, minlength=size * size).reshape(size, size)

    def seen(self, examples: np.ndarray | slice) -> np.ndarray:
        """What the model sees of some test examples."""
        return self.content.preprocessing.apply(self.content.test.features[examples])

    @cached_property
    def usual(self) -> np.ndarray | float:
        """A usual example as the model sees it: standardised, the training data's mean is 0."""
        standardised = self.content.preprocessing.mean is not None
        return 0.0 if standardised else self.seen(slice(10_000)).mean(0, dtype=np.float64)


# -- The opening: what it is, how good it is, how to make it again --


def _title(answers: _Answers) -> str:
    size = len(answers.classes)
    what = {
        Task.classes: f"a linear classifier of {size:,} classes",
        Task.labels: f"linear classifiers of {size:,} labels",
        Task.numbers: "a linear regression" if size == 1 else f"regressions of {size:,} numbers",
    }[answers.task]
    return f"{answers.header.get('data', {}).get('name', 'A run')}: {what}"


def _opening(answers: _Answers) -> str:
    header, parts = answers.header, [f"<h1>{page.text(_title(answers))}</h1>\n"]
    parts.append(f"<p class=muted>{page.text(_sentence(answers))}</p>\n")
    if header.get("interrupted"):
        done = len(answers.content.history.get("loss", ()))
        parts.append(
            f"<p class=warning><strong>This run was interrupted</strong> after epoch {done}. The "
            "model is the best until then; a full run may be better.</p>\n"
        )
    parts.append(_summary(answers))
    if "command" in header:
        parts.append("<p>To fit it again:</p>\n" + page.command(header["command"]))
    return "".join(parts)


def _sentence(answers: _Answers) -> str:
    parts = [
        f"{answers.schema.num_features:,} features",
        f"{_spaced(answers.loss)} loss",
    ]
    created = str(answers.header.get("created", "")).replace("+00:00", " UTC")
    return " · ".join([*parts, created] if created else parts)


def _summary(answers: _Answers) -> str:
    inside = "".join(
        f"<div><dt>{page.text(name)}</dt><dd>{page.text(value)}"
        f"{f'<small>{page.text(note)}</small>' if note else ''}</dd></div>\n"
        for name, value, note in _boxes(answers)
    )
    return f"<dl class=summary>\n{inside}</dl>\n"


def _boxes(answers: _Answers) -> Iterator[tuple[str, str, str]]:
    """The test figures that say most, and what stands below each."""
    told = answers.figures
    for figure in {
        Task.classes: ("accuracy", "nll", "ece"),
        Task.labels: ("accuracy", "macro_f1", "nll", "ece"),
        Task.numbers: ("r2", "mse", "mae"),
    }[answers.task]:
        if told.get(figure) is not None:
            interval = told.get(f"{figure}_interval")
            ends = " to ".join(_number(figure, end) for end in interval or ())
            note = f"95 % interval {ends}" if ends else ""
            yield f"test {evaluation.TITLES[figure]}", _number(figure, told[figure]), note
    yield "test examples", f"{len(answers.targets):,}", ""


def _number(figure: str, value: float | None) -> str:
    """As everywhere, but errors of large numbers in full rather than in powers of ten."""
    if value is not None and abs(value) >= 1000 and figure in ("loss", "mse", "mae"):
        return _value(value)
    return evaluation.written(figure, value)


def _spaced(name: str) -> str:
    return str(name).replace("_", " ")


# -- The sections, each empty where it has nothing to tell --


def _data(answers: _Answers) -> str:
    schema, data = answers.schema, answers.header.get("data", {})
    rows = [
        ("source", data.get("source", NOTHING)),
        ("examples", ", ".join(_sizes(answers)) or NOTHING),
        ("features", _features(answers)),
        ("preprocessing", _preprocessing(answers)),
        (str(schema.task), f"{len(schema.classes):,}: {_names(answers.classes)}"),
    ]
    return page.table("What the model was fitted to", ("", ""), rows, align="ll")


def _sizes(answers: _Answers) -> list[str]:
    return [f"{told['examples']:,} {split}" for split, told in answers.content.figures.items()]


def _features(answers: _Answers) -> str:
    schema = answers.schema
    if schema.columns is not None:
        return f"{schema.num_features:,}: {_names(answers.columns)}"
    if len(schema.shape) == 1:
        return f"{schema.num_features:,}"
    return f"{schema.num_features:,}, of shape {' × '.join(map(str, schema.shape))}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(page.isolated, names[:NAMES])) + (", …" if len(names) > NAMES else "")


def _preprocessing(answers: _Answers) -> str:
    divisor, done = answers.schema.divisor, answers.content.preprocessing
    steps = [f"divided by {divisor:g}"] if divisor != 1 else []
    steps += ["logarithm of 1 + x"] if done.log1p else []
    steps += ["standardised by the training data"] if done.mean is not None else []
    return ", then ".join(steps) or "none"


def _learning(answers: _Answers) -> str:
    history = answers.content.history
    if not len(history.get("loss", ())):
        return ""
    epoch = answers.header.get("kept_epoch")
    kept = "" if epoch is None else f" The model kept is that of epoch {epoch}."
    return _show(
        plots.learning_curves(history),
        name="learning-curves",
        label="Loss and accuracy by epoch, of training and of validation data.",
        caption="Training figures are means over the epoch, while the model changes; validation "
        f"figures are of the model at the epoch's end.{kept}",
    )


def _regularisation(answers: _Answers) -> str:
    path = answers.content.path
    if path is None:
        return ""
    best = answers.header["C"]
    return _show(
        plots.regularisation_curve(path["C"], path["loss"], error=path["error"]),
        name="regularisation",
        label=f"Held-out loss by C; the least is at C = {best:.4g}.",
        caption=f"The loss of training examples that a fit had not seen, over "
        f"{answers.header['folds']} folds, with its standard error; every fit within "
        f"{max(path['gap']):.0e} of its optimum. The model kept is the optimum at C = {best:.4g}.",
    )


def _quality(answers: _Answers) -> str:
    return _all_figures(answers) + _one_by_one(answers) if answers.figures else ""


def _all_figures(answers: _Answers) -> str:
    told, splits = answers.content.figures, list(answers.content.figures)
    rows = [
        (words, *(_number(figure, told[split].get(figure)) for split in splits))
        for figure, words in evaluation.TITLES.items()
        if figure in answers.figures
        and figure != "examples"
        and not (figure == "loss" and answers.loss_is_nll)
    ]
    return page.table("All examples", ("", *splits), rows, align="l" + "r" * len(splits))


def _one_by_one(answers: _Answers) -> str:
    """A row for each class, label or number."""
    _, each = evaluation.sections(answers.figures)
    columns = [figure for figure in evaluation.TITLES if figure in each[0]]
    headings, align = ("", *(evaluation.TITLES[c] for c in columns)), "l" + "r" * len(columns)

    def table(title: str, chosen: Sequence[Mapping[str, Any]]) -> str:
        rows = [
            (plots.shortened(row["name"], LETTERS), *(_number(c, row[c]) for c in columns))
            for row in chosen
        ]
        return page.table(title, headings, rows, align=align)

    if len(each) <= ROWS or "f1" not in columns:
        return table(f"Each {_singular(answers.task)}, test examples", each)
    occurring = [row for row in each if row["support"]]
    worst = sorted(occurring, key=lambda row: row["f1"])[:ROWS]
    return table(f"The {len(worst)} {answers.task} of lowest F1", worst) + page.folded(
        f"All {len(each)} {answers.task}", table(f"All {answers.task}, test examples", each)
    )


def _singular(task: Task) -> str:
    return {Task.classes: "class", Task.labels: "label", Task.numbers: "number"}[task]


def _residuals(answers: _Answers) -> str:
    if answers.task is not Task.numbers:
        return ""
    shown = answers.classes[:6]
    first = "" if len(shown) == len(answers.classes) else f" The first {len(shown)} are drawn."
    return _show(
        plots.residuals(answers.scores[:, :6], answers.targets[:, :6], shown),
        name="residuals",
        label=f"Predicted against true values of {', '.join(shown)}, and the differences.",
        caption=f"Test examples: predicted against true values, up to 1,000 points, and how the "
        f"differences of all are spread.{first}",
    )


def _confusion(answers: _Answers) -> str:
    if answers.task is not Task.classes:
        return ""
    if len(answers.classes) > MATRIX:
        return f"<p>Of more than {MATRIX:,} classes no matrix is drawn.</p>\n"
    classes, counts = answers.classes, answers.counts
    wrong, size = int(counts.sum() - np.trace(counts)), int(counts.sum())
    shown = _show(
        plots.confusion_matrix(counts, classes),
        name="confusion-matrix",
        label=f"Confusion matrix: {wrong:,} of {size:,} test examples are wrong.",
        caption=f"The {size:,} test examples, of which {wrong:,} are wrong, by true class (rows) "
        "and predicted class (columns). Colours are shares of a row.",
    )
    pairs = plots.most_confused(counts, limit=8) if len(classes) > 2 else []
    rows = [
        (classes[j], classes[k], f"{counts[j, k]:,}", f"{counts[j, k] / counts[j].sum():.1%}")
        for j, k in pairs
    ]
    headings = ("true class", "taken for", "examples", "of the class")
    return shown + (page.table("Confused most often", headings, rows, align="llrr") if rows else "")


def _calibration(answers: _Answers) -> str:
    before, after = _reliability(answers), None
    if before is None:
        return ""
    told = answers.content.calibration or {}
    temperature = told.get("temperature", {})
    if "scale" in temperature:
        after = _reliability(answers, temperature["scale"])
    what = "of the class predicted" if answers.task is Task.classes else "of every label"
    shown = _show(
        plots.reliability_diagram(before, after=after),
        name="reliability",
        label=f"Reliability diagram, calibration error {float(before.error):.3f}.",
        caption=f"Test examples: the probability {what} against how often it came true, in bins of "
        "equally many; thin lines are 95 % intervals. Below the diagonal a model is surer than it "
        "should be." + (" Calibrated: by the temperature below." if after is not None else ""),
    )
    return shown + _calibrations(told)


def _calibrations(told: Mapping[str, Any]) -> str:
    fitted = {name: method for name, method in told.items() if "scale" in method}
    skipped = [
        f"<p class=muted>No {name} scaling: {page.text(method['skipped'])}.</p>\n"
        for name, method in told.items()
        if "skipped" in method
    ]
    if not fitted:
        return "".join(skipped)
    places = [(split, figure) for split in ("validation", "test") for figure in ("nll", "ece")]
    any_of_them = next(iter(fitted.values()))
    rows = [("as fitted", *(_number(f, any_of_them[split][f][0]) for split, f in places))]
    for name, method in fitted.items():
        title = (
            f"temperature {1 / method['scale']:.3g}" if name == "temperature" else f"{name} scaling"
        )
        sure = "" if method["converged"] else ", not determined by the data"
        rows.append((title + sure, *(_number(f, method[split][f][1]) for split, f in places)))
    headings = ("", *(f"{split} {figure.upper()}" for split, figure in places))
    title = "Calibrations fitted to the validation examples"
    return page.table(title, headings, rows, align="lrrrr") + "".join(skipped)


def _reliability(answers: _Answers, scale: float = 1.0) -> metrics.Reliability | None:
    """Of all probabilities of labels, or of that of the class predicted."""
    probabilities = answers.probabilities(scale)
    if probabilities is None:
        return None
    if answers.task is Task.labels:
        return metrics.reliability(probabilities, answers.targets)
    right = probabilities.argmax(1) == answers.targets
    return metrics.reliability(probabilities.max(1), right)


def _weights(answers: _Answers) -> str:
    w, classes = answers.w, answers.classes
    if answers.one_score:  # those of the first class are 0: the second's tell both
        w, classes = w[:, 1:], (f"{classes[1]} against {classes[0]}",)
    if answers.has_images:
        return _templates(w, answers.schema.shape, classes)
    standardised = answers.content.preprocessing.mean is not None
    scale = (
        "Features are standardised, so weights compare: each is the change of the score by one "
        "standard deviation of its feature."
        if standardised
        else "Features are not standardised: each weight is the change of the score by one unit of "
        "its feature, and those of features of unlike scales do not compare."
    )
    if len(classes) > PANELS:
        return f"<p>{scale}</p>\n{_weights_table(w, answers.columns, classes)}"
    return _show(
        plots.top_features(w, answers.columns, classes, limit=6 if len(classes) > 1 else 15),
        name="top-features",
        label=f"The features of largest weight for {_names(classes)}.",
        caption=f"The features that weigh most. Blue raises the score, orange lowers it. {scale}",
    )


def _templates(w: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> str:
    meaning = (
        "Grey is no weight; a colour is the one that raises the score."
        if shape[2:] == (3,)
        else "Blue: a bright pixel raises the score. Orange: it lowers it."
    )
    if len(classes) > TEMPLATES:
        meaning += f" The first {TEMPLATES} of {len(classes):,} are drawn."
        w, classes = w[:, :TEMPLATES], classes[:TEMPLATES]
    return _show(
        plots.class_templates(w, shape, classes),
        name="templates",
        label=f"The weights as images: {_names(classes)}.",
        caption=f"The weights of each score as an image, all on one scale. {meaning}",
    )


def _weights_table(w: np.ndarray, columns: Sequence[str], classes: Sequence[str]) -> str:
    def words(weights: np.ndarray, order: np.ndarray) -> str:
        return ", ".join(f"{page.isolated(columns[j])} ({_signed(weights[j])})" for j in order[:4])

    rows = []
    for name, weights in zip(classes, w.T, strict=True):
        order = np.argsort(-weights, kind="stable")
        rows.append((name, words(weights, order), words(weights, order[::-1])))
    headings = ("", "raise its score", "lower its score")
    title = f"The features that weigh most for each of {len(classes)}"
    return page.folded(title, page.table(title, headings, rows, align="lww"))


def _signed(value: float) -> str:
    return (f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.2g}").replace("-", "−")


# -- Mistakes --


def _mistakes(answers: _Answers) -> str:
    found = mistakes.worst(
        answers.task,
        answers.scores,
        answers.targets,
        w=answers.w,
        probabilities=answers.probabilities(),
    )
    if not found:
        return "<p>None: every test example is right.</p>\n"
    return (_mistaken_images if answers.has_images else _mistaken_rows)(answers, found)


def _mistaken_images(answers: _Answers, found: Sequence[Mistake]) -> str:
    images = answers.content.test.features[[mistake.example for mistake in found]]
    shown = _show(
        plots.mistakes(
            images.reshape(len(found), *answers.schema.shape),
            [_caption(answers, mistake) for mistake in found],
        ),
        name="worst-mistakes",
        label=f"{len(found)} images; the table that follows says what was read into them.",
        caption=f"{_which(answers, found)}: what the model says, what it is"
        f"{'' if answers.task is Task.numbers else ', and how sure the model is'}.",
    )
    rows = [_words(answers, mistake) for mistake in found]
    headings = _headings(answers)
    return shown + page.table("The same in words", headings, rows, align="l" * len(headings))


def _mistaken_rows(answers: _Answers, found: Sequence[Mistake]) -> str:
    rows = [(*_words(answers, m), _arguments(answers, m)) for m in found]
    headings = (*_headings(answers), "what argued for it")
    usual = "training" if answers.content.preprocessing.mean is not None else "test"
    return page.table(
        _which(answers, found), headings, rows, align="l" * (len(headings) - 1) + "w"
    ) + (
        "<p class=muted>What argued for it: the five features that pushed most towards this answer "
        f"and away from the true one, compared with an average {usual} example; each with its "
        "stored value and, in brackets, its push on the score.</p>\n"
    )


def _which(answers: _Answers, found: Sequence[Mistake]) -> str:
    word = "largest" if answers.task is Task.numbers else "surest"
    return f"The {len(found)} {word} mistakes among the test examples"


def _headings(answers: _Answers) -> tuple[str, ...]:
    output = (_singular(answers.task),) if answers.names_outputs else ()
    sure = "lead" if answers.logits is None else "probability"
    certainty = () if answers.task is Task.numbers else (sure,)
    return ("example", *output, "true", "predicted", *certainty)


def _words(answers: _Answers, mistake: Mistake) -> tuple[str, ...]:
    identifier = str(answers.content.test.ids[mistake.example])
    true, predicted = _said(answers, mistake.true), _said(answers, mistake.predicted)
    label = (answers.classes[mistake.output],) if answers.names_outputs else ()
    sure = () if answers.task is Task.numbers else (_certainty(answers, mistake),)
    return (identifier, *label, true, predicted, *sure)


def _caption(answers: _Answers, mistake: Mistake) -> str:
    """Three lines for below an image."""
    true, predicted = _said(answers, mistake.true), _said(answers, mistake.predicted)
    if answers.task is Task.classes:
        return f"{predicted}\nnot {true}\n{_certainty(answers, mistake)}"
    name = answers.classes[mistake.output]
    if answers.task is Task.labels:
        return f"{name}\n{predicted}\n{_certainty(answers, mistake)}"
    return f"{name}\n{predicted}\nnot {true}"


def _certainty(answers: _Answers, mistake: Mistake) -> str:
    digits = ".3g" if answers.logits is None else ".1%"
    return format(mistake.certainty, digits)


def _said(answers: _Answers, value: float) -> str:
    if answers.task is Task.classes:
        return answers.classes[int(value)]
    return ("no", "yes")[int(value)] if answers.task is Task.labels else _value(value)


def _value(value: float) -> str:
    """A number of the data: a count in full, others in four digits."""
    shown = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return shown.replace("-", "−")


def _arguments(answers: _Answers, mistake: Mistake) -> str:
    stored = answers.content.test.features[mistake.example]
    seen = answers.seen(slice(mistake.example, mistake.example + 1))[0]
    found = mistakes.arguments(mistake, seen - answers.usual)
    names = [page.isolated(answers.columns[j]) for j, _ in found]
    pushes = [f"{_value(stored[j])} ({_signed(push)})" for j, push in found]
    return "; ".join(map(" = ".join, zip(names, pushes, strict=True))) or NOTHING


# -- How it was made --


def _made(answers: _Answers) -> str:
    rows = list(_scalars(answers.header))
    return page.table("Settings and versions", ("", ""), rows, align="ll") if rows else ""


def _scalars(header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in header.items():
        if isinstance(value, str | int | float) and key not in TOLD_ELSEWHERE:
            yield key.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value)


def _show(figure: Figure, *, name: str, label: str, caption: str) -> str:
    return page.figure(figure, name=name, label=label, caption=page.text(caption),
                       colors=plots.PALETTE)  # fmt: skip


_SECTIONS = (
    ("data", "Data", _data),
    ("learning", "Learning curves", _learning),
    ("regularisation", "Regularisation", _regularisation),
    ("metrics", "Metrics", _quality),
    ("confusion", "Confusion matrix", _confusion),
    ("predictions", "Residuals", _residuals),
    ("calibration", "Calibration", _calibration),
    ("weights", "Weights", _weights),
    ("mistakes", "Mistakes", _mistakes),
    ("made", "How it was made", _made),
)
