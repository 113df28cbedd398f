"""Scores of a linear model, and what they stand for: logits, probabilities, predictions."""

from typing import Any

import numpy as np

from jaxsoftmax.app import host_metrics
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.names import LossName
from jaxsoftmax.app.parameters import Params


def compute_scores(
    params: Params, features: np.ndarray, *, preprocessing: Preprocessing = IDENTITY
) -> np.ndarray:
    """Return the scores of a linear model, computed on the host.

    Args:
        params: the model, `w: [D, K]`.
        features: float32 `[N, D]`, as they are stored. They are preprocessed a block of rows at a
            time, never as a whole.
        preprocessing: the preprocessing that the model was fitted with.

    Returns:
        float32 `[N, K]`.

    Numerics:
        One product in float32; what overflows is infinite or NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import evaluation
        >>> evaluation.compute_scores(linear.init(3, 2), np.ones((4, 3), np.float32)).shape
        (4, 2)
    """
    w, bias = np.asarray(params.w), None if params.bias is None else np.asarray(params.bias)
    scores = np.empty((len(features), w.shape[1]), np.float32)
    block_size = max(1, 2**22 // w.shape[0])
    for start in range(0, len(features), block_size):
        block = slice(start, start + block_size)
        np.matmul(preprocessing.apply(features[block]), w, out=scores[block])
    if bias is not None:
        scores += bias
    return scores


def to_logits(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray | None:
    """Return the logits of the probabilities that the scores stand for.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.

    Returns:
        `[N, K]`. For classes, logits whose softmax is the probabilities: (0, z) for a single score
        and log sigmoid(z) for a sigmoid against the rest. For labels, the logits of their sigmoids.
        None if the loss gives no probabilities.

    Numerics:
        A sigmoid near 1 keeps its digits: log sigmoid(z) is -log1p(exp(-z)).

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.to_logits(np.array([[2.0]]), schema, "sigmoid"))
        [[0. 2.]]
    """
    if schema.task is Task.numbers or loss not in (LossName.softmax, LossName.sigmoid):
        return None
    if schema.task is Task.labels:
        return scores
    if loss == LossName.softmax or scores.shape[1] == 1:
        return class_scores(scores)
    return -host_metrics.sigmoid_losses(scores, np.ones_like(scores)).astype(np.float32)


def compute_probabilities(scores: np.ndarray, schema: Schema, loss: LossName) -> np.ndarray | None:
    """Return the probabilities of classes or labels.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        schema: the schema of the data.
        loss: the loss that the head was fitted with.

    Returns:
        `[N, K]`, which sum to 1 for classes; None if the loss gives no probabilities.

    Numerics:
        Computed in float64 and rounded once. One below the smallest float32 is 0. NaN in a row with
        a score of NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.compute_probabilities(np.array([[0.0]]), schema, "sigmoid"))
        [[0.5 0.5]]
    """
    logits = to_logits(scores, schema, loss)
    if logits is None:
        return None
    return link(logits, schema.task)


def link(logits: np.ndarray, task: Task) -> np.ndarray:
    """Return the probabilities of logits.

    Args:
        logits: `[N, K]`.
        task: classes, whose probabilities sum to 1, or labels.

    Returns:
        float32 `[N, K]`.

    Numerics:
        Computed in float64 and rounded once, a block of rows at a time. NaN in a row with NaN.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.names import Task
        >>> print(evaluation.link(np.array([[0.0, 0.0]]), Task.classes))
        [[0.5 0.5]]
    """
    return np.concatenate([link_block(block, task) for block in in_blocks(logits)])


def link_block(logits: np.ndarray, task: Task) -> np.ndarray:
    """Return the probabilities of some rows, computed in float64."""
    if task is Task.labels:
        log_p = -host_metrics.sigmoid_losses(logits, np.ones_like(logits))
    else:
        log_p = host_metrics.log_probabilities(logits)
    return np.exp(log_p).astype(np.float32)


def in_blocks(*arrays: np.ndarray) -> Any:
    """Yield rows of the arrays, some millions of numbers at a time: float64 copies are large."""
    rows = max(1, 2**21 // max(1, arrays[0].shape[1]))
    for start in range(0, len(arrays[0]), rows):
        blocks = tuple(array[start : start + rows] for array in arrays)
        yield blocks if len(blocks) > 1 else blocks[0]


def predict(scores: np.ndarray, schema: Schema) -> np.ndarray:
    """Return the class, labels or numbers that the head predicts.

    Args:
        scores: `[N, K]`, or `[N, 1]` for a binary sigmoid.
        schema: the schema of the data.

    Returns:
        For classes int `[N]`: the class with the largest score, or the second of two classes if
        the single score is above 0, and -1 if a score is NaN. For labels bool `[N, K]`: whether
        each score is above 0, which NaN is not. For numbers, the scores.

    Numerics:
        The first of equal scores is the prediction; a single score of 0 predicts the first class,
        and of a label 0.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import evaluation
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("no", "yes"), shape=(3,))
        >>> print(evaluation.predict(np.array([[2.0], [-1.0]]), schema))
        [1 0]
    """
    match schema.task:
        case Task.numbers:
            return scores
        case Task.labels:
            return scores > 0
        case Task.classes:
            z = class_scores(scores)
            return np.where(np.isnan(z).any(1), -1, z.argmax(1))


def class_scores(scores: np.ndarray) -> np.ndarray:
    """Return scores `[N, K]` whose largest decides: (0, z) for a single score z."""
    if scores.shape[1] > 1:
        return scores
    return np.concatenate([np.zeros_like(scores), scores], axis=1)
