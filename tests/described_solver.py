"""The solvers' programs on devices that share rows and classes, of a problem that is not there.

`python tests/described_solver.py` compiles some of them for four described v5e, and prints for each
the bytes of a device and what crosses between devices. It needs libtpu.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    tests = Path(__file__).parent
    sys.path[:0] = [str(tests.parent), str(tests.parent / "experiments")]
    import compile_targets  # noqa: F401  # before JAX: it sets libtpu's environment

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsoftmax import Shards
from jaxsoftmax.kernels import target
from jaxsoftmax.solvers import certificate, class_preconditioner, row_shards, steps
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

OVER_BOTH = Shards(rows="r", classes="c")
SHAPE = 256, 16, 48
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
LEAST = float(np.finfo(np.float32).tiny)  # of a TPU's float64, which are sums of two float32
QUICK = "step", "evaluation", "inverses"  # those that compile in a few seconds


def described_problem(mesh: Mesh, shards: Shards, n: int, d: int, k: int) -> tuple[Any, ...]:
    """What a step takes of the problem: itself, a point, a gradient, and a basis."""
    rows, classes = shards
    auto = Mesh(mesh.devices, mesh.axis_names)

    def array(shape: tuple[int, ...], *axes: Any, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(auto, P(*axes)))

    spec = NamedSharding(auto, P((rows,), None))
    over = () if classes is None else (classes,)
    features = row_shards.RowShards(array((n, d), rows), spec, n, over)
    numbers = [array((1,), dtype=jnp.float64)] * 2
    largest = array((d,), dtype=jnp.float64)
    problem = problems.Problem(
        features, array((1, n), None, rows, dtype=jnp.int32),
        array((1, n), None, rows, dtype=jnp.float64), *numbers, largest,
    )  # fmt: skip
    scores, theta = array((1, k, n), None, classes, rows), array((1, k, d + 1), None, classes)
    point = problems.Point(theta, scores, array((1,)), scores)
    basis = Preconditioner(array((d, d)), array((d,)), array((d,)))
    return problem, point, theta, basis


def lowered_programs(
    mesh: Mesh, shards: Shards, n: int, d: int, k: int
) -> dict[str, Callable[[], Any]]:
    """The programs of the solvers: each is lowered by a call."""
    problem, point, gradient, basis = described_problem(mesh, shards, n, d, k)
    exact = jax.tree.map(lambda a: a.update(dtype=jnp.float64), (point, gradient))
    variance, blocks, one = point.scores, gradient, jax.ShapeDtypeStruct((1,), jnp.float64)
    blocks, single = blocks.update(shape=(1, k, d + 1, d + 1)), one.update(dtype=jnp.float32)
    how: dict[str, Any] = {"link": "softmax", "intercept": True}
    sample = steps.Sample(problem, None)

    def by(function: Any, *args: Any, **options: Any) -> Callable[[], Any]:
        def lower() -> Any:
            with row_shards.computing_with(problem.features):
                return function.lower(*args, **options)

        return lower

    with jax.enable_x64():
        key = jax.eval_shape(lambda: jax.random.key(0))
    of_class = problem.features, problem.weights.update(shape=(n,), sharding=None), variance, key
    start = {"problem": problem, "point": point, "gradient": gradient, "preconditioner": basis}
    start |= {"tolerance": single} | how
    last = {"problem": problem, "point": exact[0], "gradient": exact[1], "goal": one} | how
    rounded = {"theta": gradient, "trial": exact[1], "dtype": "float32"} | how
    return {
        "step": by(steps.newton_cg, **start, sample=sample),
        "certificate": by(certificate._certify_with_centering, **last),
        "rounded": by(certificate.certify_rounded, problem, **rounded),
        "blocks": by(class_preconditioner._gram_matrices, *of_class, n // 2),
        "inverses": by(class_preconditioner._invert_on_devices, problem.features, blocks, 1.0),
        "evaluation": by(steps.point_and_gradient, problem, theta=exact[1], **how),
        "proximal step": by(steps.proximal_newton, **start, stiffness=single),
    }


def compiled(lower: Callable[[], Any]) -> dict[str, Any]:
    lowered = lower()
    numbers = re.findall(r"dense<([-\d.]+E[-+]\d+)> : tensor<(?:\d+x)*f64>", lowered.as_text())
    program = lowered.compile()
    found = re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", program.as_text())
    memory = program.memory_analysis()
    return {
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "constants": [number for number in numbers if not LEAST <= abs(float(number)) < 2.0**128],
        "crossing": [
            (kind, int(np.prod([int(n) for n in dims.split(",") if n])))
            for shapes, kind in found
            for dims in re.findall(r"\[([\d,]*)\]", shapes)
        ],
    }


def main() -> None:
    """Compile the programs that an argument names, or the quick ones."""
    devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices
    mesh = Mesh(np.array(devices).reshape(2, 2), ("r", "c"))
    names = sys.argv[1:] or QUICK
    with target.assumed("tpu"):
        programs = lowered_programs(mesh, OVER_BOTH, *SHAPE)
        print(json.dumps({name: compiled(programs[name]) for name in names}))


if __name__ == "__main__":
    main()
