"""The commands of `jaxsoftmax`: `fit` and `probe` save a run, `predict` and `evaluate` use it."""

from pathlib import Path
from typing import Annotated, Any

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
from jaxsoftmax.app.cli import console, errors, inputs, new_run, options, repeat
from jaxsoftmax.app.cli.inputs import DataOptions
from jaxsoftmax.app.cli.new_run import FittedModel, NewRun, RunOptions
from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.data.dialects import Dialect
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.app.pipeline import Choices

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
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
    skip_unlabeled: options.SkipUnlabeled = False,
    category: options.Category = None,
    text: options.TextColumn = None,
    keep: options.Keep = None,
    missing: options.Missing = None,
    numeric_only: options.NumericOnly = False,
    delimiter: options.Delimiter = None,
    decimal: options.Decimal = None,
    encoding: options.Encoding = None,
    header: options.Header = None,
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
    """Fit a linear model to DATA and save the run.

    The folder of the run holds the model (model.safetensors and
    model.json), metrics.json, history.csv and report.html. 15% of the
    rows of a file are used for validation and 15% for the test, the same
    rows each time. The same command with the same seed gives the same
    model. Ctrl-C ends the fit after the current epoch and saves the best
    model so far.
    """
    file_options = {
        "label": label,
        "labels": labels,
        "id": identifier,
        "drop": drop,
        "features": features,
        "task": task or (Task.numbers if loss is LossName.squared_error else None),
        "test": test,
        "skip_unlabeled": skip_unlabeled,
        "category": category,
        "text": text,
        "keep": keep,
        "missing": missing,
        "numeric_only": numeric_only,
        "delimiter": delimiter,
        "decimal": decimal,
        "encoding": encoding,
        "header": header,
    }
    screen = console.make_console(quiet=quiet)
    data_options = DataOptions("fit", name, file_options, log1p, standardize, data_dir, download)
    run_options = RunOptions(output, overwrite, no_report, quiet)
    with errors.exit_on_error():
        prepared = inputs.prepare(screen, data_options)
        choices = pipeline.choose(
            prepared.dataset,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            patience=patience,
            seed=seed,
        )
        settings = choices.to_json()
        screen.print(console.format_settings(settings))
        with new_run.start(run_options, f"{prepared.dataset.name}-{choices.loss}") as run:
            fitted = _train(screen, run, prepared.dataset, choices)
            command = repeat.format_command("fit", name, data_options.to_dict() | settings)
            saved = new_run.save(screen, run, prepared, fitted, settings, command)
        new_run.show(screen, run, saved, run_options)


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
    skip_unlabeled: options.SkipUnlabeled = False,
    category: options.Category = None,
    text: options.TextColumn = None,
    keep: options.Keep = None,
    missing: options.Missing = None,
    numeric_only: options.NumericOnly = False,
    delimiter: options.Delimiter = None,
    decimal: options.Decimal = None,
    encoding: options.Encoding = None,
    header: options.Header = None,
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
    """Probe the features of DATA: choose the penalty by cross-validation, and fit the optimum.

    For each value of C, a model is fitted without each fold of the
    training examples and scored on that fold. The C with the lowest
    held-out loss is then fitted to all training examples. Each fit stops
    at a proven distance from its optimum. The run is saved as by fit; its
    report shows the curve of held-out losses.
    """
    file_options = {
        "label": label,
        "labels": labels,
        "id": identifier,
        "drop": drop,
        "features": features,
        "task": task,
        "test": test,
        "skip_unlabeled": skip_unlabeled,
        "category": category,
        "text": text,
        "keep": keep,
        "missing": missing,
        "numeric_only": numeric_only,
        "delimiter": delimiter,
        "decimal": decimal,
        "encoding": encoding,
        "header": header,
    }
    screen = console.make_console(quiet=quiet)
    data_options = DataOptions("probe", name, file_options, log1p, standardize, data_dir, download)
    run_options = RunOptions(output, overwrite, no_report, quiet)
    with errors.exit_on_error():
        C = linear_probe.grid(strongest, weakest, points)
        prepared = inputs.prepare(screen, data_options)
        loss = linear_probe.choose_loss(prepared.dataset.schema, loss)
        linear_probe.check(prepared.dataset, folds=folds, gap=gap)
        settings = {
            "loss": loss,
            "strongest": strongest,
            "weakest": weakest,
            "points": points,
            "folds": folds,
        }
        given = data_options.to_dict() | settings | {"gap": gap}
        with new_run.start(run_options, f"{prepared.dataset.name}-probe") as run:
            fitted = _sweep_and_refit(
                screen, run, prepared.dataset, loss=loss, C=C, folds=folds, gap=gap
            )
            command = repeat.format_command("probe", name, given)
            saved = new_run.save(screen, run, prepared, fitted, settings, command)
        new_run.show(screen, run, saved, run_options)


@app.command(no_args_is_help=True)
def predict(
    run: options.Run,
    name: options.Data,
    output: options.TableOutput = Path("predictions.csv"),
    split: options.Split = "test",
    data_dir: options.MoreDataDir = None,
    delimiter: options.Delimiter = None,
    decimal: options.Decimal = None,
    encoding: options.Encoding = None,
    header: options.Header = None,
    keep_formulas: options.KeepFormulas = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the predictions of the model of RUN for DATA: a table with probabilities.

    The first column is the column given by --id, or row, which counts
    from 1. For classes, the next columns are label, and p_CLASS for each
    class. For labels, they are each LABEL, 0 or 1, and p_LABEL for each.
    For numbers, there is one column under the name of each. Columns of
    DATA are matched by name; a label column is ignored.
    """
    screen = console.make_console(quiet=quiet)
    with errors.exit_on_error():
        atomic_files.check_output(output, suffixes=predictions.SUFFIXES, overwrite=overwrite)
        model = run_folder.load(run)
        loss = _read_loss(run, model)
        examples, scores = inputs.read(
            screen,
            name,
            model,
            targets=False,
            split=split,
            data_dir=data_dir,
            dialect=Dialect(delimiter, decimal, encoding, header),
        )
        table = predictions.make_table(
            scores, examples.ids, model.schema, loss=loss, identifier=examples.identifier
        )
        predictions.write(output, table, keep_formulas=keep_formulas)
        if model.schema.task is not Task.numbers and table.num_columns < 3:
            screen.print(f"no probabilities: a model fitted with {loss} does not give any")
        typer.echo(output if quiet else f"{table.num_rows:,} predictions: {output}")


@app.command(no_args_is_help=True)
def evaluate(
    run: options.Run,
    name: options.Data,
    labels: options.MoreLabels = None,
    split: options.Split = "test",
    data_dir: options.MoreDataDir = None,
    delimiter: options.Delimiter = None,
    decimal: options.Decimal = None,
    encoding: options.Encoding = None,
    header: options.Header = None,
    output: options.MetricsOutput = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate the model of RUN on DATA, which must have labels.

    The intervals are computed from 1,000 bootstrap resamples of the
    examples.
    """
    screen = console.make_console(quiet=quiet)
    with errors.exit_on_error():
        if output is not None:
            atomic_files.check_output(output, suffixes=[".json"], overwrite=overwrite)
        model = run_folder.load(run)
        loss = _read_loss(run, model)
        if labels is not None and not data.is_file(name):
            raise ValueError(f"--labels is for files; {name} is the name of a data set")
        examples, scores = inputs.read(
            screen,
            name,
            model,
            targets=True,
            labels=labels,
            split=split,
            data_dir=data_dir,
            dialect=Dialect(delimiter, decimal, encoding, header),
        )
        metrics = evaluation.compute_metrics(
            scores, examples.targets, model.schema, loss=loss, intervals=True
        )
        for table in console.make_metrics_tables(metrics):
            screen.print(table)
        if output is not None:
            content = run_folder.encode_json({"run": str(run), "data": name} | metrics)
            atomic_files.write(output, lambda partial: partial.write_bytes(content))
            typer.echo(output if quiet else f"metrics: {output}")


def _train(screen: Console, run: NewRun, dataset: Dataset, choices: Choices) -> FittedModel:
    """Train a model by epochs; an interrupt ends the training with the epochs done so far."""
    is_interrupted = False
    try:
        with run.training(), console.epoch_progress(screen, choices.settings.epochs) as show_epoch:

            def callback(metrics: dict[str, Any]) -> None:
                show_epoch(metrics)
                run.interrupts.check(has_result=True)

            result = pipeline.train(dataset, choices, callback=callback)
    except training.Interrupted as interrupt:
        if interrupt.result is None:  # it came before the first epoch ended
            raise
        result, is_interrupted = interrupt.result, True
        screen.print(
            f"interrupted after epoch {result.epochs}: saving the model of epoch "
            f"{result.best_epoch}, the best so far by validation loss"
        )
    is_best_epoch = is_interrupted or choices.patience is not None
    kept_epoch = int(result.best_epoch) if is_best_epoch else result.epochs
    return FittedModel(
        result.params,
        header={"interrupted": is_interrupted, "kept_epoch": kept_epoch},
        metrics={"epochs": result.epochs, "kept_epoch": kept_epoch},
        history=result.history,
    )


def _sweep_and_refit(
    screen: Console,
    run: NewRun,
    dataset: Dataset,
    *,
    loss: LossName,
    C: np.ndarray,
    folds: int,
    gap: float,
) -> FittedModel:
    """Choose C by cross-validation, and fit the optimum at it; an interrupt ends both."""
    with run.training():
        with console.sweep_progress(screen, len(C), folds) as show_stage:

            def callback(stage: dict[str, Any]) -> None:
                show_stage(stage)
                run.interrupts.check()

            path = linear_probe.cross_validate(
                dataset, loss=loss, C=C, folds=folds, callback=callback
            )
        with console.status(screen, f"fitting C = {path.best:.4g}"):
            solution = linear_probe.refit(dataset, loss=loss, C=path.best, gap=gap)
    screen.print(console.format_certificate(path.best, solution))
    certificate = {
        "objective": solution.objective,
        "gap": solution.gap,
        "converged": solution.converged,
        "reason": solution.reason,
        "products": solution.products,
    }
    return FittedModel(
        solution.params,
        header={"C": path.best, "certified_gap": solution.gap},
        metrics={"path": path.to_json(), "solution": certificate},
        history={},
        path=path.to_json(),
    )


def _read_loss(run: Path, model: run_folder.Model) -> LossName:
    """Return the loss that a header names, after a check: anyone may have edited the file."""
    loss, expected = model.header.get("loss"), defaults.TASK_LOSSES[model.schema.task]
    if loss not in expected:
        raise ValueError(
            f"{run / run_folder.HEADER}: loss must be {' or '.join(expected)}, got {loss!r}"
        )
    return LossName(loss)
