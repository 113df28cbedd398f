"""The proximal operator of the l1 norm in the metric of the preconditioner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax.solvers import class_shift, proximal_operator, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.proximal_operator import Metric

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("n", [200, 9], ids=["tall", "wide"])
def test_the_proximal_operator_minimizes_the_lasso(
    n: int, centered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proximal_operator, "ACCURACY", 1e-3)
    rng = np.random.default_rng(1)
    x = 0.1 * rng.normal(size=(n, 20)) + rng.normal(size=(n, 2)) @ rng.normal(size=(2, 20)) + 2
    w = rng.normal(size=(1, 3, 20)) * (rng.random((1, 3, 20)) < 0.5)
    slope, c, l2, l1 = rng.normal(size=(1, 3, n)) @ x / n, np.array([0.1, 1.0, 3.0]), 0.1, 0.3
    with jax.enable_x64():
        basis = shared_preconditioner.build(jnp.asarray(x), jnp.ones(n), 2**30)
        metric = Metric(basis, jnp.asarray(c)[None, :, None], jnp.full((1, 1, 1), l2), centered)
        v = np.asarray(
            proximal_operator.prox(metric, *map(jnp.asarray, (w, slope, np.full((1, 1, 1), l1))))
        )
    gram = np.cov(x.T, bias=True) if centered else x.T @ x / n
    for k in range(3):
        a = c[k] * gram + l2 * np.eye(20)
        best = _lasso(a, w[0, k], slope[0, k], l1)
        values = [_model(a, w[0, k], slope[0, k], l1, each) for each in (w[0, k], v[0, k], best)]
        assert values[1] - values[2] <= 1e-3 * (values[0] - values[2])
        assert (v[0, k] == 0).sum() >= 0.8 * (best == 0).sum() > 0


def test_the_best_shift_of_a_tilted_problem() -> None:
    rng = np.random.default_rng(2)
    w, tilt = rng.normal(size=(1, 5, 40)), rng.normal(size=(1, 5, 40))
    l2, l1, none = 0.7, 0.4, jnp.zeros((1, 1))
    theta, packed = (np.insert(a, 40, 0, -1) for a in (w, tilt))
    with jax.enable_x64():
        problem = problems.Problem(
            none, none, none, jnp.full(1, l2), jnp.full(1, l1), none, jnp.asarray(packed)
        )
        moved = np.asarray(class_shift.remove(problem, "softmax", jnp.asarray(theta)))[..., :-1]

    def penalty(w: np.ndarray) -> np.ndarray:
        return np.sum(l2 / 2 * w**2 + l1 * np.abs(w) + tilt * w, (0, 1))

    for shift in (1e-3, -1e-3, 1.0, -1.0):
        assert np.all(penalty(moved) < penalty(moved + shift))


def _model(a: np.ndarray, w: np.ndarray, slope: np.ndarray, l1: float, v: np.ndarray) -> float:
    return float(slope @ (v - w) + 0.5 * (v - w) @ a @ (v - w) + l1 * np.abs(v).sum())


def _lasso(a: np.ndarray, w: np.ndarray, slope: np.ndarray, l1: float) -> np.ndarray:
    """Coordinate descent, far beyond the accuracy that is tested."""
    v = w.copy()
    for _ in range(3000):
        for j in range(len(v)):
            target = v[j] - (slope[j] + a[j] @ (v - w)) / a[j, j]
            v[j] = np.sign(target) * max(abs(target) - l1 / a[j, j], 0)
    return v
