"""Epochs over sharded rows: each shard shuffles its own rows, and only sums cross devices.

The rows of an epoch are divided into strata of one size, and every minibatch takes equally many
rows from each. A stratum is the rows of one shard. With virtual shards it is an equal part of them,
and sums are taken in an order that does not depend on the number of devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxsoftmax import placement
from jaxsoftmax.training.minibatches import RowBatch, row_batches
from jaxsoftmax.training.types import Examples, Strata
from jaxsoftmax.training.weights import first_valid


def run_on_strata(
    function: Callable[..., Any], strata: Strata | None, examples: Examples, *replicated: Any
) -> Any:
    """Return function(examples, *replicated), called on each device with the rows that it holds.

    Inside a shard_map over these axes that is the function itself, and so it is where sums may take
    any order: there the types of the arrays divide the work, whatever shards the model.
    """
    x = examples.features
    if (
        strata is None
        or not strata.axes
        or not strata.is_local
        or placement.is_manual(strata.axes, x)
    ):
        return function(examples, *replicated)
    examples = jax.tree.map(lambda a: placement.shard_rows(a, x, strata.axes), examples)
    replicated = jax.tree.map(
        lambda a: placement.reshard(a, x, *placement.partition_spec(a)), replicated
    )
    rows, whole = PartitionSpec(strata.axes), PartitionSpec()
    return jax.shard_map(
        function,
        mesh=placement.mesh_of(x),
        axis_names=set(strata.axes),
        in_specs=(rows, *(whole for _ in replicated)),
        out_specs=whole,
    )(examples, *replicated)


def scan_strata(
    step: Callable[[Any, Examples], tuple[Any, Any]],
    carry: Any,
    examples: Examples,
    *,
    strata: Strata,
    key: Array,
) -> tuple[Any, Any]:
    """Return `jax.lax.scan` of a step over minibatches, each with rows of every stratum.

    The arrays of a minibatch are `[rows, ...]`, or `[strata, rows, ...]` for sums in a fixed order.
    The order of a stratum's rows depends on the key and on its position among all strata.
    """
    scan = _scan_local if strata.is_local else _scan_sharded
    return scan(step, carry, examples, strata=strata, key=key)


def _scan_local(
    step: Callable[[Any, Examples], tuple[Any, Any]],
    carry: Any,
    examples: Examples,
    *,
    strata: Strata,
    key: Array,
) -> tuple[Any, Any]:
    """Scan the minibatches of the strata that this device holds."""
    count = strata.per_device
    replacement = None if examples.weights is None else _replacement(examples, strata.axes)
    split = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), examples)
    size = split.features.shape[1]

    def run(carry: Any, features: Array, targets: Array, weights: Array) -> tuple[Any, Any]:
        batch = Examples(features, targets, weights)
        if replacement is not None:
            batch = _replace_ignored(batch, replacement)
        return step(carry, batch if strata.in_fixed_order else jax.tree.map(_merge, batch))

    if strata.batch_size >= size:
        weights = jnp.ones((count, size), jnp.float32) if split.weights is None else split.weights
        carry, out = run(carry, split.features, split.targets, weights)
        return carry, jax.tree.map(lambda leaf: leaf[None], out)

    def take(a: Array, rows: Array) -> Array:
        return jax.vmap(lambda a, rows: a.at[rows].get(mode="promise_in_bounds"))(a, rows)

    def step_on_rows(carry: Any, batch: RowBatch) -> tuple[Any, Any]:
        features, targets = (take(a, batch.rows) for a in split[:2])
        return run(carry, features, targets, batch.weights)

    first = lax.axis_index(strata.axes) * count if strata.axes else 0
    batches = _draw(strata, first + jnp.arange(count), size, split.weights, key)
    return lax.scan(step_on_rows, carry, batches)


def _scan_sharded(
    step: Callable[[Any, Examples], tuple[Any, Any]],
    carry: Any,
    examples: Examples,
    *,
    strata: Strata,
    key: Array,
) -> tuple[Any, Any]:
    """Scan minibatches that are sharded over the axes, of which each device takes its own rows."""
    x = examples.features
    count = placement.count_shards(strata.axes, x)
    size = x.shape[0] // count
    weights, replacement = examples.weights, None
    if weights is not None:
        weights = placement.replicate(weights)
        replacement = _take_one(examples.features, weights), _take_one(examples.targets, weights)
        weights = weights.reshape(count, size)

    def take(a: Array, rows: Array) -> Array:
        return _take_own_rows(a, rows, strata.axes)

    def step_on_rows(carry: Any, batch: RowBatch) -> tuple[Any, Any]:
        row_weights = placement.shard_rows(batch.weights.reshape(-1), x, strata.axes)
        features, targets = (take(a, batch.rows) for a in examples[:2])
        found = Examples(features, targets, row_weights)
        return step(carry, found if replacement is None else _replace_ignored(found, replacement))

    return lax.scan(step_on_rows, carry, _draw(strata, jnp.arange(count), size, weights, key))


def _take_one(a: Array, weights: Array) -> Array:
    """Return the first valid row, on every device."""
    row = first_valid(weights)[None]
    return placement.take_rows(a, row, a, None, mode="promise_in_bounds")[0]


def _take_own_rows(a: Array, rows: Array, axes: tuple[str, ...]) -> Array:
    """Return the rows of each shard at its own positions, `[shards, rows]`, without a transfer."""

    def take(a: Array, rows: Array) -> Array:
        how: dict[str, Any] = {"mode": "promise_in_bounds"}
        if any(placement.partition_spec(a)):
            how["out_sharding"] = placement.sharding(a, *placement.partition_spec(a))
        return a.at[rows[0]].get(**how)

    own, mesh = PartitionSpec(axes), placement.mesh_of(a)
    rows = placement.shard_rows(rows, a, axes)
    return jax.shard_map(take, mesh=mesh, axis_names=set(axes), in_specs=(own, own), out_specs=own)(
        a, rows
    )


def _draw(
    strata: Strata, positions: Array, size: int, weights: Array | None, key: Array
) -> RowBatch:
    """Return the minibatches of the strata at these positions, `[steps, strata, rows]`."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(positions)

    def draw(key: Array, weights: Array | None) -> RowBatch:
        return row_batches(size, weights, strata.batch_size, key)

    return jax.vmap(draw, out_axes=1)(keys, weights)


def _merge(a: Array) -> Array:
    return a.reshape(-1, *a.shape[2:])


def _replacement(examples: Examples, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """Return features and targets of a valid row, the first one of the first device that has any.

    A shard may hold no valid row at all. A row of zeros would not do: see `replace_ignored`.
    """
    features, targets, weights = examples
    assert weights is not None
    row = first_valid(weights)
    found = jnp.any(weights != 0), features[row], targets[row]
    if not axes:
        return found[1:]
    has_valid, x, t = (placement.gather_devices(a, axes) for a in found)
    device = jnp.argmax(has_valid)
    return x[device], t[device]


def _replace_ignored(batch: Examples, replacement: tuple[Array, Array]) -> Examples:
    """Return the minibatch with a valid row in place of each row of weight 0."""
    features, targets, weights = batch
    assert weights is not None

    def replace(a: Array, row: Array) -> Array:
        return jnp.where((weights != 0).reshape(weights.shape + (1,) * row.ndim), a, row)

    return Examples(replace(features, replacement[0]), replace(targets, replacement[1]), weights)
