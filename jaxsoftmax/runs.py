"""The folder of one run: the fitted model with its header, its figures, and its history."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxsoftmax.linear import LinearParams

FORMAT = "jaxsoftmax-linear"
VERSION = 1


class Model(NamedTuple):
    """Parameters, and the header that tells what they are."""

    params: LinearParams
    header: dict[str, Any]


def claim(folder: Path, *, overwrite: bool = False) -> Path:
    """Make a folder for a run, and refuse one that holds something.

    Args:
        folder: made with its parents; one that is there and empty will do.
        overwrite: take the folder whatever it holds. `save` then replaces files of its own names,
            and leaves others alone.

    Returns:
        The folder.

    Raises:
        FileExistsError: if it holds something and overwrite is False, or is a file.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxsoftmax import runs
        >>> with tempfile.TemporaryDirectory() as base:
        ...     runs.claim(pathlib.Path(base) / "first").name
        'first'
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite and any(folder.iterdir()):
        raise FileExistsError(f"output {folder} is not empty; choose another, or pass --overwrite")
    return folder


def claim_next(folder: Path) -> Path:
    """Make the first of `folder`, `folder-2`, `folder-3`, ... that is not there yet.

    Args:
        folder: the name to begin with.

    Returns:
        The folder made. It was not there before, even where several runs start at once.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxsoftmax import runs
        >>> with tempfile.TemporaryDirectory() as base:
        ...     [runs.claim_next(pathlib.Path(base) / "digits").name for _ in range(3)]
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

    Args:
        folder: one that `claim` or `claim_next` made.
        model: float parameters `w: [D, K]`, `bias: [K]` or None; a header of JSON's types, to which
            format, version and shape are added.
        metrics: final figures, of JSON's types.
        history: one number per epoch under each name.

    Raises:
        ValueError: if metrics hold NaN or infinity, which JSON has no word for.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from jaxsoftmax import runs
        >>> from jaxsoftmax.linear import LinearParams
        >>> model = runs.Model(LinearParams(w=np.eye(2), bias=None), {"classes": ["a", "b"]})
        >>> with tempfile.TemporaryDirectory() as base:
        ...     folder = pathlib.Path(base)
        ...     runs.save(folder, model, metrics={"loss": 0.5}, history={"loss": np.ones(3)})
        ...     runs.load(folder).header["classes"]
        ['a', 'b']

    Reference:
        https://huggingface.co/docs/safetensors
    """
    arrays = {name: np.asarray(a) for name, a in model.params._asdict().items() if a is not None}
    features, classes = arrays["w"].shape
    shape = {"num_features": features, "num_classes": classes}
    header = {"format": FORMAT, "format_version": VERSION, **shape, **model.header}
    save_file({k: np.ascontiguousarray(a) for k, a in arrays.items()}, folder / "model.safetensors")
    _write_json(folder / "metrics.json", metrics)
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["epoch", *history])
        rows.writerows(
            [epoch, *figures]
            for epoch, figures in enumerate(zip(*history.values(), strict=True), 1)
        )
    _write_json(folder / "model.json", header)


def load(folder: Path) -> Model:
    """Read the model of a run.

    Args:
        folder: one that `save` wrote.

    Returns:
        The `Model`: parameters as JAX arrays, and the header.

    Raises:
        FileNotFoundError: if model.json or model.safetensors is missing.
        ValueError: if either cannot be read, is of another format or a later version, or if they
            do not fit together.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax import runs
        >>> runs.load(pathlib.Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: nowhere holds no model: model.json is missing
    """
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no model: {name} is missing")
    header = _read_header(folder / "model.json")
    try:
        arrays = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
    shape = (header.get("num_features"), header.get("num_classes"))
    found = {name: array.shape for name, array in arrays.items()}
    if found not in ({"w": shape}, {"w": shape, "bias": shape[1:]}):
        raise ValueError(f"model.safetensors must hold w: {shape} and may hold a bias, got {found}")
    bias = arrays.get("bias")
    params = LinearParams(jnp.asarray(arrays["w"]), bias if bias is None else jnp.asarray(bias))
    return Model(params, header)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT!r}")
    if header.get("format_version") != VERSION:
        raise ValueError(
            f"{path} must have format_version {VERSION}, got {header.get('format_version')!r}; "
            "a later version of jaxsoftmax may have written it"
        )
    return header


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
