"""The engine for small problems: Newton's method in NumPy and SciPy, which compiles nothing.

Its parts mirror those of the compiled engine: `problem` (the objective at a point), `lane` and
`coordinates` (what is left of the examples, classes and features), `preconditioner` and `newton`
(the direction), `line_search`, `certificate`, and `driver`, the loop around them.
"""

import numpy as np

from jaxsoftmax.solvers import prepare
from jaxsoftmax.solvers.host.driver import minimize
from jaxsoftmax.solvers.host.lane import Lane
from jaxsoftmax.solvers.outcome import SolverConfig

__all__ = ["Lane", "minimize", "suits"]


def suits(data: prepare.Data, config: SolverConfig) -> bool:
    """Return whether a problem is solved here rather than by compiled programs.

    The compiled engine has the l1 penalty, sparse features, products in float32, lanes that share
    products, and the accelerator. A dense problem that it would compute in float64 from the start
    is too small to gain from any of them.
    """
    if not config.smooth or not isinstance(data.features, np.ndarray):
        return False
    return data.features.size * data.classes <= prepare.MAX_FLOAT64_SIZE
