"""The folder of one run: the fitted model with its header, its figures, and its history.

`model.json`, the header, names the run's other files with the SHA-256 of each. It is replaced in
one step, after they are complete and on the disk: a process that dies or a disk that is full at any
moment leaves the run that was there, or the new one. A run that replaces another therefore writes
beside its files, under names with a number (`model.2.safetensors`), and removes them at the end.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as to_safetensors

from jaxsoftmax.app.data.dataset import Schema
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.linear import LinearParams

FORMAT = "jaxsoftmax-linear"
VERSION = 2
HEADER, MODEL, METRICS, HISTORY, REPORT = (
    "model.json",
    "model.safetensors",
    "metrics.json",
    "history.csv",
    "report.html",
)


class Model(NamedTuple):
    """A fitted head: what features go through to become scores, and what the scores mean."""

    params: LinearParams
    schema: Schema
    preprocessing: Preprocessing = IDENTITY
    header: Mapping[str, Any] = MappingProxyType({})


def claim(folder: Path, *, overwrite: bool = False) -> Path:
    """Make a folder for a run, and refuse one that holds something.

    Args:
        folder: made with its parents; one that is there and empty will do.
        overwrite: take the folder whatever it holds. `save` then replaces the run in it, and
            leaves other files alone.

    Returns:
        The folder.

    Raises:
        FileExistsError: if it holds something and overwrite is False, if it is a file, or if its
            model.json is no header of a run.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> with tempfile.TemporaryDirectory() as base:
        ...     run_folder.claim(pathlib.Path(base) / "first").name
        'first'
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite and any(folder.iterdir()):
        raise FileExistsError(f"output {folder} is not empty; choose another, or pass --overwrite")
    _to_replace(folder)
    return folder


def claim_next(folder: Path) -> Path:
    """Make the first of `folder`, `folder-2`, `folder-3`, ... that is not there yet.

    Args:
        folder: the name to begin with.

    Returns:
        The folder made. It was not there before, even where several runs start at once.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> with tempfile.TemporaryDirectory() as base:
        ...     [run_folder.claim_next(pathlib.Path(base) / "digits").name for _ in range(3)]
        ['digits', 'digits-2', 'digits-3']
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    numbered, number = folder, 1
    while True:
        try:
            numbered.mkdir()
            return numbered
        except FileExistsError:
            number += 1
            numbered = folder.with_name(f"{folder.name}-{number}")


def save(
    folder: Path,
    model: Model,
    *,
    metrics: Mapping[str, Any],
    history: Mapping[str, np.ndarray],
) -> None:
    """Write model.safetensors, metrics.json, history.csv and, last of all, model.json.

    A run that is there is replaced: its files go once the header names the new ones.

    Args:
        folder: one that `claim` or `claim_next` made.
        model: float parameters `w: [D, K]`, `bias: [K]` or None; a header of JSON's types, to which
            format, version, schema, preprocessing and files are added.
        metrics: final figures, of JSON's types.
        history: one number per epoch under each name.

    Raises:
        ValueError: if metrics hold NaN or infinity, which JSON has no word for.
        OSError: if something cannot be written; what was in the folder is then as it was.

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
        MODEL: to_safetensors(_arrays(model)),
        METRICS: _json(metrics),
        HISTORY: _csv(history),
    }
    replaced, generation = _to_replace(folder), _next_generation(folder)
    names = {name: _numbered(name, generation) for name in contents}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    header = _json(
        {
            "format": FORMAT,
            "format_version": VERSION,
            **model.header,
            "schema": model.schema.to_json(),
            "preprocessing": {
                "log1p": model.preprocessing.log1p,
                "standardize": model.preprocessing.mean is not None,
            },
            "generation": generation,
            "replaces": sorted(replaced),
            "files": {name: {"name": names[name], "sha256": hashes[name]} for name in contents},
        }
    )
    try:
        for name, content in contents.items():
            _write_new(folder / names[name], content)
        _switch(folder, header)
    except BaseException:
        if not _is_header(folder, header):  # an interrupt may come between the switch and here
            _remove(folder, names.values())
        raise
    _remove(folder, replaced)


def add(folder: Path, name: str, write: Callable[[Path], object]) -> Path:
    """Add a file to a run, and its name to the header.

    Args:
        folder: one that `save` wrote.
        name: such as `report.html`.
        write: called with the path to write to.

    Returns:
        The path of the file. If anything fails, the run is as it was.

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
    header = read_header(folder)
    path = folder / _numbered(name, header["generation"])
    if path.exists():
        raise FileExistsError(f"{path} is there already, and is no file of the run")
    try:
        write(path)
        content = path.read_bytes()
        _sync(path)
        entry = {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}
        header["files"][name] = entry
        _switch(folder, _json(header))
    except BaseException:
        if name not in read_header(folder)["files"]:
            path.unlink(missing_ok=True)
        raise
    return path


def load(folder: Path) -> Model:
    """Read the model of a run.

    Args:
        folder: one that `save` wrote.

    Returns:
        The `Model`: parameters as JAX arrays, preprocessing, schema, and the header.

    Raises:
        FileNotFoundError: if model.json or the file of the model is missing.
        ValueError: if either cannot be read, is damaged, is of another format or version, or if
            they do not fit together.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> run_folder.load(pathlib.Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: nowhere holds no run: model.json is missing
    """
    header = read_header(folder)
    path = folder / _entry(folder, header, MODEL)["name"]
    try:
        arrays = read_safetensors(read(folder, MODEL))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    schema, log1p = _meaning(folder / HEADER, header)
    _check_shapes(path, arrays, schema)
    bias = arrays.get("bias")
    params = LinearParams(jnp.asarray(arrays["w"]), None if bias is None else jnp.asarray(bias))
    preprocessing = Preprocessing(log1p, arrays.get("mean"), arrays.get("scale"))
    return Model(params, schema, preprocessing, header)


def read(folder: Path, name: str) -> bytes:
    """Read one file of a run, whole and as it was written.

    Args:
        folder: one that `save` wrote.
        name: `model.safetensors`, `metrics.json`, `history.csv`, or what was added.

    Returns:
        Its bytes.

    Raises:
        FileNotFoundError: if the run has no such file, or it is gone.
        ValueError: if it is not what the header says.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> run_folder.read(pathlib.Path("nowhere"), "metrics.json")
        Traceback (most recent call last):
        FileNotFoundError: nowhere holds no run: model.json is missing
    """
    entry = _entry(folder, read_header(folder), name)
    path = folder / entry["name"]
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not whole: {path.name} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {HEADER}")
    return content


def read_header(folder: Path) -> dict[str, Any]:
    """Read model.json.

    Args:
        folder: one that `save` wrote.

    Returns:
        The header.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it cannot be read, or is of another format or version.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import run_folder
        >>> run_folder.read_header(pathlib.Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: nowhere holds no run: model.json is missing
    """
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {HEADER} is missing")
    header = _parsed(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT!r}")
    if header.get("format_version") != VERSION:
        raise ValueError(
            f"{path} must have format_version {VERSION}, got {header.get('format_version')!r}; "
            "another version of jaxsoftmax wrote it"
        )
    return header


# What is read is checked: a header is a file that anyone may have written.


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _entry(folder: Path, header: Mapping[str, Any], name: str) -> dict[str, str]:
    files = header.get("files")
    entry = files.get(name) if isinstance(files, dict) else None
    if entry is None:
        raise FileNotFoundError(f"{folder} has no {name}")
    if (
        not isinstance(entry, dict)
        or not _is_numbered(str(entry.get("name")), name)
        or "sha256" not in entry
    ):
        raise ValueError(f"{folder / HEADER} must name a file for {name}, got {entry!r}")
    return entry


def _meaning(path: Path, header: Mapping[str, Any]) -> tuple[Schema, bool]:
    try:
        return Schema.from_json(header["schema"]), bool(header["preprocessing"]["log1p"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: no schema or preprocessing ({error})") from error


def _check_shapes(path: Path, arrays: Mapping[str, np.ndarray], schema: Schema) -> None:
    """w: [D, K], and bias: [K] or none; mean and scale: [D], or neither; two classes may be one."""
    width = schema.num_features
    found = {name: array.shape for name, array in arrays.items()}
    for scores in {len(schema.classes), 1 if len(schema.classes) == 2 else len(schema.classes)}:
        w, bias = {"w": (width, scores)}, {"bias": (scores,)}
        scaled = {"mean": (width,), "scale": (width,)}
        if found in (w, w | bias, w | scaled, w | bias | scaled):
            return
    raise ValueError(
        f"{path} must hold w: ({width}, {len(schema.classes)}) and what belongs to it, got {found}"
    )


# Names. The files of generation 1 have plain names, those of generation 2 are model.2.safetensors.


def _numbered(name: str, generation: int) -> str:
    stem, suffix = name.rsplit(".", 1)
    return name if generation == 1 else f"{stem}.{generation}.{suffix}"


def _is_numbered(candidate: str, name: str) -> bool:
    stem, suffix = map(re.escape, name.rsplit(".", 1))
    return re.fullmatch(rf"{stem}(\.[1-9][0-9]*)?\.{suffix}", candidate) is not None


def _next_generation(folder: Path) -> int:
    """The first whose names are free, so that nothing is overwritten, whoever's it is."""
    generation = 1
    while any((folder / _numbered(n, generation)).exists() for n in _NAMES):
        generation += 1
    return generation


_NAMES = (MODEL, METRICS, HISTORY, REPORT)


def _to_replace(folder: Path) -> set[str]:
    """The files to remove when the run in the folder is replaced.

    Those that its header names, with those that it replaced itself, and those with a number: a
    process that was killed may have left them. Another file of a plain name is someone else's.
    """
    path = folder / HEADER
    if not path.exists():
        return set()
    try:
        header = _parsed(path)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}")
        named = {*header["replaces"], *(entry["name"] for entry in header["files"].values())}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileExistsError(f"{path} is no header of a run; choose another folder") from error
    there = {file.name for file in folder.iterdir()}
    return {
        file
        for file in there
        if any(_is_numbered(file, name) for name in _NAMES)
        and (file in named or file not in _NAMES)
    }


# Writing.


def _arrays(model: Model) -> dict[str, np.ndarray]:
    arrays = {
        "w": model.params.w,
        "bias": model.params.bias,
        "mean": model.preprocessing.mean,
        "scale": model.preprocessing.scale,
    }
    return {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}


def _json(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def _csv(history: Mapping[str, np.ndarray]) -> bytes:
    file = io.StringIO(newline="")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["epoch", *history])
    rows.writerows(
        [epoch, *figures] for epoch, figures in enumerate(zip(*history.values(), strict=True), 1)
    )
    return file.getvalue().encode()


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that was not there, to the disk and not only to memory."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _switch(folder: Path, header: bytes) -> None:
    """Replace the header in one step, when all that it names is on the disk."""
    _sync(folder)  # the names of the new files
    partial = folder / f"{HEADER}.partial"
    partial.unlink(missing_ok=True)  # of a process that was killed
    try:
        _write_new(partial, header)
        os.replace(partial, folder / HEADER)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(folder)


def _is_header(folder: Path, header: bytes) -> bool:
    path = folder / HEADER
    return path.is_file() and path.read_bytes() == header


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
