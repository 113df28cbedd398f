"""Where the arrays of a fused loss lie: the mesh axes of rows and classes, and a shard_map.

The axes are those of `shards=`, or on an Explicit mesh those of the types of x and w. Each device
runs an implementation on the rows and classes that it holds. Only sums cross between devices, never
logits (see `sharded`).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

from jaxsoftmax import class_shards, placement
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.types import Head, Model


def resolve(call: Call, model: Model) -> ClassShards:
    """Return the mesh axes of rows and classes.

    The dense implementation is left to the compiler, or to JAX's own sharding.
    """
    found = class_shards.resolve(call.shards, model.x)
    if call.implementation == "reference" and found.local_axes:
        raise NotImplementedError("implementation 'reference': it needs all classes on one device")
    if call.implementation == "reference" or model.x.shape[0] == 0:
        return UNSHARDED
    explicit = [a for a in model if a is not None and any(placement.partition_spec(a))]
    if call.shards is not None or not explicit:
        if found.mesh is not None:
            placement.check_context(model.x, "x")
        return found
    rows = placement.axis_names(placement.partition_spec(model.x)[0])
    classes = placement.axis_names(placement.partition_spec(model.w)[1])
    unused = tuple(name for name in classes if name not in rows)
    return ClassShards(unused, rows, jax.typeof(explicit[0]).sharding.mesh)


def gather_features(model: Model, axes: ClassShards) -> Model:
    """Return the model with all features on each device, where they are sharded explicitly.

    Derivative rules are within, so that JAX shards the gradients as the arguments.
    """
    if axes.mesh is None:
        return model
    like = placement.sharded_first([a for a in model if a is not None])
    arrays, places = model._asdict(), _model_specs(axes)
    return model._replace(
        **{k: placement.reshard(a, like, *places[k]) for k, a in arrays.items() if a is not None}
    )


def local_head(head: Head, axes: ClassShards) -> Head:
    """Return a head with the shapes of a device's part, without values where it is a part."""
    if axes.mesh is None:
        return head
    places = specs(head, axes)
    for name, spec in zip(head._fields, places, strict=True):
        a = getattr(head, name)
        if a is not None:
            _check_sizes(name, a.shape, spec, axes)
    counts = dict(axes.mesh.shape)

    def local(a: Any, spec: PartitionSpec) -> Any:
        sizes = (class_shards.count_devices(entry, counts) for entry in spec)
        shape = tuple(n // count for n, count in zip(a.shape, sizes, strict=True))
        return jax.ShapeDtypeStruct(shape, a.dtype)

    return jax.tree.map(local, head, places)


def unnamed_axes(axes: ClassShards) -> tuple[str, ...]:
    """Return the axes of an Auto mesh over which the compiler divides the work of each shard."""
    if axes.mesh is None:
        return ()
    kinds = zip(axes.mesh.axis_names, axes.mesh.axis_types, strict=True)
    named = class_shards.manual_axes(axes)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto and name not in named)


def _check_sizes(name: str, shape: tuple[int, ...], spec: Any, axes: ClassShards) -> None:
    counts = dict(axes.mesh.shape) if axes.mesh else {}
    name = {"targets": "labels or targets"}.get(name, name)
    for size, entry in zip(shape, spec, strict=True):
        count = class_shards.count_devices(entry, counts)
        if placement.is_static(size) and size % count:
            of_classes = placement.axis_names(entry) == axes.classes
            kind = "classes; see pad_classes" if of_classes else "rows"
            raise ValueError(f"{name}: expected {count} shards to divide {size} {kind}")


def map_shards(
    function: Callable[..., Any], axes: ClassShards, inputs: Any, in_specs: Any, out_specs: Any
) -> Any:
    """Return function(*inputs) of each device's parts, which they are inside a shard_map."""
    if axes.mesh is None:
        return function(*inputs)
    like = placement.sharded_first(jax.tree.leaves(inputs))
    inputs = jax.tree.map(lambda a, s: placement.reshard(a, like, *s), inputs, in_specs)
    return jax.shard_map(
        function,
        mesh=axes.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=class_shards.manual_axes(axes),
    )(*inputs)


def specs(head: Head, axes: ClassShards) -> Head:
    """Return the PartitionSpecs of the parts of a head."""
    rows, classes = axes.rows or None, axes.classes or None
    found: dict[str, Any] = _model_specs(axes) | {
        "where": PartitionSpec(None if _is_shared(head.where) else rows, classes),
        "targets": PartitionSpec(rows) if head.targets.ndim == 1 else PartitionSpec(rows, classes),
        "pos_weight": PartitionSpec(None, classes),
    }
    return head._replace(
        **{name: spec for name, spec in found.items() if getattr(head, name) is not None}
    )


def _model_specs(axes: ClassShards) -> dict[str, Any]:
    rows, classes = axes.rows or None, axes.classes or None
    return {
        "x": PartitionSpec(rows, None),
        "w": PartitionSpec(None, classes),
        "bias": PartitionSpec(classes),
    }


def per_row(axes: ClassShards, tree: Any) -> Any:
    """Return the PartitionSpecs of arrays `[N]`."""
    return jax.tree.map(lambda _: PartitionSpec(axes.rows or None), tree)


def _is_shared(where: Array | None) -> bool:
    """Return whether all rows have the same mask."""
    return where is None or where.shape[0] == 1
