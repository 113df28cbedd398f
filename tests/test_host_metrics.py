"""Metrics and calibrations on the host, against those of the library on the same data."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxsoftmax import calibration, losses, metrics
from jaxsoftmax.app import defaults, evaluation, host_calibration, host_metrics, ranking_curves
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.names import TASK_LOSSES
from jaxsoftmax.linear import LinearParams

pytestmark = pytest.mark.usefixtures("unoptimized")

SIZE, CLASSES = 120, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(SIZE, CLASSES)).astype(np.float32) * 3
LOGITS[:20] = RNG.integers(-2, 3, size=(20, CLASSES))  # ties, also with the true class
LOGITS[20:30] *= 60  # probabilities that round to 0 and 1
LOGITS[30] = (np.inf, 0, 1, 2)
LOGITS[31] = (-np.inf, 0, 1, 2)
LABELS = (LOGITS + RNG.gumbel(size=LOGITS.shape) * 3).argmax(1).astype(np.int32)
LABELS[30] = 0
TARGETS = RNG.uniform(size=(SIZE, CLASSES)) < 0.4


def test_losses() -> None:
    for ours, theirs in (
        (host_metrics.softmax_losses, losses.cross_entropy),
        (host_metrics.brier_scores, losses.brier),
        (host_metrics.hinge_losses, losses.multiclass_hinge),
    ):
        with np.errstate(invalid="ignore"):
            found = ours(LOGITS, LABELS)
        np.testing.assert_allclose(found, theirs(LOGITS, LABELS), rtol=2e-6, atol=1e-30)
    z, t = LOGITS[32:], TARGETS[32:]
    for ours, theirs in (
        (host_metrics.sigmoid_losses, losses.binary_cross_entropy),
        (host_metrics.hinge_losses, losses.hinge),
    ):
        np.testing.assert_allclose(ours(z, t), theirs(z, t), rtol=2e-6)


def test_a_confident_example_keeps_its_loss() -> None:
    """Where 1 - p rounds to 0 in float64, and log(1 + x) to 0 without log1p."""
    z = np.array([[50.0, 0.0], [300.0, 0.0]])
    expected = np.exp([-50.0, -300.0])
    np.testing.assert_allclose(host_metrics.softmax_losses(z, np.zeros(2, int)), expected)
    np.testing.assert_allclose(host_metrics.log_probabilities(z)[:, 0], -expected)
    np.testing.assert_allclose(host_metrics.brier_scores(z, np.zeros(2, int)), 2 * expected**2)


@pytest.mark.parametrize("k", [1, 3])
def test_ranks_of_labels(k: int) -> None:
    np.testing.assert_array_equal(
        host_metrics.label_ranks(LOGITS, LABELS) < k, metrics.hits(LOGITS, LABELS, k=k) == 1
    )


def test_counts_and_what_follows_from_them() -> None:
    pairs = (
        (host_metrics.count_classes(LOGITS.argmax(1), LABELS, CLASSES),
         metrics.class_counts(LOGITS, LABELS)),
        (host_metrics.count_labels(LOGITS, TARGETS), metrics.label_counts(LOGITS, TARGETS)),
    )  # fmt: skip
    for ours, theirs in pairs:
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_allclose(ours.precision, metrics.precision(theirs), rtol=1e-6)
        np.testing.assert_allclose(ours.recall, metrics.recall(theirs), rtol=1e-6)
        np.testing.assert_allclose(ours.f1, metrics.f1(theirs), rtol=1e-6)
        np.testing.assert_allclose(ours.total().f1, [metrics.f1(metrics.micro(theirs))], rtol=1e-6)


def test_rankings() -> None:
    logits, labels = LOGITS[32:], LABELS[32:]
    confidences, targets = metrics.one_vs_rest(logits, labels)
    auc, precision = (
        metrics.roc_auc(confidences, targets),
        metrics.average_precision(confidences, targets),
    )
    for k, curve in enumerate(evaluation.rank_classes(logits, labels)):
        assert curve.roc_auc == pytest.approx(float(auc[k]), rel=1e-5)
        assert curve.average_precision == pytest.approx(float(precision[k]), rel=1e-5)
    nothing = ranking_curves.rank(np.array([1.0, 2.0]), np.array([0, 0]))
    assert np.isnan([nothing.roc_auc, nothing.average_precision]).all()
    assert ranking_curves.rank(np.array([1.0, np.nan]), np.array([0, 1])) is None


@pytest.mark.parametrize("kind", ["distinct", "ties"])
def test_reliability(kind: str) -> None:
    p = RNG.uniform(size=SIZE).astype(np.float32)
    p = np.round(p, 1) if kind == "ties" else p
    t = RNG.uniform(size=SIZE) < p
    found, expected = host_metrics.reliability(p, t), metrics.reliability(p, t)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_intervals_have_the_width_of_the_standard_error() -> None:
    values = np.stack([RNG.uniform(size=400) < 0.8, RNG.normal(size=400)], 1)
    ends = host_metrics.bootstrap_means(values, resamples=1000)
    np.testing.assert_array_equal(ends, host_metrics.bootstrap_means(values, resamples=1000))
    widths = 3.92 * values.std(0) / np.sqrt(400)
    # The 95% interval of 1,000 resamples is itself known to a few percent.
    assert (np.abs((ends[:, 1] - ends[:, 0]) / widths - 1) < 0.1).all()
    assert (ends[:, 0] < values.mean(0)).all()
    assert (values.mean(0) < ends[:, 1]).all()


@pytest.mark.parametrize("loss", list(defaults.LossName))
@pytest.mark.parametrize("task", list(Task))
def test_the_loss_that_was_fitted(task: Task, loss: defaults.LossName) -> None:
    if loss not in TASK_LOSSES[task]:
        return
    z = LOGITS[32:]
    targets = {Task.classes: LABELS, Task.labels: TARGETS, Task.numbers: TARGETS * 2.5}[task][32:]
    schema = Schema(task, tuple("abcd"), (CLASSES,))
    identity = LinearParams(jnp.eye(CLASSES), None)
    expected = jnp.mean(defaults.make_loss(loss, schema)(identity, z, jnp.asarray(targets)))
    told = evaluation.compute_metrics(z, targets, schema, loss=loss)
    assert told["loss"] == pytest.approx(float(expected), rel=1e-5)


class Case(NamedTuple):
    """Logits, targets, and whether their likelihood has an optimum: of a scale, of all scales."""

    logits: np.ndarray
    targets: np.ndarray
    has_optimum: tuple[bool, bool] = (True, True)


def drawn(z: np.ndarray, *, seed: int = 1) -> np.ndarray:
    return (z + np.random.default_rng(seed).gumbel(size=z.shape)).argmax(1).astype(np.int32)


def cases() -> dict[str, Case]:
    z = np.random.default_rng(0).normal(size=(300, 3)) * 1.5
    noise = np.random.default_rng(2).logistic(size=z.shape)
    pair = z[:, :1] * [-1, 1]
    constant = z * [1, 1, 0]
    return {
        "too sure": Case(z * 3, drawn(z)),
        "offsets": Case(z * [1, 10, 0.1] + [100, -50, 3], drawn(z), (False, True)),
        "worse than chance": Case(z, drawn(-z), (False, True)),
        "separable": Case(z, z.argmax(1).astype(np.int32), (False, False)),
        "a class is absent": Case(z, drawn(z) % 2, (True, False)),
        "a class without a logit": Case(constant, drawn(constant)),
        "opposite logits": Case(pair, drawn(pair)),
        "labels": Case(z * 3, z + noise > 0),
    }


def nll(scale: np.ndarray, bias: np.ndarray, case: Case) -> float:
    z = scale * case.logits + bias
    is_softmax = case.targets.ndim == 1
    loss = host_metrics.softmax_losses if is_softmax else host_metrics.sigmoid_losses
    return float(loss(z, case.targets).mean())


@pytest.mark.parametrize("name", cases())
def test_scalings_are_optimal(name: str) -> None:
    """No other scale and bias are better, by SciPy's search from there and from no calibration."""
    case = cases()[name]
    size = case.logits.shape[1]
    temperature = host_calibration.fit_temperature(case.logits, case.targets)
    vector = host_calibration.fit_vector(case.logits, case.targets)
    assert (temperature.converged, vector.converged) == case.has_optimum
    search = optimize.minimize_scalar(
        lambda x: nll(np.exp(x), np.zeros(size), case), bounds=np.log([1e-3, 1e3])
    )
    assert nll(temperature.scale, temperature.bias, case) <= search.fun + 1e-9
    for start in (np.r_[np.ones(size), np.zeros(size)], np.r_[vector.scale, vector.bias]):
        found = optimize.minimize(lambda x: nll(x[:size], x[size:], case), start)
        assert nll(vector.scale, vector.bias, case) <= found.fun + 1e-9


def test_what_the_data_do_not_determine() -> None:
    """The scale of a class without a logit stays 1, and opposite logits share one scale."""
    constant, opposite = (cases()[n] for n in ("a class without a logit", "opposite logits"))
    assert host_calibration.fit_vector(*constant[:2]).scale[2] == 1
    scaling = host_calibration.fit_vector(*opposite[:2])
    assert scaling.scale[0] == pytest.approx(scaling.scale[1])
    assert scaling.bias.sum() == pytest.approx(0, abs=1e-12)


def test_temperature_is_that_of_the_library() -> None:
    case = cases()["too sure"]
    expected = calibration.temperature_scaling(case.logits.astype(np.float32), case.targets)
    found = host_calibration.fit_temperature(case.logits, case.targets)
    assert float(found.scale) == pytest.approx(float(expected.scale), rel=1e-5)
