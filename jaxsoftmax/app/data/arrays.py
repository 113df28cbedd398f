"""NumPy's files, .npy and .npz: arrays by name, with nothing unpickled."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxsoftmax.app.data.row_blocks import Features, divide, fault, rows_at_once
from jaxsoftmax.app.data.tables import listed

SUFFIXES = (".npy", ".npz")
LABELS = ("labels", "label", "targets", "y")
"""The names of arrays that are taken for labels where none is given."""


class Arrays:
    """The arrays of a file; that of a .npy has the file's name without the suffix.

    Args:
        path: its suffix says which: .npy or .npz.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read as what it says it is, or holds Python objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.suffix.lower() == ".npy":
                self._arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
            else:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    self._arrays = dict(stored)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such file") from error
        except IsADirectoryError as error:
            raise IsADirectoryError(f"{path} is a folder, not a file") from error
        except Exception as error:  # damage has many: zlib.error, TokenError, NotImplementedError
            if re.search("pickle|Python objects", str(error)):
                raise ValueError(
                    f"{path} holds Python objects (pickled), which are never read: "
                    "save arrays of numbers or text"
                ) from error
            raise ValueError(f"{path} cannot be read: {error}") from error
        self.names = list(self._arrays)
        other = [name for name, a in self._arrays.items() if not isinstance(a, np.ndarray)]
        if other:
            raise ValueError(f"{path} cannot be read: {other[0]!r} in it is no array")

    def label(self) -> str:
        """Return the name of the one array that is called as labels are."""
        found = [name for name in LABELS if name in self.names]
        if len(self.names) == 1 and self.path.suffix.lower() == ".npy":
            return self.names[0]
        if len(found) != 1:
            raise ValueError(
                f"{self.path}: name the array of labels (label); the arrays are {self._described()}"
            )
        return found[0]

    def find(self, name: str) -> str | None:
        """Return the name if there is such an array, else None."""
        return name if name in self.names else None

    def columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
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
                columns[name] = self._column(name, array)
            else:
                places = range(array.shape[1])
                columns |= {f"{name}[{k}]": self._column(name, array[:, k]) for k in places}
        return columns

    def where(self, row: int) -> str:
        """Name a row, counted from 0: its file and its number from 1."""
        return f"{self.path}, row {row + 1}"

    def features(
        self,
        name: str | None = None,
        *,
        without: Sequence[str] = (),
        width: int | None = None,
        divisor: float | None = None,
    ) -> Features:
        """Plan the reading of features: numbers `[N, ...]`.

        Args:
            name: of the array; by default the only one that is at least of rank 2.
            without: arrays that are none.
            width: how many features there must be, or None.
            divisor: of integers, see `blocks.divide`; by default 255 for images, which are bytes
                of rank 3 and more, and else 1.

        Returns:
            Features without names.

        Raises:
            ValueError: if there is none or there are several, or it holds anything but numbers.
        """
        array = self._array(name, without, width)
        if array.dtype.kind not in "buif":
            raise ValueError(f"{self.path}: features must be numbers, got {array.dtype}")
        if array.ndim < 2 or not array.size:
            raise ValueError(
                f"{self.path}: features must be [N, D] or [N, ...] and not empty, "
                f"got shape {array.shape}"
            )
        if divisor is None:
            divisor = 255 if array.dtype == np.uint8 and array.ndim > 2 else 1
        return Features(
            num_rows=len(array),
            shape=array.shape[1:],
            columns=None,
            blocks=lambda: self._blocks(array, divisor),
            divisor=divisor,
        )

    def _array(self, name: str | None, without: Sequence[str], width: int | None) -> np.ndarray:
        if name is not None:
            if name not in self.names:
                raise ValueError(f"{self.path} has no array {name!r}; it has {self._described()}")
            return self._arrays[name]
        others = {n: array for n, array in self._arrays.items() if n not in without}
        found = [array for array in others.values() if array.ndim > 1]
        if len(found) > 1 and width is not None:
            found = [array for array in found if np.prod(array.shape[1:]) == width]
        if len(found) != 1:
            if len(others) == 1:
                return next(iter(others.values()))
            raise ValueError(
                f"{self.path}: name the array of features (features); "
                f"the arrays are {self._described()}"
            )
        return found[0]

    def _blocks(self, array: np.ndarray, divisor: float) -> Iterator[np.ndarray]:
        width = int(np.prod(array.shape[1:]))
        count = rows_at_once(width)
        for start in range(0, len(array), count):
            stored = array[start : start + count].reshape(-1, width)
            with np.errstate(over="ignore"):
                block = stored.astype(np.float32)
            if not np.isfinite(block).all():
                row, place = np.argwhere(~np.isfinite(block))[0].tolist()
                raise ValueError(
                    f"{self.where(start + row)}, feature {place + 1}: {fault(stored[row, place])}"
                )
            divide(block, divisor, whole=array.dtype.kind in "bui", path=self.path)
            yield block

    def _column(self, name: str, array: np.ndarray) -> pa.Array:
        if array.dtype.kind not in "buifSU":
            raise ValueError(f"{self.path}: {name!r} must be numbers or text, got {array.dtype}")
        if array.dtype.kind == "S":
            array = self._decoded(name, array)
        if array.dtype.kind == "f":  # of two or sixteen bytes too, which Arrow knows little of
            array = array.astype(np.float64)
        return pa.array(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))

    def _decoded(self, name: str, array: np.ndarray) -> np.ndarray:
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {name!r} is not text in UTF-8") from error

    def _described(self) -> str:
        return listed([f"{name} {array.shape}" for name, array in self._arrays.items()])
