"""Calibration: the known temperature, SciPy's optimum of the same objective, and hopeless data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from jaxsoftmax import metrics, softmax
from jaxsoftmax.calibration import Fit, temperature_scaling, vector_scaling

pytestmark = pytest.mark.usefixtures("unoptimized")

BOTH = pytest.mark.parametrize("scaling", [temperature_scaling, vector_scaling])
# Nearly all of the time is compilation, so data have one of few shapes: 2000 examples where the
# number does not matter, and rows that are repeated where some are left out.
type Arrays = tuple[np.ndarray, np.ndarray]


def single_label(size: int = 2000, count: int = 4, temperature: float = 2.5) -> Arrays:
    """Labels drawn from softmax(z / temperature)."""
    rng = np.random.default_rng(size)
    z = 3 * rng.normal(size=(size, count))
    y = (z / temperature + rng.gumbel(size=z.shape)).argmax(1)
    return z.astype(np.float32), y


def multi_label(size: int = 2000) -> Arrays:
    """Targets drawn from sigmoid(a z + c) label by label."""
    rng = np.random.default_rng(size)
    z = 3 * rng.normal(size=(size, 3))
    t = z * [0.5, 1.0, 2.0] + [-2, 0, 1] + rng.logistic(size=z.shape) > 0
    return z.astype(np.float32), t.astype(np.int32)


KINDS = {"softmax": single_label, "sigmoids": multi_label}


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest) -> Arrays:
    return KINDS[request.param]()


def nll(z: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The objective in float64 NumPy, of its own."""
    if z.ndim > truth.ndim:
        values = scipy.special.logsumexp(z, axis=1) - z[np.arange(len(z)), truth]
    else:
        values = np.logaddexp(0, np.where(truth == 1, -z, z))
        values = values.reshape(len(z), -1).mean(1)
    return float(np.average(values, weights=weights))


def optimum(z: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> Arrays:
    """Scale and bias of least nll: SciPy's BFGS, then Newton steps with a dense Hessian."""
    z, count = z.astype(np.float64), z.shape[1]
    x = scipy.optimize.minimize(
        lambda x: nll(x[:count] * z + x[count:], truth, weights),
        np.r_[np.ones(count), np.zeros(count)],
        method="BFGS",
        options={"gtol": 1e-7, "maxiter": 1000, "eps": 1e-7},
    ).x
    w = np.ones(len(z)) if weights is None else weights
    w = w / w.sum()
    design = np.concatenate([np.eye(count) * row[:, None] for row in z], axis=0)
    design = np.concatenate([design, np.tile(np.eye(count), (len(z), 1))], axis=1)
    design = design.reshape(len(z), count, 2 * count)
    for _ in range(3):
        scores = x[:count] * z + x[count:]
        if z.ndim > truth.ndim:
            p, right = scipy.special.softmax(scores, axis=1), np.eye(count)[truth]
            bend = p[:, :, None] * np.eye(count) - p[:, :, None] * p[:, None, :]
        else:
            p, right = scipy.special.expit(scores), truth
            bend = (p * (1 - p))[:, :, None] * np.eye(count)
        slope = np.einsum("n,nk,nkj->j", w, p - right, design)
        hessian = np.einsum("n,nki,nkl,nlj->ij", w, design, bend, design, optimize=True)
        x = x - np.linalg.lstsq(hessian, slope, rcond=1e-9)[0]
    a, c = x[:count], x[count:]
    return a, c - c.mean() * (z.ndim > truth.ndim)  # a softmax does not see a shift of all biases


def weights_for(truth: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).choice([0.0, 0.5, 1.0, 4.0], len(truth)).astype(np.float32)


# -- The optimum --


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_recovers_a_known_temperature(temperature: float) -> None:
    z, y = single_label(temperature=temperature)
    fitted = temperature_scaling(z, y)
    # The estimate's variance is the inverse of the Fisher information, N times the mean variance
    # of the logits under the model.
    p = scipy.special.softmax(z / temperature, axis=1)
    variance = (p * z**2).sum(1) - (p * z).sum(1) ** 2
    error = 1 / np.sqrt(variance.sum())
    assert fitted.converged
    assert abs(float(fitted.scale) - 1 / temperature) < 4 * error


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_temperature_agrees_with_scipy(data: Arrays, weighted: bool) -> None:
    z, truth = data
    weights = weights_for(truth) if weighted else None
    fitted = temperature_scaling(z, truth, weights=weights)
    z = z.astype(np.float64)
    best = scipy.optimize.minimize_scalar(
        lambda b: nll(b * z, truth, weights), bounds=(0.01, 10), options={"xatol": 1e-9}
    )
    assert fitted.converged
    np.testing.assert_allclose(fitted.scale, best.x, rtol=1e-5)
    np.testing.assert_allclose(fitted.nll, (nll(z, truth, weights), best.fun), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_vector_scaling_agrees_with_scipy(data: Arrays, weighted: bool) -> None:
    z, truth = data
    weights = weights_for(truth) if weighted else None
    fitted = vector_scaling(z, truth, weights=weights)
    a, c = optimum(z, truth, weights)
    assert fitted.converged
    assert fitted.determined.all()
    np.testing.assert_allclose(fitted.scale, a, rtol=1e-6)
    np.testing.assert_allclose(fitted.bias, c, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(fitted.nll[1], nll(a * z + c, truth, weights), rtol=1e-12)


def test_vector_scaling_is_platts_method_label_by_label() -> None:
    z, t = multi_label()
    together = vector_scaling(z, t)
    for k in range(3):
        alone = vector_scaling(z[:, k], t[:, k])
        assert alone.scale.shape == alone.bias.shape == ()
        np.testing.assert_allclose(alone.scale, together.scale[k], rtol=1e-6)
        np.testing.assert_allclose(alone.bias, together.bias[k], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_temperature_scales_with_the_logits(data: Arrays, size: float) -> None:
    z, truth = data
    one, other = (temperature_scaling(z * np.float32(c), truth) for c in (1, size))
    np.testing.assert_allclose(other.scale * size, one.scale, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4, 1e30])
def test_vector_scaling_scales_with_the_logits(data: Arrays, size: float) -> None:
    z, truth = data
    one, other = (vector_scaling(z * np.float32(c), truth) for c in (1, size))
    assert other.converged
    np.testing.assert_allclose(other.scale * np.float32(size), one.scale, rtol=1e-6)
    np.testing.assert_allclose(other.bias, one.bias, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.nll[1], one.nll[1], rtol=1e-7)


def test_an_offset_of_the_logits_is_no_confidence() -> None:
    z, y = single_label()
    z = np.round(z * 64) / 64  # so that adding 2^14 rounds nothing
    plain, shifted = temperature_scaling(z, y), temperature_scaling(z + np.float32(2**14), y)
    np.testing.assert_allclose(shifted.scale, plain.scale, rtol=1e-6)


@BOTH
def test_weights_are_repetitions(scaling: Callable[..., Fit], data: Arrays) -> None:
    z, truth = data
    counts = np.random.default_rng(2).permutation(np.resize([0, 1, 2, 3, 0, 0, 1, 1], len(z)))
    assert counts.sum() == len(z)
    weighted = scaling(z, truth, weights=counts.astype(np.float32))
    repeated = scaling(np.repeat(z, counts, axis=0), np.repeat(truth, counts, axis=0))
    np.testing.assert_allclose(weighted.nll, repeated.nll, rtol=1e-5)
    np.testing.assert_allclose(weighted.ece, repeated.ece, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-6)
    np.testing.assert_allclose(weighted.bias, repeated.bias, rtol=1e-6, atol=1e-7)


@BOTH
def test_an_example_of_no_weight_may_hold_anything(
    scaling: Callable[..., Fit], data: Arrays
) -> None:
    z, truth = data
    counts = np.arange(len(z)) % 2
    held, held_truth = z.copy(), truth.copy()
    held[counts == 0], held_truth[counts == 0] = np.nan, -100
    weighted = scaling(held, held_truth, weights=counts)
    rest = scaling(np.repeat(z[1::2], 2, axis=0), np.repeat(truth[1::2], 2, axis=0))
    assert weighted.converged
    np.testing.assert_allclose(weighted.scale, rest.scale, rtol=1e-6)
    np.testing.assert_allclose(weighted.nll, rest.nll, rtol=1e-7)


@BOTH
def test_weights_whose_sum_is_too_large(scaling: Callable[..., Fit], data: Arrays) -> None:
    plain, heavy = scaling(*data), scaling(*data, weights=np.full(len(data[0]), 3e38, np.float32))
    np.testing.assert_array_equal(heavy.scale, plain.scale)
    assert heavy.nll == plain.nll


@BOTH
def test_the_same_every_time(scaling: Callable[..., Fit], data: Arrays) -> None:
    one, other = scaling(*data), scaling(*data)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@BOTH
def test_float64(scaling: Callable[..., Fit], data: Arrays) -> None:
    z, truth = data
    single = scaling(z, truth)
    with jax.enable_x64():
        double = scaling(z.astype(np.float64), truth)
    assert double.scale.dtype == np.float64
    np.testing.assert_allclose(single.scale, double.scale, rtol=1e-6)
    np.testing.assert_allclose(single.nll, double.nll, rtol=1e-7)


@BOTH
def test_the_decrement_is_negligible_at_the_optimum(
    scaling: Callable[..., Fit], data: Arrays
) -> None:
    fitted = scaling(*data)
    assert 0 <= fitted.decrement <= 1e-7 * fitted.nll[1]


def test_the_decrement_tells_how_far_the_optimum_is(data: Arrays) -> None:
    best, early = vector_scaling(*data), vector_scaling(*data, iterations=1)
    assert not early.converged
    # Newton's estimate is that of a quadratic function, which the loss only nearly is here.
    left = early.nll[1] - best.nll[1]
    assert 0.5 * left < early.decrement < 2 * left


# -- What it does to the data --


@BOTH
def test_before_and_after(scaling: Callable[..., Fit]) -> None:
    z, y = single_label()
    fitted = scaling(z, y)
    after = fitted.apply(z)
    error = metrics.expected_calibration_error
    np.testing.assert_allclose(
        fitted.nll,
        [metrics.negative_log_likelihood(x, y) for x in (z, after)],
        rtol=1e-6,
    )
    np.testing.assert_allclose(fitted.ece, [error(x, y).error for x in (z, after)], rtol=1e-5)
    assert fitted.nll[1] < fitted.nll[0]
    assert fitted.ece[1] < fitted.ece[0] / 3


small = st.tuples(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 8]), st.sampled_from([2, 3]))


@given(small)
def test_never_worse_and_never_another_class(drawn: tuple[int, int, int]) -> None:
    """Few examples of labels that the logits know nothing of: separable, absent, or neither."""
    seed, size, count = drawn
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(8, 3)) * 10 ** rng.uniform(-1, 2)).astype(np.float32)
    z[:, count:] = -np.inf
    y, weights = rng.integers(0, count, 8), (np.arange(8) < size).astype(np.float32)
    tempered, scaled = (f(z, y, weights=weights) for f in (temperature_scaling, vector_scaling))
    for fitted in (tempered, scaled):
        assert np.isfinite([*fitted.nll, *fitted.ece]).all()
        np.testing.assert_array_equal(np.isfinite(fitted.apply(z)), np.isfinite(z))
        assert fitted.nll[1] <= fitted.nll[0]
    np.testing.assert_array_equal(tempered.apply(z).argmax(1), z.argmax(1))


def test_a_masked_class_stays_masked() -> None:
    z, y = single_label()
    masked = np.concatenate([z, np.full((len(z), 1), -np.inf, np.float32)], axis=1)
    tempered = temperature_scaling(masked, y)
    np.testing.assert_allclose(tempered.scale, temperature_scaling(z, y).scale, rtol=1e-5)
    negative = tempered._replace(scale=jnp.array([1.0, 1.0, 1.0, 1.0, -1.0]))
    np.testing.assert_array_equal(negative.apply(masked)[:, 4], -np.inf)
    np.testing.assert_array_equal(softmax(tempered.apply(masked))[:, 4], 0)


@BOTH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_are_calibrated_in_float32(
    scaling: Callable[..., Fit], dtype: jnp.dtype
) -> None:
    z, y = single_label()
    half = jnp.asarray(z, dtype)
    fitted = scaling(half, y)
    assert fitted.apply(half).dtype == fitted.scale.dtype == jnp.float32
    np.testing.assert_allclose(fitted.scale, scaling(half.astype(jnp.float32), y).scale, rtol=1e-6)


def test_a_column_is_one_label() -> None:
    z, t = (a[:, :1] for a in multi_label())
    one, flat = temperature_scaling(z, t[:, 0]), temperature_scaling(z[:, 0], t[:, 0])
    np.testing.assert_allclose(one.scale, flat.scale, rtol=1e-6)
    assert vector_scaling(z, t[:, 0]).scale.shape == (1,)


# -- Data that do not determine an answer --


@pytest.mark.parametrize("limit", [20.0, 1000.0])
def test_separable_data_stop_at_the_limit(limit: float) -> None:
    z, _ = single_label()
    fitted = temperature_scaling(z, z.argmax(1), limit=limit)
    assert not fitted.converged
    assert fitted.scale == limit
    assert fitted.nll[1] < fitted.nll[0]


def test_worse_than_chance_stops_at_the_other_limit() -> None:
    z, _ = single_label()
    fitted = temperature_scaling(z, z.argmin(1))
    assert not fitted.converged
    np.testing.assert_allclose(fitted.scale, 1e-3, rtol=1e-6)
    # Vector scaling may turn the scales round, and then the data are separable.
    turned = vector_scaling(z, z.argmin(1))
    assert (turned.scale < 0).all()
    assert turned.nll[1] < 0.05
    assert not turned.converged


@pytest.mark.parametrize("jitter", [0, 2], ids=["equal", "rounded"])
def test_equal_logits_stay(jitter: int) -> None:
    z = np.full((2000, 4), 5, np.float32)
    z += np.spacing(z) * np.random.default_rng(0).integers(-jitter, jitter + 1, z.shape)
    y = np.resize([0, 1, 1, 0, 1, 2, 3, 3], len(z))
    fitted = temperature_scaling(z, y)
    assert fitted.scale == 1
    assert not fitted.determined
    assert fitted.nll[0] == fitted.nll[1]
    shifted = vector_scaling(z, y)
    np.testing.assert_array_equal(shifted.scale, 1)
    assert not shifted.determined.any()
    assert shifted.converged
    frequencies = np.array([2, 3, 1, 2]) / 8
    np.testing.assert_allclose(softmax(shifted.bias), frequencies, rtol=1e-6)


@pytest.mark.parametrize("jitter", [0, 2], ids=["equal", "rounded"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_column_keeps_its_scale(kind: str, jitter: int) -> None:
    z, truth = KINDS[kind]()
    z[:, 1] = np.float32(2.7)
    z[:, 1] += np.spacing(z[:, 1]) * np.random.default_rng(0).integers(-jitter, jitter + 1, len(z))
    fitted = vector_scaling(z, truth)
    assert fitted.converged
    assert fitted.scale[1] == 1
    np.testing.assert_array_equal(fitted.determined, np.arange(z.shape[1]) != 1)
    z[:, 1] = 2.7
    a, c = optimum(z, truth)
    rest = np.arange(z.shape[1]) != 1
    np.testing.assert_allclose(fitted.scale[rest], a[rest], rtol=1e-6)
    np.testing.assert_allclose(fitted.nll[1], nll(a * z + c, truth), rtol=1e-7)
    if kind == "softmax":
        np.testing.assert_allclose(fitted.bias.sum(), 0, atol=1e-6)


def test_a_class_that_is_always_masked_stays_at_one_and_zero() -> None:
    z, y = single_label()
    alone = vector_scaling(z, y)
    masked = vector_scaling(np.insert(z, 1, -np.inf, axis=1), y + (y > 0))
    assert (masked.scale[1], masked.bias[1]) == (1, 0)
    np.testing.assert_array_equal(masked.determined, [True, False, True, True, True])
    np.testing.assert_allclose(np.delete(masked.scale, 1), alone.scale, rtol=1e-6)
    np.testing.assert_allclose(np.delete(masked.bias, 1), alone.bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("noise", [0, 1e-7], ids=["exact", "rounded"])
def test_two_opposite_columns_share_one_scale(noise: float) -> None:
    """Noise of the last digit would determine scales of a million, of opposite signs."""
    z, t = (a[:, 0] for a in multi_label())
    other = -z * (1 + noise * np.random.default_rng(0).normal(size=z.shape)).astype(np.float32)
    one, two = vector_scaling(z, t), vector_scaling(np.stack([other, z], 1), t)
    assert two.converged
    assert not two.determined.any()
    np.testing.assert_allclose(two.scale, one.scale / 2, rtol=1e-6)
    np.testing.assert_allclose(two.bias, [-one.bias / 2, one.bias / 2], rtol=1e-6)


def test_what_collinear_columns_leave_open_stays_near_one() -> None:
    """Only 2 a_0 + a_1 matters; of those that agree, the scales nearest to 1."""
    z, t = (a[:, 0] for a in multi_label())
    one, two = vector_scaling(z, t), vector_scaling(np.stack([1 - 2 * z, z], 1), t)
    assert not two.determined.any()
    nearest = 1 + np.array([2, 1]) * (one.scale - 3) / 5
    np.testing.assert_allclose(two.scale, nearest, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(two.nll[1], one.nll[1], rtol=1e-7)


def test_classes_that_no_example_compares_are_calibrated_apart() -> None:
    z, y = single_label()
    first = np.arange(len(z)) % 2 == 0
    masked = np.where(first[:, None] == (np.arange(4) < 2), z, -np.inf).astype(np.float32)
    labels = np.where(first, y % 2, 2 + y % 2)
    both = vector_scaling(masked, labels)
    for rows, columns in ((first, [0, 1]), (~first, [2, 3])):
        alone = vector_scaling(
            np.repeat(z[rows][:, columns], 2, axis=0), np.repeat(labels[rows] - columns[0], 2)
        )
        np.testing.assert_allclose(both.scale[np.array(columns)], alone.scale, rtol=1e-5)
        np.testing.assert_allclose(both.bias[np.array(columns)], alone.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case", ["one example", "two examples", "separable", "partly separable", "few of each class"]
)
def test_no_optimum_is_told(case: str) -> None:
    rng = np.random.default_rng(0)
    z, y = single_label()
    if case == "partly separable":  # one class from all the others, which are not
        y = np.where(z[:, 2] > 0.5, 2, np.where(y == 2, 0, y))
    elif case == "few of each class":
        z, y = rng.normal(size=(1000, 500)).astype(np.float32), rng.integers(0, 500, 1000)
    else:
        size = {"one example": 1, "two examples": 2, "separable": len(z)}[case]
        z, y = z[:size], z[:size].argmax(1)
    fitted = vector_scaling(z, y)
    assert not fitted.converged
    assert np.isfinite([*fitted.scale, *fitted.bias, *fitted.nll, *fitted.ece]).all()
    assert fitted.nll[1] < fitted.nll[0]
    assert np.isfinite(fitted.apply(z)).all()


@pytest.mark.parametrize("repeats", [1, 1000])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_loss_below_the_least_number_is_no_optimum(classes: int, repeats: int) -> None:
    """The common scale, or the search, may end where the slope or its square is 0 by underflow."""
    z, y = np.tile(np.eye(2, classes, dtype=np.float32), (repeats, 1)), np.tile([0, 1], repeats)
    for fitted in (vector_scaling(z, y), temperature_scaling(z, y)):
        assert not fitted.converged
        assert fitted.nll[1] < fitted.nll[0]


def test_a_loss_of_0_from_the_start_is_an_optimum() -> None:
    fitted = vector_scaling(np.array([[1, -np.inf]] * 3, np.float32), np.zeros(3, int))
    assert fitted.converged
    assert fitted.nll == (0, 0)


@pytest.mark.parametrize("seed", [10004, 10005, 10009])
def test_few_examples_with_all_the_curvature_do_not_end_the_search(seed: int) -> None:
    """Scales of their own for the classes separate the last two, where a common scale cannot.

    There Newton's steps are too long by far, and a trust region that is reset after every third
    rejected step never moves: it ends at a likelihood of .013.
    """
    rng = np.random.default_rng(seed)
    z = 30 * rng.normal(size=(200, 10))
    y = (z + rng.gumbel(size=z.shape)).argmax(1)
    fitted = vector_scaling(z.astype(np.float32), y)
    assert fitted.converged == (seed == 10004)
    assert fitted.converged or fitted.nll[1] < 1e-6
    np.testing.assert_allclose(fitted.bias.sum(), 0, atol=1e-4)


def test_a_class_without_examples_is_not_determined() -> None:
    z, y = single_label()
    z, y = z[y != 2], y[y != 2]
    z, y = np.resize(z, (2000, 4)), np.resize(y, 2000)
    fitted = vector_scaling(z, y)
    assert not fitted.converged
    assert np.isfinite(fitted.bias).all()
    assert softmax(fitted.apply(z))[:, 2].max() < 1e-3
    assert temperature_scaling(z, y).converged


def test_a_separable_label_is_not_determined() -> None:
    z, t = multi_label()
    t[:, 1] = z[:, 1] > 0.5
    fitted = vector_scaling(z, t)
    assert not fitted.converged
    assert np.isfinite([*fitted.scale, *fitted.bias]).all()


@pytest.mark.parametrize("margin", [0.1, 1.0, 10.0])
def test_nearly_separable_data_have_an_optimum(margin: float) -> None:
    """One in 2000 is wrong by as much as the others are right: odds of 1999 to 1."""
    z = np.full(2000, margin, np.float32)
    fitted = temperature_scaling(z, np.arange(2000) > 0)
    assert fitted.converged
    np.testing.assert_allclose(fitted.scale * margin, np.log(1999), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"limit": 0.5}, ValueError, "limit: expected"),
        ({"targets": np.array([0, 1, 3])}, ValueError, r"targets\[2\]: expected a label"),
        ({"targets": np.array([0.0, 1.0, 1.0])}, TypeError, "targets: expected an integer"),
        ({"targets": np.full((3, 3), 0.5)}, ValueError, "0 or 1"),
        ({"targets": np.array([0, 1])}, ValueError, r"got \(3, 3\) and \(2,\)"),
        ({"logits": np.eye(3, dtype=int)}, TypeError, "logits"),
        ({"logits": np.full((3, 3), np.nan, np.float32)}, ValueError, "logits: expected finite"),
        ({"logits": np.full((3, 3), np.inf, np.float32)}, ValueError, "logits: expected finite"),
        (
            {"logits": np.where(np.eye(3), -np.inf, 0).astype(np.float32)},
            ValueError,
            "masked class",
        ),
        ({"weights": np.array([1.0, -1.0, 1.0], np.float32)}, ValueError, "weights"),
        ({"weights": np.zeros(3, np.float32)}, ValueError, "weights"),
        ({"weights": np.array([1.0, np.nan, 1.0], np.float32)}, ValueError, "weights"),
        ({"weights": np.array([1.0, np.inf, 1.0], np.float32)}, ValueError, "weights"),
        ({"weights": np.ones(2, np.float32)}, ValueError, "weights: expected shape"),
    ],
)
def test_refusals(change: dict, error: type[Exception], message: str) -> None:
    given = {"logits": np.eye(3, dtype=np.float32), "targets": np.array([0, 1, 2])} | change
    with pytest.raises(error, match=message):
        temperature_scaling(**given)


def test_refuses_no_iterations() -> None:
    with pytest.raises(ValueError, match="iterations"):
        vector_scaling(*single_label(), iterations=0)


def test_refuses_logits_without_a_square() -> None:
    with jax.enable_x64(), pytest.raises(ValueError, match="logits: expected finite"):
        vector_scaling(np.eye(3) * 1e200, np.arange(3))
