"""The fused losses on Hopper and Blackwell GPUs, whose logits are never stored in memory.

One kernel computes tiles of x w, 128 examples by 256 classes, on Hopper (`hopper`) or Blackwell
(`blackwell`), and applies an epilogue (`epilogues`) to them. For the softmax that gives statistics
of the tiles, or a block of the gradient. XLA combines the statistics in float32, and multiplies the
gradient blocks: its products run at the device's full rate.

- forward: one product of N D K, and 12 N K / 256 bytes of statistics on Hopper. On Blackwell they
  are twice as many, as a warpgroup has 128 classes of a tile.
- backward: computes the logits again. In blocks, 2 N K bytes of gradients are written once and read
  twice. The gradient of the bias is their sum.
- value_and_gradients: the pass that finds the maxima also stores the exponentials, relative to the
  maximum of each subtile, in half precision, for a chunk of rows. One pass over them then computes
  the gradient, so there are three products of N D K.
- the sigmoid's functions: labels are independent, so one kernel computes the values and the
  gradients of a block, and there are three products too. Where each example has its own mask, the
  copy of a block's targets carries it.

An additive vector with one number for each class carries the bias, and -inf where a class does not
exist. Copies have tiles of 8 by 64. Where D is not a multiple of 8, or K not one of 64, x and w are
padded first. That is fast compared with the products of many rows, but takes a copy of w.
`tangent` and the derivatives of the reverse passes are those of `xla_chunked`: forward mode has two
products instead of one, and a kernel would not make it faster.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Hsu et al.,
"Liger Kernel: efficient Triton kernels for LLM training" (2024).
"""

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.extend.core import jaxpr_as_fun

from jaxsoftmax import placement, validation
from jaxsoftmax.kernels import primitives, tiles, xla_chunked
from jaxsoftmax.kernels.gpu import blackwell, epilogues, hopper
from jaxsoftmax.kernels.gpu.epilogues import (
    SWIZZLE_TILE,
    TILE_CLASSES,
    TILE_ROWS,
    Kernel,
    KernelArguments,
    SigmoidOutputs,
    SoftmaxOutputs,
    Subtile,
    SubtileStats,
)
from jaxsoftmax.kernels.linear_map import with_derivatives_of
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    NeedsGrad,
    Options,
    RowCotangents,
    Stats,
)
from jaxsoftmax.placement import Cut

tangent, binary_tangent = xla_chunked.tangent, xla_chunked.binary_tangent

HALF_BYTES = 2  # of an entry of a gradient in the logits, and of an exponential
FLOAT32_MAX = float(np.finfo(np.float32).max)
INTERPRETER_LOCK = Lock()  # the interpreter has one GPU, and XLA may run two kernels at once


def unsupported(head: Head, options: Options) -> str | None:
    """Return why the tensor cores cannot compute this, or None."""
    k, dtype, row_mask = head.w.shape[1], head.x.dtype, _row_mask(head)
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16 features and weights, got {dtype}"
    if head.targets.ndim == 1 and row_mask is not None:
        return f"it needs `where` of shape ({k},), one for all examples, got {row_mask.shape}"
    if _generation(options) is None:
        return (
            f"it needs a Hopper GPU, one of {', '.join(hopper.DEVICES)}, or a data center's "
            f"Blackwell GPU, one of {', '.join(blackwell.DEVICES)}, got {_device(options)!r}"
        )
    return None


def _row_mask(head: Head) -> Array | None:
    """Return the mask if it has a row for each example, `[N, K]`."""
    return None if head.where is None or head.where.shape[0] == 1 else head.where


def _generation(options: Options) -> Any:
    """Return the module for the GPU that a program is traced for, or None."""
    device = _device(options)
    modules = (m for m in (hopper, blackwell) if any(name in device for name in m.DEVICES))
    return next(modules, None)


def _device(options: Options) -> str:
    """Return the kind of GPU that a program is traced for.

    It is that of the abstract mesh or, without one, of this machine. The interpreter is a Hopper
    GPU unless its target names another one.
    """
    if options.target.interpret:
        return options.target.kind or hopper.DEVICES[0]
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    return (abstract or jax.devices()[0]).device_kind


def _cores(options: Options) -> int:
    """Return how many blocks run at the same time."""
    if options.target.interpret:
        return 2
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    return abstract.num_cores if abstract else jax.devices()[0].core_count


# -- The kernel --


def _run_kernel(
    epilogue: Callable[[Subtile], None],
    head: Head,
    outputs: Any,
    options: Options,
    *,
    name: str,
    by_class: Sequence[Array],
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
        by_class: vectors over classes, `[a multiple of 256]`; the first is added to the products.
        by_row: vectors over rows, `[N]`.
        start: the first class, a multiple of 64.
        targets: of whole tiles, for the sigmoid.

    Returns:
        The tree of results.
    """
    # Copies are of whole swizzled tiles; entries beyond an array are read as 0.
    padding = [(0, -size % unit) for size, unit in zip(head.x.shape, SWIZZLE_TILE, strict=True)]
    x = jnp.pad(head.x, padding)
    start = jnp.full(1, start, jnp.int32)
    rows = _round_up(head.x.shape[0], TILE_ROWS)
    by_row = tuple(_pad(a, rows, 0) for a in by_row)
    arguments = KernelArguments(x, head.w, start, tuple(by_class), by_row, targets, outputs)
    kernel = _build_kernel(f"linear_{name}", epilogue, arguments, head, options)
    inputs = jax.tree.leaves(arguments._replace(outputs=None))
    if options.target.interpret:
        # Its effects are ordered, which primitives with rules of their own do not allow.
        interpret = partial(_interpret, kernel)
        found = jax.pure_callback(interpret, outputs, *inputs, vmap_method="sequential")
    else:
        # Traced apart from shard_map: the references of a kernel vary over no mesh axis.
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs]
        found = jaxpr_as_fun(jax.make_jaxpr(kernel)(*shapes))(*inputs)
    # Neither result varies over the mesh axes over which the inputs do.
    found = placement.match_varying_axes(x, *jax.tree.leaves(found))[1:]
    return jax.tree.unflatten(jax.tree.structure(outputs), found)


def _build_kernel(
    name: str,
    epilogue: Callable[[Subtile], None],
    arguments: KernelArguments,
    head: Head,
    options: Options,
) -> Callable[..., Any]:
    """Return a function from the leaves of the arguments to those of the outputs."""
    interpret, generation = options.target.interpret, _generation(options)
    pair = not interpret and pl.cdiv(arguments.x.shape[0], TILE_ROWS) % 2 == 0
    has_missing_targets = _row_mask(head) is not None
    target_rounding = validation.rounding_slack(head.targets)
    leaves, treedef = jax.tree.flatten(arguments)

    def body(*refs: Any) -> None:
        arguments = jax.tree.unflatten(treedef, refs[: len(leaves)])
        scratch = generation.Scratch(*refs[len(leaves) :])
        kernel = Kernel(
            epilogue, arguments, options.softcap, pair, has_missing_targets, target_rounding
        )
        generation.body(kernel, scratch)

    return gpu.kernel(
        body,
        out_type=tuple(jax.tree.leaves(arguments.outputs)),
        scratch_types=generation.scratch(arguments.x.dtype, pair),
        grid=(_cores(options) // (1 + pair),),
        grid_names=("core",),
        cluster=(2,) if pair else (),
        cluster_names=("pair",) if pair else (),
        num_threads=3,
        thread_name="group",
        kernel_name=name,
        # The approximate tanh has an error of 2^-11.
        compiler_params=gpu.CompilerParams(
            approx_math=options.softcap is None, reduction_scratch_bytes=0
        ),
        interpret=gpu.InterpretGPUParams() if interpret else None,
    )


def _interpret(kernel: Callable[..., Any], *inputs: Array) -> Any:
    """Run a kernel in the interpreter, which runs one kernel at a time."""
    with INTERPRETER_LOCK:
        return jax.block_until_ready(jax.jit(kernel)(*inputs))


# -- Softmax, per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Return the parts of each row's loss, with statistics if the options ask for them."""
    head = _pad_head(head)
    return _combine_subtiles(_run_statistics(head, options, stats=options.stats), options)


def _run_statistics(
    head: Head, options: Options, *, stats: bool = False, exponentials: bool = False
) -> SoftmaxOutputs:
    """Return the statistics of the subtiles, `[subtiles, N]`, and what else is asked for."""
    n, size = head.x.shape[0], _generation(options).SUBTILE_CLASSES
    classes = _round_up(head.w.shape[1], TILE_CLASSES)
    row = jax.ShapeDtypeStruct((classes // size, _round_up(n, TILE_ROWS)), jnp.float32)
    entries = jax.ShapeDtypeStruct((_round_up(n, SWIZZLE_TILE[0]), classes), head.x.dtype)
    outputs = SoftmaxOutputs(
        row,
        row,
        row,
        stats=SubtileStats(row, row, row) if stats else None,
        exponentials=entries if exponentials else None,
    )
    found = _run_kernel(
        epilogues.softmax_statistics,
        head,
        outputs,
        options,
        name="softmax_statistics",
        by_class=[_bias_and_mask(head)],
        by_row=[head.targets],
    )
    by_row = jax.tree.map(lambda a: a[:, :n], found._replace(exponentials=None))
    return by_row._replace(exponentials=found.exponentials[:n] if exponentials else None)


def _combine_subtiles(found: SoftmaxOutputs, options: Options) -> LSEParts:
    """Return the statistics of the rows from those of their subtiles."""
    maximum = jnp.max(found.maximum, 0)
    factor = relative_exp(found.maximum, maximum[None, :])
    label_logit = _restore_infinities(jnp.sum(found.label_logit, 0))
    sum_exp_rest = jnp.sum(found.sum_exp_rest * factor, 0)
    parts = LSEParts(_restore_infinities(maximum), sum_exp_rest, label_logit, None)
    if found.stats is None:
        return parts
    total, count, argmax = found.stats
    best = jnp.argmax(found.maximum, 0).astype(jnp.int32)
    position = jnp.take_along_axis(argmax, best[None, :], 0)[0].astype(jnp.int32)
    classes = jnp.sum(count, 0)
    mean = jnp.sum(total, 0) / jnp.maximum(classes, 1)
    predicted = best * _generation(options).SUBTILE_CLASSES + position
    return parts._replace(stats=Stats(mean, classes, predicted))


@with_derivatives_of(xla_chunked.backward)
def backward(
    head: Head, parts: LSEParts, cotangents: RowCotangents, needs_grad: NeedsGrad, options: Options
) -> ModelCotangents:
    """Apply the transpose of `tangent`: return the gradients of x, w and bias that are needed."""
    shape, head = head.w.shape, _pad_head(head)
    bias_and_mask, mean = _bias_and_mask(head), jnp.zeros(head.x.shape[0], jnp.float32)
    if cotangents.mean is not None and parts.stats is not None:
        mean = cotangents.mean / jnp.maximum(parts.stats.classes, 1)
    base = _clip_infinities(jnp.where(parts.maximum == -jnp.inf, 0, parts.maximum))
    by_row = (base, cotangents.sum_exp_rest, cotangents.label_logit, mean)

    def gradient(block: _Block) -> tuple[None, Array]:
        labels = head.targets - block.start
        dz = _run_kernel(
            epilogues.softmax_gradient,
            head,
            block.gradients,
            options,
            name="softmax_gradient",
            by_class=[block.take(bias_and_mask, -jnp.inf)],
            by_row=[labels, *by_row],
            start=block.start,
        )
        return None, dz[: head.x.shape[0]]

    return _crop(_scan_classes(gradient, None, head, needs_grad, options)[1], shape)


class _Block(NamedTuple):
    """A block of classes."""

    start: Array | int
    is_new: Array  # [classes], False where another block has the class
    gradients: jax.ShapeDtypeStruct  # those in the logits, of whole tiles of rows

    def take(self, vector: Array, fill: float) -> Array:
        """Return the block of a vector over classes, in whole tiles.

        The result is `fill` beyond the block, and where another block has the class.
        """
        size = self.is_new.shape[0]
        block = lax.dynamic_slice_in_dim(vector, self.start, size)
        return _pad(jnp.where(self.is_new, block, fill), _round_up(size, TILE_CLASSES), fill)


def _scan_classes(
    function: Callable[[_Block], tuple[Any, Any]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelCotangents]:
    """Return the sum of the blocks' values, and the gradients of x, w and bias.

    The function returns the values of a block and the gradient in its logits. A block has as many
    classes as take the bytes of a block of `xla_chunked`, with a copy of their targets.
    """
    n, k = head.x.shape[0], head.w.shape[1]
    entry_bytes = HALF_BYTES
    if head.targets.ndim == 2:
        entry_bytes += max(HALF_BYTES, head.targets.dtype.itemsize)
    classes = options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT // entry_bytes
    size = min(_round_up(classes, TILE_CLASSES), k)
    gradients = jax.ShapeDtypeStruct((_round_up(n, SWIZZLE_TILE[0]), size), head.x.dtype)

    def step(carry: tuple[Any, ModelCotangents], i: Array | int) -> tuple[Any, ModelCotangents]:
        # The last block starts early and goes first: other blocks overwrite the classes they share.
        start = jnp.minimum(i * size, k - size) if k % size else i * size
        is_new = start + jnp.arange(size, dtype=jnp.int32) >= i * size
        total, found = carry
        value, dz = function(_Block(start, is_new, gradients))
        found = xla_chunked.add_block(found, head, dz, Cut(start, size), options)
        return None if value is None else total + value, found

    init = values, xla_chunked.init_gradients(head, needs_grad)
    total, found = xla_chunked.checkpointed_scan(step, init, pl.cdiv(k, size))
    return total, found if found.x is None else found._replace(x=found.x.astype(needs_grad.x))


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
    shape, head = head.w.shape, _pad_head(head)

    def gradient(chunk: Head, valid: Array, weights: Array) -> tuple[Array, Array]:
        nll, dz = _row_losses_and_gradients(chunk, weights, options)
        return validation.zero_ignored(nll, valid), dz

    def times_w(dz: Array, w: Array, axis: int, precision: Any) -> Array:
        # XLA makes no padded copy of whole tiles of classes.
        return primitives.dot(dz, w, (axis, axis), precision)

    n, d = head.x.shape
    size = _rows_per_chunk(n, d, options)
    nll, found = xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size, times_w=times_w
    )
    return nll, _crop(found, shape)


def _rows_per_chunk(n: int, d: int, options: Options) -> int:
    """Return the number of rows of a chunk: all rows, or whole tiles of them.

    Chunks need the sum of the gradient of w in float32, 4 D K bytes. All rows at once do not, so
    the exponentials and gradients of D more rows may take its place.
    """
    rows = options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT // (2 * HALF_BYTES)
    limit = _round_up(rows, TILE_ROWS)
    return n if n <= limit + d else min(_round_up(-(-n // pl.cdiv(n, limit)), TILE_ROWS), n)


def _row_losses_and_gradients(chunk: Head, weights: Array, options: Options) -> tuple[Array, Array]:
    """Return the losses of whole rows and their weighted gradients in the logits."""
    found = _run_statistics(chunk, options, exponentials=True)
    parts = _combine_subtiles(found, options)
    nll, total = primitives.row_loss(parts)
    scale = (weights / total)[:, None]
    base = _clip_infinities(parts.maximum)[:, None]
    factor = relative_exp(found.maximum.T, base) * scale
    dz = _scale_exponentials(found.exponentials, factor)[:, : chunk.w.shape[1]]
    dz_label = -parts.sum_exp_rest[:, None] * scale
    if options.softcap is not None:
        dz_label = dz_label * (1 - (parts.label_logit[:, None] / options.softcap) ** 2)
    is_label = jnp.arange(dz.shape[1], dtype=jnp.int32)[None, :] == chunk.targets[:, None]
    exists = parts.label_logit[:, None] != -jnp.inf
    dz = jnp.where(is_label, jnp.where(exists, dz_label, 0), dz)
    return nll, jnp.where(weights[:, None] == 0, 0, dz)


def _scale_exponentials(e: Array, factor: Array) -> Array:
    """Return the exponentials, `[N, K]`, times the factors of their subtiles, `[N, subtiles]`."""
    n, subtiles = factor.shape
    factor = jnp.broadcast_to(factor[:, :, None], (n, subtiles, e.shape[1] // subtiles))
    return e.astype(jnp.float32) * factor.reshape(n, -1)


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
    n, by_class = head.x.shape[0], _vectors_of_labels(head)

    def block_losses_and_gradients(block: _Block) -> tuple[Array | None, Array | None]:
        block_by_class = [block.take(a, 0.0) for a in by_class]
        subtiles = block_by_class[0].shape[0] // _generation(options).SUBTILE_CLASSES
        row = jax.ShapeDtypeStruct((subtiles, _round_up(n, TILE_ROWS)), jnp.float32)
        outputs = SigmoidOutputs(
            losses=row if losses else None,
            gradients=None if weights is None else block.gradients,
        )
        found = _run_kernel(
            epilogues.sigmoid_losses_and_gradients,
            head,
            outputs,
            options,
            name=f"sigmoid_{outputs.name}",
            by_class=block_by_class,
            by_row=() if weights is None else (weights,),
            start=block.start,
            targets=_take_targets(head, block),
        )
        values = jnp.sum(found.losses[:, :n], 0) if losses else None
        return values, None if weights is None else found.gradients[:n]

    zero = placement.full(head.x, 0, (n,), jnp.float32) if losses else None
    values, found = _scan_classes(block_losses_and_gradients, zero, head, needs_grad, options)
    return values, _crop(found, shape)


def _vectors_of_labels(head: Head) -> list[Array]:
    """Return the bias, whether each label exists, and the weights of positive labels, if any."""
    k = head.w.shape[1]
    where = head.where if _row_mask(head) is None else None
    vectors = [
        jnp.zeros(k, jnp.float32) if head.bias is None else head.bias,
        jnp.ones(k, jnp.float32) if where is None else where[0].astype(jnp.float32),
    ]
    return vectors if head.pos_weight is None else [*vectors, head.pos_weight[0]]


def _take_targets(head: Head, block: _Block) -> Array:
    """Return the targets of a block in whole tiles, as floats that a kernel can load.

    With a mask `[N, K]` targets of -inf become NaN, so that only the mask makes a target missing.
    """
    n, size = head.targets.shape[0], block.is_new.shape[0]
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
    return jnp.pad(t, ((0, _round_up(n, TILE_ROWS) - n), (0, _round_up(size, TILE_CLASSES) - size)))


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


def _bias_and_mask(head: Head) -> Array:
    """Return the bias, and -inf where a class does not exist, for whole tiles of classes."""
    k = head.w.shape[1]
    vector = jnp.zeros(k, jnp.float32) if head.bias is None else _clip_infinities(head.bias)
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
