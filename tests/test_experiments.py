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
UNOPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # where compiling takes the time
SHARED = ("document", "run_all", "words", "figures")
# Programs to copy: their arguments, the number that shows that they learn, and its range.
TO_COPY = {
    "train_minibatch": ([], r"test accuracy ([\d.]+)%", (95, 100)),
    "train_large_head": ([], r"5: .*, accuracy ([\d.]+)%", (50, 100)),
    "train_many_hosts": (["--smoke"], r"epoch 2: .*\ntest loss ([\d.]+)", (0, 2.5)),
    "finetune_head": ([], r"certified head: .* fine-tuning ([\d.]+)%", (80, 100)),
    "distill": ([], r"T = 4, .* ([\d.]+)%", (95, 100)),
    "serve": ([], r"355 images: accuracy ([\d.]+)%", (90, 100)),
    "language_model_flax": (["--smoke"], r"step 40: loss ([\d.]+)", (0, 5.7)),
    "language_model_equinox": (["--smoke"], r"step 40: loss ([\d.]+)", (0, 5.7)),
}
EXPERIMENTS = sorted(
    path
    for path in FOLDER.glob("*.py")
    if "--smoke" in path.read_text() and path.stem not in (*SHARED, *TO_COPY)
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
    environment = os.environ | UNOPTIMIZED
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


@pytest.mark.parametrize("name", TO_COPY)
def test_the_programs_to_copy_learn(name: str) -> None:
    arguments, figure, (least, most) = TO_COPY[name]
    script = FOLDER / f"{name}.py"
    assert len(script.read_text().splitlines()) < 120
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | ({} if name.startswith("train_") else UNOPTIMIZED),
    )
    assert done.returncode == 0, done.stderr
    assert least < float(re.search(figure, done.stdout)[1]) < most


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_says_what_it_is(path: Path) -> None:
    text = " ".join(docstring(path).split())
    for part in ("Command: `python experiments/", "minute", "Question", "Findings", "record is"):
        assert part in text, part
    assert "FINDINGS" not in text


@pytest.mark.parametrize(
    "path",
    sorted([*RESULTS.glob("*.png"), RESULTS / "language_model_cost.json"]),
    ids=lambda path: path.stem,
)
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


def test_documents_have_a_claim_few_findings_and_a_figure_of_the_record() -> None:
    code = """
import document, gallery, importlib
names = list(gallery.DOCUMENTS)
for name in names:
    page = gallery.page(name)
    assert page.claim[0].isupper() and page.claim.endswith(".") and len(page.claim) < 200, name
    assert 1 <= len(page.findings) <= 3, name
    assert set(gallery.DOCUMENTS[name]) <= set(names[: names.index(name)]), name
for name in (*names, "benchmark_cpu", "head_by_classes_cpu"):
    module = importlib.import_module(name.removesuffix("_cpu"))
    if not hasattr(module, "drawn_beside"):  # it shows images too
        document.drawn(module.draw, document.recorded(name))
"""
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True)


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
