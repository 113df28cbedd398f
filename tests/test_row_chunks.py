"""The losses of float32 on Hopper GPUs, XLA's products around the row kernels, interpreted.

Rows have few classes here, and plans of rows are smaller than those that were measured: a warpgroup
for each row, as for the shortest ones. `test_gpu_rows` has the other plans of the kernel, and
`test_kernels_gpu` compiles both for an H200.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import gpu_interpreter
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import LABELS, SCALES, TILES, Case, case, compare, honest, orders, truth
from jax.sharding import PartitionSpec as P

from jaxsoftmax import focal
from jaxsoftmax.kernels import Tiles, linear_cross_entropy, linear_cross_entropy_sum, target
from jaxsoftmax.kernels import xla_chunked as xla
from jaxsoftmax.kernels.gpu import row_chunks
from jaxsoftmax.kernels.gpu.rows import plans
from jaxsoftmax.kernels.tiles import choose
from jaxsoftmax.kernels.types import Head, LSEParts, NeedsGrad, Options
from jaxsoftmax.sharding import Shards
from jaxsoftmax.softmax_core import LabeledRows

NAME, NAN = "mosaic_gpu_rows", np.nan
KIND = "NVIDIA H200"
pytestmark = pytest.mark.usefixtures("strict", "unoptimized")
# Too many rows for the budget that `TILES` stands for: three chunks, the last one's start moved.
CHUNKED = 50, 3, 64


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gpu_interpreter.skip_where_absent(monkeypatch)
    small = ((4096, plans.Tuning(1, 1, False, 1, 1, 4096), 1.0),)
    monkeypatch.setattr(plans, "MEASURED", small)
    monkeypatch.setattr(plans, "MIN_CLASSES", 32)
    monkeypatch.setattr(plans, "MIN_ROUNDS", 1)
    monkeypatch.setattr(row_chunks, "MIN_CHUNK_ROWS", 8)
    with target.assumed("gpu", interpret=True, kind=KIND):
        yield


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the logits for which the kernel has been traced."""
    shapes = []

    def watched(rows: LabeledRows, *arguments: jax.Array, **options: bool) -> tuple:
        shapes.append(rows.z.shape)
        return run(rows, *arguments, **options)

    run = row_chunks.rules.losses_and_gradient_in_place
    monkeypatch.setattr(row_chunks.rules, "losses_and_gradient_in_place", watched)
    return shapes


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the logits of which a kernel has been traced that reads them alone."""
    shapes = []

    def watched(z: jax.Array, labels: jax.Array) -> LSEParts:
        shapes.append(z.shape)
        return run(z, labels)

    run = row_chunks.rules.lse_parts
    monkeypatch.setattr(row_chunks.rules, "lse_parts", watched)
    return shapes


def random_head(n: int, d: int, k: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(n * k + d)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((n, d), (d, k)))
    return x, w, jnp.asarray(rng.integers(0, k, n), jnp.int32)


# -- Values and gradients --


@pytest.mark.parametrize(("shape", "rows"), [((6, 16, 64), 6), ((26, 3, 67), 13)], ids=str)
def test_no_worse_than_dense(
    shape: tuple[int, int, int], rows: int, kernels: list[tuple[int, ...]]
):
    def total(x: jax.Array, w: jax.Array, bias: jax.Array, head: Case) -> jax.Array:
        options = {"tiles": TILES, "implementation": NAME, "weights": head.cotangents[0]}
        return linear_cross_entropy_sum(x, w, head.labels, bias=bias, **options)

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
    for scale, label in zip(SCALES, LABELS, strict=True):
        head = case(shape, np.float32, scale, label)
        value, (dx, dw, db) = run(head.x, head.w, head.bias, head)
        found = {"sum": value, "sum dx": dx, "sum dw": dw, "sum db": db}
        wanted = {name: a for name, a in truth(head).items() if name in found}
        compare(wanted, found, orders(head, honest), f"{shape} at {scale}, {label} label")
    assert set(kernels) == {(rows, shape[2])}


def test_values_of_each_example_are_no_worse_than_dense(reads: list[tuple[int, ...]]):
    # Six chunks of rows, where XLA has nine blocks of classes.
    @jax.jit
    def run(head: Case) -> dict[str, jax.Array]:
        def values(x: jax.Array, w: jax.Array, bias: jax.Array) -> tuple:
            options = {"tiles": TILES, "implementation": NAME, "bias": bias}
            return tuple(linear_cross_entropy(x, w, head.labels, **options))

        found, back = jax.vjp(values, head.x, head.w, head.bias)
        names = "nll", "lse", "dx", "dw", "db"
        return dict(zip(names, (*found, *back(tuple(head.cotangents[:2]))), strict=True))

    for scale, label in zip(SCALES, LABELS, strict=True):
        head = case((26, 3, 67), np.float32, scale, label)
        head = head._replace(cotangents=head.cotangents.at[2].set(0))
        found = run(head)
        wanted = {name: a for name, a in truth(head).items() if name in found}
        compare(wanted, found, orders(head, honest), f"{scale}, {label} label")
    assert set(reads) == {(5, 67)}


def test_terms_of_bad_and_absent_labels(reads: list[tuple[int, ...]]):
    # A mask for each row, and one of all classes; labels that are masked, of another device, of
    # infinite logits and beside a NaN; a bias of -inf.
    n, _, k = CHUNKED
    x, w, labels = random_head(*CHUNKED)
    where = np.random.default_rng(0).random((n, k)) < 0.8
    where[np.arange(n), labels], where[8], where[11, labels[11]] = True, False, False
    labels = labels.at[jnp.array([5, 20])].set(-1)
    x, w = x.at[12].set(3e38).at[13].set(NAN), w.at[:, 2].set(2)
    bias = jnp.linspace(-1, 1, k).at[2].set(-np.inf).at[7].set(np.inf)
    head = Head(x, w, bias, jnp.asarray(where), labels)
    options = Options(TILES, target.current(), jnp.float32)
    found, want = (jax.jit(f.forward, static_argnums=1)(head, options) for f in (row_chunks, xla))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
    assert set(reads) == {(10, k)}


@pytest.mark.parametrize("each", [False, True], ids=["one mask", "a mask for each row"])
def test_masks_and_bad_values(each: bool):
    n, _, k = CHUNKED
    x, w, labels = random_head(*CHUNKED)
    where = np.ones(k, bool)
    where[3::7] = False
    labels = jnp.where(where[np.asarray(labels)] & (labels != 2), labels, 1).at[11].set(3)
    if each:
        where = where & (np.random.default_rng(0).random((n, k)) < 0.8)
        where[np.arange(n), labels], where[8], where[11, 3] = True, False, False
    # Rows of weight 0: a loss of infinity, a logit of NaN from finite features, a label out of
    # range. Rows that are not valid: NaN, and a label out of range.
    labels = labels.at[jnp.array([13, 5])].set(jnp.array([k, -1]))
    x = x.at[12].set(3e38).at[4].set(NAN)
    w = w.at[:, 2].set(2)
    weights = jnp.cos(jnp.arange(n, dtype=jnp.float32)).at[jnp.array([11, 12, 13])].set(0)
    valid = ~np.isin(np.arange(n), [4, 5])
    arrays = x, w, jnp.linspace(-1, 1, k).at[2].set(-np.inf), weights

    def total(x: jax.Array, w: jax.Array, bias: jax.Array, weights: jax.Array, name: str):
        return linear_cross_entropy_sum(
            x, w, labels, bias=bias, weights=weights, where=where, valid=valid, tiles=TILES,
            implementation=name,
        )  # fmt: skip

    found, want = (
        jax.jit(jax.value_and_grad(partial(total, name=name), (0, 1, 2, 3)))(*arrays)
        for name in (NAME, "xla_chunked")
    )
    assert all(np.isfinite(a).all() for a in (found[0], *found[1][:3]))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        largest = np.nanmax(np.where(np.isfinite(other), np.abs(other), 0))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * largest)
    alone = jax.jit(partial(total, name=NAME))(*arrays)
    np.testing.assert_allclose(alone, found[0], rtol=1e-6)


def z_loss_and_focal(nll: jax.Array, lse: jax.Array, mean: jax.Array) -> jax.Array:
    del mean
    return focal(nll, gamma=2.0) + 0.1 * lse**2


def test_a_loss_of_the_rows(kernels: list[tuple[int, ...]]):
    # A mask for each row; of weight 0 are a row whose label is masked and one of NaN.
    n, _, k = CHUNKED
    x, w, labels = random_head(*CHUNKED)
    where = np.random.default_rng(0).random((n, k)) < 0.8
    where[np.arange(n), labels], where[11, labels[11]], where[8] = True, False, False
    head = {"x": x.at[12].set(3e38), "w": w, "bias": jnp.linspace(-1, 1, k)}
    weights = jnp.cos(jnp.arange(n, dtype=jnp.float32)).at[jnp.array([8, 11, 12])].set(0)
    rest = {"labels": labels, "where": where, "weights": weights, "return_stats": True}

    def total(head: dict[str, jax.Array], **how) -> tuple[jax.Array, tuple]:
        how = rest | {"implementation": NAME} | how
        return linear_cross_entropy_sum(**head, tiles=TILES, **how)

    gradients = jax.value_and_grad(partial(total, row_loss=z_loss_and_focal), has_aux=True)
    (value, stats), found = gradients(head)
    assert set(kernels) == {(17, k)}
    with jax.enable_x64():
        wide = {name: a.astype(jnp.float64) for name, a in head.items()}
        (exact, others), want = jax.value_and_grad(
            lambda head: linear_cross_entropy_sum(
                **head, **rest, row_loss=z_loss_and_focal, implementation="reference"
            ),
            has_aux=True,
        )(wide)
    np.testing.assert_allclose(value, exact, rtol=2e-6)
    for a, b in zip(stats, others, strict=True):
        a, b = np.delete(np.float64(a), 12), np.delete(np.float64(b), 12)
        np.testing.assert_allclose(a, b, rtol=5e-6, atol=1e-6)
    for name, a in found.items():
        np.testing.assert_allclose(a, want[name], rtol=0, atol=2e-6 * np.abs(want[name]).max())
    # An infinite loss has a gradient in the classes that exist.
    counted = {"row_loss": z_loss_and_focal, "weights": weights.at[11].set(1)}
    of_w = [
        jax.grad(lambda w, name=name: total(head | {"w": w}, **counted, implementation=name)[0])(w)
        for name in (NAME, "xla_chunked")
    ]
    np.testing.assert_allclose(*of_w, rtol=0, atol=2e-6 * np.abs(of_w[1]).max())
    # The gradient of the mean logit is left to XLA.
    kernels.clear()
    jax.grad(lambda w: total(head | {"w": w}, row_loss=lambda nll, lse, mean: mean)[0])(w)
    assert not kernels


def test_a_label_out_of_range_is_nan():
    x, w, labels = random_head(*CHUNKED)
    run = jax.value_and_grad(partial(linear_cross_entropy_sum, implementation=NAME, tiles=TILES))
    value, dx = run(x, w, labels.at[20].set(64))
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(dx).all(1), np.arange(50) == 20)
    assert np.isfinite(np.delete(dx, 20, 0)).all()


# -- Transformations --


@pytest.mark.parametrize("of", ["sum", "loss of the rows", "values of each example"])
def test_transformations(of: str):
    x, w, labels = random_head(*CHUNKED)
    dx, dw = jnp.cos(x), jnp.sin(w)
    weights = jnp.cos(jnp.arange(50, dtype=jnp.float32))

    def transformed(name: str) -> dict:
        options = {"tiles": TILES, "implementation": name}
        row_loss = z_loss_and_focal if of == "loss of the rows" else None

        def total(x: jax.Array, w: jax.Array) -> jax.Array:
            if of == "values of each example":
                return jnp.vdot(weights, sum(linear_cross_entropy(x, w, labels, **options)))
            how = options | {"weights": weights, "row_loss": row_loss}
            return linear_cross_entropy_sum(x, w, labels, **how)

        grad = jax.grad(total, (0, 1))
        return {
            "Hessian product": jax.jvp(grad, (x, w), (dx, dw)),
            "x alone": jax.grad(total)(x, w),
            "several models": jax.vmap(jax.value_and_grad(total, 1), (None, 0))(
                x, jnp.stack([w, 2 * w])
            ),
        }

    found, want = (jax.jit(partial(transformed, name))() for name in (NAME, "xla_chunked"))
    for name, b in want.items():
        for one, other in zip(jax.tree.leaves(found[name]), jax.tree.leaves(b), strict=True):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize("row_loss", [None, z_loss_and_focal], ids=["sum", "loss of the rows"])
def test_rows_on_two_devices(row_loss: Callable | None, kernels: list[tuple[int, ...]]):
    # With a part of the classes a device has XLA's form.
    x, w, labels = random_head(40, 3, 64)
    mesh = jax.make_mesh((2,), ("a",))
    options = {"tiles": TILES, "implementation": NAME, "row_loss": row_loss}
    total = partial(linear_cross_entropy_sum, **options)
    gradients = jax.value_and_grad(partial(total, shards=Shards(rows="a")), (0, 1))
    with jax.set_mesh(mesh):
        places = P("a"), P(), P("a")
        arrays = [
            jax.device_put(a, jax.NamedSharding(mesh, p))
            for a, p in zip((x, w, labels), places, strict=True)
        ]
        found = jax.jit(gradients)(*arrays)
    assert set(kernels) == {(20, 64)}
    wanted = jax.value_and_grad(partial(total, implementation="xla_chunked"), (0, 1))(x, w, labels)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# -- Where it runs --


@pytest.mark.parametrize(
    ("rows", "shape", "grads", "memory"),
    [
        (2048, (2048, 1024, 32_000), {"x": 4, "w": 4}, None),  # 262 MB of logits
        (4096, (8192, 4096, 32_000), {"x": 4, "w": 4}, None),  # and 67 each of x and its gradient
        (2731, (8192, 4096, 32_000), {"w": 4}, None),
        (2731, (8192, 4096, 32_000), {"w": 2}, 10**9),  # beside a sum of 524 MB
        (None, (8192, 4096, 32_000), {"w": 2}, None),
        (None, (8192, 64, 32_000), {"x": 4, "w": 4}, 2**25),  # fewer than 512 rows
        (512, (8192, 64, 32_000), {"x": 4}, 2**26),  # of x's gradient each row is complete
    ],
)  # fmt: skip
def test_rows_of_a_chunk(
    rows: int | None,
    shape: tuple[int, int, int],
    grads: dict[str, int],
    memory: int | None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.undo()  # as measured
    n, d, k = shape
    types = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, k)))
    head = Head(*types, None, None, jax.ShapeDtypeStruct((n,), jnp.int32))
    options = Options(choose(n, d, k, memory=memory), target.current(), jnp.float32)
    kinds = {name: {4: jnp.float32, 2: jnp.bfloat16}[size] for name, size in grads.items()}
    assert row_chunks._chunk_rows(head, NeedsGrad(**kinds), options) == rows


@pytest.mark.parametrize(
    ("shape", "memory", "rows", "gain"),
    [
        ((8192, 768, 50_257), None, 631, 0.23),
        ((8192, 4096, 32_000), None, 911, 0.09),
        ((32_768, 128, 32_000), None, 1024, 0.36),
        ((2048, 4096, 98_304), 2**24, None, 0),  # 40 rows, which would leave multiprocessors idle
        ((4096, 768, 4096), None, None, 0),  # one block of classes
    ],
    ids=str,
)
def test_rows_of_values(
    shape: tuple[int, int, int],
    memory: int | None,
    rows: int | None,
    gain: float,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.undo()  # as measured
    n, d, k = shape
    types = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, k)))
    head = Head(*types, None, None, jax.ShapeDtypeStruct((n,), jnp.int32))
    with target.assumed("gpu", interpret=True, kind=KIND):
        options = Options(choose(n, d, k, memory=memory), target.current(), jnp.float32)
        assert row_chunks._forward_rows(head, options) == rows
        precise = dataclasses.replace(options, precision=jax.lax.Precision.HIGHEST)
        for other in (precise, dataclasses.replace(options, stats=True)):
            assert row_chunks._forward_rows(head, other) is None
    if rows is not None:
        block = xla.classes_of_block(head, options)
        here, there = row_chunks.forward_seconds(n, d, k, rows, block)
        assert 1 - here / there == pytest.approx(gain, abs=0.005)


def test_refusals():
    x, w, labels = random_head(*CHUNKED)

    def refused(pattern: str, *arrays: jax.Array, **options) -> None:
        with pytest.raises(NotImplementedError, match=pattern):
            linear_cross_entropy_sum(*arrays, implementation=NAME, tiles=Tiles(4, 8), **options)

    refused("float32 .* got bfloat16", x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), labels)
    refused("softcap", x, w, labels, softcap=30.0)
    refused("rows to keep the device busy", x[:1], w, labels[:1])
    with target.assumed("gpu", interpret=True, kind="NVIDIA B200"):
        refused("nothing was measured on this GPU", x, w, labels)
