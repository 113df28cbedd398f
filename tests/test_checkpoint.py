"""Checkpoints: a resumed run is the uninterrupted one, whatever killed it."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoint_run
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoftmax import cross_entropy, training

LOSS = training.on_logits(cross_entropy)
OPTIMIZER = optax.adam(0.3)
rng = np.random.default_rng(0)
X = rng.standard_normal((24, 3)).astype(np.float32)
Y = rng.integers(0, 2, 24).astype(np.int32)
HOW = {"optimizer": OPTIMIZER, "key": jax.random.key(0), "batch_size": 8}


def fit(epochs: int, **options: Any) -> training.FitResult:
    return training.fit(LOSS, X, Y, epochs=epochs, **HOW | options)


def sweep(epochs: int, **options: Any) -> training.FitResult:
    how = {"make_optimizer": optax.adam, "hyperparams": jnp.array([0.01, 0.3])}
    keys = jax.random.split(jax.random.key(0), 2)
    return training.sweep(LOSS, X, Y, keys=keys, epochs=epochs, batch_size=8, **how, **options)


def same(got: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("train", [fit, sweep])
@pytest.mark.parametrize("validation", [None, (X[:8], 1 - Y[:8])])
def test_a_resumed_run_is_the_uninterrupted_one(
    train: Any, validation: Any, tmp_path: Path
) -> None:
    options = {"validation": validation, "checkpoint_interval": 0}
    train(2, checkpoint=tmp_path, **options)
    got = train(5, checkpoint=tmp_path, resume=True, **options)
    same(got, train(5, validation=validation))


def test_early_stopping_counts_across_a_resumption(tmp_path: Path) -> None:
    options = {"validation": (X[:8], 1 - Y[:8]), "patience": 3}  # the loss grows from the start
    wanted = fit(20, **options)
    assert 3 < wanted.epochs < 20
    fit(3, checkpoint=tmp_path, **options)
    same(fit(20, checkpoint=tmp_path, resume=True, **options), wanted)
    epochs = []
    again = fit(
        20,
        checkpoint=tmp_path,
        resume=True,
        callback=lambda metrics: epochs.append(metrics["epoch"]),
        **options,
    )
    same(again, wanted)
    assert epochs == []  # it had stopped


def test_only_the_last_checkpoint_within_an_interval(tmp_path: Path) -> None:
    fit(4, checkpoint=tmp_path, checkpoint_interval=1e6)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "12",
        "3",
    ]  # numbers of steps


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=True needs checkpoint=, a folder, got None"):
        fit(1, resume=True)
    fit(2, checkpoint=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"without checkpoints, got .* after step 6; pass resume"):
        fit(3, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"epochs must be at least 2, .* got 1"):
        fit(1, checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"batch_size must be 8, as in the checkpoint .* got 4"):
        fit(3, checkpoint=tmp_path, resume=True, batch_size=4)
    with pytest.raises(ValueError, match="key must be"):
        fit(3, checkpoint=tmp_path, resume=True, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"shape of features must be \[24, 3\]"):
        training.fit(LOSS, X[:, :2], Y, epochs=3, checkpoint=tmp_path, resume=True, **HOW)
    with pytest.raises(ValueError, match=r"params.w must have shape \(3, 2\), .* got \(3, 3\)"):
        training.fit(LOSS, X, Y + 1, epochs=3, checkpoint=tmp_path, resume=True, **HOW)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_hold_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint must be a folder, got the file"):
        fit(1, checkpoint=tmp_path / "file")
    with pytest.raises(TypeError, match="checkpoint must be the path of a folder, got 3"):
        fit(1, checkpoint=3)
    with pytest.raises(ValueError, match="checkpoint_interval must be at least 0, got -1"):
        fit(1, checkpoint=tmp_path / "new", checkpoint_interval=-1)
    with pytest.raises(TypeError, match=r"checkpoint_interval must be a number .* got '1'"):
        fit(1, checkpoint=tmp_path / "new", checkpoint_interval="1")


def test_a_torn_save_is_never_picked_up(tmp_path: Path) -> None:
    """Under the name that a save has before its end, and under the one that it has after it."""
    fit(2, checkpoint=tmp_path, checkpoint_interval=0)
    before, newest = tmp_path / "3", tmp_path / "6"
    for torn in (newest.with_suffix(".orbax-checkpoint-tmp"), tmp_path / "9"):
        shutil.copytree(newest, torn)
        files = sorted(path for path in torn.rglob("*") if path.is_file())
        for path in files[::2]:
            path.unlink()
    resumed = {"checkpoint": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"/9 must hold a checkpoint .* or damaged; .* remove it"):
        fit(3, **resumed)
    shutil.rmtree(tmp_path / "9")
    with pytest.raises(ValueError, match="/6 must hold a checkpoint of this model and optimizer"):
        fit(3, **resumed, optimizer=optax.sgd(0.3))
    assert before.is_dir()
    same(fit(3, **resumed), fit(3))


def test_without_orbax(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxsoftmax\[scale\]'"):
        fit(1, checkpoint=tmp_path)


@pytest.mark.slow
def test_killed_at_any_time_on_any_number_of_devices(tmp_path: Path) -> None:
    """Killed again and again, on 8 devices and on 2 by turns, it ends with the bits of one run."""
    kills = int(os.environ.get("JAXSOFTMAX_KILLS", "3"))
    epochs, draw, folder = 20 * kills, random.Random(0), tmp_path / "killed"
    for i in range(kills):
        process = start(folder, devices=(8, 2)[i % 2], epochs=epochs)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch"), process.stderr
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        assert "end" not in process.communicate()[0], "it was not killed in time"
    assert finish(folder, 8, epochs) == finish(tmp_path / "whole", 2, epochs)


def start(folder: Path, *, devices: int, epochs: int) -> subprocess.Popen:
    command = [sys.executable, checkpoint_run.__file__, str(devices), str(folder), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, devices: int, epochs: int) -> str:
    printed, errors = (process := start(folder, devices=devices, epochs=epochs)).communicate()
    assert process.returncode == 0, errors
    return printed.splitlines()[-1]
