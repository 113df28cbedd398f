"""scikit-learn's callbacks: a task for the fit and, below it, one for each outer iteration."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsoftmax.linear_params import LinearParams

if TYPE_CHECKING or importlib.util.find_spec("sklearn.callback") is not None:
    from sklearn.callback import CallbackSupportMixin
else:

    class CallbackSupportMixin:
        """Nothing: callbacks came with scikit-learn 1.9."""


class Tasks:
    """The tasks of the iterations, of which one is always open, as scikit-learn's lbfgs has them.

    Args:
        estimator: the estimator that is fitted.
        data: X, y and metadata, as callbacks get them.
        context: the context of the whole fit.
    """

    def __init__(self, estimator: Any, data: dict[str, Any], context: Any) -> None:
        self.estimator, self.data, self.context = estimator, data, context
        self.task: Any = None

    def begin(self, params: LinearParams) -> None:
        """Open the task of the next iteration, which starts from these parameters."""
        self.task = self.context.subcontext(task_name="iteration")
        self.task.call_on_fit_task_begin(
            estimator=self.estimator, **self.data, reconstruction_attributes=_attributes(params)
        )

    def report(self, figures: dict[str, Any]) -> None:
        """End the task of the iteration of the solver that has these figures, and open the next."""
        theta = figures["theta"][0]
        bias = theta[:, -1] if self.estimator.fit_intercept else None
        self.report_params(LinearParams(theta[:, :-1].T, bias))

    def report_params(self, params: LinearParams) -> None:
        """End the task of an iteration that has led to these parameters, and open the next."""
        self.task.call_on_fit_task_end(
            estimator=self.estimator, **self.data, reconstruction_attributes=_attributes(params)
        )
        self.begin(params)

    def close(self) -> None:
        """End the task that was opened last, of an iteration that was never run."""
        if self.task is not None:
            self.task.call_on_fit_task_end(estimator=self.estimator)


@contextmanager
def fit_tasks(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Iterator[Tasks | None]:
    """Open the task of the fit, and close it and all below it; None without callbacks."""
    if not hasattr(estimator, "_skl_callbacks"):
        yield None
        return
    from sklearn.callback._callback_support import callback_management_context

    metadata = None if sample_weight is None else {"sample_weight": sample_weight}
    data = {"X": X, "y": y, "metadata": metadata}
    with callback_management_context(estimator):
        context = estimator._init_callback_context(max_subtasks=max(estimator.max_iter, 1) + 1)
        context.call_on_fit_task_begin(estimator=estimator, **data)
        tasks = Tasks(estimator, data, context)
        yield tasks
        tasks.close()
        context.call_on_fit_task_end(estimator=estimator, **data, reconstruction_attributes={})


def _attributes(params: LinearParams) -> dict[str, np.ndarray]:
    """Return what makes a copy of the estimator one that is fitted."""
    coef = np.ascontiguousarray(params.w.T)
    zeros = np.zeros(len(coef), coef.dtype)
    return {"coef_": coef, "intercept_": zeros if params.bias is None else np.asarray(params.bias)}
