"""The losses of float32 on Hopper GPUs: XLA's products around the kernels of `rows`.

A chunk of rows has all their classes, and a kernel reads each of its logits once. A weighted sum
takes three products, and the gradient takes the place of the logits:

    z = x w + bias    z becomes dz    dx = dz w^T    dw += x^T dz

In XLA's operations a logit is read twice for the sums and once more for the gradient, which takes
memory of its own. Here it takes four bytes of the budget, so that chunks are larger and w and its
gradient are read and written less often. XLA multiplies in TF32 unless another precision is asked
for, as everywhere.

A loss of each row's statistics needs them before its cotangents are known. The kernel reads the
logits once more for them: 12 bytes a logit in all, where XLA takes 16. The gradient of the mean
logit would take a pass of its own, so a loss of it is left to XLA.

Values per example take one product and one read, 8 bytes a logit, where XLA's blocks of classes
take 12. A chunk reads all of w; the tensor cores hide that as long as the budget has room for
enough rows. By `forward_seconds`, and with a budget of 128 MiB, this pass takes less time than
XLA's by 23 % at 8192 x 768 x 50257, 9 % at 8192 x 4096 x 32000 and 36 % at 32768 x 128 x 32000:
with the gradients of x and w 7, 2 and 13 % of all. No GPU has timed it. Three cases are XLA's:

- statistics: they take another read of whole rows, and none more in XLA's blocks;
- one block of all classes, whose logits XLA keeps for the gradient;
- more precise products than TF32: the gradient computes the logits again in blocks, whose sums over
  the features may be taken in another order. Beside the rounding of TF32 that is little.

The rest is that of `xla_chunked`. The gradient per example reads each logit once and writes it
once there as well. The sigmoid's labels are independent, and a block of them takes one pass
already. The derivative of a softcap needs the logits after their gradient is known.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement, softmax_core
from jaxsoftmax.kernels import chunks, row_losses, tiles, xla_chunked
from jaxsoftmax.kernels.gpu.rows import rules
from jaxsoftmax.kernels.row_losses import RowLoss, RowTerms
from jaxsoftmax.kernels.types import Head, LSEParts, ModelCotangents, NeedsGrad, Options
from jaxsoftmax.linear_map import with_derivatives_of
from jaxsoftmax.softmax_core import LabeledRows

tangent, backward = xla_chunked.tangent, xla_chunked.backward
binary_forward, binary_tangent = xla_chunked.binary_forward, xla_chunked.binary_tangent
binary_backward = xla_chunked.binary_backward
binary_value_and_gradients = xla_chunked.binary_value_and_gradients

ENTRY_BYTES = 4  # of float32
# Rates of an H200: products in TF32, and memory.
OPERATIONS_PER_SECOND, BYTES_PER_SECOND = 450e12, 3.4e12
# The rows of a chunk, at least: with fewer, reading and writing w's gradient once more, 8 D K bytes
# at 4 TB/s, takes longer than the chunk's product, 2 R D K operations at 450 TFLOP/s (H200, TF32).
MIN_CHUNK_ROWS = 512


def unsupported(head: Head, options: Options) -> str | None:
    """Return why the kernel cannot compute this, or None."""
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if head.x.dtype != jnp.float32:
        return f"it needs float32 features and weights, got {head.x.dtype}"
    if options.softcap is not None:
        return "it cannot apply a softcap"
    return rules.unsupported(_logits(head, head.x.shape[0]), 1)


def _logits(head: Head, rows: int) -> Any:
    """Return the type of the logits of some rows."""
    return jax.ShapeDtypeStruct((rows, head.w.shape[1]), jnp.float32)


# -- Values per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Return the terms of each row's loss; with stats, also mean logit and predicted class."""
    size = _forward_rows(head, options)
    if size is None:
        return xla_chunked.forward(head, options)

    def terms(chunk: Head, valid: Array, weights: Array) -> tuple[LSEParts, Array]:
        del valid, weights
        z = _chunk_logits(chunk, options)
        return rules.lse_parts(z, chunk.targets), z  # in place of a gradient, of which none is left

    zero, needs_grad = xla_chunked.row_zeros(head), NeedsGrad()
    zeros = LSEParts(zero, zero, zero, None)
    return xla_chunked.scan_rows(
        terms, head, None, zero, needs_grad, options, chunk_size=size, zeros=zeros
    )[0]


def _forward_rows(head: Head, options: Options) -> int | None:
    """Return the rows of a chunk of values, or None where XLA's blocks of classes are better."""
    (n, d), k = head.x.shape, head.w.shape[1]
    block = xla_chunked.classes_of_block(head, options)
    limit = options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT * n // (ENTRY_BYTES * (k + d))
    if options.stats or block == k or limit == 0 or not _rounds_operands(options):
        return None
    size = chunks.even_size(n, limit)
    here, there = forward_seconds(n, d, k, size, block)
    is_supported = rules.unsupported(_logits(head, size), 1) is None
    return size if is_supported and here < there else None


def _rounds_operands(options: Options) -> bool:
    """Return whether products round float32 to TF32, as they do unless another precision is set."""
    precision = options.precision or jax.default_matmul_precision.value
    return precision in (None, "default", lax.Precision.DEFAULT)


def forward_seconds(n: int, d: int, k: int, rows: int, block: int) -> tuple[float, float]:
    """Return the seconds of a forward pass by chunks of rows, and by XLA's blocks of classes.

    A product takes the time of its operations or of its bytes, whichever is longer, and reads its
    other operand again for each chunk or block. The logits that it writes are read once by the
    kernel and twice by XLA. A chunk of features is copied first, and so is a block of w.
    """

    def seconds(reads: int, again: int, copied: int) -> float:
        product = ENTRY_BYTES * (1 + d / again) / BYTES_PER_SECOND
        passes = ENTRY_BYTES * (reads + 2 * d / copied) / BYTES_PER_SECOND
        return n * k * (max(2 * d / OPERATIONS_PER_SECOND, product) + passes)

    return seconds(1, rows, k), seconds(2, block, n)


# -- Weighted sums --


@with_derivatives_of(xla_chunked.value_and_gradients)
def value_and_gradients(
    head: Head, valid: Array | None, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelCotangents]:
    """Return the loss of each row, and the gradients of the weighted sum; an ignored row adds 0."""
    size = _chunk_rows(head, needs_grad, options)
    if size is None:
        return xla_chunked.value_and_gradients(head, valid, weights, needs_grad, options)

    def gradient(chunk: Head, valid: Array, weights: Array) -> tuple[Array, Array]:
        rows, is_masked = _labeled_rows(chunk, valid, options), chunk.where is not None
        if not any(needs_grad):
            return rules.losses(rows.z, rows, is_masked=is_masked), rows.z
        return rules.losses_and_gradient_in_place(rows, weights, is_masked=is_masked)

    return xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size
    )


@with_derivatives_of(xla_chunked.rows_and_gradients, options=3)
def rows_and_gradients(
    head: Head,
    weights: Array,
    constants: tuple[Array, ...],
    function: Callable,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[RowTerms, ModelCotangents]:
    """Return the terms of each row, and the gradients of the weighted sum of a function of them."""
    loss, zero = RowLoss(function, constants), xla_chunked.row_zeros(head)
    size = _chunk_rows(head, needs_grad, options)
    if size is None or not any(needs_grad) or loss.uses_mean(zero):
        return xla_chunked.rows_and_gradients(
            head, weights, constants, function, needs_grad, options
        )

    def gradient(chunk: Head, valid: Array, weights: Array) -> tuple[RowTerms, Array]:
        rows, is_masked = _labeled_rows(chunk, valid, options), chunk.where is not None
        terms = _terms(rows, options)
        is_ignored, (a, b, _) = loss.cotangents(terms, weights)
        # What reads the logits does so before the gradient takes their place.
        of_label, terms, a, b = lax.optimization_barrier(
            (_label_gradient(rows, terms, a, b, is_ignored), terms, a, b)
        )
        _, dz = rules.losses_and_gradient_in_place(rows, a + b, is_masked=is_masked)
        every = jnp.arange(dz.shape[0], dtype=rows.labels.dtype)
        return terms, dz.at[every, rows.labels].set(of_label, unique_indices=True)

    return xla_chunked.scan_rows(
        gradient, head, None, weights, needs_grad, options,
        chunk_size=size, zeros=RowTerms.zeros(zero),
    )  # fmt: skip


def _terms(rows: LabeledRows, options: Options) -> RowTerms:
    """Return the terms of rows, with statistics if the options ask for them."""
    parts = rules.lse_parts(rows.z, rows.labels)
    terms = RowTerms.of(parts)
    if options.stats:
        return row_losses.with_statistics(terms.nll, terms.lse, rows.z, parts.maximum, 1)
    return terms


def _label_gradient(
    rows: LabeledRows, terms: RowTerms, a: Array, b: Array, is_ignored: Array
) -> Array:
    """Return b p - a (1 - p), the gradient at the label, from the cotangents of nll and lse."""
    own = b * jnp.exp(-terms.nll) + a * jnp.expm1(-terms.nll)
    is_lost = softmax_core.label_logit(rows.z, rows.labels, 1) == -jnp.inf
    return jnp.where(is_ignored | is_lost, 0, own)


def _labeled_rows(chunk: Head, valid: Array, options: Options) -> LabeledRows:
    """Return the logits of rows and their labels."""
    z = _chunk_logits(chunk, options)
    return LabeledRows(z, chunk.targets, jnp.ones_like(valid), valid, 1)


def _chunk_logits(chunk: Head, options: Options) -> Array:
    """Return the logits of rows, -inf for a class that does not exist."""
    return xla_chunked.row_logits(chunk, options, 1).z


def _chunk_rows(head: Head, needs_grad: NeedsGrad, options: Options) -> int | None:
    """Return the rows of a chunk, or None where too few of them fit the budget.

    The float32 sum of x's gradient, which blocks of classes would need, is not part of the budget,
    as in `xla_chunked`. What takes its place here are a chunk's features and their gradient.
    """
    (n, d), k = head.x.shape, head.w.shape[1]
    memory = options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT * k
    memory += ENTRY_BYTES * n * d if needs_grad.x else 0
    if ENTRY_BYTES * n * k <= memory:
        return n
    if needs_grad.w not in (None, jnp.float32):
        memory -= ENTRY_BYTES * d * k  # the sum that is cast at the end
    limit = memory // (ENTRY_BYTES * (k + (2 * d if needs_grad.x else d)))
    if limit < (1 if needs_grad.w is None else MIN_CHUNK_ROWS):
        return None
    size = chunks.even_size(n, limit)
    return size if rules.unsupported(_logits(head, size), 1) is None else None
