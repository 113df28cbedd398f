r"""Coordinates in which the features are centered, and of which there are at most N.

With an intercept, x' = x - m and b' = b + w m give the same scores, and without the mean m the
Hessian is far better conditioned. With fewer examples than features, X = R Q' for an orthonormal
Q `[D, N]`: the optimum is w = Q v, because a part of w that is orthogonal to all examples changes
the penalty alone, and the problem in v has the features R and the same penalty.
"""

from typing import NamedTuple

import numpy as np

MAX_TRANSPOSED = 255  # features whose order in memory is worth changing


class Coordinates(NamedTuple):
    """The map between the user's parameters `[K, P]` and those of the reduced problem."""

    mean: np.ndarray | None  # m: [D], None without an intercept
    basis: np.ndarray | None  # Q: [D, N], None where there are as many examples as features

    def reduce(self, theta: np.ndarray) -> np.ndarray:
        """Return the reduced parameters, without what is orthogonal to all examples."""
        if self.mean is None:
            return theta if self.basis is None else theta @ self.basis
        w, b = theta[:, :-1], theta[:, -1:] + theta[:, :-1] @ self.mean[:, None]
        return np.concatenate([w if self.basis is None else w @ self.basis, b], 1)

    def expand(self, theta: np.ndarray) -> np.ndarray:
        """Return the user's parameters."""
        if self.mean is None:
            return theta if self.basis is None else theta @ self.basis.T
        w = theta[:, :-1] if self.basis is None else theta[:, :-1] @ self.basis.T
        return np.concatenate([w, theta[:, -1:] - w @ self.mean[:, None]], 1)


def reduce_features(
    columns: np.ndarray, weights: np.ndarray, *, intercept: bool
) -> tuple[np.ndarray, Coordinates]:
    """Return the columns of the reduced problem and its coordinates.

    Args:
        columns: `[D, N]`, without a row of ones.
        weights: `[N]`.
        intercept: whether the model has one; the reduced columns end with its row of ones.
    """
    d, n = columns.shape
    mean = columns @ weights if intercept else None
    # To have the examples innermost pays in products where the features are few.
    centered = np.empty((d + intercept, n), order="F" if d > MAX_TRANSPOSED else "C")
    np.subtract(columns, 0 if mean is None else mean[:, None], out=centered[:d])
    centered[d:] = 1
    if n >= d:
        return centered, Coordinates(mean, None)
    basis, r = np.linalg.qr(centered[:d])
    return np.concatenate([r, centered[d:]]), Coordinates(mean, basis)


def bound_columns(columns: np.ndarray, reduced: np.ndarray, own: Coordinates) -> np.ndarray:
    """Return the largest size of each of the columns, `[D]`, or a bound within a factor of 3.

    The reduced columns, whose examples are innermost where they are few, take a tenth of the time.
    """
    if own.basis is None and reduced.flags.c_contiguous:
        centered = reduced[: len(columns)]
        largest = np.maximum(centered.max(1), -centered.min(1))
        return largest if own.mean is None else largest + np.abs(own.mean)
    return np.maximum(columns.max(1), -columns.min(1))
