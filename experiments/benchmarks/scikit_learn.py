"""Fits by scikit-learn for the parts that compare with it, and the objective of any fit.

`objective` is mean loss + ||w||^2 / (2 C n) in float64. scikit-learn's model of two classes is one
sigmoid, which is the softmax of the scores 0 and z at the same C.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

warnings.filterwarnings("ignore", module=r"sklearn\.")  # that a fit has not converged
BUNDLED: dict[str, Callable[..., Any]] = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}


def bundled(name: str, *, standardized: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return features float64 and labels of a data set that scikit-learn includes."""
    x, y = BUNDLED[name](return_X_y=True)
    return StandardScaler().fit_transform(x) if standardized else x, y


def objective(w: Any, b: Any, x: Any, y: np.ndarray, C: float) -> float:
    """Return the objective of weights [D, K] without a float64 copy of all features."""
    w, b, total = np.asarray(w, np.float64), np.asarray(b, np.float64), 0.0
    for rows in np.array_split(np.arange(len(y)), max(1, x.size // 2**24)):
        z = x[rows].astype(np.float64) @ w + b
        total += np.sum(scipy.special.logsumexp(z, axis=1) - z[np.arange(len(rows)), y[rows]])
    return float((total + np.sum(w**2) / (2 * C)) / len(y))


def parameters(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [D, K] and biases of a model."""
    w, b = model.coef_.T, model.intercept_
    if w.shape[1] == 1:
        w, b = np.pad(w, ((0, 0), (1, 0))), np.pad(b, (1, 0))
    return w, b


def stop(x: Any, y: np.ndarray, C: float, **how: Any) -> dict[str, Any]:
    """Return seconds at the faster of 1 and 2 BLAS threads, objective and iterations."""
    processor = time.process_time()
    seconds, model = by_threads(LogisticRegression(C=C, **how), x, y, threads=(1,))
    processor = time.process_time() - processor
    seconds |= by_threads(model, x, y, threads=(2,))[0]
    fastest = min(seconds, key=seconds.__getitem__)
    return {
        "seconds": seconds[fastest],
        "blas threads": fastest,
        "processor seconds with one thread": processor,
        "objective": objective(*parameters(model), x, y, C),
        "iterations": int(model.n_iter_[0]),
    }


def by_threads(
    model: Any, x: Any, y: np.ndarray, *, threads: tuple[int, ...] = (1, 2)
) -> tuple[dict[int, float], Any]:
    """Return the seconds of a model's fit for each number of BLAS threads, and the model."""
    seconds = {}
    for count in threads:
        with threadpool_limits(count, user_api="blas"):
            start = time.perf_counter()
            model.fit(x, y)
            seconds[count] = time.perf_counter() - start
    return seconds, model
