"""Certificates against optima of fifty digits, found by a Newton method that shares no code."""

import mpmath
import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.preprocessing import StandardScaler

from jaxsoftmax import binary_cross_entropy, cross_entropy
from jaxsoftmax.solvers import Solution, host, solve

Array = np.ndarray
exp, log, exact = (
    np.frompyfunc(f, 1, 1) for f in (mpmath.exp, mpmath.log, lambda a: mpmath.mpf(float(a)))
)
pytestmark = pytest.mark.usefixtures("unoptimized")

SETS = {"iris": load_iris, "wine": load_wine}


class Fit:
    """F and its least value, in the working precision of mpmath, over theta `[D + 1, K]`."""

    def __init__(self, x: Array, y: Array, *, C: float, l1_ratio: float, sigmoid: bool) -> None:
        self.x = np.concatenate([exact(x), np.full((len(x), 1), mpmath.mpf(1))], 1)
        classes = 1 if sigmoid else int(y.max()) + 1
        self.t = exact(y[:, None] == (1 if sigmoid else np.arange(classes)))
        self.sigmoid = sigmoid
        alpha = 1 / (mpmath.mpf(C) * len(x))
        self.l1, self.l2 = alpha * mpmath.mpf(l1_ratio), alpha * (1 - mpmath.mpf(l1_ratio))

    def value(self, theta: Array) -> mpmath.mpf:
        """Return F."""
        z, w = self.x @ theta, theta[:-1]
        lse = log(1 + exp(z)) if self.sigmoid else log(exp(z).sum(1, keepdims=True))
        loss = (lse.sum() - (self.t * z).sum()) / len(z)
        return loss + self.l2 / 2 * (w * w).sum() + self.l1 * abs(w).sum()

    def _smooth(self, theta: Array) -> tuple[Array, Array]:
        """Return gradient `[D + 1, K]` and Hessian of F without |w|_1."""
        n, (d, k) = len(self.x), theta.shape
        e = exp(self.x @ theta)
        p = e / (1 + e) if self.sigmoid else e / e.sum(1, keepdims=True)
        ridge = np.array([*[self.l2] * (d - 1), mpmath.mpf(0)])
        hessian = np.full((d, k, d, k), mpmath.mpf(0))
        for a in range(k):
            for b in range(k):
                h = p[:, a] * ((a == b) - p[:, b]) / n
                hessian[:, a, :, b] = (self.x * h[:, None]).T @ self.x + (a == b) * np.diag(ridge)
        return self.x.T @ (p - self.t) / n + ridge[:, None] * theta, hessian

    def minimize(self, start: Array) -> tuple[Array, mpmath.mpf]:
        """Return the optimum near `start`, whose zeros and signs are proven under l1."""
        theta = exact(start)
        free = (theta != 0) | (self.l1 == 0)
        free[-1] = True
        slope = self.l1 * np.sign(start)
        slope[-1] = mpmath.mpf(0)
        for _ in range(12):
            gradient, hessian = self._smooth(theta)
            step = self._newton_step((gradient + slope)[free], hessian[free][:, free])
            theta[free] -= step
            decrement = abs(((gradient + slope)[free] * step).sum())
            if decrement < mpmath.mpf(10) ** -40 * self.value(theta):
                break
        else:
            raise AssertionError(f"no optimum of fifty digits: decrement {decrement}")
        if self.l1:
            assert (np.sign(theta)[:-1] == np.sign(start)[:-1]).all()
            assert (abs(self._smooth(theta)[0])[~free] <= self.l1).all()
        return theta, self.value(theta)

    def _newton_step(self, gradient: Array, hessian: Array) -> Array:
        # The softmax does not see one constant added to all biases, the last K unknowns: the
        # matrix of ones there makes the Hessian regular and moves no step.
        if not self.sigmoid:
            k = self.t.shape[1]
            hessian = hessian.copy()
            hessian[-k:, -k:] += mpmath.mpf(1)
        return np.array(list(mpmath.lu_solve(mpmath.matrix(hessian.tolist()), list(gradient))))


def rows(name: str, seed: int, n: int = 66) -> tuple[Array, Array]:
    """Draw rows and three columns of a bundled set, standardized, or of random classes."""
    rng = np.random.default_rng(seed)
    if name in SETS:
        x, y = SETS[name](return_X_y=True)
        chosen = rng.permutation(len(x))[:n]
        columns = rng.permutation(x.shape[1])[:3]
        return StandardScaler().fit_transform(x[chosen][:, columns]), y[chosen]
    latent, mixing = rng.normal(size=(n, 3)), rng.normal(size=(3, 3))
    y = np.argmax(latent @ rng.normal(size=(3, 3)) + rng.gumbel(size=(n, 3)), 1)
    return latent @ mixing * 10.0 ** rng.integers(-2, 3, 3), y


@pytest.fixture(params=["host", "compiled"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One engine after the other."""
    if request.param == "compiled":
        monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    return request.param


def theta_of(found: Solution) -> Array:
    """Return weights and biases, as they were returned, in float64."""
    return np.concatenate([found.params.w, found.params.bias[None]]).astype(float)


def assert_certified(
    found: Solution, fit: Fit, gap: float, *, start: Solution | None = None
) -> None:
    """Compare a solution's objective and gap with fifty digits of both."""
    value = fit.value(exact(theta_of(found)))
    _, least = fit.minimize(theta_of(start or found))
    assert least <= value
    assert abs(found.objective / value - 1) < 1e-12
    assert (value - least) / value <= found.gap + found.gap_floor
    assert found.converged == (found.gap <= gap), found.reason


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("name", [*SETS, "random"])
def test_certificates_are_true_to_fifty_digits(name: str, sigmoid: bool, engine: str) -> None:
    loss = binary_cross_entropy if sigmoid else cross_entropy
    for seed, C in enumerate((1e-4, 1.0, 1e3, 1e8)):
        x, y = rows(name, seed)
        x = x.astype(np.float64 if engine == "compiled" or seed % 2 else np.float32)
        with mpmath.workdps(50):
            fit = Fit(x, y, C=C, l1_ratio=0, sigmoid=sigmoid)
            found = solve(x, (y == 1) if sigmoid else y, loss=loss, C=C, gap=1e-9)
            assert_certified(found, fit, 1e-9)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("name", [*SETS, "random"])
def test_certificates_with_l1_are_true_to_fifty_digits(name: str, sigmoid: bool) -> None:
    loss = binary_cross_entropy if sigmoid else cross_entropy
    for seed, (C, l1_ratio) in enumerate([(0.3, 0.95), (3.0, 0.5), (1e3, 0.9)], start=5):
        x, y = rows(name, seed)
        y = (y == 1) if sigmoid else y
        with mpmath.workdps(50):
            fit = Fit(x, y, C=C, l1_ratio=l1_ratio, sigmoid=sigmoid)
            best = solve(x, y, loss=loss, C=C, l1_ratio=l1_ratio, gap=1e-13)
            for gap in (1e-2, 1e-7):
                found = solve(x, y, loss=loss, C=C, l1_ratio=l1_ratio, gap=gap)
                assert_certified(found, fit, gap, start=best)
