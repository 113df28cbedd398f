"""Runs side by side: what differs, which is best, and what cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, chromium
from typer.testing import CliRunner

from jaxsoftmax.app import comparison, run_folder
from jaxsoftmax.app.cli.app import app
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.report import comparison_page
from jaxsoftmax.linear import LinearParams

CLASSES = ("no", "<b>yes")


def save(
    folder: Path,
    accuracy: float,
    *,
    task: Task = Task.classes,
    data: str = "a.csv",
    **header: object,
) -> Path:
    """Save a run of made metrics."""
    items = [
        {"name": name, "f1": accuracy - k / 10, "support": 5} for k, name in enumerate(CLASSES)
    ]
    test = {
        "examples": 10,
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.1, accuracy + 0.1],
        "nll": 1 - accuracy,
        "per_class": items,
    }
    model = run_folder.Model(
        LinearParams(np.eye(3, 2, dtype=np.float32), None),
        Schema(task, CLASSES, (3,)),
        header={"loss": "softmax", "data": {"name": data}, "command": f"fit {data}", **header},
    )
    history = {"validation_loss": np.linspace(1, 1 - accuracy, 4)}
    folder.mkdir()
    run_folder.save(folder, model, metrics={"test": test}, history=history)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        save(tmp_path / "first", 0.75, seed=0, learning_rate=0.1),
        save(tmp_path / "second", 0.5, seed=0, learning_rate=0.25),
    ]


def test_what_differs_and_which_is_best(runs: list[Path]) -> None:
    loaded = comparison.load(runs)
    assert comparison.differing_settings(loaded) == {"learning_rate": [0.1, 0.25]}
    assert comparison.best(loaded, "accuracy") == {"first"}
    assert comparison.best(loaded, "nll") == {"first"}, "the smaller one"
    assert comparison.best(loaded[:1] * 2, "accuracy") == set(), "equal runs have no best"
    assert comparison.notes(loaded) == []
    np.testing.assert_allclose(loaded[0].history["validation_loss"], np.linspace(1, 0.25, 4))
    assert json.loads(json.dumps(comparison.to_json(loaded)))["runs"][1]["test"]["accuracy"] == 0.5


def test_what_cannot_be_compared(runs: list[Path], tmp_path: Path) -> None:
    for folders, said in (
        (runs[:1], "at least two runs to compare, got 1"),
        ([runs[0], runs[0]], "one is given twice"),
        (
            [runs[0], save(tmp_path / "n", 1, task=Task.labels)],
            "first predicts classes, n predicts",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            comparison.load(folders)
    other = comparison.load([runs[0], save(tmp_path / "other", 1, data="b.csv", interrupted=True)])
    assert comparison.notes(other) == [
        "The runs are of different data: a.csv, b.csv.",
        "Interrupted before its end: other.",
    ]


def test_runs_of_one_name_have_their_paths(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = save(tmp_path / "more" / "first", 0.6)
    assert [run.name for run in comparison.load([runs[0], other])] == [str(runs[0]), str(other)]


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "both.html"
    result = CliRunner().invoke(app, ["compare", *map(str, runs), "--output", str(page)])
    assert result.exit_code == 0, result.output
    words = result.output.split()
    assert words[words.index("75.00%") + 1] == "*"
    assert words[words.index("50.00%") + 1] != "*"
    assert "learning rate" in result.output
    assert result.output.endswith(f"page: {page}\n")
    text = page.read_text()
    assert "75.00% ★" in text
    assert "<b>yes" not in text
    again = CliRunner().invoke(app, ["compare", *map(str, runs), "--output", str(page)])
    assert again.exit_code != 0
    assert "already exists" in again.stderr


def test_no_name_and_no_setting_is_cut_short(tmp_path: Path) -> None:
    settings = {f"knob_{k}": k for k in range(12)}
    names = [f"flowers-softmax-{k}" for k in range(4)]
    for k, name in enumerate(names):
        save(tmp_path / name, 0.5 + k / 10, **{s: v + k for s, v in settings.items()})
    runs = [str(tmp_path / name) for name in names]
    result = CliRunner(env={"COLUMNS": "60"}).invoke(app, ["compare", *runs])
    assert max(map(len, result.output.splitlines())) <= 60
    rows = [line.split() for line in result.output.splitlines()]
    assert [row[0] for row in rows if row[0] in names] == names
    for s, v in settings.items():
        assert [*s.split("_"), *(str(v + k) for k in range(4))] in rows
    narrow = CliRunner(env={"COLUMNS": "30"}).invoke(app, ["compare", *runs])
    assert "…" not in narrow.output, "what has no room is folded"


def test_the_page_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    comparison_page.write(path, comparison.load(runs))
    with chromium(tmp_path / "profile") as browser:
        look_at(browser, path)


def look_at(browser: Browser, path: Path) -> None:
    for width in (390, 1280):
        browser.open(path, width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.errors() == []
        boxes = browser.boxes("figure svg")
        assert len(boxes) == 2
        assert all(box["width"] > 200 and box["height"] > 60 for box in boxes)
