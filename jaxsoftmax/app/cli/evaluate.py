"""The command `evaluate`: compute the metrics of a model on more data."""

from pathlib import Path
from typing import Any

from jaxsoftmax.app import atomic_files, data, evaluation, run_folder
from jaxsoftmax.app.cli import console, inputs, tables
from jaxsoftmax.app.cli import output as results


def run(
    *, run: Path, name: str, labels: Path | None, output: Path | None, overwrite: bool,
    quiet: bool, **reading: Any,
) -> None:  # fmt: skip
    """Run the command with its options, which `app` declares."""
    screen = console.make_console(quiet=quiet)
    if output is not None:
        atomic_files.check_output(output, suffixes=[".json"], overwrite=overwrite)
    model = run_folder.load(run)
    loss = inputs.read_loss(run, model)
    if labels is not None and not data.is_file(name):
        raise ValueError(f"--labels is for files; {name} is the name of a data set")
    examples, scores = inputs.read(screen, name, model, targets=True, labels=labels, **reading)
    metrics = evaluation.compute_metrics(
        scores, examples.targets, model.schema, loss=loss, intervals=True
    )
    for table in tables.make_metrics_tables(metrics):
        screen.print(table)
    results.add(run=run, data=name, metrics=metrics)
    if output is not None:
        content = run_folder.encode_json({"run": str(run), "data": name} | metrics)
        atomic_files.write(output, lambda partial: partial.write_bytes(content))
        results.write(str(output) if quiet else f"metrics: {output}", output=output)
