"""How a weighted sum in XLA's operations is divided on accelerators, and logits computed twice."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax.kernels import (
    Tiles,
    chunks,
    linear_cross_entropy,
    linear_cross_entropy_sum,
    target,
    tiles,
)
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
        # On a CPU, chunks of 104, 80 and 8 rows; w with 8,000 entries stays in the cache.
        (103, (1024, 256, 16_000), ("float32", "cpu", 2**25)),
        (None, (1024, 256, 16_000), ("bfloat16", "cpu", 2**25)),
        (None, (1024, 256, 20_000), ("float32", "cpu", 2**25)),
        (79, (1024, 256, 20_000), ("float32", "cpu", 2**25, ("x",))),
        (None, (1024, 256, 128_000), ("float32", "cpu", 2**25)),
        (None, (1024, 256, 128_000), ("float32", "cpu", 2**25, ())),
        (8, (8, 256, 128_000), ("float32", "cpu", 2**25)),
        (8, (4096, 8, 1000), ("float32", "cpu", 2**18)),
        # All logits are smaller than a chunk's copy of the features.
        (1970, (1970, 2047, 103), ("float32", "cpu", None)),
        (985, (1970, 102, 1003), ("float32", "cpu", None)),
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
        # On a CPU, 4 MB of logits in place of blocks with 4 MB of copies of w, and 8 MB.
        (4000, (128, 1024, 4000), ("float32", "cpu", 2**20)),
        (1024, (128, 1024, 8000), ("float32", "cpu", 2**20)),
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


@pytest.mark.parametrize("way", ["twice", "added in blocks"])
def test_rows_and_classes_that_do_not_count_and_second_derivatives(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chunks, "ADDED_ENTRIES", 1)
    monkeypatch.setattr(chunks, "MIN_ADDED_CLASSES", 10)  # of 37
    sizes = contract.TILES if way == "twice" else Tiles(rows=3, classes=10)
    device = on_gpu() if way == "twice" else nullcontext()
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

    with device:
        found = jax.jit(partial(derivatives, sizes))(w, head.bias)
    wanted = jax.jit(partial(derivatives, Tiles(rows=n, classes=k)))(w, head.bias)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def temporary_bytes(function: Callable, n: int, d: int, k: int, memory: int) -> int:
    types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, k))]
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)

    def total(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.sum(jnp.asarray(function(x, w, labels, memory=memory)))

    gradient = jax.jit(jax.grad(total, (0, 1)))
    return gradient.lower(*types, labels).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("memory", [2**22, 2**24], ids=["twice", "chunks"])
def test_the_sum_on_a_cpu_takes_no_more_memory_than_the_losses_of_examples(memory: int):
    _, d, k = shape = 512, 512, 8000
    is_chunked = planned(shape, "float32", "cpu", memory) is not None
    assert is_chunked == (memory == 2**24)
    found = temporary_bytes(linear_cross_entropy_sum, *shape, memory)
    each = temporary_bytes(lambda *a, **how: linear_cross_entropy(*a, **how).nll, *shape, memory)
    assert found <= 1.01 * each
    assert found < 4 * d * k  # not even another gradient of w


def test_memory_on_a_cpu_does_not_depend_on_how_blocks_divide_the_classes():
    aligned, other = (
        temporary_bytes(linear_cross_entropy_sum, 512, 16, k, 2**22) for k in (16_000, 16_001)
    )
    assert other <= aligned + MEGABYTES // 2
    assert other <= 8 * MEGABYTES
