"""The solvers' programs compile for a GPU that is not there: the lines of `solver_programs.py`."""

import subprocess
from pathlib import Path

import cuda_python
import pytest

SCRIPT = Path(__file__).parent / "solver_programs.py"


@pytest.mark.slow
def test_all_programs_compile_for_a_gpu() -> None:
    done = subprocess.run([cuda_python.find(), str(SCRIPT), "h200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert not [line for line in lines if line.startswith("FAIL")]
    # One lane, and several.
    assert {line.split()[3] for line in lines if "newton_cg" in line} >= {"256,", "3,"}
