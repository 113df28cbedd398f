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

    @property
    def device_kind(self) -> str:
        """The kind of device: that of the abstract mesh or, without one, of this machine."""
        if self.interpret:
            return self.kind or ""
        abstract = jax.sharding.get_abstract_mesh().abstract_device
        return (abstract or jax.devices()[0]).device_kind

    @property
    def core_count(self) -> int:
        """How many blocks of a GPU's kernel can run at once; 2 where interpreted."""
        if self.interpret:
            return 2
        abstract = jax.sharding.get_abstract_mesh().abstract_device
        return abstract.num_cores if abstract else jax.devices()[0].core_count


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
