"""Temperature and vector scaling of a finished run on the host, in NumPy and float64.

Both agree with `jaxsoftmax.calibration`, which is for larger data and for masks: for a few thousand
examples its programs take longer to compile than these functions to run.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxsoftmax.app import host_metrics

LIMIT = 1000.0  # of the scale and of the temperature
ITERATIONS = 100
MAX_LAST_STEP = 1e-2  # of an optimum's last Newton step, in deviations of the logits
SMALLEST_CURVATURE = 1e-10  # below it, relative to that of each parameter, is rounding
ROUNDING = 1e-6  # a deviation of float32 logits relative to their size that may be rounding alone


class Scaling(NamedTuple):
    """Calibrated logits are scale z + bias; numbers, or `[K]`.

    `converged` is False if the likelihood has no optimum.
    """

    scale: np.ndarray | np.float64
    bias: np.ndarray | np.float64
    converged: bool

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated logits, in float64.

        Args:
            logits: `[N, K]`.

        Returns:
            `[N, K]`.

        Example:
            >>> import numpy as np
            >>> from jaxsoftmax.app.host_calibration import Scaling
            >>> print(Scaling(np.float64(0.5), np.float64(0), True).apply(np.array([[4.0, 1.0]])))
            [[2.  0.5]]
        """
        return self.scale * np.asarray(logits, np.float64) + self.bias


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> Scaling:
    """Find the scale of all logits with the least negative log-likelihood.

    Args:
        logits: `[N, K]`, finite.
        targets: classes `[N]` of a softmax, or labels `[N, K]` of sigmoids.

    Returns:
        A `Scaling` by a number, without a bias.

    Numerics:
        For finite scores. The scale is from 0.001 to 1000: scores that separate the classes have no
        optimum, and `converged` is False at such an end. Scores that are all equal keep a scale of
        1.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_calibration
        >>> logits, labels = np.tile([6.0, 0.0], (4, 1)), np.array([0, 0, 0, 1])
        >>> print(f"{host_calibration.fit_temperature(logits, labels).scale:.4f}")
        0.1831
    """
    problem = _Problem.make(logits, targets)
    if problem.is_softmax:  # a common offset of the logits only adds rounding
        problem = problem._replace(z=problem.z - problem.z.max(1, keepdims=True))
    limit = math.log(LIMIT)
    too_high, too_low = problem.slope(1 / LIMIT)[0], problem.slope(LIMIT)[0]
    if too_high < 0 < too_low:
        return Scaling(np.exp(_find_root(problem, -limit, limit)), np.float64(0), converged=True)
    scale = 1.0 if too_high == too_low == 0 else LIMIT if too_high < 0 else 1 / LIMIT
    return Scaling(np.float64(scale), np.float64(0), converged=too_high == 0)


def fit_vector(logits: np.ndarray, targets: np.ndarray) -> Scaling:
    """Find the scale and bias of each class or label with the least negative log-likelihood.

    Newton's method, in units of each class: the deviation of its logits from their mean. Directions
    that the data do not determine are left where they are.

    Args:
        logits: `[N, K]`, finite.
        targets: classes `[N]` of a softmax, or labels `[N, K]` of sigmoids.

    Returns:
        A `Scaling` by `[K]`; the biases of a softmax sum to 0.

    Numerics:
        For finite scores. A scale may be negative, where scores are better reversed; one that the
        data do not determine stays 1.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import host_calibration
        >>> logits = np.array([[1.0], [1.0], [-1.0], [-1.0], [-1.0]])
        >>> fitted = host_calibration.fit_vector(logits, np.array([[1], [0], [1], [0], [0]]))
        >>> print(fitted.scale, fitted.bias)
        [0.34657359] [-0.34657359]
    """
    problem = _Problem.make(logits, targets)
    z = problem.z
    mean, deviation = z.mean(0), z.std(0)
    varies = deviation > ROUNDING * np.hypot(mean, deviation)
    deviation = np.where(varies, deviation, 1)
    common = fit_temperature(logits, targets)
    starts = (float(common.scale), 0.0, 1.0) if common.converged else (0.0, 1.0)
    in_units = problem._replace(z=np.where(varies, (z - mean) / deviation, 0))
    start = min((scale * np.stack([deviation, mean]) for scale in starts), key=in_units.loss)
    params, converged = _minimize(in_units, start)
    scale = np.where(varies, params[0] / deviation, 1)
    bias = params[1] - scale * mean
    return Scaling(scale, bias - bias.mean() if problem.is_softmax else bias, converged)


class _Problem(NamedTuple):
    """Logits `[N, K]`, one-hot or other labels of the same shape, and whether they are classes.

    The loss of an example is a sum over its labels.
    """

    z: np.ndarray
    y: np.ndarray
    is_softmax: bool

    @classmethod
    def make(cls, logits: np.ndarray, targets: np.ndarray) -> "_Problem":
        is_softmax = targets.ndim == 1
        y = np.eye(logits.shape[1])[targets] if is_softmax else np.asarray(targets, np.float64)
        return cls(np.asarray(logits, np.float64), y, is_softmax)

    def loss(self, params: np.ndarray) -> float:
        """Return the mean loss of scale and bias, `[2, K]`."""
        z = params[0] * self.z + params[1]
        if self.is_softmax:
            return float(host_metrics.softmax_losses(z, self.y.argmax(1)).mean())
        return float(host_metrics.sigmoid_losses(z, self.y).sum(1).mean())

    def probabilities(self, z: np.ndarray) -> np.ndarray:
        if self.is_softmax:
            return np.exp(host_metrics.log_probabilities(z))
        return np.exp(-host_metrics.sigmoid_losses(z, np.ones_like(z)))

    def slope(self, scale: float) -> tuple[float, float]:
        """Return the first and second derivative of the mean loss in a common scale."""
        z, p = self.z, self.probabilities(scale * self.z)
        mean = (p * z).sum(1, keepdims=True) if self.is_softmax else p * z
        return float(((p - self.y) * z).sum() / len(z)), float((p * z * (z - mean)).sum() / len(z))

    def derivatives(self, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gradient `[2 K]` and Hessian `[2 K, 2 K]` of the mean loss of scale and bias."""
        z, p = self.z, self.probabilities(params[0] * self.z + params[1])
        terms = np.concatenate([z * (p - self.y), p - self.y], 1)
        own = p if self.is_softmax else p * (1 - p)
        moments = [(own * z**power).mean(0) for power in (2, 1, 0)]
        hessian = np.block([[np.diag(moments[i + j]) for j in (0, 1)] for i in (0, 1)])
        if self.is_softmax:
            factors = np.concatenate([p * z, p], 1)
            hessian -= factors.T @ factors / len(z)
        return terms.mean(0), hessian


def _find_root(problem: _Problem, low: float, high: float) -> float:
    """Return the logarithm of the scale at which the slope is 0, by Newton within a bracket."""
    x = 0.0
    for _ in range(ITERATIONS):
        slope, curvature = problem.slope(math.exp(x))
        low, high = (x, high) if slope < 0 else (low, x)
        newton = x - slope / (curvature * math.exp(x)) if curvature > 0 else math.inf
        previous, x = x, newton if low < newton < high else (low + high) / 2
        if abs(x - previous) <= 1e-14:
            break
    return x


def _minimize(problem: _Problem, params: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return scale and bias of least mean loss, `[2, K]`, and whether there is an optimum.

    Where the likelihood has none, the loss decreases like exp(-x), whose Newton step stays at 1.
    """
    loss = problem.loss(params)
    for _ in range(ITERATIONS):
        step = _newton_step(problem, params)
        candidate, candidate_loss = _search_line(problem, params, step, loss)
        if not candidate_loss < loss:
            break
        params, loss = candidate, candidate_loss
    step = _newton_step(problem, params)
    converged = bool(np.abs(step).max() <= MAX_LAST_STEP)
    return params + step if converged else params, converged


def _newton_step(problem: _Problem, params: np.ndarray) -> np.ndarray:
    """Return the Newton step, 0 in directions without curvature.

    Each parameter is in units of its own curvature: that of a class without examples is tiny, which
    is not to be without any.
    """
    gradient, hessian = problem.derivatives(params)
    size = np.sqrt(hessian.diagonal())
    size = np.where(size > 0, size, 1)
    curvatures, directions = np.linalg.eigh(hessian / np.outer(size, size))
    is_determined = curvatures > SMALLEST_CURVATURE
    inverse = np.where(is_determined, 1 / np.where(is_determined, curvatures, 1), 0)
    step = directions @ (inverse * (directions.T @ (gradient / size)))
    return -(step / size).reshape(params.shape)


def _search_line(
    problem: _Problem, params: np.ndarray, step: np.ndarray, loss: float
) -> tuple[np.ndarray, float]:
    """Return the first of the parameters a step, half a step, ... away that lower the loss."""
    for halvings in range(30):
        candidate = params + 0.5**halvings * step
        candidate_loss = problem.loss(candidate)
        if candidate_loss < loss:
            return candidate, candidate_loss
    return params, loss
