"""scikit-learn estimators whose `fit` returns a proven distance from the optimum.

`SoftmaxClassifier` minimizes scikit-learn's objective of logistic regression, C sum_i s_i l_i +
||w||^2 / 2, to a certified relative gap `tol`; `SoftmaxClassifierCV` does so for a whole grid of C,
l1_ratio and folds at once, see `solvers`. Two classes have one sigmoid score, more classes a
softmax; a matrix of 0 and 1 as y has one sigmoid per label.
"""

from jaxsoftmax.estimator.classifier import SoftmaxClassifier
from jaxsoftmax.estimator.cross_validation import SoftmaxClassifierCV

__all__ = ["SoftmaxClassifier", "SoftmaxClassifierCV"]
