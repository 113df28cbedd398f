"""The fused loss for TPUs: Pallas kernels whose logits live in VMEM alone.

A kernel makes the scores of a tile of rows and classes on the matrix unit, feature step by feature
step, in a float32 scratch buffer. After the last step it adds the bias, caps and masks, and does
one of two things, a group of rows at a time so that little is alive:

- `forward` carries each row's maximum, sum of the others and label's logit on. Row tiles are
  independent; classes and features follow one another, and the numbers stay in VMEM until their row
  tile is done.
- `backward` writes the gradient in the logits, in x's dtype, of a block of classes, and XLA makes
  the two products. XLA alone also compiles to three products a block with no float32 logits in
  memory; but it rounds the logits in another order than `forward`, and exp(z - maximum) with z of
  one and the maximum of the other is off by 5e-4 at logits of 1000. The same tiles give the same z.

`value_and_gradients`, three products, runs the first on a chunk of rows, and also writes
e = exp(z - m) in x's dtype, with m the row's maximum as far as it is known, a number for each tile.
Once a row is done, p = e exp(m - maximum) / S is elementwise: another kernel puts the gradient in
e's place. That takes 2 bytes an entry where XLA's rows take about 20, so for the same memory a
chunk has more rows, and w's float32 sum is read and written less often. The second rounding to half
precision is within the contract.

What `forward` moves: w is read once for each tile of rows and x once for each tile of classes,
in bfloat16 a byte for 683 operations (307 on v4, whose VMEM is small), and a few numbers a row are
written. Edges need no padding: what a block holds beyond K is masked, beyond D set to 0, and beyond
N never written. A TPU keeps a matrix in the order that its tiles of 8 x 128 pad less. Where that is
class-major, as for D = 2304 and K = 256001, w is taken transposed, which is the array as it lies;
the other order would be a copy of w. A mask `[N, K]` is copied to bytes.

`tangent`, the sigmoid's functions, whose blocks wait for no maximum, and derivatives of higher
order are `xla_chunked`'s.

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
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import tpu as pltpu

from jaxsoftmax import checks
from jaxsoftmax.kernels import products, tiles, xla_chunked
from jaxsoftmax.kernels.contract import Change, Head, Moved, Options, Rows, Stats, Wanted
from jaxsoftmax.kernels.linear_map import with_derivatives_of
from jaxsoftmax.kernels.products import relative_exp

tangent = xla_chunked.tangent
binary_forward, binary_tangent = xla_chunked.binary_forward, xla_chunked.binary_tangent
binary_backward = xla_chunked.binary_backward
binary_value_and_gradients = xla_chunked.binary_value_and_gradients


class _Limits(NamedTuple):
    """At most so many rows, bytes of classes and of features in a tile; and bytes of VMEM."""

    rows: int
    classes: int
    features: int
    vmem: int


# Both buffers of each block and a column of 128 lanes for each number of a row fit. v4 has 16 MiB,
# and later ones 64 at least.
SMALL = _Limits(768, 1024, 1536, 16 * tiles.MEBIBYTE)
LARGE = _Limits(2048, 2048, 1536, 48 * tiles.MEBIBYTE)

GROUP = 32  # rows that are finished at a time
SUBLANES, LANES = 8, 128
DTYPES = ("bfloat16", "float32")
PRECISIONS = (None, "default", "high", "highest", *lax.Precision)


def unsupported(head: Head, options: Options) -> str | None:
    """What the matrix unit cannot do; any N, D, K and mask will do."""
    if head.x.dtype.name not in DTYPES:
        return f"it needs features and weights in {' or '.join(DTYPES)}, got {head.x.dtype}"
    if options.precision not in PRECISIONS:
        known = ", ".join(str(p) for p in PRECISIONS[:4])
        return f"it needs a precision of {known}, got {options.precision!r}"
    return None


# -- Per example --


def forward(head: Head, options: Options) -> Rows:
    """Maximum, sum and label's logit of each row; with stats, mean logit and predicted class."""
    rows, _ = _pass(head, _grid(head, options), keep=False)
    if rows.stats is None:
        return rows
    mean = rows.stats.mean / jnp.maximum(rows.stats.classes, 1)
    return rows._replace(stats=rows.stats._replace(mean=mean))


@with_derivatives_of(xla_chunked.backward)
def backward(head: Head, rows: Rows, cotangents: Change, wanted: Wanted, options: Options) -> Moved:
    """The transpose of `tangent`: gradients of what is wanted of x, w and bias."""
    grid, k = _grid(head, options), head.w.shape[1]
    mean = cotangents.mean
    if mean is not None and rows.stats is not None:
        mean = mean / jnp.maximum(rows.stats.classes, 1)
    pull = _Pull(rows.maximum, cotangents.others, cotangents.label, mean)

    def add(total: Moved, start: Array | int, size: int) -> Moved:
        dz = _pulled(head, pull, start // grid.tile.classes, size, grid)
        return _classes_added(total, head, dz, start, options)

    # Whole tiles: as many as give gradients in x's dtype the bytes of XLA's blocks.
    size = options.tiles.classes * tiles.ENTRY // head.x.dtype.itemsize
    size = min(max(size // grid.tile.classes, 1) * grid.tile.classes, k)
    starts = size * jnp.arange(k // size, dtype=jnp.int32)
    total = _zeros(head, wanted, jnp.float32, head.w.dtype)
    total, _ = lax.scan(lambda total, start: (add(total, start, size), None), total, starts)
    if k % size:
        total = add(total, k - k % size, k % size)
    return total if total.x is None else total._replace(x=total.x.astype(head.x.dtype))


def _classes_added(
    total: Moved, head: Head, dz: Array, start: Array | int, options: Options
) -> Moved:
    """Add what a block of classes contributes; its part of w and bias goes into its place."""
    x, w, bias = total
    if x is not None:
        block = lax.dynamic_slice_in_dim(head.w, start, dz.shape[1], 1)
        x = x + products.dot(dz, block, (1, 1), options.precision)
    if w is not None:
        dw = products.dot(head.x, dz, (0, 0), options.precision).astype(w.dtype)
        w = _as_it_lies(lax.dynamic_update_slice_in_dim(w, dw, start, 1))
    if bias is not None:
        bias = lax.dynamic_update_slice_in_dim(bias, _over_rows(dz), start, 0)
    return Moved(x, w, bias)


def _as_it_lies(w: Array) -> Array:
    """The same array, which XLA would bring into another order for a product, and back."""
    order = (1, 0) if _lies_by_class(*w.shape) else (0, 1)
    return with_layout_constraint(w, Layout(major_to_minor=order))


def _over_rows(dz: Array) -> Array:
    """The gradient of the bias."""
    return jnp.sum(dz.astype(jnp.float32), 0)


def _zeros(head: Head, wanted: Wanted, x: Any, w: Any) -> Moved:
    """Where gradients are collected, in these dtypes."""
    return Moved(
        jnp.zeros(head.x.shape, x) if wanted.x else None,
        jnp.zeros(head.w.shape, w) if wanted.w else None,
        jnp.zeros(head.w.shape[1], jnp.float32) if wanted.bias else None,
    )


# -- A weighted sum --


@with_derivatives_of(xla_chunked.value_and_gradients)
def value_and_gradients(
    head: Head, valid: Array | None, weights: Array, wanted: Wanted, options: Options
) -> tuple[Array, Moved]:
    """Each row's loss, and the gradients of the weighted sum; a row that is not valid counts 0."""
    if valid is not None:
        head = head._replace(x=jnp.where(valid[:, None], head.x, 0))
        weights = checks.count(weights, valid)
    if not any(wanted):
        nll, _ = products.row_loss(forward(head, options))
        return checks.count(nll, valid), Moved(None, None, None)
    # As many rows as give exponentials in x's dtype the bytes of XLA's rows, in equal parts.
    n, size = head.x.shape[0], options.tiles.rows * tiles.ENTRY_OF_ROWS // head.x.dtype.itemsize
    size = -(-n // -(-n // size))

    def step(carry: tuple[Array, Moved], i: Array) -> tuple[tuple[Array, Moved], None]:
        nll, total = carry
        begin = jnp.minimum(i * size, n - size)
        chunk = head._replace(
            x=_cut(head.x, begin, size),
            where=_cut(head.where, begin, size),
            truth=_cut(head.truth, begin, size),
        )
        # What another chunk has as well adds nothing to the sums.
        ours = begin + jnp.arange(size, dtype=jnp.int32) >= i * size
        scale = jnp.where(ours, _cut(weights, begin, size), 0)
        value, dz = _row_gradient(chunk, scale, options)
        nll = lax.dynamic_update_slice_in_dim(nll, value, begin, 0)
        return (nll, _rows_added(total, chunk, dz, begin, options)), None

    zeros = jnp.zeros(n, jnp.float32), _zeros(head, wanted, head.x.dtype, jnp.float32)
    chunks = jnp.arange(-(-n // size), dtype=jnp.int32)
    (nll, total), _ = lax.scan(step, zeros, chunks, reverse=True)
    if total.w is not None:
        total = total._replace(w=total.w.astype(head.w.dtype))
    return checks.count(nll, valid), total


def _row_gradient(chunk: Head, weights: Array, options: Options) -> tuple[Array, Array]:
    """Loss of each row, and its weighted gradient in the logits in x's dtype."""
    grid = _grid(chunk, options)
    rows, kept = _pass(chunk, grid, keep=True)
    nll, total = products.row_loss(rows)
    silent = weights == 0  # A weight of 0 silences a NaN.
    scale = jnp.where(silent, 0, weights / total)
    own = jnp.where(silent, 0, -rows.others * scale)
    if options.softcap is not None:
        own *= 1 - (rows.label / options.softcap) ** 2
    factor = relative_exp(kept.reference, rows.maximum[:, None]) * scale[:, None]
    factor = jnp.where(silent[:, None], 0, factor)
    return nll, _scaled(chunk, kept.exponentials, factor, own, grid)


def _rows_added(total: Moved, chunk: Head, dz: Array, begin: Array, options: Options) -> Moved:
    """Add what a chunk of rows contributes; its gradient in x goes into its place."""
    x, w, bias = total
    if x is not None:
        dx = products.over_classes(dz, chunk.w, 1, options.precision).astype(x.dtype)
        x = lax.dynamic_update_slice_in_dim(x, dx, begin, 0)
    if w is not None:
        w = w + products.dot(chunk.x, dz, (0, 0), options.precision)
    return Moved(x, w, None if bias is None else bias + _over_rows(dz))


def _cut[T: (Array, Array | None)](a: T, begin: Array, size: int) -> T:
    """A chunk of rows; what is None or one row for all stays."""
    if a is None or a.shape[0] == 1:
        return a
    return lax.dynamic_slice_in_dim(a, begin, size, 0)


# -- The grid of tiles --


class _Sizes(NamedTuple):
    """Of a tile or of the whole, in the order of the grid's axes."""

    rows: int
    classes: int
    features: int


class _Grid(NamedTuple):
    """What the kernels know at compile time."""

    tile: _Sizes
    whole: _Sizes
    by_class: bool  # whether w comes as [K, D]
    options: Options

    @property
    def steps(self) -> _Sizes:
        """How many tiles there are."""
        return _Sizes(*(pl.cdiv(a, b) for a, b in zip(self.whole, self.tile, strict=True)))

    def block(self, *axes: int | None, local: bool = False) -> Any:
        """A tile along axes of the grid, or of size 1; local: where the first class is 0."""
        shape = tuple(1 if a is None else self.tile[a] for a in axes)

        def index(i: Array, j: Array, step: Array, first: Any) -> tuple:
            at = (i, j if local else first[0] + j, step)
            return tuple(0 if a is None else at[a] for a in axes)

        return pl.BlockSpec(shape, index)

    def mask(self, where: Array | None) -> Any:
        """A tile of `[1, K]` or `[N, K]`, if there is one."""
        return None if where is None else self.block(None if where.shape[0] == 1 else 0, 1)

    def references(self) -> Any:
        """The numbers for each row and tile of classes, and its neighbours."""
        return pl.BlockSpec((self.tile.rows, LANES), lambda i, j, *_: (i, j // LANES))


def _limits() -> _Limits:
    """Of the device that this is traced for, or the least where none is known."""
    known = pltpu.is_tpu_device()
    return LARGE if known and pltpu.get_tpu_info().vmem_capacity_bytes > LARGE.vmem else SMALL


def _grid(head: Head, options: Options) -> _Grid:
    """Row tiles of equal size, and as few classes and features as there are."""
    (n, d), k = head.x.shape, head.w.shape[1]
    limits, size = _limits(), head.x.dtype.itemsize
    tile = _Sizes(
        _multiple(-(-n // -(-n // limits.rows)), GROUP),
        min(limits.classes // size, _multiple(k, LANES)),
        min(d, limits.features // size),
    )
    return _Grid(tile, _Sizes(n, k, d), _lies_by_class(d, k), options)


def _lies_by_class(d: int, k: int) -> bool:
    """Whether a TPU keeps the features of a class of `[D, K]` side by side."""
    return _area(k, d) < _area(d, k)


def _area(rows: int, columns: int) -> int:
    """What a TPU keeps a matrix in, padded."""
    return _multiple(rows, SUBLANES) * _multiple(columns, LANES)


def _multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _run(
    grid: _Grid,
    kernel: Callable,
    inputs: tuple,
    places: list,
    outputs: Any,
    output_places: Any,
    *,
    first: Array | int = 0,
    steps: tuple[int, ...] | None = None,
    **how: Any,
) -> Any:
    """Run a kernel over tiles of rows, of classes from the first on, and of features."""
    return pl.pallas_call(
        partial(kernel, grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.steps if steps is None else steps,
            in_specs=places,
            out_specs=output_places,
            scratch_shapes=[pltpu.VMEM(grid.tile[:2], jnp.float32)],
        ),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_limits().vmem,
        ),
        interpret=grid.options.target.interpret,
        **how,
    )(jnp.full(1, first, jnp.int32), *inputs)


def _array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


# -- Scores --


def _inputs(head: Head, grid: _Grid) -> tuple[Head, Head]:
    """The head as a kernel takes it, and its tiles."""
    bias = None if head.bias is None else head.bias[None, :]
    w, axes = (head.w.T, (1, 2)) if grid.by_class else (head.w, (2, 1))
    return head._replace(w=w, bias=bias, where=_bytes(head.where), truth=head.truth[:, None]), Head(
        grid.block(0, 2),
        grid.block(*axes),
        None if bias is None else grid.block(None, 1),
        grid.mask(head.where),
        grid.block(0, None),
    )


def _bytes(where: Array | None) -> Array | None:
    """A mask as it can be read tile by tile."""
    return None if where is None else where.astype(jnp.int8)


def _then(grid: _Grid, head: Any, z: Any, body: Callable[..., None], *refs: Any) -> None:
    """Add a step of the product to z; after the last one run body on each group of rows."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        z[...] = jnp.zeros_like(z)

    z[...] += _product(grid, head.x[...], head.w[...], step)
    pl.when(step == grid.steps.features - 1)(lambda: _for_groups(grid, body, head, z, *refs))


def _product(grid: _Grid, x: Array, w: Array, step: Array) -> Array:
    """What these features add to the scores; what a block has beyond the last one may be NaN."""
    axis = 1 if grid.by_class else 0
    if grid.whole.features % grid.tile.features:
        left = grid.whole.features - step * grid.tile.features
        x = jnp.where(_index(x.shape, 1) < left, x, 0)
        w = jnp.where(_index(w.shape, axis) < left, w, 0)
    return products.dot(x, w, (1, axis), grid.options.precision)


def _for_groups(grid: _Grid, body: Callable[..., None], *refs: Any) -> None:
    """Run a body on each group of a tile's rows."""

    @pl.loop(0, grid.tile.rows // GROUP)
    def _(g: Array) -> None:
        at = pl.ds(pl.multiple_of(g * GROUP, GROUP), GROUP)
        rows = grid.tile.rows
        body(*jax.tree.map(lambda ref: ref.at[at, :] if ref.shape[0] == rows else ref, refs))


def _scores(grid: _Grid, j: Array, head: Any, z: Any) -> tuple[Array, Array | None, Array, Array]:
    """Scores with bias, softcap and mask, the softcap's slope, and each entry's class and label."""
    found = z[...] if head.bias is None else z[...] + head.bias[...]
    column = j * grid.tile.classes + _index(found.shape, 1)
    exists = _exists(grid, head.where, column)
    found, slope = products.masked_and_capped(found, exists, grid.options.softcap)
    return found, slope, column, column == head.truth[...]


def _exists(grid: _Grid, where: Any, column: Array) -> Array | None:
    """Which of a tile's entries are classes that exist."""
    inside = column < grid.whole.classes if grid.whole.classes % grid.tile.classes else None
    if where is None:
        return inside
    exists = jnp.broadcast_to(where[...].astype(jnp.int32), column.shape) != 0
    return exists if inside is None else exists & inside


def _index(shape: tuple[int, ...], axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _sum(a: Array) -> Array:
    return jnp.sum(a, 1, keepdims=True)


# -- The pass over the classes --


class _Kept(NamedTuple):
    """What the gradient is made of when the pass is over."""

    exponentials: Any  # [N, K], of z - reference, times the softcap's slope; 0 for the label
    reference: Any  # [N, tiles of classes]: the maximum as far as it was known


def _pass(head: Head, grid: _Grid, *, keep: bool) -> tuple[Rows, Any]:
    """The statistics of the rows, with a sum in place of their mean; and what was kept."""
    inputs, places = _inputs(head, grid)
    n, k, _ = grid.whole
    number, index = _array((n, 1)), _array((n, 1), jnp.int32)
    stats = Stats(number, number, index) if grid.options.stats else None
    rows, kept, kept_places = Rows(number, number, number, stats), None, None
    if keep:
        kept = _Kept(_array((n, k), head.x.dtype), _array((n, grid.steps.classes)))
        kept_places = _Kept(grid.block(0, 1), grid.references())
    row_places = jax.tree.map(lambda _: grid.block(0, None), rows)
    rows, kept = _run(
        grid, _pass_kernel, (inputs,), [places], (rows, kept), (row_places, kept_places)
    )
    return jax.tree.map(lambda a: a[:, 0], rows), kept


def _pass_kernel(grid: _Grid, first: Any, head: Any, rows: Any, kept: Any, z: Any) -> None:
    """One tile and one step of it."""
    j = first[0] + pl.program_id(1)

    @pl.when((j == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        for ref in jax.tree.leaves(rows):
            ref[...] = jnp.zeros_like(ref)
        rows.maximum[...] = jnp.full_like(rows.maximum, -jnp.inf)

    _then(grid, head, z, partial(_carry, grid, j), rows, kept)


def _carry(grid: _Grid, j: Array, head: Any, scores: Any, rows: Any, kept: Any) -> None:
    """Carry the numbers of a group of rows over tile j of the classes."""
    z, slope, column, hot = _scores(grid, j, head, scores)
    before = rows.maximum[...]
    maximum = jnp.maximum(before, jnp.max(z, 1, keepdims=True))
    e = jnp.where(hot, 0, relative_exp(z, maximum))
    rows.maximum[...] = maximum
    rows.others[...] = rows.others[...] * relative_exp(before, maximum) + _sum(e)
    rows.label[...] += _sum(jnp.where(hot, z, 0))
    if rows.stats is not None:
        live = z != -jnp.inf
        first = jnp.min(jnp.where(z == maximum, column, grid.whole.classes), 1, keepdims=True)
        sums, counts, predicted = rows.stats
        sums[...] += _sum(jnp.where(live, z, 0))
        counts[...] += _sum(jnp.where(live, 1.0, 0.0))
        predicted[...] = jnp.where(maximum > before, first, predicted[...])
    if kept is not None:
        e = e if slope is None else e * slope
        kept.exponentials[...] = e.astype(kept.exponentials.dtype)
        past = kept.reference[...]
        kept.reference[...] = jnp.where(_index(past.shape, 1) == j % LANES, maximum, past)


# -- Gradients in the logits --


class _Pull(NamedTuple):
    """What the gradient of a row is made of, `[N]` or `[N, 1]` each."""

    maximum: Any
    others: Any  # cotangents
    label: Any
    mean: Any  # for each class that exists


def _pulled(head: Head, pull: _Pull, first: Array | int, size: int, grid: _Grid) -> Array:
    """Of a block of classes from a tile on, in x's dtype."""
    inputs, places = _inputs(head, grid)
    columns = jax.tree.map(lambda a: a[:, None], pull)
    return _run(
        grid,
        _pull_kernel,
        (inputs, columns),
        [places, jax.tree.map(lambda _: grid.block(0, None), columns)],
        _array((grid.whole.rows, size), head.x.dtype),
        grid.block(0, 1, local=True),
        first=first,
        steps=(grid.steps.rows, pl.cdiv(size, grid.tile.classes), grid.steps.features),
    )


def _pull_kernel(grid: _Grid, first: Any, head: Any, pull: Any, dz: Any, z: Any) -> None:
    """One tile and one step of it: the scores of the pass over the classes, to the last bit."""
    _then(grid, head, z, partial(_pull, grid, first[0] + pl.program_id(1)), pull, dz)


def _pull(grid: _Grid, j: Array, head: Any, scores: Any, pull: Any, dz: Any) -> None:
    z, slope, column, hot = _scores(grid, j, head, scores)
    e = relative_exp(z, pull.maximum[...]) * pull.others[...]
    found = jnp.where(hot, pull.label[...], e)
    if pull.mean is not None:
        found += jnp.where(z == -jnp.inf, 0, pull.mean[...])
    found = found if slope is None else found * slope
    exists = _exists(grid, head.where, column)
    dz[...] = (found if exists is None else jnp.where(exists, found, 0)).astype(dz.dtype)


def _scaled(head: Head, e: Array, factor: Array, own: Array, grid: _Grid) -> Array:
    """Exponentials made gradients in their place.

    In XLA the factors, one for each row and tile, would first be spread to `[N, K]`.
    """
    square, a_row = grid.block(0, 1), grid.block(0, None)
    return _run(
        grid,
        _scale_kernel,
        (e, factor, own[:, None], head.truth[:, None], _bytes(head.where)),
        [square, grid.references(), a_row, a_row, grid.mask(head.where)],
        _array(e.shape, e.dtype),
        square,
        steps=(*grid.steps[:2], 1),
        input_output_aliases={1: 0},
    )


def _scale_kernel(grid: _Grid, first: Any, *refs: Any) -> None:
    """One tile of it."""
    _for_groups(grid, partial(_scale, grid, first[0] + pl.program_id(1)), *refs)


def _scale(
    grid: _Grid, j: Array, e: Any, factor: Any, own: Any, truth: Any, where: Any, dz: Any, _: Any
) -> None:
    """Scale a group's exponentials by the rows' factors, and put in the label's entry."""
    here = _sum(jnp.where(_index(factor.shape, 1) == j % LANES, factor[...], 0))
    scale = jnp.broadcast_to(here, e.shape)
    found = jnp.where(scale == 0, 0, e[...].astype(jnp.float32) * scale)
    column = j * grid.tile.classes + _index(e.shape, 1)
    found = jnp.where(column == truth[...], own[...], found)
    exists = _exists(grid, where, column)
    dz[...] = (found if exists is None else jnp.where(exists, found, 0)).astype(dz.dtype)
