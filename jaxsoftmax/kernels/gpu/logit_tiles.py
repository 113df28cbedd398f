"""One kernel over the tiles of x w: `hopper` or `blackwell` multiplies, an epilogue finishes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax import validation
from jaxsoftmax.kernels.chunks import round_up
from jaxsoftmax.kernels.gpu import launch, whole_tiles
from jaxsoftmax.kernels.gpu.epilogues import (
    SWIZZLE_TILE,
    TILE_ROWS,
    ClassVectors,
    Kernel,
    KernelArguments,
    Subtile,
)
from jaxsoftmax.kernels.types import Head, Options


def run(
    epilogue: Callable[[Subtile], None],
    head: Head,
    outputs: Any,
    options: Options,
    *,
    name: str,
    num_classes: int,
    by_class: ClassVectors,
    by_row: Sequence[Array] = (),
    start: Array | int = 0,
    targets: Array | None = None,
) -> Any:
    """Run a kernel over the tiles of the logits of classes from `start` on.

    Args:
        epilogue: one of `epilogues`, which is applied to each subtile.
        head: its x and w are multiplied.
        outputs: a tree of shapes and dtypes.
        options: for the softcap and the target.
        name: the name of the kernel, without its prefix.
        num_classes: a multiple of 256.
        by_class: vectors over classes.
        by_row: vectors over rows, `[N]`; for the softmax the first has the labels.
        start: the first class, a multiple of 64.
        targets: of whole tiles, for the sigmoid.

    Returns:
        The tree of results.
    """
    # Copies are of whole swizzled tiles; entries beyond an array are read as 0.
    padding = [(0, -size % unit) for size, unit in zip(head.x.shape, SWIZZLE_TILE, strict=True)]
    x = jnp.pad(head.x, padding)
    rows = round_up(head.x.shape[0], TILE_ROWS)
    has_label = None
    if targets is None:
        has_label = _has_label(by_row[0], rows, num_classes, launch.generation(options))
    by_row = tuple(whole_tiles.pad_vector(a, rows, 0) for a in by_row)
    start = launch.scalar(start)
    arguments = KernelArguments(x, head.w, start, by_class, by_row, has_label, targets, outputs)
    kernel = _build(f"linear_{name}", epilogue, arguments, num_classes, head, options)
    inputs = jax.tree.leaves(arguments._replace(outputs=None))
    found = launch.run(kernel, outputs, inputs, interpret=options.target.interpret)
    return jax.tree.unflatten(jax.tree.structure(outputs), found)


def _has_label(labels: Array, rows: int, num_classes: int, generation: Any) -> Array:
    """Return which subtiles have a label, int32 `[groups of rows, subtiles]`."""
    size = generation.SUBTILE_ROWS, generation.SUBTILE_CLASSES
    subtiles = whole_tiles.pad_vector(labels // size[1], rows, -1).reshape(-1, size[0])
    every = jnp.arange(num_classes // size[1], dtype=jnp.int32)
    return jnp.any(subtiles[:, :, None] == every[None, None, :], 1).astype(jnp.int32)


def _build(
    name: str,
    epilogue: Callable[[Subtile], None],
    arguments: KernelArguments,
    num_classes: int,
    head: Head,
    options: Options,
) -> Callable[..., Any]:
    """Return a function from the leaves of the arguments to those of the outputs."""
    generation = launch.generation(options)
    pair = launch.pairs_blocks(pl.cdiv(arguments.x.shape[0], TILE_ROWS), options)
    has_missing_targets = whole_tiles.row_mask(head) is not None
    target_rounding = validation.rounding_slack(head.targets)
    leaves, treedef = jax.tree.flatten(arguments)

    def body(*refs: Any) -> None:
        kernel = Kernel(
            epilogue,
            jax.tree.unflatten(treedef, refs[: len(leaves)]),
            num_classes,
            options.softcap,
            pair,
            has_missing_targets,
            target_rounding,
        )
        generation.body(kernel, generation.Scratch(*refs[len(leaves) :]))

    return gpu.kernel(
        body,
        out_type=tuple(jax.tree.leaves(arguments.outputs)),
        scratch_types=generation.scratch(arguments.x.dtype, pair),
        **launch.grid_options(options, pair=pair),
        kernel_name=name,
        # The approximate tanh has an error of 2^-11.
        compiler_params=gpu.CompilerParams(
            approx_math=options.softcap is None, reduction_scratch_bytes=0
        ),
        interpret=launch.interpreter(interpret=options.target.interpret) or None,
    )
