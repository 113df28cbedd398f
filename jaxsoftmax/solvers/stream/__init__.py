"""The engine for sources: Newton's method in passes over examples that are larger than memory.

A pass reads all examples, a window at a time, and keeps sums of the size of the parameters. One
pass gives the objective and its gradient, another one each Hessian product, for which the scores of
a window are computed again; one more gives the certificate. A sample that is held in memory gives
the start, and its Hessian is the preconditioner, so that few passes are needed. If the sample has
all examples, they are fitted in memory.

Its parts: `processes` (who reads which rows, and sums over all), `examples` (what a source holds,
as the solvers take it), `survey` (the first pass: what must be known of all examples), `sums` (the
passes), `certificate`, `state` (where the fit is), `systems` (Newton systems), `proximal` (steps
with an l1 penalty), and `driver`, the loop.
"""

from jaxsoftmax.solvers.stream.driver import minimize
from jaxsoftmax.solvers.stream.processes import find_processes
from jaxsoftmax.solvers.stream.survey import Stream, open_stream

__all__ = ["Stream", "find_processes", "minimize", "open_stream"]
