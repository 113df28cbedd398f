"""The fused losses on Hopper and Blackwell GPUs, whose logits are never stored in memory.

One kernel computes tiles of x w, 128 examples by 256 classes, on Hopper (`hopper`) or Blackwell
(`blackwell`), and applies an epilogue (`epilogues`) to them. For the softmax that gives statistics
of the tiles, or a block of the gradient. XLA combines the statistics in float32, and multiplies the
gradients of all classes at the device's full rate; the gradients of a block of classes are
multiplied where they lie (`hopper_products`).

- forward: one product of N D K, and 12 N K / 256 bytes of statistics on Hopper. On Blackwell they
  are twice as many, as a warpgroup has 128 classes of a tile.
- backward: computes the logits again. In blocks, 2 N K bytes of gradients are written once and read
  twice. The gradient of the bias is their sum.
- value_and_gradients: the pass that finds the maxima also stores the exponentials, relative to the
  maximum of each subtile, in half precision, 2 N K bytes. One pass over them then computes the
  gradient, so there are three products of N D K. `_plan` says where the exponentials lie: in memory
  of their own, all at once or of a chunk of rows, or where w's gradient will be. Where they have no
  place, the logits are computed twice: four products.
- rows_and_gradients: the same for a loss of each row's statistics, whose derivatives give the
  factors of that pass. The gradient of the mean logit adds a number to each class that exists: the
  exponential of another one is stored as -0. The mean of capped logits takes four products.
- the sigmoid's functions: labels are independent, so one kernel computes the values and the
  gradients of a block, and there are three products too. Where each example has its own mask, the
  copy of a block's targets carries it.

An additive vector with one number for each class carries the bias, and -inf where a class does not
exist; there is none where it would hold zeros. Copies have tiles of 8 by 64. Where D is not a
multiple of 8, or K not one of 64, x and w are padded first. That is fast compared with the products
of many rows, but takes a copy of w. `tangent` and the derivatives of the reverse passes are those
of `xla_chunked`: forward mode has two products instead of one, and a kernel would not make it
faster.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Hsu et al.,
"Liger Kernel: efficient Triton kernels for LLM training" (2024).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax import placement, validation
from jaxsoftmax.kernels import chunks, primitives, tiles, xla_chunked
from jaxsoftmax.kernels.gpu import blackwell, epilogues, hopper, hopper_products, launch
from jaxsoftmax.kernels.gpu.epilogues import (
    SWIZZLE_TILE,
    TILE_CLASSES,
    TILE_ROWS,
    ClassVectors,
    Kernel,
    KernelArguments,
    SigmoidOutputs,
    SoftmaxOutputs,
    Subtile,
    SubtileStats,
)
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.row_losses import RowLoss, RowTerms
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    NeedsGrad,
    Options,
    RowCotangents,
    RowRule,
    Stats,
)
from jaxsoftmax.linear_map import with_derivatives_of
from jaxsoftmax.placement import Cut

tangent, binary_tangent = xla_chunked.tangent, xla_chunked.binary_tangent

HALF_BYTES = 2  # of an entry of a gradient in the logits, and of an exponential
FLOAT32_MAX = float(np.finfo(np.float32).max)
# Of the budget, where there are several blocks: the rest is for vectors over rows and classes.
BLOCK_SHARE = 7 / 8
# The rows of a chunk, at least, that make reading and writing the sum of w's gradient once more
# cheaper than another product: 8 D K bytes at 3.5 TB/s, 2 R D K operations at 700 TFLOP/s (H200).
MIN_CHUNK_ROWS = 1024


def unsupported(head: Head, options: Options) -> str | None:
    """Return why the tensor cores cannot compute this, or None."""
    k, dtype, row_mask = head.w.shape[1], head.x.dtype, _row_mask(head)
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"it needs bfloat16 or float16 features and weights, got {dtype}; "
            "'mosaic_gpu_rows' takes float32"
        )
    if head.targets.ndim == 1 and row_mask is not None:
        return f"it needs `where` of shape ({k},), one for all examples, got {row_mask.shape}"
    if launch.generation(options) is None:
        return (
            f"it needs a Hopper GPU, one of {', '.join(hopper.DEVICES)}, or a data center's "
            f"Blackwell GPU, one of {', '.join(blackwell.DEVICES)}, got {launch.device(options)!r}"
        )
    return None


def _row_mask(head: Head) -> Array | None:
    """Return the mask if it has a row for each example, `[N, K]`."""
    return None if head.where is None or head.where.shape[0] == 1 else head.where


# -- The kernel --


def _run_kernel(
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
    rows = _round_up(head.x.shape[0], TILE_ROWS)
    has_label = None
    if targets is None:
        has_label = _has_label(by_row[0], rows, num_classes, launch.generation(options))
    by_row = tuple(_pad(a, rows, 0) for a in by_row)
    start = launch.scalar(start)
    arguments = KernelArguments(x, head.w, start, by_class, by_row, has_label, targets, outputs)
    kernel = _build_kernel(f"linear_{name}", epilogue, arguments, num_classes, head, options)
    inputs = jax.tree.leaves(arguments._replace(outputs=None))
    found = launch.run(kernel, outputs, inputs, interpret=options.target.interpret)
    return jax.tree.unflatten(jax.tree.structure(outputs), found)


def _has_label(labels: Array, rows: int, num_classes: int, generation: Any) -> Array:
    """Return which subtiles have a label, int32 `[groups of rows, subtiles]`."""
    size = generation.SUBTILE_ROWS, generation.SUBTILE_CLASSES
    subtiles = _pad(labels // size[1], rows, -1).reshape(-1, size[0])
    every = jnp.arange(num_classes // size[1], dtype=jnp.int32)
    return jnp.any(subtiles[:, :, None] == every[None, None, :], 1).astype(jnp.int32)


def _build_kernel(
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
    has_missing_targets = _row_mask(head) is not None
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


# -- Softmax, per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Return the parts of each row's loss, with statistics if the options ask for them."""
    head = _pad_head(head)
    return _combine_subtiles(_run_statistics(head, options, stats=options.stats), head, options)


def _run_statistics(
    head: Head,
    options: Options,
    *,
    stats: bool = False,
    exponentials: jax.ShapeDtypeStruct | None = None,
) -> SoftmaxOutputs:
    """Return the statistics of the subtiles, `[subtiles, N]`, and what else is asked for."""
    n, size = head.x.shape[0], launch.generation(options).SUBTILE_CLASSES
    classes = _round_up(head.w.shape[1], TILE_CLASSES)
    row = jax.ShapeDtypeStruct((classes // size, _round_up(n, TILE_ROWS)), jnp.float32)
    outputs = SoftmaxOutputs(
        row,
        row,
        row,
        stats=SubtileStats(row, row, row) if stats else None,
        exponentials=exponentials,
    )
    found = _run_kernel(
        epilogues.softmax_statistics,
        head,
        outputs,
        options,
        name="softmax_statistics",
        num_classes=classes,
        by_class=ClassVectors(bias=_bias_and_mask(head)),
        by_row=[head.targets],
    )
    by_row = jax.tree.map(lambda a: a[:, :n], found._replace(exponentials=None))
    return by_row._replace(exponentials=found.exponentials)


def _combine_subtiles(found: SoftmaxOutputs, head: Head, options: Options) -> LSEParts:
    """Return the statistics of the rows from those of their subtiles."""
    maximum = jnp.max(found.maximum, 0)
    factor = relative_exp(found.maximum, maximum[None, :])
    subtile = head.targets // launch.generation(options).SUBTILE_CLASSES
    label_logit = jnp.take_along_axis(found.label_logit, subtile[None, :], 0, mode="fill")[0]
    is_here = (head.targets >= 0) & (head.targets < head.w.shape[1])
    label_logit = _restore_infinities(jnp.where(is_here, label_logit, 0))
    sum_exp_rest = jnp.sum(found.sum_exp_rest * factor, 0)
    parts = LSEParts(_restore_infinities(maximum), sum_exp_rest, label_logit, None)
    if found.stats is None:
        return parts
    total, count, argmax = found.stats
    best = jnp.argmax(found.maximum, 0).astype(jnp.int32)
    position = jnp.take_along_axis(argmax, best[None, :], 0)[0].astype(jnp.int32)
    classes = jnp.sum(count, 0)
    mean = jnp.sum(total, 0) / jnp.maximum(classes, 1)
    predicted = best * launch.generation(options).SUBTILE_CLASSES + position
    return parts._replace(stats=Stats(mean, classes, predicted))


@with_derivatives_of(xla_chunked.backward)
def backward(
    head: Head, parts: LSEParts, cotangents: RowCotangents, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of `tangent`: return the gradients of x, w and bias that are needed."""
    shape, head = head.w.shape, _pad_head(head)
    return _crop(_backward(head, parts, cotangents, needs_grad, options), shape)


def _backward(
    head: Head, parts: LSEParts, cotangents: RowCotangents, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Return the gradients of a head of whole tiles."""
    base = _clip_infinities(jnp.where(parts.maximum == -jnp.inf, 0, parts.maximum))
    by_row = [base, cotangents.sum_exp_rest, cotangents.label_logit]
    share = primitives.per_class(cotangents.mean, parts)
    if share is not None:
        by_row.append(share)

    def gradient(block: _Block) -> tuple[None, Array]:
        dz = _run_kernel(
            epilogues.softmax_gradient,
            head,
            _entries(head, block.size),
            options,
            name="softmax_gradient",
            num_classes=block.num_classes,
            by_class=ClassVectors(bias=block.bias_and_mask(head)),
            by_row=[head.targets - block.start, *by_row],
            start=block.start,
        )
        return None, dz[: head.x.shape[0]]

    size = _classes_per_block(head, needs_grad, options)
    return _scan_classes(gradient, None, head, needs_grad, options, size)[1]


# -- Blocks of classes --


class _Block(NamedTuple):
    """A block of classes."""

    start: Array | int
    size: int

    @property
    def num_classes(self) -> int:
        """The classes of the block's tiles."""
        return _round_up(self.size, TILE_CLASSES)

    def take(self, vector: Array | None, fill: float) -> Array | None:
        """Return the block of a vector over classes in whole tiles, with a number beyond it.

        None stays None where the block has whole tiles.
        """
        if vector is None:
            return None
        block = lax.dynamic_slice_in_dim(vector, self.start, self.size)
        return _pad(block, self.num_classes, fill)

    def bias_and_mask(self, head: Head) -> Array | None:
        """Return the vector that is added to the products of the block, if any."""
        whole = self.size == self.num_classes
        return self.take(_bias_and_mask(head, has_tail=not whole), -jnp.inf)


def _entries(head: Head, size: int) -> jax.ShapeDtypeStruct:
    """Return the type of the entries of some classes of the logits, in half precision."""
    rows = _round_up(head.x.shape[0], SWIZZLE_TILE[0])
    return jax.ShapeDtypeStruct((rows, size), head.x.dtype)


def _classes_per_block(
    head: Head, needs_grad: NeedsGrad, options: Options, memory: int | None = None
) -> int:
    """Return how many classes make a block within the budget: all, or whole tiles of them.

    A block has the gradients of its logits and, for the sigmoid, a copy of its targets; and, where
    XLA multiplies blocks, copies of their part of w and of its gradient. Several blocks need the
    float32 sum of x's gradient beside the budget, so all classes may take its place.
    """
    n, (d, k) = head.x.shape[0], head.w.shape
    if memory is None:
        memory = options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT * n
    class_bytes = n * HALF_BYTES
    if head.targets.ndim == 2:
        class_bytes += n * max(HALF_BYTES, head.targets.dtype.itemsize)
    if k * class_bytes <= memory + _sum_bytes(head, needs_grad):
        return k
    if not _multiplies_in_place(head, needs_grad, options):
        class_bytes += 2 * d * HALF_BYTES
    limit = max(int(memory * BLOCK_SHARE) // class_bytes, 1)
    return min(_round_up(chunks.even_size(k, limit), TILE_CLASSES), k)


def _sum_bytes(head: Head, needs_grad: NeedsGrad) -> int:
    """Return the bytes of the float32 sum of x's gradient over blocks of classes."""
    n, d = head.x.shape
    return primitives.FLOAT_BYTES * n * d if needs_grad.x else 0


def _multiplies_in_place(head: Head, needs_grad: NeedsGrad, options: Options) -> bool:
    """Return whether `hopper_products` can multiply blocks."""
    is_hopper = launch.generation(options) is hopper
    return is_hopper and needs_grad.w in (None, head.x.dtype)


def _scan_classes(
    function: Callable[..., tuple[Any, Any]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
    exponentials: Array | None = None,
) -> tuple[Any, ModelCotangents]:
    """Return the sum of the blocks' values, and the gradients of x, w and bias.

    `function` returns the values of a block and the gradient in its logits. Where exponentials lie
    in the memory of w's gradient, they are its second argument: those of the blocks to come.
    """
    if size == head.w.shape[1]:
        values, dz = function(_Block(0, size))
        if dz is None:
            return values, ModelCotangents(None, None, None)
        return values, xla_chunked.gradients_of_rows(head, dz, needs_grad, options)
    in_place = _multiplies_in_place(head, needs_grad, options)

    def step(carry: tuple[Any, ModelCotangents], block: _Block) -> tuple[Any, ModelCotangents]:
        total, found = carry
        value, dz = function(block) if exponentials is None else function(block, found.w)
        if in_place:
            found = _add_block_in_place(found, head, dz, block, needs_grad, options)
        elif dz is not None:
            cut = Cut(block.start, block.size)
            found = xla_chunked.add_block(found, head, dz, cut, options)
        return None if value is None else total + value, found

    found = ModelCotangents(None, None, _bias_zeros(head, needs_grad))
    if not in_place:
        found = xla_chunked.init_gradients(head, needs_grad)
    if exponentials is not None:
        found = found._replace(w=exponentials)
    total, found = _fold_blocks(step, (values, found), head.w.shape[1], size)
    if found.x is not None:
        n, d = head.x.shape
        found = found._replace(x=found.x[:n, :d].astype(needs_grad.x))
    return total, found


def _bias_zeros(head: Head, needs_grad: NeedsGrad) -> Array | None:
    shape = head.w.shape[1:]
    return placement.full(head.w, 0, shape, jnp.float32) if needs_grad.bias else None


def _fold_blocks[T](step: Callable[[T, _Block], T], carry: T, k: int, size: int) -> T:
    """Fold k classes in blocks: the last one, which may be smaller, then the others in a loop."""
    count = pl.cdiv(k, size) - 1
    carry = step(carry, _Block(count * size, k - count * size))
    if count == 0:
        return carry
    starts = size * jnp.arange(count, dtype=jnp.int32)
    return lax.scan(lambda carry, i: (step(carry, _Block(i, size)), None), carry, starts)[0]


def _add_block_in_place(
    found: ModelCotangents,
    head: Head,
    dz: Array | None,
    block: _Block,
    needs_grad: NeedsGrad,
    options: Options,
) -> ModelCotangents:
    """Do what `xla_chunked.add_block` does; x and w are None before the first block."""
    if dz is None:
        return found
    x, w, bias = found
    dz = dz.astype(head.x.dtype)
    if needs_grad.x is not None:
        x = hopper_products.feature_gradient(dz, head.w, x, block.start, options)
    if needs_grad.w is not None:
        k = head.w.shape[1]
        w = hopper_products.weight_gradient(head.x, dz, w, block.start, k, options)
    if bias is not None:
        sums = jnp.sum(dz, 0, dtype=bias.dtype)
        bias = lax.dynamic_update_slice_in_dim(bias, sums, block.start, 0)
    return ModelCotangents(x, w, bias)


# -- Softmax, a weighted sum --


@with_derivatives_of(xla_chunked.value_and_gradients)
def value_and_gradients(
    head: Head, valid: Array | None, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelCotangents]:
    """Return the loss of each row and the gradients of the weighted sum.

    The loss of a row that is not valid is 0.
    """
    if not any(needs_grad):
        nll = primitives.valid_row_losses(forward, head, valid, options)
        return nll, ModelCotangents(None, None, None)
    zero = xla_chunked.row_zeros(head)
    arguments = head, valid, weights, needs_grad, options
    nll, found = _sum_rows(primitives.nll_cotangents, zero, *arguments)
    return validation.zero_ignored(nll, valid), found


@with_derivatives_of(xla_chunked.rows_and_gradients, options=3)
def rows_and_gradients(
    head: Head,
    weights: Array,
    constants: tuple[Array, ...],
    function: Callable,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[RowTerms, ModelCotangents]:
    """Return the terms of each row, and the gradients of the weighted sum of a function of them."""
    if not any(needs_grad):
        return RowTerms.of(forward(head, options)), ModelCotangents(None, None, None)
    loss, zero = RowLoss(function, constants), xla_chunked.row_zeros(head)
    arguments = head, None, weights, needs_grad, options
    # The gradient of the mean of capped logits has the derivative of each cap, which exponentials
    # that round to 0 do not tell.
    again = options.softcap is not None and loss.uses_mean(zero)
    return _sum_rows(loss.part_cotangents, RowTerms.zeros(zero), *arguments, again=again)


def _sum_rows(
    rule: RowRule,
    zeros: Any,
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    *,
    again: bool = False,
) -> tuple[Any, ModelCotangents]:
    """Return the numbers of each row, and the gradients of a weighted sum."""
    shape, head = head.w.shape, _pad_head(head)
    plan = "again" if again else _plan(head, needs_grad, options)
    if isinstance(plan, int):
        arguments = head, valid, weights, needs_grad, options
        rows, found = _scan_chunks(rule, zeros, *arguments, plan)
        return rows, _crop(found, shape)
    head, weights = xla_chunked.ignore_rows(head, valid, weights)
    kept = head, weights, needs_grad, options
    if plan == "in place":
        rows, found = _gradients_in_place(rule, *kept)
    else:
        rows, found = xla_chunked.compute_twice(*kept, forward, _backward, rule)
    return rows, _crop(found, shape)


def _plan(
    head: Head, needs_grad: NeedsGrad, options: Options
) -> int | Literal["in place", "again"]:
    """Return how many rows' exponentials are kept at a time, or how to do without their memory.

    They are the rows of a chunk, or all. Several chunks need the sum of w's gradient in float32,
    4 D K bytes of the budget, and read and write it once each. "in place": all rows' exponentials
    lie where w's gradient will, which they fit where N <= D. "again": the logits are computed again
    for the gradient, as they are per example.
    """
    n, (d, k) = head.x.shape[0], head.w.shape
    memory = _chunk_memory(head, options)
    if HALF_BYTES * n * k <= memory + _sum_bytes(head, needs_grad):
        return n
    if needs_grad.w is None:
        return _even_chunk(n, memory // (HALF_BYTES * k))
    if n <= d and needs_grad.w == head.x.dtype:
        return "in place"
    limit = (memory - primitives.FLOAT_BYTES * d * k) // (HALF_BYTES * k)
    return _even_chunk(n, limit) if limit >= MIN_CHUNK_ROWS else "again"


def _chunk_memory(head: Head, options: Options) -> int:
    """Return the budget of the sum in bytes."""
    return options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT * head.w.shape[1]


def _even_chunk(n: int, limit: int) -> int:
    """Return the rows of a chunk: whole tiles, which are as few as the limit allows."""
    return min(_round_up(chunks.even_size(n, max(limit, TILE_ROWS)), TILE_ROWS), n)


def _scan_chunks(
    rule: RowRule,
    zeros: Any,
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
    size: int,
) -> tuple[Any, ModelCotangents]:
    """Return numbers of rows and gradients from the exponentials of a chunk of rows at a time."""

    def gradient(chunk: Head, valid: Array, weights: Array) -> tuple[Any, Array]:
        del valid  # of weight 0
        n, k = chunk.x.shape[0], chunk.w.shape[1]
        entries = _entries(chunk, _round_up(k, TILE_CLASSES))
        found = _run_exponentials(rule, chunk, weights, entries, options)
        return found.rows, found.gradient(found.exponentials[:n, :k], _Block(0, k))

    return xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size, zeros=zeros
    )


def _gradients_in_place(
    rule: RowRule, head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Any, ModelCotangents]:
    """Return numbers of rows and gradients from exponentials that lie where w's gradient will.

    A block of them becomes a gradient in the logits, and that the block of w's gradient: in its
    place nothing is needed any more.
    """
    n = head.x.shape[0]
    entries = jax.ShapeDtypeStruct(head.w.shape, head.x.dtype)
    found = _run_exponentials(rule, head, weights, entries, options)

    def gradient(block: _Block, exponentials: Array) -> tuple[None, Array]:
        e = lax.dynamic_slice(exponentials, (0, block.start), (n, block.size))
        return None, found.gradient(e, block)

    size = _classes_per_block(head, needs_grad, options, _chunk_memory(head, options))
    _, gradients = _scan_classes(
        gradient, None, head, needs_grad, options, size, found.exponentials
    )
    return found.rows, gradients


class _Exponentials(NamedTuple):
    """The exponentials of the logits of rows, and what makes them gradients."""

    rows: Any  # the numbers of each row that are returned
    exponentials: Array  # as in `SoftmaxOutputs`
    factor: Array  # [N, subtiles]
    label_gradient: Array  # [N]
    share: Array | None  # [N], of each class that exists in the gradient of the mean logit
    labels: Array  # [N]
    is_ignored: Array  # [N]
    subtile_classes: int

    def gradient(self, e: Array, block: _Block) -> Array:
        """Return the weighted gradients in a block of the logits, from its exponentials."""
        size = self.subtile_classes
        shape = e.shape[0], pl.cdiv(block.size, size), size
        factor = lax.dynamic_slice_in_dim(self.factor, block.start // size, shape[1], 1)
        factor = jnp.broadcast_to(factor[:, :, None], shape).reshape(e.shape[0], -1)
        dz = e.astype(jnp.float32) * factor[:, : block.size]
        if self.share is not None:
            dz += jnp.where(jnp.signbit(e), 0, self.share[:, None])
        classes = block.start + jnp.arange(block.size, dtype=jnp.int32)
        is_label = classes[None, :] == self.labels[:, None]
        dz = jnp.where(is_label, self.label_gradient[:, None], dz)
        return jnp.where(self.is_ignored[:, None], 0, dz)


def _run_exponentials(
    rule: RowRule, head: Head, weights: Array, entries: jax.ShapeDtypeStruct, options: Options
) -> _Exponentials:
    """Return the exponentials of the logits, stored as `entries`, and the cotangents of rows."""
    found = _run_statistics(head, options, stats=options.stats, exponentials=entries)
    parts = _combine_subtiles(found, head, options)
    rows, bars, is_ignored = rule(parts, weights)
    factor = relative_exp(found.maximum.T, _clip_infinities(parts.maximum)[:, None])
    share, label_gradient = primitives.per_class(bars.mean, parts), bars.label_logit
    if share is not None:
        label_gradient += share
    if options.softcap is not None:
        label_gradient *= 1 - (parts.label_logit / options.softcap) ** 2
    return _Exponentials(
        rows,
        found.exponentials,
        factor * bars.sum_exp_rest[:, None],
        jnp.where(parts.label_logit == -jnp.inf, 0, label_gradient),
        share,
        head.targets,
        is_ignored,
        launch.generation(options).SUBTILE_CLASSES,
    )


# -- Sigmoid --


def binary_forward(head: Head, options: Options) -> Array:
    """Return the sum of the losses of each row's labels that exist."""
    return _run_sigmoid(head, None, NeedsGrad(), options, losses=True)[0]


@with_derivatives_of(xla_chunked.binary_backward)
def binary_backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of `binary_tangent`."""
    return _run_sigmoid(head, cotangents, needs_grad, options, losses=False)[1]


@with_derivatives_of(xla_chunked.binary_value_and_gradients)
def binary_value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelCotangents]:
    """Return the loss of each row, and the gradients of their weighted sum, in one pass."""
    if not any(needs_grad):
        return binary_forward(head, options), ModelCotangents(None, None, None)
    return _run_sigmoid(head, weights, needs_grad, options, losses=True)


def _run_sigmoid(
    head: Head, weights: Array | None, needs_grad: NeedsGrad, options: Options, *, losses: bool
) -> tuple[Any, ModelCotangents]:
    """Return the loss of each row, if asked for, and with weights the gradients of their sum."""
    shape, head = head.w.shape, _pad_head(head)
    n = head.x.shape[0]

    def block_losses_and_gradients(block: _Block) -> tuple[Array | None, Array | None]:
        subtiles = block.num_classes // launch.generation(options).SUBTILE_CLASSES
        row = jax.ShapeDtypeStruct((subtiles, _round_up(n, TILE_ROWS)), jnp.float32)
        outputs = SigmoidOutputs(
            losses=row if losses else None,
            gradients=None if weights is None else _entries(head, block.size),
        )
        found = _run_kernel(
            epilogues.sigmoid_losses_and_gradients,
            head,
            outputs,
            options,
            name=f"sigmoid_{outputs.name}",
            num_classes=block.num_classes,
            by_class=_vectors_of_labels(head, block),
            by_row=() if weights is None else (weights,),
            start=block.start,
            targets=_take_targets(head, block),
        )
        values = jnp.sum(found.losses[:, :n], 0) if losses else None
        return values, None if weights is None else found.gradients[:n]

    zero = placement.full(head.x, 0, (n,), jnp.float32) if losses else None
    size = _classes_per_block(head, needs_grad, options)
    values, found = _scan_classes(block_losses_and_gradients, zero, head, needs_grad, options, size)
    return values, _crop(found, shape)


def _vectors_of_labels(head: Head, block: _Block) -> ClassVectors:
    """Return the vectors over the labels of a block that make a difference."""
    exists = None
    if head.where is not None and _row_mask(head) is None:
        exists = head.where[0].astype(jnp.float32)
    elif block.size < block.num_classes:
        exists = placement.full(head.w, 1, head.w.shape[1:], jnp.float32)
    pos_weight = None if head.pos_weight is None else head.pos_weight[0]
    return ClassVectors(*(block.take(a, 0.0) for a in (head.bias, exists, pos_weight)))


def _take_targets(head: Head, block: _Block) -> Array:
    """Return the targets of a block in whole tiles, as floats that a kernel can load.

    With a mask `[N, K]` targets of -inf become NaN, so that only the mask makes a target missing.
    """
    n, size = head.targets.shape[0], block.size
    t = lax.dynamic_slice_in_dim(head.targets, block.start, size, 1)
    if t.dtype == jnp.bool_:
        t = t.astype(jnp.bfloat16)
    elif jnp.issubdtype(t.dtype, jnp.integer):
        t = jnp.where((t == 0) | (t == 1), t, 2).astype(jnp.bfloat16)
    elif t.dtype == jnp.float64:
        t = t.astype(jnp.float32)
    row_mask = _row_mask(head)
    if row_mask is not None:
        exists = lax.dynamic_slice_in_dim(row_mask, block.start, size, 1)
        t = jnp.where(t == epilogues.MISSING_TARGET, jnp.nan, t)
        t = jnp.where(exists, t, epilogues.MISSING_TARGET)
    return jnp.pad(t, ((0, _round_up(n, TILE_ROWS) - n), (0, block.num_classes - size)))


# -- Padding and infinities --


def _pad_head(head: Head) -> Head:
    """Return the head with features and classes padded to whole tiles, which copies w, if needed.

    The classes that are added do not exist.
    """
    d, k = head.w.shape
    features, classes = -d % SWIZZLE_TILE[0], -k % SWIZZLE_TILE[1]
    if not features and not classes:
        return head
    where = placement.full(head.w, True, (1, k), bool) if head.where is None else head.where
    if head.targets.ndim == 2:
        head = head._replace(targets=jnp.pad(head.targets, ((0, 0), (0, classes))))
    if head.pos_weight is not None:
        head = head._replace(pos_weight=jnp.pad(head.pos_weight, ((0, 0), (0, classes))))
    return head._replace(
        x=jnp.pad(head.x, ((0, 0), (0, features))),
        w=jnp.pad(head.w, ((0, features), (0, classes))),
        bias=None if head.bias is None else jnp.pad(head.bias, (0, classes)),
        where=jnp.pad(where, ((0, 0), (0, classes))),
    )


def _crop(found: ModelCotangents, shape: tuple[int, ...]) -> ModelCotangents:
    """Return the gradients of a head whose w had this shape before it was padded."""
    d, k = shape
    x, w, bias = found
    return ModelCotangents(
        None if x is None else x[:, :d],
        None if w is None else w[:d, :k],
        None if bias is None else bias[:k],
    )


def _bias_and_mask(head: Head, *, has_tail: bool | None = None) -> Array | None:
    """Return the bias, and -inf where a class does not exist, for whole tiles of classes.

    None where it would add nothing: without a bias, a mask and a tail beyond the last class.
    """
    k = head.w.shape[1]
    has_tail = k % TILE_CLASSES != 0 if has_tail is None else has_tail
    if head.bias is None and head.where is None and not has_tail:
        return None
    like = head.x if head.bias is None else head.bias
    vector = placement.full(like, 0, (k,), jnp.float32) if head.bias is None else head.bias
    vector = _clip_infinities(vector)
    if head.where is not None:
        vector = jnp.where(head.where[0], vector, -jnp.inf)
    return _pad(vector, _round_up(k, TILE_CLASSES), -jnp.inf)


def _clip_infinities(a: Array) -> Array:
    """Return the largest number in place of +inf, so that its difference from itself is 0."""
    return jnp.minimum(a, FLOAT32_MAX)


def _restore_infinities(a: Array) -> Array:
    """Apply the inverse of `_clip_infinities`."""
    return jnp.where(a >= FLOAT32_MAX, jnp.inf, a)


def _pad(a: Array, size: int, value: float) -> Array:
    return jnp.pad(a, (0, size - a.shape[0]), constant_values=value)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
