"""Every public function in every placement of its arrays, and the programs of real sizes.

`mesh_matrix.py` needs eight devices, and a process of pytest has two: each group of functions has a
process of its own.
"""

import os
import subprocess
import sys

import mesh_matrix
import pytest

# Placement is decided before machine code is made, and nearly all of the time is making it.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
NAMES = (mesh_matrix.REAL, *mesh_matrix.cases())
GROUPS = 4  # few starts of JAX, and more groups than workers


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_is_the_same_in_every_placement(group: int) -> None:
    names = NAMES[group::GROUPS]
    command = [sys.executable, mesh_matrix.__file__, *names]
    environment = os.environ | ENVIRONMENT
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, "\n".join([*lines, run.stderr])
    # Neither the script nor a way that it leaves out is silent.
    assert all(line.startswith("PASS ") for line in lines)
    for name in names:
        ways = [line for line in lines if line.startswith(f"PASS {name} | ")]
        # A mean is one number: devices that work each on its own have no common one.
        assert len(ways) >= (2 if name in mesh_matrix.MEANS else 4), name
