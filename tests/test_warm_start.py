"""Where the stages of a path start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax.solvers import driver, host, prepare, solve_path, steps
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.outcome import Outcome, RoundedScores
from jaxsoftmax.solvers.warm_start import WarmStart

pytestmark = pytest.mark.usefixtures("unoptimized")


def stage(theta: np.ndarray, x: np.ndarray) -> Outcome:
    """The outcome of a stage that ended at theta, with its scores."""
    scores = RoundedScores(jnp.asarray(theta[..., :-1] @ x.T + theta[..., -1:]), 2.0)
    return Outcome.initial(jnp.asarray(theta))._replace(scores=scores)


def test_it_starts_on_the_line_through_two_stages_with_the_scores_of_the_line() -> None:
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(7, 4)), rng.normal(size=(3, 2, 3, 5))
    theta[:, 1, 2, -1] = -np.inf  # a class that the lane does not have
    with jax.enable_x64():
        path = WarmStart(theta[0], smooth=True, extrapolate=problems.extrapolate_scores)
        start, scores = path.start(0.1)
        np.testing.assert_array_equal(start, theta[0])
        assert scores is None
        path.add(0.1, stage(theta[1], x))
        start, scores = path.start(1.0)
        np.testing.assert_array_equal(start, theta[1])
        path.add(1.0, stage(theta[2], x))
        start, scores = path.start(np.sqrt(10.0))
        want = theta[2] + 0.5 * (theta[2] - np.nan_to_num(theta[1], neginf=0))
        np.testing.assert_allclose(start, want, rtol=1e-15)
        np.testing.assert_allclose(scores.values, want[..., :-1] @ x.T + want[..., -1:], rtol=1e-12)
        assert scores.rounding == 1.5 * 2 + 0.5 * 2 + 1
        again, scores = path.start(1.0)  # the same C once more
        np.testing.assert_allclose(again, theta[2], rtol=1e-15)


def test_scores_are_computed_anew_before_rounding_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = []

    def point_and_gradient(
        problem, link, theta, scores=None, *, intercept, whole=steps.point_and_gradient
    ):
        known.append(scores is not None)
        return whole(problem, link, theta, scores, intercept=intercept)

    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(steps, "point_and_gradient", point_and_gradient)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 6)), rng.permutation(np.arange(90) % 3)
    loose = solve_path(x, y, C=np.logspace(-3, 1, 12), gap=1e-3)
    assert sum(known) == 11
    known.clear()
    tight = solve_path(x, y, C=np.logspace(-3, 1, 12), gap=1e-12)
    assert not all(known[1:])
    known.clear()
    monkeypatch.setattr(driver, "MAX_SCORE_ROUNDING", 0.0)
    np.testing.assert_allclose(
        solve_path(x, y, C=np.logspace(-3, 1, 12), gap=1e-3).objective, loose.objective, rtol=1e-13
    )
    assert sum(known) < 6
    assert tight.converged.all()
    assert np.all(tight.objective <= loose.objective * (1 + 1e-12))


def test_the_scores_of_a_stage_are_those_of_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def point_and_gradient(
        problem, link, theta, scores=None, *, intercept, whole=steps.point_and_gradient
    ):
        if scores is not None:
            expected = problems.linear_scores(problem, theta)
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
            compared.append(scores.dtype)
        return whole(problem, link, theta, scores, intercept=intercept)

    monkeypatch.setattr(host, "suits", lambda *_, **__: False)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    monkeypatch.setattr(steps, "point_and_gradient", point_and_gradient)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)).astype(np.float32), rng.permutation(np.arange(200) % 3)
    y = np.where(x[:, 0] > 1, 0, y)
    assert solve_path(x, y, C=[1.0, 2.0], bias=False, gap=1e-3).converged.all()
    assert compared == [np.float32]  # the second stage starts from scores of the first
    # Float32 ends after two steps, and its scores are not those of the next precision's end.
    monkeypatch.setattr(driver, "MAX_IDLE_ITERATIONS", 0)
    solve_path(x, y, C=[1.0, 2.0], bias=False, gap=[1e-12, 1e-2])
