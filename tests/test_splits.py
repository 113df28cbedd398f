"""Splits: every class has its share, the totals come out, single examples train."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from jaxsoftmax.app.data import splits
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION


@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(1, 12))
def test_folds_deal_each_class_round_and_round(labels: list[int], count: int) -> None:
    seen: Counter[int] = Counter()
    expected = []
    for label in labels:
        expected.append(seen[label] % count)
        seen[label] += 1
    assert splits.assign_folds(np.array(labels, dtype=int), count).tolist() == expected


def counts(labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    found = np.zeros((labels.max() + 1, 3), int)
    np.add.at(found, (labels, parts), 1)
    return found


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)
SHARES = st.floats(0.02, 0.45)


@given(SIZES, SHARES, SHARES, st.integers(0, 10))
def test_stratified(sizes: list[int], validation: float, test: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    assume(len(labels) - len(sizes) >= 2)
    parts = splits.assign_splits(labels, validation_share=validation, test_share=test, seed=seed)
    found = counts(labels, parts)
    assert (found[:, TRAIN] >= 1).all()
    assert (found.sum(0) >= 1).all()
    shares = np.array([1 - validation - test, validation, test])
    if min(sizes) * shares[TRAIN] >= 1 and len(labels) * min(validation, test) >= 2:
        assert (abs(found - np.outer(sizes, shares)) < 1).all()
        assert (abs(found.sum(0) - len(labels) * shares) < 1).all()


def test_whole_shares_are_exact() -> None:
    labels = np.repeat(np.arange(3), (100, 40, 20))
    parts = splits.assign_splits(labels, validation_share=0.15, test_share=0.1, seed=3)
    expected = [[75, 15, 10], [30, 6, 4], [15, 3, 2]]
    np.testing.assert_array_equal(counts(labels, parts), expected)


def test_many_small_classes_fill_every_part() -> None:
    labels = np.repeat(np.arange(200), 2)  # 15 % of 2 is nothing, of 400 it is 60
    parts = splits.assign_splits(labels, validation_share=0.15, test_share=0.15, seed=0)
    np.testing.assert_array_equal(np.bincount(parts), [280, 60, 60])


def test_single_examples_train() -> None:
    labels = np.concatenate([np.arange(50), np.full(50, 50)])
    parts = splits.assign_splits(labels, validation_share=0.3, test_share=0.3, seed=0)
    assert (parts[:50] == TRAIN).all()


def test_seed_draws_again_and_is_kept() -> None:
    labels = np.zeros(1000, int)
    draw = [
        splits.assign_splits(labels, validation_share=0.2, test_share=0.2, seed=seed)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draw[0], draw[1])
    # Of 200 test examples 40 are those of another draw, give or take 6.
    assert 10 < ((draw[0] == TEST) & (draw[2] == TEST)).sum() < 80
    # Chance, not order: the first half of the examples has about half of the test part.
    assert 70 < (draw[0][:500] == TEST).sum() < 130


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
def test_few_examples_fill_every_part(labels: list[int]) -> None:
    parts = splits.assign_splits(np.array(labels), validation_share=0.1, test_share=0.1, seed=0)
    assert set(parts.tolist()) == {TRAIN, VALIDATION, TEST}
    assert {labels[i] for i in np.flatnonzero(parts == TRAIN)} == set(labels)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1], [0, 0]])
def test_too_few_to_hold_out(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^{len(labels)} examples of .* too few to hold out"):
        splits.assign_splits(np.array(labels), validation_share=0.3, test_share=0.3, seed=0)


def test_no_test_part() -> None:
    parts = splits.assign_splits(np.zeros(10, int), validation_share=0.2, test_share=0, seed=0)
    np.testing.assert_array_equal(np.bincount(parts, minlength=3), [8, 2, 0])


@pytest.mark.parametrize(("validation", "test"), [(0, 0.1), (0.5, 0.5), (0.2, -0.1), (1.0, 0.0)])
def test_shares_that_leave_nothing(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match=f"got {validation} and {test}"):
        splits.assign_splits(np.zeros(9, int), validation_share=validation, test_share=test, seed=0)
