"""Every program of `solve` and `solve_path`, compiled for a GPU that is described and not there.

`python tests/solver_programs.py h200`, with jax[cuda13]. The solvers run on the CPU, and whatever
they compile there is compiled for the GPU as well. It prints a line for each program.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
sys.path[:0] = [
    str(Path(__file__).parent.parent),
    str(Path(__file__).parent.parent / "experiments"),
]

import jax  # noqa: E402
import numpy as np  # noqa: E402

compile_for_cpu = jax.jit
place: Any = None  # a sharding on the described device
seen: set[str] = set()


class Program:
    """A jitted function whose programs are also compiled for the described device."""

    def __init__(self, function: Callable, **options: Any) -> None:
        self.program = compile_for_cpu(function, **options)
        functools.update_wrapper(self, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs))
        if place is not None and not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            self.compile(args, kwargs)
        return self.program(*args, **kwargs)

    def compile(self, args: tuple, kwargs: dict) -> None:
        args, kwargs = jax.tree.map(described, (args, kwargs))
        lanes = {leaf.shape[0] for leaf in jax.tree.leaves(args) if getattr(leaf, "shape", ())}
        title = f"{self.__qualname__} {sorted(lanes)}"
        if title in seen:
            return
        seen.add(title)
        try:
            self.program.lower(*args, **kwargs).compile()
            print(f"PASS {title}", flush=True)
        except Exception as error:
            print(f"FAIL {title}: {' '.join(str(error).split())[:300]}", flush=True)


def described(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | np.ndarray):
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=place)
    return leaf


def jit(function: Callable | None = None, **options: Any) -> Any:
    if function is None:
        return functools.partial(jit, **options)
    return Program(function, **options)


def main(device: str) -> None:
    """One lane and several, in float32 with a loose certificate and in float64 with a tight one."""
    global place
    jax.jit = jit
    import compile_targets

    from jaxsoftmax import solve, solve_path

    place = jax.sharding.SingleDeviceSharding(compile_targets.device_of(device))
    rng = np.random.default_rng(0)
    n, d, k = 2500, 256, 50  # above what is solved without compilation
    centers, y = rng.standard_normal((k, d)), rng.integers(0, k, n)
    x = (0.5 * centers[y] + rng.standard_normal((n, d))).astype(np.float32)
    solve(x, y, C=1.0, gap=1e-3)
    solve(x, y, C=1.0, gap=1e-8)
    solve_path(x, y, C=np.logspace(-4, 0, 3), folds=np.arange(n) % 3, gap=1e-3)


if __name__ == "__main__":
    main(sys.argv[1])
