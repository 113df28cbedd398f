"""Arrays on the host, and checks of them without JAX, whose import takes longer than a small fit.

An array of JAX exists only where JAX has been imported, so that nothing here has to import it.
"""

import sys
from typing import Any

import numpy as np

ROUNDING_ULPS = 4  # how far outside [0, 1] rounding may put a probability
MAX_INFERRED_CLASSES = 65_536  # a larger number needs at least half as many examples


def is_jax_array(x: Any) -> bool:
    """Return whether x is an array of JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.Array)


def to_host(x: Any) -> np.ndarray:
    """Return all of x as a NumPy array, also if each of several processes holds a part of it."""
    if is_jax_array(x) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def check_at_least_one(**settings: Any) -> None:
    """Raise an error that names the first setting that is not an integer of at least 1."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def require_labels(
    labels: np.ndarray, num_classes: int, name: str, valid: np.ndarray | None = None
) -> None:
    """Raise if a label of a valid example is not one of 0, ..., num_classes - 1."""
    check_at_least_one(num_classes=num_classes)
    wide = labels.astype(np.int64) if labels.dtype != np.uint64 else labels
    bad = (wide < 0) | (wide >= num_classes)
    if valid is not None:
        bad &= valid
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        where = "".join(f"[{i}]" for i in first)
        raise ValueError(
            f"{name}{where}: expected a label from 0 to {num_classes - 1}, got {labels[first]} "
            f"({bad.sum()} of {labels.size} are out of range)"
        )


def inferred_classes(labels: Any, name: str) -> int:
    """Return one more than the largest label, or raise if that is implausible.

    Raises:
        ValueError: there would be more than `MAX_INFERRED_CLASSES` classes, and more than twice as
            many classes as examples.
    """
    largest = int(labels.max())
    if largest < max(MAX_INFERRED_CLASSES, 2 * labels.size):
        return max(1, largest + 1)
    first = int(np.argmax(to_host(labels)))
    raise ValueError(
        f"{name}[{first}]: label {largest} implies {largest + 1} classes for {labels.size} "
        "examples; renumber the labels as 0 ... K - 1 (numpy.unique(labels, return_inverse=True)), "
        "or pass the number of classes"
    )
