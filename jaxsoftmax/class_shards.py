"""Maxima and sums over classes that are sharded over mesh axes, and the shard_map around them.

Functions of links and losses take `ClassShards` beside their class axis. Inside a shard_map over
the axes of the classes their arrays are local, and the functions of this module go over all shards.
Elsewhere `run` makes that shard_map around a primal function. Its derivative rule is outside, on
whole arrays, and takes its sums by `sum_classes`, which makes one of its own.

Both collectives are of integers: maxima of the floats' bits (see `class_maxima`), and sums in fixed
point (see `fixed_point`), which have the same bits for any number of shards.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxsoftmax import class_maxima, exponential, fixed_point, integer_reductions, placement
from jaxsoftmax.exponential import RowScale
from jaxsoftmax.linear_map import linear_map
from jaxsoftmax.placement import select
from jaxsoftmax.sharding import Shards


class ClassShards(NamedTuple):
    """The mesh axes of classes and rows, as functions of links and losses take them."""

    classes: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    mesh: AbstractMesh | None = None  # None where arrays are local: inside a shard_map

    @property
    def local_axes(self) -> tuple[str, ...]:
        """The axes over which sums of classes go by name."""
        return self.classes if self.mesh is None else ()

    @property
    def local_row_axes(self) -> tuple[str, ...]:
        """The axes over which sums of rows go by name."""
        return self.rows if self.mesh is None else ()


UNSHARDED = ClassShards()


def resolve(shards: Shards | None, x: Array) -> ClassShards:
    """Return the mesh axes of a call, and whether x is a local part or whole."""
    if shards is None:
        return UNSHARDED
    if not isinstance(shards, Shards):
        raise TypeError(f"shards: expected Shards(rows=..., classes=...), got {shards!r}")
    rows, classes = placement.axis_names(shards.rows), placement.axis_names(shards.classes)
    if not rows + classes:
        raise ValueError(f"shards: expected a mesh axis of rows or classes, got {shards}")
    if shared := {*rows} & {*classes}:
        raise ValueError(f"shards: expected different axes of rows and classes, got {shared}")
    placement.count_shards(rows + classes, x)
    is_manual = [placement.is_manual((name,), x) for name in rows + classes]
    if any(is_manual) != all(is_manual):
        raise ValueError(
            f"shards: expected axes that are all in the shard_map or not, got {shards}"
        )
    return ClassShards(classes, rows, None if all(is_manual) else placement.mesh_of(x))


def count_classes(z: Array, axis: int, shards: ClassShards) -> int:
    """Return the number of classes of all shards."""
    return z.shape[axis] * placement.count_shards(shards.local_axes, z)


def count_devices(entry: Any, sizes: dict[str, int]) -> int:
    """Return the number of devices over the mesh axes of an entry of a PartitionSpec."""
    return math.prod(sizes[name] for name in placement.axis_names(entry))


def first_class(z: Array, axis: int, shards: ClassShards) -> Array | int:
    """Return the number of the first class of z."""
    axes = shards.local_axes
    return lax.axis_index(axes) * z.shape[axis] if axes else 0


def sum_classes(x: Array, axis: int, shards: ClassShards) -> Array:
    """Return the sum over the classes of all shards: x's, in floats, where they are not sharded.

    It is exact to an ulp or two of the largest term, with the same bits for any number of shards,
    in an all-reduce of two maxima and one of two integers a row. The transpose is `spread`.
    """
    if not shards.classes:
        return jnp.sum(x, axis)
    total, spread = _sum_and_spread(x, axis, shards)
    return linear_map(total, spread, (), x)


def spread(x: Array, like: Array, axis: int, shards: ClassShards) -> Array:
    """Return a number of each row for all its classes. The transpose is `sum_classes`."""
    if not shards.classes:
        return jnp.expand_dims(x, axis)
    total, spread = _sum_and_spread(like, axis, shards)
    return linear_map(spread, total, (), x)


type LinearFunction = Callable[[tuple, Array], Array]


def _sum_and_spread(
    x: Array, axis: int, shards: ClassShards
) -> tuple[LinearFunction, LinearFunction]:
    """Return the sum over classes of arrays with the type of x, and its transpose."""
    kind = jax.typeof(x)
    terms = jax.ShapeDtypeStruct(
        kind.shape, kind.dtype, sharding=kind.sharding, manual_axis_type=kind.mat
    )

    def total(_: tuple, x: Array) -> Array:
        return run(_sum_signed, (x,), axis, shards)

    def spread(_: tuple, rows: Array) -> Array:
        transpose = jax.linear_transpose(lambda x: take_class(x, axis, shards), terms)
        return transpose(rows)[0]

    return total, spread


def _sum_signed(x: Array, axis: int, shards: ClassShards) -> Array:
    """Return the sum of finite terms; of others infinity or NaN, as the sum of their extremes."""
    largest, least = class_maxima.extremes_over_shards(x, axis, shards.local_axes)
    bound = jnp.maximum(largest, -least)
    (total,) = sum_exactly((summand(x, bound, axis),), axis, shards)
    return select(jnp.isfinite(bound), total, largest + least)


def take_class(x: Array, axis: int, shards: ClassShards) -> Array:
    """Return the sum of a row with at most one nonzero entry, which is exact in floats."""
    return lax.psum(jnp.sum(x, axis), shards.local_axes)


def any_class(x: Array, axis: int, shards: ClassShards) -> Array:
    """Return whether x is True for a class of any shard."""
    found = jnp.any(x, axis)
    axes = shards.local_axes
    return lax.pmax(found.astype(jnp.int32), axes) > 0 if axes else found


def max_classes(z: Array, axis: int, shards: ClassShards) -> Array:
    """Return the maximum over the classes; NaN if one is, where they are sharded."""
    axes = shards.local_axes
    return class_maxima.max_over_shards(z, axis, axes) if axes else jnp.max(z, axis)


def sum_terms(terms: Array, row: RowScale, largest: Array, axis: int, shards: ClassShards) -> Array:
    """Return the sum of a row's scaled exponentials over all classes; NaN where the maximum is.

    `largest` is the largest logit of the terms, and is not read where classes are not sharded.
    """
    if not shards.local_axes:
        return exponential.sum_terms(terms, row, axis)
    (total,) = sum_exactly((exponentials(terms, row, largest, axis),), axis, shards)
    return select(jnp.isnan(row.maximum), jnp.nan, total)


class Summand(NamedTuple):
    """Terms to be added over the classes of all shards, as the sums of their blocks."""

    blocks: Array
    bound: Array  # of the terms' sizes, without the class axis and the same on all shards
    limbs: int = 2


def summand(terms: Array, bound: Array, axis: int, limbs: int = 2) -> Summand:
    """Return terms along the class axis, with a bound of their sizes, as a summand."""
    return Summand(fixed_point.sum_blocks(terms, axis), bound, limbs)


def exponentials(terms: Array, row: RowScale, largest: Array, axis: int) -> Summand:
    """Return scaled exponentials of logits, of which this is the largest, as a summand."""
    return summand(terms, exponential.scaled_exp(largest, row), axis)


def sum_exactly(summands: tuple[Summand, ...], axis: int, shards: ClassShards) -> list[Array]:
    """Return the sums over sharded classes, in one all-reduce of integers.

    A sum is accurate to a few ulp of its bound, and better if most terms are smaller. It is its
    bound where that is infinite or NaN.
    """
    axes = shards.local_axes
    scales = [fixed_point.power_above(of.bound) for of in summands]
    limbs, forms = [], []
    for (blocks, _, count), scale in zip(summands, scales, strict=True):
        devices = placement.count_shards(axes, blocks)
        number = devices * blocks.shape[axis]
        forms.append(fixed_point.choose_format(blocks.dtype, number, shards=devices, limbs=count))
        limbs.append(fixed_point.to_limbs(blocks, scale, axis, forms[-1]))
    totals = map(fixed_point.from_limbs, integer_reductions.total(limbs, axes), scales, forms)
    return [
        select(jnp.isfinite(of.bound), total, of.bound)
        for total, of in zip(totals, summands, strict=True)
    ]


def run(
    function: Callable[..., Any], arrays: tuple[Any, ...], axis: int, shards: ClassShards
) -> Any:
    """Return function(*arrays, axis, shards), computed by each device for its own classes.

    Arrays and results either have the rank of the first array, the logits, or one without the
    class axis.
    """
    if shards.mesh is None or not shards.classes:
        return function(*arrays, axis, shards)
    logits, mesh = arrays[0], shards.mesh
    placement.check_context(logits, "logits")
    spec = functools.partial(_spec, logits, axis, shards)
    _check_sizes(logits, axis, shards)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    results = jax.eval_shape(lambda *a: function(*a, axis, UNSHARDED), *shapes)
    arrays = jax.tree.map(lambda a: placement.reshard(a, logits, *spec(a)), arrays)
    return jax.shard_map(
        lambda *a: function(*a, axis, shards._replace(mesh=None)),
        mesh=mesh,
        in_specs=jax.tree.map(spec, arrays),
        out_specs=jax.tree.map(spec, results),
        axis_names=manual_axes(shards),
    )(*arrays)


def _spec(logits: Array, axis: int, shards: ClassShards, x: Any) -> PartitionSpec:
    """Return where x lies: its rows as those of the logits, and its classes over their axes."""
    rows = list(_row_entries(logits, axis, shards))
    if x.ndim == logits.ndim:
        rows.insert(axis, shards.classes)
    return PartitionSpec(*rows)


def _row_entries(logits: Array, axis: int, shards: ClassShards) -> tuple[Any, ...]:
    """Return the mesh axes of the axes without the class axis."""
    found = placement.partition_spec(logits)
    entries = placement.drop_used(found[:axis] + found[axis + 1 :], (shards.classes,))
    return (shards.rows, *entries[1:]) if shards.rows and entries else entries


def manual_axes(shards: ClassShards) -> set[str]:
    """Return the axes of the shard_map: those that are named, all Explicit ones, and trivial ones.

    A kernel cannot be inside it if the compiler divides work over further axes.
    """
    mesh: Any = shards.mesh
    return {*shards.classes, *shards.rows} | {
        name
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit or (kind == AxisType.Auto and size == 1)
    }


def _check_sizes(logits: Array, axis: int, shards: ClassShards) -> None:
    sizes = dict(shards.mesh.shape) if shards.mesh else {}
    rows = next((i for i in range(logits.ndim) if i != axis), None)
    for i, axes, name, advice in (
        (axis, shards.classes, "classes", "; see pad_classes"),
        (rows, shards.rows, "rows", ""),
    ):
        count = count_devices(axes, sizes)
        if count > 1 and (i is None or logits.shape[i] % count):
            size = 1 if i is None else logits.shape[i]
            expected = f"a number of {name} that {count} shards divide"
            raise ValueError(f"logits: expected {expected}, got {size}{advice}")
