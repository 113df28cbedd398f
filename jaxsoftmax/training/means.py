"""Weighted means over a minibatch, which may lie on several devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.training.types import Examples, Loss, Metrics, Strata


def weighted_means(
    functions: dict[str, Loss], params: Any, examples: Examples, strata: Strata | None = None
) -> Metrics:
    """Return the weighted mean over the examples of each function."""
    return {
        name: mean_over(function, params, examples, strata) for name, function in functions.items()
    }


def mean_over(function: Loss, params: Any, examples: Examples, strata: Strata | None) -> Array:
    """Return the weighted mean of a function over the examples of all devices.

    Its gradient in the parameters is the one of that mean, the same on all devices.
    """
    if strata is None or not strata.is_local:
        return _local_mean(function, params, examples)
    if strata.in_fixed_order:
        return _mean_in_fixed_order(function, strata, params, examples)
    if examples.weights is None:
        return lax.pmean(_local_mean(function, params, examples), strata.axes)
    share = _share(jnp.sum(examples.weights), total_weight(examples, strata))
    return lax.psum(share * _local_mean(function, params, examples), strata.axes)


def _local_mean(function: Loss, params: Any, examples: Examples) -> Array:
    values = values_per_example(function, params, examples)
    return weighted_mean(values, weights=examples.weights)


def values_per_example(function: Loss, params: Any, examples: Examples) -> Array:
    """Return a loss or score of each example, after a check of its shape."""
    x, targets, _ = examples
    values = function(params, x, targets)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"loss and score must return one value per example, {x.shape[:1]}, got {values.shape}"
        )
    return values


def total_weight(examples: Examples, strata: Strata | None) -> Array:
    """Return the sum of the weights of the examples of all devices."""
    assert examples.weights is not None
    if strata is None or not strata.is_local:
        return jnp.sum(examples.weights)
    if strata.in_fixed_order:
        return _sum_in_fixed_order(jnp.sum(examples.weights, 1), strata.axes)
    return lax.psum(jnp.sum(examples.weights), strata.axes)


def _share(weight: Array, total: Array) -> Array:
    return weight / jnp.where(total == 0, 1, total)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean_in_fixed_order(function: Loss, strata: Strata, params: Any, batch: Examples) -> Array:
    """Return the weighted mean, with sums that have the same bits for any number of devices."""
    return _over_each_stratum(lambda weighted: weighted, function, strata, params, batch)


def _mean_forward(function: Loss, strata: Strata, params: Any, batch: Examples) -> tuple:
    return _over_each_stratum(jax.value_and_grad, function, strata, params, batch)


def _mean_backward(function: Loss, strata: Strata, gradient: Any, cotangent: Array) -> tuple:
    return jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), gradient), None


_mean_in_fixed_order.defvjp(_mean_forward, _mean_backward)


def _over_each_stratum(
    transform: Callable[..., Any], function: Loss, strata: Strata, params: Any, batch: Examples
) -> Any:
    """Return the sum over strata of a transform of each one's part of the mean.

    Each stratum is computed by the same program, a step of a loop, on any number of devices. The
    barriers keep compilers from merging that program with the sums.
    """
    assert batch.weights is not None
    shares = _share(jnp.sum(batch.weights, 1), total_weight(batch, strata))
    params, batch, shares = placement.match_varying_axes(params, batch, shares)

    def part(stratum: tuple[Examples, Array]) -> Any:
        examples, share = lax.optimization_barrier(stratum)

        def weighted(params: Any) -> Array:
            return share * _local_mean(function, params, examples)

        return lax.optimization_barrier(transform(weighted)(params))

    parts = lax.map(part, (batch, shares))
    sums = jax.tree.map(partial(_sum_in_fixed_order, axes=strata.axes), parts)
    return lax.optimization_barrier(sums)


def _sum_in_fixed_order(a: Array, axes: tuple[str, ...]) -> Array:
    """Return the sum over strata, `[strata on this device, ...]`, by a binary tree over all."""
    a = _sum_by_pairs(a)
    return _sum_by_pairs(placement.gather_devices(a, axes)) if axes else a


def _sum_by_pairs(a: Array) -> Array:
    while len(a) > 1:
        a = a[0::2] + a[1::2]
    return a[0]
