"""Losses: exact values and gradients, what bad values mean, and every transformation of JAX."""

from collections.abc import Callable
from functools import cache, partial

import adversaries
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import ways
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from oracles import assert_ulps

import jaxsoftmax as js

pytestmark = pytest.mark.usefixtures("strict")

LABELLED = {
    "cross_entropy": js.cross_entropy,
    "brier": js.brier,
    "multiclass_hinge": js.multiclass_hinge,
}
TARGETED = {"soft_cross_entropy": js.soft_cross_entropy, "kl_divergence": js.kl_divergence}
INF, NAN = np.inf, np.nan


def value_and_gradient(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, *, axis: int
) -> dict[str, jax.Array]:
    """Cross-entropy's values by row and its gradient, from one pass as training runs it."""

    def total(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = js.cross_entropy(z, labels, axis=axis, where=where)
        return values.sum(), values

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return {"value": values, "gradient": gradient}


def plain_value(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, *, axis: int
) -> dict[str, jax.Array]:
    """The value without a gradient, which may be computed another way."""
    return {"value": js.cross_entropy(logits, labels, axis=axis, where=where)}


@cache
def truth(classes: int, dtype: type, kind: str, masked: bool = False) -> dict[str, np.ndarray]:
    logits = adversaries.logits(classes, dtype)
    where = adversaries.where(classes, logits.shape) if masked else None
    labels = chosen_labels(classes, dtype, kind, masked)
    return {
        "value": oracles.cross_entropy(logits, labels, where),
        "gradient": oracles.cross_entropy_gradient(logits, labels, where),
    }


@cache
def chosen_labels(classes: int, dtype: type, kind: str, masked: bool = False) -> np.ndarray:
    logits = adversaries.logits(classes, dtype)
    if masked:
        logits = np.where(adversaries.where(classes, logits.shape), logits, -np.inf)
    if kind != "mixed":
        return adversaries.labels(kind, logits)
    every = np.stack([adversaries.labels(each, logits) for each in adversaries.LABELS])
    return every[np.arange(len(logits)) % len(every), np.arange(len(logits))]


def assert_exact(found: dict, true: dict[str, np.ndarray], dtype: type) -> None:
    for name, got in found.items():
        assert got.dtype == dtype
        assert_ulps(got, true[name])


# -- Exactness --


def test_confident_example() -> None:
    # log1p(exp(-20)): optax, torch and jax.nn say 0.
    value, gradient = jax.value_and_grad(js.cross_entropy)(jnp.asarray([20.0, 0.0]), jnp.int32(0))
    np.testing.assert_array_max_ulp(value, np.float32(2.0611536e-09), 2)
    np.testing.assert_array_max_ulp(gradient, np.float32([-2.0611536e-09, 2.0611536e-09]), 2)


@pytest.mark.parametrize(("classes", "way"), ways.COMMON_CASES, ids=ways.name_of)
def test_cross_entropy_is_exact(classes: int, way: Callable, dtype: type) -> None:
    if dtype is np.float64 and classes in (3, 127, 128, 129, 100_000):
        pytest.skip("float32 covers this number of classes")
    logits = jnp.asarray(adversaries.logits(classes, dtype))
    labels = jnp.asarray(chosen_labels(classes, dtype, "mixed"))
    true = truth(classes, dtype, "mixed")
    assert_exact(way(value_and_gradient, logits, labels, None), true, dtype)
    if way is ways.jit:
        assert_exact(way(plain_value, logits, labels, None), true, dtype)


@pytest.mark.parametrize("classes", [257, 1009])
def test_numbers_of_classes_without_a_block(classes: int) -> None:
    # No divisor from 32 to 256: the sum is XLA's own, and one or two classes ahead of exact ties
    # are what it rounds worst.
    rng = np.random.default_rng(0)
    rows = np.arange(400)
    ties = rng.uniform(-10, 2, (400, 1)) * rng.choice([0.1, 1], (400, 1))
    logits = np.repeat(ties, classes, 1)
    for _ in range(2):
        logits[rows, rng.integers(classes, size=400)] = ties[:, 0] + rng.uniform(0, 14, 400)
    logits = np.vstack([logits, adversaries.logits(classes, np.float32)]).astype(np.float32)
    labels = rng.integers(0, classes, len(logits))
    labels[::2] = logits[::2].argmax(-1)
    found = ways.jit(value_and_gradient, jnp.asarray(logits), jnp.asarray(labels), None)
    assert_ulps(found["value"], oracles.cross_entropy(logits, labels), limit=9)
    slope = oracles.cross_entropy_gradient(logits, labels)
    assert_ulps(found["gradient"], slope, limit=9)


def test_value_alone_of_a_large_array_goes_block_by_block() -> None:
    shape = (1, 131, 65_537)  # 131 rows make no whole number of blocks
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 8, shape).astype(np.float32)
    labels = rng.integers(0, shape[-1], shape[:-1])
    labels[0, ::3] = logits[0, ::3].argmax(-1)
    labels[0, 5] = shape[-1]
    valid = rng.random(shape[:-1]) < 0.9
    valid[0, 5] = True

    program = jax.jit(js.cross_entropy).lower(logits, labels, valid=valid).compile()
    found = np.asarray(program(logits, labels, valid=valid))
    usual = valid & (labels < shape[-1])
    assert_ulps(found[usual], oracles.cross_entropy(logits, np.where(usual, labels, 0))[usual])
    assert np.all(found[~valid] == 0)
    assert np.isnan(found[0, 5])
    if jax.default_backend() == "cpu":
        assert program.memory_analysis().temp_size_in_bytes < logits.nbytes / 4


@pytest.mark.parametrize("kind", adversaries.LABELS)
@pytest.mark.parametrize("classes", [2, 10, 500, 1000])
def test_cross_entropy_is_exact_for_labels_of_each_kind(classes: int, kind: str) -> None:
    logits = jnp.asarray(adversaries.logits(classes, np.float32))
    labels = jnp.asarray(chosen_labels(classes, np.float32, kind))
    found = ways.eager(value_and_gradient, logits, labels, None)
    assert_exact(found, truth(classes, np.float32, kind), np.float32)


@pytest.mark.parametrize("way", [*ways.COMMON, ways.alone, *ways.AXES], ids=lambda w: w.__name__)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "where"])
def test_cross_entropy_is_exact_in_every_way(masked: bool, way: Callable, dtype: type) -> None:
    if dtype is np.float64 and (not masked or way not in (ways.jit, ways.first_axis)):
        pytest.skip("how axes are moved does not depend on the dtype")
    classes = 500
    logits = jnp.asarray(adversaries.logits(classes, dtype))
    where = jnp.asarray(adversaries.where(classes, logits.shape)) if masked else None
    labels = jnp.asarray(chosen_labels(classes, dtype, "mixed", masked))
    true = truth(classes, dtype, "mixed", masked)
    assert_exact(way(value_and_gradient, logits, labels, where), true, dtype)
    assert_exact(way(plain_value, logits, labels, where), true, dtype)


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"]
)
def test_binary_cross_entropy_is_exact(transform: Callable, dtype: type) -> None:
    if dtype is np.float64 and transform is not jax.jit:
        pytest.skip("float32 covers this way")
    scalars = adversaries.scalars(dtype)
    for weights in (None, np.array([0, 0.3, 70], dtype)):
        rows = 2 if weights is None else 2 * len(weights)
        z = np.broadcast_to(scalars, (rows, len(scalars)))
        targets = np.broadcast_to(np.arange(rows, dtype=dtype)[:, None] % 2, z.shape)
        pos_weight = None if weights is None else np.repeat(weights, 2)[:, None]
        assert_binary_is_exact(z, targets, pos_weight, transform)


def assert_binary_is_exact(
    z: np.ndarray, targets: np.ndarray, pos_weight: np.ndarray | None, transform: Callable
) -> None:
    weight = np.ones_like(z) if pos_weight is None else np.broadcast_to(pos_weight, z.shape)

    def loss(z: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
        return js.binary_cross_entropy(z, t, pos_weight=None if pos_weight is None else w)

    def total(z: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
        return loss(z, t, w).sum()

    wide = weight.astype(oracles.extended)
    true = oracles.binary_cross_entropy(z, targets, wide)
    slope = oracles.binary_cross_entropy_gradient(z, targets, wide)
    # The promise holds where the loss without its weight is a normal number: 70 times a subnormal
    # one, which the CPU takes for 0, would be normal again.
    tiny = np.maximum(1, weight) * np.finfo(z.dtype).tiny
    found = transform(loss)(z, targets, weight), transform(jax.grad(total))(z, targets, weight)
    for got, exact in zip(found, (true, slope), strict=True):
        counted = (np.abs(exact) >= tiny) | (exact == 0) | (weight == 1)
        assert_ulps(np.asarray(got)[counted], exact[counted])
        assert np.all(np.abs(np.asarray(got)) <= tiny, where=~counted)


def distributions(batch: np.ndarray) -> np.ndarray:
    """Targets for each row: smooth, sparse, one-hot, and close to the prediction itself."""
    rng = np.random.default_rng(11)
    rows, classes = batch.shape
    t = rng.dirichlet(np.ones(classes), rows)
    t[1::4] = np.where(rng.random(t[1::4].shape) < 0.5, 0, t[1::4])
    t[2::4] = np.eye(classes)[rng.integers(0, classes, len(t[2::4]))]
    return np.where(np.isneginf(batch), 0, t).astype(batch.dtype)


TRANSFORMS = {"eager": lambda f: f, "jit": jax.jit, "vmap": lambda f: jax.jit(jax.vmap(f))}
FEW_CASES = [(2, "jit"), (10, "eager"), (10, "jit"), (10, "vmap"), (1000, "jit")]


@pytest.mark.parametrize(("classes", "transform"), FEW_CASES)
def test_sums_of_both_signs_are_exact_to_their_largest_term(
    classes: int, transform: str, dtype: type
) -> None:
    run = TRANSFORMS[transform]
    logits = adversaries.logits(classes, dtype)
    # Terms whose log p is itself beyond the dtype (-3e38 beside 3e38) have no finite form.
    logits = logits[(np.ptp(np.where(np.isneginf(logits), 0, logits / 2), -1) < logits.max() / 2)]
    targets = distributions(logits)
    z, t = jnp.asarray(logits), jnp.asarray(targets)
    for name in ("soft_cross_entropy", "kl_divergence"):
        true, largest = getattr(oracles, name)(logits, targets)
        assert_ulps(run(TARGETED[name])(z, t), true, scale=largest)
    slope, largest = oracles.soft_cross_entropy_gradient(logits, targets)
    assert_ulps(run(soft_slope)(z, t), slope, scale=largest)


def soft_slope(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.grad(lambda z: js.soft_cross_entropy(z, targets).sum())(logits)


@pytest.mark.parametrize(("classes", "transform"), FEW_CASES)
def test_entropy_and_brier_are_exact(classes: int, transform: str, dtype: type) -> None:
    run = TRANSFORMS[transform]
    logits = adversaries.logits(classes, dtype)
    labels = chosen_labels(classes, dtype, "mixed")
    # A confident row's entropy is 90 times its small probabilities, which count where normal.
    lost = oracles.entropy_of_subnormals(logits, dtype)
    scale = lost / np.finfo(dtype).eps
    assert_ulps(run(js.entropy)(jnp.asarray(logits)), oracles.entropy(logits), scale=scale)
    got = run(js.brier)(jnp.asarray(logits), jnp.asarray(labels))
    assert_ulps(got, oracles.brier(logits, labels))


@pytest.mark.parametrize("spread", [1e-4, 1.0, 40.0])
def test_the_gradient_of_entropy_keeps_its_digits(spread: float) -> None:
    # p (d - sum p d) with d = max z - z: log p and the entropy are nearly opposite at 1e-4.
    draws = spread * np.random.default_rng(4).normal(size=(64, 37))
    logits = (3 + draws).astype(np.float32)
    z = logits.astype(oracles.extended)
    d = z.max(-1, keepdims=True) - z
    p = np.exp(-d) / np.exp(-d).sum(-1, keepdims=True)
    mean = (p * d).sum(-1, keepdims=True)
    kept = p > np.finfo(np.float32).tiny
    found = jax.jit(jax.grad(lambda z: js.entropy(z).sum()))(jnp.asarray(logits))
    error = np.abs(np.asarray(found, oracles.extended) - p * (d - mean))
    bound = 8 * np.finfo(np.float32).eps * p * (d + mean)
    assert (error <= bound)[kept].all()


def test_second_derivatives_of_entropy_are_those_of_the_formula() -> None:
    z = jnp.asarray(np.random.default_rng(5).normal(size=6), jnp.float32)

    def formula(z: jax.Array) -> jax.Array:
        return -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z))

    for derivative in (jax.hessian, lambda f: jax.jacfwd(jax.hessian(f))):
        np.testing.assert_allclose(derivative(js.entropy)(z), derivative(formula)(z), atol=1e-6)


def test_kl_divergence_near_its_minimum() -> None:
    # Value 0, from an entropy and a cross-entropy that are equal: their rounding is all that shows.
    logits = np.random.default_rng(2).standard_normal((50, 10)).astype(np.float32)
    targets = oracles.softmax(logits).astype(np.float32)
    true, largest = oracles.kl_divergence(logits, targets)
    assert_ulps(js.kl_divergence(jnp.asarray(logits), jnp.asarray(targets)), true, scale=largest)


# -- What bad values mean --


def total_and_slope(loss: Callable, logits: jax.Array, *args: object, **options: object) -> tuple:
    """Values by example, and the gradient of their sum."""
    values = loss(logits, *args, **options)
    return values, jax.grad(lambda z: loss(z, *args, **options).sum())(logits)


# One program where one by one would be several; the tests with a `transform` call it eagerly too.
compiled_total_and_slope = jax.jit(total_and_slope, static_argnums=0)

BAD = [-1, -3, 3, 4, -100, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED.keys())
def test_label_out_of_range_is_nan_for_that_example_alone(loss: Callable) -> None:
    logits = jnp.asarray([[1.0, 2.0, 0.5], [3.0, -1.0, 0.0], [0.3, 0.2, 0.1]])
    logits = jnp.tile(logits, (len(BAD), 1))
    labels = np.tile([1, 0, 2], len(BAD))
    good, good_slope = compiled_total_and_slope(loss, logits, jnp.asarray(labels))
    is_bad = np.tile([False, True, False], len(BAD))
    labels[is_bad] = BAD
    values, slope = compiled_total_and_slope(loss, logits, jnp.asarray(labels))
    np.testing.assert_array_equal(np.isnan(values), is_bad)
    np.testing.assert_array_equal(np.isnan(slope), np.stack([is_bad] * 3, 1))
    np.testing.assert_array_equal(values[~is_bad], good[~is_bad])
    np.testing.assert_array_equal(slope[~is_bad], good_slope[~is_bad])


# In rows 1 to 4, which are ignored, are targets that would poison what they touch.
PROBABILITIES = [[0.5, 0.5, 0], *[[NAN] * 3] * 4, [0, 0, 1.0]]
IGNORED = {
    **{name: (loss, jnp.asarray([1, *[-100] * 4, 2])) for name, loss in LABELLED.items()},
    **{name: (loss, jnp.asarray(PROBABILITIES)) for name, loss in TARGETED.items()},
    "squared_error": (js.squared_error, jnp.asarray([1, *[-100] * 4, 2])),
    "squared_error_on_numbers": (js.squared_error, jnp.asarray(PROBABILITIES)),
}


EAGER = ("cross_entropy", "soft_cross_entropy", "squared_error")


@pytest.mark.parametrize(
    ("name", "run"),
    [
        *((name, compiled_total_and_slope) for name in IGNORED),
        *((name, total_and_slope) for name in EAGER),
    ],
    ids=[*IGNORED, *(f"{name}-eager" for name in EAGER)],
)
def test_ignored_example_gives_zero(name: str, run: Callable) -> None:
    loss, targets = IGNORED[name]
    poisoned = [[poison, 0.0, -poison] for poison in (NAN, INF, -INF, 3e38)]
    logits = np.array([[1.0, 2.0, 0.5], *poisoned, [0.3, 0.2, 0.1]], np.float32)
    valid = np.array([True, *[False] * 4, True])
    values, slope = map(np.asarray, run(loss, jnp.asarray(logits), targets, valid=valid))
    np.testing.assert_array_equal(values[~valid], 0)
    np.testing.assert_array_equal(slope[~valid], 0)
    true, true_slope = compiled_total_and_slope(loss, logits[valid], np.asarray(targets)[valid])
    np.testing.assert_allclose(values[valid], true, rtol=1e-6)
    np.testing.assert_allclose(slope[valid], true_slope, rtol=1e-6)


def test_tangents_of_an_infinite_loss_are_the_same_inside_another_derivative_and_over_shards():
    z = jnp.array([[0.0, each, 1.0, 2.0] for each in (-INF, INF, -INF, INF)])
    dz = jnp.outer(jnp.array([2.0, 2.0, -1.0, -1.0]), jnp.array([1.0, 1.0, 0.5, 0.125]))
    t, dt = jnp.array([[0.3, 0.4, 0.1, 0.2]] * 4), jnp.array([[0.1, 0.2, 0.3, 0.4]] * 4)
    y, mesh = jnp.array([1, 0, 1, 2]), jax.make_mesh((2,), ("model",), (AxisType.Auto,))

    def smoothed(z: jax.Array, t: jax.Array, shards: js.Shards | None = None) -> jax.Array:
        how = {"smoothing": 0.1, "class_weights": t[0], "shards": shards}
        return js.smoothed_cross_entropy(z, y, **how)

    def nested(losses: list[Callable]) -> list:
        def tangents(f: Callable, z: jax.Array, t: jax.Array) -> tuple:
            return jax.jvp(lambda *a: jax.jvp(f, a, (dz, dt)), (z, t), (dz, dt))

        with jax.set_mesh(mesh):
            return jax.jit(lambda *a: [tangents(f, *a) for f in losses])(z, t)

    log_targets = partial(js.kl_divergence, log_targets=True)
    whole = nested([smoothed, js.kl_divergence, js.soft_cross_entropy, log_targets])
    over_shards = partial(partial, shards=js.Shards(classes="model"))
    sharded = nested([over_shards(f) for f in (smoothed, js.kl_divergence)])
    for (value, tangent), (inner, second) in whole + sharded:
        assert (value == INF).all()
        np.testing.assert_array_equal(inner, tangent)
        assert np.isfinite(second).all()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), sharded, whole[:2])


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_ignored_rows_of_entropy_and_labels_of_binary_losses(poison: float) -> None:
    valid = jnp.asarray([True, False])
    values, slope = total_and_slope(js.entropy, jnp.asarray([[1.0, 2], [poison, 0]]), valid=valid)
    assert values[0] > 0
    np.testing.assert_array_equal([values[1], *slope[1]], 0)
    for loss in (js.binary_cross_entropy, js.hinge):
        for target in (1.0, NAN, -3.0):
            found = total_and_slope(
                loss, jnp.asarray([0.5, poison]), jnp.asarray([1.0, target]), valid=valid
            )
            assert found[0][0] > 0
            np.testing.assert_array_equal(np.stack(found)[:, 1], 0)


def test_ignored_example_has_zero_derivative_in_its_targets() -> None:
    logits, valid = jnp.asarray([[1.0, 2.0], [NAN, NAN]]), jnp.asarray([True, False])
    targets = jnp.asarray([[0.25, 0.75], [NAN, 0.5]])
    for loss in TARGETED.values():
        slope = jax.grad(lambda t, loss=loss: loss(logits, t, valid=valid).sum())(targets)
        assert np.isfinite(slope[0]).all()
        np.testing.assert_array_equal(slope[1], 0)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_masked_rows_and_masked_labels(transform: Callable) -> None:
    logits = jnp.asarray([[-INF, -INF, -INF], [1.0, -INF, 2.0], [1.0, -INF, 2.0], [0.0, 0.0, 0.0]])
    labels = jnp.asarray([1, 1, 0, 2])
    values, slope = transform(lambda z: total_and_slope(js.cross_entropy, z, labels))(logits)
    p = oracles.softmax(np.asarray(logits))
    assert_ulps(values, np.array([0, INF, np.log1p(np.exp(oracles.extended(1))), np.log(3)]))
    np.testing.assert_array_equal(slope[0], 0)
    assert_ulps(slope[1][jnp.asarray([0, 2])], p[1][[0, 2]])
    assert np.isfinite(slope).all()
    assert slope[2, 1] == 0
    for loss in LABELLED.values():
        values, slope = transform(lambda z, loss=loss: total_and_slope(loss, z, labels))(logits)
        np.testing.assert_array_equal([values[0], *slope[0]], 0)
        assert np.isfinite(np.asarray(slope)[[2, 3]]).all()


def test_where_is_the_same_as_minus_infinity() -> None:
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.standard_normal((6, 5)), jnp.float32)
    where = jnp.asarray(rng.random((6, 5)) < 0.6).at[3].set(False)
    labels = jnp.asarray(np.asarray(where).argmax(-1))
    targets = jnp.where(where, jnp.asarray(rng.dirichlet(np.ones(5), 6), jnp.float32), 0.0)
    hidden = jnp.where(where, logits, -jnp.inf)
    poisoned = jnp.where(where, logits, jnp.nan)
    second = {**dict.fromkeys(LABELLED, labels), **dict.fromkeys(TARGETED, targets)}
    for name, loss in {**LABELLED, **TARGETED}.items():
        values, slope = compiled_total_and_slope(loss, poisoned, second[name], where=where)
        true, true_slope = compiled_total_and_slope(loss, hidden, second[name])
        np.testing.assert_array_equal(values, true, name)
        np.testing.assert_array_equal(slope, true_slope, name)
        np.testing.assert_array_equal(np.asarray(slope)[~np.asarray(where)], 0, name)
    np.testing.assert_array_equal(js.entropy(poisoned, where=where), js.entropy(hidden))
    slope = jax.grad(lambda z: js.entropy(z, where=where).sum())(poisoned)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(js.entropy(hidden)[3], 0)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_infinite_logits_share_the_mass(transform: Callable) -> None:
    logits = jnp.asarray([[INF, 0.0, INF], [INF, 0.0, INF], [INF, 5.0, -INF], [INF, INF, INF]])
    labels = jnp.asarray([0, 1, 0, 2])
    values, slope = transform(lambda z: total_and_slope(js.cross_entropy, z, labels))(logits)
    assert_ulps(values, np.array([np.log(2), INF, 0, np.log(3)]))
    third = np.float32(1 / 3)
    np.testing.assert_allclose(
        slope,
        [[-0.5, 0, 0.5], [0.5, -1, 0.5], [0, 0, 0], [third, third, -2 * third]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(js.entropy(logits), np.log([2, 2, 1, 3]), rtol=1e-6)


@pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED.keys())
def test_nan_logit_spoils_its_own_row_only(loss: Callable) -> None:
    logits = jnp.asarray([[1.0, 2.0, 0.5], [3.0, NAN, 0.0], [NAN, 0.2, -INF]])
    values, slope = total_and_slope(loss, logits, jnp.asarray([1, 0, 0]))
    np.testing.assert_array_equal(np.isnan(values), [False, True, True])
    assert np.isfinite(slope[0]).all()
    assert np.isnan(slope[1]).any()


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int4", "uint4"]


@jax.jit
def every_labelled_loss(z: jax.Array, labels: dict[str, jax.Array]) -> dict[str, list]:
    """Values and slopes of the losses with integer labels, for labels of each dtype."""
    losses = (*LABELLED.values(), js.squared_error)
    return {name: [total_and_slope(loss, z, y) for loss in losses] for name, y in labels.items()}


@pytest.mark.parametrize(
    ("classes", "names"), [(3, INTEGERS), (1000, ["int32", "int8", "uint8", "int4", "uint4"])]
)
def test_every_integer_dtype_of_labels(classes: int, names: list[str]) -> None:
    # With 1000 classes the classes' own numbers do not fit in the narrow dtypes.
    wide = np.minimum([0, 1, 2, 7, 15, 127, 255, 999], classes - 1)
    fits = {name: wide <= int(jnp.iinfo(name).max) for name in names}
    labels = {name: np.where(fits[name], wide, 2).astype(jnp.dtype(name)) for name in names}
    logits = np.random.default_rng(0).standard_normal((len(wide), classes)).astype(np.float32)
    found = jax.device_get(every_labelled_loss(logits, labels))
    for name in names:
        for (values, slope), (true, true_slope) in zip(found[name], found["int32"], strict=True):
            np.testing.assert_array_equal(values[fits[name]], true[fits[name]], name)
            np.testing.assert_array_equal(slope[fits[name]], true_slope[fits[name]], name)
            assert np.isfinite(values).all()
            assert np.isfinite(slope).all()
    assert_ulps(found["int32"][0][0], oracles.cross_entropy(logits, wide))


def test_wide_labels_do_not_wrap() -> None:
    logits = jnp.asarray([[1.0, 2.0, 3.0]] * 4)
    from_numpy = np.array([1, 2**32 + 1, -(2**32) + 1, 2**63 - 1])
    np.testing.assert_array_equal(
        np.isnan(js.cross_entropy(logits, from_numpy)), [False, True, True, True]
    )
    for bad in (2**32 - 1, 2**32 - 3, 2**31):
        assert np.isnan(js.cross_entropy(logits[0], jnp.asarray(bad, jnp.uint32)))
    with jax.enable_x64():
        labels = jnp.asarray([1, 2**32 + 1, -(2**32) + 1, 2**63 - 1], jnp.int64)
        for loss in LABELLED.values():
            values, slope = total_and_slope(loss, logits, labels)
            np.testing.assert_array_equal(np.isnan(values), [False, True, True, True])
            np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True, True, True])
        huge = jnp.asarray([2, 2**64 - 1, 2**64 - 2, 2**32 + 1], jnp.uint64)
        values = js.cross_entropy(logits, huge)
        np.testing.assert_array_equal(np.isnan(values), [False, True, True, True])


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
def test_half_precision_in_float32_out(half: jnp.dtype) -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(8 * rng.standard_normal((20, 33)), half)
    labels = jnp.asarray(rng.integers(0, 33, 20))
    targets = jnp.asarray(rng.dirichlet(np.ones(33), 20), half)
    bits = jnp.asarray(rng.integers(0, 2, (20, 33)), half)
    pairs = (
        *((loss, labels) for loss in (*LABELLED.values(), js.squared_error)),
        *((loss, targets) for loss in TARGETED.values()),
        *((loss, bits) for loss in (js.binary_cross_entropy, js.hinge)),
    )

    @jax.jit
    def run(z: jax.Array, seconds: list) -> list:
        return [total_and_slope(pair[0], z, t) for pair, t in zip(pairs, seconds, strict=True)]

    seconds = [second for _, second in pairs]
    wide = [t if t is labels else t.astype(jnp.float32) for t in seconds]
    half_and_single = run(logits, seconds), run(logits.astype(jnp.float32), wide)
    for (loss, _), (values, slope), (true, true_slope) in zip(pairs, *half_and_single, strict=True):
        assert (values.dtype, slope.dtype) == (jnp.float32, half)
        np.testing.assert_array_equal(values, true, loss.__name__)
        np.testing.assert_array_equal(slope, np.asarray(true_slope).astype(half), loss.__name__)
    assert js.entropy(logits).dtype == jnp.float32


@pytest.mark.parametrize("logits_dtype", [jnp.int32, jnp.bool_])
def test_integer_logits_are_refused_by_name(logits_dtype: jnp.dtype) -> None:
    logits = jnp.ones((2, 3), logits_dtype)
    labels, targets = jnp.zeros(2, jnp.int32), jnp.full((2, 3), 1 / 3)
    for loss in (*LABELLED.values(), js.squared_error):
        with pytest.raises(TypeError, match="logits"):
            loss(logits, labels)
    for loss in (*TARGETED.values(), js.binary_cross_entropy, js.hinge):
        with pytest.raises(TypeError, match="logits"):
            loss(logits, targets)
    with pytest.raises(TypeError, match="logits"):
        js.entropy(logits)


@pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED.keys())
def test_bad_labels_where_and_valid_are_named(loss: Callable) -> None:
    logits, labels = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    for wrong_dtype in (float, bool):
        with pytest.raises(TypeError, match="labels"):
            loss(logits, jnp.zeros(2, wrong_dtype))
    for wrong in (jnp.zeros(3, jnp.int32), jnp.zeros((2, 1), jnp.int32), jnp.int32(0)):
        with pytest.raises((ValueError, AssertionError), match="labels"):
            loss(logits, wrong)
    with pytest.raises(TypeError, match="where"):
        loss(logits, labels, where=jnp.ones((2, 3)))
    for wrong in (jnp.ones(2, bool), jnp.ones((2, 4), bool), jnp.ones((1, 2, 3), bool)):
        with pytest.raises(ValueError, match="where"):
            loss(logits, labels, where=wrong)
    with pytest.raises(TypeError, match="valid"):
        loss(logits, labels, valid=jnp.ones(2))
    with pytest.raises(ValueError, match="valid"):
        loss(logits, labels, valid=jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match="axis"):
        loss(logits, labels, axis=2)


def test_bad_targets_are_named() -> None:
    logits = jnp.zeros((2, 3))
    for loss in (*TARGETED.values(), js.binary_cross_entropy, js.hinge):
        for wrong in (jnp.zeros((2, 4)), jnp.zeros(2), jnp.zeros((1, 2, 3))):
            with pytest.raises(ValueError, match="targets"):
                loss(logits, wrong)
    for loss in TARGETED.values():
        with pytest.raises(ValueError, match="targets"):
            loss(logits, jnp.zeros(2, jnp.int32))
    for wrong in (jnp.zeros(2), jnp.zeros((2, 1)), jnp.zeros((2, 3, 1)), jnp.zeros(3, jnp.int32)):
        with pytest.raises((TypeError, ValueError), match="targets"):
            js.squared_error(logits, wrong)


def test_errors_are_raised_under_jit_too() -> None:
    with pytest.raises(TypeError, match="logits"):
        jax.jit(js.cross_entropy)(jnp.ones((2, 3), jnp.int32), jnp.zeros(2, jnp.int32))


# -- Each loss is its formula --


@pytest.mark.parametrize("weight", [None, 0.0, 2.0])
def test_binary_cross_entropy_at_infinity(weight: float | None) -> None:
    logits = jnp.asarray([INF, -INF, INF, -INF])
    targets = jnp.asarray([1.0, 0.0, 0.0, 1.0])
    pos_weight = None if weight is None else jnp.float32(weight)
    values, slope = total_and_slope(js.binary_cross_entropy, logits, targets, pos_weight=pos_weight)
    scale = 1.0 if weight is None else weight
    np.testing.assert_array_equal(values, [0, 0, INF, INF if scale else 0])
    np.testing.assert_array_equal(slope, [0, 0, 1, -scale])


def test_binary_targets_outside_the_unit_interval_are_nan() -> None:
    targets = jnp.asarray([-0.1, 1.1, NAN, 0.0, 1.0, 0.5])
    values, slope = total_and_slope(js.binary_cross_entropy, jnp.full(6, 0.3), targets)
    bad = [True, True, True, False, False, False]
    np.testing.assert_array_equal(np.isnan(values), bad)
    np.testing.assert_array_equal(np.isnan(slope), bad)


def test_binary_targets_of_any_kind_agree() -> None:
    z = jnp.asarray([[0.3, -2.0], [5.0, 0.0]])
    bits = np.array([[1, 0], [0, 1]])
    for loss in (js.binary_cross_entropy, js.hinge):
        true = loss(z, jnp.asarray(bits, jnp.float32))
        for kind in (jnp.bool_, jnp.int8, jnp.uint8, jnp.int32, jnp.bfloat16):
            np.testing.assert_array_equal(loss(z, jnp.asarray(bits, kind)), true)


def test_pos_weight_per_label() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((5, 3)).astype(np.float32)
    t = rng.random((5, 3)).astype(np.float32)
    weight = np.array([0.5, 1.0, 7.0], np.float32)
    got = js.binary_cross_entropy(jnp.asarray(z), jnp.asarray(t), pos_weight=jnp.asarray(weight))
    np.testing.assert_allclose(
        got, oracles.binary_cross_entropy(z, t, weight).astype(np.float64), rtol=1e-6
    )


def test_soft_targets_zero_times_infinity_is_zero() -> None:
    logits = jnp.asarray([[1.0, -INF, 2.0], [1.0, -INF, 2.0], [-INF] * 3])
    targets = jnp.asarray([[0.5, 0.0, 0.5], [0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    for loss in TARGETED.values():
        values, slope = total_and_slope(loss, logits, targets)
        assert np.isfinite(values[0])
        np.testing.assert_array_equal(values[1:], [INF, 0])
        assert np.isfinite(np.asarray(slope)[[0, 2]]).all()
        np.testing.assert_array_equal(slope[2], 0)


def test_soft_targets_are_not_renormalised_and_have_derivatives() -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((4, 6)).astype(np.float32)
    t = (3 * rng.dirichlet(np.ones(6), 4)).astype(np.float32)
    log_p = oracles.log_softmax(z).astype(np.float64)
    cross = jax.grad(lambda t: js.soft_cross_entropy(jnp.asarray(z), t).sum())(jnp.asarray(t))
    np.testing.assert_allclose(cross, -log_p, rtol=1e-6)
    divergence = jax.grad(lambda t: js.kl_divergence(jnp.asarray(z), t).sum())(jnp.asarray(t))
    np.testing.assert_allclose(divergence, np.log(t) + 1 - log_p, rtol=1e-5, atol=1e-5)
    for loss in (js.soft_cross_entropy, js.kl_divergence):
        slope = jax.grad(lambda z, loss=loss: loss(z, jnp.asarray(t)).sum())(jnp.asarray(z))
        true = np.exp(log_p) * t.sum(-1, keepdims=True) - t
        np.testing.assert_allclose(slope, true, rtol=1e-6, atol=1e-6)


def test_squared_error_on_labels_and_on_numbers() -> None:
    z = jnp.asarray([[0.5, 2.0, -1.0], [0.0, 0.0, 3.0]])
    labels = jnp.asarray([1, 2])
    np.testing.assert_allclose(js.squared_error(z, labels), [0.25 + 1 + 1, 4.0], rtol=1e-6)
    hot = jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(js.squared_error(z, hot), [2.25, 4.0], rtol=1e-6)
    single = jnp.asarray([[0.5], [2.0]])
    for targets in (jnp.asarray([1.0, -1.0]), jnp.asarray([[1.0], [-1.0]])):
        np.testing.assert_allclose(js.squared_error(single, targets), [0.25, 9.0], rtol=1e-6)
    np.testing.assert_allclose(
        js.squared_error(z.T, labels, axis=0), js.squared_error(z, labels), rtol=1e-6
    )
    slope = jax.grad(lambda z: js.squared_error(z, labels).sum())(z)
    np.testing.assert_allclose(slope, 2 * (z - hot), rtol=1e-6)
    assert np.isnan(js.squared_error(z, jnp.asarray([3, 2]))[0])


def test_brier_and_hinges() -> None:
    z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 2, 2])
    hot = np.eye(4)[labels]
    p = oracles.softmax(z).astype(np.float64)
    got = js.brier(jnp.asarray(z), jnp.asarray(labels))
    np.testing.assert_allclose(got, np.square(p - hot).sum(-1), rtol=1e-6)
    rival = np.where(hot == 1, -INF, z).max(-1)
    margin = np.maximum(0, 1 + rival - z[np.arange(5), labels])
    np.testing.assert_allclose(js.multiclass_hinge(jnp.asarray(z), jnp.asarray(labels)), margin,
                               rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(
        js.hinge(jnp.asarray(z), jnp.asarray(hot, jnp.float32)),
        np.maximum(0, 1 - (2 * hot - 1) * z),
        rtol=1e-6,
    )
    slope = jax.grad(lambda z: js.hinge(z, jnp.asarray([1, 1, 0, 0])).sum())
    np.testing.assert_array_equal(slope(jnp.asarray([0.5, 1.5, -0.5, -1.5])), [-1, 0, 1, 0])


def test_multiclass_hinge_without_a_rival() -> None:
    values, slope = total_and_slope(
        js.multiclass_hinge, jnp.asarray([[2.0, -INF, -INF], [2.0, 1.5, -INF]]), jnp.asarray([0, 0])
    )
    np.testing.assert_allclose(values, [0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0, 0], [-1, 1, 0]], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal(gamma: float) -> None:
    losses = np.array([0, 1e-30, 1e-9, 1e-3, 0.7, 30.0, 1e30, INF], np.float32)
    values, slope = jax.vmap(jax.value_and_grad(partial(js.focal, gamma=gamma)))(
        jnp.asarray(losses)
    )
    wide = losses.astype(oracles.extended)
    true = -np.expm1(-wide)
    assert_ulps(values, np.where(wide == 0, 0, true ** oracles.extended(gamma) * wide), limit=32)
    assert np.isfinite(slope).all()
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        rise = gamma * true ** oracles.extended(gamma - 1) * np.exp(-wide) * wide
    steep = np.where((wide == 0) | np.isinf(wide), 0, rise) + true ** oracles.extended(gamma)
    np.testing.assert_allclose(slope, steep.astype(np.float64), rtol=1e-5, atol=1e-37)


def test_focal_of_cross_entropy_is_finite_at_extremes() -> None:
    logits = jnp.asarray([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0], [20.0, 0.0]])

    def total(z: jax.Array, gamma: float) -> jax.Array:
        return js.focal(js.cross_entropy(z, jnp.zeros(4, jnp.int32)), gamma=gamma).sum()

    for gamma in (0.0, 0.5, 1.0, 2.0):
        assert np.isfinite(jax.grad(total)(logits, gamma)).all()
    # The second derivative in the loss is infinite at 0 for a gamma between 0 and 1.
    for gamma in (0.0, 1.0, 2.0):
        slope = jax.grad(partial(total, gamma=gamma))
        assert np.isfinite(jax.jvp(slope, (logits,), (logits / 1e4,))[1]).all()


# -- weighted_mean and check_labels --


def test_weighted_mean_has_the_documented_denominator() -> None:
    values = jnp.asarray([1.0, 2.0, 6.0])
    valid, weights = jnp.asarray([True, False, True]), jnp.asarray([1.0, 5.0, 3.0])
    assert js.weighted_mean(values) == 3
    assert js.weighted_mean(values, valid=valid) == 3.5
    np.testing.assert_allclose(js.weighted_mean(values, weights=weights), 29 / 9, rtol=1e-6)
    np.testing.assert_allclose(js.weighted_mean(values, valid=valid, weights=weights), 19 / 4)
    slope = jax.grad(partial(js.weighted_mean, valid=valid, weights=weights))(values)
    np.testing.assert_allclose(slope, [0.25, 0, 0.75])
    # A leading part of the shape: every label of an example counts alike.
    table = jnp.asarray([[1.0, 3.0], [5.0, 7.0]])
    np.testing.assert_allclose(js.weighted_mean(table, weights=jnp.asarray([1.0, 3.0])), 5.0)
    np.testing.assert_allclose(js.weighted_mean(table, valid=jnp.asarray([False, True])), 6.0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_weighted_mean_ignores_what_has_no_weight(bad: float) -> None:
    values = jnp.asarray([1.0, bad, 3.0])
    weights, valid = jnp.asarray([1.0, 0.0, 1.0]), jnp.asarray([True, False, True])
    for options in ({"weights": weights}, {"valid": valid}, {"valid": valid, "weights": weights}):
        mean, slope = jax.value_and_grad(partial(js.weighted_mean, **options))(values)
        assert mean == 2
        np.testing.assert_array_equal(slope, [0.5, 0, 0.5])


def test_weighted_mean_of_nothing_is_zero() -> None:
    values = jnp.asarray([NAN, 2.0])
    for options in ({"weights": jnp.zeros(2)}, {"valid": jnp.zeros(2, bool)}):
        mean, slope = jax.value_and_grad(partial(js.weighted_mean, **options))(values)
        assert mean == 0
        np.testing.assert_array_equal(slope, 0)
    assert js.weighted_mean(jnp.zeros(0)) == 0


def test_weighted_mean_accumulates_in_float32() -> None:
    values = jnp.ones(5000, jnp.bfloat16)
    mean = js.weighted_mean(values)
    assert mean.dtype == jnp.float32
    assert mean == 1


def test_weighted_mean_names_bad_shapes() -> None:
    values = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="weights"):
        js.weighted_mean(values, weights=jnp.zeros(3))
    with pytest.raises(ValueError, match="valid"):
        js.weighted_mean(values, valid=jnp.zeros((2, 4), bool))
    with pytest.raises(TypeError, match="valid"):
        js.weighted_mean(values, valid=jnp.zeros(2))


def test_check_labels_names_the_first_bad_one() -> None:
    js.check_labels(jnp.asarray([0, 2, 1]), 3)
    js.check_labels(np.array([[0], [2]]), 3)
    with pytest.raises(ValueError, match=r"3.*\b2\b|\b2\b.*3") as caught:
        js.check_labels(jnp.asarray([0, 1, 3, -1]), 3)
    assert "labels" in str(caught.value)
    assert "-1" not in str(caught.value)
    with pytest.raises(ValueError, match="-7"):
        js.check_labels(np.array([[0, 1], [-7, 9]]), 3)
    valid = jnp.asarray([True, False])
    js.check_labels(jnp.asarray([0, -100]), 3, valid=valid)
    with pytest.raises(ValueError, match="9"):
        js.check_labels(jnp.asarray([9, -100]), 3, valid=valid)
    with pytest.raises(ValueError, match=str(2**40)):
        js.check_labels(np.array([0, 2**40]), 3)
    with pytest.raises(TypeError, match="labels"):
        js.check_labels(jnp.asarray([0.0]), 3)
    with pytest.raises(TypeError, match=r"num_classes: expected an integer, got 3\.0"):
        js.check_labels(jnp.asarray([0]), 3.0)
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        js.check_labels(jnp.asarray([0]), 0)


# -- Transformations --

EXTREME = np.array(
    [[20, 0, -3], [1e4, 0, 0], [-1e4, 1e4, 3], [3e38, 3e38, 0], [-INF, 0, 1], [0, 0, 0]], np.float32
)
EXTREME_LABELS = np.array([0, 0, 0, 1, 2, 1], np.int32)


def batch_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    return js.cross_entropy(z, y).sum()


def hessian(f: Callable, z: jax.Array, y: jax.Array) -> jax.Array:
    return jax.vmap(jax.hessian(f))(z, y)


def scanned(z: jax.Array, y: jax.Array) -> jax.Array:
    def add(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + js.cross_entropy(*row), None

    return jax.lax.scan(add, jnp.float32(0), (z, y))[0]


def through_jacobian(z: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.diagonal(jax.jacfwd(js.cross_entropy)(z, y)).T


def through_jvp(z: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient, one direction at a time."""

    def slope(direction: jax.Array) -> jax.Array:
        along = jnp.broadcast_to(direction, z.shape)
        return jax.jvp(lambda z: js.cross_entropy(z, y), (z,), (along,))[1]

    return jax.vmap(slope, out_axes=-1)(jnp.eye(z.shape[-1]))


def through_linearize(z: jax.Array, y: jax.Array) -> jax.Array:
    linear = jax.linearize(lambda z: js.cross_entropy(z, y), z)[1]
    directions = jnp.broadcast_to(jnp.eye(z.shape[-1])[:, None], (z.shape[-1], *z.shape))
    return jax.vmap(linear, out_axes=-1)(directions)


GRADIENTS = {
    "grad": jax.grad(batch_loss),
    "jit of grad": jax.jit(jax.grad(batch_loss)),
    "vmap of grad": jax.vmap(jax.grad(js.cross_entropy)),
    "grad of vmap": jax.grad(lambda z, y: jax.vmap(js.cross_entropy)(z, y).sum()),
    "checkpoint": jax.grad(jax.checkpoint(batch_loss)),
    "jit of checkpoint": jax.jit(jax.grad(jax.checkpoint(batch_loss))),
    "scan": jax.grad(scanned),
    "jacrev": lambda z, y: jnp.diagonal(jax.jacrev(js.cross_entropy)(z, y)).T,
    "jacfwd": through_jacobian,
    "jvp": through_jvp,
    "linearize": through_linearize,
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_every_transformation_gives_the_exact_gradient(name: str) -> None:
    got = GRADIENTS[name](jnp.asarray(EXTREME), jnp.asarray(EXTREME_LABELS))
    assert_ulps(got, oracles.cross_entropy_gradient(EXTREME, EXTREME_LABELS))


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_hessian_is_finite_and_right_at_extremes(outer: Callable) -> None:
    found = outer(partial(hessian, js.cross_entropy))(
        jnp.asarray(EXTREME), jnp.asarray(EXTREME_LABELS)
    )
    true = oracles.softmax_hessian(EXTREME).astype(np.float64)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, true, rtol=1e-6, atol=1e-7)


def test_third_derivatives_in_float64() -> None:
    z, labels = EXTREME[[0, 5]].astype(np.float64) / 4, EXTREME_LABELS[[0, 5]]
    with jax.enable_x64():
        got = jax.vmap(jax.jacfwd(jax.hessian(js.cross_entropy)))(
            jnp.asarray(z), jnp.asarray(labels)
        )
    p, eye = oracles.softmax(z).astype(np.float64), np.eye(3)
    for row, found in zip(p, np.asarray(got), strict=True):
        slope = np.diag(row) - np.outer(row, row)  # dp_i / dz_l
        third = eye[:, :, None] * slope[:, None, :]
        third = third - slope[:, None, :] * row[None, :, None] - row[:, None, None] * slope[None]
        np.testing.assert_allclose(found, third, rtol=1e-12, atol=1e-14)


def test_sharded_over_devices() -> None:
    devices = np.array(jax.devices("cpu")[:2])
    assert len(devices) == 2, "conftest asks for two CPU devices"
    mesh = Mesh(devices, ("rows",))
    spec = PartitionSpec("rows")
    z, y = jnp.asarray(EXTREME), jnp.asarray(EXTREME_LABELS)
    z, y = (jax.device_put(x, NamedSharding(mesh, spec)) for x in (z, y))

    def share(z: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.psum(js.cross_entropy(z, y).sum(), "rows")

    mapped = jax.shard_map(share, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec())
    true = oracles.cross_entropy_gradient(EXTREME, EXTREME_LABELS)
    assert_ulps(jax.jit(jax.grad(mapped))(z, y), true)
    assert_ulps(jax.jit(jax.grad(batch_loss))(z, y), true)
    values = jax.jit(js.cross_entropy)(z, y)
    assert_ulps(values, oracles.cross_entropy(EXTREME, EXTREME_LABELS))
    np.testing.assert_allclose(jax.jit(mapped)(z, y), values.sum(), rtol=1e-6)


def test_numerical_derivatives_in_float64() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        z = jnp.asarray(2 * rng.standard_normal((3, 4)))
        labels, targets = jnp.asarray([0, 3, 1]), jnp.asarray(rng.dirichlet(np.full(4, 9), 3))
        bits = jnp.asarray(rng.integers(0, 2, (3, 4)), float)
        where = jnp.asarray([[True, True, False, True]] * 2 + [[True] * 4])
        functions = {
            "cross_entropy": lambda z: js.cross_entropy(z, labels, where=where),
            "soft_cross_entropy": lambda z: js.soft_cross_entropy(z, targets),
            "kl_divergence": lambda z: js.kl_divergence(z, targets),
            "entropy": js.entropy,
            "brier": lambda z: js.brier(z, labels),
            "squared_error": lambda z: js.squared_error(z, labels),
            "binary_cross_entropy": lambda z: js.binary_cross_entropy(
                z, bits, pos_weight=jnp.asarray(3.0)
            ),
            "focal": lambda z: js.focal(js.cross_entropy(z, labels), gamma=2.0),
            "logsumexp": lambda z: js.logsumexp(z, where=where),
            "softmax": js.softmax,
            "log_softmax": js.log_softmax,
            "sigmoid": js.sigmoid,
            "log_sigmoid": js.log_sigmoid,
            "softplus": js.softplus,
        }
        # All at once, which is one program of each kind.
        every = jax.jit(lambda z: [function(z) for function in functions.values()])
        check_grads(every, (z,), order=2, modes=("rev",), rtol=1e-5, atol=1e-5)
        check_grads(every, (z,), order=1, modes=("fwd",), rtol=1e-5, atol=1e-5)
        both = jax.jit(lambda z, t: [loss(z, t) for loss in TARGETED.values()])
        check_grads(both, (z, targets), order=2, modes=("rev",), rtol=1e-5, atol=1e-5)


def test_leading_shapes() -> None:
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal((2, 3, 4, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 5, (2, 3, 4)))
    flat = js.cross_entropy(z.reshape(-1, 5), labels.reshape(-1))
    for axis in range(-4, 4):
        got = js.cross_entropy(jnp.moveaxis(z, -1, axis), labels, axis=axis)
        np.testing.assert_allclose(got.reshape(-1), flat, rtol=1e-6)
    assert js.cross_entropy(z[0, 0, 0], labels[0, 0, 0]).shape == ()
    none = jnp.zeros((0, 5)), jnp.zeros(0, jnp.int32)
    assert js.cross_entropy(*none).shape == (0,)
    assert js.mean_cross_entropy(*none, valid=jnp.zeros(0, bool)) == 0
    for name, loss in LABELLED.items():
        chex.assert_shape(loss(z, labels), (2, 3, 4), custom_message=name)


# -- Properties --

SHAPE = (3, 5)
moderate = arrays(np.float32, SHAPE, elements=st.floats(-80, 80, width=32))
any_logits = arrays(np.float32, SHAPE, elements=st.floats(-(2.0**100), 2.0**100, width=32))
some_labels = arrays(np.int32, SHAPE[:1], elements=st.integers(0, SHAPE[-1] - 1))
compiled = jax.jit(partial(value_and_gradient, where=None, axis=-1))
kl_divergence, soft_cross_entropy, entropy, binary, mean = map(
    jax.jit,
    (
        js.kl_divergence,
        js.soft_cross_entropy,
        js.entropy,
        js.binary_cross_entropy,
        lambda values, weights: js.weighted_mean(values, weights=weights),
    ),
)


@given(any_logits, some_labels)
def test_exact_where_hypothesis_looks(logits: np.ndarray, labels: np.ndarray) -> None:
    found = compiled(logits, labels)
    assert_ulps(found["value"], oracles.cross_entropy(logits, labels))
    assert_ulps(found["gradient"], oracles.cross_entropy_gradient(logits, labels))
    assert (np.asarray(found["value"]) >= 0).all()


@given(any_logits, some_labels)
def test_gradient_rows_sum_to_zero(logits: np.ndarray, labels: np.ndarray) -> None:
    gradient = np.asarray(compiled(logits, labels)["gradient"], np.float64)
    # Relative to the label's own entry, however small: minus the sum of the others.
    room = 1e-6 * np.abs(gradient).max(-1) + 1e-37
    assert (np.abs(gradient.sum(-1)) <= room).all()


@given(moderate, moderate)
def test_divergence_is_cross_entropy_less_entropy(mine: np.ndarray, other: np.ndarray) -> None:
    targets = np.asarray(jax.nn.softmax(other)).astype(np.float32)
    t = targets.astype(np.float64)
    own = -np.where(t == 0, 0, t * np.log(np.where(t == 0, 1, t))).sum(-1)
    cross = np.asarray(soft_cross_entropy(mine, targets), np.float64)
    divergence = np.asarray(kl_divergence(mine, targets), np.float64)
    room = 2e-6 * (cross + own) + 1e-37
    assert (np.abs(divergence - (cross - own)) <= room).all()
    # Targets that sum to 1 only to rounding can take it below 0 by that much.
    assert (divergence >= -room - np.abs(t.sum(-1) - 1)).all()


@given(any_logits)
def test_entropy_lies_between_zero_and_log_k(logits: np.ndarray) -> None:
    value = np.asarray(entropy(logits), np.float64)
    assert (value >= 0).all()
    assert (value <= np.log(SHAPE[-1]) * (1 + 1e-6)).all()


@given(moderate, arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32)))
def test_pos_weight_weighs_the_positive_part(z: np.ndarray, t: np.ndarray) -> None:
    weight = 3.5
    got = js.binary_cross_entropy(jnp.asarray(z), jnp.asarray(t), pos_weight=jnp.float32(weight))
    positive = js.binary_cross_entropy(jnp.asarray(z), jnp.ones(SHAPE))
    negative = js.binary_cross_entropy(jnp.asarray(z), jnp.zeros(SHAPE))
    t = t.astype(np.float64)
    true = weight * t * np.asarray(positive) + (1 - t) * np.asarray(negative)
    np.testing.assert_allclose(got, true, rtol=1e-6, atol=1e-37)


@given(moderate)
def test_binary_loss_is_two_class_cross_entropy(z: np.ndarray) -> None:
    pairs = jnp.stack([jnp.zeros(SHAPE), jnp.asarray(z)], -1)
    for target in (0, 1):
        true = oracles.binary_cross_entropy(z, np.float64(target))
        labels = jnp.full(SHAPE, target)
        assert_ulps(js.cross_entropy(pairs, labels), true)
        assert_ulps(binary(z, np.full(SHAPE, target, np.float32)), true)


@given(
    arrays(np.float32, 8, elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, 8, elements=st.floats(0, 10, width=32) | st.just(0.0)),
)
def test_weighted_mean_never_sees_zero_weights(values: np.ndarray, weights: np.ndarray) -> None:
    poisoned = np.where(weights == 0, np.float32(NAN), values)
    got = float(mean(poisoned, weights))
    w = weights.astype(np.float64)
    true = (w * values).sum() / w.sum() if w.sum() else 0.0
    assert got == pytest.approx(true, rel=1e-5, abs=1e-5 * float(np.abs(values).max()))


# -- Corners that a review found --


def test_a_soft_target_beside_an_infinite_logit_in_both_modes() -> None:
    z, t, v = jnp.array([jnp.inf, 0.0]), jnp.array([1.0, 0.0]), jnp.ones(2)
    for loss in (js.soft_cross_entropy, js.kl_divergence):
        assert jax.jvp(lambda z, loss=loss: loss(z, t), (z,), (v,))[1] == 0
        np.testing.assert_array_equal(jax.grad(loss)(z, t), [0, 0])


def test_weighted_mean_has_a_slope_at_weight_zero() -> None:
    def mean(w: jax.Array) -> jax.Array:
        return js.weighted_mean(jnp.array([1.0, 5.0, 3.0]), weights=w)

    np.testing.assert_allclose(jax.grad(mean)(jnp.array([1.0, 0.0, 1.0])), [-0.5, 1.5, 0.5])


def test_multiclass_hinge_of_one_class_and_of_infinities() -> None:
    one, both = jnp.array([3.0]), jnp.array([jnp.inf, jnp.inf])
    assert js.multiclass_hinge(one, 0) == 0
    assert np.isnan(js.multiclass_hinge(one, 1))
    assert js.multiclass_hinge(both, 0) == 1
    np.testing.assert_array_equal(jax.grad(js.multiclass_hinge)(jnp.ones(2), 0), [-1, 1])


def test_an_ignored_example_passes_no_tangent_on() -> None:
    z, valid = jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]), jnp.array([False, True])

    def loss(z: jax.Array) -> jax.Array:
        return js.cross_entropy(z, jnp.array([0, 1]), valid=valid)

    change = jax.jvp(loss, (z,), (z,))[1]
    assert change[0] == 0
    assert np.isfinite(change[1])


def test_a_label_whose_own_logit_is_masked() -> None:
    z, where = jnp.array([5.0, 1.0, 2.0]), jnp.array([False, True, True])
    np.testing.assert_allclose(
        js.cross_entropy_gradient(z, 0, where=where), [0, 0.26894143, 0.7310586], rtol=1e-6
    )
    by_hand = js.cross_entropy_gradient(z.at[0].set(-jnp.inf), 0)
    np.testing.assert_allclose(by_hand, [-1, 0.26894143, 0.7310586], rtol=1e-6)


@pytest.mark.parametrize("axis", [None, (0, 1), True])
def test_axis_is_one_integer(axis: object) -> None:
    with pytest.raises(TypeError, match="axis: expected one integer"):
        js.cross_entropy(jnp.ones(3), 0, axis=axis)  # type: ignore[arg-type]


def every_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """A number of each row by each function of this kind, `[losses, N]`."""
    few = jnp.full_like(z, 0.1)
    fused = js.linear_cross_entropy(z, jnp.eye(z.shape[1]), y)
    return jnp.stack(
        [
            js.cross_entropy(z, y), js.brier(z, y), js.multiclass_hinge(z, y), js.entropy(z),
            js.soft_cross_entropy(z, few), js.logsumexp(z), js.softmax(z)[:, 1],
            js.log_softmax(z)[:, 1], *fused,
        ]
    )  # fmt: skip


@jax.jit
def values_and_gradients(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, pull = jax.vjp(lambda z: every_loss(z, y), z)
    one = jnp.eye(len(values), dtype=z.dtype)[:, :, None] * jnp.ones_like(values)[None, :1]
    return values, jax.vmap(lambda cotangents: pull(cotangents)[0])(one)


# XLA's maxima of vectors lose a NaN on a CPU: from some tens of rows and classes on.
@pytest.mark.parametrize("shape", [(1, 24), (64, 96), (300, 1000)])
def test_a_nan_is_never_lost(shape: tuple[int, int]) -> None:
    labels = np.arange(shape[0], dtype=np.int32) % shape[1]
    row, others = shape[0] // 2, np.arange(shape[0]) != shape[0] // 2
    for broken in (5, labels[row], slice(None)):
        logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        logits[row, broken] = np.nan
        values, gradients = map(np.asarray, values_and_gradients(logits, labels))
        assert np.isnan(values[:, row]).all()
        assert np.isnan(gradients[:, row]).any(-1).all()
        assert np.isfinite(values[:, others]).all()
        assert np.isfinite(gradients[:, others]).all()
