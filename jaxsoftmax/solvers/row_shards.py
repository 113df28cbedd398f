r"""Dense features whose rows are shared among the devices of a mesh, also of several processes.

Each device multiplies its own rows. Scores stay where their rows are, and what a weighted sum of
all rows passes over the network is the sum alone, K (D + 1) numbers. Parameters, and all that the
solvers decide, are the same on every device.

The solvers leave what is elementwise in the rows, and sums of it, to the compiler. It divides the
work by the arrays' shardings on a mesh of automatic axes, whatever the user's own mesh is.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsoftmax import placement
from jaxsoftmax.sharding import Shards


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowShards:
    """Sharded features `[N, D]`, with the parts of an array's interface that the solvers use."""

    values: Array
    sharding: NamedSharding = field(metadata={"static": True})
    examples: int = field(metadata={"static": True})  # the rows behind them are padding

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape over all devices, padding included."""
        return self.values.shape

    @property
    def size(self) -> int:
        """The number of values on all devices, which determines the cost of a product."""
        return self.values.size

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that share the rows."""
        return placement.axis_names(self.sharding.spec[0])

    @property
    def count(self) -> int:
        """The number of shards."""
        return _count(self.sharding)

    def __len__(self) -> int:
        return self.shape[0]

    def astype(self, dtype: Any) -> Self:
        """Return the same features in another dtype."""
        return replace(self, values=self.values.astype(dtype))

    def zero_rows(self, rows: np.ndarray) -> Self:
        """Return the same features with zeros in the rows that a bool per example chooses."""
        padding = len(self) - len(rows)
        chosen = self.place(np.pad(rows, (0, padding)))[:, None]
        return replace(self, values=jnp.where(chosen, 0, self.values))

    def first_row_above(self, limit: float) -> int | None:
        """Return the first row with a value that is not finite or above the limit, or None."""
        within = jnp.all(jnp.abs(self.values) <= limit, 1)
        return None if jnp.all(within) else int(jnp.argmin(within))

    def read_row(self, row: int) -> np.ndarray:
        """Return one row on the host."""
        return np.asarray(
            jnp.sum(jnp.where(jnp.arange(len(self))[:, None] == row, self.values, 0), 0)
        )

    def place(self, a: Any, axis: int = -1) -> Array:
        """Return an array of the host with one axis, that of the rows, on the rows' devices."""
        a = np.asarray(a)
        spec = [None] * a.ndim
        spec[axis] = self.sharding.spec[0]
        sharding = NamedSharding(self.sharding.mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])


def shard_features(features: Any, shards: Shards | None) -> Any:
    """Return features as RowShards if `shards` or their own sharding asks for it, or as they are.

    Raises:
        ValueError: if `shards` names no axes of the mesh, or names axes of the classes, or the
            features are a sparse matrix.
    """
    if shards is not None and shards.classes is not None:
        raise ValueError(
            f"shards.classes must be None, devices share rows alone, got {shards.classes!r}"
        )
    sharding = _choose_sharding(features, shards)
    if sharding is None:
        return features
    if hasattr(features, "tocsr"):
        raise ValueError("shards must be None for a sparse matrix, whose rows are not sharded")
    if np.ndim(features) != 2:
        raise ValueError(f"features: expected [N, D], got shape {np.shape(features)}")
    put = _put_device_array if isinstance(features, Array) else _put_host_array
    return RowShards(put(features, sharding), sharding, len(features))


def put_rows(x: np.ndarray, sharding: NamedSharding) -> RowShards:
    """Return a host's rows, whose number the shards divide, on the devices of this process."""
    return RowShards(jax.device_put(x, sharding), sharding, len(x))


def _choose_sharding(features: Any, shards: Shards | None) -> NamedSharding | None:
    """Return the sharding of rows over automatic axes of the user's mesh, None for one device."""
    own = features.sharding if isinstance(features, Array) else None
    own = own if isinstance(own, NamedSharding) and not own.mesh.empty else None
    requested = shards is not None and shards.rows is not None
    if requested:
        axes: Any = placement.axis_names(shards.rows)  # type: ignore[union-attr]
        placement.count_shards(axes, features if isinstance(features, Array) else jnp.zeros(()))
    else:
        axes = own.spec[0] if own is not None and own.spec else None
    if not axes:
        return None
    mesh = jax.sharding.get_mesh() if own is None else own.mesh
    assert isinstance(mesh, Mesh)
    sharding = NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec(axes, None))
    return sharding if requested or _count(sharding) > 1 else None


def _count(sharding: NamedSharding) -> int:
    shape = sharding.mesh.shape
    return int(np.prod([shape[name] for name in placement.axis_names(sharding.spec[0])]))


def _put_device_array(x: Array, sharding: NamedSharding) -> Array:
    """Return an array of JAX with these shards, without a transfer where it has them."""
    count = _count(sharding)
    if len(x) % count == 0:
        return jax.device_put(x, sharding)
    if not x.is_fully_addressable:
        raise ValueError(f"features: expected rows that {count} shards divide, got {len(x)}")
    return _put_host_array(x, sharding)


def _put_host_array(x: Any, sharding: NamedSharding) -> Array:
    """Return a host's array with these shards; each process reads the rows of its own devices."""
    x = np.asarray(x)
    n, count = len(x), _count(sharding)

    def take(index: Any) -> np.ndarray:
        rows = index[0].indices(n + -n % count)
        part = x[rows[0] : rows[1]]
        return np.pad(part, ((0, rows[1] - rows[0] - len(part)), (0, 0)))

    with jax.enable_x64():
        return jax.make_array_from_callback((n + -n % count, x.shape[1]), sharding, take)


@contextmanager
def computing_with(features: Any) -> Iterator[None]:
    """Enable float64, and enter the mesh of sharded features in place of the user's."""
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64())
        if isinstance(features, RowShards):
            mesh: Any = features.sharding.mesh
            stack.enter_context(jax.set_mesh(mesh))
        yield


def to_device(features: Any, a: Any) -> Array:
    """Return a host's array, whose last axis is that of the rows, where the features' rows are."""
    return features.place(a) if isinstance(features, RowShards) else jnp.asarray(a)


def as_array(features: Any) -> Array:
    """Return dense features as an array, for what the compiler divides among the devices."""
    return features.values if isinstance(features, RowShards) else features


def rows_per_shard(features: Any) -> int:
    """Return the number of rows on each device that shares them."""
    return features.shape[0] // (features.count if isinstance(features, RowShards) else 1)


def take_rows(features: Any, rows: Any) -> Any:
    """Return the features of the rows at these positions in each shard."""
    if not isinstance(features, RowShards):
        return features[rows]
    spec = features.sharding.spec
    take = _map(features, lambda x, rows: x[rows], (spec, PartitionSpec()), spec)
    values = take(features.values, jnp.asarray(rows))
    return replace(features, values=values, examples=len(values))


def take_columns(features: Any, a: Array, rows: Any) -> Array:
    """Return the columns of a, whose last axis is that of the rows, at positions in each shard."""
    if not isinstance(features, RowShards):
        return a[..., rows]
    spec = _last_axis_spec(features, a)
    take = _map(features, lambda a, rows: a[..., rows], (spec, PartitionSpec()), spec)
    return take(a, jnp.asarray(rows))


def map_rows(function: Callable, features: RowShards, v: Array) -> Array:
    """Return function(x, v) `[R, N]` for v that is the same everywhere."""
    specs = features.sharding.spec, PartitionSpec()
    out = PartitionSpec(None, features.sharding.spec[0])
    return _map(features, function, specs, out)(features.values, v)


def sum_rows(
    function: Callable, features: RowShards, *operands: Array, replicated: tuple = ()
) -> Any:
    """Return the sums over the devices of function(x, *replicated, *operands).

    The last axis of an operand is that of the rows. The sums are the same everywhere.
    """

    def local(*arrays: Array) -> Any:
        return lax.psum(function(*arrays), features.axes)

    own = [_last_axis_spec(features, a) for a in operands]
    specs = features.sharding.spec, *(PartitionSpec() for _ in replicated), *own
    return _map(features, local, specs, PartitionSpec())(features.values, *replicated, *operands)


def _last_axis_spec(features: RowShards, a: Array) -> PartitionSpec:
    return PartitionSpec(*(None,) * (a.ndim - 1), features.sharding.spec[0])


def _map(features: RowShards, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    mesh = features.sharding.mesh
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def agree(features: Any, a: np.ndarray) -> np.ndarray:
    """Return what a host has computed, the same on all processes that share the features.

    LAPACK may round differently on another machine, and processes must not decide differently.
    """
    if isinstance(features, RowShards) and jax.process_count() > 1:
        return np.asarray(multihost_utils.broadcast_one_to_all(a))
    return a
