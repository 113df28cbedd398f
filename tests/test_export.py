"""Programs for a batch of any size: exported once, stored, and called at several."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_interpreter
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mosaic
from jax.sharding import PartitionSpec as P

import jaxsoftmax as js
from jaxsoftmax import linear, training
from jaxsoftmax.kernels import target
from jaxsoftmax.kernels.tiles import Tiles

K, D = 40, 6
PLATFORMS = ("cpu", "cuda", "tpu")
SIZES = (3, 300)  # few rows, whose sums XLA takes in sequence, and many, in vectors


def rows(*shape: int, dtype: Any = np.float32) -> tuple:
    """The type of an argument with an axis of examples."""
    return ("b", *shape), dtype


LOGITS, LABELS, VALID = rows(K), rows(dtype=np.int32), rows(dtype=np.bool_)
X, W, BIAS = rows(D), ((D, K), np.float32), ((K,), np.float32)
TILES = Tiles(rows=8, classes=16)


def gradients(f: Callable) -> Callable:
    """Value and gradients of the sum of a fused loss."""

    def run(x: Any, w: Any, bias: Any, targets: Any) -> Any:
        def value(x: Any, w: Any, bias: Any) -> Any:
            return jnp.sum(f(x, w, targets, bias=bias, tiles=TILES))

        return jax.value_and_grad(value, argnums=(0, 1, 2))(x, w, bias)

    return run


def masked(f: Callable) -> Callable:
    """A loss with both of its masks."""
    exists = jnp.arange(K)[None, :] != 5
    return lambda logits, labels, valid: f(logits, labels, valid=valid, where=exists)


def hessian_product(z: Any, y: Any) -> Any:
    return jax.jvp(jax.grad(lambda z: js.cross_entropy(z, y).sum()), (z,), (z,))[1]


def evaluated(x: Any, w: Any, bias: Any, labels: Any) -> Any:
    params = linear.LinearParams(w, bias)
    return training.evaluate(params, x, labels, loss=training.on_logits(js.cross_entropy))


HEAD = (X, W, BIAS, LABELS)
PROGRAMS: dict[str, tuple[Callable, tuple]] = {
    **{
        f.__name__: (f, (LOGITS,))
        for f in (js.softmax, js.log_softmax, js.logsumexp, js.sigmoid, js.softplus, js.entropy)
    },
    **{
        f.__name__: (masked(f), (LOGITS, LABELS, VALID))
        for f in (js.cross_entropy, js.brier, js.multiclass_hinge, js.cross_entropy_gradient)
    },
    **{
        f.__name__: (f, (LOGITS, LOGITS))
        for f in (
            js.soft_cross_entropy, js.kl_divergence, js.binary_cross_entropy, js.squared_error,
            js.cross_entropy_hessian_product,
        )
    },
    "gradient": (jax.grad(lambda z, y: js.weighted_mean(js.cross_entropy(z, y))), (LOGITS, LABELS)),
    "hessian product": (hessian_product, (LOGITS, LABELS)),
    "first axis": (lambda z: js.softmax(z.T, axis=0), (LOGITS,)),
    "linear_cross_entropy": (partial(js.linear_cross_entropy, tiles=TILES), (X, W, LABELS)),
    "linear_cross_entropy_stats": (js.linear_cross_entropy_stats, (X, W, LABELS)),
    "linear_cross_entropy, gradients": (
        gradients(lambda *a, **k: js.linear_cross_entropy(*a, **k).nll), HEAD),
    "linear_cross_entropy_sum, gradients": (gradients(js.linear_cross_entropy_sum), HEAD),
    "linear_binary_cross_entropy, gradients": (
        gradients(js.linear_binary_cross_entropy), (X, W, BIAS, LOGITS)),
    "linear_binary_cross_entropy_sum, gradients": (
        gradients(js.linear_binary_cross_entropy_sum), (X, W, BIAS, LOGITS)),
    "evaluate": (evaluated, HEAD),
}  # fmt: skip


def drawn(spec: tuple, size: int) -> np.ndarray:
    shape = tuple(size if n == "b" else n for n in spec[0])
    rng = np.random.default_rng(len(shape) + size)
    if spec[1] is np.float32:
        return rng.uniform(0, 1, shape).astype(np.float32)
    return rng.integers(0, 2, shape).astype(spec[1])


@pytest.mark.parametrize("name", PROGRAMS)
def test_exports_with_a_batch_of_any_size(name: str) -> None:
    function, specs = PROGRAMS[name]
    (b,) = export.symbolic_shape("b")
    types = [
        jax.ShapeDtypeStruct(tuple(b if n == "b" else n for n in shape), dtype)
        for shape, dtype in specs
    ]
    stored = export.export(jax.jit(function), platforms=PLATFORMS)(*types).serialize()
    program = export.deserialize(stored)
    for size in SIZES:
        arguments = [drawn(spec, size) for spec in specs]
        found, want = program.call(*arguments), jax.jit(function)(*arguments)
        assert jax.tree.structure(found) == jax.tree.structure(want)
        for a, t in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, t, rtol=2e-6, atol=1e-6)


def test_a_number_of_classes_may_be_a_symbol() -> None:
    (k,) = export.symbolic_shape("k")
    program = export.export(jax.jit(js.cross_entropy))(
        jax.ShapeDtypeStruct((8, k), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    )
    logits = np.random.default_rng(0).standard_normal((8, 700)).astype(np.float32)
    labels = np.arange(8, dtype=np.int32)
    want = js.cross_entropy(logits, labels)
    np.testing.assert_allclose(program.call(logits, labels), want, rtol=1e-6)


def test_a_batch_of_any_size_whose_classes_are_sharded() -> None:
    """It is not called: XLA for CPUs crashes in a shard_map that pads an axis of any size."""
    mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,))
    shards = js.Shards(classes="model")

    def total(z: Any, y: Any) -> Any:
        return jnp.sum(js.cross_entropy(z, y, shards=shards) + js.entropy(z, shards=shards))

    (b,) = export.symbolic_shape("b")
    own, whole = (jax.NamedSharding(mesh, P(*axes)) for axes in ((None, "model"), ()))
    logits = jax.ShapeDtypeStruct((b, K), jnp.float32, sharding=own)
    labels = jax.ShapeDtypeStruct((b,), jnp.int32, sharding=whole)
    with jax.set_mesh(mesh):
        program = export.export(jax.jit(jax.grad(total)), platforms=PLATFORMS)(logits, labels)
    assert (program.out_avals[0].shape, program.nr_devices) == ((b, K), 2)


def test_losses_in_a_kernel_of_the_user() -> None:
    """Mosaic lowers their operations, which it would not if one were a primitive of ours."""

    def kernel(z: Any, out: Any) -> None:
        labels = jnp.zeros(z.shape[0], jnp.int32)
        values = js.cross_entropy(z[...], labels) + js.logsumexp(z[...])
        out[...] = js.log_softmax(z[...]) + js.softmax(z[...]) + values[:, None]

    logits = jax.ShapeDtypeStruct((128, 256), jnp.float32)
    program = jax.jit(pl.pallas_call(kernel, out_shape=logits))
    assert "tpu_custom_call" in export.export(program, platforms=["tpu"])(logits).mlir_module()


def binary_derivatives(z: Any) -> Any:
    product = js.binary_cross_entropy_hessian_product(z, z, z)
    return js.binary_cross_entropy_gradient(z, z) + product


# Mosaic for a GPU lowers no logarithm of 1 + x, gather, or sum of cotangents (jax 0.12.0.1): of
# losses and links these are left. The Hessian product is what the softmax's vjp computes.
OF_A_GPU = {
    "softmax": js.softmax,
    "softmax, forward mode": lambda z: jax.jvp(js.softmax, (z,), (z * z,))[1],
    "hessian product": lambda z: js.cross_entropy_hessian_product(z, z * z),
    "sigmoid": js.sigmoid,
    "sigmoid, reverse mode": lambda z: jax.vjp(js.sigmoid, z)[1](z)[0],
    "binary": binary_derivatives,
}


@pytest.mark.skipif(
    not gpu_interpreter.IS_THERE, reason="Mosaic of jax 0.11.0 lowers no custom_jvp on a GPU"
)
def test_derivatives_in_a_kernel_of_the_user_for_a_gpu() -> None:
    def kernel(function: Callable, z: Any, out: Any) -> None:
        layout = mosaic.Layout.WGMMA
        out[...] = function(mosaic.load(z, layout=layout, optimized=False))

    logits = jax.ShapeDtypeStruct((64, 128), jnp.float32)
    mesh = mosaic.Mesh(grid=(1,), grid_names=("block",))
    jax.clear_caches()  # of programs that were traced for a CPU
    for name, function in OF_A_GPU.items():
        with target.assumed("gpu"):
            launched = pl.kernel(partial(kernel, function), out_type=logits, mesh=mesh)
            program = jax.jit(launched).trace(logits)
        assert "mosaic_gpu" in program.lower(lowering_platforms=("cuda",)).as_text(), name
    jax.clear_caches()
