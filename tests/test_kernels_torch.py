"""The fused loss on torch's published sample inputs for `F.linear_cross_entropy`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import weighted_mean
from jaxsoftmax.kernels import Tiles, linear_cross_entropy

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("expecttest", reason="torch's samples need expecttest")


def samples() -> list[Any]:
    """Those with class labels and a matrix of weights, which is what this library has."""
    from torch.testing._internal.common_methods_invocations import op_db

    (entry,) = (
        op
        for op in op_db
        if op.name == "nn.functional.linear_cross_entropy" and not op.variant_test_name
    )
    every = entry.sample_inputs("cpu", torch.float64)
    return [s for s in every if s.args[0].ndim == 2 and not s.args[1].is_floating_point()]


def test_samples() -> None:
    found = samples()
    assert len(found) > 10
    for sample in found:
        x, (w, labels) = sample.input.requires_grad_(), sample.args
        w.requires_grad_()
        want = torch.nn.functional.linear_cross_entropy(x, w, labels, **sample.kwargs)
        gradients = torch.autograd.grad(want.sum(), (x, w))
        arrays = [a.detach().numpy() for a in (x, w, labels, want, *gradients)]
        options = {
            name: value.detach().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in sample.kwargs.items()
        }
        assert_same(*arrays, **options)


def assert_same(
    x: np.ndarray,
    w: np.ndarray,
    labels: np.ndarray,
    want: np.ndarray,
    dx: np.ndarray,
    dw: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    linear_bias: np.ndarray | None = None,
) -> None:
    """Torch's options, composed outside; its weights are [K, D]."""
    valid = labels != ignore_index
    weights = np.ones(w.shape[0]) if weight is None else weight
    weights = np.where(valid, weights[np.where(valid, labels, 0)], 0)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        nll = linear_cross_entropy(
            x, w.T, labels, bias=linear_bias, valid=valid, tiles=Tiles(rows=2, classes=2)
        ).nll
        if reduction == "mean":
            return weighted_mean(nll, weights=jnp.asarray(weights))
        return weights * nll if reduction == "none" else jnp.sum(weights * nll)

    with jax.enable_x64():
        got, back = jax.vjp(jax.jit(loss), jnp.asarray(x), jnp.asarray(w))
        found = (got, *back(jnp.ones_like(got)))
    for a, b in zip(found, (want, dx, dw), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
