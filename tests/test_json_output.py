"""With --json standard output is one object, whatever is said beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxsoftmax.app.cli.app import app

pytestmark = pytest.mark.usefixtures("unoptimized")


def call(*arguments: object, status: int = 0) -> Any:
    """The object that a command writes, or None."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if result.stdout else None


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    labels = np.where(x[:, 0] + rng.logistic(size=80) > 0, "yes", "no")
    path = tmp_path_factory.mktemp("json") / "table.csv"
    lines = [f"{a:.3f},{b:.3f},{label}" for (a, b), label in zip(x, labels, strict=True)]
    path.write_text("\n".join(["a,b,label", *lines]) + "\n")
    return path


def test_each_command_writes_one_object(table: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "second")]
    for number, run in enumerate(runs):
        found = call(
            "fit", table, "--label", "label", "--epochs", 2 + number, "--output", run, "--no-report"
        )
        assert found["run"] == str(run)
        assert 0 <= found["metrics"]["test"]["accuracy"] <= 1
    measured = call("evaluate", runs[0], table)
    assert measured["metrics"]["examples"] == 80
    output = tmp_path / "predictions.csv"
    assert call("predict", runs[0], table, "--output", output) == {
        "predictions": str(output),
        "examples": 80,
    }
    compared = call("compare", *runs)
    assert [one["run"] for one in compared["runs"]] == ["first", "second"]
    assert compared["differing_settings"]["epochs"] == [2, 3]
    assert call("predict", runs[0], table, "--output", output, status=1) is None, "it exists"


def test_messages_are_on_standard_error(table: Path, tmp_path: Path) -> None:
    command = ["fit", str(table), "--label", "label", "--epochs", "2", "--no-report"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "run"), "--json"])
    assert "epoch 2/2" in result.stderr
    assert result.stdout.count("\n") == 1


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXSOFTMAX_CACHE_DIR", str(tmp_path))
    assert call("cache") == {"folder": str(tmp_path), "bytes": 0, "cleared": False}
    monkeypatch.setenv("JAXSOFTMAX_CACHE_DIR", "off")
    assert call("cache") == {"folder": None}
