"""The folder of a run: the fitted model with its header, its metrics and its history.

The header, `model.json`, lists the run's other files with the SHA-256 of each. It is replaced in
one step, after those files are complete and on the disk under names with a generation number
(`model.2.safetensors`). Only then do they take their own names, those of the previous run. If the
process dies or the disk is full, the folder therefore holds either the previous run or the new one:
a file that has not taken its name yet is found by its number.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as to_safetensors

from jaxsoftmax.app import atomic_files
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.app.file_formats import RUN_FILES
from jaxsoftmax.app.parameters import HostParams
from jaxsoftmax.app.run_header import (
    HEADER,
    encode_json,
    find_file,
    is_numbered_name,
    listed_files,
    numbered_name,
    read_header,
)
from jaxsoftmax.app.run_model import Model, check_arrays, describe_model, parse_schema, to_arrays

__all__ = [
    "HEADER",
    "HISTORY",
    "METRICS",
    "MODEL",
    "REPORT",
    "Model",
    "add",
    "encode_json",
    "load",
    "make_folder",
    "make_numbered_folder",
    "read",
    "read_header",
    "save",
]

_, MODEL, METRICS, HISTORY, REPORT = RUN_FILES
_NAMES = (MODEL, METRICS, HISTORY, REPORT)


def make_folder(folder: Path, *, overwrite: bool = False) -> Path:
    """Make a folder for a run, and refuse one that is not empty.

    Args:
        folder: the folder to make, with its parents. It may exist if it is empty.
        overwrite: whether the folder may hold files. `save` then replaces the run in it and leaves
            other files alone; none of them may have the name of a file of a run.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder is not empty and overwrite is False, if it is a file, if its
            model.json is not the header of a run, or if it holds other files with such names.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> with tempfile.TemporaryDirectory() as base:
        ...     run_folder.make_folder(pathlib.Path(base) / "first").name
        'first'
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite and any(folder.iterdir()):
        raise FileExistsError(f"--output {folder} is not empty; choose another, or add --overwrite")
    _find_replaced_files(folder, _NAMES)
    return folder


def make_numbered_folder(folder: Path) -> Path:
    """Make the first of `folder`, `folder-2`, `folder-3`, ... that does not exist.

    Args:
        folder: the first name to try.

    Returns:
        The folder, which did not exist before, even if several runs start at the same time.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> with tempfile.TemporaryDirectory() as base:
        ...     first = pathlib.Path(base) / "digits"
        ...     [run_folder.make_numbered_folder(first).name for _ in range(3)]
        ['digits', 'digits-2', 'digits-3']
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")


def save(
    folder: Path,
    model: Model,
    *,
    metrics: Mapping[str, Any],
    history: Mapping[str, np.ndarray],
) -> None:
    """Write model.safetensors, metrics.json, history.csv and, last of all, model.json.

    A run that is already in the folder is replaced, and none of its files stays.

    Args:
        folder: a folder from `make_folder` or `make_numbered_folder`.
        model: float parameters `w: [D, K]`, `bias: [K]` or None, and a header of JSON types, to
            which format, version, schema, preprocessing and files are added.
        metrics: the final metrics, in JSON types.
        history: one number per epoch under each name.

    Raises:
        ValueError: if the metrics contain NaN or infinity, which JSON cannot represent.
        FileExistsError: if a file that is not of a run has one of its names, or if another process
            saves a run at the same time.
        OSError: if a file cannot be written. The folder is then as it was before.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from jaxsoftmax.app import run_folder
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> from jaxsoftmax.linear import LinearParams
        >>> schema = Schema(Task.classes, ("a", "b"), shape=(2,))
        >>> model = run_folder.Model(LinearParams(w=np.eye(2), bias=None), schema)
        >>> with tempfile.TemporaryDirectory() as base:
        ...     folder = pathlib.Path(base)
        ...     run_folder.save(folder, model, metrics={"loss": 0.5}, history={"loss": np.ones(3)})
        ...     run_folder.load(folder).schema.classes
        ('a', 'b')

    Reference:
        https://huggingface.co/docs/safetensors
    """
    contents = {
        MODEL: to_safetensors(to_arrays(model)),
        METRICS: encode_json(metrics),
        HISTORY: _encode_csv(history),
    }
    previous, generation = _read_bytes(folder / HEADER), _free_generation(folder)
    replaced = _find_replaced_files(folder, contents) - contents.keys()
    numbered = {name: numbered_name(name, generation) for name in contents}
    header = encode_json(
        {
            **describe_model(model),
            "generation": generation,
            "replaces": sorted(replaced),
            "files": {name: _file_entry(name, content) for name, content in contents.items()},
        }
    )
    try:
        for name, content in contents.items():
            atomic_files.create(folder / numbered[name], content)
        _replace_header(folder, header, previous)
    except BaseException:
        # An interrupt may come just after the replacement.
        if _read_bytes(folder / HEADER) != header:
            _remove(folder, numbered.values())
        raise
    for name in contents:
        os.replace(folder / numbered[name], folder / name)
    _remove(folder, replaced)


def add(folder: Path, name: str, write: Callable[[Path], object]) -> Path:
    """Add a file to a run, and list it in the header.

    Args:
        folder: a folder that `save` wrote to.
        name: the name of the file, such as `report.html`.
        write: called with the path to write to.

    Returns:
        The path of the file. If anything fails, the run is as it was before.

    Raises:
        FileExistsError: if a file of that name exists that does not belong to the run, or if
            another process has saved a run since.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from jaxsoftmax.app import run_folder
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> from jaxsoftmax.linear import LinearParams
        >>> schema = Schema(Task.classes, ("a", "b"), shape=(2,))
        >>> model = run_folder.Model(LinearParams(w=np.eye(2), bias=None), schema)
        >>> with tempfile.TemporaryDirectory() as base:
        ...     folder = pathlib.Path(base)
        ...     run_folder.save(folder, model, metrics={}, history={})
        ...     path = run_folder.add(folder, "report.html", lambda path: path.write_text("good"))
        ...     run_folder.read(folder, "report.html")
        b'good'
    """
    previous, header = _read_bytes(folder / HEADER), read_header(folder)
    _find_replaced_files(folder, (name,))
    numbered, written = folder / numbered_name(name, header["generation"]), None
    try:
        write(numbered)
        atomic_files.sync(numbered)
        header["files"][name] = _file_entry(name, numbered.read_bytes())
        written = encode_json(header)
        _replace_header(folder, written, previous)
    except BaseException:
        if _read_bytes(folder / HEADER) != written:
            numbered.unlink(missing_ok=True)
        raise
    os.replace(numbered, folder / name)
    return folder / name


def load(folder: Path) -> Model:
    """Read the model of a run.

    Args:
        folder: a folder that `save` wrote to.

    Returns:
        The `Model`: its parameters as NumPy arrays, its preprocessing, its schema and the header.

    Raises:
        FileNotFoundError: if model.json or the file of the model is missing.
        ValueError: if either file cannot be read, is damaged or has another format or version, or
            if the two do not fit together.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> run_folder.load(pathlib.Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: nowhere holds no run: model.json is missing
    """
    header = read_header(folder)
    path = folder / find_file(folder, header, MODEL)["name"]
    try:
        arrays = read_safetensors(read(folder, MODEL))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    schema, log1p = parse_schema(folder / HEADER, header)
    check_arrays(path, arrays, schema)
    params = HostParams(arrays["w"], arrays.get("bias"))
    preprocessing = Preprocessing(log1p, arrays.get("mean"), arrays.get("scale"))
    return Model(params, schema, preprocessing, header)


def read(folder: Path, name: str) -> bytes:
    """Read one file of a run, and check that it is complete and unchanged.

    Args:
        folder: a folder that `save` wrote to.
        name: `model.safetensors`, `metrics.json`, `history.csv`, or the name of a file added by
            `add`.

    Returns:
        The content of the file.

    Raises:
        FileNotFoundError: if the run has no such file, or if the file is missing.
        ValueError: if the content does not match the header.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> run_folder.read(pathlib.Path("nowhere"), "metrics.json")
        Traceback (most recent call last):
        FileNotFoundError: nowhere holds no run: model.json is missing
    """
    header = read_header(folder)
    entry = find_file(folder, header, name)
    path = folder / entry["name"]
    # The second, if the process that saved the run died before the file took its name.
    for candidate in (path, folder / numbered_name(name, header.get("generation", 1))):
        content = _read_bytes(candidate)
        if content is not None and _sha256(content) == entry["sha256"]:
            return content
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is incomplete: {path.name} is missing")
    raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {HEADER}")


def _free_generation(folder: Path) -> int:
    """Return the first generation that has no file yet, so that no file is overwritten."""
    generation = 1
    while any((folder / numbered_name(name, generation)).exists() for name in _NAMES):
        generation += 1
    return generation


def _find_replaced_files(folder: Path, new_names: Iterable[str]) -> set[str]:
    """Return the names of the files to remove when the run in the folder is replaced.

    These are the files that its header lists, the files that it replaced itself, and all files with
    a generation number, which a killed process may have left behind. Any other file with a plain
    name does not belong to the run, and none of the new files may take its name.
    """
    path = folder / HEADER
    listed = listed_files(path) if path.exists() else set()
    for name in new_names:
        if name not in listed and (folder / name).exists():
            raise FileExistsError(
                f"{folder / name} already exists, and does not belong to the run; move it, or "
                "choose another folder"
            )
    return {
        file.name
        for file in folder.iterdir()
        if any(is_numbered_name(file.name, name) for name in _NAMES)
        and (file.name in listed or file.name not in _NAMES)
    }


def _encode_csv(history: Mapping[str, np.ndarray]) -> bytes:
    """Encode the history as a table of one row per epoch."""
    file = io.StringIO(newline="")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["epoch", *history])
    rows.writerows(
        [epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True), 1)
    )
    return file.getvalue().encode()


def _file_entry(name: str, content: bytes) -> dict[str, str]:
    return {"name": name, "sha256": _sha256(content)}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace_header(folder: Path, header: bytes, previous: bytes | None) -> None:
    """Replace the header in one step, once all files that it lists are on the disk.

    The lock of `folder_lock` keeps other processes away; where there is none, a header that is not
    the previous one shows them.
    """
    path = folder / HEADER
    atomic_files.sync(folder)  # the names of the new files
    atomic_files.remove_partials(path)
    if _read_bytes(path) != previous:
        raise FileExistsError(f"{path} was replaced meanwhile: another process saved a run there")
    atomic_files.write(path, lambda partial: partial.write_bytes(header))
    atomic_files.sync(folder)


def _read_bytes(path: Path) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
