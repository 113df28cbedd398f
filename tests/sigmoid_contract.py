"""The contract of the sigmoid's kernels: `contract` for a loss of each label, summed over them."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import contract
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from contract import TILES, wide

from jaxsoftmax.kernels import linear_binary_cross_entropy, linear_binary_cross_entropy_sum

Array = np.ndarray

GRADIENTS = ("dx", "dw", "db", "sum dx", "sum dw", "sum db")


class Case(NamedTuple):
    """A head, its targets and weights of their ones, and a cotangent for each example."""

    x: jax.Array
    w: jax.Array
    bias: jax.Array
    targets: jax.Array  # [N, K]
    pos_weight: jax.Array  # [K]
    cotangents: jax.Array  # [N]


def case(shape: tuple[int, int, int], dtype: type, scale: float, kind: type = np.float32) -> Case:
    """Logits of about this scale; targets 0 and 1 and, where the kind can hold them, in between."""
    n, d, k = shape
    rng = np.random.default_rng(n + d + k)
    x, w = rng.standard_normal((n, d)), rng.standard_normal((d, k)) * scale / np.sqrt(d)
    bias, weight = rng.standard_normal(k), rng.uniform(0.5, 2, k)
    targets = rng.integers(0, 2, (n, k)).astype(float)
    if jnp.issubdtype(kind, jnp.floating):
        targets = np.where(rng.random((n, k)) < 0.3, rng.random((n, k)), targets)
    sums = np.float64 if dtype == np.float64 else np.float32
    return Case(
        *(jnp.asarray(a.astype(dtype)) for a in (x, w, bias)),
        jnp.asarray(targets.astype(kind)),
        jnp.asarray(weight.astype(sums)),
        jnp.asarray(rng.standard_normal(n).astype(sums)),
    )


@cache
def fused(implementation: str, kind: str | None = None) -> Callable[[Case], dict[str, jax.Array]]:
    """A function of a case: values and gradients of both routes, compiled once a shape and kind."""

    @jax.jit
    def run(case: Case) -> dict[str, jax.Array]:
        options = {
            "pos_weight": case.pos_weight,
            "tiles": TILES,
            "implementation": implementation,
        }

        def each(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
            return linear_binary_cross_entropy(x, w, case.targets, bias=bias, **options)

        def total(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
            return linear_binary_cross_entropy_sum(
                x, w, case.targets, bias=bias, weights=case.cotangents, **options
            )

        model = (case.x, case.w, case.bias)
        values, back = jax.vjp(each, *model)
        value, gradients = jax.value_and_grad(total, (0, 1, 2))(*model)
        return _named(values, value, (*back(case.cotangents), *gradients))

    return run


def truth(case: Case) -> dict[str, Array]:
    """Everything in extended precision."""
    z, t, weight = contract.logits(*case[:3]), wide(case.targets), wide(case.pos_weight)
    values = oracles.binary_cross_entropy(z, t, weight).sum(1)
    dz = oracles.binary_cross_entropy_gradient(z, t, weight) * wide(case.cotangents)[:, None]
    pulled = (dz @ wide(case.w).T, wide(case.x).T @ dz, dz.sum(0))
    return _named(values, (wide(case.cotangents) * values).sum(), 2 * pulled)


@jax.jit
def honest(case: Case) -> dict[str, jax.Array]:
    """The textbook's computation with all logits in memory."""
    z, dot, sums = contract.dense(case)
    t, weight = case.targets.astype(sums), case.pos_weight[None, :]
    each = weight * t * jax.nn.softplus(-z) + (1 - t) * jax.nn.softplus(z)
    p = jax.nn.sigmoid(z)
    dz = case.cotangents[:, None] * ((1 - t) * p - weight * t * (1 - p))
    low = dz.astype(case.x.dtype)
    pulled = (dot(low, case.w.T), dot(case.x.T, low), dz.sum(0))
    gradients = tuple(g.astype(a.dtype) for g, a in zip(pulled, case[:3], strict=True))
    values = each.sum(1)
    return _named(values, (case.cotangents * values).sum(), 2 * gradients)


def _named(values: jax.Array, value: jax.Array, gradients: tuple) -> dict:
    return {"values": values, "sum": value} | dict(zip(GRADIENTS, gradients, strict=True))


def assert_no_worse(case: Case, found: dict[str, jax.Array], about: str) -> None:
    """Each output is as near to the truth as an honest one, to a few units of its largest."""
    contract.compare(truth(case), found, contract.orders(case, honest), about)


def check(
    shape: tuple[int, int, int],
    dtype: type,
    implementation: str,
    kind: str | None = None,
    scales: tuple[float, ...] = contract.SCALES,
    targets: tuple[type, ...] = (np.int32, np.float32),
) -> None:
    """Every scale that the dtype holds; targets are of one kind at one, of another at the next."""
    for i, scale in enumerate(scales):
        if dtype == jnp.float16 and scale == 1000:
            continue
        head = case(shape, dtype, scale, targets[i % len(targets)])
        found = fused(implementation, kind)(head)
        assert_no_worse(head, found, f"{shape} at {scale}")
        kinds = dict(zip(GRADIENTS, 2 * (head.x, head.w, head.bias), strict=True))
        for name, of in kinds.items():
            assert found[name].dtype == of.dtype, name
        assert found["values"].dtype == found["sum"].dtype == head.cotangents.dtype
