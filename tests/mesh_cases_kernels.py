"""The TPU kernels compiled inside jax.shard_map for four v5e that are not here.

A process of its own, whose environment libtpu needs: `test_kernels_sharded.py` runs it. It prints,
as JSON, for each function's value and gradients how many kernels the compiled program has, and the
shapes that each kind of collective takes.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "experiments"))
import compile_targets  # first: it sets libtpu's environment
import jax
import jax.numpy as jnp
import test_kernels_sharded as cases
from jax.experimental import topologies

from jaxsoftmax.kernels import target
from jaxsoftmax.kernels.tiles import Tiles

SHAPE = (4096, 256, 1025)
COLLECTIVE = r" = (.*?) ((?:all|collective)-[\w-]+?|reduce-scatter|ragged-\S+?)(?:-start)?\("


def main() -> None:
    """Print what each program has."""
    topology = topologies.get_topology_desc(compile_targets.TPUS["v5e"], "tpu")
    mesh = jax.sharding.Mesh(topology.devices, ("rows",), axis_types=cases.AUTO)
    shapes = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.NamedSharding(mesh, place))
        for a, place in zip(
            jax.eval_shape(partial(cases.data, SHAPE, jnp.bfloat16)), cases.PLACES, strict=True
        )
    ]
    found = {}
    for name, function in cases.functions("mosaic_tpu", Tiles(rows=64, classes=256)).items():
        program = cases.with_gradients(cases.over_rows(function, mesh, check_vma=True))
        with target.assumed("tpu"):
            lowered = jax.jit(program).lower(*shapes)
        found[name] = summary(lowered.compile().as_text())
    print(json.dumps(found))


def summary(text: str) -> dict[str, Any]:
    """Kernels and collectives of a compiled program's text."""
    collectives: dict[str, list[str]] = {}
    for types, kind in re.findall(COLLECTIVE, text):
        collectives.setdefault(kind, []).extend(re.findall(r"\w+\[[\d,]*\]", types))
    return {"kernels": text.count('custom_call_target="tpu_custom_call"'), **collectives}


if __name__ == "__main__":
    main()
