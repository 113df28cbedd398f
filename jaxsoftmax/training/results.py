"""The result of `fit` and `sweep`: parameters, history and the best epoch."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsoftmax.training.state import TrainState
from jaxsoftmax.training.types import Metrics


class FitResult(NamedTuple):
    """The result of `fit` and of `sweep`, where each array has a leading axis of lanes.

    `params` are `LinearParams` or have the structure of the parameters that were given. They are
    those after the last epoch or, with patience, those of the best epoch. `state` is the state
    after the last epoch, and None after an interrupt.

    `history` maps "loss", "accuracy", "validation_loss" and "validation_accuracy", those of them
    that exist, to one number per epoch. `epochs` is the number of epochs that were run, and
    `best_epoch` is the one with the smallest validation loss, or the last one without validation.
    Epochs count from 1, so that the best epoch's entry is `history[name][best_epoch - 1]`. A loss
    of NaN is never the smallest.
    """

    params: Any
    state: TrainState | None
    history: dict[str, np.ndarray]
    epochs: int
    best_epoch: int | np.ndarray


class Interrupted(KeyboardInterrupt):
    """An interrupt (Ctrl-C) of `fit` or `sweep`, with the result up to that point.

    Args:
        result: None before the end of the first epoch. Otherwise a `FitResult` with the parameters
            of the best epoch by validation loss or, without validation, of the last finished
            epoch. Its history ends with the last finished epoch. It has no state, because the
            interrupted epoch had already taken the state's buffers.
    """

    def __init__(self, result: FitResult | None) -> None:
        super().__init__("interrupted")
        self.result = result


def make_result(params: Any, state: TrainState | None, history: list[Metrics]) -> FitResult:
    """Return the result of epochs with these metrics."""
    table = _stack(history)
    return FitResult(params, state, table, epochs=len(history), best_epoch=_best_epoch(table))


def _stack(history: list[Metrics]) -> dict[str, np.ndarray]:
    """Return each metric with epochs as its last axis, after waiting for the device."""
    epochs = jax.device_get(history)
    return {name: np.stack([epoch[name] for epoch in epochs], axis=-1) for name in epochs[0]}


def _best_epoch(history: dict[str, np.ndarray]) -> int | np.ndarray:
    """Return the first epoch with the smallest validation loss, or the last if all are NaN."""
    losses = history.get("validation_loss")
    if losses is None:
        losses = np.full_like(history["loss"], np.nan)
    losses = np.where(np.isnan(losses), np.inf, losses)
    last = losses.shape[-1] - 1
    best = 1 + np.where(np.isposinf(losses).all(-1), last, losses.argmin(-1))
    return int(best) if best.ndim == 0 else best
