"""The division of examples into training, validation and test splits."""

import numpy as np

TRAIN, VALIDATION, TEST = range(3)
"""The numbers of the splits in the result of `assign_splits`."""


def assign_folds(labels: np.ndarray, num_folds: int) -> np.ndarray:
    """Deal the examples of each class to folds in turn, in the order of the examples.

    Args:
        labels: integer `[N]`.
        num_folds: the number of folds.

    Returns:
        Integer `[N]` in 0 to num_folds - 1: the rank of each example within its class, modulo
        num_folds.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import data
        >>> print(data.assign_folds(np.array([3, 3, 1, 3, 1]), 2))
        [0 1 0 0 1]
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=int)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return ranks % num_folds


def assign_splits(
    labels: np.ndarray, *, validation_share: float, test_share: float, seed: int
) -> np.ndarray:
    """Draw a validation and a test split in which each class has its share.

    The count of a class in each split is its share rounded down or up, such that the totals of the
    splits are right too. The examples of each class are drawn at random. Each class keeps at least
    one example for training, so that the only example of a class is a training example. A split
    that would be empty receives an example from the class and split that can best spare one.

    Args:
        labels: integer `[N]`; zeros for examples without classes.
        validation_share: the share of the examples for validation, above 0.
        test_share: the share of the examples for testing; 0 for no test split.
        seed: the seed of the draw.

    Returns:
        int8 `[N]`: TRAIN, VALIDATION or TEST.

    Raises:
        ValueError: if the shares leave nothing to train on, or if there are too few examples to
            fill a split.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.data import splits
        >>> assignment = splits.assign_splits(
        ...     np.repeat([0, 1], [12, 8]), validation_share=0.25, test_share=0.25, seed=0)
        >>> print(np.bincount(assignment[:12]), np.bincount(assignment[12:]))
        [6 3 3] [4 2 2]
    """
    shares = np.array([1 - validation_share - test_share, validation_share, test_share])
    if not (0 < validation_share < 1 and 0 <= test_share < 1 and shares[TRAIN] > 1e-9):
        raise ValueError(
            "validation_share must be above 0, test_share at least 0 and their sum below 1, "
            f"got {validation_share} and {test_share}"
        )
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    counts = _round_shares(sizes, shares)
    for split in (VALIDATION, TEST):
        if shares[split] and not counts[:, split].any():
            _move_example(counts, split)

    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(classes[order], kind="stable")]
    assignment = np.empty(len(labels), np.int8)
    assignment[order] = np.repeat(np.tile(np.arange(3, dtype=np.int8), len(sizes)), counts.ravel())
    return assignment


def _round_shares(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Round the shares of each class, up first in the splits that are furthest behind: `[K, 3]`."""
    exact = sizes[:, None] * shares
    counts = np.floor(exact + 1e-9).astype(int)  # 0.3 * 10 is 3
    counts[:, TRAIN] = np.maximum(counts[:, TRAIN], 1)
    deficit = np.zeros(3)
    for count, size, due in zip(counts, sizes, exact, strict=True):
        deficit += due - count
        # A share that is a whole number is not rounded up.
        priority = np.where(due > count + 1e-9, deficit, -np.inf)
        rounded_up = np.argsort(-priority, kind="stable")[: size - count.sum()]
        count[rounded_up] += 1
        deficit[rounded_up] -= 1
    return counts


def _move_example(counts: np.ndarray, split: int) -> None:
    """Move an example to an empty split, but never the last training example of a class."""
    spare = counts.copy()
    spare[:, TRAIN] -= 1
    spare[:, [other for other in (VALIDATION, TEST) if counts[:, other].sum() < 2]] = 0
    class_index, giver = np.unravel_index(spare.argmax(), spare.shape)
    if spare[class_index, giver] < 1:
        raise ValueError(
            f"{counts.sum()} examples of {len(counts)} classes leave too few to hold out, "
            "because each class keeps one for training: more examples are needed"
        )
    counts[class_index, giver] -= 1
    counts[class_index, split] += 1
