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
RUNS = Path(__file__).with_name("experiment_runs.py")
NUMBER = re.compile(r"\d+\.\d+")
PATIENCE = 1800  # seconds: for what hangs, not for what a busy machine makes slow
# Where compiling takes the time: programs for the CPU, and those for a TPU.
UNOPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_OPTIMIZATION_LEVEL": "O0"}
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


def experiment_of(result: Path) -> str | None:
    """The experiment that wrote NAME.json, or NAME_DEVICE.json and the like: the longest name."""
    names = [path.stem for path in EXPERIMENTS if f"{result.stem}_".startswith(f"{path.stem}_")]
    return max(names, key=len, default=None)


RECORDS: dict[str, list[Path]] = {}
for record in sorted(RESULTS.glob("*.json")):
    RECORDS.setdefault(experiment_of(record) or "", []).append(record)
# Those with a figure, and one with a table in README.md.
CLAIMING = sorted({experiment_of(path) for path in RESULTS.glob("*.png")} | {"language_model_cost"})
# Modules of benchmarks/ whose findings are of one run on the CPU, and their parts of the record.
FOUND = {
    "optimum": ("mnist", "fashion_mnist", "newsgroups", "documents"),
    "path": ("path",),
    "small_sets": ("small_sets",),
    "grid": ("grid",),
    "beside_cyanure": ("cyanure",),
    "exactness": ("exactness",),
    "calls": ("calls",),
}
# The description of a machine is fixed when a process starts: other devices, another compiler.
ALONE = ("compile_meshes", "compile_targets", "data_parallel", "scaling")
TOGETHER = [path for path in EXPERIMENTS if path.stem not in ALONE]
GROUPS = {path.stem: [path] for path in EXPERIMENTS if path.stem in ALONE}
GROUPS |= {f"group {i + 1}": TOGETHER[i::3] for i in range(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.libtpu] if name.startswith("compile_") else [])
        for name in GROUPS
    ],
)
def test_smoke(name: str) -> None:
    before = {result: result.read_bytes() for result in RESULTS.iterdir()}
    printed = run_together([[str(path), "--smoke"] for path in GROUPS[name]], UNOPTIMIZED)
    for experiment, text in printed.items():
        assert len(text.splitlines()) > 1, experiment
    after = {result: result.read_bytes() for result in RESULTS.iterdir()}
    assert after == before  # a smoke run leaves no record


def run_together(commands: list[list[str]], variables: dict[str, str]) -> dict[str, str]:
    """What each script of the commands prints, in one process; none of them fails."""
    done = subprocess.run(
        [sys.executable, str(RUNS), json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {Path(command[0]).stem for command in commands}
    for name, (_, error) in found.items():
        assert not error, f"{name}: {error}\n{done.stderr}"
    return {name: printed for name, (printed, _) in found.items()}


# Those that train have a process each, of programs that are optimized.
ON_THEIR_OWN = [name for name in TO_COPY if name.startswith("train_")]
COPIED = {name: ([name], {}) for name in ON_THEIR_OWN}
COPIED |= {"others": ([name for name in TO_COPY if name not in ON_THEIR_OWN], UNOPTIMIZED)}


@pytest.mark.parametrize("group", COPIED)
def test_the_programs_to_copy_learn(group: str) -> None:
    names, variables = COPIED[group]
    scripts = {name: FOLDER / f"{name}.py" for name in names}
    printed = run_together([[str(scripts[n]), *TO_COPY[n][0]] for n in names], variables)
    for name, script in scripts.items():
        assert len(script.read_text().splitlines()) < 120
        _, figure, (least, most) = TO_COPY[name]
        assert least < float(re.search(figure, printed[name])[1]) < most, name


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_says_what_it_is(path: Path) -> None:
    text = " ".join(docstring(path).split())
    for part in ("Command: `python experiments/", "minute", "Question", "Findings", "record is"):
        assert part in text, part
    assert "FINDINGS" not in text


@pytest.mark.parametrize("name", CLAIMING)
def test_findings_are_in_the_record(name: str) -> None:
    records = [json.loads(path.read_text()) for path in RECORDS[name]]
    assert_found(FOLDER / f"{name}.py", records)


@pytest.mark.parametrize("module", FOUND)
def test_findings_of_a_part_are_in_its_record(module: str) -> None:
    record = json.loads((RESULTS / "benchmark_cpu.json").read_text())
    table = (RESULTS / "benchmark_cpu.md").read_text()
    titles = [float(n) for title in re.findall("(?m)^## .*", table) for n in NUMBER.findall(title)]
    found = [record[part]["found"] for part in FOUND[module]]
    assert_found(FOLDER / "benchmarks" / f"{module}.py", [*found, *titles])


def assert_found(path: Path, records: list[Any]) -> None:
    """Every number with a decimal point in a docstring's findings is one of the records'."""
    text = docstring(path).split("\nFindings", 1)[1]
    recorded = list(numbers(records))
    claims = re.findall(r"(?<![\w.,])(\d[\d,]*\.\d+(?:e-\d+)?)(\s*%)?", text)
    assert claims
    for claim, percent in claims:
        places = len(claim.partition("e")[0].partition(".")[2])
        form = f",.{places}{'e' if 'e' in claim else 'f'}"
        shown = {format(value * (100 if percent else 1), form) for value in recorded}
        assert claim in shown, f"{claim}{percent} is not in the record"


@pytest.mark.parametrize(
    ("result", "name"),
    [
        ("temperature.png", "temperature"),
        ("benchmark_cpu.png", "benchmark"),
        ("benchmark_nvidia_h200.json", "benchmark"),
        ("benchmark_cpu_classes.png", "benchmark"),
        ("gpu_by_classes.json", "gpu_by_classes"),
        ("own_data.png", "own_data"),
        ("of_nothing_here.png", None),
    ],
)
def test_the_experiment_of_a_result(result: str, name: str | None) -> None:
    assert experiment_of(Path(result)) == name


def test_documents_have_a_claim_few_findings_and_a_figure_of_the_record() -> None:
    code = """
import document, gallery, importlib
names = list(gallery.DOCUMENTS)
for name in names:
    page = gallery.page(name)
    assert page.claim[0].isupper() and page.claim.endswith(".") and len(page.claim) < 200, name
    assert 1 <= len(page.findings) <= 3, name
    assert set(gallery.DOCUMENTS[name]) <= set(names[: names.index(name)]), name
for name in (*names, *gallery.PICTURES):
    module = importlib.import_module(name)
    if not hasattr(module, "drawn_beside"):  # it shows images too
        document.drawn(module.draw, document.recorded(name))
# Measurements of a GPU replace those of the prototypes in the picture of the main page.
seconds = {"mean": 1e-3, "copy": 5e-4, "optax": 2e-3}
entry = {"seconds": {name: {"median": s} for name, s in seconds.items()}, "bytes": 4e6,
         "dtype": "bfloat16"}
measured = {"rows_by_classes": {"found": {"(1000, 10)": {"1000": entry, "10": entry}}}}
picture = importlib.import_module("gpu_by_classes")
wanted = {"jaxsoftmax": {1000: 1e3}, "copy": {1000: 5e2}, "optax": {1000: 2e3}}
assert picture.measured_times(measured) == wanted
figure = document.drawn(picture.draw, document.recorded("gpu_by_classes"), measured)
assert "2.0 times" in figure.axes[1].get_title("left")
"""
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("benchmark_*.json")), ids=lambda p: p.stem)
def test_a_device_has_the_table_and_the_page_of_its_record(path: Path) -> None:
    code = f"""
import json, pathlib
from benchmarks import page, picture, table
record = pathlib.Path({str(path)!r})
found = json.loads(record.read_text())
assert record.with_suffix(".md").read_text() == table.rendered(found), "run benchmark.py --draw"
figure = page.draw(found)
assert [axes.axison for axes in figure.axes] == [True] * 4
assert record.with_suffix(".png").exists()
assert (picture.draw(found) is not None) == record.with_name(record.stem + "_classes.png").exists()
"""
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True)


def test_long_parts_of_the_benchmark_run_if_named_and_some_steps_write_nothing() -> None:
    code = """
import math, sys, benchmark
def of(*arguments):
    sys.argv = ["benchmark.py", *arguments]
    parsed = benchmark.parsed()
    return parsed.only, parsed.minutes
assert of() == (list(benchmark.QUICK), 5)
assert "grid" not in benchmark.QUICK
assert of("--only", "grid") == (["grid"], math.inf)
assert of("--only", "grid", "--minutes", "3") == (["grid"], 3)
assert of("--smoke") == (list(benchmark.PARTS), math.inf)
of("--only", "small_sets", "--steps", "iris, raw")
benchmark.main()
"""
    before = {result: result.read_bytes() for result in RESULTS.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True
    )
    assert "| iris, raw |" in done.stdout
    assert "standardized" not in done.stdout
    assert {result: result.read_bytes() for result in RESULTS.iterdir()} == before


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
    record = json.loads(path.read_text())
    parts = (part for part in record.values() if isinstance(part, dict) and "found" in part)
    for environment in (record["environment"], *(part["environment"] for part in parts)):
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
