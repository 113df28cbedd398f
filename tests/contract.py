"""The kernels' contract: heads on which a fault would show, the truth, and an honest dense answer.

The truth is computed in float64 from the very numbers that an implementation is given. The honest
answer is the dense computation in the same dtype: sums in float32, the gradient in the logits cast
down before its products. No implementation may be further from the truth than it, but for a few
units in the last place of an output's largest entry. Logits of size 1000 have rounding errors of
1e-4 whose luck depends on the order in which features are summed, so the honest answer is given
in several orders and the worst of them counts.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from jaxsoftmax.kernels import Tiles, linear_cross_entropy_stats, linear_cross_entropy_sum

Array = np.ndarray

FEW = 8  # units in the last place
TILES = Tiles(rows=4, classes=8)
# Rows and classes below, at, above and far from the blocks; primes; one.
SHAPES = (
    (1, 3, 1),
    (5, 3, 2),
    (4, 1, 7),
    (3, 5, 8),
    (9, 4, 9),
    (13, 7, 16),
    (8, 3, 17),
    (7, 5, 37),
)
SCALES = (1e-3, 1.0, 30.0, 1000.0)
LABELS = ("first", "last", "leading", "random")
OUTPUTS = ("nll", "lse", "mean_logit")


class Case(NamedTuple):
    """A head, its labels, and a cotangent for each output."""

    x: jax.Array
    w: jax.Array
    bias: jax.Array
    labels: jax.Array
    cotangents: jax.Array  # [3, N]


def case(shape: tuple[int, int, int], dtype: type, scale: float, kind: str) -> Case:
    """Logits of about this scale, with a bias of order 1 that padding would not have."""
    n, d, k = shape
    rng = np.random.default_rng(n + d + k)
    x, w = rng.standard_normal((n, d)), rng.standard_normal((d, k)) * scale / np.sqrt(d)
    # All logits are below 0: a class that does not exist and has the logit 0 would lead.
    bias = rng.standard_normal(k) - 4 * scale - 4
    # NumPy casts, as JAX would compile a program for each shape.
    x, w, bias = (jnp.asarray(a.astype(dtype)) for a in (x, w, bias))
    z = logits(x, w, bias)
    labels = {
        "first": np.zeros(n, int),
        "last": np.full(n, k - 1),
        "leading": z.argmax(1),
        "random": rng.integers(0, k, n),
    }[kind]
    sums = np.float64 if dtype == np.float64 else np.float32
    cotangents = jnp.asarray(rng.standard_normal((3, n)).astype(sums))
    return Case(x, w, bias, jnp.asarray(labels.astype(np.int32)), cotangents)


def wide(a: jax.Array) -> Array:
    """The same numbers in extended precision."""
    return np.asarray(a).astype(np.float64).astype(np.longdouble)


def logits(x: jax.Array, w: jax.Array, bias: jax.Array) -> Array:
    return wide(x) @ wide(w) + wide(bias)


@cache
def fused(implementation: str, kind: str | None = None) -> Callable[[Case], dict[str, jax.Array]]:
    """A function of a case: values and gradients of both routes, compiled once a shape and kind."""

    @jax.jit
    def run(case: Case) -> dict[str, jax.Array]:
        options = {"tiles": TILES, "implementation": implementation}

        def stats(x: jax.Array, w: jax.Array, bias: jax.Array) -> tuple:
            found = linear_cross_entropy_stats(x, w, case.labels, bias=bias, **options)
            return found[:3], found[3:]

        def total(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
            weights = case.cotangents[0]
            return linear_cross_entropy_sum(
                x, w, case.labels, bias=bias, weights=weights, **options
            )

        model = (case.x, case.w, case.bias)
        values, back, (predicted, correct) = jax.vjp(stats, *model, has_aux=True)
        dx, dw, db = back(tuple(case.cotangents))
        value, (sx, sw, sb) = jax.value_and_grad(total, (0, 1, 2))(*model)
        names = ("predicted", "correct", "dx", "dw", "db", "sum", "sum dx", "sum dw", "sum db")
        found = (predicted, correct, dx, dw, db, value, sx, sw, sb)
        return dict(zip(OUTPUTS, values, strict=True)) | dict(zip(names, found, strict=True))

    return run


def truth(case: Case) -> dict[str, Array]:
    """Everything in extended precision."""
    z, y = logits(case.x, case.w, case.bias), np.asarray(case.labels)
    values = (oracles.cross_entropy(z, y), oracles.logsumexp(z)[0], z.mean(1))
    a, b, c = wide(case.cotangents)[:, :, None]
    p, g = oracles.softmax(z), oracles.cross_entropy_gradient(z, y)
    x, w = wide(case.x), wide(case.w)

    def pulled(dz: Array) -> tuple[Array, Array, Array]:
        return dz @ w.T, x.T @ dz, dz.sum(0)

    both = pulled(a * g + b * p + c / z.shape[1])
    alone = pulled(a * g)
    total = (a[:, 0] * values[0]).sum()
    names = ("dx", "dw", "db", "sum", "sum dx", "sum dw", "sum db")
    return dict(zip(OUTPUTS, values, strict=True)) | dict(
        zip(names, (*both, total, *alone), strict=True)
    )


def dense(case: Any) -> tuple[jax.Array, Callable[..., jax.Array], np.dtype]:
    """All logits, the product that they are made by, and the dtype of its sums."""
    sums = case.cotangents.dtype
    dot = partial(jnp.dot, preferred_element_type=sums)
    return dot(case.x, case.w) + case.bias.astype(sums)[None, :], dot, sums


@jax.jit
def honest(case: Case) -> dict[str, jax.Array]:
    """The textbook's computation with all logits in memory."""
    z, dot, sums = dense(case)
    lse = jax.nn.logsumexp(z, 1)
    own = jnp.take_along_axis(z, case.labels[:, None], 1)[:, 0]
    hot = jax.nn.one_hot(case.labels, z.shape[1], dtype=sums)
    a, b, c = case.cotangents[:, :, None]
    p = jax.nn.softmax(z, 1)

    def pulled(dz: jax.Array) -> tuple[jax.Array, ...]:
        low = dz.astype(case.x.dtype)
        dx, dw = dot(low, case.w.T), dot(case.x.T, low)
        kinds = (case.x.dtype, case.w.dtype, case.bias.dtype)
        return tuple(g.astype(t) for g, t in zip((dx, dw, dz.sum(0)), kinds, strict=True))

    both = pulled(a * (p - hot) + b * p + c / z.shape[1])
    alone = pulled(a * (p - hot))
    values = (lse - own, lse, z.mean(1))
    names = ("dx", "dw", "db", "sum", "sum dx", "sum dw", "sum db")
    total = (a[:, 0] * values[0]).sum()
    return dict(zip(OUTPUTS, values, strict=True)) | dict(
        zip(names, (*both, total, *alone), strict=True)
    )


def orders[T: NamedTuple](case: T, honest: Callable[[T], dict[str, jax.Array]]) -> list[dict]:
    """The honest answers with the features summed in several orders."""
    found, x, w = [], np.asarray(case.x), np.asarray(case.w)  # NumPy permutes without a program
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(x.shape[1])
        answer = jax.device_get(honest(case._replace(x=x[:, order], w=w[order])))
        back = np.argsort(order)
        for name in ("dx", "sum dx"):
            answer[name] = answer[name][:, back]
        for name in ("dw", "sum dw"):
            answer[name] = answer[name][back]
        found.append(answer)
    return found


def assert_no_worse(case: Case, found: dict[str, jax.Array], about: str) -> None:
    """Each output is as near to the truth as an honest one, to a few units of its largest."""
    compare(truth(case), found, orders(case, honest), about)


def compare(
    wanted: dict[str, Array], found: dict[str, jax.Array], answers: list[dict], about: str
) -> None:
    """Errors beside the largest of the answers' errors."""
    for name, want in wanted.items():
        ours, *theirs = (np.abs(wide(a[name]) - want).max() for a in (found, *answers))
        unit = np.abs(want).max() * float(jnp.finfo(found[name].dtype).eps)
        assert ours <= max(theirs) + FEW * unit, (
            f"{name} of {about}: off by {float(ours):.3g}, dense by {float(max(theirs)):.3g}"
        )
