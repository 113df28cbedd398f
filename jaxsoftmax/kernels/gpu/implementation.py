"""The fused losses on Hopper and Blackwell GPUs: tiles of logits that never are in memory.

One kernel makes tiles of x w, 128 examples by 256 classes, on Hopper (`hopper`) or Blackwell
(`blackwell`), and brings them to one of two ends (`gpu_tiles`): their statistics, or a block of
their gradient. XLA combines the statistics in float32, and multiplies the gradient blocks: its
products run at the device's full rate.

- forward: N D K once; 12 N K / 256 bytes of statistics on Hopper and twice that on Blackwell, where
  a warpgroup has 128 classes of a tile.
- backward: the logits again, 2 N K bytes of gradients written and read twice, in blocks; the
  bias's gradient is their sum.
- value_and_gradients: chunks of rows whose exponentials, relative to each share's maximum, are
  stored in half precision by the pass that finds the maxima. One pass over them then makes the
  gradient, so there are three products of N D K.
- the sigmoid's functions: its labels know nothing of each other, so one kernel gives a block's
  values and gradients, and there are three products too. Where each example has a mask of its own,
  the copy of a block's targets carries it.

An additive vector of one number a class carries the bias, and -inf where a class does not exist.
Copies are of tiles of 8 by 64: where D is no multiple of 8, or K none of 64, x and w are padded
first, which is fast beside the products of many rows but takes a copy of w.
`tangent`, and the derivatives of the reverse passes, are those of `xla_chunked`: forward mode has
two products for one, and nothing here would make them faster.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Hsu et al.,
"Liger Kernel: efficient Triton kernels for LLM training" (2024).
"""

from collections.abc import Callable, Sequence
from itertools import islice
from threading import Lock
from types import ModuleType
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
from jaxsoftmax.kernels.gpu.epilogues import CLASSES, ROWS, TILING, Work
from jaxsoftmax.kernels.linear_map import with_derivatives_of
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelTangents,
    NeedsGrad,
    Options,
    RowTangents,
    Stats,
)
from jaxsoftmax.placement import Cut

tangent, binary_tangent = xla_chunked.tangent, xla_chunked.binary_tangent

HALF = 2  # bytes of a gradient in the logits, and of an exponential

LARGEST = float(np.finfo(np.float32).max)
ONE_AT_A_TIME = Lock()  # the interpreter has one GPU, and XLA may run two kernels at once


def unsupported(head: Head, options: Options) -> str | None:
    """What the tensor cores multiply, and which GPUs have them."""
    k, dtype, gaps = head.w.shape[1], head.x.dtype, _gaps(head)
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16 features and weights, got {dtype}"
    if head.targets.ndim == 1 and gaps is not None:
        return f"it needs `where` of shape ({k},), one for all examples, got {gaps.shape}"
    if not _generations(options):
        return (
            f"it needs a Hopper GPU, one of {', '.join(hopper.DEVICES)}, or a data centre's "
            f"Blackwell GPU, one of {', '.join(blackwell.DEVICES)}, got {_device(options)!r}"
        )
    return None


def _gaps(head: Head) -> Array | None:
    """The mask where it is `[N, K]`, with a row for each example."""
    return None if head.where is None or head.where.shape[0] == 1 else head.where


def _generations(options: Options) -> list[ModuleType]:
    """How the GPU that a program is traced for makes tiles: one module, or none."""
    return [m for m in (hopper, blackwell) if any(n in _device(options) for n in m.DEVICES)]


def _device(options: Options) -> str:
    """The kind of GPU that a program is traced for: described, or here; interpreted, a Hopper."""
    if options.target.interpret:
        return options.target.kind or hopper.DEVICES[0]
    described = jax.sharding.get_abstract_mesh().abstract_device
    return (described or jax.devices()[0]).device_kind


def _cores(options: Options) -> int:
    """How many blocks run at the same time."""
    if options.target.interpret:
        return 2
    described = jax.sharding.get_abstract_mesh().abstract_device
    return described.num_cores if described else jax.devices()[0].core_count


# -- The kernel --


def _tiles(
    end: Callable[[epilogues.Tile], None],
    head: Head,
    start: Array | int,
    columns: Sequence[Array],
    rows: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    options: Options,
    *,
    targets: Array | None = None,
) -> Sequence[Array]:
    """Run `end` on each tile of the logits of classes from `start` on.

    Args:
        end: one of the ends of `gpu_tiles`.
        head: of which x and w are used.
        start: the first class, a multiple of 64.
        columns: numbers of each class, `[a multiple of 256]` each; the first is added to it.
        rows: numbers of each row, `[N]` each.
        outputs: shapes and dtypes.
        options: for the softcap and the target.
        targets: of whole tiles.
    """
    n, interpret = head.x.shape[0], options.target.interpret
    # Copies are of whole swizzled tiles; what lies beyond an array is read as 0.
    x = jnp.pad(
        head.x, [(0, -size % unit) for size, unit in zip(head.x.shape, TILING, strict=True)]
    )
    inputs = [x, head.w, jnp.full(1, start, jnp.int32), *columns]
    inputs += [_padded(a, _up(n, ROWS), 0) for a in rows]
    inputs += [] if targets is None else [targets]
    sizes = (1, 1, 1, len(columns), len(rows), len(inputs) - 3 - len(columns) - len(rows))
    pair = not interpret and pl.cdiv(n, ROWS) % 2 == 0
    gaps, slack = _gaps(head) is not None, validation.rounding_slack(head.targets)
    (generation,) = _generations(options)

    def body(*refs: Any) -> None:
        rest = iter(refs)
        parts = [tuple(islice(rest, size)) for size in (*sizes, len(outputs))]
        (x,), (w,), (start,), *others = parts
        generation.body(Work(end, options.softcap, pair, gaps, slack, x, w, start, *others), *rest)

    kernel = gpu.kernel(
        body,
        out_type=tuple(outputs),
        scratch_types=generation.scratch(x.dtype, pair),
        grid=(_cores(options) // (1 + pair),),
        grid_names=("core",),
        cluster=(2,) if pair else (),
        cluster_names=("pair",) if pair else (),
        num_threads=3,
        thread_name="group",
        kernel_name=f"linear_{end.__name__}",
        # The approximate tanh is good to 2^-11 alone.
        compiler_params=gpu.CompilerParams(
            approx_math=options.softcap is None, reduction_scratch_bytes=0
        ),
        interpret=gpu.InterpretGPUParams() if interpret else None,
    )

    def interpreted(*inputs: Array) -> Sequence[Array]:
        with ONE_AT_A_TIME:
            return jax.block_until_ready(jax.jit(kernel)(*inputs))

    if interpret:
        # Its effects are ordered, which no primitive with a rule of its own lets through.
        found = jax.pure_callback(interpreted, tuple(outputs), *inputs, vmap_method="sequential")
    else:
        # Traced apart from shard_map: the references of a kernel vary over nothing.
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs]
        found = jaxpr_as_fun(jax.make_jaxpr(kernel)(*shapes))(*inputs)
    # Both forget over which mesh axes their inputs vary.
    return placement.match_varying_axes(x, *found)[1:]


def _shares(k: int, options: Options) -> tuple[int, int]:
    """How many shares the tiles of so many classes have, and the classes of each."""
    (generation,) = _generations(options)
    return _up(k, CLASSES) // generation.SHARE, generation.SHARE


# -- Softmax, per example --


def forward(head: Head, options: Options) -> LSEParts:
    """Maximum, sum and label's logit of each row; with stats, mean logit and predicted class."""
    head = _aligned(head)
    n, k = head.x.shape[0], head.w.shape[1]
    shares, share = _shares(k, options)
    numbers = jax.ShapeDtypeStruct((shares, _up(n, ROWS)), jnp.float32)
    outputs = [numbers] * (6 if options.stats else 3)
    found = _tiles(
        epilogues.softmax_statistics, head, 0, [_columns(head)], [head.targets], outputs, options
    )
    return _joined(share, *(a[:, :n] for a in found))


def _joined(share: int, top: Array, others: Array, own: Array, *stats: Array) -> LSEParts:
    """The statistics of rows from those of shares of so many classes, `[shares, N]` each."""
    maximum = jnp.max(top, 0)
    parts = relative_exp(top, maximum[None, :])
    label = _infinite(jnp.sum(own, 0))
    rows = LSEParts(_infinite(maximum), jnp.sum(others * parts, 0), label, None)
    if not stats:
        return rows
    total, classes, first = stats
    best = jnp.argmax(top, 0).astype(jnp.int32)
    place = jnp.take_along_axis(first, best[None, :], 0)[0].astype(jnp.int32)
    count = jnp.sum(classes, 0)
    mean = jnp.sum(total, 0) / jnp.maximum(count, 1)
    return rows._replace(stats=Stats(mean, count, best * share + place))


@with_derivatives_of(xla_chunked.backward)
def backward(
    head: Head, rows: LSEParts, cotangents: RowTangents, needs_grad: NeedsGrad, options: Options
) -> ModelTangents:
    """The transpose of `tangent`: gradients of what is wanted of x, w and bias."""
    shape, head = head.w.shape, _aligned(head)
    columns, mean = _columns(head), jnp.zeros(head.x.shape[0], jnp.float32)
    if cotangents.mean is not None and rows.stats is not None:
        mean = cotangents.mean / jnp.maximum(rows.stats.classes, 1)
    base = _finite(jnp.where(rows.maximum == -jnp.inf, 0, rows.maximum))
    per_row = (base, cotangents.sum_exp_rest, cotangents.label_logit, mean)

    def gradient(block: _Block) -> tuple[None, Array]:
        outputs, own = [block.gradients], head.targets - block.start
        (dz,) = _tiles(
            epilogues.softmax_gradient, head, block.start, [block.of(columns, -jnp.inf)],
            [own, *per_row], outputs, options,
        )  # fmt: skip
        return None, dz[: head.x.shape[0]]

    return _cut(_over_classes(gradient, None, head, needs_grad, options)[1], shape)


class _Block(NamedTuple):
    """Some of the classes."""

    start: Array | int
    fresh: Array  # [classes], False where another block has the class
    gradients: jax.ShapeDtypeStruct  # in the logits, of whole rows of tiles

    def of(self, column: Array, silent: float) -> Array:
        """The block's numbers of each class, for whole tiles, and what does not count."""
        size = self.fresh.shape[0]
        here = lax.dynamic_slice_in_dim(column, self.start, size)
        return _padded(jnp.where(self.fresh, here, silent), _up(size, CLASSES), silent)


def _over_classes(
    function: Callable[[_Block], tuple[Any, Any]],
    values: Array | None,
    head: Head,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelTangents]:
    """Sums of values, and what blocks of gradients in the logits give for x, w and bias.

    As many classes at a time as take the bytes of XLA's blocks, with a copy of their targets.
    """
    n, k = head.x.shape[0], head.w.shape[1]
    entry = HALF if head.targets.ndim == 1 else HALF + max(HALF, head.targets.dtype.itemsize)
    size = min(_up(options.tiles.classes * tiles.BYTES_PER_BLOCK_LOGIT // entry, CLASSES), k)
    gradients = jax.ShapeDtypeStruct((_up(n, TILING[0]), size), head.x.dtype)

    def step(carry: tuple[Any, ModelTangents], i: Array | int) -> tuple[Any, ModelTangents]:
        # The last block starts early and goes first: what others have as well they overwrite.
        start = jnp.minimum(i * size, k - size) if k % size else i * size
        fresh = start + jnp.arange(size, dtype=jnp.int32) >= i * size
        total, found = carry
        value, dz = function(_Block(start, fresh, gradients))
        found = xla_chunked.add_block(found, head, dz, Cut(start, size), options)
        return None if value is None else total + value, found

    start = values, xla_chunked.init_gradients(head, needs_grad)
    total, found = xla_chunked.checkpointed_scan(step, start, pl.cdiv(k, size))
    return total, found if found.x is None else found._replace(x=found.x.astype(needs_grad.x))


# -- Softmax, a weighted sum --


@with_derivatives_of(xla_chunked.value_and_gradients)
def value_and_gradients(
    head: Head, valid: Array | None, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of the weighted sum; a row that is not valid counts 0."""
    if not any(needs_grad):
        head = (
            head
            if valid is None
            else head._replace(x=validation.zero_ignored_rows(head.x, valid, 1))
        )
        nll, _ = primitives.row_loss(forward(head, options))
        return validation.zero_ignored(nll, valid), ModelTangents(None, None, None)
    shape, head = head.w.shape, _aligned(head)

    def gradient(chunk: Head, valid: Array, scale: Array) -> tuple[Array, Array]:
        nll, dz = _row_gradient(chunk, scale, options)
        return validation.zero_ignored(nll, valid), dz

    def times_w(dz: Array, w: Array, axis: int, precision: Any) -> Array:
        # Of whole tiles of classes XLA makes no padded copy.
        return primitives.dot(dz, w, (axis, axis), precision)

    n, d = head.x.shape
    size = _rows_at_a_time(n, d, options)
    nll, found = xla_chunked.scan_rows(
        gradient, head, valid, weights, needs_grad, options, chunk_size=size, times_w=times_w
    )
    return nll, _cut(found, shape)


def _rows_at_a_time(n: int, d: int, options: Options) -> int:
    """All rows, or chunks of whole tiles.

    Chunks need the sum of w's gradient in float32, 4 D K bytes; all rows at once do not, so the
    exponentials and gradients of D rows more may take its place.
    """
    most = _up(options.tiles.rows * tiles.BYTES_PER_CHUNK_LOGIT // (2 * HALF), ROWS)
    return n if n <= most + d else min(_up(-(-n // pl.cdiv(n, most)), ROWS), n)


def _row_gradient(chunk: Head, weights: Array, options: Options) -> tuple[Array, Array]:
    """Loss and weighted gradient in the logits of whole rows, from one product."""
    n, k = chunk.x.shape[0], chunk.w.shape[1]
    shares, share = _shares(k, options)
    numbers = jax.ShapeDtypeStruct((shares, _up(n, ROWS)), jnp.float32)
    stored = jax.ShapeDtypeStruct((_up(n, TILING[0]), shares * share), chunk.x.dtype)
    outputs = [numbers] * 3 + [stored]
    *found, e = _tiles(
        epilogues.softmax_statistics, chunk, 0, [_columns(chunk)], [chunk.targets], outputs, options
    )
    rows = _joined(share, *(a[:, :n] for a in found))
    nll, total = primitives.row_loss(rows)
    scale = (weights / total)[:, None]
    factor = relative_exp(found[0][:, :n].T, _finite(rows.maximum)[:, None]) * scale
    factor = jnp.broadcast_to(factor[:, :, None], (n, shares, share)).reshape(n, -1)
    dz = (e[:n].astype(jnp.float32) * factor)[:, :k]
    own = -rows.sum_exp_rest[:, None] * scale
    if options.softcap is not None:
        own = own * (1 - (rows.label_logit[:, None] / options.softcap) ** 2)
    hot = jnp.arange(k, dtype=jnp.int32)[None, :] == chunk.targets[:, None]
    exists = rows.label_logit[:, None] != -jnp.inf
    dz = jnp.where(hot, jnp.where(exists, own, 0), dz)
    return nll, jnp.where(weights[:, None] == 0, 0, dz)


# -- Sigmoid --


def binary_forward(head: Head, options: Options) -> Array:
    """The sum of each row's losses over its labels that exist."""
    nothing = NeedsGrad()
    return _binary(epilogues.sigmoid_losses, head, None, nothing, options)[0]


@with_derivatives_of(xla_chunked.binary_backward)
def binary_backward(
    head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
) -> ModelTangents:
    """The transpose of `binary_tangent`."""
    return _binary(epilogues.sigmoid_gradients, head, cotangents, needs_grad, options)[1]


@with_derivatives_of(xla_chunked.binary_value_and_gradients)
def binary_value_and_gradients(
    head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
) -> tuple[Array, ModelTangents]:
    """Each row's loss, and the gradients of their weighted sum: no class waits for another."""
    if not any(needs_grad):
        return binary_forward(head, options), ModelTangents(None, None, None)
    end = epilogues.sigmoid_losses_and_gradients
    return _binary(end, head, weights, needs_grad, options)


def _binary(
    end: Callable[..., None],
    head: Head,
    weights: Array | None,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Any, ModelTangents]:
    """The row sums of the label losses, or their gradients, or both, as the kernel's end says."""
    shape, head = head.w.shape, _aligned(head)
    n, k = head.x.shape[0], head.w.shape[1]
    (generation,) = _generations(options)
    has_values = end is not epilogues.sigmoid_gradients
    bias = jnp.zeros(k, jnp.float32) if head.bias is None else head.bias
    where = head.where if _gaps(head) is None else None
    exists = jnp.ones(k, jnp.float32) if where is None else where[0].astype(jnp.float32)
    by_class = [bias, exists] if head.pos_weight is None else [bias, exists, head.pos_weight[0]]

    def function(block: _Block) -> tuple[Array | None, Array | None]:
        columns = [block.of(a, 0.0) for a in by_class]
        shares = columns[0].shape[0] // generation.SHARE
        outputs = [jax.ShapeDtypeStruct((shares, _up(n, ROWS)), jnp.float32)] * has_values
        outputs += [] if weights is None else [block.gradients]
        found = _tiles(
            end, head, block.start, columns, [] if weights is None else [weights], outputs, options,
            targets=_targets(head, block),
        )  # fmt: skip
        values = jnp.sum(found[0][:, :n], 0) if has_values else None
        return values, None if weights is None else found[-1][:n]

    zero = placement.full(head.x, 0, (n,), jnp.float32) if has_values else None
    values, found = _over_classes(function, zero, head, needs_grad, options)
    return values, _cut(found, shape)


def _targets(head: Head, block: _Block) -> Array:
    """The block's targets in whole tiles, as floats: those of no other kind are copied.

    With a mask `[N, K]` all are, so that a target is `MISSING` where the mask says so alone.
    """
    n, size = head.targets.shape[0], block.fresh.shape[0]
    t = lax.dynamic_slice_in_dim(head.targets, block.start, size, 1)
    if t.dtype == jnp.bool_:
        t = t.astype(jnp.bfloat16)
    elif jnp.issubdtype(t.dtype, jnp.integer):
        t = jnp.where((t == 0) | (t == 1), t, 2).astype(jnp.bfloat16)
    elif t.dtype == jnp.float64:
        t = t.astype(jnp.float32)
    gaps = _gaps(head)
    if gaps is not None:
        here = lax.dynamic_slice_in_dim(gaps, block.start, size, 1)
        t = jnp.where(t == epilogues.MISSING, jnp.nan, t)
        t = jnp.where(here, t, epilogues.MISSING)
    return jnp.pad(t, ((0, _up(n, ROWS) - n), (0, _up(size, CLASSES) - size)))


# -- Blocks, shapes and infinities --


def _aligned(head: Head) -> Head:
    """With features and classes that do not count up to whole tiles: a copy of w, where needed."""
    d, k = head.w.shape
    features, classes = -d % TILING[0], -k % TILING[1]
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


def _cut(found: ModelTangents, shape: tuple[int, ...]) -> ModelTangents:
    """The gradients of a head before it was aligned."""
    d, k = shape
    x, w, bias = found
    return ModelTangents(
        None if x is None else x[:, :d],
        None if w is None else w[:d, :k],
        None if bias is None else bias[:k],
    )


def _columns(head: Head) -> Array:
    """The bias, with -inf where a class does not exist, for whole tiles of classes."""
    k = head.w.shape[1]
    columns = jnp.zeros(k, jnp.float32) if head.bias is None else _finite(head.bias)
    if head.where is not None:
        columns = jnp.where(head.where[0], columns, -jnp.inf)
    return _padded(columns, _up(k, CLASSES), -jnp.inf)


def _finite(a: Array) -> Array:
    """The largest number in place of +inf, so that its difference from itself is 0."""
    return jnp.minimum(a, LARGEST)


def _infinite(a: Array) -> Array:
    """The reverse of `_finite`."""
    return jnp.where(a >= LARGEST, jnp.inf, a)


def _padded(a: Array, size: int, value: float) -> Array:
    return jnp.pad(a, (0, size - a.shape[0]), constant_values=value)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
