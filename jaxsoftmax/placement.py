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


def join(*trees: Any) -> tuple[Any, ...]:
    """The trees, each of their arrays varying over every axis over which one of them does.

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
    """A constant array that varies over the axes over which `like` does: where a loop starts."""
    return lax.full_like(like, value, dtype, shape)


def struct(shape: tuple[int, ...], dtype: DTypeLike, like: Array) -> jax.ShapeDtypeStruct:
    """The type of a kernel's result that varies over the axes over which `like` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).mat)


def known(*sizes: Any) -> bool:
    """Whether sizes are numbers, and not the symbols of `jax.export`."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def groups(x: Array, axis: int) -> int:
    """In how many equal groups an axis is cut, so that no block takes a part of one device alone.

    A block of consecutive rows or classes lies on one device where the axis is sharded, and the
    compiler would gather the whole axis everywhere. A block that takes as much of each group keeps
    every device at work on what it holds: each even sharding over the devices of a mesh, or over
    some of them, has a number of shards that divides this number of groups.
    """
    return math.gcd(x.shape[axis], devices(x)) if known(x.shape[axis]) else 1


class Cut(NamedTuple):
    """A block of an axis: of each of its groups so many consecutive entries."""

    start: Array | int  # in each group
    size: int  # of each group
    groups: int = 1

    def indices(self, length: int) -> Array:
        """The places of the entries in an axis of this length, ascending."""
        first = jnp.arange(self.groups, dtype=jnp.int32) * (length // self.groups) + self.start
        return _flat(first[:, None] + jnp.arange(self.size, dtype=jnp.int32)[None, :])

    def since(self, place: Array | int) -> Array:
        """Which entries do not lie before a place in their groups, `[groups size]`."""
        late = self.start + jnp.arange(self.size, dtype=jnp.int32) >= place
        return _flat(jnp.broadcast_to(late[None, :], (self.groups, self.size)))


def _flat(x: Array) -> Array:
    return x.reshape(-1)


def take(x: Array, cut: Cut, axis: int) -> Array:
    """A block of an axis."""
    if x.shape[axis] == cut.size * cut.groups:
        return x
    parts = _grouped(x, axis, cut.groups)
    part = lax.dynamic_slice_in_dim(parts, cut.start, cut.size, axis + 1)
    return part.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def put(x: Array, block: Array, cut: Cut, axis: int) -> Array:
    """x with a block of an axis in its place."""
    parts, block = (_grouped(a, axis, cut.groups) for a in (x, block))
    return lax.dynamic_update_slice_in_dim(parts, block, cut.start, axis + 1).reshape(x.shape)


def _grouped(x: Array, axis: int, count: int) -> Array:
    """x with an axis cut into so many groups: `[..., groups, size of a group, ...]`."""
    return x.reshape(*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])


def devices(x: Array) -> int:
    """Over how many devices x may be sharded: within a shard_map it is local, and they are one."""
    mesh = jax.typeof(x).sharding.mesh
    pairs = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in pairs if kind != AxisType.Manual)


def spec(x: Array) -> tuple[Any, ...]:
    """The Explicit mesh axes that each dimension is sharded over, None where there are none."""
    return tuple(jax.typeof(x).sharding.spec)


def flat_rows(x: Array, lead: int) -> Array:
    """x with its first axes, so many, as one: `[N, ...]`.

    Where an Explicit mesh shards an inner one of them, each device flattens what it holds, so that
    nothing moves and the rows come in another order, which `unflat_rows` takes back.
    """
    found = spec(x)
    if not any(found[1:lead]):
        return x.reshape(-1, *x.shape[lead:])
    merged = PartitionSpec(_merged(found[:lead]), *found[lead:])
    return locally(lambda a: a.reshape(-1, *a.shape[lead:]), x, out_specs=merged)


def unflat_rows(x: Array, like: Array, lead: int) -> Array:
    """What belongs to rows, `[N, ...]`, in the shape and the place of the first axes of `like`."""
    rows, rest = spec(like)[:lead], spec(x)[1:]
    if not any(rows[1:]):
        return x.reshape(*like.shape[:lead], *x.shape[1:])
    shard = jax.typeof(like).sharding.shard_shape(like.shape)[:lead]
    x = resharded(x, like, _merged(rows), *rest)
    out = PartitionSpec(*rows, *rest)
    return locally(lambda a: a.reshape(*shard, *a.shape[1:]), x, out_specs=out)


def locally(function: Callable[[Array], Array], x: Array, *, out_specs: PartitionSpec) -> Array:
    """function(x) on what each device of an Explicit mesh holds of x."""
    mesh = jax.typeof(x).sharding.mesh
    in_specs = PartitionSpec(*spec(x))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(x)


def _merged(entries: tuple[Any, ...]) -> tuple[str, ...]:
    """The axes of several entries of a PartitionSpec, as one entry."""
    return tuple(name for entry in entries for name in names(entry))


def names(entry: Any) -> tuple[str, ...]:
    """The axes in one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def like_rows(x: Array, like: Array, axis: int) -> Array:
    """Numbers of rows, sharded as the rows of `like` are on an Explicit mesh.

    Axes of x after those of the rows stay where they are.
    """
    rows = spec(like)[:axis] + spec(like)[axis + 1 :]
    used = {name for entry in rows for name in names(entry)}
    rest = (None if used & {*names(entry)} else entry for entry in spec(x)[len(rows) :])
    found = (*rows, *rest)
    return resharded(x, like, *found)


def gathered(x: Array, axis: int) -> Array:
    """x with all of an axis on every device, where an Explicit mesh shards it."""
    found = list(spec(x))
    if found[axis] is None:
        return x
    found[axis] = None
    return resharded(x, x, *found)


def replicated(x: Array) -> Array:
    """All of x on every device, where an Explicit mesh shards it."""
    return resharded(x, x, *(None,) * x.ndim)


def resharded(x: Array, like: Array, *axes: Any) -> Array:
    """x over these axes of the Explicit mesh on which `like` lies, or else x itself.

    It works in the context of that mesh and out of it, where JAX moves concrete arrays only.
    """
    like = like if _is_explicit(like) else x
    mesh = jax.typeof(like).sharding.mesh
    if not _is_explicit(like) or (jax.typeof(x).sharding.mesh == mesh and spec(x) == axes):
        return x
    if isinstance(x, jax.core.Tracer) or isinstance(like, jax.core.Tracer):
        return jax.sharding.reshard(x, sharding(like, *axes))
    place: Any = like.sharding
    return jax.device_put(x, NamedSharding(place.mesh, PartitionSpec(*axes)))


def _is_explicit(x: Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def sharding(like: Array, *axes: Any) -> NamedSharding:
    """These axes of the mesh on which `like` lies."""
    return NamedSharding(jax.typeof(like).sharding.mesh, PartitionSpec(*axes))


def row_axes(x: Array, count: int) -> Any:
    """The mesh axes over which to share the work on so many rows taken from x; None for none.

    They are those of x's own rows, or of an Auto mesh, which hides these, all; and none where they
    do not divide the count.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name, kind in kinds.items() if kind == AxisType.Auto)
    if AxisType.Explicit in mesh.axis_types:
        axes = spec(x)[0]
    shares = math.prod(mesh.shape[name] for name in names(axes))
    return axes if axes and count % shares == 0 else None


def taken(x: Array, rows: Array, like: Array, axes: Any, **how: Any) -> Array:
    """x[rows], shared over these axes of the mesh on which `like` lies."""
    mesh = jax.typeof(like).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:
        how["out_sharding"] = sharding(like, *_with_rows_over(axes, x))
    return shared(x.at[rows].get(**how), like, axes)


def shared(x: Array, like: Array, axes: Any) -> Array:
    """x with its rows shared over these axes of the mesh on which `like` lies."""
    mesh = jax.typeof(like).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:
        return resharded(x, like, *_with_rows_over(axes, x))
    if axes is None or devices(like) == 1:
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return lax.with_sharding_constraint(x, sharding(like, axes, *rest))


def _with_rows_over(axes: Any, x: Array) -> tuple[Any, ...]:
    """x's Explicit axes, but these of its rows, and no axis twice."""
    used = {*names(axes)}
    return axes, *(None if used & {*names(entry)} else entry for entry in spec(x)[1:])
