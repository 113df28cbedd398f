"""Which examples train, which validate and which test."""

import numpy as np

TRAIN, VALIDATION, TEST = range(3)
"""The numbers of the parts that `stratified` deals to."""


def folds(labels: np.ndarray, count: int) -> np.ndarray:
    """Deal the examples of each class, in order, to folds, round and round.

    Args:
        labels: integer `[N]`.
        count: the number of folds.

    Returns:
        Integer `[N]` in 0 to count - 1: the rank of each example within its class, modulo count.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import data
        >>> print(data.folds(np.array([3, 3, 1, 3, 1]), 2))
        [0 1 0 0 1]
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=int)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return ranks % count


def stratified(
    labels: np.ndarray, *, validation_share: float, test_share: float, seed: int
) -> np.ndarray:
    """Draw a validation and a test part in which each class has its share.

    A class's count in each part is its share rounded down or up, so that the parts' totals come
    out right too; which of its examples they are is chance. Each class keeps an example in
    training, so a class's single example is there. A part that would be empty is given an example
    from where most can be spared.

    Args:
        labels: integer `[N]`; zeros for examples without classes.
        validation_share: of the examples, above 0.
        test_share: of the examples; 0 for no test part.
        seed: of the draw.

    Returns:
        int8 `[N]`: TRAIN, VALIDATION or TEST.

    Raises:
        ValueError: if the shares leave nothing to train on, or there are so few examples that
            none can be spared for a part.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.data import splits
        >>> part = splits.stratified(
        ...     np.repeat([0, 1], [12, 8]), validation_share=0.25, test_share=0.25, seed=0)
        >>> print(np.bincount(part[:12]), np.bincount(part[12:]))
        [6 3 3] [4 2 2]
    """
    shares = np.array([1 - validation_share - test_share, validation_share, test_share])
    if not (0 < validation_share < 1 and 0 <= test_share < 1 and shares[TRAIN] > 1e-9):
        raise ValueError(
            "validation_share must be above 0, test_share at least 0 and their sum below 1, "
            f"got {validation_share} and {test_share}"
        )
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    counts = _counts(sizes, shares)
    for part in (VALIDATION, TEST):
        if shares[part] and not counts[:, part].any():
            _give_one(counts, part)

    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(classes[order], kind="stable")]
    parts = np.empty(len(labels), np.int8)
    parts[order] = np.repeat(np.tile(np.arange(3, dtype=np.int8), len(sizes)), counts.ravel())
    return parts


def _counts(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Round each class's shares down or up, the parts that are most behind first: `[K, 3]`."""
    exact = sizes[:, None] * shares
    counts = np.floor(exact + 1e-9).astype(int)  # 0.3 * 10 is 3
    counts[:, TRAIN] = np.maximum(counts[:, TRAIN], 1)
    behind = np.zeros(3)
    for count, size, due in zip(counts, sizes, exact, strict=True):
        behind += due - count
        # Where a part's share is a whole number there is no rounding up.
        may = np.where(due > count + 1e-9, behind, -np.inf)
        up = np.argsort(-may, kind="stable")[: size - count.sum()]
        count[up] += 1
        behind[up] -= 1
    return counts


def _give_one(counts: np.ndarray, part: int) -> None:
    """Move an example to an empty part; none that is the last of its class to train on."""
    spare = counts.copy()
    spare[:, TRAIN] -= 1
    spare[:, [other for other in (VALIDATION, TEST) if counts[:, other].sum() < 2]] = 0
    richest, giver = np.unravel_index(spare.argmax(), spare.shape)
    if spare[richest, giver] < 1:
        raise ValueError(
            f"{counts.sum()} examples of {len(counts)} classes leave too few to hold out, "
            "for each class keeps one to train on: more examples are needed"
        )
    counts[richest, giver] -= 1
    counts[richest, part] += 1
