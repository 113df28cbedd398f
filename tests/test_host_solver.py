"""The engine for small problems: its parts against finite differences, mpmath and SciPy."""

from typing import Any

import jax
import mpmath
import numpy as np
import pytest
from sklearn.datasets import load_iris

from jaxsoftmax import binary_cross_entropy, cross_entropy, soft_cross_entropy
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.solvers import host, solve, solve_path
from jaxsoftmax.solvers.host import (
    certificate,
    coordinates,
    driver,
    line_search,
    newton,
    products,
    quasi_newton,
)
from jaxsoftmax.solvers.host import preconditioner as preconditioners
from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.expectation import Expectation
from jaxsoftmax.solvers.host.newton import Choice
from jaxsoftmax.solvers.host.preconditioner import Level
from jaxsoftmax.solvers.host.problem import HostProblem, Point
from jaxsoftmax.solvers.host.quasi_newton import History

Array = np.ndarray


def standing(
    link: problems.Link = "softmax", *, n: int = 80, d: int = 5, classes: int = 4, size: float = 1.0
) -> tuple[HostProblem, Point]:
    """A problem with an intercept and distributions as targets, at random parameters."""
    rng = np.random.default_rng(7)
    columns = np.concatenate([rng.normal(size=(d, n)), np.ones((1, n))])
    t = rng.dirichlet(np.ones(classes), n).T
    s = rng.random(n) + 0.1
    largest = np.abs(columns[:-1]).max(1)
    problem = HostProblem(columns, t, s / s.sum(), 0.03, link, True, largest)
    return problem, problems.point_at(problem, size * rng.normal(size=(classes, d + 1)))


def hessian(problem: HostProblem, point: Point) -> Array:
    units = np.eye(point.theta.size).reshape(-1, *point.theta.shape)
    return np.stack([problems.hessian_product(problem, point, u).ravel() for u in units])


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_gradient_and_hessian_are_the_derivatives(link: problems.Link) -> None:
    problem, point = standing(link)
    v = np.random.default_rng(1).normal(size=point.theta.shape)
    ends = [problems.point_at(problem, point.theta + h * v) for h in (-1e-5, 1e-5)]
    slope = (ends[1].value - ends[0].value) / 2e-5
    np.testing.assert_allclose(np.sum(problems.gradient(problem, point) * v), slope, rtol=1e-8)
    first, last = (problems.gradient(problem, end) for end in ends)
    np.testing.assert_allclose(
        problems.hessian_product(problem, point, v), (last - first) / 2e-5, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_confident_examples_lose_no_digits(link: problems.Link) -> None:
    columns = np.ones((1, 1))
    t = np.array([0]) if link == "softmax" else np.array([[1.0], [0.0]])
    problem = HostProblem(columns, t, np.ones(1), 0.0, link, False, np.ones(1))
    point = problems.point_at(problem, np.array([[40.0], [-45.0]]))
    with mpmath.workdps(50):
        if link == "softmax":
            rest = [mpmath.exp(-85) / (1 + mpmath.exp(-85))] * 2
            value = mpmath.log1p(mpmath.exp(-85))
        else:
            rest = [mpmath.exp(-a) / (1 + mpmath.exp(-a)) for a in (40, 45)]
            value = sum(mpmath.log1p(mpmath.exp(-a)) for a in (40, 45))
    np.testing.assert_allclose(point.value, float(value), rtol=1e-15)
    np.testing.assert_allclose(point.residual[:, 0], [-float(rest[0]), float(rest[1])], rtol=1e-15)
    curvature = problems.directional_curvature(problem, point, np.array([[1.0], [0.0]]))
    np.testing.assert_allclose(curvature, float(rest[0]), rtol=1e-15)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_the_row_of_ones_may_be_implied(link: problems.Link) -> None:
    problem, point = standing(link)
    implied = problem._replace(columns=problem.columns[:-1], implied=True)
    there = problems.point_at(implied, point.theta)
    np.testing.assert_allclose(there.value, point.value, rtol=1e-14)
    for f in (problems.gradient, lambda *at: problems.hessian_product(*at, at[1].theta)):
        np.testing.assert_allclose(f(implied, there), f(problem, point), rtol=1e-12, atol=1e-15)


def test_equal_scores_share_the_lead() -> None:
    targets, size = np.array([0]), float(np.exp(-50))
    one = np.ones((1, 1))
    problem = HostProblem(one, targets, np.ones(1), 0.0, "softmax", False, one[0])
    point = problems.point_at(problem, np.array([[40.0], [40.0], [-10.0]]))
    np.testing.assert_allclose(point.value, np.log(2), rtol=1e-15)
    np.testing.assert_allclose(point.residual[:, 0], [-0.5, 0.5, size / 2], rtol=1e-15)
    np.testing.assert_allclose(point.complement[:, 0], [0.5, 0.5, 1], rtol=1e-15)


def updated(metric: Array, s: Array, y: Array) -> Array:
    """The inverse Hessian after one BFGS update."""
    keep = np.eye(len(s)) - np.outer(s, y) / (s @ y)
    return keep @ metric @ keep.T + np.outer(s, s) / (s @ y)


def test_the_quasi_newton_direction_is_that_of_bfgs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quasi_newton, "MEMORY", 3)
    problem, point = standing("sigmoid", classes=3)
    g, rng = problems.gradient(problem, point), np.random.default_rng(2)
    choice = Choice.initial(problem, 3, 2**20).at_new_point(problem, point)
    choice = choice._replace(costs=[1.0, 2.0], waits=[1.0, 2.0])
    history, pairs = History.begin(problem, choice, g), []
    assert choice.current is not None
    units = np.eye(g.size).reshape(-1, *g.shape)
    m = np.stack([preconditioners.apply(problem, choice.current, u).ravel() for u in units])
    np.testing.assert_allclose(quasi_newton.direction(history), -m @ g.ravel(), rtol=1e-12)
    h = hessian(problem, point)
    for _ in range(5):
        step = rng.normal(size=g.shape)
        change = h @ step.ravel()
        g = g + change.reshape(g.shape)
        history = history.add(problem, step, g, 1.0)
        pairs.append((step.ravel(), change))
    s, y = pairs[-1]
    metric = m * (s @ y) / (y @ m @ y)
    for pair in pairs[-3:]:
        metric = updated(metric, *pair)
    np.testing.assert_allclose(quasi_newton.direction(history), -metric @ g.ravel(), rtol=1e-9)
    v = rng.normal(size=g.shape)
    applied = quasi_newton.apply_inverse(problem, history, v)
    np.testing.assert_allclose(applied.ravel(), metric @ v.ravel(), rtol=1e-9)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_a_newton_step_replaces_the_last_quasi_newton_steps(
    link: problems.Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(800, 100))
    t = (x @ rng.normal(size=(100, 3)) / 5 + rng.gumbel(size=(800, 3))).argmax(1)
    loss, t = (cross_entropy, t) if link == "softmax" else (binary_cross_entropy, np.eye(3)[t])
    sizes = []
    solved = newton.solve_system

    def solve_system(*given: Any) -> newton.Iterate:
        last = solved(*given)
        sizes.append((np.linalg.norm(last.r), given[3], last.products))
        return last

    monkeypatch.setattr(newton, "solve_system", solve_system)
    found = solve(x, t, loss=loss, C=1e2, gap=1e-10)
    assert found.converged
    assert len(sizes) == 1  # it was the last step, and took fewer products than allowed
    assert sizes[0][0] <= sizes[0][1]
    assert sizes[0][2] < newton.MAX_LAST_PRODUCTS
    monkeypatch.setattr(driver, "LAST_STEP", np.inf)
    without = solve(x, t, loss=loss, C=1e2, gap=1e-10)
    assert len(sizes) == 1
    assert found.iterations < without.iterations - 2
    np.testing.assert_allclose(found.objective, without.objective, rtol=2e-10)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (300, 270), (9, 12)])
@pytest.mark.parametrize("intercept", [True, False])
def test_columns_are_bounded_within_a_factor_of_three(n: int, d: int, intercept: bool) -> None:
    rng = np.random.default_rng(0)
    columns = (rng.normal(size=(n, d)) + 10 * rng.normal(size=d)).T
    reduced = coordinates.reduce_features(columns, np.full(n, 1 / n), intercept=intercept)
    largest = np.abs(columns).max(1)
    bound = coordinates.bound_columns(columns, *reduced)
    assert (bound >= largest * (1 - 1e-15)).all()
    assert (bound <= 3 * largest).all()


def test_quasi_newton_steps_come_first_and_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 30))
    y = (x @ rng.normal(size=(30, 4)) / 3 + rng.gumbel(size=(600, 4))).argmax(1)
    scales = 10 ** rng.uniform(-3, 3, 30)
    easy, hard = solve(x, y, C=1.0, gap=1e-8), solve(x * scales, y, C=1e6, gap=1e-8)
    monkeypatch.setattr(quasi_newton, "suits", lambda *_: False)
    newtons = solve(x, y, C=1.0, gap=1e-8), solve(x * scales, y, C=1e6, gap=1e-8)
    assert easy.converged
    assert easy.products < 0.9 * newtons[0].products
    assert hard.converged
    assert hard.products < 2 * newtons[1].products
    np.testing.assert_allclose(easy.objective, newtons[0].objective, rtol=1e-8)


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [([1.0] * 8, True), ([1.0] * 9, False), (0.1 ** np.arange(9), True),
     (0.9 ** np.arange(9), False), ([*[1.0] * 8, 1e-9], True)],
)  # fmt: skip
def test_the_rate_of_progress_decides_who_goes_on(estimates: list[float], expected: bool) -> None:
    problem, point = standing()
    choice = Choice.initial(problem, 4, 2**20).at_new_point(problem, point)
    choice = choice._replace(costs=[1.0, 2.0], waits=[1.0, 2.0])
    g = problems.gradient(problem, point)
    history = History.begin(problem, choice, g)._replace(limit=20.0, estimates=tuple(estimates))
    assert history.is_on_course(1e-8) is expected


def test_blocks_of_few_columns_are_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, point = standing(n=200, d=40)
    r = np.random.default_rng(1).normal(size=point.theta.shape)
    inverted = preconditioners.build(problem, point, Level.BLOCKS)
    assert inverted.inverses is not None
    monkeypatch.setattr(preconditioners, "MAX_INVERTED", 0)
    factorized = preconditioners.build(problem, point, Level.BLOCKS)
    assert factorized.inverses is None
    by_factors, by_inverses = (
        preconditioners.apply(problem, each, r) for each in (factorized, inverted)
    )
    np.testing.assert_allclose(by_inverses, by_factors, rtol=1e-10)


@pytest.mark.parametrize("columns", [4, 30, 150])
def test_the_last_level_is_the_hessian(columns: int) -> None:
    for link, classes in (("softmax", 4), ("softmax", 2), ("sigmoid", 3), ("sigmoid", 1)):
        problem, point = standing(link, d=columns, classes=classes)
        level = preconditioners.exact_level(problem, classes)
        built = preconditioners.build(problem, point, level)
        v = np.random.default_rng(1).normal(size=point.theta.shape)
        if link == "softmax":
            v[:, -1] -= v[:, -1].mean()  # a shift of all intercepts changes nothing
        h = problems.hessian_product(problem, point, v)
        np.testing.assert_allclose(preconditioners.apply(problem, built, h), v, rtol=1e-9)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_no_certificate_is_computed_that_the_intercepts_alone_exceed(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, certify = [], certificate._certify_point

    def certify_point(*given: Any) -> certificate.Certificate:
        counted.append(given)
        return certify(*given)

    monkeypatch.setattr(certificate, "_certify_point", certify_point)
    x = np.random.default_rng(0).normal(size=(90, 4))
    found = solve(x, x[:, 0] + x[:, 1] ** 2 > 2 if loss is binary_cross_entropy else
                  np.arange(90) % 7 // 3, loss=loss, C=1e-4, gap=1e-9)  # fmt: skip
    assert found.converged
    assert len(counted) == 1


def newton_step(problem: HostProblem, point: Point, g: Array) -> Array:
    level = preconditioners.exact_level(problem, len(g))
    return preconditioners.apply(problem, preconditioners.build(problem, point, level), -g)


@np.errstate(all="ignore")  # as the driver
@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [0.0, 6.0])  # from the last of them steps are too long
@pytest.mark.parametrize("residual", [0.0, 1e-3])
def test_what_a_step_expects_bounds_the_gap_at_its_end(
    link: problems.Link, size: float, residual: float
) -> None:
    problem, point = standing(link, size=size)
    problem = problem._replace(l2=1e-9)
    point, found, rng = problems.point_at(problem, point.theta), [], np.random.default_rng(2)
    for _ in range(20):
        g = problems.gradient(problem, point)
        left = residual * np.linalg.norm(g) * rng.normal(size=g.shape)
        left -= (link == "softmax") * left.mean(0)
        d, start = newton_step(problem, point, g + left), point
        point = minimize_along(problem, start, d, g)
        dz = problems.scores_of(problem, d)
        expected = Expectation.of_step(problem, start, dz, point, left)
        bounds = [
            certificate.certify(problem, point.theta, np.inf, np.dtype(float), each).gap
            for each in (expected, None)
        ]
        found.append((point.value, expected.gap, *bounds))
    least, close = point.value, 0
    for value, promised, by_step, own in found:
        assert by_step >= value - least - 1e-15
        if 1e-12 < promised < 1e-3 * value:
            close += 1
            assert 0.3 * promised < by_step < 1.1 * promised
            assert by_step < 1e-2 * own or residual
    assert close >= 2


def test_a_callback_costs_one_certificate_of_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, certify = [], certificate.certify

    def counting(*given: Any) -> certificate.Certificate:
        counted.append(given)
        return certify(*given)

    monkeypatch.setattr(certificate, "certify", counting)
    x, y = load_iris(return_X_y=True)
    for limit in (1, 3, 1000):
        counted.clear()
        found = solve(x, y, C=1e3, max_iterations=limit, callback=lambda _: None)
        assert len(counted) == found.iterations


@pytest.mark.parametrize("scale", [1.0, 1e80])
def test_a_penalty_below_rounding_leaves_the_optimum_of_none(scale: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    free, found = solve(x, y, alpha=0.0), solve(scale * x, y, C=1e300 / scale**2)
    assert not found.converged  # no certificate is as fine
    np.testing.assert_allclose(found.objective, free.objective, rtol=1e-6)
    w, bias = found.params
    np.testing.assert_allclose(w.sum(1), 0, atol=1e5 / scale)  # what all classes share
    z, expected = scale * x @ w + bias, x @ free.params.w + free.params.bias
    z, expected = (a - a.mean(1, keepdims=True) for a in (z, expected))
    np.testing.assert_allclose(z, expected, atol=1e-3)


def test_where_probabilities_are_equal_the_hessian_is_built_as_the_shared_level() -> None:
    for size, level in ((0.0, Level.SHARED), (1.0, Level.FULL)):
        problem, point = standing(size=size)
        g = problems.gradient(problem, point)
        choice = Choice.initial(problem, len(g), 2**20)
        found, choice = newton.direction(problem, point, g, 0.0, choice)
        assert choice.current is not None
        assert (choice.current.level, found.products) == (level, 0)
        h = problems.hessian_product(problem, point, found.d)
        np.testing.assert_allclose(h, -g, atol=1e-15)


def test_of_equal_probabilities_the_shared_level_is_the_hessian() -> None:
    problem, point = standing(size=0.0)
    built = preconditioners.build(problem, point, Level.SHARED)
    v = np.random.default_rng(1).normal(size=point.theta.shape)
    v[:, -1] -= v[:, -1].mean()
    h = problems.hessian_product(problem, point, v)
    np.testing.assert_allclose(preconditioners.apply(problem, built, h), v, rtol=1e-9)


def test_a_singular_matrix_is_factorized_all_the_same() -> None:
    a = np.ones((3, 3)) * [1e8, 1, 1e-8] * np.array([[1e8], [1], [1e-8]])
    r = np.array([1e8, 1.0, 1e-8])  # in its range
    found = preconditioners.factorize(a.copy()).solve(r)
    np.testing.assert_allclose(a @ found, r, rtol=1e-6)
    preconditioners.factorize(np.full((2, 2), np.nan))  # which ends, whatever LAPACK says of NaN


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_the_direction_is_newtons_whatever_it_costs(
    link: problems.Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, point = standing(link)
    g = problems.gradient(problem, point)
    wanted = np.linalg.lstsq(hessian(problem, point), -g.ravel())[0].reshape(g.shape)
    for cheap, price in ((np.inf, 0.0), (0.0, 3.0), (0.0, 1e9)):
        monkeypatch.setattr(preconditioners, "CHEAP", cheap)
        monkeypatch.setattr(preconditioners, "seconds", lambda *_, price=price: price)
        monkeypatch.setattr(preconditioners, "product_seconds", lambda *_: 1.0)
        choice = Choice.initial(problem, len(g), 2**30)._replace(
            levels=[*Level][: len(Level) - (link == "sigmoid")],
            costs=[price] * len(Level),
            waits=[price] * len(Level),
        )
        for _ in range(2):  # with no preconditioner, and with one that has grown old
            (d, *_), choice = newton.direction(problem, point, g, 1e-13, choice)
            np.testing.assert_allclose(d, wanted, rtol=1e-9, atol=1e-11)


def test_a_cheap_hessian_is_factorized_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, point = standing()
    g = problems.gradient(problem, point)
    monkeypatch.setattr(preconditioners, "MAX_DIRECT_COST", 5.0)
    for cost, direct in ((4.0, True), (6.0, False)):
        levels, costs = [Level.DIAGONAL, Level.FULL], [1.0, cost]
        choice = Choice(levels, costs, costs, exact=True)
        found, choice = newton.direction(problem, point, g, 1e-13, choice)
        assert choice.at == 1
        assert (found.products <= 2) == direct


def test_a_system_is_solved_until_less_is_left_than_the_steps_error() -> None:
    problem, point = standing(n=500, d=80, size=0.01)
    g = problems.gradient(problem, point)
    exact = newton_step(problem, point, g)
    full = -0.5 * float(np.vdot(g, exact))
    choice = Choice([Level.DIAGONAL], [1.0], [1.0], exact=False)
    last = None
    for size in (10 * full, 1e3 * full, 1e6 * full, np.inf):
        found, _ = newton.direction(problem, point, g, 1e-12, choice, size=size)
        np.testing.assert_allclose(
            found.decrease,
            -np.vdot(g, found.d) - 0.5 * np.vdot(
                found.d, problems.hessian_product(problem, point, found.d)),
            rtol=1e-10,
        )  # fmt: skip
        left = full - found.decrease
        assert left <= 2 * full * min(newton.MAX_LEFT, newton.STEP_ERROR * full / size) + 1e-14
        assert last is None or found.products > last
        last = found.products


def test_memory_and_cost_decide_the_levels() -> None:
    problem, _ = standing(n=1200, d=300, classes=3)
    assert preconditioners.levels(problem, 3, 2**30) == [*Level]
    square, _ = standing(n=330, d=300, classes=9)  # to solve with blocks costs several products
    assert Level.BLOCKS not in preconditioners.levels(square, 9, 2**30)
    full = preconditioners.num_bytes(problem, 3, Level.FULL)
    wide, _ = standing(n=450, d=300, classes=9)  # to solve with one matrix costs 2/3 of a product
    assert preconditioners.levels(wide, 9, 2**30)[0] == Level.DIAGONAL
    long, _ = standing(n=1500, d=100, classes=9)
    assert preconditioners.levels(long, 9, 2**30)[0] == Level.SHARED
    few, _ = standing(n=350, d=300, classes=30)  # where a shared matrix saves hardly any products
    assert preconditioners.levels(few, 30, 2**30)[0] == Level.DIAGONAL
    assert preconditioners.levels(problem, 3, full - 1) == [*Level][:-1]
    small, _ = standing()
    assert preconditioners.levels(small, 4, 2**30) == [Level.FULL]  # costs little more
    binary, _ = standing(classes=2)
    assert preconditioners.levels(binary, 2, 2**30) == [Level.SHARED]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("n", [30, 4])
def test_reduced_coordinates_keep_scores_and_lengths(n: int, intercept: bool) -> None:
    rng = np.random.default_rng(0)
    x, s = rng.normal(size=(n, 9)) + 5, rng.random(n)
    columns = np.concatenate([x.T, np.ones((1, n))]) if intercept else x.T
    fewer, maps = coordinates.reduce_features(x.T, s / s.sum(), intercept=intercept)
    assert len(fewer) == min(n, 9) + intercept
    theta = rng.normal(size=(3, len(fewer)))
    expanded = maps.expand(theta)
    np.testing.assert_allclose(expanded @ columns, theta @ fewer, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(maps.reduce(expanded), theta, rtol=1e-12)
    kept = slice(None, -1) if intercept else slice(None)
    np.testing.assert_allclose(
        np.linalg.norm(expanded[:, kept]), np.linalg.norm(theta[:, kept]), rtol=1e-12
    )


def test_products_in_parts_are_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    columns, v, r, h = (rng.random(size) for size in ((5, 107), (3, 5), (3, 107), 107))
    for limit in (1, 2**12, 2**20):
        monkeypatch.setattr(products, "SINGLE_THREAD", limit)
        np.testing.assert_allclose(products.apply(columns, v), v @ columns, rtol=1e-13)
        np.testing.assert_allclose(products.apply_transpose(columns, r), r @ columns.T, rtol=1e-13)
        np.testing.assert_allclose(products.gram(columns, h), columns * h @ columns.T, rtol=1e-13)
        squared = products.apply_transpose_squared(columns, r)
        np.testing.assert_allclose(squared, r @ (columns**2).T, rtol=1e-13)


def minimize_along(problem: HostProblem, point: Point, d: Array, g: Array) -> Point:
    return line_search.minimize_along(problem, point, d, problems.scores_of(problem, d), g)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_the_search_ends_where_the_line_is_nearly_flat(length: float) -> None:
    problem, point = standing()
    g = problems.gradient(problem, point)
    end = minimize_along(problem, point, -length * g, g)
    slope = np.sum(problems.gradient(problem, end) * g)
    assert abs(slope) <= line_search.MAX_SLOPE_RATIO * np.sum(g * g)
    assert end.value < point.value
    np.testing.assert_allclose(end.scores, end.theta @ problem.columns, rtol=1e-12, atol=1e-12)
    for d in (g, 0 * g, np.nan * g):
        assert minimize_along(problem, point, d, g) is point


def test_a_search_that_finds_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, point = standing()
    g = problems.gradient(problem, point)
    monkeypatch.setattr(line_search, "MAX_TRIALS", 1)
    assert minimize_along(problem, point, -1e3 * g, g) is point


def exact_objective(params: LinearParams, x: Array, y: Array, C: float) -> mpmath.mpf:
    """F with 50 digits."""
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for row, label in zip(x, y, strict=True):
            z = [
                mpmath.fdot(map(float, row), map(float, column)) + float(b)
                for column, b in zip(params.w.T, params.bias, strict=True)
            ]
            total += mpmath.log(mpmath.fsum(mpmath.exp(each - z[label]) for each in z))
        square = mpmath.fsum(mpmath.mpf(float(each)) ** 2 for each in params.w.ravel())
        return (total + square / (2 * mpmath.mpf(C))) / len(y)


@pytest.mark.parametrize("C", [1e-2, 1e2, 1e8])
def test_certificates_are_true_to_fifty_digits(C: float) -> None:
    x, y = load_iris(return_X_y=True)
    x, y = x[::3], y[::3]
    best = solve(x, y, C=C, gap=1e-14)
    least = exact_objective(best.params, x, y, C) * (1 - best.gap - best.gap_floor)
    for gap in (1e-1, 1e-4, 1e-8):
        found = solve(x, y, C=C, gap=gap)
        value = exact_objective(found.params, x, y, C)
        assert abs(found.objective / value - 1) < 1e-13
        assert value / least - 1 <= found.gap + found.gap_floor + 2e-14
        assert found.gap <= gap


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_examples_than_features(dtype: type, bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = (3 + rng.normal(size=(12, 300))).astype(dtype), np.arange(12) % 3
    first = LinearParams(rng.normal(size=(300, 3)), np.zeros(3) if bias else None)
    wide = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    found = solve(x, y, C=10.0, gap=1e-9, init=first, bias=bias)
    turned = solve(x.astype(float) @ wide, y, C=10.0, gap=1e-12, bias=bias)
    assert found.converged, found.reason
    assert found.params.w.dtype == dtype
    np.testing.assert_allclose(found.objective, turned.objective, rtol=1e-8)


def test_nothing_is_compiled() -> None:
    events: list[str] = []

    def listener(event: str, *_: object, **__: object) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(37, 3)), np.arange(37) % 3  # a shape of no other test
    weights = np.arange(37) % 4
    for C in (1e-4, 1e4):
        for gap in (1e-6, 0.0):
            solve(x, y, C=C, gap=gap, weights=weights)
    solve(x, y == 1, C=1.0, loss=binary_cross_entropy, class_weights=[1.0, 2.0])
    solve(x, np.eye(3)[y], C=1.0, loss=soft_cross_entropy, bias=False)
    solve(x, y, alpha=0.0, max_iterations=1)
    path = solve_path(x, [y, 2 - y], C=[0.1, 1.0, 10.0], folds=np.arange(37) % 2)
    assert path.converged.all()
    assert not events
    jax.jit(lambda a: a * 37)(x)
    assert events
    jax.monitoring.unregister_event_duration_listener(listener)


def test_size_unknowns_memory_and_device_decide_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def suits(n: int, d: int, classes: int, *, smooth: bool = True, lanes: int = 1) -> bool:
        x = np.broadcast_to(np.float32(1), (n, d))
        return host.suits(x, classes, smooth=smooth, memory=2**30, lanes=lanes)

    assert suits(2000, 800, 10)
    assert not suits(2000, 800, 10, smooth=False)
    assert not suits(2000, 800, 10, lanes=50)  # too large for memory
    assert not suits(3000, 800, 10)
    assert suits(1_000_000, 50, 2)
    assert not suits(1_000_000, 50, 2, lanes=2)
    assert not suits(2_000_000, 50, 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not suits(1_000_000, 50, 2)
    assert suits(2000, 800, 10)


def test_every_single_class_has_an_optimum_of_zero() -> None:
    x = np.ones((4, 2))
    for loss, t in ((cross_entropy, np.zeros(4, int)), (binary_cross_entropy, np.ones(4))):
        found = solve(x, t, C=1.0, loss=loss, init=LinearParams(np.ones((2, 1)), np.zeros(1)))
        assert found.converged
        assert found.objective == 0
        assert not found.params.w.any()
