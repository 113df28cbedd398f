r"""Products with the features on the host, in parts that keep to one thread.

OpenBLAS divides a product of more than SINGLE_THREAD multiplications among threads, which wait for
each other by spinning: for the sizes here that gains little, and where another process has the
other core it costs up to 30 times the product. Parts below the limit run on one thread, and stay in
the cache. Products too wide for parts of MIN_PART examples take all threads.
"""

import numpy as np

SINGLE_THREAD = 2**18
MIN_PART = 64  # examples


def apply(columns: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return v x', `[R, N]`, for columns x' `[P, N]` and v `[R, P]`."""
    n = columns.shape[1]
    part = _part(n, v.size)
    if part == n:
        return v @ columns
    scores = np.empty((len(v), n))
    for start in range(0, n, part):
        rows = slice(start, start + part)
        np.matmul(v, columns[:, rows], out=scores[:, rows])
    return scores


def apply_transpose(columns: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return r x, `[R, P]`, for r `[R, N]`."""
    n = columns.shape[1]
    part = _part(n, len(r) * len(columns))
    if part == n:
        return r @ columns.T
    total = np.zeros((len(r), len(columns)))
    for start in range(0, n, part):
        total += r[:, start : start + part] @ columns[:, start : start + part].T
    return total


def apply_transpose_squared(columns: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return r x^2, `[R, P]`, for r `[R, N]`."""
    n = columns.shape[1]
    part = _part(n, len(r) * len(columns))
    return sum(  # of parts, whose squares stay in the cache
        r[:, start : start + part] @ (columns[:, start : start + part] ** 2).T
        for start in range(0, n, part)
    )


def gram(columns: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Return sum_i h_i x_i x_i', `[P, P]`, for h of at least 0, `[N]`."""
    n = columns.shape[1]
    part, root = _part(n, len(columns) ** 2), np.sqrt(h)
    total = np.zeros((len(columns), len(columns)))
    for start in range(0, n, part):
        x = columns[:, start : start + part] * root[start : start + part]
        total += x @ x.T  # NumPy computes one half of it
    return total


def _part(n: int, multiplications: int) -> int:
    """Return the number of examples of a part, given the multiplications for one example."""
    part = SINGLE_THREAD // max(1, multiplications)
    return min(n, part) if part >= MIN_PART else n
