"""`solve` and `solve_path`: from a user's arrays to certified solutions."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.linear import LinearParams
from jaxsoftmax.losses import cross_entropy, soft_cross_entropy
from jaxsoftmax.solvers import prepare, shared_preconditioner
from jaxsoftmax.solvers.driver import Outcome, minimise
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.solution import Solution
from jaxsoftmax.solvers.warm_start import Path
from jaxsoftmax.validation import ArrayLike

MEMORY = 4 * 2**30  # bytes, for what is made beside the features


def solve(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Callable = cross_entropy,
    C: float | None = None,
    alpha: float | None = None,
    l1_ratio: float = 0.0,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    bias: bool = True,
    init: LinearParams | None = None,
    gap: float = 1e-6,
    method: str | None = None,
    max_iterations: int = 1000,
    memory: int = MEMORY,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> Solution:
    r"""Fit a linear classifier to a certified optimum.

    F(w, b) = sum_i s_i l(x_i w + b, y_i) / sum_i s_i
              + alpha ((1 - l1_ratio) / 2 ||w||^2 + l1_ratio |w|_1),    alpha = 1 / (C sum_i s_i)

    Args:
        features: floats `[N, D]`, or a SciPy sparse matrix, which stays sparse where one entry in
            a hundred or fewer is not 0, or where `memory` does not hold it dense.
        targets: integer labels `[N]` of `cross_entropy`; probabilities `[N, K]` of
            `soft_cross_entropy`; numbers in [0, 1], `[N]` or `[N, K]`, of `binary_cross_entropy`.
        loss: `cross_entropy`, `soft_cross_entropy` or `binary_cross_entropy`.
        C: scikit-learn's inverse strength of the penalty; C or alpha must be given.
        alpha: the strength in the mean form; 0 for no penalty, and then no bound.
        l1_ratio: the share of |w|_1 in the penalty, 0 to 1.
        weights: s, numbers of at least 0 or bools, `[N]`, or one number for all. What an example
            of weight 0 holds does not matter: its label may be -100, its features NaN.
        class_weights: `[K]`, or `[2]` for one binary label: factors of s by class. A target shared
            among classes counts as examples of each of them, of weight s t_k.
        bias: whether the model has one; it is not penalised.
        init: where to start. Its w also says how many classes there are, where no class_weights
            do; else the largest label does.
        gap: the certified relative distance from the optimum at which it stops.
        method: "newton-cg", "lbfgs" or "proximal"; by default the first, the last with l1.
        max_iterations: outer iterations.
        memory: bytes for what is made beside the features.
        callback: called after each iteration, under the caller's own setting of float64, with a
            dict: iteration, products, seconds (since the call); and lists of one number,
            objective and estimate (of its distance from the optimum); theta, the parameters in
            float64, a NumPy array `[1, K, D + 1]` with the intercepts last.

    Returns:
        A `Solution`: params of NumPy arrays in the dtype of the features, and the certificate.

    Numerics:
        Each row of probabilities must sum to 1, within 1e-3 or its dtype's rounding, and is divided
        by its sum; one that is to count for more or less has a weight. They stay in memory, in
        float32, or in float64 where they came so or class_weights are given: 4 or 8 N K bytes
        beside the scores, which take as much. Products run at HIGHEST precision. The certificate is
        evaluated in float64 at the params that are returned; float64 is enabled inside this
        function only.

    Raises:
        TypeError: features or targets of a wrong dtype. ValueError: shapes or values that do not
        fit, named; a label so large that it must be another numbering, where no class_weights or
        init say how many classes there are. MemoryError: sparse features whose entries alone
        exceed `memory`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> found = solvers.solve(x, np.array([0, 1, 0, 1]), C=1.0)
        >>> print(found.converged, round(float(found.objective), 6), found.params.w.shape)
        True 0.62025 (1, 2)

    Reference:
        `certificate` derives the bound; the inexact Newton method is that of Dembo, Eisenstat and
        Steihaug (1982).
    """
    start = time.perf_counter()
    told = _outside(callback)
    gaps = prepare.limits(gap, max_iterations)
    if gaps.ndim:
        raise ValueError(f"gap: expected one number, got shape {gaps.shape}")
    given = prepare.data(
        features,
        targets,
        loss=loss,
        weights=weights,
        class_weights=class_weights,
        memory=memory,
        classes=None if init is None or np.ndim(init.w) != 2 else np.shape(init.w)[1],
    )
    s, t = given.weights[None], given.targets[None]
    l2, l1 = prepare.penalties(s.sum(1), C=C, alpha=alpha, l1_ratio=l1_ratio)
    theta = _start(given, s, t, bias, init)
    with jax.enable_x64():
        problem = prepare.lanes(given, s, t, l2, l1)
        pre = shared_preconditioner.build(problem.features, problem.weights[0], memory)
        outcome = minimise(
            problem,
            given.head,
            _padded(theta, problem),
            gap=float(gaps),
            method=_method(method, l1_ratio),
            intercept=bias,
            pre=pre,
            limit=max_iterations,
            dtype=given.features.dtype.name,
            memory=memory,
            start=start,
            callback=told and functools.partial(_without_padding, told, given.features.shape[1]),
        )
    return _solution([outcome], given, (), bias, time.perf_counter() - start)


def solve_path(
    features: ArrayLike,
    targets: Any,
    *,
    C: ArrayLike,
    folds: ArrayLike | None = None,
    loss: Callable = cross_entropy,
    l1_ratio: float = 0.0,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    bias: bool = True,
    gap: ArrayLike = 1e-6,
    method: str | None = None,
    max_iterations: int = 1000,
    memory: int = MEMORY,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> Solution:
    r"""Fit a whole grid: every C, fold and label set, in lockstep over the same features.

    Folds and label sets are lanes of one compiled program, whose products are as wide as all of
    them; C goes from the strongest penalty to the weakest, each stage from the solutions before.

    Args:
        features: floats `[N, D]`, or a SciPy sparse matrix.
        targets: as of `solve`, or a list or tuple of M label sets with the same number of classes.
        C: `[P]`, in any order.
        folds: integers `[N]`: fold f is fitted without the examples that carry f; those that carry
            a negative number are in every fit. Or bools `[F, N]`: which examples each fit is of.
            None fits all examples once.
        loss: as of `solve`.
        l1_ratio: the share of |w|_1 in the penalty.
        weights: as of `solve`.
        class_weights: `[K]`, or `[2]` for one binary label.
        bias: whether the model has one.
        gap: the certified relative distance from the optimum of every fit; `[P]` gives each C its
            own, for strong penalties take little to be solved to many digits.
        method: as of `solve`.
        max_iterations: outer iterations of each stage.
        memory: bytes for what is made beside the features.
        callback: called after each stage, under the caller's own setting of float64, with a dict:
            stage, stages, C, converged (a list over the lanes), seconds.

    Returns:
        A `Solution` whose fields have the leading axes `[P, F, M]`, without F where there are no
        folds and without M where there is one label set.

    Raises:
        As `solve`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
        >>> path = solvers.solve_path(x, y, C=[0.1, 1.0], folds=[0, 0, 1, 1])
        >>> print(path.params.w.shape, path.converged.all())
        (2, 2, 1, 2) True
    """
    start = time.perf_counter()
    told = _outside(callback)
    alone = 1 if loss is soft_cross_entropy else 0  # axes of one of the rows of a list
    several = isinstance(targets, list | tuple) and np.ndim([*targets, 0][0]) > alone
    sets = [
        prepare.data(
            features, t, loss=loss, weights=weights, class_weights=class_weights, memory=memory
        )
        for t in (targets if several else [targets])
    ]
    given = sets[0]._replace(classes=max(one.classes for one in sets))
    s, t, tail = _lanes(sets, folds, several)
    strengths, gaps = _stages(C, prepare.limits(gap, max_iterations))
    penalties = [prepare.penalties(s.sum(1), C=c, alpha=None, l1_ratio=l1_ratio) for c in strengths]
    theta = _start(given, s, t, bias, None)
    found: list[Outcome] = [None] * len(strengths)  # type: ignore[list-item]
    with jax.enable_x64():
        zeros = np.zeros(len(s))
        problem = prepare.lanes(given, s, t, zeros, zeros)
        pre = shared_preconditioner.build(problem.features, jnp.mean(problem.weights, 0), memory)
        path = Path(_padded(theta, problem), smooth=l1_ratio == 0)
        for stage, i in enumerate(np.argsort(strengths, kind="stable")):
            l2, l1 = map(jnp.asarray, penalties[i])
            problem = problem._replace(l2=l2, l1=l1)
            begin, scores = path.start(strengths[i])
            found[i] = minimise(
                problem,
                given.head,
                begin,
                gap=float(gaps[i]),
                method=_method(method, l1_ratio),
                intercept=bias,
                pre=pre,
                limit=max_iterations,
                dtype=given.features.dtype.name,
                memory=memory,
                start=start,
                scores=scores,
            )
            path.add(strengths[i], found[i])
            if told is not None:
                seconds = time.perf_counter() - start
                told(
                    {
                        "stage": stage + 1,
                        "stages": len(strengths),
                        "C": float(strengths[i]),
                        "converged": found[i].converged.tolist(),
                        "seconds": seconds,
                    }
                )
    return _solution(found, given, (len(strengths), *tail), bias, time.perf_counter() - start)


def _outside(
    callback: Callable[[dict[str, Any]], object] | None,
) -> Callable[[dict[str, Any]], object] | None:
    """The callback under the setting of float64 in which the user wrote it: that of now."""
    if callback is None:
        return None
    double = jnp.result_type(float) == jnp.float64

    def told(figures: dict[str, Any]) -> object:
        with jax.enable_x64(double):
            return callback(figures)

    return told


def _without_padding(
    told: Callable[[dict[str, Any]], object], columns: int, figures: dict[str, Any]
) -> object:
    """Tell the figures with the parameters of the user's columns alone."""
    theta = np.delete(figures["theta"], np.s_[columns:-1], -1)
    return told(figures | {"theta": theta})


def _method(method: str | None, l1_ratio: float) -> str:
    """The method, where the penalty allows it."""
    chosen = method or ("proximal" if l1_ratio > 0 else "newton-cg")
    names = ("newton-cg", "lbfgs", "proximal")
    if chosen not in names:
        raise ValueError(f"method: expected one of {', '.join(names)}, got {method!r}")
    if l1_ratio > 0 and chosen != "proximal":
        raise ValueError(f"method: expected proximal, as l1_ratio is {l1_ratio}, got {method!r}")
    return chosen


def _stages(C: ArrayLike, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of C, and the gap of each, `[P]`."""
    strengths = prepare.numbers(C, "C").astype(np.float64)
    if strengths.ndim != 1 or not len(strengths):
        raise ValueError(f"C: expected [P] and not empty, got shape {strengths.shape}")
    if gaps.shape not in ((), strengths.shape):
        raise ValueError(f"gap: expected one number or {strengths.shape}, got shape {gaps.shape}")
    return strengths, np.broadcast_to(gaps, strengths.shape)


def _lanes(
    sets: list[prepare.Data], folds: ArrayLike | None, several: bool
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Weights `[L, N]` and targets of every fold and label set, and the axes of the result."""
    masks, tail = _masks(folds, sets[0].features.shape[0])
    s = np.stack([masks * one.weights for one in sets], 1)  # [F, M, N]
    if not s.any(2).all():
        raise ValueError("folds: expected every fold to leave examples of positive weight")
    shapes = sorted({one.targets.shape for one in sets})
    if len(shapes) > 1:
        raise ValueError(f"targets: expected label sets of one shape, got {shapes}")
    t = np.stack([one.targets for one in sets])
    t = np.tile(t, (len(masks), *(1,) * (t.ndim - 1))) if several else t
    return s.reshape(-1, s.shape[2]), t, (*tail, len(sets)) if several else tail


def _masks(folds: ArrayLike | None, n: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which examples each lane is fitted to, `[F, N]`, and the axis that this gives a result."""
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


def _start(
    given: prepare.Data, s: np.ndarray, t: np.ndarray, bias: bool, init: LinearParams | None
) -> np.ndarray:
    """Packed parameters to start from, `[L, K, D + 1]`."""
    features = given.features.shape[1]
    theta = np.zeros((len(s), given.classes, features + 1))
    limits = prepare.intercepts(given, s, t) if bias else np.zeros(theta.shape[:2])
    if init is not None:
        w = np.asarray(init.w, np.float64)
        if w.shape != (features, given.classes) or (init.bias is None) == bias:
            raise ValueError(
                f"init: expected w {(features, given.classes)} and "
                f"{'a' if bias else 'no'} bias, got w {w.shape} and bias "
                f"{None if init.bias is None else np.shape(init.bias)}"
            )
        if not np.isfinite(w).all():
            raise ValueError("init: expected finite numbers in w")
        theta[:, :, :-1] = w.T
        if init.bias is not None:
            b = np.asarray(init.bias, np.float64)
            if b.shape != (given.classes,):
                raise ValueError(f"init: expected bias {(given.classes,)}, got {b.shape}")
            theta[:, :, -1] = np.where(np.isfinite(b), b, 0)
    absent = ~np.isfinite(limits)
    theta[absent] = 0
    theta[..., -1] = np.where(absent, limits, theta[..., -1])
    return theta


def _padded(theta: np.ndarray, problem: Problem) -> Array:
    """Parameters with zeros for the problem's columns of padding."""
    features = theta.shape[-1] - 1
    unused = problem.features.shape[1] - features
    return jnp.asarray(np.insert(theta, [features] * unused, 0, -1))


def _solution(
    outcomes: list[Outcome],
    given: prepare.Data,
    axes: tuple[int, ...],
    bias: bool,
    seconds: float,
) -> Solution:
    """Outcomes with the given leading axes."""
    dtype = given.features.dtype

    def stacked(name: str) -> np.ndarray:
        values = np.stack([getattr(outcome, name) for outcome in outcomes])
        return values.reshape((*axes, *values.shape[2:]))

    theta = stacked("theta")
    w: Any = np.swapaxes(theta[..., : given.features.shape[1]], -1, -2).astype(dtype)
    b: Any = theta[..., -1].astype(dtype) if bias else None
    figures = {
        field: stacked(name) if axes else stacked(name).item()
        for field, name in {
            "objective": "value",
            "gap": "gap",
            "gap_floor": "floor",
            "gradient_norm": "gradient_norm",
            "iterations": "iterations",
            "products": "products",
            "converged": "converged",
            "reason": "reason",
        }.items()
    }
    return Solution(
        params=LinearParams(w, b),
        seconds=np.full(axes, seconds) if axes else seconds,
        **figures,
    )
