"""Where a value lives: the part of its type that is neither shape nor dtype.

Inside `jax.shard_map` a type names the mesh axes over which a value varies; on an Explicit mesh it
names those that each dimension is sharded over; on an Auto mesh it names the mesh alone, and the
compiler decides. A constant has none of this. Where it meets other values JAX adds what is missing,
but the carry of a loop, the results of a derivative rule, of a primitive and of a kernel must have
the full type from the start. Everything that has to say such a type says it through this module.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike


def match_varying_axes(*trees: Any) -> tuple[Any, ...]:
    """Return the trees with each array varying over every axis over which any of them varies.

    The gradient of a replicated argument is then the sum over the devices, as shard_map has it.
    """
    axes = frozenset[Any]().union(*map(_varying, jax.tree.leaves(trees)))
    return jax.tree.map(lambda a: _vary(a, axes), trees)


def _varying(x: Array) -> frozenset:
    return jax.typeof(x).mat.varying


def _vary(x: Array, axes: frozenset) -> Array:
    missing = tuple(sorted(axes - _varying(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def full(like: Array, value: float, shape: tuple, dtype: DTypeLike) -> Array:
    """Return a constant array that varies over the axes of `like`, for a loop to start from."""
    return lax.full_like(like, value, dtype, shape)


def select(predicate: Array, x: Any, y: Any) -> Array:
    """Return `jnp.where` of one dtype, and numbers, in an equation or two of its five.

    On an Explicit mesh it is `jnp.where`, which brings the operands to one place.
    """
    arrays = [a for a in (predicate, x, y) if isinstance(a, Array)]
    if any(any(partition_spec(a)) for a in arrays):
        return jnp.where(predicate, x, y)
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    like = arrays[1]
    x, y = (
        jnp.broadcast_to(a, shape) if isinstance(a, Array) else lax.full_like(like, a, shape=shape)
        for a in (x, y)
    )
    return lax.select(jnp.broadcast_to(predicate, shape), x, y)


def shape_dtype_struct(shape: tuple[int, ...], dtype: DTypeLike, like: Array) -> jax.ShapeDtypeStruct:
    """Return the type of a kernel's result that varies over the axes of `like`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).mat)


def is_static(*sizes: Any) -> bool:
    """Return whether all sizes are numbers, rather than the symbols of `jax.export`."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def count_groups(x: Array, axis: int) -> int:
    """Return how many equal groups to cut an axis into before blocks are taken from it.

    Where an axis is sharded, a block of consecutive rows or classes lies on one device, and the
    compiler gathers the whole axis on all of them. A block that takes an equal part of each group
    keeps every device at work on its own data: the number of shards of any even sharding over the
    devices of the mesh, or over some of its axes, divides this number of groups.
    """
    return math.gcd(x.shape[axis], count_devices(x)) if is_static(x.shape[axis]) else 1


class Cut(NamedTuple):
    """A block of an axis: `size` consecutive entries of each of its groups."""

    start: Array | int  # in each group
    size: int  # of each group
    groups: int = 1

    def indices(self, length: int) -> Array:
        """Return the positions of the entries in an axis of this length, in ascending order."""
        first = jnp.arange(self.groups, dtype=jnp.int32) * (length // self.groups) + self.start
        return _flat(first[:, None] + jnp.arange(self.size, dtype=jnp.int32)[None, :])

    def since(self, place: Array | int) -> Array:
        """Return which entries are at or after a position in their groups, `[groups size]`."""
        late = self.start + jnp.arange(self.size, dtype=jnp.int32) >= place
        return _flat(jnp.broadcast_to(late[None, :], (self.groups, self.size)))


def _flat(x: Array) -> Array:
    return x.reshape(-1)


def take_block(x: Array, cut: Cut, axis: int) -> Array:
    """Return a block of an axis."""
    if x.shape[axis] == cut.size * cut.groups:
        return x
    parts = _grouped(x, axis, cut.groups)
    part = lax.dynamic_slice_in_dim(parts, cut.start, cut.size, axis + 1)
    return part.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def put_block(x: Array, block: Array, cut: Cut, axis: int) -> Array:
    """Return x with a block of an axis replaced."""
    parts, block = (_grouped(a, axis, cut.groups) for a in (x, block))
    return lax.dynamic_update_slice_in_dim(parts, block, cut.start, axis + 1).reshape(x.shape)


def _grouped(x: Array, axis: int, count: int) -> Array:
    """x with an axis cut into so many groups: `[..., groups, size of a group, ...]`."""
    return x.reshape(*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])


def count_devices(x: Array) -> int:
    """Return over how many devices x may be sharded: 1 inside a shard_map, where it is local."""
    mesh = jax.typeof(x).sharding.mesh
    pairs = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in pairs if kind != AxisType.Manual)


def partition_spec(x: Array) -> tuple[Any, ...]:
    """Return the Explicit mesh axes that each dimension is sharded over, None for none."""
    return tuple(jax.typeof(x).sharding.spec)


def flatten_rows(x: Array, lead: int) -> Array:
    """Return x with its first `lead` axes merged: `[N, ...]`.

    Where an Explicit mesh shards an inner one of them, each device flattens its own part: nothing
    moves, and the rows are in another order, which `unflatten_rows` undoes.
    """
    found = partition_spec(x)
    if not any(found[1:lead]):
        return x.reshape(-1, *x.shape[lead:])
    merged = PartitionSpec(_merged(found[:lead]), *found[lead:])
    return map_shards(lambda a: a.reshape(-1, *a.shape[lead:]), x, out_specs=merged)


def unflatten_rows(x: Array, like: Array, lead: int) -> Array:
    """Undo `flatten_rows`: return `[N, ...]` with the first axes of `like` and their sharding."""
    rows, rest = partition_spec(like)[:lead], partition_spec(x)[1:]
    if not any(rows[1:]):
        return x.reshape(*like.shape[:lead], *x.shape[1:])
    shard = jax.typeof(like).sharding.shard_shape(like.shape)[:lead]
    x = reshard(x, like, _merged(rows), *rest)
    out = PartitionSpec(*rows, *rest)
    return map_shards(lambda a: a.reshape(*shard, *a.shape[1:]), x, out_specs=out)


def map_shards(function: Callable[[Array], Array], x: Array, *, out_specs: PartitionSpec) -> Array:
    """Apply a function to each device's part of x on an Explicit mesh."""
    mesh = jax.typeof(x).sharding.mesh
    in_specs = PartitionSpec(*partition_spec(x))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(x)


def _merged(entries: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the axes of several entries of a PartitionSpec as one entry."""
    return tuple(name for entry in entries for name in axis_names(entry))


def axis_names(entry: Any) -> tuple[str, ...]:
    """Return the axes in one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def shard_like_rows(x: Array, like: Array, axis: int) -> Array:
    """Return values per row, sharded as the rows of `like` are on an Explicit mesh.

    The sharding of later axes of x is kept.
    """
    rows = partition_spec(like)[:axis] + partition_spec(like)[axis + 1 :]
    used = {name for entry in rows for name in axis_names(entry)}
    rest = (None if used & {*axis_names(entry)} else entry for entry in partition_spec(x)[len(rows) :])
    found = (*rows, *rest)
    return reshard(x, like, *found)


def gather_axis(x: Array, axis: int) -> Array:
    """Return x with an axis that an Explicit mesh shards gathered on every device."""
    found = list(partition_spec(x))
    if found[axis] is None:
        return x
    found[axis] = None
    return reshard(x, x, *found)


def replicate(x: Array) -> Array:
    """Return x gathered on every device, where an Explicit mesh shards it."""
    return reshard(x, x, *(None,) * x.ndim)


def reshard(x: Array, like: Array, *axes: Any) -> Array:
    """Return x sharded over these axes of the Explicit mesh of `like`, or of its own.

    It works inside and outside the context of that mesh; outside, JAX moves only concrete arrays.
    """
    like = like if _is_explicit(like) else x
    mesh = jax.typeof(like).sharding.mesh
    if not _is_explicit(like) or (jax.typeof(x).sharding.mesh == mesh and partition_spec(x) == axes):
        return x
    if isinstance(x, jax.core.Tracer) or isinstance(like, jax.core.Tracer):
        return jax.sharding.reshard(x, sharding(like, *axes))
    place: Any = like.sharding
    return jax.device_put(x, NamedSharding(place.mesh, PartitionSpec(*axes)))


def _is_explicit(x: Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def sharding(like: Array, *axes: Any) -> NamedSharding:
    """Return the sharding over these axes of the mesh of `like`."""
    return NamedSharding(jax.typeof(like).sharding.mesh, PartitionSpec(*axes))


def row_axes(x: Array, count: int) -> Any:
    """Return the mesh axes over which to share the work on `count` rows taken from x, or None.

    They are the axes of x's own rows on an Explicit mesh, and all axes of an Auto mesh, which hides
    where rows lie. There are none where they do not divide the count.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name, kind in kinds.items() if kind == AxisType.Auto)
    if AxisType.Explicit in mesh.axis_types:
        axes = partition_spec(x)[0]
    shares = math.prod(mesh.shape[name] for name in axis_names(axes))
    return axes if axes and count % shares == 0 else None


def take_rows(x: Array, rows: Array, like: Array, axes: Any, **how: Any) -> Array:
    """Return x[rows] with its rows shared over these axes of the mesh of `like`."""
    mesh = jax.typeof(like).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:
        how["out_sharding"] = sharding(like, *_with_rows_over(axes, x))
    return shard_rows(x.at[rows].get(**how), like, axes)


def shard_rows(x: Array, like: Array, axes: Any) -> Array:
    """Return x with its rows shared over these axes of the mesh of `like`."""
    mesh = jax.typeof(like).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:
        return reshard(x, like, *_with_rows_over(axes, x))
    if axes is None or count_devices(like) == 1:
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return lax.with_sharding_constraint(x, sharding(like, axes, *rest))


def _with_rows_over(axes: Any, x: Array) -> tuple[Any, ...]:
    """Return x's Explicit axes with these for its rows, and no axis twice."""
    used = {*axis_names(axes)}
    return axes, *(None if used & {*axis_names(entry)} else entry for entry in partition_spec(x)[1:])
