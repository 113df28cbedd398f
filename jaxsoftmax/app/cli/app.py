"""The command line: `jaxsoftmax fit DATA` keeps a run, `predict` and `evaluate` use it."""

import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from rich.console import Console

import jaxsoftmax
from jaxsoftmax import training
from jaxsoftmax.app import (
    atomic_files,
    data,
    defaults,
    evaluation,
    linear_probe,
    pipeline,
    predictions,
    run_folder,
)
from jaxsoftmax.app.cli import console, options
from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.app.pipeline import Choices, Judgement
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.training import FitResult

INTERRUPTED = 130  # a shell's status for a command that Ctrl-C ended

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxsoftmax {jaxsoftmax.__version__}")
        raise typer.Exit


@app.callback()
def _jaxsoftmax(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Softmax, logistic and linear regression in JAX."""


@app.command(no_args_is_help=True)
def fit(
    name: options.Data,
    label: options.Label = None,
    labels: options.Labels = None,
    identifier: options.Identifier = None,
    drop: options.Drop = None,
    features: options.Features = None,
    task: options.TaskOption = None,
    test: options.Test = None,
    log1p: options.LogOnePlus = False,
    standardize: options.Standardize = False,
    loss: options.Loss = None,
    optimizer: options.Optimizer = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    weight_decay: options.WeightDecay = None,
    patience: options.Patience = None,
    seed: options.Seed = 0,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    output: options.RunOutput = None,
    overwrite: options.OverwriteRun = False,
    no_report: options.NoReport = False,
    quiet: options.QuietRun = False,
) -> None:
    """Fit a linear model to DATA and keep the run.

    The folder of the run holds the model (model.safetensors and
    model.json), metrics.json, history.csv and report.html. Of a file 15 %
    of the rows validate and 15 % test, the same at each call; the same
    command with the same seed gives the same model. Ctrl-C ends the fit
    and keeps the best model so far.
    """
    screen = console.make(quiet=quiet)
    source = {
        "label": label,
        "labels": labels,
        "id": identifier,
        "drop": drop,
        "features": features,
        "task": task or (Task.numbers if loss is LossName.squared_error else None),
        "test": test,
    }
    with _failing():
        dataset = _load(screen, name, source, data_dir=data_dir, download=download)
        screen.print(console.describe(dataset))
        mapped = {"log1p": log1p, "standardize": standardize}
        with _of(name):
            learned = pipeline.preprocess(dataset, **mapped)
        _check(dataset.test, str(test or name), learned, dataset.schema)
        _advise(screen, dataset, task)
        choices = pipeline.choose(
            dataset,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            patience=patience,
            seed=seed,
        )
        screen.print(console.sentence(choices.to_json()))
        named = Path("runs") / f"{dataset.name}-{choices.loss}"
        with _interrupts() as interrupts, _given_back(_claim(output, named, overwrite)) as folder:
            begun = time.perf_counter()
            with interrupts.heard():
                result, interrupted = _fit(screen, dataset, choices)
            seconds = time.perf_counter() - begun
            if interrupted:
                screen.print(
                    f"interrupted after epoch {result.epochs}: keeping the model of epoch "
                    f"{result.best_epoch}, the best so far by validation loss"
                )
            kept_epoch = _kept_epoch(result, choices, interrupted)
            given = source | mapped | {"data_dir": data_dir} | choices.to_json()
            scores, dataset = _scored(screen, dataset, result.params, learned)
            kept = _keep(
                screen,
                folder,
                dataset,
                scores,
                result.params,
                learned,
                header={
                    "command": _command("fit", name, given),
                    **choices.to_json(),
                    "interrupted": interrupted,
                    "kept_epoch": kept_epoch,
                },
                metrics={
                    "epochs": result.epochs,
                    "kept_epoch": kept_epoch,
                    "seconds": round(seconds, 3),
                },
                history=result.history,
            )
    wanted = not no_report and interrupts.came <= interrupted  # no other one came since
    _show(screen, kept, seconds, report=wanted, quiet=quiet)
    if interrupts.came:
        raise typer.Exit(INTERRUPTED)


@app.command(no_args_is_help=True)
def probe(
    name: options.Data,
    label: options.Label = None,
    labels: options.Labels = None,
    identifier: options.Identifier = None,
    drop: options.Drop = None,
    features: options.Features = None,
    task: options.TaskOption = None,
    test: options.Test = None,
    log1p: options.LogOnePlus = False,
    standardize: options.Standardize = False,
    loss: options.ProbeLoss = None,
    strongest: options.Strongest = 1e-4,
    weakest: options.Weakest = 1e4,
    points: options.Points = 17,
    folds: options.Folds = 5,
    gap: options.Gap = 1e-6,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    output: options.RunOutput = None,
    overwrite: options.OverwriteRun = False,
    no_report: options.NoReport = False,
    quiet: options.QuietRun = False,
) -> None:
    """Probe the features of DATA: choose the penalty by folds, fit the optimum, keep the run.

    Every C of a grid is fitted on every fold of the training examples;
    the C of least held-out loss is then fitted to all of them. Each fit
    stops at a proven distance from its optimum. The run is one of fit,
    with the curve of held-out losses in its report.
    """
    screen = console.make(quiet=quiet)
    source = {
        "label": label,
        "labels": labels,
        "id": identifier,
        "drop": drop,
        "features": features,
        "task": task,
        "test": test,
    }
    with _failing():
        grid = linear_probe.grid(strongest, weakest, points)
        dataset = _load(screen, name, source, data_dir=data_dir, download=download)
        screen.print(console.describe(dataset))
        mapped = {"log1p": log1p, "standardize": standardize}
        with _of(name):
            learned = pipeline.preprocess(dataset, **mapped)
        _check(dataset.test, str(test or name), learned, dataset.schema)
        _advise(screen, dataset, task)
        chosen = loss or defaults.default_loss(dataset.schema)
        named = Path("runs") / f"{dataset.name}-probe"
        with _interrupts() as interrupts, _given_back(_claim(output, named, overwrite)) as folder:
            begun = time.perf_counter()
            with interrupts.heard():
                with console.sweeping(screen, points, folds) as report:
                    path = linear_probe.sweep(
                        dataset, loss=chosen, C=grid, folds=folds, callback=report
                    )
                with console.working(screen, f"fitting C = {path.best:.4g}"):
                    solution = linear_probe.fit(dataset, loss=chosen, C=path.best, gap=gap)
            seconds = time.perf_counter() - begun
            screen.print(console.certified(path.best, solution))
            sweep = {"strongest": strongest, "weakest": weakest, "points": points, "folds": folds}
            given = source | mapped | {"data_dir": data_dir, "loss": chosen} | sweep | {"gap": gap}
            scores, dataset = _scored(screen, dataset, solution.params, learned)
            kept = _keep(
                screen,
                folder,
                dataset,
                scores,
                solution.params,
                learned,
                header={
                    "command": _command("probe", name, given),
                    "loss": chosen,
                    "C": path.best,
                    **sweep,
                    "certified_gap": solution.gap,
                },
                metrics={
                    "path": path.to_json(),
                    "solution": {
                        "objective": solution.objective,
                        "gap": solution.gap,
                        "converged": solution.converged,
                        "reason": solution.reason,
                        "products": solution.products,
                    },
                    "seconds": round(seconds, 3),
                },
                history={},
                path=path.to_json(),
            )
    _show(screen, kept, seconds, report=not no_report and not interrupts.came, quiet=quiet)
    if interrupts.came:
        raise typer.Exit(INTERRUPTED)


@app.command(no_args_is_help=True)
def predict(
    run: options.Run,
    name: options.Data,
    output: options.TableOutput = Path("predictions.csv"),
    split: options.Split = "test",
    data_dir: options.MoreDataDir = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Write what the model of RUN says of DATA: a table of labels and probabilities.

    The first column is that of --id, or row, which counts from 1. Then
    come, of classes, label and p_CLASS for each class; of labels, each
    LABEL, 0 or 1, and each p_LABEL; of numbers, each under its name.
    Columns of DATA are found by name; a label column is ignored.
    """
    screen = console.make(quiet=quiet)
    with _failing():
        atomic_files.check_output(output, suffixes=predictions.SUFFIXES, overwrite=overwrite)
        model = run_folder.load(run)
        loss = _loss(run, model)
        read = {"split": split, "data_dir": data_dir}
        examples, scores = _read(screen, name, model, targets=False, **read)
        said = predictions.table(
            scores, examples.ids, model.schema, loss=loss, identifier=examples.identifier
        )
        predictions.write(output, said)
        if model.schema.task is not Task.numbers and said.num_columns < 3:
            screen.print(f"no probabilities: a head fitted with {loss} gives none")
    typer.echo(output if quiet else f"{said.num_rows:,} predictions: {output}")


@app.command(no_args_is_help=True)
def evaluate(
    run: options.Run,
    name: options.Data,
    labels: options.MoreLabels = None,
    split: options.Split = "test",
    data_dir: options.MoreDataDir = None,
    output: options.FiguresOutput = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell how right the model of RUN is on DATA, which has labels.

    The intervals are of 1,000 bootstrap resamples of the examples.
    """
    screen = console.make(quiet=quiet)
    with _failing():
        if output is not None:
            atomic_files.check_output(output, suffixes=[".json"], overwrite=overwrite)
        model = run_folder.load(run)
        loss = _loss(run, model)
        if labels is not None and not data.is_file(name):
            raise ValueError(f"--labels is for files; {name} is the name of a data set")
        read = {"labels": labels, "split": split, "data_dir": data_dir}
        examples, scores = _read(screen, name, model, targets=True, **read)
        told = evaluation.figures(
            scores,
            examples.targets,
            model.schema,
            loss=loss,
            intervals=True,
        )
        for shown in console.figures_tables(told):
            screen.print(shown)
        if output is not None:
            text = json.dumps({"run": str(run), "data": name} | told, indent=2, ensure_ascii=False)
            atomic_files.write(output, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))
            typer.echo(output if quiet else f"figures: {output}")


# Errors that a user can mend are one line and an exit status, not a traceback.


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as failure:
        typer.echo(f"jaxsoftmax: {failure}", err=True)
        raise typer.Exit(2 if isinstance(failure, ValueError) else 1) from failure
    except KeyboardInterrupt as interrupt:
        typer.echo("jaxsoftmax: interrupted, nothing is kept", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt


@contextmanager
def _given_back(folder: Path) -> Iterator[Path]:
    """Leave no empty folder behind when the run fails or is interrupted."""
    try:
        yield folder
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


class _Interrupts:
    """What Ctrl-C does: the first ends the fit, and none ends what keeps the result."""

    def __init__(self) -> None:
        self.fitting, self.came = False, 0

    def __call__(self, number: int, frame: object) -> None:
        self.came += 1
        if self.fitting:
            self.fitting = False
            raise KeyboardInterrupt

    def lost(self, unraisable: Any) -> None:
        """Come again where Python dropped an interrupt: it ignores what finalisers raise."""
        if unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
        elif self.came:
            self.fitting, self.came = True, self.came - 1
            again = [threading.get_ident(), signal.SIGINT]
            threading.Timer(0.01, signal.pthread_kill, again).start()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """End what runs within, once, if one comes or came already."""
        self.fitting = True
        try:
            if self.came:
                raise KeyboardInterrupt
            yield
        finally:
            self.fitting = False


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    usual, ours = signal.getsignal(signal.SIGINT), _Interrupts()
    if usual is not signal.default_int_handler:  # ignored, as under nohup
        yield ours
        return
    signal.signal(signal.SIGINT, ours)
    sys.unraisablehook, ignored = ours.lost, sys.unraisablehook
    try:
        yield ours
    finally:
        signal.signal(signal.SIGINT, usual)
        sys.unraisablehook = ignored


# What goes into a fit.


def _load(
    screen: Console, name: str, source: Mapping[str, Any], *, data_dir: Path | None, download: bool
) -> Dataset:
    given = {option: value for option, value in source.items() if value}
    with console.reading(screen, name) as progress:
        if data.is_file(name):
            if data_dir is not None or download:
                option = "--download" if download else "--data-dir"
                raise ValueError(f"{option} is for names of data sets; {name} is a file")
            return data.load_file(name, **given, progress=progress)
        for option in given.keys() - {"task"}:
            raise ValueError(f"--{option} is for files; {name} is the name of a data set")
        return data.load(name, data_dir=data_dir, download=download, progress=progress)


def _read(
    screen: Console, name: str, model: run_folder.Model, *, targets: bool, **options: Any
) -> tuple[Split, np.ndarray]:
    """Examples, and their scores."""
    with console.reading(screen, name) as progress:
        split = data.read(name, model.schema, targets=targets, progress=progress, **options)
    _check(split, name, model.preprocessing, model.schema)
    return split, evaluation.scores(model.params, split.features, preprocessing=model.preprocessing)


def _check(split: Split, name: str, preprocessing: Preprocessing, schema: Schema) -> None:
    """Find what preprocessing cannot map, while all examples are there to name it by."""
    with _of(name):
        preprocessing.check(split.features, columns=schema.columns, ids=split.ids)


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Say which data a row belongs to."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}, {error}") from error


def _loss(run: Path, model: run_folder.Model) -> LossName:
    """The loss that a header names, which anyone may have written."""
    loss, possible = model.header.get("loss"), defaults.LOSSES[model.schema.task]
    if loss not in possible:
        raise ValueError(
            f"{run / run_folder.HEADER}: loss must be {' or '.join(possible)}, got {loss!r}"
        )
    return LossName(loss)


def _advise(screen: Console, dataset: Dataset, task: Task | None) -> None:
    """Say what may not be meant, in a line each."""
    schema, size = dataset.schema, len(dataset.train.features)
    count = len(schema.classes)
    whole = all(name.removeprefix("-").isdecimal() for name in schema.classes)
    if (
        task is None
        and schema.task is Task.classes
        and whole
        and (count > 100 or size < 10 * count)
    ):
        screen.print(
            f"the labels are {count} different whole numbers, taken for classes: "
            "if they are amounts, --task numbers fits them as such"
        )
    ratio = defaults.scales_apart(dataset.train.features)
    if schema.divisor == 1 and ratio > 100:
        screen.print(
            f"the scales of features differ by a factor of {ratio:,.0f}: "
            "--standardize is advisable (and --log1p for counts)"
        )


def _claim(output: Path | None, otherwise: Path, overwrite: bool) -> Path:
    if output is not None:
        return run_folder.make_folder(output, overwrite=overwrite)
    if overwrite:
        raise ValueError("--overwrite needs --output: other runs have folders of their own")
    return run_folder.make_numbered_folder(otherwise)


def _fit(screen: Console, dataset: Dataset, choices: Choices) -> tuple[FitResult, bool]:
    """The result, and whether an interrupt cut it short."""
    try:
        with console.fitting(screen, choices.settings.epochs) as report:
            return pipeline.fit(dataset, choices, callback=report), False
    except training.Interrupted as interrupt:
        if interrupt.result is None:  # before the first epoch ended
            raise
        return interrupt.result, True


# What comes out of it.


def _kept_epoch(result: FitResult, choices: Choices, interrupted: bool) -> int:
    best = interrupted or choices.patience is not None
    return int(result.best_epoch) if best else result.epochs


class _Kept(NamedTuple):
    """A run that is kept, and what is still to be shown of it."""

    folder: Path
    dataset: Dataset
    scores: dict[str, np.ndarray]
    params: LinearParams
    judged: Judgement
    history: Mapping[str, np.ndarray]
    path: Mapping[str, Any] | None


def _scored(
    screen: Console, dataset: Dataset, params: LinearParams, learned: Preprocessing
) -> tuple[dict[str, np.ndarray], Dataset]:
    """The scores, and the data without what was fitted, which its caller lets go of for them."""
    with console.working(screen, "scoring"):
        return pipeline.score(dataset, params, learned), pipeline.lightened(dataset)


def _keep(
    screen: Console,
    folder: Path,
    dataset: Dataset,
    scores: dict[str, np.ndarray],
    params: LinearParams,
    learned: Preprocessing,
    *,
    header: Mapping[str, Any],
    metrics: Mapping[str, Any],
    history: Mapping[str, np.ndarray],
    path: Mapping[str, Any] | None = None,
) -> _Kept:
    """Judge a model on every split, and save it with its figures."""
    with console.working(screen, "measuring"):
        judged = pipeline.judge(dataset, scores, loss=header["loss"])
    about = {
        "jaxsoftmax": jaxsoftmax.__version__,
        "jax": jax.__version__,
        "created": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "data": {"name": dataset.name, "source": dataset.source},
    }
    model = run_folder.Model(params, dataset.schema, learned, {**about, **header})
    told = {**judged.figures, "calibration": judged.calibration, **metrics}
    run_folder.save(folder, model, metrics=told, history=history)
    return _Kept(folder, dataset, scores, params, judged, history, path)


def _show(screen: Console, kept: _Kept, seconds: float, *, report: bool, quiet: bool) -> None:
    """Print the figures, write the report, and say where the run is, whatever comes between."""
    screen.print(console.splits_table(kept.judged.figures, kept.dataset.schema.task))
    screen.print(console.headline(kept.judged.figures["test"]))
    screen.print(f"{seconds:.1f} s of training")
    try:
        if report:
            _report(screen, kept)
    finally:
        folder = kept.folder
        typer.echo(folder if quiet else f"run: {folder}")  # the console would fold a long path


def _command(verb: str, name: str, given: Mapping[str, Any]) -> str:
    """The command that repeats a run, with everything said that a later version might change."""
    words = ["jaxsoftmax", verb, name]
    for option, value in given.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            words += [word for one in values for word in (flag, str(one))]
    return shlex.join(words)


def _report(screen: Console, kept: _Kept) -> None:
    try:
        from jaxsoftmax.app import report
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        screen.print("no report without matplotlib: pip install 'jaxsoftmax[app]'")
        return
    model = run_folder.load(kept.folder)
    content = report.Content(
        header=model.header,
        schema=model.schema,
        figures=kept.judged.figures,
        history=kept.history,
        params=model.params,
        scores=kept.scores["test"],
        test=kept.dataset.test,
        calibration=kept.judged.calibration,
        preprocessing=model.preprocessing,
        path=kept.path,
    )
    with console.working(screen, "writing the report"):
        path = run_folder.add(
            kept.folder, run_folder.REPORT, lambda path: report.write(path, content)
        )
    screen.print(f"report: {path}")
