r"""The proximal operator of the l1 norm in the metric of the preconditioner.

    argmin_v  r (v - w) + (v - w) A (v - w)' / 2 + l1 |v|_1,    A = c U e U' + l2,

is one lasso problem per class, in D unknowns and without the examples. A metric that knows which
features are correlated finds the zeros of the optimum in a few steps, where a diagonal one needs
hundreds. The alternating direction method of multipliers (ADMM) solves it,

    x = (A + rho)^-1 (A w - r + rho z - y),    z = soft(x + y / rho, l1 / rho),
    y = y + rho (x - z),

in two products with U an iteration, whatever rho is, so that rho follows the residuals. Where the
preconditioner is diagonal, so is A, and the minimum is known: soft(w - r / A, l1 / A).

Reference: Boyd, Parikh, Chu, Peleato and Eckstein, "Distributed optimization and statistical
learning via the alternating direction method of multipliers" (2011), sections 3.3 and 3.4.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import newton, shared_preconditioner
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

MAX_ITERATIONS = 200
ACCURACY = 0.005  # of v, relative to its distance from w
RELAXATION = 1.6  # of x towards the iterate before, which saves a third of the iterations
BALANCE_PERIOD, MAX_IMBALANCE = 5, 5  # how often rho is set, and the ratio of residuals it allows
MAX_CONDITION = 1e3  # of A, as far as the first rho takes it into account


class Metric(NamedTuple):
    """A = c U e U' + l2 for each class of each lane, plus c m' m in a model without intercept."""

    preconditioner: Preconditioner
    curvature: Array  # c: [L, K, 1]
    l2: Array  # [L, 1, 1]
    centered: bool  # whether an intercept takes the features' mean m

    @property
    def eigenvalues(self) -> Array:
        """The eigenvalues of A that belong to U, `[L, K, R]`."""
        return self.curvature * self.preconditioner.spectrum + self.l2

    @property
    def diagonal(self) -> Array:
        """A where it is diagonal, `[L, K, D]`, above 0."""
        extra = 0 if self.centered else self.curvature * self.preconditioner.mean**2
        a = self.eigenvalues + extra
        return jnp.maximum(a, float_limits(a.dtype).eps * jnp.max(a, -1, keepdims=True))


class _Iterate(NamedTuple):
    z: Array  # [L, K, D]
    y: Array  # the multiplier of x = z: [L, K, D]
    rho: Array  # [L, K, 1]
    accurate: Array  # [L]
    number: Array


def multiply(metric: Metric, v: Array) -> Array:
    """Return A v, `[L, K, D]`."""
    product = shared_preconditioner.scale_along(
        metric.preconditioner, v, metric.eigenvalues, metric.l2
    )
    mean = metric.preconditioner.mean
    if metric.centered:
        return product
    return product + metric.curvature * mean * jnp.sum(v * mean, -1, keepdims=True)


def prox(metric: Metric, w: Array, gradient: Array, l1: Array) -> Array:
    """Return v with exact zeros, `[L, K, D]`, from w, the gradient r at w, and l1 `[L, 1, 1]`."""
    if metric.preconditioner.basis is None:
        return soft_threshold(w - gradient / metric.diagonal, l1 / metric.diagonal)
    target = multiply(metric, w) - gradient

    def body(last: _Iterate) -> _Iterate:
        z, y, rho, _, number = last
        x = _shifted_inverse(metric, rho, target + rho * z - y)
        x = RELAXATION * x + (1 - RELAXATION) * z
        end = soft_threshold(x + y / rho, l1 / rho)
        y = y + rho * (x - end)
        accurate = _is_accurate(w, x - end, end - z, end)
        balance = jnp.where(number % BALANCE_PERIOD == 0, _balance(x, y, end, rho * (end - z)), 1)
        return _Iterate(end, y, rho * balance, accurate, number + 1)

    def unfinished(last: _Iterate) -> Array:
        return ~jnp.all(last.accurate) & (last.number < MAX_ITERATIONS)

    # At the optimum the multiplier is minus the gradient of the smooth part.
    none = jnp.zeros(len(w), bool)
    first = _Iterate(w, jnp.clip(-gradient, -l1, l1), _first_rho(metric), none, jnp.array(1))
    return lax.while_loop(unfinished, body, first).z


def soft_threshold(v: Array, threshold: Array) -> Array:
    """Return v moved towards 0 by the threshold."""
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - threshold, 0)


def _shifted_inverse(metric: Metric, rho: Array, v: Array) -> Array:
    """Return (A + rho)^-1 v; the mean's part of A is of rank one (Sherman and Morrison)."""

    def divide(v: Array) -> Array:
        return shared_preconditioner.scale_along(
            metric.preconditioner, v, 1 / (metric.eigenvalues + rho), 1 / (metric.l2 + rho)
        )

    if metric.centered:
        return divide(v)
    x, mean, c = divide(v), metric.preconditioner.mean, metric.curvature
    q = divide(jnp.broadcast_to(mean, v.shape))
    along, length = (jnp.sum(a * mean, -1, keepdims=True) for a in (x, q))
    return x - q * (c * along / (1 + c * length))


def _first_rho(metric: Metric) -> Array:
    """Return the geometric mean of the least and the greatest eigenvalue, `[L, K, 1]`."""
    largest = jnp.max(metric.eigenvalues, -1, keepdims=True)
    least = jnp.maximum(jnp.min(metric.eigenvalues, -1, keepdims=True), largest / MAX_CONDITION)
    return jnp.sqrt(least * largest)


def _is_accurate(w: Array, primal: Array, change: Array, z: Array) -> Array:
    """Return whether each lane's x and z agree and have come to rest, `[L]`."""
    enough = ACCURACY * newton.norm(z - w) + float_limits(w.dtype).eps * newton.norm(w)
    return (newton.norm(primal) <= enough) & (newton.norm(change) <= enough)


def _balance(x: Array, y: Array, z: Array, dual: Array) -> Array:
    """Return the factor of rho that brings both relative residuals together, `[L, K, 1]`."""

    def length(a: Array) -> Array:
        return jnp.sqrt(jnp.sum(a**2, -1, keepdims=True))

    primal = length(x - z) * length(y)
    dual = length(dual) * jnp.maximum(length(x), length(z))
    return jnp.where(
        primal > MAX_IMBALANCE * dual, 2.0, jnp.where(dual > MAX_IMBALANCE * primal, 0.5, 1.0)
    ).astype(x.dtype)
