"""Writing result files: a file is complete or absent, and is never overwritten unasked."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_output(path: Path, *, suffixes: Sequence[str], overwrite: bool = False) -> None:
    """Check that a result can be written to a path, before the work that produces it begins.

    Args:
        path: the file to be written.
        suffixes: the suffixes that the path may have.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: if the path has another suffix.
        FileExistsError: if the file exists and may not be replaced, or if it is a folder.
        FileNotFoundError: if the folder of the file does not exist.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import atomic_files
        >>> atomic_files.check_output(pathlib.Path("table.xlsx"), suffixes=[".csv", ".parquet"])
        Traceback (most recent call last):
        ValueError: --output must end in .csv or .parquet, got table.xlsx
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must end in {' or '.join(suffixes)}, got {path}")
    if path.exists() and not (overwrite and path.is_file()):
        raise FileExistsError(f"--output {path} already exists; choose another, or add --overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}")


def write(path: Path, write_partial: Callable[[Path], object]) -> None:
    """Write a file next to its destination and move it there in one step.

    Args:
        path: the destination. An existing file is replaced.
        write_partial: called with the temporary path to write to.

    Raises:
        OSError: if the file cannot be written. The destination is then as it was before.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app import atomic_files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "answer.txt"
        ...     atomic_files.write(path, lambda partial: partial.write_text("yes"))
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['answer.txt']
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            write_partial(partial)
            sync(partial)
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create(path: Path, content: bytes) -> None:
    """Write a new file through to the disk.

    Args:
        path: the file, which must not exist.
        content: the bytes to write.

    Raises:
        FileExistsError: if the file exists.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app import atomic_files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "answer.txt"
        ...     atomic_files.create(path, b"yes")
        ...     path.read_text()
        'yes'
    """
    with naming(path), path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path of a file into errors of the disk, which do not have it when a write fails.

    Args:
        path: the file that is written.

    Raises:
        OSError: with the path as its file name.

    Example:
        >>> import errno, pathlib
        >>> from jaxsoftmax.app import atomic_files
        >>> with atomic_files.naming(pathlib.Path("model.json")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'model.json'
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or isinstance(error, FileExistsError):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Args:
        path: a file or a folder. Windows cannot open folders, and a folder is ignored there.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import atomic_files
        >>> atomic_files.sync(pathlib.Path("."))
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(path: Path) -> None:
    """Remove the temporary files that killed processes left behind when they wrote a file.

    A process that is writing the same file at this moment then fails and leaves it unchanged.

    Args:
        path: the destination that was passed to `write`.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app import atomic_files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "answer.txt.123.partial").write_text("ye")
        ...     atomic_files.remove_partials(pathlib.Path(folder, "answer.txt"))
        ...     list(pathlib.Path(folder).iterdir())
        []
    """
    for file in path.parent.iterdir():
        if file.name.startswith(f"{path.name}.") and file.name.endswith(".partial"):
            file.unlink(missing_ok=True)
