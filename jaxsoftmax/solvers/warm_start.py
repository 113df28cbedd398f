r"""Where a path over C leads: each stage starts on the line through the two before it, in log C.

Scores are linear in the parameters, so that those of the start come from the two stages' scores,
without the features.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers.driver import Outcome, Scores


class Path:
    """The last two stages, or where the path starts; `smooth` says whether a line is worth it."""

    def __init__(self, theta: Array, *, smooth: bool) -> None:
        self.theta, self.smooth = theta, smooth
        self.earlier: list[tuple[float, Array, Scores | None]] = []

    def add(self, strength: float, found: Outcome) -> None:
        """Go on from a stage's outcome."""
        self.theta = jnp.asarray(found.theta)
        self.earlier = [*self.earlier[-1:], (math.log(strength), self.theta, found.scores)]

    def start(self, strength: float) -> tuple[Array, Scores | None]:
        """Parameters to start the stage from, and their scores where they are known."""
        if len(self.earlier) < 2 or not self.smooth:
            return self.theta, self.earlier[-1][2] if self.earlier else None
        (before, first, z), (last, second, known) = self.earlier
        if before == last:
            return second, known
        reach = min(1.0, (math.log(strength) - last) / (last - before))
        theta = _along(first, second, reach)
        if z is None or known is None:
            return theta, None
        rounded = (1 + reach) * known.rounded + reach * z.rounded + 1
        return theta, Scores(_along(z.values, known.values, reach), rounded)


@jax.jit
def _along(first: Array, second: Array, reach: float) -> Array:
    """The line through two points, reach times their distance beyond the second; -inf stays."""
    return jnp.where(jnp.isfinite(second), second + reach * (second - first), second)
