"""What a solver returns: parameters, a certificate, and what it took."""

from dataclasses import dataclass

import numpy as np

from jaxsoftmax.linear import LinearParams


@dataclass(frozen=True, eq=False)
class Solution:
    """Parameters and what is proven about them; of `solve_path` each field has leading axes.

    Args:
        params: `w: [D, K]` and `bias: [K]` or None, NumPy arrays in the dtype of the features. The
            bias of a class without examples or targets is -inf, and that of a label without
            contrast infinite.
        objective: F at params, in float64.
        gap: a proven bound on (F - min F) / F, evaluated in float64 at these params; inf where the
            problem gives no bound, which `reason` then explains.
        gap_floor: how far float64's rounding may have moved the gap, relative to F too.
        gradient_norm: length of the gradient of F, of the shortest subgradient where l1 counts.
        iterations: outer iterations.
        products: passes over the features: each scores or combines all examples once.
        seconds: wall-clock time; of `solve_path`, of the whole path, in every entry.
        converged: whether the gap is what was asked for (without a penalty: the decrement).
        reason: why it stopped, in words that say what to do.
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
    reason: str | np.ndarray
