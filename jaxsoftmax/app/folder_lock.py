"""A lock on a folder, so that two processes do not write one run."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder, which leaves no file and ends with the process, however it ends.

    Args:
        folder: the folder. Where folders have no locks (Windows, some networks) it is not held.

    Raises:
        BlockingIOError: if another process holds it.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsoftmax.app import folder_lock
        >>> with tempfile.TemporaryDirectory() as base, folder_lock.hold(pathlib.Path(base)):
        ...     with folder_lock.hold(pathlib.Path(base)):
        ...         pass
        Traceback (most recent call last):
        BlockingIOError: ... is in use by another process
    """
    if os.name == "nt":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(f"{folder} is in use by another process") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
