"""Metrics: scikit-learn's numbers, ties, weights, what is undefined, and an oracle for the bins."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics as theirs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxsoftmax import linear_cross_entropy, links, weighted_mean
from jaxsoftmax import metrics as ours
from jaxsoftmax.metrics.sums import SEQUENTIAL_SUM_LIMIT

pytestmark = pytest.mark.usefixtures("strict", "unoptimized")

K = 6
CLASSES = range(K)
KEY = jax.random.key(3)
NAN, INF = np.nan, np.inf


class Data(NamedTuple):
    logits: np.ndarray
    truth: np.ndarray
    weights: np.ndarray


def single_label(size: int = 301, step: float = 0.5) -> Data:
    """Logits with ties; class 4 is never the label, class 5 neither that nor predicted."""
    rng = np.random.default_rng(size)
    z = np.round(2 * rng.normal(size=(size, K)) / step) * step
    y = (z + 2 * rng.gumbel(size=z.shape))[:, :4].argmax(1)
    z[:, 5] -= 30
    weights = rng.choice([0.0, 0.25, 1.0, 3.0], size)
    return Data(z.astype(np.float32), y, weights.astype(np.float32))


def multi_label(size: int = 257, step: float = 0.5) -> Data:
    rng = np.random.default_rng(size)
    z = np.round(2 * rng.normal(size=(size, 4)) / step) * step
    t = (z + 2 * rng.logistic(size=z.shape) > [0, 1, 2, 4]).astype(np.int32)
    weights = rng.choice([0.0, 0.25, 1.0, 3.0], size)
    return Data(z.astype(np.float32), t, weights.astype(np.float32))


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def weighted(request: pytest.FixtureRequest) -> bool:
    return request.param


def either(data: Data, weighted: bool) -> tuple[dict, dict]:
    """The weights as ours and as scikit-learn's keyword, or none."""
    return ({"weights": data.weights}, {"sample_weight": data.weights}) if weighted else ({}, {})


def close(got: Any, expected: Any, rtol: float = 2e-6) -> None:
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-7)


# -- Single-label, against scikit-learn --


def test_accuracy(weighted: bool) -> None:
    data = single_label()
    w, sample_weight = either(data, weighted)
    predicted = data.logits.argmax(1)
    close(
        ours.accuracy(data.logits, data.truth, **w),
        theirs.accuracy_score(data.truth, predicted, **sample_weight),
    )


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_accuracy(weighted: bool, k: int) -> None:
    data = single_label(step=2.0**-12)  # no ties, which scikit-learn breaks the other way
    assert all(len(set(row)) == K for row in data.logits.tolist())
    w, sample_weight = either(data, weighted)
    expected = theirs.top_k_accuracy_score(
        data.truth, data.logits, k=k, labels=CLASSES, **sample_weight
    )
    close(ours.top_k_accuracy(data.logits, data.truth, k=k, **w), expected)


def test_top_k_of_ties_prefers_the_lower_index() -> None:
    data = single_label()
    best = np.argsort(-data.logits, axis=1, kind="stable")
    for k in range(1, K + 2):
        expected = (best[:, :k] == data.truth[:, None]).any(1)
        np.testing.assert_array_equal(ours.hits(data.logits, data.truth, k=k), expected)
    np.testing.assert_array_equal(
        ours.hits(data.logits, data.truth), data.logits.argmax(1) == data.truth
    )


def test_negative_log_likelihood_and_brier(weighted: bool) -> None:
    data = single_label()
    w, sample_weight = either(data, weighted)
    p = scipy.special.softmax(data.logits.astype(np.float64), axis=1)
    close(
        ours.negative_log_likelihood(data.logits, data.truth, **w),
        theirs.log_loss(data.truth, p, labels=CLASSES, **sample_weight),
    )
    hot = np.eye(K)[data.truth]
    close(
        ours.brier_score(data.logits, data.truth, **w),
        np.average(((p - hot) ** 2).sum(1), weights=sample_weight.get("sample_weight")),
    )


def test_confusion_matrix(weighted: bool) -> None:
    data = single_label()
    w, sample_weight = either(data, weighted)
    expected = theirs.confusion_matrix(
        data.truth, data.logits.argmax(1), labels=CLASSES, **sample_weight
    )
    assert expected[4].sum() == 0 < expected[:, 4].sum()
    assert expected[:, 5].sum() == 0
    np.testing.assert_array_equal(ours.confusion_matrix(data.logits, data.truth, **w), expected)


SCORES = {
    "precision": (ours.precision, theirs.precision_score),
    "recall": (ours.recall, theirs.recall_score),
    "f1": (ours.f1, theirs.f1_score),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_precision_recall_f1(weighted: bool, name: str, kind: str) -> None:
    score, reference = SCORES[name]
    if kind == "single":
        data, count = single_label(), ours.class_counts
        predicted, labels = data.logits.argmax(1), CLASSES
    else:
        data, count = multi_label(), ours.label_counts
        data.logits[:, 3] = -1  # a label that is never predicted
        predicted, labels = (data.logits > 0).astype(int), range(4)
    w, sample_weight = either(data, weighted)
    expected = partial(
        reference, data.truth, predicted, labels=labels, zero_division=0, **sample_weight
    )
    counts = count(data.logits, data.truth, **w)
    assert 0 in expected(average=None)
    close(score(counts), expected(average=None))
    close(ours.macro(score(counts)), expected(average="macro"))
    close(score(ours.micro(counts)), expected(average="micro"))


def test_micro_f1_of_single_labels_is_accuracy() -> None:
    data = single_label()
    counts = ours.class_counts(data.logits, data.truth, weights=data.weights)
    accuracy = ours.accuracy(data.logits, data.truth, weights=data.weights)
    close(ours.f1(ours.micro(counts)), accuracy)


# -- Multi-label and rankings, against scikit-learn --


def test_log_loss_and_accuracy_per_label(weighted: bool) -> None:
    data = multi_label()
    w, sample_weight = either(data, weighted)
    p = scipy.special.expit(data.logits.astype(np.float64))
    loss = [
        theirs.log_loss(t, q, labels=[0, 1], **sample_weight)
        for t, q in zip(data.truth.T, p.T, strict=True)
    ]
    close(ours.log_loss(data.logits, data.truth, **w), loss)
    close(ours.log_loss(data.logits[:, 1], data.truth[:, 1], **w), loss[1])
    right = [
        theirs.accuracy_score(t, z > 0, **sample_weight)
        for t, z in zip(data.truth.T, data.logits.T, strict=True)
    ]
    close(ours.label_accuracy(data.logits, data.truth, **w), right)


@pytest.mark.parametrize("step", [0.5, 2.0**-12, 8.0], ids=["ties", "few ties", "mostly ties"])
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (ours.roc_auc, theirs.roc_auc_score),
        (ours.average_precision, theirs.average_precision_score),
    ],
    ids=["roc_auc", "average_precision"],
)
def test_rankings(weighted: bool, metric: Callable, reference: Callable, step: float) -> None:
    data = multi_label(step=step)
    w, sample_weight = either(data, weighted)
    got = metric(data.logits, data.truth, **w)
    close(got, reference(data.truth, data.logits, average=None, **sample_weight))
    close(ours.macro(got), reference(data.truth, data.logits, average="macro", **sample_weight))
    one = metric(data.logits[:, 2], data.truth[:, 2].astype(bool), **w)
    assert one.shape == ()
    close(one, got[2])


def test_one_vs_rest(weighted: bool) -> None:
    data = single_label(step=2.0**-12)  # ties of probabilities are a matter of rounding
    z, y = data.logits[:, :4], data.truth
    w, sample_weight = either(data, weighted)
    p = scipy.special.softmax(z.astype(np.float64), axis=1)
    confidences, targets = ours.one_vs_rest(z, y)
    close(
        ours.roc_auc(confidences, targets, **w),
        theirs.roc_auc_score(y, p, multi_class="ovr", average=None, **sample_weight),
    )
    close(
        ours.average_precision(confidences, targets, **w),
        theirs.average_precision_score(y, p, average=None, **sample_weight),
    )


def test_one_vs_rest_ranks_where_probabilities_round_to_one() -> None:
    z = jnp.array([[40.0, 0.0], [50.0, 0.0], [0.0, 5.0]])
    assert jax.nn.softmax(z)[0, 0] == jax.nn.softmax(z)[1, 0] == 1
    np.testing.assert_array_equal(ours.roc_auc(*ours.one_vs_rest(z, jnp.array([1, 0, 1]))), [1, 1])


# One shape, which compiles once; examples of weight 0 stand for fewer.
few = st.tuples(
    arrays(np.float32, 12, elements=st.sampled_from([-INF, -1.0, -0.0, 0.0, 0.5, 3e38, INF])),
    arrays(np.int32, 12, elements=st.integers(0, 1)),
    arrays(np.float32, 12, elements=st.sampled_from([0.0, 0.5, 1.0, 4.0])),
)


@given(few)
def test_rankings_by_their_definitions(drawn: tuple) -> None:
    c, t, w = drawn
    i, j = np.nonzero(t == 1)[0], np.nonzero(t == 0)[0]
    pairs = np.outer(w[i], w[j])
    wins = (c[i][:, None] > c[j]) + (c[i][:, None] == c[j]) / 2
    auc = (pairs * wins).sum() / pairs.sum() if pairs.sum() else NAN
    close(ours.roc_auc(c, t, weights=w), auc)
    positives, total = (w * t).sum(), 0.0
    for level in sorted(set(c[w > 0].tolist())):
        here, above = (w * t)[c == level].sum(), c >= level
        if here:
            total += here / positives * (w * t)[above].sum() / w[above].sum()
    close(ours.average_precision(c, t, weights=w), total if positives else NAN)


# -- Every metric --


def each(data: Data) -> dict[str, Callable]:
    """Every metric that takes weights, by name, as a function of arrays like the data's."""
    if data.truth.ndim == 1:
        names = ("accuracy", "negative_log_likelihood", "brier_score", "confusion_matrix",
                 "class_counts", "expected_calibration_error")  # fmt: skip
        return {name: getattr(ours, name) for name in names} | {
            "top_k_accuracy": partial(ours.top_k_accuracy, k=2),
            "one_vs_rest": lambda z, y, weights: ours.average_precision(
                *ours.one_vs_rest(z, y), weights=weights
            ),
        }
    names = ("log_loss", "label_accuracy", "label_counts", "roc_auc", "average_precision")
    return {name: getattr(ours, name) for name in names} | {
        "reliability": lambda z, t, weights: ours.reliability(
            z if isinstance(z, tuple) else jax.nn.sigmoid(z[:, 0].astype(jnp.float32)),
            t if isinstance(t, tuple) else t[:, 0],
            weights=weights,
        )
    }


CASES = [
    pytest.param(metric, data, id=name)
    for data in (single_label(), multi_label())
    for name, metric in each(data).items()
]


def trees_close(got: Any, expected: Any) -> None:
    jax.tree.map(partial(close, rtol=1e-5), got, expected)


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_weights_are_repetitions(metric: Callable, data: Data) -> None:
    counts = np.random.default_rng(0).integers(0, 4, len(data.truth))
    z, truth = np.repeat(data.logits, counts, axis=0), np.repeat(data.truth, counts, axis=0)
    weighted = metric(data.logits, data.truth, weights=counts.astype(np.float32))
    trees_close(metric(z, truth, weights=None), weighted)


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_order_does_not_matter(metric: Callable, data: Data) -> None:
    order = np.random.default_rng(1).permutation(len(data.truth))
    shuffled = metric(*(a[order] for a in data[:2]), weights=data.weights[order])
    trees_close(shuffled, metric(*data[:2], weights=data.weights))


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_under_jit(metric: Callable, data: Data) -> None:
    compiled = jax.jit(metric)(*data[:2], weights=data.weights)
    trees_close(compiled, metric(*data[:2], weights=data.weights))


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_no_answer_is_nan_where_it_counts(metric: Callable, data: Data) -> None:
    logits, weights = data.logits.copy(), data.weights.copy()
    logits[7] = NAN
    without = metric(*(np.delete(a, 7, axis=0) for a in data[:2]), weights=np.delete(weights, 7))
    weights[7] = 0
    trees_close(metric(logits, data.truth, weights=weights), without)
    weights[7] = 1
    for leaf in jax.tree.leaves(metric(logits, data.truth, weights=weights)):
        assert np.isnan(leaf).all()


COUNTS = ("confusion_matrix", "class_counts", "label_counts")
COUNTED = [case for case in CASES if case.id in COUNTS]
MEANS = ("accuracy", "top_k_accuracy", "negative_log_likelihood", "brier_score", "log_loss",
         "label_accuracy")  # fmt: skip


def said_of_nothing(result: Any, name: str) -> None:
    """A mean and a count of no examples are 0, rankings and calibration are NaN."""
    if name in (*COUNTS, *MEANS):
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), result)
        return
    if isinstance(result, ours.Reliability):
        np.testing.assert_array_equal(result.counts, np.zeros(15))
        result = result._replace(counts=NAN)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, NAN), result)


@pytest.mark.parametrize(("name", "metric", "data"), [(c.id, *c.values) for c in CASES])
def test_no_examples_and_no_weight(name: str, metric: Callable, data: Data) -> None:
    none = [a[:0] for a in data]
    for some in (None, none[2]):
        said_of_nothing(metric(*none[:2], weights=some), name)
    shape = jax.eval_shape(partial(metric, weights=None), *data[:2])
    assert jax.tree.map(jnp.shape, metric(*none[:2], weights=None)) == jax.tree.map(
        jnp.shape, shape
    )
    for weights in (np.zeros(len(data.truth), np.float32), False):
        said_of_nothing(metric(*data[:2], weights=weights), name)


def test_hits_and_macro_of_nothing() -> None:
    assert ours.hits(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)).shape == (0,)
    assert np.isnan(ours.macro(jnp.zeros(0)))
    none = ours.Counts(*(jnp.zeros(0, jnp.int32),) * 3)
    assert ours.micro(none) == ours.Counts(0, 0, 0)
    assert ours.f1(ours.micro(none)) == 0


# A metric that forgot to convert an argument fails with any other dtype, under strict promotion.
SOME_CASES = [case for case in CASES if case.id in ("accuracy", "reliability", *COUNTS)]


@pytest.mark.parametrize(
    ("dtype", "metric", "data"),
    [
        *((dtype, *case.values) for case in CASES for dtype in (np.int64, np.float16)),
        *((bool, *case.values) for case in SOME_CASES),
    ],
)
def test_weights_of_any_dtype(dtype: Any, metric: Callable, data: Data) -> None:
    given = data.weights.astype(dtype)
    trees_close(
        metric(*data[:2], weights=given), metric(*data[:2], weights=given.astype(np.float32))
    )


@pytest.mark.parametrize(
    ("weight", "metric", "data"),
    [
        *((2, *case.values) for case in CASES),
        *((weight, *case.values) for case in SOME_CASES for weight in (np.float32(2), True)),
    ],
)
def test_one_weight_for_all(weight: Any, metric: Callable, data: Data) -> None:
    each = np.full(len(data.truth), weight, np.float32)
    trees_close(metric(*data[:2], weights=weight), metric(*data[:2], weights=each))


@pytest.mark.parametrize(
    ("dtype", "metric", "data"),
    [
        *((dtype, *case.values) for case in CASES for dtype in (np.uint32, np.int64)),
        *((np.int8, *case.values) for case in SOME_CASES),
    ],
)
def test_labels_of_any_integer_dtype(dtype: Any, metric: Callable, data: Data) -> None:
    truth = data.truth.astype(dtype)
    trees_close(metric(data.logits, truth, weights=None), metric(*data[:2], weights=None))


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_a_loss_of_several_arrays_is_refused(metric: Callable, data: Data) -> None:
    loss = linear_cross_entropy(jnp.ones((4, 2)), jnp.ones((2, 3)), jnp.zeros(4, jnp.int32))
    advice = r"expected one array, got LinearLoss; pass one of \.nll"
    for arguments in ((loss, data.truth, None), (data.logits, loss, None), (*data[:2], loss)):
        with pytest.raises(TypeError, match=advice):
            metric(*arguments[:2], weights=arguments[2])


def test_macro_refuses_counts() -> None:
    with pytest.raises(TypeError, match="values: expected one array, got Counts"):
        ours.macro(ours.Counts(*(jnp.ones(2),) * 3))


@pytest.mark.parametrize("fraction", [ours.micro, ours.precision, ours.recall, ours.f1])
def test_fractions_refuse_what_is_no_counts(fraction: Callable) -> None:
    with pytest.raises(TypeError, match="counts: expected Counts, as of class_counts"):
        fraction(jnp.ones(3))  # which would be unpacked


# -- Counts are integers --


@pytest.mark.parametrize(("metric", "data"), COUNTED)
def test_counts_are_integers_unless_weights_are_floats(metric: Callable, data: Data) -> None:
    for some in (None, data.weights.astype(np.int32), data.weights > 0, 2):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(metric(*data[:2], weights=some))}
        assert dtypes == {jnp.dtype(jnp.int32)}
        with jax.enable_x64():
            wide = jax.tree.leaves(metric(*data[:2], weights=some))
            assert {leaf.dtype for leaf in wide} == {jnp.dtype(jnp.int64)}


@pytest.mark.parametrize(("metric", "data"), COUNTED)
def test_integer_counts_without_an_answer_are_negative(metric: Callable, data: Data) -> None:
    logits, truth = data.logits.copy(), data.truth.copy()
    logits[7], truth[9] = NAN, K if truth.ndim == 1 else 2
    for z, t in ((logits, data.truth), (data.logits, truth)):
        counts = metric(z, t, weights=None)
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, -1), counts)
        if isinstance(counts, ours.Counts):
            for score in (ours.precision, ours.recall, ours.f1):
                assert np.isnan(score(counts)).all()
                assert np.isnan(score(ours.micro(counts)))
    without = np.ones(len(truth), bool)
    without[[7, 9]] = False
    trees_close(
        metric(logits, truth, weights=without),
        metric(data.logits[without], data.truth[without], weights=None),
    )


@pytest.mark.parametrize(("metric", "data"), COUNTED)
def test_more_weight_than_integers_hold(metric: Callable, data: Data) -> None:
    heavy = np.full(len(data.truth), 2**30)
    jax.tree.map(
        lambda leaf: np.testing.assert_array_equal(leaf, -1), metric(*data[:2], weights=heavy)
    )
    as_floats = metric(*data[:2], weights=heavy.astype(np.float32))
    trees_close(
        jax.tree.map(lambda leaf: leaf / 2.0**30, as_floats), metric(*data[:2], weights=1.0)
    )


def test_more_than_2_24_examples_in_one_cell() -> None:
    """Float32 sums of ones stop at 2^24."""
    many = 2**24 + 5
    z, y = jnp.zeros((many, 2)), jnp.zeros(many, jnp.int32)
    np.testing.assert_array_equal(ours.confusion_matrix(z, y), [[many, 0], [0, 0]])
    counts = ours.class_counts(z, 1 - y)
    np.testing.assert_array_equal(counts, [[0, 0], [many, 0], [0, many]])
    assert ours.micro(counts) == (0, many, many)
    assert ours.label_counts(z[:, 0], y) == (0, 0, 0)
    assert ours.label_counts(z[:, 0] + 1, y) == (0, many, 0)


SMALL = 2**20


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_small_weights_after_a_large_one_count(dtype: Any) -> None:
    """In a running sum of float32 each 1 is lost beside 2^24: in blocks only the first block's."""
    w = np.ones(SMALL + 1, dtype)
    w[0], total = 2**24, 2**24 + SMALL
    alike = partial(close, rtol=4e-7 if dtype is np.int32 else SEQUENTIAL_SUM_LIMIT / 2**24)
    c, y = jnp.zeros(len(w)), jnp.zeros(len(w), jnp.int32)
    alike(ours.confusion_matrix(jnp.zeros((len(w), 2)), y, weights=w)[0, 0], total)
    alike(ours.class_counts(jnp.zeros((len(w), 2)), y, weights=w).true_positive, [total, 0])
    alike(ours.label_counts(c, y + 1, weights=w).false_negative, total)
    t = jnp.arange(len(w)) > 0  # all but the large one, of the same confidence
    alike(ours.average_precision(c, t, weights=w), SMALL / total)
    for binning in ("equal_mass", "equal_width"):
        bins = ours.reliability(c + 0.5, t, weights=w, binning=binning)
        close(bins.counts[7], total, rtol=SEQUENTIAL_SUM_LIMIT / 2**24)
        close(bins.accuracy[7], SMALL / total, rtol=SEQUENTIAL_SUM_LIMIT / 2**24)


@pytest.mark.parametrize("make", [np.array, jnp.array], ids=["numpy", "jax"])
def test_scores_of_large_counts(make: Callable) -> None:
    a, b, c = 2**24 + 1, 3 * 2**24, 2**30
    counts = ours.Counts(*(make([x, 1]) for x in (a, b, c)))
    close(ours.precision(counts), [a / (a + b), 0.5], rtol=4e-7)
    close(ours.recall(counts), [a / (a + c), 0.5], rtol=4e-7)
    close(ours.f1(counts), [2 * a / (2 * a + b + c), 0.5], rtol=4e-7)
    assert ours.micro(counts) == (a + 1, b + 1, c + 1)
    close(ours.macro(counts.true_positive), (a + 1) / 2, rtol=4e-7)


def test_sums_of_counts_that_pass_int32() -> None:
    twice = ours.Counts(*(jnp.array([2**30, 2**30]),) * 3)
    assert ours.micro(twice) == (-1, -1, -1)
    assert np.isnan(ours.f1(ours.micro(twice)))
    close(ours.f1(twice), [0.5, 0.5])  # 2 tp + fp + fn is 2^32
    wide = ours.Counts(*(np.array([3 * 2**31, 2**31]),) * 3)
    close(ours.precision(wide), [0.5, 0.5])
    close(ours.micro(wide).true_positive, 2.0**33)


def compiled(metric: Callable, *shapes: tuple) -> Any:
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return jax.jit(metric).lower(*arguments).compile().memory_analysis()


@pytest.mark.parametrize("kind", [None, jnp.int32, jnp.float32])
def test_counts_of_many_classes_take_little_memory(kind: Any) -> None:
    """Neither K x K cells nor a copy of the logits, whose bools alone would be 8 MB."""
    size, many = 1000, 8000
    z, y = ((size, many), jnp.float32), ((size,), jnp.int32)

    def counts(metric: Callable) -> Any:
        if kind is None:
            return compiled(metric, z, y)
        return compiled(lambda z, y, w: metric(z, y, weights=w), z, y, ((size,), kind))

    assert counts(ours.class_counts).temp_size_in_bytes < 2**18
    assert counts(ours.confusion_matrix).temp_size_in_bytes < 2**18  # beside the result itself


def test_counts_of_many_examples_take_memory_by_example() -> None:
    sizes = [
        compiled(
            lambda z, y, w: ours.class_counts(z, y, weights=w),
            ((size, 50), jnp.float32), ((size,), jnp.int32), ((size,), jnp.float32),
        ).temp_size_in_bytes / size
        for size in (2**16, 2**20)
    ]  # fmt: skip
    assert max(sizes) < 50


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 20_000])
def test_counts_in_blocks(weighted: bool, size: int) -> None:
    """Sums of float weights are taken by blocks, here as many as one and five."""
    rng = np.random.default_rng(size)
    z, y = rng.normal(size=(size, K)).astype(np.float32), rng.integers(0, K, size)
    w = rng.integers(0, 8, size).astype(np.float32) / 4 if weighted else None
    expected = np.zeros((K, K))
    np.add.at(expected, (y, z.argmax(1) if size else y), 1 if w is None else w)
    np.testing.assert_array_equal(ours.confusion_matrix(z, y, weights=w), expected)
    right, wrong = np.diagonal(expected), expected * (1 - np.eye(K))
    np.testing.assert_array_equal(
        ours.class_counts(z, y, weights=w), (right, wrong.sum(0), wrong.sum(1))
    )


def test_counts_under_vmap() -> None:
    data = single_label(size=300)
    z, y, w = (a.reshape(3, 100, *a.shape[1:]) for a in data)
    for metric in (ours.class_counts, ours.confusion_matrix):
        alone = [metric(z[i], y[i], weights=w[i]) for i in range(3)]
        together = jax.vmap(lambda z, y, w, f=metric: f(z, y, weights=w))(z, y, w)
        trees_close(together, jax.tree.map(lambda *a: np.stack(a), *alone))


def test_one_nan_among_many_classes_is_seen() -> None:
    """Wherever it is, beside infinities, and of either sign."""
    z = np.random.default_rng(0).normal(size=(64, 300)).astype(np.float32)
    z[:, 150] = INF
    for place in (0, 7, 149, 151, 299):
        for nan in (NAN, -NAN):
            bad = z.copy()
            bad[5, place] = nan
            assert (np.asarray(ours.class_counts(bad, np.full(64, 150))) == -1).all()


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_bad_truth_is_nan(metric: Callable, data: Data) -> None:
    truth = data.truth.copy()
    truth[7] = K if truth.ndim == 1 else 2
    weights = data.weights.copy()
    weights[7] = 1
    for leaf in jax.tree.leaves(metric(data.logits, truth, weights=weights)):
        assert np.isnan(leaf).all()


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_half_precision_gives_float32(metric: Callable, data: Data) -> None:
    half = jnp.asarray(data.logits, jnp.bfloat16)
    result = metric(half, data.truth, weights=data.weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(jnp.float32)}
    trees_close(result, metric(half.astype(jnp.float32), data.truth, weights=data.weights))


def test_float64() -> None:
    with jax.enable_x64():
        data = multi_label(step=2.0**-40)
        data = data._replace(logits=data.logits.astype(np.float64))
        got = ours.roc_auc(data.logits, data.truth, weights=data.weights)
        expected = theirs.roc_auc_score(
            data.truth, data.logits, average=None, sample_weight=data.weights
        )
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_one_sided_rankings_are_undefined() -> None:
    c = jnp.array([0.1, 0.7, 0.7])
    assert np.isnan(ours.roc_auc(c, jnp.array([1, 1, 1])))
    assert np.isnan(ours.roc_auc(c, jnp.array([0, 0, 0])))
    assert np.isnan(ours.average_precision(c, jnp.array([0, 0, 0])))
    assert ours.average_precision(c, jnp.array([1, 1, 1])) == 1
    # A positive without weight is none.
    assert np.isnan(ours.roc_auc(c, jnp.array([0, 0, 1]), weights=jnp.array([1.0, 1.0, 0.0])))


def test_macro_leaves_out_what_is_undefined() -> None:
    data = single_label()
    auc = ours.roc_auc(*ours.one_vs_rest(data.logits, data.truth))
    np.testing.assert_array_equal(np.isnan(auc), [False] * 4 + [True] * 2)
    close(ours.macro(auc), np.mean(np.asarray(auc)[:4]))
    assert np.isnan(ours.macro(jnp.array([NAN, NAN])))


def test_leading_axes_are_examples() -> None:
    data = single_label(size=300)
    z, y = data.logits.reshape(3, 100, K), data.truth.reshape(3, 100)
    for metric in (ours.accuracy, ours.confusion_matrix, ours.expected_calibration_error):
        trees_close(metric(z, y), metric(data.logits, data.truth))


# -- Calibration --


class Bins(NamedTuple):
    error: float
    confidence: list[float]
    accuracy: list[float]
    counts: list[float]


def bins_oracle(p: np.ndarray, t: np.ndarray, w: np.ndarray, bins: int) -> Bins:
    """Each distinct probability by itself, in exact fractions, from the smallest."""
    members: list[list[int]] = [[] for _ in range(bins)]
    weight, all_of_it = [Fraction(float(x)) for x in w], sum(Fraction(float(x)) for x in w)
    below = Fraction(0)
    for level in sorted({float(p[i]) for i in range(len(p)) if weight[i] > 0}):
        tied = [i for i in range(len(p)) if float(p[i]) == level and weight[i] > 0]
        own = sum(weight[i] for i in tied)
        members[int(bins * (below + own / 2) / all_of_it)] += tied
        below += own

    def mean(x: np.ndarray, rows: list[int]) -> float:
        mass = sum(weight[i] for i in rows)
        return float(sum(weight[i] * Fraction(float(x[i])) for i in rows) / mass) if mass else NAN

    confidence, accuracy = [mean(p, m) for m in members], [mean(t, m) for m in members]
    counts = [float(sum(weight[i] for i in m)) for m in members]
    gaps = [c * abs(a - b) for a, b, c in zip(accuracy, confidence, counts, strict=True) if c]
    return Bins(sum(gaps) / float(all_of_it), confidence, accuracy, counts)


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 64])
@pytest.mark.parametrize("step", [0.5, 2.0**-12, 4.0], ids=["ties", "few ties", "mostly ties"])
def test_expected_calibration_error(weighted: bool, bins: int, step: float) -> None:
    data = single_label(size=211, step=step)
    w = data.weights if weighted else np.ones_like(data.weights)
    p = np.asarray(jax.nn.softmax(data.logits)).max(1)
    expected = bins_oracle(p, data.logits.argmax(1) == data.truth, w, bins)
    p = jnp.asarray(p)
    direct = ours.reliability(p, data.logits.argmax(1) == data.truth, bins=bins, weights=w)
    np.testing.assert_array_equal(direct.counts, expected.counts)
    close(direct.error, expected.error, rtol=1e-5)
    close(direct.confidence, expected.confidence)
    close(direct.accuracy, expected.accuracy)


def test_the_error_is_that_of_the_predicted_class() -> None:
    data = single_label()
    p = np.asarray(links.softmax(data.logits))
    close(
        ours.expected_calibration_error(data.logits, data.truth, weights=data.weights).error,
        bins_oracle(p.max(1), p.argmax(1) == data.truth, data.weights, 15).error,
        rtol=1e-5,
    )


@pytest.mark.parametrize("size", [7, 15, 100, 1000])
def test_bins_without_ties_are_of_equal_mass(size: int) -> None:
    p = np.random.default_rng(size).permutation(np.linspace(0, 1, size, dtype=np.float32))
    result = ours.reliability(p, p > 0.5)
    assert result.counts.sum() == size
    assert result.counts.max() - result.counts.min() <= 1


def test_edges_say_which_bin() -> None:
    data = single_label()
    p = np.asarray(jax.nn.softmax(data.logits)).max(1)
    for weights in (np.ones_like(data.weights), data.weights):
        result = ours.reliability(p, p > 0.5, weights=weights)
        edges = np.asarray(result.edges)
        index = np.maximum(np.searchsorted(edges, p, side="left") - 1, 0)[weights > 0]
        counts = np.bincount(index, weights[weights > 0], minlength=15)
        np.testing.assert_array_equal(counts, result.counts)
        assert (edges[0], edges[-1]) == (p[weights > 0].min(), p[weights > 0].max())


def test_one_probability_is_one_bin() -> None:
    result = ours.reliability(jnp.full(9, 0.75), jnp.arange(9) < 3, bins=4)
    np.testing.assert_array_equal(result.counts, [0, 0, 9, 0])
    np.testing.assert_array_equal(np.isnan(result.accuracy), [True, True, False, True])
    close(result.error, 0.75 - 1 / 3)
    np.testing.assert_array_equal(result.edges, [0.75] * 5)


def test_calibrated_probabilities_have_a_small_error() -> None:
    rng = np.random.default_rng(5)
    p = rng.uniform(size=40_000).astype(np.float32)
    t = rng.uniform(size=p.shape) < p
    honest = ours.reliability(p, t).error
    # A bin's gap is normal with variance at most 1 / (4 n); fifteen of them, in the mean.
    assert honest < 4 * np.sqrt(15 / (4 * p.size))
    assert ours.reliability(p**2, t).error > 0.1


def test_nothing_that_counts_is_nan() -> None:
    result = ours.reliability(jnp.ones(3), jnp.ones(3), weights=jnp.zeros(3))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(result._replace(counts=NAN)))


def widths_oracle(p: np.ndarray, t: np.ndarray, w: np.ndarray, bins: int) -> Bins:
    """As Guo et al. have it, a loop over (lower, upper], with 0 in the first bin."""
    edges = np.linspace(0, 1, bins + 1).astype(np.float32)
    error, means = 0.0, []
    for b, (lower, upper) in enumerate(itertools.pairwise(edges)):
        inside = (p > lower) & (p <= upper) | (b == 0) & (p == 0)
        mass = w[inside].sum(dtype=np.float64)
        confidence, accuracy = (
            np.sum(w[inside] * x[inside], dtype=np.float64) / mass if mass else NAN for x in (p, t)
        )
        error += mass * abs(accuracy - confidence) / w.sum(dtype=np.float64) if mass else 0
        means.append((confidence, accuracy, mass))
    return Bins(error, *map(list, zip(*means, strict=True)))


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 64])
def test_bins_of_equal_width(weighted: bool, bins: int) -> None:
    rng = np.random.default_rng(bins)
    edges = np.linspace(0, 1, bins + 1).astype(np.float32)
    beside = [np.nextafter(edges, np.float32(end)) for end in (0, 1)]
    p = np.concatenate([edges, *beside, rng.uniform(size=200).astype(np.float32) ** 2])
    t = rng.uniform(size=p.shape) < p**2
    w = rng.choice([0, 0.25, 1, 3], p.shape).astype(np.float32)
    w = w if weighted else np.ones_like(w)
    expected = widths_oracle(p, t, w, bins)
    result = ours.reliability(
        p, t, bins=bins, binning="equal_width", weights=w if weighted else None
    )
    np.testing.assert_array_equal(result.counts, expected.counts)
    np.testing.assert_array_equal(result.edges, edges)
    close(result.error, expected.error, rtol=1e-5)
    close(result.confidence, expected.confidence)
    close(result.accuracy, expected.accuracy)


def test_the_published_calibration_error(weighted: bool) -> None:
    data = single_label()
    w = data.weights if weighted else np.ones_like(data.weights)
    p = np.asarray(links.softmax(data.logits))
    expected = widths_oracle(p.max(1), p.argmax(1) == data.truth, w, 15)
    measure = partial(
        ours.expected_calibration_error, binning="equal_width", weights=w if weighted else None
    )
    for run in (measure, jax.jit(measure)):
        found = run(data.logits, data.truth)
        close(found.error, expected.error, rtol=1e-5)
        np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.error != ours.expected_calibration_error(data.logits, data.truth).error


def test_what_rounding_leaves_outside_is_in_the_ends() -> None:
    result = ours.reliability(
        jnp.array([-1e-7, 1 + 2.0**-23]), jnp.array([0, 1]), bins=4, binning="equal_width"
    )
    np.testing.assert_array_equal(result.counts, [1, 0, 0, 1])


@pytest.mark.parametrize("binning", ["equal_mass", "equal_width"])
def test_reliability_without_an_answer_is_nan(binning: str) -> None:
    p, t = jnp.array([0.5, NAN, 0.25]), jnp.array([1, 0, 1])
    result = ours.reliability(p, t, binning=binning)
    assert all(np.isnan(leaf).all() for leaf in result)
    without = ours.reliability(p, t, binning=binning, weights=jnp.array([1, 0, 1]))
    trees_close(without, ours.reliability(p[::2], t[::2], binning=binning))


def test_weights_of_reliability_have_the_probabilities_shape() -> None:
    p = jnp.full((2, 3), 0.5)
    with pytest.raises(ValueError, match="weights: expected shape"):
        ours.reliability(p, p > 0, weights=jnp.ones((3, 2)))


# -- Bootstrap --


def test_bootstrap_agrees_with_scipy() -> None:
    x = np.random.default_rng(2).exponential(size=200).astype(np.float32)
    got = ours.bootstrap(jnp.mean, (x,), key=KEY, resamples=8000, level=0.9)
    rng = np.random.default_rng(0)
    expected = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=8000, confidence_level=0.9, method="percentile", rng=rng
    ).confidence_interval
    # A quantile q of R resamples has standard error sqrt(q (1 - q) / R) / density there.
    sigma = x.std() / np.sqrt(len(x))
    error = np.sqrt(0.05 * 0.95 / 8000) * sigma / scipy.stats.norm.pdf(scipy.stats.norm.ppf(0.05))
    np.testing.assert_allclose((got.low, got.high), expected, rtol=0, atol=6 * error)
    close(got.estimate, x.mean())


def test_bootstrap_keeps_examples_together() -> None:
    data = single_label(size=120)
    metric = jax.jit(ours.class_counts)
    result = ours.bootstrap(metric, data[:2], key=KEY, resamples=40)
    assert isinstance(result.low, ours.Counts)
    # A count of all that are right is that of `hits`, resampled by the same rows.
    right = ours.bootstrap(ours.accuracy, data[:2], key=KEY, resamples=40)
    direct = ours.bootstrap(weighted_mean, (ours.hits(*data[:2]),), key=KEY, resamples=40)
    close((right.low, right.high), (direct.low, direct.high))
    assert right.low < right.estimate < right.high


def test_bootstrap_repeats_itself() -> None:
    x = jnp.arange(50.0)
    first, again = (ours.bootstrap(jnp.mean, (x,), key=KEY, resamples=100) for _ in range(2))
    other = ours.bootstrap(jnp.mean, (x,), key=jax.random.key(4), resamples=100)
    batched = ours.bootstrap(jnp.mean, (x,), key=KEY, resamples=100, batch_size=7)
    assert (first.low, first.high) == (again.low, again.high)
    close((first.low, first.high), (batched.low, batched.high))
    assert first.low != other.low


def test_bootstrap_leaves_out_resamples_that_say_nothing() -> None:
    c, t = jnp.linspace(0, 1, 12), jnp.arange(12) == 8
    result = ours.bootstrap(ours.roc_auc, (c, t), key=KEY, resamples=300)
    assert 0 < result.low <= result.estimate <= result.high <= 1  # a third of them are NaN


# -- Refusals --


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.hits(jnp.ones((2, 3)), jnp.array([0, 1]), k=0), ValueError, "k: expected"),
        (lambda: ours.accuracy(jnp.ones((2, 3), int), jnp.array([0, 1])), TypeError, "logits"),
        (lambda: ours.accuracy(jnp.ones((2, 3)), jnp.array([0.0, 1.0])), TypeError, "labels"),
        (lambda: ours.confusion_matrix(jnp.ones((2, 3)), jnp.array([0])), ValueError, "labels"),
        (
            lambda: ours.confusion_matrix(jnp.ones((2, 3)), jnp.array([0, 1]), weights=jnp.ones(3)),
            ValueError,
            "weights: expected shape",
        ),
        (lambda: ours.roc_auc(jnp.ones((2, 3)), jnp.array([0, 1])), ValueError, "targets"),
        (lambda: ours.roc_auc(jnp.ones((2, 3, 1)), jnp.ones((2, 3, 1))), ValueError, "confidences"),
        (lambda: ours.log_loss(jnp.ones((2, 3, 1)), jnp.ones((2, 3, 1))), ValueError, "logits"),
        (lambda: ours.label_counts(jnp.ones(2), jnp.ones(2, complex)), TypeError, "targets"),
        (lambda: ours.reliability(jnp.ones(2), jnp.ones(2), bins=0), ValueError, "bins"),
        (lambda: ours.reliability(jnp.ones(2), jnp.ones(2), bins=2.5), TypeError, "bins: expected"),
        (
            lambda: ours.reliability(jnp.ones(2), jnp.ones(2), binning="equal width"),
            ValueError,
            "binning: expected one of .*, got 'equal width'",
        ),
        (
            lambda: ours.expected_calibration_error(
                jnp.ones((2, 3)), jnp.array([0, 1]), binning=["equal_mass"]
            ),
            TypeError,
            "binning: expected one value",
        ),
        (
            lambda: ours.confusion_matrix(jnp.ones((2, 3)), jnp.array([0, 1]), weights="ab"),
            TypeError,
            "weights",
        ),
        (lambda: ours.bootstrap(jnp.mean, (), key=KEY), ValueError, "data"),
        (lambda: ours.bootstrap(jnp.mean, (jnp.ones(0),), key=KEY), ValueError, "data"),
        (
            lambda: ours.bootstrap(jnp.mean, (jnp.ones(2), jnp.ones(3)), key=KEY),
            ValueError,
            r"got shapes \[\(2,\), \(3,\)\]",
        ),
        (
            lambda: ours.bootstrap(jnp.mean, (jnp.ones(2),), key=KEY, resamples=0),
            ValueError,
            "resamples",
        ),
        (lambda: ours.bootstrap(jnp.mean, (jnp.ones(2),), key=KEY, level=95), ValueError, "level"),
    ],
)
def test_refusals(call: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
