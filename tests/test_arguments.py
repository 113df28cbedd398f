"""Arguments as people pass them: what is taken, what it means, and what the errors say."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax as js
from jaxsoftmax import validation

pytestmark = pytest.mark.usefixtures("unoptimized")

Z = jnp.asarray([[1.0, -2.0, 0.5], [0.3, 0.0, 3.0]])
Y = jnp.asarray([2, 0])
T = jnp.asarray([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])


def same(found: Any, true: Any) -> None:
    np.testing.assert_array_equal(found, true)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_binary_targets_that_leave_the_unit_interval_by_rounding(kind: Any) -> None:
    eps = float(jnp.finfo(kind).eps)
    inside = jnp.asarray([1 + eps, 1 + 3 * eps, -eps / 2, -3 * eps], kind)
    ends = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    outside = jnp.asarray([1 + 8 * eps, -8 * eps], kind)
    z = jnp.asarray([0.3, -2.0, 5.0, 1.0])
    for function in (js.binary_cross_entropy, js.binary_cross_entropy_gradient, js.hinge):
        same(function(z, inside), function(z, ends))
        assert np.isnan(function(z[:2], outside)).all()
    slope = jax.grad(lambda t: js.binary_cross_entropy(z, t).sum())(ends)
    np.testing.assert_allclose(slope, -z, rtol=1e-6)  # no half at the ends


def test_the_mean_over_rounded_sums_of_probabilities_is_a_number() -> None:
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2000, 10))).sum(-1)
    assert int((p > 1).sum()) > 100  # or there is nothing to round
    assert np.isfinite(js.binary_cross_entropy(jnp.zeros(2000), p).mean())


def test_a_negative_target_by_rounding_on_a_masked_class() -> None:
    t = jnp.asarray([1 + 2**-23, -(2.0**-23)])
    z = jnp.asarray([0.0, -jnp.inf])
    for loss in (js.soft_cross_entropy, js.kl_divergence):
        assert np.isfinite(loss(z, t)), loss.__name__


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float64, bool, jnp.int32])
def test_scalar_and_integer_targets_of_binary_losses(kind: Callable) -> None:
    for loss in (js.binary_cross_entropy, js.hinge):
        same(loss(Z, kind(1)), loss(Z, jnp.ones_like(Z)))
        same(loss(Z, np.array([[1, 0, 1]], np.int64)), loss(Z, jnp.asarray([[1.0, 0, 1]] * 2)))


def test_targets_of_soft_losses() -> None:
    hot = np.eye(3, dtype=int)[np.asarray(Y)]
    for loss in (js.soft_cross_entropy, js.kl_divergence):
        for dtype in (np.int64, np.int8, bool):
            same(loss(Z, hot.astype(dtype)), loss(Z, hot.astype(np.float32)))
        same(loss(Z, T[0]), loss(Z, jnp.stack([T[0], T[0]])))
        same(loss(Z.T, T[0], axis=0), loss(Z, T[0]))
        for labels in (Y, jnp.asarray([2, 0, 1])):  # K labels are no target of K classes
            with pytest.raises((TypeError, ValueError), match="targets"):
                loss(Z, labels)


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_mask_of_the_classes(axis: int) -> None:
    z, where = Z.T if axis == 0 else Z, jnp.asarray([True, False, True])
    wide = jnp.broadcast_to(where[:, None] if axis == 0 else where, z.shape)
    for function in (js.softmax, js.log_softmax, js.logsumexp, js.entropy):
        same(function(z, axis=axis, where=where), function(z, axis=axis, where=wide))
    for function in (js.cross_entropy, js.brier, js.multiclass_hinge, js.cross_entropy_gradient):
        same(function(z, Y, axis=axis, where=where), function(z, Y, axis=axis, where=wide))


def test_valid_of_integers_and_of_shapes_that_broadcast() -> None:
    flags = jnp.asarray([True, False])
    for valid in (np.array([1, 0]), jnp.asarray([3, 0], jnp.uint8), [True, False]):
        same(js.cross_entropy(Z, Y, valid=valid), js.cross_entropy(Z, Y, valid=flags))
        same(js.weighted_mean(Y + 1.0, valid=valid), js.weighted_mean(Y + 1.0, valid=flags))
    same(js.cross_entropy(Z, Y, valid=False), jnp.zeros(2))
    rows = jnp.asarray([[True], [False]])
    for loss in (js.binary_cross_entropy, js.hinge):
        same(loss(Z, T, valid=rows), loss(Z, T) * rows)
        same(loss(Z, T, where=[True, False, True]), loss(Z, T) * jnp.asarray([1.0, 0, 1]))
        same(loss(Z, T, where=rows, valid=T > 0), loss(Z, T, valid=rows & (T > 0)))
    with pytest.raises(TypeError, match="valid"):
        js.cross_entropy(Z, Y, valid=jnp.asarray([1.0, 0.0]))
    # Of fewer axes it is of the first ones, as weights are: with B = T nothing else would tell.
    z, y, first = jnp.stack([Z, Z]), jnp.stack([Y, Y]), jnp.asarray([True, False])
    same(js.cross_entropy(z, y, valid=first), js.cross_entropy(z, y) * first[:, None])
    true = js.cross_entropy(z[0], y[0]).mean()
    for how in ({"valid": first}, {"weights": first}):
        np.testing.assert_allclose(js.mean_cross_entropy(z, y, **how), true, rtol=1e-6)


@pytest.mark.parametrize("weights", [2, True, 2.0, [1, 1], np.array([3, 3]), np.ones(2, bool)])
def test_weights_of_any_numbers(weights: Any) -> None:
    np.testing.assert_allclose(js.weighted_mean(Y + 1.0, weights=weights), 2, rtol=1e-6)
    found = js.mean_cross_entropy(Z, Y, weights=weights)
    np.testing.assert_allclose(found, js.cross_entropy(Z, Y).mean(), rtol=1e-6)


def test_empty_lists() -> None:
    assert js.cross_entropy(jnp.zeros((0, 3)), []).shape == (0,)
    assert js.mean_cross_entropy(np.zeros((0, 3)), []) == 0
    assert js.soft_cross_entropy(jnp.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_traced_gamma(gamma: float) -> None:
    values = jnp.asarray([0.0, 1e-8, 0.7, 30.0, jnp.inf])
    traced = jax.jit(lambda g: js.focal(values, gamma=g))(gamma)
    np.testing.assert_allclose(traced, js.focal(values, gamma=gamma), rtol=1e-6)
    same(js.focal(values, gamma=np.float32(gamma)), js.focal(values, gamma=gamma))
    if gamma:
        with jax.enable_x64():
            at = jnp.asarray([1e-8, 0.7, 30.0])
            slope = jax.vmap(jax.grad(lambda g, v: js.focal(v, gamma=g)), (None, 0))(gamma, at)
            step = 1e-5
            true = (js.focal(at, gamma=gamma + step) - js.focal(at, gamma=gamma - step)) / 2 / step
            np.testing.assert_allclose(slope, true, rtol=1e-5, atol=1e-9)


def test_log_targets() -> None:
    logs = jnp.log(T)  # -inf where a target is 0
    same(js.kl_divergence(Z, logs, log_targets=True)[1], js.kl_divergence(Z, T)[1])
    np.testing.assert_allclose(
        js.kl_divergence(Z, logs, log_targets=True), js.kl_divergence(Z, T), rtol=1e-6
    )
    slope = jax.grad(lambda z, t: js.kl_divergence(z, t, log_targets=True).sum(), argnums=(0, 1))
    dz, dt = slope(Z, logs)
    np.testing.assert_allclose(
        dz, jax.grad(lambda z: js.kl_divergence(z, T).sum())(Z), rtol=1e-6, atol=1e-7
    )
    inner = T * (1 + jnp.where(T > 0, logs, 0) - js.log_softmax(Z))
    np.testing.assert_allclose(dt, jnp.where(T > 0, inner, 0), rtol=1e-5, atol=1e-7)
    assert np.isnan(js.kl_divergence(Z[0], logs[0]))  # not silently another number


# -- What is not one array --

FUSED = js.LinearLoss(jnp.asarray([1.0, 1.0]), jnp.asarray([5.0, 5.0]))
OF_VALUES: dict[str, Callable] = {
    "weighted_mean": js.weighted_mean,
    "focal": lambda v: js.focal(v, gamma=2.0),
    "cross_entropy": lambda v: js.cross_entropy(v, Y),
    "softmax": js.softmax,
    "entropy": js.entropy,
    "binary_cross_entropy": lambda v: js.binary_cross_entropy(v, jnp.ones(2)),
    "weights": lambda v: js.weighted_mean(Y + 1.0, weights=v),
    "mean_cross_entropy": lambda v: js.mean_cross_entropy(Z, Y, weights=v),
}


@pytest.mark.parametrize("name", OF_VALUES)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_function_of_values_refuses_a_tuple_of_them(name: str, transform: Callable) -> None:
    function = transform(OF_VALUES[name])
    with pytest.raises(TypeError, match=r"expected one array, got LinearLoss; pass .*\.nll"):
        function(FUSED)
    with pytest.raises(TypeError, match="expected one array, got dict"):
        function({"nll": FUSED.nll})


def test_what_is_no_number_is_named() -> None:
    for wrong in (["a", "b"], np.array([None, 1.0]), "cat"):
        with pytest.raises(TypeError, match="logits: expected an array of numbers"):
            js.softmax(wrong)
    with pytest.raises(TypeError, match="axis: expected one"):
        js.softmax(Z, axis=[0])
    with pytest.raises(TypeError, match="axis: expected one integer"):
        js.softmax(Z, axis=True)
    same(js.softmax(Z, axis=np.int64(0)), js.softmax(Z, axis=0))
    with pytest.raises(TypeError, match=r"labels: .* soft_cross_entropy takes one-hot targets"):
        js.cross_entropy(Z, jax.nn.one_hot(Y, Z.shape[-1]))
    for smoothing in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="smoothing: expected a number from 0 to 1"):
            js.mean_cross_entropy(Z, Y, smoothing=smoothing)
    with pytest.raises(ValueError, match="class_weights: expected shape"):
        js.mean_cross_entropy(Z, Y, class_weights=jnp.ones(2))
    with pytest.raises(ValueError, match="gamma: expected a number >= 0"):
        js.focal(Y + 1.0, gamma=-1)


def test_scalars_keywords_and_nothing_at_all() -> None:
    for wrong in ([0.1, 0.1, 0.1], jnp.full(2, 0.1)):
        with pytest.raises(ValueError, match="smoothing: expected a scalar, got shape"):
            js.mean_cross_entropy(Z, Y, smoothing=wrong)
        with pytest.raises(ValueError, match="gamma: expected a scalar, got shape"):
            js.focal(Y + 1.0, gamma=wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'reduction'"):
        js.mean_cross_entropy(Z, Y, reduction="sum")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dim'"):
        js.softmax(Z, dim=0)
    for name, call in {
        "logits": lambda: js.softmax(None),
        "labels": lambda: js.cross_entropy(Z, None),
        "smoothing": lambda: js.mean_cross_entropy(Z, Y, smoothing=None),
        "gamma": lambda: js.focal(Y + 1.0, gamma=None),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: expected an array, got None"):
            call()
    with pytest.raises(ValueError, match="logits: expected an array"):
        js.softmax([[1.0, 2.0], [1.0]])
    with pytest.raises(TypeError, match="labels: expected an array of numbers, got list of dtype"):
        js.cross_entropy(Z, [2**70, 0])
    js.check_labels([], 3)
    assert js.mean_cross_entropy(np.zeros((0, 3)), [], valid=[]) == 0


def test_an_ignored_row_makes_no_nan_on_the_way() -> None:
    labels = jnp.asarray([2, -100])
    with jax.debug_nans(True):
        for loss in (js.cross_entropy, js.brier, js.multiclass_hinge, js.squared_error):
            jax.grad(lambda z, loss=loss: loss(z, labels, valid=labels >= 0).sum())(Z)


def test_shards_without_axes_or_a_mesh() -> None:
    for shards, message in {
        js.Shards(): r"shards: expected a mesh axis of rows or classes, got Shards\(rows=None",
        js.Shards(classes="model"): "got 'model'; there is no mesh: set one by jax.set_mesh",
    }.items():
        with pytest.raises(ValueError, match=message):
            js.cross_entropy(Z, Y, shards=shards)


def test_errors_are_ours_alone() -> None:
    calls: list[Callable] = [
        lambda: js.cross_entropy(Z, jnp.zeros(3, int)),
        lambda: js.soft_cross_entropy(Z, jnp.zeros((2, 4))),
        lambda: js.softmax(Z, where=jnp.ones((1, 2, 3), bool)),
        lambda: js.weighted_mean(Y + 1.0, weights=jnp.ones(3)),
        lambda: js.binary_cross_entropy(Z, jnp.ones(2)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"expected (a )?shape") as error:
            call()
        assert "Chex" not in str(error.value)


# -- One program a call --


PROGRAMS: dict[str, tuple[Callable, tuple]] = {
    "log_softmax": (js.log_softmax, (Z,)),
    "cross_entropy": (js.cross_entropy, (Z, Y)),
    "mean_cross_entropy": (js.mean_cross_entropy, (Z, Y)),
    "soft_cross_entropy": (js.soft_cross_entropy, (Z, T)),
    "kl_divergence": (js.kl_divergence, (Z, T)),
    "binary_cross_entropy": (js.binary_cross_entropy, (Z, T)),
    "brier": (js.brier, (Z, Y)),
    "squared_error": (js.squared_error, (Z, T)),
    "cross_entropy_gradient": (js.cross_entropy_gradient, (Z, Y)),
    "weighted_mean": (js.weighted_mean, (Z,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_call_is_one_program_and_is_traced_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, arguments = PROGRAMS[name]
    (equation,) = jax.make_jaxpr(function)(*arguments).eqns
    assert equation.params["name"] == name
    looks = 0
    validate = validation.as_floats

    def counting(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return validate(*args)

    monkeypatch.setattr(validation, "as_floats", counting)
    function(jnp.ones((7, 3)), *(jnp.ones((7, *a.shape[1:]), a.dtype) for a in arguments[1:]))
    assert looks > 0  # a new shape is looked at
    looks = 0
    function(*arguments)
    assert looks == 0


def test_the_equations_of_a_gradient_beside_those_of_optax() -> None:
    ours = _equations(jax.grad(lambda z: js.cross_entropy(z, Y).mean()))
    theirs = _equations(
        jax.grad(lambda z: optax.softmax_cross_entropy_with_integer_labels(z, Y).mean())
    )
    assert ours <= 3.5 * theirs


def _equations(function: Callable) -> int:
    return str(jax.make_jaxpr(function)(Z)).count(" = ")
