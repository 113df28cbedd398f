"""Confidence intervals of metrics, by the bootstrap."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import placement, validation
from jaxsoftmax.validation import ArrayLike


class Interval(NamedTuple):
    """A metric's estimate and its bootstrap interval, each with the metric's structure.

    Attributes:
        estimate: the metric of all examples as they are.
        low: the lower end of the interval.
        high: the upper end of the interval.
    """

    estimate: Any
    low: Any
    high: Any


def bootstrap(
    metric: Callable[..., Any],
    data: tuple[ArrayLike, ...],
    *,
    key: Array,
    resamples: int = 1000,
    level: float = 0.95,
    batch_size: int = 16,
) -> Interval:
    r"""Return the percentile bootstrap interval of a metric of example-aligned arrays.

    N examples are drawn with replacement, R times. The interval goes from the (1 - level) / 2 to
    the (1 + level) / 2 quantile of metric(*resample).

    Args:
        metric: a function of the arrays that runs under jit and vmap, and returns an array or a
            pytree of arrays: `accuracy`, or a `functools.partial` of another metric.
        data: its arguments, arrays of `[N, ...]`, including weights if the metric takes them as an
            argument.
        key: a random key; the same key gives the same interval.
        resamples: R.
        level: the interval's coverage, between 0 and 1.
        batch_size: the number of resamples that are computed at once, by vmap; each holds a copy of
            the data.

    Returns:
        `Interval(estimate, low, high)`: the metric of the data, and the ends.

    Numerics:
        Resamples on which the metric is NaN (a ROC-AUC without a positive) are left out. If the
        metric is a mean, pass its values: `bootstrap(weighted_mean, (hits(z, y),), ...)` draws one
        number per example.

    Raises:
        TypeError: resamples or batch_size is not an integer.
        ValueError: arrays have different lengths, or there are none; resamples or batch_size is
            below 1; level is outside (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits, labels = jnp.eye(2)[jnp.arange(100) % 2], jnp.arange(100) % 4 % 2
        >>> labels = labels.at[:20].set(0)
        >>> result = metrics.bootstrap(metrics.accuracy, (logits, labels), key=jax.random.key(0))
        >>> print(f"{result.low:.2f} < {result.estimate:.2f} < {result.high:.2f}")
        0.84 < 0.90 < 0.96

    Reference:
        Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapter 13.
    """
    validation.check_at_least_one(resamples=resamples, batch_size=batch_size)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    arrays = tuple(jnp.asarray(a) for a in data)
    if len({a.shape[:1] for a in arrays}) != 1 or 0 in arrays[0].shape[:1] or not arrays[0].ndim:
        shapes = [a.shape for a in arrays]
        raise ValueError(f"data: expected arrays of one length, at least 1, got shapes {shapes}")
    values = _resample(arrays, key, metric, resamples, min(batch_size, resamples))

    def quantile(q: float) -> Any:
        return jax.tree.map(lambda v: jnp.nanquantile(v, q, axis=0), values)

    return Interval(metric(*arrays), quantile((1 - level) / 2), quantile((1 + level) / 2))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _resample(
    arrays: tuple[Array, ...], key: Array, metric: Callable, resamples: int, batch_size: int
) -> Any:
    """Return the metric of each resample."""
    size = len(arrays[0])

    def resampled_metric(key: Array) -> Any:
        rows = jax.random.randint(key, (size,), 0, size)
        resample = (placement.take_rows(a, rows, a, placement.row_axes(a, size)) for a in arrays)
        return jax.tree.map(lambda v: validation.to_sum_dtype(jnp.asarray(v)), metric(*resample))

    keys = jax.random.split(key, resamples)
    return lax.map(resampled_metric, keys, batch_size=batch_size)
