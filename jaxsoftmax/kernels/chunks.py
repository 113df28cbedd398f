"""How many rows of a weighted sum XLA's operations process at once, or that logits come twice.

Where w's gradient is needed, the rows can be processed in three ways:

    all at once    three products; all logits and their gradients are in memory
    in chunks      three products; each chunk reads and writes the sum of w's gradient
    twice          four products, in blocks of classes, whose part of w's gradient is complete

The first way is chosen that fits the budget and whose chunks have enough rows. Without w's gradient
a chunk still reads w, and without any gradient all three ways take one product.
"""

import jax.numpy as jnp
from jax import Array

from jaxsoftmax import placement
from jaxsoftmax.kernels import primitives, tiles
from jaxsoftmax.kernels.types import Head, NeedsGrad, Options

# The least size of a chunk: 512 rows of two bytes an entry. With fewer, reading and writing the sum
# of w's gradient, 8 D K bytes at 3.5 TB/s, takes longer than another product and another pass over
# the logits, 1.5 times 2 R D K operations at 700 TFLOP/s (H200). Float32 operands halve the rate.
# This is reasoned from measured rates and not measured, and so are other accelerators.
MIN_CHUNK_BYTES = 1024  # of a column of x

# The least rows of a chunk on a CPU, unless w stays in the cache. A chunk takes 2 ns for each entry
# of w and of the sum of its gradient; a fourth product saves that, at 50 to 100 operations a ns of
# a core, and takes the exponentials twice. Measured with 16 to 4,096 features: equal at 35 to 90
# rows, and at 70 to 130 in half precision, whose sum is in float32.
LEAST_ROWS_ON_CPU, LEAST_ROWS_IN_HALF, LEAST_ROWS_WITHOUT_SUM = 96, 128, 64
ENTRIES_IN_CACHE = 2**18

# Of the sum of w's gradient, what is added at once on a CPU: it stays in a core's cache. With fewer
# classes the product is too small.
ADDED_ENTRIES, MIN_ADDED_CLASSES = 2**18, 1024


def rows_per_chunk(head: Head, needs_grad: NeedsGrad, options: Options) -> int | None:
    """Return the rows of a chunk, or None where the logits should be computed twice."""
    n, limit = head.x.shape[0], _most_rows(head, needs_grad, options)
    is_few = head.w.shape[1] <= tiles.FEW_CLASSES
    if is_few and options.target.platform == "cpu" and needs_grad.x is None:
        # Features that are data are read once for scores and gradient, if they stay in the cache.
        limit = min(limit, tiles.rows_in_cache(*head.w.shape))
    if options.target.platform == "cpu":
        return _rows_on_cpu(head, limit, needs_grad, options)
    if needs_grad.w is None:
        return n if n <= limit else even_size(n, limit)
    if _fits_at_once(head, needs_grad, options):
        return n
    if limit * jnp.dtype(options.dtype).itemsize < MIN_CHUNK_BYTES:
        return None
    vector = primitives.VECTOR
    return min(round_up(even_size(n, limit // vector * vector), vector), n)


def _rows_on_cpu(head: Head, limit: int, needs_grad: NeedsGrad, options: Options) -> int | None:
    n, needed = head.x.shape[0], LEAST_ROWS_WITHOUT_SUM
    if needs_grad.w is not None:
        is_half = jnp.dtype(options.dtype).itemsize == 2
        needed = LEAST_ROWS_IN_HALF if is_half else LEAST_ROWS_ON_CPU
    if limit < min(n, needed) and head.w.size > ENTRIES_IN_CACHE:
        return None
    return n if n <= limit else even_size(n, limit)


def classes_per_addition(w: Array, rows: int, options: Options) -> int:
    """Return of how many classes at once a chunk's gradient of w is added to the sum.

    A CPU multiplies before it adds. All classes at once take as much memory as the sum, which is
    read, and written, twice. The block's part of the gradient in the logits is copied instead, so
    that all at once is faster where the chunk has more rows than features.
    """
    (d, k), platform = w.shape, options.target.platform
    if platform != "cpu" or rows >= d or placement.count_devices(w) > 1:
        return k
    return tiles.within_limit(ADDED_ENTRIES // d, k, MIN_ADDED_CLASSES)


def even_size(size: int, limit: int) -> int:
    """Return the size of the most even chunks that are as few as the limit on their size allows."""
    return -(-size // -(-size // min(limit, size)))


def _fits_at_once(head: Head, needs_grad: NeedsGrad, options: Options) -> bool:
    """Return whether all rows fit the budget of a chunk and the float32 sum of x's gradient.

    Blocks of classes would need that sum. On a GPU the logits lie where w's gradient will, if they
    fit there.
    """
    (n, d), k = head.x.shape, head.w.shape[1]
    if options.target.platform != "gpu":
        return n <= options.tiles.rows
    logit_bytes = jnp.dtype(options.dtype).itemsize
    if n * primitives.FLOAT_BYTES > d * jnp.dtype(needs_grad.w).itemsize:
        logit_bytes += primitives.FLOAT_BYTES
    budget = options.tiles.rows * _budget_per_row(head)
    budget += primitives.FLOAT_BYTES * n * d if needs_grad.x else 0
    return n * k * logit_bytes + padded_bytes(head, options) <= budget


def _most_rows(head: Head, needs_grad: NeedsGrad, options: Options) -> int:
    """Return the rows of a chunk that the budget has room for.

    On a GPU the sum of w's gradient, where that is not the result itself, and padded copies are
    part of it. Elsewhere the budget is not known: `tiles` has a limit on the rows.
    """
    if options.target.platform != "gpu":
        return options.tiles.rows
    sums = jnp.dtype(primitives.sum_dtype(options.dtype))
    is_separate = needs_grad.w is not None and needs_grad.w != sums
    separate = head.w.size * sums.itemsize if is_separate else 0
    left = options.tiles.rows * _budget_per_row(head) - separate - 2 * padded_bytes(head, options)
    return max(left // (_logit_bytes(head, options) * head.w.shape[1]), 1)


def padded_bytes(head: Head, options: Options) -> int:
    """Return the bytes of a padded copy of w, if XLA makes one."""
    is_padded = primitives.is_padded(head.w, options)
    return head.w.size * jnp.dtype(options.dtype).itemsize if is_padded else 0


def _logit_bytes(head: Head, options: Options) -> int:
    """Return the bytes that a logit of a chunk takes on a GPU.

    As compiled for an H200 and a B200, they are those of the logit and its gradient in the dtype of
    sums, and of one number more each for a softcap and for a mask of the row's own.
    """
    has_row_mask = head.where is not None and head.where.shape[0] > 1
    numbers = 2 + (options.softcap is not None) + has_row_mask
    return numbers * jnp.dtype(primitives.sum_dtype(options.dtype)).itemsize


def _budget_per_row(head: Head) -> int:
    return tiles.BYTES_PER_CHUNK_LOGIT * head.w.shape[1]


def round_up(size: int, multiple: int) -> int:
    """Return the least multiple that is no smaller than the size."""
    return -(-size // multiple) * multiple
