"""The main job from end to end: `jaxsoftmax fit`, as a person and as a script would run it."""

import csv
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import jaxsoftmax
from jaxsoftmax import data, runs
from jaxsoftmax.cli import app
from jaxsoftmax.recipes import LossName, OptimizerName

ROOT = Path(__file__).parent.parent
DATA_DIR = Path(os.environ.get("JAXSOFTMAX_DATA_DIR", ROOT / "../shared/tfds")).resolve()
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "FORCE_COLOR": None}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where runs/ is made


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env=PLAIN)


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which imports this package wherever it starts."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")}
    return subprocess.run(
        [sys.executable, "-m", "jaxsoftmax", *arguments],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": str(Path(jaxsoftmax.__file__).parent.parent), **env},
    )


def metrics(folder: str) -> dict[str, dict[str, float]]:
    return json.loads((Path(folder) / "metrics.json").read_text())


# The main job.


def test_fit_digits_with_defaults() -> None:
    result = call("fit", "digits")
    assert result.exit_code == 0, result.output
    folder = Path("runs/digits-softmax")
    test = metrics("runs/digits-softmax")["test"]
    assert test["accuracy"] >= 0.96
    # What is printed is what is kept, and is what the kept model does.
    assert result.output.endswith(f"run: {folder}\n")
    row = next(line for line in result.output.splitlines() if line.split()[:1] == ["test"])
    assert row.split() == ["test", f"{test['loss']:.4f}", f"{test['accuracy']:.2%}"]
    params, header = runs.load(folder)
    digits = data.load("digits")
    w, bias = np.asarray(params.w, float), np.asarray(params.bias, float)
    logits = digits.test.features @ w + bias
    hits = logits.argmax(-1) == digits.test.labels
    assert test["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    rest = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(hits)), digits.test.labels]
    assert test["loss"] == pytest.approx(rest.mean(), rel=1e-5)
    assert header["classes"] == list("0123456789")
    assert header["features"] == {"shape": [8, 8], "divided_by": 16}
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, header["epochs"] + 1))
    assert float(history[-1]["validation_accuracy"]) == pytest.approx(
        metrics("runs/digits-softmax")["validation"]["accuracy"], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bar"), [("mnist", 0.924), ("fashion_mnist", 0.84), ("cifar10", 0.40)]
)
def test_fit_real_images_with_defaults(name: str, bar: float) -> None:
    if not (DATA_DIR / name).is_dir():
        pytest.skip(f"{name} is not prepared beside this repository (JAXSOFTMAX_DATA_DIR)")
    result = call("fit", name, "--data-dir", str(DATA_DIR), "--output", "run")
    assert result.exit_code == 0, result.output
    assert metrics("run")["test"]["accuracy"] >= bar


@pytest.mark.parametrize("loss", list(LossName))
@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_every_loss_and_optimizer_learns(loss: str, optimizer: str) -> None:
    result = call(
        "fit", "digits", "--loss", loss, "--optimizer", optimizer, "--epochs", "20", "--output", "o"
    )
    assert result.exit_code == 0, result.output
    assert metrics("o")["test"]["accuracy"] > 0.85  # chance is 0.10


# Seeds, and the command that the header keeps.


def test_same_seed_same_bytes() -> None:
    for folder, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        result = call("fit", "digits", "--epochs", "2", "--seed", seed, "--output", folder)
        assert result.exit_code == 0, result.output
    a, b, c = ((Path(folder) / "model.safetensors").read_bytes() for folder in "abc")
    assert a == b
    assert a != c
    assert Path("a/history.csv").read_text() == Path("b/history.csv").read_text()


def test_header_keeps_a_command_that_repeats_the_run() -> None:
    options = ("--epochs", "2", "--optimizer", "momentum", "--loss", "hinge", "--batch-size", "50")
    assert call("fit", "digits", *options, "--output", "first").exit_code == 0
    command = runs.load(Path("first")).header["command"].split()
    assert command[:3] == ["jaxsoftmax", "fit", "digits"]
    assert call(*command[1:], "--output", "again").exit_code == 0
    first, again = (Path(f, "model.safetensors").read_bytes() for f in ("first", "again"))
    assert first == again


# Folders.


def test_runs_are_numbered() -> None:
    for expected in ("digits-softmax", "digits-softmax-2"):
        result = call("fit", "digits", "--epochs", "1", "--quiet")
        assert result.output == f"runs/{expected}\n"


def test_output_is_never_overwritten_in_silence() -> None:
    arguments = ("fit", "digits", "--epochs", "1", "--output", "run")
    assert call(*arguments).exit_code == 0
    before = Path("run/model.safetensors").read_bytes()
    refused = call(*arguments, "--seed", "1")
    assert refused.exit_code == 1
    assert "run is not empty; choose another, or pass --overwrite" in refused.output
    assert Path("run/model.safetensors").read_bytes() == before
    assert call(*arguments, "--seed", "1", "--overwrite").exit_code == 0
    assert Path("run/model.safetensors").read_bytes() != before


# Errors: one line, and an exit status.


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nosuch"], 2, "data must be one of digits, mnist, fashion_mnist, cifar10, got 'nosuch'"),
        (["digits", "--optimizer", "lbfgs", "--learning-rate", "1"], 2, "lbfgs finds its own"),
        (["digits", "--overwrite"], 2, "--overwrite needs --output"),
        (["mnist", "--data-dir", "nowhere"], 1, "mnist is not prepared as array_record in nowhere"),
        (["digits", "--optimizer", "adagrad"], 2, "'adagrad' is not one of 'adamw'"),
        (["digits", "--epochs", "0"], 2, "Invalid value for '--epochs'"),
        (["digits", "--learning-rate", "-1"], 2, "Invalid value for '--learning-rate'"),
        (
            ["digits", "--loss", "squared_error", "--optimizer", "sgd", "--learning-rate", "9"],
            1,
            "the fit diverged. Try a lower --learning-rate.",
        ),
    ],
)
def test_errors(arguments: list[str], status: int, message: str) -> None:
    result = call("fit", *arguments)
    assert result.exit_code == status
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(Path("runs").glob("*")), "nothing is left behind"


def test_without_the_extra() -> None:
    code = "import sys; sys.modules['typer'] = None;from jaxsoftmax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "jaxsoftmax needs typer here: pip install 'jaxsoftmax[cli]'\n"


# What is shown.


def test_help() -> None:
    result = call("fit", "--help")
    assert result.exit_code == 0
    for word in (
        "DATA",
        "digits, mnist, fashion_mnist, cifar10",
        "--output",
        "--epochs",
        "--batch-size",
        "--learning-rate",
        "--weight-decay",
        "--optimizer",
        "--loss",
        "--seed",
        "--data-dir",
        "--quiet",
        "--overwrite",
        "by DATA and optimizer",
    ):
        assert word in result.output, word


def test_version() -> None:
    assert call("--version").output == f"jaxsoftmax {jaxsoftmax.__version__}\n"


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "forced colour"])
def test_a_pipe_gets_lines(env: dict[str, str]) -> None:
    done = run("fit", "digits", "--epochs", "20", **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert lines[0].startswith("epoch 1/20: loss ")
    assert lines[-1].startswith("epoch 20/20: loss ")
    assert 5 <= len(lines) <= 12
    moves = {"\r", "\x1b[2K", "\x1b[1A", "\x1b[?25l"} if env else {"\r", "\x1b", "\u2501"}
    assert not [move for move in moves if move in done.stdout]


def test_a_terminal_gets_a_bar_with_time_left() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxsoftmax", "fit", "digits", "--epochs", "200"],
        stdout=slave,
        stderr=slave,
        stdin=slave,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    while chunk := _read(master):
        shown += chunk
    assert process.wait() == 0
    text = shown.decode()
    assert "epoch 200/200" in text
    assert "\u2501" in text, "the bar"
    assert "accuracy" in text
    assert "00:0" in text, "time left"
    assert "epoch 1/200: loss" not in text, "the plain lines are for pipes"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux ends a terminal whose other side is closed
        return b""
