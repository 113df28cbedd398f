"""Beside Cyanure, which certifies too: it stops at a relative duality gap.

Question. How long does `solve` take to a certified gap, and how long does Cyanure (Inria; on the
CPU) to the same duality gap? Both fit the softmax with an unpenalized intercept at the same C, the
small sets on one thread and the others on all, and take turns; what takes long is measured once.
`--cyanure PYTHON` is an interpreter that has Cyanure. The problems are those of optimum.py and, to
1e-6, of small_sets.py, as far as their data are there. Images are float32 here and float64 for
Cyanure, which warns of float32; MNIST is tried in float32 too. Objectives are computed in float64
from the parameters.

Findings, with Cyanure 1.2.2 on two idle cores.
- MNIST is certified to 3.0e-07 in 7.1 processor seconds, and by Cyanure to 4.0e-07 in 51.0, which
  it spends on one core; Fashion-MNIST to 5.2e-06 in 16.1, and to 7.2e-06 in 55.5. In float32
  Cyanure ends at a gap of 5.3e-03 on MNIST, although its objective is as low as ours. Raw digits
  take 0.043 and 1.1.
- With an intercept its gap is no bound. It is negative on iris and on standardized digits: raw iris
  stops at -6.2e-03, where the objective is 4.9e-04 above ours, and standardized iris 9.6e-04 above.
  Without an intercept it was a bound on iris. Raw wine ends after 100,000 iterations at 2.4e-04.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from benchmarks import optimum, scikit_learn, small_sets
from benchmarks.timing import Conditions, Step, compared
from jaxsoftmax.solvers import solve

SCRIPT = Path(__file__).with_name("in_cyanure.py")
GAP = 1e-6  # of the small sets
TURNS, LONG = 5, 20.0  # seconds after which no turn starts
HERE, THERE = "solve", "Cyanure"


class Problem(NamedTuple):
    """How to read the data, the penalty, the wanted gap, Cyanure's dtype, and how many threads."""

    read: Callable[[], tuple[Any, np.ndarray]]
    C: float
    gap: float
    dtype: str = "float64"
    threads: int | None = None  # all


def steps(conditions: Conditions) -> list[Step]:
    """Return a step for each problem, the quickest first."""
    if conditions.cyanure is None:
        print("cyanure is left out: no interpreter that has it is given")
        return []
    found = problems(conditions)
    return [Step(name, partial(beside, conditions.cyanure, p)) for name, p in found.items()]


def problems(conditions: Conditions) -> dict[str, Problem]:
    """Return the problems whose data are there."""
    found = {}
    for name in ("iris", "wine", "digits"):
        for form, standardized in small_sets.FORMS.items():
            read = partial(scikit_learn.bundled, name, standardized=standardized)
            found[f"{name}, {form}"] = Problem(read, 1.0, GAP, threads=1)
    text = optimum.newsgroups(conditions.newsgroups)
    if text is not None:
        found["newsgroups"] = Problem(lambda: text, optimum.PENALTY, optimum.GAP)
    for name, (_, gap) in optimum.IMAGES.items() if conditions.data_dir else ():
        found[name] = Problem(partial(optimum.images, name, conditions.data_dir), 1.0, gap)
    if "mnist" in found:
        found["mnist, Cyanure in float32"] = found["mnist"]._replace(dtype="float32")
    return found


def beside(python: str, problem: Problem) -> dict[str, Any]:
    """Measure both, in turns while there is time."""
    x, y = problem.read()
    solve(x, y, C=problem.C, gap=problem.gap)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        write(file, x.astype(problem.dtype), y)
        start, turns = time.perf_counter(), []
        while not turns or (len(turns) < TURNS and time.perf_counter() - start < LONG):
            turns.append({HERE: certified(x, y, problem), THERE: by_cyanure(python, file, problem)})
        with np.load(file.with_suffix(".fit.npz")) as fit:
            reached = scikit_learn.objective(fit["coef"], fit["intercept"], x, y, problem.C)
    last = turns[-1]
    last[THERE]["objective"] = reached
    entry = compared({way: median(turns, way, "seconds") for way in last}) | {
        "processor seconds": {way: median(turns, way, "processor seconds") for way in last},
        "gap": {way: last[way]["gap"] for way in last},
        "iterations": {way: last[way]["iterations"] for way in last},
        "Cyanure's objective over ours, less 1": reached / last[HERE]["objective"] - 1,
        "turns": len(turns),
    }
    print(entry)
    return entry


def median(turns: list[dict[str, dict[str, float]]], way: str, figure: str) -> float:
    """Return the median of a figure over the turns."""
    return float(np.median([turn[way][figure] for turn in turns]))


def certified(x: Any, y: np.ndarray, problem: Problem) -> dict[str, float]:
    """Return the figures of this library's fit."""
    with threadpool_limits(problem.threads, user_api="blas"):
        processor = time.process_time()
        found = solve(x, y, C=problem.C, gap=problem.gap)
        processor = time.process_time() - processor
    return {
        "seconds": found.seconds,
        "processor seconds": processor,
        "gap": found.gap,
        "iterations": found.iterations,
        "objective": found.objective,
    }


def by_cyanure(python: str, file: Path, problem: Problem) -> dict[str, float]:
    """Return the figures of Cyanure's fit, in a process of its own."""
    command = [python, SCRIPT, file, str(problem.C), str(problem.gap)]
    threads = {"OMP_NUM_THREADS": str(problem.threads)} if problem.threads else {}
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
    ).stdout
    return json.loads(printed.splitlines()[-1])


def write(file: Path, x: Any, y: np.ndarray) -> None:
    """Write the arrays that in_cyanure.py reads."""
    if scipy.sparse.issparse(x):
        parts = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": x.shape}
        np.savez(file, y=y, **parts)
    else:
        np.savez(file, y=y, x=x)
