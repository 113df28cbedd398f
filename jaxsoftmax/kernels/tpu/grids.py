"""Tiles of logits on a TPU: their sizes, and the grid over which a kernel computes them.

The matrix unit computes the logits of a tile of rows and classes in a float32 scratch buffer, one
step over the features after another. After the last step the bias is added, softcap and mask are
applied, and the kernel's epilogue computes the results from the logits. It runs on a group of rows
at a time, so that few values are alive. Row tiles are independent; classes and features are
sequential.

Edges need no padding: entries of a block beyond K are masked, those beyond D are set to 0, and
those beyond N are never written. A TPU stores a matrix in the order whose tiles of 8 x 128 need
less padding. Where that is class-major, as for D = 2304 and K = 256001, kernels take w transposed,
which is the array in its own layout; the other order would be a copy of w.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import tpu as pltpu

from jaxsoftmax import validation
from jaxsoftmax.kernels import primitives, tiles
from jaxsoftmax.kernels.chunks import even_size, round_up
from jaxsoftmax.kernels.types import Head, Options


class Limits(NamedTuple):
    """The largest size of a tile, and the memory that a kernel may use."""

    rows: int
    class_bytes: int  # of the classes in a row of a tile
    feature_bytes: int  # of the features in a row of a tile
    vmem_bytes: int
    wide_target_vmem_bytes: int  # of VMEM, where targets are wider than features


# Both buffers of each block fit, and a column of 128 lanes for each number of a row. v4 has 16 MiB
# of VMEM. Later generations have at least 64 MiB, of which XLA keeps less for itself where a kernel
# may have more.
SMALL_VMEM_LIMITS = Limits(768, 1024, 1536, 16 * tiles.MEBIBYTE, 16 * tiles.MEBIBYTE)
LARGE_VMEM_LIMITS = Limits(2048, 2048, 1536, 48 * tiles.MEBIBYTE, 56 * tiles.MEBIBYTE)

EPILOGUE_ROWS = 32  # rows to which an epilogue is applied at a time
SUBLANES, LANES = 8, 128
# The dtypes of masks and targets, `[N, K]`, that a kernel loads without a copy.
LOADABLE_DTYPES = (jnp.int8, jnp.bfloat16, jnp.float32)


# -- The grid of tiles --


class Sizes(NamedTuple):
    """The sizes of a tile or of the whole problem, in the order of the axes of the grid."""

    rows: int
    classes: int
    features: int


class Grid(NamedTuple):
    """The values that kernels know at compile time."""

    tile: Sizes
    whole: Sizes
    class_major: bool  # whether kernels take w as [K, D]
    vmem_bytes: int
    options: Options

    @property
    def num_tiles(self) -> Sizes:
        """The number of tiles along each axis."""
        return Sizes(*(pl.cdiv(a, b) for a, b in zip(self.whole, self.tile, strict=True)))

    def block_spec(self, *axes: int | None, local: bool = False) -> Any:
        """Return the spec of a tile along these axes of the grid, of size 1 where an axis is None.

        The array of a local spec holds one block of classes, whose first one has the index 0.
        """
        shape = tuple(1 if a is None else self.tile[a] for a in axes)

        def index_map(i: Array, j: Array, step: Array, first: Any) -> tuple:
            indices = (i, j if local else first[0] + j, step)
            return tuple(0 if a is None else indices[a] for a in axes)

        return pl.BlockSpec(shape, index_map)

    def entry_spec(self, a: Array) -> Any:
        """Return the spec of an array `[N, K]`, or of a block of its classes."""
        return self.block_spec(0, 1, local=a.shape[1] < self.whole.classes)

    def mask_spec(self, where: Array | None) -> Any:
        """Return the spec of an array `[N, K]` or `[1, K]`, or None if there is none."""
        if where is None:
            return None
        return self.block_spec(None, 1) if where.shape[0] == 1 else self.entry_spec(where)

    def row_spec(self) -> Any:
        """Return the spec of one number for each row, `[N]`; see `calls`."""
        return pl.BlockSpec((1, 1, self.tile.rows), lambda i, *_: (i, 0, 0))

    def per_tile_spec(self) -> Any:
        """Return the spec of an array with one number for each row and tile of classes.

        A block holds the numbers of 128 neighboring tiles.
        """
        return pl.BlockSpec((self.tile.rows, LANES), lambda i, j, *_: (i, j // LANES))


def device_limits() -> Limits:
    """Return the limits of the device that this is traced for, or the smallest if it is unknown."""
    is_known = pltpu.is_tpu_device()
    if is_known and pltpu.get_tpu_info().vmem_capacity_bytes > LARGE_VMEM_LIMITS.vmem_bytes:
        return LARGE_VMEM_LIMITS
    return SMALL_VMEM_LIMITS


def make_grid(head: Head, options: Options) -> Grid:
    """Return the grid for a head, with row tiles of equal size.

    Tiles have no more classes and features than there are.
    """
    (n, d), k = head.x.shape, head.w.shape[1]
    limits, itemsize = device_limits(), head.x.dtype.itemsize
    tile = Sizes(
        round_up(even_size(n, limits.rows), EPILOGUE_ROWS),
        min(limits.class_bytes // itemsize, round_up(k, LANES)),
        min(d, limits.feature_bytes // itemsize),
    )
    has_wide_targets = head.targets.ndim == 2 and _loaded_itemsize(head.targets) > itemsize
    vmem_bytes = limits.wide_target_vmem_bytes if has_wide_targets else limits.vmem_bytes
    return Grid(tile, Sizes(n, k, d), is_class_major(d, k), vmem_bytes, options)


def is_class_major(d: int, k: int) -> bool:
    """Return whether a TPU stores the features of a class of `[D, K]` side by side."""
    return _padded_size(k, d) < _padded_size(d, k)


def keep_layout(a: Array, shape: tuple[int, ...]) -> Array:
    """Return `a` in the layout of an array of this shape.

    XLA would choose the layout that suits an operation on it.
    """
    order = (1, 0) if is_class_major(*shape) else (0, 1)
    return with_layout_constraint(a, Layout(major_to_minor=order))


def _padded_size(rows: int, columns: int) -> int:
    """Return the number of entries that a TPU stores for a matrix, with padding."""
    return round_up(rows, SUBLANES) * round_up(columns, LANES)


# -- Inputs of kernels --


def prepare_inputs(head: Head, grid: Grid) -> tuple[Head, Head]:
    """Return the head in the form that kernels take, and its block specs."""
    w, axes = (head.w.T, (1, 2)) if grid.class_major else (head.w, (2, 1))
    bias = None if head.bias is None else head.bias[None, :]
    are_labels = head.targets.ndim == 1
    targets = head.targets if are_labels else to_loadable(head.targets)
    where = None if head.where is None else to_loadable(head.where)
    inputs = Head(head.x, w, bias, where, targets, head.pos_weight)
    return inputs, Head(
        grid.block_spec(0, 2),
        grid.block_spec(*axes),
        None if bias is None else grid.block_spec(None, 1),
        grid.mask_spec(head.where),
        grid.row_spec() if are_labels else grid.entry_spec(head.targets),
        grid.mask_spec(head.pos_weight),
    )


def copy_block(head: Head, start: Array | int, size: int) -> Head:
    """Return the head for a block of labels, with copies of the targets and the mask of the block.

    What kernels can load without a copy stays as it is.
    """

    def take(a: Any) -> Any:
        if not _copied_bytes(a):
            return a
        block = to_loadable(lax.dynamic_slice_in_dim(a, start, size, 1))
        # Otherwise XLA brings the whole array into the kernels' order before the loop.
        return keep_layout(block, a.shape)

    return head._replace(where=take(head.where), targets=take(head.targets))


def copied_bytes_per_entry(head: Head) -> int:
    """Return how many bytes `copy_block` copies for each row and class."""
    return _copied_bytes(head.where) + _copied_bytes(head.targets)


def _copied_bytes(a: Array | None) -> int:
    """Return the bytes of an entry of `[N, K]` that a kernel cannot load without a copy, else 0."""
    if a is None or a.shape[0] == 1:
        return 0
    is_loadable = a.dtype in LOADABLE_DTYPES and not is_class_major(*a.shape)
    return 0 if is_loadable else _loaded_itemsize(a)


def _loaded_itemsize(a: Array) -> int:
    """Return the bytes of an entry in the form that a kernel loads."""
    return jax.eval_shape(to_loadable, a).dtype.itemsize


def to_loadable(a: Array) -> Array:
    """Return a mask or targets in a dtype that kernels load; invalid targets stay invalid."""
    if a.dtype in LOADABLE_DTYPES:
        return a
    if a.dtype == jnp.bool_:
        return a.astype(jnp.int8)
    if jnp.issubdtype(a.dtype, jnp.floating):
        # Clipped before the cast: float32 no longer shows that half precision was rounded.
        return validation.clip_probabilities(a, jnp.float32)
    return jnp.where((a == 0) | (a == 1), a.astype(jnp.int8), 2)


# -- Inside a kernel --


def accumulate(grid: Grid, head: Any, acc: Any, epilogue: Callable[..., None], *refs: Any) -> None:
    """Add one step of the products to a tile; after the last one run the epilogue on its rows."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _zero() -> None:
        acc[...] = jnp.zeros_like(acc)

    acc[...] += _product(grid, head.x[...], head.w[...], step)
    is_last = step == grid.num_tiles.features - 1
    pl.when(is_last)(lambda: for_row_groups(grid, epilogue, head, acc, *refs))


def _product(grid: Grid, x: Array, w: Array, step: Array) -> Array:
    """Return the product over the features of a step.

    The entries of a block beyond the last feature may be NaN.
    """
    axis = 1 if grid.class_major else 0
    if grid.whole.features % grid.tile.features:
        remaining = grid.whole.features - step * grid.tile.features
        x = jnp.where(iota(x.shape, 1) < remaining, x, 0)
        w = jnp.where(iota(w.shape, axis) < remaining, w, 0)
    return primitives.dot(x, w, (1, axis), grid.options.precision)


def for_row_groups(grid: Grid, function: Callable[..., None], *refs: Any) -> None:
    """Call a function with the references of each group of a tile's rows."""
    num_rows = grid.tile.rows

    @pl.loop(0, num_rows // EPILOGUE_ROWS)
    def _group(g: Array) -> None:
        rows = pl.ds(pl.multiple_of(g * EPILOGUE_ROWS, EPILOGUE_ROWS), EPILOGUE_ROWS)
        function(*jax.tree.map(lambda a: a.at[rows, :] if a.shape[0] == num_rows else a, refs))


class Logits(NamedTuple):
    """A group of rows of a tile of logits."""

    z: Array  # with bias, softcap and mask
    dcap: Array | None  # the derivative of the softcap
    column: Array  # the class of each entry
    exists: Array | None  # which entries are classes that exist, None for all


def load_logits(grid: Grid, j: Array, head: Any, acc: Any) -> Logits:
    """Return the logits of the j-th tile of classes from the sum of its products."""
    z = acc[...] if head.bias is None else acc[...] + head.bias[...]
    column = j * grid.tile.classes + iota(z.shape, 1)
    exists = class_mask(grid, head.where, column)
    z, dcap = primitives.mask_and_cap(z, exists, grid.options.softcap)
    return Logits(z, dcap, column, exists)


def class_mask(grid: Grid, where: Any, column: Array) -> Array | None:
    """Return which entries of a tile are classes that exist, or None for all."""
    in_range = column < grid.whole.classes if grid.whole.classes % grid.tile.classes else None
    if where is None:
        return in_range
    exists = jnp.broadcast_to(where[...].astype(jnp.int32), column.shape) != 0
    return exists if in_range is None else exists & in_range


def iota(shape: tuple[int, ...], axis: int) -> Array:
    """Return the index of each entry along an axis."""
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def row_sum(a: Array) -> Array:
    """Return the sums of the rows, as a column."""
    return jnp.sum(a, 1, keepdims=True)
