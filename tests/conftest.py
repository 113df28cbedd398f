"""What every test shares: two CPU devices, the strict rules of promotion, and the GPU marker."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
