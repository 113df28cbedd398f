"""Metrics, calibration and training on meshes of eight devices, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "mesh_cases_training.py"


@pytest.mark.slow
def test_every_case() -> None:
    """On a mesh, and inside shard_map, the answers are those of one device.

    One test, so that one of several workers runs the script, once.
    """
    found = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    lines = found.stdout.splitlines()
    failed = [line for line in lines if not line.startswith("PASS ")]
    assert lines, found.stderr
    assert (failed, found.returncode) == ([], 0), found.stderr
