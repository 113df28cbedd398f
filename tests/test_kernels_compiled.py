"""The fused loss compiled for TPUs that are not here: memory, and products in half precision.

Each case is compiled in a process of its own making, whose environment libtpu needs;
experiments/compile_targets.py has the programs, and does the same for GPUs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "experiments" / "compile_targets.py"
MEGABYTE = 10**6
SOFTMAX = ("per example", "sum", "per example, mosaic_tpu", "sum, mosaic_tpu")
SMOOTHED = ("smoothed sum, mosaic_tpu",)  # a function of a row's statistics
SIGMOID = ("sigmoid, per example, mosaic_tpu", "sigmoid, sum, mosaic_tpu")
# N = 8192, D = 2304, bfloat16, and a number of classes: the awkward one for all targets. One case
# is compiled as a user compiles it, which takes up to seven times as long. At the lowest level of
# optimization a program needs up to 70 MB more, and it copies what it copies at the default.
DEFAULT, QUICK = "UNKNOWN", "O0"
CASES = [
    ("v5e", 256_001, DEFAULT, SOFTMAX),
    ("v5e", 256_000, QUICK, SOFTMAX + SMOOTHED + SIGMOID),
    ("v4", 256_001, QUICK, SOFTMAX + SIGMOID),
    ("v5p", 256_001, QUICK, SOFTMAX),
    ("v6e", 256_001, QUICK, SOFTMAX),
    ("7x", 256_000, QUICK, SOFTMAX),  # where a loop would copy w in other tiles
    # In whole tiles: a loop that carried w as a matrix would take a copy of 1,180 MB.
    ("7x", 256_000, QUICK, SOFTMAX[:2]),
]
# The sigmoid with 16,384 labels, whose targets are read where they are, and with 16,385 bools, of
# which blocks are copied: bytes of a target, and whether a block has a copy.
LABELS = ("16384 float32", "16385 bool")

# What a kernel may take of VMEM, in MiB: all that v4 has, and most of what the later ones have. The
# sigmoid's may take more of it, for targets in float32.
VMEM = {"v4": 16, "v5e": 48, "v5p": 48, "v6e": 48, "7x": 48}
SIGMOID_VMEM = {"v4": 16, "v5e": 56}


@pytest.mark.slow
@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("target", "k", "level", "programs"), CASES, ids=[f"{t}-{k}" for t, k, *_ in CASES]
)
def test_memory_and_products(target: str, k: int, level: str, programs: tuple[str, ...]) -> None:
    command = [sys.executable, str(SCRIPT), target, "--json", "--programs", *programs]
    done = subprocess.run(
        [*command, "--classes", str(k)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"JAX_OPTIMIZATION_LEVEL": level},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[target]
    check_xla(128 if level == DEFAULT else 256, *(found[title][str(k)] for title in SOFTMAX[:2]))
    if SOFTMAX[3] in programs:
        check_kernels(target, k, *(found[title][str(k)] for title in SOFTMAX[2:]))
    if SMOOTHED[0] in programs:
        total, smoothed = (found[title][str(k)] for title in (SOFTMAX[3], *SMOOTHED))
        # A few numbers more for each row, and no product.
        assert smoothed["temporary_bytes"] <= total["temporary_bytes"] + 4 * MEGABYTE
        assert smoothed["products"] == total["products"]
        assert len(smoothed["vmem_bytes"]) == 2
        assert max(smoothed["vmem_bytes"]) <= VMEM[target] * 2**20
    if SIGMOID[0] in programs:
        check_sigmoid(target, *(found[title] for title in SIGMOID))


def check_xla(megabytes: int, per_example: dict[str, Any], total: dict[str, Any]) -> None:
    assert per_example["temporary_bytes"] <= megabytes * MEGABYTE
    # Chunks of 104 rows would each read and write the sum of w's gradient, so logits come twice.
    assert total["temporary_bytes"] <= 640 * MEGABYTE
    # Four products, and not one of them in float32.
    assert per_example["products"] == total["products"] == {"bf16 x bf16": 4}


def check_kernels(target: str, k: int, per_example: dict[str, Any], total: dict[str, Any]) -> None:
    # A block of gradients and x's sum; a chunk's exponentials and w's sum; w is not copied.
    assert per_example["temporary_bytes"] <= 384 * MEGABYTE
    assert total["temporary_bytes"] <= 4 * 2304 * k + 1100 * MEGABYTE
    # XLA's products: two in the loop and two after it, and two; the rest are the kernels'.
    assert per_example["products"] == {"bf16 x bf16": 4}
    assert total["products"] == {"bf16 x bf16": 2}
    for program, kernels in ((per_example, 3), (total, 2)):
        assert len(program["vmem_bytes"]) == kernels
        assert max(program["vmem_bytes"]) <= VMEM[target] * 2**20


def check_sigmoid(target: str, per_example: dict[str, Any], total: dict[str, Any]) -> None:
    for record, kernels in ((per_example, 2), (total, 1)):
        for labels in LABELS:
            program = record[labels]
            # A block of gradients, and of copied targets, and x's sum: the logits would take 537.
            assert program["temporary_bytes"] <= 270 * MEGABYTE
            # Two products that are XLA's, in the loop and once more where a block is left.
            assert set(program["products"]) == {"bf16 x bf16"}
            assert program["products"]["bf16 x bf16"] in (2, 4)
            # A kernel for the values of a pass, one for the gradient, or one for both.
            assert len(program["vmem_bytes"]) in (kernels, 2 * kernels)
            assert max(program["vmem_bytes"]) <= SIGMOID_VMEM[target] * 2**20
