"""Epochs over a source: one compiled scan for each window of minibatches."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxsoftmax import placement
from jaxsoftmax.losses import check_labels
from jaxsoftmax.sharding import Shards
from jaxsoftmax.sources import Block, Source
from jaxsoftmax.training.checks import num_classes
from jaxsoftmax.training.division import Division, check_request, row_axes
from jaxsoftmax.training.epoch import place_like, take_step
from jaxsoftmax.training.means import total_weight, weighted_means
from jaxsoftmax.training.models import named_scores
from jaxsoftmax.training.state import TrainState
from jaxsoftmax.training.strata import run_on_strata
from jaxsoftmax.training.types import EpochPart, Examples, Loss, Metrics, Score, Strata
from jaxsoftmax.training.windows import Plan, Window, read_windows


class Stream(NamedTuple):
    """A source, the plan of its epochs, and the devices that its rows go to."""

    source: Source
    plan: Plan
    sharding: NamedSharding | None  # of the rows; None for the default device
    strata: Strata | None


def open_stream(source: Source, division: Division, batch_size: int | None) -> Stream:
    """Return the stream of a source: its rows over the axes of `shards`, if there are any.

    Without a batch size, a window is one minibatch.

    Raises:
        ValueError: if the shards, virtual shards or processes do not divide the batch size, or if
            there are several processes and no shards.
    """
    _, order, virtual_shards = division
    if order == "global":
        raise ValueError('order must be "stratified" or None for a source, got "global"')
    check_request(division)
    axes, processes = _row_axes(division.shards), jax.process_count()
    devices = placement.count_shards(axes, jnp.zeros(()))
    count, parts = virtual_shards or devices, virtual_shards or processes
    batch_size = batch_size or max(1, source.window // count) * count
    if count % devices or batch_size % count or parts % processes:
        raise ValueError(
            f"batch_size must be a multiple of the number of shards, {count}, which must be a "
            f"multiple of {devices} devices and {processes} processes, got {batch_size}"
        )
    # Without a fixed order of sums the types of the arrays are enough, whatever shards the model.
    strata = None
    if virtual_shards:
        strata = Strata(axes, count // devices, batch_size // count, True, is_local=True)
    steps = max(1, source.window // batch_size)
    plan = Plan(sum(source.block_sizes), batch_size, steps, parts)
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(axes)) if axes else None
    return Stream(source, plan, sharding, strata)


def _row_axes(shards: Shards | None) -> tuple[str, ...]:
    """Return the axes of the mesh of `jax.set_mesh` that share the rows, none for one device."""
    axes = row_axes(shards)
    if not axes and jax.process_count() > 1:
        raise ValueError("shards must be given for a source on several processes, got None")
    return axes


def check_source_arguments(targets: Any, weights: Any, params: Any) -> None:
    """Check that what a source holds is not given beside it, and that parameters are."""
    for name, value in (("targets", targets), ("weights", weights)):
        if value is not None:
            raise ValueError(f"{name} must be None beside a source, which has its own")
    if params is None:
        raise ValueError("params must be given for a source, such as linear.init(D, K), got None")


def check_rows(loss: Loss, params: Any, rows: Block, block: int) -> None:
    """Raise an error for rows of a block that cannot be trained on."""
    x, targets, weights = rows
    prefix = f"block {block}: "
    if targets.shape[:1] != x.shape[:1] or (weights is not None and weights.shape != x.shape[:1]):
        raise ValueError(f"{prefix}features, targets and weights must be of equally many rows")
    if weights is not None and not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"{prefix}weights must be finite and at least 0")
    valid = np.ones(len(x), bool) if weights is None else weights > 0
    if x.dtype.kind == "f" and not np.isfinite(x[valid]).all():
        raise ValueError(f"{prefix}features must be finite")
    classes = num_classes(loss, params, jax.ShapeDtypeStruct(x.shape, x.dtype), prefix=prefix)
    if classes and targets.ndim == 1 and targets.dtype.kind in "iu":
        check_labels(targets, max(2, classes), valid=valid, name=f"{prefix}targets")


def shapes_of_stream(stream: Stream) -> dict[str, Any]:
    """Return what a resumed run has in common with the saved one."""
    plan = stream.plan
    return {
        "rows": plan.rows,
        "number of blocks": len(stream.source.block_sizes),
        "steps of a window": plan.steps,
        "parts of a minibatch": plan.parts,
    }


def train_on_stream(
    stream: Stream,
    state: TrainState,
    sums: Metrics | None,
    *,
    check: Callable[[Block, int], None],
    train_window: Callable[..., tuple[TrainState, Metrics]] | None = None,
    **options: Any,
) -> Iterator[EpochPart]:
    """Train for the rest of an epoch, and yield after each window.

    Args:
        stream: where the examples come from.
        state: after any window of the epoch; its number of steps determines which.
        sums: those of the part before it, or None at the start of the epoch.
        check: raises an error for rows of a block that cannot be trained on.
        train_window: as `jitted_train_window`, the default, for another kind of state.
        options: what else `train_window` takes, such as loss, optimizer and score.
    """
    train_window = train_window or jitted_train_window
    plan = stream.plan
    first = (int(state.step) - int(state.epoch) * plan.total_steps) // plan.steps
    seed = np.asarray(state.key).tolist()
    windows = _read_placed(stream, check, seed=seed, first=first)
    for number, window in enumerate(windows, first + 1):
        is_last = number == plan.windows
        state, sums = train_window(
            state, sums, window, strata=stream.strata, is_last=is_last, **options
        )
        yield EpochPart(state, sums, is_last)


def evaluate_stream(
    stream: Stream,
    params: Any,
    *,
    check: Callable[[Block, int], None],
    loss: Loss,
    score: Score | None,
    sum_window: Callable[..., Metrics] | None = None,
) -> Metrics:
    """Return the weighted means of loss and score over all examples of a source.

    `sum_window` is as `jitted_sum_window`, the default, for other kinds of parameters.
    """
    sums, sum_window = None, sum_window or jitted_sum_window
    for window in _read_placed(stream, check, seed=[0], first=0):
        sums = _add(sums, sum_window(params, window, loss=loss, score=score))
    assert sums is not None
    return _means(sums)


def _read_placed(
    stream: Stream, check: Callable[[Block, int], None], *, seed: Sequence[int], first: int
) -> Iterator[Examples]:
    """Yield windows on the devices, of which this process reads its parts."""
    plan, processes, rank = stream.plan, jax.process_count(), jax.process_index()
    parts = range(plan.parts * rank // processes, plan.parts * (rank + 1) // processes)
    source = _Checked(stream.source, check)
    for window in read_windows(source, plan, seed=seed, first=first, parts=parts):
        yield _place(window, stream)


class _Checked:
    """A source whose blocks are checked when they are read."""

    def __init__(self, source: Source, check: Callable[[Block, int], None]) -> None:
        self._source, self._check = source, check
        self.block_sizes, self.window = source.block_sizes, source.window

    def read(self, block: int) -> Block:
        rows = self._source.read(block)
        self._check(rows, block)
        return rows


def _place(window: Window, stream: Stream) -> Examples:
    """Return the window on the devices, each with its rows of every minibatch."""
    if stream.sharding is None:
        return Examples(*jax.device_put(window))
    rows = stream.plan.batch_size
    return Examples(
        *(
            jax.make_array_from_process_local_data(stream.sharding, a, (rows, *a.shape[1:]))
            for a in window
        )
    )


@partial(
    jax.jit,
    static_argnames=("strata", "is_last", "loss", "optimizer", "score"),
    donate_argnames="state",
)
def jitted_train_window(
    state: TrainState,
    sums: Metrics | None,
    window: Examples,
    *,
    strata: Strata | None,
    is_last: bool,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """Train on a window, and return the state and the weighted sums of the epoch so far.

    After the last window they are the means.
    """

    def run(window: Examples, state: TrainState) -> tuple[TrainState, Metrics]:
        return run_window(window, state, strata=strata, **options)

    state, new = run_on_strata(run, strata, window, state)
    return add_window(state, sums, new, is_last)


def add_window(
    state: TrainState, sums: Metrics | None, new: Metrics, is_last: bool
) -> tuple[TrainState, Metrics]:
    """Return the state and the sums after a window, or the means after the last one."""
    sums = _add(sums, new)
    if not is_last:
        return state, sums
    _, next_key = jax.random.split(jax.random.wrap_key_data(state.key))
    state = state._replace(key=jax.random.key_data(next_key), epoch=state.epoch + 1)
    return state, _means(sums)


def _add(sums: Metrics | None, new: Metrics) -> Metrics:
    return new if sums is None else jax.tree.map(jnp.add, sums, new)


def _means(sums: Metrics) -> Metrics:
    """Return the means from sums and the sum of the weights."""
    return {name: total / sums["weight"] for name, total in sums.items() if name != "weight"}


def run_window(
    window: Examples,
    state: TrainState,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    score: Score | None,
    strata: Strata | None,
) -> tuple[TrainState, Metrics]:
    """Return the state after a step on each minibatch, and the weighted sums of the metrics."""
    update = partial(
        take_step,
        loss=loss,
        scores=named_scores(score, loss, state.params, window.targets[:, 0]),
        optimizer=optax.with_extra_args_support(optimizer),
        strata=strata,
    )

    def place(carry: Any) -> Any:
        return place_like(carry, window) if strata is None else carry

    def take(a: Array, i: Array) -> Array:
        a = lax.dynamic_index_in_dim(a, i, 1, False)
        return a if strata is None else a.reshape(strata.per_device, -1, *a.shape[1:])

    def step(carry: Any, i: Array) -> tuple[Any, Any]:
        carry, out = update(carry, jax.tree.map(lambda a: take(a, i), window))
        return place(carry), out

    steps = window.features.shape[1]
    (params, opt_state), (means, totals) = lax.scan(
        step, place((state.params, state.opt_state)), jnp.arange(steps)
    )
    state = state._replace(params=params, opt_state=opt_state, step=state.step + steps)
    return state, _weighted_sums(means, totals)


@partial(jax.jit, static_argnames=("loss", "score"))
def jitted_sum_window(params: Any, window: Examples, *, loss: Loss, score: Score | None) -> Metrics:
    """Return the weighted sums of loss and score over a window, a minibatch at a time."""
    functions = {"loss": loss} | named_scores(score, loss, params, window.targets[:, 0])

    def step(_: None, i: Array) -> tuple[None, tuple[Metrics, Array]]:
        batch = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 1, False), window)
        return None, (weighted_means(functions, params, batch), total_weight(batch, None))

    steps = window.features.shape[1]
    return _weighted_sums(*lax.scan(step, None, jnp.arange(steps))[1])


def _weighted_sums(means: Metrics, totals: Array) -> Metrics:
    sums = {name: jnp.sum(mean * totals) for name, mean in means.items()}
    return sums | {"weight": jnp.sum(totals)}
