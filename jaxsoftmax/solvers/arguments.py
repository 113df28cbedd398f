r"""A user's arguments, checked: the arrays on the host, the weights, the penalties.

Nothing here imports JAX unless the arrays are its own or sparse, so that a small fit does without.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxsoftmax import host_arrays
from jaxsoftmax.solvers.outcome import Link

if TYPE_CHECKING:
    from jaxsoftmax.validation import ArrayLike

type TargetKind = Literal["labels", "distributions", "probabilities"]

MAX_MAGNITUDE = {"float32": 1e15, "float64": 1e100}  # of features: no sum of squares overflows
MAX_SUM_ERROR = 1e-3  # by how much the sum of a distribution may differ from one


class Data(NamedTuple):
    """Checked arrays on the host, but for features that devices share."""

    features: Any  # [N, D], a NumPy array, a SciPy CSR matrix or RowShards
    targets: np.ndarray  # labels [N] or numbers [N, K]
    weights: np.ndarray  # [N]
    classes: int
    link: Link


def check_data(
    features: "ArrayLike",
    targets: "ArrayLike",
    *,
    kind: TargetKind,
    weights: "ArrayLike | None",
    class_weights: "ArrayLike | None",
    memory: int,
    classes: int | None = None,
) -> Data:
    """Check a user's arrays; every error names the argument.

    Labels and distributions are the targets of a softmax, probabilities those of sigmoids.
    `classes` is the number of classes if it is known without the labels. Features and targets of an
    example of weight 0 are ignored.
    """
    x = _as_matrix(features)
    s = _prepare_weights(weights, num_examples(x))
    valid = s > 0
    x, t = _prepare_features(x, valid, memory), host_arrays.to_host(targets)
    c = None if class_weights is None else prepare_class_weights(class_weights)
    link: Link = "sigmoid" if kind == "probabilities" else "softmax"
    if kind == "labels":
        t, classes = _prepare_labels(t, valid, classes if c is None else len(c))
    elif kind == "distributions":
        t = _prepare_distributions(t, valid)
        classes = t.shape[1]
    else:
        t = _prepare_probabilities(t, valid)
        classes = t.shape[1]
    if c is not None:
        t, s = apply_class_weights(t, s, c, link)
        if not s.any():
            raise ValueError("class_weights: expected some example to keep a weight above 0")
    return Data(x, t, s, classes, link)


def num_examples(x: Any) -> int:
    """Return the number of rows that are not padding."""
    return x.examples if _is_row_shards(x) else x.shape[0]


def _is_row_shards(x: Any) -> bool:
    """Return whether x is RowShards, whose module needs JAX: it alone can place its rows."""
    return hasattr(x, "first_row_above")


def _as_matrix(features: Any) -> Any:
    """Return features `[N, D]` of float32 or float64: a NumPy array, CSR matrix or RowShards."""
    if hasattr(features, "tocsr"):  # a SciPy sparse matrix or array
        x = features.tocsr() if features.ndim == 2 else features
        x = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    else:
        x = features if _is_row_shards(features) else host_arrays.to_host(features)
    if x.dtype.name == "bfloat16" or x.dtype == np.float16:
        x = x.astype(np.float32)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"features: expected floats, got {x.dtype}")
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(f"features: expected [N, D] and not empty, got shape {x.shape}")
    return x


def _prepare_features(x: Any, valid: np.ndarray, memory: int) -> Any:
    """Return finite features; CSR where that is faster, or all that `memory` allows."""
    if isinstance(x, np.ndarray):
        return _require_finite(x, valid)
    if _is_row_shards(x):
        from jaxsoftmax.solvers import row_shards

        with row_shards.computing_with(x):
            return _require_finite(x, valid)
    from jaxsoftmax.solvers import sparse

    x.sum_duplicates()
    size = int(np.prod(x.shape, dtype=np.int64))
    if x.nnz >= sparse.MAX_SPARSE_DENSITY * size and size * x.dtype.itemsize <= memory:
        return _require_finite(x.toarray(), valid)
    if sparse.num_bytes(x) > memory:
        raise MemoryError(
            f"features: {x.nnz:,} entries need {sparse.num_bytes(x):,} bytes; memory allows "
            f"{memory:,}: raise it, select columns, or fit by minibatches"
        )
    return _require_finite(x, valid)


def _require_finite(x: Any, valid: np.ndarray) -> Any:
    """Return the features, with zeros for ignored examples if those have invalid values."""
    describe = _describe_invalid_shard if _is_row_shards(x) else _describe_invalid_value
    error = describe(x)
    if error is not None and not valid.all():
        x = _zero_ignored_rows(x, valid)
        error = describe(x)
    if error is not None:
        raise ValueError(f"features: {error}")
    return x


def _zero_ignored_rows(x: Any, valid: np.ndarray) -> Any:
    if isinstance(x, np.ndarray):
        return np.where(valid[:, None], x, np.zeros((), x.dtype))
    if _is_row_shards(x):
        return x.zero_rows(~valid)
    x = x.copy()
    x.data[~np.repeat(valid, np.diff(x.indptr))] = 0
    return x


def _describe_invalid_value(x: Any) -> str | None:
    """Return a description of a value that is not finite or too large, None if there is none."""
    dense = isinstance(x, np.ndarray)
    x = x if dense else x.data
    limit = MAX_MAGNITUDE[x.dtype.name]
    with np.errstate(invalid="ignore"):
        largest = np.maximum(x.max(initial=0), -x.min(initial=0))  # NaN if there is one
    if largest <= limit:
        return None
    if not np.isfinite(largest):
        at = np.argwhere(~np.isfinite(x))[0].tolist()
        return f"expected finite numbers, got {x[tuple(at)]} at {'' if dense else 'entry '}{at}"
    return f"expected numbers up to {limit:g}, got {largest:g}; scale them"


def _describe_invalid_shard(x: Any) -> str | None:
    """Return what `_describe_invalid_value` does, without the features on a host."""
    limit = MAX_MAGNITUDE[x.dtype.name]
    row = x.first_row_above(limit)
    if row is None:
        return None
    values = x.read_row(row)
    column = int(np.argmax(~(np.abs(values) <= limit)))
    if not np.isfinite(values[column]):
        return f"expected finite numbers, got {values[column]} at {[row, column]}"
    return (
        f"expected numbers up to {limit:g}, got {values[column]:g} at {[row, column]}; scale them"
    )


def as_real(x: "ArrayLike", name: str) -> np.ndarray:
    """Return real numbers or bools on the host, in their own dtype."""
    a = host_arrays.to_host(x)
    if a.dtype.kind not in "biuf" and not _is_extended_real(a.dtype):
        raise TypeError(f"{name}: expected real numbers or bools, got {a.dtype}")
    return a


def _is_extended_real(dtype: np.dtype) -> bool:
    """Return whether a dtype is one of JAX's own reals, such as bfloat16."""
    import jax.numpy as jnp

    return jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.floating)


def _prepare_weights(weights: "ArrayLike | None", n: int) -> np.ndarray:
    s = as_real(1 if weights is None else weights, "weights").astype(np.float64)
    if s.shape not in ((), (n,)):
        raise ValueError(f"weights: expected shape {(n,)} or one number, got {s.shape}")
    if not (np.isfinite(s) & (s >= 0)).all() or not s.any():
        raise ValueError("weights: expected finite numbers of at least 0, and some above 0")
    return np.broadcast_to(s, (n,))


def _prepare_labels(
    t: np.ndarray, valid: np.ndarray, classes: int | None
) -> tuple[np.ndarray, int]:
    """Return labels `[N]`, 0 for ignored examples, and the number of classes."""
    if t.shape != valid.shape:
        advice = "; loss=soft_cross_entropy takes [N, K] probabilities" if t.ndim == 2 else ""
        raise ValueError(
            f"targets: expected [N] with N = {len(valid)}, got shape {t.shape}{advice}"
        )
    if t.dtype.kind not in "iu":
        raise TypeError(
            f"targets: expected integer labels, got {t.dtype}; convert them: targets.astype(int) "
            "of whole numbers, numpy.unique(targets, return_inverse=True) of anything else"
        )
    t = np.where(valid, t, np.zeros((), t.dtype))
    classes = _infer_classes(t) if classes is None else classes
    host_arrays.require_labels(t, classes, "targets")
    return t, classes


def _infer_classes(labels: np.ndarray) -> int:
    try:
        return host_arrays.inferred_classes(labels, "targets")
    except ValueError as error:
        raise ValueError(f"{error}: class_weights=numpy.ones(K)") from None


def _prepare_probabilities(t: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return targets of sigmoids, float64 `[N, K]` in [0, 1]; 0 for ignored examples."""
    n = len(valid)
    if t.ndim not in (1, 2) or len(t) != n or 0 in t.shape:
        raise ValueError(f"targets: expected [N] or [N, K] with N = {n}, got shape {t.shape}")
    slack = _rounding_slack(as_real(t, "targets"))
    t = np.where(valid[:, None], t.astype(np.float64).reshape(n, -1), 0)
    _require_all((t >= -slack) & (t <= 1 + slack), t)
    return np.clip(t, 0, 1)


def _prepare_distributions(t: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return targets of a softmax, `[N, K]`, whose rows sum to one.

    They are float64 if they were passed so, else float32. Ignored examples have class 0.
    """
    n = len(valid)
    if t.ndim != 2 or len(t) != n or 0 in t.shape:
        raise ValueError(f"targets: expected [N, K] with N = {n}, got shape {t.shape}")
    slack = _rounding_slack(as_real(t, "targets"))
    dtype = np.float64 if t.dtype == np.float64 else np.float32
    t = np.where(valid[:, None], t.astype(dtype), np.eye(1, t.shape[1], dtype=dtype))
    _require_all(t >= -slack, t)
    # On the device a subnormal number is 0, which marks a class without targets.
    t = np.where(t < np.finfo(dtype).tiny, np.zeros((), dtype), t)
    sums = t.sum(1, dtype=np.float64)
    normalized = np.abs(sums - 1) <= max(MAX_SUM_ERROR, slack)
    if not normalized.all():
        i = int(np.argmin(normalized))
        raise ValueError(
            f"targets[{i}]: expected probabilities of sum 1, got the sum {sums[i]:g}; divide each "
            "row by its sum, and multiply the example's weight by it if it is to count by it"
        )
    return t


def _rounding_slack(t: np.ndarray) -> float:
    """Return by how much rounding may take a probability of this dtype out of [0, 1]."""
    if t.dtype.kind in "biu":
        return 0.0
    if t.dtype.kind == "f":
        return host_arrays.ROUNDING_ULPS * float(np.finfo(t.dtype).eps)
    import jax.numpy as jnp  # for JAX's own dtypes

    return host_arrays.ROUNDING_ULPS * float(jnp.finfo(t.dtype).eps)


def _require_all(in_range: np.ndarray, t: np.ndarray) -> None:
    """Raise a ValueError that names the first target out of range."""
    if not in_range.all():
        at = np.argwhere(~in_range)[0].tolist()
        raise ValueError(f"targets: expected numbers in [0, 1], got {t[tuple(at)]} at {at}")


def prepare_class_weights(class_weights: "ArrayLike") -> np.ndarray:
    """Check weights of the classes and return them in float64, `[K]`."""
    c = as_real(class_weights, "class_weights").astype(np.float64)
    if c.ndim != 1 or not len(c):
        raise ValueError(f"class_weights: expected one for each class, [K], got shape {c.shape}")
    if not (np.isfinite(c) & (c >= 0)).all():
        raise ValueError("class_weights: expected finite numbers of at least 0")
    return c


def apply_class_weights(
    t: np.ndarray, s: np.ndarray, c: np.ndarray, link: Link
) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and weights that include the class weights.

    An example whose target is shared among classes is equivalent to several examples, one for each
    class with its share of the weight: the weight becomes s sum_k c_k t_k, and the target is
    proportional to c t.
    """
    if t.ndim == 1:
        return t, s * c[t]
    if link == "softmax":
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


def prepare_gaps(gap: "ArrayLike", max_iterations: int) -> np.ndarray:
    """Check `gap` and `max_iterations`, which end the iterations, and return the gaps."""
    gaps = as_real(gap, "gap").astype(np.float64)
    if not (gaps >= 0).all():
        raise ValueError(f"gap: expected numbers of at least 0, got {gap!r}")
    whole = isinstance(max_iterations, int | np.integer) and not isinstance(max_iterations, bool)
    if not whole or max_iterations < 1:
        raise ValueError(
            f"max_iterations: expected an integer of at least 1, got {max_iterations!r}"
        )
    return gaps


def prepare_gap(gap: "ArrayLike", max_iterations: int) -> float:
    """Check the gap of one fit, and `max_iterations`, and return it."""
    gaps = prepare_gaps(gap, max_iterations)
    if gaps.ndim:
        raise ValueError(f"gap: expected one number, got shape {gaps.shape}")
    return float(gaps)


def prepare_penalties(
    sums: np.ndarray, *, C: "ArrayLike | None", alpha: "ArrayLike | None", l1_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return l2 and l1 in the mean form, for lanes whose weights have these sums."""
    if (C is None) == (alpha is None):
        raise ValueError(f"C, alpha: expected one of the two, got C={C!r} and alpha={alpha!r}")
    if not 0 <= _as_number(l1_ratio, "l1_ratio") <= 1:
        raise ValueError(f"l1_ratio: expected a number in [0, 1], got {l1_ratio!r}")
    if C is not None:
        c = _as_number(C, "C")
        if not c > 0:
            raise ValueError(f"C: expected a number above 0, got {C!r}")
        strength = 1 / (c * sums)
    else:
        a = _as_number(alpha, "alpha")
        if not 0 <= a < np.inf:
            raise ValueError(f"alpha: expected a finite number of at least 0, got {alpha!r}")
        strength = np.full(sums.shape, a)
    return (1 - l1_ratio) * strength, l1_ratio * strength


def _as_number(value: Any, name: str) -> float:
    a = as_real(value, name)
    if a.ndim:
        raise ValueError(f"{name}: expected one number, got shape {a.shape}")
    return float(a)


def initial_intercepts(data: Data, weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return where the intercepts start, `[L, K]`.

    This is 0, or the limit of the optimum: -inf for a class without examples, and +-inf for a label
    that is the same in all examples.
    """
    targets = np.broadcast_to(targets, (len(weights), *targets.shape[1:]))
    counts = [count_targets(data, t, s) for t, s in zip(targets, weights, strict=True)]
    return np.stack([intercept_limits(data.link, *each) for each in counts])


def count_targets(data: Data, t: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each class or label, and which labels all examples have, `[K]`."""
    if t.ndim == 1:
        return np.bincount(t, s, data.classes), np.zeros(data.classes, bool)
    return s @ t, (t[s > 0] == 1).all(0)


def intercept_limits(link: Link, share: np.ndarray, in_all: np.ndarray) -> np.ndarray:
    """Return the limit of each intercept, or 0: see `initial_intercepts`."""
    b = np.where(share == 0, -np.inf, 0)
    return b if link == "softmax" else np.where(in_all, np.inf, b)
