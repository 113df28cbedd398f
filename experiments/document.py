"""Shared parts of the documents: command line, data, choice of a rate, and what they write.

A document computes a record, which is written to results/NAME.json, and draws a figure from it,
results/NAME.png, in the style of figures.py. A smoke run does both on little data and writes
neither.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import jax
import matplotlib.style
import measure
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxsoftmax import LinearParams, training
from jaxsoftmax.app import data
from jaxsoftmax.app.data.dataset import Dataset

SHARED = Path(__file__).parent.parent.parent / "shared"
PREPARED = SHARED / "tfds"


def arguments(
    docstring: str, *, torch: bool = False, files: str | None = None
) -> argparse.Namespace:
    """Read the command line: --smoke, --data-dir and, if asked for, --torch-python and --files.

    files: the name of the default folder for --files.
    """
    parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use little data and write nothing")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=PREPARED if PREPARED.exists() else None,
        help="prepared TensorFlow Datasets (default: ../shared/tfds beside the repository)",
    )
    if torch:
        here = sys.executable if importlib.util.find_spec("torch") else None
        parser.add_argument("--torch-python", default=here, help="an interpreter with PyTorch")
    if files:
        parser.add_argument(
            "--files",
            type=Path,
            default=SHARED / "data" / files,
            help=f"the folder of the files (default: ../shared/data/{files} beside the repository)",
        )
    return parser.parse_args()


def images(name: str, options: argparse.Namespace) -> Dataset:
    """Load images by name; in a smoke run the digits of the package."""
    return data.load("digits" if options.smoke else name, data_dir=options.data_dir)


def tuned(
    loss: training.Loss,
    dataset: Dataset,
    *,
    rates: np.ndarray,
    epochs: int,
    batch_size: int = 256,
    params: LinearParams | None = None,
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Fit by SGD at every rate and keep the fit with the best final validation accuracy.

    All start from `params`, or from zeros, and see the same minibatches.

    Returns:
        `{"params", "rate", "history", "validation_accuracy": of each rate}`.
    """
    if params is None:
        zeros = np.zeros((dataset.schema.num_features, len(dataset.schema.classes)), np.float32)
        params = LinearParams(zeros, zeros[0])
    result = training.sweep(
        loss,
        dataset.train.features,
        dataset.train.targets,
        make_optimizer=optax.sgd,
        hyperparams=np.asarray(rates, np.float32),
        keys=jax.random.split(jax.random.key(0), len(rates)),
        epochs=epochs,
        batch_size=batch_size,
        params=jax.tree.map(lambda leaf: np.stack([leaf] * len(rates)), params),
        weights=weights,
        validation=(dataset.validation.features, dataset.validation.targets),
    )
    reached = result.history["validation_accuracy"][:, -1]
    best = int(reached.argmax())
    return {
        "params": jax.tree.map(lambda leaf: leaf[best], result.params),
        "rate": float(rates[best]),
        "history": {name: values[best] for name, values in result.history.items()},
        "validation_accuracy": reached.tolist(),
    }


def publish(
    name: str, record: dict[str, Any], draw: Callable[[dict[str, Any]], Figure], *, smoke: bool
) -> None:
    """Draw the figure from the record, and write both unless it is a smoke run."""
    figure = drawn(draw, json.loads(json.dumps(record, sort_keys=True)))  # as it will be read again
    if smoke:
        print("smoke run: nothing is written")
        return
    path = measure.write_record(name, record)
    figures.save(figure, path.with_suffix(".png"))
    print(f"written: {path.name} and {path.with_suffix('.png').name}")


def recorded(name: str) -> dict[str, Any]:
    """Return a document's record, without where it was taken."""
    record = json.loads((measure.RESULTS / f"{name}.json").read_text())
    return {key: value for key, value in record.items() if key != "environment"}


def drawn(draw: Callable[..., Figure], *arguments: Any) -> Figure:
    """Return a figure in the documents' style."""
    with matplotlib.style.context(figures.STYLE):
        return draw(*arguments)


def show(rows: dict[str, dict[str, float]], form: str = "10.4g") -> None:
    """Print a table of numbers: a line for each row, a column for each key."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows)) + 2
    widths = [max(len(column) + 2, 10) for column in columns]
    print(" " * width + "".join(c.rjust(w) for c, w in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        cells = (format(row[c], form).rjust(w) for c, w in zip(columns, widths, strict=True))
        print(name.ljust(width) + "".join(cells))


def rounded(values: Any, digits: int = 6) -> Any:
    """Return values short enough for a record: significant digits, and lists for arrays."""
    if isinstance(values, dict):
        return {key: rounded(value, digits) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [rounded(value, digits) for value in values]
    if hasattr(values, "tolist"):
        return rounded(np.asarray(values).tolist(), digits)
    return float(f"{values:.{digits}g}") if isinstance(values, float) else values
