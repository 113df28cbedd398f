"""Metrics, calibration and training on meshes of eight devices, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "mesh_cases_training.py"


def run(*arguments: str) -> list[str]:
    """What the script prints, line by line; its status says no more."""
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert found.stdout, found.stderr
    return found.stdout.splitlines()


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str]:
    """The line of each case, by its name."""
    return {line.split()[1]: line for line in run()}


@pytest.mark.parametrize("name", run("--list"))
def test_case(name: str, verdicts: dict[str, str]) -> None:
    """On a mesh, and inside shard_map, the answers are those of one device."""
    assert verdicts.get(name, "no answer") == f"PASS {name}"
