r"""The quasi-Newton direction: BFGS with limited memory, with the first preconditioner inside.

A step costs the two products of a line search and a gradient, while Newton's also has those of its
conjugate gradients, which a new system forgets. So where Newton's systems take many products and
the problem is not badly conditioned, this takes half as many. Where it is, the progress of the
first steps shows it, and Newton's method continues from the point they have reached. Where it is
not, the last steps are one step of Newton's, whose system this approximation of the inverse Hessian
preconditions; see Morales and Nocedal, "Automatic preconditioning by limited memory quasi-Newton
updating" (2000).

With the last changes of parameters S and of gradients Y `[m, K P]`, the preconditioner M, and R and
D the upper triangle and the diagonal of S Y', the inverse Hessian is approximated by

    c M + S' R^-T (D + c Y M Y') R^-1 S - c (S' R^-T Y M + M Y' R^-1 S),    c = s y / y M y',

the last of them in c. Reference: Byrd, Nocedal and Schnabel, "Representations of quasi-Newton
matrices and their use in limited memory methods" (1994), (3.1).
"""

from typing import NamedTuple, Self

import numpy as np
from scipy.linalg import lapack  # type: ignore[import-untyped]

from jaxsoftmax.solvers.host import preconditioner as preconditioners
from jaxsoftmax.solvers.host.newton import Choice
from jaxsoftmax.solvers.host.preconditioner import Level, Preconditioner
from jaxsoftmax.solvers.host.problem import HostProblem

MAX_SLOPE_RATIO = 0.9  # of the line search: a step is cheaper than a second trial
MEMORY = 10  # steps that are remembered
WINDOW = 8  # steps whose progress predicts that of the others
NEWTON_STEPS = 4  # that Newton's method takes, each with a better preconditioner
NEWTON_PRODUCTS = 4.0  # of each of them


class History(NamedTuple):
    """The last steps; rows are flat."""

    preconditioner: Preconditioner  # M
    limit: float  # number of steps from which Newton's method is cheaper
    gradient: np.ndarray  # g, the last one: [K P]
    preconditioned: np.ndarray  # M g
    s: np.ndarray  # changes of theta: [m, K P]
    y: np.ndarray  # changes of g
    z: np.ndarray  # M y
    estimates: tuple[float, ...] = ()  # of the gap after each step

    @classmethod
    def begin(cls, problem: HostProblem, choice: Choice, gradient: np.ndarray) -> Self:
        """Return the history before the first step, with the preconditioner at hand."""
        assert choice.current is not None
        limit = 0.5 * NEWTON_STEPS * (choice.costs[1] + NEWTON_PRODUCTS)
        z = preconditioners.apply(problem, choice.current, gradient).ravel()
        none = np.empty((0, gradient.size))
        return cls(choice.current, limit, gradient.ravel(), z, none, none, none)

    def add(
        self, problem: HostProblem, step: np.ndarray, gradient: np.ndarray, estimate: float
    ) -> Self:
        """Return the history after a step."""
        g = gradient.ravel()
        z = preconditioners.apply(problem, self.preconditioner, gradient).ravel()
        rows = (step.ravel(), g - self.gradient, z - self.preconditioned)
        s, y, z_rows = (
            np.concatenate([past[-MEMORY + 1 :], row[None]])
            for past, row in zip((self.s, self.y, self.z), rows, strict=True)
        )
        return self._replace(
            gradient=g,
            preconditioned=z,
            s=s,
            y=y,
            z=z_rows,
            estimates=(*self.estimates, estimate),
        )

    def is_on_course(self, target: float) -> bool:
        """Return whether the rate of the last steps leads to the target before the limit."""
        done = len(self.estimates)
        if done <= WINDOW:
            return True
        before, now = self.estimates[-1 - WINDOW], min(self.estimates[-WINDOW:])
        if not 0 < target < now < before:
            return now <= target
        more = WINDOW * np.log(now / target) / np.log(before / now)
        return bool(done + more <= self.limit)


def suits(problem: HostProblem, choice: Choice) -> bool:
    """Return whether quasi-Newton steps come first.

    They do not where Newton's method is cheap: where the first preconditioner is the Hessian or
    distinguishes the classes. Without a penalty, only Newton's steps show how far the optimum is.
    """
    return problem.l2 > 0 and len(choice.levels) > 1 and choice.levels[0] <= Level.SHARED


def direction(history: History) -> np.ndarray:
    """Return minus the approximate inverse Hessian times the gradient, flat."""
    return -_inverse_times(history, history.gradient, history.preconditioned)


def apply_inverse(problem: HostProblem, history: History, r: np.ndarray) -> np.ndarray:
    """Return the approximate inverse Hessian times r, `[K, P]`."""
    z = preconditioners.apply(problem, history.preconditioner, r)
    return _inverse_times(history, r.ravel(), z.ravel()).reshape(r.shape)


def _inverse_times(history: History, g: np.ndarray, mg: np.ndarray) -> np.ndarray:
    """Return the approximate inverse Hessian times g, given M g."""
    s, y, z = history.s, history.y, history.z
    if not len(s):
        return mg
    products, metric = s @ y.T, y @ z.T
    scale = products[-1, -1] / metric[-1, -1]
    along = lapack.dtrtrs(products.T, s @ g, lower=1, trans=1)[0]
    ahead = products.diagonal() * along + scale * (metric @ along - z @ g)
    return lapack.dtrtrs(products.T, ahead, lower=1)[0] @ s - scale * (along @ z - mg)
