"""Fits that are killed and resumed: they end with the bytes of a fit that was not."""

import inspect
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import jaxsoftmax
from jaxsoftmax.app import folder_lock, run_folder, user_cache
from jaxsoftmax.app.cli import summaries
from jaxsoftmax.app.cli.app import app, fit

KILLS = int(os.environ.get("JAXSOFTMAX_KILLS", "1"))
FIT = ("fit", "digits", "--epochs", str(25 * KILLS), "--no-report")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(user_cache.VARIABLE, "off")
    monkeypatch.setenv("PYTHONPATH", str(Path(jaxsoftmax.__file__).parent.parent))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def newest_step() -> int:
    steps = Path("killed/checkpoint/steps")
    names = [path.name for path in steps.iterdir()] if steps.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill_after_a_checkpoint(*arguments: str, delay: float) -> None:
    before = newest_step()
    command = [sys.executable, "-m", "jaxsoftmax", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while newest_step() == before and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    assert process.communicate()[1].decode() == ""
    assert process.returncode == -9, "it was not killed in time"


def test_killed_at_any_time_a_fit_ends_as_if_it_was_not() -> None:
    draw = random.Random(0)
    assert call(*FIT, "--output", "whole").exit_code == 0
    given = (*FIT, "--checkpoint", "0", "--output", "killed")
    for _ in range(KILLS):
        kill_after_a_checkpoint(*given, delay=draw.uniform(0, 0.05))
        with pytest.raises(FileNotFoundError, match="holds no run"):
            run_folder.load(Path("killed"))
        given = ("fit", "--resume", "killed", "--no-report")
    with folder_lock.hold(Path("killed")):
        assert "killed is in use by another process" in call(*given).output
    Path("killed/checkpoint/seconds").write_text("1000.5")
    resumed = call(*given)
    assert resumed.exit_code == 0, resumed.output
    assert "epoch 1/" not in resumed.output, "it goes on where it was"
    assert 1000.5 < json.loads(Path("killed/metrics.json").read_text())["seconds"] < 1100
    for name in ("model.safetensors", "history.csv"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    assert not Path("killed/checkpoint").exists()
    again = call(*given)
    assert (again.exit_code, again.output) == (
        1,
        "jaxsoftmax: killed has no checkpoint: its fit is complete, or had no --checkpoint\n",
    )


def test_what_a_resumed_fit_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.csv").write_text("a,y\n" + "1,no\n2,yes\n3,no\n" * 30)
    Path("run/checkpoint").mkdir(parents=True)
    options: dict[str, Any] = dict.fromkeys(inspect.signature(fit).parameters)
    options |= {"name": "x.csv", "label": ["y"]}
    options |= {"header": True, "checkpoint": 0, "seed": 0, "epochs": 1}
    record = {"options": options, "data": "another"}
    Path("run/checkpoint/fit.json").write_text(json.dumps(record))
    for arguments, message in {
        ("x.csv",): "DATA cannot be given with --resume: a run keeps its options",
        ("--batch-size", "9"): "--batch-size cannot be given with --resume",
        (): "the data of run have changed since it began; start a new run",
    }.items():
        result = call("fit", *arguments, "--resume", "run")
        assert result.exit_code == 2, result.output
        assert message in result.output
    assert "holds no run" in call("fit", "--resume", "nowhere").output
    assert "DATA is missing" in call("fit", "--quiet").output
    monkeypatch.setitem(sys.modules, "orbax", None)
    result = call("fit", "x.csv", "--label", "none", "--checkpoint", "9")  # before it is read
    assert (result.exit_code, "pip install 'jaxsoftmax[scale]'" in result.output) == (1, True)


def test_the_best_epoch_is_kept_and_overfitting_is_told() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 80)), rng.integers(2, size=200)  # nothing to learn
    np.savez("noise.npz", x=x, y=y)
    given = ("fit", "noise.npz", "--epochs", "40", "--no-report", "--output", "run", "--overwrite",
             "--learning-rate", "0.3")  # fmt: skip
    kept = {}
    for option in ("best", "last"):
        result = call(*given, "--keep-epoch", option)
        assert result.exit_code == 0, result.output
        assert "overfitting after epoch" in result.output
        losses = np.genfromtxt("run/history.csv", delimiter=",", names=True)["validation_loss"]
        header, figures = (json.loads(Path("run", f"{name}.json").read_text())
                           for name in ("model", "metrics"))  # fmt: skip
        kept[option] = header["kept_epoch"]
        assert figures["validation"]["loss"] == pytest.approx(losses[kept[option] - 1], rel=1e-5)
        assert f"--keep-epoch {option}" in header["command"]
    assert kept == {"best": 1 + int(losses.argmin()), "last": 40}
    assert kept["best"] < 40
    calm = {"loss": np.array([3.0, 2, 1]), "validation_loss": np.array([3.0, 2, 2.001])}
    assert summaries.describe_overfitting(calm) is None
