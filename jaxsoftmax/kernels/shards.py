"""The fused losses on an Explicit mesh, whose types show where rows and classes are sharded.

Each device runs an implementation on the rows and the classes that it holds, inside one
`jax.shard_map`. Nothing as large as the logits, x or w crosses between devices: the statistics of
the rows are combined over the shards of the classes, and gradients of what is replicated are summed
once, by the transpose of the replication itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxsoftmax import placement
from jaxsoftmax.kernels.contract import Head, Rows, Stats
from jaxsoftmax.kernels.products import relative_exp


class Axes(NamedTuple):
    """The names of the mesh axes over which rows and classes are sharded."""

    rows: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def over_shards(
    function: Callable[..., Any],
    head: Head,
    *numbers: Array | None,
    implementation: str | None,
    per_row: bool,
) -> Any:
    """function(axes, head, *numbers) on what each device holds.

    Args:
        function: `(axes, head, *numbers) -> arrays [N]`, or scalars that are sums over the axes.
        head: the head of all rows and classes.
        numbers: of the rows, `[N]` each, or None.
        implementation: as it was named; the dense one is sharded as its arrays are.
        per_row: whether the results are `[N]`.
    """
    given = (head, *numbers)
    sharded = [a for a in jax.tree.leaves(given) if any(placement.spec(a))]
    if not sharded or implementation == "reference" or head.x.shape[0] == 0:
        return function(Axes(), *placement.join(*given))
    axes = _axes(head)
    row = PartitionSpec(axes.rows or None)
    specs = _specs(head, axes), *(None if a is None else row for a in numbers)

    def local(head: Head, *numbers: Array | None) -> Any:
        # Numbers of the rows are the same for all classes, and so is what is made of them.
        if axes.classes:
            return function(axes, *placement.join(head), *numbers)
        return function(axes, *placement.join(head, *numbers))

    run = jax.shard_map(
        local,
        mesh=jax.typeof(sharded[0]).sharding.mesh,
        in_specs=specs,
        out_specs=row if per_row else PartitionSpec(),
    )
    return run(*jax.tree.map(lambda a, s: placement.resharded(a, sharded[0], *s), given, specs))


def _axes(head: Head) -> Axes:
    """Rows are sharded as x's are; classes as w's, over the axes that rows leave."""
    rows = placement.names(placement.spec(head.x)[0])
    classes = placement.names(placement.spec(head.w)[1])
    return Axes(rows, tuple(name for name in classes if name not in rows))


def _specs(head: Head, axes: Axes) -> Head:
    """Where the parts of a head lie."""
    rows, classes = axes.rows or None, axes.classes or None
    places: dict[str, Any] = {
        "x": PartitionSpec(rows, None),
        "w": PartitionSpec(None, classes),
        "bias": PartitionSpec(classes),
        "where": PartitionSpec(None if _is_shared(head.where) else rows, classes),
        "truth": PartitionSpec(rows) if head.truth.ndim == 1 else PartitionSpec(rows, classes),
        "pos_weight": PartitionSpec(None, classes),
    }
    return head._replace(
        **{name: p for name, p in places.items() if getattr(head, name) is not None}
    )


def _is_shared(where: Array | None) -> bool:
    """Whether one mask stands for all rows."""
    return where is None or where.shape[0] == 1


def local_labels(head: Head, axes: Axes) -> tuple[Head, Array | int]:
    """Labels counted from the first class that this device holds, and the number of that class.

    A label of another device is -1, as a kernel's padding may have any greater number.
    """
    if not axes.classes:
        return head, 0
    classes = head.w.shape[1]
    first = lax.axis_index(axes.classes) * classes
    local = head.truth - first
    here = (local >= 0) & (local < classes)
    return head._replace(truth=jnp.where(here, local, -1)), first


def combine(rows: Rows, first: Array | int, axes: Axes) -> Rows:
    """The statistics of rows over all classes, from those of each device's."""
    if not axes.classes:
        return rows
    top = lax.pmax(lax.stop_gradient(rows.maximum), axes.classes)
    others = lax.psum(rows.others * relative_exp(rows.maximum, top), axes.classes)
    label = lax.psum(rows.label, axes.classes)
    return Rows(top, others, label, _combine_stats(rows, top, first, axes))


def _combine_stats(rows: Rows, top: Array, first: Array | int, axes: Axes) -> Stats | None:
    if rows.stats is None:
        return None
    mean, classes, predicted = rows.stats
    total = lax.psum(mean * classes, axes.classes)
    classes = lax.psum(classes, axes.classes)
    # The first class of the largest logit: of the devices that have one, the least.
    here = jnp.where(rows.maximum == top, predicted + first, jnp.iinfo(jnp.int32).max)
    return Stats(
        total / jnp.maximum(classes, 1), classes, lax.pmin(here.astype(jnp.int32), axes.classes)
    )
