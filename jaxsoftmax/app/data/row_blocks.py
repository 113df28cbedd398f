"""Features on their way from a file into memory: by blocks of rows, checked, each to its part."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxsoftmax.app.data.dataset import Progress

NUMBERS = 2**18
"""How many numbers make a block: few enough for a processor's cache."""


@dataclass(frozen=True)
class Features:
    """N examples of D features that are still in a file.

    Args:
        num_rows: N.
        shape: of one example; D is its product.
        columns: the names of the D features, or None.
        blocks: reads the file from its beginning, as float32 `[B, D]` in the order of the rows.
        divisor: what `blocks` divides the stored numbers by.
    """

    num_rows: int
    shape: tuple[int, ...]
    columns: tuple[str, ...] | None
    blocks: Callable[[], Iterator[np.ndarray]]
    divisor: float = 1.0

    @property
    def width(self) -> int:
        """D, the product of the shape."""
        return int(np.prod(self.shape))


def rows_at_once(width: int) -> int:
    """Return how many rows of that many features make a block."""
    return max(1, NUMBERS // max(1, width))


def fill(
    features: Features, parts: np.ndarray, count: int, progress: Progress | None = None
) -> list[np.ndarray]:
    """Read all features, each row into the array of its part, in the order of the file.

    The data are in memory once, whatever the split.

    Args:
        features: in a file.
        parts: integer `[N]` in 0 to count - 1.
        count: the number of parts.
        progress: called with the numbers of rows read and to read.

    Returns:
        One float32 array `[N_p, D]` for each part p.
    """
    sizes = np.bincount(parts, minlength=count)
    arrays = [aligned(size, features.width) for size in sizes.tolist()]
    filled = [0] * count
    done = 0
    for block in features.blocks():
        mine = parts[done : done + len(block)]
        for part, array in enumerate(arrays):
            rows = block[mine == part]
            array[filled[part] : filled[part] + len(rows)] = rows
            filled[part] += len(rows)
        done += len(block)
        if progress is not None:
            progress(done, features.num_rows)
    return arrays


def aligned(rows: int, width: int) -> np.ndarray:
    """Return an empty float32 `[rows, width]` that starts at a multiple of 64 bytes.

    JAX makes two copies of an array on the CPU that does not, on the way to its own; of this one
    it makes one, and none with `jax.device_put`.
    """
    numbers = rows * width
    memory = np.empty(4 * numbers + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * numbers].view(np.float32).reshape(rows, width)


def fault(value: float) -> str:
    """Say what is wrong with a stored number that gave none in float32."""
    if np.isfinite(value):
        return f"{value} is beyond float32"
    return f"{value} is not finite"


def divide(block: np.ndarray, divisor: float, *, whole: bool, path: object) -> None:
    """Divide whole numbers in place, as those that a model was fitted to were.

    Args:
        block: float32 `[B, D]`.
        divisor: by what; 1 does nothing.
        whole: whether the numbers are stored as integers; others must have been divided already.
        path: of the file, for errors.

    Raises:
        ValueError: if numbers that are not integers leave 0 to 1.
    """
    if divisor == 1:
        return
    if whole:
        block /= divisor
    elif block.min() < 0 or block.max() > 1:
        raise ValueError(
            f"{path}: expected integers, which are divided by {divisor:g} as the training data "
            f"were, or numbers from 0 to 1, got numbers from {block.min():g} to {block.max():g}"
        )
