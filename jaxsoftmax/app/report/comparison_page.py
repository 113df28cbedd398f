"""The page of several runs side by side: metrics with intervals, settings that differ, curves."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxsoftmax.app import comparison, evaluation, plots
from jaxsoftmax.app.comparison import ComparedRun
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report import rendering
from jaxsoftmax.app.report.elements import (
    Element,
    Section,
    Table,
    Text,
    figure,
)
from jaxsoftmax.app.report.sections import formats
from jaxsoftmax.app.text import format_setting, shorten

MAX_NAME_WIDTH = 40


def html(runs: Sequence[ComparedRun]) -> str:
    """Return the page of several runs.

    Args:
        runs: runs of one task, from `comparison.load`.

    Returns:
        HTML that loads nothing and needs no script.

    Example:
        >>> from jaxsoftmax.app.comparison import ComparedRun
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> from jaxsoftmax.app.report import comparison_page
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> runs = [ComparedRun(n, schema, {"preprocessing": {}}, {"test": {}}, {})
        ...         for n in "ab"]
        >>> "<h1>Comparison of 2 runs</h1>" in comparison_page.html(runs)
        True
    """
    sections = [
        Section("metrics", "Test metrics", list(_render_metrics(runs))),
        Section("settings", "Settings that differ", list(_render_settings(runs))),
        Section("intervals", "Intervals", list(_render_intervals(runs))),
        Section("curves", "Learning curves", list(_render_curves(runs))),
        Section("items", "Where the runs differ most", list(_render_items(runs))),
        Section("commands", "Commands", list(_render_commands(runs))),
    ]
    opening = [Text(note, "warning") for note in comparison.notes(runs)]
    return rendering.render(f"Comparison of {len(runs)} runs", opening, sections)


def write(path: Path, runs: Sequence[ComparedRun]) -> None:
    """Write the page as a file.

    Args:
        path: the file; an existing one is replaced.
        runs: runs of one task.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app.comparison import ComparedRun
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> from jaxsoftmax.app.report import comparison_page
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> runs = [ComparedRun(n, schema, {"preprocessing": {}}, {"test": {}}, {}) for n in "ab"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comparison_page.write(pathlib.Path(folder) / "both.html", runs)
    """
    path.write_text(html(runs), encoding="utf-8")


def _render_metrics(runs: Sequence[ComparedRun]) -> Iterator[Element]:
    names = comparison.shared_metrics(runs)
    if not names:
        return
    bests = {name: comparison.best(runs, name) for name in names}
    rows = [
        (
            shorten(run.name, MAX_NAME_WIDTH),
            *(
                formats.metric(name, run.test.get(name)) + (" ★" if run.name in bests[name] else "")
                for name in names
            ),
        )
        for run in runs
    ]
    headings = ("run", *(evaluation.TITLES[name] for name in names))
    yield Table("Test metrics; ★ is the best", headings, rows, "l" + "r" * len(names))


def _render_intervals(runs: Sequence[ComparedRun]) -> Iterator[Element]:
    metric = next((name for name in ("accuracy", "rmse") if name in runs[0].test), None)
    shown = [run for run in runs if f"{metric}_interval" in run.test]
    if metric is None or not shown:
        return
    title = evaluation.TITLES[metric]
    yield figure(
        plots.compare_intervals(
            [run.test[metric] for run in shown],
            [run.test[f"{metric}_interval"] for run in shown],
            [run.name for run in shown],
            title=f"test {title}",
            is_share=metric == "accuracy",
        ),
        name="compared-intervals",
        label=f"The test {title} of each run with its 95% interval.",
        caption=f"The test {title} of each run with its 95% interval. Intervals that overlap do "
        "not show that two runs are equal: the runs share their test examples.",
    )


def _render_settings(runs: Sequence[ComparedRun]) -> Iterator[Element]:
    settings = comparison.differing_settings(runs)
    if not settings:
        yield Text("None: the runs have the same settings.")
        return
    # A row for each: runs may differ in more settings than a page is wide.
    rows = [(name.replace("_", " "), *map(_format, values)) for name, values in settings.items()]
    headings = ("setting", *(shorten(run.name, MAX_NAME_WIDTH) for run in runs))
    yield Table("Settings that differ", headings, rows, "l" + "r" * len(runs))


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return formats.ABSENT if value is None else format_setting(value)


def _render_curves(runs: Sequence[ComparedRun]) -> Iterator[Element]:
    curves = {run.name: run.history["validation_loss"] for run in runs
              if "validation_loss" in run.history}  # fmt: skip
    if not curves:
        return
    losses = {str(run.header.get("loss")) for run in runs}
    warning = " The losses are of different kinds." if len(losses) > 1 else ""
    yield figure(
        plots.compare_curves(curves),
        name="compared-curves",
        label=f"Validation loss by epoch of {', '.join(curves)}.",
        caption=f"Validation loss by epoch.{warning}",
    )


def _render_items(runs: Sequence[ComparedRun]) -> Iterator[Element]:
    """Yield the F1 of the classes or labels on which the runs differ most."""
    if len({run.schema.classes for run in runs}) > 1 or not all(run.test for run in runs):
        return
    items = [evaluation.separate_items(run.test)[1] for run in runs]
    if "f1" not in items[0][0]:
        return
    rows = [
        (shorten(group[0]["name"], MAX_NAME_WIDTH), *(item["f1"] for item in group))
        for group in zip(*items, strict=True)
        if all(item["f1"] is not None for item in group)
    ]
    rows.sort(key=lambda row: min(row[1:]) - max(row[1:]))
    shown = [(name, *(formats.metric("f1", value) for value in f1)) for name, *f1 in rows[:10]]
    singular = {Task.classes: "class", Task.labels: "label"}[runs[0].schema.task]
    headings = (singular, *(shorten(run.name, MAX_NAME_WIDTH) for run in runs))
    title = f"F1 of the test examples of each {singular}"
    yield Table(title, headings, shown, "l" + "r" * len(runs))


def _render_commands(runs: Sequence[ComparedRun]) -> Iterator[Element]:
    rows = [
        (shorten(run.name, MAX_NAME_WIDTH), run.header["command"])
        for run in runs
        if "command" in run.header
    ]
    if rows:
        yield Table("Commands to reproduce the runs", ("run", "command"), rows, "lw")
