r"""Steps over a source with an l1 penalty: the sample's own objective takes the place of a model.

The sample's mean loss f, tilted so that its gradient at theta is that of all examples, G,

    S(v) = f(v) + (G - f'(theta)) v + l2 / 2 ||w||^2 + l1 |w|_1 + damping / 2 ||w - w(theta)||^2,

is minimized in memory, by the steps of `solvers.proximal`, and one pass tells whether F falls at
its minimum too; if it does not, the damping grows. The zeros of S settle in a step or two, and the
distance from the optimum falls by the factor by which the sample's curvature is in error, without
a Hessian product. Where this is slow, as the sample is too small for its features, Newton's step
follows on the face of the parameters that are not 0, by conjugate gradients whose preconditioner is
the sample's Hessian: a pass for each product.

Reference: Shamir, Srebro and Zhang, "Communication-efficient distributed optimization using an
approximate Newton-type method" (2014); Jordan, Lee and Yang, "Communication-efficient distributed
statistical inference" (2019).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.solvers import proximal as in_memory
from jaxsoftmax.solvers import steps
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner
from jaxsoftmax.solvers.stream import systems
from jaxsoftmax.solvers.stream.state import Run, State, evaluate_at, least_length

MAX_SAMPLE_STEPS = 30  # in memory, to the optimum of a tilted sample
SAMPLE_ACCURACY = 1e-3  # the least subgradient there, relative to that before the first of them
SAMPLE_FORCING = 0.05  # the residual of their Newton systems, relative to the gradient
MAX_TRIALS = 12  # dampings, or lengths of Newton's step
MIN_DESCENT = 0.1  # of F, relative to that of S
FIRST_DAMPING, MORE_DAMPING = 1e-2, 10  # relative to the mean curvature; and its growth
FAST_GAIN = 0.1  # of the gain of the step before: what is left falls fast, without Newton's steps


def iterate(run: Run, state: State) -> State:
    """Take a step to the optimum of the tilted sample, and Newton's where that is slow."""
    last = state.gain
    state = _step_to_sample(run, state._replace(gain=np.inf))
    is_fast = np.isfinite(state.gain) and state.gain <= FAST_GAIN * last
    return state if is_fast else _step_on_face(run, state)


def _step_to_sample(run: Run, state: State) -> State:
    """Return the state at the optimum of the tilted sample."""
    slack = 8 * np.finfo(float).eps * abs(state.value)
    unit = float(jnp.mean(state.curvature)) * run.spread
    damping, products = state.damping, 0
    for _ in range(MAX_TRIALS):
        theta, gain = run.stream.processes.agree(_minimize_tilted(run, state, damping))
        end, products = evaluate_at(run, theta, state.preconditioner), products + 2
        if end.value <= state.value - MIN_DESCENT * float(gain) + slack:
            state = state.after(end, products)
            return state._replace(gain=float(gain), damping=_relax(damping, unit))
        damping = max(MORE_DAMPING * damping, FIRST_DAMPING * unit)
    return state._replace(products=state.products + products, damping=damping)


def _relax(damping: float, unit: float) -> float:
    """Return the damping to try next after one that was enough."""
    return damping / 3 if damping > 0.1 * FIRST_DAMPING * unit else 0.0


def _minimize_tilted(run: Run, state: State, damping: float) -> tuple[Array, Array]:
    """Return the parameters at the least S, and by how much S falls there."""
    how: dict[str, Any] = {"intercept": run.config.intercept}
    link, theta = run.config.link, state.theta
    problem = _tilt(run, state, damping)
    point, gradient = steps.point_and_gradient(problem, link, theta, **how)
    first, value, length = point.value, np.inf, least_length(problem, point.theta, gradient)
    enough, stiffness = SAMPLE_ACCURACY * length, jnp.ones(1)
    for _ in range(MAX_SAMPLE_STEPS):
        before = value, length
        step = steps.proximal_newton(
            problem, link, point, gradient, _shared(state),
            jnp.full(1, SAMPLE_FORCING * length), stiffness, **how,
        )  # fmt: skip
        point, gradient, stiffness = step.point, step.gradient, step.stiffness
        value, length = float(point.value[0]), least_length(problem, point.theta, gradient)
        if length <= enough or not (value < before[0] or length < before[1]):
            break
    return point.theta, first[0] - value


def _tilt(run: Run, state: State, damping: float) -> Problem:
    """Return the sample's problem S."""
    sample, link, how = run.sample, run.config.link, {"intercept": run.config.intercept}
    _, gradient = steps.point_and_gradient(sample, link, state.theta, **how)
    tilt = state.gradient - gradient
    tilt = tilt.at[..., :-1].add(-damping * state.theta[..., :-1])
    return sample._replace(l2=sample.l2 + damping, tilt=tilt)


def _shared(state: State) -> Preconditioner:
    """Return the preconditioner, which is the shared one with an l1 penalty."""
    assert isinstance(state.preconditioner, Preconditioner)
    return state.preconditioner


def _step_on_face(run: Run, state: State) -> State:
    """Return the state after Newton's step among the parameters that are not 0."""
    free, g = in_memory.face_gradient(run.sample, state.theta, state.gradient)
    d, count = _face_direction(run, state, free, g)
    slope, slack = float(jnp.sum(g * d)), 2 * np.finfo(float).eps * abs(state.value)
    step, products = 1.0, 3 * count
    for _ in range(MAX_TRIALS if slope < 0 else 0):
        theta = _move(run.sample, run.config.link, state.theta, jnp.full(1, step), d)
        end, products = evaluate_at(run, theta, state.preconditioner), products + 2
        if end.value <= state.value + 1e-4 * step * slope + slack:
            return state.after(end, products)
        step *= 0.4
    return state._replace(products=state.products + products)


def _face_direction(run: Run, state: State, free: Array, g: Array) -> tuple[Array, int]:
    """Return Newton's direction on the face, and the number of Hessian products."""
    system, r, scale = systems.system_at(run, state, g, state.damping, free)
    d, products = systems.solve_system(run, state.theta, system, r)
    return d * scale, products


_move = jax.jit(in_memory.move_on_face, static_argnums=1)
