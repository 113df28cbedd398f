"""Metrics, calibration and training on meshes of eight devices, against the same on one.

A script, because a process has one number of devices: `test_meshes.py` runs it. It prints a line
for each case, PASS or FAIL with the reason; arguments select the cases whose names hold them, and
--list prints the names.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest import mock

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # programs that run once

import described_solver  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import mesh_run  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from jax import export  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from sklearn.base import clone  # noqa: E402

from jaxsoftmax import (  # noqa: E402
    Shards,
    binary_cross_entropy,
    calibration,
    cross_entropy,
    linear,
    linear_cross_entropy,
    metrics,
    sample_classes,
    soft_cross_entropy,
    solve,
    solve_path,
    training,
)
from jaxsoftmax.estimator import SoftmaxClassifier, SoftmaxClassifierCV  # noqa: E402
from jaxsoftmax.metrics import ranking  # noqa: E402
from jaxsoftmax.solvers import (  # noqa: E402
    class_preconditioner,
    prepare,
)
from jaxsoftmax.training import sweeping  # noqa: E402
from jaxsoftmax.training.division import UNDIVIDED, Division  # noqa: E402
from jaxsoftmax.training.epoch import jitted_train_epoch  # noqa: E402
from jaxsoftmax.training.types import Examples  # noqa: E402

N, K, D = 64, 8, 12
rng = np.random.default_rng(0)
LOGITS = rng.standard_normal((N, K)).astype(np.float32).round(1)  # with ties
LABELS = rng.integers(0, K, N).astype(np.int32)
TARGETS = rng.integers(0, 2, (N, K)).astype(np.int32)
WEIGHTS = rng.integers(0, 3, N).astype(np.float32)
FEATURES = rng.standard_normal((N, D)).astype(np.float32)
PARAMS = linear.LinearParams(*(rng.standard_normal(s).astype(np.float32) for s in ((D, K), (K,))))

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Register a case under its function's name."""
    CASES[function.__name__] = function
    return function


def mesh(kind: AxisType, *shape: int) -> Mesh:
    return jax.make_mesh(shape, ("r", "c")[: len(shape)], axis_types=(kind,) * len(shape))


AUTO, EXPLICIT = mesh(AxisType.Auto, 8), mesh(AxisType.Explicit, 8)
SQUARE = mesh(AxisType.Explicit, 2, 4)


def within(mesh: Mesh) -> AbstractContextManager[Any]:
    """The context in which an Explicit mesh is used; an Auto mesh needs none."""
    return jax.set_mesh(mesh) if mesh is not AUTO else nullcontext()


def place(a: Any, mesh: Mesh, *axes: Any) -> jax.Array:
    return jax.device_put(a, NamedSharding(mesh, P(*axes[: a.ndim])))


def same(got: Any, wanted: Any, rtol: float = 1e-5) -> None:
    def equal(g: Any, w: Any) -> None:
        np.testing.assert_allclose(np.asarray(g), np.asarray(w), rtol=rtol, atol=1e-6)

    jax.tree.map(equal, got, wanted)


def by_shard(f: Callable, replicated: tuple, rows: tuple) -> None:
    """Inside a shard_map over rows f says of each shard what it says of these rows alone."""

    def local(*args: Any) -> Any:
        return jax.tree.map(lambda a: a[None], f(*args))

    specs = (P(),) * len(replicated) + (P("r"),) * len(rows)
    got = jax.jit(jax.shard_map(local, mesh=AUTO, in_specs=specs, out_specs=P("r")))(
        *replicated, *rows
    )
    alone = jax.jit(local)
    parts = [alone(*replicated, *(np.split(a, 8)[i] for a in rows)) for i in range(8)]
    same(got, jax.tree.map(lambda *a: np.concatenate(a), *parts))


# -- Metrics --


def sigmoid_reliability(z: Any, t: Any, weights: Any = None) -> Any:
    each = None if weights is None else jnp.broadcast_to(weights[:, None], z.shape)
    return metrics.reliability(jax.nn.sigmoid(z), t, weights=each)


def interval(z: Any, y: Any) -> Any:
    return metrics.bootstrap(metrics.accuracy, (z, y), key=jax.random.key(0), resamples=20)


def scores(z: Any, t: Any) -> Any:
    counts = metrics.label_counts(z, t)
    f1 = metrics.f1(counts)
    micro = metrics.f1(metrics.micro(counts))
    return metrics.precision(counts), metrics.recall(counts), f1, metrics.macro(f1), micro


OF_LABELS = {
    "hits": functools.partial(metrics.hits, k=2),
    "accuracy": metrics.accuracy,
    "top_k_accuracy": functools.partial(metrics.top_k_accuracy, k=3),
    "negative_log_likelihood": metrics.negative_log_likelihood,
    "brier_score": metrics.brier_score,
    "confusion_matrix": metrics.confusion_matrix,
    "class_counts": metrics.class_counts,
    "one_vs_rest": metrics.one_vs_rest,
    "expected_calibration_error": metrics.expected_calibration_error,
    "bootstrap": interval,
}
OF_TARGETS = {
    "log_loss": metrics.log_loss,
    "label_accuracy": metrics.label_accuracy,
    "label_counts": metrics.label_counts,
    "scores": scores,
    "roc_auc": metrics.roc_auc,
    "average_precision": metrics.average_precision,
    "reliability": sigmoid_reliability,
}
METRICS = {name: (f, (LOGITS, LABELS)) for name, f in OF_LABELS.items()}
METRICS |= {name: (f, (LOGITS, TARGETS)) for name, f in OF_TARGETS.items()}
METRICS["roc_auc_of_one"] = metrics.roc_auc, (LOGITS[:, 0], TARGETS[:, 0])
WEIGHTED = ("confusion_matrix", "expected_calibration_error", "log_loss", "roc_auc", "reliability")
METRICS |= {
    f"{name}_weighted": (
        lambda z, t, w, f=METRICS[name][0]: f(z, t, weights=w),
        (*METRICS[name][1], WEIGHTS),
    )
    for name in WEIGHTED
}


@functools.cache
def whole(name: str) -> Any:
    f, args = METRICS[name]
    return jax.device_get(jax.jit(f)(*args))


def metric(name: str, mesh: Mesh, *axes: Any, alike: bool = True) -> None:
    """A metric under jit; unless alike, only the logits are sharded."""
    f, args = METRICS[name]
    placed = [place(a, mesh, *(axes if alike or not i else ())) for i, a in enumerate(args)]
    with within(mesh):
        same(jax.jit(f)(*placed), whole(name))


def metric_without_context(name: str) -> None:
    f, args = METRICS[name]
    same(f(*(place(a, EXPLICIT, "r") for a in args)), whole(name))


SOME = ("confusion_matrix_weighted", "expected_calibration_error", "roc_auc_weighted", "bootstrap")
for name in METRICS:
    CASES[f"explicit_{name}"] = functools.partial(metric, name, SQUARE, "r", "c")
for name in SOME:
    CASES[f"explicit_rows_{name}"] = functools.partial(metric, name, EXPLICIT, "r")
    CASES[f"manual_{name}"] = functools.partial(by_shard, METRICS[name][0], (), METRICS[name][1])
    CASES[f"outside_{name}"] = functools.partial(metric_without_context, name)
for name in (*SOME[:3], "hits"):
    CASES[f"unlike_{name}"] = functools.partial(metric, name, SQUARE, "r", "c", alike=False)


CASES["auto_bootstrap"] = functools.partial(metric, "bootstrap", AUTO, "r")


@case
def some_labels_at_a_time() -> None:
    """As where examples are many: no loop steps over a sharded axis."""
    jax.clear_caches()  # or the program of all labels at once may answer
    with mock.patch.object(ranking, "MAX_RANKED_AT_ONCE", 2 * N):
        metric("roc_auc_weighted", SQUARE, "r", "c")


@case
def no_gathered_logits() -> None:
    """What crosses between devices is some numbers of each example, never its logits."""
    n, k = 64, 1024
    z, y = jnp.zeros((n, k)), jnp.zeros(n, jnp.int32)
    functions = metrics.hits, metrics.confusion_matrix, metrics.expected_calibration_error
    for m, axes in ((AUTO, (None, "r")), (EXPLICIT, (None, "r")), (EXPLICIT, ("r", None))):
        for f in functions:
            with within(m):
                text = (
                    jax.jit(f).lower(place(z, m, *axes), place(y, m, axes[0])).compile().as_text()
                )
            sizes = [size for kind, size in collectives(text) if kind == "all-gather"]
            assert max(sizes, default=0) <= 8 * n, (f.__name__, axes, sizes)


def collectives(text: str) -> Iterator[tuple[str, int]]:
    """The collectives of a compiled program, each with its elements."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for dims in re.findall(r"\[([\d,]*)\]", shapes):
            yield kind, int(np.prod([int(d) for d in dims.split(",") if d]))


# -- Training --

OPTIMIZER = optax.adam(1e-2)
SOFTMAX, SIGMOID = training.on_logits(cross_entropy), training.on_logits(binary_cross_entropy)


def state(params: linear.LinearParams = PARAMS) -> training.TrainState:
    return training.init_state(params, optimizer=OPTIMIZER, key=jax.random.key(0))


def epoch(x: Any, t: Any, w: Any, params: Any = PARAMS, batch_size: int = 24) -> tuple:
    loss = SOFTMAX if t.ndim == 1 else SIGMOID
    how = {"loss": loss, "optimizer": OPTIMIZER, "batch_size": batch_size, "weights": w}
    end, means = training.train_epoch(state(params), x, t, order="global", **how)
    return end.params, means, training.evaluate(end.params, x, t, loss=loss, weights=w)


@functools.cache
def whole_epoch(several: bool, batch_size: int = 24) -> tuple:
    t = TARGETS if several else LABELS
    return jax.device_get(epoch(FEATURES, t, WEIGHTS, batch_size=batch_size))


def sharded_epoch(mesh: Mesh, rows: tuple, batch_size: int, context: bool = True) -> None:
    data = (place(a, mesh, *rows) for a in (FEATURES, LABELS, WEIGHTS))
    with within(mesh) if context else nullcontext():
        same(epoch(*data, batch_size=batch_size), whole_epoch(False, batch_size))


for size in (20, 24):  # the devices divide 24 alone; both leave a last part
    CASES[f"epoch_explicit_{size}"] = functools.partial(sharded_epoch, EXPLICIT, ("r",), size)
CASES["epoch_auto_20"] = functools.partial(sharded_epoch, AUTO, ("r",), 20)
CASES["epoch_auto_24"] = functools.partial(sharded_epoch, AUTO, ("r",), 24)
CASES["epoch_outside"] = functools.partial(sharded_epoch, EXPLICIT, ("r",), 24, context=False)
CASES["epoch_replicated"] = functools.partial(sharded_epoch, EXPLICIT, (), 24)


@case
def epoch_targets_replicated() -> None:
    with within(EXPLICIT):
        data = place(FEATURES, EXPLICIT, "r"), place(LABELS, EXPLICIT), place(WEIGHTS, EXPLICIT)
        same(epoch(*data), whole_epoch(False))


def epoch_of_model(features: tuple, model: tuple, several: bool) -> None:
    """Rows and classes, the model in parts over the rows' axis, or the features in parts."""
    w, bias = place(PARAMS.w, SQUARE, *model), place(PARAMS.bias, SQUARE, *model[1:])
    x = place(FEATURES, SQUARE, *features)
    t, weights = (place(a, SQUARE, "r") for a in (TARGETS if several else LABELS, WEIGHTS))
    with within(SQUARE):
        same(epoch(x, t, weights, linear.LinearParams(w, bias)), whole_epoch(several))


for name, axes in {
    "epoch_classes": (("r",), (None, "c"), False),
    "epoch_classes_several": (("r",), (None, "c"), True),
    "epoch_model_over_rows": (("r",), (None, "r"), False),
    "epoch_features": (("r", "c"), ("c", None), True),
}.items():
    CASES[name] = functools.partial(epoch_of_model, *axes)


def ignoring(put: Callable[[np.ndarray], Any], batch_size: int) -> tuple:
    """Rows of weight 0 hold labels out of range and features that are no numbers."""
    counts = WEIGHTS > 0
    x, t = np.where(counts[:, None], FEATURES, np.nan), np.where(counts, LABELS, -100)
    return epoch(*map(put, (x, t, counts)), batch_size=batch_size)


@functools.cache
def whole_ignoring(batch_size: int) -> tuple:
    return jax.device_get(ignoring(lambda a: a, batch_size))


def sharded_ignoring(mesh: Mesh, batch_size: int) -> None:
    with within(mesh):
        same(ignoring(lambda a: place(a, mesh, "r"), batch_size), whole_ignoring(batch_size))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(whole_ignoring(batch_size)))


for name, m in (("auto", AUTO), ("explicit", EXPLICIT), ("square", SQUARE)):
    for size in (24, N):
        CASES[f"epoch_ignoring_{name}_{size}"] = functools.partial(sharded_ignoring, m, size)


def perceptron(params: Any, x: Any) -> Any:
    """Scores `[B, 3, K]` of three pixels."""
    hidden = jnp.tanh(x.reshape(-1, 3, D // 3) @ params["inner"])
    return hidden @ params["outer"]


def own_model(put: Callable[[np.ndarray], Any], batch_size: int) -> tuple:
    draw = np.random.default_rng(1)
    params = {"inner": draw.normal(size=(D // 3, 5)), "outer": draw.normal(size=(5, K))}
    x, t, w = map(put, (FEATURES, TARGETS[:, :3] + LABELS[:, None] // 2, WEIGHTS))
    result = training.fit(
        training.on_logits(cross_entropy, logits=perceptron),
        x,
        t,
        params=jax.tree.map(np.float32, params),
        optimizer=OPTIMIZER,
        key=jax.random.key(0),
        epochs=2,
        batch_size=batch_size,
        weights=w,
        validation=(x, t, w),
        patience=2,
        order="global",
    )
    return result.params, result.history, result.best_epoch


@functools.cache
def whole_own_model(batch_size: int) -> tuple:
    return jax.device_get(own_model(lambda a: a, batch_size))


def sharded_own_model(mesh: Mesh, batch_size: int, context: bool = True) -> None:
    with within(mesh) if context else nullcontext():
        same(own_model(lambda a: place(a, mesh, "r"), batch_size), whole_own_model(batch_size))


for size in (16, N):
    CASES[f"own_model_auto_{size}"] = functools.partial(sharded_own_model, AUTO, size)
    CASES[f"own_model_explicit_{size}"] = functools.partial(sharded_own_model, EXPLICIT, size)
CASES["own_model_outside"] = functools.partial(sharded_own_model, EXPLICIT, 16, context=False)


@case
def epoch_by_shard() -> None:
    """Each device of a shard_map fits a model of its own."""
    f = functools.partial(epoch, batch_size=3)
    by_shard(lambda p, x, t, w: f(x, t, w, p), (PARAMS,), (FEATURES, LABELS, WEIGHTS))


@functools.cache
def in_one_stratum_each(batch_size: int, weighted: bool) -> tuple:
    """Eight strata on one device: the truth for eight devices."""
    data = FEATURES, LABELS, WEIGHTS if weighted else None
    return jax.device_get(stratified(*data, batch_size, virtual_shards=8))


def stratified(x: Any, t: Any, w: Any, batch_size: int, **division: Any) -> tuple:
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZER, "batch_size": batch_size, "weights": w}
    start, _ = training.train_epoch(state(), x, t, **how, **division)
    end, means = training.train_epoch(start, x, t, **how, **division)
    return end.params, means, end.key


def stratified_epoch(
    mesh: Mesh, batch_size: int, weighted: bool, context: bool = True, **division: Any
) -> None:
    data = (place(a, mesh, "r") for a in (FEATURES, LABELS, WEIGHTS))
    x, t, w = data
    with jax.set_mesh(mesh) if context else nullcontext():
        got = stratified(x, t, w if weighted else None, batch_size, **division)
    same(got, in_one_stratum_each(batch_size, weighted))


ROWS = Shards(rows="r")
for size in (16, 24, N):  # 24 leaves a last part in each shard
    explicit = {"order": "stratified"} if size == N else {}
    CASES[f"stratified_explicit_{size}"] = functools.partial(
        stratified_epoch, EXPLICIT, size, True, **explicit
    )
    CASES[f"stratified_auto_{size}"] = functools.partial(
        stratified_epoch, AUTO, size, False, shards=ROWS
    )
CASES["stratified_without_context"] = functools.partial(
    stratified_epoch, EXPLICIT, 24, True, context=False
)
CASES["stratified_auto_without_context"] = functools.partial(
    stratified_epoch, AUTO, 24, True, context=False, shards=ROWS
)


@case
def stratified_over_rows_of_a_square() -> None:
    """The classes are sharded over the other axis of the mesh."""
    params = linear.LinearParams(
        *(place(a, SQUARE, *s) for a, s in zip(PARAMS, ((None, "c"), ("c",)), strict=True))
    )
    x, t = place(FEATURES, SQUARE, "r"), place(LABELS, SQUARE, "r")
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZER, "batch_size": 16}
    with within(SQUARE):
        end, means = training.train_epoch(state(params), x, t, order="stratified", **how)
        how["virtual_shards"] = 2
        again, _ = training.train_epoch(state(params), x, t, **how)
    alone, wanted = training.train_epoch(state(), FEATURES, LABELS, **how)
    same((end.params, means), (alone.params, wanted))
    same(again.params, alone.params)


@case
def stratified_in_shard_map() -> None:
    """Each device holds its rows, and all devices fit one model."""
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZER, "batch_size": 24, "shards": ROWS}

    def local(start: Any, x: Any, t: Any, w: Any) -> Any:
        end, _ = training.train_epoch(start, x, t, weights=w, **how)
        end, means = training.train_epoch(end, x, t, weights=w, **how)
        evaluated = [
            training.evaluate(end.params, x, t, loss=SOFTMAX, weights=weights, shards=ROWS)
            for weights in (w, None)
        ]
        return (end.params, means, end.key), evaluated

    specs = P(), P("r"), P("r"), P("r")
    f = jax.jit(jax.shard_map(local, mesh=AUTO, in_specs=specs, out_specs=P()))
    got, evaluated = f(state(), FEATURES, LABELS, WEIGHTS)
    same(got, in_one_stratum_each(24, True))
    for weights, means in zip((WEIGHTS, None), evaluated, strict=True):
        same(means, training.evaluate(got[0], FEATURES, LABELS, loss=SOFTMAX, weights=weights))


@case
def stratified_bits_are_the_same_on_any_number_of_devices() -> None:
    wanted = in_one_stratum_each(24, True)
    for count in (1, 2, 4, 8):
        part = Mesh(np.array(jax.devices()[:count]), ("r",), axis_types=(AxisType.Explicit,))
        data = [place(a, part, "r") for a in (FEATURES, LABELS, WEIGHTS)]
        with jax.set_mesh(part):
            got = jax.device_get(stratified(*data, 24, virtual_shards=8))
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


@case
def stratified_shard_of_ignored_rows() -> None:
    """A shard without any valid row, whose rows hold what would poison a sum."""
    w = WEIGHTS.copy()
    w[8:16] = 0
    x, t = np.where(w[:, None] > 0, FEATURES, np.nan), np.where(w > 0, LABELS, -100)
    for batch_size in (24, N):
        how = {"batch_size": batch_size, "order": "stratified"}
        wanted = stratified(x, t, w, virtual_shards=8, **how)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(wanted))
        with within(EXPLICIT):
            got = stratified(*(place(a, EXPLICIT, "r") for a in (x, t, w)), **how)
        same(got, wanted)


@case
def stratified_lanes() -> None:
    how = {
        "make_optimizer": optax.adam,
        "hyperparams": jnp.array([0.01, 0.1]),
        "keys": jax.random.split(jax.random.key(0), 2),
        "epochs": 2,
        "batch_size": 16,
    }
    wanted = training.sweep(SOFTMAX, FEATURES, LABELS, weights=WEIGHTS, virtual_shards=8, **how)
    x, t, w = (place(a, EXPLICIT, "r") for a in (FEATURES, LABELS, WEIGHTS))
    with within(EXPLICIT):
        got = training.sweep(SOFTMAX, x, t, weights=w, **how)
        again = training.sweep(SOFTMAX, x, t, weights=w, virtual_shards=8, **how)
    same((got.params, got.history), (wanted.params, wanted.history))
    jax.tree.map(np.testing.assert_array_equal, again.params, wanted.params)


@case
def stratified_line_search() -> None:
    """An optimizer that evaluates the loss at other parameters, and its gradient."""
    how = {"optimizer": optax.lbfgs(), "key": jax.random.key(0), "epochs": 3, "batch_size": N}
    wanted = training.fit(SOFTMAX, FEATURES, LABELS, **how)
    x, t = (place(a, EXPLICIT, "r") for a in (FEATURES, LABELS))
    with within(EXPLICIT):
        for division in ({"order": "stratified"}, {"virtual_shards": 8}):
            got = training.fit(SOFTMAX, x, t, **how, **division)
            same(got.history, wanted.history, rtol=1e-4)


def stratified_sends_gradients_alone(mesh: Mesh, division: Division) -> None:
    """Of a minibatch, nothing crosses between devices but the sums of gradients and means."""
    n, batch = 512, 128
    x = place(np.ones((n, D), np.float32), mesh, "r")
    t = place(np.zeros(n, np.int32), mesh, "r")
    with within(mesh):
        text = lowered_epoch(x, t, batch, 0, division).compile().as_text()
    found = list(collectives(text))
    assert {kind for kind, _ in found} == {"all-reduce"}, found
    assert max(size for _, size in found) <= D * K, found
    shapes = re.findall(r"= f32\[([\d,]*)\]\S* dot\(", text)
    assert any(str(batch // 8) in shape.split(",") for shape in shapes), shapes
    assert not any(str(batch) in shape.split(",") for shape in shapes), shapes


for name, arguments in {
    "explicit": (EXPLICIT, UNDIVIDED),
    "auto": (AUTO, Division(shards=ROWS)),
}.items():
    CASES[f"stratified_sends_gradients_alone_{name}"] = functools.partial(
        stratified_sends_gradients_alone, *arguments
    )


def streamed(**division: Any) -> training.FitResult:
    rows = [*zip(FEATURES, LABELS, strict=True)][:60]  # which no number of devices divides
    source = training.RecordSource(rows, lambda row: row, block_size=7, window=32)
    how = {"optimizer": OPTIMIZER, "key": jax.random.key(0), "batch_size": 16, "epochs": 2}
    return training.fit(SOFTMAX, source, params=linear.init(D, K), **how, **division)


def fused(head: Any, x: Any, t: Any) -> Any:
    return linear_cross_entropy(x, head.w, t, bias=head.bias).nll


def over_classes() -> linear.LinearParams:
    """A head whose classes are sharded over the axis of the mesh that the rows do not use."""
    axes = (None, "c"), ("c",)
    return linear.LinearParams(*(place(a, SQUARE, *s) for a, s in zip(PARAMS, axes, strict=True)))


@case
def streamed_to_a_head_over_classes() -> None:
    rows = [*zip(FEATURES, LABELS, strict=True)]
    source = training.RecordSource(rows, lambda row: row, block_size=7, window=32)
    how = {"optimizer": OPTIMIZER, "key": jax.random.key(0), "batch_size": 16, "epochs": 2}
    wanted = training.fit(fused, source, params=PARAMS, score=None, **how)
    with within(SQUARE):
        got = training.fit(fused, source, params=over_classes(), score=None, shards=ROWS, **how)
    assert got.params.w.sharding.spec == P(None, "c")
    same((got.params, got.history), (wanted.params, wanted.history))


@case
def streamed_over_devices() -> None:
    wanted = streamed(virtual_shards=8)
    on_one = streamed()
    # The kind of a mesh says where it is found, and its size how rows are divided.
    for kind, count in ((AxisType.Auto, 8), (AxisType.Explicit, 2)):
        part = Mesh(np.array(jax.devices()[:count]), ("r",), axis_types=(kind,))
        with jax.set_mesh(part):
            got = streamed(shards=ROWS, virtual_shards=8)
            alike = streamed(shards=ROWS)
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
        # One process reads all rows in one order, on any number of devices.
        same((alike.params, alike.history), (on_one.params, on_one.history))


@case
def stratified_where_the_model_is_sharded() -> None:
    """A model over the rows' axis, and a fused loss of classes over another one."""
    x, t = (place(a, EXPLICIT, "r") for a in (FEATURES, LABELS))
    over_rows = linear.LinearParams(
        place(PARAMS.w, EXPLICIT, None, "r"), place(PARAMS.bias, EXPLICIT, "r")
    )
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZER, "batch_size": 24}
    with within(EXPLICIT):
        got, _ = training.train_epoch(state(over_rows), x, t, **how)
    same(
        got.params,
        training.train_epoch(state(), FEATURES, LABELS, virtual_shards=8, **how)[0].params,
    )
    how = {"loss": fused, "optimizer": OPTIMIZER, "batch_size": 24, "score": None}
    with within(SQUARE):
        x, t = (place(a, SQUARE, "r") for a in (FEATURES, LABELS))
        got, _ = training.train_epoch(state(over_classes()), x, t, **how)
    same(
        got.params,
        training.train_epoch(state(), FEATURES, LABELS, virtual_shards=2, **how)[0].params,
    )


@case
def stratified_gives_way_where_shards_do_not_divide_the_batch() -> None:
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZER, "batch_size": 20}
    wanted, _ = training.train_epoch(state(), FEATURES, LABELS, **how)
    x, t = (place(a, EXPLICIT, "r") for a in (FEATURES, LABELS))
    with within(EXPLICIT):
        got, _ = training.train_epoch(state(), x, t, **how)
    same(got.params, wanted.params)


def work_is_shared(mesh: Mesh, lanes: int = 0) -> None:
    """Each device computes its part of a minibatch, and of all dots none takes more rows."""
    n, batch = 512, 128
    x = place(np.ones((n, D), np.float32), mesh, "r")
    t = place(np.zeros(n, np.int32), mesh, "r")
    with within(mesh):
        text = (lowered_sweep if lanes else lowered_epoch)(x, t, batch, lanes).compile().as_text()
    shapes = re.findall(r"= f32\[([\d,]*)\]\S* dot\(", text)
    assert f"{max(1, lanes) * K},{batch // 8}" in shapes, shapes
    assert not any(str(batch) in shape.split(",") for shape in shapes), shapes
    largest = max(size for _, size in collectives(text))
    assert largest <= batch * D, largest


GLOBAL = Division(order="global")


def lowered_epoch(x: Any, t: Any, batch: int, lanes: int, division: Division = GLOBAL) -> Any:
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZER, "batch_size": batch}
    return jitted_train_epoch.lower(
        state(),
        Examples(x, t, None),
        score=training.accuracy,
        division=division,
        replace_ignored=False,
        **how,
    )


def lowered_sweep(x: Any, t: Any, batch: int, lanes: int) -> Any:
    params = jax.tree.map(lambda a: jnp.stack([a] * lanes), PARAMS)
    rates = jnp.full(lanes, 0.1)
    key = jax.random.key_data(jax.random.key(0))
    start = sweeping.init_lanes(params, rates, make_optimizer=optax.adam, key=key)
    how = {"make_optimizer": optax.adam, "batch_size": batch, "loss": SOFTMAX}
    return sweeping.jitted_sweep_epoch.lower(
        start, rates, Examples(x, t, None), score=training.accuracy, division=GLOBAL, **how
    )


for name, m in (("auto", AUTO), ("explicit", EXPLICIT)):
    CASES[f"work_is_shared_{name}"] = functools.partial(work_is_shared, m)
    CASES[f"work_of_lanes_is_shared_{name}"] = functools.partial(work_is_shared, m, 3)


def fitted(put: Callable[[Any], Any]) -> tuple:
    x, t, w = map(put, (FEATURES, LABELS, WEIGHTS))
    result = training.fit(
        SOFTMAX,
        x,
        t,
        optimizer=OPTIMIZER,
        key=jax.random.key(0),
        epochs=2,
        batch_size=16,
        weights=w,
        validation=(x, t),
        patience=2,
        order="global",
    )
    return result.params, result.history, result.best_epoch


def swept(put: Callable[[Any], Any]) -> tuple:
    x, t, w = map(put, (FEATURES, LABELS, WEIGHTS))
    result = training.sweep(
        SOFTMAX,
        x,
        t,
        make_optimizer=optax.adam,
        hyperparams=jnp.array([0.01, 0.1]),
        keys=jax.random.split(jax.random.key(0), 2),
        epochs=2,
        batch_size=16,
        weights=w,
        validation=(x, t),
        order="global",
    )
    return result.params, result.history, result.best_epoch


@functools.cache
def whole_fit(fit: Callable) -> tuple:
    return jax.device_get(fit(lambda a: a))


def sharded_fit(fit: Callable, mesh: Mesh, rows: tuple, context: bool = True) -> None:
    with within(mesh) if context else nullcontext():
        same(fit(lambda a: place(a, mesh, *rows)), whole_fit(fit))


for fit in (fitted, swept):
    for name, m in (("auto", AUTO), ("explicit", EXPLICIT)):
        CASES[f"{fit.__name__}_{name}"] = functools.partial(sharded_fit, fit, m, ("r",))
CASES["fitted_outside"] = functools.partial(sharded_fit, fitted, EXPLICIT, ("r",), context=False)


@case
def logits_of_any_rank() -> None:
    x = rng.standard_normal((8, 4, D)).astype(np.float32)
    for axes in (("r", "c"), (None, "c"), ("c",)):
        with within(SQUARE):
            got = jax.jit(linear.logits)(PARAMS, place(x, SQUARE, *axes))
        same(got, linear.logits(PARAMS, x))


@case
def products_in_bfloat16() -> None:
    logits = functools.partial(linear.logits, dtype=jnp.bfloat16)
    loss = training.on_logits(cross_entropy, logits=logits)

    def mean(params: Any, x: Any, t: Any) -> Any:
        return jnp.mean(loss(params, x, t))

    wanted = jax.value_and_grad(mean)(PARAMS, FEATURES, LABELS)
    for axes in (("r",), ("r", "c")):
        with within(SQUARE):
            x, t = place(FEATURES, SQUARE, *axes), place(LABELS, SQUARE, "r")
            same(jax.jit(jax.value_and_grad(mean))(PARAMS, x, t), wanted)


# -- Sampled classes --


@case
def sampled_classes_stay_on_their_device() -> None:
    """Value and gradient of a head of sampled classes, of which nothing is gathered."""
    k = 512
    w = np.random.default_rng(2).standard_normal((D, k)).astype(np.float32)
    t = np.arange(N, dtype=np.int32) * 7

    def mean(w: Any, x: Any, t: Any) -> Any:
        sample = sample_classes(t, k, count=384, key=jax.random.key(0), groups=4)
        loss = linear_cross_entropy(x, sample.take(w), sample.labels, bias=sample.bias)
        return jnp.mean(loss.nll)

    f = jax.value_and_grad(mean)
    with within(SQUARE):
        sharded = place(w, SQUARE, None, "c"), place(FEATURES, SQUARE, "r"), place(t, SQUARE, "r")
        same(jax.jit(f)(*sharded), jax.jit(f)(w, FEATURES, t))
        text = (
            jax.jit(
                lambda w, t: sample_classes(t, k, count=384, key=jax.random.key(0), groups=4).take(
                    w
                )
            )
            .lower(sharded[0], t)
            .compile()
            .as_text()
        )
    assert not list(collectives(text)), list(collectives(text))


# -- Calibration --


def calibrated(t: np.ndarray, mesh: Mesh, *axes: Any, context: bool = True) -> None:
    """Vector scaling, which starts from a temperature: all of it, what data leave open included."""
    softmax = t.ndim == 1
    data = LOGITS + 2 * (np.eye(K, dtype=np.float32)[LABELS] if softmax else TARGETS)
    data[:, 1], data[:, 2] = 0.7, -np.inf if softmax else 0  # which determine no scale
    t = np.where(t == 2, 3, t)  # no label on the masked class
    weights = WEIGHTS * FEATURES[:, 0] ** 2  # no whole numbers, which end at the edges of bins
    wanted = calibration.vector_scaling(data, t, weights=weights)
    with within(mesh) if context else nullcontext():
        z, t, w = (place(a, mesh, *axes) for a in (data, t, weights))
        got = calibration.vector_scaling(z, t, weights=w)
        same(got.apply(z), wanted.apply(data))
    same(got, wanted)


for t in (LABELS, TARGETS):
    name = f"calibration_of_{'softmax' if t.ndim == 1 else 'sigmoid'}"
    CASES[f"auto_{name}"] = functools.partial(calibrated, t, AUTO, "r")
    CASES[f"explicit_{name}"] = functools.partial(calibrated, t, SQUARE, "r", "c")
    CASES[f"outside_{name}"] = functools.partial(calibrated, t, SQUARE, "r", "c", context=False)


# -- Solvers --

ALPHA = 1e-2
CLASSES = 11  # which neither four nor eight shards divide
OVER_BOTH, OVER_CLASSES = Shards(rows="r", classes="c"), Shards(classes=("r", "c"))


def class_examples() -> tuple[np.ndarray, np.ndarray]:
    """Features in float64, and labels of all classes that no linear model separates."""
    x = np.concatenate([FEATURES, FEATURES[::-1] + 0.3]).astype(np.float64)
    return x, (np.argmax(x[:, :CLASSES], 1) + np.arange(len(x)) % 3) % CLASSES


def certified(
    shards: Shards,
    x: Any,
    targets: Any,
    gap: float,
    around: AbstractContextManager[Any] | None = None,
    **how: Any,
) -> None:
    """The optimum that a host finds in float64, within the gap and as near as the gap proves."""
    truth = solve(x.astype(np.float64), targets, alpha=ALPHA, gap=1e-12, **how)
    with jax.set_mesh(SQUARE), around or nullcontext():
        found = solve(x, targets, alpha=ALPHA, gap=gap, shards=shards, **how)
    assert found.converged, found.reason
    assert found.gap <= gap
    relative = (found.objective - truth.objective) / truth.objective
    assert -1e-11 <= relative <= found.gap + 1e-12, relative
    distance = np.linalg.norm(found.params.w - truth.params.w)
    assert distance <= 1.01 * np.sqrt(2 * (found.gap + truth.gap) * truth.objective / ALPHA) + 1e-6


@case
def solver_over_rows_and_classes() -> None:
    """With weights, of which some are 0, class weights, and a class that no example has."""
    x, y = class_examples()
    weights = np.where(np.arange(len(x)) % 7 == 0, 0, 1 + np.arange(len(x)) % 2)
    x[weights == 0], y[y == 2] = np.nan, 3
    how: dict[str, Any] = {"weights": weights, "class_weights": 1 + np.arange(CLASSES) / 8}
    certified(OVER_BOTH, x, y, 1e-10, **how)


@case
def solver_of_sigmoids_over_classes() -> None:
    x, y = class_examples()
    certified(OVER_CLASSES, x, np.eye(CLASSES)[y], 1e-10, loss=binary_cross_entropy)


@case
def solver_path_without_bias_over_classes() -> None:
    x, y = class_examples()
    grid: dict[str, Any] = {"C": [0.1, 1.0], "folds": np.arange(len(x)) % 2, "bias": False}
    truth = solve_path(x, y, gap=1e-12, **grid)
    with jax.set_mesh(SQUARE):
        found = solve_path(x, y, gap=1e-10, shards=OVER_CLASSES, **grid)
    assert found.converged.all(), found.reason
    assert found.params.w.shape == (2, 2, D, CLASSES)
    np.testing.assert_allclose(found.objective, truth.objective, rtol=1e-10)


@functools.cache
def sparse_path() -> Any:
    """What one device finds with l1, and eight that share the classes; no example has class 2."""
    x, y = class_examples()
    y[y == 2] = 3
    grid: dict[str, Any] = {"C": [0.1, 1.0], "l1_ratio": 0.7}
    truth = solve_path(x, y, gap=1e-11, **grid)
    with jax.set_mesh(SQUARE):
        return truth, solve_path(x, y, gap=1e-9, shards=OVER_BOTH, **grid)


@case
def solver_path_with_l1_over_classes() -> None:
    truth, found = sparse_path()
    assert truth.converged.all(), truth.reason
    assert found.converged.all(), found.reason
    relative = (found.objective - truth.objective) / truth.objective
    assert (relative >= -1e-11).all(), relative
    assert (relative <= found.gap).all(), relative
    zeros = truth.params.w == 0
    assert zeros.sum() > zeros.size / 4
    np.testing.assert_array_equal(found.params.w == 0, zeros)
    np.testing.assert_allclose(found.params.w, truth.params.w, atol=1e-4)


@case
def solver_of_a_large_problem_over_classes() -> None:
    """In float32 at first, with a sample and blocks that each device inverts for its classes."""
    x, y = class_examples()
    t, built = 0.8 * np.eye(CLASSES)[y] + 0.2 / CLASSES, []
    build = class_preconditioner.build
    with ExitStack() as large:
        for module, name, value in (
            (prepare, "MAX_FLOAT64_SIZE", 0),
            (class_preconditioner, "MIN_ROWS", 100),
            (class_preconditioner, "cost_in_products", lambda *_: 1),
            (class_preconditioner, "build", lambda *a: built.append(build(*a)) or built[-1]),
        ):
            large.enter_context(mock.patch.object(module, name, value))
        certified(OVER_BOTH, x.astype(np.float32), t, 1e-6, loss=soft_cross_entropy)
    assert built
    assert all(blocks.inverse.sharding.spec[1] in ("c", ("c",)) for blocks in built)


@case
def solver_names_what_classes_cannot_have() -> None:
    x, y = class_examples()
    for how, words in (
        ({"shards": Shards(rows="c", classes="c")}, "different axes of rows and classes"),
        ({"shards": Shards(classes="model")}, r"axes of the mesh, \('r', 'c'\), got 'model'"),
    ):
        with jax.set_mesh(SQUARE), pytest.raises(ValueError, match=words):
            solve(x, y, **{"C": 1.0, "shards": OVER_BOTH, **how})


@case
def solver_gathers_nothing_over_classes() -> None:
    """What crosses are sums of a row, and a device's part of the parameters and of the blocks.

    A step with l1 exchanges parameters for those of all classes and some of the columns, and
    gathers a number for each column.
    """
    n, d, k = 64, 3, 48
    own_rows, own_classes = n // 2, k // 4
    parameters = max(own_rows, own_classes * (d + 1))
    limits = dict.fromkeys(("step", "certificate", "rounded", "evaluation"), parameters)
    limits |= {"blocks": max(own_rows, own_classes * (d + 1) ** 2), "inverses": 0}
    programs = described_solver.lowered_programs(SQUARE, OVER_BOTH, n, d, k)
    crossing = [*collectives(programs.pop("proximal step")().compile().as_text())]
    most = {"all-reduce": parameters, "all-to-all": own_classes * 4, "all-gather": 4}
    assert {name for name, _ in crossing} == {*most}
    assert all(size <= most[name] for name, size in crossing), crossing
    assert programs.keys() == limits.keys()
    for name, limit in limits.items():
        crossing = [*collectives(programs[name]().compile().as_text())]
        assert {name for name, _ in crossing} == ({"all-reduce"} if limit else set())
        assert all(size <= limit for _, size in crossing), (limit, crossing)


@case
def solver_needs_less_memory_with_class_shards() -> None:
    """A device's arguments and temporaries fall with the shards of the classes."""

    def num_bytes(shards: Shards) -> list[int]:
        programs = described_solver.lowered_programs(SQUARE, shards, 256, 16, 2048)
        needs = (programs[name]().compile().memory_analysis() for name in ("step", "certificate"))
        return [each.argument_size_in_bytes + each.temp_size_in_bytes for each in needs]

    for few, many in zip(num_bytes(OVER_BOTH), num_bytes(Shards(rows="r")), strict=True):
        assert few < 0.3 * many, (few, many)


# -- Estimators --

PREDICTIONS = ("predict", "predict_proba", "predict_log_proba", "decision_function")


@functools.cache
def fitted_on_a_host(kind: str) -> SoftmaxClassifier:
    targets = {"softmax": LABELS, "binary": LABELS % 2, "labels": TARGETS.copy()}[kind]
    if kind == "labels":
        targets[:, 2] = 1  # a score that is replaced by a finite one
    return SoftmaxClassifier().fit(FEATURES, targets)


def predicted(kind: str, mesh: Mesh) -> None:
    """Labels on the host, all else where the rows are."""
    model, x = fitted_on_a_host(kind), place(FEATURES, mesh, "r")
    for name in PREDICTIONS:
        found, truth = getattr(model, name)(x), getattr(model, name)(FEATURES)
        assert isinstance(found, np.ndarray if name == "predict" else jax.Array), name
        if name != "predict":
            assert found.sharding.spec[0] in ("r", ("r",)), name
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5, err_msg=name)


for kind in ("softmax", "binary", "labels"):
    CASES[f"estimator_predicts_{kind}_auto"] = functools.partial(predicted, kind, AUTO)
    CASES[f"estimator_predicts_{kind}_explicit"] = functools.partial(predicted, kind, EXPLICIT)


@case
def estimator_of_shared_rows() -> None:
    """A grid, the fit of its best penalty, and the score, of which no host has the features."""
    grid: dict[str, Any] = {"Cs": [0.01, 1.0], "cv": 2, "scoring": "neg_log_loss"}
    model = SoftmaxClassifierCV(**grid, tol=1e-9, grid_tol=1e-9)
    targets, weights = LABELS % 4, WEIGHTS + 1
    truth = clone(model).fit(FEATURES, targets, weights)
    x, y, s = (place(a, AUTO, "r") for a in (FEATURES, targets, weights))
    to_numpy = type(x).__array__

    def watched(a: jax.Array, *args: Any, **options: Any) -> np.ndarray:
        assert a.shape != x.shape, "a host has the features"
        return to_numpy(a, *args, **options)

    with mock.patch.object(type(x), "__array__", watched):
        found = clone(model).fit(x, y, s)
    same((found.scores_, found.coef_), (truth.scores_, truth.coef_), 1e-3)
    assert found.C_ == truth.C_
    wanted = truth.score(FEATURES, targets, weights)
    np.testing.assert_allclose(found.score(x, y, s), wanted, rtol=1e-5)


@case
def estimator_with_shards() -> None:
    """A host's rows go to the devices that `shards` names."""
    with jax.set_mesh(EXPLICIT):
        model = clone(SoftmaxClassifier(shards=Shards(rows="r"), tol=1e-9))
        model.fit(FEATURES[:-1], LABELS[:-1])  # rows that eight devices do not divide
    truth = SoftmaxClassifier(tol=1e-9).fit(FEATURES[:-1], LABELS[:-1])
    same(model.coef_, truth.coef_, 1e-3)


@case
def estimator_with_class_shards() -> None:
    """The model of one device; its programs are those of `solver_over_rows_and_classes`."""
    x, y = class_examples()
    with jax.set_mesh(SQUARE):
        model = SoftmaxClassifier(shards=OVER_BOTH, tol=1e-10).fit(x, y)
    same(model.coef_, SoftmaxClassifier(tol=1e-10).fit(x, y).coef_, 1e-3)


@case
def estimator_with_l1_and_class_shards() -> None:
    """The last fit of `solver_path_with_l1_over_classes`, by its programs."""
    x, y = class_examples()
    y[y == 2] = 3
    with jax.set_mesh(SQUARE):
        model = SoftmaxClassifier(shards=OVER_BOTH, l1_ratio=0.7, tol=1e-9).fit(x, y)
    wanted = np.delete(sparse_path()[0].params.w[1], 2, 1)
    np.testing.assert_allclose(model.coef_.T, wanted, atol=1e-4)


@case
def estimator_names_what_is_wrong() -> None:
    x = place(FEATURES, AUTO, "r")
    for call, words in (
        (lambda: fitted_on_a_host("softmax").predict(x[:, :3]), "X has 3 features"),
        (lambda: SoftmaxClassifier().fit(x, LABELS[1:]), "inconsistent numbers of samples"),
        (lambda: SoftmaxClassifier().fit(x.at[2, 1].set(np.nan), LABELS), "X: expected finite"),
        (lambda: SoftmaxClassifier().fit(x[:, 0], LABELS), "X: expected floats"),
        (
            lambda: SoftmaxClassifier(shards="r").fit(x, LABELS),
            "shards: expected jaxsoftmax.Shards",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# -- Programs --


def exported(f: Callable, *args: np.ndarray) -> None:
    """One program of any number of examples, the first axis where it is N."""
    (size,) = export.symbolic_shape("b")
    shapes = (
        jax.ShapeDtypeStruct((size, *a.shape[1:]) if len(a) == N else a.shape, a.dtype)
        for a in args
    )
    program = export.export(jax.jit(f), platforms=("cpu", "cuda", "tpu"))(*shapes)
    program = export.deserialize(program.serialize())
    for n in (1, N):
        part = [a[:n] if len(a) == N else a for a in args]
        same(jax.tree.leaves(program.call(*part)), jax.tree.leaves(jax.jit(f)(*part)))


def evaluated(w: Any, x: Any, y: Any) -> Any:
    return training.evaluate(linear.LinearParams(w, None), x, y, loss=SOFTMAX)


def scored(w: Any, x: Any) -> Any:
    return linear.logits(linear.LinearParams(w, None), x)


METRICS["calibration_error"] = (
    lambda z, y: metrics.expected_calibration_error(z, y).error,
    (LOGITS, LABELS),
)
EXPORTED = ("hits", "top_k_accuracy", "negative_log_likelihood", "brier_score", "log_loss")
EXPORTED += ("confusion_matrix_weighted", "calibration_error", "roc_auc_weighted", "roc_auc_of_one")
for name in EXPORTED:
    CASES[f"export_{name}"] = functools.partial(exported, METRICS[name][0], *METRICS[name][1])
CASES["export_logits"] = functools.partial(exported, scored, PARAMS.w, FEATURES)
CASES["export_evaluate"] = functools.partial(exported, evaluated, PARAMS.w, FEATURES, LABELS)


@case
def one_device_has_no_placement() -> None:
    """Where nothing is sharded the program says nothing of shardings."""
    f = functools.partial(epoch, batch_size=24)
    programs = [jax.make_jaxpr(f)(FEATURES, LABELS, WEIGHTS)]
    programs += [jax.make_jaxpr(METRICS[name][0])(*METRICS[name][1]) for name in SOME]
    for name in ("sharding_constraint", "reshard", "pcast", "pvary"):
        assert not any(re.search(rf"\b{name}\b", str(program)) for program in programs), name


if __name__ == "__main__":
    mesh_run.main(CASES)
