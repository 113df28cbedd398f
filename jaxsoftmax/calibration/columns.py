"""The part of each class's scale and bias that the data determine, and the columns' own units."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import placement, validation
from jaxsoftmax.calibration.data import Data


class Columns(NamedTuple):
    """The logits of each class in units of their own, z = mean + deviation unit; all are `[K]`."""

    mean: np.ndarray
    deviation: np.ndarray  # 1 where the logits do not vary
    varies: np.ndarray  # whether the logits vary by more than rounding
    group: np.ndarray  # the index of the group of classes that examples compare with each other
    sign: np.ndarray  # of the correlation with the first class of the group
    tied: np.ndarray  # whether all units of the group are equal up to their sign

    @property
    def determined(self) -> np.ndarray:
        """Whether the data determine the scale of each class by itself."""
        return self.varies & ~self.tied

    def to_params(self, scale: float) -> np.ndarray:
        """Return scale and bias of the units, `[2, K]`, for one scale of all logits and no bias."""
        return scale * np.stack([self.deviation, self.mean])

    def to_calibration(
        self, params: np.ndarray, *, is_softmax: bool, dtype: np.dtype
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and bias of the logits; among equivalent ones, those nearest to 1 and 0."""
        scale, free = params[0] / self.deviation, self.sign / self.deviation
        excess = _group_sums(free * (scale - 1), self.group) / _group_sums(free**2, self.group)
        scale = scale - np.where(self.tied, free * excess, 0)
        scale = np.where(self.varies, scale, 1).astype(dtype)
        bias = params[1] - scale * self.mean  # compensates for the rounding of the scale
        sizes = _group_sums(np.ones_like(bias), self.group)
        bias = bias - is_softmax * _group_sums(bias, self.group) / sizes
        return scale, bias.astype(dtype)


def _group_sums(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(group, x)[group]


def analyze_columns(data: Data, error: float) -> tuple[Columns, Array]:
    """Return the columns, and their units `[N, K]`, -inf where masked.

    A unit is exactly 0 where logits vary by rounding alone, and units are exactly equal where they
    differ by rounding alone. The gradient in directions that the data do not determine is then 0,
    and Krylov methods never move there; otherwise rounding would determine scales of a million.
    """
    z, _, w = data
    w = _comparing_weights(z, w) if data.is_softmax else w
    mean, deviation = map(validation.to_host, _moments(z, w))
    absolute_error = error * np.hypot(mean, deviation)
    varies = deviation > absolute_error
    deviation = np.where(varies, deviation, 1)
    units = _to_units(z, mean, deviation, varies)
    first, group = _groups(z, w) if data.is_softmax else (np.arange(len(mean)),) * 2
    sign, residual = map(validation.to_host, _correlate(units, w, first))
    unit_error = absolute_error / deviation
    is_equal = varies & (residual <= unit_error + unit_error[first]) & data.is_softmax
    tied = _group_sums(~is_equal, group) == 0
    columns = Columns(mean, deviation, varies, group, sign, tied)
    return columns, _equate_tied(units, first, sign, tied)


@jax.jit
def _comparing_weights(z: Array, w: Array) -> Array:
    """Return weights without those of examples with one class, whose loss is always 0."""
    return jnp.where(jnp.sum(z != -jnp.inf, 1) > 1, w, 0)


@jax.jit
def _moments(z: Array, w: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each class's logits, `[K]`; 0 for no logits."""
    mean = _column_means(z, z != -jnp.inf, w)
    return mean, jnp.sqrt(_column_means((z - mean[None]) ** 2, z != -jnp.inf, w))


def _column_means(x: Array, exists: Array, w: Array) -> Array:
    weights = jnp.where(exists, w[:, None], 0)
    total = jnp.sum(weights, 0)
    return jnp.sum(weights * jnp.where(exists, x, 0), 0) / jnp.where(total == 0, 1, total)


@jax.jit
def _to_units(z: Array, mean: Array, deviation: Array, varies: Array) -> Array:
    units = jnp.where(varies[None], (z - mean[None]) / deviation[None], 0)
    return jnp.where(z == -jnp.inf, -jnp.inf, units)


def _groups(z: Array, w: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the first class of each class's group, and the index of the group, `[K]`.

    Two classes are in one group if some example has both, or if both are in one group with a third.
    """
    from scipy.sparse import csgraph  # type: ignore[import-untyped]

    if not bool(jnp.any(z == -jnp.inf)):
        return np.zeros(z.shape[1], int), np.zeros(z.shape[1], int)
    exists = validation.to_host((z != -jnp.inf) & (w > 0)[:, None])
    patterns = np.unique(exists, axis=0).astype(np.float32)
    group = csgraph.connected_components(patterns.T @ patterns)[1]
    return np.unique(group, return_index=True)[1][group], group


@jax.jit
def _correlate(units: Array, w: Array, first: Array) -> tuple[Array, Array]:
    """Return the sign of the correlation with the group's first class, and the residual's size."""
    first_units = _first_units(units, first)
    both = (units != -jnp.inf) & (first_units != -jnp.inf)
    sign = jnp.where(_column_means(units * first_units, both, w) < 0, -1, 1)
    return sign, jnp.sqrt(_column_means((units - sign[None] * first_units) ** 2, both, w))


@jax.jit
def _equate_tied(units: Array, first: Array, sign: Array, tied: Array) -> Array:
    """Return the units, replaced by those of the group's first class where they are tied."""
    first_units = sign[None] * _first_units(units, first)
    return jnp.where(tied[None] & (units != -jnp.inf), first_units, units)


def _first_units(units: Array, first: Array) -> Array:
    """Return for each class the units of the first class of its group, `[N, K]`."""
    first_units = placement.gather_axis(units, 1)[:, first]
    return placement.reshard(first_units, units, *placement.partition_spec(units))
