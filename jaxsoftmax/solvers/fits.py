"""A fit of arrays: from checked arguments to the start, and from an outcome to the solution.

`solve_on_host` is all of a small fit, and nothing on its way imports JAX.
"""

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsoftmax.linear_params import LinearParams
from jaxsoftmax.solvers import arguments, host
from jaxsoftmax.solvers.arguments import Data, TargetKind
from jaxsoftmax.solvers.outcome import Callback, Outcome, SolverConfig
from jaxsoftmax.solvers.solution import Solution

if TYPE_CHECKING:
    from jaxsoftmax.validation import ArrayLike


class Fit(NamedTuple):
    """One fit, as an engine takes it: a lane."""

    data: Data
    theta: np.ndarray  # where it starts: [1, K, D + 1]
    l2: np.ndarray  # [1]
    l1: np.ndarray  # [1]
    config: SolverConfig


def prepare_fit(
    features: "ArrayLike",
    targets: "ArrayLike",
    *,
    kind: TargetKind,
    C: float | None,
    alpha: float | None,
    l1_ratio: float,
    weights: "ArrayLike | None",
    class_weights: "ArrayLike | None",
    bias: bool,
    init: LinearParams | None,
    gap: float,
    max_iterations: int,
    memory: int,
) -> Fit:
    """Check the arguments of `solve` and return the fit."""
    gap = arguments.prepare_gap(gap, max_iterations)
    data = arguments.check_data(
        features,
        targets,
        kind=kind,
        weights=weights,
        class_weights=class_weights,
        memory=memory,
        classes=num_classes(init),
    )
    s, t = data.weights[None], data.targets[None]
    l2, l1 = arguments.prepare_penalties(s.sum(1), C=C, alpha=alpha, l1_ratio=l1_ratio)
    theta = initial_theta(data, s, t, bias, init)
    return Fit(data, theta, l2, l1, make_config(data, gap, l1_ratio, bias, max_iterations, memory))


def solve_on_host(fit: Fit, start: float, callback: Callback | None) -> Solution:
    """Return the solution of a fit that suits the engine of the host, begun at `start`."""
    data, theta, bias = fit.data, fit.theta[0], fit.config.intercept
    lane = host.Lane.create(data, data.weights, data.targets, theta, bias=bias)
    outcome = host.minimize(lane.penalized(fit.l2[0]), theta, fit.config, callback=callback)
    return make_solution([outcome], data, (), bias, time.perf_counter() - start)


def num_classes(init: LinearParams | None) -> int | None:
    """Return the number of classes of parameters to start from, None if there are none."""
    return None if init is None or np.ndim(init.w) != 2 else np.shape(init.w)[1]


def make_config(
    data: Data,
    gap: Any,
    l1_ratio: float,
    bias: bool,
    max_iterations: int,
    memory: int,
) -> SolverConfig:
    """Return the settings of an engine."""
    return SolverConfig(
        link=data.link,
        gap=float(gap),
        smooth=l1_ratio == 0,
        intercept=bias,
        max_iterations=max_iterations,
        dtype=data.features.dtype.name,
        memory=memory,
    )


def initial_theta(
    data: Data, s: np.ndarray, t: np.ndarray, bias: bool, init: LinearParams | None
) -> np.ndarray:
    """Return packed parameters to start from, `[L, K, D + 1]`."""
    theta = np.zeros((len(s), data.classes, data.features.shape[1] + 1))
    limits = arguments.initial_intercepts(data, s, t) if bias else np.zeros(theta.shape[:2])
    if init is not None:
        theta[:] = pack_init(data, bias, init)
    absent = ~np.isfinite(limits)
    theta[absent] = 0
    theta[..., -1] = np.where(absent, limits, theta[..., -1])
    return theta


def pack_init(data: Data, bias: bool, init: LinearParams) -> np.ndarray:
    """Check `init` and return it packed, `[K, D + 1]`, with 0 for an infinite bias."""
    shape = (data.features.shape[1], data.classes)
    w = np.asarray(init.w, np.float64)
    if w.shape != shape or (init.bias is None) == bias:
        raise ValueError(
            f"init: expected w {shape} and {'a' if bias else 'no'} bias, got w {w.shape} and bias "
            f"{None if init.bias is None else np.shape(init.bias)}"
        )
    if not np.isfinite(w).all():
        raise ValueError("init: expected finite numbers in w")
    b = np.zeros(data.classes) if init.bias is None else np.asarray(init.bias, np.float64)
    if b.shape != (data.classes,):
        raise ValueError(f"init: expected bias {(data.classes,)}, got {b.shape}")
    return np.concatenate([w.T, np.where(np.isfinite(b), b, 0)[:, None]], 1)


def make_solution(
    outcomes: list[Outcome],
    data: Data,
    axes: tuple[int, ...],
    bias: bool,
    seconds: float,
) -> Solution:
    """Return outcomes as a solution whose fields have the given leading axes."""

    def stack(field: str) -> np.ndarray:
        values = np.stack([getattr(outcome, field) for outcome in outcomes])
        return values.reshape((*axes, *values.shape[2:]))

    def figure(field: str) -> Any:
        return stack(field) if axes else stack(field).item()

    theta, dtype = stack("theta"), data.features.dtype
    w: Any = np.swapaxes(theta[..., : data.features.shape[1]], -1, -2).astype(dtype)
    b: Any = theta[..., -1].astype(dtype) if bias else None
    return Solution(
        params=LinearParams(w, b),
        objective=figure("value"),
        gap=figure("gap"),
        gap_floor=figure("floor"),
        gradient_norm=figure("gradient_norm"),
        iterations=figure("iterations"),
        products=figure("products"),
        seconds=np.full(axes, seconds) if axes else seconds,
        converged=figure("converged"),
        status=figure("status"),
        reason=figure("reason"),
    )
