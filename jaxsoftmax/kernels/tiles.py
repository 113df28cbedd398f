"""How much is done at a time: tiles from a budget of memory, and a short table of measurements."""

from dataclasses import dataclass

import numpy as np

from jaxsoftmax.kernels import target

MEBIBYTE = 2**20

# Budgets in bytes where the user sets none. The per-example route holds one block of logits; the
# scalar one holds whole rows of them, beside the float32 sum of w's gradient. A CPU has memory, and
# each chunk of rows makes it read and write that sum once more.
BLOCK_MEMORY = 128 * MEBIBYTE
CHUNK_MEMORY, CHUNK_MEMORY_ON_CPU = 512 * MEBIBYTE, 2048 * MEBIBYTE

# Rows at a time in the scalar route, as experiments/benchmark.py --tune measured it on a CPU: fewer
# make products too small for the machine, and more leave its cache.
MAX_CHUNK_ROWS = 1024

# Neither blocks get smaller, whatever the budget, for then no product is worth its name.
MIN_BLOCK_CLASSES, MIN_CHUNK_ROWS = 128, 8

# What one entry of the logits takes while it is worked on, in bytes: in a block of classes two
# float32 numbers, in whole rows up to five.
BYTES_PER_BLOCK_LOGIT, BYTES_PER_CHUNK_LOGIT = 8, 20


@dataclass(frozen=True)
class Tiles:
    """Sizes of blocks: `rows` at a time in the scalar route, `classes` at a time in the other."""

    rows: int
    classes: int

    def __post_init__(self) -> None:
        """Refuse what is not a size, and make NumPy's integers Python's."""
        for name, size in (("rows", self.rows), ("classes", self.classes)):
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"tiles: expected {name} to be a positive integer, got {size!r}")
            object.__setattr__(self, name, int(size))


def classes_per_block(n: int, k: int, *, memory: int | None) -> int:
    """Classes at a time such that a block of `[n, classes]` logits fits the budget."""
    return _blocks(
        (BLOCK_MEMORY if memory is None else memory) // (BYTES_PER_BLOCK_LOGIT * n),
        k,
        MIN_BLOCK_CLASSES,
    )


def rows_per_chunk(n: int, k: int, *, memory: int | None) -> int:
    """Rows at a time such that a chunk of `[rows, k]` logits fits the budget."""
    if memory is None:
        on_cpu = target.current().platform == "cpu"
        memory = CHUNK_MEMORY_ON_CPU if on_cpu else CHUNK_MEMORY
    return _blocks(min(memory // (BYTES_PER_CHUNK_LOGIT * k), MAX_CHUNK_ROWS), n, MIN_CHUNK_ROWS)


def choose(n: int, k: int, *, memory: int | None) -> Tiles:
    """Both sizes for `[n, k]` logits and a budget in bytes."""
    return Tiles(
        rows=rows_per_chunk(n, k, memory=memory), classes=classes_per_block(n, k, memory=memory)
    )


def _blocks(fitting: int, size: int, multiple: int) -> int:
    """The most that fits, in whole multiples; all of it, if that fits."""
    return min(size, fitting if fitting >= size else max(fitting // multiple, 1) * multiple)
