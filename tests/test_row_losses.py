"""The weighted sum of a function of each row's statistics, against float64 and the other routes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AxisType

from jaxsoftmax import Shards, focal
from jaxsoftmax.kernels import (
    Tiles,
    chunks,
    linear_cross_entropy_stats,
    linear_cross_entropy_sum,
)

pytestmark = pytest.mark.usefixtures("strict")
N, D, K = 37, 5, 211
CHUNKS = Tiles(rows=8, classes=16)
ROW_LOSSES: dict[str, Callable[..., Array]] = {
    "z-loss": lambda nll, lse, mean: nll + 0.01 * lse**2,
    "smoothed": lambda nll, lse, mean: 0.9 * nll + 0.1 * (lse - mean),
    "focal": lambda nll, lse, mean: focal(nll, gamma=2.0) - 0.1 * mean**2,
    "no nll": lambda nll, lse, mean: lse,
}


def random_head(scale: float = 1.0) -> dict[str, Array]:
    """Return rows of which some do not count, classes of which some do not exist, and weights."""
    rng = np.random.default_rng(3)
    x, w = scale * rng.standard_normal((N, D)), rng.standard_normal((D, K))
    exists = rng.random((N, K)) < 0.8
    labels = rng.integers(0, K, N)
    labels[:3] = 0, K - 1, K // 2
    exists[np.arange(N), labels] = True
    weights = rng.random(N)
    weights[4] = 0
    floats = {"x": x, "w": w, "bias": rng.standard_normal(K), "weights": weights}
    head = {name: jnp.asarray(a, jnp.float32) for name, a in floats.items()}
    valid = rng.random(N) < 0.8
    return (
        head
        | {"labels": jnp.asarray(labels), "where": jnp.asarray(exists)}
        | {"valid": jnp.asarray(valid)}
    )


def composed(head: dict[str, Array], row_loss: Callable[..., Array], **options: Any) -> Array:
    """The weighted sum from the statistics of each row."""
    inputs = {name: a for name, a in head.items() if name != "weights"}
    found = linear_cross_entropy_stats(**inputs, **options)
    values = row_loss(found.nll, found.lse, found.mean_logit)
    return jnp.sum(jnp.where(head["valid"], head["weights"] * values, 0))


def split(head: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the arrays that are differentiated, and the others."""
    moving = {name: a for name, a in head.items() if a.dtype == head["x"].dtype}
    return moving, {name: a for name, a in head.items() if name not in moving}


def assert_close(found: Any, wanted: Any, tolerance: float = 3e-6) -> None:
    """Compare trees, relative to the largest entry of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(np.asarray(b)).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def in_float64(head: dict[str, Array], row_loss: Callable[..., Array]) -> Any:
    """Value and gradients of the composition, in float64 and from stored logits."""
    with jax.enable_x64():
        wide = {
            name: a.astype(jnp.float64) if a.dtype == jnp.float32 else a for name, a in head.items()
        }
        moving, rest = split(wide)
        return jax.value_and_grad(
            lambda moving: composed(moving | rest, row_loss, implementation="reference")
        )(moving)


@pytest.mark.parametrize("tiles", [None, CHUNKS], ids=["at once", "chunks"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
@pytest.mark.parametrize("name", ROW_LOSSES)
def test_value_and_gradients_are_those_of_the_statistics(
    name: str, scale: float, tiles: Tiles | None
) -> None:
    head, row_loss = random_head(scale), ROW_LOSSES[name]
    moving, rest = split(head)
    found = jax.value_and_grad(
        lambda m: linear_cross_entropy_sum(**m, **rest, row_loss=row_loss, tiles=tiles)
    )(moving)
    assert_close(found, in_float64(head, row_loss), 2e-5 if scale > 1 else 3e-6)


@pytest.mark.parametrize("tiles", [None, CHUNKS], ids=["at once", "chunks"])
def test_three_products_in_the_memory_of_the_sum(tiles: Tiles | None) -> None:
    moving, rest = split(random_head())

    def compiled(row_loss: Callable[..., Array] | None, *without: str) -> Any:
        fixed = {name: a for name, a in rest.items() if name not in without}

        def loss(moving: dict[str, Array]) -> Array:
            return linear_cross_entropy_sum(**moving, **fixed, row_loss=row_loss, tiles=tiles)

        return jax.jit(jax.grad(loss)).lower(moving).compile()

    assert compiled(ROW_LOSSES["smoothed"]).as_text().count(" dot(") == 3
    programs = [compiled(each, "where") for each in (ROW_LOSSES["z-loss"], None)]
    ours, plain = (each.memory_analysis().temp_size_in_bytes for each in programs)
    assert ours <= plain + 16 * 4 * N


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_the_logits_are_computed_again_where_chunks_are_too_small(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "rows_per_chunk", lambda *_: None)
    head = random_head()
    moving, rest = split(head)
    options = {"row_loss": ROW_LOSSES[name], "tiles": Tiles(rows=8, classes=15)}
    found = jax.value_and_grad(lambda m: linear_cross_entropy_sum(**m, **rest, **options))(moving)
    assert_close(found, in_float64(head, ROW_LOSSES[name]))


def test_float64_is_kept() -> None:
    with jax.enable_x64():
        head = {
            name: a.astype(jnp.float64) if a.dtype == jnp.float32 else a
            for name, a in random_head().items()
        }
        moving, rest = split(head)
        for name in ("z-loss", "smoothed"):
            options = {"row_loss": ROW_LOSSES[name], "tiles": CHUNKS}
            found = jax.value_and_grad(
                lambda m, options=options: linear_cross_entropy_sum(**m, **rest, **options)
            )(moving)
            assert_close(found, in_float64(head, ROW_LOSSES[name]), 1e-13)


def test_statistics_come_beside_the_sum() -> None:
    head = random_head()
    head["labels"] = head["labels"].at[5].set(K)  # of weight 0, and not ignored
    head["weights"] = head["weights"].at[5].set(0)
    wanted = linear_cross_entropy_stats(**{n: a for n, a in head.items() if n != "weights"})
    plain = linear_cross_entropy_sum(**head)
    head["valid"] = head["valid"].at[5].set(True)
    for options in ({}, {"tiles": CHUNKS}, {"implementation": "reference"}):
        total, stats = linear_cross_entropy_sum(**head, return_stats=True, **options)
        assert_close(total, plain)
        for found, expected in zip(stats, wanted, strict=True):
            np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[6:], expected[6:], rtol=1e-5, atol=1e-6)
        assert not stats.correct[5]
        assert jnp.isnan(stats.nll[5])  # never the loss of another class

    def accuracy_and_loss(w: Array) -> Array:
        total, stats = linear_cross_entropy_sum(**head | {"w": w}, return_stats=True)
        return total + jnp.sum(stats.lse[:4])

    def apart(w: Array) -> Array:
        inputs = {n: a for n, a in head.items() if n != "weights"} | {"w": w}
        lse = linear_cross_entropy_stats(**inputs).lse
        return linear_cross_entropy_sum(**head | {"w": w}) + jnp.sum(lse[:4])

    assert_close(jax.grad(accuracy_and_loss)(head["w"]), jax.grad(apart)(head["w"]))


@pytest.mark.parametrize("tiles", [None, CHUNKS], ids=["at once", "chunks"])
def test_what_the_function_closes_over_is_differentiated(tiles: Tiles | None) -> None:
    head = random_head()

    def total(c: Array, w: Array) -> Array:
        return linear_cross_entropy_sum(
            **head | {"w": w}, row_loss=lambda nll, lse, mean: nll + c * lse**2, tiles=tiles
        )

    def wanted(c: Array, w: Array) -> Array:
        return composed(head | {"w": w}, lambda nll, lse, mean: nll + c * lse**2)

    def transformed(f: Callable[..., Array]) -> Any:
        c, w, gradient = jnp.float32(0.1), head["w"], jax.grad(f, (0, 1))
        change = jnp.float32(1), head["x"].T @ jnp.ones((N, K))
        lanes = jax.vmap(gradient, (0, None))(jnp.arange(3.0), w)
        return jax.jit(gradient)(c, w), lanes, jax.jvp(gradient, (c, w), change)[1]

    assert_close(transformed(total), transformed(wanted), 1e-5)


def test_what_the_function_closes_over_may_be_an_integer() -> None:
    head = random_head()

    def total(w: Array, step: Any) -> Array:
        return linear_cross_entropy_sum(
            **head | {"w": w}, row_loss=lambda nll, lse, mean: nll * jnp.where(step > 3, 2, 1)
        )

    gradient = jax.value_and_grad(total)
    assert_close(jax.jit(gradient)(head["w"], 5), gradient(head["w"], 5))


@pytest.mark.parametrize("tiles", [None, CHUNKS], ids=["at once", "chunks"])
def test_rows_that_do_not_count_add_nothing(tiles: Tiles | None) -> None:
    head = random_head()
    moving, rest = split(head)
    rest["valid"] = rest["valid"].at[:8].set(True).at[8].set(False)
    moving["x"] = moving["x"].at[8].set(jnp.nan).at[6].set(3e38)
    moving["weights"] = moving["weights"].at[6].set(0)  # whose logits overflow
    grad = jax.value_and_grad(
        lambda m, labels: linear_cross_entropy_sum(
            **m, **rest | {"labels": labels}, row_loss=ROW_LOSSES["z-loss"], tiles=tiles
        )
    )
    found = grad(moving, rest["labels"].at[8].set(-100))
    gradients = {name: g for name, g in found[1].items() if name != "weights"}
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves((found[0], gradients)))
    kept = jnp.asarray([i for i in range(N) if i not in (6, 8)])
    of_rows = {n: a[kept] for n, a in {**moving, **rest}.items() if a.shape[:1] == (N,)}
    wanted = in_float64({**moving, **rest} | of_rows, ROW_LOSSES["z-loss"])
    assert_close((found[0], found[1]["w"]), (wanted[0], wanted[1]["w"]))
    bad = grad(moving, rest["labels"].at[0].set(K))
    assert jnp.isnan(bad[0])
    assert jnp.isnan(bad[1]["x"][0]).all()


@pytest.mark.parametrize("tiles", [None, CHUNKS], ids=["at once", "chunks"])
@pytest.mark.parametrize("name", ["z-loss", "focal"])
def test_a_row_whose_classes_are_all_masked_adds_nothing(name: str, tiles: Tiles | None) -> None:
    """Although its lse is -inf; nor does it reach second derivatives."""
    head = random_head() | {"valid": jnp.ones(N, bool)}
    row = 9
    masked = head | {"where": head["where"].at[row].set(False)}
    gone = head | {"valid": head["valid"].at[row].set(False)}

    def found(head: dict[str, Array]) -> Any:
        moving, rest = split(head)
        gradient = jax.value_and_grad(
            lambda m: linear_cross_entropy_sum(**m, **rest, row_loss=ROW_LOSSES[name], tiles=tiles)
        )
        slope = jax.grad(lambda m: jnp.vdot(gradient(m)[1]["w"], m["w"]))
        return gradient(moving), slope(moving)["x"]

    assert head["weights"][row] > 0
    assert_close(found(masked), found(gone))


def test_shared_classes_and_rows() -> None:
    moving, rest = split(random_head())
    row_loss = ROW_LOSSES["smoothed"]

    def grads(shards: Shards | None) -> Any:
        head = {n: a[:36] if a.shape[:1] == (N,) else a for n, a in {**moving, **rest}.items()}
        head = {n: a[..., :210] if a.shape[-1:] == (K,) else a for n, a in head.items()}
        head["labels"] = head["labels"] % 210
        head["where"] = jnp.ones((210,), bool)
        changing, fixed = split(head)
        return jax.value_and_grad(
            lambda m: linear_cross_entropy_sum(**m, **fixed, row_loss=row_loss, shards=shards)
        )(changing)

    wanted = grads(None)
    for shards in (Shards(classes="i"), Shards(rows="i")):
        with jax.set_mesh(jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))):
            found = grads(shards)
        assert_close(jax.device_get(found), wanted)


@pytest.mark.parametrize("implementation", ["xla_chunked", "reference"])
def test_a_weight_of_zero_has_a_derivative(implementation: str) -> None:
    head = random_head()
    inputs = {name: head[name] for name in ("x", "labels", "bias")}

    def norm(weights: Array) -> Array:
        def total(w: Array) -> Array:
            options = {"weights": weights, "implementation": implementation}
            return linear_cross_entropy_sum(**inputs, w=w, **options)

        return jnp.sum(jax.grad(total)(head["w"]) * head["w"])

    at_zero, near = (jax.grad(norm)(jnp.full(N, value)) for value in (0.0, 1e-3))
    assert_close(at_zero, near)


def test_bad_functions_are_named() -> None:
    head = random_head()
    with pytest.raises(TypeError, match="row_loss: expected a function of three numbers, got 3"):
        linear_cross_entropy_sum(**head, row_loss=3)
    for bad in (lambda nll, lse, mean: (nll, lse), lambda nll, lse, mean: jnp.stack([nll, lse])):
        with pytest.raises(ValueError, match="row_loss: expected one floating number for a row"):
            linear_cross_entropy_sum(**head, row_loss=bad)
    with pytest.raises(ValueError, match=r"row_loss: expected one floating number .* got bool\[\]"):
        linear_cross_entropy_sum(**head, row_loss=lambda nll, lse, mean: nll > 0)
    with pytest.raises(TypeError, match="return_stats: expected True or False, got Array"):
        linear_cross_entropy_sum(**head, return_stats=jnp.array(True))

    @dataclass
    class Weighted:  # whose __eq__ takes its hash
        weight: float

        def __call__(self, nll: Array, lse: Array, mean: Array) -> Array:
            return self.weight * nll

    with pytest.raises(TypeError, match="row_loss: expected a function that has a hash"):
        linear_cross_entropy_sum(**head, row_loss=Weighted(2.0))
