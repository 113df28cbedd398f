"""Features that several devices share, also of several processes, as a host knows them.

Labels and weights are small and go to the host. Nothing here imports JAX: see `on_devices`.
"""

from typing import Any

import numpy as np

from jaxsoftmax.host_arrays import is_jax_array, to_host


class HeldOut:
    """The linear scores `[n, K]` of some examples, which scorers pass as if they were features."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores, self.shape = scores, scores.shape


def is_shared(X: Any) -> bool:
    """Return whether X is an array of which several devices hold a part each."""
    return is_jax_array(X) and len(X.sharding.device_set) > 1 and not X.sharding.is_fully_replicated


def gather(a: Any) -> Any:
    """Return labels or weights on the host if they are an array of JAX, or as they are."""
    return to_host(a) if is_jax_array(a) else a
