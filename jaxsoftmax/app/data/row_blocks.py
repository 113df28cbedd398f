"""Features read from a file into memory: in blocks of rows, checked, and divided into splits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxsoftmax.app.data.dataset import Progress

MAX_BLOCK_SIZE = 2**18
"""The largest number of values in a block, so that a block fits into a processor's cache."""


@dataclass(frozen=True)
class FeatureReader:
    """The features of N examples, D each, that are still in a file.

    Args:
        num_rows: N.
        shape: the shape of one example; D is its product.
        columns: the names of the D features, or None.
        read_blocks: a function that reads the file from its beginning and yields float32 `[B, D]`
            blocks in the order of the rows.
        divisor: the number that `read_blocks` divides stored values by.
    """

    num_rows: int
    shape: tuple[int, ...]
    columns: tuple[str, ...] | None
    read_blocks: Callable[[], Iterator[np.ndarray]]
    divisor: float = 1.0

    @property
    def width(self) -> int:
        """D, the product of the shape."""
        return int(np.prod(self.shape))


def rows_per_block(width: int) -> int:
    """Return the number of rows of `width` features in a block."""
    return max(1, MAX_BLOCK_SIZE // max(1, width))


def read_splits(
    reader: FeatureReader,
    assignment: np.ndarray,
    num_splits: int,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Read all features, each row into the array of its split, in the order of the file.

    The data are in memory once, whatever the split.

    Args:
        reader: the features in a file.
        assignment: integer `[N]`, the split of each row, in 0 to num_splits - 1; -1 for none.
        num_splits: the number of splits.
        progress: called with the number of rows read and the total number.

    Returns:
        One float32 array `[N_s, D]` for each split s.
    """
    sizes = np.bincount(assignment[assignment >= 0], minlength=num_splits)
    arrays = [empty_aligned(size, reader.width) for size in sizes.tolist()]
    filled = [0] * num_splits
    rows_read = 0
    for block in reader.read_blocks():
        block_assignment = assignment[rows_read : rows_read + len(block)]
        for split, array in enumerate(arrays):
            rows = block[block_assignment == split]
            array[filled[split] : filled[split] + len(rows)] = rows
            filled[split] += len(rows)
        rows_read += len(block)
        if progress is not None:
            progress(rows_read, reader.num_rows)
    return arrays


def empty_aligned(num_rows: int, width: int) -> np.ndarray:
    """Return an uninitialized float32 `[num_rows, width]` that starts at a multiple of 64 bytes.

    On the CPU, JAX copies an array that does not start there twice on the way to its own memory.
    It copies an aligned array once, and with `jax.device_put` not at all.
    """
    size = num_rows * width
    buffer = np.empty(4 * size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + 4 * size].view(np.float32).reshape(num_rows, width)


def apply_divisor(block: np.ndarray, divisor: float, *, is_integer: bool, path: object) -> None:
    """Divide integers in place, as the features that a model was fitted to were divided.

    Args:
        block: float32 `[B, D]`.
        divisor: the number to divide by; 1 does nothing.
        is_integer: whether the numbers are stored as integers. Other numbers must have been
            divided already.
        path: the path of the file, for errors.

    Raises:
        ValueError: if numbers that are not stored as integers lie outside 0 to 1.
    """
    if divisor == 1:
        return
    if is_integer:
        block /= divisor
    elif block.min() < 0 or block.max() > 1:
        raise ValueError(
            f"{path}: expected integers, which are divided by {divisor:g} as the training data "
            f"were, or numbers from 0 to 1, got numbers from {block.min():g} to {block.max():g}"
        )
