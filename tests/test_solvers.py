"""Solutions against SciPy and scikit-learn at tight tolerance, and certificates against truth."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from jaxsoftmax import binary_cross_entropy, cross_entropy, soft_cross_entropy
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.solvers import (
    Solution,
    SolverStatus,
    certificate,
    driver,
    host,
    prepare,
    shared_preconditioner,
    solve,
    solve_path,
    steps,
)
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers import sparse as sparse_features

pytestmark = pytest.mark.usefixtures("unoptimized")

Array = np.ndarray


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled engine, also for problems small enough for the host."""
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)


@pytest.fixture(params=["host", "compiled"])
def either_engine(request: pytest.FixtureRequest) -> None:
    """One engine after the other."""
    if request.param == "compiled":
        request.getfixturevalue("compiled")


def standardised(load: object) -> tuple[Array, Array]:
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def problem(n: int = 90, d: int = 6, classes: int = 3, *, key: int = 0) -> tuple[Array, Array]:
    """Features and labels that no linear model separates."""
    rng = np.random.default_rng(key)
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    return x, rng.permutation(np.arange(n) % classes)


def shared(n: int, classes: int) -> Array:
    """Distributions: spread, with zeros, nearly and exactly one-hot."""
    rng = np.random.default_rng(1)
    t = rng.dirichlet(np.full(classes, 0.5), n)
    t[: n // 4] = np.where(t[: n // 4] < 0.2, 0, t[: n // 4])
    t[n // 2 : n // 2 + n // 8] = np.eye(classes)[rng.integers(0, classes, n // 8)]
    return t / t.sum(1, keepdims=True)


def copies(x: Array, t: Array, s: Array | float = 1.0) -> tuple[Array, Array, Array]:
    """Features, labels and weights of one example for each class, with its share of the weight."""
    n, classes = t.shape
    weights = np.reshape(s, (-1, 1)) * t
    return np.repeat(x, classes, 0), np.tile(np.arange(classes), n), weights.ravel()


def objective(
    params: LinearParams,
    x: Array,
    y: Array,
    *,
    alpha: float,
    l1_ratio: float = 0.0,
    weights: Array | None = None,
    soft: bool = False,
) -> float:
    """F in float64, written down anew; `soft` for rows of y that are distributions."""
    w = np.asarray(params.w, np.float64)
    z = x.astype(np.float64) @ w + (0 if params.bias is None else params.bias.astype(np.float64))
    if y.ndim == 1:
        values = scipy.special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]
    elif soft:
        values = scipy.special.logsumexp(z, axis=1) - np.sum(y * z, 1)
    else:
        values = np.sum(np.logaddexp(0, z) - y * z, 1)
    penalty = (1 - l1_ratio) / 2 * np.sum(w**2) + l1_ratio * np.sum(np.abs(w))
    return float(np.average(values, weights=weights) + alpha * penalty)


def optimum(
    x: Array,
    y: Array,
    *,
    alpha: float,
    bias: bool,
    weights: Array | None = None,
    soft: bool = False,
) -> float:
    """The least objective that SciPy's trust-region Newton method finds, with an exact Hessian."""
    n, d = x.shape
    softmax = soft or y.ndim == 1
    classes = y.max() + 1 if y.ndim == 1 else y.shape[1]
    s = np.ones(n) / n if weights is None else weights / weights.sum()
    t = np.eye(classes)[y] if y.ndim == 1 else y.astype(float)
    ones = np.concatenate([x, np.full((n, 1), float(bias))], 1)
    ridge = alpha * np.r_[np.ones(d), 0][:, None] * np.ones(classes)

    def link(v: Array) -> tuple[Array, Array]:
        z = ones @ v.reshape(d + 1, classes)
        p = scipy.special.softmax(z, 1) if softmax else scipy.special.expit(z)
        return z, p

    def value(v: Array) -> float:
        params = v.reshape(d + 1, classes)
        given = LinearParams(params[:-1], params[-1] * bias)
        return objective(given, x, y, alpha=alpha, weights=s, soft=soft)

    def gradient(v: Array) -> Array:
        r = s[:, None] * (link(v)[1] - t)
        return (ones.T @ r + ridge * v.reshape(d + 1, classes)).ravel()

    def product(v: Array, u: Array) -> Array:
        p, dz = link(v)[1], ones @ u.reshape(d + 1, classes)
        mean = np.sum(p * dz, 1, keepdims=True) if softmax else p * dz
        c = p * (dz - mean)
        return (ones.T @ (s[:, None] * c) + ridge * u.reshape(d + 1, classes)).ravel()

    start = np.zeros((d + 1) * classes)
    found = scipy.optimize.minimize(
        value, start, jac=gradient, hessp=product, method="trust-ncg", options={"gtol": 1e-11}
    )
    return float(found.fun)


def assert_certified(found: Solution, best: float, gap: float) -> None:
    """Converged, within the gap of the true optimum, and with a bound that is true."""
    assert found.converged, found.reason
    assert found.gap <= gap
    true = (found.objective - best) / best
    assert true <= found.gap + found.gap_floor + 1e-12
    assert true >= -1e-12


@pytest.mark.usefixtures("either_engine")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [1e-4, 0.1, 10.0])
def test_softmax_reaches_the_optimum(alpha: float, bias: bool) -> None:
    x, y = problem()
    found = solve(x, y, alpha=alpha, bias=bias, gap=1e-9)
    assert_certified(found, optimum(x, y, alpha=alpha, bias=bias), 1e-9)
    assert (found.params.bias is None) != bias
    np.testing.assert_allclose(
        found.objective, objective(found.params, x, y, alpha=alpha), rtol=1e-14
    )


@pytest.mark.usefixtures("either_engine")
@pytest.mark.parametrize("labels", [1, 3])
def test_sigmoid_reaches_the_optimum(labels: int) -> None:
    x, y = problem(classes=4)
    t = (y[:, None] == np.arange(labels)).astype(int)
    found = solve(x, t, loss=binary_cross_entropy, alpha=0.01, gap=1e-9)
    assert_certified(found, optimum(x, t, alpha=0.01, bias=True), 1e-9)
    assert found.params.w.shape == (6, labels)


def test_soft_targets_of_a_sigmoid() -> None:
    x, _ = problem()
    t = np.random.default_rng(1).random((len(x), 2))
    found = solve(x, t, loss=binary_cross_entropy, alpha=0.01, gap=1e-9)
    assert_certified(found, optimum(x, t, alpha=0.01, bias=True), 1e-9)


@pytest.mark.usefixtures("either_engine")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [1e-4, 0.1])
def test_distributions_as_targets_reach_the_optimum(alpha: float, bias: bool) -> None:
    x, _ = problem()
    t = shared(90, 4)
    best = optimum(x, t, alpha=alpha, bias=bias, soft=True)
    for gap in (1e-3, 1e-9):
        found = solve(x, t, loss=soft_cross_entropy, alpha=alpha, bias=bias, gap=gap)
        assert_certified(found, best, gap)
    np.testing.assert_allclose(
        found.objective, objective(found.params, x, t, alpha=alpha, soft=True), rtol=1e-14
    )


@pytest.mark.usefixtures("compiled")
def test_proximal_steps_without_l1_reach_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    def proximal(problem, link, point, gradient, preconditioner, tolerance, sample, *, intercept):
        given = (problem, link, point, gradient, preconditioner, tolerance)
        return steps.proximal_newton(*given, None, intercept=intercept)

    monkeypatch.setattr(steps, "newton_cg", proximal)
    x, y = problem()
    found = solve(x, y, C=2.0, gap=1e-8)
    assert_certified(found, optimum(x, y, alpha=1 / (2.0 * len(x)), bias=True), 1e-8)
    t = shared(90, 3)
    found = solve(x, t, loss=soft_cross_entropy, C=1.0, gap=1e-8)
    assert_certified(found, optimum(x, t, alpha=1 / 90, bias=True, soft=True), 1e-8)


@pytest.mark.parametrize("dtype", [bool, int, jnp.bfloat16, np.float32, np.float64])
def test_one_hot_targets_have_the_optimum_of_their_labels(dtype: type) -> None:
    x, y = problem()
    hot = np.eye(3)[y].astype(dtype)
    for C in (1.0, 1e6):
        labels = solve(x, y, C=C, gap=1e-12)
        found = solve(x, hot, loss=soft_cross_entropy, C=C, gap=1e-12)
        assert found.converged, found.reason
        np.testing.assert_allclose(found.objective, labels.objective, rtol=1e-12)
        np.testing.assert_allclose(found.params.w, labels.params.w, rtol=1e-5)


def test_one_hot_targets_of_confident_examples_lose_no_digits() -> None:
    x, y = np.eye(3)[np.arange(90) % 3], np.arange(90) % 3  # separable: p is 1 - 1e-7
    labels = solve(x, y, C=1e12, gap=1e-9)
    found = solve(x, np.eye(3)[y], loss=soft_cross_entropy, C=1e12, gap=1e-9)
    assert labels.converged
    assert found.converged, found.reason
    np.testing.assert_allclose(found.objective, labels.objective, rtol=1e-9)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_a_distribution_is_an_example_of_each_class_with_its_share_of_the_weight(
    l1_ratio: float,
) -> None:
    x, _ = problem()
    t, c = shared(90, 3), np.array([1.0, 2.0, 0.0])
    t[5], t[6] = [0, 0, 1], [0.5, 0, 0.5]
    s = np.random.default_rng(2).integers(0, 4, 90)
    rows, labels, weights = copies(x, t * c, s)
    given = {"alpha": 0.02, "l1_ratio": l1_ratio, "gap": 1e-9}
    expected = solve(rows, labels, weights=weights, class_weights=np.ones(3), **given)
    found = solve(x, t, loss=soft_cross_entropy, weights=s, class_weights=c, **given)
    assert found.converged, found.reason
    np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-8)
    np.testing.assert_array_equal(np.isneginf(found.params.bias), [False, False, True])
    # So is a binary target between 0 and 1.
    t, c = shared(90, 2), np.array([3.0, 0.5])
    rows, labels, weights = copies(x, t * c, s)
    given |= {"loss": binary_cross_entropy}
    expected = solve(rows, labels, weights=weights, **given)
    found = solve(x, t[:, 1], weights=s, class_weights=c, **given)
    np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-8)


def test_sigmoids_with_little_l1_are_certified() -> None:
    x, y = problem()
    found = solve(x, y == 1, loss=binary_cross_entropy, alpha=1e-8, l1_ratio=1.0, gap=1e-8)
    assert found.converged, found.reason


def test_weights_and_class_weights_multiply() -> None:
    x, y = problem()
    s, c = np.random.default_rng(2).integers(0, 4, len(x)), np.array([1.0, 2.0, 0.5])
    found = solve(x, y, alpha=0.02, weights=s, class_weights=c, gap=1e-9)
    assert_certified(found, optimum(x, y, alpha=0.02, bias=True, weights=s * c[y]), 1e-9)


def test_a_weight_is_a_number_of_copies_and_c_is_scikit_learns() -> None:
    x, y = problem()
    s = np.random.default_rng(3).integers(0, 3, len(x))
    once = solve(x, y, C=0.3, weights=s, gap=1e-9)
    copies = solve(np.repeat(x, s, 0), np.repeat(y, s), C=0.3, gap=1e-9)
    np.testing.assert_allclose(once.objective, copies.objective, rtol=1e-9)
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000).fit(x, y, s)
    np.testing.assert_allclose(once.params.w.T, theirs.coef_, atol=1e-4)


@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
def test_l1_has_the_zeros_and_the_objective_of_scikit_learn(l1_ratio: float) -> None:
    x, y = standardised(load_wine)
    found = solve(x, y, C=1.0, l1_ratio=l1_ratio, gap=1e-9)
    theirs = LogisticRegression(
        C=1.0, l1_ratio=l1_ratio, solver="saga", tol=1e-10, max_iter=100_000, random_state=0
    ).fit(x, y)
    params = LinearParams(theirs.coef_.T, theirs.intercept_)
    best = objective(params, x, y, alpha=1 / len(x), l1_ratio=l1_ratio)
    assert found.converged
    assert found.gap <= 1e-9
    assert found.objective <= best * (1 + 1e-9)
    assert best <= found.objective * (1 + 1e-9)
    assert np.array_equal(found.params.w != 0, params.w != 0)


def test_l1_of_correlated_features_takes_few_iterations() -> None:
    """A proximal step in a diagonal metric takes 547."""
    rng = np.random.default_rng(0)
    x = 0.1 * rng.normal(size=(178, 13)) + rng.normal(size=(178, 2)) @ rng.normal(size=(2, 13)) + 2
    y = (x @ rng.normal(size=(13, 3)) / 3 + rng.gumbel(size=(178, 3))).argmax(1)
    found = solve(x, y, C=30.0, l1_ratio=0.7, gap=1e-9)
    assert found.converged
    assert found.iterations <= 100


def test_l1_large_enough_leaves_nothing_but_the_intercept() -> None:
    x, y = problem()
    found = solve(x, y, alpha=100.0, l1_ratio=1.0, gap=1e-10)
    assert found.converged
    assert not found.params.w.any()
    np.testing.assert_allclose(found.objective, np.log(3), rtol=1e-12)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer, load_digits])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "standardised"])
def test_data_sets_to_nine_digits(load: object, raw: bool) -> None:
    x, y = load(return_X_y=True) if raw else standardised(load)
    for dtype in (np.float64, np.float32) if load is load_wine else (np.float64,):
        found = solve(x.astype(dtype), y, C=1.0, gap=1e-9)
        assert found.converged, found.reason
        assert found.gap <= 1e-9
        assert found.gap_floor < 1e-12
        assert found.params.w.dtype == dtype


# -- The certificate --


@pytest.mark.usefixtures("either_engine")
def test_the_bound_holds_far_from_the_optimum() -> None:
    x, y = problem()
    best = optimum(x, y, alpha=0.01, bias=True)
    for iterations in (1, 2, 3):
        found = solve(x, y, alpha=0.01, gap=1e-14, max_iterations=iterations)
        assert not found.converged
        assert "raise max_iterations" in found.reason
        assert (found.objective - best) / found.objective <= found.gap + 1e-14


def optimal(kind: str, n: int) -> tuple[problems.Problem, problems.Link, Array, float]:
    """A problem as one lane in float64, its link, its best parameters and its least objective."""
    x, y = problem(n)
    loss, targets = {
        "labels": (cross_entropy, y),
        "distributions": (soft_cross_entropy, shared(n, 3)),
        "sigmoid": (binary_cross_entropy, (y[:, None] == np.arange(3)).astype(int)),
    }[kind]
    best = solve(x, targets, loss=loss, alpha=0.01, gap=1e-14)
    packed = np.concatenate([best.params.w.T, best.params.bias[:, None]], 1)[None]
    given = prepare.prepare_data(
        x, targets, loss=loss, weights=None, class_weights=None, memory=10**9
    )
    lanes = prepare.prepare_lanes(
        given, np.ones((1, n)), given.targets[None], np.array([0.01]), np.zeros(1)
    )
    unused = lanes.features.shape[1] - x.shape[1]  # columns of zeros
    return lanes, given.link, np.insert(packed, [x.shape[1]] * unused, 0, -1), best.objective


@pytest.mark.parametrize("kind", ["labels", "distributions", "sigmoid"])
@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-2, 1.0, 30.0])
def test_the_bound_holds_at_any_parameters(kind: str, distance: float) -> None:
    # Near the optimum the intercepts are left alone, far from it Newton moves them or fails.
    with jax.enable_x64():
        lanes, link, packed, least = optimal(kind, 90)
        moved = np.random.default_rng(1).normal(size=packed.shape)
        theta = jnp.asarray(packed + distance * np.where(packed == 0, 0, moved))
        at, g = steps.point_and_gradient(lanes, link, theta, intercept=True)
        for goal in (0.0, 1e9):
            found = certificate.certify(lanes, link, at, g, jnp.full(1, goal), intercept=True)
            true = found.value[0] - least
            assert true <= found.gap[0] + found.floor[0]
            if distance < 1:
                assert found.gap[0] <= 200 * max(true, 0) + 1e-14  # both end in rounding
            if goal:
                np.testing.assert_array_equal(found.theta, theta)


@pytest.mark.parametrize("kind", ["labels", "distributions", "sigmoid"])
def test_some_examples_meet_the_condition_for_all(kind: str) -> None:
    with jax.enable_x64():
        lanes, link, packed, least = optimal(kind, 5000)
        for shift, spent in ((1e-4, 0), (1e-2, 0), (2.0, 3)):
            theta = jnp.asarray(packed).at[0, 0, -1].add(shift)  # the intercept alone is wrong
            at, g = steps.point_and_gradient(lanes, link, theta, intercept=True)
            goal = jnp.full(1, 1e-3)
            found = certificate.certify(lanes, link, at, g, goal, intercept=True)
            true = found.value[0] - least
            assert true <= found.gap[0] <= 100 * true
            assert found.products == spent


def test_the_bound_is_rigorous_about_the_free_intercept() -> None:
    # Without the repair of the intercept's condition the quadratic term alone would be the bound,
    # which says 0 at w = 0 on features of zero, whatever the intercept is.
    y = np.array([0, 0, 0, 1])
    found = solve(np.zeros((4, 1)), y, alpha=1.0, max_iterations=1, gap=1e-15)
    share = np.array([0.75, 0.25])
    np.testing.assert_allclose(found.objective, -np.sum(share * np.log(share)), rtol=1e-12)
    far = solve(
        np.zeros((4, 1)),
        y,
        alpha=1.0,
        init=LinearParams(np.zeros((1, 2)), np.array([9.0, 0.0])),
        gap=1e-12,
    )
    np.testing.assert_allclose(far.objective, found.objective, rtol=1e-12)


@pytest.mark.usefixtures("either_engine")
def test_without_a_penalty_the_bound_is_infinite_and_says_why() -> None:
    x, y = problem()
    found = solve(x, y, alpha=0.0, gap=1e-10)
    assert found.converged
    assert np.isinf(found.gap)
    assert "set C or alpha > 0" in found.reason
    np.testing.assert_allclose(found.objective, optimum(x, y, alpha=0.0, bias=True), rtol=1e-9)


@pytest.mark.usefixtures("either_engine")
@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_separable_data_without_a_penalty_give_a_reason(loss: object) -> None:
    x, y = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
    found = solve(x, y, loss=loss, alpha=0.0)
    assert not found.converged
    assert "separates" in found.reason
    assert "C or alpha > 0" in found.reason
    assert np.isfinite(found.params.w).all()


# -- Awkward data: an answer or a clear reason --


def test_constant_and_duplicated_features_and_rows() -> None:
    x, y = problem()
    odd = np.concatenate([x, x[:, :1], np.full((len(x), 1), 7.0)], 1)
    found = solve(np.repeat(odd, 2, 0), np.repeat(y, 2), alpha=0.01, gap=1e-9)
    assert_certified(found, optimum(odd, y, alpha=0.01, bias=True), 1e-9)
    np.testing.assert_allclose(found.params.w[0], found.params.w[6], rtol=1e-6)
    np.testing.assert_allclose(found.params.w[7], 0, atol=1e-6)


def test_one_example_per_class() -> None:
    found = solve(np.eye(3), np.arange(3), C=1.0, gap=1e-9)
    assert_certified(found, optimum(np.eye(3), np.arange(3), alpha=1 / 3, bias=True), 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_badly_scaled_columns(dtype: type) -> None:
    x, y = problem()
    scaled = (x * 10.0 ** np.arange(-6, 6, 2)).astype(dtype)
    found = solve(scaled, y, C=1.0, gap=1e-8)
    assert found.converged, found.reason
    assert found.gap <= 1e-8


@pytest.mark.parametrize("C", [1e-10, 1e8])
def test_extreme_penalties(C: float) -> None:
    x, y = standardised(load_iris)
    found = solve(x, y, C=C, gap=1e-6)
    assert found.converged, found.reason


@pytest.mark.usefixtures("either_engine")
def test_a_class_without_examples_gets_no_mass() -> None:
    x, y = problem()
    found = solve(x, 2 * y, C=1.0, gap=1e-9)
    present = solve(x, y, C=1.0, gap=1e-9)
    np.testing.assert_allclose(found.objective, present.objective, rtol=1e-9)
    assert np.array_equal(np.isneginf(found.params.bias), [False, True, False, True, False])
    labels = solve(x, np.stack([y == 0, y > 5, y < 5], 1), loss=binary_cross_entropy, C=1.0)
    assert labels.converged
    assert np.array_equal(labels.params.bias[1:], [-np.inf, np.inf])


def test_a_class_without_targets_gets_no_mass() -> None:
    x, _ = problem()
    t = np.insert(shared(90, 3), 1, 0.0, axis=1)
    t[:, 1] = 1e-310  # a subnormal number, which a device takes for 0
    found = solve(x, t, loss=soft_cross_entropy, C=1.0, gap=1e-9)
    present = solve(x, np.delete(t, 1, 1), loss=soft_cross_entropy, C=1.0, gap=1e-9)
    np.testing.assert_allclose(found.objective, present.objective, rtol=1e-9)
    assert np.array_equal(np.isneginf(found.params.bias), [False, True, False, False])
    # In one fold of a path: the only examples with the class are held out.
    t = np.where(np.arange(90)[:, None] < 5, [0.25] * 4, np.insert(shared(90, 3), 1, 0.0, axis=1))
    folds = (np.arange(90) >= 5).astype(int)
    path = solve_path(x, t, C=[1.0], folds=folds, loss=soft_cross_entropy)
    assert path.converged.all()
    assert np.array_equal(np.isneginf(path.params.bias[0, 0]), [False, True, False, False])
    assert np.isfinite(path.params.bias[0, 1]).all()


def test_large_data_with_distributions_go_through_all_precisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    x, _ = problem(n=2000, d=10)
    x = x.astype(np.float32)
    for t in (shared(2000, 3).astype(np.float32), shared(2000, 3)):
        exact = t.astype(np.float64) / t.sum(1, keepdims=True, dtype=np.float64)
        best = optimum(x.astype(np.float64), exact, alpha=1 / 2000, bias=True, soft=True)
        for gap in (1e-4, 1e-10):
            found = solve(x, t, loss=soft_cross_entropy, C=1.0, gap=gap)
            assert_certified(found, best, gap)
    wide = solve(x.astype(np.float64), t, loss=soft_cross_entropy, C=1.0, gap=1e-12)
    assert_certified(wide, best, 1e-12)


def test_distributions_without_a_penalty() -> None:
    x, _ = problem()
    t = shared(90, 3)
    found = solve(x, t, loss=soft_cross_entropy, alpha=0.0, gap=1e-10)
    assert found.converged
    best = optimum(x, t, alpha=0.0, bias=True, soft=True)
    np.testing.assert_allclose(found.objective, best, rtol=1e-9)
    x, hot = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.eye(2)[[0, 0, 1, 1]]
    assert "separates" in solve(x, hot, loss=soft_cross_entropy, alpha=0.0).reason
    hot[0] = [0.9, 0.1]
    assert solve(x, hot, loss=soft_cross_entropy, alpha=0.0).converged


def test_a_path_of_distributions() -> None:
    x, _ = hashed()
    sets, folds = [shared(300, 3), shared(300, 3)[:, [1, 2, 0]]], np.arange(300) % 2
    path = solve_path(x, sets, C=[0.1, 1.0], folds=folds, loss=soft_cross_entropy, gap=1e-8)
    assert path.converged.all()
    assert path.params.w.shape == (2, 2, 2, 4000, 3)
    alone = solve_path(x, sets[0].tolist(), C=[1.0], loss=soft_cross_entropy, gap=1e-8)
    assert alone.params.w.shape == (1, 4000, 3)
    for i, c in enumerate([0.1, 1.0]):
        one = solve(x[folds != 1], sets[1][folds != 1], C=c, loss=soft_cross_entropy, gap=1e-10)
        np.testing.assert_allclose(path.objective[i, 1, 1], one.objective, rtol=2e-8)


def test_rows_of_probabilities_sum_to_one_up_to_rounding() -> None:
    x, _ = problem()
    t = shared(90, 3)
    best = solve(x, t, loss=soft_cross_entropy, C=1.0, gap=1e-9).objective
    for dtype, rtol in ((np.float32, 1e-7), (np.float16, 1e-3), (jnp.bfloat16, 5e-3)):
        found = solve(x, t.astype(dtype), loss=soft_cross_entropy, C=1.0, gap=1e-9)
        np.testing.assert_allclose(found.objective, best, rtol=rtol)
    bad = t.copy()
    bad[7] *= 0.99
    with pytest.raises(ValueError, match=r"targets\[7\]: .* got the sum 0.99; divide each row"):
        solve(x, bad, loss=soft_cross_entropy, C=1.0)
    found = solve(x, bad, loss=soft_cross_entropy, C=1.0, weights=np.arange(90) != 7)
    assert found.converged
    for value in (-1e-3, np.nan):
        bad[7, 1] = value
        with pytest.raises(ValueError, match=rf"targets: expected .* got {value} at \[7, 1\]"):
            solve(x, bad, loss=soft_cross_entropy, C=1.0)
    with pytest.raises(ValueError, match=r"class_weights: expected shape \(3,\), got \(4,\)"):
        solve(x, t, loss=soft_cross_entropy, C=1.0, class_weights=np.ones(4))
    with pytest.raises(
        ValueError, match=r"targets: expected \[N, K\] with N = 90, got shape \(90,"
    ):
        solve(x, np.zeros(90, int), loss=soft_cross_entropy, C=1.0)
    with pytest.raises(ValueError, match=r"got shape \(90, 3\); loss=soft_cross_entropy takes"):
        solve(x, t, C=1.0)


def test_large_float32_data_go_through_all_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    x, y = problem(n=2000, d=10)
    x = x.astype(np.float32)
    best = optimum(x.astype(np.float64), y, alpha=1 / 2000, bias=True)
    for gap in (1e-4, 1e-10):
        assert_certified(solve(x, y, C=1.0, gap=gap), best, gap)
    # Float64 features meet Newton systems in float32.
    wide = x.astype(np.float64)
    assert_certified(solve(wide, y, C=1.0, gap=1e-12), best, 1e-12)


def learnable(n: int, d: int, classes: int) -> tuple[Array, Array]:
    """Float32 features of unequal scales, and labels that mostly follow from them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    z = x @ rng.normal(size=(d, classes)) * 2 / np.sqrt(d) + rng.gumbel(size=(n, classes))
    return x.astype(np.float32), z.argmax(1)


def test_a_sample_that_predicts_too_much_descent_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    x, y = learnable(400, 60, 3)  # the sample's 100 examples are separable
    found = solve(x, y, C=100.0, gap=1e-2, max_iterations=40)  # with the sample alone over 100
    assert found.converged, found.reason


def test_a_sample_that_is_large_enough_saves_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    x, y = learnable(4000, 20, 5)
    sampled = solve(x, y, C=0.01, gap=1e-3)
    monkeypatch.setattr(driver, "MIN_SAMPLING_DECREMENT", np.inf)  # one sampled step
    assert sampled.products < solve(x, y, C=0.01, gap=1e-3).products


@pytest.mark.usefixtures("compiled")
def test_wide_features_do_without_a_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_preconditioner, "MAX_FEATURES", 8)
    x, y = problem(n=60, d=40)
    found = solve(x, y, alpha=0.01, gap=1e-9)
    assert_certified(found, optimum(x, y, alpha=0.01, bias=True), 1e-9)


@pytest.mark.parametrize("n", [7, 40])
def test_the_shared_preconditioner_is_the_inverse_of_the_gram_matrix(n: int) -> None:
    rng = np.random.default_rng(0)
    x, s = 3 + rng.normal(size=(n, 20)), np.arange(n) / np.sum(np.arange(n))  # the first counts 0
    ones = np.concatenate([x, np.ones((n, 1))], 1)
    for l2 in (1e-3, 10.0):
        ridge = l2 * np.r_[np.ones(20), 0]
        r = rng.normal(size=(1, 2, 21))
        with jax.enable_x64():
            built = shared_preconditioner.build(jnp.asarray(x), jnp.asarray(s), 2**30)
            assert built.basis.shape == (20, min(n, 20))
            c = jnp.array([[0.2, 0.5]])
            applied = shared_preconditioner.apply(built, c, jnp.array([l2]), jnp.asarray(r))
        found = np.asarray(applied)
        for k, curvature in enumerate((0.2, 0.5)):
            hessian = curvature * (ones.T * s) @ ones + np.diag(ridge)
            np.testing.assert_allclose(hessian @ found[0, k], r[0, k], rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("compiled")
def test_wide_features_take_few_products() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2100)), np.arange(30) % 3  # more columns than MAX_FEATURES
    found = solve(x, y, C=1.0, gap=1e-8)
    assert found.converged
    assert found.products < 100


def hashed(n: int = 300, d: int = 4000, classes: int = 3) -> tuple[scipy.sparse.csr_array, Array]:
    """Counts in few columns of many, some of them empty, and labels that depend on some of them."""
    rng = np.random.default_rng(5)
    columns = (d * rng.random((n, 12)) ** 4).astype(int)
    entries = (np.ones(columns.size), (np.repeat(np.arange(n), 12), columns.ravel()))
    x = scipy.sparse.csr_array(entries, shape=(n, d))
    x.sum_duplicates()
    z = x[:, :classes].toarray() + rng.gumbel(size=(n, classes))
    return x, z.argmax(1)


@pytest.mark.parametrize(("dtype", "l1_ratio"), [(np.float64, 0.0), (np.float32, 0.5)])
def test_sparse_features_are_not_made_dense(dtype: type, l1_ratio: float) -> None:
    x, y = hashed()
    x = x.astype(dtype)
    memory = x.toarray().nbytes - 1
    sparse = solve(x, y, C=1.0, l1_ratio=l1_ratio, gap=1e-7, memory=memory)
    dense = solve(x.toarray(), y, C=1.0, l1_ratio=l1_ratio, gap=1e-9)
    assert sparse.converged, sparse.reason
    assert sparse.gap <= 1e-7
    assert sparse.params.w.dtype == dtype
    assert sparse.params.w.shape == (4000, 3)
    np.testing.assert_allclose(sparse.objective, dense.objective, rtol=1e-7)
    x.data[0] = np.nan
    with pytest.raises(ValueError, match="got nan at entry"):
        solve(x, y, C=1.0)


@pytest.mark.parametrize("terms", [0, 2**40])
def test_sparse_products_are_scipys_or_segment_sums(
    terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_features, "MIN_SCIPY_TERMS", terms)
    x, rng = hashed()[0], np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        v, r = (rng.normal(size=(2, size)).astype(dtype) for size in x.shape[::-1])
        with jax.enable_x64(dtype == np.float64):
            features = sparse_features.from_scipy(x.astype(dtype))
            z = jax.jit(sparse_features.apply)(features, v)
            g = jax.jit(sparse_features.apply_transpose)(features, r)
            assert z.dtype == g.dtype == dtype
        tolerance = 30 * np.finfo(dtype).eps
        np.testing.assert_allclose(z, (x @ v.T).T, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(g, (x.T @ r.T).T, rtol=tolerance, atol=tolerance)


def test_large_sparse_data_go_through_all_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    x, y = hashed()
    best = solve(x.toarray(), y, C=1.0, gap=1e-12).objective
    for dtype in (np.float32, np.float64):
        assert_certified(solve(x.astype(dtype), y, C=1.0, gap=1e-9), best, 1e-9)


def test_a_path_over_sparse_features() -> None:
    x, y = hashed()
    folds = np.arange(len(y)) % 2
    t = y == 0
    path = solve_path(x, t, C=[0.1, 10.0], folds=folds, loss=binary_cross_entropy, gap=1e-7)
    assert path.converged.all()
    for i, c in enumerate([0.1, 10.0]):
        kept = folds != 1
        one = solve(x.toarray()[kept], t[kept], C=c, loss=binary_cross_entropy, gap=1e-10)
        np.testing.assert_allclose(path.objective[i, 1], one.objective, rtol=1e-7)


def test_features_that_are_sparse_in_name_only_are_made_dense() -> None:
    x, y = problem()
    few = scipy.sparse.csr_array(np.where(x > 0.5, x, 0))
    dense = solve(few.toarray(), y, C=1.0)
    assert solve(few, y, C=1.0).objective == dense.objective
    with pytest.raises(MemoryError, match=rf"need {few.nnz * 32:,} bytes; memory allows 4,000"):
        solve(few, y, C=1.0, memory=4000)


@pytest.mark.usefixtures("either_engine")
def test_it_starts_where_it_is_told() -> None:
    x, y = problem()
    found = solve(x, y, C=1.0, gap=1e-8)
    again = solve(x, y, C=1.0, gap=1e-8, init=found.params)
    assert again.iterations <= 1
    assert again.objective <= found.objective * (1 + 1e-12)


def test_a_callback_hears_of_every_iteration() -> None:
    x, y = problem()
    heard: list[dict] = []
    found = solve(x, y, C=1.0, callback=heard.append)
    assert [h["iteration"] for h in heard] == list(range(1, len(heard) + 1))
    assert len(heard) == found.iterations
    assert heard[-1]["objective"][0] < heard[0]["objective"][0]


def test_a_callback_gets_the_figures_of_a_last_iteration_with_a_cheaper_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)  # so that the Hessian is in float32
    x, y = problem()
    heard: list[dict] = []
    found = solve(x, y, C=1.0, callback=heard.append)
    assert len(heard) == found.iterations
    for each in heard:
        assert len(each["objective"]) == len(each["estimate"]) == len(each["lanes"]) == 1
        assert each["theta"].shape == (1, 3, 7)


@pytest.mark.usefixtures("either_engine")
@pytest.mark.parametrize("double", [False, True])
def test_a_callback_runs_under_the_callers_own_setting_of_float64(double: bool) -> None:
    x, y = problem()
    heard: list[dict] = []

    def callback(figures: dict) -> None:
        assert jnp.ones(1).dtype == (jnp.float64 if double else jnp.float32)
        assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(figures))
        heard.append(figures)

    with jax.enable_x64(double):
        found = solve(x, y, C=1.0, gap=1e-9, callback=callback)
        path = solve_path(x, y, C=[0.1, 1.0], callback=callback)
    assert path.converged.all()
    assert [figures.get("stage") for figures in heard[-2:]] == [1, 2]
    theta = heard[-3]["theta"]
    assert theta.dtype == np.float64
    assert theta.shape == (1, 3, 7)  # six features and the intercept: no padding
    now = objective(LinearParams(theta[0, :, :-1].T, theta[0, :, -1]), x, y, alpha=1 / 90)
    assert found.objective * (1 - 1e-14) <= now < 1.01 * found.objective
    assert now == pytest.approx(heard[-3]["objective"][0], rel=1e-12)


def test_arguments_are_read_under_the_callers_own_setting_of_float64() -> None:
    class Read:
        def __init__(self, values: Array) -> None:
            self.values = values

        def __array__(self, *arguments: object, **named: object) -> Array:
            assert jnp.ones(1).dtype == jnp.float32
            return self.values

    x, y = problem()
    init = LinearParams(Read(np.zeros((6, 3))), Read(np.zeros(3)))
    solve(Read(x), Read(y), C=1.0, weights=Read(np.ones(90)), class_weights=Read(np.ones(3)),
          init=init)  # fmt: skip
    solve_path(Read(x), Read(y), C=Read(np.ones(1)), folds=Read(np.arange(90) % 2),
               weights=Read(np.ones(90)), gap=Read(np.full(1, 1e-3)))  # fmt: skip


@pytest.mark.usefixtures("compiled")
def test_no_global_flag_is_changed() -> None:
    import jax
    import jax.numpy as jnp

    x, y = problem()
    solve(x, y, C=1.0)
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"C": None}, ValueError, "C, alpha: expected one of the two"),
        ({"alpha": 1.0}, ValueError, "C, alpha: expected one of the two"),
        ({"C": -1.0}, ValueError, "C: expected a number above 0, got -1.0"),
        ({"C": None, "alpha": -1.0}, ValueError, "alpha: expected"),
        ({"l1_ratio": 2.0}, ValueError, r"l1_ratio: expected a number in \[0, 1\], got 2.0"),
        ({"weights": np.ones(3)}, ValueError, r"weights: expected shape \(90,\) or .*, got \(3,\)"),
        ({"weights": -np.ones(90)}, ValueError, "weights: expected finite numbers"),
        ({"class_weights": np.ones(2)}, ValueError, "got 2"),
        ({"loss": np.mean}, ValueError, "loss: expected jaxsoftmax.cross_entropy"),
        ({"init": LinearParams(np.zeros((2, 3)), None)}, ValueError, "init: expected w"),
        (
            {"init": LinearParams(np.full((6, 3), np.nan), np.zeros(3))},
            ValueError,
            "init: expected finite numbers in w",
        ),
        (
            {"init": LinearParams(np.zeros((6, 3)), np.zeros(1))},
            ValueError,
            r"init: expected bias \(3,\), got \(1,\)",
        ),
        ({"weights": np.array(["a"] * 90)}, TypeError, "weights: expected real numbers or bools"),
        ({"weights": 0}, ValueError, "weights: expected finite numbers"),
        ({"class_weights": np.ones((3, 1))}, ValueError, r"class_weights: .* got shape \(3, 1\)"),
        ({"C": [1.0, 2.0]}, ValueError, r"C: expected one number, got shape \(2,\)"),
        ({"C": "1"}, TypeError, "C: expected real numbers"),
        ({"l1_ratio": None}, TypeError, "l1_ratio: expected real numbers"),
        ({"gap": -1e-6}, ValueError, "gap: expected numbers of at least 0, got -1e-06"),
        ({"gap": [1e-6]}, ValueError, r"gap: expected one number, got shape \(1,\)"),
        ({"max_iterations": 0}, ValueError, "max_iterations: expected an integer of at least 1"),
        ({"max_iterations": 2.5}, ValueError, "max_iterations: expected an integer .* got 2.5"),
        ({"targets": np.zeros(90)}, TypeError, r"got float64; .* targets.astype\(int\)"),
        ({"targets": np.full(90, "a")}, TypeError, "numpy.unique.*return_inverse=True"),
        ({"targets": np.full(90, -100)}, ValueError, "expected a label from 0 to"),
        ({"targets": np.zeros(3, int)}, ValueError, r"N = 90, got shape \(3,\)"),
        ({"features": np.zeros((90, 2), int)}, TypeError, "features: expected floats, got int64"),
        ({"features": np.full((90, 2), np.nan)}, ValueError, r"got nan at \[0, 0\]"),
        ({"features": np.full((90, 2), 1e200)}, ValueError, "scale them"),
    ],
)
def test_bad_input_is_named(change: dict, error: type, words: str) -> None:
    x, y = problem()
    given = {"features": x, "targets": y, "C": 1.0} | change
    with pytest.raises(error, match=words):
        solve(given.pop("features"), given.pop("targets"), **given)


@pytest.mark.parametrize("largest", [50_000_000, 2**31, 2**40])
def test_a_label_that_makes_too_many_classes_is_named(largest: int) -> None:
    x, y = problem()
    y[3] = largest
    words = rf"targets\[3\]: label {largest} implies {largest + 1} classes for 90 .*class_weights="
    with pytest.raises(ValueError, match=words):
        solve(x, y, C=1.0)
    with pytest.raises(ValueError, match=words):
        solve_path(x, y, C=[1.0])
    # Who says how many there are has a wrong label.
    for stated in ({"class_weights": np.ones(3)}, {"init": LinearParams(np.zeros((6, 3)), y[:3])}):
        with pytest.raises(ValueError, match=rf"targets\[3\]: expected .* 0 to 2, got {largest}"):
            solve(x, y, C=1.0, **stated)


def test_class_weights_or_a_start_say_how_many_classes_there_are() -> None:
    x, y = problem()
    for stated in (
        {"class_weights": np.ones(5)},
        {"init": LinearParams(np.zeros((6, 5)), np.zeros(5))},
    ):
        found = solve(x, y, C=1.0, gap=1e-9, **stated)
        assert found.params.w.shape == (6, 5)
        assert np.array_equal(np.isneginf(found.params.bias), [False] * 3 + [True] * 2)
        assert_certified(found, optimum(x, y, alpha=1 / 90, bias=True), 1e-9)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16, jnp.bfloat16])
def test_weights_of_any_numbers_and_one_for_all(kind: type) -> None:
    x, y = problem()
    s = np.random.default_rng(2).integers(0, 2, 90)
    found = solve(x, y, alpha=0.02, weights=s.astype(kind), gap=1e-9)
    assert_certified(found, optimum(x, y, alpha=0.02, bias=True, weights=s), 1e-9)
    every, twice = solve(x, y, C=1.0, gap=1e-9), solve(x, y, C=0.5, weights=kind(1) * 2, gap=1e-9)
    np.testing.assert_allclose(twice.objective, every.objective, rtol=1e-9)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_an_example_without_weight_holds_does_not_matter(loss: object, sparse: bool) -> None:
    x, y = hashed() if sparse else problem()
    s = (np.arange(len(y)) % 5 > 0).astype(int)
    y = y if loss is cross_entropy else (y == 1).astype(float)
    kept = solve(x[s > 0], y[s > 0], C=1.0, loss=loss, gap=1e-9)
    x, y = x.copy(), y.copy()
    y[s == 0] = -100 if loss is cross_entropy else np.nan
    if sparse:
        x.data[np.repeat(s == 0, np.diff(x.indptr))] = np.nan
    else:
        x[s == 0] = [np.inf, np.nan, 1e300, -1e300, 0, 1]
    found = solve(x, y, C=1.0, loss=loss, weights=s, gap=1e-9)
    assert found.converged
    np.testing.assert_allclose(found.objective, kept.objective, rtol=1e-8)
    path = solve_path(x, y, C=[1.0], loss=loss, weights=s, gap=1e-9)
    np.testing.assert_allclose(path.objective, [kept.objective], rtol=1e-8)
    with pytest.raises(ValueError, match="expected"):
        solve(x, y, C=1.0, loss=loss)


def test_a_sigmoids_targets_may_leave_the_unit_interval_by_rounding() -> None:
    x, y = problem()
    t = (y[:, None] == np.arange(2)).astype(np.float32)
    off = np.nextafter(t, np.where(t == 1, 2, -1).astype(np.float32))
    exact, near = (solve(x, a, C=1.0, loss=binary_cross_entropy, gap=1e-9) for a in (t, off))
    assert near.objective == exact.objective
    with pytest.raises(ValueError, match=r"targets: expected numbers in \[0, 1\]"):
        solve(x, t + np.float32(1e-5), C=1.0, loss=binary_cross_entropy)


# -- The status --


@pytest.mark.usefixtures("either_engine")
@pytest.mark.parametrize(
    ("status", "change", "words"),
    [
        ("CONVERGED", {}, "the certified gap is at most 1e-06"),
        ("CONVERGED_WITHOUT_BOUND", {"C": None, "alpha": 0.0}, "the Newton decrement is below"),
        ("MAX_ITERATIONS", {"gap": 1e-14, "max_iterations": 1}, "1 iterations were not enough"),
        ("STALLED_IN_FLOAT32", {"dtype": np.float32, "gap": 0.0}, "pass float64 features"),
        ("STALLED", {"gap": 0.0}, "no further progress in float64"),
        ("SEPARABLE", {"C": None, "alpha": 0.0, "labels": "separable"}, "separates the classes"),
        (
            "NOT_FINITE",
            {"scale": 1e90, "init": LinearParams(np.full((6, 3), [1e300, -1e300, 1e300]), None),
             "bias": False},
            "the objective is not finite",
        ),
    ],
)  # fmt: skip
def test_the_status_has_a_sentence_of_its_own(status: str, change: dict, words: str) -> None:
    x, y = problem()
    given = {"C": 1.0} | change
    x = (x * given.pop("scale", 1.0)).astype(given.pop("dtype", np.float64))
    y = (x[:, 0] > 0).astype(int) if given.pop("labels", None) else y
    found = solve(x, y, **given)
    assert found.status is SolverStatus[status]
    assert words in found.reason
    assert found.converged == status.startswith("CONVERGED")


@pytest.mark.usefixtures("either_engine")
def test_a_path_stacks_the_status_of_its_fits() -> None:
    x, y = problem()
    path = solve_path(x, y, C=[1e-3, 1.0], folds=np.arange(90) % 2, gap=[1e-3, 0.0])
    assert path.status.shape == path.converged.shape == (2, 2)
    assert np.array_equal(path.status == SolverStatus.CONVERGED, path.converged)
    assert path.converged.tolist() == [[True, True], [False, False]]
    assert set(path.status[1]) == {SolverStatus.STALLED}


# -- Paths --


@pytest.mark.usefixtures("either_engine")
def test_a_path_holds_what_single_fits_find() -> None:
    x, y = problem()
    folds = np.arange(len(x)) % 3 - (np.arange(len(x)) < 5)  # some are in every fit
    C = [1.0, 0.01, 100.0]
    path = solve_path(x, y, C=C, folds=folds, gap=1e-8)
    assert path.converged.all()
    assert path.params.w.shape == (3, 3, 6, 3)
    for i, c in enumerate(C):
        for fold in range(3):
            kept = folds != fold
            one = solve(x[kept], y[kept], C=c, gap=1e-10)
            true = path.objective[i, fold] / one.objective - 1
            assert -1e-10 <= true <= path.gap[i, fold] + 1e-10


@pytest.mark.usefixtures("compiled")
def test_each_c_has_the_gap_that_was_asked_for() -> None:
    x, y = problem()
    asked = np.array([1e-3, 1e-12, 1e-2])
    path = solve_path(x, y, C=[1.0, 0.01, 100.0], gap=asked)
    assert path.converged.all()
    assert (path.gap <= asked).all()
    assert path.gap[1] < 1e-12 < path.gap[2]
    with pytest.raises(ValueError, match=r"gap: expected one number or \(2,\), got shape \(3,\)"):
        solve_path(x, y, C=[1.0, 2.0], gap=asked)


@pytest.mark.usefixtures("compiled")
def test_label_sets_share_the_features() -> None:
    x, y = problem()
    path = solve_path(x, [y, (y + 1) % 3], C=[0.1, 1.0], folds=np.arange(len(x)) % 2, gap=1e-9)
    assert path.params.w.shape == (2, 2, 2, 6, 3)
    np.testing.assert_allclose(path.objective[:, :, 0], path.objective[:, :, 1], rtol=1e-8)
    np.testing.assert_allclose(
        path.params.w[:, :, 0], np.roll(path.params.w[:, :, 1], -1, -1), atol=1e-3, rtol=0
    )


@pytest.mark.usefixtures("compiled")
def test_lanes_that_are_done_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MIN_NARROWING_SIZE", 0)
    x, y = problem(n=200)
    hard = np.where(x[:, 0] > 0, 1, 0) + np.where(x[:, 1] > 0, 1, 0)  # takes more iterations
    sets = [y, hard, y, y, y]
    path = solve_path(x, sets, C=[1.0, 10.0], gap=1e-8)
    assert path.converged.all()
    assert (path.iterations[:, 1] > path.iterations[:, 0]).all()
    for i, c in enumerate([1.0, 10.0]):
        for m in (0, 1):
            one = solve(x, sets[m], C=c, gap=1e-10)
            np.testing.assert_allclose(path.objective[i, m], one.objective, rtol=1e-8)


def easy_and_hard() -> tuple[Array, list[Array]]:
    """Features and four label sets, of which the second and the last take more iterations."""
    x, y = problem(n=200)
    hard = [(x[:, i] > 0).astype(int) + (x[:, i + 1] > 0) for i in (0, 2)]
    return x, [y, hard[0], y, hard[1]]


@pytest.mark.usefixtures("compiled")
def test_progress_is_read_from_the_slots_of_the_lanes_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    least, tiers, holes = np.full(4, np.inf), [], []

    def enter_tier(*arguments, enter=driver._enter_tier):
        state = enter(*arguments)
        least[state.lanes] = state.figures.value[state.active]
        tiers.append(state)
        return state

    def retire_lanes(config, tier, state, retire=driver._retire_lanes):
        for slot in np.flatnonzero(state.active):
            lane = state.slots[slot]
            least[lane] = min(least[lane], state.figures.value[slot])
            assert state.progress.best_value[lane] == least[lane]
        holes.append(not state.active[: len(state.lanes)].all())
        return retire(config, tier, state)

    monkeypatch.setattr(driver, "_enter_tier", enter_tier)
    monkeypatch.setattr(driver, "_retire_lanes", retire_lanes)
    x, sets = easy_and_hard()
    assert solve_path(x, sets, C=[10.0], gap=1e-8).converged.all()
    assert len(tiers) == 1
    assert any(holes)  # a lane before another one has ended first


@pytest.mark.usefixtures("compiled")
def test_fewer_slots_keep_what_is_known_of_their_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []

    def narrow(config, tier, state, narrow=driver._narrow):
        after = narrow(config, tier, state)
        moves.append((state.slots[state.active].tolist(), after.slots.tolist()))
        before = dict(zip(state.slots.tolist(), state.first_norm.tolist(), strict=True))
        assert after.first_norm.tolist() == [before[lane] for lane in after.slots.tolist()]
        np.testing.assert_array_equal(after.progress.idle, state.progress.idle)
        return after

    monkeypatch.setattr(driver, "MIN_NARROWING_SIZE", 0)
    monkeypatch.setattr(driver, "_narrow", narrow)
    x, sets = easy_and_hard()
    assert solve_path(x, sets, C=[10.0], gap=1e-8).converged.all()
    assert moves[0] == ([1, 3], [1, 3])


def test_a_path_of_sigmoids_and_of_elastic_nets() -> None:
    x, y = problem()
    t = (y[:, None] == np.arange(2)).astype(int)
    path = solve_path(x, t, C=[0.1, 1.0], folds=np.arange(len(x)) % 2, loss=binary_cross_entropy)
    assert path.converged.all()
    assert path.params.w.shape == (2, 2, 6, 2)
    sparse = solve_path(x, y, C=[0.05, 1.0], l1_ratio=0.9, gap=1e-8)
    assert sparse.converged.all()
    assert (sparse.params.w[0] != 0).sum() < (sparse.params.w[1] != 0).sum()


def test_bad_grids_are_named() -> None:
    x, y = problem()
    with pytest.raises(TypeError, match="C: expected real numbers"):
        solve_path(x, y, C=["1"])
    with pytest.raises(ValueError, match="C: expected a number above 0"):
        solve_path(x, y, C=[1.0, -1.0])
    with pytest.raises(
        ValueError, match=r"targets: expected .* of one shape, got \[\(90, 1\), \(9"
    ):
        solve_path(x, [y == 0, np.eye(2)[y % 2]], C=[1.0], loss=binary_cross_entropy)
    with pytest.raises(ValueError, match=r"targets: expected \[N\] with N = 90, got shape \(0,\)"):
        solve_path(x, [], C=[1.0])
    with pytest.raises(ValueError, match=r"folds: expected integers of shape \(90,\)"):
        solve_path(x, y, C=[1.0], folds=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"C: expected \[P\]"):
        solve_path(x, y, C=[])
    with pytest.raises(ValueError, match="every fold to leave examples"):
        solve_path(x, y, C=[1.0], folds=np.zeros(90, int))


def test_scikit_learn_stops_above_the_optimum_and_we_say_by_how_much() -> None:
    x, y = load_wine(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(max_iter=100).fit(x, y)
    at_theirs = objective(LinearParams(theirs.coef_.T, theirs.intercept_), x, y, alpha=1 / len(x))
    ours = solve(x, y, C=1.0, gap=1e-9)
    assert at_theirs > 1.1 * ours.objective
