"""The TPU kernels, interpreted on the CPU: the contract, and edges of tiles that hold NaN."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_kernels
from contract import TILES

from jaxsoftmax.kernels import (
    target,
)

NAME = "mosaic_tpu"
# With `TILES`, tiles of 32 rows, 128 classes and 768 bfloat16 features, and chunks of 20 or 40 rows.
SHAPES = (
    (1, 3, 1),
    (5, 4, 127),
    (32, 8, 128),
    (33, 5, 129),
    (45, 7, 300),
)


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with (
        target.assumed("tpu", interpret=True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


# -- The contract --


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_worse_than_the_dense_computation(shape: tuple[int, int, int]):
    test_kernels.check(shape, np.float32, NAME)


@pytest.mark.parametrize("shape", [(33, 5, 129), (45, 900, 300)], ids=str)
def test_half_precision(shape: tuple[int, int, int]):
    test_kernels.check(shape, jnp.bfloat16, NAME)


@pytest.mark.parametrize(
    "promise",
    [
        test_kernels.test_masks_and_bad_values,
        test_kernels.test_weight_zero_silences,
        test_kernels.test_infinite_logits_share_the_mass,
        test_kernels.test_sigmoid_masks,
        partial(test_kernels.test_sigmoid, scale=30.0),
    ],
    ids=lambda f: getattr(f, "__name__", "test_sigmoid"),
)
def test_promises(promise: Callable[[str], None]):
    promise(NAME)


@pytest.mark.parametrize("function", test_kernels.FUNCTIONS[:2], ids=lambda f: f.__name__)
def test_every_transformation(function: Callable):
    x, w, _ = test_kernels.random_head(6, 4, 150)
    rng = np.random.default_rng(5)
    bias = jnp.asarray(rng.standard_normal(150), jnp.float32)
    v = tuple(jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in (x, w, bias))
    found, wanted = (
        jax.jit(
            partial(test_kernels.transformed, partial(function, tiles=TILES, implementation=name))
        )(x, w, bias, v)
        for name in (NAME, "reference")
    )
    for name, want in wanted.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(want), strict=True):
            scale = 1 + float(jnp.max(jnp.abs(b)))
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * scale, err_msg=name)
