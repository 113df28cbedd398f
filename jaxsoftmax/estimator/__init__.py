"""scikit-learn estimators whose `fit` returns a proven distance from the optimum.

`SoftmaxClassifier` minimizes scikit-learn's objective of logistic regression, C sum_i s_i l_i +
||w||^2 / 2, to a certified relative gap `tol`; `SoftmaxClassifierCV` does so for a whole grid of C,
l1_ratio and folds at once, see `solvers`. Two classes have one sigmoid score, more classes a
softmax; a matrix of 0 and 1 as y has one sigmoid per label.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxsoftmax.estimator.classifier import SoftmaxClassifier

if TYPE_CHECKING:
    from jaxsoftmax.estimator.cross_validation import SoftmaxClassifierCV

__all__ = ["SoftmaxClassifier", "SoftmaxClassifierCV"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Return `SoftmaxClassifierCV`, whose metrics and splitters take a while to import."""
        if name != "SoftmaxClassifierCV":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.cross_validation").SoftmaxClassifierCV
