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
            self.parts.append(take(window, rows))
            self.importance = np.concatenate([self.importance, importance[rows]])
            self.priority = np.concatenate([self.priority, priority[rows]])
            self._drop_the_least()

    def _drop_the_least(self) -> None:
        kept = join(self.parts)
        if len(self.priority) > self.size:
            order = np.argpartition(-self.priority, self.size)
            self.threshold = self.priority[order[self.size]]
            order = order[: self.size]
            kept = take(kept, order)
            self.priority, self.importance = self.priority[order], self.importance[order]
        self.parts = [kept]

    def sample(self) -> Data:
        """Return the examples that were kept, with their weights times what they stand for."""
        (kept,) = self.parts
        return kept._replace(weights=kept.weights * np.maximum(1, self.threshold / self.importance))
