"""README's "Moving here", line by line: what the other library answers, and its gradient.

Torch's answers come from a record that `torch_values.py` made, those of Optax, jax.nn
and scikit-learn from the libraries themselves.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from sklearn.metrics import log_loss

import jaxsoftmax as js

pytestmark = pytest.mark.usefixtures("unoptimized")

ROOT = Path(__file__).parent.parent
RECORD = json.loads(Path(__file__).with_name("torch_values.json").read_text())
INPUTS = {name: np.array(value) for name, value in RECORD["inputs"].items()}
NAMES = {name: getattr(js, name) for name in js.__all__}

# Ours for each call of torch, of the same names.
TORCH = {
    "F.cross_entropy(z, y)": "mean_cross_entropy(z, y)",
    'F.cross_entropy(z, y, reduction="none")': "cross_entropy(z, y)",
    'F.cross_entropy(z, y, reduction="sum")': "cross_entropy(z, y).sum()",
    "F.cross_entropy(z, y, weight=w)": "mean_cross_entropy(z, y, class_weights=w)",
    'F.cross_entropy(z, y, weight=w, reduction="none")':
        "smoothed_cross_entropy(z, y, smoothing=0, class_weights=w)",
    "F.cross_entropy(z, ignored, ignore_index=-100)":
        "mean_cross_entropy(z, ignored, valid=ignored != -100)",
    "F.cross_entropy(z, y, label_smoothing=0.1)": "mean_cross_entropy(z, y, smoothing=0.1)",
    "F.cross_entropy(z, y, weight=w, label_smoothing=0.1)":
        "mean_cross_entropy(z, y, class_weights=w, smoothing=0.1)",
    'F.cross_entropy(z, y, weight=w, label_smoothing=0.1, reduction="none")':
        "smoothed_cross_entropy(z, y, class_weights=w, smoothing=0.1)",
    "F.cross_entropy(z, ignored, weight=w, ignore_index=-100, label_smoothing=0.1)":
        "mean_cross_entropy(z, ignored, class_weights=w, valid=ignored != -100, smoothing=0.1)",
    "F.cross_entropy(z, y, label_smoothing=1.0)": "mean_cross_entropy(z, y, smoothing=1.0)",
    "F.cross_entropy(z.T[None], ignored[None], weight=w, ignore_index=-100)":
        "mean_cross_entropy(z.T[None], ignored[None], axis=1, class_weights=w, "
        "valid=ignored[None] != -100)",
    "F.nll_loss(F.log_softmax(z, -1), y)": "mean_cross_entropy(z, y)",
    "F.cross_entropy(z, t)": "soft_cross_entropy(z, t).mean()",
    "F.cross_entropy(z, t, weight=w)": "soft_cross_entropy(z, t * w).mean()",
    'F.kl_div(F.log_softmax(z, -1), t, reduction="batchmean")': "kl_divergence(z, t).mean()",
    'F.kl_div(F.log_softmax(z, -1), t.log(), log_target=True, reduction="batchmean")':
        "kl_divergence(z, jnp.log(t), log_targets=True).mean()",
    'T**2 * F.kl_div(F.log_softmax(z / T, -1), F.softmax(s / T, -1), reduction="batchmean")':
        "T**2 * kl_divergence(z / T, softmax(s / T)).mean()",
    "F.binary_cross_entropy_with_logits(z, b)": "binary_cross_entropy(z, b).mean()",
    "F.binary_cross_entropy_with_logits(z, b, pos_weight=p)":
        "binary_cross_entropy(z, b, pos_weight=p).mean()",
    "F.binary_cross_entropy_with_logits(z, b, weight=w)": "(w * binary_cross_entropy(z, b)).mean()",
    "F.multilabel_soft_margin_loss(z, b)": "binary_cross_entropy(z, b).mean()",
    "F.linear_cross_entropy(z, W, ignored, linear_bias=c, ignore_index=-100)":
        "linear_cross_entropy_sum(z, W.T, ignored, bias=c, valid=ignored >= 0)"
        " / (ignored >= 0).sum()",
    "F.linear_cross_entropy(z, W, ignored, weight=w, ignore_index=-100)":
        "weighted_mean(linear_cross_entropy(z, W.T, ignored, valid=ignored >= 0).nll, "
        "valid=ignored >= 0, weights=jnp.asarray(w)[ignored])",
    "F.linear_cross_entropy(z, W, y, label_smoothing=0.1)":
        "(lambda s: (0.9 * s.nll + 0.1 * (s.lse - s.mean_logit)).mean())("
        "linear_cross_entropy_stats(z, W.T, y))",
    "F.mse_loss(z, t)": "squared_error(z, t).mean() / 4",
    "F.log_softmax(z, -1)[:, 1]": "log_softmax(z)[:, 1]",
    "F.softmax(z, -1)[:, 1]": "softmax(z)[:, 1]",
    "F.logsigmoid(z)": "log_sigmoid(z)",
    "F.softplus(z)": "softplus(z)",
    "torch.logsumexp(z, -1)": "logsumexp(z)",
}  # fmt: skip


def evaluated(expression: str, z: Array) -> Array:
    return eval(expression, {"jnp": jnp} | NAMES | INPUTS | {"z": z})


def values_and_gradient(function: Callable[[Array], Array], z: Any) -> tuple[Array, Array]:
    def total(z: Array) -> tuple[Array, Array]:
        values = function(z)
        return values.sum(), values

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(z))
    return values, gradient


def test_every_call_of_the_record_has_ours() -> None:
    assert set(TORCH) == set(RECORD["calls"])


@pytest.mark.parametrize("call", TORCH)
def test_torch(call: str) -> None:
    with jax.enable_x64():
        found = values_and_gradient(lambda z: evaluated(TORCH[call], z), INPUTS["z"])
    for got, name in zip(found, ("value", "gradient"), strict=True):
        np.testing.assert_allclose(got, RECORD["calls"][call][name], rtol=1e-13, atol=1e-14)


def test_a_class_that_is_masked_is_left_out_of_the_smoothing() -> None:
    # Torch's loss is infinite there. It is that of the classes that exist.
    z, y = jnp.asarray([[1.0, 2.0, 0.5]]), jnp.asarray([1])
    for hidden, options in (
        (jnp.insert(z, 1, -jnp.inf, 1), {}),
        (jnp.insert(z, 1, 9.0, 1), {"where": jnp.asarray([True, False, True, True])}),
    ):
        for weights in (None, jnp.asarray([1.0, 5.0, 2.0, 3.0])):
            some = None if weights is None else weights[jnp.asarray([0, 2, 3])]
            loss, alone = (
                lambda z, y=y + 1, c=weights, options=options: js.mean_cross_entropy(
                    z, y, smoothing=0.2, class_weights=c, **options
                ),
                lambda z, c=some: js.mean_cross_entropy(z, y, smoothing=0.2, class_weights=c),
            )
            value, slope = values_and_gradient(loss, hidden)
            true, true_slope = values_and_gradient(alone, z)
            np.testing.assert_allclose(value, true, rtol=1e-6)
            np.testing.assert_allclose(np.delete(slope, 1, 1), true_slope, rtol=1e-6)
            assert slope[0, 1] == 0


# Optax and jax.nn: theirs, ours, of z, y, t and b.
PAIRS: dict[str, tuple[Callable, Callable]] = {
    "integer labels": (
        lambda z, d: optax.softmax_cross_entropy_with_integer_labels(z, d["y"]),
        lambda z, d: js.cross_entropy(z, d["y"]),
    ),
    "integer labels, where": (
        lambda z, d: optax.softmax_cross_entropy_with_integer_labels(z, d["y"], where=d["exists"]),
        lambda z, d: js.cross_entropy(z, d["y"], where=d["exists"]),
    ),
    "soft labels": (
        lambda z, d: optax.safe_softmax_cross_entropy(z, d["t"]),
        lambda z, d: js.soft_cross_entropy(z, d["t"]),
    ),
    "one-hot labels": (
        lambda z, d: optax.softmax_cross_entropy(z, jax.nn.one_hot(d["y"], 4)),
        lambda z, d: js.soft_cross_entropy(z, jax.nn.one_hot(d["y"], 4, dtype=int)),
    ),
    "smooth labels": (
        lambda z, d: optax.softmax_cross_entropy(
            z, optax.smooth_labels(jax.nn.one_hot(d["y"], 4), 0.1)
        ),
        lambda z, d: js.smoothed_cross_entropy(z, d["y"], smoothing=0.1),
    ),
    "a mean of rows that count": (
        lambda z, d: optax.softmax_cross_entropy_with_integer_labels(
            z, jnp.maximum(d["ignored"], 0)
        ).mean(where=d["ignored"] >= 0),
        lambda z, d: js.mean_cross_entropy(z, d["ignored"], valid=d["ignored"] >= 0),
    ),
    "binary": (
        lambda z, d: optax.sigmoid_binary_cross_entropy(z, d["b"]),
        lambda z, d: js.binary_cross_entropy(z, d["b"]),
    ),
    "focal": (
        lambda z, d: optax.sigmoid_focal_loss(z, d["b"], gamma=2.0),
        lambda z, d: js.focal(js.binary_cross_entropy(z, d["b"]), gamma=2.0),
    ),
    "kl": (
        lambda z, d: optax.kl_divergence(jax.nn.log_softmax(z), d["t"]),
        lambda z, d: js.kl_divergence(z, d["t"]),
    ),
    "kl of log-targets": (
        lambda z, d: optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(z), jnp.log(d["t"])
        ),
        lambda z, d: js.kl_divergence(z, jnp.log(d["t"]), log_targets=True),
    ),
    "hinge": (
        lambda z, d: optax.hinge_loss(z, 2 * d["b"] - 1),
        lambda z, d: js.hinge(z, d["b"]),
    ),
    "multiclass hinge": (
        lambda z, d: optax.losses.multiclass_hinge_loss(z, d["y"]),
        lambda z, d: js.multiclass_hinge(z, d["y"]),
    ),
    "squared error": (
        lambda z, d: optax.squared_error(z, d["t"]).sum(-1),
        lambda z, d: js.squared_error(z, d["t"]),
    ),
    "log_softmax": (lambda z, d: jax.nn.log_softmax(z), lambda z, d: js.log_softmax(z)),
    "softmax, where": (
        lambda z, d: jax.nn.softmax(z, where=d["exists"]),
        lambda z, d: js.softmax(z, where=d["exists"]),
    ),
    "logsumexp": (lambda z, d: jax.nn.logsumexp(z, axis=-1), lambda z, d: js.logsumexp(z)),
    "sigmoid": (lambda z, d: jax.nn.sigmoid(z), lambda z, d: js.sigmoid(z)),
    "log_sigmoid": (lambda z, d: jax.nn.log_sigmoid(z), lambda z, d: js.log_sigmoid(z)),
    "softplus": (lambda z, d: jax.nn.softplus(z), lambda z, d: js.softplus(z)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_optax_and_jax(name: str) -> None:
    theirs, ours = PAIRS[name]
    with jax.enable_x64():
        data = {key: jnp.asarray(value) for key, value in INPUTS.items()}
        data["exists"] = jnp.arange(4) != (data["y"][:, None] + 1) % 4
        true = values_and_gradient(lambda z: theirs(z, data), INPUTS["z"])
        found = values_and_gradient(lambda z: ours(z, data), INPUTS["z"])
    for got, expected in zip(found, true, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_rows_that_do_not_count_have_no_gradient() -> None:
    # The trap of the move: the right value, and NaN in the gradient of the rows left out.
    z, y = jnp.asarray([[1.0, 2.0], [jnp.nan, 3.0], [0.0, 1.0]]), jnp.asarray([1, -100, 0])
    value, gradient = jax.value_and_grad(js.mean_cross_entropy)(z, y, valid=y >= 0)
    kept = jnp.asarray([0, 2])
    true, slope = jax.value_and_grad(js.mean_cross_entropy)(z[kept], y[kept])
    np.testing.assert_allclose(value, true, rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)
    np.testing.assert_allclose(gradient[kept], slope, rtol=1e-6)
    for name, how in {
        "weights": {"weights": y >= 0},
        "smoothing": {"weights": jnp.asarray([1, 0, 1]), "smoothing": 0.1},
        "class weights": {"valid": (y >= 0).astype(int), "class_weights": jnp.asarray([1, 2])},
    }.items():
        found = jax.grad(js.mean_cross_entropy)(z, y, **how)
        np.testing.assert_array_equal(found[1], 0, name)
        assert np.isfinite(found).all(), name


def test_scikit_learn() -> None:
    p = np.asarray(jax.nn.softmax(INPUTS["z"]))
    found = js.mean_cross_entropy(INPUTS["z"], INPUTS["y"], weights=INPUTS["y"] + 1)
    true = log_loss(INPUTS["y"], p, labels=range(4), sample_weight=INPUTS["y"] + 1)
    np.testing.assert_allclose(found, true, rtol=1e-6)


def test_readme_names_nothing_that_is_not_tried() -> None:
    section = (ROOT / "README.md").read_text().split("## Moving here")[1].split("\n## ")[0]
    tried = Path(__file__).read_text() + json.dumps(RECORD["calls"])
    names = re.findall(r"(?:optax|F|jax\.nn)\.(?:losses\.)?(\w+)", section)
    assert len(names) > 15
    # Another loss than ours, as README says.
    assert not [name for name in names if name not in tried and name != "multi_margin_loss"]


def test_the_mean_is_differentiable_in_all_that_it_is_made_of() -> None:
    z, y, w = jnp.asarray([[2.0, 0.0], [0.0, 1.0]]), jnp.asarray([0, 0]), jnp.asarray([1.0, 0.0])
    for transform in (jax.grad, jax.jacfwd):
        found = transform(lambda w: js.mean_cross_entropy(z, y, weights=w))(w)
        true = transform(lambda w: js.weighted_mean(js.cross_entropy(z, y), weights=w))(w)
        np.testing.assert_allclose(found, true, rtol=1e-6)  # at a weight of 0 too
    z, y = jnp.asarray([[2.0, 0.0, 1.0]] * 3).at[2].set(-jnp.inf), jnp.asarray([0, -100, 1])
    alone = {"valid": y >= 0}
    for name, at in {"class_weights": jnp.asarray([1.0, 2.0, 0.5]), "smoothing": 0.1}.items():
        how = {"smoothing": 0.1} | alone
        found = jax.grad(lambda a, n=name, h=how: js.mean_cross_entropy(z, y, **h | {n: a}))(at)
        # A row that is masked whole has no value, but is in the denominator.
        true = jax.grad(
            lambda a, n=name: js.smoothed_cross_entropy(
                z[:1], y[:1], **{"smoothing": 0.1} | {n: a}
            ).sum()
        )(at)
        if name == "smoothing":
            np.testing.assert_allclose(found, true / 2, rtol=1e-5)
        assert np.isfinite(found).all()
    broken = jnp.asarray([[1.0, 2.0], [jnp.nan, 0.0]])
    slope = jax.grad(js.mean_cross_entropy)(broken, y[:2] * 0, weights=w)
    np.testing.assert_array_equal(slope[1], 0)
