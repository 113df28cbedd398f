"""Decoded images in the cache of the command line: reading them takes a tenth of the decoding."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxsoftmax.app import atomic_files, user_cache

MAX_SHARE = 0.5
"""The largest share of the cache that one split may take."""


class Images(NamedTuple):
    """The pixels of images, uint8 `[N, D]`, and their labels, int64 `[N]`."""

    pixels: np.ndarray
    labels: np.ndarray


def load_or_decode(source: Path, split: str, decode: Callable[[], Images]) -> Images:
    """Return the images of a split from the cache, or decode them and keep them there.

    Args:
        source: the folder of the data set. The content of its files is the key, so that a data set
            that is prepared again is decoded again.
        split: the name of the split.
        decode: reads the images of the split.

    Returns:
        The images. Those from the cache are mapped into memory, and cannot be written to.

    Example:
        >>> import pathlib, unittest.mock
        >>> import numpy as np
        >>> from jaxsoftmax.app import user_cache
        >>> from jaxsoftmax.app.data import image_cache
        >>> images = image_cache.Images(np.zeros((2, 4), np.uint8), np.array([0, 1]))
        >>> with unittest.mock.patch.dict("os.environ", {user_cache.VARIABLE: "off"}):
        ...     image_cache.load_or_decode(pathlib.Path("."), "train", lambda: images).labels
        array([0, 1])
    """
    folder = user_cache.make_folder("images")
    if folder is None:
        return decode()
    stem = folder / f"{_fingerprint(source)}-{split}"
    paths = [stem.with_name(f"{stem.name}-{field}.npy") for field in Images._fields]
    try:
        return Images(*(np.load(path, mmap_mode="r") for path in paths))
    except (OSError, ValueError, EOFError):  # absent, or damaged
        images = decode()
    if images.pixels.nbytes < MAX_SHARE * user_cache.LIMIT:
        for path, array in zip(paths, images, strict=True):
            _keep(path, array)
    return images


def _fingerprint(source: Path) -> str:
    """Return a hash of the names and contents of the files in a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _keep(path: Path, array: np.ndarray) -> None:
    """Write an array in one step; without room for it, nothing is kept."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, array)

    with contextlib.suppress(OSError):
        atomic_files.write(path, write)
