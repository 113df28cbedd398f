"""How a weighted sum in XLA's operations is divided on accelerators, and logits computed twice."""

from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax.kernels import Tiles, linear_cross_entropy_sum, target, tiles
from jaxsoftmax.kernels.chunks import rows_per_chunk
from jaxsoftmax.kernels.types import Head, NeedsGrad, Options
from jaxsoftmax.kernels.xla_chunked import classes_of_block

MEGABYTES = 10**6
SHAPE = (21, 5, 37)  # too many rows for the budget that `contract.TILES` stands for
pytestmark = pytest.mark.usefixtures("strict")
on_gpu = partial(target.assumed, "gpu", interpret=True, kind="NVIDIA A100")


def described(
    shape: tuple[int, int, int], dtype: str, platform: str, memory: int | None
) -> tuple[Head, Options]:
    n, d, k = shape
    types = (jax.ShapeDtypeStruct(s, dtype) for s in ((n, d), (d, k)))
    head = Head(*types, None, None, jax.ShapeDtypeStruct((n,), jnp.int32))
    with target.assumed(platform, interpret=True):
        options = Options(tiles.choose(n, d, k, memory=memory), target.current(), jnp.dtype(dtype))
    return head, options


def planned(
    shape: tuple[int, int, int],
    dtype: str,
    platform: str,
    memory: int | None,
    gradients: tuple[str, ...] = ("x", "w"),
) -> int | None:
    head, options = described(shape, dtype, platform, memory)
    return rows_per_chunk(head, NeedsGrad(**dict.fromkeys(gradients, jnp.dtype(dtype))), options)


@pytest.mark.parametrize(
    ("rows", "shape", "how"),
    [
        # Gradients of 525 MB in the logits, which lie where w's gradient will.
        (2048, (2048, 4096, 128_256), ("bfloat16", "gpu", None)),
        (None, (2048, 4096, 128_257), ("bfloat16", "gpu", None)),  # and a padded copy of w
        (512, (2048, 4096, 128_256), ("float32", "gpu", None)),
        (None, (2048, 4096, 128_256), ("float32", "gpu", 2**27)),
        (2048, (2048, 4096, 128_256), ("float32", "gpu", 2**30)),
        (None, (2049, 4096, 128_256), ("bfloat16", "gpu", None)),  # logits that do not fit there
        # No room for a sum of 2,359 MB on a GPU, and chunks of 104 rows on a TPU.
        (None, (8192, 2304, 256_000), ("bfloat16", "gpu", None)),
        (None, (8192, 2304, 256_001), ("bfloat16", "gpu", None)),
        (None, (8192, 2304, 256_001), ("bfloat16", "tpu", None)),
        (104, (8192, 2304, 256_001), ("bfloat16", "tpu", None, ("x",))),
        (256, (8192, 2304, 256_000), ("bfloat16", "gpu", None, ("x",))),
        (410, (8192, 2304, 256_001), ("bfloat16", "cpu", None)),
        # Few classes: at once, but for features that are data, which stay in the cache.
        (2560, (2560, 3136, 10), ("float32", "cpu", None)),
        (854, (2560, 3136, 10), ("float32", "cpu", None, ("w",))),
        (1280, (2560, 3136, 10), ("float32", "cpu", 2**18)),
        (13_742, (13_742, 74, 42), ("float32", "cpu", None)),
        (6871, (13_742, 74, 42), ("float32", "cpu", None, ("w",))),
        # Chunks of whole vectors, beside a sum of 57 MB; padded copies leave less for them.
        (4096, (8192, 1024, 14_000), ("bfloat16", "gpu", None)),
        (2736, (8192, 1024, 14_001), ("bfloat16", "gpu", None)),
        # The float32 sum is the result itself; half the rows are enough.
        (752, (8192, 1024, 80_000), ("float32", "gpu", None)),
        (None, (8192, 1024, 80_000), ("bfloat16", "gpu", None)),
    ],
)
def test_rows_of_a_chunk(rows: int | None, shape: tuple[int, int, int], how: tuple):
    assert planned(shape, *how) == rows


@pytest.mark.parametrize(
    ("classes", "shape", "how"),
    [
        # Compiled for an H200 this takes 479 MB, and 705 with blocks of 32,768.
        (21_760, (2048, 4096, 128_257), ("bfloat16", "gpu", 2**29)),
        (16_384, (2048, 4096, 128_257), ("float32", "gpu", 2**29)),
        (32_768, (2048, 4096, 128_257), ("bfloat16", "tpu", 2**29)),
        # All at once, but for numbers that need padded copies: 138 MB in place of 2,156.
        (131_072, (128, 8192, 131_072), ("bfloat16", "gpu", None)),
        (7680, (128, 8192, 131_073), ("bfloat16", "gpu", None)),
        (1001, (2048, 4096, 1001), ("bfloat16", "gpu", None)),
    ],
)
def test_classes_of_a_block(classes: int, shape: tuple[int, int, int], how: tuple):
    assert classes_of_block(*described(shape, *how)) == classes


def test_logits_computed_twice_are_no_worse_than_dense():
    with on_gpu():
        run = contract.fused.__wrapped__("xla_chunked")
        for scale, kind in zip(contract.SCALES, contract.LABELS, strict=True):
            head = contract.case(SHAPE, np.float32, scale, kind)
            contract.assert_no_worse(head, run(head), f"{scale}, {kind} label")


def test_rows_and_classes_that_do_not_count_and_second_derivatives():
    n, _, k = SHAPE
    head = contract.case(SHAPE, np.float32, 1.0, "random")
    x, w = head.x.at[3].set(jnp.nan), head.w
    labels = head.labels.at[5].set(30)
    where = jnp.arange(k) != 30  # the loss of the row of weight 0 is infinite
    weights = head.cotangents[0].at[5].set(0)
    valid = jnp.arange(n) != 3

    def total(tiles: Tiles, w: jax.Array, bias: jax.Array) -> jax.Array:
        how = {"softcap": 20.0, "where": where, "valid": valid, "weights": weights, "tiles": tiles}
        return linear_cross_entropy_sum(x, w, labels, bias=bias, **how)

    def derivatives(tiles: Tiles, w: jax.Array, bias: jax.Array) -> tuple:
        gradient = jax.grad(partial(total, tiles), (0, 1))
        return jax.jvp(gradient, (w, bias), (jnp.cos(w), jnp.sin(bias)))

    with on_gpu():
        found = jax.jit(partial(derivatives, contract.TILES))(w, head.bias)
    wanted = jax.jit(partial(derivatives, Tiles(rows=n, classes=k)))(w, head.bias)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_memory_on_a_cpu_does_not_depend_on_how_blocks_divide_the_classes():
    def used(k: int) -> int:
        types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((512, 16), (16, k))]
        labels = jax.ShapeDtypeStruct((512,), jnp.int32)
        run = partial(linear_cross_entropy_sum, memory=2**22, implementation="xla_chunked")
        gradient = jax.jit(jax.grad(run, (0, 1)))
        return gradient.lower(*types, labels).compile().memory_analysis().temp_size_in_bytes

    aligned, other = used(16_000), used(16_001)
    assert other <= aligned + MEGABYTES // 2
    assert other <= 8 * MEGABYTES
