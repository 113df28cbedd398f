"""Optax's own tests of classification losses, run on this library through adapters.

Each adapter is Optax's signature over the composition that README's "Moving here" names, and says
what else a user of Optax writes here. Left out are losses that this library does not have:
sparsemax, perceptron, CTC.
"""

import types
import unittest
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import _classification_test as suite

import jaxsoftmax as js

pytestmark = pytest.mark.usefixtures("unoptimized")

ABSENT = {"SparsemaxTest", "PerceptronTest", "CTCTest"}


def masks(logits: Any, where: Any) -> dict[str, Any]:
    """Optax's `where` is of examples or of logits; here these are two arguments."""
    if where is None:
        return {}
    return {"valid": where} if np.ndim(where) == np.ndim(logits) - 1 > 0 else {"where": where}


def kept(targets: Any, where: Any, nothing: float = 0.0) -> Any:
    """Optax's `where` leaves a masked class's target out; here its loss is infinite."""
    if np.ndim(where) < np.ndim(targets):
        return targets
    return jnp.where(where, targets, nothing)


def softmax_cross_entropy(logits: Any, labels: Any, axis: int = -1, where: Any = None) -> Any:
    if 0 in np.shape(logits):  # Optax's sum over no classes
        return jnp.zeros(())
    labels = kept(labels, where)
    return js.soft_cross_entropy(logits, labels, axis=axis, **masks(logits, where))


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: Any = -1, where: Any = None
) -> Any:
    axes = axis if isinstance(axis, tuple) else (axis,)
    if len(axes) > 1:  # classes that several axes number are one axis
        logits = jnp.moveaxis(logits, axes, range(-len(axes), 0))
        logits, axis = logits.reshape(*logits.shape[: -len(axes)], -1), -1
    return js.cross_entropy(logits, labels, axis=axis, **masks(logits, where))


def poly_loss_cross_entropy(
    logits: Any, labels: Any, epsilon: Any = 2.0, axis: int = -1, where: Any = None
) -> Any:
    values = softmax_cross_entropy(logits, labels, axis, where)
    if 0 in np.shape(logits):
        return values + epsilon
    p = js.softmax(logits, axis=axis, where=where)
    return values + epsilon * (1 - jnp.sum(p * labels, axis))  # p is 0 for a masked class


def kl_divergence(log_predictions: Any, targets: Any, axis: int = -1, where: Any = None) -> Any:
    if 0 in np.shape(log_predictions):
        return jnp.zeros(())
    return js.kl_divergence(log_predictions, kept(targets, where), axis=axis, where=where)


def kl_divergence_with_log_targets(
    log_predictions: Any, targets: Any, axis: int = -1, where: Any = None
) -> Any:
    if 0 in np.shape(log_predictions):
        return jnp.zeros(())
    logs = kept(targets, where, -jnp.inf)
    return js.kl_divergence(log_predictions, logs, log_targets=True, axis=axis, where=where)


def generalized_kl_divergence(
    log_predictions: Any, targets: Any, axis: int = -1, where: Any = None
) -> Any:
    p = jnp.exp(jnp.asarray(log_predictions))
    more = jnp.sum(p - targets, axis, where=where)
    return kl_divergence(log_predictions, targets, axis, where) + more


def convex_kl_divergence(*arguments: Any) -> Any:
    warnings.warn("use generalized_kl_divergence", DeprecationWarning, stacklevel=2)
    return generalized_kl_divergence(*arguments)


def hinge_loss(predictor_outputs: Any, targets: Any) -> Any:
    return js.hinge(predictor_outputs, (targets + 1) / 2)


def sigmoid_focal_loss(logits: Any, labels: Any, alpha: Any = None, gamma: Any = 2.0) -> Any:
    values = js.focal(js.binary_cross_entropy(logits, labels), gamma=gamma)
    return values if alpha is None else (alpha * labels + (1 - alpha) * (1 - labels)) * values


ADAPTERS = types.SimpleNamespace(
    softmax_cross_entropy=softmax_cross_entropy,
    safe_softmax_cross_entropy=softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels=softmax_cross_entropy_with_integer_labels,
    sigmoid_binary_cross_entropy=js.binary_cross_entropy,
    poly_loss_cross_entropy=poly_loss_cross_entropy,
    hinge_loss=hinge_loss,
    multiclass_hinge_loss=js.multiclass_hinge,
    kl_divergence=kl_divergence,
    kl_divergence_with_log_targets=kl_divergence_with_log_targets,
    generalized_kl_divergence=generalized_kl_divergence,
    convex_kl_divergence=convex_kl_divergence,
    sigmoid_focal_loss=sigmoid_focal_loss,
)

CASES = [
    case
    for group in unittest.defaultTestLoader.loadTestsFromModule(suite)
    for case in group
    if type(case).__name__ not in ABSENT
]


def test_there_are_as_many_as_were_counted() -> None:
    assert len(CASES) >= 98


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id().split(".", 3)[-1])
def test_of_optax(case: unittest.TestCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_classification", ADAPTERS)
    np.random.seed(0)  # noqa: NPY002, what Optax's tests draw from
    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # assertWarns reads every module that is loaded
        case.run(result)
    assert result.wasSuccessful(), "\n".join(text for _, text in result.failures + result.errors)


def test_the_adapters_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_classification", types.SimpleNamespace())
    result = unittest.TestResult()
    CASES[0].run(result)
    assert not result.wasSuccessful()
