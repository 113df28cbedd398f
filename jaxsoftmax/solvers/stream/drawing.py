r"""A random sample of the examples that count the most, drawn while a pass reads all of them.

Each example has an importance w and a uniform random number u. Those with the n largest w / u are
kept, and with the next smaller one, t, an example stands for max(1, t / w) of its kind: sums over
the sample are right on average, and what is important enough is in it for certain.

Reference: Duffield, Lund and Thorup, "Priority sampling for estimation of arbitrary subset sums"
(2007).
"""

import numpy as np

from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.stream.examples import join, take


class Drawing:
    """A sample of some examples of a pass, to which its windows are added one by one."""

    def __init__(self, size: int) -> None:
        self.size, self.threshold = size, 0.0
        self.rng = np.random.default_rng(0)
        self.parts: list[Data] = []
        self.importance = self.priority = np.zeros(0)

    def add(self, window: Data, importance: np.ndarray) -> None:
        """Draw from a window too. An example of importance 0 or NaN is never kept."""
        priority = importance / (1 - self.rng.random(len(importance)))
        rows = np.flatnonzero(priority > self.threshold)
        if len(rows) or not self.parts:
            self._merge(window, rows, importance[rows], priority[rows])

    def _merge(
        self, window: Data, rows: np.ndarray, importance: np.ndarray, priority: np.ndarray
    ) -> None:
        """Keep the first ones among all, and copy no others."""
        before = len(self.priority)
        self.importance = np.concatenate([self.importance, importance])
        self.priority = np.concatenate([self.priority, priority])
        chosen = np.arange(len(self.priority))
        if len(chosen) > self.size:
            order = np.argpartition(-self.priority, self.size)
            self.threshold = self.priority[order[self.size]]
            chosen = np.sort(order[: self.size])
        old, new = chosen[chosen < before], chosen[chosen >= before] - before
        self.priority, self.importance = self.priority[chosen], self.importance[chosen]
        kept = [take(part, old) for part in self.parts]
        self.parts = []
        self.parts = [join([*kept, take(window, rows[new])])]

    def sample(self) -> Data:
        """Return the examples that were kept, with their weights times what they stand for."""
        (kept,) = self.parts
        return kept._replace(weights=kept.weights * np.maximum(1, self.threshold / self.importance))
