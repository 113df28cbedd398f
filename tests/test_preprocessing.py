"""Logarithms and scales: against plain float64, at the extremes, fitted once and applied again."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxsoftmax.app.data import preprocessing

MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 5)),
    elements=st.floats(-(2.0**20), 2.0**20, width=32),
)


def standardised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    scale = x.std(0)
    return (x - x.mean(0)) / np.where(x.max(0) == x.min(0), 1, scale)


@given(MATRICES)
def test_standardize_is_its_formula(x: np.ndarray) -> None:
    learned = preprocessing.learn(x, log1p=False, standardize=True)
    result = learned.apply(x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, standardised(x), rtol=1e-6, atol=1e-6)
    assert np.all(result[:, x.max(0) == x.min(0)] == 0)


@pytest.mark.parametrize("log1p", [False, True])
def test_many_parts_are_as_one(log1p: bool) -> None:
    x = np.random.default_rng(0).gamma(1, 100, (3001, 700)).astype(np.float32)  # three parts
    g = np.log1p(x.astype(np.longdouble)) if log1p else x
    learned = preprocessing.learn(x, log1p=log1p, standardize=True)
    assert learned.log1p is log1p
    np.testing.assert_allclose(learned.apply(x), standardised(g), rtol=1e-6, atol=1e-6)


def test_small_deviation_from_a_large_mean() -> None:
    # float32 near 1e6 has steps of 1/16. A mean kept in float32, or sums of squares, lose them.
    rng = np.random.default_rng(0)
    x = (1e6 + rng.integers(0, 2, (5000, 1)) / 16).astype(np.float32)
    learned = preprocessing.learn(x, log1p=False, standardize=True)
    assert learned.scale == pytest.approx(1 / 32, rel=1e-3)
    result = learned.apply(x)
    assert abs(result.mean(dtype=np.float64)) < 1e-6
    assert result.std(dtype=np.float64) == pytest.approx(1, rel=1e-6)


def test_deviation_below_float32s_steps_is_a_constant() -> None:
    x = (1e6 + 1e-3 * np.random.default_rng(0).standard_normal((100, 1))).astype(np.float32)
    learned = preprocessing.learn(x, log1p=False, standardize=True)
    assert (learned.mean, learned.scale) == (1e6, 1)
    assert not learned.apply(x).any()


@pytest.mark.parametrize("value", [0.1, 1e30, -7.3e-40, 3.3e38])
def test_constant_columns_become_zero(value: float) -> None:
    x = np.full((1001, 2), value, np.float32)  # 1001 times 0.1 over 1001 is not 0.1
    learned = preprocessing.learn(x, log1p=False, standardize=True)
    np.testing.assert_array_equal(learned.scale, 1)
    assert not learned.apply(x).any()
    assert not preprocessing.learn(np.abs(x), log1p=True, standardize=True).apply(np.abs(x)).any()


def test_what_is_learned_is_applied_to_others() -> None:
    train = np.array([[0.0], [4.0]], np.float32)
    other = np.array([[100.0], [2.0]], np.float32)
    learned = preprocessing.learn(train, log1p=False, standardize=True)
    np.testing.assert_array_equal(learned.apply(other), [[49], [0]])
    np.testing.assert_array_equal(other, [[100], [2]])


def test_logarithms_alone() -> None:
    x = np.array([[0.0, 1e-8], [99.0, -0.5]], np.float32)
    learned = preprocessing.learn(x, log1p=True, standardize=False)
    assert learned == (True, None, None)
    np.testing.assert_allclose(learned.apply(x), np.log1p(x.astype(float)), rtol=1e-7)


def test_in_place() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    learned = preprocessing.learn(x, log1p=True, standardize=True)
    expected = learned.apply(x)
    assert learned.apply(x, in_place=True) is x
    np.testing.assert_array_equal(x, expected)


def test_identity_copies_nothing() -> None:
    x = np.ones((2, 2), np.float32)
    assert preprocessing.IDENTITY.apply(x) is x
    assert preprocessing.learn(x, log1p=False, standardize=False) == preprocessing.IDENTITY


@pytest.mark.parametrize("standardize", [False, True])
def test_logarithm_of_minus_one_is_named(standardize: bool) -> None:
    x = np.array([[0, 0, 0], [0, 0, -1]], np.float32)
    with pytest.raises(ValueError, match=r"^row 2, feature 3: log1p .* above -1, got -1.0"):
        preprocessing.learn(x, log1p=True, standardize=standardize)
    learned = preprocessing.Preprocessing(log1p=True)
    with pytest.raises(ValueError, match=r"^row b, column 'z': log1p"):
        learned.apply(x, columns=("x", "y", "z"), ids=np.array(["a", "b"], object))


def test_what_float32_cannot_hold_is_named() -> None:
    train = np.array([[0.0], [1e-30]], np.float32)
    learned = preprocessing.learn(train, log1p=False, standardize=True)
    with pytest.raises(ValueError, match="row 1, feature 1: beyond float32"):
        learned.apply(np.array([[1e10]], np.float32))


def test_a_check_finds_what_is_applied_by_parts() -> None:
    x = np.zeros((700_000, 3), np.float32)
    x[650_000, 1] = -2
    learned = preprocessing.learn(x[:10], log1p=True, standardize=True)
    with pytest.raises(ValueError, match=r"^row 650001, feature 2: log1p"):
        learned.check(x)
    learned.check(x[:650_000])
    preprocessing.IDENTITY.check(x)
