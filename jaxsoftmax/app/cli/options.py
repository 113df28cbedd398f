"""The arguments and options of the command line: their types, and what `--help` says of them."""

from pathlib import Path
from typing import Annotated

import typer

from jaxsoftmax.app import data
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.defaults import LossName, OptimizerName

DATA, FIT, RUN = "Data", "Fit", "Run"  # the panels of `fit --help`

# What the data are.

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A file (.csv, .tsv, .parquet, .npz, .npy), or a name: "
        f"{', '.join(data.names())}, or another of TensorFlow Datasets.",
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of labels, or array of a .npz. Several make labels, 0 or 1 each, or numbers.",
        show_default="the only one",
        rich_help_panel=DATA,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Second file, which has the labels; --id joins tables.",
        rich_help_panel=DATA,
    ),
]
Identifier = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="COLUMN",
        help="Column that names the rows, and is no feature.",
        rich_help_panel=DATA,
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Column to leave out. Repeatable.", rich_help_panel=DATA),
]
Features = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Array of features of a .npz.", rich_help_panel=DATA),
]
TaskOption = Annotated[
    Task | None,
    typer.Option(
        metavar="TASK",
        help="classes: one of several. labels: each or not. numbers: to come close to.",
        show_default="by the labels",
        rich_help_panel=DATA,
    ),
]
Test = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Test examples.",
        show_default="15 % of DATA",
        rich_help_panel=DATA,
    ),
]
LogOnePlus = Annotated[
    bool,
    typer.Option(
        "--log1p",
        help="Take log(1 + x) of the features: for counts and amounts.",
        rich_help_panel=DATA,
    ),
]
Standardize = Annotated[
    bool,
    typer.Option(
        "--standardize",
        help="Give each feature mean 0 and deviation 1 on the training data: for tables.",
        rich_help_panel=DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where TensorFlow Datasets has prepared data sets.",
        show_default="TFDS_DATA_DIR, or ~/tensorflow_datasets",
        rich_help_panel=DATA,
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Fetch and prepare a named data set that is not there.",
        rich_help_panel=DATA,
    ),
]

# How to fit.

Loss = Annotated[
    LossName | None,
    typer.Option(
        metavar="LOSS",
        help="softmax: cross-entropy. sigmoid: binary cross-entropy, of two classes, of each class "
        "or of each label. hinge: large margin. squared_error: of numbers; with --task classes "
        "of scores and one-hot labels.",
        show_default="softmax; sigmoid for two classes and for labels; squared_error for numbers",
        rich_help_panel=FIT,
    ),
]
Optimizer = Annotated[
    OptimizerName | None,
    typer.Option(
        metavar="NAME",
        help=f"{', '.join(OptimizerName)}, which takes all examples as one batch.",
        show_default="adamw; lbfgs for numbers",
        rich_help_panel=FIT,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
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
        help="Examples in a minibatch.",
        show_default="by DATA",
        rich_help_panel=FIT,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="The first; it falls to 0 along a cosine.",
        show_default="by DATA and optimizer",
        rich_help_panel=FIT,
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="Of the weights, not the bias.",
        show_default="by DATA and optimizer",
        rich_help_panel=FIT,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Stop when the validation loss has not fallen for N epochs, and keep the best.",
        rich_help_panel=FIT,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=2**32 - 1,
        help="Of the first weights and the order of minibatches.",
        rich_help_panel=FIT,
    ),
]

# How a probe goes.

ProbeLoss = Annotated[
    LossName | None,
    typer.Option(
        metavar="LOSS",
        help="softmax or sigmoid.",
        show_default="softmax; sigmoid of two classes, and of labels",
        rich_help_panel=FIT,
    ),
]
Strongest = Annotated[
    float,
    typer.Option(metavar="C", help="The least C, the strongest penalty.", rich_help_panel=FIT),
]
Weakest = Annotated[
    float,
    typer.Option(metavar="C", help="The greatest C, the weakest penalty.", rich_help_panel=FIT),
]
Points = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Values of C, in equal ratios.", rich_help_panel=FIT),
]
Folds = Annotated[
    int,
    typer.Option(metavar="N", min=2, help="Of the training examples.", rich_help_panel=FIT),
]
Gap = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Proven distance from the optimum of the model that is kept, relative to the "
        "objective.",
        rich_help_panel=FIT,
    ),
]

# What comes out of a fit.

RunOutput = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="For the run; one that holds something is refused.",
        show_default="runs/DATA-LOSS, numbered",
        rich_help_panel=RUN,
    ),
]
OverwriteRun = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the run that --output holds.", rich_help_panel=RUN),
]
NoReport = Annotated[
    bool,
    typer.Option(
        "--no-report", help="Write no report.html, which takes seconds.", rich_help_panel=RUN
    ),
]
QuietRun = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print nothing but the folder of the run.", rich_help_panel=RUN
    ),
]

# Of predict and evaluate.

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Split = Annotated[
    str,
    typer.Option(
        metavar="SPLIT", help="train, validation or test of a name; a file is taken whole."
    ),
]
MoreLabels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", help="Second file, which has the labels; the ids join tables."
    ),
]
MoreDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where TensorFlow Datasets has prepared data sets.",
        show_default="TFDS_DATA_DIR, or ~/tensorflow_datasets",
    ),
]
TableOutput = Annotated[Path, typer.Option(metavar="FILE", help="To write: .csv or .parquet.")]
FiguresOutput = Annotated[
    Path | None, typer.Option(metavar="FILE", help="To write the figures to as well: .json.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but what was written.")]
