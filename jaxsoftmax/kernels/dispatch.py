"""The choice of an implementation: the named one, or the first of the defaults that suits."""

from functools import cache
from importlib import import_module
from types import ModuleType

import jax

from jaxsoftmax import placement
from jaxsoftmax.class_shards import UNSHARDED, ClassShards
from jaxsoftmax.kernels import primitives, shards, target, tiles
from jaxsoftmax.kernels.defaults import DEFAULTS
from jaxsoftmax.kernels.settings import IMPLEMENTATIONS, Call
from jaxsoftmax.kernels.types import Head, Options


def prepare(call: Call, head: Head, axes: ClassShards = UNSHARDED) -> tuple[Options, str]:
    """Return the options of a call on these arrays, and the name of the implementation to run.

    Both are for the rows and classes of one device.
    """
    head = shards.local_head(head, axes)
    options = Options(
        _tiles(call, head),
        target.current(),
        primitives.operand_dtype(call.dtype, head.model),
        call.softcap,
        call.precision,
        call.stats,
    )
    return options, _choose(call.implementation, head, options, shards.unnamed_axes(axes))


def _tiles(call: Call, head: Head) -> tiles.Tiles:
    """Return the named block sizes, or those for the arrays and the budget of memory."""
    if call.tiles is not None:
        return call.tiles
    n, (d, k) = head.x.shape[0], head.w.shape
    n = max(n, 1) if placement.is_static(n) else tiles.CHUNK_ROWS
    return tiles.choose(n, d, k, memory=call.memory)


def _choose(
    implementation: str | None, head: Head, options: Options, unnamed: tuple[str, ...]
) -> str:
    """Return the named implementation if it can run, else the first of the defaults that suits.

    Without rows it is the reference.
    """
    if implementation == "reference":
        return "reference"
    inputs = jax.eval_shape(lambda head: cast_operands(head, options), head)
    if implementation is not None and (
        reason := _unsupported(implementation, inputs, options, unnamed)
    ):
        raise NotImplementedError(f"implementation {implementation!r}: {reason}")
    if head.x.shape[0] == 0:
        return "reference"
    return implementation or next(
        row.implementation
        for row in DEFAULTS
        if row.suits(head, options)
        and _unsupported(row.implementation, inputs, options, unnamed) is None
    )


def _unsupported(name: str, head: Head, options: Options, unnamed: tuple[str, ...]) -> str | None:
    """Return why an implementation cannot run the call, or None."""
    needed, current = IMPLEMENTATIONS[name].platform, options.target.platform
    if needed not in (None, current):
        return f"it needs the platform {needed!r}, and the program is traced for {current!r}"
    if needed is not None and unnamed:
        return f"it needs shards= to name all axes of the mesh, and {unnamed} are not"
    return load(name).unsupported(head, options)


@cache
def load(name: str) -> ModuleType:
    """Return an implementation's module, imported at its first use: importing Pallas is slow."""
    return import_module(IMPLEMENTATIONS[name].module)


def cast_operands(head: Head, options: Options) -> Head:
    """Return the head with x and w in the dtype of the products.

    Derivative rules call this, so that gradients have the dtype of the arguments and are not
    rounded by the transpose of the cast.
    """
    return head._replace(x=head.x.astype(options.dtype), w=head.w.astype(options.dtype))
