"""Tiles of scores on a TPU: how large they are, and how a kernel makes one after the other.

The scores of a tile of rows and classes come to be on the matrix unit, feature step by feature
step, in a float32 scratch buffer. After the last step they get the bias, the softcap and the mask,
and what becomes of them is the kernel's body, which is run on a group of rows at a time so that
little is alive. Row tiles are independent; classes and features follow one another.

Edges need no padding: what a block holds beyond K is masked, beyond D set to 0, and beyond N never
written. A TPU keeps a matrix in the order that its tiles of 8 x 128 pad less. Where that is
class-major, as for D = 2304 and K = 256001, w is taken transposed, which is the array as it lies;
the other order would be a copy of w.
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

from jaxsoftmax import placement, validation
from jaxsoftmax.kernels import primitives, tiles
from jaxsoftmax.kernels.types import Head, Options


class Limits(NamedTuple):
    """At most so many rows, bytes of classes and of features in a tile; and bytes of VMEM."""

    rows: int
    classes: int
    features: int
    vmem: int
    wide: int  # of VMEM, where targets are wider than features


# Both buffers of each block and a column of 128 lanes for each number of a row fit. v4 has 16 MiB,
# and later ones 64 at least, of which XLA keeps less for itself where a kernel may have more.
SMALL = Limits(768, 1024, 1536, 16 * tiles.MEBIBYTE, 16 * tiles.MEBIBYTE)
LARGE = Limits(2048, 2048, 1536, 48 * tiles.MEBIBYTE, 56 * tiles.MEBIBYTE)

GROUP = 32  # rows that are finished at a time
SUBLANES, LANES = 8, 128
READABLE = (jnp.int8, jnp.bfloat16, jnp.float32)  # entries for each row and class


# -- The grid of tiles --


class Sizes(NamedTuple):
    """Of a tile or of the whole, in the order of the grid's axes."""

    rows: int
    classes: int
    features: int


class Grid(NamedTuple):
    """What the kernels know at compile time."""

    tile: Sizes
    whole: Sizes
    by_class: bool  # whether w comes as [K, D]
    vmem: int  # bytes
    options: Options

    @property
    def steps(self) -> Sizes:
        """How many tiles there are."""
        return Sizes(*(pl.cdiv(a, b) for a, b in zip(self.whole, self.tile, strict=True)))

    def block(self, *axes: int | None, local: bool = False) -> Any:
        """A tile along axes of the grid, or of size 1; local: where the first class is 0."""
        shape = tuple(1 if a is None else self.tile[a] for a in axes)

        def index(i: Array, j: Array, step: Array, first: Any) -> tuple:
            at = (i, j if local else first[0] + j, step)
            return tuple(0 if a is None else at[a] for a in axes)

        return pl.BlockSpec(shape, index)

    def entries(self, a: Array) -> Any:
        """A tile of `[N, K]`, or of a block of its classes."""
        return self.block(0, 1, local=a.shape[1] < self.whole.classes)

    def mask(self, where: Array | None) -> Any:
        """The same, or a tile of `[1, K]`, if there is one."""
        if where is None:
            return None
        return self.block(None, 1) if where.shape[0] == 1 else self.entries(where)

    def references(self) -> Any:
        """The numbers for each row and tile of classes, and its neighbours."""
        return pl.BlockSpec((self.tile.rows, LANES), lambda i, j, *_: (i, j // LANES))


def limits() -> Limits:
    """Of the device that this is traced for, or the least where none is known."""
    known = pltpu.is_tpu_device()
    return LARGE if known and pltpu.get_tpu_info().vmem_capacity_bytes > LARGE.vmem else SMALL


def grid_of(head: Head, options: Options) -> Grid:
    """Row tiles of equal size, and as few classes and features as there are."""
    (n, d), k = head.x.shape, head.w.shape[1]
    most, size = limits(), head.x.dtype.itemsize
    tile = Sizes(
        _multiple(-(-n // -(-n // most.rows)), GROUP),
        min(most.classes // size, _multiple(k, LANES)),
        min(d, most.features // size),
    )
    wide = head.targets.ndim == 2 and _itemsize(head.targets) > size
    vmem = most.wide if wide else most.vmem
    return Grid(tile, Sizes(n, k, d), lies_by_class(d, k), vmem, options)


def lies_by_class(d: int, k: int) -> bool:
    """Whether a TPU keeps the features of a class of `[D, K]` side by side."""
    return _area(k, d) < _area(d, k)


def as_it_lies(a: Array, whole: tuple[int, ...]) -> Array:
    """The same array in the order of the whole; XLA would choose what suits an operation on it."""
    order = (1, 0) if lies_by_class(*whole) else (0, 1)
    return with_layout_constraint(a, Layout(major_to_minor=order))


def _area(rows: int, columns: int) -> int:
    """What a TPU keeps a matrix in, padded."""
    return _multiple(rows, SUBLANES) * _multiple(columns, LANES)


def _multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def run(
    grid: Grid,
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
    """Run a kernel over tiles of rows, of classes from the first on, and of features.

    It writes `array`s, which vary over the mesh axes over which its inputs do.
    """
    start, like = placement.match_varying_axes(
        jnp.full(1, first, jnp.int32), jax.tree.leaves(inputs)[0]
    )
    return pl.pallas_call(
        partial(kernel, grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.steps if steps is None else steps,
            in_specs=places,
            out_specs=output_places,
            scratch_shapes=[pltpu.VMEM(grid.tile[:2], jnp.float32)],
        ),
        out_shape=jax.tree.map(
            lambda a: placement.shape_dtype_struct(a.shape, a.dtype, like), outputs
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=grid.vmem,
        ),
        interpret=grid.options.target.interpret,
        **how,
    )(start, *inputs)


def array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """What a kernel writes."""
    return jax.ShapeDtypeStruct(shape, dtype)


# -- Scores --


def inputs_of(head: Head, grid: Grid) -> tuple[Head, Head]:
    """The head as a kernel takes it, and its tiles."""
    w, axes = (head.w.T, (1, 2)) if grid.by_class else (head.w, (2, 1))
    bias = None if head.bias is None else head.bias[None, :]
    labels = head.targets.ndim == 1
    truth = head.targets[:, None] if labels else readable(head.targets)
    where = None if head.where is None else readable(head.where)
    taken = Head(head.x, w, bias, where, truth, head.pos_weight)
    return taken, Head(
        grid.block(0, 2),
        grid.block(*axes),
        None if bias is None else grid.block(None, 1),
        grid.mask(head.where),
        grid.block(0, None) if labels else grid.entries(head.targets),
        grid.mask(head.pos_weight),
    )


def block_of(head: Head, start: Array | int, size: int) -> Head:
    """The head for a block of labels: of targets and mask no more is copied than the block."""

    def cut(a: Any) -> Any:
        if not _copied(a):
            return a
        block = readable(lax.dynamic_slice_in_dim(a, start, size, 1))
        # Or XLA brings all of the whole into the kernels' order before the loop.
        return as_it_lies(block, a.shape)

    return head._replace(where=cut(head.where), targets=cut(head.targets))


def copied_bytes(head: Head) -> int:
    """What `block_of` makes kernels copy, for each entry."""
    return _copied(head.where) + _copied(head.targets)


def _copied(a: Array | None) -> int:
    """The bytes of an entry, one for each row and class, that a kernel cannot read as it lies."""
    if a is None or a.shape[0] == 1 or (a.dtype in READABLE and not lies_by_class(*a.shape)):
        return 0
    return _itemsize(a)


def _itemsize(a: Array) -> int:
    """Of an entry as a kernel reads it."""
    return jax.eval_shape(readable, a).dtype.itemsize


def readable(a: Array) -> Array:
    """A mask or targets as a kernel can read them; a whole number that is no target stays none."""
    if a.dtype in READABLE:
        return a
    if a.dtype == jnp.bool_:
        return a.astype(jnp.int8)
    if jnp.issubdtype(a.dtype, jnp.floating):
        # Here, for in float32 a rounding of half precision is no longer seen to be one.
        return validation.clip_probabilities(a, jnp.float32)
    return jnp.where((a == 0) | (a == 1), a.astype(jnp.int8), 2)


def then(grid: Grid, head: Any, z: Any, body: Callable[..., None], *refs: Any) -> None:
    """Add a step of the product to z; after the last one run body on each group of rows."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        z[...] = jnp.zeros_like(z)

    z[...] += _product(grid, head.x[...], head.w[...], step)
    pl.when(step == grid.steps.features - 1)(lambda: for_groups(grid, body, head, z, *refs))


def _product(grid: Grid, x: Array, w: Array, step: Array) -> Array:
    """What these features add to the scores; what a block has beyond the last one may be NaN."""
    axis = 1 if grid.by_class else 0
    if grid.whole.features % grid.tile.features:
        left = grid.whole.features - step * grid.tile.features
        x = jnp.where(indices(x.shape, 1) < left, x, 0)
        w = jnp.where(indices(w.shape, axis) < left, w, 0)
    return primitives.dot(x, w, (1, axis), grid.options.precision)


def for_groups(grid: Grid, body: Callable[..., None], *refs: Any) -> None:
    """Run a body on each group of a tile's rows."""

    @pl.loop(0, grid.tile.rows // GROUP)
    def _(g: Array) -> None:
        at = pl.ds(pl.multiple_of(g * GROUP, GROUP), GROUP)
        rows = grid.tile.rows
        body(*jax.tree.map(lambda ref: ref.at[at, :] if ref.shape[0] == rows else ref, refs))


def scores(
    grid: Grid, j: Array, head: Any, z: Any
) -> tuple[Array, Array | None, Array, Array | None]:
    """Scores with bias, softcap and mask; the softcap's slope; each entry's class; which exist."""
    found = z[...] if head.bias is None else z[...] + head.bias[...]
    column = j * grid.tile.classes + indices(found.shape, 1)
    exists = exists_in(grid, head.where, column)
    found, slope = primitives.mask_and_cap(found, exists, grid.options.softcap)
    return found, slope, column, exists


def exists_in(grid: Grid, where: Any, column: Array) -> Array | None:
    """Which of a tile's entries are classes that exist."""
    inside = column < grid.whole.classes if grid.whole.classes % grid.tile.classes else None
    if where is None:
        return inside
    exists = jnp.broadcast_to(where[...].astype(jnp.int32), column.shape) != 0
    return exists if inside is None else exists & inside


def indices(shape: tuple[int, ...], axis: int) -> Array:
    """Each entry's place along an axis."""
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def row_sum(a: Array) -> Array:
    """A number for each row, as a column."""
    return jnp.sum(a, 1, keepdims=True)
