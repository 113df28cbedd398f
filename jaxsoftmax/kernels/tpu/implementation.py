"""The fused losses for TPUs: Pallas kernels whose logits live in VMEM alone.

A kernel makes the scores of a tile of rows and classes (`tpu_tiles`) and does one of three things:

- `forward` carries each row's maximum, sum of the others and label's logit on; the numbers stay in
  VMEM until their row tile is done.
- `backward` writes the gradient in the logits, in x's dtype, of a block of classes, and XLA makes
  the two products. XLA alone also compiles to three products a block with no float32 logits in
  memory; but it rounds the logits in another order than `forward`, and exp(z - maximum) with z of
  one and the maximum of the other is off by 5e-4 at logits of 1000. The same tiles give the same z.
- The sigmoid's adds the losses of each row's labels to their sum, or writes their gradient times
  the row's weight, or both. No label waits for another, so `binary_value_and_gradients` has three
  products with no more in memory than a block, and `binary_forward` is one pass over the blocks.

`value_and_gradients`, three products, runs the first on a chunk of rows, and also writes
e = exp(z - m) in x's dtype, with m the row's maximum as far as it is known, a number for each tile.
Once a row is done, p = e exp(m - maximum) / S is elementwise: another kernel puts the gradient in
e's place. That takes 2 bytes an entry where XLA's rows take about 20, so for the same memory a
chunk has more rows, and w's float32 sum is read and written less often. The second rounding to half
precision is within the contract.

What a pass moves: w is read once for each tile of rows and x once for each tile of classes,
in bfloat16 a byte for 683 operations (307 on v4, whose VMEM is small), and a few numbers a row are
written. The sigmoid's targets are read as they are: int8, bfloat16 or float32 that lie row by row
cost nothing else. Of others, and of a mask `[N, K]`, each block is copied, as bytes where they are
bools or integers; the softmax's mask `[N, K]` is copied whole.

`tangent`, `binary_tangent` and derivatives of higher order are `xla_chunked`'s.

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
from jaxsoftmax.kernels import primitives, tiles, xla_chunked
from jaxsoftmax.kernels.linear_map import with_derivatives_of
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.tpu import grids
from jaxsoftmax.kernels.tpu.grids import LANES, Grid, array, as_it_lies, exists_in, indices, row_sum
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelTangents,
    NeedsGrad,
    Options,
    RowTangents,
    Stats,
)
from jaxsoftmax.placement import Cut

tangent = xla_chunked.tangent
binary_tangent = xla_chunked.binary_tangent

DTYPES = ("bfloat16", "float32")
PRECISIONS = (None, "default", "high", "highest", *lax.Precision)


def unsupported(head: Head, options: Options) -> str | None:
    """What the matrix unit cannot do; any N, D, K and mask will do."""
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if head.x.dtype.name not in DTYPES:
        return f"it needs features and weights in {' or '.join(DTYPES)}, got {head.x.dtype}"
    if options.precision not in PRECISIONS:
        known = ", ".join(str(p) for p in PRECISIONS[:4])
        return f"it needs a precision of {known}, got {options.precision!r}"
    return None


# -- Per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Maximum, sum and label's logit of each row; with stats, mean logit and predicted class."""
    rows, _ = _pass(head, grids.grid_of(head, options), keep=False)
    if rows.stats is None:
        return rows
    mean = rows.stats.mean / jnp.maximum(rows.stats.classes, 1)
    return rows._replace(stats=rows.stats._replace(mean=mean))


@with_derivatives_of(xla_chunked.backward)
def backward(
    head: Head, rows: LSEParts, cotangents: RowTangents, needs_grad: NeedsGrad, options: Options
) -> ModelTangents:
    """The transpose of `tangent`: gradients of what is wanted of x, w and bias."""
    grid = grids.grid_of(head, options)
    mean = cotangents.mean
    if mean is not None and rows.stats is not None:
        mean = mean / jnp.maximum(rows.stats.classes, 1)
    pull = _Pull(rows.maximum, cotangents.sum_exp_rest, cotangents.label_logit, mean)

    def block(first: Array | int, size: int) -> tuple[None, Array]:
        return None, _pulled(head, pull, first, size, grid)

    return _over_classes(block, None, head, needs_grad, grid)[1]


def _over_classes(
    block: Callable[[Array | int, int], tuple[Any, Any]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    grid: Grid,
    copied: int = 0,
) -> tuple[Any, ModelTangents]:
    """Sums of values, and what gradients in the logits give for x, w and bias.

    block(first tile, classes) makes both for a block of classes, and copies so many bytes an entry.
    """

    def add(
        carry: tuple[Any, ModelTangents], start: Array | int, size: int
    ) -> tuple[Any, ModelTangents]:
        (values, total), (value, dz) = carry, block(start // grid.tile.classes, size)
        values = None if value is None else values + value
        total = xla_chunked.add_block(total, head, dz, Cut(start, size), options)
        w = None if total.w is None else as_it_lies(total.w, total.w.shape)
        return values, total._replace(w=w)

    # Whole tiles: as many as give gradients in x's dtype, and what else is copied for a block,
    # the bytes of XLA's blocks.
    k, options = head.w.shape[1], grid.options
    size = options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT // (head.x.dtype.itemsize + copied)
    size = min(max(size // grid.tile.classes, 1) * grid.tile.classes, k)
    starts = size * jnp.arange(k // size, dtype=jnp.int32)
    carry = values, xla_chunked.init_gradients(head, needs_grad)
    carry, _ = lax.scan(lambda carry, start: (add(carry, start, size), None), carry, starts)
    values, total = add(carry, k - k % size, k % size) if k % size else carry
    return values, total if total.x is None else total._replace(x=total.x.astype(needs_grad.x))


# -- A weighted sum --


@with_derivatives_of(xla_chunked.value_and_gradients)
def value_and_gradients(
    head: Head, valid: Array | None, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of the weighted sum; a row that is not valid counts 0."""
    if not any(needs_grad):
        head = (
            head
            if valid is None
            else head._replace(x=validation.zero_ignored_rows(head.x, valid, 1))
        )
        nll, _ = primitives.row_loss(forward(head, options))
        return validation.zero_ignored(nll, valid), ModelTangents(None, None, None)

    def gradient(chunk: Head, valid: Array, scale: Array) -> tuple[Array, Array]:
        nll, dz = _row_gradient(chunk, scale, options)
        return validation.zero_ignored(nll, valid), dz

    # As many rows as give exponentials in x's dtype the bytes of XLA's rows.
    most = options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT // head.x.dtype.itemsize
    size = xla_chunked.even_size(head.x.shape[0], most)
    return xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size
    )


def _row_gradient(chunk: Head, weights: Array, options: Options) -> tuple[Array, Array]:
    """Loss of each row, and its weighted gradient in the logits in x's dtype."""
    grid = grids.grid_of(chunk, options)
    rows, kept = _pass(chunk, grid, keep=True)
    nll, total = primitives.row_loss(rows)
    silent = weights == 0  # A weight of 0 silences a NaN.
    scale = jnp.where(silent, 0, weights / total)
    own = jnp.where(silent, 0, -rows.sum_exp_rest * scale)
    if options.softcap is not None:
        own *= 1 - (rows.label_logit / options.softcap) ** 2
    factor = relative_exp(kept.reference, rows.maximum[:, None]) * scale[:, None]
    factor = jnp.where(silent[:, None], 0, factor)
    return nll, _scaled(chunk, kept.exponentials, factor, own, grid)


# -- The sigmoid --


def binary_forward(head: Head, options: Options) -> Array:
    """The sum of each row's losses over its labels that exist."""
    return _labels_added(head, None, NeedsGrad(), options, values=True)[0]


@with_derivatives_of(xla_chunked.binary_backward)
def binary_backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelTangents:
    """The transpose of `binary_tangent`."""
    return _labels_added(head, cotangents, needs_grad, options, values=False)[1]


@with_derivatives_of(xla_chunked.binary_value_and_gradients)
def binary_value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of their weighted sum: no label waits for another."""
    return _labels_added(
        head, weights if any(needs_grad) else None, needs_grad, options, values=True
    )


def _labels_added(
    head: Head, weights: Array | None, needs_grad: NeedsGrad, options: Options, *, values: bool
) -> tuple[Any, ModelTangents]:
    """Losses of the rows, if they are wanted, and gradients, from blocks of labels."""
    grid = grids.grid_of(head, options)

    def block(first: Array | int, size: int) -> tuple[Any, Any]:
        part = grids.block_of(head, first * grid.tile.classes, size)
        return _labels(part, weights, first, size, grid, values=values)

    start = placement.full(head.x, 0, head.x.shape[:1], jnp.float32) if values else None
    return _over_classes(block, start, head, needs_grad, grid, grids.copied_bytes(head))


def _labels(
    head: Head,
    weights: Array | None,
    first: Array | int,
    size: int,
    grid: Grid,
    *,
    values: bool,
) -> tuple[Any, Any]:
    """Row sums over a block of labels from a tile on, and with weights its gradient in the logits.

    What is not wanted is None.
    """
    inputs, places = grids.inputs_of(head, grid)
    a_row, rows = grid.block(0, None), grid.whole.rows
    column = None if weights is None else weights[:, None]
    gradient = None if weights is None else array((rows, size), head.x.dtype)
    found, dz = grids.run(
        grid,
        _label_kernel,
        (inputs, column),
        [places, None if column is None else a_row],
        (array((rows, 1)) if values else None, gradient),
        (a_row if values else None, None if column is None else grid.block(0, 1, local=True)),
        first=first,
        steps=(grid.steps.rows, pl.cdiv(size, grid.tile.classes), grid.steps.features),
    )
    return found[:, 0] if values else None, dz


def _label_kernel(
    grid: Grid, first: Any, head: Any, weights: Any, values: Any, dz: Any, z: Any
) -> None:
    """One tile and one step of it."""

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        if values is not None:
            values[...] = jnp.zeros_like(values)

    j = first[0] + pl.program_id(1)
    grids.then(grid, head, z, partial(_each_label, grid, j), weights, values, dz)


def _each_label(
    grid: Grid, j: Array, head: Any, scores: Any, weights: Any, values: Any, dz: Any
) -> None:
    """Add a group's losses in tile j to their rows' sums, and write their weighted gradients.

    They are `losses.binary_cross_entropy` and its gradient from one exponential; of the two calls
    the compiler would leave two, and two of each quotient.
    """
    z, slope, _, exists = grids.scores(grid, j, head, scores)
    weight = None if head.pos_weight is None else head.pos_weight[...]
    z, t, w, _ = validation.prepare_binary(z, head.targets[...], weight, None, exists)
    wt = t if w is None else w * t
    e = jnp.exp(-jnp.abs(z))
    if values is not None:
        small = primitives.log1p(e)
        positive = softmax_core.weighted_term(wt, jnp.maximum(-z, 0) + small)
        negative = softmax_core.weighted_term(1 - t, jnp.maximum(z, 0) + small)
        values[...] += row_sum(validation.zero_ignored(positive + negative, exists))
    if dz is not None:
        one, other = jnp.where(z >= 0, 1, e), jnp.where(z >= 0, e, 1)
        found = ((1 - t) * one - wt * other) / (1 + e) * weights[...]
        found = jnp.where(weights[...] == 0, 0, found)
        _write(dz, found if slope is None else found * slope, exists)


# -- The pass over the classes --


class _Kept(NamedTuple):
    """What the gradient is made of when the pass is over."""

    exponentials: Any  # [N, K], of z - reference, times the softcap's slope; 0 for the label
    reference: Any  # [N, tiles of classes]: the maximum as far as it was known


def _pass(head: Head, grid: Grid, *, keep: bool) -> tuple[LSEParts, Any]:
    """The statistics of the rows, with a sum in place of their mean; and what was kept."""
    inputs, places = grids.inputs_of(head, grid)
    n, k, _ = grid.whole
    number, index = array((n, 1)), array((n, 1), jnp.int32)
    stats = Stats(number, number, index) if grid.options.stats else None
    rows, kept, kept_places = LSEParts(number, number, number, stats), None, None
    if keep:
        kept = _Kept(array((n, k), head.x.dtype), array((n, grid.steps.classes)))
        kept_places = _Kept(grid.block(0, 1), grid.references())
    row_places = jax.tree.map(lambda _: grid.block(0, None), rows)
    rows, kept = grids.run(
        grid, _pass_kernel, (inputs,), [places], (rows, kept), (row_places, kept_places)
    )
    return jax.tree.map(lambda a: a[:, 0], rows), kept


def _pass_kernel(grid: Grid, first: Any, head: Any, rows: Any, kept: Any, z: Any) -> None:
    """One tile and one step of it."""
    j = first[0] + pl.program_id(1)

    @pl.when((j == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        for ref in jax.tree.leaves(rows):
            ref[...] = jnp.zeros_like(ref)
        rows.maximum[...] = jnp.full_like(rows.maximum, -jnp.inf)

    grids.then(grid, head, z, partial(_carry, grid, j), rows, kept)


def _carry(grid: Grid, j: Array, head: Any, scores: Any, rows: Any, kept: Any) -> None:
    """Carry the numbers of a group of rows over tile j of the classes."""
    z, slope, column, _ = grids.scores(grid, j, head, scores)
    hot = column == head.targets[...]
    before = rows.maximum[...]
    maximum = jnp.maximum(before, jnp.max(z, 1, keepdims=True))
    e = jnp.where(hot, 0, relative_exp(z, maximum))
    rows.maximum[...] = maximum
    rows.sum_exp_rest[...] = rows.sum_exp_rest[...] * relative_exp(before, maximum) + row_sum(e)
    rows.label_logit[...] += row_sum(jnp.where(hot, z, 0))
    if rows.stats is not None:
        live = z != -jnp.inf
        first = jnp.min(jnp.where(z == maximum, column, grid.whole.classes), 1, keepdims=True)
        sums, counts, predicted = rows.stats
        sums[...] += row_sum(jnp.where(live, z, 0))
        counts[...] += row_sum(jnp.where(live, 1.0, 0.0))
        predicted[...] = jnp.where(maximum > before, first, predicted[...])
    if kept is not None:
        e = e if slope is None else e * slope
        kept.exponentials[...] = e.astype(kept.exponentials.dtype)
        past = kept.reference[...]
        kept.reference[...] = jnp.where(indices(past.shape, 1) == j % LANES, maximum, past)


# -- Gradients in the logits --


class _Pull(NamedTuple):
    """What the gradient of a row is made of, `[N]` or `[N, 1]` each."""

    maximum: Any
    sum_exp_rest: Any  # cotangents
    label_logit: Any
    mean: Any  # for each class that exists


def _pulled(head: Head, pull: _Pull, first: Array | int, size: int, grid: Grid) -> Array:
    """Of a block of classes from a tile on, in x's dtype."""
    inputs, places = grids.inputs_of(head, grid)
    columns = jax.tree.map(lambda a: a[:, None], pull)
    return grids.run(
        grid,
        _pull_kernel,
        (inputs, columns),
        [places, jax.tree.map(lambda _: grid.block(0, None), columns)],
        array((grid.whole.rows, size), head.x.dtype),
        grid.block(0, 1, local=True),
        first=first,
        steps=(grid.steps.rows, pl.cdiv(size, grid.tile.classes), grid.steps.features),
    )


def _pull_kernel(grid: Grid, first: Any, head: Any, pull: Any, dz: Any, z: Any) -> None:
    """One tile and one step of it: the scores of the pass over the classes, to the last bit."""
    grids.then(grid, head, z, partial(_pull, grid, first[0] + pl.program_id(1)), pull, dz)


def _pull(grid: Grid, j: Array, head: Any, scores: Any, pull: Any, dz: Any) -> None:
    z, slope, column, exists = grids.scores(grid, j, head, scores)
    e = relative_exp(z, pull.maximum[...]) * pull.sum_exp_rest[...]
    found = jnp.where(column == head.targets[...], pull.label_logit[...], e)
    if pull.mean is not None:
        found += jnp.where(z == -jnp.inf, 0, pull.mean[...])
    found = found if slope is None else found * slope
    _write(dz, found, exists)


def _scaled(head: Head, e: Array, factor: Array, own: Array, grid: Grid) -> Array:
    """Exponentials made gradients in their place.

    In XLA the factors, one for each row and tile, would first be spread to `[N, K]`.
    """
    square, a_row = grid.block(0, 1), grid.block(0, None)
    inputs, places = grids.inputs_of(head, grid)
    return grids.run(
        grid,
        _scale_kernel,
        (e, factor, own[:, None], inputs.targets, inputs.where),
        [square, grid.references(), a_row, places.targets, places.where],
        array(e.shape, e.dtype),
        square,
        steps=(*grid.steps[:2], 1),
        input_output_aliases={1: 0},
    )


def _scale_kernel(grid: Grid, first: Any, *refs: Any) -> None:
    """One tile of it."""
    grids.for_groups(grid, partial(_scale, grid, first[0] + pl.program_id(1)), *refs)


def _scale(
    grid: Grid, j: Array, e: Any, factor: Any, own: Any, truth: Any, where: Any, dz: Any, _: Any
) -> None:
    """Scale a group's exponentials by the rows' factors, and put in the label's entry."""
    here = row_sum(jnp.where(indices(factor.shape, 1) == j % LANES, factor[...], 0))
    scale = jnp.broadcast_to(here, e.shape)
    found = jnp.where(scale == 0, 0, e[...].astype(jnp.float32) * scale)
    column = j * grid.tile.classes + indices(e.shape, 1)
    found = jnp.where(column == truth[...], own[...], found)
    _write(dz, found, exists_in(grid, where, column))


def _write(dz: Any, found: Array, exists: Array | None) -> None:
    """Gradients, and 0 where there is no class."""
    dz[...] = (found if exists is None else jnp.where(exists, found, 0)).astype(dz.dtype)
