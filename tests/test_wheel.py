"""The wheel that a user would install: it builds, holds what it must, and does the main job."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
# What the build reads; the rest of the tree must not be needed.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "jaxsoftmax")


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run this interpreter in `cwd`, with `path` and nothing else of ours to import from."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, **({} if path is None else {"PYTHONPATH": str(path)})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wheel")
    tree = base / "tree"
    tree.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(base), str(tree), cwd=base)
    return next(base.glob("jaxsoftmax-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "installed"
    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target))
    python(*install, str(wheel), cwd=wheel.parent)
    return target


def test_holds_what_it_must(wheel: Path) -> None:
    held = set(ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "jaxsoftmax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"jaxsoftmax/app/data/digits.npz", "jaxsoftmax/py.typed"} <= modules <= held
    outside = {name for name in held if not name.startswith("jaxsoftmax")}
    assert not outside, "the wheel holds the package and its metadata"
    for name in ("LICENSE", "digits.LICENSE"):
        assert any(entry.endswith(name) and ".dist-info/licenses/" in entry for entry in held), name


def test_is_imported_from_where_it_was_installed(installed: Path, tmp_path: Path) -> None:
    code = (
        "import jaxsoftmax, jaxsoftmax.app.data as d; print(jaxsoftmax.__file__); d.load('digits')"
    )
    assert python("-c", code, cwd=tmp_path, path=installed).strip() == str(
        installed / "jaxsoftmax" / "__init__.py"
    )


def test_does_the_main_job(installed: Path, tmp_path: Path) -> None:
    job = ("-m", "jaxsoftmax", "fit", "digits", "--epochs", "2")
    shown = python(*job, cwd=tmp_path, path=installed)
    assert shown.endswith("run: runs/digits-softmax\n")
    assert (tmp_path / "runs/digits-softmax/model.safetensors").is_file()
