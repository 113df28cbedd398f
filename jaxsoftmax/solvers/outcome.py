"""The settings that every engine takes, and the state of each lane that it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from jaxsoftmax.solvers.solution import SolverStatus

if TYPE_CHECKING:
    from jax import Array

type Link = Literal["softmax", "sigmoid"]

type Callback = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class SolverConfig:
    """Settings that do not change while the lanes are minimized.

    Args:
        link: softmax or sigmoid.
        gap: the certified relative gap at which a lane is done.
        smooth: whether the penalty has no l1 part, so that Newton's steps are taken as they are.
        intercept: whether the model has an intercept.
        max_iterations: outer iterations of each lane.
        dtype: the dtype of the parameters that are returned.
        memory: bytes for temporary arrays.
    """

    link: Link
    gap: float
    smooth: bool
    intercept: bool
    max_iterations: int
    dtype: str
    memory: int


class RoundedScores(NamedTuple):
    """Scores of parameters, and how much rounding they have accumulated."""

    values: "Array"  # [L, K, N]
    rounding: float  # a bound, in units of eps times the size of the scores


class Outcome(NamedTuple):
    """The state and certificate of each lane, in NumPy arrays `[L, ...]`."""

    theta: np.ndarray
    value: np.ndarray
    gap: np.ndarray
    floor: np.ndarray
    gradient_norm: np.ndarray
    iterations: np.ndarray
    products: np.ndarray
    status: np.ndarray  # of SolverStatus, or None while the lane is open
    reason: np.ndarray  # of str, or None while the lane is open
    scores: RoundedScores | None = None  # of theta, if the last step has left them

    @classmethod
    def initial(cls, theta: Any) -> Self:
        """Return the outcome before the first step from theta."""
        lanes = len(theta)
        infinite, zeros = np.full(lanes, np.inf), np.zeros(lanes, int)
        unknown = np.full(lanes, None, object)
        return cls(
            theta=np.array(theta, np.float64),
            value=infinite,
            gap=infinite,
            floor=infinite,
            gradient_norm=infinite,
            iterations=zeros,
            products=zeros,
            status=unknown,
            reason=unknown,
        )

    @classmethod
    def concatenate(cls, outcomes: Sequence[Self]) -> Self:
        """Return the lanes of several outcomes as one outcome, without scores."""
        fields: dict[str, Any] = {
            name: np.concatenate([getattr(outcome, name) for outcome in outcomes])
            for name in cls._fields
            if name != "scores"
        }
        return cls(**fields)

    @property
    def open(self) -> np.ndarray:
        """Whether nothing has ended the lane yet, `[lanes]`."""
        return np.array([status is None for status in self.status])

    @property
    def converged(self) -> np.ndarray:
        """Whether the lane has reached its gap, `[lanes]`."""
        reached = (SolverStatus.CONVERGED, SolverStatus.CONVERGED_WITHOUT_BOUND)
        return np.array([status in reached for status in self.status])


def explain(config: SolverConfig, outcome: Outcome, unpenalized: np.ndarray) -> Outcome:
    """Return the outcome with a status and a reason for every lane; `unpenalized` is `[lanes]`."""
    status = outcome.status.copy()
    for lane in np.flatnonzero(outcome.open):
        if outcome.iterations[lane] >= config.max_iterations:
            status[lane] = SolverStatus.MAX_ITERATIONS
        elif config.dtype == "float32" and not unpenalized[lane]:
            status[lane] = SolverStatus.STALLED_IN_FLOAT32
        else:
            status[lane] = SolverStatus.STALLED
    reason = np.full(len(status), None, object)
    reason[:] = [_sentence(each, config) for each in status]
    return outcome._replace(status=status, reason=reason)


def _sentence(status: SolverStatus, config: SolverConfig) -> str:
    """Return the sentence that explains a status and recommends what to do about it."""
    match status:
        case SolverStatus.CONVERGED:
            return f"the certified gap is at most {config.gap:g}"
        case SolverStatus.CONVERGED_WITHOUT_BOUND:
            return (
                f"the Newton decrement is below {config.gap:g} of the objective; without a penalty "
                "no bound on the gap exists, set C or alpha > 0 for one"
            )
        case SolverStatus.MAX_ITERATIONS:
            return (
                f"{config.max_iterations} iterations were not enough: raise max_iterations, gap, "
                "or the penalty"
            )
        case SolverStatus.STALLED_IN_FLOAT32:
            return (
                "no further progress: float32 parameters or products do not resolve this gap; "
                "pass float64 features, scale them, or ask for a larger gap"
            )
        case SolverStatus.STALLED:
            return (
                "no further progress in float64: scale the features, penalize more, or ask for a "
                "larger gap"
            )
        case SolverStatus.SEPARABLE:
            return (
                "a linear model separates the classes and there is no penalty: the objective falls "
                "to 0 as the parameters grow without end, so that no optimum exists; set C or "
                "alpha > 0"
            )
        case SolverStatus.NOT_FINITE:
            return "the objective is not finite: scale the features, or penalize more"
