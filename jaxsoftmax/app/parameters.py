"""The parameters of a linear model on the host, for commands that do without JAX.

JAX takes longer to import than a command such as `predict` needs for all the rest.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxsoftmax.linear import LinearParams


class HostParams(NamedTuple):
    """The fields of `LinearParams` as NumPy arrays: `w: [D, K]`, and `bias: [K]` or None."""

    w: np.ndarray
    bias: np.ndarray | None


type Params = LinearParams | HostParams
"""Parameters of either kind, for functions that compute on the host."""
