r"""Warm starts along a path over C: each stage extrapolates the two stages before it in log C.

Scores are linear in the parameters, so that the scores of the start are computed from those of the
two stages, without a product with the features.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.solvers.outcome import Outcome, RoundedScores


class _Stage(NamedTuple):
    log_strength: float
    theta: np.ndarray
    scores: RoundedScores | None


class WarmStart:
    """The last two stages of a path.

    Args:
        theta: parameters that the first stage starts from, None for those that its engine chooses.
        smooth: whether to extrapolate; an objective with l1 is not smooth enough for it.
        extrapolate: `problem.extrapolate_scores`, of an engine whose outcomes have scores.
    """

    def __init__(
        self,
        theta: np.ndarray | None,
        *,
        smooth: bool,
        extrapolate: Callable[[Any, Any, float], Any] | None = None,
    ) -> None:
        self.theta, self.smooth, self.extrapolate = theta, smooth, extrapolate
        self.stages: list[_Stage] = []

    def add(self, C: float, outcome: Outcome) -> None:
        """Append the outcome of a stage."""
        self.theta = outcome.theta
        stage = _Stage(math.log(C), outcome.theta, outcome.scores)
        self.stages = [*self.stages[-1:], stage]

    def start(self, C: float) -> tuple[np.ndarray | None, RoundedScores | None]:
        """Return the parameters that a stage starts from, and their scores if they are known."""
        if len(self.stages) < 2 or not self.smooth:
            return self.theta, self.stages[-1].scores if self.stages else None
        first, second = self.stages
        if first.log_strength == second.log_strength:
            return second.theta, second.scores
        reach = min(
            1.0, (math.log(C) - second.log_strength) / (second.log_strength - first.log_strength)
        )
        with np.errstate(invalid="ignore"):
            theta = np.where(
                np.isfinite(second.theta),
                second.theta + reach * (second.theta - first.theta),
                second.theta,
            )
        if self.extrapolate is None or first.scores is None or second.scores is None:
            return theta, None
        values = self.extrapolate(first.scores.values, second.scores.values, reach)
        rounding = (1 + reach) * second.scores.rounding + reach * first.scores.rounding + 1
        return theta, RoundedScores(values, rounding)
