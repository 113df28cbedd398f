"""What every test shares: two CPU devices, one cache of programs, strict promotion, the markers."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import hypothesis
import jax
import numpy as np
import oracles
import pytest

# Most of a test's time is compilation, so compiled programs are kept: for other modules, for the
# processes that tests start, which inherit the variables, and, where .pytest_cache stays, for the
# next run.
PROGRAMS = Path(__file__).parent.parent / ".pytest_cache" / "programs"
CACHE = {
    "jax_compilation_cache_dir": str(PROGRAMS),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    os.environ.setdefault(name.upper(), str(value))
    jax.config.update(name, type(value)(os.environ[name.upper()]))

# Tracing makes objects by the million, and hardly a cycle: searches for garbage are rare.
gc.set_threshold(100_000)

# Before any backend starts: shard_map needs more than one device to mean anything.
jax.config.update("jax_num_cpu_devices", 2)

# The first example of a shape compiles, which no deadline should count; every run draws the same.
hypothesis.settings.register_profile(
    "jaxsoftmax", deadline=None, derandomize=True, max_examples=60, database=None
)
hypothesis.settings.load_profile("jaxsoftmax")


@pytest.fixture(scope="module")
def strict() -> Iterator[None]:
    """No implicit promotion of dtypes or ranks, for a module that says usefixtures("strict")."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def unoptimized() -> Iterator[None]:
    """Programs that compile fast and run slowly, for modules of logic: never where ulps count."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    """Programs of a finished module: a process may map only so much memory, and each maps some."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(params=(np.float32, np.float64), ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[type]:
    """Each of the two dtypes, with float64 enabled where it needs to be."""
    if not oracles.has_oracle(request.param):
        pytest.skip("np.longdouble is no wider than float64 here")
    if request.param is np.float64 and jax.default_backend() == "tpu":
        pytest.skip("a TPU has no float64 of its own")
    with jax.enable_x64() if request.param is np.float64 else nullcontext():
        yield request.param


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests, which are needed to the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # libtpu may stand in a folder of its own, which experiments/compile_targets.py knows.
    libtpu = "JAXSOFTMAX_LIBTPU" in os.environ or importlib.util.find_spec("libtpu") is not None
    has = {"gpu": jax.default_backend() == "gpu", "libtpu": libtpu}
    for item in items:
        for name in (name for name in has if not has[name] and item.get_closest_marker(name)):
            item.add_marker(pytest.mark.skip(reason=f"no {name} on this machine"))
    # The longest first, so that no process is left alone with one of them at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
