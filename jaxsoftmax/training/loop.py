"""The loop over epochs on the host: validation, early stopping, interrupts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.training.checkpoint import Checkpoint, Checkpoints
from jaxsoftmax.training.results import FitResult, Interrupted, make_result
from jaxsoftmax.training.state import TrainState
from jaxsoftmax.training.types import EpochPart, Metrics

type TrainEpoch = Callable[[TrainState, Metrics | None], Iterator[EpochPart]]
"""From a state, and the metrics of the previous part of the epoch if there is one."""


class Plan(NamedTuple):
    """The initial parameters, a function that trains an epoch, and what describes the examples."""

    params: Any
    train: TrainEpoch
    shapes: dict[str, Any]


def in_one_part(train: Callable[[TrainState], tuple[TrainState, Metrics]]) -> TrainEpoch:
    """Return an epoch that has one part, from a function that runs all of it."""

    def run(state: TrainState, _: Metrics | None) -> Iterator[EpochPart]:
        yield EpochPart(*train(state), is_last=True)

    return run


def run_epochs(
    state: TrainState,
    train: TrainEpoch,
    validate: Callable[[Any], Metrics] | None,
    *,
    epochs: int,
    patience: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    checkpoints: Checkpoints | None = None,
) -> FitResult:
    """Run epochs until the last one, or until the validation loss stops improving.

    Without a callback, patience and checkpoints, nothing in the loop waits for the device.

    Args:
        state: the state before the first epoch.
        train: yields the parts of one more epoch.
        validate: returns the validation metrics of parameters, or None without validation.
        epochs: the maximum number of epochs.
        patience: as in `fit`; it needs `validate`.
        callback: as in `fit`.
        checkpoints: where to save the run, and to continue it from the newest checkpoint.

    Raises:
        Interrupted: at a KeyboardInterrupt, with the result of the finished epochs.
        ValueError: if there is a checkpoint of a later epoch than the last one.
    """
    # `finished` is assigned as a whole, so that no interrupt splits it.
    state, finished, history, part_metrics = _resume(checkpoints, state, epochs)
    stopping, has_stopped = _EarlyStopping(patience), False
    for epoch, metrics in enumerate(history, 1):
        has_stopped = stopping.should_stop(epoch, metrics)
    try:
        for epoch in range(len(history) + 1, 1 if has_stopped else epochs + 1):
            for part in train(state, part_metrics):
                state, metrics = part.state, part.metrics
                if checkpoints is not None and not part.is_last:
                    best_params = state.params if finished is None else finished.best.params
                    checkpoints.save(Checkpoint(state, best_params, history, metrics))
            part_metrics = None
            metrics = metrics | _validation_metrics(validate, state.params)
            history.append(metrics)
            finished = _Finished(epoch, _best_so_far(finished, metrics, state.params))
            has_stopped = stopping.should_stop(epoch, metrics)
            if checkpoints is not None:
                run = Checkpoint(state, finished.best.params, history, None)
                checkpoints.save(run, is_last=has_stopped or epoch == epochs)
            if callback is not None:
                callback({"epoch": epoch} | _as_floats(metrics))
            if has_stopped:
                break
    except KeyboardInterrupt as interrupt:
        result = None
        if finished is not None:
            result = make_result(finished.best.params, None, history[: finished.epochs])
        raise Interrupted(result) from interrupt

    assert finished is not None
    # The last parameters are copied, because the next epoch would take the state's buffers.
    params = jax.tree.map(jnp.copy, state.params) if patience is None else finished.best.params
    return make_result(params, state, history)


def _validation_metrics(validate: Callable[[Any], Metrics] | None, params: Any) -> Metrics:
    """Return the validation metrics under their names in the history."""
    means = {} if validate is None else validate(params)
    return {f"validation_{name}": mean for name, mean in means.items()}


class _Candidate(NamedTuple):
    """Parameters and their validation loss, which is infinite without validation."""

    loss: Array
    params: Any


class _Finished(NamedTuple):
    """The number of finished epochs, and the best parameters after any of them."""

    epochs: int
    best: _Candidate


def _resume(
    checkpoints: Checkpoints | None, state: TrainState, epochs: int
) -> tuple[TrainState, _Finished | None, list[Metrics], Metrics | None]:
    """Return where to start: after the newest checkpoint, if there is one."""
    found = None if checkpoints is None else checkpoints.restore(state)
    if found is None:
        return state, None, [], None
    state, best_params, history, part_metrics = found
    finished = len(history)
    if finished + (part_metrics is not None) > epochs:
        raise ValueError(
            f"epochs must be at least {finished + (part_metrics is not None)}, the number in the "
            f"checkpoint, got {epochs}"
        )
    losses = [np.asarray(metrics.get("validation_loss", np.inf)) for metrics in history]
    smallest = jnp.asarray(np.fmin.reduce(losses, initial=np.inf), jnp.float32)
    best = _Finished(finished, _Candidate(smallest, best_params)) if finished else None
    return state, best, history, part_metrics


def _best_so_far(finished: _Finished | None, metrics: Metrics, params: Any) -> _Candidate:
    latest = _Candidate(jnp.asarray(metrics.get("validation_loss", jnp.inf)), params)
    if finished is None:
        return _choose_better(latest._replace(loss=jnp.full_like(latest.loss, jnp.inf)), latest)
    return _choose_better(finished.best, latest)


@jax.jit
def _choose_better(best: _Candidate, latest: _Candidate) -> _Candidate:
    """Return a copy of the candidate with the smaller loss, in each lane.

    While no loss is finite, it is the latest one. Everything stays on the device, so that the host
    does not wait for each epoch's loss.
    """

    def select(condition: Array, latest: Array, best: Array) -> Array:
        axes = (1,) * (latest.ndim - condition.ndim)
        return jnp.where(condition.reshape(condition.shape + axes), latest, best)

    is_smaller = latest.loss < best.loss
    params = jax.tree.map(
        partial(select, is_smaller | jnp.isposinf(best.loss)), latest.params, best.params
    )
    return _Candidate(select(is_smaller, latest.loss, best.loss), params)


@dataclass
class _EarlyStopping:
    """Counts epochs since the smallest validation loss; it never stops without patience."""

    patience: int | None
    best_epoch: int = 0
    smallest_loss: float = np.inf

    def should_stop(self, epoch: int, metrics: Metrics) -> bool:
        """Return whether `patience` epochs have passed without a smaller validation loss."""
        if self.patience is None:
            return False
        loss = float(metrics["validation_loss"])
        if loss < self.smallest_loss:  # a loss of NaN is no improvement
            self.best_epoch, self.smallest_loss = epoch, loss
        return epoch - self.best_epoch >= self.patience


def _as_floats(metrics: Metrics) -> dict[str, Any]:
    """Return the metrics as floats, or lists of one float per lane."""
    return {name: np.asarray(value).tolist() for name, value in metrics.items()}
