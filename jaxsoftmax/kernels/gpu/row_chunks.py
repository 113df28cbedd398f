"""A weighted sum of float32 on Hopper GPUs: XLA's products around the kernel of `rows`.

A chunk of rows with all their classes takes three products. The kernel reads each logit between
them once, and writes its gradient once, in its place:

    z = x w + bias    z becomes dz    dx = dz w^T    dw += x^T dz

In XLA's operations a logit is read twice for the sums and once more for the gradient, which takes
memory of its own. Here it takes four bytes of the budget, so that chunks are larger and w and its
gradient are read and written less often. XLA multiplies in TF32 unless another precision is asked
for, as everywhere.

A loss of each row's statistics needs them before its cotangents are known. The kernel reads the
logits once more for them: 12 bytes a logit in all, where XLA takes 16. The gradient of the mean
logit would take a pass of its own, so a loss of it is left to XLA.

The rest is that of `xla_chunked`. Values per example have a budget of 128 MiB, whose chunks of
rows are so short that reading w again for each of them costs nearly the read that the kernel saves:
8 + 4.6 bytes a logit in place of 12 + 1.5 at 8192 x 768 x 50257, and more than XLA's where features
are many. Their gradient needs two numbers a row, where the kernel takes one. The sigmoid's labels
are independent, and a block of them takes one pass already. The derivative of a softcap needs the
logits after their gradient is known.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement, softmax_core
from jaxsoftmax.kernels import chunks, primitives, row_losses, tiles, xla_chunked
from jaxsoftmax.kernels.gpu.rows import rules
from jaxsoftmax.kernels.row_losses import RowLoss, RowTerms
from jaxsoftmax.kernels.types import Head, ModelCotangents, NeedsGrad, Options
from jaxsoftmax.linear_map import with_derivatives_of
from jaxsoftmax.softmax_core import LabeledRows

forward, tangent, backward = xla_chunked.forward, xla_chunked.tangent, xla_chunked.backward
binary_forward, binary_tangent = xla_chunked.binary_forward, xla_chunked.binary_tangent
binary_backward = xla_chunked.binary_backward
binary_value_and_gradients = xla_chunked.binary_value_and_gradients

ENTRY_BYTES = 4  # of float32
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
        terms = _terms(rows, options, is_masked=is_masked)
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


def _terms(rows: LabeledRows, options: Options, *, is_masked: bool) -> RowTerms:
    """Return the terms of rows, with statistics if the options ask for them."""
    nll, lse, largest = rules.losses_and_lse(rows, is_masked=is_masked)
    if options.stats:
        return row_losses.with_statistics(nll, lse, rows.z, largest, 1)
    return RowTerms.zeros(jnp.zeros_like(nll))._replace(nll=nll, lse=lse)


def _label_gradient(
    rows: LabeledRows, terms: RowTerms, a: Array, b: Array, is_ignored: Array
) -> Array:
    """Return b p - a (1 - p), the gradient at the label, from the cotangents of nll and lse."""
    own = b * jnp.exp(-terms.nll) + a * jnp.expm1(-terms.nll)
    is_lost = softmax_core.label_logit(rows.z, rows.labels, 1) == -jnp.inf
    return jnp.where(is_ignored | is_lost, 0, own)


def _labeled_rows(chunk: Head, valid: Array, options: Options) -> LabeledRows:
    """Return the logits of rows, -inf for a class that does not exist, and their labels."""
    z = primitives.dot(chunk.x, chunk.w, (1, 0), options.precision)
    if chunk.bias is not None:
        z = z + chunk.bias[None, :]
    z, _ = primitives.mask_and_cap(z, chunk.where, None)
    return LabeledRows(z, chunk.targets, jnp.ones_like(valid), valid, 1)


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
