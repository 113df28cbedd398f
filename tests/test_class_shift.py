"""The shift that all classes share, against a search, and what a small l1 penalty needs it for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler

from jaxsoftmax.solvers import class_shift, solve
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.row_shards import RowShards, computing_with

ABSENT = 2
REMOVE = jax.jit(class_shift.remove, static_argnames="link")


def penalty(w: np.ndarray, l2: float, l1: float) -> np.ndarray:
    """The penalty of the classes with examples, `[D]`."""
    w = np.delete(w, ABSENT, 0)
    return np.sum(l2 / 2 * w**2 + l1 * np.abs(w), 0)


@pytest.mark.parametrize("classes", [4, 5])
@pytest.mark.parametrize(("l2", "l1"), [(0.0, 0.3), (0.2, 0.3), (1e-12, 1e-3), (2.0, 1e-9)])
def test_the_shift_makes_the_penalty_least(classes: int, l2: float, l1: float) -> None:
    rng = np.random.default_rng(3)
    theta = rng.normal(size=(1, classes, 8))
    theta[0, :, 0], theta[0, :2, 1], theta[0, :, 2] = 0, 0, theta[0, :, 2] + 50
    theta[0, ABSENT], theta[0, ABSENT, -1] = 0, -np.inf
    with jax.enable_x64():
        problem = Problem(*(jnp.zeros(1),) * 3, jnp.array([l2]), jnp.array([l1]), jnp.zeros(1))
        found = np.asarray(REMOVE(problem, "softmax", jnp.asarray(theta)))
        assert class_shift.remove(problem, "sigmoid", theta) is theta
    np.testing.assert_array_equal(found[..., -1], theta[..., -1])
    np.testing.assert_array_equal(found[0, ABSENT, :-1], 0)
    w, best = theta[0, :, :-1], found[0, :, :-1]
    shift = (w - best)[0]
    np.testing.assert_allclose(np.delete(w - best, ABSENT, 0) - shift, 0, atol=1e-13)
    trials = np.concatenate([w, shift + np.linspace(-3, 3, 2001)[:, None]])
    least = np.min([penalty(w - trial, l2, l1) for trial in trials], 0)
    assert (penalty(best, l2, l1) <= least * (1 + 1e-12)).all()
    if l2 == 0:  # zeros stay, where that costs nothing
        np.testing.assert_array_equal(best[:2, :2], 0)


@pytest.mark.parametrize("tilted", [False, True])
def test_devices_that_share_the_classes_exchange_them_for_columns(tilted: bool) -> None:
    """Seven columns, which the devices do not divide, and a class without examples."""
    theta, tilt = np.random.default_rng(4).normal(size=(2, 1, 6, 8))
    theta[0, ABSENT], theta[0, ABSENT, -1] = 0, -np.inf
    rows = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("c",)), P(None, None))
    shared = RowShards(jnp.zeros((4, 7)), rows, 4, ("c",))
    with computing_with(shared):
        strengths = jnp.array([0.2]), jnp.array([0.3]), jnp.zeros(1)
        whole = Problem(*(jnp.zeros(1),) * 3, *strengths, jnp.asarray(tilt) if tilted else None)
        wanted = np.asarray(REMOVE(whole, "softmax", jnp.asarray(theta)))
        divided = whole._replace(features=shared)
        found = np.asarray(REMOVE(divided, "softmax", jnp.asarray(theta)))
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-13)
    assert np.abs(found[..., :7] - theta[..., :7]).max() > 0.1


def test_a_small_l1_penalty_is_certified() -> None:
    x, y = load_iris(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    found = solve(x, y, C=1e4, l1_ratio=1.0, gap=1e-6, max_iterations=100)
    assert found.converged
    np.testing.assert_array_equal(np.median(found.params.w, 1), 0)
