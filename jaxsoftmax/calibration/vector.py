"""Vector scaling: a scale and a bias for each class or label."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import links, validation
from jaxsoftmax.calibration.columns import analyze_columns
from jaxsoftmax.calibration.data import (
    Data,
    prepare_data,
    relative_error,
    spread,
    to_float64_columns,
)
from jaxsoftmax.calibration.result import Fit, apply_affine, make_fit, mean_loss
from jaxsoftmax.calibration.temperature import best_scale
from jaxsoftmax.validation import ArrayLike

# Of the initial common scale times the spread of the logits.
INITIAL_SCALE_LIMIT = 1000.0
# Norm of the gradient at which SciPy's search ends: below it, differences of losses are rounding.
GRADIENT_TOLERANCE = 1e-7
# Of an optimum's last Newton step, in deviations of the logits.
MAX_LAST_STEP = 1e-2
# At a loss below it, which no optimum has, squares of the slope may be below the least number.
VANISHING_LOSS = 1e-100
# Newton steps after which the parameters are scaled by the curvature again.
STEPS_PER_SCALING = 3
# L-BFGS's steps for each Newton step that is allowed.
MAX_GRADIENT_STEPS = 10
# Products with the Hessian for the last Newton step.
MAX_HESSIAN_PRODUCTS = 200


def vector_scaling(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    iterations: int = 100,
) -> Fit:
    r"""Scale and shift each class's logit by least negative log-likelihood, a_k z_k + c_k.

    min over a, c of sum_i w_i loss(a z_i + c, y_i) / sum_i w_i

    Args:
        logits: those of validation data, floats, `[N, K]`, or `[N]` for one binary label.
        targets: as in `temperature_scaling`.
        weights: floats, `[N]`.
        iterations: the maximum number of Newton steps; ten times as many steps of L-BFGS.

    Returns:
        `Fit` with scale `[K]` and bias `[K]`, which sums to 0 for a softmax; scalars for `[N]`. It
        has 2 K parameters: with few examples per class prefer `temperature_scaling`.

    Numerics:
        SciPy's trust-region Newton method with conjugate gradients, in float64, from the best
        common scale, in units of each class: the deviation of its logits from their mean. Where it
        rejects every step, L-BFGS continues. The fit has converged if the last Newton step is
        small, which it never is if the likelihood has no optimum: all examples are right, a class
        has no examples, or some classes are separable.

        What the data do not determine stays at scale 1 and bias 0. A class whose logits differ by
        rounding alone keeps scale 1, and one that is masked in all examples also keeps bias 0. If
        the logits of all classes are linear functions of each other up to rounding, like z and -z,
        the scales are as near to 1 as the optimum allows. In these cases `determined` is False.
        Masks can separate the classes into sets such that no example compares classes of two sets.
        Each set is then a softmax by itself, whose biases sum to 0.

    Raises:
        TypeError: as `temperature_scaling`.
        ValueError: as `temperature_scaling`, and if iterations is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import calibration
        >>> logits, labels = jnp.array([1.0, 1.0, -1.0, -1.0, -1.0]), jnp.array([1, 0, 1, 0, 0])
        >>> fitted = calibration.vector_scaling(logits, labels)
        >>> print(f"{fitted.scale:.3f} {fitted.bias:.3f}")
        0.347 -0.347

    Reference:
        Guo et al. (2017); Platt, "Probabilistic outputs for support vector machines" (1999).
    """
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    data = prepare_data(logits, targets, weights)
    error = relative_error(logits)
    with jax.enable_x64():
        data64 = to_float64_columns(data)
        columns, units = analyze_columns(data64, error)
        start = columns.to_params(_initial_scale(data64, error))
        minimum = _minimize(start, data64._replace(z=units), iterations)
    calibration = columns.to_calibration(
        minimum.params, is_softmax=data.is_softmax, dtype=data.z.dtype
    )
    scale, bias, determined = (
        a.reshape(data.z.shape[1:]) for a in (*calibration, columns.determined)
    )
    return make_fit(
        data,
        scale,
        bias,
        determined,
        converged=minimum.is_optimum,
        decrement=minimum.decrement,
    )


def _initial_scale(data: Data, error: float) -> float:
    """Return the best common scale, or if there is none, one at which losses do not vanish."""
    size = spread(data, error)
    if not size:
        return 1.0
    scale = best_scale(data._replace(z=data.z / size), INITIAL_SCALE_LIMIT).scale
    return (scale if scale < INITIAL_SCALE_LIMIT else 1.0) / size


class _Problem:
    """The mean loss as a function of scaled changes x of given parameters, for SciPy.

    All entries of x have similar curvature. The scale of a class acts on its units minus a center,
    around which it is not coupled to the bias.
    """

    def __init__(self, params: np.ndarray, data: Data) -> None:
        self.params, self.data = params, data
        # Where a unit is -inf the probability is 0.
        self._finite = data._replace(z=jnp.where(data.z == -jnp.inf, 0, data.z))
        self._last_x, self._last_p = np.zeros(params.size), _probabilities(params, data)
        center, curvatures = map(validation.to_host, _curvatures(self._last_p, self._finite))
        self._center, self._size = center, _step_sizes(curvatures)

    def to_params(self, x: np.ndarray) -> np.ndarray:
        """Return the change of scale and bias of the units, `[2, K]`."""
        scale, bias = x.reshape(2, -1) * self._size
        return np.stack([scale, bias - self._center * scale])

    def _transpose(self, gradient: Array) -> np.ndarray:
        """Return the gradient in x from that in scale and bias: the transpose of `to_params`."""
        scale, bias = validation.to_host(gradient)
        return (np.stack([scale - self._center * bias, bias]) * self._size).ravel()

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient(self.params + self.to_params(x), self.data)
        return float(value), self._transpose(gradient)

    def hessian_product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the Hessian at x times v; probabilities are kept, as many v share one x."""
        if not np.array_equal(x, self._last_x):
            params = self.params + self.to_params(x)
            self._last_x, self._last_p = x.copy(), _probabilities(params, self.data)
        return self._transpose(_hessian_product(self._last_p, self.to_params(v), self._finite))


class _Minimum(NamedTuple):
    """Scale and bias of the units of least mean loss, `[2, K]`."""

    params: np.ndarray
    is_optimum: bool
    decrement: float  # Newton's before the last step, or the loss where it vanishes


def _minimize(params: np.ndarray, data: Data, iterations: int) -> _Minimum:
    """Minimize the mean loss by SciPy's search and one more Newton step.

    Differences of losses do not show the last digits, so that SciPy's search ends early, and a
    Newton step completes it. Where the likelihood has no optimum, the loss decreases like exp(-x),
    whose Newton step is 1 however small its slope is, and whose infimum is 0.
    """
    problem, found = _search(params, data, iterations)
    end = problem.params + problem.to_params(found.x)
    if found.fun < VANISHING_LOSS and not np.array_equal(end, params):
        return _Minimum(end, False, found.fun)
    newton = _newton_step(problem, found)
    step = problem.to_params(newton)
    is_optimum = bool(np.max(np.abs(step)) <= MAX_LAST_STEP)
    decrement = float(-0.5 * found.jac @ newton)
    return _Minimum(end + step if is_optimum else end, is_optimum, decrement)


def _search(params: np.ndarray, data: Data, iterations: int) -> tuple[_Problem, Any]:
    """Return the last problem that SciPy's search solved, and its OptimizeResult."""
    from scipy import optimize  # type: ignore[import-untyped]

    for done in range(0, iterations, STEPS_PER_SCALING):
        problem = _Problem(params, data)
        found = optimize.minimize(
            problem.value_and_gradient,
            np.zeros(params.size),
            jac=True,
            hessp=problem.hessian_product,
            method="trust-ncg",
            options={
                "gtol": GRADIENT_TOLERANCE,
                "maxiter": min(STEPS_PER_SCALING, iterations - done),
            },
        )
        if found.success:
            break
        params = params + problem.to_params(found.x)
        if not found.x.any():
            return problem, _search_by_gradients(problem, MAX_GRADIENT_STEPS * iterations)
    return problem, found


def _search_by_gradients(problem: _Problem, steps: int) -> Any:
    """Continue where every Newton step was rejected.

    This happens where few examples hold all the curvature: nearby, others hold it.
    """
    from scipy import optimize

    return optimize.minimize(
        problem.value_and_gradient,
        np.zeros(problem.params.size),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": GRADIENT_TOLERANCE, "ftol": 0, "maxiter": steps, "maxfun": 2 * steps},
    )


def _newton_step(problem: _Problem, found: Any) -> np.ndarray:
    """Return the Newton step at the end of the search, by conjugate gradients."""
    from scipy.sparse import linalg  # type: ignore[import-untyped]

    product = functools.partial(problem.hessian_product, found.x)
    hessian = linalg.LinearOperator((found.x.size, found.x.size), matvec=product)
    return linalg.cg(hessian, -found.jac, rtol=1e-3, maxiter=MAX_HESSIAN_PRODUCTS)[0]


def _step_sizes(curvatures: np.ndarray) -> np.ndarray:
    """Return changes of the parameters that have similar effects on the mean loss."""
    smallest = 1e-8 * curvatures.max()
    return (
        1 / np.sqrt(np.maximum(curvatures, smallest)) if smallest > 0 else np.ones_like(curvatures)
    )


@jax.jit
def _value_and_gradient(params: Array, data: Data) -> tuple[Array, Array]:
    return jax.value_and_grad(lambda x: mean_loss(x[0], x[1], data))(params)


@jax.jit
def _probabilities(params: Array, data: Data) -> Array:
    z = apply_affine(params[0], params[1], data.z)
    return links.softmax(z) if data.is_softmax else links.sigmoid(z)


@jax.jit
def _hessian_product(p: Array, tangent: Array, data: Data) -> Array:
    """Return the Hessian of the mean loss at probabilities p times a tangent, `[2, K]`."""
    dz = tangent[0] * data.z + tangent[1]
    mean = jnp.sum(p * dz, 1, keepdims=True) if data.is_softmax else p * dz
    return _moment_sums(p * (dz - mean), data)


@jax.jit
def _curvatures(p: Array, data: Data) -> tuple[Array, Array]:
    """Return the units' centers, weighted by curvature, and the Hessian's diagonal around them."""
    first_moment, total = _moment_sums(p * (1 - p), data)
    center = first_moment / jnp.where(total == 0, 1, total)
    centered = data._replace(z=data.z - center[None])
    second_moment = _moment_sums(p * (1 - p) * centered.z, centered)[0]
    return center, jnp.stack([second_moment, total])


def _moment_sums(x: Array, data: Data) -> Array:
    """Return the sums over the examples of x z and of x, weighted as in the mean loss."""
    z, _, w = data
    share = (w / jnp.sum(w))[:, None] / (1 if data.is_softmax else z.shape[1])
    return jnp.stack([jnp.sum(share * x * z, 0), jnp.sum(share * x, 0)])
