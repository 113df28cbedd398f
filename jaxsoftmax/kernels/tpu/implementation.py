"""The fused losses for TPUs: Pallas kernels whose logits exist only in VMEM.

A kernel computes the logits of a tile of rows and classes (`grids`) and does one of three things:

- `forward` carries the maximum, the sum of the exponentials of all classes but the label, and the
  label's logit of each row over the classes. They stay in VMEM until their row tile is done.
- `backward` writes the gradient in the logits, in the dtype of x, of a block of classes, and XLA
  computes the two products. XLA alone also compiles to three products a block without float32
  logits in memory. But it rounds the logits in another order than `forward`, and exp(z - maximum)
  with z of one and the maximum of the other is off by 5e-4 at logits of 1000. Equal tiles give
  equal logits.
- The kernel of the sigmoid adds the losses of each row's labels to their sum, or writes their
  gradient times the weight of the row, or both. Labels are independent, so
  `binary_value_and_gradients` has three products with no more than a block in memory, and
  `binary_forward` is one pass over the blocks.

`value_and_gradients`, and `rows_and_gradients` for a function of a row's statistics, have three
products. They run the forward pass on a chunk of rows, which also writes e = exp(z - m) in the
dtype of x, where m is the row's running maximum, one number for each tile. Once a row is done,
p = e exp(m - maximum) / S is elementwise: another kernel replaces e by the gradient, in place. That
takes 2 bytes an entry where the rows of XLA take about 20, so for the same memory a chunk has more
rows, and the float32 sum of w's gradient is read and written less often. The second rounding to
half precision is within the contract.

Memory traffic: a pass reads w once for each tile of rows and x once for each tile of classes, in
bfloat16 one byte for 683 operations (307 on v4, whose VMEM is small), and writes a few numbers for
each row. The targets of the sigmoid are read in place if they are int8, bfloat16 or float32 and
row-major. Of other targets, and of a mask `[N, K]`, each block is copied, as bytes where they are
bools or integers. The softmax's mask `[N, K]` is copied whole.

`tangent`, `binary_tangent` and derivatives of higher order are those of `xla_chunked`.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); the Pallas
TPU documentation on pipelines.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxsoftmax import placement, softmax_core, validation
from jaxsoftmax.kernels import chunks, loop_operands, primitives, row_sums, tiles, xla_chunked
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.row_sums import RowSum
from jaxsoftmax.kernels.tpu import calls, grids
from jaxsoftmax.kernels.tpu.calls import out_type
from jaxsoftmax.kernels.tpu.grids import (
    LANES,
    Grid,
    class_mask,
    iota,
    keep_layout,
    row_sum,
)
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    NeedsGrad,
    Options,
    RowCotangents,
    RowRule,
    Stats,
)
from jaxsoftmax.linear_map import with_derivatives_of
from jaxsoftmax.placement import Cut

tangent = xla_chunked.tangent
binary_tangent = xla_chunked.binary_tangent

DTYPES = ("bfloat16", "float32")
PRECISIONS = (None, "default", "high", "highest", *lax.Precision)


def unsupported(head: Head, options: Options) -> str | None:
    """Return why the matrix unit cannot compute this, or None; any N, D, K and mask will do."""
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if head.x.dtype.name not in DTYPES:
        return f"it needs features and weights in {' or '.join(DTYPES)}, got {head.x.dtype}"
    if options.precision not in PRECISIONS:
        known = ", ".join(str(p) for p in PRECISIONS[:4])
        return f"it needs a precision of {known}, got {options.precision!r}"
    return None


# -- Softmax, per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Return the parts of each row's loss, with statistics if the options ask for them."""
    return _run_statistics(head, grids.make_grid(head, options), save_exponentials=False)[0]


@with_derivatives_of(xla_chunked.backward)
def backward(
    head: Head, parts: LSEParts, cotangents: RowCotangents, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of `tangent`: return the gradients of x, w and bias that are needed."""
    grid = grids.make_grid(head, options)
    mean = primitives.per_class(cotangents.mean, parts)
    rows = _GradientRows(parts.maximum, cotangents.sum_exp_rest, cotangents.label_logit, mean)

    def gradient(head: Head, first_tile: Array | int, size: int) -> tuple[None, Array]:
        return None, _logit_gradient(head, rows, first_tile, size, grid)

    return _scan_classes(gradient, None, head, needs_grad, grid)[1]


def _scan_classes(
    function: Callable[[Head, Array | int, int], tuple[Any, Any]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    grid: Grid,
    copied_bytes: int = 0,
) -> tuple[Any, ModelCotangents]:
    """Return the sum of the blocks' values, and the gradients of x, w and bias.

    Args:
        function: from the head, the first tile of a block and its number of classes to the values
            of the block and the gradient in its logits.
        values: what the values are added to, or None if there are none.
        head: its classes are divided into blocks.
        needs_grad: which gradients are returned.
        grid: the tiles of the head.
        copied_bytes: how many bytes the function copies for each entry of a block.
    """
    head_in_loop = loop_operands.hold(head, grid.options)

    def add(
        carry: tuple[Any, ModelCotangents], start: Array | int, size: int
    ) -> tuple[Any, ModelCotangents]:
        head = head_in_loop()
        (values, total), (value, dz) = carry, function(head, start // grid.tile.classes, size)
        values = None if value is None else values + value
        total = xla_chunked.add_block(total, head, dz, Cut(start, size), options)
        w = None if total.w is None else keep_layout(total.w, total.w.shape)
        return values, total._replace(w=w)

    # Whole tiles. The gradients in the dtype of x, and what else is copied for a block, take the
    # bytes of a block of `xla_chunked`.
    k, options = head.w.shape[1], grid.options
    entry_bytes = head.x.dtype.itemsize + copied_bytes
    size = options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT // entry_bytes
    size = min(max(size // grid.tile.classes, 1) * grid.tile.classes, k)
    starts = size * jnp.arange(k // size, dtype=jnp.int32)
    carry = values, xla_chunked.init_gradients(head, needs_grad)
    carry, _ = lax.scan(lambda carry, start: (add(carry, start, size), None), carry, starts)
    values, total = add(carry, k - k % size, k % size) if k % size else carry
    return values, total if total.x is None else total._replace(x=total.x.astype(needs_grad.x))


# -- Softmax, a weighted sum --


def _sum_rows(
    of: RowSum,
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelCotangents]:
    """Return the numbers of each row, and the gradients of a weighted sum."""
    if of.uses_mean and options.softcap is not None:
        # The gradient of a mean of capped logits has the derivative of each cap, which exponentials
        # that round to 0 do not tell.
        head, weights = xla_chunked.ignore_rows(head, valid, weights)
        arguments = head, weights, needs_grad, options
        return xla_chunked.compute_twice(*arguments, forward, backward, of.rule)

    def gradient(chunk: Head, valid: Array, weights: Array) -> tuple[Any, Array]:
        del valid  # of weight 0
        return _rows_and_gradient(of.rule, chunk, weights, options)

    # The exponentials in the dtype of x take the bytes of a chunk of `xla_chunked`.
    limit = options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT // head.x.dtype.itemsize
    size = chunks.even_size(head.x.shape[0], limit)
    return xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size, zeros=of.zeros
    )


value_and_gradients, rows_and_gradients = row_sums.weighted_sums(forward, _sum_rows)


def _rows_and_gradient(
    rule: RowRule, chunk: Head, weights: Array, options: Options
) -> tuple[Any, Array]:
    """Return the numbers of whole rows, and the gradient of their weighted sum in the logits.

    The gradient has the dtype of x.
    """
    grid = grids.make_grid(chunk, options)
    parts, saved = _run_statistics(chunk, grid, save_exponentials=True)
    rows, bars, is_ignored = rule(parts, weights)
    of_label, share = bars.label_logit, primitives.per_class(bars.mean, parts)
    if options.softcap is not None:
        of_label *= 1 - (parts.label_logit / options.softcap) ** 2
    if share is not None:
        of_label += jnp.where(parts.label_logit == -jnp.inf, 0, share)
    factor = relative_exp(saved.running_maximum, parts.maximum[:, None])
    factor = jnp.where(is_ignored[:, None], 0, factor * bars.sum_exp_rest[:, None])
    of_label = jnp.where(is_ignored, 0, of_label)
    return rows, _scale_exponentials(chunk, saved.exponentials, factor, of_label, share, grid)


# -- Sigmoid --


def binary_forward(head: Head, options: Options) -> Array:
    """Return the sum of the losses of each row's labels that exist."""
    return _run_sigmoid(head, None, NeedsGrad(), options, losses=True)[0]


@with_derivatives_of(xla_chunked.binary_backward)
def binary_backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of `binary_tangent`."""
    return _run_sigmoid(head, cotangents, needs_grad, options, losses=False)[1]


@with_derivatives_of(xla_chunked.binary_value_and_gradients)
def binary_value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelCotangents]:
    """Return the loss of each row, and the gradients of their weighted sum, in one pass."""
    gradient_weights = weights if any(needs_grad) else None
    return _run_sigmoid(head, gradient_weights, needs_grad, options, losses=True)


def _run_sigmoid(
    head: Head, weights: Array | None, needs_grad: NeedsGrad, options: Options, *, losses: bool
) -> tuple[Any, ModelCotangents]:
    """Return the loss of each row, if asked for, and with weights the gradients of their sum."""
    grid = grids.make_grid(head, options)

    def block_losses_and_gradients(
        head: Head, first_tile: Array | int, size: int
    ) -> tuple[Any, Any]:
        block = grids.copy_block(head, first_tile * grid.tile.classes, size)
        return _run_sigmoid_block(block, weights, first_tile, size, grid, losses=losses)

    zero = placement.full(head.x, 0, head.x.shape[:1], jnp.float32) if losses else None
    copied_bytes = grids.copied_bytes_per_entry(head)
    return _scan_classes(block_losses_and_gradients, zero, head, needs_grad, grid, copied_bytes)


def _run_sigmoid_block(
    head: Head,
    weights: Array | None,
    first_tile: Array | int,
    size: int,
    grid: Grid,
    *,
    losses: bool,
) -> tuple[Any, Any]:
    """Return the row sums of the losses of a block of labels, and the gradient in its logits.

    The losses are None if they are not asked for, and so is the gradient without weights.
    """
    inputs, specs = grids.prepare_inputs(head, grid)
    n, row_spec, has_gradient = grid.whole.rows, grid.row_spec(), weights is not None
    return calls.run_kernel(
        grid,
        _sigmoid_kernel,
        (inputs, weights),
        (specs, row_spec if has_gradient else None),
        (
            out_type((n,)) if losses else None,
            out_type((n, size), head.x.dtype) if has_gradient else None,
        ),
        (
            row_spec if losses else None,
            grid.block_spec(0, 1, local=True) if has_gradient else None,
        ),
        first_tile=first_tile,
        num_tiles=grid.num_tiles._replace(classes=pl.cdiv(size, grid.tile.classes)),
    )


def _sigmoid_kernel(
    grid: Grid, first_tile: Any, head: Any, weights: Any, losses: Any, dz: Any, acc: Any
) -> None:
    """Compute one step of one tile."""

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _zero() -> None:
        if losses is not None:
            losses[...] = jnp.zeros_like(losses)

    j = first_tile[0] + pl.program_id(1)
    grids.accumulate(grid, head, acc, partial(_sigmoid_epilogue, grid, j), weights, losses, dz)


def _sigmoid_epilogue(
    grid: Grid, j: Array, head: Any, acc: Any, weights: Any, losses: Any, dz: Any
) -> None:
    """Add the losses of a group's labels to the sums of their rows, and write their gradients.

    These are `losses.binary_cross_entropy` and its gradient, from one exponential. From calls of
    the two the compiler would leave two exponentials, and two of each quotient.
    """
    z, dcap, _, exists = grids.load_logits(grid, j, head, acc)
    pos_weight = None if head.pos_weight is None else head.pos_weight[...]
    z, t, w, _ = validation.prepare_binary(z, head.targets[...], pos_weight, None, exists)
    wt = t if w is None else w * t
    e = jnp.exp(-jnp.abs(z))
    if losses is not None:
        log1p_e = primitives.log1p(e)
        loss = softmax_core.weighted_term(wt, jnp.maximum(-z, 0) + log1p_e)
        loss += softmax_core.weighted_term(1 - t, jnp.maximum(z, 0) + log1p_e)
        losses[...] += row_sum(validation.zero_ignored(loss, exists))
    if dz is not None:
        # sigmoid(z) = p / (1 + e), and sigmoid(-z) = q / (1 + e).
        p, q = jnp.where(z >= 0, 1, e), jnp.where(z >= 0, e, 1)
        gradient = ((1 - t) * p - wt * q) / (1 + e) * weights[...]
        gradient = jnp.where(weights[...] == 0, 0, gradient)
        _store_gradient(dz, gradient if dcap is None else gradient * dcap, exists)


# -- The forward pass of the softmax --


class _Saved(NamedTuple):
    """The residuals of the forward pass, for the gradient."""

    # [N, K], exp(z - running maximum) times dcap, and 0 for the label; with statistics -1 for -inf
    exponentials: Any
    running_maximum: Any  # [N, tiles of classes], over the classes up to the end of each tile


def _run_statistics(head: Head, grid: Grid, *, save_exponentials: bool) -> tuple[LSEParts, Any]:
    """Return the parts of each row's loss, and what is saved, or None."""
    inputs, specs = grids.prepare_inputs(head, grid)
    n, k, _ = grid.whole
    number, index = out_type((n,)), out_type((n,), jnp.int32)
    stats = Stats(number, number, index) if grid.options.stats else None
    parts, saved, saved_specs = LSEParts(number, number, number, stats), None, None
    if save_exponentials:
        tile_numbers = out_type((n, grid.num_tiles.classes))
        saved = _Saved(out_type((n, k), head.x.dtype), tile_numbers)
        saved_specs = _Saved(grid.block_spec(0, 1), grid.per_tile_spec())
    row_specs = jax.tree.map(lambda _: grid.row_spec(), parts)
    parts, saved = calls.run_kernel(
        grid, _statistics_kernel, (inputs,), (specs,), (parts, saved), (row_specs, saved_specs)
    )
    return primitives.with_mean(parts), saved


def _statistics_kernel(
    grid: Grid, first_tile: Any, head: Any, parts: Any, saved: Any, acc: Any
) -> None:
    """Compute one step of one tile."""
    j = first_tile[0] + pl.program_id(1)

    @pl.when((j == 0) & (pl.program_id(2) == 0))
    def _init() -> None:
        for ref in jax.tree.leaves(parts):
            ref[...] = jnp.zeros_like(ref)
        parts.maximum[...] = jnp.full_like(parts.maximum, -jnp.inf)

    grids.accumulate(grid, head, acc, partial(_statistics_epilogue, grid, j), parts, saved)


def _statistics_epilogue(grid: Grid, j: Array, head: Any, acc: Any, parts: Any, saved: Any) -> None:
    """Update the statistics of a group of rows with the j-th tile of classes."""
    z, dcap, column, _ = grids.load_logits(grid, j, head, acc)
    is_label = column == head.targets[...]
    previous = parts.maximum[...]
    maximum = jnp.maximum(previous, jnp.max(z, 1, keepdims=True))
    e = jnp.where(is_label, 0, relative_exp(z, maximum))
    parts.maximum[...] = maximum
    rescaled = parts.sum_exp_rest[...] * relative_exp(previous, maximum)
    parts.sum_exp_rest[...] = rescaled + row_sum(e)
    parts.label_logit[...] += row_sum(jnp.where(is_label, z, 0))
    if parts.stats is not None:
        _update_stats(parts.stats, z, column, previous, maximum, grid.whole.classes)
    if saved is not None:
        e = e if dcap is None else e * dcap
        # A class of -inf has no share of the mean; other exponentials round to 0 as well.
        e = e if parts.stats is None else jnp.where(z == -jnp.inf, -1, e)
        saved.exponentials[...] = e.astype(saved.exponentials.dtype)
        neighbors = saved.running_maximum[...]
        is_here = iota(neighbors.shape, 1) == j % LANES
        saved.running_maximum[...] = jnp.where(is_here, maximum, neighbors)


def _update_stats(
    stats: Any, z: Array, column: Array, previous: Array, maximum: Array, num_classes: int
) -> None:
    """Add a tile to the sums and counts, and predict its first largest class if it is larger."""
    exists = z != -jnp.inf
    argmax = jnp.min(jnp.where(z == maximum, column, num_classes), 1, keepdims=True)
    stats.mean[...] += row_sum(jnp.where(exists, z, 0))
    stats.classes[...] += row_sum(jnp.where(exists, 1.0, 0.0))
    stats.predicted[...] = jnp.where(maximum > previous, argmax, stats.predicted[...])


# -- Gradients in the logits --


class _GradientRows(NamedTuple):
    """The numbers of each row that its gradient is computed from."""

    maximum: Any
    sum_exp_rest: Any  # its cotangent
    label_logit: Any  # its cotangent
    mean: Any  # its cotangent, divided by the number of classes that exist, or None


def _logit_gradient(
    head: Head, rows: _GradientRows, first_tile: Array | int, size: int, grid: Grid
) -> Array:
    """Return the gradient in the logits of a block of classes, in the dtype of x."""
    inputs, specs = grids.prepare_inputs(head, grid)
    (dz,) = calls.run_kernel(
        grid,
        _gradient_kernel,
        (inputs, rows),
        (specs, jax.tree.map(lambda _: grid.row_spec(), rows)),
        (out_type((grid.whole.rows, size), head.x.dtype),),
        (grid.block_spec(0, 1, local=True),),
        first_tile=first_tile,
        num_tiles=grid.num_tiles._replace(classes=pl.cdiv(size, grid.tile.classes)),
    )
    return dz


def _gradient_kernel(grid: Grid, first_tile: Any, head: Any, rows: Any, dz: Any, acc: Any) -> None:
    """Compute one step of one tile: the logits are those of the forward pass, to the last bit."""
    j = first_tile[0] + pl.program_id(1)
    grids.accumulate(grid, head, acc, partial(_gradient_epilogue, grid, j), rows, dz)


def _gradient_epilogue(grid: Grid, j: Array, head: Any, acc: Any, rows: Any, dz: Any) -> None:
    """Write the gradient in the logits of a group of rows."""
    z, dcap, column, exists = grids.load_logits(grid, j, head, acc)
    rest = relative_exp(z, rows.maximum[...]) * rows.sum_exp_rest[...]
    gradient = jnp.where(column == head.targets[...], rows.label_logit[...], rest)
    if rows.mean is not None:
        gradient += jnp.where(z == -jnp.inf, 0, rows.mean[...])
    _store_gradient(dz, gradient if dcap is None else gradient * dcap, exists)


def _scale_exponentials(
    head: Head, e: Array, factor: Array, of_label: Array, share: Array | None, grid: Grid
) -> Array:
    """Replace exponentials by gradients, in place.

    XLA would first broadcast the factors, one for each row and tile, to `[N, K]`.

    Args:
        head: the rows.
        e: exponentials, from the forward pass.
        factor: what they are multiplied by, for each row and tile.
        of_label: the gradient of each row in the label's logit.
        share: what is added for each class that exists, or None.
        grid: the tiles.
    """
    entry_spec, row_spec = grid.block_spec(0, 1), grid.row_spec()
    inputs, specs = grids.prepare_inputs(head, grid)
    (dz,) = calls.run_kernel(
        grid,
        _scale_kernel,
        (e, factor, of_label, share, inputs.targets, inputs.where),
        (
            entry_spec,
            grid.per_tile_spec(),
            row_spec,
            None if share is None else row_spec,
            specs.targets,
            specs.where,
        ),
        (out_type(e.shape, e.dtype),),
        (entry_spec,),
        num_tiles=grid.num_tiles._replace(features=1),
        input_output_aliases={1: 0},
    )
    return dz


def _scale_kernel(grid: Grid, first_tile: Any, *refs: Any) -> None:
    """Compute one tile."""
    j = first_tile[0] + pl.program_id(1)
    grids.for_row_groups(grid, partial(_scale_epilogue, grid, j), *refs)


def _scale_epilogue(
    grid: Grid,
    j: Array,
    e: Any,
    factor: Any,
    of_label: Any,
    share: Any,
    labels: Any,
    where: Any,
    dz: Any,
    acc: Any,
) -> None:
    """Scale the exponentials of a group of rows, and insert the gradients of the labels."""
    del acc
    is_here = iota(factor.shape, 1) == j % LANES
    scale = jnp.broadcast_to(row_sum(jnp.where(is_here, factor[...], 0)), e.shape)
    wide = e[...].astype(jnp.float32)
    gradient = jnp.where(scale == 0, 0, wide * scale)
    gradient = gradient if share is None else gradient + share[...]
    gradient = jnp.where(wide < 0, 0, gradient) if grid.options.stats else gradient
    column = j * grid.tile.classes + iota(e.shape, 1)
    gradient = jnp.where(column == labels[...], of_label[...], gradient)
    _store_gradient(dz, gradient, class_mask(grid, where, column))


def _store_gradient(dz: Any, gradient: Array, exists: Array | None) -> None:
    """Store a gradient, with 0 where a class does not exist."""
    gradient = gradient if exists is None else jnp.where(exists, gradient, 0)
    dz[...] = gradient.astype(dz.dtype)
