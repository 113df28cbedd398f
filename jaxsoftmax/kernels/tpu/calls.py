"""Calls of kernels over a grid of tiles (`grids`), and the numbers of rows that cross in lanes.

One number for each row, `[N]`, is a column in a kernel, beside the logits of its tile. As a column
in memory it would take 128 lanes, 4 MiB for 8192 rows; so it crosses as a row of each tile, which
the kernel transposes before the first step of a tile of rows or after the last one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsoftmax import placement
from jaxsoftmax.kernels.tpu.grids import Grid


def out_type(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """Return the shape and dtype of an output of a kernel."""
    return jax.ShapeDtypeStruct(shape, dtype)


def run_kernel(
    grid: Grid,
    kernel: Callable,
    inputs: tuple,
    in_specs: tuple,
    outputs: tuple,
    out_specs: tuple,
    *,
    first_tile: Array | int = 0,
    num_tiles: tuple[int, ...] | None = None,
    **options: Any,
) -> Any:
    """Run a kernel over tiles of rows, of classes and of features.

    Args:
        grid: the tiles.
        kernel: called with the grid, the index of the first tile of classes, the references of
            the inputs and outputs, and a scratch buffer for a tile of logits.
        inputs: trees of arrays; those of one axis have a number for each row.
        in_specs: their block specs.
        outputs: trees of shapes and dtypes.
        out_specs: their block specs.
        first_tile: the index of the first tile of classes.
        num_tiles: the number of tiles along each axis, if not all of the grid.
        options: of `pl.pallas_call`.

    Returns:
        The trees of outputs, which vary over the mesh axes over which the inputs do.
    """
    arrays, in_tree = jax.tree.flatten(inputs)
    results, out_tree = jax.tree.flatten(outputs)
    first, like = placement.match_varying_axes(jnp.full(1, first_tile, jnp.int32), arrays[0])
    columns = [[_column(grid, a) for a in group] for group in (arrays, results)]
    found = pl.pallas_call(
        partial(_run_step, grid, kernel, in_tree, out_tree),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.num_tiles if num_tiles is None else num_tiles,
            in_specs=jax.tree.leaves(in_specs),
            out_specs=jax.tree.leaves(out_specs),
            scratch_shapes=[*columns, pltpu.VMEM(grid.tile[:2], jnp.float32)],
        ),
        out_shape=[
            placement.shape_dtype_struct(_shape_in_lanes(grid, a), a.dtype, like) for a in results
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=grid.vmem_bytes,
        ),
        interpret=grid.options.target.interpret,
        **options,
    )(first, *(_to_lanes(grid, a) for a in arrays))
    found = [_from_lanes(a, like) for a, like in zip(found, results, strict=True)]
    return jax.tree.unflatten(out_tree, found)


def _column(grid: Grid, a: Any) -> Any:
    """Return the scratch buffer of numbers of rows, or None for another array."""
    return pltpu.VMEM((grid.tile.rows, 1), a.dtype) if a.ndim == 1 else None


def _shape_in_lanes(grid: Grid, a: Any) -> tuple[int, ...]:
    """Return the shape in which an array crosses."""
    return (grid.num_tiles.rows, 1, grid.tile.rows) if a.ndim == 1 else a.shape


def _to_lanes(grid: Grid, a: Array) -> Array:
    """Return an array as it crosses; numbers of rows beyond the last one are 0."""
    if a.ndim != 1:
        return a
    padding = grid.num_tiles.rows * grid.tile.rows - len(a)
    return jnp.pad(a, (0, padding)).reshape(_shape_in_lanes(grid, a))


def _from_lanes(a: Array, like: Any) -> Array:
    """Return an array that has crossed in the shape of another."""
    return a.reshape(-1)[: like.shape[0]] if like.ndim == 1 else a


def _run_step(
    grid: Grid, kernel: Callable, in_tree: Any, out_tree: Any, first_tile: Any, *refs: Any
) -> None:
    """Run one step of a kernel, with columns in place of the numbers of rows."""
    in_columns, out_columns, acc = refs[-3:]
    ins = list(zip(refs[: in_tree.num_leaves], in_columns, strict=True))
    outs = list(zip(refs[in_tree.num_leaves : -3], out_columns, strict=True))
    (j, last_j), (step, last_step) = [(pl.program_id(i), pl.num_programs(i) - 1) for i in (1, 2)]

    @pl.when((j == 0) & (step == 0))
    def _fill() -> None:
        for row, column in _rows_of(ins):
            column[...] = row[0].T

    inputs, outputs = (
        tree.unflatten([ref if column is None else column for ref, column in pairs])
        for tree, pairs in ((in_tree, ins), (out_tree, outs))
    )
    kernel(grid, first_tile, *inputs, *outputs, acc)

    @pl.when((j == last_j) & (step == last_step))
    def _write() -> None:
        for row, column in _rows_of(outs):
            row[0] = column[...].T


def _rows_of(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return the pairs whose array has a number for each row."""
    return [pair for pair in pairs if pair[1] is not None]
