"""Every experiment runs, small, as the user runs it; its record and its findings are there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments"
EXPERIMENTS = sorted(path for path in FOLDER.glob("*.py") if "--smoke" in path.read_text())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_smoke(path: Path) -> None:
    before = {record: record.read_bytes() for record in (FOLDER / "results").glob("*.json")}
    done = subprocess.run(
        [sys.executable, str(path), "--smoke"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1
    after = {record: record.read_bytes() for record in (FOLDER / "results").glob("*.json")}
    assert after == before  # a smoke run leaves no record


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    for part in ("Command: `python experiments/", "minute", "Question", "Findings", "record is"):
        assert part in docstring, part
    assert "FINDINGS" not in docstring


def test_readme_holds_the_records_figures() -> None:
    code = "import tables; t = tables.README.read_text(); assert tables.rendered(t) == t"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda p: p.stem)
def test_records_say_where_they_were_taken(path: Path) -> None:
    environment = json.loads(path.read_text())["environment"]
    assert environment.keys() >= {"platform", "device", "cpu", "cores", "versions"}
    assert {"python", "jax", "jaxlib", "optax", "numpy"} <= environment["versions"].keys()
