r"""Dense features of problems whose rows and classes the devices of a mesh share.

Each device multiplies its own rows. Scores stay where their rows are, and what a weighted sum of
all rows passes over the network is the sum alone, K (D + 1) numbers. What the solvers decide is the
same on every device, also of several processes.

Where other axes of the mesh share the classes, each device has the parameters and the scores of its
own classes alone. Their part of the weighted sum passes between devices of the same classes; maxima
and sums over the classes of a row pass between devices of the same rows. Of the solvers' arrays,
those with three axes or more have the classes as their second one.

The solvers leave what is elementwise in the rows, and sums of it, to the compiler. It divides the
work by the arrays' shardings on a mesh of automatic axes, whatever the user's own mesh is.
"""

import math
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
from jaxsoftmax.class_shards import UNSHARDED, ClassShards, resolve
from jaxsoftmax.sharding import Shards
from jaxsoftmax.solvers import device_sums


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowShards:
    """Sharded features `[N, D]`, with the parts of an array's interface that the solvers use."""

    values: Array
    sharding: NamedSharding = field(metadata={"static": True})
    examples: int = field(metadata={"static": True})  # the rows behind them are padding
    class_axes: tuple[str, ...] = field(default=(), metadata={"static": True})

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
        """The number of shards of the rows."""
        return _count_devices(self.sharding.mesh, self.axes)

    def __len__(self) -> int:
        return self.shape[0]

    def astype(self, dtype: Any) -> Self:
        """Return the same features in another dtype."""
        return replace(self, values=self.values.astype(dtype))

    def zero_rows(self, rows: np.ndarray) -> Self:
        """Return the same features with zeros in the rows that a bool per example chooses."""
        padding = len(self) - len(rows)
        chosen = to_device(self, np.pad(rows, (0, padding)))[:, None]
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

    def place(self, a: np.ndarray, spec: PartitionSpec) -> Array:
        """Return an array of the host on the devices; each process reads what its own hold."""
        sharding = NamedSharding(self.sharding.mesh, spec)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    def example_spec(self, ndim: int) -> PartitionSpec:
        """Return where an array is whose last axis is that of the rows."""
        classes = self.class_axes if ndim > 2 else None
        return PartitionSpec(*(None, classes, *(None,) * ndim)[: ndim - 1], self.sharding.spec[0])

    def parameter_spec(self, ndim: int) -> PartitionSpec:
        """Return where an array is that is the same for all rows."""
        return PartitionSpec(None, self.class_axes) if ndim > 2 else PartitionSpec()


def shard_features(features: Any, shards: Shards | None) -> Any:
    """Return features as RowShards if `shards` or their own sharding asks for it, or as they are.

    Raises:
        TypeError: `shards` is not Shards or None.
        ValueError: `shards` names no axes of the mesh, or one of them for rows and classes, or the
            features are a sparse matrix.
    """
    sharding = _choose_sharding(features, shards)
    if sharding is None:
        return features
    if hasattr(features, "tocsr"):
        raise ValueError("shards must be None for a sparse matrix, whose rows are not sharded")
    if np.ndim(features) != 2:
        raise ValueError(f"features: expected [N, D], got shape {np.shape(features)}")
    put = _put_device_array if isinstance(features, Array) else _put_host_array
    classes = () if shards is None else placement.axis_names(shards.classes)
    classes = classes if _count_devices(sharding.mesh, classes) > 1 else ()
    return RowShards(put(features, sharding), sharding, len(features), classes)


def put_rows(x: np.ndarray, sharding: NamedSharding) -> RowShards:
    """Return a host's rows, whose number the shards divide, on the devices of this process."""
    return RowShards(jax.device_put(x, sharding), sharding, len(x))


def _choose_sharding(features: Any, shards: Shards | None) -> NamedSharding | None:
    """Return the sharding of rows over automatic axes of the user's mesh, None for one device."""
    own = features.sharding if isinstance(features, Array) else None
    own = own if isinstance(own, NamedSharding) and not own.mesh.empty else None
    if own is None and shards is None:  # no array on a device is made for a small fit
        return None
    requested = resolve(shards, features if isinstance(features, Array) else jnp.zeros(()))
    rows, classes = requested.rows, requested.classes
    if not rows and own is not None and own.spec:
        rows = placement.axis_names(own.spec[0])
        if shared := {*rows} & {*classes}:
            raise ValueError(f"shards.classes: expected axes other than the rows', got {shared}")
    if not rows + classes:
        return None
    mesh = jax.sharding.get_mesh() if own is None else own.mesh
    assert isinstance(mesh, Mesh)
    automatic = Mesh(mesh.devices, mesh.axis_names)
    used = requested.rows or classes or _count_devices(automatic, rows) > 1
    return NamedSharding(automatic, PartitionSpec(rows, None)) if used else None


def _count_devices(mesh: Any, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def _put_device_array(x: Array, sharding: NamedSharding) -> Array:
    """Return an array of JAX with these shards, without a transfer where it has them."""
    count = _count_devices(sharding.mesh, placement.axis_names(sharding.spec[0]))
    if len(x) % count == 0:
        return jax.device_put(x, sharding)
    if not x.is_fully_addressable:
        raise ValueError(f"features: expected rows that {count} shards divide, got {len(x)}")
    return _put_host_array(x, sharding)


def _put_host_array(x: Any, sharding: NamedSharding) -> Array:
    """Return a host's array with these shards; each process reads the rows of its own devices."""
    x = np.asarray(x)
    n, count = len(x), _count_devices(sharding.mesh, placement.axis_names(sharding.spec[0]))

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
    if not isinstance(features, RowShards):
        return jnp.asarray(a)
    return features.place(np.asarray(a), features.example_spec(np.ndim(a)))


def put_parameters(features: Any, theta: np.ndarray) -> Array:
    """Return a host's parameters `[L, K, D + 1]` on the devices, where their classes are."""
    if not isinstance(features, RowShards) or not features.class_axes:
        return jnp.asarray(theta)
    return features.place(theta, features.parameter_spec(3))


def class_shards(features: Any) -> ClassShards:
    """Return where the classes are, as links and losses take it; the compiler divides the rows."""
    if not isinstance(features, RowShards) or not features.class_axes:
        return UNSHARDED
    return ClassShards(features.class_axes, mesh=features.sharding.mesh.abstract_mesh)


def padded_classes(features: Any, classes: int) -> int:
    """Return the number of classes with those that are added, so that the shards divide it."""
    return classes + -classes % class_count(features)


def class_count(features: Any) -> int:
    """Return the number of shards of the classes."""
    sharded = isinstance(features, RowShards)
    return _count_devices(features.sharding.mesh, features.class_axes) if sharded else 1


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
    spec = features.example_spec(a.ndim)
    take = _map(features, lambda a, rows: a[..., rows], (spec, PartitionSpec()), spec)
    return take(a, jnp.asarray(rows))


def map_rows(function: Callable, features: RowShards, v: Array) -> Array:
    """Return function(x, v) `[..., N]` for v that is the same for all rows."""
    specs = features.sharding.spec, features.parameter_spec(v.ndim)
    return _map(features, function, specs, features.example_spec(v.ndim))(features.values, v)


def map_classes(function: Callable, features: RowShards, a: Array) -> Array:
    """Return function(a), of one shape with a, for an array that is the same for all rows."""
    spec = features.parameter_spec(a.ndim)
    return _map(features, function, (spec,), spec)(a)


def map_columns(
    function: Callable, features: Any, *arrays: Array, replicated: tuple[Array, ...] = ()
) -> Array:
    """Return function(*replicated, *arrays), `[L, 1, D]`, of each column of arrays `[L, K, D]`.

    Devices that share the classes exchange them for all classes of their share of the columns: an
    array is as large as before. They gather the results, a number for each column.
    """
    count = class_count(features)
    if count == 1:
        return function(*replicated, *arrays)
    width, axes = arrays[0].shape[-1], features.class_axes

    def local(*operands: Array) -> Array:
        shared, own = operands[: len(replicated)], operands[len(replicated) :]
        padded = (jnp.pad(a, ((0, 0), (0, 0), (0, -width % count))) for a in own)
        columns = [lax.all_to_all(a, axes, 2, 1, tiled=True) for a in padded]
        found = function(*shared, *columns)
        return lax.all_gather(found, axes, axis=2, tiled=True, to="invarying")

    specs = *(PartitionSpec() for _ in replicated), *(features.parameter_spec(3) for _ in arrays)
    return _map(features, local, specs, PartitionSpec())(*replicated, *arrays)[..., :width]


def sum_rows(
    function: Callable, features: RowShards, *operands: Array, replicated: tuple = ()
) -> Any:
    """Return the sums over the shards of the rows of function(x, *replicated, *operands).

    The last axis of an operand is that of the rows. The sums are the same for all rows, and if an
    operand has classes, their second axis is that of the classes.
    """

    def local(*arrays: Array) -> Any:
        return device_sums.total(function(*arrays), features.axes)

    own = [features.example_spec(a.ndim) for a in operands]
    specs = features.sharding.spec, *(PartitionSpec() for _ in replicated), *own
    out = features.parameter_spec(max(a.ndim for a in operands))
    return _map(features, local, specs, out)(features.values, *replicated, *operands)


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
