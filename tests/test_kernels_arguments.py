"""What people pass to the fused losses: settings, masks, weights, targets, and float32 parameters.

`test_mosaic_tpu.py` and `test_mosaic_gpu.py` hold their kernels to what here takes an
implementation.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import wide
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsoftmax.kernels import (
    Tiles,
    linear_binary_cross_entropy,
    linear_binary_cross_entropy_sum,
    linear_cross_entropy,
    linear_cross_entropy_stats,
    linear_cross_entropy_sum,
    settings,
)

pytestmark = pytest.mark.usefixtures("strict", "unoptimized")

TILES = Tiles(rows=4, classes=8)
HALF = jnp.bfloat16
NAN = np.nan
SOFTMAX = (linear_cross_entropy, linear_cross_entropy_stats, linear_cross_entropy_sum)
SIGMOID = (linear_binary_cross_entropy, linear_binary_cross_entropy_sum)
SUMS = (linear_cross_entropy_sum, linear_binary_cross_entropy_sum)
every = pytest.mark.parametrize("function", SOFTMAX + SIGMOID, ids=lambda f: f.__name__)
both_sigmoids = pytest.mark.parametrize("function", SIGMOID, ids=lambda f: f.__name__)


@pytest.fixture(params=("xla_chunked", "reference"))
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


def given(function: Callable, n: int = 4) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features, weights of the model, and labels or targets."""
    rng = np.random.default_rng(n)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((n, 3), (3, 5)))
    truth = rng.integers(0, 5, n) if function in SOFTMAX else rng.random((n, 5)) < 0.5
    return x, w, jnp.asarray(truth)


def same(found: Any, wanted: Any) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), found, wanted)


# -- Settings --


@every
@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("rows", [0, 4])
def test_settings_are_always_checked(function: Callable, implementation: str | None, rows: int):
    x, w, truth = given(function, rows)
    run = partial(function, x, w, truth, implementation=implementation)
    for error, message, options in (
        (ValueError, "implementation: expected one of .*'bogus'", {"implementation": "bogus"}),
        (ValueError, "implementation: expected one of", {"implementation": ["reference"]}),
        (NotImplementedError, "'mosaic_tpu': it needs", {"implementation": "mosaic_tpu"}),
        (NotImplementedError, "'mosaic_gpu': it needs", {"implementation": "mosaic_gpu"}),
        (ValueError, "softcap: expected a positive", {"softcap": -1.0}),
        (ValueError, "softcap: expected a positive", {"softcap": NAN}),
        (ValueError, "softcap: expected a positive", {"softcap": 10**400}),
        (ValueError, "softcap: expected a positive", {"softcap": 1e-60}),
        (TypeError, "softcap: expected a positive number, got True", {"softcap": True}),
        (TypeError, "softcap: expected a positive number", {"softcap": np.True_}),
        (TypeError, "softcap: expected a positive number", {"softcap": "2"}),
        (TypeError, "softcap: expected a positive number", {"softcap": np.ones(1)}),
        (TypeError, "softcap: expected a positive number", {"softcap": 1j}),
        (TypeError, "memory: expected a number of bytes.*True", {"memory": True}),
        (TypeError, "memory: expected a number of bytes", {"memory": 2.0**20}),
        (ValueError, "memory: expected a positive", {"memory": np.int64(0)}),
        (TypeError, "tiles: expected Tiles", {"tiles": (4, 8)}),
        (ValueError, "precision: expected .*'bogus'", {"precision": "bogus"}),
        (ValueError, "precision: expected .*3", {"precision": 3}),
        (TypeError, "dtype: expected a floating dtype.*int", {"dtype": int}),
        (TypeError, "dtype: expected a floating dtype", {"dtype": "bogus"}),
    ):
        with pytest.raises(error, match=message):
            run(**options)


def test_settings_of_numpy_and_jax_are_those_of_python():
    plain = {
        "softcap": 2.0, "precision": jax.lax.Precision.HIGHEST, "dtype": jnp.dtype(HALF),
        "memory": 4096, "implementation": "xla_chunked", "tiles": Tiles(4, 8),
    }  # fmt: skip
    wanted = settings.check(**plain)
    for name, value in (
        ("softcap", 2),
        ("softcap", np.float32(2)),
        ("softcap", np.array(2)),
        ("softcap", jnp.asarray(2, HALF)),
        ("precision", "highest"),
        ("precision", "float32"),
        ("dtype", "bfloat16"),
        ("dtype", HALF),
        ("memory", np.int64(4096)),
        ("memory", jnp.asarray(4096)),
        ("implementation", np.str_("xla_chunked")),
        ("tiles", Tiles(np.int32(4), np.int64(8))),
    ):
        found = settings.check(**plain | {name: value})
        assert found == wanted, (name, value)
        assert type(getattr(found, name)) is type(plain[name])


def test_softcap_is_known_when_the_program_is_compiled():
    run = partial(linear_cross_entropy, *given(linear_cross_entropy))
    same(run(softcap=np.float16(2)), run(softcap=2.0))
    with pytest.raises(TypeError, match="softcap: expected a positive number that is known"):
        jax.jit(lambda c: run(softcap=c))(2.0)
    with pytest.raises(TypeError, match="memory: expected a number of bytes that is known"):
        jax.jit(lambda c: run(memory=c))(2)


@every
def test_a_call_is_one_program(function: Callable):
    # Eagerly, each operation outside of it would be a dispatch of its own.
    x, w, truth = given(function)
    how = {"bias": np.ones(5, np.float32), "where": [True] * 5, "valid": [1, 0, 1, 1]}
    run = partial(function, softcap=np.float32(2), memory=np.int64(4096), dtype="bfloat16", **how)
    found = jax.make_jaxpr(run)(x, w, truth)
    assert len(found.eqns) == 1


# -- Arrays --


@every
def test_what_is_not_one_array_is_refused_by_name(function: Callable):
    x, w, truth = given(function)
    loss = linear_cross_entropy(*given(linear_cross_entropy))
    third = "labels" if function in SOFTMAX else "targets"
    names = ["x", "w", third, "bias", "where", "valid"]
    names += ["weights"] * (function in SUMS) + ["pos_weight"] * (function in SIGMOID)
    for name in names:
        arrays = {"x": x, "w": w, third: truth} | {name: loss}
        with pytest.raises(TypeError, match=rf"^{name}: expected one array, got LinearLoss.*\.nll"):
            function(**arrays)


@every
def test_errors_are_one_line_in_our_words(function: Callable):
    x, w, truth = given(function)
    for bad in (
        lambda: function(x[:, :2], w, truth),
        lambda: function(x, w, truth[:3]),
        lambda: function(x, w, truth, bias=w),
        lambda: function(x, w, truth, valid=jnp.ones(3, bool)),
        lambda: function(x, w, truth, where=jnp.ones(4, bool)),
    ):
        with pytest.raises(ValueError, match=r"^[a-z]+: expected .*got") as caught:
            bad()
        assert "Chex" not in str(caught.value)
        assert "\n" not in str(caught.value)


@every
def test_kinds_of_valid(function: Callable):
    x, w, truth = given(function)
    run = partial(function, x, w, truth)
    wanted = run(valid=jnp.array([True, False, True, True]))
    for valid in ([1, 0, 1, 1], np.array([1, 0, 1, 1], np.uint8), jnp.array([3, 0, 1, -1])):
        same(run(valid=valid), wanted)
    same(run(valid=True), run())
    same(run(valid=np.ones(1, int)), run())
    with pytest.raises(TypeError, match="valid: expected bools, or integers"):
        run(valid=jnp.ones(4))


@pytest.mark.parametrize("function", SUMS, ids=lambda f: f.__name__)
def test_kinds_of_weights(function: Callable):
    x, w, truth = given(function)
    run = partial(function, x, w, truth)
    wanted = run(weights=jnp.array([1.0, 0.0, 1.0, 1.0]))
    for weights in ([1, 0, 1, 1], np.array([True, False, True, True]), jnp.array([1, 0, 1, 1])):
        same(run(weights=weights), wanted)
    same(run(weights=2), 2 * run())
    same(run(weights=np.float64(0.5)), 0.5 * run())
    # As `weighted_mean` has it: a leading part of the shape, never a trailing one.
    wide = partial(function, x.reshape(2, 2, 3), w, truth.reshape(2, 2, *truth.shape[1:]))
    same(wide(weights=jnp.array([1, 3])), run(weights=jnp.array([1, 1, 3, 3])))
    with pytest.raises(ValueError, match="weights: expected shape"):
        run(weights=jnp.ones((4, 1)))


@both_sigmoids
def test_kinds_of_targets_and_positive_weights(function: Callable):
    x, w, targets = given(function)
    run = partial(function, x, w)
    wanted = run(targets, pos_weight=jnp.full(5, 2.0))
    for kind in (np.uint8, np.int64, np.float16, np.float64):
        same(run(np.asarray(targets, kind), pos_weight=2), wanted)
    for one in (1, True, 1.0, np.int64(1)):
        same(run(one), run(jnp.ones((4, 5))))
    same(run(targets, pos_weight=np.array([True] * 5)), run(targets))
    for wrong in (targets[0], targets[:, :1]):
        with pytest.raises(ValueError, match="targets: expected shape"):
            run(wrong)


def test_which_labels_count(implementation: str, **options: Any):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((5, 3), (3, 9)))
    targets = jnp.asarray(rng.integers(0, 2, (5, 9)))
    each = np.asarray(rng.random((5, 9)) < 0.7)
    each[3] = False
    bad = x.at[3].set(NAN)  # no label of it counts

    for function in SIGMOID:

        def run(x, w, function=function, **which):
            how = {"tiles": TILES, "implementation": implementation} | options | which
            return jnp.sum(function(x, w, targets, **how))

        both = jax.value_and_grad(run, (0, 1))
        wanted = both(x, w, where=each)
        assert np.isfinite(wanted[0])
        np.testing.assert_array_equal(wanted[1][0][3], 0)
        for which in ({"valid": each}, {"valid": each.astype(np.int32)}, {"where": each}):
            same(both(bad, w, **which), wanted)
        some = np.arange(9) % 2 == 0
        same(both(bad, w, where=some, valid=each), both(x, w, where=some[None] & each))


@both_sigmoids
def test_a_shape_that_fits_both_is_of_examples(function: Callable):
    x, w, targets = given(function, 5)
    valid = jnp.array([True, True, False, True, False])
    same(function(x, w, targets, valid=valid), function(x, w, targets, valid=valid[:, None]))
    # One for each label where it is no shape of the examples.
    part = partial(function, x[:4], w, targets[:4])
    same(part(valid=valid), part(where=valid))
    with pytest.raises(ValueError, match="valid: expected"):
        part(valid=jnp.ones(3, bool))


@pytest.mark.parametrize("function", SOFTMAX, ids=lambda f: f.__name__)
def test_features_of_a_row_without_classes_are_not_looked_at(function: Callable):
    x, w, labels = given(function)
    where = np.ones((4, 5), bool)
    where[2] = False

    def run(w, x):
        found = function(x, w, labels, where=where, tiles=TILES)
        return jnp.sum(found if function in SUMS else found.nll)

    same(jax.grad(run)(w, x.at[2].set(NAN)), jax.grad(run)(w, x))


@pytest.mark.parametrize("kind", [np.float32, HALF, np.float16], ids=str)
def test_targets_beside_the_unit_interval(implementation: str, kind: type, **options: Any):
    eps = float(jnp.finfo(kind).eps)
    inside = np.array([[0, 1, 0.5, 1, 0, 1, 0, 0.25]] * 4)
    near, far = inside.copy(), inside.copy()
    near[:, 1], near[:, 3], near[:, 4] = 1 + eps, 1 + 4 * eps, -eps
    far[0, 0], far[1, 1], far[2, 7] = -5 * eps, 1 + 6 * eps, NAN
    rng = np.random.default_rng(3)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 8), (8, 8)))
    for function in SIGMOID:

        def run(x, w, targets, function=function):
            how = {"tiles": TILES, "implementation": implementation} | options
            return jnp.sum(function(x, w, jnp.asarray(targets, kind), **how))

        both = jax.jit(jax.value_and_grad(run, (0, 1)))
        jax.tree.map(np.testing.assert_array_equal, both(x, w, near), both(x, w, inside))
        _, (dx, _) = both(x, w, far)
        assert np.isnan(dx[:3]).any(1).all()
        assert np.isfinite(dx[3]).all()
    rows = linear_binary_cross_entropy(
        x, w, jnp.asarray(far, kind), tiles=TILES, implementation=implementation, **options
    )
    np.testing.assert_array_equal(np.isnan(rows), [True, True, True, False])


# -- The dtype of the products --


def rounded(a: jax.Array) -> np.ndarray:
    """As an operand of products in bfloat16, in extended precision."""
    return wide(a.astype(HALF))


def parameters(kind: type) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features of a kind, w in float32 with the same logit for each of 16 classes, and labels.

    The gradient in the logits is 1/16 or -15/16 and loses nothing in bfloat16, so what is left is
    the rounding of the sums.
    """
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.standard_normal((48, 8)), kind)
    w = jnp.tile(jnp.asarray(rng.standard_normal((8, 1)), jnp.float32), (1, 16))
    return x, w, jnp.asarray(rng.integers(0, 16, 48), jnp.int32)


def scalars(truth: jax.Array, **options: Any) -> dict[str, Callable]:
    """A function of x, w and bias for each loss."""

    def each(function: Callable, x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
        targets = truth if function in SOFTMAX else jax.nn.one_hot(truth, w.shape[1])
        found = function(x, w, targets, bias=bias, **options)
        return jnp.sum(found[0] if isinstance(found, tuple) else found)

    return {f.__name__: partial(each, f) for f in SOFTMAX + SIGMOID}


@pytest.mark.parametrize("kind", [HALF, np.float32], ids=str)
def test_gradients_of_float32_parameters_are_not_rounded(implementation: str, kind: type):
    x, w, labels = parameters(kind)
    options = {"dtype": HALF, "tiles": TILES, "implementation": implementation}
    lse = linear_cross_entropy(x, w, labels, **options).lse
    z = (rounded(x) @ rounded(w))[:, 0]
    np.testing.assert_allclose(lse, (z + np.log(16)).astype(float), rtol=2e-6)
    hot = np.asarray(jax.nn.one_hot(labels, 16), np.longdouble)
    for name, function in scalars(labels, **options).items():
        flat = w if "binary" not in name else jnp.zeros_like(w)
        p = 0.5 if "binary" in name else 1 / 16
        given = x, flat, jnp.zeros(16)
        found = jax.jit(jax.grad(function, (0, 1, 2)))(*given)
        assert [g.dtype for g in found] == [a.dtype for a in given], name
        exact = rounded(x).T @ (p - hot)
        size = np.abs(exact).max()
        np.testing.assert_allclose(found[1], exact.astype(float), rtol=0, atol=1e-6 * size)
        np.testing.assert_allclose(found[2], (p - hot).sum(0).astype(float), atol=1e-5)
        assert np.abs(found[1] - exact.astype(HALF).astype(float)).max() > 1e-4 * size, name


@pytest.mark.parametrize("name", ["linear_cross_entropy_stats", "linear_binary_cross_entropy_sum"])
def test_derivatives_of_float32_parameters(name: str):
    x, w, labels = parameters(np.float32)
    w, bias = w * jnp.linspace(-0.5, 0.5, 16)[None, :], jnp.sin(jnp.arange(16.0))
    v = jax.tree.map(
        lambda a: jnp.cos(jnp.linspace(0.0, 9.0, a.size).reshape(a.shape)), (x, w, bias)
    )

    def run(implementation: str) -> dict:
        options = {"dtype": HALF, "tiles": Tiles(20, 8), "implementation": implementation}
        f = scalars(labels, **options)[name]
        grad = jax.grad(f, (0, 1, 2))
        some = scalars(labels[:1], **options)[name]
        shared = jax.vmap(some, (0, None, None))
        return {
            "jvp": jax.jvp(f, (x, w, bias), v)[1],
            "grad": grad(x, w, bias),
            "Hessian product": jax.jvp(grad, (x, w, bias), v)[1],
            "vmap of grad": jax.vmap(grad, (None, 0, 0))(x, w[None], bias[None]),
            "grad of vmap": jax.grad(lambda w: jnp.sum(shared(x[:, None], w, bias)))(w),
        }

    found, wanted = (jax.jit(partial(run, i))() for i in ("xla_chunked", "reference"))
    for what, want in wanted.items():
        for a, b in zip(jax.tree.leaves(found[what]), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype == jnp.float32
            size = float(jnp.max(jnp.abs(b)))
            np.testing.assert_allclose(a, b, rtol=0, atol=6e-3 * size, err_msg=what)
    # Lanes that share w: by the automatic transpose, which must not round to bfloat16 either.
    for gradient in (found["grad of vmap"], wanted["grad of vmap"]):
        assert np.abs(gradient - gradient.astype(HALF).astype(jnp.float32)).max() > 1e-4
    # A change along tangents is what the gradient says, for neither is rounded.
    for derivatives in (found, wanted):
        along = sum(jnp.vdot(g, t) for g, t in zip(derivatives["grad"], v, strict=True))
        terms = zip(derivatives["grad"], v, strict=True)
        scale = sum(jnp.vdot(jnp.abs(g), jnp.abs(t)) for g, t in terms)
        np.testing.assert_allclose(derivatives["jvp"], along, rtol=0, atol=float(2e-4 * scale))


@pytest.mark.parametrize("function", SUMS + SOFTMAX[:1], ids=lambda f: f.__name__)
def test_products_of_float32_parameters_are_half(function: Callable):
    x, w, labels = parameters(HALF)
    loss = scalars(labels, dtype=HALF, tiles=Tiles(16, 8))[function.__name__]
    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, w, jnp.zeros(16)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(lines) >= 3
    for line in lines:
        assert re.findall(r"tensor<[0-9x]*x(\w+)>", line) == ["bf16", "bf16", "f32"]


def test_memory_of_float32_parameters():
    # A user's own cast has a gradient in bfloat16 beside the sums, and one more of the result.
    x = jax.ShapeDtypeStruct((256, 512), HALF)
    w = jax.ShapeDtypeStruct((512, 32_768), jnp.float32)
    labels = jax.ShapeDtypeStruct((256,), jnp.int32)

    def used(loss: Callable) -> int:
        program = jax.jit(jax.grad(loss, 1)).lower(x, w, labels).compile()
        return program.memory_analysis().temp_size_in_bytes

    for function in (
        linear_cross_entropy_sum,
        lambda *a, **k: jnp.sum(linear_cross_entropy(*a, **k).nll),
    ):
        here = used(partial(function, dtype=HALF))
        cast = used(lambda x, w, y, function=function: function(x, w.astype(HALF), y))
        assert here <= cast + 4 * 512 * 32_768, (here, cast)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=lambda k: k.name)
def test_float32_parameters_on_a_mesh(kind: AxisType):
    x, w, labels = parameters(HALF)
    mesh = jax.make_mesh((2,), ("rows",), (kind,))
    row = NamedSharding(mesh, P("rows"))
    for name, function in scalars(labels, dtype=HALF, tiles=Tiles(16, 8)).items():
        shared = scalars(jax.device_put(labels, row), dtype=HALF, tiles=Tiles(16, 8))[name]
        wanted = jax.jit(jax.grad(function, (0, 1)))(x, w, jnp.zeros(16))
        found = jax.jit(jax.grad(shared, (0, 1)))(jax.device_put(x, row), w, jnp.zeros(16))
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == b.dtype
            size = float(jnp.max(jnp.abs(b)).astype(float))
            atol = (1e-6 if a.dtype == jnp.float32 else 4e-3) * size
            np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=0, atol=atol)


def test_the_dtype_of_products_may_be_wider():
    x, w, labels = parameters(HALF)
    wide = linear_cross_entropy(x, w.astype(HALF), labels, dtype="float32").lse
    np.testing.assert_allclose(wide, linear_cross_entropy(x, w, labels, dtype=HALF).lse, rtol=1e-6)
    dx, dw = jax.grad(
        lambda x, w: linear_cross_entropy_sum(x, w, labels, dtype=np.float32), (0, 1)
    )(x, w.astype(HALF))
    assert (dx.dtype, dw.dtype) == (HALF, HALF)
