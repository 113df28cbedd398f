"""The engine for sources: a quasi-Newton method in passes over examples larger than memory.

A pass reads all examples, a window at a time, and keeps sums of the size of the parameters. One
pass gives the objective, its gradient, and a sample, drawn by the curvature of the examples, whose
Hessian in memory makes the next direction. One more gives the certificate. The start is the optimum
of a sample. If the sample has all examples, they are fitted in memory.

Its parts: `processes` (who reads which rows, and sums over all), `examples` (what a source holds,
as the solvers take it), `survey` (the first pass: what must be known of all examples), `drawing`
(samples), `sums` (the passes), `certificate`, `state` (where the fit is), `quasi_newton`
(directions), `proximal` (steps with an l1 penalty), `systems` (Newton systems for these), and
`driver`, the loop.
"""

from jaxsoftmax.solvers.stream.driver import minimize
from jaxsoftmax.solvers.stream.processes import find_processes
from jaxsoftmax.solvers.stream.survey import Stream, open_stream

__all__ = ["Stream", "find_processes", "minimize", "open_stream"]
