"""Ceilings: the rate of a square product in each dtype, and of a copy, both by XLA itself.

All other parts are read against them, and they are measured in the same run.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Conditions, Step, timed

SIDES = {"cpu": 1536, "gpu": 8192, "tpu": 8192, "smoke": 64}
COPIED = {"cpu": 2**26, "gpu": 2**28, "tpu": 2**28, "smoke": 2**10}  # numbers of four bytes
# name: dtype and precision. A GPU's default rounds the operands of float32 to TF32.
DTYPES = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "float16": ("float16", None),
    "float32, highest precision": ("float32", "highest"),
}


def steps(conditions: Conditions) -> list[Step]:
    """Return the copy and the products."""
    sides, copied = conditions.of(SIDES), conditions.of(COPIED)
    return [
        Step("copy", partial(copy, copied, conditions.smoke)),
        *(
            Step(f"product, {name}", partial(product, sides, *how, conditions.smoke))
            for name, how in DTYPES.items()
        ),
    ]


def copy(size: int, smoke: bool) -> dict[str, Any]:
    """Return the bytes per second, read and written, of the negative of float32 numbers."""
    a = jnp.zeros(size)
    timing = timed({"copy": partial(jax.jit(jnp.negative), a)}, smoke=smoke)
    rate = 2 * a.nbytes / timing["seconds"]["copy"]["minimum"]
    print(f"{rate / 1e9:,.1f} GB/s")
    return timing | {"bytes per second": rate}


def product(side: int, dtype: str, precision: str | None, smoke: bool) -> dict[str, Any]:
    """Return the operations per second of a product of two square matrices."""
    a = jax.random.normal(jax.random.key(1), (side, side), dtype)
    multiply = partial(jax.jit(partial(jnp.matmul, precision=precision)), a, a)
    timing = timed({"product": multiply}, smoke=smoke)
    rate = 2 * side**3 / timing["seconds"]["product"]["minimum"]
    print(f"{rate / 1e12:,.3f} TFLOP/s")
    return timing | {"operations per second": rate, "side": side}
