"""The two products of a block's gradient on Hopper, which read and write classes where they lie.

XLA gives its matrix library whole arrays. For a block of classes it copies the block's columns of w
first and the block's part of w's gradient into its place afterwards, so 8 D K bytes more are read
and written, and a second copy of each block is kept. These products have the main loop of the
logits' kernel (`hopper.multiply`):

    weight_gradient     gradient[:, start:] = x^T dz, rounded once to the dtype of x
    feature_gradient    total += dz w[:, start:]^T, in float32

Both take the array that they write, or None: then it is a new one, which holds nothing but what is
written. A pass that fills it with zeros is not needed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax import placement
from jaxsoftmax.kernels.gpu import hopper, launch
from jaxsoftmax.kernels.gpu.epilogues import (
    NUM_PARTS,
    STEP_FEATURES,
    SWIZZLE_TILE,
    TILE_CLASSES,
    TILE_ROWS,
    copy_to_global,
)
from jaxsoftmax.kernels.gpu.hopper import PART_CLASSES, Product, Sums
from jaxsoftmax.kernels.types import Options

type Finish = Callable[[Any, Any, Sums], None]  # writes a tile's sums: (result, start, sums)


def weight_gradient(
    x: Array, dz: Array, gradient: Array | None, start: Array | int, k: int, options: Options
) -> Array:
    """Return w's gradient, `[D, K]`, with the classes of dz, from `start` on, written.

    Only where the last class is in the block may its number not be a multiple of 256.
    """
    grid = pl.cdiv(x.shape[1], TILE_ROWS), pl.cdiv(dz.shape[1], TILE_CLASSES)
    steps = pl.cdiv(x.shape[0], STEP_FEATURES)
    product = Product(None, None, 0, grid, steps, _pairs(grid, options), transposes_left=True)
    result = jax.ShapeDtypeStruct((x.shape[1], k), x.dtype) if gradient is None else gradient
    inputs = _pad_rows(x), _pad_rows(dz), launch.scalar(start)
    return _run("linear_weight_gradient", product, _write_classes, inputs, result, options)


def _write_classes(result: Any, start: Any, sums: Sums) -> None:
    first = start + sums.tile * TILE_CLASSES
    for p in range(NUM_PARTS):
        classes = pl.ds(first + p * PART_CLASSES, PART_CLASSES)
        copy_to_global(sums.part(p), sums.staging[p % 2], result.at[sums.rows, classes])


def feature_gradient(
    dz: Array, w: Array, total: Array | None, start: Array | int, options: Options
) -> Array:
    """Return the float32 sum of x's gradient, `[N, D]` in whole tiles, with the block added."""
    grid = pl.cdiv(dz.shape[0], TILE_ROWS), pl.cdiv(w.shape[0], TILE_CLASSES)
    steps = pl.cdiv(dz.shape[1], STEP_FEATURES)
    product = Product(None, None, None, grid, steps, _pairs(grid, options), transposes_right=True)
    tiles = jax.ShapeDtypeStruct((grid[0] * TILE_ROWS, grid[1] * TILE_CLASSES), jnp.float32)
    finish, result = (_write_features, tiles) if total is None else (_add_features, total)
    inputs = _pad_rows(dz), w, launch.scalar(start)
    return _run("linear_feature_gradient", product, finish, inputs, result, options)


def _write_features(result: Any, start: Any, sums: Sums) -> None:
    del start
    for p in range(NUM_PARTS):
        _features(result, sums, p)[...] = sums.part(p)


def _add_features(result: Any, start: Any, sums: Sums) -> None:
    del start
    for p in range(NUM_PARTS):
        block = _features(result, sums, p)
        before = gpu.load(block, layout=gpu.Layout.WGMMA, optimized=False)
        block[...] = before + sums.part(p)


def _features(result: Any, sums: Sums, p: int) -> Any:
    first = sums.tile * TILE_CLASSES + p * PART_CLASSES
    return result.at[sums.rows, pl.ds(first, PART_CLASSES)]


# -- The kernel --


def _run(
    name: str,
    product: Product,
    finish: Finish,
    inputs: tuple[Array, Array, Array],
    result: Array | jax.ShapeDtypeStruct,
    options: Options,
) -> Array:
    """Return the result with a product written into it: the given array, or a new one."""
    scratch = hopper.scratch(
        inputs[0].dtype,
        product.pair,
        transposes_left=product.transposes_left,
        transposes_right=product.transposes_right,
    )

    def kernel(*refs: Any) -> None:
        def body(*memory: Any) -> None:
            _multiply(product, finish, refs, hopper.Scratch(*memory))

        pl.run_scoped(body, *scratch, collective_axes="group")

    launched = partial(
        pl.kernel,
        kernel,
        mesh=gpu.Mesh(**launch.grid_options(options, pair=product.pair)),
        compiler_params=gpu.CompilerParams(reduction_scratch_bytes=0),
        interpret=launch.interpreter(interpret=options.target.interpret),
        name=name,
    )
    types = jax.ShapeDtypeStruct(result.shape, result.dtype)

    def write(*inputs: Array) -> Array:
        out_type = placement.shape_dtype_struct(types.shape, types.dtype, inputs[0])
        return launched(out_type=out_type)(*inputs)

    def change(*arguments: Array) -> Array:
        *inputs, array = arguments
        ref = jax.new_ref(array)
        launched()(*inputs, ref)
        return jax.freeze(ref)

    given = (result,) if isinstance(result, Array) else ()
    function = _in_turn(change if given else write)
    inputs = (*inputs, *given)
    return launch.run(function, types, inputs, interpret=options.target.interpret)[0]


def _multiply(product: Product, finish: Finish, refs: tuple[Any, ...], scratch: Any) -> None:
    left, right, start, result = refs
    first = pl.multiple_of(start[0], SWIZZLE_TILE[1])
    start_right = first if product.start is None else product.start
    product = product._replace(left=left, right=right, start=start_right)
    hopper.multiply(product, partial(finish, result, first), scratch)


def _in_turn(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return the function with lanes of vmap that take turns: a kernel's references have none."""
    function = jax.custom_batching.custom_vmap(function)

    @function.def_vmap
    def _(size: int, is_batched: list[bool], *arguments: Array) -> tuple[Array, bool]:
        def lane(i: Array) -> Array:
            pairs = zip(arguments, is_batched, strict=True)
            return function(*(a[i] if batched else a for a, batched in pairs))

        return lax.map(lane, jnp.arange(size)), True

    return function


def _pairs(grid: tuple[int, int], options: Options) -> bool:
    return launch.pairs_blocks(grid[0], options)


def _pad_rows(a: Array) -> Array:
    """Return a matrix with rows of 0 up to whole swizzled tiles."""
    return jnp.pad(a, ((0, -a.shape[0] % SWIZZLE_TILE[0]), (0, 0)))
