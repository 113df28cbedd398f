"""Full-batch solvers that stop at a certified optimum: one fit, or a whole grid in lockstep."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxsoftmax.solvers.solution import Solution, SolverStatus

if TYPE_CHECKING:
    from jaxsoftmax.solvers.api import solve, solve_path

__all__ = ["Solution", "SolverStatus", "solve", "solve_path"]

if not TYPE_CHECKING:  # for which every other name would exist too

    def __getattr__(name: str) -> Any:
        """Return what needs JAX at its first use: a small fit of an estimator does without."""
        if name not in ("solve", "solve_path"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        api = importlib.import_module("jaxsoftmax.solvers.api")
        globals().update(solve=api.solve, solve_path=api.solve_path)
        return globals()[name]
