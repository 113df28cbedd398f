"""A check that files exist, before the imports that reading them takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsoftmax.app import file_formats


def check(given: Mapping[str, Any]) -> None:
    """Check that the files and the run that a command reads exist.

    Args:
        given: the options of a command, by the names of its parameters.

    Raises:
        FileNotFoundError: if one is missing.

    Example:
        >>> from jaxsoftmax.app.cli import existence
        >>> existence.check({"name": "nowhere.csv", "labels": None})
        Traceback (most recent call last):
        FileNotFoundError: nowhere.csv: no such file
    """
    folder: Path | None = given.get("run") or given.get("resume")
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder} holds no run: there is no such folder")
    for option in ("name", "labels", "test"):
        source = given.get(option)
        if source is None or (option == "name" and not file_formats.is_file(source)):
            continue
        if str(source) != file_formats.STDIN and not Path(source).exists():
            raise FileNotFoundError(f"{source}: no such file")
