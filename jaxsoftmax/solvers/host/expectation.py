r"""The predictions that a Newton step expects, and how far they are from those it leads to.

A step d with scores u expects q = p + J u, where J is the derivative of an example's predictions p
in its scores. Whatever the step, q gives a bound as in `certificate`, in which

    G(q) + l2 (w + d) = sum_i s_i (p_i + J_i u_i - y_i) x_i' + l2 (w + d) = g + H d

is the residual of Newton's system. The gradient at the step's end is of second order in the step,
and its square over l2 is far above the distance from the optimum where C is large. What is left
here is KL(q || p(end)), of fourth order in the step and about as large as the distance. So the same
gap is proven one or two steps earlier.
"""

from typing import NamedTuple, Self

import numpy as np

from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.problem import HostProblem, Point


class Expectation(NamedTuple):
    """The predictions that a step from a point expects."""

    point: Point  # where the step begins
    change: np.ndarray  # of the probabilities, J u: [K, N]
    divergence: float  # about KL(q || p(end)), summed with the weights
    gap: float  # about the bound by q at the end of the step

    @classmethod
    def of_step(
        cls, problem: HostProblem, point: Point, dz: np.ndarray, end: Point, residual: np.ndarray
    ) -> Self:
        """Return what a step of scores dz expects, which leaves a residual of Newton's system."""
        change = problems.scores_hessian_product(problem, point, dz)
        error = end.residual - point.residual
        error -= change
        error *= error
        variance = end.probability if end.lead is not None else end.probability * end.complement
        np.divide(error, variance, out=error, where=error > 0)
        divergence = 0.5 * float(error.sum(0) @ problem.weights)
        slope = float(np.vdot(residual, residual)) / (2 * problem.l2) if problem.l2 > 0 else np.inf
        return cls(point, change, divergence, divergence + slope)
