"""Tiles of logits on a GPU: which core makes which, and what becomes of one in registers.

A tile has 128 examples and 256 classes, and comes to be as the device's instructions allow
(`hopper`, `blackwell`). Two warpgroups take a share of it each, and what they then do to the logits
in their registers is the kernel's end:

    softmax_statistics  bias, softcap and mask; the share's maximum, the sum of the others'
                        exponentials and the label's logit go to memory, 3 numbers a row
    softmax_gradient    the logits again, and their gradient in half precision goes to memory, for
                        a block of classes at a time
    sigmoid_...         the sum of the labels' losses goes to memory, a number a row, or their
                        gradients in half precision, or both; targets are read tile by tile

As many blocks run as the GPU has cores, each with one tile after the other. Where the tiles of rows
are even in number, two neighbours of a cluster take two of them with the same classes, and copy one
half of w's tile each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels import primitives

# A tile of logits, and the features that are multiplied at a time.
ROWS, CLASSES, FEATURES = 128, 256, 64
TILING = (8, 64)  # what shared memory is swizzled by, in half precision
PARTS = range(4)  # of the classes of a share: the ends work on one after the other
PIECES = 4  # of a part: more at a time are too many for the registers, where much is done
BAND = 16  # tiles of rows that are done for each tile of classes, so that both stay in the cache

MISSING = -float("inf")  # in place of a target: there is no such label
LOG2E = float(np.log2(np.e))


class Work(NamedTuple):
    """What a kernel is given: references to arrays, and what is known at compile time."""

    end: Callable[["Tile"], None]  # what is done to a share of a tile
    softcap: float | None
    pair: bool  # whether two neighbours share tiles of w
    gaps: bool  # whether a target may be `MISSING`
    slack: float  # by which rounding may have put a target outside [0, 1]
    x: Any
    w: Any
    start: Any  # the first class, a multiple of 64; what follows is relative to it
    columns: Sequence[Any]  # numbers of each class; the first is added to the products
    rows: Sequence[Any]  # numbers of each row; for the softmax the first is the label
    targets: Sequence[Any]  # of rows and classes: the sigmoid's, or none
    outputs: Sequence[Any]

    @property
    def steps(self) -> int:
        """How many times features are multiplied for a tile."""
        return pl.cdiv(self.x.shape[1], FEATURES)


def swizzled(dtype: Any, *shape: int) -> Any:
    """Shared memory in the tiles of which copies and tensor cores take whole ones."""
    width = min(TILING[1], shape[-1])
    tiling = gpu.TilingTransform((TILING[0], width))  # type: ignore[abstract]
    return gpu.SMEM(shape, dtype, transforms=(tiling, gpu.SwizzleTransform(2 * width)))  # type: ignore[abstract]


def walk(work: Work) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """How many tiles are this core's, and the row and column of its t-th."""
    pair = work.pair
    grid = pl.cdiv(work.x.shape[0], ROWS * (1 + pair)), work.columns[0].shape[0] // CLASSES
    core, cores = lax.axis_index("core"), lax.axis_size("core")
    count = lax.div(grid[0] * grid[1] - core + cores - 1, cores)

    def place(t: Any) -> tuple[Any, Any]:
        i, j = gpu.planar_snake(core + t * cores, grid, 0, BAND // (1 + pair))
        return (2 * i + lax.axis_index("pair") if pair else i), j

    return count, place


@dataclass(frozen=True)
class Tile:
    """A warpgroup's share of a tile of logits: rows, and classes in parts."""

    work: Work
    products: Callable[[int], Array]  # x w, of a part
    layout: gpu.Layout  # of the products in registers
    shape: tuple[int, int]  # of a part
    share: int  # classes of a share
    column: Any  # index of the share among those of the classes
    row: Any  # the rows' slice
    slots: Sequence[Any]  # two of shared memory, through which parts go to memory

    @property
    def first(self) -> Any:
        """The share's first class."""
        return self.column * self.share

    def finer(self, pieces: int) -> "Tile":
        """The same in so many times as many parts."""
        rows, size = self.shape[0], self.shape[1] // pieces

        def products(part: int) -> Array:
            whole, piece = divmod(part, pieces)
            return self.products(whole)[:, piece * size : (piece + 1) * size]

        return replace(self, products=products, shape=(rows, size))

    def logits(self, part: int) -> tuple[Array, Array | None]:
        """Of a part, and the softcap's derivative."""
        return capped(self.products(part) + self.by_class(0, part), self.work.softcap)

    def classes(self, part: int) -> Any:
        """The slice of a part's classes."""
        return pl.ds(self.first + part * self.shape[1], self.shape[1])

    def by_class(self, index: int, part: int) -> Array:
        """A number of each class, for all rows."""
        found = self.work.columns[index].at[self.classes(part)]
        found = gpu.load(found, layout=self.layout.reduce(0), optimized=False)
        return lax.broadcast_in_dim(found, self.shape, [1])

    def by_row(self, index: int) -> Array:
        """A number of each row, laid out as the products' rows are."""
        found = self.work.rows[index].at[self.row]
        return gpu.load(found, layout=self.layout.reduce(1), optimized=False)

    def targets(self, part: int) -> Array:
        """The targets of a part in float32, as they are."""
        found = self.work.targets[0].at[self.row, self.classes(part)]
        return gpu.load(found, layout=self.layout, optimized=False).astype(jnp.float32)

    def labels(self) -> Array:
        """The labels' places in the share."""
        return self.by_row(0) - self.first

    def index(self, dtype: Any) -> Array:
        """Each entry's place among the classes of its part."""
        return gpu.broadcasted_iota(jnp.int32, self.shape, 1, layout=self.layout).astype(dtype)

    def hot(self, own: Array, part: int) -> Array:
        """Which entries of a part are the labels'."""
        return self.index(jnp.int32) == self.over(own - part * self.shape[1])

    def over(self, rows: Array) -> Array:
        """One number a row, for all entries of a part."""
        return lax.broadcast_in_dim(rows, self.shape, [0])

    def store(self, out: Any, part: int, values: Array) -> None:
        """Entries of a part to memory, in half precision."""
        slot = self.slots[part % 2]
        gpu.wait_smem_to_gmem(1, wait_read_only=True)
        slot[...] = values.astype(slot.dtype)
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(slot, out.at[self.row, self.classes(part)])


def capped(z: Array, softcap: float | None) -> tuple[Array, Array | None]:
    """Return the logits after the softcap, which is a product here, and its derivative."""
    if softcap is None:
        return z, None
    return primitives.cap(z, jnp.tanh(z * (1 / softcap)), softcap)


# -- Its ends --


def softmax_statistics(tile: Tile) -> None:
    """Maximum, others and label of a tile; its exponentials or further statistics, if asked for."""
    top, others, label, *more = tile.work.outputs
    own = tile.labels()
    here = (tile.column, tile.row)
    parts = [tile.logits(p) for p in PARTS]
    maximum = jnp.max(_folded(jnp.maximum, [z for z, _ in parts]), 1)
    base = tile.over(jnp.where(maximum == -jnp.inf, 0.0, maximum))
    # Each part is summed before the next one is worked on, or the registers do not suffice.
    sums, labels = [], []
    for p, (z, slope) in enumerate(parts):
        hot = tile.hot(own, p)
        e = jnp.where(hot, 0.0, jnp.exp2((z - base) * LOG2E))
        sums.append(jnp.sum(e, 1))
        labels.append(jnp.sum(jnp.where(hot, z, 0.0), 1))
        if len(more) == 1:
            tile.store(more[0], p, e if slope is None else e * slope)
    top[here] = maximum
    others[here] = _folded(jnp.add, sums)
    label[here] = _folded(jnp.add, labels)
    if len(more) == 3:
        for output, values in zip(
            more, _further(tile, [z for z, _ in parts], maximum), strict=True
        ):
            output[here] = values


def _further(tile: Tile, z: list[Array], maximum: Array) -> tuple[Array, Array, Array]:
    """Sum and number of the logits that exist, and the first place in the tile of the largest."""
    exists = [a != -jnp.inf for a in z]
    live = [jnp.sum(jnp.where(e, a, 0.0), 1) for e, a in zip(exists, z, strict=True)]
    classes = [jnp.sum(jnp.where(e, 1.0, 0.0), 1) for e in exists]
    index, top, size = tile.index(jnp.float32), tile.over(maximum), tile.shape[1]
    places = [
        jnp.min(jnp.where(a == top, index + size * p, float(CLASSES)), 1) for p, a in enumerate(z)
    ]
    return _folded(jnp.add, live), _folded(jnp.add, classes), _folded(jnp.minimum, places)


def softmax_gradient(tile: Tile) -> None:
    """exp(z - maximum) times the others' cotangent, and the label's cotangent in its place."""
    own = tile.labels()
    maximum, others, label, mean = (tile.over(tile.by_row(i)) for i in range(1, 5))
    for p in PARTS:
        z, slope = tile.logits(p)
        dz = jnp.exp2((z - maximum) * LOG2E) * others
        dz = jnp.where(tile.hot(own, p), label, dz) + mean
        dz = dz if slope is None else dz * slope
        tile.store(tile.work.outputs[0], p, jnp.where(z == -jnp.inf, 0.0, dz))


def sigmoid_losses(tile: Tile) -> None:
    """The sums of the label losses over a tile."""
    _sigmoid(tile, losses=True)


def sigmoid_gradients(tile: Tile) -> None:
    """The gradients of the label losses, times the rows' weights."""
    _sigmoid(tile, gradients=True)


def sigmoid_losses_and_gradients(tile: Tile) -> None:
    """Both."""
    _sigmoid(tile, losses=True, gradients=True)


def _sigmoid(tile: Tile, *, losses: bool = False, gradients: bool = False) -> None:
    """Losses a few classes at a time, and gradients after them, or the registers do not suffice."""
    outputs = tile.work.outputs
    if losses:
        fine = tile.finer(PIECES)
        total = _label_losses(fine, 0)
        for p in range(1, PIECES * len(PARTS)):
            total = total + _label_losses(fine, p)
        outputs[0][tile.column, tile.row] = jnp.sum(total, 1)
    if gradients:
        for p in PARTS:
            tile.store(outputs[-1], p, _label_gradients(tile, p))


def _label_losses(tile: Tile, part: int) -> Array:
    """w t softplus(-z) + (1 - t) softplus(z), which |z| and log(1 + exp(-|z|)) are the parts of."""
    z, _, one, zero, exists = _binary(tile, part)
    size, far = jnp.abs(z), jnp.where(z >= 0.0, zero, one)
    # A coefficient of 0 silences an infinite logit.
    far = jnp.where((far == 0.0) & (size == jnp.inf), 0.0, far * size)
    return jnp.where(exists, (one + zero) * primitives.log1p(jnp.exp2(size * -LOG2E)) + far, 0.0)


def _label_gradients(tile: Tile, part: int) -> Array:
    """(1 - t) sigmoid(z) - w t sigmoid(-z), times the row's weight."""
    z, slope, one, zero, exists = _binary(tile, part)
    e = jnp.exp2(jnp.abs(z) * -LOG2E)
    dz = jnp.where(z >= 0.0, zero - one * e, zero * e - one) / (1.0 + e)
    dz = dz if slope is None else dz * slope
    weight = tile.over(tile.by_row(0))
    # A weight of 0 silences a NaN.
    return jnp.where(exists & (weight != 0.0), dz * weight, 0.0)


def _binary(tile: Tile, part: int) -> tuple[Array, Array | None, Array, Array, Array]:
    """Logits, their slope, the coefficients of t = 1 and t = 0, and which of them exist."""
    z, slope = tile.logits(part)
    given = tile.targets(part)
    t = _in_unit(given, tile.work.slack)
    one = t if len(tile.work.columns) == 2 else tile.by_class(2, part) * t
    exists = tile.by_class(1, part) != 0.0
    exists = exists & (given != MISSING) if tile.work.gaps else exists
    return z, slope, one, 1.0 - t, exists


def _in_unit(t: Array, slack: float) -> Array:
    """`validation.in_unit`, without what costs registers where nothing was rounded."""
    if slack == 0.0:
        return jnp.where((t >= 0.0) & (t <= 1.0), t, jnp.nan)
    nearest = jnp.minimum(jnp.maximum(t, 0.0), 1.0)
    return jnp.where(jnp.abs(t - 0.5) <= 0.5 + slack, nearest, jnp.nan)


def _folded(function: Callable[[Array, Array], Array], parts: list[Array]) -> Array:
    """Two by two, so that no part waits for all before it."""
    a, b, c, d = parts
    return function(function(a, b), function(c, d))
