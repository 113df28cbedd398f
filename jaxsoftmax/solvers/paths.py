"""A grid of fits: every C, fold and label set as an engine takes them, one C after another.

`solve_on_host` is all of a small grid, and nothing on its way imports JAX.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsoftmax.solvers import arguments, fits, host
from jaxsoftmax.solvers.arguments import Data, TargetKind
from jaxsoftmax.solvers.outcome import Callback, Outcome, RoundedScores, SolverConfig
from jaxsoftmax.solvers.solution import Solution
from jaxsoftmax.solvers.warm_start import WarmStart

if TYPE_CHECKING:
    from jaxsoftmax.validation import ArrayLike

# Minimizes all lanes: (l2, l1, theta, scores of theta, config) -> outcome.
type Engine = Callable[[np.ndarray, np.ndarray, Any, RoundedScores | None, SolverConfig], Outcome]


class Lanes(NamedTuple):
    """Every fold and label set."""

    weights: np.ndarray  # [L, N]
    targets: np.ndarray  # [T, N] or [T, N, K], where T is L, or 1 if all lanes share them
    axes: tuple[int, ...]  # of the result, behind that of C


class Stages(NamedTuple):
    """The values of C, and what an engine needs for each."""

    C: np.ndarray  # [P]
    penalties: list[tuple[np.ndarray, np.ndarray]]  # l2 and l1 of the lanes: [L] each
    configs: list[SolverConfig]


class Path(NamedTuple):
    """A grid of fits of arrays."""

    data: Data
    lanes: Lanes
    theta: np.ndarray  # where the first stage starts: [L, K, D + 1]
    stages: Stages


def prepare_path(
    features: "ArrayLike",
    label_sets: Any,
    *,
    kind: TargetKind,
    several: bool,
    C: "ArrayLike",
    folds: "ArrayLike | None",
    l1_ratio: float,
    weights: "ArrayLike | None",
    class_weights: "ArrayLike | None",
    bias: bool,
    gap: "ArrayLike",
    max_iterations: int,
    memory: int,
) -> Path:
    """Check the arguments of `solve_path` and return the grid.

    `several` gives the result an axis for the label sets.
    """
    strengths, gaps = prepare_grid(C, gap, max_iterations)
    sets = [
        arguments.check_data(
            features, t, kind=kind, weights=weights, class_weights=class_weights, memory=memory
        )
        for t in label_sets
    ]
    data = sets[0]._replace(classes=max(each.classes for each in sets))
    lanes = _make_lanes(sets, folds, several)
    theta = fits.initial_theta(data, lanes.weights, lanes.targets, bias, None)
    configs = [
        fits.make_config(data, each, l1_ratio, bias, max_iterations, memory) for each in gaps
    ]
    penalties = prepare_penalties(lanes.weights.sum(1), strengths, l1_ratio)
    return Path(data, lanes, theta, Stages(strengths, penalties, configs))


def solve_on_host(path: Path, start: float, report: Callback | None) -> Solution:
    """Return the solutions of a grid that suits the engine of the host, begun at `start`."""
    outcomes = solve_stages(_on_host(path), path.theta, path.stages, report)
    return make_solution(path, outcomes, start)


def make_solution(path: Path, outcomes: list[Outcome], start: float) -> Solution:
    """Return the outcomes of a grid, begun at `start`, as a solution."""
    axes, bias = (len(path.stages.C), *path.lanes.axes), path.stages.configs[0].intercept
    return fits.make_solution(outcomes, path.data, axes, bias, time.perf_counter() - start)


def _on_host(path: Path) -> Engine:
    """Return the engine for small problems, which takes one lane after another."""
    data, lanes, theta, stages = path
    targets = np.broadcast_to(lanes.targets, (len(theta), *lanes.targets.shape[1:]))
    prepared = [
        host.Lane.create(data, *each, bias=stages.configs[0].intercept)
        for each in zip(lanes.weights, targets, theta, strict=True)
    ]

    def minimize(
        l2: np.ndarray, _l1: Any, theta: np.ndarray, _scores: Any, config: SolverConfig
    ) -> Outcome:
        return Outcome.concatenate([
            host.minimize(lane.penalized(strength), first, config)
            for lane, strength, first in zip(prepared, l2, theta, strict=True)
        ])  # fmt: skip

    return minimize


def solve_stages(
    engine: Engine,
    theta: np.ndarray | None,
    stages: Stages,
    report: Callback | None,
    extrapolate: Callable[[Any, Any, float], Any] | None = None,
) -> list[Outcome]:
    """Return the outcome of each C, solved from the strongest penalty to the weakest.

    Without theta, the engine chooses where the first one starts. `extrapolate` does so with the
    scores of an engine that returns them.
    """
    C, penalties, configs = stages
    warm_start = WarmStart(theta, smooth=configs[0].smooth, extrapolate=extrapolate)
    outcomes: dict[int, Outcome] = {}
    for stage, i in enumerate(np.argsort(C, kind="stable").tolist()):
        first, scores = warm_start.start(C[i])
        l2, l1 = penalties[i]
        outcomes[i] = engine(l2, l1, first, scores, configs[i])
        warm_start.add(C[i], outcomes[i])
        if report is not None:
            report(
                {
                    "stage": stage + 1,
                    "stages": len(C),
                    "C": float(C[i]),
                    "converged": outcomes[i].converged.tolist(),
                }
            )
    return [outcomes[i] for i in range(len(C))]


def prepare_grid(
    C: "ArrayLike", gap: "ArrayLike", max_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of C, and the gap of each, `[P]`."""
    gaps = arguments.prepare_gaps(gap, max_iterations)
    strengths = arguments.as_real(C, "C").astype(np.float64)
    shape = strengths.shape
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"C: expected [P] and not empty, got shape {shape}")
    if gaps.shape not in ((), shape):
        raise ValueError(f"gap: expected one number or {shape}, got shape {gaps.shape}")
    return strengths, np.broadcast_to(gaps, shape)


def prepare_penalties(
    totals: np.ndarray, C: np.ndarray, l1_ratio: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return l2 and l1 of lanes whose weights have these sums, for each C."""
    return [arguments.prepare_penalties(totals, C=c, alpha=None, l1_ratio=l1_ratio) for c in C]


def _make_lanes(label_sets: list[Data], folds: "ArrayLike | None", several: bool) -> Lanes:
    """Return a lane for every fold and label set; `several` gives the result an axis for sets."""
    masks, axes = _fold_masks(folds, len(label_sets[0].weights))
    s = np.stack([masks * each.weights for each in label_sets], 1)  # [F, M, N]
    if not s.any(2).all():
        raise ValueError("folds: expected every fold to leave examples of positive weight")
    shapes = sorted({each.targets.shape for each in label_sets})
    if len(shapes) > 1:
        raise ValueError(f"targets: expected label sets of one shape, got {shapes}")
    t = np.stack([each.targets for each in label_sets])
    if several:
        t = np.tile(t, (len(masks), *(1,) * (t.ndim - 1)))
        axes = (*axes, len(label_sets))
    return Lanes(s.reshape(-1, s.shape[2]), t, axes)


def _fold_masks(folds: "ArrayLike | None", n: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the examples of each fit, `[F, N]`, and the axes that folds add to the result."""
    if folds is None:
        return np.ones((1, n)), ()
    f = np.asarray(folds)
    if f.dtype == bool and f.ndim == 2 and f.shape[1] == n:
        return f.astype(np.float64), (len(f),)
    if f.shape != (n,) or f.dtype.kind not in "iu" or f.max() < 0:
        raise ValueError(
            f"folds: expected integers of shape {(n,)}, some of at least 0, got {f.dtype}{f.shape}"
        )
    count = int(f.max()) + 1
    return (f[None] != np.arange(count)[:, None]).astype(np.float64), (count,)
