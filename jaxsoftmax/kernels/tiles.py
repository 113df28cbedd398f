"""Block sizes, from a budget of memory and a few measurements.

A block is some classes of all rows, and a chunk is some rows with all their classes.
"""

from dataclasses import dataclass

import numpy as np

from jaxsoftmax.kernels import target

MEBIBYTE = 2**20

# Budgets in bytes where the user sets none. The per-example route holds one block of logits. The
# scalar route holds a chunk of rows, beside the float32 sum of w's gradient. A CPU has more memory,
# and each chunk makes it read and write that sum once more.
BLOCK_MEMORY = 128 * MEBIBYTE
CHUNK_MEMORY, CHUNK_MEMORY_ON_CPU = 512 * MEBIBYTE, 2048 * MEBIBYTE

# The rows of a chunk on a CPU, as experiments/benchmark.py --tune measured it: with fewer rows the
# products are too small for the machine, and more rows do not stay in its cache, unless they are
# narrow. With one chunk in place of nine, 9,196 x 67 x 16 takes 0.6 of the time. On a GPU logits do
# not stay in the cache either way, and each chunk reads and writes the sum of w's gradient.
CHUNK_ROWS = 1024
NARROW = 256  # features and logits of a row
CHUNK_ENTRIES = 2**20  # of a chunk of such rows
# With few classes the logits alone decide: each chunk copies its part of the features and of their
# gradient. With one chunk 2,560 x 3,136 x 10 takes 0.6 of the time, and 13,742 x 74 x 42 takes 0.9.
# So it is where all logits take less memory than a chunk with that copy: 1,970 x 2,047 x 103 takes
# 0.9, and 0.8 MB in place of 17; 200,000 x 247 x 10 takes 0.66, and 11 MB in place of 204.
FEW_CLASSES = 64

# Blocks and chunks are no smaller than this, whatever the budget: smaller products are too slow.
MIN_BLOCK_CLASSES, MIN_CHUNK_ROWS = 128, 8

# The bytes that one logit takes while it is processed: two float32 numbers in a block of classes,
# and up to five in a chunk of rows.
BYTES_PER_BLOCK_LOGIT, BYTES_PER_CHUNK_LOGIT = 8, 20


@dataclass(frozen=True)
class Tiles:
    """Sizes of the blocks in which a fused loss computes its logits, in place of a memory budget.

    Args:
        rows: how many rows a chunk has, with all their classes, where gradients are computed in the
            forward pass, as in `linear_cross_entropy_sum`.
        classes: how many classes a block has, of all rows, elsewhere.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import Tiles, linear_cross_entropy
        >>> x, w, labels = jnp.ones((2, 3)), jnp.zeros((3, 1000)), jnp.array([0, 999])
        >>> print(linear_cross_entropy(x, w, labels, tiles=Tiles(rows=1, classes=256)).nll)
        [6.9077554 6.9077554]
    """

    rows: int
    classes: int

    def __post_init__(self) -> None:
        """Check the sizes, and convert NumPy's integers to Python's."""
        for name, size in (("rows", self.rows), ("classes", self.classes)):
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"tiles: expected {name} to be a positive integer, got {size!r}")
            object.__setattr__(self, name, int(size))


def classes_per_block(n: int, k: int, *, memory: int | None) -> int:
    """Return how many classes make a block of `[n, classes]` logits that fits the budget."""
    memory = BLOCK_MEMORY if memory is None else memory
    return within_limit(memory // (BYTES_PER_BLOCK_LOGIT * n), k, MIN_BLOCK_CLASSES)


def rows_per_chunk(n: int, d: int, k: int, *, memory: int | None) -> int:
    """Return how many rows of d features make a chunk of `[rows, k]` logits within the budget."""
    platform = target.current().platform
    if memory is None:
        memory = CHUNK_MEMORY_ON_CPU if platform == "cpu" else CHUNK_MEMORY
    limit = memory // (BYTES_PER_CHUNK_LOGIT * k)
    if platform != "gpu":
        cached = CHUNK_ENTRIES // k if k <= FEW_CLASSES else rows_in_cache(d, k)
        is_narrow = platform == "cpu" and n * k <= cached * (k + d)
        limit = limit if is_narrow and n <= limit else min(limit, cached)
    return within_limit(limit, n, MIN_CHUNK_ROWS)


def rows_in_cache(d: int, k: int) -> int:
    """Return how many rows of d features and k logits stay in a CPU's cache."""
    return CHUNK_ENTRIES // (d + k) if d + k <= NARROW else CHUNK_ROWS


def choose(n: int, d: int, k: int, *, memory: int | None) -> Tiles:
    """Return the block sizes for a product `[n, d]` by `[d, k]` and a budget in bytes."""
    return Tiles(
        rows=rows_per_chunk(n, d, k, memory=memory), classes=classes_per_block(n, k, memory=memory)
    )


def within_limit(limit: int, size: int, multiple: int) -> int:
    """Return the size if it is within the limit, else the limit rounded down to a multiple.

    At least one multiple is returned, or the size where that is smaller.
    """
    return min(size, limit if limit >= size else max(limit // multiple, 1) * multiple)
