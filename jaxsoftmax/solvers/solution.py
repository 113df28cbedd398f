"""The result of a solver: parameters, a certificate, the cost, and why it stopped."""

import enum
from dataclasses import dataclass

import numpy as np

from jaxsoftmax.linear_params import LinearParams


class SolverStatus(enum.StrEnum):
    """Why a solver stopped.

    CONVERGED: the certified gap is at most the one that was asked for.
    CONVERGED_WITHOUT_BOUND: there is no penalty, hence no bound, and the Newton decrement is below
        the gap that was asked for.
    MAX_ITERATIONS: max_iterations were not enough.
    STALLED_IN_FLOAT32: no further progress, and the parameters that are returned are float32.
    STALLED: no further progress in float64.
    SEPARABLE: there is no penalty and a linear model separates the classes; no optimum exists.
    NOT_FINITE: the objective is infinite or NaN.
    """

    CONVERGED = "converged"
    CONVERGED_WITHOUT_BOUND = "converged without bound"
    MAX_ITERATIONS = "max iterations"
    STALLED_IN_FLOAT32 = "stalled in float32"
    STALLED = "stalled"
    SEPARABLE = "separable"
    NOT_FINITE = "not finite"


@dataclass(frozen=True, eq=False)
class Solution:
    """Parameters and what is proven about them; from `solve_path` each field has leading axes.

    Args:
        params: `w: [D, K]` and `bias: [K]` or None, NumPy arrays in the dtype of the features. The
            bias of a class without examples or targets is -inf, and that of a label that is the
            same in all examples is infinite.
        objective: F at params, in float64.
        gap: a proven bound on (F - min F) / F, evaluated in float64 at these params; inf where the
            problem has no bound, which `reason` then explains.
        gap_floor: by how much float64's rounding may have moved the gap, relative to F too.
        gradient_norm: length of the gradient of F, or of the shortest subgradient with l1.
        iterations: outer iterations.
        products: passes over the features, each of which computes scores or a weighted sum of all
            examples.
        seconds: wall-clock time; from `solve_path`, that of the whole path in every entry.
        converged: whether the gap is at most what was asked for (without a penalty: the decrement).
        status: why it stopped, a `SolverStatus`; from `solve_path` an array of dtype object.
        reason: the same in a sentence, with a recommendation.
    """

    params: LinearParams
    objective: float | np.ndarray
    gap: float | np.ndarray
    gap_floor: float | np.ndarray
    gradient_norm: float | np.ndarray
    iterations: int | np.ndarray
    products: int | np.ndarray
    seconds: float | np.ndarray
    converged: bool | np.ndarray
    status: SolverStatus | np.ndarray
    reason: str | np.ndarray
