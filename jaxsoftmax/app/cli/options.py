"""The arguments and options of the command line: their types, and their texts in `--help`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxsoftmax.app.names import EMBEDDED, PREPARED, KeptEpoch, LossName, OptimizerName, Task

# Options in the panels of `fit --help`.
_data, _table, _fit, _run = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Data", "Tables", "Fit", "Run")
)

# The data.

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A file (.csv, .tsv, .txt, .csv.gz, .xlsx, .parquet, .npz, .npy), - for standard "
        f"input, or a name: {EMBEDDED}, {', '.join(PREPARED)}, or another in TensorFlow Datasets.",
    ),
]
DataOrResume = Annotated[str | None, *Data.__metadata__]
Label = Annotated[
    list[str] | None,
    _data(
        metavar="COLUMN",
        help="Column of the label, or array of a .npz file. May be repeated: the columns are then "
        "labels of 0 or 1, or numbers.",
        show_default="the only one",
    ),
]
Labels = Annotated[
    Path | None,
    _data(metavar="FILE", help="Second file, with the labels; tables are joined on --id."),
]
Identifier = Annotated[
    str | None,
    _data("--id", metavar="COLUMN", help="Column that identifies the rows and is not a feature."),
]
Drop = Annotated[
    list[str] | None, _data(metavar="COLUMN", help="Column to leave out. May be repeated.")
]
Features = Annotated[str | None, _data(metavar="NAME", help="Array of features in a .npz file.")]
TaskOption = Annotated[
    Task | None,
    _data(
        metavar="TASK",
        help="classes: one of several per example. labels: any of several. numbers: regression.",
        show_default="inferred from the labels",
    ),
]
Test = Annotated[
    Path | None, _data(metavar="FILE", help="File of test examples.", show_default="15% of DATA")
]
LogOnePlus = Annotated[
    bool, _data("--log1p", help="Take log(1 + x) of the features; suits counts and amounts.")
]
Standardize = Annotated[
    bool,
    _data(
        "--standardize",
        help="Scale each feature to mean 0 and standard deviation 1 on the training data; suits "
        "tables.",
    ),
]
DataDir = Annotated[
    Path | None,
    _data(
        metavar="FOLDER",
        help="Folder of data sets prepared by TensorFlow Datasets.",
        show_default="TFDS_DATA_DIR, or ~/tensorflow_datasets",
    ),
]
Download = Annotated[
    bool, _data("--download", help="Download and prepare a named data set if it is missing.")
]

SkipUnlabeled = Annotated[
    bool, _data("--skip-unlabeled", help="Leave out rows whose label is missing.")
]

# The columns of a table.

Category = Annotated[
    list[str] | None,
    _table(
        metavar="COLUMN",
        help="Column of numbers to take as categories, one feature for each. May be repeated.",
    ),
]
TextColumn = Annotated[
    list[str] | None,
    _table(
        "--text",
        metavar="COLUMN",
        help="Column of text whose words to hash to features. May be repeated.",
    ),
]
Keep = Annotated[
    list[str] | None,
    _table(
        metavar="COLUMN", help="Column of different integers to keep as a feature. May be repeated."
    ),
]
Missing = Annotated[
    list[str] | None,
    _table(
        metavar="TEXT",
        help="Text that stands for a missing value, as an empty cell, NA, NaN and ? among numbers "
        "do. May be repeated.",
    ),
]
NumericOnly = Annotated[
    bool, _table("--numeric-only", help="Refuse columns that are not numbers, and missing values.")
]

# The dialect of a file of text, for all commands.

Delimiter = Annotated[
    str | None,
    _table(
        metavar="CHARACTER",
        help="What separates the columns of a text file: one character, tab or space.",
        show_default="detected",
    ),
]
Decimal = Annotated[
    str | None,
    _table(
        metavar="MARK",
        help="The decimal mark of a text file, a point or a comma.",
        show_default="detected",
    ),
]
Encoding = Annotated[
    str | None,
    _table(
        metavar="NAME",
        help="The encoding of a text file, such as latin-1 or utf-16.",
        show_default="utf-8, or as the file states",
    ),
]
Header = Annotated[
    bool | None,
    _table(
        "--header/--no-header",
        help="Whether the first row of a text file has the names of the columns. Without names, "
        "they are numbered from 1.",
        show_default="detected",
    ),
]

# The fit.

Loss = Annotated[
    LossName | None,
    _fit(
        metavar="LOSS",
        help="softmax: cross-entropy. sigmoid: binary cross-entropy for two classes, each class or "
        "each label. hinge: large margin. squared_error: for numbers; with --task classes, between "
        "scores and one-hot labels.",
        show_default="softmax; sigmoid for two classes or labels; squared_error for numbers",
    ),
]
Optimizer = Annotated[
    OptimizerName | None,
    _fit(
        metavar="NAME",
        help=f"One of {', '.join(OptimizerName)}; lbfgs takes all examples as one batch.",
        show_default="adamw; lbfgs for numbers",
    ),
]
Epochs = Annotated[
    int | None,
    _fit(
        metavar="N",
        min=1,
        max=1_000_000,
        help="Passes over the training data.",
        show_default="by DATA",
    ),
]
BatchSize = Annotated[
    int | None,
    _fit(metavar="N", min=1, max=2**31 - 1, help="Examples per minibatch.", show_default="by DATA"),
]
LearningRate = Annotated[
    float | None,
    _fit(
        metavar="X",
        min=0,
        help="Initial learning rate; it falls to 0 along a cosine.",
        show_default="by DATA and optimizer",
    ),
]
WeightDecay = Annotated[
    float | None,
    _fit(
        metavar="X",
        min=0,
        help="Weight decay, which does not apply to the bias.",
        show_default="by DATA and optimizer",
    ),
]
Patience = Annotated[
    int | None,
    _fit(metavar="N", min=1, help="Stop if the validation loss has not fallen for N epochs."),
]
KeepEpoch = Annotated[
    KeptEpoch | None,
    _fit(
        metavar="EPOCH",
        help="The model to keep: best, of the epoch with the smallest validation loss, or last.",
        show_default="best",
    ),
]
Checkpoint = Annotated[
    float | None,
    _run(
        metavar="SECONDS",
        min=0,
        help="Save a checkpoint after an epoch when this time has passed since the previous one.",
        show_default="none",
    ),
]
Resume = Annotated[
    Path | None,
    _run(
        metavar="RUN",
        help="Continue a fit with --checkpoint that was killed, in place of DATA and options.",
    ),
]
Seed = Annotated[
    int, _fit(metavar="N", min=0, max=2**32 - 1, help="Seed of the order of minibatches.")
]

# The probe.

ProbeLoss = Annotated[
    LossName | None,
    _fit(
        metavar="LOSS",
        help="softmax or sigmoid.",
        show_default="softmax; sigmoid for two classes or labels",
    ),
]
Strongest = Annotated[float, _fit(metavar="C", help="Smallest C, the strongest penalty.")]
Weakest = Annotated[float, _fit(metavar="C", help="Largest C, the weakest penalty.")]
Points = Annotated[
    int, _fit(metavar="N", min=1, max=1_000, help="Number of values of C, in equal ratios.")
]
Folds = Annotated[int, _fit(metavar="N", min=2, help="Number of folds of the training examples.")]
Gap = Annotated[
    float,
    _fit(
        metavar="X",
        help="Largest proven distance of the saved model from the optimum, relative to the "
        "objective.",
    ),
]

# The output of a fit.

RunOutput = Annotated[
    Path | None,
    _run(
        metavar="FOLDER",
        help="Folder of the run, which must be new or empty.",
        show_default="runs/DATA-LOSS, numbered",
    ),
]
OverwriteRun = Annotated[
    bool, _run("--overwrite", help="Replace the run in the folder of --output.")
]
NoReport = Annotated[
    bool, _run("--no-report", help="Skip report.html, which takes some seconds to write.")
]
QuietRun = Annotated[bool, _run("--quiet", "-q", help="Print only the folder of the run.")]

# The options of predict and evaluate.

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Split = Annotated[
    str,
    typer.Option(
        metavar="SPLIT",
        help="train, validation or test, for a named data set; all of a file is used.",
    ),
]
MoreLabels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="Second file, with the labels; tables are joined on their ids.",
    ),
]
MoreDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Folder of data sets prepared by TensorFlow Datasets.",
        show_default="TFDS_DATA_DIR, or ~/tensorflow_datasets",
    ),
]
TableOutput = Annotated[
    Path, typer.Option(metavar="FILE", help="Table to write: .csv or .parquet.")
]
KeepFormulas = Annotated[
    bool,
    typer.Option(
        "--keep-formulas",
        help="Write text that a spreadsheet would take for a formula as it is; by default a CSV "
        "has an apostrophe before it.",
    ),
]
MetricsOutput = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File to write the metrics to as well: .json.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the name of the written file.")
]

# The option of cache.

ClearCache = Annotated[bool, typer.Option("--clear", help="Remove all that the cache holds.")]

# The options of compare.

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs of one task.")]
PageOutput = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Page to write as well: .html.")
]

# For scripts, of all commands.

Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Write one JSON object to standard output, and messages to standard error."
    ),
]
