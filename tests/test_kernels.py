"""The fused losses of a linear head: the contract, on every implementation and transformation."""

import re
from collections.abc import Callable, Iterator
from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import sigmoid_contract
from contract import LABELS, SCALES, SHAPES, TILES, assert_no_worse, case, fused
from jax.sharding import Mesh, PartitionSpec

from jaxsoftmax import binary_cross_entropy, cross_entropy, focal, weighted_mean
from jaxsoftmax.kernels import (
    Tiles,
    linear_binary_cross_entropy,
    linear_binary_cross_entropy_sum,
    linear_cross_entropy,
    linear_cross_entropy_stats,
    linear_cross_entropy_sum,
    target,
    tiles,
    xla_chunked,
)

pytestmark = pytest.mark.usefixtures("strict")

IMPLEMENTATIONS = ("xla_chunked", "reference")  # tests/test_mosaic_*.py hold the others to it
INF, NAN = np.inf, np.nan


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


# -- Values and gradients --


# The reference has no blocks that a shape could miss.
@pytest.mark.parametrize(
    ("shape", "implementation"),
    [(shape, "xla_chunked") for shape in SHAPES] + [(shape, "reference") for shape in SHAPES[::7]],
    ids=str,
)
def test_no_worse_than_the_dense_computation(shape: tuple[int, int, int], implementation: str):
    check(shape, np.float32, implementation)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((13, 7, 16), jnp.float16), ((7, 5, 37), jnp.bfloat16)],
    ids=["float16", "bfloat16"],
)
def test_half_precision(shape: tuple[int, int, int], dtype: type):
    check(shape, dtype, "xla_chunked")


def test_double_precision():
    with jax.enable_x64():
        check((7, 5, 37), np.float64, "xla_chunked")


def check(shape: tuple[int, int, int], dtype: type, implementation: str) -> None:
    for scale in SCALES:
        if dtype == jnp.float16 and scale == 1000:
            continue  # beyond what half precision holds
        for kind in LABELS:
            head = case(shape, dtype, scale, kind)
            found = jax.device_get(fused(implementation)(head))
            assert_no_worse(head, found, f"{shape} at {scale}, {kind} label")
            sums = np.float64 if dtype == np.float64 else np.float32
            kinds = {"nll": sums, "lse": sums, "mean_logit": sums, "sum": sums}
            kinds |= dict.fromkeys(("dx", "dw", "db", "sum dx", "sum dw", "sum db"), dtype)
            assert {name: found[name].dtype for name in kinds} == kinds
            z = contract.logits(head.x, head.w, head.bias)
            top = np.sort(z, 1)[:, ::-1]
            clear = (
                np.ones(len(z), bool)
                if z.shape[1] == 1
                else top[:, 0] - top[:, 1] > 1e-4 * abs(top[:, 0])
            )
            np.testing.assert_array_equal(found["predicted"][clear], z.argmax(1)[clear])
            hit = found["predicted"] == np.asarray(head.labels)
            np.testing.assert_array_equal(found["correct"], hit)


@pytest.mark.parametrize("classes", [8, 9, 3], ids=lambda k: f"block {k}")
def test_a_confident_example_keeps_its_digits(classes: int):
    # Each row of features picks a row of w, so the logits are exact and the margins whole numbers.
    margins = np.arange(1.0, 85.0, dtype=np.float32)
    n, k = len(margins), 9
    w = np.zeros((n, k), np.float32)
    labels = np.arange(n) % k
    w[np.arange(n), labels] = margins
    w -= 100
    sizes = Tiles(rows=16, classes=classes)
    want = oracles.cross_entropy(w, labels)
    want_gradient = oracles.cross_entropy_gradient(w, labels)

    def per_example(w):
        return jnp.sum(linear_cross_entropy(jnp.eye(n), w, jnp.asarray(labels), tiles=sizes).nll)

    def total(w):
        return linear_cross_entropy_sum(jnp.eye(n), w, jnp.asarray(labels), tiles=sizes)

    nll = linear_cross_entropy(jnp.eye(n), w, jnp.asarray(labels), tiles=sizes).nll
    oracles.assert_ulps(nll, want)
    for function in (per_example, total):
        oracles.assert_ulps(jax.jit(jax.grad(function))(jnp.asarray(w)), want_gradient)


def test_many_classes_and_rows():
    # Many blocks of another size than in the cases, and of the sizes that are chosen.
    x, w, labels = random_head(300, 20, 5003)
    z = np.float64(x) @ np.float64(w)
    want = oracles.cross_entropy(z, labels)
    for options in ({}, {"memory": 2**20}, {"tiles": Tiles(rows=7, classes=5002)}):
        nll = jax.jit(partial(linear_cross_entropy, **options))(x, w, labels).nll
        np.testing.assert_allclose(nll, want.astype(float), rtol=1e-5, atol=0)
        total = jax.jit(partial(linear_cross_entropy_sum, **options))(x, w, labels)
        np.testing.assert_allclose(total, float(want.sum()), rtol=1e-5, atol=0)


def random_head(n: int, d: int, k: int, dtype: type = jnp.float32) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(n * k + d)
    x, w = rng.standard_normal((n, d)), rng.standard_normal((d, k))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(rng.integers(0, k, n))


# -- What bad values mean --


def test_masks_and_bad_values(implementation: str):
    x, w, labels = random_head(8, 3, 19)
    options = {"tiles": TILES, "implementation": implementation, "softcap": 5.0}
    where = np.ones((8, 19), bool)
    where[:, [0, 7, 18]] = False
    where[3] = False  # a row that is masked whole
    labels = labels.at[:].set(jnp.array([1, 2, 17, 4, 0, 19, -1, 5]))
    valid = np.array([True] * 6 + [False, False])
    x = x.at[7].set(NAN)
    cap = 5 * np.tanh((np.float64(x) @ np.float64(w)) / 5)
    z = np.where(where, cap, -INF)

    def stats(x, w):
        found = linear_cross_entropy_stats(x, w, labels, where=where, valid=valid, **options)
        return found[:3], found[3:]

    (nll, lse, mean), back, (predicted, correct) = jax.vjp(stats, x, w, has_aux=True)
    good = slice(0, 3)
    np.testing.assert_allclose(
        nll[good], oracles.cross_entropy(z[good], labels[good]).astype(float), rtol=2e-6
    )
    # Masked whole; a label on a masked class; out of range; not valid, with a bad label or NaN.
    np.testing.assert_array_equal(nll[3:], [0, INF, NAN, 0, 0])
    np.testing.assert_array_equal(lse[jnp.array([3, 6, 7])], [-INF, 0, 0])
    np.testing.assert_allclose(lse[4:6], oracles.logsumexp(z[4:6])[0].astype(float), rtol=2e-6)
    np.testing.assert_array_equal(mean[jnp.array([3, 6, 7])], [0, 0, 0])
    np.testing.assert_allclose(
        mean[good], np.mean(z[good], 1, where=where[good]), rtol=2e-5, atol=1e-6
    )
    np.testing.assert_array_equal(predicted[good], z[good].argmax(1))
    np.testing.assert_array_equal(correct, np.asarray(predicted == labels) & (nll >= 0) & valid)
    dx, _ = back((jnp.ones(8), jnp.ones(8), jnp.ones(8)))
    np.testing.assert_array_equal(dx[jnp.array([3, 6, 7])], 0)
    assert np.isnan(dx[5]).all()
    assert np.isfinite(dx[:5]).all()
    # Without the bad label nothing is NaN, and masked classes have no gradient.
    fine = valid & (np.arange(8) != 5)

    def total(w):
        return linear_cross_entropy_sum(x, w, labels, where=where, valid=fine, **options)

    def values(w):
        found = linear_cross_entropy(x, w, labels, where=where, valid=fine, **options)
        return jnp.sum(found.nll + jnp.where(found.lse > -INF, found.lse, 0))

    for function in (total, values):
        gradient = jax.grad(function)(w)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[:, jnp.array([0, 7, 18])], 0)
        assert np.abs(gradient).max() > 0


def test_weight_zero_ignores_a_label_out_of_range(implementation: str):
    x, w, labels = random_head(5, 3, 19)
    weights = jnp.array([1.0, 0.0, 2.0, 0.5, 1.0])
    options = {"tiles": TILES, "implementation": implementation}
    bad = labels.at[1].set(100)
    run = jax.value_and_grad(partial(linear_cross_entropy_sum, weights=weights, **options), (0, 1))
    got, want = run(x, w, bad), run(x, w, labels)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), got, want)
    assert np.isnan(linear_cross_entropy_sum(x, w, bad, **options))


def test_weight_zero_ignores_an_infinite_loss(implementation: str):
    x, w, labels = random_head(5, 3, 19)
    weights = jnp.array([1.0, 0.0, 2.0, 0.5, 1.0])
    options = {"tiles": TILES, "implementation": implementation}
    bias = jnp.zeros(19).at[labels[1]].set(-INF)
    labels = jnp.where(labels == labels[1], (labels + 1) % 19, labels).at[1].set(labels[1])
    run = partial(linear_cross_entropy_sum, bias=bias, **options)
    rest = jnp.array([0, 2, 3, 4])
    want = run(x[rest], w, labels[rest], weights=weights[rest])
    np.testing.assert_allclose(run(x, w, labels, weights=weights), want, rtol=1e-6)
    assert run(x, w, labels) == INF

    targets = jax.nn.one_hot(labels, 19)
    run = partial(linear_binary_cross_entropy_sum, bias=bias, **options)
    want = run(x[rest], w, targets[rest], weights=weights[rest])
    np.testing.assert_allclose(run(x, w, targets, weights=weights), want, rtol=1e-6)
    assert run(x, w, targets) == INF


def test_infinite_logits_share_the_mass(implementation: str):
    bias = jnp.zeros(19).at[jnp.array([2, 18])].set(INF)
    x, w, _ = random_head(3, 3, 19)
    found = linear_cross_entropy(
        x, w, jnp.array([2, 18, 0]), bias=bias, tiles=TILES, implementation=implementation
    )
    np.testing.assert_allclose(found.nll, [np.log(2), np.log(2), INF], rtol=1e-6)
    np.testing.assert_array_equal(found.lse, [INF] * 3)


# -- Transformations --


def softmax_values(x: jax.Array, w: jax.Array, bias: jax.Array, **options) -> jax.Array:
    labels = jnp.arange(len(x)) * 5 % w.shape[1]
    nll, lse, mean, *_ = linear_cross_entropy_stats(
        x, w, labels, bias=bias, softcap=20.0, **options
    )
    return nll + 0.3 * lse**2 - 0.1 * mean


def softmax_sum(x: jax.Array, w: jax.Array, bias: jax.Array, **options) -> jax.Array:
    labels = jnp.arange(len(x)) * 5 % w.shape[1]
    weights = jnp.cos(jnp.arange(len(x)).astype(x.dtype))
    return linear_cross_entropy_sum(x, w, labels, bias=bias, weights=weights, **options)


def sigmoid_values(x: jax.Array, w: jax.Array, bias: jax.Array, **options) -> jax.Array:
    targets = jnp.arange(len(x) * w.shape[1]).reshape(len(x), -1) % 3 == 0
    weight = 2.0 + jnp.sin(jnp.arange(w.shape[1]).astype(x.dtype))
    where = jnp.arange(w.shape[1]) % 7 != 0
    return linear_binary_cross_entropy(
        x, w, targets, bias=bias, pos_weight=weight, where=where, **options
    )


def sigmoid_sum(x: jax.Array, w: jax.Array, bias: jax.Array, **options) -> jax.Array:
    targets = jnp.arange(len(x) * w.shape[1]).reshape(len(x), -1) % 3 == 0
    weights = jnp.cos(jnp.arange(len(x)).astype(x.dtype))
    return linear_binary_cross_entropy_sum(x, w, targets, bias=bias, weights=weights, **options)


FUNCTIONS = (softmax_values, softmax_sum, sigmoid_values, sigmoid_sum)


def transformed(f: Callable, x: jax.Array, w: jax.Array, bias: jax.Array, v: tuple) -> dict:
    """One function under everything that JAX may do to it."""

    def scalar(x, w, bias):
        values = f(x, w, bias)
        return jnp.sum(
            values * jnp.cos(jnp.arange(values.size).astype(x.dtype)).reshape(values.shape)
        )

    grad = jax.grad(scalar, (0, 1, 2))
    models = jnp.stack([w, 0.5 * w]), jnp.stack([bias, -bias])

    def carried(carry, part):
        return carry + scalar(part, w, bias), None

    return {
        "value": f(x, w, bias),
        "grad": grad(x, w, bias),
        "jvp": jax.jvp(f, (x, w, bias), v)[1],
        "jvp of w alone": jax.jvp(lambda w: f(x, w, bias), (w,), (v[1],))[1],
        "Hessian product": jax.jvp(grad, (x, w, bias), v)[1],
        "reverse over forward": jax.grad(lambda w: jax.jvp(scalar, (x, w, bias), v)[1])(w),
        "reverse over reverse": jax.grad(lambda w: jnp.vdot(grad(x, w, bias)[1], v[1]))(w),
        "vmap over models": jax.vmap(f, (None, 0, 0))(x, *models),
        "vmap of grad": jax.vmap(grad, (None, 0, 0))(x, *models),
        "grad of vmap": jax.grad(
            lambda w: jnp.sum(jax.vmap(scalar, (0, None, None))(x[:, None], w, bias))
        )(w),
        "vmap over examples": jax.vmap(lambda x: jax.grad(scalar, 1)(x[None], w, bias))(x),
        "remat": jax.grad(jax.checkpoint(scalar))(x, w, bias),
        "scan": jax.grad(
            lambda x: jax.lax.scan(carried, 0.0 * x[0, 0], x.reshape(2, -1, x.shape[1]))[0]
        )(x),
    }


@pytest.fixture
def compiled_quickly() -> Iterator[None]:
    """Without optimizations: for programs that no other test runs, compared with one another."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_transformation(function: Callable):
    x, w, _ = random_head(6, 4, 19)
    rng = np.random.default_rng(5)
    bias = jnp.asarray(rng.standard_normal(19), jnp.float32)
    v = tuple(jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in (x, w, bias))
    found = {
        name: jax.jit(partial(transformed, partial(function, tiles=TILES, implementation=name)))(
            x, w, bias, v
        )
        for name in ("xla_chunked", "reference")
    }
    for name, want in found["reference"].items():
        for a, b in zip(
            jax.tree.leaves(found["xla_chunked"][name]), jax.tree.leaves(want), strict=True
        ):
            scale = 1 + float(jnp.max(jnp.abs(b)))
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * scale, err_msg=name)


def test_eager_and_leading_shapes():
    x, w, labels = random_head(6, 4, 19)
    flat = linear_cross_entropy(x, w, labels, tiles=TILES)
    folded = linear_cross_entropy(x.reshape(2, 3, 4), w, labels.reshape(2, 3), tiles=TILES)
    np.testing.assert_array_equal(flat.nll.reshape(2, 3), folded.nll)
    one = linear_cross_entropy(x[0], w, labels[0], tiles=TILES)
    assert one.nll.shape == ()
    np.testing.assert_allclose(one.nll, flat.nll[0], rtol=1e-6)
    assert linear_cross_entropy(x[:0], w, labels[:0]).nll.shape == (0,)
    assert linear_cross_entropy_sum(x[:0], w, labels[:0]) == 0


# -- What is computed --


def dots(function: Callable, *arguments) -> list[tuple[str, ...]]:
    """The dtypes of both operands and the result of each matrix product of a program."""
    text = jax.jit(function).lower(*arguments).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    return [tuple(re.findall(r"tensor<[0-9x]*x(\w+)>", line)) for line in lines]


def test_products_are_counted_and_half():
    x, w, labels = random_head(16, 4, 200, jnp.bfloat16)
    sizes = Tiles(rows=4, classes=64)

    def nll(x, w):
        return jnp.sum(linear_cross_entropy(x, w, labels, tiles=sizes).nll)

    def total(x, w):
        return linear_cross_entropy_sum(x, w, labels, tiles=sizes)

    for function, products in ((nll, 4), (total, 3)):
        for which, count in (((0, 1), products), (1, products - 1), (0, products - 1)):
            found = dots(jax.grad(function, which), x, w)
            assert len(found) == count, (function.__name__, which)
            assert set(found) == {("bf16", "bf16", "f32")}


def test_memory_is_that_of_a_block():
    n, d, k = 512, 16, 20_000
    dense = 4 * n * k
    x, w, labels = random_head(n, d, k)
    sizes = Tiles(rows=16, classes=256)

    def values(x, w):
        return linear_cross_entropy(x, w, labels, tiles=sizes).nll

    def mean(x, w):
        return jnp.mean(values(x, w))

    def total(x, w):
        return linear_cross_entropy_sum(x, w, labels, tiles=sizes)

    programs = {
        "value": values,
        "grad": jax.grad(mean, (0, 1)),
        "jvp": lambda x, w: jax.jvp(values, (x, w), (x, w)),
        "Hessian product": lambda x, w: jax.jvp(jax.grad(mean, (0, 1)), (x, w), (x, w)),
        "sum": jax.grad(total, (0, 1)),
        "sum's Hessian product": lambda x, w: jax.jvp(jax.grad(total, (0, 1)), (x, w), (x, w)),
    }
    for name, program in programs.items():
        used = jax.jit(program).lower(x, w).compile().memory_analysis().temp_size_in_bytes
        assert used < dense / 4, f"{name}: {used} bytes where the logits have {dense}"


def test_budget():
    for n, d, k in ((8192, 512, 256_001), (60_000, 784, 10), (1, 1, 1), (512, 64, 131_072)):
        for memory in (None, 2**20, 2**26, 2**34):
            found = tiles.choose(n, d, k, memory=memory)
            assert 1 <= found.classes <= k
            assert 1 <= found.rows <= n
            if memory is not None:
                fits = tiles.BYTES_PER_BLOCK_LOGIT * n * found.classes <= memory
                assert fits or found.classes <= tiles.MIN_BLOCK_CLASSES
                fits = tiles.BYTES_PER_CHUNK_LOGIT * k * found.rows <= memory
                assert fits or found.rows <= tiles.MIN_CHUNK_ROWS


# -- What composes outside --


def test_options_compose():
    x, w, labels = random_head(12, 4, 19)
    z = x @ w
    nll, lse, mean, _, _ = linear_cross_entropy_stats(x, w, labels, tiles=TILES)
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    dense = cross_entropy(z, labels)
    weights = jnp.linspace(0.5, 2.0, 19)[labels]
    close(weighted_mean(nll, weights=weights), jnp.sum(weights * dense) / jnp.sum(weights))
    valid = jnp.arange(12) % 3 != 0
    ignored = linear_cross_entropy(x, w, labels, valid=valid, tiles=TILES).nll
    close(weighted_mean(ignored, valid=valid), jnp.mean(dense[np.asarray(valid)]))
    close(nll + 1e-2 * lse**2, dense + 1e-2 * jax.nn.logsumexp(z, 1) ** 2)
    p = jnp.exp(-dense)
    close(focal(nll, gamma=2.0), (1 - p) ** 2 * dense)
    close(linear_cross_entropy(x / 3, w, labels, tiles=TILES).nll, cross_entropy(z / 3, labels))
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, 19), 0.1)
    close(0.9 * nll + 0.1 * (lse - mean), optax.softmax_cross_entropy(z, smooth))


def test_options_compose_under_grad():
    x, w, labels = random_head(12, 4, 19)

    def objective(w, implementation):
        nll, lse, mean, _, _ = linear_cross_entropy_stats(
            x / 2, w, labels, tiles=TILES, implementation=implementation
        )
        smooth = 0.9 * nll + 0.1 * (lse - mean) + 1e-3 * lse**2 + focal(nll, gamma=1.5)
        return weighted_mean(smooth, weights=jnp.linspace(0.5, 2.0, 19)[labels])

    a, b = (jax.jit(jax.grad(objective), static_argnums=1)(w, i) for i in IMPLEMENTATIONS)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# -- The sigmoid --


@pytest.mark.parametrize(
    ("shape", "implementation"),
    [(shape, "xla_chunked") for shape in SHAPES[::2]] + [(SHAPES[-2], "reference")],
    ids=str,
)
def test_sigmoid_no_worse_than_the_dense_computation(
    shape: tuple[int, int, int], implementation: str
):
    sigmoid_contract.check(shape, np.float32, implementation)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_sigmoid_in_half_precision(dtype: type):
    sigmoid_contract.check((7, 5, 37), dtype, "xla_chunked")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1000.0])
def test_sigmoid(implementation: str, scale: float):
    x, w, _ = random_head(9, 5, 19)
    w = w * scale
    rng = np.random.default_rng(2)
    targets = jnp.asarray(rng.random((9, 19)), jnp.float32).at[:, :9].set(1.0).at[:, 5:7].set(0.0)
    bias = jnp.asarray(rng.standard_normal(19), jnp.float32)
    weight = jnp.asarray(rng.uniform(0.5, 2, 19), jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal(9), jnp.float32)
    options = {"bias": bias, "pos_weight": weight, "tiles": TILES, "implementation": implementation}

    def values(w):
        return linear_binary_cross_entropy(x, w, targets, **options)

    def total(w):
        return linear_binary_cross_entropy_sum(x, w, targets, weights=cotangent, **options)

    got, back = jax.vjp(values, w)
    z = contract.logits(x, w, bias)
    want = oracles.binary_cross_entropy(z, targets, weight)
    size = contract.wide(jnp.abs(x)) @ contract.wide(jnp.abs(w)) + 1
    limit = 2e-6 * float(size.max())
    np.testing.assert_allclose(got, want.sum(1).astype(float), rtol=1e-6, atol=limit * 19)
    dz = (
        oracles.binary_cross_entropy_gradient(z, targets, weight)
        * contract.wide(cotangent)[:, None]
    )
    dw = contract.wide(x).T @ dz
    for gradient in (back(cotangent)[0], jax.grad(total)(w)):
        np.testing.assert_allclose(gradient, dw.astype(float), rtol=0, atol=1e-5 + limit)
    np.testing.assert_allclose(total(w), jnp.vdot(cotangent, got), rtol=1e-5, atol=limit * 19)


def test_sigmoid_masks(implementation: str):
    x, w, _ = random_head(4, 3, 19)
    targets = jnp.arange(4 * 19).reshape(4, 19) % 2
    where = np.ones((4, 19), bool)
    where[:, [0, 18]] = False
    x = x.at[3].set(NAN)
    valid = np.array([True, True, True, False])
    options = {"where": where, "valid": valid, "tiles": TILES, "implementation": implementation}
    got = linear_binary_cross_entropy(x, w, targets, **options)
    each = binary_cross_entropy(x[:3] @ w, targets[:3], valid=jnp.asarray(where[:3]))
    np.testing.assert_allclose(got[:3], each.sum(1), rtol=1e-5)
    assert got[3] == 0
    for function in (
        lambda w: jnp.sum(linear_binary_cross_entropy(x, w, targets, **options)),
        lambda w: linear_binary_cross_entropy_sum(x, w, targets, **options),
    ):
        gradient = jax.grad(function)(w)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[:, jnp.array([0, 18])], 0)
    bad = targets.at[0, 4].set(3)
    assert np.isnan(linear_binary_cross_entropy(x, w, bad, **options)[0])


# -- Arguments --


def test_arguments_are_checked():
    x, w, labels = random_head(4, 3, 5)
    run = linear_cross_entropy
    for error, message, call in (
        (TypeError, "x: expected a floating", lambda: run(jnp.ones((4, 3), int), w, labels)),
        (TypeError, "w: expected a floating", lambda: run(x, jnp.ones((3, 5), int), labels)),
        (ValueError, "w: expected .D, K.", lambda: run(x, w[0], labels)),
        (ValueError, "x: expected .*D = 3", lambda: run(x[:, :2], w, labels)),
        (TypeError, "labels: expected an integer", lambda: run(x, w, x[:, 0])),
        (ValueError, "labels: expected shape", lambda: run(x, w, labels[:2])),
        (ValueError, "bias: expected shape", lambda: run(x, w, labels, bias=w[0, :2])),
        (TypeError, "where: expected bool", lambda: run(x, w, labels, where=w[0])),
        (ValueError, "where: expected", lambda: run(x, w, labels, where=jnp.ones(4, bool))),
        (ValueError, "valid: expected", lambda: run(x, w, labels, valid=jnp.ones(3, bool))),
        (ValueError, "softcap: expected", lambda: run(x, w, labels, softcap=0.0)),
        (TypeError, "memory: expected", lambda: run(x, w, labels, memory=0.5)),
        (ValueError, "memory: expected", lambda: run(x, w, labels, memory=0)),
        (TypeError, "tiles: expected", lambda: run(x, w, labels, tiles=(1, 2))),
        (ValueError, "rows to be", lambda: Tiles(rows=0, classes=1)),
        (ValueError, "mosaic_tpu, reference", lambda: run(x, w, labels, implementation="cuda")),
        (
            ValueError,
            "weights: expected shape",
            lambda: linear_cross_entropy_sum(x, w, labels, weights=jnp.ones(3)),
        ),
        (
            ValueError,
            "targets: expected shape",
            lambda: linear_binary_cross_entropy(x, w, labels[:, None]),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_named_implementation_runs_or_says_why(monkeypatch: pytest.MonkeyPatch):
    x, w, labels = random_head(4, 3, 5)
    monkeypatch.setattr(xla_chunked, "unsupported", lambda head, options: "no such device")
    with pytest.raises(NotImplementedError, match=r"xla_chunked.*no such device"):
        linear_cross_entropy(x, w, labels, implementation="xla_chunked")
    with target.assumed("cpu"), pytest.raises(NotImplementedError, match=r"needs .*'tpu'.*'cpu'"):
        linear_cross_entropy(x, w, labels, implementation="mosaic_tpu")


def test_mixed_dtypes_and_precision():
    x, w, labels = random_head(4, 3, 19)
    half = x.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        found, back = jax.vjp(lambda x, w: linear_cross_entropy(x, w, labels).nll, half, w)
    np.testing.assert_allclose(
        found, linear_cross_entropy(half.astype(jnp.float32), w, labels).nll, rtol=1e-6
    )
    dx, dw = back(jnp.ones(4))
    assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)
    text = jax.jit(jax.grad(lambda w: linear_cross_entropy_sum(x, w, labels, precision="highest")))
    assert text.lower(w).as_text().count("precision = [HIGHEST, HIGHEST]") == 2


def test_few_classes_are_one_chunk() -> None:
    narrow, many, classes = (9196, 67, 16), (200_000, 4, 10), (9196, 67, 190)
    wide = (200_000, 247, 10)  # its logits are smaller than a chunk's copy of the features
    rows = [tiles.choose(*shape, memory=None).rows for shape in (narrow, wide, many, classes)]
    assert rows[:2] == [9196, 200_000]
    assert 2**19 <= 10 * rows[2] <= 2**20
    assert rows[3] == 1024
    assert tiles.choose(*narrow, memory=2**20).rows < 9196


def test_a_platform_without_a_budget_of_its_own_takes_the_default() -> None:
    found = {}
    for platform in ("gpu", "METAL"):
        with target.assumed(platform):
            found[platform] = tiles.choose(5000, 64, 300_000, memory=None)
    assert found["METAL"] == found["gpu"]


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_large_losses_lower_in_shard_map_for_every_platform(platform: str) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    rows = PartitionSpec("rows")
    loss = jax.shard_map(cross_entropy, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    logits, labels = jax.ShapeDtypeStruct((8192, 2560), jnp.float32), jnp.zeros(8192, jnp.int32)
    assert jax.jit(loss).trace(logits, labels).lower(lowering_platforms=(platform,)).as_text()
