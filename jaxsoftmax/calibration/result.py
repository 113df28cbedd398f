"""The result of calibration: scale and bias, and what they do to the data they are fitted to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import links, metrics, validation
from jaxsoftmax.calibration.data import Data, example_losses
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.validation import ArrayLike


class Fit(NamedTuple):
    """A calibration, z -> scale z + bias, and its effect on the data it was fitted to.

    Attributes:
        scale: a scalar, or `[K]` for vector scaling.
        bias: 0, or `[K]` for vector scaling.
        nll: the mean negative log-likelihood, for sigmoids that of all labels together, as
            `(before, after)`.
        ece: the expected calibration error, as `(before, after)`.
        converged: False if the likelihood has no optimum, or if the search did not reach it; the
            calibration is then finite and no worse than none.
        decrement: Newton's estimate g' H^-1 g / 2 of the distance of the mean from its minimum
            before the last step; without a penalty there is no proof of it.
        determined: bools of the scale's shape, False for a scale that the data do not determine, or
            only together with other scales.
    """

    scale: Array
    bias: Array
    nll: tuple[float, float]
    ece: tuple[float, float]
    converged: bool
    decrement: float
    determined: Array

    def apply(self, logits: ArrayLike) -> Array:
        """Return calibrated logits of the same shape; a masked class, -inf, stays masked.

        Args:
            logits: floats, `[..., K]`, or `[...]` for one binary label.

        Returns:
            float32 or float64: half precision would undo the calibration.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxsoftmax import calibration
            >>> half, zero, yes = jnp.array(0.5), jnp.array(0.0), jnp.array(True)
            >>> fitted = calibration.Fit(half, zero, (1, 1), (0, 0), True, 0.0, yes)
            >>> print(fitted.apply(jnp.array([4.0, -jnp.inf])))
            [  2. -inf]
        """
        z = validation.to_sum_dtype(validation.as_floats(logits))
        return apply_affine(self.scale.astype(z.dtype), self.bias.astype(z.dtype), z)


def make_fit(
    data: Data,
    scale: np.ndarray,
    bias: np.ndarray,
    determined: np.ndarray,
    *,
    converged: bool,
    decrement: float,
) -> Fit:
    """Return the result, which is no calibration at all if that has a better likelihood."""
    identity = np.ones_like(scale), np.zeros_like(bias)
    with jax.enable_x64():
        data64 = data._replace(z=data.z.astype(jnp.float64), w=data.w.astype(jnp.float64))
        before, after = (float(mean_loss(*params, data64)) for params in (identity, (scale, bias)))
    if not after <= before:
        (scale, bias), after = identity, before
    params = jnp.asarray(scale), jnp.asarray(bias)
    calibrated = data._replace(z=apply_affine(*params, data.z))
    ece = _calibration_error(data), _calibration_error(calibrated)
    return Fit(*params, (before, after), ece, converged, decrement, jnp.asarray(determined))


def apply_affine(scale: Array, bias: Array, z: Array) -> Array:
    """Return scale z + bias; a scale of 0 or below would make a masked class NaN or +inf."""
    exists = z != -jnp.inf
    return jnp.where(exists, scale * jnp.where(exists, z, 0) + bias, -jnp.inf)


@jax.jit
def mean_loss(scale: Array, bias: Array, data: Data) -> Array:
    """Return the mean negative log-likelihood of the calibrated logits."""
    z, t, w = data
    return weighted_mean(example_losses(apply_affine(scale, bias, z), t), weights=w)


def _calibration_error(data: Data) -> float:
    z, t, w = data
    if data.is_softmax:
        return float(metrics.expected_calibration_error(z, t, weights=w).error)
    label_weights = jnp.broadcast_to(w.reshape(w.shape + (1,) * (z.ndim - 1)), z.shape)
    return float(metrics.reliability(links.sigmoid(z), t, weights=label_weights).error)
