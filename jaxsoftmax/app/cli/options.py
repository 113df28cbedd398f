"""The arguments and options of the command line: their types, and their texts in `--help`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxsoftmax.app.names import EMBEDDED, PREPARED, KeptEpoch, LossName, OptimizerName, Task

DATA, TABLE, FIT, RUN = "Data", "Tables", "Fit", "Run"  # the panels of `fit --help`

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
    typer.Option(
        metavar="COLUMN",
        help="Column of the label, or array of a .npz file. May be repeated: the columns are then "
        "labels of 0 or 1, or numbers.",
        show_default="the only one",
        rich_help_panel=DATA,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Second file, with the labels; tables are joined on --id.",
        rich_help_panel=DATA,
    ),
]
Identifier = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="COLUMN",
        help="Column that identifies the rows and is not a feature.",
        rich_help_panel=DATA,
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN", help="Column to leave out. May be repeated.", rich_help_panel=DATA
    ),
]
Features = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Array of features in a .npz file.", rich_help_panel=DATA),
]
TaskOption = Annotated[
    Task | None,
    typer.Option(
        metavar="TASK",
        help="classes: one of several per example. labels: any of several. numbers: regression.",
        show_default="inferred from the labels",
        rich_help_panel=DATA,
    ),
]
Test = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File of test examples.",
        show_default="15% of DATA",
        rich_help_panel=DATA,
    ),
]
LogOnePlus = Annotated[
    bool,
    typer.Option(
        "--log1p",
        help="Take log(1 + x) of the features; suits counts and amounts.",
        rich_help_panel=DATA,
    ),
]
Standardize = Annotated[
    bool,
    typer.Option(
        "--standardize",
        help="Scale each feature to mean 0 and standard deviation 1 on the training data; suits "
        "tables.",
        rich_help_panel=DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of data sets prepared by TensorFlow Datasets.",
        show_default="TFDS_DATA_DIR, or ~/tensorflow_datasets",
        rich_help_panel=DATA,
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Download and prepare a named data set if it is missing.",
        rich_help_panel=DATA,
    ),
]

SkipUnlabeled = Annotated[
    bool,
    typer.Option(
        "--skip-unlabeled", help="Leave out rows whose label is missing.", rich_help_panel=DATA
    ),
]

# The columns of a table.

Category = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of numbers to take as categories, one feature for each. May be repeated.",
        rich_help_panel=TABLE,
    ),
]
TextColumn = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="COLUMN",
        help="Column of text whose words to hash to features. May be repeated.",
        rich_help_panel=TABLE,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of different integers to keep as a feature. May be repeated.",
        rich_help_panel=TABLE,
    ),
]
Missing = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Text that stands for a missing value, as an empty cell, NA, NaN and ? among numbers "
        "do. May be repeated.",
        rich_help_panel=TABLE,
    ),
]
NumericOnly = Annotated[
    bool,
    typer.Option(
        "--numeric-only",
        help="Refuse columns that are not numbers, and missing values.",
        rich_help_panel=TABLE,
    ),
]

# The dialect of a file of text, for all commands.

Delimiter = Annotated[
    str | None,
    typer.Option(
        metavar="CHARACTER",
        help="What separates the columns of a text file: one character, tab or space.",
        show_default="detected",
        rich_help_panel=TABLE,
    ),
]
Decimal = Annotated[
    str | None,
    typer.Option(
        metavar="MARK",
        help="The decimal mark of a text file, a point or a comma.",
        show_default="detected",
        rich_help_panel=TABLE,
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The encoding of a text file, such as latin-1 or utf-16.",
        show_default="utf-8, or as the file states",
        rich_help_panel=TABLE,
    ),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether the first row of a text file has the names of the columns. Without names, "
        "they are numbered from 1.",
        show_default="detected",
        rich_help_panel=TABLE,
    ),
]

# The fit.

Loss = Annotated[
    LossName | None,
    typer.Option(
        metavar="LOSS",
        help="softmax: cross-entropy. sigmoid: binary cross-entropy for two classes, each class or "
        "each label. hinge: large margin. squared_error: for numbers; with --task classes, between "
        "scores and one-hot labels.",
        show_default="softmax; sigmoid for two classes or labels; squared_error for numbers",
        rich_help_panel=FIT,
    ),
]
Optimizer = Annotated[
    OptimizerName | None,
    typer.Option(
        metavar="NAME",
        help=f"One of {', '.join(OptimizerName)}; lbfgs takes all examples as one batch.",
        show_default="adamw; lbfgs for numbers",
        rich_help_panel=FIT,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=1_000_000,
        help="Passes over the training data.",
        show_default="by DATA",
        rich_help_panel=FIT,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=2**31 - 1,
        help="Examples per minibatch.",
        show_default="by DATA",
        rich_help_panel=FIT,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="Initial learning rate; it falls to 0 along a cosine.",
        show_default="by DATA and optimizer",
        rich_help_panel=FIT,
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="Weight decay, which does not apply to the bias.",
        show_default="by DATA and optimizer",
        rich_help_panel=FIT,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Stop if the validation loss has not fallen for N epochs.",
        rich_help_panel=FIT,
    ),
]
KeepEpoch = Annotated[
    KeptEpoch | None,
    typer.Option(
        metavar="EPOCH",
        help="The model to keep: best, of the epoch with the smallest validation loss, or last.",
        show_default="best",
        rich_help_panel=FIT,
    ),
]
Checkpoint = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="Save a checkpoint after an epoch when this time has passed since the previous one.",
        show_default="none",
        rich_help_panel=RUN,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Continue a fit with --checkpoint that was killed, in place of DATA and options.",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=2**32 - 1,
        help="Seed of the order of minibatches.",
        rich_help_panel=FIT,
    ),
]

# The probe.

ProbeLoss = Annotated[
    LossName | None,
    typer.Option(
        metavar="LOSS",
        help="softmax or sigmoid.",
        show_default="softmax; sigmoid for two classes or labels",
        rich_help_panel=FIT,
    ),
]
Strongest = Annotated[
    float,
    typer.Option(metavar="C", help="Smallest C, the strongest penalty.", rich_help_panel=FIT),
]
Weakest = Annotated[
    float,
    typer.Option(metavar="C", help="Largest C, the weakest penalty.", rich_help_panel=FIT),
]
Points = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        max=1_000,
        help="Number of values of C, in equal ratios.",
        rich_help_panel=FIT,
    ),
]
Folds = Annotated[
    int,
    typer.Option(
        metavar="N", min=2, help="Number of folds of the training examples.", rich_help_panel=FIT
    ),
]
Gap = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Largest proven distance of the saved model from the optimum, relative to the "
        "objective.",
        rich_help_panel=FIT,
    ),
]

# The output of a fit.

RunOutput = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the run, which must be new or empty.",
        show_default="runs/DATA-LOSS, numbered",
        rich_help_panel=RUN,
    ),
]
OverwriteRun = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace the run in the folder of --output.", rich_help_panel=RUN
    ),
]
NoReport = Annotated[
    bool,
    typer.Option(
        "--no-report",
        help="Skip report.html, which takes some seconds to write.",
        rich_help_panel=RUN,
    ),
]
QuietRun = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only the folder of the run.", rich_help_panel=RUN),
]

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

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs of one task.")]
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
