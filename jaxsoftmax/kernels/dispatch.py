"""Which implementation runs: the named one, or the first that can run what is asked for."""

from functools import cache
from importlib import import_module
from types import ModuleType

import jax

from jaxsoftmax import placement
from jaxsoftmax.kernels import primitives, target
from jaxsoftmax.kernels import tiles as sizes
from jaxsoftmax.kernels.settings import IMPLEMENTATIONS, Call
from jaxsoftmax.kernels.types import Head, Options


def prepare(call: Call, head: Head) -> tuple[Options, str]:
    """The options of a call on these arrays, and the name of the implementation to run."""
    n, k = head.x.shape[0], head.w.shape[1]
    n = max(n, 1) if placement.is_static(n) else sizes.MAX_CHUNK_ROWS
    tiles = sizes.choose(n, k, memory=call.memory) if call.tiles is None else call.tiles
    dtype = primitives.operand_dtype(call.dtype, head.model)
    options = Options(tiles, target.current(), dtype, call.softcap, call.precision, call.stats)
    return options, _chosen(call.implementation, head, options)


def _chosen(implementation: str | None, head: Head, options: Options) -> str:
    """The named implementation if it can run, or the first that can; no rows need none."""
    if implementation == "reference":
        return "reference"
    names = IMPLEMENTATIONS if implementation is None else (implementation,)
    given = jax.eval_shape(lambda: operands(head, options))
    reasons = {name: _unsupported(name, given, options) for name in names}
    if implementation is not None and reasons[implementation] is not None:
        raise NotImplementedError(f"implementation {implementation!r}: {reasons[implementation]}")
    if head.x.shape[0] == 0:
        return "reference"
    return next(name for name, reason in reasons.items() if reason is None)


def _unsupported(name: str, head: Head, options: Options) -> str | None:
    """Why an implementation cannot run what is asked for, or None."""
    needed, here = IMPLEMENTATIONS[name].platform, options.target.platform
    if needed not in (None, here):
        return f"it needs the platform {needed!r}, and the program is traced for {here!r}"
    return module(name).unsupported(head, options)


@cache
def module(name: str) -> ModuleType:
    """Loaded when it is first needed: Pallas takes longer to import than the rest."""
    return import_module(IMPLEMENTATIONS[name].module)


def operands(head: Head, options: Options) -> Head:
    """The head with x and w in the dtype of the products.

    The cast is within a rule, so that gradients have the dtype of the arguments and no rounding.
    """
    return head._replace(x=head.x.astype(options.dtype), w=head.w.astype(options.dtype))
