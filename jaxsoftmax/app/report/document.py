"""The report of a run: one self-contained HTML page for a screen, a phone or paper."""

from pathlib import Path

from jaxsoftmax.app.report import rendering
from jaxsoftmax.app.report.context import Context, Run
from jaxsoftmax.app.report.elements import Section
from jaxsoftmax.app.report.sections import (
    balance,
    calibration,
    columns,
    confusion,
    data,
    learning,
    metrics,
    opening,
    ranking,
    residuals,
    settings,
    thresholds,
    weights,
    worst,
)

_SECTIONS = (
    ("data", "Data", data.render),
    ("balance", "Class balance", balance.render),
    ("columns", "Columns", columns.render),
    ("learning", "Learning curves", learning.render_curves),
    ("regularization", "Regularization", learning.render_regularization),
    ("metrics", "Metrics", metrics.render),
    ("predictions", "Residuals", residuals.render),
    ("confusion", "Confusion matrix", confusion.render),
    ("ranking", "ROC and precision-recall curves", ranking.render),
    ("calibration", "Calibration", calibration.render),
    ("thresholds", "Thresholds", thresholds.render),
    ("weights", "Weights", weights.render),
    ("mistakes", "Mistakes", worst.render),
    ("settings", "Settings", settings.render),
)


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
    """Return the report of a run as one HTML page, which loads nothing and needs no script.

    Args:
        run: the run to report.

    Returns:
        The page. The same run gives the same text.
    """
    context = Context(run)
    sections = [Section(name, title, list(render(context))) for name, title, render in _SECTIONS]
    return rendering.render(opening.title(context), list(opening.render(context)), sections)
