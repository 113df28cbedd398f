"""The kernels inside jax.shard_map: rows over a mesh axis, a model that every device has.

The value and all gradients are those of the same kernel on one device, whether shard_map follows
what varies or not. JAX's interpreter of TPU kernels refuses values that vary, so for these it runs
outside of shard_map, in a callback, as that of GPU kernels does. To trace the GPU kernels, which is
where types are looked at, or to compile the TPU ones takes no interpreter.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mosaic
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxsoftmax.kernels import (
    linear_binary_cross_entropy,
    linear_binary_cross_entropy_sum,
    linear_cross_entropy,
    linear_cross_entropy_stats,
    linear_cross_entropy_sum,
    target,
)
from jaxsoftmax.kernels.tiles import Tiles
from jaxsoftmax.kernels.tpu import grids

pytestmark = pytest.mark.usefixtures("strict", "unoptimized")

SCRIPT = Path(__file__).parent / "mesh_cases_kernels.py"
AUTO = (AxisType.Auto,)
MODEL, ROW = P(), P("rows")
# Of x, w, bias, labels, targets, where, valid, weights.
PLACES = (ROW, MODEL, MODEL, ROW, ROW, MODEL, ROW, ROW)
# Two blocks of classes in the reverse pass, and two chunks of a device's rows in the sum.
SMALL = grids.SMALL_VMEM_LIMITS._replace(rows=32, class_bytes=512, feature_bytes=512)
CASES = {
    "mosaic_tpu": ((90, 5, 300), jnp.float32, Tiles(rows=4, classes=8)),
    "mosaic_gpu": ((8, 8, 320), jnp.bfloat16, Tiles(rows=1, classes=64)),
}


def data(shape: tuple[int, int, int], dtype: Any) -> tuple[jax.Array, ...]:
    n, d, k = shape
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(s) for s in ((n, d), (d, k), (k,)))
    truth = jnp.asarray(rng.integers(0, k, n), jnp.int32), jnp.asarray(rng.random((n, k)) < 0.5)
    which = jnp.asarray(rng.random(k) < 0.9), jnp.asarray(rng.random(n) < 0.8)
    model = jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(bias, jnp.float32)
    return *model, *truth, *which, jnp.asarray(rng.random(n), jnp.float32)


TITLES = ("stats", "total", "binary")  # what the interpreters run; the others compile alone


def functions(name: str, tiles: Tiles) -> dict[str, Callable]:
    """Each with everything it takes, and a sum with a cotangent of its own for every row."""
    how: dict[str, Any] = {"implementation": name, "tiles": tiles}

    def per_example(x, w, bias, labels, targets, where, valid, weights):  # type: ignore[no-untyped-def]
        nll, lse = linear_cross_entropy(x, w, labels, bias=bias, where=where, valid=valid, **how)
        return jnp.sum(weights * (nll - 0.5 * lse))

    def stats(x, w, bias, labels, targets, where, valid, weights):  # type: ignore[no-untyped-def]
        found = linear_cross_entropy_stats(x, w, labels, bias=bias, softcap=3.0, **how)
        hits = jnp.where(found.correct, found.predicted, 1).astype(jnp.float32)
        return jnp.sum(weights * hits * (found.nll + found.mean_logit))

    def total(x, w, bias, labels, targets, where, valid, weights):  # type: ignore[no-untyped-def]
        options = {"bias": bias, "where": where, "valid": valid, "weights": weights}
        return linear_cross_entropy_sum(x, w, labels, **options, **how)

    def binary(x, w, bias, labels, targets, where, valid, weights):  # type: ignore[no-untyped-def]
        options = {"bias": bias, "where": where, "valid": valid, "pos_weight": jnp.exp(bias)}
        return jnp.sum(weights * linear_binary_cross_entropy(x, w, targets, **options, **how))

    def binary_total(x, w, bias, labels, targets, where, valid, weights):  # type: ignore[no-untyped-def]
        return linear_binary_cross_entropy_sum(x, w, targets, bias=bias, weights=weights, **how)

    return {f.__name__: f for f in (per_example, stats, total, binary, binary_total)}


def with_gradients(function: Callable) -> Callable:
    return jax.value_and_grad(function, (0, 1, 2))


def over_rows(function: Callable, mesh: Any, *, check_vma: bool) -> Callable:
    """The sum over all devices of what each has of its rows."""
    return jax.shard_map(
        lambda *a: jax.lax.psum(function(*a), "rows"),
        mesh=mesh,
        in_specs=PLACES,
        out_specs=P(),
        check_vma=check_vma,
    )


def gradients_inside(function: Callable, mesh: Any) -> Callable:
    """Taken inside, as a training step does: shard_map sums those of what is replicated."""

    def local(*arguments: jax.Array) -> tuple:
        value, gradients = with_gradients(function)(*arguments)
        return jax.lax.psum(value, "rows"), gradients

    out = P(), (ROW, MODEL, MODEL)
    return jax.shard_map(local, mesh=mesh, in_specs=PLACES, out_specs=out)


# -- Interpreted --


@pytest.fixture
def interpreted(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(grids, "SMALL_VMEM_LIMITS", SMALL)
    if name == "mosaic_gpu" and not hasattr(mosaic, "InterpretGPUParams"):
        pytest.skip("this JAX has no interpreter of GPU kernels")
    with target.assumed(name.removeprefix("mosaic_"), interpret=True):
        yield


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("title", TITLES)
def test_values_that_vary(name: str, title: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pl, "pallas_call", partial(in_a_callback, pl.pallas_call))
    shape, dtype, tiles = CASES[name]
    function, arguments = functions(name, tiles)[title], data(shape, dtype)
    wanted = jax.jit(with_gradients(function))(*arguments)
    # One device: two that wait for callbacks and for each other sometimes wait for ever.
    mesh = jax.make_mesh((1,), ("rows",), AUTO)
    close(jax.jit(gradients_inside(function, mesh))(*arguments), wanted, title)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["mosaic_tpu"])
@pytest.mark.parametrize("title", TITLES)
def test_two_devices(name: str, title: str):
    shape, dtype, tiles = CASES[name]
    function, arguments = functions(name, tiles)[title], data(shape, dtype)
    mesh = jax.make_mesh((2,), ("rows",), AUTO)
    found = jax.jit(with_gradients(over_rows(function, mesh, check_vma=False)))(*arguments)
    close(found, jax.jit(with_gradients(function))(*arguments), title)


def in_a_callback(pallas_call: Callable, kernel: Callable, *, out_shape: Any, **how: Any) -> Any:
    """A kernel whose results have the types that it says."""
    types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), out_shape)
    run = jax.jit(pallas_call(kernel, out_shape=types, **how))

    def results(*inputs: Any) -> Any:
        return jax.block_until_ready(run(*inputs))

    def found(*inputs: Any) -> Any:
        return jax.tree.map(with_type, jax.pure_callback(results, types, *inputs), out_shape)

    return found


def with_type(a: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    axes = tuple(like.manual_axis_type.varying)  # None would be a type that is not whole
    return jax.lax.pcast(a, axes, to="varying") if axes else a


def close(found: Any, wanted: Any, name: str) -> None:
    """The gradients of two halves are rounded to the argument's dtype before they are added."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype, name
        a, b = np.float64(a), np.float64(b)
        bound = 4 * float(jnp.finfo(jax.tree.leaves(wanted)[1].dtype).eps) * np.max(np.abs(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=name)


# -- Traced and compiled --


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("kind", ["NVIDIA H200", "NVIDIA B200"])
def test_types_on_a_gpu(kind: str, check_vma: bool):
    known = AbstractDevice(device_kind=kind, num_cores=132, platform="cuda")
    mesh = AbstractMesh((4,), ("rows",), AUTO, abstract_device=known)
    shapes = jax.eval_shape(partial(data, (1024, 256, 1025), jnp.bfloat16))
    with target.assumed("gpu"), jax.sharding.use_abstract_mesh(mesh):
        for function in functions("mosaic_gpu", Tiles(rows=64, classes=256)).values():
            program = with_gradients(over_rows(function, mesh, check_vma=check_vma))
            value, gradients = jax.eval_shape(jax.jit(program), *shapes)
            assert (value.shape, [g.dtype for g in gradients]) == (
                (),
                [a.dtype for a in shapes[:3]],
            )


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_are_symbols_are_refused(name: str):
    (n,) = export.symbolic_shape("n")
    _, dtype, tiles = CASES[name]
    x, w = jax.ShapeDtypeStruct((n, 64), dtype), jax.ShapeDtypeStruct((64, 256), dtype)
    program = partial(linear_cross_entropy, implementation=name, tiles=tiles)
    with (
        target.assumed(name.removeprefix("mosaic_"), interpret=True),
        pytest.raises(NotImplementedError, match="sizes that are numbers"),
    ):
        export.export(jax.jit(program))(x, w, jax.ShapeDtypeStruct((n,), jnp.int32))


@pytest.mark.libtpu
def test_collectives_on_a_tpu():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in functions("mosaic_tpu", Tiles(rows=1, classes=1)):
        # The value, and the gradients of w and bias; x and its gradient stay where they are.
        program = found.pop(name)
        assert program.pop("kernels") >= 2, name
        assert {kind: sorted(shapes) for kind, shapes in program.items()} == {
            "all-reduce": ["bf16[256,1025]", "f32[1025]", "f32[]"]
        }, name
    assert not found


def test_features_may_be_sharded() -> None:
    """Gradients lie as the arguments do, though a derivative rule has all features."""
    mesh = jax.make_mesh((2,), ("features",), axis_types=(AxisType.Explicit,))
    places = (P(None, "features"), P("features", None), P())
    arrays = data((6, 4, 5), jnp.float32)
    whole = functions("xla_chunked", Tiles(rows=4, classes=5))
    with jax.set_mesh(mesh):
        sharded = [jax.device_put(a, place) for a, place in zip(arrays, places, strict=False)]
        for name in ("per_example", "total", "binary"):
            found = jax.jit(with_gradients(whole[name]))(*sharded, *arrays[3:])
            assert [g.sharding.spec for g in found[1][:2]] == list(places[:2])
            want = jax.jit(with_gradients(whole[name]))(*arrays)
            chex.assert_trees_all_close(jax.device_get(found), jax.device_get(want), rtol=1e-5)
