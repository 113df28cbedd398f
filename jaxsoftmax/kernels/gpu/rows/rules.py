"""Where the row kernels run, and the derivatives of the loss that they compute.

Transformation          Computation
a value                 the kernel without the gradient
grad of the losses      the kernel with the gradient, weighted by the cotangents, in the reverse
                        pass: it reads the logits again, and rounds the gradient once
grad of a weighted sum  the same kernel in the forward pass, with the weights as cotangents: one
                        read and one write for value and gradient
jvp, jacfwd, Hessians   XLA's form, `softmax_core.value_and_gradient`
vmap                    the rows of all lanes, in one call; a lane may be one row

A fused loss (`row_chunks`) has the second kernel write over logits that nothing else reads, and
the first one write the terms of a row's loss.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxsoftmax import placement, softmax_core
from jaxsoftmax.kernels import primitives, target
from jaxsoftmax.kernels.gpu import hopper
from jaxsoftmax.kernels.gpu.rows import implementation, plans
from jaxsoftmax.kernels.gpu.rows.pipeline import IGNORED, MASKED, UNDEFINED
from jaxsoftmax.kernels.types import LSEParts
from jaxsoftmax.linear_map import linear_map
from jaxsoftmax.softmax_core import LabeledRows

DTYPES = ("bfloat16", "float16", "float32")
MAX_UNALIGNED_ENTRIES = 2**31  # of an array, whose entries are counted in int32


class Settings(NamedTuple):
    """The static settings of a traced program."""

    tuning: plans.Tuning
    cores: int
    interpret: bool

    def plan(self, logits: Array) -> plans.Plan:
        """Return the chunks of the rows."""
        return plans.plan(logits.shape[-1], logits.dtype.itemsize, self.tuning)


def unsupported(logits: Array, axis: int) -> str | None:
    """Return why XLA's form computes the loss of these logits, or None."""
    # The interpreter is a Hopper GPU unless its target names another one.
    kind = target.current().device_kind or hopper.DEVICES[0]
    if not any(name in kind for name in hopper.DEVICES):
        return f"nothing was measured on this GPU, {kind!r}"
    if logits.dtype.name not in DTYPES:
        return f"it needs one of {DTYPES}, got {logits.dtype}"
    if axis != logits.ndim - 1:
        return f"it needs the classes along the last axis, got axis {axis} of {logits.shape}"
    if not placement.is_static(*logits.shape):
        return f"it needs sizes that are numbers, got {logits.shape}"
    if placement.count_devices(logits) > 1:
        return "the compiler cannot divide a kernel among devices"
    return _unsupported_sizes(logits)


def _unsupported_sizes(logits: Array) -> str | None:
    k = logits.shape[-1]
    tuning = plans.choose(k, logits.dtype.itemsize)
    if tuning is None:
        return f"no kernel was measured to be faster at {k} classes in {logits.dtype}"
    if logits.ndim == 1:
        return None  # most often one of many lanes of vmap, whose rows are counted later
    rows, plan = logits.size // k, plans.plan(k, logits.dtype.itemsize, tuning)
    return _unsupported_rows(rows, plan, target.current().core_count)


def _unsupported_rows(rows: int, plan: plans.Plan, cores: int) -> str | None:
    least = plan.fewest_rows(cores)
    if rows < least:
        return f"it needs {least} rows to keep the device busy, got {rows}"
    if not plan.is_aligned and rows * plan.k >= MAX_UNALIGNED_ENTRIES:
        return f"it needs fewer than 2^31 logits, or whole vectors in a row, got {plan.k} classes"
    return None


def losses(logits: Array, rows: LabeledRows, *, is_masked: bool) -> Array:
    """Return the losses of rows that are supported.

    Args:
        logits: `[..., K]`, as they were given.
        rows: the same logits after masking, and the labels.
        is_masked: whether there is a mask. Its gradient needs no pass of its own, since a
            probability of 0 is a gradient of 0, but at a label that is masked.
    """
    return _losses(*_flatten(logits, rows, is_masked), _settings(logits)).reshape(rows.labels.shape)


def weighted_sum(logits: Array, rows: LabeledRows, weights: Array, *, is_masked: bool) -> Array:
    """Return the weighted sum of the losses; an infinite loss with weight 0 is ignored."""
    flat = _flatten(logits, rows, is_masked)
    return _weighted_sum(*flat, weights.reshape(-1), _settings(logits))


def lse_parts(z: Array, labels: Array) -> LSEParts:
    """Return the terms of rows of logits, `[N, K]`. They have no derivatives.

    The logits are those after masking. A label that is no class has the logit 0, as where classes
    are sharded and another device has it.
    """
    is_here = (labels >= 0) & (labels < z.shape[1])
    own = softmax_core.label_logit(z, jnp.where(is_here, labels, 0), 1)
    # A label without an exponential is not looked for.
    labels = jnp.where(is_here & (own != -jnp.inf), labels, MASKED)
    maximum, sum_exp_rest = rows_p.bind(
        z, labels, settings=_settings(z), kernel=_run_lse_parts, plain=_xla_lse_parts
    )
    return LSEParts(maximum, sum_exp_rest, jnp.where(is_here, own, 0), None)


def losses_and_gradient_in_place(
    rows: LabeledRows, weights: Array, *, is_masked: bool
) -> tuple[Array, Array]:
    """Return the losses, and the gradient of their weighted sum in the memory of the logits.

    It has no derivatives. The logits, `[N, K]`, are those after masking. XLA copies them first if
    anything uses them afterwards.
    """
    _, z, labels = _flatten(rows.z, rows, is_masked)
    losses, gradient = rows_p.bind(
        z, labels, weights, settings=_settings(z), kernel=_run_in_place, plain=_xla_weighted
    )
    return losses, gradient


def _settings(logits: Array) -> Settings:
    tuning = plans.choose(logits.shape[-1], logits.dtype.itemsize)
    assert tuning is not None  # as `unsupported` finds
    return Settings(tuning, target.current().core_count, target.current().interpret)


def _flatten(logits: Array, rows: LabeledRows, is_masked: bool) -> tuple[Array, Array, Array]:
    """Return the logits, what the mask leaves of them, and labels as a kernel takes them."""
    z = rows.z.astype(logits.dtype) if is_masked else logits
    labels = rows.labels
    if is_masked:
        is_lost = softmax_core.label_logit(rows.z, rows.labels, rows.axis) == -jnp.inf
        labels = jnp.where(is_lost, MASKED - labels, labels)
    labels = jnp.where(rows.in_range, labels, UNDEFINED)
    labels = jnp.where(rows.valid, labels, IGNORED)
    k = logits.shape[-1]
    return logits.reshape(-1, k), z.reshape(-1, k), labels.reshape(-1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _losses(logits: Array, z: Array, labels: Array, settings: Settings) -> Array:
    """Return the losses of rows, `[N, K]`, where z has what a mask leaves of the logits."""
    return rows_p.bind(z, labels, settings=settings, kernel=_run_losses, plain=_xla_losses)[0]


@_losses.defjvp
def _losses_jvp(settings: Settings, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    _, z, labels = primals

    def pull(residuals: tuple[Array, Array], cotangents: Array) -> Array:
        return _both(*residuals, cotangents, settings)[1]

    tangent = linear_map(_directional_derivatives, pull, (z, labels), tangents[0])
    return _losses(*primals, settings), tangent


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _weighted_sum(
    logits: Array, z: Array, labels: Array, weights: Array, settings: Settings
) -> Array:
    return jnp.sum(softmax_core.weighted_term(weights, _losses(logits, z, labels, settings)))


@_weighted_sum.defjvp
def _weighted_sum_jvp(settings: Settings, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    _, z, labels, weights = primals
    losses, gradient = _both(z, labels, weights, settings)

    def push(residuals: tuple[Array, ...], dlogits: Array) -> Array:
        _, weights, *rows = residuals
        return jnp.vdot(weights, _directional_derivatives(rows, dlogits))

    def pull(residuals: tuple[Array, ...], cotangent: Array) -> Array:
        gradient = residuals[0]
        return (gradient.astype(cotangent.dtype) * cotangent).astype(gradient.dtype)

    residuals = gradient, weights, z, labels
    tangent = linear_map(push, pull, residuals, tangents[0])
    total, dtotal = jax.jvp(
        lambda weights: jnp.sum(softmax_core.weighted_term(weights, losses)),
        (weights,),
        (tangents[3],),
    )
    return total, tangent + dtotal


def _directional_derivatives(rows: Sequence[Array], dlogits: Array) -> Array:
    z, labels = rows
    gradient = _xla_gradient(z, labels)
    dz = dlogits.astype(gradient.dtype)
    return softmax_core.directional_derivative(gradient, dz, labels != IGNORED, 1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _both(z: Array, labels: Array, weights: Array, settings: Settings) -> tuple[Array, Array]:
    """Return the losses, and the gradient of their weighted sum."""
    arrays = z, labels, weights
    values, gradient = rows_p.bind(
        *arrays, settings=settings, kernel=_run_both, plain=_xla_weighted
    )
    return values, gradient


@_both.defjvp
def _both_jvp(settings: Settings, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    z, labels, weights = primals
    _, found = jax.jvp(
        lambda z, weights: _xla_weighted(z, labels, weights),
        (z, weights),
        (tangents[0], tangents[2]),
    )
    return _both(*primals, settings), found


# -- The kernels --

RowFunction = Callable[..., Sequence[Array]]


def _run_losses(settings: Settings, z: Array, labels: Array) -> list[Array]:
    plan = settings.plan(z)
    return [implementation.losses(z, labels, plan, settings.cores, settings.interpret)]


def _run_lse_parts(settings: Settings, z: Array, labels: Array) -> Sequence[Array]:
    return implementation.lse_parts(z, labels, settings.plan(z), settings.cores, settings.interpret)


def _run_both(settings: Settings, z: Array, labels: Array, weights: Array) -> Sequence[Array]:
    plan = settings.plan(z)
    # Not in place: XLA would copy the logits first wherever anything else reads them, such as the
    # losses of a pass before, or where they are an argument that is not donated.
    return implementation.losses_and_gradient(
        z, labels, weights, plan, settings.cores, settings.interpret
    )


def _run_in_place(settings: Settings, z: Array, labels: Array, weights: Array) -> Sequence[Array]:
    return implementation.losses_and_gradient(
        z, labels, weights, settings.plan(z), settings.cores, settings.interpret, in_place=True
    )


# A function of arrays with a row for each loss: a kernel in programs for CUDA alone, and XLA's form
# in all others, which may be lowered from the same trace.
rows_p = Primitive("cross_entropy_rows")
rows_p.multiple_results = True


def _apply_kernel(
    *arrays: Array, settings: Settings, kernel: RowFunction, plain: RowFunction
) -> Sequence[Array]:
    del plain
    return kernel(settings, *arrays)


def _apply_plain(
    *arrays: Array, settings: Settings, kernel: RowFunction, plain: RowFunction
) -> Sequence[Array]:
    if settings.interpret:
        return kernel(settings, *arrays)
    return plain(*arrays)


def _abstract_eval(*arrays: Any, plain: RowFunction, **_: Any) -> list[Any]:
    """Return the full types of the results, with the axes they vary over."""
    return jax.make_jaxpr(plain)(*arrays).out_avals


def _batch(arrays: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[list[Array], list]:
    """Call the function once with the rows of all lanes."""
    size = next(a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None)
    lanes = [
        jnp.broadcast_to(a, (size, *a.shape)) if i is None else jnp.moveaxis(a, i, 0)
        for a, i in zip(arrays, axes, strict=True)
    ]
    found = rows_p.bind(*(a.reshape(-1, *a.shape[2:]) for a in lanes), **params)
    return [a.reshape(size, -1, *a.shape[1:]) for a in found], [0] * len(found)


def _lower_for_cuda(
    context: mlir.LoweringRuleContext, *arrays: Any, settings: Settings, **functions: RowFunction
) -> Any:
    is_alone = tuple(context.module_context.platforms) == ("cuda",)
    z: Any = context.avals_in[0]
    reason = _unsupported_rows(z.shape[0], settings.plan(z), settings.cores)
    apply = _apply_kernel if is_alone and reason is None else _apply_plain
    lower = mlir.lower_fun(apply, multiple_results=True)
    return lower(context, *arrays, settings=settings, **functions)


rows_p.def_impl(lambda *arrays, **params: jax.jit(partial(rows_p.bind, **params))(*arrays))
rows_p.def_abstract_eval(_abstract_eval)
batching.primitive_batchers[rows_p] = _batch
mlir.register_lowering(rows_p, mlir.lower_fun(_apply_plain, multiple_results=True))
mlir.register_lowering(rows_p, _lower_for_cuda, platform="cuda")


# -- XLA's form --


def _xla_losses(z: Array, labels: Array) -> list[Array]:
    return [_xla_both(z, labels)[0]]


def _xla_lse_parts(z: Array, labels: Array) -> list[Array]:
    z = z.astype(jnp.float32)
    maximum = jnp.max(z, 1)
    e = primitives.relative_exp(z, maximum[:, None])
    is_label = softmax_core.label_mask(z, labels, 1)
    return [maximum, jnp.sum(jnp.where(is_label, 0, e), 1)]


def _xla_weighted(z: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Return the losses, and the gradient of their weighted sum; NaN of weight 0 is ignored."""
    values, gradient = _xla_both(z, labels)
    each = jnp.expand_dims(weights, 1)
    is_ignored = (each == 0) & (gradient != gradient)
    return values, (jnp.where(is_ignored, 0, gradient) * each).astype(z.dtype)


def _xla_gradient(z: Array, labels: Array) -> Array:
    return _xla_both(z, labels)[1]


def _xla_both(z: Array, labels: Array) -> tuple[Array, Array]:
    """Return the losses, and their gradient in float32, which is 0 at a label that is masked."""
    is_masked, valid = labels <= MASKED, labels != IGNORED
    index = jnp.where(is_masked, MASKED - labels, jnp.maximum(labels, 0))
    is_defined = is_masked | (labels >= 0)
    z = z.astype(jnp.float32)
    values, gradient = softmax_core.value_and_gradient(z, index, is_defined, valid, 1)
    is_lost = jnp.expand_dims(is_masked, 1) & (z == -jnp.inf)
    return values, jnp.where(is_lost, 0, gradient)
