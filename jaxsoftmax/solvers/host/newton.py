r"""Newton's direction: conjugate gradients with a preconditioner that is made better as it pays.

A preconditioner of the current point costs as much as some Hessian products, one of an earlier
point nothing. So conjugate gradients begin with the one at hand, and once they have taken as many
products as a better one costs with its use, that one is built: the same level at the current point,
or the next level. The time is then at most about twice that of the best choice. An exact
preconditioner ends them at once, which is Newton's method by Cholesky's. They end too where what is
left of the step is little beside the error that it has because the Hessian changes along it. At the
start from 0 all probabilities are equal, and the shared matrix is exact.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from jaxsoftmax.solvers.host import preconditioner as preconditioners
from jaxsoftmax.solvers.host import problem as problems
from jaxsoftmax.solvers.host.preconditioner import Level, Preconditioner
from jaxsoftmax.solvers.host.problem import HostProblem, Point

MAX_PRODUCTS = 500  # Hessian products with one preconditioner
MAX_EXACT_PRODUCTS = 12  # with an exact one, when more do not help against rounding
MAX_LAST_PRODUCTS = 20  # of a step that replaces about as many quasi-Newton steps
# Of the decrease of a step, its error is about this factor times the decrease over the objective.
STEP_ERROR, MAX_LEFT = 5.0, 0.2  # and at most this share of it may be left


class Choice(NamedTuple):
    """The preconditioner at hand, and those that may be built."""

    levels: list[Level]
    costs: list[float]  # in Hessian products
    waits: list[float]  # products of the level before, after which each is built
    exact: bool  # whether the last level is the Hessian
    at: int = 0  # which of the levels is at hand
    current: Preconditioner | None = None
    fresh: bool = False  # whether it was built at the current point

    @classmethod
    def initial(cls, problem: HostProblem, classes: int, memory: int) -> Self:
        """Return the choice before any preconditioner is built."""
        levels = preconditioners.levels(problem, classes, memory)
        product = preconditioners.product_seconds(problem, classes)
        costs = [preconditioners.seconds(problem, classes, level) / product for level in levels]
        shared = preconditioners.total_seconds(problem, classes, Level.SHARED) / product
        waits = [
            # Each use of a shared matrix costs much beside a product with few rows.
            shared if level == Level.SHARED else cost
            for level, cost in zip(levels, costs, strict=True)
        ]
        exact = levels[-1] == preconditioners.exact_level(problem, classes)
        return cls(levels, costs, waits, exact)

    def at_new_point(self, problem: HostProblem, point: Point) -> Self:
        """Return the choice with the preconditioner that an iteration begins with."""
        old = self._replace(fresh=False)
        return old if old.allowance else old.improve(problem, point)

    @property
    def solves(self) -> bool:
        """Whether the preconditioner is the inverse of the Hessian."""
        return self.is_best and self.exact and self.current is not None and self.current.exact

    @property
    def is_best(self) -> bool:
        """Whether no better preconditioner exists."""
        return self.fresh and self.at + 1 == len(self.levels)

    @property
    def allowance(self) -> int:
        """The products that may be taken before a better preconditioner is built."""
        if self.is_best:
            return MAX_EXACT_PRODUCTS if self.exact else MAX_PRODUCTS
        if self.fresh:
            direct = self.exact and self.costs[-1] <= preconditioners.MAX_DIRECT_COST
            return 0 if direct else int(min(self.waits[self.at + 1], MAX_PRODUCTS))
        cost, exact = self.costs[self.at], self.exact and self.at + 1 == len(self.levels)
        # An exact one takes no products; another one of an earlier point is nearly as good.
        cheap = cost <= (preconditioners.CHEAP if exact else 1)
        return 0 if self.current is None or cheap else int(min(max(2, cost), MAX_PRODUCTS))

    def improve(self, problem: HostProblem, point: Point) -> Self:
        """Return the choice with a better preconditioner."""
        at = self.at + 1 if self.fresh else self.at
        level = self.levels[at]
        if level > Level.SHARED and point.lead is not None and point.lead.all():
            level = Level.SHARED  # which is the Hessian where all probabilities are equal
        built = preconditioners.build(problem, point, level)
        return self._replace(at=at, current=built, fresh=True)


class Iterate(NamedTuple):
    """An iterate of conjugate gradients on H d = -g."""

    d: np.ndarray
    r: np.ndarray  # the residual -g - H d
    products: int = 0
    decrease: float = 0.0  # of the quadratic model
    left: float = np.inf  # about by how much the rest of the step would decrease it

    def suffices(self, size: float) -> bool:
        """Return whether what is left is little beside what the step's own error will leave."""
        return self.left <= self.decrease * min(MAX_LEFT, STEP_ERROR * self.decrease / size)


def direction(
    problem: HostProblem,
    point: Point,
    g: np.ndarray,
    tolerance: float,
    choice: Choice,
    *,
    size: float = np.inf,
) -> tuple[Iterate, Choice]:
    """Return d with ||H d + g|| <= tolerance, and the choice.

    Of an objective of some size d may be less accurate, where that leaves less than its error.
    """
    choice = choice.at_new_point(problem, point)
    if choice.solves:
        assert choice.current is not None
        d = preconditioners.apply(problem, choice.current, -g)
        return Iterate(d, np.zeros_like(g), left=0.0), choice
    last = Iterate(np.zeros_like(g), -g)
    norm = _residual_norm(problem, point)

    def done(iterate: Iterate) -> bool:
        return norm(iterate.r) <= tolerance or iterate.suffices(size)

    while not done(last):
        if choice.allowance:
            assert choice.current is not None
            own = functools.partial(preconditioners.apply, problem, choice.current)
            limit = choice.allowance
            last = _conjugate_gradients(problem, point, own, last, done, limit)
        if choice.is_best or done(last):
            break
        choice = choice.improve(problem, point)
    return last, choice


def _residual_norm(problem: HostProblem, point: Point) -> Callable[[np.ndarray], float]:
    """Return the norm of residuals, in which that of an intercept has its weight in the gap.

    An intercept's residual r counts in the gap as r^2 / c, for its mean curvature c, a weight's as
    r^2 / l2.
    """
    if not problem.intercept:
        return lambda r: float(np.linalg.norm(r))
    c = (point.probability * point.complement) @ problem.weights
    c = np.full_like(c, c.mean()) if problem.link == "softmax" else c
    excess = np.maximum(problem.l2 / np.where(c > 0, c, np.inf) - 1, 0)
    return lambda r: float(np.sqrt(np.vdot(r, r) + excess @ r[:, -1] ** 2))


def solve_system(
    problem: HostProblem,
    point: Point,
    g: np.ndarray,
    tolerance: float,
    precondition: Callable[[np.ndarray], np.ndarray],
) -> Iterate:
    """Return d with ||H d + g|| <= tolerance, by a preconditioner that stays as it is."""
    start, norm = Iterate(np.zeros_like(g), -g), _residual_norm(problem, point)

    def done(iterate: Iterate) -> bool:
        return norm(iterate.r) <= tolerance

    limit = MAX_LAST_PRODUCTS
    return _conjugate_gradients(problem, point, precondition, start, done, limit)


def _conjugate_gradients(
    problem: HostProblem,
    point: Point,
    precondition: Callable[[np.ndarray], np.ndarray],
    start: Iterate,
    done: Callable[[Iterate], bool],
    limit: int,
) -> Iterate:
    """Iterate from `start` until done, or to the limit of Hessian products."""
    d, r, products, decrease, left = start
    p, rz = np.zeros_like(r), np.inf
    for number in range(1, limit + 1):
        z = precondition(r)
        last, rz = rz, float(np.vdot(r, z))
        if not rz > 0:  # nothing is left but rounding
            break
        p = z + (rz / last) * p
        h = problems.hessian_product(problem, point, p)
        products += 1
        curvature = float(np.vdot(p, h))
        if not curvature > 0:
            break
        length = rz / curvature
        d, r = d + length * p, r - length * h
        # The last decrease times the steps taken stands for those to come: Nash and Sofer (1990).
        decrease, left = decrease + 0.5 * length * rz, 0.5 * number * length * rz
        if done(Iterate(d, r, products, decrease, left)):
            break
    return Iterate(d, r, products, decrease, left)
