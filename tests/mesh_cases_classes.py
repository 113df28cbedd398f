"""Losses, links and linear heads with their classes over mesh axes, against the same on one device.

A script, because a process has one number of devices: `test_class_shards.py` runs it. It prints a
line for each case, PASS or FAIL with the reason; arguments select the cases whose names hold them,
and --list prints the names. MESH_DEVICES=64 in the environment runs them with that many devices.
"""

import os
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", int(os.environ.get("MESH_DEVICES", "8")))

import adversaries  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import mesh_run  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import oracles  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jaxsoftmax as js  # noqa: E402
from jaxsoftmax import Shards  # noqa: E402
from jaxsoftmax.kernels import target  # noqa: E402

K = 1024
CLASSES = Shards(classes="model")
BOTH = Shards(rows="data", classes="model")
CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Register a case under its function's name."""
    CASES[function.__name__] = function
    return function


def mesh_of(*sizes: int, kind: AxisType | tuple[AxisType, ...] = AxisType.Auto) -> Mesh:
    """Classes over the last axis, "model", and rows over the first, "data"."""
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    kinds = kind if isinstance(kind, tuple) else (kind,) * len(sizes)
    return Mesh(devices, ("data", "model")[-len(sizes) :], axis_types=kinds)


def put(mesh: Mesh, x: Any, *places: str | None) -> jax.Array:
    """An array on a mesh; of the places, those that the mesh has."""
    spec = P(*(place if place in mesh.axis_names else None for place in places))
    return jax.device_put(x, NamedSharding(mesh, spec))


# -- Exact, and the same bits --


@cache
def traps() -> tuple[np.ndarray, np.ndarray]:
    z = adversaries.logits(K, np.float32)
    return z, adversaries.labels("random", z)


@cache
def soft_targets() -> dict[str, np.ndarray]:
    """Of all classes, of a few, and nearly all on the largest logit, where losses are small."""
    z, rng = traps()[0], np.random.default_rng(3)
    t = rng.random(z.shape).astype(np.float32)
    largest = np.eye(K, dtype=np.float32)[z.argmax(1)]
    found = {
        "dense": t / t.sum(1, keepdims=True),
        "sparse": np.where(rng.random(z.shape) < 0.01, t, 0),
        "confident": largest * (1 - 1e-6) + 1e-9 * t,
    }
    return {name: np.where(z == -np.inf, 0, t).astype(np.float32) for name, t in found.items()}


def values(z: jax.Array, y: jax.Array, targets: dict[str, jax.Array]) -> dict[str, Any]:
    def soft(z: jax.Array, t: jax.Array) -> jax.Array:
        return js.soft_cross_entropy(z, t, shards=CLASSES)

    tangents = targets["dense"] - targets["sparse"]
    return {
        "loss": js.cross_entropy(z, y, shards=CLASSES),
        "gradient": js.cross_entropy_gradient(z, y, shards=CLASSES),
        "log_softmax": js.log_softmax(z, shards=CLASSES),
        "logsumexp": js.logsumexp(z, shards=CLASSES),
        "entropy": js.entropy(z, shards=CLASSES),
        "entropy gradient": jax.grad(lambda z: js.entropy(z, shards=CLASSES).sum())(z),
        "brier": js.brier(z, y, shards=CLASSES),
        "smoothed": js.smoothed_cross_entropy(z, y, smoothing=0.1, shards=CLASSES),
        "brier gradient": jax.grad(lambda z: js.brier(z, y, shards=CLASSES).sum())(z),
        "change": jax.jvp(partial(js.cross_entropy, labels=y, shards=CLASSES), (z,), (tangents,))[
            1
        ],
        "product": js.cross_entropy_hessian_product(z, tangents, shards=CLASSES),
        "soft": {name: soft(z, t) for name, t in targets.items()},
        "soft gradient": jax.grad(lambda z: soft(z, targets["sparse"]).sum())(z),
        "kl": {n: js.kl_divergence(z, t, shards=CLASSES) for n, t in targets.items()},
    }


@cache
def values_on(shards: int) -> dict[str, Any]:
    z, y = traps()
    mesh = mesh_of(shards)
    targets = {name: put(mesh, t, None, "model") for name, t in soft_targets().items()}
    given = put(mesh, z, None, "model"), put(mesh, y), targets
    return jax.tree.map(np.asarray, jax.jit(values)(*given))


@case
def exact_to_8_ulp() -> None:
    z, y = traps()
    found, (lse, scale) = dict(values_on(8)), oracles.logsumexp(z)
    given = put(mesh_of(8), z, None, "model")
    found["softmax"] = jax.jit(partial(js.softmax, shards=CLASSES))(given)
    oracles.assert_ulps(found["loss"], oracles.cross_entropy(z, y))
    oracles.assert_ulps(found["gradient"], oracles.cross_entropy_gradient(z, y))
    oracles.assert_ulps(found["softmax"], oracles.softmax(z))
    oracles.assert_ulps(found["log_softmax"], oracles.log_softmax(z))
    oracles.assert_ulps(found["logsumexp"], lse, scale=scale)
    oracles.assert_ulps(found["entropy"], oracles.entropy(z))
    oracles.assert_ulps(found["brier"], oracles.brier(z, y))
    slope, scale = oracles.entropy_gradient(z)
    counts = oracles.softmax(z) > np.finfo(np.float32).tiny  # what underflows is lost
    oracles.assert_ulps(found["entropy gradient"][counts], slope[counts], scale=scale[counts])
    t = np.where(z == -np.inf, 0, 0.1 / (z > -np.inf).sum(1, keepdims=True).clip(1))
    true, scale = oracles.soft_cross_entropy(z, t + 0.9 * np.eye(K)[y])
    fits = np.isfinite(true) & (np.ptp(np.where(z == -np.inf, 0, z), 1) < 3e38)
    oracles.assert_ulps(found["smoothed"][fits], true[fits], scale=scale[fits])


@case
def soft_targets_to_8_ulp() -> None:
    z, found = traps()[0], values_on(8)
    exists = (z > -np.inf).any(1)
    fits = exists & (np.ptp(np.where(z == -np.inf, 0, z), 1) < 3e38)  # no z - max z overflows
    for name, t in soft_targets().items():
        for loss, oracle in (("soft", oracles.soft_cross_entropy), ("kl", oracles.kl_divergence)):
            true, scale = oracle(z[fits], t[fits])
            oracles.assert_ulps(found[loss][name][fits], true, scale=scale)
            assert (found[loss][name][~exists] == 0).all()


@case
def derivatives_to_8_ulp_on_any_number_of_devices() -> None:
    """Rows whose sum over each device but one is the same, so that floats round the same way."""
    k = 128 * len(jax.devices())
    rng, first = np.random.default_rng(6), np.arange(k) < 128
    z = np.stack([rng.standard_normal(k), np.where(first, 0, -12), np.where(first, 1, -3)])
    dz = np.stack([rng.standard_normal(k), np.where(first, 1, 1.37e-4), np.where(first, 1, 1.37)])
    z, dz, y = z.astype(np.float32), dz.astype(np.float32), np.array([7, 0, 500], np.int32)

    def run(z: jax.Array, dz: jax.Array, shards: Shards | None) -> dict[str, Any]:
        loss = partial(js.cross_entropy, labels=y, shards=shards)
        score = partial(js.brier, labels=y, shards=shards)
        gradient = jax.grad(lambda z: loss(z).sum())
        return {
            "change": jax.jvp(loss, (z,), (dz,))[1],
            "product": jax.jvp(gradient, (z,), (dz,))[1],
            "expected": jax.jvp(partial(js.logsumexp, shards=shards), (z,), (dz,))[1],
            "brier": jax.grad(lambda z: score(z).sum())(z),
            "entropy": jax.jvp(partial(js.entropy, shards=shards), (z,), (dz,))[1],
        }

    given = [put(mesh_of(len(jax.devices())), a, None, "model") for a in (z, dz)]
    found = jax.jit(partial(run, shards=CLASSES))(*given)
    with jax.enable_x64():
        true = jax.jit(partial(run, shards=None))(z.astype(np.float64), dz.astype(np.float64))
    p = oracles.softmax(z)
    residual = np.abs(oracles.cross_entropy_gradient(z, y))
    u = np.abs(dz - np.where(p > 0.5, dz, 0).sum(1, keepdims=True))
    scales = {
        "change": (residual * np.abs(dz)).sum(1),
        "product": p * (u + (p * u).sum(1, keepdims=True)),
        "expected": (p * np.abs(dz)).sum(1),
        "brier": 2 * p * (residual + (p * residual).sum(1, keepdims=True)),
        "entropy": (oracles.entropy_gradient(z)[1] * np.abs(dz)).sum(1),
    }
    for name, scale in scales.items():
        oracles.assert_ulps(found[name], np.asarray(true[name]), scale=scale)


@case
def same_bits_on_1_2_4_and_8_shards() -> None:
    for shards in (2, 4, 8):
        jax.tree.map(np.testing.assert_array_equal, values_on(shards), values_on(1))


@case
def exact_where_labels_are_close_and_others_are_many() -> None:
    """Sums in which each of many small terms would be lost, or rounded the same way."""
    classes, mesh = 2**17, mesh_of(8)
    z = np.full((8, classes), -20.0, np.float32)
    z[:, 5] = 0, 3, -1, 8, 0, 12.5, 2, 40
    z[:4, classes - 3] = -1.5
    y = np.array([5, 5, 5, 7, 5, 5, 5, 5], np.int32)
    given = put(mesh, z, None, "model"), put(mesh, y)
    found = jax.jit(partial(js.cross_entropy, shards=CLASSES))(*given)
    oracles.assert_ulps(found, oracles.cross_entropy(z, y))


@case
def large_rows_a_few_at_a_time() -> None:
    """On a CPU, where each row has the bits that it has on more devices, whose rows are small."""
    rng = np.random.default_rng(4)
    z = (6 * rng.standard_normal((67, 2**15))).astype(np.float32)
    z[3, 17], z[5], z[6, 9] = np.nan, -np.inf, 60
    y = rng.integers(0, z.shape[1], len(z)).astype(np.int32)
    y[6], y[7] = 9, -1
    valid = np.arange(len(z)) != 8

    def on(shards: int) -> np.ndarray:
        mesh = mesh_of(shards)
        given = put(mesh, z, None, "model"), put(mesh, y), put(mesh, valid)
        program = jax.jit(lambda z, y, v: js.cross_entropy(z, y, valid=v, shards=CLASSES))
        return np.asarray(program(*given))

    found = on(1)
    np.testing.assert_array_equal(found, on(4))
    assert np.isnan(found[[3, 7]]).all()
    assert (found[[5, 8]] == 0).all()
    rows = np.r_[0:3, 6, 66]
    oracles.assert_ulps(found[rows], oracles.cross_entropy(z[rows], y[rows]))


# -- Everything, in every way --


def few_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    n, k = 16, 64
    z = (4 * rng.standard_normal((n, k))).astype(np.float32)
    z[5] -= 700
    where = rng.random((n, k)) < 0.9
    where[3] = False
    labels = rng.integers(0, k, n).astype(np.int32)
    where[:3, labels[:3]] = where[4:, labels[4:]] = True
    targets = rng.random((n, k)).astype(np.float32)
    targets = np.where(where, targets / targets.sum(1, keepdims=True), 0).astype(np.float32)
    valid = np.arange(n) % 5 != 4
    # Ignored with a NaN, infinite, NaN among others, labels out of range, a label that is masked.
    z[4, 3], z[6, 40], z[7, 60], labels[8], labels[10] = np.nan, np.inf, np.nan, k, -1
    where[11, labels[11]] = False
    # Two that lead, on two devices.
    where[12, [2, 50]], z[12, [2, 50]] = True, 20
    return {
        "z": z,
        "labels": labels,
        "where": where,
        "valid": valid,
        "targets": targets,
        "tangents": rng.standard_normal((n, k)).astype(np.float32),
        "weights": rng.random(n).astype(np.float32),
        "class_weights": rng.random(k).astype(np.float32),
    }


PLACES = {
    "z": ("data", "model"),
    "labels": ("data",),
    "where": ("data", "model"),
    "valid": ("data",),
    "targets": ("data", "model"),
    "tangents": ("data", "model"),
    "weights": ("data",),
    "class_weights": ("model",),
}


def losses_of(z: jax.Array, data: dict[str, jax.Array], shards: Shards | None) -> dict[str, Any]:
    """One value per example of each loss."""
    how: dict[str, Any] = {"where": data["where"], "valid": data["valid"], "shards": shards}
    of_labels = (js.cross_entropy, js.brier, js.multiclass_hinge)
    of_targets = (js.soft_cross_entropy, js.kl_divergence)
    found = {f.__name__: f(z, data["labels"], **how) for f in of_labels}
    found |= {f.__name__: f(z, data["targets"], **how) for f in of_targets}
    smoothed = partial(js.smoothed_cross_entropy, z, data["labels"], **how)
    return found | {
        "smoothed": smoothed(smoothing=0.1, class_weights=data["class_weights"]),
        "class weights": smoothed(smoothing=0.0, class_weights=data["class_weights"]),
        "entropy": js.entropy(z, **how),
        "squared_error": js.squared_error(z, data["labels"], shards=shards),
        "logsumexp": js.logsumexp(z, shards=shards),
    }


def links_of(z: jax.Array, data: dict[str, jax.Array], shards: Shards | None) -> dict[str, Any]:
    """Results with a class axis."""
    product = js.cross_entropy_hessian_product(z, data["tangents"], shards=shards)
    return {
        "softmax": js.softmax(z, where=data["where"], shards=shards),
        "log_softmax": js.log_softmax(z, shards=shards),
        "product": product,
    }


def everything(
    data: dict[str, jax.Array],
    shards: Shards | None,
    *,
    axes: tuple[str, ...] = (),
    second_order: bool = True,
) -> dict[str, Any]:
    """Values, gradient, jvp and Hessian product; `axes` of the classes inside a shard_map."""

    def scalar(z: jax.Array) -> tuple[jax.Array, Any]:
        weights, dz = data["weights"], data["tangents"]
        values, links = losses_of(z, data, shards), links_of(z, data, shards)
        parts = [jnp.sum(weights * v) for v in values.values()]
        parts += [lax.psum(jnp.sum(v * dz), axes) for v in links.values()]
        return sum(parts[1:], parts[0]), {"values": values, "links": links}

    def gradient(z: jax.Array) -> tuple[jax.Array, Any]:
        (_, found), gradient = jax.value_and_grad(scalar, has_aux=True)(z)
        return gradient, found

    z, dz = data["z"], data["tangents"]
    if not second_order:
        found, rest = gradient(z)
        return rest | {"gradient": found}
    (found, rest), (hessian, changes) = jax.jvp(gradient, (z,), (dz,))
    return rest | {"gradient": found, "hessian": hessian, "jvp": changes["values"]}


@cache
def truth() -> Any:
    jax.config.update("jax_disable_most_optimizations", True)  # programs that run once
    with jax.enable_x64():
        data = {
            n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in few_rows().items()
        }
        return jax.tree.map(np.asarray, jax.jit(partial(everything, shards=None))(data))


def close(found: Any, wanted: Any) -> None:
    """The same entries are finite, and they differ by rounding of the largest."""

    def check(path: Any, a: Any, t: Any) -> None:
        a, t = np.float64(a), np.float64(t)
        bound = 4e-6 * np.abs(t[np.isfinite(t)]).max(initial=1e-30)
        np.testing.assert_allclose(a, t, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, found, {part: wanted[part] for part in found})


@case
def auto_mesh() -> None:
    wanted = truth()
    mesh = mesh_of(2, 4)
    data = {name: put(mesh, a, *PLACES[name]) for name, a in few_rows().items()}
    close(jax.jit(partial(everything, shards=BOTH, second_order=False))(data), wanted)


@case
def explicit_mesh() -> None:
    wanted = truth()
    mesh = mesh_of(2, 4, kind=AxisType.Explicit)
    data = {name: put(mesh, a, *PLACES[name]) for name, a in few_rows().items()}
    with jax.set_mesh(mesh):
        found = jax.jit(lambda data: {"values": losses_of(data["z"], data, CLASSES)})(data)
    close(found, wanted)


BOTH_KINDS = (AxisType.Auto, AxisType.Explicit), (AxisType.Explicit, AxisType.Auto)


@case
def axes_of_both_kinds() -> None:
    """Types name one of the axes of the rows and of the classes, and the compiler has the other."""
    wanted = truth()["values"]
    for kind in BOTH_KINDS:
        mesh = mesh_of(2, 4, kind=kind)
        data = {name: put(mesh, a, *PLACES[name]) for name, a in few_rows().items()}
        with jax.set_mesh(mesh):
            how = {"where": data["where"], "valid": data["valid"], "shards": BOTH}
            loss = jax.jit(partial(js.cross_entropy, **how))
            close({"cross_entropy": loss(data["z"], data["labels"])}, wanted)


@case
def inside_shard_map() -> None:
    wanted = truth()
    mesh, data = mesh_of(2, 4), few_rows()
    row, entry = P("data"), P("data", "model")
    run = jax.shard_map(
        partial(everything, shards=CLASSES, axes=("model",)),
        mesh=mesh,
        in_specs=({name: P(*PLACES[name]) for name in data},),
        out_specs={"values": row, "jvp": row, "gradient": entry, "hessian": entry, "links": entry},
    )
    close(jax.jit(run)(data), wanted)


HALVES = (jnp.bfloat16, jnp.float16)


@case
def dtypes_axes_and_transformations() -> None:
    data, mesh = few_rows(), mesh_of(8)
    z, y, dz = np.where(np.isfinite(data["z"]), data["z"], 0), data["labels"] % 64, data["tangents"]
    loss = partial(js.cross_entropy, shards=CLASSES)

    def run(z: jax.Array, y: jax.Array, dz: jax.Array) -> dict[str, Any]:
        gradient = jax.grad(lambda z: loss(z, y).sum())
        return {
            "halves": [loss(z.astype(dtype), y) for dtype in HALVES],
            "models": jax.vmap(loss, in_axes=(0, None))(jnp.stack([z, 2 * z]), y),
            "rows": jax.vmap(jax.grad(loss))(z, y),
            "first axis": loss(z.T, y, axis=0),
            "none": loss(z[:0], y[:0]),
            "hessian": jax.jvp(gradient, (z,), (dz,))[1],
        }

    given = put(mesh, z, None, "model"), put(mesh, y), put(mesh, dz, None, "model")
    found = jax.jit(run)(*given)
    value, (product, scale) = oracles.cross_entropy(z, y), oracles.softmax_hessian_product(z, dz)
    for dtype, half in zip(HALVES, found["halves"], strict=True):
        oracles.assert_ulps(half, oracles.cross_entropy(np.float32(jnp.asarray(z, dtype)), y))
    oracles.assert_ulps(found["models"], np.stack([value, oracles.cross_entropy(2 * z, y)]))
    oracles.assert_ulps(found["rows"], oracles.cross_entropy_gradient(z, y))
    oracles.assert_ulps(found["first axis"], value)
    oracles.assert_ulps(found["hessian"], product, scale=scale)
    assert found["none"].shape == (0,)


@case
def float64() -> None:
    with jax.enable_x64():
        z, y = (a[:8] for a in traps())
        z = z.astype(np.float64) * (1 + 1e-9)
        mesh = mesh_of(8)
        given = put(mesh, z, None, "model"), put(mesh, y)
        found = jax.jit(partial(js.cross_entropy_gradient, shards=CLASSES))(*given)
        oracles.assert_ulps(found, oracles.cross_entropy_gradient(z, y))


@case
def padded_classes() -> None:
    data, mesh = few_rows(), mesh_of(8)
    z, y = data["z"][:3, :61], data["labels"][:3] % 61
    z = np.where(np.isfinite(z), z, 0)

    def padded(z: jax.Array) -> jax.Array:
        return js.cross_entropy(js.pad_classes(z, multiple=8), y, shards=CLASSES)

    with jax.set_mesh(mesh):
        value, gradient = jax.jit(lambda z: (padded(z), jax.grad(lambda z: padded(z).sum())(z)))(z)
    oracles.assert_ulps(value, oracles.cross_entropy(z, y))
    oracles.assert_ulps(gradient, oracles.cross_entropy_gradient(z, y))


@case
def compositions_are_those_of_all_classes() -> None:
    """Label smoothing and z-loss: the count and the mean of a shard's classes would be wrong."""
    data, mesh = few_rows(), mesh_of(8)
    z, y = data["z"][:3], data["labels"][:3]

    def local(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        lse = js.logsumexp(z, shards=CLASSES)
        mean = lax.psum(jnp.sum(z, 1), "model") / 64
        composed = 0.9 * js.cross_entropy(z, y, shards=CLASSES) + 0.1 * (lse - mean)
        smoothed = js.smoothed_cross_entropy(z, y, smoothing=0.1, shards=CLASSES)
        return composed + 1e-2 * lse**2, smoothed + 1e-2 * lse**2

    run = jax.shard_map(local, mesh=mesh, in_specs=P(None, "model"), out_specs=P())
    composed, smoothed = jax.jit(run)(put(mesh, z, None, "model"))
    exact = np.float64(z)
    lse = np.log(np.exp(exact).sum(1))
    t = 0.9 * np.eye(64)[y] + 0.1 / 64
    wanted = (t * (lse[:, None] - exact)).sum(1) + 1e-2 * lse**2
    np.testing.assert_allclose(composed, wanted, rtol=1e-6)
    np.testing.assert_allclose(smoothed, wanted, rtol=1e-6)


@case
def means_over_all_rows_inside_shard_map() -> None:
    data, mesh = few_rows(), mesh_of(2, 4)
    z, y, w = data["z"][:4], data["labels"][:4], data["weights"][:4]
    run = jax.shard_map(
        lambda z, y, w: js.mean_cross_entropy(z, y, weights=w, shards=BOTH),
        mesh=mesh,
        in_specs=(P("data", "model"), P("data"), P("data")),
        out_specs=P(),
    )
    z[0], w[0] = np.nan, 0  # nothing of an example without weight
    found = jax.jit(run)(z, y, w)
    values = oracles.cross_entropy(z[1:], y[1:])
    np.testing.assert_allclose(found, np.average(values, weights=w[1:]), rtol=1e-6)


@case
def two_all_reduces_of_a_few_integers_a_row() -> None:
    mesh, n = mesh_of(2, 4), 64
    z, y = (
        put(mesh, np.zeros((n, K), np.float32), "data", "model"),
        put(mesh, np.zeros(n, int), "data"),
    )

    def collectives(function: Callable) -> list[str]:
        text = jax.jit(function).lower(z, y).compile().as_text()
        kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        return re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text)

    def all_reduces(function: Callable) -> list[int]:
        """The number of integers a row in each collective, which are all of integers."""
        found = [re.findall(r"(\w+)\[([\d,]*)\]", types) for types in collectives(function)]
        assert all(kind == ("s32", "32") for kinds in found for kind in kinds), found
        return [len(kinds) for kinds in found]

    def total(z: jax.Array, y: jax.Array) -> jax.Array:
        return js.cross_entropy(z, y, shards=CLASSES).sum()

    def soft(z: jax.Array, y: jax.Array) -> jax.Array:
        return js.soft_cross_entropy(z, jnp.abs(z), shards=CLASSES)

    def weighted(z: jax.Array, y: jax.Array) -> jax.Array:
        c = jnp.arange(K) + 1.0
        how: dict[str, Any] = {"smoothing": 0.1, "class_weights": c, "shards": CLASSES}
        return js.smoothed_cross_entropy(z, y, **how)

    def link(function: Callable) -> Callable:
        return lambda z, y: function(z, shards=CLASSES)

    programs = {
        "loss": partial(js.cross_entropy, shards=CLASSES),
        "gradient": jax.grad(total),
        "softmax": link(js.softmax),
        "log_softmax": link(js.log_softmax),
        "logsumexp": link(js.logsumexp),
        "entropy": link(js.entropy),
        "entropy gradient": jax.grad(lambda z, y: js.entropy(z, shards=CLASSES).sum()),
        "brier": partial(js.brier, shards=CLASSES),
        "hinge": partial(js.multiclass_hinge, shards=CLASSES),
        "hinge gradient": jax.grad(lambda z, y: js.multiclass_hinge(z, y, shards=CLASSES).sum()),
        "smoothed": partial(js.smoothed_cross_entropy, smoothing=0.1, shards=CLASSES),
        "smoothed, weights": weighted,
        "smoothed gradient": jax.grad(lambda z, y: weighted(z, y).sum()),
        "soft": soft,
        "soft gradient": jax.grad(lambda z, y: soft(z, y).sum()),
    }
    # With 4 shards, the two largest logits are among 4 numbers, and so are the largest targets.
    found = {name: all_reduces(program) for name, program in programs.items()}
    wanted = {
        "loss": [2, 2],
        "gradient": [2, 2],
        "softmax": [1, 2],
        "log_softmax": [4, 2],
        "logsumexp": [4, 2],
        "entropy": [4, 5],
        "entropy gradient": [4, 5],
        "brier": [2, 4],
        "hinge": [2],
        "hinge gradient": [2, 1],
        "smoothed": [6, 5],
        "smoothed, weights": [11, 8],
        "smoothed gradient": [9, 5],
        "soft": [9, 7],
        "soft gradient": [8, 4],
    }
    assert found == wanted, found


# -- Linear heads --

TILES = js.Tiles(rows=4, classes=8)  # several blocks and chunks on each device


def model() -> dict[str, np.ndarray]:
    rng, data = np.random.default_rng(2), few_rows()
    n, k, d = 16, 64, 12
    x, w, bias = (rng.standard_normal(shape) for shape in ((n, d), (d, k), (k,)))
    tangents = (rng.standard_normal(shape) for shape in ((n, d), (d, k), (k,)))
    found = {"x": x, "w": w, "bias": bias}
    found |= dict(zip(("dx", "dw", "dbias"), tangents, strict=True))
    found = {name: a.astype(np.float32) for name, a in found.items()}
    exists = np.arange(k) != 5
    marks = rng.integers(0, 2, (n, k)).astype(np.int32)
    kept = {name: data[name] for name in ("labels", "valid", "weights")}
    kept["labels"] = np.where(kept["labels"] == 5, 6, kept["labels"])
    return found | kept | {"exists": exists, "marks": marks}


MODEL_PLACES = {"x": ("data", None), "w": (None, "model"), "bias": ("model",)}
MODEL_PLACES |= {f"d{name}": place for name, place in MODEL_PLACES.items()}
MODEL_PLACES |= dict.fromkeys(("labels", "valid", "weights"), ("data",))
MODEL_PLACES |= {"exists": ("model",), "marks": ("data", "model")}


def smoothed(nll: jax.Array, lse: jax.Array, mean: jax.Array) -> jax.Array:
    """Label smoothing, a z-loss and a focal loss: a cotangent of its own for each statistic."""
    return 0.9 * js.focal(nll, gamma=2.0) + 0.1 * (lse - mean) + 0.01 * lse**2


def heads(
    data: dict[str, jax.Array],
    shards: Shards | None,
    *,
    axes: tuple[str, ...] = (),
    second_order: bool = True,
) -> dict[str, Any]:
    """Values, gradients and Hessian products of the fused losses.

    `axes` are those of the rows inside a shard_map whose caller sums over them.
    """
    how: dict[str, Any] = {"where": data["exists"], "valid": data["valid"], "tiles": TILES}
    how |= {"shards": shards}
    weights, labels, marks = data["weights"], data["labels"], data["marks"]
    ignored = jnp.isin(labels, jnp.array([64, -1]))

    def scalars(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
        stats = js.linear_cross_entropy_stats(x, w, labels, bias=bias, softcap=9.0, **how)
        counted = jnp.where(ignored, 0, weights)
        rows = stats.nll - 0.3 * stats.lse + stats.mean_logit * stats.nll
        rows += js.linear_binary_cross_entropy(x, w, marks, bias=bias, **how)
        per_example = lax.psum(jnp.sum(jnp.where(ignored, 0, rows) * weights), axes)
        of = {"bias": bias, "weights": counted, **how}
        total = js.linear_cross_entropy_sum(x, w, labels, **of)
        total += js.linear_cross_entropy_sum(x, w, labels, row_loss=smoothed, softcap=9.0, **of)
        return per_example + total + js.linear_binary_cross_entropy_sum(x, w, marks, **of)

    primals = data["x"], data["w"], data["bias"]
    tangents = data["dx"], data["dw"], data["dbias"]
    gradient = jax.value_and_grad(scalars, (0, 1, 2))
    if not second_order:
        return {"gradients": gradient(*primals)[1]}
    (value, gradients), (change, hessian) = jax.jvp(gradient, primals, tangents)
    nll = js.linear_cross_entropy(*primals[:2], labels, bias=data["bias"], **how).nll
    stats = js.linear_cross_entropy_stats(*primals[:2], labels, **how)
    _, beside = js.linear_cross_entropy_sum(*primals[:2], labels, return_stats=True, **how)
    return {
        "values": jnp.stack([value, change]),
        "gradients": gradients,
        "hessian": hessian,
        "rows": (nll, stats.lse, stats.predicted, stats.correct, beside),
    }


@cache
def true_heads() -> Any:
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64():
        data = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in model().items()}
        return jax.tree.map(np.asarray, jax.jit(partial(heads, shards=None))(data))


@case
def heads_on_an_auto_mesh() -> None:
    wanted, mesh = true_heads(), mesh_of(2, 4)
    data = {name: put(mesh, a, *MODEL_PLACES[name]) for name, a in model().items()}
    close(jax.jit(partial(heads, shards=BOTH, second_order=False))(data), wanted)


@case
def heads_inside_shard_map() -> None:
    wanted, mesh, data = true_heads(), mesh_of(2, 4), model()
    of_model = P("data"), P(None, "model"), P("model")
    run = jax.shard_map(
        partial(heads, shards=BOTH, axes=("data",)),
        mesh=mesh,
        in_specs=({name: P(*MODEL_PLACES[name]) for name in data},),
        out_specs={
            "values": P(),
            "gradients": of_model,
            "hessian": of_model,
            "rows": P("data"),
        },
    )
    close(jax.jit(run)(data), wanted)


@case
def sum_of_a_head_takes_three_products() -> None:
    data = model()

    def reduced(mesh: Mesh, shards: Shards, row_loss: Callable | None) -> list[str]:
        """What its all-reduces take, after a look at its products, gradients and other traffic."""
        given = [put(mesh, data[name], *MODEL_PLACES[name]) for name in ("x", "w", "labels")]

        def total(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
            return js.linear_cross_entropy_sum(x, w, y, shards=shards, row_loss=row_loss)

        program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*given).compile()
        text = program.as_text()
        assert len(re.findall(r" dot\(", text)) == 3
        assert not re.findall(r"all-gather|all-to-all|collective-permute", text)
        for a, b in zip(program(*given)[1], given, strict=False):
            assert a.sharding.is_equivalent_to(b.sharding, 2)
        found = re.findall(r" = (.*?) all-reduce(?:-start)?\(", text)
        return sorted(a for types in found for a in re.findall(r"\w+\[[\d,]*\]", types))

    # Gradients of w and x and the value; two maxima and a sum of two integers; sum and number of z.
    maxima_and_sum, mean = ["s32[8]"] * 4, ["f32[8]"] * 2
    for row_loss, more in ((None, []), (smoothed, mean)):
        wanted = ["f32[12,16]", "f32[8,12]", *more, "f32[]", *maxima_and_sum]
        assert reduced(mesh_of(2, 4), BOTH, row_loss) == wanted
        assert reduced(mesh_of(8, 1), Shards(rows="data"), row_loss) == ["f32[12,64]", "f32[]"]


@case
def sum_of_a_head_whose_logits_come_twice() -> None:
    """On an accelerator chunks of few rows would each read and write the sum of w's gradient."""
    mesh, data = mesh_of(2, 4), {name: a.copy() for name, a in model().items()}
    # Rows whose loss is infinite or not a number have weight 0, or are not valid.
    data["labels"][3], data["x"][4, 0] = 5, np.nan
    data["weights"][np.isin(data["labels"], (-1, 5, 64))], data["valid"][4] = 0, False

    def gradient(
        data: dict[str, jax.Array], row_loss: Callable | None, shards: Shards | None
    ) -> Any:
        fixed = {name: data[name] for name in ("valid", "weights")} | {"where": data["exists"]}

        def total(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
            how: dict[str, Any] = {"bias": bias, "softcap": 9.0, "tiles": TILES, "shards": shards}
            how |= {"row_loss": row_loss}
            return js.linear_cross_entropy_sum(x, w, data["labels"], **fixed, **how)

        return jax.value_and_grad(total, (0, 1, 2)), (data["x"], data["w"], data["bias"])

    def derivatives(data: dict[str, jax.Array], **how: Any) -> Any:
        of, primals = gradient(data, **how)
        return jax.jvp(of, primals, (data["dx"], data["dw"], data["dbias"]))

    given = {name: put(mesh, a, *MODEL_PLACES[name]) for name, a in data.items()}
    for row_loss in (None, smoothed):
        with target.assumed("tpu", interpret=True):
            found = jax.jit(partial(derivatives, row_loss=row_loss, shards=BOTH))(given)
            of, primals = gradient(given, row_loss, BOTH)
            text = jax.jit(of).lower(*primals).as_text()
        assert text.count("stablehlo.dot_general") == 4
        wanted = jax.jit(partial(derivatives, row_loss=row_loss, shards=None))(data)
        close(dict(enumerate(found)), dict(enumerate(wanted)))


@case
def bits_of_a_head_on_1_2_4_and_8_shards() -> None:
    """Those of products of blocks, which are as large on any number of shards."""
    n, d, k = 64, 96, 1024
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((n, d)), 4 * rng.standard_normal((d, k)) / np.sqrt(d)
    x, w, y = x.astype(np.float32), w.astype(np.float32), rng.integers(0, k, n).astype(np.int32)
    how: dict[str, Any] = {"shards": CLASSES, "tiles": js.Tiles(rows=n, classes=128)}
    how |= {"implementation": "xla_chunked"}

    def on(shards: int) -> Any:
        mesh = mesh_of(shards)
        given = put(mesh, x), put(mesh, w, None, "model"), put(mesh, y)

        def program(x: jax.Array, w: jax.Array, y: jax.Array) -> Any:
            total = partial(js.linear_cross_entropy_sum, **how)
            stats = js.linear_cross_entropy_stats(x, w, y, **how)
            exact = jax.value_and_grad(total, 1)(x, w, y), stats.predicted
            return exact, (stats.nll, stats.lse)

        return jax.tree.map(np.asarray, jax.jit(program)(*given))

    exact, rows = on(1)
    for shards in (2, 4, 8):
        same, close_rows = on(shards)
        jax.tree.map(np.testing.assert_array_equal, same, exact)
        for a, b in zip(close_rows, rows, strict=True):  # their sums of blocks are rescaled
            np.testing.assert_array_max_ulp(a, b, 2)


@case
def virtual_shards_of_rows_around_shards_of_classes() -> None:
    """A shard_map over the classes inside one over the rows, differentiated."""
    data = model()

    def loss(params: js.LinearParams, x: jax.Array, y: jax.Array) -> jax.Array:
        options = {"bias": params.bias, "tiles": TILES, "shards": CLASSES}
        return js.linear_cross_entropy(x, params.w, y, **options).nll

    def train(mesh: Mesh) -> np.ndarray:
        w, bias = (put(mesh, data[name], *MODEL_PLACES[name]) for name in ("w", "bias"))
        x, y = put(mesh, data["x"], "data", None), put(mesh, data["labels"] % 64, "data")
        with jax.set_mesh(mesh):
            sums = {"shards": Shards(rows="data"), "virtual_shards": 2}
            found = js.fit(
                loss, x, y, params=js.LinearParams(w, bias), optimizer=optax.sgd(0.1),
                key=jax.random.key(0), epochs=1, batch_size=8, **sums)  # fmt: skip
        return np.asarray(found.params.w)

    wanted = train(mesh_of(1, 4))
    for kind in (AxisType.Auto, BOTH_KINDS[0]):
        np.testing.assert_array_equal(train(mesh_of(2, 4, kind=kind)), wanted)


if __name__ == "__main__":
    mesh_run.main(CASES)
