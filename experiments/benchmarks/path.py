"""A path of penalties and folds at once, against fits one after the other.

Question. 45 values of C from 1e-4 to 1e4 times 5 folds, 5,000 x 256 float64, 50 classes. How long
does `solve_path` take to certify all 225 fits to 1e-3, against scikit-learn's fits at a tolerance
that reaches it, against LogisticRegressionCV's defaults, and against a loop of warm-started single
solves of this library? scikit-learn and the loop are timed on one fold, times 5, and scikit-learn's
single fits on every ninth C. It takes five minutes, and an idle machine.

Findings, on two cores. All 225 fits are certified, 20 times as fast as scikit-learn at tolerances
that reach the same and 5.5 times as fast as a loop of single solves. LogisticRegressionCV's
defaults, which end at up to 266 times the lowest objective where C is large, take 2.6 times as long
as a path that is nowhere above them if BLAS uses one thread, and 6.5 times at its default of two.
The first of these varies: five turns in this run gave 2.4 to 2.9, and an earlier run less.
"""

import time
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from benchmarks import scikit_learn
from benchmarks.timing import Conditions, Step, compared
from jaxsoftmax.solvers import solve, solve_path

# Examples, features and classes; how many values of C.
SIZES, FEW = ((5000, 256, 50), 45), ((200, 8, 3), 5)
FOLDS, GAP, EVERY = 5, 1e-3, 9
TURNS = 5
# C, and a gap below what LogisticRegressionCV's defaults leave there.
LEFT = (
    (2e-3, 2.8e-3, 7e-3, 0.015, 0.035, 0.3, 0.5, 1.0, 1.6, 2.4, 5.0),
    (1e-7, 6e-6, 1.8e-5, 7e-5, 4e-4, 1e-3, 3.5e-3, 7e-3, 0.04, 0.11, 0.28),
)


def steps(conditions: Conditions) -> list[Step]:
    """Return a step for fits to one gap, and one for gaps below what defaults leave."""
    sizes, count = FEW if conditions.smoke else SIZES
    C, fits = np.logspace(-4, 4, count), FOLDS * count
    return [
        Step(f"{fits} fits to {GAP:g}", partial(to_a_gap, sizes, C)),
        Step(f"{fits} fits, cross-validation", partial(to_their_gaps, sizes, C)),
    ]


def around_centers(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return classes around overlapping centers: features float64 [n, d] and labels."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, d))
    y = rng.integers(0, classes, n)
    return 0.5 * centers[y] + rng.normal(size=(n, d)), y


def to_a_gap(sizes: tuple[int, int, int], C: np.ndarray) -> dict[str, Any]:
    """Measure fits to one gap, by a loop of this library's solves and by scikit-learn too."""
    x, y = around_centers(*sizes)
    folds = np.arange(len(y)) % FOLDS
    first = time.perf_counter()
    solve_path(x, y, C=C, folds=folds, gap=GAP)
    first = time.perf_counter() - first
    path = solve_path(x, y, C=C, folds=folds, gap=GAP)
    kept = folds != 0
    loop = FOLDS * one_by_one(x[kept], y[kept], C)
    chosen = range(0, len(C), EVERY)
    tight = [tolerant(x[kept], y[kept], C[i], path.objective[i, 0]) for i in chosen]
    theirs = FOLDS * len(C) * float(np.mean([seconds for seconds, _ in tight]))
    ways = {"solve_path": path.seconds.flat[0], "loop of solve": loop, "scikit-learn": theirs}
    entry = compared({name: float(seconds) for name, seconds in ways.items()}) | {
        "all certified": bool(path.converged.all()),
        "fits": path.gap.size,
        "largest certified gap": float(path.gap.max()),
        "first call seconds, with compilation": first,
        "scikit-learn tolerances": [tol for _, tol in tight],
    }
    print(entry)
    return entry


def to_their_gaps(sizes: tuple[int, int, int], C: np.ndarray) -> dict[str, Any]:
    """Measure fits that are nowhere above LogisticRegressionCV's, and those, in turns."""
    x, y = around_centers(*sizes)
    folds = np.arange(len(y)) % FOLDS
    kept = folds != 0
    gaps = np.exp(np.interp(np.log(C), *np.log(LEFT)))
    solve_path(x, y, C=C, folds=folds, gap=gaps)
    split = [(np.flatnonzero(kept), np.flatnonzero(~kept))]
    turns = []
    for _ in range(TURNS):
        path = solve_path(x, y, C=C, folds=folds, gap=gaps)
        model = LogisticRegressionCV(Cs=C, cv=split, refit=False)
        spent, model = scikit_learn.by_threads(model, x, y)
        turns.append((float(path.seconds.flat[0]), FOLDS * spent[1], FOLDS * spent[2]))
    ways = ("solve_path", "LogisticRegressionCV", "LogisticRegressionCV, 2 threads")
    over = over_ours(model, x[kept], y[kept], path.objective[:, 0])
    entry = compared(dict(zip(ways, np.median(turns, 0).tolist(), strict=True))) | {
        "all certified": bool(path.converged.all()),
        "turns of path, one thread, two threads": turns,
        "LogisticRegressionCV over the path, by turn": [one / ours for ours, one, _ in turns],
        "LogisticRegressionCV objectives over ours, least": min(over),
        "LogisticRegressionCV objectives over ours, greatest": max(over),
    }
    print(entry)
    return entry


def over_ours(
    model: LogisticRegressionCV, x: np.ndarray, y: np.ndarray, ours: np.ndarray
) -> list[float]:
    """Return the objectives of a model's path over those of ours."""
    paths = np.stack(list(model.coefs_paths_.values()), 2)[0]  # [C, classes, D + 1], bias last
    return [
        scikit_learn.objective(at[:, :-1].T, at[:, -1], x, y, C) / best
        for at, C, best in zip(paths, model.Cs_, ours, strict=True)
    ]


def one_by_one(x: np.ndarray, y: np.ndarray, C: np.ndarray) -> float:
    """Return the seconds of single solves, each started from the previous one."""
    solve(x, y, C=C[0], gap=GAP)
    start, params = time.perf_counter(), None
    for c in C:
        params = solve(x, y, C=c, gap=GAP, init=params).params
    return time.perf_counter() - start


def tolerant(x: np.ndarray, y: np.ndarray, C: float, best: float) -> tuple[float, float]:
    """Return the seconds of scikit-learn's fit at the first tolerance within the gap of ours."""
    for tol in 10.0 ** -np.arange(4, 12):
        model = LogisticRegression(C=C, tol=tol, max_iter=100_000)
        seconds, model = scikit_learn.by_threads(model, x, y)
        reached = scikit_learn.objective(*scikit_learn.parameters(model), x, y, C)
        if reached <= best * (1 + GAP):
            break
    return min(seconds.values()), float(tol)
