"""The gradient identity softmax(z) - onehot(y), the Hessian product and the Gauss-Newton factor.

Runs on whatever platform is present, to that platform's bound (oracles.BOUND).
"""

from collections.abc import Callable
from functools import partial

import adversaries
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from absl.testing import parameterized
from oracles import assert_ulps

import jaxsoftmax as js

pytestmark = pytest.mark.usefixtures("strict")

every_variant = chex.variants(
    with_jit=True, without_jit=True, with_device=True, without_device=True
)
CLASSES = (("two", 2), ("ten", 10), ("a_thousand", 1000))


def batch(classes: int) -> tuple[jax.Array, jax.Array]:
    logits = adversaries.logits(classes, np.float32)
    return jnp.asarray(logits), jnp.asarray(adversaries.labels("random", logits))


def tangents_like(logits: jax.Array) -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).standard_normal(logits.shape), jnp.float32)


def assert_same_value(found: chex.Array, true: np.ndarray) -> None:
    """Chex's own view of the identity: shape, rank, dtype, finite, and equal to float32."""
    chex.assert_shape(found, true.shape)
    chex.assert_rank(found, true.ndim)
    chex.assert_type(found, jnp.float32)
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(np.asarray(found), true.astype(np.float32), rtol=2e-6, atol=1e-37)


class GradientIdentity(chex.TestCase):
    """d cross_entropy / dz = softmax(z) - onehot(y), eager, jitted and vmapped."""

    @every_variant
    @parameterized.named_parameters(*CLASSES)
    def test_gradient_of_cross_entropy(self, classes: int) -> None:
        logits, labels = batch(classes)
        true = oracles.cross_entropy_gradient(np.asarray(logits), np.asarray(labels))
        total = self.variant(jax.grad(lambda z, y: js.cross_entropy(z, y).sum()))
        mapped = self.variant(jax.vmap(jax.grad(js.cross_entropy)))
        for gradient in (total, mapped):
            found = gradient(logits, labels)
            assert_same_value(found, true)
            assert_ulps(found, true)

    @every_variant
    @parameterized.named_parameters(*CLASSES)
    def test_closed_form(self, classes: int) -> None:
        logits, labels = batch(classes)
        true = oracles.cross_entropy_gradient(np.asarray(logits), np.asarray(labels))
        for gradient in (js.cross_entropy_gradient, jax.vmap(js.cross_entropy_gradient)):
            found = self.variant(gradient)(logits, labels)
            assert_same_value(found, true)
            assert_ulps(found, true)

    @every_variant
    def test_it_is_softmax_minus_onehot(self) -> None:
        logits, labels = batch(10)
        found = self.variant(js.cross_entropy_gradient)(logits, labels)
        p = self.variant(js.softmax)(logits)
        empty = jnp.isneginf(logits).all(-1, keepdims=True)
        hot = jnp.where(empty, 0.0, jax.nn.one_hot(labels, 10))
        chex.assert_equal_shape([found, p, hot])
        # p - 1 at the label is rounded to an ulp of 1, which the gradient itself is not.
        chex.assert_trees_all_close(found, p - hot, rtol=1e-6, atol=2e-7)

    @every_variant
    def test_other_axes_masks_and_ignored_examples(self) -> None:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal((4, 6, 5)).astype(np.float32)
        where = rng.random((4, 6, 5)) < 0.7
        where[0, 0] = False
        labels, valid = where.argmax(-1), rng.random((4, 6)) < 0.7
        true = oracles.cross_entropy_gradient(logits, labels, where) * valid[..., None]
        poisoned = np.where(valid[..., None], np.where(where, logits, np.nan), np.inf)
        for axis in (-1, 0, 1):
            z, mask = (jnp.moveaxis(jnp.asarray(x, d), -1, axis)
                       for x, d in ((poisoned, jnp.float32), (where, bool)))  # fmt: skip
            found = self.variant(
                partial(js.cross_entropy_gradient, axis=axis, where=mask, valid=jnp.asarray(valid))
            )(z, jnp.asarray(labels))
            assert_ulps(jnp.moveaxis(found, axis, -1), true)

    @every_variant
    def test_binary(self) -> None:
        z = adversaries.scalars(np.float32)
        weight = np.float32(2.5)
        for target in (0.0, 1.0):
            t = np.full(z.shape, target, np.float32)
            true = oracles.binary_cross_entropy_gradient(z, t, weight)
            options = {"pos_weight": jnp.asarray(weight)}
            loss = partial(js.binary_cross_entropy, **options)
            closed = partial(js.binary_cross_entropy_gradient, **options)
            for gradient in (closed, jax.vmap(closed), jax.vmap(jax.grad(loss))):
                found = self.variant(gradient)(jnp.asarray(z), jnp.asarray(t))
                # Not where only the weight lifts the gradient above the subnormal numbers.
                counted = (np.abs(true) >= 2.5 * np.finfo(np.float32).tiny) | (true == 0)
                assert_same_value(np.asarray(found)[counted], true[counted])
                assert_ulps(np.asarray(found)[counted], true[counted])

    @every_variant
    def test_binary_with_soft_targets(self) -> None:
        rng = np.random.default_rng(1)
        z, t = (4 * rng.standard_normal(500)).astype(np.float32), rng.random(500).astype(np.float32)
        true = oracles.binary_cross_entropy_gradient(z, t)
        found = self.variant(js.binary_cross_entropy_gradient)(jnp.asarray(z), jnp.asarray(t))
        chex.assert_shape(found, (500,))
        terms = np.maximum((1 - t) * oracles.sigmoid(z), t * oracles.sigmoid(-z))
        assert_ulps(found, true, scale=terms)


class HessianProduct(chex.TestCase):
    """H v with H = diag(p) - p p', without H."""

    @every_variant
    @parameterized.named_parameters(*CLASSES)
    def test_closed_form(self, classes: int) -> None:
        # Twice the bound of a first derivative: each entry is a product of two rounded factors.
        logits, _ = batch(classes)
        tangents = tangents_like(logits)
        true, largest = oracles.softmax_hessian_product(np.asarray(logits), np.asarray(tangents))
        for product in (
            js.cross_entropy_hessian_product,
            jax.vmap(js.cross_entropy_hessian_product),
        ):
            found = self.variant(product)(logits, tangents)
            chex.assert_equal_shape([found, logits])
            chex.assert_tree_all_finite(found)
            assert_ulps(found, true, scale=largest, limit=2 * oracles.bound())

    @every_variant
    @parameterized.named_parameters(*CLASSES)
    def test_derivative_of_the_gradient(self, classes: int) -> None:
        logits, labels = batch(classes)
        tangents = tangents_like(logits)
        true, largest = oracles.softmax_hessian_product(np.asarray(logits), np.asarray(tangents))

        def forward_over_reverse(z: jax.Array, v: jax.Array) -> jax.Array:
            return jax.jvp(jax.grad(lambda z: js.cross_entropy(z, labels).sum()), (z,), (v,))[1]

        def of_closed_form(z: jax.Array, v: jax.Array) -> jax.Array:
            return jax.jvp(lambda z: js.cross_entropy_gradient(z, labels), (z,), (v,))[1]

        for product in (forward_over_reverse, of_closed_form):
            found = self.variant(product)(logits, tangents)
            chex.assert_tree_all_finite(found)
            assert_ulps(found, true, scale=largest, limit=2 * oracles.bound())

    @every_variant
    def test_one_class_dominates(self) -> None:
        # p = 1 - 1e-9: the entries of H v are tiny and have to be right all the same, even where
        # the tangents are large beside their differences from the leader's.
        z = jnp.asarray([[21.0, 0.0, -1.0, 0.5], [0.0, 60.0, -20.0, 30.0], [70.0, 1.0, 0.0, 2.0]])
        v = jnp.asarray([[1.0, -2.0, 0.5, 3.0], [100.0, 101.0, 102.0, 99.0], [0.3, 0.2, 0.1, 0.7]])
        labels = jnp.asarray([0, 2, 0])
        true, largest = oracles.softmax_hessian_product(np.asarray(z), np.asarray(v))

        def automatic(z: jax.Array, v: jax.Array) -> jax.Array:
            return jax.jvp(jax.grad(lambda z: js.cross_entropy(z, labels).sum()), (z,), (v,))[1]

        for product in (js.cross_entropy_hessian_product, automatic):
            found = self.variant(product)(z, v)
            assert_ulps(found, true, scale=largest, limit=2 * oracles.bound())
            # Rows that sum to zero relative to their own size, which p (v - sum p v) lacks.
            room = 3e-6 * np.abs(true).max(-1).astype(np.float64)
            chex.assert_trees_all_equal(
                np.abs(np.asarray(found, np.float64).sum(-1)) <= room, np.ones(3, bool)
            )

    @every_variant
    def test_binary(self) -> None:
        rng = np.random.default_rng(2)
        z = np.concatenate([adversaries.scalars(np.float32), [np.inf, -np.inf]]).astype(np.float32)
        v = rng.standard_normal(z.shape).astype(np.float32)
        t, weight = rng.integers(0, 2, z.shape).astype(np.float32), np.float32(2.5)
        curvature = (weight * t + (1 - t)).astype(oracles.extended)
        true = curvature * oracles.sigmoid(z) * oracles.sigmoid(-z) * v.astype(oracles.extended)
        info = np.finfo(np.float32)
        scale = np.full(z.shape, 4 * info.tiny / info.eps)  # what products of tiny numbers lose
        args = (jnp.asarray(z), jnp.asarray(t), jnp.asarray(v))
        product = partial(js.binary_cross_entropy_hessian_product, pos_weight=jnp.asarray(weight))
        loss = partial(js.binary_cross_entropy, pos_weight=jnp.asarray(weight))

        def automatic(z: jax.Array, t: jax.Array, v: jax.Array) -> jax.Array:
            return jax.jvp(jax.grad(lambda z: loss(z, t).sum()), (z,), (v,))[1]

        for found in (product, jax.vmap(product), automatic):
            assert_ulps(self.variant(found)(*args), true, scale=scale, limit=2 * oracles.bound())


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_hessian_product_is_jax_hessian_times_v(transform: Callable) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        z, v = (
            jnp.asarray(3 * rng.standard_normal((6, 5))),
            jnp.asarray(rng.standard_normal((6, 5))),
        )
        where = jnp.asarray(rng.random((6, 5)) < 0.7).at[2].set(False)
        labels = jnp.asarray(np.asarray(where).argmax(-1))

        def loss(z: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
            return js.cross_entropy(z, y, where=w)

        dense = jax.vmap(jax.hessian(loss))(z, labels, where)
        true = jnp.einsum("bij,bj->bi", dense, v)
        p = js.softmax(z, where=where)
        closed = p[:, :, None] * jnp.eye(5)[None] - p[:, :, None] * p[:, None, :]
        np.testing.assert_allclose(dense, closed, rtol=1e-13, atol=1e-15)
        product = transform(partial(js.cross_entropy_hessian_product, where=where))
        np.testing.assert_allclose(product(z, v), true, rtol=1e-13, atol=1e-15)
        other = transform(partial(js.cross_entropy_hessian_product, where=where.T, axis=0))
        np.testing.assert_allclose(other(z.T, v.T).T, true, rtol=1e-13, atol=1e-15)


def test_ignored_examples_have_no_curvature() -> None:
    z, v = jnp.asarray([[1.0, 2.0], [np.nan, np.inf]]), jnp.asarray([[1.0, -1.0], [3.0, np.nan]])
    valid = jnp.asarray([True, False])
    found = js.cross_entropy_hessian_product(z, v, valid=valid)
    np.testing.assert_array_equal(found[1], 0)
    assert (np.asarray(found[0]) != 0).all()
    bits = jnp.asarray([[1.0, 0.0], [np.nan, -7.0]])
    both = jnp.asarray([[True, True], [False, False]])
    for product in (
        js.binary_cross_entropy_gradient(z, bits, valid=both),
        js.binary_cross_entropy_hessian_product(z, bits, v, valid=both),
    ):
        np.testing.assert_array_equal(product[1], 0)
        assert (np.asarray(product[0]) != 0).all()


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"]
)
def test_gauss_newton_factor(transform: Callable) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        p = rng.dirichlet(np.ones(6), 5)
        p[1] = np.eye(6)[2]
        p[2] = [0.5, 0, 0.5, 0, 0, 0]
        p[3] = 0
        factor = transform(js.gauss_newton_factor)(jnp.asarray(p))
        chex.assert_shape(factor, (5, 6, 6))
        true = p[:, :, None] * np.eye(6) - p[:, :, None] * p[:, None, :]
        np.testing.assert_allclose(factor @ factor.swapaxes(-1, -2), true, rtol=0, atol=2e-16 * 8)


def test_gauss_newton_factor_in_half_precision_and_other_shapes() -> None:
    p = js.softmax(jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32))
    factor = js.gauss_newton_factor(p)
    chex.assert_shape(factor, (2, 3, 4, 4))
    chex.assert_type(factor, jnp.float32)
    true = p[..., None] * jnp.eye(4)[None, None] - p[..., None] * p[..., None, :]
    np.testing.assert_allclose(factor @ factor.swapaxes(-1, -2), true, rtol=0, atol=3e-7)
    chex.assert_shape(js.gauss_newton_factor(p[0, 0]), (4, 4))


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
def test_half_precision_rounds_once(half: jnp.dtype) -> None:
    rng = np.random.default_rng(0)
    z, v = (jnp.asarray(4 * rng.standard_normal((20, 9)), half) for _ in range(2))
    labels = jnp.asarray(rng.integers(0, 9, 20))
    wide, wide_v = z.astype(jnp.float32), v.astype(jnp.float32)
    for got, true in (
        (js.cross_entropy_gradient(z, labels), js.cross_entropy_gradient(wide, labels)),
        (js.cross_entropy_hessian_product(z, v), js.cross_entropy_hessian_product(wide, wide_v)),
    ):
        assert got.dtype == half
        np.testing.assert_array_equal(got, true.astype(half))


def test_label_out_of_range_gives_nan() -> None:
    found = js.cross_entropy_gradient(jnp.zeros((3, 2)), jnp.asarray([0, 2, -1]))
    np.testing.assert_array_equal(np.isnan(found), [[False] * 2, [True] * 2, [True] * 2])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda z: js.cross_entropy_gradient(z.astype(int), jnp.zeros(2, int)), "logits"),
        (lambda z: js.cross_entropy_gradient(z, jnp.zeros(3, int)), "labels"),
        (lambda z: js.cross_entropy_gradient(z, jnp.zeros(2)), "labels"),
        (lambda z: js.cross_entropy_hessian_product(z.astype(int), z), "logits"),
        (lambda z: js.cross_entropy_hessian_product(z, z[0]), "tangents"),
        (lambda z: js.binary_cross_entropy_hessian_product(z, z, z[0]), "tangents"),
        (lambda z: js.binary_cross_entropy_gradient(z.astype(int), z), "logits"),
        (lambda z: js.binary_cross_entropy_gradient(z, z[0]), "targets"),
        (lambda z: js.gauss_newton_factor(z.astype(int)), "probabilities"),
    ],
)
def test_bad_arguments_are_named(call: Callable, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        call(jnp.zeros((2, 3)))
