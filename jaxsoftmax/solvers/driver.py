r"""The loop around a method's steps: precision, certificates, and the reasons for which it ends.

Float32 features are minimised in float32 for as long as that makes progress, then with float64
parameters and gradients, whose Newton systems are still solved in float32, and last with float64
features. Each lane ends with its own certificate; the others go on without it, in a problem of half
the width as soon as half of them have ended.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.solvers import certificate, class_preconditioner, prepare, steps
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner
from jaxsoftmax.solvers.sparse import Sparse

WORTH = 2**25  # features times classes times lanes: above, a narrower program is worth compiling
SAMPLE = 4  # a quarter of the examples gives the Hessian of the first iterations
FAR = 1e-2  # as long as Newton's decrement is above this share of the objective
PATIENCE = 3  # iterations without progress after which precision, or the lane, has come to its end
DRIFT = 1e-3  # of the gap: how far rounding may take the scores before they are computed anew
LOOSE, TIGHT = 0.3, 1e-3  # of a Newton system: residual relative to the gradient


class Outcome:
    """What is known of each lane, in NumPy arrays whose first axis is that of the lanes."""

    def __init__(self, theta: Array) -> None:
        lanes = len(theta)
        self.theta = np.array(theta, np.float64)
        self.value, self.gap, self.floor, self.gradient_norm = np.full((4, lanes), np.inf)
        self.iterations, self.products = np.zeros((2, lanes), int)
        self.converged = np.zeros(lanes, bool)
        self.reason = np.full(lanes, "", object)
        self.scores: Scores | None = None  # of theta, where the last steps have left them


class Scores(NamedTuple):
    """Scores of parameters, and what has rounded them since the features were last asked."""

    values: Array  # [L, K, N]
    rounded: float  # in units of eps times their size: a bound


def minimise(
    problem: problems.Problem,
    head: problems.Head,
    theta: Array,
    *,
    gap: float,
    method: str,
    intercept: bool,
    pre: Preconditioner,
    limit: int,
    dtype: str,
    memory: int,
    start: float,
    scores: Scores | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> Outcome:
    """Minimise every lane to a certified relative gap; `dtype` is that of the result.

    Known scores of theta save a pass over the features. A callback is told the seconds since
    `start`, on the performance counter.
    """
    outcome = Outcome(theta)
    lanes = np.arange(len(theta))
    for tier in _tiers(problem, memory):
        if not lanes.size:
            break
        run = _Run(
            problem, head, gap, method, intercept, pre, dtype, outcome, lanes, tier, memory, scores
        )
        if run.ready().all():  # a path may have led to where nothing is left to do
            run.finish()
        while run.lanes.size and run.iteration() < limit and not run.stuck():
            if callback is not None:
                callback(run.report() | {"seconds": time.perf_counter() - start})
        lanes = run.lanes
        run.certify(lanes)
        run.leave()
        scores = None  # they were of where the first one started
        lanes = lanes[~outcome.converged[lanes] & (outcome.reason[lanes] == "")]
        lanes = lanes[outcome.iterations[lanes] < limit]
    _explain(problem, outcome, gap, limit, dtype)
    return outcome


def _tiers(problem: problems.Problem, memory: int) -> list[tuple[Any, Any]]:
    """The dtypes of features and parameters to go through."""
    size = problem.features.size
    if problem.features.dtype == jnp.float64:
        return [(jnp.float64, jnp.float64)]
    last = [(jnp.float64, jnp.float64)] if 8 * size <= memory else []
    return [(jnp.float32, jnp.float32), (jnp.float32, jnp.float64), *last]


class _Run:
    """The lanes that are not done yet, in one precision."""

    def __init__(
        self,
        problem: problems.Problem,
        head: problems.Head,
        gap: float,
        method: str,
        intercept: bool,
        pre: Preconditioner,
        dtype: str,
        outcome: Outcome,
        lanes: np.ndarray,
        tier: tuple[Any, Any],
        memory: int,
        scores: Scores | None,
    ) -> None:
        features, self.numbers = tier
        self.original = problem
        self.whole = problem._replace(features=problem.features.astype(features))
        self.of_all = jax.tree.map(lambda a: a.astype(features), pre)
        self.memory = memory
        self.head, self.gap, self.dtype, self.outcome = head, gap, dtype, outcome
        self.method, self.how = steps.METHODS[method], {"intercept": intercept}
        self.lanes = lanes
        self.trust = np.ones(len(outcome.theta))  # below 1 where the estimate was too low
        self.idle = np.zeros(len(outcome.theta), int)
        self.sharpened = 0
        self.best = np.full((2, len(outcome.theta)), np.inf)  # least value, least estimate
        self._enter(scores)

    @functools.cached_property
    def cheap(self) -> steps.Sample | None:
        """A quarter of the examples while far from the optimum; float32 for float64 features."""
        if self.method is not steps.newton_cg or self._small():
            return None
        if self.numbers == jnp.float32:
            return None if isinstance(self.whole.features, Sparse) else _sampled(self.whole)
        if self.original.features.dtype == jnp.float64:
            return steps.Sample(
                self.whole._replace(features=self.whole.features.astype(jnp.float32)), None
            )
        return None

    def _part(self) -> bool:
        """Whether the cheaper problem is one of fewer examples."""
        return self.cheap is not None and self.cheap.rows is not None

    def _small(self) -> bool:
        """Whether a step takes less time than to think about it."""
        size = self.whole.features.size * self.outcome.theta.shape[1] * len(self.lanes)
        return size <= prepare.SMALL

    def _sample(self) -> steps.Sample | None:
        """The cheaper problem of the lanes that are left."""
        if self.cheap is None:
            return None
        return self.cheap._replace(problem=take(self.cheap.problem, self.slots))

    def _enter(self, known: Scores | None = None) -> None:
        """Put the remaining lanes, and copies of one of them up to a power of two, side by side."""
        width = 1 << (len(self.lanes) - 1).bit_length()
        width = min(width, len(self.outcome.theta))
        self.slots = np.resize(self.lanes, width)
        self.real = np.arange(width) < len(self.lanes)
        self.problem = take(self.whole, self.slots)
        theta = jnp.asarray(self.outcome.theta[self.slots], self.numbers)
        if known is None or known.values.dtype != theta.dtype or self._drifted(known.rounded):
            z, self.rounded = None, 0.0
        else:
            z, self.rounded = known
        self.point, self.g = steps.evaluate(self.problem, self.head, theta, z, **self.how)
        self.state: Any = None
        self.count = 2 if z is None else 1
        self.pre: Preconditioner | Blocks = self.of_all
        self.spent = 0  # on Newton systems since the preconditioner was made
        if width < len(self.outcome.theta) and self._part():
            self.cheap = None  # lanes have retired: what is left is near its end
        self._measure(np.full(width, np.inf))

    def iteration(self) -> int:
        """One step of every lane that is not done; the number of steps that have been made."""
        step = self.method(
            self.problem, self.head, self.point, self.g, self.pre, self._goal(), self.state,
            self._sample(), **self.how,
        )  # fmt: skip
        self.point, self.g, self.state = step.point, step.gradient, step.memory
        self.count, self.rounded = int(step.products), self.rounded + 1
        self.outcome.iterations[self.lanes] += 1
        self.spent += self.count
        decrement = np.asarray(step.decrement, float)
        near = not np.any(decrement[self.real] > FAR * np.abs(self.value[self.real]))
        if near and self._part():
            self.cheap = None
        self._measure(decrement)
        self.finish()
        self._sharpen()
        return int(self.outcome.iterations.max())

    def _sharpen(self) -> None:
        """Make the preconditioner of where the lanes are, once as much was spent as it takes."""
        if self.method is not steps.newton_cg or self._small() or not self.lanes.size:
            return
        lanes, classes = self.point.theta.shape[:2]
        # Each is of use for longer than the one before, because the lanes come to rest.
        worth = (
            class_preconditioner.price(self.problem, lanes, classes, self.memory)
            * 2**self.sharpened
        )
        if self.spent < worth:
            return
        mass = problems.mass(self.problem, self.head, self.point)
        found = class_preconditioner.build(self.problem, self.head, mass)
        self.pre, self.spent = found or self.pre, 0
        self.sharpened += 1

    def _measure(self, decrement: np.ndarray) -> None:
        """Fetch the figures on which the loop decides, and note which lanes make progress."""
        l2, l1 = _penalties(self.problem)
        pure = bool(np.any((l2 == 0) & (l1 > 0)))
        value, estimate, norm = _figures(self.problem, self.head, self.point, self.g, pure=pure)
        self.value, self.norm = np.asarray(value, float), np.asarray(norm, float)
        self.estimate = np.where(l2 + l1 > 0, np.asarray(estimate, float), decrement)
        self.outcome.products[self.lanes] += self.count
        eps = float(jnp.finfo(self.numbers).eps)
        for slot, lane in enumerate(self.slots[self.real]):
            value, estimate = self.value[slot], self.estimate[slot]
            least, lowest = self.best[:, lane]
            better = value + 4 * eps * abs(value) < least or estimate < 0.5 * lowest
            self.idle[lane] = 0 if better else self.idle[lane] + 1
            self.best[:, lane] = min(value, least), min(estimate, lowest)

    def _goal(self) -> Array:
        """The residual that each Newton system may leave; inf for a lane that is done."""
        if not hasattr(self, "first"):
            self.first = np.where(self.norm > 0, self.norm, 1)
        start = self.first[: len(self.norm)]
        # Newton's method leaves the square of what is missing: the system may leave half of it.
        missing = np.sqrt(self.estimate / np.maximum(np.abs(self.value), np.finfo(float).tiny))
        far = np.minimum(np.sqrt(self.norm / start), 0.5 * missing)
        loose = np.clip(far, TIGHT, LOOSE) * self.norm
        l2, trust = _penalties(self.problem)[0], self.trust[self.slots]
        enough = 0.8 * np.sqrt(2 * l2 * self.gap * trust * np.abs(self.value))
        goal = np.maximum(np.maximum(loose, np.minimum(enough, LOOSE * self.norm)), 0)
        return jnp.asarray(np.where(self.real, goal, np.inf), self.numbers)

    def stuck(self) -> bool:
        """Whether no lane that is left makes progress in this precision."""
        idle = bool(np.all(self.idle[self.lanes] >= PATIENCE))
        if idle and self.cheap is not None:
            self.cheap, self.idle[:] = None, 0
            return False
        return idle

    def ready(self) -> np.ndarray:
        """Which slots hold no lane that has still to go on, by what is known without a product."""
        target = self.gap * self.trust[self.slots] * np.abs(self.value)
        done = (self.estimate <= 0.9 * target) | ~np.isfinite(self.value)
        return ~self.real | done | np.asarray(self._separated())

    def finish(self) -> None:
        """Certify the lanes whose estimate says that they are done; go on with the others."""
        ready = self.real & self.ready()
        if not ready.any():
            return
        self.certify(self.slots[ready])
        tried = self.slots[ready]
        self.trust[tried] *= 0.2
        done = self.outcome.converged | (self.outcome.reason != "")
        left = self.lanes[~done[self.lanes]]
        self.real &= ~done[self.slots]
        large = self.whole.features.size * self.point.theta.shape[1] * len(self.slots) > WORTH
        narrow = large and 0 < 2 * len(left) <= len(self.slots)
        if narrow:
            self._keep()
        self.lanes = left
        if narrow:
            first = getattr(self, "first", None)
            self._enter()
            if first is not None:
                self.first = np.resize(first, len(self.slots))

    def _separated(self) -> np.ndarray | Array:
        """Which lanes have no penalty and classify everything: their infimum is not attained."""
        free = _free(self.problem)
        if not free.any():
            return free
        return free & np.asarray(_margin(self.problem, self.head, self.point.scores) > 0)

    def _keep(self) -> None:
        """Write the current parameters of the lanes that are not done into the outcome."""
        theta = np.asarray(self.point.theta, np.float64)
        self.outcome.theta[self.slots[self.real]] = theta[self.real]

    def certify(self, lanes: np.ndarray) -> None:
        """Certify some lanes; those that reach the gap are done."""
        self._keep()
        if not lanes.size:
            return
        slots = [int(np.flatnonzero(self.real & (self.slots == lane))[0]) for lane in lanes]
        padded = np.resize(slots, len(self.slots))  # so that one width is compiled
        problem = take(self.original, self.slots[padded])
        found = self._certificate(problem, padded)
        free = _free(problem)
        separated = np.asarray(self._separated())[padded] & free
        out = self.outcome
        found = jax.tree.map(np.asarray, found)
        for i, lane in enumerate(lanes):
            value = found.value[i]
            out.theta[lane] = found.theta[i]
            out.value[lane], out.gradient_norm[lane] = value, found.gradient_norm[i]
            size = abs(value) or 1.0
            out.gap[lane], out.floor[lane] = found.gap[i] / size, found.floor[i] / size
            out.products[lane] += found.products
            if separated[i]:
                out.reason[lane] = SEPARATED
            elif not np.isfinite(value):
                out.reason[lane] = OVERFLOW
            elif free[i]:
                out.converged[lane] = self.estimate[padded[i]] <= self.gap * size
            else:
                out.converged[lane] = out.gap[lane] <= self.gap

    def _certificate(self, problem: problems.Problem, slots: np.ndarray) -> certificate.Certificate:
        """What can be proven of some slots, whose problem this is."""
        if self.dtype == "float32":
            theta = self.point.theta[slots]
            # Rounded parameters are judged by the predictions of those that were not.
            trial = theta if theta.dtype == jnp.float64 else None
            return certificate.certify_rounded(
                problem, self.head, theta, trial, dtype=self.dtype, **self.how
            )
        point, g, more = self.point, self.g, 0
        if not np.array_equal(slots, np.arange(len(self.slots))):
            point, g = jax.tree.map(lambda a: a[slots], (point, g))
        if self._drifted(self.rounded):
            point, g = steps.evaluate(problem, self.head, point.theta, None, **self.how)
            more = 2
        goal = jnp.asarray(self.gap * np.abs(self.value[slots]))
        found = certificate.certify(problem, self.head, point, g, goal, **self.how)
        return found._replace(products=found.products + more)

    def _drifted(self, rounded: float) -> bool:
        """Whether the scores may be further from those of the parameters than the gap allows."""
        return rounded > 3 and rounded * float(jnp.finfo(self.numbers).eps) > DRIFT * self.gap

    def leave(self) -> None:
        """Leave the scores to who goes on from here, where they are those of the outcome."""
        if np.array_equal(np.asarray(self.point.theta), self.outcome.theta):
            self.outcome.scores = Scores(self.point.scores, self.rounded)

    def report(self) -> dict[str, Any]:
        """What a callback is told of the lanes that are not done: no array of JAX's is among it.

        One of float64 is none that a user can work with where float64 is not enabled.
        """
        slots = np.flatnonzero(self.real)
        return {
            "iteration": int(self.outcome.iterations.max()),
            "lanes": self.slots[slots].tolist(),
            "objective": self.value[slots].tolist(),
            "estimate": self.estimate[slots].tolist(),
            "products": int(self.outcome.products.max()),
            "theta": np.asarray(self.point.theta[slots], np.float64),
        }


def _sampled(problem: problems.Problem) -> steps.Sample:
    """A random part of the examples, the same one each time."""
    assert not isinstance(problem.features, Sparse)  # whose rows are not at hand
    n = problem.features.shape[0]
    rows = jnp.asarray(np.sort(np.random.default_rng(1).permutation(n)[: n // SAMPLE]))
    weights = problem.weights[:, rows]
    part = problem._replace(
        features=problem.features[rows],
        targets=problem.targets[..., rows],
        weights=weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-300),
    )
    return steps.Sample(part, rows)


def take(problem: problems.Problem, lanes: np.ndarray) -> problems.Problem:
    """The problem of some of the lanes."""
    if np.array_equal(lanes, np.arange(len(problem.weights))):
        return problem
    shared = len(problem.targets) == 1 and len(problem.weights) > 1
    return problem._replace(
        targets=problem.targets if shared else problem.targets[lanes],
        weights=problem.weights[lanes],
        l2=problem.l2[lanes],
        l1=problem.l1[lanes],
    )


def _penalties(problem: problems.Problem) -> tuple[np.ndarray, np.ndarray]:
    """l2 and l1 on the host, where a few numbers are compared faster."""
    return np.asarray(problem.l2), np.asarray(problem.l1)


def _free(problem: problems.Problem) -> np.ndarray:
    """Which lanes have no penalty."""
    l2, l1 = _penalties(problem)
    return (l2 == 0) & (l1 == 0)


@jax.jit(static_argnames=("head", "pure"))
def _figures(
    problem: problems.Problem, head: problems.Head, at: problems.Point, g: Array, *, pure: bool
) -> tuple[Array, Array, Array]:
    """Value, estimated gap and gradient norm; only pure l1 needs the examples for its estimate."""
    gap = certificate.estimate(problem, head, at, g, pure=pure)
    slope = certificate.steepest(problem, at.theta, g)
    return at.value, gap, jnp.sqrt(jnp.sum(slope**2, (1, 2)))


@jax.jit(static_argnames="head")
def _margin(problem: problems.Problem, head: problems.Head, z: Array) -> Array:
    """The least margin of an example that counts, `[L]`: above 0 everything is classified."""
    if head == "softmax":
        t = problems.expected(problem.targets, z.shape[1], z.dtype)
        own = jnp.max(jnp.where(t > 0.5, z, -jnp.inf), 1)
        margin = own - jnp.max(jnp.where(t > 0.5, -jnp.inf, z), 1)
    else:
        t = problem.targets
        margin = jnp.min(jnp.where(t > 0.5, z, -z), 1)
    # Targets between 0 and 1 are never fitted with loss 0.
    margin = jnp.where(jnp.any((t > 0) & (t < 1), 1), -jnp.inf, margin)
    return jnp.min(jnp.where(problem.weights > 0, margin, jnp.inf), -1)


SEPARATED = (
    "a linear model separates the classes and there is no penalty: the objective falls to 0 as the "
    "parameters grow without end, so that no optimum exists; set C or alpha > 0"
)
OVERFLOW = "the objective is not finite: scale the features, or penalise more"


def _explain(problem: problems.Problem, out: Outcome, gap: float, limit: int, dtype: str) -> None:
    """Say for each lane why it ended."""
    free = _free(problem)
    for lane in range(len(out.theta)):
        if out.reason[lane]:
            continue
        if out.converged[lane] and free[lane]:
            why = (
                f"the Newton decrement is below {gap:g} of the objective; without a penalty no "
                "bound on the gap exists, set C or alpha > 0 for one"
            )
        elif out.converged[lane]:
            why = f"the certified gap is at most {gap:g}"
        elif out.iterations[lane] >= limit:
            why = f"{limit} iterations were not enough: raise max_iterations, gap, or the penalty"
        elif dtype == "float32" and not free[lane]:
            why = (
                "no further progress: float32 parameters or products do not resolve this gap; "
                "pass float64 features, scale them, or ask for a larger gap"
            )
        else:
            why = (
                "no further progress in float64: scale the features, penalise more, or ask for a "
                "larger gap"
            )
        out.reason[lane] = why
