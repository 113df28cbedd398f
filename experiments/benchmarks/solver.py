"""The certified solver: seconds to a proven gap, and those of the first call, which compiles.

Random classes of the sizes of an accelerator's problems are fitted, beside cyanure-gpu where it is
installed. optimum.py, path.py, small_sets.py and grid.py compare `solve` and `solve_path` with
scikit-learn, and beside_cyanure.py with Cyanure.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.timing import Conditions, Step, compared
from jaxsoftmax.solvers import solve

# Examples, features, classes.
SIZES = {
    "cpu": ((60_000, 784, 10), (20_000, 256, 100)),
    "gpu": ((60_000, 784, 10), (200_000, 1024, 1000)),
    "tpu": ((60_000, 784, 10), (200_000, 1024, 1000)),
    "smoke": ((200, 8, 3),),
}
GAP, FITS = 1e-3, 3


def steps(conditions: Conditions) -> list[Step]:
    """Return a step for each size."""
    sizes = conditions.of(SIZES)
    return [Step("x".join(map(str, s)), partial(fits, s, conditions)) for s in sizes]


def clusters(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping classes around random centers: features float32 [n, d] and labels."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((classes, d), np.float32) * np.float32(2 / d**0.5)
    y = rng.integers(0, classes, n)
    return centers[y] + rng.standard_normal((n, d), np.float32), y


def fits(sizes: tuple[int, int, int], conditions: Conditions) -> dict[str, Any]:
    """Return the seconds of fits of the same data at C = 1, and the first one's."""
    x, y = clusters(*sizes)
    start = time.perf_counter()
    solve(x, y, C=1.0, gap=GAP)
    first = time.perf_counter() - start
    found = [solve(x, y, C=1.0, gap=GAP) for _ in range(1 if conditions.smoke else FITS)]
    seconds = {"solve": float(np.median([f.seconds for f in found]))}
    seconds |= of_others(x, y, conditions)
    n, d, k = sizes
    entry = compared(seconds) | {
        "first call seconds": first,
        "certified gap": float(found[-1].gap),
        "is certified": bool(found[-1].converged),
        "products": float(found[-1].products),
        # A product reads the features once, for scores or for a weighted sum.
        "operations": 2 * n * d * k * float(found[-1].products),
        "bytes": 4 * n * d * float(found[-1].products),
        "dtype": "float32",
    }
    print({name: entry[name] for name in ("seconds", "first call seconds", "certified gap")})
    return entry


def of_others(x: np.ndarray, y: np.ndarray, conditions: Conditions) -> dict[str, float]:
    """Return the seconds of other libraries' fits, at a tolerance of the same gap."""
    if conditions.torch is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, x=x, y=y)
        with peers.of_solver(conditions.torch, file, 1 / len(y)) as others:
            return {name: clock() for name, clock in others.clocks().items()}
