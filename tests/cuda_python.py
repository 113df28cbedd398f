"""The interpreter that compiles for NVIDIA GPUs which are described and not there."""

import importlib.util
import os
import sys

import pytest


def find() -> str:
    """An interpreter with jax[cuda13], or the test is skipped."""
    python = os.environ.get("JAXSOFTMAX_CUDA_PYTHON")
    if python is None and importlib.util.find_spec("jax_cuda13_plugin") is not None:
        python = sys.executable
    if python is None:
        pytest.skip("no interpreter with jax[cuda13]; JAXSOFTMAX_CUDA_PYTHON may name one")
    return python
