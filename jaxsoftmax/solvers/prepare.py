r"""From a user's arrays to a problem in lanes: checks, weights, penalties, padding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftmax import checks, losses
from jaxsoftmax.losses import check_labels
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers import products, sparse

SMALL = 2**24  # features times classes: up to here float64 costs nothing worth a thought
LARGEST = {"float32": 1e15, "float64": 1e100}  # so that no sum of squares overflows
EXACT = 8192  # examples: above, none are added to make shapes, and compilations, fewer


class Data(NamedTuple):
    """Checked arrays on the host: x [N, D]; targets [N] labels or [N, K] numbers; s [N]."""

    features: Any  # a NumPy array or a SciPy CSR matrix
    targets: np.ndarray
    weights: np.ndarray
    classes: int
    head: problems.Head


def data(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Callable,
    weights: ArrayLike | None,
    class_weights: ArrayLike | None,
    memory: int,
) -> Data:
    """Check what the user passed; every error names the argument."""
    x = _features(features, memory)
    n = x.shape[0]
    head = _head(loss)
    t = checks.on_host(targets)
    if t.ndim not in (1, 2) or len(t) != n or (head == "softmax" and t.ndim != 1):
        expected = "[N]" if head == "softmax" else "[N] or [N, K]"
        raise ValueError(f"targets: expected {expected} with N = {n}, got shape {t.shape}")
    s = np.ones(n) if weights is None else checks.on_host(weights).astype(np.float64)
    if s.shape != (n,):
        raise ValueError(f"weights: expected shape {(n,)}, got {s.shape}")
    if not (np.isfinite(s) & (s >= 0)).all() or not s.any():
        raise ValueError("weights: expected finite numbers of at least 0, and some above 0")
    if head == "softmax":
        classes = _classes(t, class_weights)
    else:
        t = _probabilities(t)
        classes = t.shape[1]
    if class_weights is not None:
        s = s * _per_class(t, class_weights, classes, head)
        if not s.any():
            raise ValueError("class_weights: expected some example to keep a weight above 0")
    return Data(x, t, s, classes, head)


def _features(features: Any, memory: int) -> Any:
    if hasattr(features, "tocsr"):  # a SciPy sparse matrix or array
        return _sparse(features, memory)
    x = checks.on_host(features)
    if x.dtype.name == "bfloat16" or x.dtype == np.float16:
        x = x.astype(np.float32)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"features: expected floats, got {x.dtype}")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"features: expected [N, D] and not empty, got shape {x.shape}")
    _check_values(x)
    return x


def _check_values(x: np.ndarray, where: str = "") -> None:
    # One sum says whether all are finite; only where it overflows too each entry is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(x.sum()) or np.isfinite(x).all()
    if not finite:
        at = np.argwhere(~np.isfinite(x))[0].tolist()
        raise ValueError(f"features: expected finite numbers, got {x[tuple(at)]} at {where}{at}")
    largest, most = max(x.max(initial=0), -x.min(initial=0)), LARGEST[x.dtype.name]
    if largest > most:
        raise ValueError(f"features: expected numbers up to {most:g}, got {largest:g}; scale them")


def _sparse(x: Any, memory: int) -> Any:
    """CSR where that is what a product is faster with, or what `memory` allows; else dense."""
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"features: expected [N, D] and not empty, got shape {x.shape}")
    x = x.tocsr().astype(np.float64 if x.dtype == np.float64 else np.float32)
    x.sum_duplicates()
    size = int(np.prod(x.shape, dtype=np.int64))
    if x.nnz >= sparse.DENSE * size and size * x.dtype.itemsize <= memory:
        return _features(x.toarray(), memory)
    if sparse.needed(x) > memory:
        raise MemoryError(
            f"features: {x.nnz:,} entries need {sparse.needed(x):,} bytes; memory allows "
            f"{memory:,}: raise it, select columns, or fit by minibatches"
        )
    _check_values(x.data, "entry ")
    return x


def _head(loss: Callable) -> problems.Head:
    heads: dict[Callable, problems.Head] = {
        losses.cross_entropy: "softmax",
        losses.binary_cross_entropy: "sigmoid",
    }
    if loss not in heads:
        raise ValueError(
            "loss: expected jaxsoftmax.cross_entropy or jaxsoftmax.binary_cross_entropy, "
            f"got {getattr(loss, '__name__', loss)!r}; training.fit minimises any loss"
        )
    return heads[loss]


def _classes(labels: np.ndarray, class_weights: ArrayLike | None) -> int:
    if labels.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integer labels, got {labels.dtype}")
    if class_weights is None:
        classes = int(labels.max()) + 1
    else:
        classes = np.shape(class_weights)[0] if np.ndim(class_weights) == 1 else 0
    check_labels(labels, max(classes, 1))
    return classes


def _probabilities(t: np.ndarray) -> np.ndarray:
    if t.dtype.kind not in "iufb":
        raise TypeError(f"targets: expected numbers or bools, got {t.dtype}")
    t = t.astype(np.float64).reshape(len(t), -1)
    if not ((t >= 0) & (t <= 1)).all():
        at = np.argwhere(~((t >= 0) & (t <= 1)))[0].tolist()
        raise ValueError(f"targets: expected numbers in [0, 1], got {t[tuple(at)]} at {at}")
    return t


def _per_class(
    t: np.ndarray, class_weights: ArrayLike, classes: int, head: problems.Head
) -> np.ndarray:
    c = np.asarray(class_weights, np.float64)
    expected = (classes,) if head == "softmax" else (2,)
    if head == "sigmoid" and classes > 1:
        raise ValueError("class_weights: expected one label; weigh the examples of several labels")
    if c.shape != expected:
        raise ValueError(f"class_weights: expected shape {expected}, got {c.shape}")
    if not (np.isfinite(c) & (c >= 0)).all():
        raise ValueError("class_weights: expected finite numbers of at least 0")
    return c[t] if head == "softmax" else c[0] + (c[1] - c[0]) * t[:, 0]


def penalties(
    sums: np.ndarray, *, C: ArrayLike | None, alpha: ArrayLike | None, l1_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """l2 and l1 in the mean form, for lanes whose weights have these sums."""
    if (C is None) == (alpha is None):
        raise ValueError(f"C, alpha: expected one of the two, got C={C!r} and alpha={alpha!r}")
    if not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio: expected a number in [0, 1], got {l1_ratio!r}")
    if C is not None:
        if not np.all(np.asarray(C) > 0):
            raise ValueError(f"C: expected numbers above 0, got {C!r}")
        strength = 1 / (np.asarray(C, np.float64) * sums)
    else:
        given = np.asarray(alpha, np.float64)
        if not np.all((given >= 0) & np.isfinite(given)):
            raise ValueError(f"alpha: expected finite numbers of at least 0, got {alpha!r}")
        strength = np.broadcast_to(given, sums.shape)
    return (1 - l1_ratio) * strength, l1_ratio * strength


def lanes(
    given: Data, weights: np.ndarray, targets: np.ndarray, l2: np.ndarray, l1: np.ndarray
) -> problems.Problem:
    """The problem of lanes with weights [L, N] and targets [T, N] or [T, N, K], on the device."""
    x, (n, d) = given.features, given.features.shape
    dense = isinstance(x, np.ndarray)  # sparse features are not padded
    rows = _bucket(n) if dense else n
    columns = max(8, 1 << (d - 1).bit_length()) if d <= 64 and dense else d
    if x.size * given.classes * len(weights) <= SMALL:
        x = x.astype(np.float64)
    if (rows, columns) != (n, d):
        x = np.pad(x, ((0, rows - n), (0, columns - d)))
    s = weights / weights.sum(1, keepdims=True)
    t = np.pad(targets, ((0, 0), (0, rows - n)) + ((0, 0),) * (targets.ndim - 2))
    if given.head == "sigmoid":
        t = np.moveaxis(t, 1, 2)
    features = jnp.asarray(x) if dense else sparse.stored(x)
    return problems.Problem(
        features=features,
        targets=jnp.asarray(t.astype(np.int32 if given.head == "softmax" else np.float64)),
        weights=jnp.asarray(np.pad(s, ((0, 0), (0, rows - n)))),
        l2=jnp.asarray(l2),
        l1=jnp.asarray(l1),
        largest=products.largest(features).astype(jnp.float64),
    )


def _bucket(n: int) -> int:
    """A number of rows of which there are few: a power of two, then at most an eighth more."""
    if n > EXACT:
        return n
    power = 1 << (n - 1).bit_length()
    unit = max(32, power if n <= 1024 else power // 16)
    return -(-n // unit) * unit


def intercepts(given: Data, weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where the intercepts start, [L, K]: 0, or the limit of a class or label without contrast."""
    lanes = len(weights)
    targets = np.broadcast_to(targets, (lanes, *targets.shape[1:]))
    b = np.zeros((lanes, given.classes))
    for lane in range(lanes):
        t, s = targets[lane], weights[lane]
        if given.head == "softmax":
            share = np.bincount(t, s, given.classes)
            b[lane, share == 0] = -np.inf
        else:
            share = s @ t / s.sum()
            b[lane] = np.where(share == 0, -np.inf, np.where(share == 1, np.inf, 0))
            b[lane, (t[s > 0] == 1).all(0)] = np.inf
    return b
