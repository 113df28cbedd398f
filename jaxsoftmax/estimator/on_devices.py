"""Features that several devices share, also of several processes: they stay where they are.

scikit-learn's own checks would copy them to a host. The scores of a model are computed by the
devices that hold the rows, and stay with them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from sklearn.utils.validation import check_consistent_length, validate_data

from jaxsoftmax import links


def validate(estimator: Any, X: Array, y: Any, *, reset: bool) -> tuple[Array, Any]:
    """Return X as it is and y on the host, after scikit-learn's checks of shapes and labels."""
    check_features(estimator, X, reset=reset)
    y = validate_data(estimator, y=y, multi_output=True)
    check_consistent_length(X, y)
    return X, y


def check_features(estimator: Any, X: Array, *, reset: bool) -> None:
    """Check X as scikit-learn does."""
    if X.ndim != 2 or not jnp.issubdtype(X.dtype, jnp.floating):
        raise ValueError(f"X: expected floats [n, D], got {X.dtype}{list(X.shape)}")
    validate_data(estimator, X, skip_check_array=True, reset=reset)
    if not _is_finite(X):
        raise ValueError("X: expected finite numbers, got NaN or infinity")


def linear_scores(X: Array, coef: np.ndarray, intercept: np.ndarray) -> Array:
    """Return X coef' + intercept, `[n, K]`, whose rows are where those of X are."""
    product = _product(X, coef.T)
    if not _is_finite(product):
        raise ValueError(f"X: some scores overflow {product.dtype}; scale the features")
    return product + intercept.astype(product.dtype)


@jax.jit
def _is_finite(a: Array) -> Array:
    return jnp.isfinite(a).all()


@jax.jit
def _product(X: Array, w: Array) -> Array:
    x = X.astype(jnp.promote_types(X.dtype, jnp.float32))
    return jnp.dot(x, w.astype(x.dtype), precision=lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames=("multilabel", "log"))
def probabilities(scores: Array, *, multilabel: bool, log: bool) -> Array:
    """Return the probabilities of the classes, or of each label, or their logarithms."""
    if multilabel or scores.shape[1] == 1:
        both = scores if multilabel else jnp.concatenate([-scores, scores], 1)
        return links.log_sigmoid(both) if log else links.sigmoid(both)
    return links.log_softmax(scores) if log else links.softmax(scores)
