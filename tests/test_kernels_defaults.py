"""Which implementation runs where none is named, on both sides of every limit, and its memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxsoftmax.kernels import dispatch, settings, target
from jaxsoftmax.kernels.gpu import blocks, exponentials, row_chunks
from jaxsoftmax.kernels.types import Head, NeedsGrad, Options

H200, B200 = "NVIDIA H200", "NVIDIA B200"
LARGE = (2048, 4096, 128_256)
# N, D and K of the sweep in experiments/benchmarks/heads.py, and shapes with an extreme one.
SHAPES = [(n, d, k) for n in (128, 2048, 32_768) for d in (64, 1024, 8192) for k in (10, 1000)]
SHAPES += [(n, d, k) for n in (128, 2048, 32_768) for d in (64, 1024, 8192) for k in (4096, 50_257)]
SHAPES += [LARGE, (8192, 4096, 262_144), (32_768, 8192, 8192), (32_768, 8192, 10_001)]


def with_options(
    function: Callable[[Head, Options, str], Any],
    shape: tuple[int, int, int],
    dtype: Any = jnp.bfloat16,
    *,
    kind: str = H200,
    memory: int | None = None,
    softcap: float | None = None,
    platform: str = "gpu",
    sharding: Any = None,
) -> Any:
    """What a function of a head, its options and the default implementation returns."""
    n, d, k = shape
    call = settings.check(
        softcap=softcap, precision=None, dtype=None, memory=memory, implementation=None, tiles=None
    )
    found = []

    def trace(x: jax.Array, w: jax.Array, labels: jax.Array) -> None:
        head = Head(x, w, None, None, labels)
        found.append(function(head, *dispatch.prepare(call, head)))

    arrays = (((n, d), dtype), ((d, k), dtype), ((n,), jnp.int32))
    types = [jax.ShapeDtypeStruct(*a, sharding=sharding) for a in arrays]
    with target.assumed(platform, interpret=True, kind=kind):
        jax.eval_shape(trace, *types)
    return found[0]


def chosen(*arguments: Any, **options: Any) -> str:
    return with_options(lambda head, options, name: name, *arguments, **options)


@pytest.mark.parametrize(
    ("name", "shape", "how"),
    [
        ("mosaic_gpu", LARGE, {}),
        ("xla_chunked", LARGE, {"dtype": jnp.float32}),
        # Float32: the row kernel, where a plan of it was measured to be faster.
        ("mosaic_gpu_rows", (8192, 4096, 98_304), {"dtype": jnp.float32}),
        ("mosaic_gpu_rows", (8192, 64, 768), {"dtype": jnp.float32}),
        ("xla_chunked", (8192, 64, 767), {"dtype": jnp.float32}),
        ("xla_chunked", (4, 4096, 32_000), {"dtype": jnp.float32}),
        ("xla_chunked", (8192, 4096, 32_000), {"dtype": jnp.float32, "kind": B200}),
        ("xla_chunked", (8192, 4096, 32_000), {"dtype": jnp.float32, "softcap": 30.0}),
        ("xla_chunked", LARGE, {"kind": B200}),
        ("xla_chunked", LARGE, {"kind": "NVIDIA A100-SXM4-80GB"}),
        ("xla_chunked", LARGE, {"platform": "cpu"}),
        ("xla_chunked", LARGE, {"platform": "tpu"}),
        # Fewer tiles than keep the cores busy, unless the budget has no room for their logits.
        ("mosaic_gpu", (4096, 512, 4096), {}),
        ("xla_chunked", (4096, 512, 4032), {}),
        ("mosaic_gpu", (4096, 512, 4032), {"memory": 2**20}),
        # Classes that would fill less than half of a tile.
        ("mosaic_gpu", (2**20, 64, 128), {}),
        ("xla_chunked", (2**20, 64, 120), {}),
        # Copies of w and its gradient in whole tiles, of 155 and 824 MB.
        ("mosaic_gpu", (2048, 768, 50_257), {}),
        ("xla_chunked", (2048, 4096, 50_257), {}),
        ("mosaic_gpu", (2048, 4096, 50_304), {}),
        # Copies that dense logits would exceed, and the budget would not.
        ("xla_chunked", (8192, 2304, 256_001), {}),
    ],
)
def test_choice(name: str, shape: tuple[int, int, int], how: dict[str, Any]):
    assert chosen(shape, **how) == name


def test_a_kernel_is_not_for_an_array_that_the_compiler_divides():
    mesh = AbstractMesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    divided = NamedSharding(mesh, PartitionSpec())
    assert chosen(LARGE, sharding=divided) == "xla_chunked"
    assert chosen((8192, 4096, 32_000), jnp.float32, sharding=divided) == "xla_chunked"


@pytest.mark.parametrize("memory", [None, 2**25, 2**30])
def test_memory_of_the_kernels_that_run_by_default(memory: int | None):
    kernels = 0
    for shape in SHAPES:
        n, _, k = shape
        planned = with_options(planned_bytes, shape, memory=memory)
        dense, block, chunk = 2 * n * k, memory or 2**27, memory or 2**29
        for found, budget in zip(planned or (), (block, chunk), strict=False):
            kernels += 1
            assert found <= dense + budget, shape
    assert kernels >= 20


@pytest.mark.parametrize("memory", [None, 2**25, 2**30])
def test_memory_of_chunks_of_float32_rows(memory: int | None):
    def planned(head: Head, options: Options, name: str) -> int | None:
        needed = NeedsGrad(jnp.float32, jnp.float32)
        return row_chunks._chunk_rows(head, needed, options) if name != "xla_chunked" else None

    kernels = 0
    for n, d, k in SHAPES:
        rows = with_options(planned, (n, d, k), jnp.float32, memory=memory)
        if rows is not None:
            kernels += 1
            found = 4 * rows * (k if rows == n else k + 2 * d)
            # Blocks of classes would take x's gradient in float32 beside the budget.
            assert found <= 4 * n * d + (memory or 2**29)
            assert found <= 4 * n * k + (memory or 2**29)
    assert kernels >= 10


def planned_bytes(head: Head, options: Options, name: str) -> tuple[int, int] | None:
    """The memory of the gradients, per example and of the sum, by the kernels' own plans."""
    if name != "mosaic_gpu":
        return None
    n, (d, k) = head.x.shape[0], head.w.shape
    whole = -(-k // 64) * 64
    copies = 4 * d * whole if whole != k or d % 8 else 0
    head = head._replace(w=jnp.zeros((d, whole), head.w.dtype)) if copies else head
    needed = NeedsGrad(head.x.dtype, head.w.dtype)

    def of_blocks(size: int) -> int:
        return 2 * n * size + (4 * n * d if size < whole else 0)

    per_example = of_blocks(blocks.classes_per_block(head, needed, options))
    plan = exponentials.plan(head, needed, options)
    if plan == "in place":
        memory = exponentials.chunk_memory(head, options)
        total = of_blocks(blocks.classes_per_block(head, needed, options, memory))
    else:
        chunk = 2 * plan * whole + (4 * d * k if plan < n else 0) if plan != "again" else 0
        total = chunk or per_example
    return per_example + copies, total + copies
