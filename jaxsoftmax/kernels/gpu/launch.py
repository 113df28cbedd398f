"""How a kernel is run: on the GPU that a program is traced for, or in the interpreter on a CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.extend.core import jaxpr_as_fun

from jaxsoftmax import placement
from jaxsoftmax.kernels.gpu import blackwell, hopper
from jaxsoftmax.kernels.types import Options

INTERPRETER_LOCK = Lock()  # the interpreter has one GPU, and XLA may run two kernels at once


def generation(options: Options) -> Any:
    """Return the module for the GPU that a program is traced for, or None."""
    kind = device(options)
    modules = (m for m in (hopper, blackwell) if any(name in kind for name in m.DEVICES))
    return next(modules, None)


def device(options: Options) -> str:
    """Return the kind of GPU that a program is traced for, a Hopper GPU if no kind is named."""
    return options.target.device_kind or hopper.DEVICES[0]


def pairs_blocks(row_tiles: int, options: Options) -> bool:
    """Return whether two blocks share tiles: the interpreter has no such pairs."""
    return not options.target.interpret and row_tiles % 2 == 0


def grid_options(options: Options, *, pair: bool) -> dict[str, Any]:
    """Return the grid of a kernel: a block for each core, of three warpgroups."""
    return {
        "grid": (options.target.core_count // (1 + pair),),
        "grid_names": ("core",),
        "cluster": (2,) if pair else (),
        "cluster_names": ("pair",) if pair else (),
        "num_threads": 3,
        "thread_name": "group",
    }


def interpreter(*, interpret: bool) -> Any:
    """Return the parameters of the interpreter, or False where the kernel is compiled."""
    return gpu.InterpretGPUParams() if interpret else False


def run(
    kernel: Callable[..., Any], types: Any, inputs: Sequence[Array], *, interpret: bool
) -> list[Array]:
    """Return the leaves of a kernel's results, whose types are given."""
    if interpret:
        # Its effects are ordered, which primitives with rules of their own do not allow.
        call = partial(_interpret, kernel)
        found = jax.pure_callback(call, types, *inputs, vmap_method="sequential")
    else:
        # Traced apart from shard_map: the references of a kernel vary over no mesh axis.
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs]
        found = jaxpr_as_fun(jax.make_jaxpr(kernel)(*shapes))(*inputs)
    # Neither result varies over the mesh axes over which the inputs do.
    leaves = placement.match_varying_axes(*inputs, *jax.tree.leaves(found))
    return list(leaves[len(inputs) :])


def _interpret(kernel: Callable[..., Any], *inputs: Array) -> Any:
    """Run a kernel in the interpreter, which runs one kernel at a time."""
    with INTERPRETER_LOCK:
        return jax.block_until_ready(jax.jit(kernel)(*inputs))


def scalar(value: Array | int) -> Array:
    """Return a number as a kernel reads it, `[1]`."""
    return jnp.full(1, value, jnp.int32)
