"""Checkpoints of `fit` and `sweep`, which Orbax writes in the background.

A checkpoint holds the state after an epoch, the best parameters so far, and the history, so that a
resumed run returns what an uninterrupted one returns. It is complete or absent: Orbax writes it
under another name and renames it at the end.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from jaxsoftmax.training.division import Division
from jaxsoftmax.training.state import TrainState, key_data
from jaxsoftmax.training.types import Examples, Metrics

_KEPT = 2  # the one before the newest outlives a disk that loses the newest


class Checkpoint(NamedTuple):
    """A run after an epoch, or after a part of one."""

    state: TrainState
    best_params: Any
    history: list[Metrics]  # of each finished epoch
    part_metrics: Metrics | None  # of the epoch that has begun


class Checkpoints:
    """The checkpoints of one run.

    Args:
        manager: an Orbax CheckpointManager of the folder.
        settings: what has to be the same in a resumed run, by the name of the argument.
    """

    def __init__(self, manager: Any, settings: Mapping[str, Any]) -> None:
        self._manager = manager
        self._settings = dict(settings)

    def save(self, checkpoint: Checkpoint, *, is_last: bool = False) -> None:
        """Save a checkpoint if the interval has passed since the previous one, and the last one.

        It returns when the arrays are computed and copied, so that they may be donated.
        """
        import orbax.checkpoint as ocp

        state, best_params, history, part_metrics = jax.block_until_ready(checkpoint)
        step = int(state.step)
        if not (is_last or self._manager.should_save(step)):
            return
        record = {
            "settings": self._settings,
            "history": [*map(_to_json, history)],
            "part_metrics": None if part_metrics is None else _to_json(part_metrics),
        }
        items = {
            "state": ocp.args.StandardSave(state),
            "best_params": ocp.args.StandardSave(best_params),
            "record": ocp.args.JsonSave(record),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=is_last)

    def restore(self, like: TrainState) -> Checkpoint | None:
        """Return the newest checkpoint, placed like this state, or None if there is none.

        Raises:
            ValueError: if the checkpoint is of a run with other settings, of a model with other
                shapes, or cannot be read.
        """
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            return None
        # The settings first: arrays of other shapes would be an error of Orbax's own.
        record = self._read(step, record=ocp.args.JsonRestore())["record"]
        self._check_settings(record["settings"])
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(_restored_type, tree))
            for name, tree in {"state": like, "best_params": like.params}.items()
        }
        arrays = self._read(step, **items)
        state, best_params = (jax.tree.map(jnp.asarray, arrays[name]) for name in items)
        self._check_shapes(state, like)
        history, part_metrics = [*map(_from_json, record["history"])], record["part_metrics"]
        return Checkpoint(
            state, best_params, history, None if part_metrics is None else _from_json(part_metrics)
        )

    def _read(self, step: int, **items: Any) -> Any:
        """Return what a checkpoint holds; Orbax's errors have many types, and none names a way."""
        import orbax.checkpoint as ocp

        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise ValueError(
                f"{self._manager.directory / str(step)} must hold a checkpoint of this model and "
                "optimizer, and is one of others or damaged; if it is damaged, remove it to "
                "continue from the one before it"
            ) from error

    def _check_shapes(self, restored: TrainState, like: TrainState) -> None:
        """Raise a ValueError for a model of other shapes, which Orbax restores as it was."""
        pairs = zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(like), strict=True)
        for (path, saved), leaf in pairs:
            if saved.shape != leaf.shape:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)[1:]} must have shape {saved.shape}, as in the "
                    f"checkpoint in {self._manager.directory}, got {leaf.shape}"
                )

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        for name, value in self._settings.items():
            if name not in saved:
                raise ValueError(
                    f"{self._manager.directory} must hold checkpoints of this version of "
                    f"jaxsoftmax, and they are without the {name}"
                )
            if saved[name] != value:
                raise ValueError(
                    f"{name} must be {saved.get(name)}, as in the checkpoint in "
                    f"{self._manager.directory}, got {value}"
                )


@contextmanager
def open_checkpoints(
    folder: str | Path | None, *, resume: bool, interval: float, settings: Mapping[str, Any]
) -> Iterator[Checkpoints | None]:
    """Open the checkpoints of a folder, and wait at the end until all are written.

    Args:
        folder: the folder, which is created; None for no checkpoints.
        resume: whether the folder may hold checkpoints already.
        interval: the least number of seconds between two checkpoints.
        settings: as in `Checkpoints`.

    Raises:
        ModuleNotFoundError: if Orbax is not installed.
        TypeError: if the folder is not a path, or the interval not a number.
        ValueError: if the folder is a file, or holds checkpoints and `resume` is False, or the
            interval is negative.
    """
    if folder is None:
        if resume:
            raise ValueError("resume=True needs checkpoint=, a folder, got None")
        yield None
        return
    _check_folder(folder)
    _check_interval(interval)
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "checkpoint needs Orbax: pip install 'jaxsoftmax[scale]'", name="orbax"
        ) from error
    from orbax.checkpoint import checkpoint_managers as managers

    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT,
        save_decision_policy=managers.ContinuousCheckpointingPolicy(minimum_interval_secs=interval),
    )
    with ocp.CheckpointManager(Path(folder).absolute(), options=options) as manager:
        step = manager.latest_step()
        if step is not None and not resume:
            raise ValueError(
                f"checkpoint must be a folder without checkpoints, got {folder}, which holds one "
                f"after step {step}; pass resume=True to continue that run"
            )
        yield Checkpoints(manager, settings)


def _check_folder(folder: Any) -> None:
    """Check what Orbax would refuse after an epoch, when it writes to the folder."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"checkpoint must be the path of a folder, got {folder!r}")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"checkpoint must be a folder, got the file {folder}")


def _check_interval(interval: Any) -> None:
    if not isinstance(interval, Real):
        raise TypeError(f"checkpoint_interval must be a number of seconds, got {interval!r}")
    if not float(interval) >= 0:
        raise ValueError(f"checkpoint_interval must be at least 0, got {interval}")


def describe_run(
    shapes: dict[str, Any], *, key: Array, batch_size: int, division: Division
) -> dict[str, Any]:
    """Return the settings that a resumed run has in common with the saved one, as JSON holds them.

    The number of devices is not among them.

    Args:
        shapes: numbers and lists that describe the examples, by name.
        key: as in `init_state`.
        batch_size: as in `fit`.
        division: as in `fit`.
    """
    return {
        **shapes,
        "batch_size": batch_size,
        "order": division.order,
        "virtual_shards": division.virtual_shards,
        "key": np.asarray(key_data(key)).tolist(),
    }


def shapes_of(examples: Examples) -> dict[str, Any]:
    """Return the shapes of examples in memory."""
    arrays = {"features": examples.features, "targets": examples.targets}
    return {f"shape of {name}": [*a.shape] for name, a in arrays.items()}


def _to_json(metrics: Metrics) -> dict[str, Any]:
    arrays = jax.device_get(metrics)
    return {name: [str(value.dtype), value.tolist()] for name, value in arrays.items()}


def _from_json(metrics: dict[str, Any]) -> Metrics:
    return {name: np.asarray(value, dtype) for name, (dtype, value) in metrics.items()}  # type: ignore[misc]


def _restored_type(a: Any) -> Any:
    """Return the type in which to restore an array.

    An array on one device is not committed to it: the examples decide where it goes.
    """
    if isinstance(a.sharding, SingleDeviceSharding):
        return np.empty(a.shape, a.dtype)
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
