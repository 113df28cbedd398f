"""The blocks of the Hessian against the Hessian itself, and what they save."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_digits

from jaxsoftmax.solvers import class_preconditioner, host, matvec, prepare, solve, solve_path
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.sparse import from_scipy

pytestmark = pytest.mark.usefixtures("unoptimized")

Array = np.ndarray


def standing(
    link: problems.Link, l2: tuple[float, ...], n: int = 300, d: int = 5, classes: int = 4
) -> tuple[problems.Problem, jax.Array, jax.Array]:
    """Lanes with their own weights, parameters and variance far from an optimum; float64."""
    rng = np.random.default_rng(3)
    lanes = len(l2)
    labels = rng.integers(0, classes, (1, n))
    hot = np.eye(classes)[labels[0]].T[None]
    s = rng.random((lanes, n)) + 0.1
    x = jnp.asarray(rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)))
    given = problems.Problem(
        x,
        jnp.asarray(labels if link == "softmax" else hot),
        jnp.asarray(s / s.sum(1, keepdims=True)),
        jnp.asarray(l2),
        jnp.zeros(lanes),
        matvec.column_max_abs(x),
    )
    theta = jnp.asarray(rng.normal(size=(lanes, classes, d + 1)))
    at = problems.point_from_scores(given, link, theta, problems.linear_scores(given, theta))
    return given, theta, problems.class_variance(given, link, at)


def matrix(product, shape: tuple[int, ...]) -> Array:
    """The matrix of a linear map of one lane's parameters."""
    size = int(np.prod(shape))
    return np.stack([np.ravel(product(e.reshape(shape))) for e in jnp.eye(size)], 1)


def test_of_sigmoids_they_are_the_inverse() -> None:
    with jax.enable_x64():
        given, theta, variance = standing("sigmoid", (0.01, 0.3))
        found = class_preconditioner.build(given, "sigmoid", variance)
        v = jnp.asarray(np.random.default_rng(0).normal(size=theta.shape))
        h = problems.hessian_product(given, "sigmoid", variance, v, intercept=True)
        np.testing.assert_allclose(
            class_preconditioner.apply(found, "sigmoid", given.l2, h), v, rtol=1e-3
        )


@pytest.mark.parametrize("l2", [1e-6, 0.3])
def test_of_a_softmax_they_know_the_shift_of_all_classes(l2: float) -> None:
    with jax.enable_x64():
        given, theta, variance = standing("softmax", (l2,))
        found = class_preconditioner.build(given, "softmax", variance)
        shape = theta.shape
        m = matrix(partial(class_preconditioner.apply, found, "softmax", given.l2), shape)
        h = matrix(
            partial(problems.hessian_product, given, "softmax", variance, intercept=True), shape
        )
    np.testing.assert_allclose(m, m.T, rtol=0, atol=1e-9 * np.abs(m).max())
    shift = np.zeros(shape)
    shift[..., :-1] = np.random.default_rng(1).normal(size=shape[-1] - 1)
    np.testing.assert_allclose(m @ shift.ravel(), shift.ravel() / l2, rtol=1e-6, atol=1e-6)
    # But for the shift of all intercepts, which changes nothing, M H is near the identity.
    ratios = np.sort(np.linalg.eigvals(m @ h).real)
    assert abs(ratios[0]) < 1e-6
    assert ratios[1] > 0.3
    assert ratios[-1] < 3


def test_a_sample_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with jax.enable_x64():
        given, _, variance = standing("sigmoid", (0.01,), n=4000)
        exact = class_preconditioner.build(given, "sigmoid", variance).inverse
        monkeypatch.setattr(class_preconditioner, "MIN_ROWS", 1000)
        drawn = class_preconditioner.build(given, "sigmoid", variance).inverse
    for one, other in zip(np.asarray(exact[0]), np.asarray(drawn[0]), strict=True):
        ratios = np.linalg.eigvals(np.linalg.inv(one) @ other).real
        assert 0.7 < ratios.min() < ratios.max() < 1.4
    assert np.any(exact != drawn)


def test_a_class_without_examples_stays_where_it_is() -> None:
    with jax.enable_x64():
        given, theta, variance = standing("softmax", (0.1,))
        variance = variance.at[:, 2].set(0)
        variance = variance / variance.sum(1, keepdims=True)
        found = class_preconditioner.build(given, "softmax", variance)
        g = jnp.ones(theta.shape).at[:, 2].set(0)
        z = np.asarray(class_preconditioner.apply(found, "softmax", given.l2, g))
    assert np.isfinite(z).all()
    assert not z[:, 2].any()
    assert z[:, [0, 1, 3]].any()


def test_examples_that_are_all_certain_leave_the_penalty() -> None:
    with jax.enable_x64():
        given, theta, variance = standing("softmax", (0.5,))
        certain = jnp.zeros_like(variance).at[:, 0].set(1)
        found = class_preconditioner.build(given, "softmax", certain)
        g = jnp.ones(theta.shape)
        z = np.asarray(class_preconditioner.apply(found, "softmax", given.l2, g))
    np.testing.assert_allclose(z[..., :-1], 1 / 0.5, rtol=1e-4)
    assert np.isfinite(z).all()


def test_what_is_not_to_be_inverted_costs_too_much() -> None:
    with jax.enable_x64():
        given, *_ = standing("softmax", (0.1,))
        bytes_needed = 4 * 6**2 * 8
        assert class_preconditioner.cost_in_products(given, 1, 4, bytes_needed) < np.inf
        assert class_preconditioner.cost_in_products(given, 1, 4, bytes_needed - 1) == np.inf
        sparse = from_scipy(scipy.sparse.csr_array(np.eye(300, 5)))
        assert (
            class_preconditioner.cost_in_products(given._replace(features=sparse), 1, 4, 2**30)
            == np.inf
        )


def test_far_fewer_products_to_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    x, y = load_digits(return_X_y=True)
    spent = {}
    for price in (np.inf, 20):
        monkeypatch.setattr(class_preconditioner, "cost_in_products", lambda *_, price=price: price)
        found = solve(x, y, C=100.0, gap=1e-9)
        assert found.converged, found.reason
        spent[price] = found
    assert spent[20].products < 0.5 * spent[np.inf].products
    np.testing.assert_allclose(spent[20].objective, spent[np.inf].objective, rtol=2e-9)


def test_lanes_have_blocks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_digits(return_X_y=True)
    x, y = x[:400].astype(np.float32), y[:400]
    folds = np.where(y == 3, 0, np.arange(400) % 3)  # the first fold's fit has no 3
    want = solve_path(x, y, C=[0.01, 10.0], folds=folds, gap=1e-6)
    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    monkeypatch.setattr(class_preconditioner, "cost_in_products", lambda *_: 1.0)
    found = solve_path(x, y, C=[0.01, 10.0], folds=folds, gap=1e-6)
    assert found.converged.all()
    np.testing.assert_allclose(found.objective, want.objective, rtol=1e-5)
    assert np.isneginf(found.params.bias[:, 0, 3]).all()


# Chunks of 8 rows do not divide 30: the last one overlaps the one before it.
@pytest.mark.parametrize("rows", [1, 7, 8, 30])
def test_gram_product_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(30, 4)), rng.normal(size=(3, 4))
    factor = rng.normal(size=(3, 30))
    monkeypatch.setattr(matvec, "CACHED_CHUNK_BYTES", 4 * 4 * rows)

    def gram_product(x, v, f):
        return matvec.gram_product(x, v, lambda z, f: f * z, f)

    found = jax.jit(gram_product)(*(jnp.asarray(a, jnp.float32) for a in (x, v, factor)))
    r = factor * (v @ x.T)
    np.testing.assert_allclose(found[0], r @ x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], r.sum(1), rtol=1e-4, atol=1e-5)


def test_what_a_tpu_inverts_without_cholesky() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 200))
    x[3] = x[4]  # two columns that are equal but for the diagonal
    a = np.corrcoef(x)
    a[np.diag_indices(30)] += class_preconditioner.DIAGONAL_ROUNDING
    with jax.enable_x64():
        invert = jax.jit(class_preconditioner._invert_by_sweeps)
        np.testing.assert_allclose(invert(a) @ a, np.eye(30), atol=1e-9)
        a[3, 3] -= 2 * class_preconditioner.DIAGONAL_ROUNDING
        assert np.isnan(invert(a)).any()
