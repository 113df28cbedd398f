"""The command `fit`: train by epochs, and save the run."""

from typing import Any

from rich.console import Console

from jaxsoftmax import training
from jaxsoftmax.app import pipeline
from jaxsoftmax.app.cli import console, inputs, new_run, repeat
from jaxsoftmax.app.cli.inputs import DataOptions
from jaxsoftmax.app.cli.new_run import FittedModel, NewRun, RunOptions
from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.names import LossName
from jaxsoftmax.app.pipeline import Choices

_CHOICES = ("loss", "optimizer", "epochs", "batch_size", "learning_rate", "weight_decay",
            "patience", "seed")  # fmt: skip


def run(**given: Any) -> None:
    """Run the command with its options, which `app` declares."""
    if given["loss"] is LossName.squared_error:
        given["task"] = given["task"] or Task.numbers
    screen = console.make_console(quiet=given["quiet"])
    data_options = DataOptions.select("fit", given)
    run_options = RunOptions.select(given)
    prepared = inputs.prepare(screen, data_options)
    choices = pipeline.choose(prepared.dataset, **{name: given[name] for name in _CHOICES})
    settings = choices.to_json()
    screen.print(console.format_settings(settings))
    with new_run.start(run_options, f"{prepared.dataset.name}-{choices.loss}") as run:
        fitted = _train(screen, run, prepared.dataset, choices)
        command = repeat.format_command("fit", given["name"], data_options.to_dict() | settings)
        saved = new_run.save(screen, run, prepared, fitted, settings, command)
    new_run.show(screen, run, saved, run_options)


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
