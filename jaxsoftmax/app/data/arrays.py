"""NumPy files, .npy and .npz: arrays by name, without pickled objects."""

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxsoftmax.app.data.cells import describe_invalid
from jaxsoftmax.app.data.row_blocks import FeatureReader, apply_divisor, rows_per_block
from jaxsoftmax.app.data.tables import format_names

LABEL_NAMES = ("labels", "label", "targets", "y")
"""The names by which an array of labels is found where none is given."""
MAX_UNPACKED = 2**36
"""The number of bytes that the arrays of a packed file may have together."""


class ArrayFile:
    """The arrays of a file; the array of a .npy is named by the file, without its suffix.

    Args:
        path: the path of the file, whose suffix gives its format: .npy or .npz.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read in the format of its suffix, or holds Python objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays = _read_arrays(path)
        self.names = list(self._arrays)
        others = [name for name, a in self._arrays.items() if not isinstance(a, np.ndarray)]
        if others:
            raise ValueError(f"{path} cannot be read: {others[0]!r} in it is not an array")

    def find_label(self) -> str:
        """Return the name of the only array that is named as labels are."""
        found = [name for name in LABEL_NAMES if name in self.names]
        if len(self.names) == 1 and self.path.suffix.lower() == ".npy":
            return self.names[0]
        if len(found) != 1:
            raise ValueError(
                f"{self.path}: name the array of labels (--label); "
                f"the arrays are {self._describe_arrays()}"
            )
        return found[0]

    def find(self, name: str) -> str | None:
        """Return the name if there is an array of that name, else None."""
        return name if name in self.names else None

    def read_columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Read labels or ids: an array `[N]` is one column, `[N, K]` are `name[0]`, ..."""
        columns: dict[str, pa.Array] = {}
        for name in names:
            array = self._arrays[name]
            if array.ndim == 2 and array.shape[1] == 1:
                array = array[:, 0]
            if array.ndim not in (1, 2) or not array.size:
                raise ValueError(
                    f"{self.path}: {name!r} must be [N] or [N, K] and not empty, "
                    f"got shape {array.shape}"
                )
            if array.ndim == 1:
                columns[name] = self._to_arrow(name, array)
            else:
                columns |= {f"{name}[{k}]": self._to_arrow(name, a) for k, a in enumerate(array.T)}
        return columns

    def describe_row(self, row: int) -> str:
        """Describe a row, counted from 0: its file and its number from 1."""
        return f"{self.path}, row {row + 1}"

    def open_features(
        self,
        name: str | None = None,
        *,
        exclude: Sequence[str] = (),
        width: int | None = None,
        divisor: float | None = None,
    ) -> FeatureReader:
        """Return a reader of the features: numbers `[N, ...]`.

        Args:
            name: the name of the array; by default the only one of rank 2 or more.
            exclude: the arrays that are not features.
            width: the number of features that there must be, or None.
            divisor: the number that integers are divided by; see `row_blocks.apply_divisor`. By
                default 255 for images, which are bytes of rank 3 or more, and otherwise 1.

        Returns:
            A `FeatureReader` without names.

        Raises:
            ValueError: if there is no such array or there are several, or if it holds anything but
                numbers.
        """
        array = self._find_features(name, exclude, width)
        if array.dtype.kind not in "buif":
            raise ValueError(f"{self.path}: features must be numbers, got {array.dtype}")
        if array.ndim < 2 or not array.size:
            raise ValueError(
                f"{self.path}: features must be [N, D] or [N, ...] and not empty, "
                f"got shape {array.shape}"
            )
        if divisor is None:
            divisor = 255 if array.dtype == np.uint8 and array.ndim > 2 else 1
        return FeatureReader(
            num_rows=len(array),
            shape=array.shape[1:],
            columns=None,
            read_blocks=lambda: self._read_blocks(array, divisor),
            divisor=divisor,
        )

    def _find_features(
        self, name: str | None, exclude: Sequence[str], width: int | None
    ) -> np.ndarray:
        if name is not None:
            if name not in self.names:
                raise ValueError(
                    f"{self.path} has no array {name!r}; it has {self._describe_arrays()}"
                )
            return self._arrays[name]
        others = {name: array for name, array in self._arrays.items() if name not in exclude}
        found = [array for array in others.values() if array.ndim > 1]
        if len(found) > 1 and width is not None:
            found = [array for array in found if np.prod(array.shape[1:]) == width]
        if len(found) != 1:
            if len(others) == 1:
                return next(iter(others.values()))
            raise ValueError(
                f"{self.path}: name the array of features (--features); "
                f"the arrays are {self._describe_arrays()}"
            )
        return found[0]

    def _read_blocks(self, array: np.ndarray, divisor: float) -> Iterator[np.ndarray]:
        width = int(np.prod(array.shape[1:]))
        num_rows = rows_per_block(width)
        for start in range(0, len(array), num_rows):
            stored = array[start : start + num_rows].reshape(-1, width)
            with np.errstate(over="ignore"):
                block = stored.astype(np.float32)
            if not np.isfinite(block).all():
                row, column = np.argwhere(~np.isfinite(block))[0].tolist()
                raise ValueError(
                    f"{self.describe_row(start + row)}, feature {column + 1}: "
                    f"{describe_invalid(stored[row, column])}"
                )
            apply_divisor(block, divisor, is_integer=array.dtype.kind in "bui", path=self.path)
            yield block

    def _to_arrow(self, name: str, array: np.ndarray) -> pa.Array:
        if array.dtype.kind not in "buifSU":
            raise ValueError(f"{self.path}: {name!r} must be numbers or text, got {array.dtype}")
        if array.dtype.kind == "S":
            array = self._decode_utf8(name, array)
        if array.dtype.kind == "f":  # Arrow has few functions of float16, and no long double
            array = array.astype(np.float64)
        return pa.array(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))

    def _decode_utf8(self, name: str, array: np.ndarray) -> np.ndarray:
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {name!r} is not text in UTF-8") from error

    def _describe_arrays(self) -> str:
        return format_names([f"{name} {array.shape}" for name, array in self._arrays.items()])


def _check_size(path: Path, packed: zipfile.ZipFile) -> None:
    size = sum(info.file_size for info in packed.infolist())
    if size > MAX_UNPACKED:
        limit = f"the limit is {MAX_UNPACKED:,}"
        raise ValueError(f"it has {size:,} bytes once it is unpacked; {limit}")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix.lower() == ".npy":
            return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            _check_size(path, stored.zip)
            return dict(stored)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder, not a file") from error
    except Exception as error:  # a damaged file raises zlib.error, TokenError, NotImplementedError
        if re.search("pickle|Python objects", str(error)):
            raise ValueError(
                f"{path} holds Python objects (pickled), which are never read: "
                "save arrays of numbers or text"
            ) from error
        raise ValueError(f"{path} cannot be read: {error}") from error
