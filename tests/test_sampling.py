"""Sampled classes: right on average, and the softmax where all classes are taken."""

from functools import partial
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsoftmax import linear_cross_entropy, sample_classes
from jaxsoftmax.sampling import SampledClasses

N, D, K = 6, 5, 24
rng = np.random.default_rng(0)
X = rng.standard_normal((N, D)).astype(np.float32)
W = rng.standard_normal((D, K)).astype(np.float32)
BIAS = rng.standard_normal(K).astype(np.float32)
LABELS = np.array([3, 20, 3, 0, 23, 11], np.int32)


@pytest.mark.parametrize(("count", "groups"), [(8, 1), (12, 2), (16, 4), (24, 1), (24, 8)])
def test_a_sample(count: int, groups: int) -> None:
    sample = sample_classes(LABELS, K, count=count, key=jax.random.key(1), groups=groups)
    classes = np.asarray(sample.classes)
    assert len(set(classes)) == count
    assert set(LABELS) <= set(classes)
    np.testing.assert_array_equal(classes[sample.labels], LABELS)
    parts = classes.reshape(groups, -1)
    assert (parts // (K // groups) == np.arange(groups)[:, None]).all()
    for part, bias in zip(parts, np.asarray(sample.bias).reshape(groups, -1), strict=True):
        positives = np.isin(part, LABELS)
        q = (len(part) - positives.sum()) / (K // groups - positives.sum())
        np.testing.assert_allclose(bias, np.where(positives, 0, -np.log(q)), rtol=1e-6)
    np.testing.assert_array_equal(sample.take(W), W[:, classes])
    np.testing.assert_array_equal(sample.take(W.T, axis=0), W.T[classes])


def mean_loss(w: Any, key: Any, count: int, groups: int = 1) -> Any:
    sample = sample_classes(LABELS, K, count=count, key=key, groups=groups)
    head = {"bias": sample.take(jnp.asarray(BIAS)) + sample.bias}
    return linear_cross_entropy(X, sample.take(w), sample.labels, **head).nll.mean()


def softmax_loss(w: Any) -> Any:
    return linear_cross_entropy(X, w, LABELS, bias=BIAS).nll.mean()


def test_all_classes_are_the_softmax() -> None:
    value, gradient = jax.value_and_grad(mean_loss)(W, jax.random.key(0), K)
    wanted, exact = jax.value_and_grad(softmax_loss)(W)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-7)


def every_sample(labels: np.ndarray, classes: int, count: int) -> SampledClasses:
    """Each sample that may be drawn, once; all come equally often."""
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = partial(sample_classes, labels, classes, count=count)
    drawn = jax.jit(jax.vmap(lambda key: draw(key=key)))(keys)
    _, first, counts = np.unique(
        np.sort(drawn.classes), axis=0, return_index=True, return_counts=True
    )
    positives = len(set(labels))
    assert len(first) == comb(classes - positives, count - positives)
    assert (abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())).all()
    return jax.tree.map(lambda a: a[first], drawn)


def test_the_expected_sum_is_that_of_all_classes_and_the_expected_gradient_comes_near() -> None:
    """In float64, over all samples: the sums are equal, and the bias of the gradient falls."""
    k, labels = 10, np.array([3, 7, 3, 0], np.int32)
    x, w = X[:4].astype(np.float64), W[:, :k].astype(np.float64)
    e = np.exp(x @ w)
    exact = x.T @ (e / e.sum(1, keepdims=True) - np.eye(k)[labels]) / 4

    def gradient(sample: SampledClasses) -> Any:
        def mean(w: Any) -> Any:
            bias = sample.bias.astype(w.dtype)
            return linear_cross_entropy(x, sample.take(w), sample.labels, bias=bias).nll.mean()

        return jax.grad(mean)(jnp.asarray(w))

    off = {}
    for count in (4, 6, 9):
        samples = every_sample(labels, k, count)
        weights = np.exp(np.asarray(samples.bias, np.float64))
        sums = (e[:, samples.classes] * weights).sum(2)
        np.testing.assert_allclose(sums.mean(1), e.sum(1), rtol=2e-7)  # the bias is float32
        with jax.enable_x64():
            expected = np.asarray(jax.jit(jax.vmap(gradient))(samples)).mean(0)
        assert expected.dtype == np.float64
        off[count] = np.linalg.norm(expected - exact) / np.linalg.norm(exact)
    assert off[9] < off[6] / 4 < off[4] / 8 < 0.05, off


def test_labels_that_have_no_class() -> None:
    sample = sample_classes(np.array([1, -100, K]), K, count=4, key=jax.random.key(0))
    np.testing.assert_array_equal(sample.labels, [0, -1, -1])
    few = sample_classes(np.arange(6), K, count=4, key=jax.random.key(0))
    assert (np.asarray(few.labels) == -1).sum() == 2
    assert np.isfinite(few.bias).all()


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (LABELS, {"count": 25}, ValueError, "count: expected at most 24 classes, got 25"),
        (LABELS, {"count": 0}, ValueError, "count: expected at least 1, got 0"),
        (LABELS, {"count": 9, "groups": 2}, ValueError, "groups must divide count = 9"),
        (LABELS, {"count": 10, "groups": 5}, ValueError, "and num_classes = 24, got 5"),
        (LABELS, {"count": 8.0}, TypeError, "count: expected an integer, got 8.0"),
        (X, {"count": 8}, TypeError, r"labels: expected integers of shape \[N\]"),
    ],
)
def test_what_cannot_be_sampled(labels: Any, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sample_classes(labels, K, key=jax.random.key(0), **options)


def test_classes_that_cannot_be_taken() -> None:
    sample = sample_classes(LABELS, K, count=8, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"array: expected 24 classes along axis 1, got .*\(5, 12\)"
    ):
        sample.take(W[:, :12])
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Explicit,))
    w = jax.device_put(W, NamedSharding(mesh, PartitionSpec(None, "model")))
    with pytest.raises(ValueError, match=r"groups: expected a multiple of the 2 shards .*, got 1"):
        sample.take(w)
    sample = sample_classes(LABELS, K, count=8, key=jax.random.key(0), groups=4)
    np.testing.assert_array_equal(sample.take(w), W[:, sample.classes])
