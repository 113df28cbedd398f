"""The command `probe`: choose the penalty by cross-validation, and save the run of the optimum."""

from typing import Any

import numpy as np
from rich.console import Console

from jaxsoftmax.app import linear_probe
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
from jaxsoftmax.app.data.dataset import Dataset
from jaxsoftmax.app.names import LossName


def run(**given: Any) -> None:
    """Run the command with its options, which `app` declares."""
    C = linear_probe.grid(given["strongest"], given["weakest"], given["points"])
    folds, gap = given["folds"], given["gap"]
    screen = console.make_console(quiet=given["quiet"])
    data_options = DataOptions.select("probe", given)
    run_options = RunOptions.select(given)
    prepared = fit_data.prepare(screen, data_options)
    dataset = prepared.dataset
    loss = linear_probe.choose_loss(dataset.schema, given["loss"])
    linear_probe.check(dataset, folds=folds, gap=gap)
    ends = {name: given[name] for name in ("strongest", "weakest", "points", "folds")}
    settings = {"loss": loss, **ends}
    with new_run.start(run_options, f"{dataset.name}-probe") as run:
        checkpoints.remove(run.folder)  # of the run that is replaced
        fitted = _sweep_and_refit(screen, run, dataset, loss=loss, C=C, folds=folds, gap=gap)
        repeated = data_options.to_dict() | settings | {"gap": gap}
        command = repeat.format_command("probe", given["name"], repeated)
        saved = new_run.save(screen, run, prepared, fitted, settings, command)
    new_run.show(screen, run, saved, run_options)


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
        with progress_bars.sweep_progress(screen, len(C), folds) as show_stage:

            def callback(stage: dict[str, Any]) -> None:
                show_stage(stage)
                run.interrupts.check()

            path = linear_probe.cross_validate(
                dataset, loss=loss, C=C, folds=folds, callback=callback
            )
        with progress_bars.status(screen, f"fitting C = {path.best:.4g}"):
            solution = linear_probe.refit(dataset, loss=loss, C=path.best, gap=gap)
    screen.print(summaries.format_certificate(path.best, solution))
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
