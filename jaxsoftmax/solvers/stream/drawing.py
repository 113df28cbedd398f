r"""A random sample of the examples that count the most, drawn while a pass reads all of them.

Each example has an importance w and a uniform random number u. Those with the n largest w / u are
kept, and with the next smaller one, t, an example stands for max(1, t / w) of its kind: sums over
the sample are right on average, and what is important enough is in it for certain.

Reference: Duffield, Lund and Thorup, "Priority sampling for estimation of arbitrary subset sums"
(2007).
"""

import numpy as np

from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.stream.examples import take


class Drawing:
    """A sample of some examples of a pass, to which its windows are added one by one.

    It lies in arrays of its size, in which an example takes the place of one that counts less.
    """

    def __init__(self, size: int) -> None:
        self.size, self.threshold = size, 0.0
        self.rng = np.random.default_rng(0)
        self.examples: Data | None = None
        self.importance, self.priority = np.zeros(size), np.zeros(size)  # 0 where there is none

    def add(self, window: Data, importance: np.ndarray) -> None:
        """Draw from a window too. An example of importance 0 or NaN is never kept."""
        if self.examples is None:
            self.examples = _space_for(window, self.size)
        priority = importance / (1 - self.rng.random(len(importance)))
        rows = np.flatnonzero(priority > self.threshold)
        if len(rows):
            self._replace_least(window, rows, importance[rows], priority[rows])

    def _replace_least(
        self, window: Data, rows: np.ndarray, importance: np.ndarray, priority: np.ndarray
    ) -> None:
        """Keep the first ones among all, and copy no others."""
        assert self.examples is not None
        together = np.concatenate([self.priority, priority])
        order = np.argpartition(-together, self.size)
        self.threshold, chosen = together[order[self.size]], order[: self.size]
        free = np.setdiff1d(np.arange(self.size), chosen)
        new = np.sort(chosen[chosen >= self.size]) - self.size
        self.importance[free], self.priority[free] = importance[new], priority[new]
        for name in ("features", "targets", "weights"):
            getattr(self.examples, name)[free] = getattr(window, name)[rows[new]]

    def sample(self) -> Data:
        """Return the examples that were kept, with their weights times what they stand for."""
        assert self.examples is not None
        kept = self.priority > 0
        found = self.examples if kept.all() else take(self.examples, np.flatnonzero(kept))
        share = np.minimum(1, self.importance[kept] / self.threshold) if self.threshold else 1
        return found._replace(weights=found.weights / share)


def _space_for(window: Data, size: int) -> Data:
    """Return arrays for this number of examples like those of a window."""
    return window._replace(
        features=np.empty((size, *window.features.shape[1:]), window.features.dtype),
        targets=np.empty((size, *window.targets.shape[1:]), window.targets.dtype),
        weights=np.empty(size, window.weights.dtype),
    )
