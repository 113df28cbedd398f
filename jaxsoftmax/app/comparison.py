"""Several runs side by side: their metrics, the settings that differ, and their curves."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.app import evaluation, run_folder
from jaxsoftmax.app.data.dataset import Schema, Task

HEADLINES = {
    Task.classes: ("accuracy", "top_3", "macro_f1", "nll", "ece", "roc_auc"),
    Task.labels: ("accuracy", "subset_accuracy", "macro_f1", "nll", "ece", "roc_auc"),
    Task.numbers: ("r2", "rmse", "mae"),
}
"""The test metrics of each task that are compared."""

SMALLER_IS_BETTER = {"loss", "nll", "ece", "brier", "rmse", "mse", "mae"}

_NOT_SETTINGS = {
    "command", "created", "format", "format_version", "generation", "interrupted",
}  # fmt: skip


class ComparedRun(NamedTuple):
    """A run, as a comparison needs it: what its folder holds besides the model."""

    name: str
    schema: Schema
    header: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: Mapping[str, np.ndarray]

    @property
    def test(self) -> Mapping[str, Any]:
        """The metrics of the test examples."""
        return self.metrics.get("test", {})

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the run by name."""
        scalars = {
            name: value
            for name, value in self.header.items()
            if name not in _NOT_SETTINGS and isinstance(value, str | int | float)
        }
        data, preprocessing = self.header.get("data", {}), self.header["preprocessing"]
        features = {"features": self.schema.num_features}
        return {"data": data.get("name", "")} | features | dict(preprocessing) | scalars


def load(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs in folders.

    Args:
        folders: at least two folders of runs of one task.

    Returns:
        The runs, under the names of their folders, or under their paths if names repeat.

    Raises:
        ValueError: if there are fewer than two runs, a folder is given twice, a file is damaged, or
            the tasks differ.
        FileNotFoundError: if a folder holds no run.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import comparison
        >>> comparison.load([pathlib.Path("runs/digits-softmax")])
        Traceback (most recent call last):
        ValueError: RUN: expected at least two runs to compare, got 1
    """
    if len(folders) < 2:
        raise ValueError(f"RUN: expected at least two runs to compare, got {len(folders)}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("RUN: expected different runs, and one is given twice")
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    runs = [_load(name, folder) for name, folder in zip(names, folders, strict=True)]
    tasks = {run.schema.task for run in runs}
    if len(tasks) > 1:
        described = ", ".join(f"{run.name} predicts {run.schema.task}" for run in runs)
        raise ValueError(f"RUN: expected runs of one task, got {described}")
    return runs


def _load(name: str, folder: Path) -> ComparedRun:
    header = run_folder.read_header(folder)
    try:
        schema = Schema.from_json(header["schema"])
        metrics = json.loads(run_folder.read(folder, run_folder.METRICS))
        history = _parse_history(run_folder.read(folder, run_folder.HISTORY).decode())
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / run_folder.HEADER} cannot be read: {error}") from error
    return ComparedRun(name, schema, header, metrics, history)


def _parse_history(text: str) -> dict[str, np.ndarray]:
    """Return one number per epoch under each name; nothing for a run without epochs."""
    names, *rows = csv.reader(io.StringIO(text))
    columns = np.array(rows, float).reshape(len(rows), len(names)).T
    return {
        name: column
        for name, column in zip(names, columns, strict=True)
        if name != "epoch" and rows
    }


def shared_metrics(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of the main metrics that some run has.

    Args:
        runs: runs of one task.

    Returns:
        Names of `evaluation.TITLES`.

    Example:
        >>> from jaxsoftmax.app import comparison
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> run = comparison.ComparedRun("a", schema, {}, {"test": {"mae": 1.0}}, {})
        >>> comparison.shared_metrics([run])
        ['mae']
    """
    names = HEADLINES[runs[0].schema.task]
    return [name for name in names if any(run.test.get(name) is not None for run in runs)]


def best(runs: Sequence[ComparedRun], metric: str) -> set[str]:
    """Return the names of the runs with the best value of a metric.

    Args:
        runs: runs of one task.
        metric: the name of the metric.

    Returns:
        Names; none if all values are equal or there is only one.

    Example:
        >>> from jaxsoftmax.app import comparison
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> runs = [comparison.ComparedRun(str(x), schema, {}, {"test": {"mae": x}}, {})
        ...         for x in (1.0, 2.0)]
        >>> comparison.best(runs, "mae")
        {'1.0'}
    """
    values = {run.name: run.test[metric] for run in runs if run.test.get(metric) is not None}
    if not values:
        return set()
    first = (min if metric in SMALLER_IS_BETTER else max)(values.values())
    # Versions may differ in the order of a sum.
    names = {name for name, value in values.items() if math.isclose(value, first, rel_tol=1e-5)}
    return names if len(names) < len(values) else set()


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs.

    Args:
        runs: the runs.

    Returns:
        The values of each setting, None where a run does not have it.

    Example:
        >>> from jaxsoftmax.app import comparison
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> runs = [comparison.ComparedRun("a", schema, {"seed": k, "preprocessing": {}}, {}, {})
        ...         for k in (0, 1)]
        >>> comparison.differing_settings(runs)
        {'seed': [0, 1]}
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    columns = {name: [run.settings.get(name) for run in runs] for name in names}
    return {
        name: values
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    }


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """Return what a reader should know before comparing the runs.

    Args:
        runs: the runs.

    Returns:
        Sentences: that the runs are of different data, classes or test examples, or were
        interrupted.

    Example:
        >>> from jaxsoftmax.app import comparison
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> runs = [comparison.ComparedRun("a", schema, {"data": {"name": n}}, {}, {})
        ...         for n in ("x.csv", "y.csv")]
        >>> comparison.notes(runs)
        ['The runs are of different data: x.csv, y.csv.']
    """
    found = []
    sources = dict.fromkeys(run.header.get("data", {}).get("name", "") for run in runs)
    if len(sources) > 1:
        found.append(f"The runs are of different data: {', '.join(sources)}.")
    if len({run.schema.classes for run in runs}) > 1:
        found.append(f"The runs have different {runs[0].schema.task}.")
    sizes = [run.test.get("examples") for run in runs]
    if len(set(sizes)) > 1:
        listed = ", ".join("none" if size is None else f"{size:,}" for size in sizes)
        found.append(f"The runs have different numbers of test examples: {listed}.")
    interrupted = [run.name for run in runs if run.header.get("interrupted")]
    if interrupted:
        found.append(f"Interrupted before its end: {', '.join(interrupted)}.")
    return found


def to_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the comparison in JSON types.

    Args:
        runs: the runs.

    Returns:
        "runs", each with "run", "settings" and the metrics of the "test" examples; the
        "differing_settings"; and the "notes".

    Example:
        >>> from jaxsoftmax.app import comparison
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.numbers, ("price",), (1,))
        >>> run = comparison.ComparedRun("a", schema, {"preprocessing": {}}, {"test": {}}, {})
        >>> comparison.to_json([run])["runs"][0]["settings"]
        {'data': '', 'features': 1}
    """
    return {
        "runs": [
            {"run": run.name, "settings": run.settings, "test": _overall(run.test)} for run in runs
        ],
        "differing_settings": differing_settings(runs),
        "notes": notes(runs),
    }


def _overall(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return evaluation.separate_items(metrics)[0] if metrics else {}
