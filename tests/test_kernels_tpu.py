"""The TPU kernels, interpreted on the CPU: the contract, and edges of tiles that hold NaN."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import sigmoid_contract
import test_kernels
import test_kernels_arguments
from contract import TILES
from jax.experimental.pallas import tpu as pltpu

from jaxsoftmax.kernels import (
    linear_cross_entropy,
    linear_cross_entropy_sum,
    primitives,
    target,
    xla_chunked,
)
from jaxsoftmax.kernels.tpu import grids
from jaxsoftmax.kernels.tpu import implementation as mosaic_tpu
from jaxsoftmax.kernels.types import Head, NeedsGrad, Options, RowTangents

NAME = "mosaic_tpu"
INF, NAN = np.inf, np.nan
# Tiles of 32 rows, and of 128 classes and features in float32 or 256 in bfloat16; with `TILES`
# backward has one tile of classes at a time, and the sum 20 or 40 rows.
SMALL = grids.SMALL_VMEM_LIMITS._replace(rows=32, class_bytes=512, feature_bytes=512)
SHAPES = ((1, 3, 1), (5, 4, 127), (32, 8, 128), (33, 5, 129), (45, 7, 300))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(grids, "SMALL_VMEM_LIMITS", SMALL)
    with (
        target.assumed("tpu", interpret=True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


# -- The contract --


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_worse_than_the_dense_computation(shape: tuple[int, int, int]):
    test_kernels.check(shape, np.float32, NAME)


@pytest.mark.parametrize("shape", [(33, 5, 257), (45, 300, 300)], ids=str)
def test_half_precision(shape: tuple[int, int, int]):
    test_kernels.check(shape, jnp.bfloat16, NAME)


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_sigmoid_no_worse_than_the_dense_computation(shape: tuple[int, int, int]):
    sigmoid_contract.check(shape, np.float32, NAME)


def test_sigmoid_in_half_precision():
    sigmoid_contract.check((45, 300, 300), jnp.bfloat16, NAME)


@pytest.mark.parametrize(
    "promise",
    [
        test_kernels.test_masks_and_bad_values,
        test_kernels.test_weight_zero_ignores_a_label_out_of_range,
        test_kernels.test_weight_zero_ignores_an_infinite_loss,
        test_kernels.test_infinite_logits_share_the_mass,
        test_kernels.test_sigmoid_masks,
        partial(test_kernels.test_sigmoid, scale=30.0),
        partial(test_kernels_arguments.test_targets_beside_the_unit_interval, kind=np.float32),
        partial(test_kernels_arguments.test_targets_beside_the_unit_interval, kind=jnp.bfloat16),
        partial(test_kernels_arguments.test_targets_beside_the_unit_interval, kind=np.float16),
        partial(
            test_kernels_arguments.test_gradients_of_float32_parameters_are_not_rounded,
            kind=np.float32,
        ),
    ],
    ids=lambda f: getattr(f, "func", f).__name__,
)
def test_promises(promise: Callable[[str], None]):
    promise(NAME)


@pytest.mark.parametrize("function", test_kernels.FUNCTIONS, ids=lambda f: f.__name__)
def test_transformations(function: Callable):
    x, w, _ = test_kernels.random_head(3, 4, 130)
    rng = np.random.default_rng(5)
    bias = jnp.asarray(rng.standard_normal(130), jnp.float32)
    v = tuple(jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in (x, w, bias))
    found, wanted = (
        jax.jit(partial(transformed, partial(function, tiles=TILES, implementation=name)))(
            (x, w, bias), v
        )
        for name in (NAME, "reference")
    )
    for name, want in wanted.items():
        close(found[name], want, name)


def transformed(f: Callable, model: tuple, v: tuple) -> dict:
    """What the kernels' own rules decide: a batch of them, and derivatives of higher order."""
    grad = jax.grad(lambda *at: jnp.sum(f(*at)), (0, 1, 2))
    x, *parameters = model
    return {
        "Hessian product": jax.jvp(grad, model, v)[1],
        "vmap of grad": jax.vmap(grad, (None, 0, 0))(
            x, *(jnp.stack([a, -0.5 * a]) for a in parameters)
        ),
    }


def close(found: object, wanted: object, name: str = "") -> None:
    """To 2e-6 of the largest entry of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = 1 + float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * scale, err_msg=name)


# -- Tiles --


ALL = NeedsGrad(np.float32, np.float32, np.float32)


@partial(jax.jit, static_argnums=(0, 1))
def per_example(module: ModuleType, options: Options, head: Head, cotangents: jax.Array) -> tuple:
    rows = module.forward(head, options)
    return rows, module.backward(head, rows, RowTangents(*cotangents), ALL, options)


@partial(jax.jit, static_argnums=(0, 1))
def weighted_sum(module: ModuleType, options: Options, head: Head, weights: jax.Array) -> tuple:
    return module.value_and_gradients(head, weights[0] < 1, weights[1], ALL, options)


def full_head(rows: int) -> tuple[Head, jax.Array]:
    """All that a tile can have, in tiles that reach beyond rows, classes and features."""
    n, d, k = 37, 131, 150
    x, w, labels = test_kernels.random_head(n, d, k)
    rng = np.random.default_rng(3)
    where = rng.random((rows, k)) < 0.8
    where[np.arange(n) % rows, labels] = True
    bias, weights = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (k, (3, n)))
    # Small enough that the cap leaves no two logits the same.
    return Head(x / 12, w, bias, jnp.asarray(where), labels), weights


@pytest.mark.parametrize("rows", [1, 37], ids=["a mask", "a mask for each row"])
def test_edges(rows: int):
    head, weights = full_head(rows)
    options = Options(TILES, target.current(), np.float32, softcap=3.0)
    for run, how in ((per_example, replace(options, stats=True)), (weighted_sum, options)):
        close(run(mosaic_tpu, how, head, weights), run(xla_chunked, how, head, weights))


def z_loss(nll: jax.Array, lse: jax.Array, mean: jax.Array) -> jax.Array:
    return nll**2 + 0.1 * lse**2


def smoothed(nll: jax.Array, lse: jax.Array, mean: jax.Array) -> jax.Array:
    """A cotangent of its own for each statistic."""
    return z_loss(nll, lse, mean) + 0.3 * (lse - mean) * nll


@partial(jax.jit, static_argnums=(0, 1, 2))
def losses_of_rows(
    module: ModuleType, options: Options, function: Callable, head: Head, weights: jax.Array
) -> tuple:
    rows, gradients = module.rows_and_gradients(head, weights, (), function, ALL, options)
    return rows.statistics(), gradients


@pytest.mark.parametrize(
    ("function", "softcap"),
    [(z_loss, 3.0), (smoothed, None), (smoothed, 3.0)],
    ids=["z-loss with a softcap", "smoothed", "smoothed with a softcap"],
)
def test_losses_of_rows(function: Callable, softcap: float | None):
    head, weights = full_head(37)
    masked = jnp.setdiff1d(jnp.arange(150), head.targets)[::9]  # classes of -inf in each tile
    assert head.bias is not None
    assert head.where is not None
    head = head._replace(
        bias=head.bias.at[masked].set(-INF), where=head.where.at[5, head.targets[5]].set(False)
    )
    options = Options(TILES, target.current(), np.float32, softcap=softcap, stats=True)
    found, wanted = (
        losses_of_rows(module, options, function, head, weights[0].at[5].set(0))
        for module in (mosaic_tpu, xla_chunked)
    )
    assert found[0][0][5] == INF  # and without effect on the gradients
    nll = jnp.where(jnp.arange(37) == 5, 0, jnp.stack([found[0][0], wanted[0][0]]))
    close((nll[0], found[0][1:], found[1]), (nll[1], wanted[0][1:], wanted[1]))


def test_memory_that_nobody_has_written():
    # The other interpreter follows copies between memories, and begins with NaN in all of them.
    head, weights = full_head(1)
    nan = pltpu.InterpretParams(uninitialized_memory="nan")
    options = Options(TILES, target.Target("tpu", nan), np.float32, softcap=3.0, stats=True)
    found = per_example(mosaic_tpu, options, head, weights)
    close(found, per_example(xla_chunked, options, head, weights))


# -- The sigmoid's tiles --


@partial(jax.jit, static_argnums=(0, 1))
def labels_per_example(
    module: ModuleType, options: Options, head: Head, cotangents: jax.Array
) -> tuple:
    return module.binary_forward(head, options), module.binary_backward(
        head, cotangents, ALL, options
    )


@partial(jax.jit, static_argnums=(0, 1))
def weighted_labels(module: ModuleType, options: Options, head: Head, weights: jax.Array) -> tuple:
    return module.binary_value_and_gradients(head, weights, ALL, options)


def label_head(rows: int) -> tuple[Head, jax.Array]:
    """The same with targets between 0 and 1, and weights of their ones."""
    head, weights = full_head(rows)
    n, k = head.x.shape[0], head.w.shape[1]
    rng = np.random.default_rng(4)
    targets = jnp.asarray(np.clip(rng.uniform(-0.5, 1.5, (n, k)), 0, 1), jnp.float32)
    positive = jnp.asarray(rng.uniform(0.5, 2, (1, k)), jnp.float32)
    return head._replace(targets=targets, pos_weight=positive), weights[0]


@pytest.mark.parametrize("rows", [1, 37], ids=["a mask", "a mask for each row"])
def test_edges_of_labels(rows: int):
    head, weights = label_head(rows)
    options = Options(TILES, target.current(), np.float32, softcap=3.0)
    for run in (labels_per_example, weighted_labels):
        close(run(mosaic_tpu, options, head, weights), run(xla_chunked, options, head, weights))


def test_labels_in_memory_that_nobody_has_written():
    head, weights = label_head(1)
    nan = pltpu.InterpretParams(uninitialized_memory="nan")
    options = Options(TILES, target.Target("tpu", nan), np.float32, softcap=3.0)
    for run in (labels_per_example, weighted_labels):
        close(run(mosaic_tpu, options, head, weights), run(xla_chunked, options, head, weights))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (jnp.bool_, ()),
        (jnp.int32, (-1, 256, 257)),
        (jnp.int8, (-1, 2)),
        (jnp.bfloat16, (-0.25, 1.5, NAN)),
        (jnp.float16, (1.5, -INF, NAN)),
    ],
    ids=["bool", "int32", "int8", "bfloat16", "float16"],
)
def test_kinds_of_targets(kind: type, bad: tuple[float, ...]):
    # Logits of -inf and +inf in classes that exist, and targets that are none in the first rows.
    head, weights = label_head(1)
    bias = head.bias.at[jnp.array([3, 149])].set(-INF).at[140].set(INF)
    fine = jnp.round(head.targets, 0 if jnp.issubdtype(kind, jnp.integer) else 2).astype(kind)
    fine = fine.at[:, jnp.array([3, 140, 149])].set(jnp.array([0, 1, 0], kind))
    found = fine.at[-1, 3].set(jnp.asarray(1, kind))
    for row, value in enumerate(bad):
        found = found.at[row, 50 * row].set(jnp.asarray(value, kind))
    head = head._replace(bias=bias, targets=found, where=None)
    options = Options(TILES, target.current(), np.float32)
    got, back = weighted_labels(mosaic_tpu, options, head, weights)
    want, _ = weighted_labels(xla_chunked, options, head, weights)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.isnan(got[: len(bad)]).all()
    assert np.isfinite(got[len(bad) : -1]).all()
    assert got[-1] == INF
    assert np.isnan(back.x[: len(bad)]).all()
    assert np.isfinite(back.x[len(bad) :]).all()
    # A weight of 0 silences them.
    silent = weights.at[: len(bad)].set(0)
    _, got = weighted_labels(mosaic_tpu, options, head, silent)
    _, want = weighted_labels(xla_chunked, options, head, silent)
    close(got, want)
    assert np.isfinite(got.w).all()


def test_copies_of_blocks_of_several_tiles():
    # 256, 256 and 48 labels, whose targets and masks are copied for their blocks.
    x, w, _ = test_kernels.random_head(9, 3, 560)
    rng = np.random.default_rng(6)
    targets, where = (jnp.asarray(rng.random((9, 560)) < p) for p in (0.5, 0.9))
    head = Head(x, w, None, where, targets)
    options = Options(replace(TILES, classes=200), target.current(), np.float32)
    weights = jnp.asarray(rng.standard_normal(9), jnp.float32)
    for run in (labels_per_example, weighted_labels):
        close(run(mosaic_tpu, options, head, weights), run(xla_chunked, options, head, weights))


def test_a_confident_label_keeps_its_digits():
    e = np.exp(-np.linspace(0, 80, 4001, dtype=np.float32))
    oracles.assert_ulps(
        primitives.log1p(jnp.asarray(e)), np.log1p(e.astype(np.longdouble)), limit=2.1
    )
    # A TPU's own log1p would lose them, and no interpreter would show it.
    head, _ = label_head(1)
    run = partial(mosaic_tpu.binary_forward, options=Options(TILES, target.current(), np.float32))
    assert not re.search(r"= log(1p)?\b", str(jax.make_jaxpr(run)(head)))


def test_only_what_is_wanted_is_written():
    head, weights = label_head(1)
    options = Options(TILES, target.current(), np.float32)
    n = head.x.shape[0]

    def kernels(run: Callable) -> set[tuple]:
        """The shapes that kernels of a program write."""
        text = str(jax.make_jaxpr(run)(head))
        found = re.findall(r"out_avals=\(([^=]*)\)", text)
        return {tuple(re.findall(r"\[([\d,]+)\]", shapes)) for shapes in found}

    nothing = NeedsGrad()
    values, gradient = "2,1,32", f"{n},128"  # the rows by tiles of 32
    for run, written in (
        (lambda head: mosaic_tpu.binary_forward(head, options), {(values,)}),
        (
            lambda head: mosaic_tpu.binary_value_and_gradients(head, weights, nothing, options),
            {(values,)},
        ),
        (
            lambda head: mosaic_tpu.binary_backward(head, weights, ALL, options),
            {(gradient,), (f"{n},22",)},
        ),
        (
            lambda head: mosaic_tpu.binary_value_and_gradients(head, weights, ALL, options),
            {(values, gradient), (values, f"{n},22")},
        ),
    ):
        assert kernels(run) == written


# -- What a row keeps for its tiles --


def test_more_tiles_than_lanes():
    # A row's maximum as far as it is known is kept for 132 tiles of classes.
    x, w, labels = test_kernels.random_head(5, 3, 131 * 128 + 5)
    run = jax.value_and_grad(linear_cross_entropy_sum, (0, 1))
    options = {"tiles": TILES, "memory": None}
    close(
        run(x, w, labels, implementation=NAME, **options),
        run(x, w, labels, implementation="reference", **options),
    )


# -- What it cannot do --


def test_unsupported():
    x, w, labels = test_kernels.random_head(4, 3, 5)
    run = partial(linear_cross_entropy, implementation=NAME)
    with pytest.raises(NotImplementedError, match=r"needs .*bfloat16 or float32, got float16"):
        run(x.astype(jnp.float16), w.astype(jnp.float16), labels)
    with pytest.raises(NotImplementedError, match=r"needs a precision of .*TF32"):
        run(x, w, labels, precision=jax.lax.DotAlgorithmPreset.TF32_TF32_F32)
    assert run(x, w, labels, precision="highest").nll.shape == (4,)
