"""Validation data: checked, in float64, and how far their logits vary beyond rounding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax import exponential, losses, validation
from jaxsoftmax.validation import ArrayLike

MAX_LOGIT = 1e100  # in absolute value, so that its square is finite in float64


class Data(NamedTuple):
    """Logits, targets and weights of examples."""

    z: Array  # [N, K], or [N] for one binary label
    t: Array  # labels [N] of a softmax, or targets of the logits' shape
    w: Array  # [N]

    @property
    def is_softmax(self) -> bool:
        """Whether the head is a softmax, and not one sigmoid per label."""
        return self.z.ndim > self.t.ndim


def prepare_data(logits: ArrayLike, targets: ArrayLike, weights: ArrayLike | None) -> Data:
    """Return the data as arrays after all checks, with zeros in rows of weight 0."""
    z = validation.to_sum_dtype(validation.as_floats(logits))
    t = validation.as_numbers(targets, "targets")
    if z.ndim == 2 and z.shape[1] == 1 and t.ndim == 1:
        t = t[:, None]
    if z.ndim not in (1, 2) or 0 in z.shape or t.shape not in (z.shape, z.shape[:1]):
        raise ValueError(
            "logits, targets: expected [N, K] and labels [N], or one shape [N] or [N, L], "
            f"got {z.shape} and {t.shape}"
        )
    w = _relative_weights(weights, z)
    if z.ndim > t.ndim:
        losses.check_labels(targets, z.shape[1], valid=w > 0, name="targets")
    z, t = (jnp.where((w > 0).reshape(-1, *(1,) * (a.ndim - 1)), a, 0) for a in (z, t))
    data = Data(z, t, w)
    _check_values(data)
    return data


def _relative_weights(weights: ArrayLike | None, z: Array) -> Array:
    """Return the weights divided by the largest, so that their sum is finite."""
    if weights is None:
        return jnp.ones(z.shape[:1], z.dtype)
    w = validation.as_numbers(weights, "weights")
    validation.check_shape(w, z.shape[:1], "weights", "one per example")
    with jax.enable_x64():
        w64 = w.astype(jnp.float64)
        relative = (w64 / jnp.max(w64)).astype(z.dtype)
    if not bool(jnp.all((w >= 0) & jnp.isfinite(relative)) & jnp.any(relative > 0)):
        raise ValueError("weights: expected finite numbers of at least 0, some above 0")
    return relative


def _check_values(data: Data) -> None:
    z, t, _ = data
    with jax.enable_x64():
        z64 = z.astype(jnp.float64)
        logits_in_range = bool(jnp.all((jnp.abs(z64) <= MAX_LOGIT) | (z64 == -jnp.inf)))
        losses_finite = bool(jnp.all(jnp.isfinite(example_losses(z64, t))))
    if not logits_in_range:
        raise ValueError(
            f"logits: expected finite numbers of at most {MAX_LOGIT:g}, or -inf for a masked class"
        )
    if not data.is_softmax and not bool(jnp.all((t == 0) | (t == 1))):
        raise ValueError("targets: expected 0 or 1 for a sigmoid")
    if not losses_finite:
        raise ValueError("targets: expected no example on a masked class, where its loss is inf")


def example_losses(z: Array, t: Array) -> Array:
    """Return one loss per example of a softmax, `[N]`, or per label of sigmoids, `[N, L]`."""
    loss = losses.cross_entropy if z.ndim > t.ndim else losses.binary_cross_entropy
    return loss(z, t)


def to_float64_columns(data: Data) -> Data:
    """Return the data with logits `[N, K]` in float64, if that is enabled."""
    z, t, w = data
    z, t = (z[:, None], t[:, None]) if z.ndim == 1 else (z, t)
    return Data(z.astype(jnp.float64), t, w.astype(jnp.float64))


def relative_error(logits: ArrayLike) -> float:
    """Return the relative error of logits by their own rounding and that of sums behind them."""
    z = validation.as_floats(logits)
    of_sums = exponential.float_limits(validation.to_sum_dtype(z).dtype).eps
    return exponential.float_limits(z.dtype).eps + 16 * of_sums


def spread(data: Data, error: float) -> float:
    """Return the root mean square of the logits as a loss sees them, or 0 if it is rounding.

    A softmax sees the logits minus the largest of their example.
    """
    visible, total = map(float, _root_mean_squares(data))
    return visible if visible > error * total else 0.0


@jax.jit
def _root_mean_squares(data: Data) -> tuple[Array, Array]:
    z, _, w = data
    exists = z != -jnp.inf
    share = jnp.where(exists, (w / jnp.sum(w))[:, None], 0)
    visible = subtract_max(z) if data.is_softmax else z
    visible, z = (jnp.where(exists, a, 0) for a in (visible, z))
    return jnp.sqrt(jnp.sum(share * visible**2)), jnp.sqrt(jnp.sum(share * z**2))


def subtract_max(z: Array) -> Array:
    """Return logits minus the largest of their example: a common offset only adds rounding."""
    largest = jnp.max(z, -1, keepdims=True)
    return z - jnp.where(largest == -jnp.inf, 0, largest)
