"""The solvers' programs compile for devices that are not there: a GPU, and TPUs that share them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cuda_python
import pytest
from described_solver import SHAPE

SCRIPT = Path(__file__).parent / "solver_programs.py"
SHARED = Path(__file__).parent / "described_solver.py"


@pytest.mark.slow
def test_all_programs_compile_for_a_gpu() -> None:
    done = subprocess.run([cuda_python.find(), str(SCRIPT), "h200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert not [line for line in lines if line.startswith("FAIL")]
    # One lane, and several.
    assert {line.split()[3] for line in lines if "newton_cg" in line} >= {"256,", "3,"}


@pytest.mark.slow
@pytest.mark.libtpu
def test_programs_of_tpus_that_share_classes() -> None:
    """Two shards of the rows and two of the classes: no device has all scores or parameters.

    XLA for TPUs sums float64 over devices by a gather: a number for each class, and no more.
    """
    done = subprocess.run(
        [sys.executable, str(SHARED)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_OPTIMIZATION_LEVEL": "O0"},
    )
    assert done.returncode == 0, done.stderr
    programs = json.loads(done.stdout.splitlines()[-1])
    n, d, k = SHAPE
    rows, parameters = n // 2, k // 2 * (d + 1)
    for name, (reduced, gathered) in {
        "step": (max(rows, parameters), 0),
        "evaluation": (max(rows, parameters), k),
        "inverses": (0, 0),
    }.items():
        assert not [c for c in programs[name]["constants"] if float(c)], name
        most = {"all-reduce": reduced, "all-gather": gathered}
        for kind, size in programs[name]["crossing"]:
            assert size <= most.get(kind, 0), (name, kind, size)
