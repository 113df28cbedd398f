"""Checks of the paths that a command is given, before the imports that reading them takes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxsoftmax.app import file_formats

_INPUTS = {"name": "DATA", "labels": "--labels", "test": "--test"}


def check(given: Mapping[str, Any]) -> None:
    """Check that the files and the run that a command reads exist, and that it overwrites none.

    Args:
        given: the options of a command, by the names of its parameters.

    Raises:
        FileNotFoundError: if a file or a folder is missing.
        ValueError: if the output is an input, or a file of a run.

    Example:
        >>> from jaxsoftmax.app.cli import paths
        >>> paths.check({"name": "nowhere.csv", "labels": None})
        Traceback (most recent call last):
        FileNotFoundError: nowhere.csv: no such file
    """
    folder: Path | None = given.get("run") or given.get("resume")
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder} holds no run: there is no such folder")
    for _, path in _input_files(given):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
    if given.get("output") is not None:
        _check_output(given["output"], given)


def _input_files(given: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the flag and the path of each file to read."""
    for name, flag in _INPUTS.items():
        source = given.get(name)
        if source is None or str(source) == file_formats.STDIN:
            continue
        if name != "name" or file_formats.is_file(source):
            yield flag, Path(source)


def _check_output(output: Path, given: Mapping[str, Any]) -> None:
    for flag, path in _input_files(given):
        if output.exists() and output.samefile(path):
            raise ValueError(f"--output {output} is the file of {flag}, which it would replace")
        if output.is_dir() and path.parent.samefile(output) and is_of_run(path):
            raise ValueError(f"{flag} {path} is a file of the run in --output {output}")
    if is_of_run(output):
        raise ValueError(f"--output {output} is a file of the run in {output.parent}")


def is_of_run(path: Path) -> bool:
    """Return whether a path names a file of a run.

    Args:
        path: any path.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app.cli import paths
        >>> paths.is_of_run(pathlib.Path("metrics.json"))
        False
    """
    header = path.parent / file_formats.RUN_FILES[0]
    return path.name in file_formats.RUN_FILES and header.is_file()
