"""Full-batch solvers that stop at a certified optimum: one fit, or a whole grid in lockstep."""

from jaxsoftmax.solvers.api import solve, solve_path
from jaxsoftmax.solvers.solution import Solution, SolverStatus

__all__ = ["Solution", "SolverStatus", "solve", "solve_path"]
