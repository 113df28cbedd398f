r"""From a user's arrays to a problem in lanes: checks, weights, penalties, padding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsoftmax import losses, validation
from jaxsoftmax.losses import check_labels
from jaxsoftmax.solvers import matvec, sparse
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.validation import ArrayLike

SMALL = 2**24  # features times classes: up to here float64 costs nothing worth a thought
LARGEST = {"float32": 1e15, "float64": 1e100}  # so that no sum of squares overflows
SUM = 1e-3  # by how much a distribution's sum may differ from one
EXACT = 8192  # examples: above, none are added to make shapes, and compilations, fewer


class Data(NamedTuple):
    """Checked arrays on the host: x [N, D]; targets, [N] labels or [N, K] numbers; s [N]."""

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
    classes: int | None = None,
) -> Data:
    """Check what the user passed; every error names the argument.

    `classes` is their number where it is known without the labels. What features and targets hold
    in an example of weight 0 does not matter.
    """
    head = _head(loss)
    x = _matrix(features)
    s = _weights(weights, x.shape[0])
    x, t = _features(x, s > 0, memory), validation.to_host(targets)
    c = None if class_weights is None else _class_weights(class_weights)
    if loss is losses.cross_entropy:
        t, classes = _labels(t, s > 0, classes if c is None else len(c))
    else:
        t = _distributions(t, s > 0) if head == "softmax" else _probabilities(t, s > 0)
        classes = t.shape[1]
    if c is not None:
        t, s = _reweighted(t, s, c, head)
        if not s.any():
            raise ValueError("class_weights: expected some example to keep a weight above 0")
    return Data(x, t, s, classes, head)


def _matrix(features: Any) -> Any:
    """Features `[N, D]` of floats: a NumPy array, or a SciPy CSR matrix of float32 or float64."""
    if hasattr(features, "tocsr"):  # a SciPy sparse matrix or array
        x = features.tocsr() if features.ndim == 2 else features
        x = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    else:
        x = validation.to_host(features)
    if x.dtype.name == "bfloat16" or x.dtype == np.float16:
        x = x.astype(np.float32)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"features: expected floats, got {x.dtype}")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"features: expected [N, D] and not empty, got shape {x.shape}")
    return x


def _features(x: Any, counts: np.ndarray, memory: int) -> Any:
    """Features that can be computed with; CSR where that is faster, or what `memory` allows."""
    if isinstance(x, np.ndarray):
        return _finite(x, counts)
    x.sum_duplicates()
    size = int(np.prod(x.shape, dtype=np.int64))
    if x.nnz >= sparse.DENSE * size and size * x.dtype.itemsize <= memory:
        return _finite(x.toarray(), counts)
    if sparse.needed(x) > memory:
        raise MemoryError(
            f"features: {x.nnz:,} entries need {sparse.needed(x):,} bytes; memory allows "
            f"{memory:,}: raise it, select columns, or fit by minibatches"
        )
    return _finite(x, counts)


def _finite(x: Any, counts: np.ndarray) -> Any:
    """The features; where an example that does not count is at fault, with zeros in its place."""
    fault = _fault(x)
    if fault is not None and not counts.all():
        x = _silenced(x, counts)
        fault = _fault(x)
    if fault is not None:
        raise ValueError(f"features: {fault}")
    return x


def _silenced(x: Any, counts: np.ndarray) -> Any:
    if isinstance(x, np.ndarray):
        return np.where(counts[:, None], x, np.zeros((), x.dtype))
    x = x.copy()
    x.data[~np.repeat(counts, np.diff(x.indptr))] = 0
    return x


def _fault(x: Any) -> str | None:
    """What is wrong with the features' values, or with a CSR matrix's entries."""
    dense = isinstance(x, np.ndarray)
    x = x if dense else x.data
    # One sum says whether all are finite; only where it overflows too each entry is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(x.sum()) or np.isfinite(x).all()
    if not finite:
        at = np.argwhere(~np.isfinite(x))[0].tolist()
        return f"expected finite numbers, got {x[tuple(at)]} at {'' if dense else 'entry '}{at}"
    largest, most = max(x.max(initial=0), -x.min(initial=0)), LARGEST[x.dtype.name]
    return (
        f"expected numbers up to {most:g}, got {largest:g}; scale them" if largest > most else None
    )


def numbers(x: ArrayLike, name: str) -> np.ndarray:
    """Real numbers or bools on the host, in the dtype they have."""
    a = validation.to_host(x)
    if not any(jnp.issubdtype(a.dtype, kind) for kind in (np.bool_, np.integer, np.floating)):
        raise TypeError(f"{name}: expected real numbers or bools, got {a.dtype}")
    return a


def _weights(weights: ArrayLike | None, n: int) -> np.ndarray:
    s = numbers(1 if weights is None else weights, "weights").astype(np.float64)
    if s.shape not in ((), (n,)):
        raise ValueError(f"weights: expected shape {(n,)} or one number, got {s.shape}")
    if not (np.isfinite(s) & (s >= 0)).all() or not s.any():
        raise ValueError("weights: expected finite numbers of at least 0, and some above 0")
    return np.broadcast_to(s, (n,))


def _head(loss: Callable) -> problems.Head:
    heads: dict[Callable, problems.Head] = {
        losses.cross_entropy: "softmax",
        losses.soft_cross_entropy: "softmax",
        losses.binary_cross_entropy: "sigmoid",
    }
    if loss not in heads:
        raise ValueError(
            "loss: expected jaxsoftmax.cross_entropy, jaxsoftmax.soft_cross_entropy or "
            f"jaxsoftmax.binary_cross_entropy, got {getattr(loss, '__name__', loss)!r}; "
            "training.fit minimises any loss"
        )
    return heads[loss]


def _labels(t: np.ndarray, counts: np.ndarray, classes: int | None) -> tuple[np.ndarray, int]:
    """Labels `[N]`, 0 where an example does not count, and the number of classes."""
    if t.shape != counts.shape:
        advice = "; loss=soft_cross_entropy takes [N, K] probabilities" if t.ndim == 2 else ""
        raise ValueError(
            f"targets: expected [N] with N = {len(counts)}, got shape {t.shape}{advice}"
        )
    if t.dtype.kind not in "iu":
        raise TypeError(
            f"targets: expected integer labels, got {t.dtype}; convert them: targets.astype(int) "
            "of whole numbers, numpy.unique(targets, return_inverse=True) of anything else"
        )
    t = np.where(counts, t, np.zeros((), t.dtype))
    classes = _inferred(t) if classes is None else classes
    check_labels(t, classes, name="targets")
    return t, classes


def _inferred(labels: np.ndarray) -> int:
    try:
        return losses.inferred_classes(labels, "targets")
    except ValueError as error:
        raise ValueError(f"{error}: class_weights=numpy.ones(K)") from None


def _probabilities(t: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Targets of sigmoids, float64 `[N, K]` in [0, 1]; 0 where an example does not count."""
    n = len(counts)
    if t.ndim not in (1, 2) or len(t) != n or 0 in t.shape:
        raise ValueError(f"targets: expected [N] or [N, K] with N = {n}, got shape {t.shape}")
    slack = _slack(numbers(t, "targets"))
    t = np.where(counts[:, None], t.astype(np.float64).reshape(n, -1), 0)
    outside = ~((t >= -slack) & (t <= 1 + slack))
    if outside.any():
        at = np.argwhere(outside)[0].tolist()
        raise ValueError(f"targets: expected numbers in [0, 1], got {t[tuple(at)]} at {at}")
    return np.clip(t, 0, 1)


def _distributions(t: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Targets of a softmax, `[N, K]`, rows of sum one; float64 where they came so, else float32."""
    n = len(counts)
    if t.ndim != 2 or len(t) != n or 0 in t.shape:
        raise ValueError(f"targets: expected [N, K] with N = {n}, got shape {t.shape}")
    slack = _slack(numbers(t, "targets"))
    dtype = np.float64 if t.dtype == np.float64 else np.float32
    t = np.where(counts[:, None], t.astype(dtype), np.eye(1, t.shape[1], dtype=dtype))
    if not (t >= -slack).all():
        at = np.argwhere(~(t >= -slack))[0].tolist()
        raise ValueError(f"targets: expected numbers in [0, 1], got {t[tuple(at)]} at {at}")
    # On the device a subnormal number is 0, and a class without targets is known by it.
    t = np.where(t < np.finfo(dtype).tiny, np.zeros((), dtype), t)
    sums = t.sum(1, dtype=np.float64)
    near = np.abs(sums - 1) <= max(SUM, slack)
    if not near.all():
        i = int(np.argmin(near))
        raise ValueError(
            f"targets[{i}]: expected probabilities of sum 1, got the sum {sums[i]:g}; divide each "
            "row by its sum, and multiply the example's weight by it if it is to count by it"
        )
    return t


def _slack(t: np.ndarray) -> float:
    """By how much rounding may take a probability of this dtype out of [0, 1]."""
    return (
        validation.ROUNDING_ULPS * float(jnp.finfo(t.dtype).eps)
        if t.dtype.kind not in "biu"
        else 0.0
    )


def _class_weights(class_weights: ArrayLike) -> np.ndarray:
    c = numbers(class_weights, "class_weights").astype(np.float64)
    if c.ndim != 1 or not len(c):
        raise ValueError(f"class_weights: expected one for each class, [K], got shape {c.shape}")
    if not (np.isfinite(c) & (c >= 0)).all():
        raise ValueError("class_weights: expected finite numbers of at least 0")
    return c


def _reweighted(
    t: np.ndarray, s: np.ndarray, c: np.ndarray, head: problems.Head
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights with those of the classes.

    An example whose target is shared among classes is as many examples, each of its class with its
    share of the weight: the weight becomes s sum_k c_k t_k, and the target is in proportion to c t.
    """
    if t.ndim == 1:
        return t, s * c[t]
    if head == "softmax":
        if len(c) != t.shape[1]:
            raise ValueError(f"class_weights: expected shape {t.shape[1:]}, got {c.shape}")
        share = t.astype(np.float64) * c
        total = share.sum(1)
        return np.where(total[:, None] > 0, share, t), s * total / t.sum(1, dtype=np.float64)
    if t.shape[1] > 1:
        raise ValueError("class_weights: expected one label; weigh the examples of several labels")
    if len(c) != 2:
        raise ValueError(f"class_weights: expected shape (2,) of one label, got {c.shape}")
    total = c[0] * (1 - t) + c[1] * t
    return np.where(total > 0, c[1] * t / np.where(total > 0, total, 1), t), s * total[:, 0]


def limits(gap: ArrayLike, max_iterations: int) -> np.ndarray:
    """The gaps that are asked for, after a check of what ends the iterations."""
    gaps = numbers(gap, "gap").astype(np.float64)
    if not (gaps >= 0).all():
        raise ValueError(f"gap: expected numbers of at least 0, got {gap!r}")
    whole = isinstance(max_iterations, int | np.integer) and not isinstance(max_iterations, bool)
    if not whole or max_iterations < 1:
        raise ValueError(
            f"max_iterations: expected an integer of at least 1, got {max_iterations!r}"
        )
    return gaps


def penalties(
    sums: np.ndarray, *, C: ArrayLike | None, alpha: ArrayLike | None, l1_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """l2 and l1 in the mean form, for lanes whose weights have these sums."""
    if (C is None) == (alpha is None):
        raise ValueError(f"C, alpha: expected one of the two, got C={C!r} and alpha={alpha!r}")
    if not 0 <= _number(l1_ratio, "l1_ratio") <= 1:
        raise ValueError(f"l1_ratio: expected a number in [0, 1], got {l1_ratio!r}")
    if C is not None:
        c = _number(C, "C")
        if not c > 0:
            raise ValueError(f"C: expected a number above 0, got {C!r}")
        strength = 1 / (c * sums)
    else:
        a = _number(alpha, "alpha")
        if not 0 <= a < np.inf:
            raise ValueError(f"alpha: expected a finite number of at least 0, got {alpha!r}")
        strength = np.full(sums.shape, a)
    return (1 - l1_ratio) * strength, l1_ratio * strength


def _number(value: Any, name: str) -> float:
    a = numbers(value, name)
    if a.ndim:
        raise ValueError(f"{name}: expected one number, got shape {a.shape}")
    return float(a)


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
    # Padding has no weight, but targets as the last example's: those of a softmax sum to one.
    t = np.pad(targets, ((0, 0), (0, rows - n)) + ((0, 0),) * (targets.ndim - 2), mode="edge")
    kind = {"softmax": t.dtype if t.ndim == 3 else np.int32, "sigmoid": np.float64}[given.head]
    t = np.moveaxis(t, 1, 2) if t.ndim == 3 else t
    features = jnp.asarray(x) if dense else sparse.stored(x)
    return problems.Problem(
        features=features,
        targets=jnp.asarray(t.astype(kind)),
        weights=jnp.asarray(np.pad(s, ((0, 0), (0, rows - n)))),
        l2=jnp.asarray(l2),
        l1=jnp.asarray(l1),
        largest=matvec.largest(features).astype(jnp.float64),
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
            share = np.bincount(t, s, given.classes) if t.ndim == 1 else s @ t
            b[lane, share == 0] = -np.inf
        else:
            share = s @ t / s.sum()
            b[lane] = np.where(share == 0, -np.inf, np.where(share == 1, np.inf, 0))
            b[lane, (t[s > 0] == 1).all(0)] = np.inf
    return b
