"""scikit-learn estimators whose `fit` returns a proven distance from the optimum.

`SoftmaxClassifier` minimizes scikit-learn's objective of logistic regression, C sum_i s_i l_i +
||w||^2 / 2, to a certified relative gap `tol`; `SoftmaxClassifierCV` does so for a whole grid of C,
l1_ratio and folds at once, see `solvers`. Two classes have one sigmoid score, more classes a
softmax; a matrix of 0 and 1 as y has one sigmoid per label.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Each is loaded at its first use: the one does without scikit-learn's metrics and model selection,
# and, for small problems, without JAX.
if TYPE_CHECKING:
    from jaxsoftmax.estimator.base import CertifiedClassifier
    from jaxsoftmax.estimator.classifier import SoftmaxClassifier
    from jaxsoftmax.estimator.cross_validation import SoftmaxClassifierCV

__all__ = ["SoftmaxClassifier", "SoftmaxClassifierCV", "CertifiedClassifier"]

_HOMES = {
    "SoftmaxClassifier": "classifier",
    "SoftmaxClassifierCV": "cross_validation",
    "CertifiedClassifier": "base",  # public for its methods, which the reference shows there
}

if not TYPE_CHECKING:  # for which every other name would exist too

    def __getattr__(name: str) -> Any:
        """Load the module of an estimator and return the estimator."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__() -> list[str]:
        """Return all names, for completion in a shell."""
        return sorted({*globals(), *__all__})
