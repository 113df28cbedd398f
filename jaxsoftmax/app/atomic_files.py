"""A file of results: never over another one in silence, and whole or not at all."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path


def check(path: Path, *, suffixes: Sequence[str], overwrite: bool = False) -> None:
    """Refuse a path that `write` could not or should not write to, before the work is done.

    Args:
        path: of the file to be.
        suffixes: that it may end in.
        overwrite: whether a file that is there may be replaced.

    Raises:
        ValueError: if it ends otherwise.
        FileExistsError: if there is a file, or a folder of that name.
        FileNotFoundError: if there is no folder for it.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import atomic_files
        >>> atomic_files.check(pathlib.Path("said.xlsx"), suffixes=[".csv", ".parquet"])
        Traceback (most recent call last):
        ValueError: output must end in .csv or .parquet, got said.xlsx
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"output must end in {' or '.join(suffixes)}, got {path}")
    if path.exists() and not (overwrite and path.is_file()):
        raise FileExistsError(
            f"output {path} is there already; choose another, or pass --overwrite"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output {path}: there is no folder {path.parent}")


def write(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file beside its place and move it there in one step.

    Args:
        path: of the file; one that is there is replaced.
        make: called with the path to write to.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app import atomic_files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "said.txt"
        ...     atomic_files.write(path, lambda partial: partial.write_text("yes"))
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['said.txt']
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        make(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
