"""What is asked wrongly and what goes wrong: one clear line, a status, and nothing half done."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from jaxsoftmax.app import run_folder, user_cache
from jaxsoftmax.app.cli.app import app
from jaxsoftmax.app.names import TASK_LOSSES, LossName, Task

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(user_cache.VARIABLE, "off")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def write_table(name: str = "x.csv", size: int = 60) -> None:
    """Features a and b, three classes, two labels and a number."""
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'uvw'[i % 3]},{i % 2},{int(b > 0)},{a + b:.3f}"
            for i, (a, b) in enumerate(rng.normal(size=(size, 2)))]  # fmt: skip
    Path(name).write_text("\n".join(["a,b,kind,odd,high,price", *rows]))


LABELS = {Task.classes: ["kind"], Task.labels: ["odd", "high"], Task.numbers: ["price"]}


@pytest.mark.parametrize("task", Task)
def test_every_loss_of_every_task_goes_from_fit_to_report(task: Task) -> None:
    write_table()
    others = {"kind", "odd", "high", "price"} - set(LABELS[task])
    roles = [word for name in LABELS[task] for word in ("--label", name)]
    roles += [word for name in others for word in ("--drop", name)]
    for loss in LossName:
        output = ("--loss", loss, "--task", task, "--epochs", "1", "--output", f"run-{loss}")
        result = call("fit", "x.csv", *roles, *output)
        if loss in TASK_LOSSES[task]:
            assert result.exit_code == 0, result.output
            assert run_folder.read(Path(f"run-{loss}"), "report.html")
        else:
            assert result.exit_code == 2
            assert f"--loss must be {TASK_LOSSES[task][0]}" in result.output
            assert not Path(f"run-{loss}").exists()


FIT = ("fit", "x.csv", "--label", "odd", "--drop", "kind", "--drop", "high", "--drop", "price")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--epochs", "1e20"), "invalid value for '--epochs'"),
        (("--epochs", "100000000000000000000"), "invalid value for '--epochs'"),
        (("--batch-size", "0"), "invalid value for '--batch-size'"),
        (("--epochs", "2.5"), "invalid value for '--epochs'"),
        (("--learning-rate", "inf"), "--learning-rate must be finite, got inf"),
        (("--weight-decay", "inf"), "--weight-decay must be finite, got inf"),
        (("--lable", "y"), "no such option: --lable"),
        (("--drop", "odd"), "--drop odd and --label odd contradict each other"),
        (("--id", "odd"), "--label odd and --id odd contradict each other"),
    ],
)
def test_wrong_options_are_one_line(option: tuple[str, str], message: str) -> None:
    write_table()
    result = call(*FIT, *option)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"jaxsoftmax: {message}"), result.stderr
    assert option[1] in line or "no such option" in line  # what came
    assert "Traceback" not in result.output
    assert not Path("runs").exists()


def test_what_is_no_file() -> None:
    Path("data/digits").mkdir(parents=True)
    for source, message in {
        "/dev/null": "/dev/null: expected a file that ends in .csv",
        "data/digits": "data/digits is a folder, not a file",
    }.items():
        result = call("fit", source, "--label", "y")
        assert result.exit_code in (1, 2), result.output
        assert message in result.stderr


def test_what_no_run_can_be_saved_to() -> None:
    write_table()
    result = call(*FIT, "--epochs", "1", "--output", "x.csv/run")
    assert result.exit_code == 1, result.output
    assert "--output x.csv/run cannot be created: Not a directory" in result.stderr


def test_a_disk_that_is_full_is_told_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    write_table()
    assert call(*FIT, "--epochs", "1", "--no-report", "--output", "run").exit_code == 0

    def fail(descriptor: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    result = call("predict", "run", "x.csv", "--output", "p.csv")
    assert result.exit_code == 1
    assert result.stderr == "jaxsoftmax: p.csv: No space left on device\n"
    assert sorted(path.name for path in Path().iterdir()) == ["run", "x.csv"]


def test_short_options_and_completion() -> None:
    assert call("-V").output == call("--version").output
    for arguments in (("-h",), ("fit", "-h"), ("cache", "-h")):
        assert call(*arguments).exit_code == 0
    shown = call("-h").output
    assert "--install-completion" in shown
    assert call("fit").exit_code == 2, "no arguments: the help"
