"""The cache of the command line: compiled programs and decoded images, between its runs.

It is a folder among the user's caches. The environment variable `JAXSOFTMAX_CACHE_DIR` names
another one, and with the value `off` nothing is kept. When it grows beyond its limit, the files
that were used least recently are removed.
"""

import hashlib
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "JAXSOFTMAX_CACHE_DIR"
LIMIT = 2**31
"""The number of bytes that the cache may have."""


def folder() -> Path | None:
    """Return the folder of the cache, which may not exist yet, or None if it is off.

    Example:
        >>> from jaxsoftmax.app import user_cache
        >>> with_variable = {user_cache.VARIABLE: "/tmp/programs"}
        >>> import unittest.mock
        >>> with unittest.mock.patch.dict("os.environ", with_variable):
        ...     print(user_cache.folder())
        /tmp/programs

    Reference:
        https://specifications.freedesktop.org/basedir-spec/latest
    """
    given = os.environ.get(VARIABLE)
    if given:
        return None if given == "off" else Path(given)
    try:
        return _user_caches() / "jaxsoftmax"
    except RuntimeError:  # the user has no home
        return None


def make_folder(name: str) -> Path | None:
    """Make a folder in the cache, and remove what is beyond the limit.

    Args:
        name: the name of the folder.

    Returns:
        The folder, or None if the cache is off or cannot be written to.

    Example:
        >>> from jaxsoftmax.app import user_cache
        >>> import unittest.mock
        >>> with unittest.mock.patch.dict("os.environ", {user_cache.VARIABLE: "off"}):
        ...     print(user_cache.make_folder("images"))
        None
    """
    base = folder()
    if base is None:
        return None
    made = base / name
    try:
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        trim(base, limit=LIMIT)
    except OSError:
        return None
    return made if os.access(made, os.W_OK) else None


def keep_programs() -> None:
    """Have JAX keep compiled programs in the cache, unless its own variable places them elsewhere.

    This must come before JAX is imported, which reads its settings from the environment then.

    Example:
        >>> from jaxsoftmax.app import user_cache
        >>> import unittest.mock
        >>> with unittest.mock.patch.dict("os.environ", {user_cache.VARIABLE: "off"}):
        ...     user_cache.keep_programs()
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    programs = make_folder(f"programs-{_processor()}")
    if programs is None:
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    # By default JAX keeps only programs that took a second to compile; here most take less.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # A full disk, or a process that writes the same program, costs a compilation and no more.
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")


def trim(base: Path, *, limit: int) -> None:
    """Remove the files that were used least recently until those left are within a limit.

    Args:
        base: the folder of the cache.
        limit: the number of bytes that may stay.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app import user_cache
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = pathlib.Path(folder, "images")
        ...     images.mkdir()
        ...     _ = (images / "old").write_bytes(bytes(100))
        ...     user_cache.trim(pathlib.Path(folder), limit=10)
        ...     user_cache.size(pathlib.Path(folder))
        0
    """
    files = sorted(_files(base), key=lambda file: max(file[1].st_atime, file[1].st_mtime))
    excess = sum(status.st_size for _, status in files) - limit
    for path, status in files:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= status.st_size


def size(base: Path) -> int:
    """Return the number of bytes in the files of a folder.

    Args:
        base: the folder, which may not exist.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import user_cache
        >>> user_cache.size(pathlib.Path("nowhere"))
        0
    """
    return sum(status.st_size for _, status in _files(base))


def clear(base: Path) -> None:
    """Remove what the cache holds, and nothing else that is in its folder.

    Args:
        base: the folder of the cache, which may not exist.

    Example:
        >>> import pathlib
        >>> from jaxsoftmax.app import user_cache
        >>> user_cache.clear(pathlib.Path("nowhere"))
    """
    for kept in _folders(base):
        shutil.rmtree(kept)


def _user_caches() -> Path:
    """Return the folder in which programs keep what can be computed again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def _processor() -> str:
    """Return a name of the processor: a home may be shared by machines of different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _folders(base: Path) -> Iterator[Path]:
    """Yield the folders that `make_folder` makes; the user's folder may hold other files."""
    yield from (path for path in base.glob("programs-*") if path.is_dir())
    yield from (path for path in base.glob("images") if path.is_dir())


def _files(base: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for kept in _folders(base):
        for path in kept.rglob("*"):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            if path.is_file():
                yield path, status
