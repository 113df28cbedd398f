"""Epilogues: what a GPU kernel computes from a tile of logits while it is in registers.

A tile has 128 examples and 256 classes. `hopper` and `blackwell` compute it with the tensor cores
of their generation. Then each of two warpgroups applies the kernel's epilogue to its subtile:

    softmax_statistics  applies bias, softcap and mask, and writes three numbers for each row of the
                        subtile: the maximum, the sum of the exponentials of all classes but the
                        label, and the label's logit
    softmax_gradient    computes the logits again and writes their gradient in half precision, for
                        one block of classes at a time
    sigmoid             reads the targets tile by tile and writes the sum of the labels' losses, one
                        number for each row, or their gradients in half precision, or both

A kernel runs as many blocks as the GPU has cores, and each block computes one tile after another.
Where the number of row tiles is even, the two blocks of a cluster compute two tiles of the same
classes, and each copies one half of the tile of w.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels import primitives

# The size of a tile of logits, and how many features are multiplied at a time.
TILE_ROWS, TILE_CLASSES, STEP_FEATURES = 128, 256, 64
SWIZZLE_TILE = (8, 64)  # the tiles in which half precision is swizzled in shared memory
NUM_PARTS = 4  # of the classes of a subtile: an epilogue works on one part after another
PARTS = range(NUM_PARTS)
# A part of the sigmoid's losses is split again: they keep so much alive that a whole part exceeds
# the registers.
LOSS_PARTS_PER_PART = 4
# Row tiles that are computed for each tile of classes, so that both stay in the cache.
ROW_TILES_PER_BAND = 16

MISSING_TARGET = -float("inf")  # marks a label that does not exist
LOG2E = float(np.log2(np.e))


class KernelArguments(NamedTuple):
    """The arrays that a kernel reads and writes: references inside of it."""

    x: Any
    w: Any
    start: Any  # [1], the first class, a multiple of 64; other class positions are relative to it
    by_class: Sequence[Any]  # vectors over classes; the first is added to the products
    by_row: Sequence[Any]  # vectors over rows; for the softmax the first has the labels
    targets: Any  # of each row and class, for the sigmoid; else None
    outputs: Any  # `SoftmaxOutputs`, `SigmoidOutputs`, or the gradient


class Kernel(NamedTuple):
    """A kernel's epilogue, its arguments, and what else is known at compile time."""

    epilogue: Callable[["Subtile"], None]
    arguments: KernelArguments
    softcap: float | None
    pair: bool  # whether the two blocks of a cluster share tiles of w
    has_missing_targets: bool  # whether a target may be `MISSING_TARGET`
    target_rounding: float  # how far outside [0, 1] rounding may have put a target

    @property
    def steps(self) -> int:
        """The number of steps over the features of a tile."""
        return pl.cdiv(self.arguments.x.shape[1], STEP_FEATURES)


class SoftmaxOutputs(NamedTuple):
    """What `softmax_statistics` writes, `[subtiles, N]` each but for the exponentials."""

    maximum: Any
    sum_exp_rest: Any  # of exp(z - maximum), over all classes but the label
    label_logit: Any  # 0 where the label lies in another subtile
    stats: "SubtileStats | None" = None
    exponentials: Any = None  # [N, K], exp(z - maximum) times dcap, and 0 for the label


class SubtileStats(NamedTuple):
    """Further statistics of the logits of a subtile that exist, `[subtiles, N]` each."""

    total: Any
    count: Any
    argmax: Any  # the first position in the subtile of the maximum


class SigmoidOutputs(NamedTuple):
    """The outputs of `sigmoid_losses_and_gradients`; None for what is not needed."""

    losses: Any = None  # [subtiles, N], summed over the labels of each subtile
    gradients: Any = None  # [N, K], with respect to the logits

    @property
    def name(self) -> str:
        """The names of the outputs that are needed."""
        return "_and_".join(name for name, output in self._asdict().items() if output is not None)


def swizzled_smem(dtype: Any, *shape: int) -> Any:
    """Return the type of a shared-memory array of the tiles that copies and tensor cores take."""
    width = min(SWIZZLE_TILE[1], shape[-1])
    tiling = gpu.TilingTransform((SWIZZLE_TILE[0], width))  # type: ignore[abstract]
    return gpu.SMEM(shape, dtype, transforms=(tiling, gpu.SwizzleTransform(2 * width)))  # type: ignore[abstract]


def schedule_tiles(kernel: Kernel) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Return how many tiles this block computes, and a function from t to the t-th one's indices.

    The function returns the index of the tile's rows and that of its classes.
    """
    pair, arguments = kernel.pair, kernel.arguments
    rows, classes = arguments.x.shape[0], arguments.by_class[0].shape[0]
    grid = pl.cdiv(rows, TILE_ROWS * (1 + pair)), classes // TILE_CLASSES
    core, cores = lax.axis_index("core"), lax.axis_size("core")
    count = lax.div(grid[0] * grid[1] - core + cores - 1, cores)

    def tile_indices(t: Any) -> tuple[Any, Any]:
        i, j = gpu.planar_snake(core + t * cores, grid, 0, ROW_TILES_PER_BAND // (1 + pair))
        return (2 * i + lax.axis_index("pair") if pair else i), j

    return count, tile_indices


@dataclass(frozen=True)
class Subtile:
    """The part of a tile of logits that one warpgroup has, divided into parts by classes."""

    kernel: Kernel
    products: Callable[[int], Array]  # from the index of a part to its entries of x w
    layout: gpu.Layout  # of the products in registers
    part_shape: tuple[int, int]  # rows and classes of a part
    num_classes: int
    rows: Any  # the slice of its rows
    index: Any  # how many subtiles of the same rows come before it
    staging: Sequence[Any]  # two buffers in shared memory, through which parts are stored

    @property
    def first_class(self) -> Any:
        """The first class of the subtile."""
        return self.index * self.num_classes

    def split_parts(self, count: int) -> "Subtile":
        """Return the same subtile with each part split into this many."""
        rows, size = self.part_shape[0], self.part_shape[1] // count

        def products(part: int) -> Array:
            whole, piece = divmod(part, count)
            return self.products(whole)[:, piece * size : (piece + 1) * size]

        return replace(self, products=products, part_shape=(rows, size))

    def logits(self, part: int) -> tuple[Array, Array | None]:
        """Return the logits of a part, and the derivative of the softcap."""
        z = self.products(part) + self.load_by_class(0, part)
        softcap = self.kernel.softcap
        if softcap is None:
            return z, None
        return primitives.cap(z, jnp.tanh(z * (1 / softcap)), softcap)

    def class_slice(self, part: int) -> Any:
        """Return the slice of the classes of a part."""
        return pl.ds(self.first_class + part * self.part_shape[1], self.part_shape[1])

    def load_by_class(self, vector: int, part: int) -> Array:
        """Return a part of a vector over classes, broadcast over the rows."""
        ref = self.kernel.arguments.by_class[vector].at[self.class_slice(part)]
        values = gpu.load(ref, layout=self.layout.reduce(0), optimized=False)
        return lax.broadcast_in_dim(values, self.part_shape, [1])

    def load_by_row(self, vector: int) -> Array:
        """Return a vector over rows, in the layout of the rows of the products."""
        ref = self.kernel.arguments.by_row[vector].at[self.rows]
        return gpu.load(ref, layout=self.layout.reduce(1), optimized=False)

    def load_targets(self, part: int) -> Array:
        """Return the targets of a part in float32, unchecked."""
        ref = self.kernel.arguments.targets.at[self.rows, self.class_slice(part)]
        return gpu.load(ref, layout=self.layout, optimized=False).astype(jnp.float32)

    def label_positions(self) -> Array:
        """Return the position of each row's label, counted from the subtile's first class."""
        return self.load_by_row(0) - self.first_class

    def class_iota(self, dtype: Any) -> Array:
        """Return the position of each entry among the classes of its part."""
        iota = gpu.broadcasted_iota(jnp.int32, self.part_shape, 1, layout=self.layout)
        return iota.astype(dtype)

    def is_label(self, positions: Array, part: int) -> Array:
        """Return which entries of a part are those of the labels at these positions."""
        first = part * self.part_shape[1]
        return self.class_iota(jnp.int32) == self.broadcast_rows(positions - first)

    def broadcast_rows(self, rows: Array) -> Array:
        """Return one number for each row, broadcast over the classes of a part."""
        return lax.broadcast_in_dim(rows, self.part_shape, [0])

    def store(self, out: Any, part: int, values: Array) -> None:
        """Store the entries of a part in global memory, in half precision."""
        buffer = self.staging[part % 2]
        gpu.wait_smem_to_gmem(1, wait_read_only=True)
        buffer[...] = values.astype(buffer.dtype)
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(buffer, out.at[self.rows, self.class_slice(part)])


# -- The softmax's epilogues --


def softmax_statistics(subtile: Subtile) -> None:
    """Write the statistics of the rows of a subtile, and the optional outputs that are there."""
    outputs: SoftmaxOutputs = subtile.kernel.arguments.outputs
    positions = subtile.label_positions()
    parts = [subtile.logits(p) for p in PARTS]
    logits = [z for z, _ in parts]
    maximum = jnp.max(_tree_reduce(jnp.maximum, logits), 1)
    base = subtile.broadcast_rows(jnp.where(maximum == -jnp.inf, 0.0, maximum))
    # Each part is summed before the next one is started: all at once would exceed the registers.
    sums, label_logits = [], []
    for p, (z, dcap) in enumerate(parts):
        is_label = subtile.is_label(positions, p)
        e = jnp.where(is_label, 0.0, jnp.exp2((z - base) * LOG2E))
        sums.append(jnp.sum(e, 1))
        label_logits.append(jnp.sum(jnp.where(is_label, z, 0.0), 1))
        if outputs.exponentials is not None:
            subtile.store(outputs.exponentials, p, e if dcap is None else e * dcap)
    here = (subtile.index, subtile.rows)
    outputs.maximum[here] = maximum
    outputs.sum_exp_rest[here] = _tree_reduce(jnp.add, sums)
    outputs.label_logit[here] = _tree_reduce(jnp.add, label_logits)
    if outputs.stats is not None:
        for output, values in zip(
            outputs.stats, _subtile_stats(subtile, logits, maximum), strict=True
        ):
            output[here] = values


def _subtile_stats(subtile: Subtile, logits: list[Array], maximum: Array) -> SubtileStats:
    exists = [z != -jnp.inf for z in logits]
    totals = [jnp.sum(jnp.where(e, z, 0.0), 1) for e, z in zip(exists, logits, strict=True)]
    counts = [jnp.sum(jnp.where(e, 1.0, 0.0), 1) for e in exists]
    iota, top = subtile.class_iota(jnp.float32), subtile.broadcast_rows(maximum)
    size = subtile.part_shape[1]
    positions = [
        jnp.min(jnp.where(z == top, iota + size * p, float(TILE_CLASSES)), 1)
        for p, z in enumerate(logits)
    ]
    return SubtileStats(
        _tree_reduce(jnp.add, totals),
        _tree_reduce(jnp.add, counts),
        _tree_reduce(jnp.minimum, positions),
    )


def softmax_gradient(subtile: Subtile) -> None:
    """Write exp(z - maximum) times the cotangent of their sum, and the label's in its place."""
    positions = subtile.label_positions()
    maximum, sum_exp_rest, label_logit, mean = (
        subtile.broadcast_rows(subtile.load_by_row(vector)) for vector in range(1, 5)
    )
    for p in PARTS:
        z, dcap = subtile.logits(p)
        dz = jnp.exp2((z - maximum) * LOG2E) * sum_exp_rest
        dz = jnp.where(subtile.is_label(positions, p), label_logit, dz) + mean
        dz = dz if dcap is None else dz * dcap
        subtile.store(subtile.kernel.arguments.outputs, p, jnp.where(z == -jnp.inf, 0.0, dz))


# -- The sigmoid's epilogue --


def sigmoid_losses_and_gradients(subtile: Subtile) -> None:
    """Write the sums of the label losses, or their gradients times the rows' weights, or both.

    Losses take a few classes at a time, and gradients follow them: more would exceed the registers.
    """
    outputs: SigmoidOutputs = subtile.kernel.arguments.outputs
    if outputs.losses is not None:
        fine = subtile.split_parts(LOSS_PARTS_PER_PART)
        losses = (_label_losses(fine, p) for p in range(LOSS_PARTS_PER_PART * NUM_PARTS))
        total = reduce(jnp.add, losses)
        outputs.losses[subtile.index, subtile.rows] = jnp.sum(total, 1)
    if outputs.gradients is not None:
        for p in PARTS:
            subtile.store(outputs.gradients, p, _label_gradients(subtile, p))


class _Labels(NamedTuple):
    """The labels of a part: loss = positive softplus(-z) + negative softplus(z)."""

    z: Array
    dcap: Array | None  # the derivative of the softcap
    positive: Array  # pos_weight t
    negative: Array  # 1 - t
    exists: Array


def _load_labels(subtile: Subtile, part: int) -> _Labels:
    kernel = subtile.kernel
    z, dcap = subtile.logits(part)
    targets = subtile.load_targets(part)
    t = _clip_probabilities(targets, kernel.target_rounding)
    has_pos_weight = len(kernel.arguments.by_class) == 3
    positive = subtile.load_by_class(2, part) * t if has_pos_weight else t
    exists = subtile.load_by_class(1, part) != 0.0
    exists = exists & (targets != MISSING_TARGET) if kernel.has_missing_targets else exists
    return _Labels(z, dcap, positive, 1.0 - t, exists)


def _label_losses(subtile: Subtile, part: int) -> Array:
    """Return the losses of a part, computed from |z| and log(1 + exp(-|z|))."""
    z, _, positive, negative, exists = _load_labels(subtile, part)
    size, coefficient = jnp.abs(z), jnp.where(z >= 0.0, negative, positive)
    # An infinite logit is ignored where its coefficient is 0.
    is_ignored = (coefficient == 0.0) & (size == jnp.inf)
    linear = jnp.where(is_ignored, 0.0, coefficient * size)
    log = (positive + negative) * primitives.log1p(jnp.exp2(size * -LOG2E))
    return jnp.where(exists, log + linear, 0.0)


def _label_gradients(subtile: Subtile, part: int) -> Array:
    """Return negative sigmoid(z) - positive sigmoid(-z), times the weight of the row."""
    z, dcap, positive, negative, exists = _load_labels(subtile, part)
    e = jnp.exp2(jnp.abs(z) * -LOG2E)
    dz = jnp.where(z >= 0.0, negative - positive * e, negative * e - positive) / (1.0 + e)
    dz = dz if dcap is None else dz * dcap
    weight = subtile.broadcast_rows(subtile.load_by_row(0))
    # A NaN is ignored where the weight is 0.
    return jnp.where(exists & (weight != 0.0), dz * weight, 0.0)


def _clip_probabilities(t: Array, rounding: float) -> Array:
    """Return the targets as `validation.clip_probabilities` does.

    It takes fewer registers where no target was rounded.
    """
    if rounding == 0.0:
        return jnp.where((t >= 0.0) & (t <= 1.0), t, jnp.nan)
    nearest = jnp.minimum(jnp.maximum(t, 0.0), 1.0)
    return jnp.where(jnp.abs(t - 0.5) <= 0.5 + rounding, nearest, jnp.nan)


def _tree_reduce(function: Callable[[Array, Array], Array], parts: list[Array]) -> Array:
    """Reduce four parts in pairs, so that no part waits for all parts before it."""
    a, b, c, d = parts
    return function(function(a, b), function(c, d))
