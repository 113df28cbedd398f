"""The command line: `jaxsoftmax fit DATA` fits a linear classifier and keeps the run."""

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import jaxsoftmax
from jaxsoftmax import data, recipes, runs, training
from jaxsoftmax.data import Dataset
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.recipes import LossName, OptimizerName, Settings
from jaxsoftmax.training import Loss, evaluate

_SPLITS = ("train", "validation", "test")

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
    """Softmax and logistic regression in JAX."""


@app.command(no_args_is_help=True)
def fit(
    name: Annotated[str, typer.Argument(metavar="DATA", help=f"One of {', '.join(data.names())}.")],
    loss: Annotated[
        LossName,
        typer.Option(
            help="softmax: cross-entropy. sigmoid: one binary cross-entropy per class. "
            "squared_error: of scores and one-hot labels. hinge: multiclass large margin."
        ),
    ] = LossName.softmax,
    optimizer: Annotated[
        OptimizerName, typer.Option(help="lbfgs takes all examples as one batch.")
    ] = OptimizerName.adamw,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training data.", show_default="by DATA"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Examples in a minibatch.", show_default="by DATA"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The first; it falls to 0 along a cosine.",
            show_default="by DATA and optimizer",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            min=0, help="Of the weights, not the bias.", show_default="by DATA and optimizer"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**32 - 1, help="Of the first weights and the order of minibatches."
        ),
    ] = 0,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of data sets that TensorFlow Datasets has prepared.",
            show_default="TFDS_DATA_DIR, or ~/tensorflow_datasets",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the run; one that holds something is refused.",
            show_default="runs/DATA-LOSS, numbered",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that --output holds.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but the folder of the run.")
    ] = False,
) -> None:
    """Fit a linear classifier to DATA and keep the run.

    The folder of the run holds the model (model.safetensors and model.json), metrics.json and
    history.csv. The same command with the same seed gives the same model.
    """
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    with _failing(ValueError, status=2), _failing(OSError, status=1):
        dataset = _load(name, data_dir, console)
        settings = _given(
            recipes.default_settings(dataset, optimizer, loss),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
        transformation = recipes.make_optimizer(
            optimizer, settings, num_examples=len(dataset.train.labels)
        )
        folder = _claim(output, Path("runs") / f"{name}-{loss}", overwrite)

    choices = {"loss": loss.value, "optimizer": optimizer.value, **asdict(settings), "seed": seed}
    console.print(_sentence(choices))
    values = recipes.make_loss(loss)
    begun = time.perf_counter()
    with _failing(FloatingPointError, status=1), _given_back(folder):
        with _reporter(console, settings.epochs) as report:
            result = training.fit(
                values,
                *dataset.train,
                optimizer=transformation,
                key=jax.random.key(seed),
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                validation=dataset.validation,
                callback=report,
            )
        seconds = time.perf_counter() - begun
        figures = _evaluate(result.params, dataset, values)
        runs.save(
            folder,
            runs.Model(result.params, _header(dataset, choices, data_dir)),
            metrics={**figures, "epochs": result.epochs, "seconds": round(seconds, 3)},
            history=result.history,
        )
    console.print(_table(figures))
    console.print(f"{seconds:.1f} s of training")
    typer.echo(folder if quiet else f"run: {folder}")  # the console would fold a long path


# Errors that a user can mend are one line and an exit status, not a traceback.


@contextmanager
def _failing(error: type[Exception], *, status: int) -> Iterator[None]:
    try:
        yield
    except error as failure:
        typer.echo(f"jaxsoftmax: {failure}", err=True)
        raise typer.Exit(status) from failure


@contextmanager
def _given_back(folder: Path) -> Iterator[None]:
    """Leave no empty folder behind when the run fails or is interrupted."""
    try:
        yield
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


# What goes into a fit.


def _load(name: str, data_dir: Path | None, console: Console) -> Dataset:
    with Progress(*_columns(), console=console, transient=True, disable=not _live(console)) as bar:
        task = bar.add_task(f"reading {name}", figures="")
        dataset = data.load(
            name,
            data_dir=data_dir,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    sizes = ", ".join(f"{len(getattr(dataset, split).labels):,} {split}" for split in _SPLITS)
    console.print(f"{name}: {dataset.source}", markup=False)
    width = dataset.train.features.shape[1]
    console.print(f"{sizes} examples of {width} features, {len(dataset.classes)} classes")
    return dataset


def _given(settings: Settings, **options: Any) -> Settings:
    return replace(settings, **{name: o for name, o in options.items() if o is not None})


def _claim(output: Path | None, otherwise: Path, overwrite: bool) -> Path:
    if output is not None:
        return runs.claim(output, overwrite=overwrite)
    if overwrite:
        raise ValueError("--overwrite needs --output: other runs have folders of their own")
    return runs.claim_next(otherwise)


# What comes out of it.


def _evaluate(params: LinearParams, dataset: Dataset, values: Loss) -> dict[str, dict[str, float]]:
    return {
        split: {
            name: float(mean)
            for name, mean in evaluate(params, *getattr(dataset, split), loss=values).items()
        }
        for split in _SPLITS
    }


def _header(dataset: Dataset, choices: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
    options = {**choices, "data_dir": data_dir}
    command = ["jaxsoftmax", "fit", dataset.name]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return {
        "jaxsoftmax": jaxsoftmax.__version__,
        "jax": jax.__version__,
        "data": {"name": dataset.name, "source": dataset.source},
        "classes": list(dataset.classes),
        "features": {"shape": list(dataset.shape), "divided_by": dataset.divisor},
        **choices,
        "command": shlex.join(command),
    }


# What is shown.


def _live(console: Console) -> bool:
    """Whether lines may be rewritten; rich alone would say so of a pipe under FORCE_COLOR."""
    return sys.stdout.isatty() and console.is_interactive


def _columns() -> tuple[ProgressColumn, ...]:
    bar, left = BarColumn(bar_width=24), TimeRemainingColumn(compact=True)
    return TextColumn("{task.description}"), bar, TextColumn("{task.fields[figures]}"), left


@contextmanager
def _reporter(console: Console, epochs: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a callback that shows an epoch, as a moving bar or as some ten plain lines."""
    live, every = _live(console), math.ceil(epochs / 10)
    with Progress(*_columns(), console=console, disable=not live) as bar:
        task = bar.add_task("epoch", total=epochs, figures="")

        def report(metrics: dict[str, Any]) -> None:
            epoch, figures = metrics["epoch"], _figures(metrics)
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(
                    f"the loss is {metrics['loss']} in epoch {epoch}: the fit diverged. "
                    "Try a lower --learning-rate."
                )
            bar.update(
                task, completed=epoch, figures=figures, description=f"epoch {epoch}/{epochs}"
            )
            if not live and (epoch % every == 0 or epoch in (1, epochs)):
                console.print(f"epoch {epoch}/{epochs}: {figures}")

        yield report


def _figures(metrics: dict[str, Any]) -> str:
    return (
        f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}; validation "
        f"{metrics['validation_loss']:.4f}, {metrics['validation_accuracy']:.2%}"
    )


def _sentence(choices: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in choices.items()
        if value is not None
    )


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table("", box=SIMPLE_HEAD if sys.stdout.isatty() else None)
    for heading in ("loss", "accuracy"):
        table.add_column(heading, justify="right")
    for split, means in figures.items():
        table.add_row(split, f"{means['loss']:.4f}", f"{means['accuracy']:.2%}")
    return table
