"""The loss terms of logits in one reduction, against the two passes of other devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax.kernels import Tiles, fused_sums, linear_cross_entropy_stats, target
from jaxsoftmax.kernels.fused_sums import combine, reduce_classes

pytestmark = pytest.mark.usefixtures("strict")
N, D, K = 8, 4, 37  # five blocks of eight classes, the last of which overlaps another one


def hostile() -> dict[str, Any]:
    """Rows that are masked or have one class, and logits that are infinite, NaN, tied or huge."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((N, D)), rng.standard_normal((D, K))
    bias, labels = rng.standard_normal(K), rng.integers(0, K - 2, N)
    exists = rng.random((N, K)) < 0.7
    w[:, 9], bias[9], bias[11] = w[:, 5], bias[5], np.inf
    exists[:, [5, 9]], exists[:, 11], exists[1, 11] = True, False, True
    exists[0], exists[2] = False, np.arange(K) == labels[2]
    x[3, 0], x[4:6] = np.nan, 1e4 * x[4:6]
    exists[np.arange(4, N), labels[4:]] = True
    data = {"x": x, "w": w, "bias": bias}
    data = {name: jnp.asarray(a, jnp.float32) for name, a in data.items()}
    return data | {"labels": jnp.asarray(labels, jnp.int32), "where": jnp.asarray(exists)}


def statistics(data: dict[str, Any], platform: str, classes: int) -> Any:
    def run(x: jax.Array) -> Any:
        how = {name: data[name] for name in ("bias", "where")} | {"tiles": Tiles(4, classes)}
        return linear_cross_entropy_stats(x, data["w"], data["labels"], **how)

    with target.assumed(platform, interpret=True):
        return jax.device_get(jax.jit(run)(data["x"]))


@pytest.mark.parametrize("classes", [8, K], ids=["blocks", "at once"])
def test_statistics_are_those_of_two_passes(classes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_sums, "MOST_CLASSES", classes)
    data = hostile()
    found, wanted = statistics(data, "tpu", classes), statistics(data, "cpu", classes)
    np.testing.assert_array_equal(found.predicted, wanted.predicted)
    np.testing.assert_array_equal(found.correct, wanted.correct)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    assert np.isnan(found.nll[3])
    assert np.isposinf(found.nll[1])
    assert found.nll[2] == 0
    assert np.isneginf(found.lse[0])


def test_any_order_gives_the_same_terms():
    rng = np.random.default_rng(1)
    z = jnp.asarray(rng.integers(-3, 4, (5, 24)), jnp.float32).at[0, :12].set(-jnp.inf)
    is_label = jnp.arange(24)[None, :] == jnp.asarray([3, 0, 12, 23, 7])[:, None]
    column = jnp.arange(24, dtype=jnp.int32)[None, :]
    whole = reduce_classes(z, is_label, column)
    cuts = [(slice(None), slice(first, first + 8)) for first in (0, 8, 16)]
    a, b, c = (reduce_classes(z[cut], is_label[cut], column[cut]) for cut in cuts)
    for parts in (combine(combine(a, b), c), combine(c, combine(b, a))):
        assert all(map(np.allclose, jax.tree.leaves(parts), jax.tree.leaves(whole)))
    assert whole.stats is not None
    np.testing.assert_array_equal(whole.stats.predicted, jnp.argmax(z, 1))
    e = jnp.where(is_label, 0, jnp.exp(z - jnp.max(z, 1, keepdims=True)))
    np.testing.assert_allclose(whole.sum_exp_rest, e.sum(1), rtol=1e-6)
