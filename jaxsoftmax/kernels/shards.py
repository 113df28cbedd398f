"""The fused losses on an Explicit mesh, whose types show how rows and classes are sharded.

Each device runs an implementation on the rows and classes that it holds, inside one
`jax.shard_map`. Only sums cross between devices, never logits: the statistics of the rows are
combined over the shards of the classes, and the gradient of a replicated array is summed once, by
the transpose of the replication itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

from jaxsoftmax import placement
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.settings import Call
from jaxsoftmax.kernels.types import Head, LSEParts, Stats


class Axes(NamedTuple):
    """The names of the mesh axes over which rows and classes are sharded."""

    rows: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def run_on_shards(
    function: Callable[..., Any],
    call: Call,
    head: Head,
    *row_arrays: Array | None,
    per_row: bool = True,
) -> Any:
    """Apply a function to the rows and classes of each device.

    Args:
        function: `(call, axes, head, *row_arrays) -> arrays [N]`, or a sum over all rows and
            classes.
        call: the settings. The dense implementation is left to JAX's own sharding.
        head: the head of all rows and classes.
        row_arrays: arrays of the rows, `[N]` each, or None.
        per_row: whether the results are `[N]`.
    """
    inputs = (head, *row_arrays)
    sharded = [a for a in jax.tree.leaves(inputs) if any(placement.partition_spec(a))]
    if not sharded or call.implementation == "reference" or head.x.shape[0] == 0:
        return function(call, Axes(), *placement.match_varying_axes(*inputs))
    axes, like = _axes(head), sharded[0]
    row_spec = PartitionSpec(axes.rows or None)
    in_specs = _specs(head, axes), *(None if a is None else row_spec for a in row_arrays)
    inputs = jax.tree.map(lambda a, s: placement.reshard(a, like, *s), inputs, in_specs)

    def local(head: Head, *row_arrays: Array | None) -> Any:
        return function(call, axes, *_match_varying_axes(axes, head, row_arrays))

    mesh = jax.typeof(like).sharding.mesh
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=row_spec if per_row else PartitionSpec(),
        axis_names=_explicit_axes(mesh),
    )(*inputs)


def _match_varying_axes(axes: Axes, head: Head, row_arrays: tuple) -> tuple:
    """Return a device's arrays varying over the same mesh axes.

    Where classes are sharded, arrays of the rows stay the same for all classes, and so do the
    results per row.
    """
    if axes.classes:
        return *placement.match_varying_axes(head), *row_arrays
    return placement.match_varying_axes(head, *row_arrays)


def _axes(head: Head) -> Axes:
    """Return the axes of x's rows, and those of w's classes that the rows do not use."""
    rows = placement.axis_names(placement.partition_spec(head.x)[0])
    classes = placement.axis_names(placement.partition_spec(head.w)[1])
    return Axes(rows, tuple(name for name in classes if name not in rows))


def _explicit_axes(mesh: Any) -> set[str]:
    """Return the names of the Explicit axes of a mesh."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, axis_type in types if axis_type == AxisType.Explicit}


def _specs(head: Head, axes: Axes) -> Head:
    """Return the PartitionSpecs of the parts of a head."""
    rows, classes = axes.rows or None, axes.classes or None
    specs: dict[str, Any] = {
        "x": PartitionSpec(rows, None),
        "w": PartitionSpec(None, classes),
        "bias": PartitionSpec(classes),
        "where": PartitionSpec(None if _is_shared(head.where) else rows, classes),
        "targets": PartitionSpec(rows) if head.targets.ndim == 1 else PartitionSpec(rows, classes),
        "pos_weight": PartitionSpec(None, classes),
    }
    return head._replace(
        **{name: spec for name, spec in specs.items() if getattr(head, name) is not None}
    )


def _is_shared(where: Array | None) -> bool:
    """Return whether all rows have the same mask."""
    return where is None or where.shape[0] == 1


def localize_labels(head: Head, axes: Axes) -> tuple[Head, Array | int]:
    """Return the head with labels relative to this device's first class, and that class.

    The label of another device's class becomes -1: a number above the classes of this device could
    be in a kernel's padding.
    """
    if not axes.classes:
        return head, 0
    classes = head.w.shape[1]
    first = lax.axis_index(axes.classes) * classes
    local = head.targets - first
    is_local = (local >= 0) & (local < classes)
    return head._replace(targets=jnp.where(is_local, local, -1)), first


def combine(parts: LSEParts, first: Array | int, axes: Axes) -> LSEParts:
    """Combine the loss terms of each device's classes, from class `first` on, over all classes."""
    if not axes.classes:
        return parts
    maximum = lax.pmax(lax.stop_gradient(parts.maximum), axes.classes)
    sum_exp_rest = lax.psum(parts.sum_exp_rest * relative_exp(parts.maximum, maximum), axes.classes)
    label_logit = lax.psum(parts.label_logit, axes.classes)
    stats = _combine_stats(parts, maximum, first, axes)
    return LSEParts(maximum, sum_exp_rest, label_logit, stats)


def _combine_stats(parts: LSEParts, maximum: Array, first: Array | int, axes: Axes) -> Stats | None:
    if parts.stats is None:
        return None
    mean, classes, predicted = parts.stats
    total = lax.psum(mean * classes, axes.classes)
    classes = lax.psum(classes, axes.classes)
    # Of the devices that have the largest logit, the one with the smallest index has the first.
    none = jnp.iinfo(jnp.int32).max  # a row with a NaN has no largest logit
    candidate = jnp.where(parts.maximum == maximum, predicted + first, none).astype(jnp.int32)
    least = lax.pmin(candidate, axes.classes)
    return Stats(total / jnp.maximum(classes, 1), classes, jnp.where(least == none, 0, least))
