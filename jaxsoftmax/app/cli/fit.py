"""The command `fit`: train by epochs, and save the run."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from jaxsoftmax import training
from jaxsoftmax.app import pipeline
from jaxsoftmax.app.cli import (
    checkpoints,
    console,
    fit_data,
    new_run,
    progress_bars,
    repeat,
    summaries,
)
from jaxsoftmax.app.cli.fit_data import DataOptions
from jaxsoftmax.app.cli.new_run import FittedModel, NewRun, RunOptions
from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.names import KeptEpoch, LossName
from jaxsoftmax.app.pipeline import Choices
from jaxsoftmax.training import FitResult

_CHOICES = ("loss", "optimizer", "epochs", "batch_size", "learning_rate", "weight_decay",
            "patience", "seed")  # fmt: skip


def run(**given: Any) -> None:
    """Run the command with its options, which `app` declares."""
    if given["resume"] is not None:
        given = checkpoints.restore_options(given)
    if given["name"] is None:
        raise ValueError("DATA is missing: name a file or a data set, or a run to --resume")
    if given["checkpoint"] is not None:
        checkpoints.require_orbax()  # before the data are read, which may take minutes
    if given["loss"] is LossName.squared_error:
        given["task"] = given["task"] or Task.numbers
    screen = console.make_console(quiet=given["quiet"])
    data_options = DataOptions.select("fit", given)
    run_options = RunOptions.select(given)
    prepared = fit_data.prepare(screen, data_options)
    choices = pipeline.choose(prepared.dataset, **{name: given[name] for name in _CHOICES})
    settings = choices.to_json()
    screen.print(summaries.format_settings(settings))
    with new_run.start(run_options, f"{prepared.dataset.name}-{choices.loss}") as run:
        if given["resume"] is None:
            checkpoints.remove(run.folder)  # of the run that is replaced
        try:
            fitted = _train(screen, run, prepared.dataset, choices, given)
        except (FloatingPointError, KeyboardInterrupt):
            if given["resume"] is None:  # there is nothing to continue
                checkpoints.remove(run.folder)
            raise
        repeated = data_options.to_dict() | settings | {"keep_epoch": given["keep_epoch"]}
        command = repeat.format_command("fit", given["name"], repeated)
        saved = new_run.save(screen, run, prepared, fitted, settings, command)
        if not fitted.header["interrupted"]:
            checkpoints.remove(run.folder)
        new_run.show(screen, run, saved, run_options)


def _train(
    screen: Console, run: NewRun, dataset: Dataset, choices: Choices, given: Mapping[str, Any]
) -> FittedModel:
    """Train a model by epochs; an interrupt ends the training with the epochs done so far."""
    steps, interval = None, given["checkpoint"]
    if interval is not None:
        steps = checkpoints.start(run.folder, given, dataset)
        run.seconds = checkpoints.read_seconds(run.folder)
        screen.print(f"to continue this run if it is killed: jaxsoftmax fit --resume {run.folder}")
    try:
        with (
            run.training(),
            progress_bars.epoch_progress(screen, choices.settings.epochs) as show_epoch,
        ):

            def callback(metrics: dict[str, Any]) -> None:
                show_epoch(metrics)
                if steps is not None:
                    checkpoints.save_seconds(run.folder, run.measure())
                run.interrupts.check(has_result=True)

            result = pipeline.train(
                dataset, choices, callback=callback, checkpoint=steps, interval=interval
            )
    except training.Interrupted as interrupt:
        if interrupt.result is None:  # it came before the first epoch ended
            raise
        screen.print(
            f"interrupted after epoch {interrupt.result.epochs}: saving the model of epoch "
            f"{interrupt.result.best_epoch}, the best so far by validation loss"
        )
        return _describe_fit(interrupt.result, is_last_kept=False, is_interrupted=True)
    is_last_kept = given["keep_epoch"] is KeptEpoch.last
    note = summaries.describe_overfitting(result.history, is_last_kept=is_last_kept)
    if note is not None:
        screen.print(note)
    return _describe_fit(result, is_last_kept=is_last_kept, is_interrupted=False)


def _describe_fit(result: FitResult, *, is_last_kept: bool, is_interrupted: bool) -> FittedModel:
    kept_epoch = result.epochs if is_last_kept else int(result.best_epoch)
    # After an interrupt there is no state; the parameters are always those of the best epoch.
    params = result.state.params if is_last_kept and result.state else result.params
    return FittedModel(
        params,
        header={"interrupted": is_interrupted, "kept_epoch": kept_epoch},
        metrics={"epochs": result.epochs, "kept_epoch": kept_epoch},
        history=result.history,
    )
