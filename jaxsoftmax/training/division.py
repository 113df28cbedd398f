"""The division of an epoch's rows into strata: what is asked for, and what the arrays allow."""

from typing import Literal, NamedTuple

from jaxsoftmax import placement
from jaxsoftmax.sharding import Shards
from jaxsoftmax.training.types import Examples, Strata

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
    shards, order, virtual_shards = division
    x = examples.features
    if order not in (None, "stratified", "global"):
        raise ValueError(f'order must be "stratified", "global" or None, got {order!r}')
    if virtual_shards is not None:
        _check_virtual_shards(virtual_shards, order)
    if order == "global":
        return None
    axes = placement.axis_names(placement.partition_spec(x)[0] if shards is None else shards.rows)
    devices = placement.count_shards(axes, x)
    if division == UNDIVIDED:
        is_possible = axes and batch_size < x.shape[0] and not batch_size % devices
        if not is_possible:
            return None
    if not axes and virtual_shards is None:
        raise ValueError(
            'order="stratified" needs sharded rows: an Explicit mesh or shards=Shards(rows=...)'
        )
    is_local = virtual_shards is not None or placement.is_manual(axes, x)
    if batch_size >= x.shape[0] and not is_local:
        return None  # a batch of all rows is taken as it is
    count = virtual_shards or devices
    rows = x.shape[0] * (devices if placement.is_manual(axes, x) else 1)
    _check_sizes(count, devices, rows, min(batch_size, rows))
    return Strata(
        axes,
        per_device=count // devices,
        batch_size=min(batch_size, rows) // count,
        in_fixed_order=virtual_shards is not None,
        is_local=is_local,
    )


def local_stratum(shards: Shards | None, examples: Examples) -> Strata | None:
    """Return the rows of a device inside a shard_map over their axes, or None elsewhere."""
    axes = () if shards is None else placement.axis_names(shards.rows)
    placement.count_shards(axes, examples.features)
    if not placement.is_manual(axes, examples.features):
        return None
    return Strata(axes, 1, examples.features.shape[0], in_fixed_order=False, is_local=True)


def _check_virtual_shards(virtual_shards: int, order: Order | None) -> None:
    if virtual_shards < 1 or virtual_shards & (virtual_shards - 1):
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
