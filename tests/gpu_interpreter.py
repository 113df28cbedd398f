"""The interpreter of GPU kernels, which jax 0.11.0 does not have."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from jax.experimental.pallas import mosaic_gpu as mosaic

from jaxsoftmax.kernels.gpu import launch

IS_THERE = hasattr(mosaic, "InterpretGPUParams")


def skip_where_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test that interprets a kernel be skipped where this JAX cannot; others run.

    The check is where a kernel is built and where it is run, which may be in a callback.
    """
    for name in ("interpreter", "run"):
        function = getattr(launch, name)
        monkeypatch.setattr(launch, name, partial(_checked, function))


def _checked(function: Callable[..., Any], *arguments: Any, interpret: bool) -> Any:
    if interpret:
        require()
    return function(*arguments, interpret=interpret)


def require() -> None:
    """Skip the test where this JAX cannot interpret."""
    if not IS_THERE:
        pytest.skip("this JAX has no interpreter of GPU kernels")
