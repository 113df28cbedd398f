"""A new run of `fit` or `probe`: its folder, the time and interrupts of its fit, and its result."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import typer
from rich.console import Console

import jaxsoftmax
from jaxsoftmax.app import folder_lock, pipeline, run_folder
from jaxsoftmax.app.cli import interrupts, output, progress_bars, summaries, tables
from jaxsoftmax.app.cli.fit_data import PreparedData
from jaxsoftmax.app.cli.interrupts import Interrupts
from jaxsoftmax.app.data.dataset import Dataset
from jaxsoftmax.app.parameters import Params
from jaxsoftmax.app.pipeline import EvaluationResult
from jaxsoftmax.app.text import replace_unprintable


class RunOptions(NamedTuple):
    """The options of `fit` and `probe` that concern their output."""

    output: Path | None
    overwrite: bool
    no_report: bool
    quiet: bool

    @classmethod
    def select(cls, given: Mapping[str, Any]) -> Self:
        """Select from the options of a command, by the names of its parameters."""
        return cls(*(given[name] for name in cls._fields))


@dataclass
class NewRun:
    """A run whose model is being fitted.

    seconds: the time of the fit, with that of the parts before it was resumed.
    """

    folder: Path
    interrupts: Interrupts
    seconds: float = 0.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Measure the time of the fit, and let interrupts end it."""
        self._start = time.perf_counter() - self.seconds
        try:
            with self.interrupts.during_fit():
                yield
        finally:
            self.measure()

    def measure(self) -> float:
        """Return the seconds of the fit until now."""
        self.seconds = time.perf_counter() - self._start
        return self.seconds


class FittedModel(NamedTuple):
    """A fitted model, and what its run records about the fit.

    `header` and `metrics` are added to model.json and metrics.json, `history` has one number per
    epoch under each name, and `path` is the curve of a probe.
    """

    params: Params
    header: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: Mapping[str, np.ndarray]
    path: Mapping[str, Any] | None = None


class SavedRun(NamedTuple):
    """A run that is saved, and what its output and its report show."""

    folder: Path
    dataset: Dataset  # without train and validation features
    fitted: FittedModel
    scores: dict[str, np.ndarray]
    result: EvaluationResult


@contextmanager
def start(options: RunOptions, default_name: str) -> Iterator[NewRun]:
    """Make the folder of a run, and handle interrupts until the run is saved.

    Args:
        options: the options of the command.
        default_name: the name of the folder in `runs` if there is no --output. A number is added
            if the name is taken.

    Raises:
        FileExistsError: if the folder of --output is not empty and may not be overwritten.
        BlockingIOError: if another process writes a run there.
        ValueError: if --overwrite is given without --output.
    """
    with interrupts.handle_interrupts() as handled:
        # The name of a file may have characters that control a terminal.
        printable = replace_unprintable(default_name, replacement="_")
        folder = _make_folder(options, Path("runs") / printable)
        with folder_lock.hold(folder):
            _check_folder(options)
            try:
                yield NewRun(folder, handled)
            except BaseException:
                if not any(folder.iterdir()):
                    folder.rmdir()
                raise


def save(
    screen: Console,
    run: NewRun,
    prepared: PreparedData,
    fitted: FittedModel,
    settings: Mapping[str, Any],
    command: str,
) -> SavedRun:
    """Compute the metrics of a model on each split, and save it with them.

    Args:
        screen: the console.
        run: the run, from `start`.
        prepared: the data. Their train and validation features are dropped.
        fitted: the model.
        settings: the settings of the fit, for the header. They must have "loss".
        command: the command that repeats the run.

    Returns:
        The saved run.
    """
    with progress_bars.status(screen, "computing scores"):
        scores = pipeline.score_splits(prepared.dataset, fitted.params, prepared.preprocessing)
    prepared.drop_fitted_features()
    dataset = prepared.dataset
    with progress_bars.status(screen, "computing metrics"):
        result = pipeline.measure_splits(dataset, scores, loss=settings["loss"])
    header = {
        "jaxsoftmax": jaxsoftmax.__version__,
        "jax": jax.__version__,
        "created": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "data": {"name": dataset.name, "source": dataset.source},
        "command": command,
        **settings,
        **fitted.header,
    }
    model = run_folder.Model(fitted.params, dataset.schema, prepared.preprocessing, header)
    seconds = {"seconds": round(run.seconds, 3)}
    metrics = {**result.metrics, "calibration": result.calibration, **fitted.metrics, **seconds}
    run_folder.save(run.folder, model, metrics=metrics, history=fitted.history)
    return SavedRun(run.folder, dataset, fitted, scores, result)


def show(screen: Console, run: NewRun, saved: SavedRun, options: RunOptions) -> None:
    """Print the main metrics, write the report, and print the folder of the run.

    Args:
        screen: the console.
        run: the run, from `start`.
        saved: the same run, from `save`.
        options: the options of the command.

    Raises:
        typer.Exit: with the status of an interrupted command, if an interrupt came.
    """
    metrics = saved.result.metrics
    screen.print(tables.make_splits_table(metrics, saved.dataset.schema.task))
    screen.print(summaries.format_headline(metrics))
    screen.print(f"{run.seconds:.1f} s of training")
    # One interrupt may have ended the fit; any other one skips the report.
    num_expected = 1 if saved.fitted.header.get("interrupted") else 0
    is_interrupted = run.interrupts.count > 0
    try:
        if not options.no_report and run.interrupts.count == num_expected:
            _write_report(screen, saved)
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        # Not by the console, which would fold a long path.
        line = str(saved.folder) if options.quiet else f"run: {saved.folder}"
        output.write(line, run=saved.folder, metrics=metrics)
    if is_interrupted:
        raise typer.Exit(interrupts.EXIT_STATUS)


def _make_folder(options: RunOptions, default: Path) -> Path:
    if options.output is not None:
        try:
            return run_folder.make_folder(options.output, overwrite=options.overwrite)
        except OSError as error:
            if error.strerror is None:  # the message is our own
                raise
            problem = f"--output {options.output} cannot be created: {error.strerror}"
            raise OSError(problem) from error
    if options.overwrite:
        raise ValueError("--overwrite needs --output: without it, each run has a new folder")
    return run_folder.make_numbered_folder(default)


def _check_folder(options: RunOptions) -> None:
    """Check again now that the folder is held: another process may have saved a run meanwhile."""
    if options.output is not None:
        run_folder.make_folder(options.output, overwrite=options.overwrite)


def _write_report(screen: Console, saved: SavedRun) -> None:
    try:
        from jaxsoftmax.app import report
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        screen.print("no report without matplotlib: pip install 'jaxsoftmax[app]'")
        return
    model = run_folder.load(saved.folder)
    content = report.Run(
        header=model.header,
        schema=model.schema,
        metrics=saved.result.metrics,
        history=saved.fitted.history,
        params=model.params,
        scores=saved.scores["test"],
        test=saved.dataset.test,
        calibration=saved.result.calibration,
        preprocessing=model.preprocessing,
        path=saved.fitted.path,
        columns=saved.dataset.columns,
    )
    with progress_bars.status(screen, "writing the report"):
        path = run_folder.add(
            saved.folder, run_folder.REPORT, lambda path: report.write(path, content)
        )
    screen.print(f"report: {path}")
    output.add(report=path)
