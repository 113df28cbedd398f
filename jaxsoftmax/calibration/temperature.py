"""Temperature scaling: one scale for all logits."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.calibration.data import (
    Data,
    prepare_data,
    relative_error,
    spread,
    subtract_max,
    to_float64_columns,
)
from jaxsoftmax.calibration.result import Fit, make_fit, mean_loss
from jaxsoftmax.validation import ArrayLike


def temperature_scaling(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    limit: float = 1000.0,
) -> Fit:
    r"""Scale all logits by the inverse temperature b = 1 / T of least negative log-likelihood.

    min over 1 / limit <= b <= limit of sum_i w_i loss(b z_i, y_i) / sum_i w_i

    Args:
        logits: those of validation data, floats, `[N, K]`, or `[N]` for one binary label.
        targets: integer labels `[N]` of a softmax, or for sigmoids 0 or 1, numbers or bools, in
            the logits' shape.
        weights: floats, `[N]`.
        limit: the largest scale and the largest temperature.

    Returns:
        `Fit` with a scalar scale, 1 / T > 0, and bias 0: the predicted class does not change.

    Numerics:
        The slope of the mean loss increases with b. Brent's method of SciPy finds its root in
        log b, in float64. If the optimum is at an end of the interval (all examples are right:
        b = limit; worse than chance: b = 1 / limit), `converged` is False. If the logits of each
        example differ by rounding alone, b stays 1 and `determined` is False.

    Raises:
        TypeError: logits are not floats, or labels of a softmax are not integers.
        ValueError: shapes do not match, a label is out of range, a logit is NaN or +inf, a label is
            on a masked class, weights are invalid, or limit is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsoftmax import calibration
        >>> logits = jnp.array([[6.0, 0.0], [6.0, 0.0], [6.0, 0.0], [6.0, 0.0]])
        >>> fitted = calibration.temperature_scaling(logits, jnp.array([0, 0, 0, 1]))
        >>> print(f"{fitted.scale:.4f} {fitted.nll[0]:.3f} {fitted.nll[1]:.3f}")
        0.1831 1.502 0.562

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017);
        Brent, "Algorithms for minimization without derivatives" (1973), for the root.
    """
    if not 1 <= limit < float("inf"):
        raise ValueError(f"limit: expected a finite number of at least 1, got {limit}")
    data = prepare_data(logits, targets, weights)
    error = relative_error(logits)
    with jax.enable_x64():
        data64 = to_float64_columns(data)
        is_determined = spread(data64, error) > 0
        best = best_scale(data64, limit) if is_determined else BestScale(1.0, True, 0.0)
    return make_fit(
        data,
        np.array(best.scale, data.z.dtype),
        np.zeros((), data.z.dtype),
        np.array(is_determined),
        converged=best.is_optimum,
        decrement=best.decrement,
    )


class BestScale(NamedTuple):
    """The common scale of least mean loss."""

    scale: float
    is_optimum: bool  # False at an end of the interval
    decrement: float  # Newton's, at this scale


def best_scale(data: Data, limit: float) -> BestScale:
    """Return the scale between 1 / limit and limit at which the slope of the mean loss is 0."""
    from scipy import optimize  # type: ignore[import-untyped]

    data = data._replace(z=subtract_max(data.z)) if data.is_softmax else data

    def slope(log_scale: float) -> float:
        return float(_slope(math.exp(log_scale), data))

    bound = math.log(limit)
    low, high = slope(-bound), slope(bound)
    if low < 0 < high:
        scale, is_optimum = math.exp(optimize.brentq(slope, -bound, bound, xtol=1e-15)), True
    elif low < 0:
        scale, is_optimum = float(limit), False
    elif high > 0:
        scale, is_optimum = 1 / limit, low == 0
    else:  # the loss does not depend on the scale
        scale, is_optimum = 1.0, low == high == 0
    derivative, curvature = map(float, _slope_and_curvature(scale, data))
    # Both vanish where the loss does.
    decrement = 0.5 * derivative * (derivative / curvature) if curvature else 0.0
    return BestScale(scale, is_optimum, decrement)


@jax.jit
def _slope(scale: Array, data: Data) -> Array:
    """Return the derivative of the mean loss in the common scale."""
    return jax.grad(lambda b: mean_loss(b, jnp.zeros_like(b), data))(scale)


@jax.jit
def _slope_and_curvature(scale: Array, data: Data) -> tuple[Array, Array]:
    return jax.jvp(lambda b: _slope(b, data), (scale,), (jnp.ones_like(scale),))
