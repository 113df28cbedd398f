"""The loss terms of a block of logits in one reduction, which XLA for TPUs fuses with the product.

A reduction over classes whose combiner rescales sums to the larger of two maxima needs the logits
once, in any order. As the last step of a product it takes each tile of logits where it was
computed, so that no block of them is in memory. The maximum first and the sums then would need the
block twice, and a TPU v5p, whose two cores share no VMEM, keeps it in HBM: 32 MiB of 8192 x 1024
logits, which become 0.4. XLA's own estimate for v5e, at 4096 features and 2048 classes, is 0.81 of
the cycles; no TPU has run it. Such a program takes a few seconds more to compile.

As no logits are in memory, a product may be of all classes. For 7x a loop over blocks of them makes
XLA copy w in another tiling: 576 MiB beside 8192 x 4096 x 65,536, which become 0. To compile such a
product for 7x takes 12 s of processor time, and 45 for 256,001 classes (2 to 6 for the others), so
more classes than `MOST_CLASSES` come in blocks.

An exponential is computed for each pair of terms, one for each logit. XLA for CPUs and GPUs does
not fuse a product and a reduction; there the two passes of `xla_chunked` cost less.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.kernels.types import Head, LSEParts, Options, Stats

MOST_CLASSES = 65_536  # of one product


def is_fused(head: Head, options: Options) -> bool:
    """Return whether XLA fuses the reduction: on a TPU, on arrays that no compiler divides.

    The compiler would gather classes that it has divided among devices.
    """
    is_local = placement.count_devices(head.x) == placement.count_devices(head.w) == 1
    return options.target.platform == "tpu" and is_local


def reduce_classes(z: Array, is_label: Array, column: Array | None) -> LSEParts:
    """Return the terms of the rows of `[N, B]` logits; with the classes' numbers, also statistics.

    In place of the mean of the logits, the statistics have their sum.
    """
    exists = z != -jnp.inf
    stats, none = None, None
    if column is not None:
        columns = jnp.broadcast_to(column, z.shape)
        stats = Stats(jnp.where(exists, z, 0), exists.astype(z.dtype), columns)
        none = Stats(0.0, 0.0, jnp.iinfo(columns.dtype).max)  # type: ignore[arg-type]
    ones = (exists & ~is_label).astype(z.dtype)
    terms = LSEParts(z, ones, jnp.where(is_label, z, 0), stats)
    start = LSEParts(-jnp.inf, 0.0, 0.0, none)  # type: ignore[arg-type]
    start = jax.tree.map(lambda a, value: placement.full(a, value, (), a.dtype), terms, start)
    return lax.reduce(terms, start, combine, (1,))


def combine(a: LSEParts, b: LSEParts) -> LSEParts:
    """Return the terms over the classes of both: sums, relative to the larger maximum."""
    leads, ties = a.maximum >= b.maximum, a.maximum == b.maximum
    # Infinite maxima may be equal, and their difference is NaN then.
    e = lax.select(ties, lax.full_like(a.maximum, 1), lax.exp(-lax.abs(a.maximum - b.maximum)))
    scale_a = lax.select(leads, lax.full_like(e, 1), e)
    scale_b = lax.select(leads, e, lax.full_like(e, 1))
    stats = None
    if a.stats is not None and b.stats is not None:
        first = lax.min(a.stats.predicted, b.stats.predicted)  # of ties, or beside a NaN
        leader = lax.select(a.maximum < b.maximum, b.stats.predicted, first)
        leader = lax.select(a.maximum > b.maximum, a.stats.predicted, leader)
        stats = Stats(a.stats.mean + b.stats.mean, a.stats.classes + b.stats.classes, leader)
    return LSEParts(
        lax.max(a.maximum, b.maximum),
        a.sum_exp_rest * scale_a + b.sum_exp_rest * scale_b,
        a.label_logit + b.label_logit,
        stats,
    )
