"""The memory of the fused loss on accelerators that are absent: compiled for them, not run.

Command: `python experiments/compile_targets.py`, about ten minutes, for TPU v4, v5e, v5p, v6e and
7x; it needs `libtpu`, in the environment or in a folder that JAXSOFTMAX_LIBTPU names
(`pip install --target FOLDER libtpu`). For an H200 and a B200, in a separate environment, whose
CUDA wheels are large: `pip install "jax[cuda13]"`, then
`python experiments/compile_targets.py h200 b200`. `--smoke` compiles tiny shapes, for v5e unless
targets are named, and writes no record. The record is results/compile_tpu.json or
results/compile_gpu.json.

Question. XLA compiles a whole program for a device from its description alone, and reports the
bytes that the program needs besides arguments and results. How many do value and gradient of
`linear_cross_entropy` (both outputs with random cotangents) and of `linear_cross_entropy_sum` need
at N = 8192, D = 2304 and K = 256000, and at 256001, which no block size divides, in bfloat16? And
which dtype do the matrix products of the compiled program have? The same is measured for the two
losses of the sigmoid, with 16,384 labels whose targets are float32 and with 16,385 whose targets
are bools.

Findings. No product has a float32 operand. Per example, where the logits alone would take 8,389 MB
in float32: 76 MB on v5e, 110 to 119 on v4 and v5p, 76 and 143 on v6e, 143 on an H200 and a B200,
the same for both numbers of classes up to a few MB. On 7x it is 219 MB at 256001 and, at the lowest
level of optimization and not in the record, 138 at 256000, where it was 2,578 while loops copied w
in other tiles (`kernels/loop_operands`). The sum's
chunks would have 104 rows, each of which reads and writes a float32 sum of 2,359 MB. So it computes
the logits twice, with four products, in blocks of classes within its budget of 512 MiB: 482 MB on
an H200 and a B200, 269 to 286 on v4, v5e, v5p and v6e, 383 on 7x, 324 there at 256000.

The kernels of `mosaic_tpu` need no logits in memory. Per example they take x's gradient in float32
and a block of the logits' gradient in bfloat16, 219 MB on v4, v5e and v6e, 277 on v5p and 342 on
7x; the sum takes w's gradient in float32 and the exponentials of 1,024 rows, 2,889 to 2,906 (7x:
3,423). On 7x at 256000 it is 248 and 2,909, and was 2,700 and 5,258, as above. The VMEM
of each kernel is at most 11.2 MiB of v4's 16, and 37 of the 64 or more of the later ones. This
required the following:
- w is taken transposed where a TPU stores it class-major; otherwise each call of a kernel copies
  it, 1,180 MB;
- w's gradient is stored in the order of w; otherwise XLA takes the other order for the loop and
  copies it;
- a kernel applies the factors that turn exponentials into gradients; otherwise XLA broadcasts them
  to float32 as large as the chunk's logits, twice.

The sum of a function of a row's statistics, such as label smoothing with a z-loss, takes as many
products and up to 2 MB more, in the kernels of `mosaic_tpu` and in XLA's operations (v4, v5e, v5p
and v6e at 256000, at the lowest level of optimization; not in the record).

The sigmoid's logits would take 537 MB in float32. Its kernels take x's gradient in float32 and a
block of the logits' gradient and of copied targets: 160 to 256 MB, and on 7x 347 to 445; of VMEM at
most 12.7 MiB on v4 and 48.9 on the others. XLA's operations take 67 to 210 MB on v4, v5e and v5p,
76 and 143 on v6e, but 613 per example with float32 targets, and on 7x 157 to 333, and 883. This
required the following:
- bools, and targets that are stored label-major, are copied in the loop, a block at a time. XLA
  would copy all of them before it: 620 MB on v5e with 16,385 bools, 751 with as many floats;
- float32 targets have 56 MiB of VMEM to fit into; as a limit for all kernels, that left XLA less
  for its own arrays and cost 38 MB on v6e.

The kernels of `mosaic_gpu` need no logits in memory either. At 256000 they take 193 MB per example
on an H200 and 177 on a B200, and 545 and 552 for the sum; at 256001, where w is copied to whole
tiles of classes and its gradient back, 2,436 and 2,461, and 2,436 and 2,610. The sigmoid's take 201
and 143 MB at 16,384, and 416 and 379 to 413 at 16,385. XLA's operations take 143 per example and
for the sigmoid (157 for its sum with bools on a B200), and 482 for the sum, at both.
Each kernel has 168 registers a thread at entry at most, and 225 and 224 KiB of shared memory a
block, of the 227 available. In bytes spilled a thread, on an H200 and a B200: none in the products
of blocks, at most 4 in the forward kernel, 192 and 84 in the gradient's, 16 and 0 in the sigmoid's
losses, 0 and 28 in its gradients, and 308 and 40 in the one that computes both (jax 0.12.0.1).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# libtpu asks a cloud's metadata server about its machine, and allows one process at a time; neither
# matters where nothing runs.
os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    JAX_PLATFORMS="cpu",
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
)
# In a separate folder, so that other starts of JAX do not look for a TPU.
sys.path += filter(None, [os.environ.get("JAXSOFTMAX_LIBTPU")])

import jax
import measure
from jax.experimental import topologies

from jaxsoftmax.kernels import (
    linear_binary_cross_entropy,
    linear_binary_cross_entropy_sum,
    linear_cross_entropy,
    linear_cross_entropy_sum,
    target,
)

TPUS = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "7x": "tpu7x:2x2x1",
}
# XLA's description of a GPU (GpuTargetConfigProto), from NVIDIA's data sheets and device queries.
ANY_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49_152,
    "shared_memory_per_block_optin": 232_448,
    "shared_memory_per_core": 233_472,
    "threads_per_core_limit": 2048,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2_147_483_647,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "device_address_bits": 64,
    "runtime_version": "13.0.0",
    "driver_version": "13.0.0",
    "compile_time_toolkit_version": "13.0.0",
}
GPUS = {
    "h200": {
        "name": "NVIDIA H200",
        "core_count": 132,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": 4_800_000_000_000,
        "l2_cache_size": 52_428_800,
        "device_memory_size": 151_397_597_184,
        "cuda_compute_capability": {"major": 9, "feature_extension": "ACCELERATED_FEATURES"},
    },
    "b200": {
        "name": "NVIDIA B200",
        "core_count": 148,
        "clock_rate_ghz": 1.965,
        "memory_bandwidth": 7_672_320_000_000,
        "l2_cache_size": 132_644_864,
        "device_memory_size": 191_514_411_008,
        "cuda_compute_capability": {"major": 10, "feature_extension": "ACCELERATED_FEATURES"},
    },
}
# Without an autotuner XLA keeps fusions of a product and a cast in Triton, which a real device
# splits: memory would look smaller than it is.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
N, D, CLASSES = 8192, 2304, (256_000, 256_001)
SMOKE = (256, 128, (1000, 1001))
# The sigmoid's numbers of labels, and the dtypes of their targets. A TPU's kernel reads the first
# in place; the others are label-major in its memory, and not bytes.
LABELS = ((16_384, "float32"), (16_385, "bool"))
SMOKE_LABELS = ((1024, "float32"), (1025, "bool"))


def main() -> None:
    """Compile for every target, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join((*TPUS, *GPUS))}")
    parser.add_argument(
        "--classes", type=int, nargs="*", help="in place of both numbers of classes"
    )
    parser.add_argument("--programs", nargs="*", help="titles, in place of all programs")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no record")
    parser.add_argument("--json", action="store_true", help="print the record and write none")
    arguments = parser.parse_args()
    n, d, classes = SMOKE if arguments.smoke else (N, D, CLASSES)
    targets = arguments.targets or (["v5e"] if arguments.smoke else [*TPUS])
    classes = arguments.classes or classes
    labels = SMOKE_LABELS if arguments.smoke else LABELS
    found: dict[str, Any] = {}
    for name in targets:
        if name in GPUS and len(targets) > 1:
            found[name] = in_a_process(name, classes, smoke=arguments.smoke)
        else:
            found[name] = all_of(name, n, d, classes, labels, arguments.programs)
        if not arguments.json:
            show(name, found[name])
    if arguments.json:
        print(json.dumps(found))
    elif not arguments.smoke:
        name = "compile_gpu" if set(targets) & set(GPUS) else "compile_tpu"
        shape = {"N": n, "D": d, "dtype": "bfloat16"}
        print("written:", measure.write_record(name, {"shape": shape, "targets": found}).name)


def in_a_process(name: str, classes: tuple[int, ...], *, smoke: bool) -> dict[str, Any]:
    """Run `all_of` in a separate process: the compiler of GPU kernels keeps its first target."""
    command = [sys.executable, __file__, name, "--json", "--classes", *map(str, classes)]
    command += ["--smoke"] * smoke
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])[name]


def all_of(
    name: str,
    n: int,
    d: int,
    classes: tuple[int, ...],
    labels: tuple[tuple[int, str], ...],
    titles: list[str] | None = None,
) -> dict[str, Any]:
    """Compile every program, or those of these titles, at every number of classes."""
    device, kernel = device_of(name), "mosaic_tpu" if name in TPUS else "mosaic_gpu"
    row, found = ((n,), "float32"), {}

    def run(program: Any, k: int, *data: tuple[tuple[int, ...], str]) -> dict[str, Any]:
        return compiled(program, name, device, ((n, d), "bfloat16"), ((d, k), "bfloat16"), *data)

    def requested(programs: dict[str, Any]) -> dict[str, Any]:
        every = with_kernel(programs, kernel)
        return {t: every[t] for t in every if titles is None or t in titles}

    for title, program in requested(PROGRAMS).items():
        found[title] = {str(k): run(program, k, ((n,), "int32"), row, row) for k in classes}
    for title, program in requested(SIGMOID).items():
        found[title] = {f"{k} {kind}": run(program, k, ((n, k), kind), row) for k, kind in labels}
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Print one line per program."""
    for title, entries in found.items():
        for k, entry in entries.items():
            megabytes = entry["temporary_bytes"] / 1e6
            more = [entry["products"], entry.get("vmem_bytes", entry.get("kernels", ""))]
            print(f"{name:5} {title:33}{k:>14}{megabytes:10.1f} MB ", *more)


def device_of(target: str) -> Any:
    """Return a device to compile for, from its description alone."""
    if target in TPUS:
        return topologies.get_topology_desc(TPUS[target], "tpu").devices[0]
    device = ANY_GPU | GPUS[target]
    version = {"major": 9, "minor": 10}
    config = {"gpu_device_info": device, "platform_name": "CUDA", "dnn_version_info": version}
    topology = topologies.get_topology_desc(
        device["name"], "cuda", topology="1x1x1", target_config=prototext(config)
    )
    return topology.devices[0]


def prototext(fields: dict[str, Any]) -> str:
    """Format nested fields as a text proto; words in capitals are names of an enumeration."""

    def one(name: str, value: Any) -> str:
        if isinstance(value, dict):
            return f"{name} {{ {prototext(value)} }}"
        is_text = isinstance(value, str) and name != "feature_extension"
        return f"{name}: {json.dumps(value) if is_text else value}"

    return " ".join(one(*field) for field in fields.items())


def per_example(x: Any, w: Any, labels: Any, nll: Any, lse: Any, **options: Any) -> Any:
    """Return both outputs, and gradients of x and w with a cotangent for each."""
    values, back = jax.vjp(lambda x, w: linear_cross_entropy(x, w, labels, **options), x, w)
    return values, back(type(values)(nll, lse))


def scalar(x: Any, w: Any, labels: Any, weights: Any, unused: Any, **options: Any) -> Any:
    """Return the weighted sum, and its gradients in x and w."""
    del unused

    def value(x: Any, w: Any) -> Any:
        # The budget is given, because the default is that of the machine that compiles.
        return linear_cross_entropy_sum(x, w, labels, weights=weights, memory=2**29, **options)

    return jax.value_and_grad(value, (0, 1))(x, w)


def smoothed(nll: Any, lse: Any, mean: Any) -> Any:
    """Return a loss of a row's statistics: label smoothing and a z-loss."""
    return 0.9 * nll + 0.1 * (lse - mean) + 1e-4 * lse**2


def labels_per_example(x: Any, w: Any, targets: Any, cotangents: Any, **options: Any) -> Any:
    """Return losses summed over the labels, and gradients of x and w with a cotangent for each."""

    def values(x: Any, w: Any) -> Any:
        return linear_binary_cross_entropy(x, w, targets, **options)

    found, back = jax.vjp(values, x, w)
    return found, back(cotangents)


def sum_of_labels(x: Any, w: Any, targets: Any, weights: Any, **options: Any) -> Any:
    """Return the weighted sum of these losses, and its gradients in x and w."""

    def value(x: Any, w: Any) -> Any:
        return linear_binary_cross_entropy_sum(x, w, targets, weights=weights, **options)

    return jax.value_and_grad(value, (0, 1))(x, w)


PROGRAMS = {
    "per example": per_example,
    "sum": scalar,
    "smoothed sum": partial(scalar, row_loss=smoothed),
}
SIGMOID = {"sigmoid, per example": labels_per_example, "sigmoid, sum": sum_of_labels}


def with_kernel(programs: dict[str, Any], kernel: str) -> dict[str, Any]:
    """Return the programs to compile, in XLA's operations and with the kernel for a target."""
    plain = {n: partial(program, implementation="xla_chunked") for n, program in programs.items()}
    return plain | {
        f"{name}, {kernel}": partial(program, implementation=kernel)
        for name, program in programs.items()
    }


def compiled(
    program: Any, name: str, device: Any, *arguments: tuple[tuple[int, ...], str]
) -> dict[str, Any]:
    """Return temporary bytes, counts of products by operand dtypes, and the kernels' resources."""
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(size, kind, sharding=place) for size, kind in arguments]
    with dumped() as folder:
        with traced_for(name, device):
            lowered = jax.jit(program).lower(*shapes)
        built = lowered.compile(compiler_options=GPU_OPTIONS if name in GPUS else None)
        of_gpu = kernels(folder)
    text = built.as_text()
    found = {
        "temporary_bytes": measure.temporary_bytes(built),
        "products": dict(products(text)),
    }
    of_tpu = vmem_bytes(text)
    found |= {"vmem_bytes": of_tpu} if of_tpu else {}
    return found | {"kernels": of_gpu} if of_gpu else found


def traced_for(name: str, device: Any) -> AbstractContextManager:
    """Return the scope in which kernels know their target, its cores, and the size of its VMEM."""
    if name in TPUS:
        platform, kind, cores = "tpu", device.device_kind, device.num_cores
    else:
        platform, kind, cores = "cuda", GPUS[name]["name"], GPUS[name]["core_count"]
    known = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform=platform)
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("one",), kinds, abstract_device=known)
    scope = ExitStack()
    scope.enter_context(target.assumed("tpu" if name in TPUS else "gpu"))
    scope.enter_context(jax.sharding.use_abstract_mesh(mesh))
    return scope


@contextmanager
def dumped() -> Iterator[Path]:
    """Return a folder into which the compiler of GPU kernels writes the assembler's reports."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["MOSAIC_GPU_DUMP_TO"]


def kernels(folder: Path) -> dict[str, dict[str, int]]:
    """Return the resources of each GPU kernel, from the files that the compiler wrote.

    There is no report of the assembler for a kernel that this process has compiled before.
    """

    def named(ending: str) -> dict[str, str]:
        # Two parts of the compiler number the files, not always in the same way.
        paths = sorted(folder.glob(f"*{ending}"))
        return {re.sub(r"_\d+$", "", p.name.removesuffix(ending)): p.read_text() for p in paths}

    requested = named(".resources.txt")
    return {name: used(text, requested[name]) for name, text in named(".ptxas").items()}


def used(assembler: str, requested: str) -> dict[str, int]:
    """Return registers a thread, bytes of shared memory a block, and bytes spilled a thread."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", assembler)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", assembler)]
    static = [int(n) for n in re.findall(r"used \d+ registers.*?(\d+) bytes smem", assembler)]
    scratch = [int(n) for n in re.findall(r"smem_scratch_bytes=(\d+)", requested)]
    return {
        "registers": max(registers),
        "shared_bytes": max(scratch) + max(static, default=0),
        "spilled_bytes": max(spilled, default=0),
    }


def vmem_bytes(text: str) -> list[int]:
    """Return the VMEM of each Pallas kernel of a compiled program for a TPU, with its pipeline."""
    kernels = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    used = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
    return [int(size) for line in kernels for size in re.findall(used, line)]


def products(text: str) -> Counter[str]:
    """Count the matrix products in a compiled program's text by their operand dtypes.

    A product is a dot or, on a TPU, a convolution, or on a GPU a call of its matrix library.
    """
    types = dict(re.findall(r"%?([\w.-]+) = \(?(\w+)\[", text))
    called = re.findall(
        r" (?:dot|convolution)\(([^)]*)\)"
        r'|custom-call\(([^)]*)\), custom_call_target="__cublas[^"]*"',
        text,
    )
    pairs = []
    for a, b in called:
        operands = re.findall(r"(?:(\w+)\[[^%]*)?%?([\w.-]+)", a or b)[:2]
        pairs.append(" x ".join(given or types.get(name, "?") for given, name in operands))
    return Counter(pairs)


if __name__ == "__main__":
    main()
