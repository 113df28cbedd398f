"""The calls of the row kernels: losses, and losses with their gradient."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax import placement
from jaxsoftmax.kernels.gpu import launch
from jaxsoftmax.kernels.gpu.rows import pipeline
from jaxsoftmax.kernels.gpu.rows.pipeline import Kernel, Refs
from jaxsoftmax.kernels.gpu.rows.plans import WARPS, Plan


def losses(logits: Array, labels: Array, plan: Plan, cores: int, interpret: bool) -> Array:
    """Return the loss of each row.

    Args:
        logits: `[N, K]`, of the plan's K, in float32, bfloat16 or float16.
        labels: int32 `[N]`: a class, or another meaning; see `pipeline.Refs`.
        plan: the chunks of rows.
        cores: the number of multiprocessors.
        interpret: whether the kernel is interpreted on a CPU.
    """
    kernel = Kernel(logits.shape[0], plan, False, interpret)
    return _values(*_call(kernel, cores, False, logits, labels, _no_cotangents(labels)))


def lse_parts(
    logits: Array, labels: Array, plan: Plan, cores: int, interpret: bool
) -> tuple[Array, Array]:
    """Return the largest logit of each row, and the sum of exponentials without the label's.

    The exponentials are relative to the largest logit. The arguments are those of `losses`.
    """
    kernel = Kernel(logits.shape[0], plan, False, interpret, writes_maximum=True)
    (parts,) = _call(kernel, cores, False, logits, labels, _no_cotangents(labels))
    excess, gap, maximum = (parts[:, i] for i in range(3))
    # Where the label does not lead, the excess counts it, and not the leading class.
    return maximum, jnp.where(gap == 0, excess, excess + 1 - jnp.exp(-gap))


def _no_cotangents(labels: Array) -> Array:
    return jnp.zeros_like(labels, jnp.float32)


def losses_and_gradient(
    logits: Array,
    labels: Array,
    cotangents: Array,
    plan: Plan,
    cores: int,
    interpret: bool,
    *,
    in_place: bool = False,
) -> tuple[Array, Array]:
    """Return the loss of each row, and the gradient of their sum weighted by the cotangents.

    Args:
        logits: `[N, K]`.
        labels: int32 `[N]`.
        cotangents: float32 `[N]`.
        plan: the chunks of rows.
        cores: the number of multiprocessors.
        interpret: whether the kernel is interpreted on a CPU.
        in_place: whether the gradient takes the memory of the logits. XLA copies the logits first
            if they are used afterwards, or are an argument of the program that is not donated.

    Returns:
        float32 `[N]`, and an array of the logits' type.
    """
    kernel = Kernel(logits.shape[0], plan, True, interpret)
    parts, gradient = _call(kernel, cores, in_place, logits, labels, cotangents)
    return _values(parts), gradient


def _values(parts: Array) -> Array:
    return jnp.log1p(parts[:, 0]) + parts[:, 1]


def _call(
    kernel: Kernel, cores: int, in_place: bool, logits: Array, labels: Array, cotangents: Array
) -> list[Array]:
    """Return the parts of the losses, as in `Refs`, and the gradient if the kernel writes one."""
    inputs = placement.match_varying_axes(logits, labels, cotangents)
    gradient = [jax.ShapeDtypeStruct(logits.shape, logits.dtype)] * kernel.writes_gradient
    types = [jax.ShapeDtypeStruct((kernel.rows, kernel.columns), jnp.float32), *gradient]
    program = _program(kernel, cores, in_place)
    return launch.run(program, types, inputs, interpret=kernel.interpret)


@cache  # so that each kernel is traced and compiled once
def _program(kernel: Kernel, cores: int, in_place: bool) -> Callable[..., list[Array]]:
    """Return a function of logits, labels and cotangents."""
    return jax.jit(partial(_run, kernel, cores, in_place))


def _run(
    kernel: Kernel, cores: int, in_place: bool, logits: Array, labels: Array, cotangents: Array
) -> list[Array]:
    view = logits if kernel.plan.is_aligned else logits.reshape(-1)
    if kernel.interpret and not kernel.plan.is_aligned:
        # The interpreter refuses to read beyond the end of an array.
        view = jnp.pad(view, (0, -view.size % kernel.plan.vector))
    entries = [jax.ShapeDtypeStruct(view.shape, view.dtype)] * kernel.writes_gradient
    outputs = [jax.ShapeDtypeStruct((kernel.rows, kernel.columns), jnp.float32), _exchange(kernel)]
    if not in_place:
        found = _build(kernel, cores, view.dtype, [*outputs, *entries])(view, labels, cotangents)
    else:
        reference = jax.new_ref(view)
        found = _build(kernel, cores, view.dtype, outputs)(reference, labels, cotangents)
        found = [*found, jax.freeze(reference)]
    return [found[0], *(a.reshape(-1)[: logits.size].reshape(logits.shape) for a in found[2:])]


def _exchange(kernel: Kernel) -> jax.ShapeDtypeStruct:
    rows = 2 * kernel.rows if kernel.exchanges_in_memory else 1
    return jax.ShapeDtypeStruct((rows, kernel.plan.parts * WARPS, 2), jnp.float32)


def _build(kernel: Kernel, cores: int, dtype: Any, outputs: list[Any]) -> Any:
    """Return a function of logits, labels and cotangents.

    Where the outputs have no gradient, it takes the place of the logits.
    """
    tuning = kernel.plan.tuning

    def body(
        logits: Any, labels: Any, cotangents: Any, losses: Any, exchange: Any, *rest: Any
    ) -> None:
        *gradient, ring, full, turn, found = rest
        out = gradient[0] if gradient else logits
        pipeline.body(
            kernel,
            Refs(logits, labels, cotangents, out, losses, exchange, ring, full, turn, found),
        )

    return gpu.kernel(
        body,
        out_type=tuple(outputs),
        scratch_types=pipeline.scratch(kernel, dtype),
        grid=(kernel.plan.clusters(kernel.rows, cores),),
        grid_names=("core",),
        cluster=(tuning.cluster,) if tuning.cluster > 1 else (),
        cluster_names=("rank",) if tuning.cluster > 1 else (),
        num_threads=tuning.warpgroups,
        thread_name="warpgroup",
        kernel_name="cross_entropy_gradient" if kernel.writes_gradient else "cross_entropy",
        compiler_params=gpu.CompilerParams(unsafe_no_auto_barriers=True, reduction_scratch_bytes=0),
        interpret=launch.interpreter(interpret=kernel.interpret),
    )
