r"""Convert a user's arrays to a problem in lanes on the devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse  # type: ignore[import-untyped]

from jaxsoftmax import losses
from jaxsoftmax.solvers import arguments, matvec, row_shards, sparse
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.arguments import Data, TargetKind
from jaxsoftmax.solvers.limits import MAX_FLOAT64_SIZE
from jaxsoftmax.solvers.row_shards import RowShards
from jaxsoftmax.validation import ArrayLike

# Bytes for each score at the peak, the certificate in float64, as compiled for an H200: 50 beside
# the point in float32, and 66 beside that in float64. A step takes 24 and 48.
SCORE_BYTES = {"float32": 58, "float64": 82}
MAX_PADDED_ROWS = 8192  # up to here examples are padded, for fewer shapes and compilations


def prepare_data(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Callable,
    weights: ArrayLike | None,
    class_weights: ArrayLike | None,
    memory: int,
    classes: int | None = None,
) -> Data:
    """Check a user's arrays, as `arguments.check_data` does."""
    return arguments.check_data(
        features,
        targets,
        kind=target_kind(loss),
        weights=weights,
        class_weights=class_weights,
        memory=memory,
        classes=classes,
    )


def target_kind(loss: Callable) -> TargetKind:
    """Return the kind of targets that a loss has, or raise if no solver minimizes it."""
    kinds: dict[Callable, TargetKind] = {
        losses.cross_entropy: "labels",
        losses.soft_cross_entropy: "distributions",
        losses.binary_cross_entropy: "probabilities",
    }
    if loss not in kinds:
        raise ValueError(
            "loss: expected jaxsoftmax.cross_entropy, jaxsoftmax.soft_cross_entropy or "
            f"jaxsoftmax.binary_cross_entropy, got {getattr(loss, '__name__', loss)!r}; "
            "training.fit minimizes any loss"
        )
    return kinds[loss]


def prepare_lanes(
    data: Data, weights: np.ndarray, targets: np.ndarray, l2: np.ndarray, l1: np.ndarray
) -> problems.Problem:
    """Return the problem of lanes on the device.

    Args:
        data: the checked arrays.
        weights: `[L, N]`.
        targets: `[T, N]` or `[T, N, K]`.
        l2: `[L]`.
        l1: `[L]`.

    Returns:
        The problem, padded to one of few shapes where the features are dense, and with classes that
        no example has, so that the shards of the classes divide their number.
    """
    classes = row_shards.padded_classes(data.features, data.classes)
    _require_device_memory(data.features, len(weights) * classes)
    rows, columns = _padded_shape(data.features)
    padding = rows - weights.shape[1]
    s = weights / weights.sum(1, keepdims=True)
    features = _to_device(data.features, rows, columns, len(weights) * data.classes)
    padded_targets = pad_targets(targets, padding, data.link)
    if padded_targets.ndim == 3:
        extra = classes - data.classes
        padded_targets = np.pad(padded_targets, ((0, 0), (0, extra), (0, 0)))
    return problems.Problem(
        features=features,
        targets=row_shards.to_device(features, padded_targets),
        weights=row_shards.to_device(features, np.pad(s, ((0, 0), (0, padding)))),
        l2=jnp.asarray(l2),
        l1=jnp.asarray(l1),
        column_max_abs=matvec.column_max_abs(features).astype(jnp.float64),
    )


def _require_device_memory(x: Any, scores: int) -> None:
    """Raise a MemoryError for dense features that do not fit with SCORE_BYTES for each score."""
    limit = device_memory()
    if limit is None or scipy.sparse.issparse(x):
        return
    rows = row_shards.rows_per_shard(x)
    own = x.dtype.itemsize * rows * x.shape[1]
    temporary = SCORE_BYTES[x.dtype.name] * rows * (scores // row_shards.class_count(x))
    if own + temporary > limit:
        raise MemoryError(
            f"features: {own:,} bytes, and {temporary:,} for their scores, the device has "
            f"{limit:,}: pass a source, such as training.ParquetSource, or more devices as shards"
        )


def device_memory() -> int | None:
    """Return the bytes of a device's own memory, None where it is the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") if jax.default_backend() != "cpu" else None


def _padded_shape(x: Any) -> tuple[int, int]:
    """Return the shape that features are padded to; sparse features are not padded."""
    n, d = x.shape
    if not isinstance(x, np.ndarray):
        return n, d
    return _bucket(n), max(8, 1 << (d - 1).bit_length()) if d <= 64 else d


def _to_device(x: Any, rows: int, columns: int, scores: int) -> matvec.Features:
    """Return padded features on the device, in float64 if the problem is small.

    `scores` is the number of scores per example in all lanes.
    """
    if x.size * scores <= MAX_FLOAT64_SIZE:
        x = x.astype(np.float64)
    if isinstance(x, RowShards):
        return x
    if not isinstance(x, np.ndarray):
        return sparse.from_scipy(x)
    n, d = x.shape
    if (rows, columns) != (n, d):
        x = np.pad(x, ((0, rows - n), (0, columns - d)))
    return jnp.asarray(x)


def pad_targets(t: np.ndarray, padding: int, link: problems.Link) -> np.ndarray:
    """Return padded targets, `[T, N]` or `[T, K, N]`.

    Padding has no weight, but the target of the last example: that of a softmax sums to one.
    """
    t = np.pad(t, ((0, 0), (0, padding)) + ((0, 0),) * (t.ndim - 2), mode="edge")
    match link:
        case "sigmoid":
            dtype: Any = np.float64
        case "softmax":
            dtype = t.dtype if t.ndim == 3 else np.int32
    t = np.moveaxis(t, 1, 2) if t.ndim == 3 else t
    return t.astype(dtype)


def _bucket(n: int) -> int:
    """Round n up to one of few sizes: a power of two, or above 1024 at most an eighth more."""
    if n > MAX_PADDED_ROWS:
        return n
    power = 1 << (n - 1).bit_length()
    unit = max(32, power if n <= 1024 else power // 16)
    return -(-n // unit) * unit
