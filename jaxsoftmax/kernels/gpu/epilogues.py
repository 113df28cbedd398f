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
from functools import partial, reduce
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
    by_class: "ClassVectors"
    by_row: Sequence[Any]  # vectors over rows; for the softmax the first has the labels
    has_label: Any  # for the softmax, see `branch_on_label`; else None
    targets: Any  # of each row and class, for the sigmoid; else None
    outputs: Any  # `SoftmaxOutputs`, `SigmoidOutputs`, or the gradient


class ClassVectors(NamedTuple):
    """Vectors over classes, `[a multiple of 256]`; None for what makes no difference."""

    bias: Any = None  # added to the products; -inf where a class does not exist
    exists: Any = None  # for the sigmoid: 0 where a label does not exist
    pos_weight: Any = None  # for the sigmoid: the weights of its positive labels


class Kernel(NamedTuple):
    """A kernel's epilogue, its arguments, and what else is known at compile time."""

    epilogue: Callable[["Subtile"], None]
    arguments: KernelArguments
    num_classes: int  # a multiple of 256
    softcap: float | None
    pair: bool  # whether the two blocks of a cluster share tiles of w
    has_missing_targets: bool  # whether a target may be `MISSING_TARGET`
    target_rounding: float  # how far outside [0, 1] rounding may have put a target

    @property
    def steps(self) -> int:
        """The number of steps over the features of a tile."""
        return pl.cdiv(self.arguments.x.shape[1], STEP_FEATURES)

    @property
    def grid(self) -> tuple[int, int]:
        """The numbers of tiles of rows and of classes."""
        return pl.cdiv(self.arguments.x.shape[0], TILE_ROWS), self.num_classes // TILE_CLASSES


class SoftmaxOutputs(NamedTuple):
    """The outputs of `softmax_statistics`, `[subtiles, N]` each but for the exponentials."""

    maximum: Any
    sum_exp_rest: Any  # of exp(z - maximum), over all classes but the label
    label_logit: Any  # unwritten where no row of the subtile has its label there
    stats: "SubtileStats | None" = None
    # [N, K], exp(z - maximum) times dcap, and 0 for the label; with stats, -0 where no class exists
    # unless further rows have dcap, the derivative of the softcap, which is 0 there
    exponentials: Any = None


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


def schedule_tiles(
    grid: tuple[int, int], *, pair: bool
) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Return how many tiles this block computes, and a function from t to the t-th one's indices.

    The function returns the index of the tile's rows and that of its columns.
    """
    grid = pl.cdiv(grid[0], 1 + pair), grid[1]
    core, cores = lax.axis_index("core"), lax.axis_size("core")
    count = lax.div(grid[0] * grid[1] - core + cores - 1, cores)

    def tile_indices(t: Any) -> tuple[Any, Any]:
        i, j = gpu.planar_snake(core + t * cores, grid, 0, ROW_TILES_PER_BAND // (1 + pair))
        return (2 * i + lax.axis_index("pair") if pair else i), j

    return count, tile_indices


def copy_to_global(values: Array, buffer: Any, block: Any) -> None:
    """Start to copy values to global memory, through one of two buffers that take turns."""
    gpu.wait_smem_to_gmem(1, wait_read_only=True)
    buffer[...] = values.astype(buffer.dtype)
    gpu.commit_smem()
    gpu.copy_smem_to_gmem(buffer, block)


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
        z = self.products(part)
        if (bias := self.load_by_class("bias", part)) is not None:
            z += bias
        softcap = self.kernel.softcap
        if softcap is None:
            return z, None
        return primitives.cap(z, jnp.tanh(z * (1 / softcap)), softcap)

    def class_slice(self, part: int) -> Any:
        """Return the slice of the classes of a part."""
        return pl.ds(self.first_class + part * self.part_shape[1], self.part_shape[1])

    def load_by_class(self, name: str, part: int) -> Array | None:
        """Return a part of a vector over classes, broadcast over the rows, or None without one."""
        vector = getattr(self.kernel.arguments.by_class, name)
        if vector is None:
            return None
        ref = vector.at[self.class_slice(part)]
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

    def store(self, out: Any, part: int, *values: Array, first_rows: Sequence[int] = (0,)) -> None:
        """Store the entries of a part in global memory, in half precision.

        Several numbers of an entry are stored below each other, each kind from its first row on.
        """
        for turn, (first, entries) in enumerate(zip(first_rows, values, strict=True)):
            rows = pl.ds(self.rows.start + first, self.part_shape[0])
            buffer = self.staging[(len(values) * part + turn) % 2]
            copy_to_global(entries, buffer, out.at[rows, self.class_slice(part)])


# -- The softmax's epilogues --


def branch_on_label(function: Callable[[Subtile, Array | None], None], subtile: Subtile) -> None:
    """Apply a function to a subtile and the positions of its rows' labels.

    The positions are None where no label lies in the subtile: comparing every class with them is a
    tenth of an epilogue's work, and of 501 subtiles of a row one has its label.
    """
    has_label = subtile.kernel.arguments.has_label  # [groups of rows, subtiles], 0 where none has
    group = lax.div(subtile.rows.start, subtile.part_shape[0])
    lax.cond(
        has_label[group, subtile.index] != 0,
        lambda: function(subtile, subtile.label_positions()),
        lambda: function(subtile, None),
    )


def softmax_statistics(subtile: Subtile, first_cap: int = 0) -> None:
    """Write the statistics of the rows of a subtile, and the optional outputs that are there.

    From the row `first_cap` on, if any, the exponentials have the derivatives of the softcap.
    """
    branch_on_label(partial(_write_statistics, first_cap), subtile)


def _write_statistics(first_cap: int, subtile: Subtile, positions: Array | None) -> None:
    outputs: SoftmaxOutputs = subtile.kernel.arguments.outputs
    parts = [subtile.logits(p)[0] for p in PARTS]
    maximum = jnp.max(_tree_reduce(jnp.maximum, parts), 1)
    top = subtile.broadcast_rows(maximum)
    base = subtile.broadcast_rows(jnp.where(maximum == -jnp.inf, 0.0, maximum))
    # Each part is summed before the next one is started: all at once would exceed the registers.
    sums, label_logits, stats = [], [], []
    for p, z in enumerate(parts):
        if outputs.stats is not None:
            stats.append(_part_stats(subtile, p, z, top))
        e = jnp.exp2((z - base) * LOG2E)
        if positions is not None:
            is_label = subtile.is_label(positions, p)
            e = jnp.where(is_label, 0.0, e)
            label_logits.append(jnp.sum(jnp.where(is_label, z, 0.0), 1))
        sums.append(jnp.sum(e, 1))
        if outputs.exponentials is not None:
            _store_exponentials(subtile, p, z, e, first_cap)
    here = (subtile.index, subtile.rows)
    outputs.maximum[here] = maximum
    outputs.sum_exp_rest[here] = _tree_reduce(jnp.add, sums)
    if positions is not None:
        outputs.label_logit[here] = _tree_reduce(jnp.add, label_logits)
    if outputs.stats is not None:
        combine = SubtileStats(jnp.add, jnp.add, jnp.minimum)
        for output, function, *values in zip(outputs.stats, combine, *stats, strict=True):
            output[here] = _tree_reduce(function, values)


def _store_exponentials(subtile: Subtile, part: int, z: Array, e: Array, first_cap: int) -> None:
    """Store the exponentials of a part times dcap and, from a row on, dcap itself.

    dcap is computed from the capped logits: kept from before, it would exceed the registers.
    """
    outputs: SoftmaxOutputs = subtile.kernel.arguments.outputs
    softcap, exists = subtile.kernel.softcap, z != -jnp.inf
    values = [e]
    if softcap is not None:
        bounded = z * (1 / softcap)
        dcap = jnp.where(exists, 1 - bounded * bounded, 0.0)
        values = [e * dcap, dcap]
    if first_cap:
        subtile.store(outputs.exponentials, part, *values, first_rows=(0, first_cap))
    else:
        e = values[0] if outputs.stats is None else jnp.where(exists, values[0], -0.0)
        subtile.store(outputs.exponentials, part, e)


def _part_stats(subtile: Subtile, part: int, z: Array, top: Array) -> SubtileStats:
    """Return the statistics of the logits of a part that exist."""
    exists = z != -jnp.inf
    position = subtile.class_iota(jnp.float32) + subtile.part_shape[1] * part
    return SubtileStats(
        jnp.sum(jnp.where(exists, z, 0.0), 1),
        jnp.sum(jnp.where(exists, 1.0, 0.0), 1),
        jnp.min(jnp.where(z == top, position, float(TILE_CLASSES)), 1),
    )


def softmax_gradient(subtile: Subtile) -> None:
    """Write exp(z - maximum) times the cotangent of their sum, and the label's in its place."""
    branch_on_label(_write_gradient, subtile)


def _write_gradient(subtile: Subtile, positions: Array | None) -> None:
    arguments = subtile.kernel.arguments
    maximum, sum_exp_rest, label_logit, *mean = (
        subtile.broadcast_rows(subtile.load_by_row(v)) for v in range(1, len(arguments.by_row))
    )
    for p in PARTS:
        z, dcap = subtile.logits(p)
        dz = jnp.exp2((z - maximum) * LOG2E) * sum_exp_rest
        if positions is not None:
            dz = jnp.where(subtile.is_label(positions, p), label_logit, dz)
        dz = dz + mean[0] if mean else dz
        dz = dz if dcap is None else dz * dcap
        subtile.store(arguments.outputs, p, jnp.where(z == -jnp.inf, 0.0, dz))


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
    exists: Array | None  # None where all of them do

    def keep(self, values: Array, weight: Array | None = None) -> Array:
        """Return the values, and 0 for a label that does not exist or has a weight of 0."""
        counts = self.exists
        if weight is not None:
            counts = weight != 0.0 if counts is None else counts & (weight != 0.0)
        return values if counts is None else jnp.where(counts, values, 0.0)


def _load_labels(subtile: Subtile, part: int) -> _Labels:
    kernel = subtile.kernel
    z, dcap = subtile.logits(part)
    targets = subtile.load_targets(part)
    t = _clip_probabilities(targets, kernel.target_rounding)
    pos_weight, exists = (subtile.load_by_class(name, part) for name in ("pos_weight", "exists"))
    positive = t if pos_weight is None else pos_weight * t
    exists = None if exists is None else exists != 0.0
    if kernel.has_missing_targets:
        is_given = targets != MISSING_TARGET
        exists = is_given if exists is None else exists & is_given
    return _Labels(z, dcap, positive, 1.0 - t, exists)


def _label_losses(subtile: Subtile, part: int) -> Array:
    """Return the losses of a part, computed from |z| and log(1 + exp(-|z|))."""
    labels = _load_labels(subtile, part)
    z, _, positive, negative, _ = labels
    size, coefficient = jnp.abs(z), jnp.where(z >= 0.0, negative, positive)
    # An infinite logit is ignored where its coefficient is 0.
    is_ignored = (coefficient == 0.0) & (size == jnp.inf)
    linear = jnp.where(is_ignored, 0.0, coefficient * size)
    log = (positive + negative) * primitives.log1p(jnp.exp2(size * -LOG2E))
    return labels.keep(log + linear)


def _label_gradients(subtile: Subtile, part: int) -> Array:
    """Return negative sigmoid(z) - positive sigmoid(-z), times the weight of the row."""
    labels = _load_labels(subtile, part)
    z, dcap, positive, negative, _ = labels
    e = jnp.exp2(jnp.abs(z) * -LOG2E)
    dz = jnp.where(z >= 0.0, negative - positive * e, negative * e - positive) / (1.0 + e)
    dz = dz if dcap is None else dz * dcap
    weight = subtile.broadcast_rows(subtile.load_by_row(0))
    # A NaN is ignored where the weight is 0.
    return labels.keep(dz * weight, weight)


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
