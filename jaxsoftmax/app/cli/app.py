"""The commands of `jaxsoftmax`: `fit` and `probe` save a run, `predict` and `evaluate` use it.

They are declared here and implemented in a module each, which is imported when the command runs:
JAX takes a second to import, and help and errors of usage do not need it.
"""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import jaxsoftmax
from jaxsoftmax.app import user_cache
from jaxsoftmax.app.cli import errors, interrupts, options, output, paths
from jaxsoftmax.app.cli.usage import Group

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _implemented_in(module: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: the declared command calls `run` of a module with all its options."""

    def decorate(declaration: Callable[..., None]) -> Callable[..., None]:
        @wraps(declaration)
        def command(**given: Any) -> None:
            with errors.exit_on_error(), output.collecting(given.pop("as_json")):
                paths.check(given)
                user_cache.keep_programs()
                run = import_module(f"{__package__}.{module}").run
                with interrupts.raise_exceptions():
                    run(**given)

        return command

    return decorate


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"jaxsoftmax {jaxsoftmax.__version__}")
        raise typer.Exit


@app.callback()
def _jaxsoftmax(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Softmax, logistic and linear regression in JAX.

    Compiled programs and decoded images are kept in a cache (see
    jaxsoftmax cache). The exit status is 2 if the command or the data are
    wrong, 1 if something else fails, and 130 after Ctrl-C. With --json a
    command writes one JSON object to standard output, and its messages to
    standard error.
    """


@app.command(no_args_is_help=True)
@_implemented_in("fit")
def fit(
    name: options.DataOrResume = None,
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
    keep_epoch: options.KeepEpoch = None,
    seed: options.Seed = 0,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    output: options.RunOutput = None,
    overwrite: options.OverwriteRun = False,
    checkpoint: options.Checkpoint = None,
    resume: options.Resume = None,
    no_report: options.NoReport = False,
    quiet: options.QuietRun = False,
    as_json: options.Json = False,
) -> None:
    """Fit a linear model to DATA and save the run.

    The folder of the run holds the model (model.safetensors and
    model.json), metrics.json, history.csv and report.html. 15% of the
    rows of a file are used for validation and 15% for the test, the same
    rows each time. The same command with the same seed gives the same
    model, that of the epoch with the smallest validation loss. Ctrl-C ends
    the fit after the current epoch and saves the best model so far; a fit
    with --checkpoint that was killed continues with --resume.
    """


@app.command(no_args_is_help=True)
@_implemented_in("probe")
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
    as_json: options.Json = False,
) -> None:
    """Probe the features of DATA: choose the penalty by cross-validation, and fit the optimum.

    For each value of C, a model is fitted without each fold of the
    training examples and scored on that fold. The C with the lowest
    held-out loss is then fitted to all training examples. Each fit stops
    at a proven distance from its optimum. The run is saved as by fit; its
    report shows the curve of held-out losses.
    """


@app.command(no_args_is_help=True)
@_implemented_in("predict")
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
    as_json: options.Json = False,
) -> None:
    """Write the predictions of the model of RUN for DATA: a table with probabilities.

    The first column is the one that fit was given as --id, or row, which
    counts from 1. For classes, the next columns are label, and p_CLASS for
    each class. For labels, they are each LABEL, 0 or 1, and p_LABEL for
    each. For numbers, there is one column under the name of each. Columns
    of DATA are matched by name; a label column is ignored.
    """


@app.command(no_args_is_help=True)
@_implemented_in("evaluate")
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
    as_json: options.Json = False,
) -> None:
    """Evaluate the model of RUN on DATA, which must have labels.

    The intervals are computed from 1,000 bootstrap resamples of the
    examples.
    """


@app.command(no_args_is_help=True)
@_implemented_in("compare")
def compare(
    runs: options.Runs,
    output: options.PageOutput = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare runs side by side: test metrics, settings that differ and, with --output, a page.

    A star marks the best value of each metric. The page has intervals
    and learning curves too.
    """


@app.command()
def cache(clear: options.ClearCache = False, as_json: options.Json = False) -> None:
    """Show the cache of compiled programs and decoded images, or clear it.

    JAXSOFTMAX_CACHE_DIR names another folder for it, or switches it off if
    it is "off". At most 2 GB are kept.
    """
    with errors.exit_on_error(), output.collecting(as_json):
        folder = user_cache.folder()
        if folder is None:
            output.write(f"there is no cache: {user_cache.VARIABLE} is off", folder=None)
            return
        num_bytes = user_cache.size(folder)
        size = f"{num_bytes / 1e6:,.1f} MB"
        if clear:
            user_cache.clear(folder)
        line = f"{'cleared ' if clear else ''}{size}: {folder}"
        output.write(line, folder=folder, bytes=num_bytes, cleared=clear)
