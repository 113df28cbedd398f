"""Examples on the device, checked by themselves: shapes, finite numbers, weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import validation
from jaxsoftmax.sources import Source
from jaxsoftmax.training.types import Examples
from jaxsoftmax.training.weights import as_float_weights, replace_ignored
from jaxsoftmax.validation import ArrayLike


def prepare_examples(
    features: ArrayLike,
    targets: ArrayLike | None,
    weights: ArrayLike | None,
    *,
    is_linear: bool,
    prefix: str = "",
) -> Examples:
    """Return the examples on the device after all checks, with ignored rows replaced.

    Args:
        features: `[N, ...]`.
        targets: `[N, ...]`; None is an error.
        weights: `[N]`, a scalar, or None.
        is_linear: whether the model is linear, which restricts shapes and dtypes.
        prefix: precedes the names of arguments in errors.
    """
    if targets is None:
        raise ValueError("targets must be given with features that are arrays, got None")
    x = _to_device(features)
    _check_shapes(x, np.shape(targets), is_linear=is_linear, prefix=prefix)
    w = None if weights is None else as_float_weights(weights, x.shape[:1], prefix)
    if w is not None and not bool(jnp.all((w >= 0) & jnp.isfinite(w)) & jnp.any(w > 0)):
        raise ValueError(f"{prefix}weights must be finite, at least 0, and some above 0")
    examples = Examples(x, _to_device(targets), w)
    valid = valid_rows(examples)
    for name, given, a in (("features", features, x), ("targets", targets, examples.targets)):
        _check_finite(a, given, valid, f"{prefix}{name}")
        _check_integers(a, given, valid, f"{prefix}{name}")
    return examples if valid.all() else replace_ignored(examples)


def prepare_validation(
    examples: tuple[ArrayLike, ...] | Source | None, *, is_linear: bool
) -> Examples | Source | None:
    """Return `prepare_examples` of (features, targets) or (features, targets, weights).

    A source, which checks its own rows, is returned as it is.
    """
    if examples is None or isinstance(examples, Source):
        return examples
    if not isinstance(examples, tuple | list) or len(examples) not in (2, 3):
        raise ValueError(
            "validation must be (features, targets) or (features, targets, weights), "
            f"got {type(examples).__name__} of length {len(examples)}"
        )
    features, targets, *rest = examples
    weights = rest[0] if rest else None
    return prepare_examples(features, targets, weights, is_linear=is_linear, prefix="validation ")


def valid_rows(examples: Examples) -> np.ndarray:
    """Return which rows have a weight above 0, on the host."""
    x, _, w = examples
    return np.ones(x.shape[0], bool) if w is None else validation.to_host(w > 0)


def _to_device(a: ArrayLike) -> Array:
    # device_put borrows an aligned NumPy array. asarray would copy it, by a program for its shape.
    return jax.device_put(a) if isinstance(a, np.ndarray) else jnp.asarray(a)


def _check_shapes(x: Array, targets: tuple[int, ...], *, is_linear: bool, prefix: str) -> None:
    if is_linear and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{prefix}features must be floats, got {x.dtype}; convert and scale them")
    if 0 in x.shape or (x.ndim != 2 if is_linear else x.ndim < 1):
        expected = "[N, D]" if is_linear else "[N, ...]"
        raise ValueError(f"{prefix}features must be {expected} and not empty, got shape {x.shape}")
    if targets[:1] != x.shape[:1] or (is_linear and len(targets) > 2):
        expected = "[N] or [N, K]" if is_linear else "[N, ...]"
        raise ValueError(
            f"{prefix}targets must be {expected} with N = {x.shape[0]}, as {prefix}features, "
            f"got shape {targets}"
        )


def _check_finite(a: Array, given: ArrayLike, valid: np.ndarray, name: str) -> None:
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return
    axes = tuple(range(1, a.ndim))
    if isinstance(given, np.ndarray) and given.dtype == a.dtype:  # nothing has to be compiled
        finite_rows = np.isfinite(given).all(axis=axes)
    else:
        finite_rows = validation.to_host(jnp.all(jnp.isfinite(a), axis=axes))
    bad_rows = valid & ~finite_rows
    if bad_rows.any():
        first = int(bad_rows.argmax())
        row = validation.to_host(a[first])
        index = np.argwhere(~np.isfinite(row))[0].tolist()
        raise ValueError(f"{name} must be finite, got {row[tuple(index)]} at {[first, *index]}")


def _check_integers(a: Array, given: ArrayLike, valid: np.ndarray, name: str) -> None:
    """Refuse 64-bit integers that a conversion to 32 bits would change, as 2^32 to the class 0."""
    given = np.asarray(given) if not isinstance(given, Array) else np.empty(0)
    if given.dtype.kind not in "iu" or given.dtype.itemsize <= a.dtype.itemsize:
        return
    is_changed = np.asarray(a) != given
    is_changed[~valid] = False
    if is_changed.any():
        index = np.argwhere(is_changed)[0].tolist()
        raise ValueError(f"{name} must fit {a.dtype}, got {given[tuple(index)]} at {index}")
