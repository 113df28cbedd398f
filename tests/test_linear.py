"""The linear model: scores, gradients and second derivatives against float64, and its errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import linear
from jaxsoftmax.linear import LinearParams

pytestmark = pytest.mark.usefixtures("strict")

SHAPES = [(1, 1, 1), (5, 3, 2), (7, 4, 10), (33, 784, 10), (2, 3, 130)]


def example(rows: int, features: int, classes: int) -> tuple[LinearParams, np.ndarray]:
    rng = np.random.default_rng(rows)
    w, bias = rng.normal(size=(features, classes)), rng.normal(size=classes)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    return LinearParams(jnp.float32(w), jnp.float32(bias)), x


def magnitude(params: LinearParams, x: np.ndarray) -> np.ndarray:
    """The size of the terms of each score, of which rounding is a multiple."""
    w, bias = (abs(np.float64(a)) for a in params)
    return abs(np.float64(x)) @ w + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_logits_are_the_product(shape, wrap):
    params, x = example(*shape)
    got = wrap(linear.logits)(params, x)
    want = np.float64(x) @ np.float64(params.w) + np.float64(params.bias)
    assert got.dtype == jnp.float32
    # A sum of D + 1 terms in float32: half an ulp for each addition at the very most.
    assert np.all(abs(got - want) <= 2**-24 * (shape[1] + 2) * magnitude(params, x))


def test_any_leading_shape_and_no_bias():
    params, x = example(6, 4, 3)
    want = linear.logits(params, x)
    np.testing.assert_array_equal(linear.logits(params, x.reshape(2, 3, 4)), want.reshape(2, 3, 3))
    # One row alone is summed in another order than six.
    np.testing.assert_allclose(linear.logits(params, x[0]), want[0], rtol=0, atol=1e-6)
    without = linear.logits(LinearParams(params.w, None), x)
    np.testing.assert_allclose(without, want - params.bias[None, :], rtol=0, atol=1e-6)
    assert linear.logits(params, x[:0]).shape == (0, 3)


def test_derivatives_in_both_modes():
    params, x = example(5, 4, 3)
    tangent, _ = example(4, 4, 3)
    cotangent = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    got_tangent = jax.jvp(lambda p: linear.logits(p, x), (params,), (tangent,))[1]
    np.testing.assert_allclose(
        got_tangent, x @ np.float64(tangent.w) + np.asarray(tangent.bias), rtol=1e-5, atol=1e-6
    )
    (dw, dbias), dx = jax.vjp(linear.logits, params, jnp.asarray(x))[1](cotangent)
    np.testing.assert_allclose(dw, x.T @ np.float64(cotangent), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dbias, cotangent.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, cotangent @ np.float64(params.w).T, rtol=1e-5, atol=1e-6)

    def energy(w):
        return jnp.sum(linear.logits(LinearParams(w, params.bias), x) ** 2) / 2

    hessian = jax.hessian(energy)(params.w)
    gram = np.einsum("ni,nj,kl->ikjl", np.float64(x), np.float64(x), np.eye(3))
    np.testing.assert_allclose(hessian, gram, rtol=1e-5, atol=1e-5)


def test_vmap_over_models_is_each_model():
    _, x = example(5, 4, 3)
    models = [example(rows, 4, 3)[0] for rows in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    got = jax.vmap(linear.logits, in_axes=(0, None))(stacked, x)
    for scores, params in zip(got, models, strict=True):
        np.testing.assert_allclose(scores, linear.logits(params, x), rtol=0, atol=1e-6)


def test_dtypes_promote():
    params, x = example(3, 4, 2)
    with jax.numpy_dtype_promotion("standard"):
        assert linear.logits(params, x.astype(jnp.bfloat16)).dtype == jnp.float32
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert linear.logits(half, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.enable_x64(), jax.numpy_dtype_promotion("standard"):
        assert linear.logits(params, x.astype(np.float64)).dtype == jnp.float64


@pytest.mark.parametrize("features", [jnp.float32, jnp.bfloat16])
def test_products_in_bfloat16_keep_the_gradient_of_w_in_float32(features):
    """Mixed precision: operands are rounded, and nothing that is summed, or the optimizer's, is."""
    params, x = example(33, 40, 5)
    x = jnp.asarray(x, features)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(33, 5)), jnp.float32)

    def rounded(a):
        return np.float64(jnp.asarray(a, jnp.bfloat16))

    def mixed(params, x):
        return linear.logits(params, x, dtype=jnp.bfloat16)

    z, pull = jax.vjp(mixed, params, x)
    (dw, dbias), dx = pull(cotangent)
    assert (z.dtype, dw.dtype, dbias.dtype, dx.dtype) == (*[jnp.float32] * 3, features)
    want = rounded(x) @ rounded(params.w) + np.float64(params.bias)
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-5)
    want = rounded(x).T @ rounded(cotangent)
    np.testing.assert_allclose(dw, want, rtol=1e-5, atol=1e-5)
    assert np.max(abs(rounded(want) - want)) > 1e-3  # what a gradient in bfloat16 would be
    np.testing.assert_allclose(dbias, np.float64(cotangent).sum(0), rtol=1e-5, atol=1e-6)
    tangent = jax.tree.map(lambda a: a + 1, params)
    moved = jax.jvp(lambda p: mixed(p, x), (params,), (tangent,))[1]
    want = rounded(x) @ rounded(tangent.w) + np.float64(tangent.bias)
    np.testing.assert_allclose(moved, want, rtol=1e-5, atol=1e-5)


def test_the_operands_of_products_are_what_is_asked_for():
    params, x = example(33, 40, 5)

    def operands(**how):
        def total(w):
            return jnp.sum(jnp.sin(linear.logits(LinearParams(w, None), x, **how)))

        text = jax.jit(jax.grad(total)).lower(params.w).as_text()
        found = re.findall(r"dot_general .*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)", text)
        return {dtype for pair in found for dtype in pair}

    assert operands() == {"f32"}
    assert operands(dtype=jnp.float32) == {"f32"}
    assert operands(dtype=jnp.bfloat16) == {"bf16"}


def test_products_in_bfloat16_under_vmap_and_twice_differentiated():
    _, x = example(5, 4, 3)
    models = [example(rows, 4, 3)[0] for rows in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)

    def energy(params):
        return jnp.sum(linear.logits(params, x, dtype=jnp.bfloat16) ** 2) / 2

    got = jax.vmap(jax.grad(energy))(stacked)
    for i, params in enumerate(models):
        np.testing.assert_allclose(got.w[i], jax.grad(energy)(params).w, rtol=1e-6, atol=1e-6)
    hessian = jax.hessian(lambda w: energy(LinearParams(w, models[0].bias)))(models[0].w)
    half = np.float64(jnp.asarray(x, jnp.bfloat16))
    gram = np.einsum("ni,nj,kl->ikjl", half, half, np.eye(3))
    # The tangent of the scores is rounded too before it is multiplied.
    np.testing.assert_allclose(hessian, gram, rtol=2**-8, atol=2**-8)


def test_scores_of_products_in_another_dtype_are_float32():
    params, x = example(3, 4, 2)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    for model, dtype in ((params, jnp.bfloat16), (half, jnp.bfloat16), (half, jnp.float32)):
        assert linear.logits(model, x.astype(jnp.bfloat16), dtype=dtype).dtype == jnp.float32
    assert (
        jax.grad(lambda p: linear.logits(p, x, dtype=jnp.float32).sum())(half).w.dtype == "bfloat16"
    )
    with jax.enable_x64():
        assert linear.logits(params, x, dtype=jnp.float64).dtype == jnp.float64
    with pytest.raises(TypeError, match="dtype: expected a floating dtype, got int32"):
        linear.logits(params, x, dtype=jnp.int32)


def test_init():
    assert not np.any(linear.init(4, 3).w)
    w, bias = linear.init(400, 100, key=jax.random.key(0), scale=0.5, dtype=jnp.bfloat16)
    assert w.dtype == bias.dtype == jnp.bfloat16
    assert not np.any(bias)
    # 40,000 draws: the sample's standard deviation is within 0.5 / sqrt(80,000), times five.
    assert abs(np.std(np.float64(w)) - 0.5) < 5 * 0.5 / np.sqrt(80_000)
    assert linear.init(4, 3, bias=False).bias is None


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3)])
def test_init_refuses_empty_models(sizes):
    with pytest.raises(ValueError, match="must be at least 1, got"):
        linear.init(*sizes)


@pytest.mark.parametrize("features", [np.ones(3), np.ones((2, 5)), np.float32(1)])
def test_features_that_do_not_fit(features):
    with pytest.raises(ValueError, match=r"features must be \[\.\.\., D\]"):
        linear.logits(linear.init(4, 2), np.float32(features))
