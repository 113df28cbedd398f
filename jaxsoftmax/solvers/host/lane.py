"""A lane on the host: the problem that remains of its examples and classes."""

from typing import Any, NamedTuple, Self

import numpy as np

from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.host import coordinates
from jaxsoftmax.solvers.host.coordinates import Coordinates
from jaxsoftmax.solvers.host.problem import HostProblem


class Lane(NamedTuple):
    """One fit, in the user's coordinates and in those in which it is solved."""

    original: HostProblem
    reduced: HostProblem
    coordinates: Coordinates
    present: np.ndarray  # the classes with examples: bool [K]
    limits: np.ndarray  # the intercept of each class, infinite for those without examples: [K]

    @classmethod
    def create(
        cls, data: Data, weights: np.ndarray, targets: np.ndarray, theta: np.ndarray, *, bias: bool
    ) -> Self:
        """Return the lane without a penalty.

        Args:
            data: the checked arrays.
            weights: `[N]`.
            targets: `[N]` or `[N, K]`.
            theta: where it starts, `[K, D + 1]`; a class without examples, or whose target is the
                same in all of them, has an infinite intercept and takes no part.
            bias: whether the model has an intercept.

        Returns:
            The lane, whose examples all have weight.
        """
        rows, limits = weights > 0, theta[:, -1]
        present = np.isfinite(limits)
        s = weights[rows] / weights.sum()
        # A view of the features where they are float64 and all have weight.
        columns = (data.features if rows.all() else data.features[rows]).astype(float, copy=False).T
        t = _targets(targets[rows], present, data.link)
        fewer, own = coordinates.reduce_features(columns, s, intercept=bias)
        largest = coordinates.bound_columns(columns, fewer, own)
        reduced = HostProblem(fewer, t, s, 0.0, data.link, bias, largest)
        original = reduced._replace(columns=columns, implied=bias)
        return cls(original, reduced, own, present, limits)

    def penalized(self, l2: float) -> Self:
        """Return the lane with another penalty."""
        original, reduced = self.original._replace(l2=l2), self.reduced._replace(l2=l2)
        return self._replace(original=original, reduced=reduced)

    def pack(self, theta: np.ndarray) -> np.ndarray:
        """Return the lane's part of parameters `[K, D + 1]`."""
        kept = theta[self.present]
        return kept if self.original.intercept else kept[:, :-1]

    def unpack(self, theta: np.ndarray) -> np.ndarray:
        """Return parameters `[K, D + 1]`; classes without examples have only their intercept."""
        full = np.zeros((len(self.present), len(self.original.columns) + 1))
        full[:, -1] = np.where(self.present, 0, self.limits)
        full[self.present, : theta.shape[1]] = theta
        return full


def _targets(t: np.ndarray, present: np.ndarray, link: Any) -> np.ndarray:
    """Return labels among the present classes, or their targets `[K, N]` in float64."""
    if t.ndim == 1:
        return (np.cumsum(present) - 1)[t]
    t = t[:, present].T.astype(float)
    return t / t.sum(0) if link == "softmax" else t
