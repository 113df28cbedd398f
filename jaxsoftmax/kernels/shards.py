"""The fused losses on an Explicit mesh, whose types show where rows and classes are sharded.

Each device runs an implementation on the rows and the classes that it holds, inside one
`jax.shard_map`. Only sums cross between devices, no logits: the statistics of
the rows are combined over the shards of the classes, and gradients of what is replicated are summed
once, by the transpose of the replication itself.
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


def over_shards(
    function: Callable[..., Any],
    call: Call,
    head: Head,
    *numbers: Array | None,
    per_row: bool = True,
) -> Any:
    """Apply a function to the rows and classes of each device.

    Args:
        function: `(call, axes, head, *numbers) -> arrays [N]`, or a sum over all rows and classes.
        call: the settings; the dense implementation is left to JAX's own sharding.
        head: the head of all rows and classes.
        numbers: of the rows, `[N]` each, or None.
        per_row: whether the results are `[N]`.
    """
    given = (head, *numbers)
    sharded = [a for a in jax.tree.leaves(given) if any(placement.partition_spec(a))]
    if not sharded or call.implementation == "reference" or head.x.shape[0] == 0:
        return function(call, Axes(), *placement.match_varying_axes(*given))
    axes = _axes(head)
    row = PartitionSpec(axes.rows or None)
    specs = _specs(head, axes), *(None if a is None else row for a in numbers)
    placed = jax.tree.map(lambda a, s: placement.reshard(a, sharded[0], *s), given, specs)
    mesh = jax.typeof(sharded[0]).sharding.mesh
    out_specs = row if per_row else PartitionSpec()

    def local(head: Head, *numbers: Array | None) -> Any:
        # Numbers of the rows are the same for all classes, and so is what is made of them.
        if axes.classes:
            return function(call, axes, *placement.match_varying_axes(head), *numbers)
        return function(call, axes, *placement.match_varying_axes(head, *numbers))

    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = {name for name, kind in kinds if kind == AxisType.Explicit}
    return jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=out_specs, axis_names=explicit
    )(*placed)


def _axes(head: Head) -> Axes:
    """Return the axes of x's rows, and those of w's classes that the rows do not use."""
    rows = placement.axis_names(placement.partition_spec(head.x)[0])
    classes = placement.axis_names(placement.partition_spec(head.w)[1])
    return Axes(rows, tuple(name for name in classes if name not in rows))


def _specs(head: Head, axes: Axes) -> Head:
    """Return the PartitionSpecs of the parts of a head."""
    rows, classes = axes.rows or None, axes.classes or None
    places: dict[str, Any] = {
        "x": PartitionSpec(rows, None),
        "w": PartitionSpec(None, classes),
        "bias": PartitionSpec(classes),
        "where": PartitionSpec(None if _is_shared(head.where) else rows, classes),
        "targets": PartitionSpec(rows) if head.targets.ndim == 1 else PartitionSpec(rows, classes),
        "pos_weight": PartitionSpec(None, classes),
    }
    return head._replace(
        **{name: p for name, p in places.items() if getattr(head, name) is not None}
    )


def _is_shared(where: Array | None) -> bool:
    """Return whether all rows have the same mask."""
    return where is None or where.shape[0] == 1


def local_labels(head: Head, axes: Axes) -> tuple[Head, Array | int]:
    """Return the head with labels relative to this device's first class, and that class.

    A label of another device becomes -1: any number above could fall into a kernel's padding.
    """
    if not axes.classes:
        return head, 0
    classes = head.w.shape[1]
    first = lax.axis_index(axes.classes) * classes
    local = head.targets - first
    here = (local >= 0) & (local < classes)
    return head._replace(targets=jnp.where(here, local, -1)), first


def combine(rows: LSEParts, first: Array | int, axes: Axes) -> LSEParts:
    """Combine the statistics of rows over each device's classes into those over all classes."""
    if not axes.classes:
        return rows
    top = lax.pmax(lax.stop_gradient(rows.maximum), axes.classes)
    others = lax.psum(rows.sum_exp_rest * relative_exp(rows.maximum, top), axes.classes)
    label = lax.psum(rows.label_logit, axes.classes)
    return LSEParts(top, others, label, _combine_stats(rows, top, first, axes))


def _combine_stats(rows: LSEParts, top: Array, first: Array | int, axes: Axes) -> Stats | None:
    if rows.stats is None:
        return None
    mean, classes, predicted = rows.stats
    total = lax.psum(mean * classes, axes.classes)
    classes = lax.psum(classes, axes.classes)
    # The first class of the largest logit: of the devices that have one, the least.
    none = jnp.iinfo(jnp.int32).max  # a row with a NaN has no largest logit
    here = jnp.where(rows.maximum == top, predicted + first, none).astype(jnp.int32)
    least = lax.pmin(here, axes.classes)
    return Stats(total / jnp.maximum(classes, 1), classes, jnp.where(least == none, 0, least))
