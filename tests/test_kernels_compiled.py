"""The fused loss compiled for TPUs that are not here: memory, and products in half precision.

Each target is compiled in a process of its own making, whose environment libtpu needs;
experiments/compile_targets.py has the programs, and does the same for GPUs.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "experiments" / "compile_targets.py"
MEGABYTE = 10**6
# N = 8192, D = 2304, bfloat16. Both numbers of classes for one target, the awkward one for all.
CASES = {"v4": (256_001,), "v5e": (256_000, 256_001), "v5p": (256_001,), "v6e": (256_001,)}
CASES |= {"7x": (256_001,)}


# The sigmoid with 16,384 labels, whose targets are read where they are, and with 16,385 bools, of
# which blocks are copied: bytes of a target, and whether a block has a copy.
SIGMOID = ("v4", "v5e")
LABELS = ("16384 float32", "16385 bool")

# What a kernel may take of VMEM, in MiB: all that v4 has, and most of what the later ones have.
VMEM = {"v4": 16, "v5e": 48, "v5p": 48, "v6e": 48, "7x": 48}


def compiled(target: str, *programs: str) -> list[dict[str, Any]]:
    """Return the record of each program, compiled for a target at its numbers of classes."""
    command = [sys.executable, str(SCRIPT), target, "--json", "--programs", *programs]
    command += ["--classes", *map(str, CASES[target])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[target]
    return [found[title] for title in programs]


@pytest.mark.slow
@pytest.mark.libtpu
@pytest.mark.parametrize("target", CASES)
def test_memory_and_products(target: str) -> None:
    records = compiled(target, "per example", "sum")
    for k in CASES[target]:
        per_example, total = (record[str(k)] for record in records)
        assert per_example["temporary_bytes"] <= (128 if target == "v5e" else 256) * MEGABYTE
        assert total["temporary_bytes"] <= 4 * 2304 * k + 512 * MEGABYTE
        # Four products and three, and not one of them in float32.
        assert per_example["products"] == {"bf16 x bf16": 4}
        assert total["products"] == {"bf16 x bf16": 3}


@pytest.mark.libtpu
@pytest.mark.parametrize("target", CASES)
def test_kernels(target: str) -> None:
    records = compiled(target, "per example, mosaic_tpu", "sum, mosaic_tpu")
    for k in CASES[target]:
        per_example, total = (record[str(k)] for record in records)
        # A block of gradients and x's sum; a chunk's exponentials and w's sum; w is not copied.
        assert per_example["temporary_bytes"] <= 384 * MEGABYTE
        assert total["temporary_bytes"] <= 4 * 2304 * k + 1100 * MEGABYTE
        # XLA's products: two in the loop and two after it, and two; the rest are the kernels'.
        assert per_example["products"] == {"bf16 x bf16": 4}
        assert total["products"] == {"bf16 x bf16": 2}
        for program, kernels in ((per_example, 3), (total, 2)):
            assert len(program["vmem_bytes"]) == kernels
            assert max(program["vmem_bytes"]) <= VMEM[target] * 2**20


@pytest.mark.libtpu
@pytest.mark.parametrize("target", SIGMOID)
def test_kernels_of_the_sigmoid(target: str) -> None:
    records = compiled(target, "sigmoid, per example, mosaic_tpu", "sigmoid, sum, mosaic_tpu")
    for record, kernels in zip(records, (2, 1), strict=True):
        for labels in LABELS:
            program = record[labels]
            # A block of gradients, and of copied targets, and x's sum: the logits would take 537.
            assert program["temporary_bytes"] <= 256 * MEGABYTE
            # Two products that are XLA's, in the loop and once more where a block is left.
            assert set(program["products"]) == {"bf16 x bf16"}
            assert program["products"]["bf16 x bf16"] in (2, 4)
            # A kernel for the values of a pass, one for the gradient, or one for both.
            assert len(program["vmem_bytes"]) in (kernels, 2 * kernels)
            assert max(program["vmem_bytes"]) <= VMEM[target] * 2**20
