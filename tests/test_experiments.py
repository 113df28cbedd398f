"""Every experiment runs, small, as the user runs it; its record and its findings are there."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "experiments"
RESULTS = FOLDER / "results"
PATIENCE = 1800  # seconds: for what hangs, not for what a busy machine makes slow
EXPERIMENTS = sorted(
    path
    for path in FOLDER.glob("*.py")
    if "--smoke" in path.read_text() and path.stem not in ("document", "run_all")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.libtpu] if path.stem == "compile_targets" else [])
        for path in EXPERIMENTS
    ],
    ids=lambda path: path.stem,
)
def test_smoke(path: Path) -> None:
    before = {result: result.read_bytes() for result in RESULTS.iterdir()}
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, str(path), "--smoke"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1
    after = {result: result.read_bytes() for result in RESULTS.iterdir()}
    assert after == before  # a smoke run leaves no record


@pytest.mark.parametrize(
    ("name", "accuracy", "least"),
    [("train_minibatch", "test accuracy", 95), ("train_large_head", "5: .*, accuracy", 50)],
)
def test_the_scripts_to_copy_learn(name: str, accuracy: str, least: float) -> None:
    script = str(FOLDER / f"{name}.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(rf"{accuracy} ([\d.]+)%", done.stdout)[1]) > least


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_says_what_it_is(path: Path) -> None:
    text = docstring(path)
    for part in ("Command: `python experiments/", "minute", "Question", "Findings", "record is"):
        assert part in text, part
    assert "FINDINGS" not in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.png")), ids=lambda path: path.stem)
def test_findings_are_in_the_record(path: Path) -> None:
    script = FOLDER / f"{path.stem.removesuffix('_cpu')}.py"  # of a benchmark, one per platform
    text = docstring(script).split("\nFindings", 1)[1]
    recorded = list(numbers(json.loads(path.with_suffix(".json").read_text())))
    claims = re.findall(r"(?<![\w.,])(\d[\d,]*\.\d+(?:e-\d+)?)(\s*%)?", text)
    assert claims
    for claim, percent in claims:
        places = len(claim.partition("e")[0].partition(".")[2])
        form = f",.{places}{'e' if 'e' in claim else 'f'}"
        shown = {format(value * (100 if percent else 1), form) for value in recorded}
        assert claim in shown, f"{claim}{percent} is not in the record"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.png")), ids=lambda path: path.stem)
def test_figures_are_small(path: Path) -> None:
    assert path.stat().st_size < 150_000


@pytest.mark.parametrize(
    ("module", "page"), [("tables", FOLDER.parent / "README.md"), ("gallery", FOLDER / "README.md")]
)
def test_pages_hold_the_records_figures(module: str, page: Path) -> None:
    code = f"import {module} as m; t = m.README.read_text(); assert m.rendered(t) == t"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, f"run {module}.py to rewrite {page.name}: {done.stderr}"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_records_say_where_they_were_taken(path: Path) -> None:
    environment = json.loads(path.read_text())["environment"]
    assert environment.keys() >= {"platform", "device", "cpu", "cores", "versions"}
    assert {"python", "jax", "jaxlib", "optax", "numpy"} <= environment["versions"].keys()


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def numbers(record: Any) -> Iterator[float]:
    """Every number of a record, without its sign."""
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list):
        for part in record:
            yield from numbers(part)
    elif isinstance(record, int | float):
        yield abs(record)
