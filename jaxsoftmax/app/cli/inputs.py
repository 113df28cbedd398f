"""The data of `predict` and `evaluate`: examples for a fitted model, read without JAX."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxsoftmax.app import data, evaluation, run_folder
from jaxsoftmax.app.cli import errors, progress_bars
from jaxsoftmax.app.data.dataset import Schema, Split
from jaxsoftmax.app.data.dialects import Dialect
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.app.names import TASK_LOSSES, LossName
from jaxsoftmax.app.text import replace_unprintable

DIALECT_OPTIONS = ("delimiter", "decimal", "encoding", "header")
"""The options of all commands that are fields of `Dialect`, in their order."""


def read(
    screen: Console, name: str, model: run_folder.Model, *, targets: bool, **given: Any
) -> tuple[Split, np.ndarray]:
    """Read examples for a fitted model, and compute their scores.

    Args:
        screen: the console.
        name: a file, or the name of a data set.
        model: the model.
        targets: whether to read the targets too.
        given: the other options of `predict` and `evaluate` that concern the data.

    Returns:
        The examples and their scores.

    Raises:
        ValueError: if the data do not fit the model.
        OSError: if the data cannot be read.
    """
    dialect = Dialect(*(given.pop(option) for option in DIALECT_OPTIONS))
    with progress_bars.reading_progress(screen, name) as progress:
        split = data.read(
            name,
            model.schema,
            targets=targets,
            dialect=dialect,
            use_cache=True,
            progress=progress,
            **given,
        )
    for note in split.notes:
        screen.print(replace_unprintable(note))
    check_features(split, name, model.preprocessing, model.schema)
    scores = evaluation.compute_scores(
        model.params, split.features, preprocessing=model.preprocessing
    )
    return split, scores


def read_loss(run: Path, model: run_folder.Model) -> LossName:
    """Return the loss that a header names, after a check: anyone may have edited the file.

    Args:
        run: the folder of the run.
        model: the model that was read from it.

    Raises:
        ValueError: if the header has no loss that suits the task.
    """
    loss, expected = model.header.get("loss"), TASK_LOSSES[model.schema.task]
    if loss not in expected:
        raise ValueError(
            f"{run / run_folder.HEADER}: loss must be {' or '.join(expected)}, got {loss!r}"
        )
    return LossName(loss)


def check_features(split: Split, name: str, preprocessing: Preprocessing, schema: Schema) -> None:
    """Check that features can be preprocessed, while the whole split is there to name a bad row.

    Args:
        split: the examples, with features as stored.
        name: the name of the data.
        preprocessing: the preprocessing of the model.
        schema: the schema of the model.

    Raises:
        ValueError: if a feature cannot be preprocessed.
    """
    with errors.naming(name):
        preprocessing.check(split.features, columns=schema.columns, ids=split.ids)
