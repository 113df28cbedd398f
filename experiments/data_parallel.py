"""Data parallelism: a fused loss whose batch is sharded over four devices, beside dense Optax.

Command: `python experiments/data_parallel.py`, about 2 minutes on two cores. `--smoke` uses tiny
shapes, to check that the script works, and writes no record. The record is
results/data_parallel_cpu.json.

Question. The features and the labels of a batch are sharded evenly over four CPU devices, and the
weights are replicated. How long do value and gradient of the mean loss take, in weights and
features, beside Optax's loss of the logits, and what is communicated between the devices? On an
Auto mesh only the compiler knows the sharding of arrays; on an Explicit mesh, and inside
`jax.shard_map`, the program does. The four devices share the machine's cores, so the times compare
programs and show no speedup.

Findings: The fused loss takes 0.97 to 1.00 times the time of dense Optax, which computes the same
products, with a fifth to a half of its temporary memory on each device. Only sums are communicated
between the devices: the loss and w's gradient, once in a program that knows the sharding of its
rows, and once for each chunk of rows on an Auto mesh.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import measure
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsoftmax import linear_cross_entropy_sum

DEVICES = 4
SHAPE = (4096, 128, 4000)


def main() -> None:
    """Time all programs in turn, print a line for each and write the record."""
    parser = argparse.ArgumentParser(description="A fused loss of a sharded batch.")
    parser.add_argument("--rounds", type=int, default=25, help="paired rounds")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no record")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    shape = (64, 8, 100) if arguments.smoke else SHAPE
    programs = {
        "optax, auto mesh": compiled(dense, AxisType.Auto, shape),
        "fused, auto mesh": compiled(fused, AxisType.Auto, shape),
        "fused, explicit mesh": compiled(fused, AxisType.Explicit, shape),
        "fused, shard_map": compiled(local, AxisType.Auto, shape),
    }
    calls = {name: partial(program, *given) for name, (program, given) in programs.items()}
    found = measure.paired(calls, rounds=2 if arguments.smoke else arguments.rounds)
    for name, (program, _) in programs.items():
        found[name] = {
            "times_optax": 1 / found["ratios"][name]["median"],
            "temporary_bytes": measure.temporary_bytes(program),
            "collectives": collectives(program.as_text()),
        }
        show(name, found)
    if not arguments.smoke:
        n, d, k = shape
        settings = {"devices": DEVICES, "dtype": "float32", "rows": n, "features": d, "classes": k}
        settings |= {"x": "normal", "w": "0.05 * normal", "labels": "uniform"}
        print("written:", measure.write_record("data_parallel_cpu", settings | found).name)


def fused(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean loss without the logits."""
    return linear_cross_entropy_sum(x, w, y) / len(x)


def dense(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean loss of the logits."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean()


def local(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean over devices of the mean losses of their rows."""
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    return jax.shard_map(
        lambda w, x, y: jax.lax.pmean(fused(w, x, y), "rows"),
        mesh=mesh(AxisType.Auto),
        in_specs=(whole, rows, rows),
        out_specs=whole,
    )(w, x, y)


def mesh(kind: AxisType) -> Mesh:
    """Return a mesh of all devices along one axis."""
    return Mesh(np.array(jax.devices()), ("rows",), axis_types=(kind,))


def compiled(
    loss: Callable[..., jax.Array], kind: AxisType, shape: tuple[int, int, int]
) -> tuple[jax.stages.Compiled, tuple[jax.Array, ...]]:
    """Compile value and gradient of a loss, with its arguments placed on a mesh."""
    n, d, k = shape
    w_key, x_key, y_key = jax.random.split(jax.random.key(0), 3)
    arrays = (
        0.05 * jax.random.normal(w_key, (d, k)),
        jax.random.normal(x_key, (n, d)),
        jax.random.randint(y_key, (n,), 0, k),
    )
    whole, rows = (NamedSharding(mesh(kind), PartitionSpec(*s)) for s in ((), ("rows",)))
    given = tuple(map(jax.device_put, arrays, (whole, rows, rows)))
    context = jax.set_mesh(mesh(kind)) if kind == AxisType.Explicit else nullcontext()
    with context:
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*given).compile()
    return program, given


def collectives(text: str) -> dict[str, int]:
    """Count the collectives of each kind in a program's text; one in a loop counts once."""
    kinds = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    return dict(Counter(re.findall(kinds, text)))


def show(name: str, found: dict[str, Any]) -> None:
    """Print one line."""
    milliseconds = 1e3 * found["seconds"][name]["median"]
    part = found[name]
    print(
        f"{name:22}{milliseconds:10.1f} ms{part['times_optax']:8.2f} times Optax's"
        f"{part['temporary_bytes'] / 1e6:9.1f} MB  {part['collectives']}"
    )


if __name__ == "__main__":
    main()
