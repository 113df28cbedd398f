"""The division of an epoch's rows into strata: what is asked for, and what the arrays allow."""

from typing import Literal, NamedTuple

from jax import Array

from jaxsoftmax import placement
from jaxsoftmax.sharding import Shards
from jaxsoftmax.training.types import Examples, Strata
from jaxsoftmax.validation import check_at_least_one

type Order = Literal["stratified", "global"]
"""Whether each shard shuffles its own rows, or all rows are shuffled together."""


class Division(NamedTuple):
    """The arguments that choose the strata, as in `train_epoch`."""

    shards: Shards | None = None
    order: Order | None = None
    virtual_shards: int | None = None


UNDIVIDED = Division()


def choose_strata(division: Division, examples: Examples, batch_size: int) -> Strata | None:
    """Return the strata, or None for one shuffle of all rows.

    Without a request, rows that an Explicit mesh shards are stratified where that is possible.
    """
    check_request(division)
    x, virtual_shards = examples.features, division.virtual_shards
    axes = _row_axes(division, x)
    devices = placement.count_shards(axes, x)
    is_manual = placement.is_manual(axes, x)
    rows = x.shape[0] * (devices if is_manual else 1)
    # A batch of all rows is taken as it is, and divided by the types of the arrays.
    is_whole = batch_size >= rows and not is_manual and virtual_shards is None
    is_impossible = not axes or batch_size % devices != 0
    if division.order == "global" or is_whole or (division == UNDIVIDED and is_impossible):
        return None
    count, batch_size = virtual_shards or devices, min(batch_size, rows)
    _check_sizes(count, devices, rows, batch_size)
    return Strata(
        axes,
        per_device=count // devices,
        batch_size=batch_size // count,
        in_fixed_order=virtual_shards is not None,
        is_local=is_manual or virtual_shards is not None,
    )


def _row_axes(division: Division, x: Array) -> tuple[str, ...]:
    """Return the mesh axes over which the rows are sharded, as far as that is known."""
    shards, order, virtual_shards = division
    axes = row_axes(shards)
    if shards is None:
        axes = placement.axis_names(placement.partition_spec(x)[0])
    if order == "stratified" and not axes and virtual_shards is None:
        raise ValueError(
            'order="stratified" needs sharded rows: an Explicit mesh or shards=Shards(rows=...)'
        )
    return axes


def row_axes(shards: Shards | None) -> tuple[str, ...]:
    """Return the mesh axes over which the rows are said to be sharded, none for None."""
    if shards is None:
        return ()
    if not isinstance(shards, Shards):
        raise TypeError(f"shards must be Shards(rows=...), got {shards!r}")
    if not shards.rows:
        raise ValueError(
            f"shards must name a mesh axis of rows, got {shards}; classes lie where params do"
        )
    return placement.axis_names(shards.rows)


def local_stratum(shards: Shards | None, examples: Examples) -> Strata | None:
    """Return the rows of a device inside a shard_map over their axes, or None elsewhere."""
    axes = row_axes(shards)
    placement.count_shards(axes, examples.features)
    if not placement.is_manual(axes, examples.features):
        return None
    return Strata(axes, 1, examples.features.shape[0], in_fixed_order=False, is_local=True)


def check_request(division: Division) -> None:
    """Raise an error for an order or a number of virtual shards that does not exist."""
    _, order, virtual_shards = division
    if order not in (None, "stratified", "global"):
        raise ValueError(f'order must be "stratified", "global" or None, got {order!r}')
    if virtual_shards is None:
        return
    check_at_least_one(virtual_shards=virtual_shards)
    if virtual_shards & (virtual_shards - 1):
        raise ValueError(f"virtual_shards must be a power of two, got {virtual_shards}")
    if order == "global":
        raise ValueError('virtual_shards needs order="stratified", got order="global"')


def _check_sizes(count: int, devices: int, rows: int, batch_size: int) -> None:
    if count % devices:
        raise ValueError(f"virtual_shards must be a multiple of {devices} shards, got {count}")
    for name, size in (("features", rows), ("batch_size", batch_size)):
        if size % count:
            raise ValueError(
                f"{name} must have a number of rows that {count} shards divide, got {size}"
            )
