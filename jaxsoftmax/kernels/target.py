"""The device that a program is traced for: the one at hand, unless a scope assumes another.

Kernels for one kind of device refuse to run on another. A test can interpret them on a CPU, and a
program can be compiled for a device of which only a description is available:

    with target.assumed("tpu", interpret=True): ...
    with target.assumed("gpu", interpret=True, kind="NVIDIA B200"): ...
    with target.assumed("gpu"): jitted.lower(...).compile()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Target:
    """A platform ("cpu", "gpu" or "tpu"), and whether its kernels are interpreted on the CPU."""

    platform: str
    interpret: bool = False
    kind: str | None = None  # the kind of device to interpret; elsewhere JAX knows it


_assumed: ContextVar[Target | None] = ContextVar("target", default=None)


def current() -> Target:
    """Return the device that a program traced now will run on."""
    return _assumed.get() or Target(jax.default_backend())


@contextmanager
def assumed(platform: str, *, interpret: bool = False, kind: str | None = None) -> Iterator[None]:
    """Trace for this platform, whichever device is at hand."""
    token = _assumed.set(Target(platform, interpret, kind))
    try:
        yield
    finally:
        _assumed.reset(token)
