"""The features and weights that a loop reads, in the tiles in which a TPU stores them.

XLA for TPU 7x stores a matrix of 16-bit numbers in tiles of 8 x 128 where a program begins, and in
tiles of 16 x 128 where a loop carries it. It copies the matrix before the loop, and in each step
copies it back for a Pallas kernel, which takes the first ones. A matrix `[R, C]` seen as
`[R / 8, 8, C]` has the same bytes and no such tiles of 16, so that nothing is copied.
"""

from collections.abc import Callable

from jax import Array, lax

from jaxsoftmax import placement
from jaxsoftmax.kernels.types import Head, Options

SUBLANES, LANES = 8, 128  # of a tile; a matrix of whole tiles is stored row-major


def hold(head: Head, options: Options) -> Callable[[], Head]:
    """Return a function that gives the same head within the body of a loop."""
    x, w = (hold_matrix(a, options) for a in (head.x, head.w))
    return lambda: head._replace(x=x(), w=w())


def hold_matrix(a: Array, options: Options) -> Callable[[], Array]:
    """Return a function that gives the same matrix within the body of a loop."""
    if options.target.platform != "tpu" or not _has_whole_tiles(a):
        return lambda: a
    rows, columns = a.shape
    # Without the barrier XLA moves the second reshape out of the loop, where it cancels this one.
    view = lax.optimization_barrier(a.reshape(rows // SUBLANES, SUBLANES, columns))
    return lambda: view.reshape(rows, columns)


def _has_whole_tiles(a: Array) -> bool:
    """Return whether the matrix is of 16-bit numbers in whole tiles, on one device of a mesh."""
    return (
        a.dtype.itemsize == 2
        and placement.is_static(*a.shape)
        and a.shape[0] % SUBLANES == 0
        and a.shape[1] % LANES == 0
        and not any(placement.partition_spec(a))
    )
