"""The worst mistakes and what argued for them, against loops that say the same."""

import numpy as np
import pytest

from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report import mistakes

RNG = np.random.default_rng(0)
N, D, K = 200, 5, 4
SCORES = RNG.normal(size=(N, K))
W = RNG.normal(size=(D, K))
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)


@pytest.mark.parametrize("probabilities", [PROBABILITIES, None], ids=["probabilities", "scores"])
def test_classes(probabilities: np.ndarray | None) -> None:
    targets = RNG.integers(K, size=N)
    found = mistakes.find_worst(
        Task.classes, SCORES, targets, w=W, probabilities=probabilities, limit=N
    )
    expected = []
    for i, true in enumerate(targets):
        k = int(np.argmax(SCORES[i]))
        lead = SCORES[i, k] - SCORES[i, true]
        if k != true:
            expected.append((lead if probabilities is None else probabilities[i, k], i, k, true))
    expected.sort(key=lambda each: -each[0])
    told = [(m.severity, m.example, m.predicted, m.true) for m in found]
    assert [each[1:] for each in told] == [each[1:] for each in expected]
    np.testing.assert_allclose([m.severity for m in found], [each[0] for each in expected])
    for mistake in found:
        assert mistake.output == mistake.predicted
        np.testing.assert_array_equal(
            mistake.direction, W[:, int(mistake.predicted)] - W[:, int(mistake.true)]
        )


def test_labels() -> None:
    targets = RNG.uniform(size=(N, K)) < 0.5
    p = 1 / (1 + np.exp(-SCORES))
    found = mistakes.find_worst(Task.labels, SCORES, targets, w=W, probabilities=p, limit=N * K)
    expected = sorted(
        (
            (-max(p[i, k], 1 - p[i, k]), i, k)
            for i in range(N)
            for k in range(K)
            if (SCORES[i, k] > 0) != targets[i, k]
        ),
    )
    assert [(m.example, m.output) for m in found] == [each[1:] for each in expected]
    for mistake in found:
        assert mistake.true == targets[mistake.example, mistake.output]
        assert mistake.predicted == 1 - mistake.true
        sign = 1 if mistake.predicted else -1
        np.testing.assert_array_equal(mistake.direction, sign * W[:, mistake.output])


def test_numbers_are_measured_by_the_usual_error_of_each() -> None:
    off = np.array([[1.0, 100.0], [-3.0, 50.0], [0.5, -400.0]])
    targets = np.array([[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]])
    found = mistakes.find_worst(Task.numbers, targets + off, targets, w=W[:, :2], limit=3)
    usual = np.sqrt(np.mean(off**2, 0))
    assert [(m.example, m.output) for m in found] == [(2, 1), (1, 0), (0, 0)]
    np.testing.assert_allclose(
        [m.severity for m in found], [400 / usual[1], 3 / usual[0], 1 / usual[0]]
    )
    assert [(m.true, m.predicted) for m in found][1] == (7, 4)
    np.testing.assert_array_equal(found[1].direction, -W[:, 0])
    np.testing.assert_array_equal(found[2].direction, W[:, 0])


def test_equal_ones_come_in_order_and_only_mistakes_count() -> None:
    scores = np.tile([1.0, 0.0], (6, 1))
    found = mistakes.find_worst(
        Task.classes, scores, np.array([0, 1, 1, 0, 1, 1]), w=W[:, :2], limit=3
    )
    assert [m.example for m in found] == [1, 2, 4]
    assert mistakes.find_worst(Task.classes, scores, np.zeros(6, int), w=W[:, :2]) == []


def test_arguments_are_the_largest_parts_of_what_went_wrong() -> None:
    """The products over all features sum to the lead of the wrong score, so the parts are whole."""
    x = RNG.normal(size=(N, D))
    found = mistakes.find_worst(Task.classes, x @ W, RNG.integers(K, size=N), w=W, limit=N)
    for mistake in found:
        features = x[mistake.example]
        parts = mistakes.largest_contributions(mistake, features, limit=D)
        against = sum(min(0, part) for part in mistake.direction * features)
        np.testing.assert_allclose(sum(part for _, part in parts) + against, mistake.severity)
        assert [part for _, part in parts] == sorted((p for _, p in parts), reverse=True)
        assert mistakes.largest_contributions(mistake, features, limit=2) == parts[:2]


def test_a_row_of_nan_is_a_mistake_and_the_least_sure_one() -> None:
    scores = np.array([[np.nan, 0.0], [0.0, 3.0], [2.0, 0.0]])
    found = mistakes.find_worst(Task.classes, scores, np.array([0, 0, 0]), w=W[:, :2])
    assert [(m.example, m.severity) for m in found] == [(1, 3.0), (0, 0.0)]
    found = mistakes.find_worst(Task.labels, scores, np.array([[0, 0], [0, 1], [1, 0]]), w=W[:, :2])
    assert [m.example for m in found] == [0]
