"""The engine for small problems: Newton's method in NumPy and SciPy, which compiles nothing.

Nothing here imports JAX, whose import takes longer than most of these fits.

Its parts mirror those of the compiled engine: `problem` (the objective at a point), `lane` and
`coordinates` (what is left of the examples, classes and features), `preconditioner` and `newton`
(the direction), `line_search`, `expectation` and `certificate`, and `driver`, the loop around them.
"""

from typing import Any

import numpy as np

from jaxsoftmax.solvers.host.driver import minimize
from jaxsoftmax.solvers.host.lane import Lane
from jaxsoftmax.solvers.limits import MAX_FLOAT64_SIZE

MAX_UNKNOWNS = 1024  # with so few, the Hessian is cheap for any number of examples

__all__ = ["Lane", "minimize", "suits"]


def suits(features: Any, classes: int, *, smooth: bool, memory: int, lanes: int = 1) -> bool:
    """Return whether a problem is solved here rather than by compiled programs.

    The compiled engine has the l1 penalty, sparse features, products in float32, and the
    accelerator. A dense problem that it would compute in float64 from the start is too small to
    gain from any of them. A larger one of few unknowns is solved here unless there is an
    accelerator: a Hessian costs as much as some products and replaces hundreds. At 60,000 x 54 with
    7 classes, and C of 1 and 1e6, this takes 0.5 and 0.9 seconds of one core, the compiled engine
    16 and over 24; at 5,000 x 784 with 10 classes it takes twice as long as the compiled engine.
    """
    if not smooth or not isinstance(features, np.ndarray):
        return False
    n, d = features.shape
    # Two arrays of the features for each lane, and one lane's scores and their derivatives.
    if 8 * n * (2 * lanes * (d + 1) + 8 * classes) > memory:
        return False
    if n * d * classes <= MAX_FLOAT64_SIZE:
        return True
    return classes * (d + 1) <= MAX_UNKNOWNS and _has_no_accelerator()


def _has_no_accelerator() -> bool:
    import jax

    return jax.default_backend() == "cpu"
