"""The search along a line: where it ends, and who stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import cross_entropy
from jaxsoftmax.solvers import line_search, prepare, steps
from jaxsoftmax.solvers import problem as problems

pytestmark = pytest.mark.usefixtures("unoptimized")


def standing(lanes: int) -> tuple[problems.Problem, problems.Point, jax.Array]:
    """Lanes of one problem at zero, and their gradients; float64."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)), np.arange(90) % 3
    given = prepare.prepare_data(
        x, y, loss=cross_entropy, weights=None, class_weights=None, memory=10**9
    )
    every = np.ones((lanes, 90))
    problem = prepare.prepare_lanes(given, every, y[None], np.full(lanes, 0.01), np.zeros(lanes))
    at, g = steps.point_and_gradient(problem, "softmax", jnp.zeros((lanes, 3, 9)), intercept=True)
    return problem, at, g


def along(
    problem: problems.Problem, at: problems.Point, d: jax.Array
) -> tuple[problems.Point, jax.Array]:
    return line_search.minimize_along(problem, "softmax", at, d, problems.linear_scores(problem, d))


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_it_ends_where_the_line_is_nearly_flat(length: float) -> None:
    with jax.enable_x64():
        problem, at, g = standing(1)
        d = -length * g
        end, t = along(problem, at, d)
        there, slope = steps.point_and_gradient(
            problem, "softmax", at.theta + t * d, intercept=True
        )
        np.testing.assert_allclose(end.theta, there.theta, rtol=1e-15)
        np.testing.assert_allclose(end.scores, there.scores, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(end.residual, there.residual, rtol=1e-10)
        assert end.value[0] < at.value[0]
        assert abs(jnp.sum(slope * d)) <= line_search.MAX_SLOPE_RATIO * abs(jnp.sum(g * d))


def test_a_lane_without_descent_stays_and_the_others_go_on() -> None:
    with jax.enable_x64():
        problem, at, g = standing(4)
        factors = jnp.array([-1e3, 1.0, jnp.nan, 0.0])
        end, t = along(problem, at, factors[:, None, None] * g)
        assert t[0] > 0
        assert not t[1:].any()
        assert end.value[0] < at.value[0]
        for field in ("theta", "scores", "residual"):
            np.testing.assert_array_equal(getattr(end, field)[1:], getattr(at, field)[1:])


def test_a_lane_that_finds_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with jax.enable_x64():
        problem, at, g = standing(2)
        _, enough = along(problem, at, -g)
        monkeypatch.setattr(line_search, "MAX_TRIALS", 1)
        factors = jnp.stack([jnp.array(-1e3), -enough[0]])
        end, t = along(problem, at, factors[:, None, None] * g)
        np.testing.assert_array_equal(t, [0, 1])
        np.testing.assert_array_equal(end.theta[0], at.theta[0])
        assert end.value[1] < at.value[1]
