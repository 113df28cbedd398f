"""Checkpoints of a fit in the folder of its run, from which `fit --resume` continues it."""

import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsoftmax.app import atomic_files
from jaxsoftmax.app.data.dataset import Dataset
from jaxsoftmax.app.names import KeptEpoch, LossName, OptimizerName, Task

FOLDER = "checkpoint"
"""The name of the folder with the checkpoints; the library writes them to `steps` in it."""

_TYPES = {
    "labels": Path,
    "test": Path,
    "data_dir": Path,
    "task": Task,
    "loss": LossName,
    "optimizer": OptimizerName,
    "keep_epoch": KeptEpoch,
}
_OF_EACH_COMMAND = ("resume", "no_report", "quiet", "as_json")
_NOT_SAVED = (*_OF_EACH_COMMAND, "output", "overwrite")


def require_orbax() -> None:
    """Raise a ModuleNotFoundError if Orbax, which writes checkpoints, is not installed."""
    if importlib.util.find_spec("orbax") is None:
        raise ModuleNotFoundError("--checkpoint needs Orbax: pip install 'jaxsoftmax[scale]'")


def start(run: Path, given: Mapping[str, Any], dataset: Dataset) -> Path:
    """Record the options and the data of a fit, or check those of a fit that is resumed.

    Args:
        run: the folder of the run.
        given: the options of `fit`.
        dataset: the data, after preprocessing.

    Returns:
        The folder for the library's checkpoints.

    Raises:
        ValueError: if the fit is resumed, and the data are not those that it began with.
    """
    # Orbax warns of a checkpoint that was not complete when the process was killed.
    logging.getLogger("absl").setLevel(logging.ERROR)
    folder, digest = run / FOLDER, _digest(dataset)
    if given["resume"] is None:
        options = {name: value for name, value in given.items() if name not in _NOT_SAVED}
        content = json.dumps({"options": options, "data": digest}, default=str)
        folder.mkdir()
        atomic_files.write(folder / "fit.json", lambda partial: partial.write_text(content))
    elif _read(run)["data"] != digest:
        raise ValueError(f"the data of {run} have changed since it began; start a new run")
    return folder / "steps"


def restore_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a fit began with, for `fit --resume`.

    Args:
        given: the options of the command; `resume` is the folder of the run.

    Raises:
        FileNotFoundError: if the run has no checkpoint.
        ValueError: if there is an option that a resumed fit cannot have.
    """
    for name, value in given.items():
        if name not in _OF_EACH_COMMAND and value not in (None, False, 0):
            flag = "DATA" if name == "name" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} cannot be given with --resume: a run keeps its options")
    saved = _read(given["resume"])["options"]
    typed = {
        name: _TYPES[name](value) if name in _TYPES and value is not None else value
        for name, value in saved.items()
        if name not in _NOT_SAVED
    }
    return {**given, **typed, "output": given["resume"], "overwrite": True}


def save_seconds(run: Path, seconds: float) -> None:
    """Save the time that a fit has taken, so that it counts when the fit is resumed.

    Args:
        run: the folder of the run.
        seconds: the time, with that of earlier parts.
    """
    path = run / FOLDER / "seconds"
    atomic_files.write(path, lambda partial: partial.write_text(repr(seconds)))


def read_seconds(run: Path) -> float:
    """Return the time of the earlier parts of a fit, 0 if there are none.

    Args:
        run: the folder of the run.
    """
    try:
        return float((run / FOLDER / "seconds").read_text())
    except (FileNotFoundError, ValueError):
        return 0.0


def remove(run: Path) -> None:
    """Remove the checkpoints of a run that is complete or replaced.

    Args:
        run: the folder of the run.
    """
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _read(run: Path) -> dict[str, Any]:
    path = run / FOLDER / "fit.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{run} has no checkpoint: its fit is complete, or had no --checkpoint"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _digest(dataset: Dataset) -> str:
    """Return a hash of all that the fit takes from the data."""
    digest = hashlib.blake2b(digest_size=16)
    for split in (dataset.train, dataset.validation):
        for array in split[:2]:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
