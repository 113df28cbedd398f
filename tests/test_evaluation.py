"""Figures of a head, against scikit-learn and plain numpy; what its loss gives no meaning to."""

import json
import math

import numpy as np
import pytest

from jaxsoftmax import linear
from jaxsoftmax.app import evaluation, report
from jaxsoftmax.app.data import preprocessing
from jaxsoftmax.app.data.dataset import Schema, Split, Task
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.linear import LinearParams

pytestmark = pytest.mark.usefixtures("unoptimized")

skm = pytest.importorskip("sklearn.metrics")

RNG = np.random.default_rng(0)
SIZE = 300


def schema(task: Task, count: int) -> Schema:
    return Schema(task, tuple(f"name {k}" for k in range(count)), shape=(4,))


def drawn(count: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Scores of some classes, and classes that follow them with noise."""
    rng = np.random.default_rng(count)
    scores = rng.normal(size=(size, count)).astype(np.float32) * 2
    noisy = scores + 2 * rng.gumbel(size=scores.shape)
    return scores, noisy.argmax(1).astype(np.int32)


def drawn_labels(count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    scores = rng.normal(size=(SIZE, count)).astype(np.float32) * 2
    return scores, scores + rng.logistic(size=scores.shape) > 0


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.float64(z)))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(np.float64(z) - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# Scores.


@pytest.mark.parametrize("bias", [True, False])
def test_scores_are_those_of_the_model(bias: bool) -> None:
    params = LinearParams(RNG.normal(size=(4, 3)), np.arange(3.0) if bias else None)
    x = RNG.normal(size=(10, 4)).astype(np.float32)
    learned = preprocessing.learn(x, log1p=False, standardize=True)
    before = x.copy()
    expected = learned.apply(x) @ params.w + (params.bias if bias else 0)
    found = evaluation.compute_scores(params, x, preprocessing=learned)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(x, before)


def test_scores_by_parts_are_those_of_the_whole() -> None:
    wide = 2**20  # so that a part is 4 rows
    x = RNG.normal(size=(11, wide)).astype(np.float32)
    params = linear.init(wide, 2)._replace(w=RNG.normal(size=(wide, 2)).astype(np.float32))
    np.testing.assert_allclose(
        evaluation.compute_scores(params, x), x.astype(float) @ params.w, rtol=1e-5, atol=5e-3
    )


# Probabilities and decisions.


def test_probabilities_of_each_head() -> None:
    scores, _ = drawn(3)
    three, two = schema(Task.classes, 3), schema(Task.classes, 2)
    labels = schema(Task.labels, 3)
    p = evaluation.compute_probabilities
    np.testing.assert_allclose(p(scores, three, LossName.softmax), softmax(scores), rtol=1e-5)
    np.testing.assert_allclose(p(scores, labels, LossName.sigmoid), sigmoid(scores), rtol=1e-5)
    one = scores[:, :1]
    both = np.concatenate([sigmoid(-one), sigmoid(one)], 1)
    np.testing.assert_allclose(p(one, two, LossName.sigmoid), both, rtol=1e-5)
    each = sigmoid(scores)
    np.testing.assert_allclose(
        p(scores, three, LossName.sigmoid), each / each.sum(1, keepdims=True), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        (Task.classes, LossName.hinge),
        (Task.classes, LossName.squared_error),
        (Task.labels, LossName.hinge),
        (Task.numbers, LossName.squared_error),
    ],
)
def test_heads_without_probabilities(task: Task, loss: LossName) -> None:
    scores, labels = drawn(3)
    targets = {
        Task.classes: labels,
        Task.labels: scores > 1,
        Task.numbers: scores + 1,
    }[task]
    assert evaluation.compute_probabilities(scores, schema(task, 3), loss) is None
    told = evaluation.compute_metrics(scores, targets, schema(task, 3), loss=loss, intervals=True)
    assert not {"nll", "brier", "ece", "nll_interval"} & set(told)
    pair = scores, targets
    for method in evaluation.calibrate(pair, pair, schema(task, 3), loss=loss).values():
        assert "no probabilities" in method["skipped"]


def test_decisions() -> None:
    scores = np.array([[0.0, 2.0, 1.0], [3.0, 3.0, -1.0]], np.float32)
    for task, expected in (
        (Task.classes, [1, 0]),
        (Task.labels, [[False, True, True], [True, True, False]]),
        (Task.numbers, scores),
    ):
        found = evaluation.predict(scores, schema(task, 3))
        np.testing.assert_array_equal(found, expected)
    one = evaluation.predict(np.array([[0.0], [1e-9]], np.float32), schema(Task.classes, 2))
    np.testing.assert_array_equal(one, [0, 1])


# Figures.


@pytest.mark.parametrize("loss", [LossName.softmax, LossName.sigmoid])
@pytest.mark.parametrize("count", [3, 7])
def test_figures_of_classes(count: int, loss: LossName) -> None:
    scores, labels = drawn(count)
    p = sigmoid(scores) if loss is LossName.sigmoid else softmax(scores)
    p /= p.sum(1, keepdims=True)
    told = evaluation.compute_metrics(scores, labels, schema(Task.classes, count), loss=loss)
    said, hot = scores.argmax(1), np.eye(count)[labels]
    expected = {
        "examples": SIZE,
        "accuracy": skm.accuracy_score(labels, said),
        "nll": skm.log_loss(labels, p),
        "brier": np.mean(np.sum((p - hot) ** 2, 1)),
        "macro_f1": skm.f1_score(labels, said, average="macro"),
        "micro_f1": skm.f1_score(labels, said, average="micro"),
        "roc_auc": skm.roc_auc_score(labels, p, multi_class="ovr"),
        "average_precision": skm.average_precision_score(hot, p),
    }
    if count > 5:
        expected |= {f"top_{k}": skm.top_k_accuracy_score(labels, scores, k=k) for k in (3, 5)}
    if loss is LossName.softmax:
        expected["loss"] = expected["nll"]
    else:
        expected["loss"] = -np.mean(
            np.sum(np.log(np.where(hot, sigmoid(scores), sigmoid(-scores))), 1)
        )
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, rel=2e-5), name
    assert 0 < told["ece"] < 0.3
    assert set(told) == {*expected, "ece", "per_class"}
    table = skm.precision_recall_fscore_support(labels, said)
    for k, one in enumerate(told["per_class"]):
        assert one["name"] == f"name {k}"
        for name, values in zip(("precision", "recall", "f1", "support"), table, strict=True):
            assert one[name] == pytest.approx(values[k], rel=1e-5), name
        assert one["roc_auc"] == pytest.approx(skm.roc_auc_score(hot[:, k], p[:, k]), rel=1e-5)
        assert type(one["support"]) is int


def test_two_classes_of_one_score_are_a_logistic_regression() -> None:
    scores, labels = drawn(2)
    z = scores[:, 1:] - scores[:, :1]
    two = schema(Task.classes, 2)
    one = evaluation.compute_metrics(z, labels, two, loss=LossName.sigmoid)
    same = evaluation.compute_metrics(
        np.concatenate([0 * z, z], 1), labels, two, loss=LossName.softmax
    )
    assert one.pop("per_class") == same.pop("per_class")
    assert one == pytest.approx(same, rel=1e-5)
    assert one["roc_auc"] == pytest.approx(skm.roc_auc_score(labels, z[:, 0]), rel=1e-5)
    assert one["average_precision"] == pytest.approx(
        skm.average_precision_score(labels, z[:, 0]), rel=1e-5
    ), "that of the second class, not a mean"


def test_figures_of_labels() -> None:
    scores, targets = drawn_labels()
    told = evaluation.compute_metrics(
        scores, targets, schema(Task.labels, 3), loss=LossName.sigmoid
    )
    said, p = scores > 0, sigmoid(scores)
    each = [skm.log_loss(targets[:, k], p[:, k]) for k in range(3)]
    expected = {
        "examples": SIZE,
        "loss": np.sum(each),
        "accuracy": np.mean(said == targets),
        "subset_accuracy": skm.accuracy_score(targets, said),
        "nll": np.mean(each),
        "macro_f1": skm.f1_score(targets, said, average="macro"),
        "micro_f1": skm.f1_score(targets, said, average="micro"),
        "roc_auc": skm.roc_auc_score(targets, scores),
        "average_precision": skm.average_precision_score(targets, scores),
    }
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, rel=2e-5), name
    assert set(told) == {*expected, "ece", "per_label"}
    for k, one in enumerate(told["per_label"]):
        assert one["log_loss"] == pytest.approx(each[k], rel=1e-5)
        assert one["recall"] == pytest.approx(skm.recall_score(targets[:, k], said[:, k]))
        assert one["support"] == targets[:, k].sum()


@pytest.mark.parametrize("count", [1, 2])
def test_figures_of_numbers(count: int) -> None:
    scores = RNG.normal(size=(SIZE, count)).astype(np.float32)
    targets = scores + RNG.normal(size=scores.shape).astype(np.float32) + 3
    told = evaluation.compute_metrics(
        scores,
        targets[:, 0] if count == 1 else targets,
        schema(Task.numbers, count),
        loss=LossName.squared_error,
    )
    assert told["mse"] == pytest.approx(skm.mean_squared_error(targets, scores))
    assert told["rmse"] == pytest.approx(skm.mean_squared_error(targets, scores) ** 0.5)
    assert told["mae"] == pytest.approx(skm.mean_absolute_error(targets, scores))
    assert told["r2"] == pytest.approx(skm.r2_score(targets, scores))
    assert told["loss"] == pytest.approx(count * told["mse"], rel=1e-5), "the sum over numbers"
    assert [one["name"] for one in told["per_number"]] == [f"name {k}" for k in range(count)]


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("accuracy", 0.98765, "98.77%"),
        ("r2", -0.5, "-0.5000"),
        ("rmse", 30998.4, "30,998"),
        ("mse", 3.516e9, "3,516,000,000"),
        ("mae", 0.000123456, "0.0001235"),
        ("loss", 2e13, "2e+13"),
        ("support", 1234, "1,234"),
        ("ece", None, "–"),
    ],
)
def test_figures_are_written_without_powers_of_ten(
    name: str, value: float | None, written: str
) -> None:
    assert evaluation.format_metric(name, value) == written


def test_what_is_undefined_is_none() -> None:
    """A class without examples, a label that never is, a number that never changes."""
    scores, labels = drawn(3)
    told = evaluation.compute_metrics(
        scores, labels % 2, schema(Task.classes, 3), loss=LossName.softmax, intervals=True
    )
    assert told["per_class"][2]["roc_auc"] is None
    assert told["per_class"][2]["support"] == 0
    assert math.isfinite(told["roc_auc"]), "the mean of the others"
    never = evaluation.compute_metrics(
        scores, np.zeros_like(scores, bool), schema(Task.labels, 3), loss=LossName.sigmoid
    )
    assert (never["roc_auc"], never["per_label"][0]["average_precision"]) == (None, None)
    flat = evaluation.compute_metrics(
        scores[:, :1], np.ones(SIZE, np.float32), schema(Task.numbers, 1), loss="squared_error"
    )
    assert (flat["r2"], flat["per_number"][0]["r2"]) == (None, None)
    for figures in (told, never, flat):
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize("size", [1, 4096, 5000])
def test_padding_changes_nothing(size: int) -> None:
    scores, labels = drawn(3, size)
    told = evaluation.compute_metrics(
        scores, labels, schema(Task.classes, 3), loss=LossName.softmax, intervals=True
    )
    assert told["examples"] == size
    assert told["accuracy"] == pytest.approx(np.mean(scores.argmax(1) == labels))
    assert told["nll"] == pytest.approx(
        skm.log_loss(labels, softmax(scores), labels=range(3)), rel=1e-5
    )
    assert sum(one["support"] for one in told["per_class"]) == size
    low, high = told["accuracy_interval"]
    assert low <= told["accuracy"] <= high
    if size > 1:  # about 2 x 1.96 standard errors
        width = 3.92 * np.sqrt(told["accuracy"] * (1 - told["accuracy"]) / size)
        assert 0.8 * width < high - low < 1.25 * width


# Calibration.


def test_calibration_finds_the_temperature() -> None:
    scores, _ = drawn(3, 3000)
    rng = np.random.default_rng(1)
    fair = np.array([rng.choice(3, p=p) for p in softmax(scores)], np.int32)
    hot = scores * 4  # four times too sure
    told = evaluation.calibrate(
        (hot[:2000], fair[:2000]),
        (hot[2000:], fair[2000:]),
        schema(Task.classes, 3),
        loss="softmax",
    )
    temperature = told["temperature"]
    assert temperature["converged"]
    assert temperature["scale"] == pytest.approx(0.25, rel=0.1)
    assert temperature["bias"] == 0
    assert len(told["vector"]["scale"]) == len(told["vector"]["bias"]) == 3
    for method in told.values():
        for part in (slice(2000), slice(2000, None)):
            split = method["validation" if part.start is None else "test"]
            before, after = split["nll"]
            assert before == pytest.approx(skm.log_loss(fair[part], softmax(hot[part])), rel=1e-4)
            z = hot[part] * np.asarray(method["scale"]) + np.asarray(method["bias"])
            assert after == pytest.approx(skm.log_loss(fair[part], softmax(z)), rel=1e-4)
            assert after < before
            assert split["ece"][1] < split["ece"][0]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_calibration_of_labels_and_of_one_score() -> None:
    scores, targets = drawn_labels()
    told = evaluation.calibrate(
        (scores, targets), (scores, targets), schema(Task.labels, 3), loss="sigmoid"
    )
    assert told["temperature"]["validation"]["nll"][0] == pytest.approx(
        np.mean([skm.log_loss(targets[:, k], sigmoid(scores[:, k])) for k in range(3)]), rel=1e-5
    )
    one = scores[:, :1], targets[:, 0].astype(np.int32)
    told = evaluation.calibrate(one, one, schema(Task.classes, 2), loss="sigmoid")
    figures = evaluation.compute_metrics(*one, schema(Task.classes, 2), loss="sigmoid")
    for name in ("nll", "ece"):  # the same figures as everywhere else
        assert told["temperature"]["test"][name][0] == pytest.approx(figures[name], rel=1e-5)


def test_calibration_needs_examples() -> None:
    scores, labels = drawn(3)
    three = schema(Task.classes, 3)

    def reasons(size: int, labels: np.ndarray) -> list[str | None]:
        pair = scores[:size], labels[:size]
        told = evaluation.calibrate(pair, pair, three, loss="softmax")
        return [told[name].get("skipped") for name in ("temperature", "vector")]

    assert reasons(29, labels) == ["it needs 30 validation examples, and there are 29"] * 2
    rare = np.where(np.arange(SIZE) < 9, 2, labels % 2)
    assert reasons(SIZE, rare) == [
        None,
        "it needs ten validation examples of each class, and one class has 9",
    ]
    assert reasons(SIZE, labels) == [None, None]


# Scores that say nothing.


def test_a_row_of_nan_is_never_right() -> None:
    """The first class of NaN scores is what argmax says of them, and no label is what > says."""
    scores, labels = drawn(3)
    scores[5], labels[5] = np.nan, 0
    assert evaluation.predict(scores, schema(Task.classes, 3))[5] == -1
    np.testing.assert_array_equal(
        np.delete(evaluation.predict(scores, schema(Task.classes, 3)), 5),
        np.delete(scores, 5, 0).argmax(1),
    )
    told = evaluation.compute_metrics(
        scores, labels, schema(Task.classes, 3), loss=LossName.softmax
    )
    assert told["accuracy"] is told["ece"] is told["macro_f1"] is told["roc_auc"] is None
    assert {name: one[name] for one in told["per_class"] for name in ("f1", "support")} == {
        "f1": None,
        "support": None,
    }
    several, targets = drawn_labels()
    several[5, 1], targets[5] = np.nan, several[5] > 0
    told = evaluation.compute_metrics(
        several, targets, schema(Task.labels, 3), loss=LossName.sigmoid
    )
    assert told["accuracy"] is told["subset_accuracy"] is told["micro_f1"] is None
    assert [one["support"] is None for one in told["per_label"]] == [False, True, False]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_row_of_nan_is_in_no_cell_of_the_report() -> None:
    """Here argmax would put it on the diagonal."""
    scores, _ = drawn(3, 60)
    labels = scores.argmax(1)
    scores[5], labels[5] = np.nan, 0
    content = report.Run(
        header={"loss": "softmax"},
        schema=schema(Task.classes, 3),
        metrics={},
        history={},
        params=linear.init(4, 3),
        scores=scores,
        test=Split(np.zeros((60, 4), np.float32), labels, np.arange(60)),
    )
    assert "0 of 59 test examples are wrong" in report.html(content)


@pytest.mark.parametrize("score", [np.inf, -np.inf])
def test_a_single_score_may_be_infinite(score: float) -> None:
    one = np.array([[score]], np.float32)
    assert evaluation.predict(one, schema(Task.classes, 2)) == [score > 0]
