"""The fused loss compiled for TPUs that are not here: memory, and products in half precision.

Each target is compiled in a process of its own making, whose environment libtpu needs;
experiments/compile_targets.py has the programs, and does the same for GPUs.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "experiments" / "compile_targets.py"
MEGABYTE = 10**6
# N = 8192, D = 2304, bfloat16. Both numbers of classes for one target, the awkward one for all.
CASES = {"v4": (256_001,), "v5e": (256_000, 256_001), "v5p": (256_001,), "v6e": (256_001,)}
CASES |= {"7x": (256_001,)}


@pytest.mark.libtpu
@pytest.mark.parametrize("target", CASES)
def test_memory_and_products(target: str) -> None:
    classes = CASES[target]
    command = [sys.executable, str(SCRIPT), target, "--json", "--classes", *map(str, classes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[target]
    for k in classes:
        per_example, total = found["per example"][str(k)], found["sum"][str(k)]
        assert per_example["temporary_bytes"] <= (128 if target == "v5e" else 256) * MEGABYTE
        assert total["temporary_bytes"] <= 4 * 2304 * k + 512 * MEGABYTE
        # Four products and three, and not one of them in float32.
        assert per_example["products"] == {"bf16 x bf16": 4}
        assert total["products"] == {"bf16 x bf16": 3}
