"""The command `predict`: write a table of predictions."""

from pathlib import Path
from typing import Any

from jaxsoftmax.app import atomic_files, predictions, run_folder
from jaxsoftmax.app.cli import console, inputs
from jaxsoftmax.app.cli import output as results
from jaxsoftmax.app.names import Task


def run(
    *, run: Path, name: str, output: Path, keep_formulas: bool, overwrite: bool, quiet: bool,
    **reading: Any,
) -> None:  # fmt: skip
    """Run the command with its options, which `app` declares."""
    screen = console.make_console(quiet=quiet)
    atomic_files.check_output(output, suffixes=predictions.SUFFIXES, overwrite=overwrite)
    model = run_folder.load(run)
    loss = inputs.read_loss(run, model)
    examples, scores = inputs.read(screen, name, model, targets=False, **reading)
    table = predictions.make_table(
        scores, examples.ids, model.schema, loss=loss, identifier=examples.identifier
    )
    predictions.write(output, table, keep_formulas=keep_formulas)
    if model.schema.task is not Task.numbers and table.num_columns < 3:
        screen.print(f"no probabilities: a model fitted with {loss} does not give any")
    line = str(output) if quiet else f"{table.num_rows:,} predictions: {output}"
    results.write(line, predictions=output, examples=table.num_rows)
