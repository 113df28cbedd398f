"""Where a value lives: the part of its type that is neither shape nor dtype.

Inside `jax.shard_map` a type names the mesh axes over which a value varies; on an Explicit mesh it
names those that each dimension is sharded over; on an Auto mesh it names the mesh alone, and the
compiler decides. A constant has none of this. Where it meets other values JAX adds what is missing,
but the carry of a loop, the results of a derivative rule, of a primitive and of a kernel must have
the full type from the start. Everything that has to say such a type says it through this module.
"""

import math
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType
from jax.typing import DTypeLike


def join(*arrays: Array | None) -> tuple[Any, ...]:
    """The arrays, each varying over every axis over which one of them does; None stays None.

    The gradient of a replicated argument is then the sum over the devices, as shard_map has it.
    """
    axes = frozenset[Any]().union(*(_varying(a) for a in arrays if a is not None))
    return tuple(None if a is None else _vary(a, axes) for a in arrays)


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
    mesh = jax.typeof(x).sharding.mesh
    devices = math.prod(mesh.shape[name] for name in _free_axes(mesh))
    return math.gcd(x.shape[axis], devices)


def _free_axes(mesh: Any) -> list[str]:
    """The axes that are not Manual: within a shard_map an array is local."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return [name for name, kind in pairs if kind != AxisType.Manual]


def spec(x: Array) -> tuple[Any, ...]:
    """The Explicit mesh axes that each dimension is sharded over, None where there are none."""
    return tuple(jax.typeof(x).sharding.spec)
