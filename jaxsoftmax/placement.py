"""The part of an array's type that is neither shape nor dtype: where its values live.

Inside `jax.shard_map` a type names the mesh axes over which a value varies. On an Explicit mesh it
names the mesh axes over which each dimension is sharded. On an Auto mesh it names only the mesh,
and the compiler decides. A constant has none of this. Where a constant meets other values JAX adds
what is missing, but the carry of a loop and the results of a derivative rule, a primitive or a
kernel must have the full type from the start. All code that must specify such a type uses this
module.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike


def match_varying_axes(*trees: Any) -> tuple[Any, ...]:
    """Return the trees with every array varying over the mesh axes over which any of them varies.

    The gradient of a replicated argument is then the sum over the devices, as in shard_map.
    """
    axes = frozenset[Any]().union(*map(_varying, jax.tree.leaves(trees)))
    return jax.tree.map(lambda a: _vary(a, axes), trees)


def sum_like(x: Array, like: Array) -> Array:
    """Return the sum of x over the mesh axes over which it varies and `like` does not.

    It is the transpose of `match_varying_axes`.
    """
    axes = tuple(sorted(_varying(x) - _varying(like)))
    return lax.psum(x, axes)


def _varying(x: Array) -> frozenset:
    return jax.typeof(x).mat.varying


def _vary(x: Array, axes: frozenset) -> Array:
    missing = tuple(sorted(axes - _varying(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def full(
    like: Array, value: float, shape: tuple, dtype: DTypeLike, without: tuple[str, ...] = ()
) -> Array:
    """Return a constant array that varies over the axes of `like`, as a loop's initial carry.

    The axes `without` are left out: over these a sum does not vary.
    """
    if without:
        return _vary(jnp.full(shape, value, dtype), _varying(like) - {*without})
    return lax.full_like(like, value, dtype, shape)


def select(predicate: Array, x: Any, y: Any) -> Array:
    """Return `jnp.where` of arrays of one dtype and numbers, in one or two equations, not five.

    On an Explicit mesh it is `jnp.where` itself, which gives the operands the same sharding.
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


def shape_dtype_struct(
    shape: tuple[int, ...], dtype: DTypeLike, like: Array
) -> jax.ShapeDtypeStruct:
    """Return the type of a kernel's result, which varies over the axes of `like`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).mat)


def is_static(*sizes: Any) -> bool:
    """Return whether all sizes are numbers rather than the symbolic dimensions of `jax.export`."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def count_groups(x: Array, axis: int) -> int:
    """Return the number of equal groups to divide an axis into before taking blocks from it.

    If an axis is sharded, a block of consecutive rows or classes lies on one device, and the
    compiler gathers the whole axis on all devices. A block with an equal part from each group keeps
    every device busy with its own data, because the number of shards of any even sharding over the
    devices of the mesh, or over some of its axes, divides this number of groups.
    """
    return math.gcd(x.shape[axis], count_devices(x)) if is_static(x.shape[axis]) else 1


class Cut(NamedTuple):
    """A block of an axis: `size` consecutive entries from each of its groups."""

    start: Array | int  # position in each group
    size: int  # entries per group
    groups: int = 1

    def indices(self, length: int) -> Array:
        """Return the positions of the entries in an axis of this length, in ascending order."""
        first = jnp.arange(self.groups, dtype=jnp.int32) * (length // self.groups) + self.start
        return (first[:, None] + jnp.arange(self.size, dtype=jnp.int32)[None, :]).reshape(-1)

    def since(self, position: Array | int) -> Array:
        """Return which entries are at or after a position in their groups, `[groups size]`."""
        is_late = self.start + jnp.arange(self.size, dtype=jnp.int32) >= position
        return jnp.broadcast_to(is_late[None, :], (self.groups, self.size)).reshape(-1)


def take_block(x: Array, cut: Cut, axis: int) -> Array:
    """Return a block of an axis."""
    if x.shape[axis] == cut.size * cut.groups:
        return x
    parts = _split_groups(x, axis, cut.groups)
    part = lax.dynamic_slice_in_dim(parts, cut.start, cut.size, axis + 1)
    return part.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def put_block(x: Array, block: Array, cut: Cut, axis: int) -> Array:
    """Return x with a block of an axis replaced."""
    parts, block = (_split_groups(a, axis, cut.groups) for a in (x, block))
    return lax.dynamic_update_slice_in_dim(parts, block, cut.start, axis + 1).reshape(x.shape)


def _split_groups(x: Array, axis: int, count: int) -> Array:
    """Return x with an axis divided into groups: `[..., groups, group size, ...]`."""
    return x.reshape(*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])


def count_devices(x: Array) -> int:
    """Return the number of devices x may be sharded over: 1 in a shard_map, where x is local."""
    mesh = jax.typeof(x).sharding.mesh
    pairs = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in pairs if kind != AxisType.Manual)


def partition_spec(x: Array) -> tuple[Any, ...]:
    """Return the Explicit mesh axes over which each dimension is sharded, or None for each."""
    return tuple(jax.typeof(x).sharding.spec)


def flatten_rows(x: Array, lead: int) -> Array:
    """Return x with its first `lead` axes merged: `[N, ...]`.

    If an Explicit mesh shards one of these axes other than the first, each device flattens its own
    part. No data moves, but the rows are in a different order, which `unflatten_rows` undoes.
    """
    spec = partition_spec(x)
    if not any(spec[1:lead]):
        return x.reshape(-1, *x.shape[lead:])
    merged = PartitionSpec(_merge_entries(spec[:lead]), *spec[lead:])
    return map_shards(lambda a: a.reshape(-1, *a.shape[lead:]), x, out_specs=merged)


def unflatten_rows(x: Array, like: Array, lead: int) -> Array:
    """Undo `flatten_rows`: return `[N, ...]` with the first axes of `like` and their sharding."""
    rows, rest = partition_spec(like)[:lead], partition_spec(x)[1:]
    if not any(rows[1:]):
        return x.reshape(*like.shape[:lead], *x.shape[1:])
    shard = jax.typeof(like).sharding.shard_shape(like.shape)[:lead]
    x = reshard(x, like, _merge_entries(rows), *rest)
    out = PartitionSpec(*rows, *rest)
    return map_shards(lambda a: a.reshape(*shard, *a.shape[1:]), x, out_specs=out)


def map_shards(function: Callable[[Array], Array], x: Array, *, out_specs: PartitionSpec) -> Array:
    """Apply a function to each device's part of x on an Explicit mesh."""
    mesh = jax.typeof(x).sharding.mesh
    in_specs = PartitionSpec(*partition_spec(x))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(x)


def _merge_entries(entries: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the mesh axes of several entries of a PartitionSpec as one entry."""
    return tuple(name for entry in entries for name in axis_names(entry))


def axis_names(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes in one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def shard_like_rows(x: Array, like: Array, axis: int) -> Array:
    """Return values per row, sharded like the rows of `like` on an Explicit mesh.

    The later axes of x keep their sharding, except over mesh axes that the rows use.
    """
    rows = partition_spec(like)[:axis] + partition_spec(like)[axis + 1 :]
    rest = drop_used(partition_spec(x)[len(rows) :], rows)
    return reshard(x, like, *rows, *rest)


def drop_used(entries: tuple[Any, ...], used: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return entries of a PartitionSpec, with None for those that share a mesh axis with `used`."""
    names = {*_merge_entries(used)}
    return tuple(None if names & {*axis_names(entry)} else entry for entry in entries)


def gather_axis(x: Array, axis: int) -> Array:
    """Return x with one axis gathered on every device, if an Explicit mesh shards it."""
    spec = list(partition_spec(x))
    if spec[axis] is None:
        return x
    spec[axis] = None
    return reshard(x, x, *spec)


def replicate(x: Array) -> Array:
    """Return x gathered on every device, if an Explicit mesh shards it."""
    return reshard(x, x, *(None,) * x.ndim)


def reshard(x: Array, like: Array, *axes: Any) -> Array:
    """Return x sharded over these Explicit axes of the mesh of `like`, or else of its own mesh.

    Auto axes of that mesh are left to the compiler. This works inside and outside the context of
    that mesh; outside, JAX moves only concrete arrays.
    """
    like = like if _is_explicit(like) else x
    mesh, axes = jax.typeof(like).sharding.mesh, _typed_entries(like, axes)
    is_in_place = jax.typeof(x).sharding.mesh == mesh and partition_spec(x) == axes
    if not _is_explicit(like) or is_in_place:
        return x
    if isinstance(x, jax.core.Tracer) or isinstance(like, jax.core.Tracer):
        return jax.sharding.reshard(x, sharding(like, *axes))
    concrete: Any = like.sharding
    return jax.device_put(x, NamedSharding(concrete.mesh, PartitionSpec(*axes)))


def sharded_first(arrays: list[Array]) -> Array:
    """Return an array that is sharded over an Explicit mesh, or else the first."""
    return next((a for a in arrays if any(partition_spec(a))), arrays[0])


def _typed_entries(like: Array, entries: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return entries of a PartitionSpec with the Explicit axes alone, which types can name."""
    names = [_of_kind(AxisType.Explicit, like, entry) for entry in entries]
    pairs = zip(entries, names, strict=True)
    return tuple(e if axis_names(e) == kept else kept or None for e, kept in pairs)


def _of_kind(kind: AxisType, like: Array, entry: Any) -> tuple[str, ...]:
    """Return the mesh axes of this kind in an entry of a PartitionSpec."""
    mesh = jax.typeof(like).sharding.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(name for name in axis_names(entry) if kinds.get(name) == kind)


def _is_explicit(x: Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def sharding(like: Array, *axes: Any) -> NamedSharding:
    """Return the sharding over these axes of the mesh of `like`."""
    return NamedSharding(jax.typeof(like).sharding.mesh, PartitionSpec(*axes))


def mesh_of(x: Array) -> AbstractMesh:
    """Return the mesh of an array, or the one of `jax.set_mesh` if it has none."""
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.get_abstract_mesh() if mesh.empty else mesh


def enter_mesh(x: Array) -> Array:
    """Return x on the mesh of `jax.set_mesh`, if that is Explicit and the type of x has none.

    A program's NumPy argument has none, whatever the context, and JAX would not shard it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_typed = not jax.typeof(x).sharding.mesh.empty
    if is_typed or AxisType.Explicit not in mesh.axis_types or not isinstance(x, jax.core.Tracer):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim))


def check_context(x: Array, name: str) -> None:
    """Raise a ValueError if x is on another mesh than that of `jax.set_mesh`."""
    found = dict(jax.typeof(x).sharding.mesh.shape)
    expected = dict(jax.sharding.get_abstract_mesh().shape)
    if found and expected and found != expected:
        raise ValueError(
            f"{name}: expected an array on the mesh of jax.set_mesh, {expected}, got one on {found}"
        )


def count_shards(axes: tuple[str, ...], x: Array) -> int:
    """Return the number of shards over these axes of the mesh of x."""
    if len({*axes}) < len(axes):
        raise ValueError(f"shards must name an axis of the mesh once, got {axes}")
    sizes = mesh_of(x).shape
    for name in axes:
        if name not in sizes:
            advice = "" if sizes else "; there is no mesh: set one by jax.set_mesh"
            raise ValueError(
                f"shards must name axes of the mesh, {tuple(sizes)}, got {name!r}{advice}"
            )
    return math.prod(sizes[name] for name in axes)


def is_manual(axes: tuple[str, ...], x: Array) -> bool:
    """Return whether this is inside a shard_map over the axes, where arrays are local."""
    mesh = mesh_of(x)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return bool(axes) and all(kinds[name] == AxisType.Manual for name in axes)


def gather_devices(x: Array, axes: tuple[str, ...]) -> Array:
    """Return the values of all devices along Manual axes, the same on all: `[devices, ...]`.

    The new axis is there before the gather. JAX 0.12 would give the first of the old axes' entries
    in the sharding over other axes of the mesh to it.
    """
    return lax.all_gather(x[None], axes, tiled=True, to="invarying")


def row_axes(x: Array, count: int) -> Any:
    """Return the mesh axes over which to share the work on `count` rows taken from x, or None.

    They are the axes of x's own rows on an Explicit mesh, and all axes of an Auto mesh, which does
    not reveal where the rows are. The result is None if the axes do not divide the count.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name, kind in kinds.items() if kind == AxisType.Auto)
    if AxisType.Explicit in mesh.axis_types:
        axes = partition_spec(x)[0]
    shards = math.prod(mesh.shape[name] for name in axis_names(axes))
    return axes if axes and count % shards == 0 else None


def take_rows(x: Array, rows: Array, like: Array, axes: Any, **options: Any) -> Array:
    """Return x[rows] with its rows sharded over these axes of the mesh of `like`."""
    mesh = jax.typeof(like).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:
        options["out_sharding"] = sharding(like, *_typed_entries(like, _with_rows_over(axes, x)))
    return shard_rows(x.at[rows].get(**options), like, axes)


def shard_rows(x: Array, like: Array, axes: Any) -> Array:
    """Return x with its rows sharded over these axes of the mesh of `like`."""
    if _is_explicit(like):
        x = reshard(x, like, *_with_rows_over(axes, x))
    untyped = _of_kind(AxisType.Auto, like, axes)
    if not untyped or count_devices(like) == 1:
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return lax.with_sharding_constraint(x, sharding(like, untyped, *rest))


def _with_rows_over(axes: Any, x: Array) -> tuple[Any, ...]:
    """Return x's partition spec with these axes for its rows and no axis used twice."""
    return axes, *drop_used(partition_spec(x)[1:], (axes,))
