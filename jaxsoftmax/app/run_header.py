"""The header of a run, `model.json`: its format, and the files of the run that it lists.

A header is checked when it is read, since anyone may have edited the file. Until the files of
generation 2 take their own names, they are like `model.2.safetensors`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsoftmax.app.file_formats import RUN_FILES

FORMAT = "jaxsoftmax-linear"
VERSION = 3
HEADER = RUN_FILES[0]


def read_header(folder: Path) -> dict[str, Any]:
    """Read model.json.

    Args:
        folder: a folder that `save` wrote to.

    Returns:
        The header.

    Raises:
        FileNotFoundError: if model.json is missing.
        ValueError: if it cannot be read, or has another format or version.

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
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT!r}")
    if header.get("format_version") != VERSION:
        raise ValueError(
            f"{path} must have format_version {VERSION}, got {header.get('format_version')!r}; "
            "it was written by another version of jaxsoftmax"
        )
    return header


def encode_json(content: Mapping[str, Any]) -> bytes:
    r"""Encode values as indented JSON in UTF-8.

    Args:
        content: values of JSON types.

    Returns:
        The text, which ends in a line feed.

    Raises:
        ValueError: if the content contains NaN or infinity.

    Example:
        >>> from jaxsoftmax.app import run_folder
        >>> run_folder.encode_json({"loss": 0.5})
        b'{\n  "loss": 0.5\n}\n'
    """
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def read_json(path: Path) -> Any:
    """Read a file of JSON, or raise a ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def find_file(folder: Path, header: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the name on disk and the SHA-256 that the header has for one of the run's files."""
    files = header.get("files")
    entry = files.get(name) if isinstance(files, dict) else None
    match entry:
        case None:
            raise FileNotFoundError(f"{folder} has no {name}")
        case {"name": str(file), "sha256": str()} if is_numbered_name(file, name):
            return entry
        case _:
            raise ValueError(f"{folder / HEADER} must name a file for {name}, got {entry!r}")


def listed_files(path: Path) -> set[str]:
    """Return the names that a header lists: the files of its run and those that it replaced."""
    try:
        header = read_json(path)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}")
        files = header["files"]
        return {*header["replaces"], *files, *(entry["name"] for entry in files.values())}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileExistsError(
            f"{path} is not the header of a run; choose another folder"
        ) from error


def numbered_name(name: str, generation: int) -> str:
    """Return the name of a file in some generation, before it has its own."""
    stem, suffix = name.rsplit(".", 1)
    return f"{stem}.{generation}.{suffix}"


def is_numbered_name(candidate: str, name: str) -> bool:
    """Return whether a file name is `name` in some generation."""
    stem, suffix = map(re.escape, name.rsplit(".", 1))
    return re.fullmatch(rf"{stem}(\.[1-9][0-9]*)?\.{suffix}", candidate) is not None
