"""A linear head over 16 or 8 accelerators that are absent: compiled for them, not run.

Command: `python experiments/compile_meshes.py v5e v5p 7x`, about ten minutes on an idle machine,
for 16 devices each; it needs `libtpu`, in the environment or in a folder that JAXSOFTMAX_LIBTPU
names. `python experiments/compile_meshes.py h200` is for 8 H200, in an environment with
`jax[cuda13]`. `--smoke` compiles tiny shapes and writes no record. The record is
results/compile_meshes.json, and for GPUs results/compile_meshes_gpu.json.

Question. Features x of 8192 x 4096 and weights w of 4096 x 1,048,576, in bfloat16: the logits alone
would take 32 GiB in float32, and w takes 8 GiB. With the classes over 16 chips, how many bytes does
each chip need besides arguments and results for the value of `linear_cross_entropy`, for value and
gradients per example, and for those of `linear_cross_entropy_sum`? What crosses between the chips?

Findings. On v5e 0.0, 129 and 192 MiB, and no array of the size of w or of the logits crosses: the
sum of x's gradient over the classes does, 64 MiB in bfloat16, and a few numbers a row. Of these
bytes, 128 MiB are x's gradient in float32. The sum computes the logits twice: chunks of rows would
need w's gradient in float32, 1,024 MiB. The kernels of `mosaic_tpu` need 320 MiB per example, 224
on v5p and 321 on 7x, and less than 1 for the value: numbers of rows cross in lanes
(`kernels/tpu/calls`), and as columns of 128 lanes they took 16 on v5p and 12 on 7x.
- v5e keeps a block of the logits, half of the budget of 128 MiB, in its VMEM of 128 MiB. v5p, whose
  two cores share no VMEM, keeps it in HBM, and its budget here is 64 MiB: 0.2, 161 and 225 MiB. The
  values have no block in memory (`kernels/fused_sums`); with one they took 32.
- On 7x (a chip is two devices) they take 0.5, 209 and 273 MiB. There XLA stores what a loop carries
  in tiles of 16 x 128, and w comes in tiles of 8 x 128: the copy took 865, and 1,421 in
  `mosaic_tpu`, whose kernels want the first tiles. In loops w is therefore a view in which only
  those fit (`kernels/loop_operands`). The compiler's flag
  `xla_tpu_impure_enable_large_2nd_minor_layout=false` does the same for a whole process; barriers,
  layout constraints and slices of integers do not, and libtpu refuses a constraint on a tiling.
- A smoothed loss with a z-loss (`row_loss`) takes the bytes of the sum, and two numbers a row more
  cross, the sum and the number of the logits.
- 8 H200, each with twice the classes: 74, 174 and 226 MiB. x's gradient crosses in float32.
- With the rows over 4 and the classes over 4 of v5e, each chip has a quarter of w, whose gradient
  is summed over the rows: 2,081 MiB per example and 2,097 for the sum, most of it for that sum.

x's gradient is a float32 sum before it is rounded for the caller; the compiler for TPUs rounds
first and sums in bfloat16, which halves what crosses, and loses up to half an ulp of bfloat16 a
chip. A barrier between the sum and the rounding does not change the program. Features in float32
have their gradient summed in float32.
"""

import argparse
import re
from functools import partial
from typing import Any

import compile_targets  # first: it sets libtpu's environment
import jax
import jax.numpy as jnp
import measure
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsoftmax import Shards
from jaxsoftmax.kernels import linear_cross_entropy, linear_cross_entropy_sum, target

SLICES = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "7x": "tpu7x:2x2x2"}  # a chip of 7x is two devices
SHAPE, SMOKE = (8192, 4096, 2**20), (256, 128, 2**13)
CLASSES = {"classes over 16": ((1, 16), Shards(classes="model"))}
BOTH = {"rows over 4, classes over 4": ((4, 4), Shards(rows="data", classes="model"))}
EIGHT = {"classes over 8": ((1, 8), Shards(classes="model"))}
MESHES = {"v5e": CLASSES | BOTH, "v5p": CLASSES, "7x": CLASSES, "h200": EIGHT}
# The budget of each chip, for both routes. v5e keeps a block of logits of half of it in VMEM.
MEMORY = {"v5e": 128 * 2**20, "v5p": 64 * 2**20, "7x": 128 * 2**20, "h200": 128 * 2**20}
LEFT_OUT = {"h200": ("value, mosaic_tpu", "per example, mosaic_tpu")}  # kernels of TPUs
COLLECTIVE = r" = (.*?) ((?:all|collective)-[\w-]+?|reduce-scatter|ragged-\S+?)(?:-start)?\("


def main() -> None:
    """Compile every program for every slice, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slices", nargs="*", help=f"of {', '.join(MESHES)}")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no record")
    arguments = parser.parse_args()
    shape = SMOKE if arguments.smoke else SHAPE
    found: dict[str, Any] = {}
    for name in arguments.slices or ["v5e"]:
        meshes = BOTH if arguments.smoke else MESHES[name]
        for layout, (sizes, shards) in meshes.items():
            entries = all_of(name, sizes, shards, shape)
            found.setdefault(name, {})[layout] = entries
            for title, entry in entries.items():
                show(name, layout, title, entry)
    if not arguments.smoke:
        record = {"shape": dict(zip("NDK", shape, strict=True)), "slices": found}
        title = "compile_meshes_gpu" if "h200" in found else "compile_meshes"
        print("written:", measure.write_record(title, record).name)


def show(name: str, layout: str, title: str, entry: dict[str, Any]) -> None:
    """Print one line."""
    mebibytes = entry["temporary_bytes"] / 2**20
    print(
        f"{name:4} {layout:28} {title:24} {mebibytes:9.1f} MiB  {entry['collectives']}", flush=True
    )


def value(x: Any, w: Any, labels: Any, **options: Any) -> Any:
    """Return one value per example."""
    return linear_cross_entropy(x, w, labels, **options).nll


def per_example(x: Any, w: Any, labels: Any, **options: Any) -> Any:
    """Return the mean of one value per example, and its gradients in x and w."""

    def mean(x: Any, w: Any) -> Any:
        return jnp.mean(linear_cross_entropy(x, w, labels, **options).nll)

    return jax.value_and_grad(mean, (0, 1))(x, w)


def scalar(x: Any, w: Any, labels: Any, **options: Any) -> Any:
    """Return the weighted sum, and its gradients in x and w."""
    weights = jnp.full(labels.shape, 1 / labels.size)

    def mean(x: Any, w: Any) -> Any:
        return linear_cross_entropy_sum(x, w, labels, weights=weights, **options)

    return jax.value_and_grad(mean, (0, 1))(x, w)


PROGRAMS = {
    "value": (value, "xla_chunked"),
    "per example": (per_example, "xla_chunked"),
    "sum": (scalar, "xla_chunked"),
    "sum, smoothed": (partial(scalar, row_loss=compile_targets.smoothed), "xla_chunked"),
    "value, mosaic_tpu": (value, "mosaic_tpu"),
    "per example, mosaic_tpu": (per_example, "mosaic_tpu"),
}


def all_of(
    name: str, sizes: tuple[int, int], shards: Shards, shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Compile every program for one mesh of one slice."""
    devices = devices_of(name)
    mesh = Mesh(devices.reshape(sizes), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows = "data" if shards.rows else None
    n, d, k = shape

    def argument(size: tuple[int, ...], dtype: Any, *places: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, P(*places)))

    x, w = argument((n, d), jnp.bfloat16, rows, None), argument((d, k), jnp.bfloat16, None, "model")
    labels = argument((n,), jnp.int32, rows)
    options: dict[str, Any] = {"shards": shards, "memory": MEMORY[name]}
    return {
        title: compiled(name, partial(program, implementation=kernel, **options), x, w, labels)
        for title, (program, kernel) in PROGRAMS.items()
        if title not in LEFT_OUT.get(name, ())
    }


def devices_of(name: str) -> np.ndarray:
    """Return the devices of a slice, or of a host with eight GPUs."""
    if name in SLICES:
        return np.array(topologies.get_topology_desc(SLICES[name], "tpu").devices)
    device = compile_targets.ANY_GPU | compile_targets.GPUS[name]
    version = {"major": 9, "minor": 10}
    config = {"gpu_device_info": device, "platform_name": "CUDA", "dnn_version_info": version}
    text = compile_targets.prototext(config)
    found = topologies.get_topology_desc(
        device["name"], "cuda", topology="1x8x1", target_config=text
    )
    return np.array(found.devices)


def compiled(name: str, program: Any, *arguments: Any) -> dict[str, Any]:
    """Return the temporary bytes of each chip, and the shapes that each collective takes."""
    with target.assumed("tpu" if name in SLICES else "gpu"):
        lowered = jax.jit(program).lower(*arguments)
    built = lowered.compile(
        compiler_options=None if name in SLICES else compile_targets.GPU_OPTIONS
    )
    collectives: dict[str, list[str]] = {}
    for types, kind in re.findall(COLLECTIVE, built.as_text()):
        collectives.setdefault(kind, []).extend(re.findall(r"\w+\[[\d,]*\]", types))
    return {"temporary_bytes": measure.temporary_bytes(built), "collectives": collectives}


if __name__ == "__main__":
    main()
