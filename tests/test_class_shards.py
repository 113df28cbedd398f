"""Classes over mesh axes: what is refused, and eight devices in a process of their own."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsoftmax import (
    Shards,
    class_maxima,
    cross_entropy,
    entropy,
    exponential,
    fixed_point,
    integer_reductions,
    linear_binary_cross_entropy,
    linear_cross_entropy,
    log_softmax,
    pad_classes,
    softmax,
    softmax_core,
)
from jaxsoftmax.kernels import target
from jaxsoftmax.solvers import device_sums

SCRIPT = Path(__file__).parent / "mesh_cases_classes.py"


def run(*arguments: str) -> list[str]:
    """What the script prints, line by line; its status says no more."""
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert found.stdout, found.stderr
    return found.stdout.splitlines()


def test_on_eight_devices() -> None:
    lines = run()
    assert len(lines) >= 10
    assert not [line for line in lines if not line.startswith("PASS")]


LOGITS, LABELS = jnp.zeros((3, 8)), jnp.zeros(3, jnp.int32)


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        ("model", TypeError, "shards: expected Shards"),
        (Shards(classes="other"), ValueError, "shards must name axes of the mesh, .*'other'"),
        (Shards(rows="model", classes="model"), ValueError, "different axes of rows and classes"),
        (Shards(classes=("data", "data")), ValueError, "an axis of the mesh once, got"),
        (Shards(rows="data", classes="model"), ValueError, "number of rows that 2 .*got 3"),
    ],
)
def test_shards_that_are_refused(shards: Any, error: type[Exception], message: str) -> None:
    mesh = jax.make_mesh((2, 1), ("data", "model"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), pytest.raises(error, match=message):
        cross_entropy(LOGITS, LABELS, shards=shards)


def test_classes_that_the_shards_do_not_divide() -> None:
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="divide, got 7; see pad_classes"):
        cross_entropy(LOGITS[:, :7], LABELS, shards=Shards(classes="model"))


def test_arrays_of_numpy_on_an_explicit_mesh() -> None:
    """Their types name no mesh, inside a program as well; gradients are those of one device."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((4, 3), (3, 8)))
    y, where = np.arange(4), np.arange(32).reshape(4, 8) > 7

    def value(x: Any, w: Any, shards: Shards | None) -> Any:
        nll = linear_cross_entropy(x, w, y, where=where, shards=shards).nll
        return nll.sum() + cross_entropy(w, y[:3], shards=shards).sum()

    gradients = jax.grad(value, (0, 1))
    wanted = jax.jit(partial(gradients, shards=None))(x, w)
    for axis in ("rows", "classes"):
        with jax.set_mesh(jax.make_mesh((2,), ("model",), (AxisType.Explicit,))):
            found = jax.jit(partial(gradients, shards=Shards(**{axis: "model"})))(x, w)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_mask_whose_classes_are_sharded_and_those_of_the_model_are_not() -> None:
    """On an Explicit mesh, where a gradient has to lie as its argument does."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 3), (3, 8)))
    where = jnp.arange(32).reshape(4, 8) > 7
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Explicit,))

    def value(x: Any, w: Any, where: Any) -> Any:
        nll = linear_cross_entropy(x, w, jnp.arange(4), where=where).nll
        return jnp.sum(nll + linear_binary_cross_entropy(x, w, where, where=where))

    gradients = jax.jit(jax.grad(value, (0, 1)))
    wanted = gradients(x, w, where)
    with jax.set_mesh(mesh):
        places = P(), P(), P(None, "model")
        found = gradients(*map(jax.device_put, (x, w, where), places))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_arrays_on_another_mesh_than_the_one_of_the_context() -> None:
    own, other = (jax.make_mesh((2,), (name,), (AxisType.Auto,)) for name in ("model", "other"))
    z, x = (jax.device_put(a, jax.NamedSharding(own, P())) for a in (LOGITS, X))
    message = "expected an array on the mesh of jax.set_mesh, {'other': 2}, got one on {'model': 2}"
    of_classes, labels = {"shards": Shards(classes="model")}, jnp.zeros(4, jnp.int32)
    with jax.set_mesh(other):
        with pytest.raises(ValueError, match=f"logits: {message}"):
            cross_entropy(z, LABELS, **of_classes)
        with pytest.raises(ValueError, match=f"x: {message}"):
            linear_cross_entropy(x, W, labels, **of_classes)


def test_axes_inside_and_outside_of_a_shard_map() -> None:
    mesh = jax.make_mesh((2, 1), ("data", "model"), (AxisType.Auto,) * 2)
    loss = partial(cross_entropy, shards=Shards(rows="data", classes="model"))
    inner = jax.shard_map(
        loss,
        mesh=mesh,
        in_specs=(P(None, "model"), P()),
        out_specs=P(),
        axis_names={"model"},
    )
    with pytest.raises(ValueError, match="all in the shard_map or not"):
        jax.jit(inner)(LOGITS, LABELS)


X, W = jnp.ones((4, 3)), jnp.ones((3, 8))


def test_heads_that_are_refused() -> None:
    mesh = jax.make_mesh((2, 1), ("data", "model"), (AxisType.Auto,) * 2)
    loss = partial(linear_cross_entropy, labels=jnp.zeros(4, jnp.int32))
    with jax.set_mesh(mesh), target.assumed("tpu", interpret=True):
        of_kernel = partial(loss, implementation="mosaic_tpu", shards=Shards(classes="model"))
        with pytest.raises(NotImplementedError, match="to name all axes of the mesh"):
            of_kernel(X, W)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"w: .* divide 7 classes; see pad"):
        loss(X, W[:, :7], shards=Shards(classes="data"))
    dense = jax.shard_map(
        partial(loss, implementation="reference", shards=Shards(classes="data")),
        mesh=mesh,
        in_specs=(P(), P(None, "data")),
        out_specs=P(),
    )
    with pytest.raises(NotImplementedError, match="needs all classes on one device"):
        jax.jit(dense)(X, W)


def test_a_padded_head_is_the_head() -> None:
    rng = np.random.default_rng(0)
    x, w, bias = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 3), (3, 5), (5,)))

    def mean(x: jax.Array, w: jax.Array, bias: jax.Array, multiple: int) -> jax.Array:
        w = pad_classes(w, multiple=multiple, value=0.0)
        options = {"bias": pad_classes(bias, multiple=multiple)}
        return linear_cross_entropy(x, w, jnp.arange(4), **options).nll.mean()

    found, wanted = (jax.grad(partial(mean, multiple=m), (0, 1, 2))(x, w, bias) for m in (8, 1))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_padding() -> None:
    x = jnp.ones((2, 3, 5))
    assert pad_classes(x, multiple=5) is x
    padded = pad_classes(x, multiple=4, axis=1)
    assert padded.shape == (2, 4, 5)
    assert (padded[:, 3] == -jnp.inf).all()
    where = pad_classes(x > 0, multiple=4, value=False)
    np.testing.assert_array_equal(where[0, 0], [True] * 5 + [False] * 3)
    with pytest.raises(ValueError, match="multiple: expected at least 1, got 0"):
        pad_classes(x, multiple=0)
    with pytest.raises(ValueError, match=r"axis: expected an axis of .*, got 3"):
        pad_classes(x, multiple=4, axis=3)
    with pytest.raises(TypeError, match="x: expected a floating dtype, got bool"):
        pad_classes(x > 0, multiple=4)


@pytest.mark.parametrize("classes", [128, 1000, 2**21])
def test_sums_in_fixed_point_are_those_of_float64(classes: int) -> None:
    """One large term and small ones, each of which is half a unit of a shorter sum."""
    terms = np.full(classes, 2.0**-26 * 1.37, np.float32)
    terms[classes // 3] = 1.99
    bound = fixed_point.power_above(jnp.float32(1.99))
    assert bound == 0.5  # a quarter of 2
    blocks = fixed_point.sum_blocks(jnp.asarray(terms), 0)
    form = fixed_point.choose_format(np.dtype(np.float32), blocks.shape[0])
    found = fixed_point.from_limbs(fixed_point.to_limbs(blocks, bound, 0, form), bound, form)
    exact = np.sum(terms.astype(np.float64))
    assert abs(np.float64(found) - exact) <= 4 * np.spacing(np.float32(exact))


@pytest.mark.parametrize("classes", [2**17, 2**20])
def test_sums_of_1_to_1024_shards_have_the_same_bits(classes: int) -> None:
    """Blocks that would all be rounded the same way, of one sign and of both."""
    small = np.full(classes // 128, 2.0**-32 * 1.49, np.float32)
    rows = jnp.asarray([small, np.where(np.arange(small.size) % 2, -small, 3 * small)])
    rows = rows.at[:, 77].set(1.99)
    scale = fixed_point.power_above(jnp.full(2, 1.99, jnp.float32))
    exact = np.asarray(rows, np.float64).sum(1)

    def on(shards: int) -> np.ndarray:
        parts = rows.reshape(2, shards, -1)
        form = fixed_point.choose_format(rows.dtype, small.size, shards=shards)
        limbs = fixed_point.to_limbs(parts, scale[:, None], 2, form)
        totals = [jnp.sum(limb, 1, dtype=limb.dtype) for limb in limbs]
        return np.asarray(fixed_point.from_limbs(totals, scale, form))

    assert (abs(on(1024) - exact) <= 2 * np.spacing(np.float32(1.99))).all()
    for shards in (1, 8):
        np.testing.assert_array_equal(on(shards), on(1024))


def test_integers_of_64_bits_in_parts_of_32() -> None:
    """What crosses between TPUs: equal high words and others, carries, negative numbers, NaN."""
    rng = np.random.default_rng(0)
    floats = np.append(rng.standard_normal(12), [-np.inf, np.inf, np.nan, 0.0])
    near = floats + np.spacing(floats) * rng.integers(-2, 3, floats.size)
    pairs = np.array([[*floats, *floats], [*near, *rng.permutation(floats)]])
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Auto,))
    with jax.enable_x64():
        orders = class_maxima.to_order(jnp.asarray(pairs))
        integers = jnp.asarray(rng.integers(-(2**62), 2**62, (2, 64))).at[:, 0].set(2**62 - 1)

        def parts(orders: jax.Array, integers: jax.Array) -> Any:
            largest = integer_reductions.largest_words({"a": orders}, ("model",))
            return largest["a"], integer_reductions.total_pieces([integers], ("model",))[0]

        spread = jax.shard_map(parts, mesh=mesh, in_specs=P("model"), out_specs=P())
        largest, total = jax.jit(spread)(orders, integers)
        np.testing.assert_array_equal(largest[0], orders.max(0))
        np.testing.assert_array_equal(total[0], integers.sum(0))


def test_sums_of_float64_over_tpus_in_integers() -> None:
    """To 2^-49 of the largest term: terms that cancel, of all sizes, none, and infinite ones."""
    rng = np.random.default_rng(0)
    terms = rng.standard_normal((2, 500)) * 2.0 ** rng.uniform(-90, 90, 500)
    terms[1, :100] = -terms[0, :100] * (1 + 1e-9)
    terms[:, 100], terms[0, 101], terms[1, 102] = 0, np.inf, np.nan
    mesh = jax.make_mesh((2,), ("r",), (AxisType.Auto,))
    with jax.enable_x64(), target.assumed("tpu"):
        run = jax.shard_map(
            lambda a: device_sums.total((a, a.astype(jnp.float32)), ("r",)),
            mesh=mesh,
            in_specs=P("r"),
            out_specs=P(),
        )
        found, single = jax.jit(run)(jnp.asarray(terms))
    assert np.isnan(found[0, 101:103]).all()
    terms, found = np.delete(terms, [101, 102], 1), np.delete(found[0], [101, 102])
    assert (abs(found - terms.sum(0)) <= 2.0**-49 * abs(terms).max(0)).all()
    assert single.dtype == jnp.float32


@pytest.mark.parametrize("devices", [1, 2, 3, 16, 32, 1024])
def test_integers_have_room_for_the_sums_of_all_devices(devices: int) -> None:
    first, *others = device_sums._places(devices)
    assert devices * 4 * 2**first < 2**31
    assert all(devices * 2**bits <= 2**31 for bits in others)
    assert devices * 2.0 ** -(first + sum(others)) <= 2.0**-47
    assert len(others) == (1 if devices <= 16 else 2)


def constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of a program and of the programs in it."""
    yield from getattr(jaxpr, "consts", ())
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (v.val for v in equation.invars if isinstance(v, Literal))
        for inner in jax.tree.leaves([*equation.params.values()], is_leaf=is_program):
            if is_program(inner):
                yield from constants(inner)


def is_program(a: Any) -> bool:
    return hasattr(a, "eqns")


LINKS_AND_LOSSES = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "entropy": entropy,
    "cross_entropy": partial(cross_entropy, labels=jnp.zeros(3, jnp.int32)),
    "entropy over shards": partial(entropy, shards=Shards(classes="model")),
}


@pytest.mark.parametrize("name", LINKS_AND_LOSSES)
def test_constants_of_a_tpu_s_float64_are_in_the_range_of_float32(name: str) -> None:
    """The least float64 would be -inf there, so that no row would be found to be masked."""
    limits = np.finfo(np.float32)
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Auto,))
    with jax.set_mesh(mesh), jax.enable_x64(), target.assumed("tpu"):
        z = jnp.zeros((3, 14))
        traced = jax.make_jaxpr(jax.grad(lambda z: LINKS_AND_LOSSES[name](z).sum()))(z)
    found = [np.asarray(c) for c in constants(traced)]
    sizes = np.concatenate([abs(c).ravel() for c in found if c.dtype == np.float64])
    sizes = sizes[(sizes > 0) & np.isfinite(sizes)]
    assert sizes.size
    assert sizes.min() >= limits.tiny
    assert sizes.max() < 2.0**128


def test_the_lowest_number_of_a_tpu_s_float64() -> None:
    with target.assumed("tpu"):
        lowest = exponential.float_limits(np.float64).lowest
    high = np.float32(lowest)
    assert high == np.finfo(np.float32).min
    assert float(high) + float(np.float32(lowest - float(high))) == lowest
    with np.errstate(over="ignore"):
        assert np.float32(lowest - 2.0**79) == -np.inf  # the next one of 49 bits


def test_float64_of_a_tpu_stays_in_the_range_of_float32() -> None:
    """It is a sum of two float32, so that 2^512, the scale elsewhere, is infinite."""
    z = np.random.default_rng(0).standard_normal((5, 9)) * [[1], [10], [100], [1000], [1e6]]
    labels, known = jnp.arange(5), jnp.ones(5, bool)
    with jax.enable_x64(), target.assumed("tpu"):
        row = exponential.prepare_rows(jnp.asarray(z.max(1)))
        numbers = [
            exponential.scaled_exp(jnp.asarray(z), row.expand_dims(1)),
            exponential.exp_of_maximum(row),
            1 / fixed_point.power_above(jnp.asarray([0.0, 1e-300, 1e-30])),
        ]
        found = softmax_core.value_and_gradient(jnp.asarray(z), labels, known, known, 1)
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    assert all(((tiny <= np.asarray(a)) & (np.asarray(a) <= huge)).all() for a in numbers)
    with jax.enable_x64():
        wanted = softmax_core.value_and_gradient(jnp.asarray(z), labels, known, known, 1)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-55)
