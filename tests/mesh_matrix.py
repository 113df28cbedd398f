"""Every public function of logits and of linear heads, in every way that a program places arrays.

A process of its own with eight CPU devices: `python tests/mesh_matrix.py [NAME ...]` prints a line
for each function and way, "PASS name | way" or "FAIL name | way: reason", and exits with 1 if one
failed. One program computes value, gradient, jvp and Hessian product, or those that the case and
the way have, and is compiled once. The truth is the same program on one device in float64. The
thresholds of what is chosen by size are lowered, so that small arrays take the paths of large ones.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxsoftmax as js
from jaxsoftmax import exponential, losses
from jaxsoftmax.kernels import primitives
from jaxsoftmax.kernels.tiles import Tiles

N, D, K, FEW = 64, 24, 96, 16
ULP = 8.0  # of values and gradients of one exponential
CLOSE = 3e-6  # of the largest entry: what is a sum with terms of both signs, or of products

DEVICES = 8
SEQUENCES = (8, N // 8)  # the rows as a batch of sequences


PARTS = ("value", "gradient", "jvp", "hessian")
FIRST_ORDER = ("value", "gradient")


class Case(NamedTuple):
    """A function, and its arguments by name and axes.

    They are n for rows, k for classes, and t for the places of a sequence, which are sharded where
    classes are elsewhere; d stands for any other.
    """

    function: Callable[..., Any]
    arguments: dict[str, str]
    moving: int  # how many of the first arguments are differentiated
    exact: tuple[str, ...] = ("value", "gradient")  # what has the bound in ulps
    ways: tuple[str, ...] | None = None  # all where None
    parts: tuple[str, ...] = PARTS


def data() -> dict[str, np.ndarray]:
    """Arguments by name: float64 throughout, of numbers that float32 has."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32).astype(np.float64)

    valid = rng.random(N) < 0.8
    where = rng.random((N, K)) < 0.9
    where[:3] = False
    targets = np.abs(normal(N, K))
    w, bias = normal(D, K // 2) / 2, normal(K // 2)
    broken = 4 * normal(N, K)
    broken[3, 5], broken[20, 90], broken[21] = np.nan, np.nan, np.nan
    diverged = normal(D, K)
    diverged[:, 70] = np.nan
    found = {
        "logits": 4 * normal(N, K), "tangents": normal(N, K), "labels": rng.integers(0, K, N),
        "valid": valid, "where": where, "targets": targets / targets.max(),
        "weights": np.abs(normal(N)), "values": np.abs(normal(N)),
        "x": normal(N, D), "bias": np.concatenate([bias, np.roll(bias, 5)]),
        # Each class has a twin in another block: a tie goes to the first.
        "w": np.concatenate([w, np.roll(w, 5, 1)], 1), "broken": broken, "diverged": diverged,
        "few": normal(D, FEW), "few_bias": normal(FEW), "few_labels": rng.integers(0, FEW, N),
        "exists": np.arange(K) != 5, "marks": rng.integers(0, 2, (N, K)),
    }  # fmt: skip
    for name in ("x", "labels", "valid", "weights"):
        found[f"{name} of sequences"] = found[name].reshape(*SEQUENCES, *found[name].shape[1:])
    return found


def cases() -> dict[str, Case]:
    """All of them."""
    one = {"logits": "nk"}
    row = {"logits": "nk", "labels": "n", "where": "nk", "valid": "n"}
    soft = {"logits": "nk", "targets": "nk", "where": "nk", "valid": "n"}
    head = {"x": "nd", "w": "dk", "bias": "k", "labels": "n", "exists": "k", "valid": "n"}
    tiles = Tiles(rows=16, classes=16)

    def of_rows(f: Callable) -> Callable:
        return lambda z, y, where, valid: f(z, y, where=where, valid=valid)

    def fused(f: Callable, pick: Callable = same, **how: Any) -> Callable:
        return lambda x, w, b, y, where, valid, *weights: pick(
            f(x, w, y, bias=b, where=where, valid=valid, tiles=tiles, **how, **_weighted(weights))
        )

    diverged = {"x": "nd", "diverged": "dk", "bias": "k", "labels": "n"}
    summed = {"x": "nd", "w": "dk", "bias": "k", "labels": "n", "exists": "k", "valid": "n"}
    summed |= {"weights": "n"}
    few = {"x": "nd", "few": "dk", "few_bias": "k", "few_labels": "n"}
    binary = {
        k if k != "labels" else "marks": v if k != "labels" else "nk" for k, v in head.items()
    }
    logit = {"logits": "nk", "marks": "nk"}
    sequences = {"x of sequences": "ntd", "w": "dd", "bias": "d", "labels of sequences": "nt"}
    dense = ("auto both", "explicit rows", "explicit classes", "explicit both", "shard_map")
    of_sequences = ("auto rows", "auto classes", "explicit rows", "explicit both", "shard_map")
    one_product = ("auto rows", "explicit rows", "shard_map", "pmap")
    sequences |= {"exists": "d", "valid of sequences": "nt"}
    return {
        "logsumexp": Case(js.logsumexp, one, 1),
        "log_softmax": Case(js.log_softmax, one, 1, exact=("value",)),
        "softmax": Case(js.softmax, one, 1, exact=("value",)),
        "softmax over the first axis": Case(
            lambda z: js.softmax(z.T, axis=0).T, one, 1, exact=("value",)),
        "sigmoid links": Case(
            lambda z: (js.sigmoid(z), js.log_sigmoid(z), js.softplus(z)), one, 1, exact=("value",)),
        "cross_entropy": Case(of_rows(js.cross_entropy), row, 1),
        "cross_entropy, plain": Case(js.cross_entropy, {"logits": "nk", "labels": "n"}, 1),
        "soft_cross_entropy": Case(of_rows(js.soft_cross_entropy), soft, 2, exact=()),
        "kl_divergence": Case(of_rows(js.kl_divergence), soft, 2, exact=()),
        "entropy": Case(js.entropy, one, 1, exact=()),
        "binary losses": Case(
            lambda z, t: (js.binary_cross_entropy(z, t), js.hinge(z, t)), logit, 1,
            exact=("value",)),
        "squared_error": Case(js.squared_error, {"logits": "nk", "labels": "n"}, 1, exact=()),
        "brier": Case(of_rows(js.brier), row, 1, exact=()),
        "multiclass_hinge": Case(of_rows(js.multiclass_hinge), row, 1, exact=()),
        "focal": Case(
            lambda *a: js.focal(of_rows(js.cross_entropy)(*a), gamma=2.0), row, 1, exact=()),
        "weighted_mean": Case(
            lambda v, w, valid: js.weighted_mean(v, weights=w, valid=valid),
            {"values": "n", "weights": "n", "valid": "n"}, 2, exact=()),
        "mean_cross_entropy": Case(
            lambda z, y, where, valid, w, c: js.mean_cross_entropy(
                z, y, where=where, valid=valid, weights=w, class_weights=jnp.abs(c), smoothing=0.1),
            row | {"weights": "n", "bias": "k"}, 1, exact=()),
        "smoothed_cross_entropy": Case(
            lambda z, y, where, valid, c: js.smoothed_cross_entropy(
                z, y, where=where, valid=valid, class_weights=jnp.abs(c), smoothing=0.0),
            row | {"bias": "k"}, 1, exact=()),
        "cross_entropy_gradient": Case(of_rows(js.cross_entropy_gradient), row, 1, exact=()),
        "cross_entropy_hessian_product": Case(
            js.cross_entropy_hessian_product, {"logits": "nk", "tangents": "nk"}, 2, exact=()),
        "binary derivatives": Case(
            lambda z, t: (
                js.binary_cross_entropy_gradient(z, t),
                js.binary_cross_entropy_hessian_product(z, t, z),
                js.binary_gauss_newton_factor(z),
            ), logit, 1, exact=()),
        "labels alone are many": Case(
            lambda z, y: js.cross_entropy(
                jnp.broadcast_to(z, (len(y), K)), y, valid=jnp.ones(len(y), bool)),
            {"bias": "k", "labels": "n"}, 1, exact=()),
        "NaN in a row": Case(
            lambda z, y, t: (
                js.cross_entropy(z, y), js.logsumexp(z), js.softmax(z), js.log_softmax(z),
                js.brier(z, y), js.multiclass_hinge(z, y), js.soft_cross_entropy(z, t),
            ), {"broken": "nk", "labels": "n", "targets": "nk"}, 1, exact=(), parts=FIRST_ORDER),
        # Two programs: what XLA for CPUs (jaxlib 0.12.0.1) keeps in its cache of one with both, for
        # "explicit classes", crashes when it is read.
        "NaN in a class": Case(
            lambda x, w, b, y: tuple(js.linear_cross_entropy(x, w, y, bias=b, tiles=tiles)),
            diverged, 3, exact=(), parts=FIRST_ORDER),
        "NaN in a class, sum": Case(
            lambda x, w, b, y: (js.linear_cross_entropy_sum(x, w, y, bias=b, tiles=tiles),),
            diverged, 3, exact=(), parts=FIRST_ORDER),
        "gauss_newton_factor": Case(
            lambda z: js.gauss_newton_factor(js.softmax(z[:, :8])), one, 1, exact=()),
        "linear_cross_entropy": Case(fused(js.linear_cross_entropy, tuple), head, 3, exact=()),
        "linear_cross_entropy_stats": Case(
            fused(js.linear_cross_entropy_stats, lambda a: (a[0], a[2], a[3] + 0.0), softcap=20.0),
            head, 3, exact=()),
        "linear_cross_entropy_sum": Case(
            fused(js.linear_cross_entropy_sum), summed, 3, exact=()),
        "linear_cross_entropy, reference": Case(
            fused(js.linear_cross_entropy_stats, lambda a: a[:3], implementation="reference"),
            head, 3, exact=(), ways=dense),
        "linear_cross_entropy of sequences": Case(
            fused(js.linear_cross_entropy, tuple), sequences, 3, exact=(), ways=of_sequences),
        "linear_cross_entropy_sum of sequences": Case(
            fused(js.linear_cross_entropy_sum), sequences | {"weights of sequences": "nt"}, 3,
            exact=(), ways=of_sequences),
        "linear_cross_entropy_sum, few classes": Case(
            lambda x, w, b, y: js.linear_cross_entropy_sum(x, w, y, bias=b, tiles=tiles),
            few, 3, exact=(), ways=one_product),
        "linear_binary_cross_entropy": Case(
            fused(js.linear_binary_cross_entropy), binary, 3, exact=()),
        "linear_binary_cross_entropy_sum": Case(
            fused(js.linear_binary_cross_entropy_sum), binary | {"weights": "n"}, 3, exact=()),
    }  # fmt: skip


def _weighted(weights: tuple) -> dict[str, Any]:
    return {"weights": weights[0]} if weights else {}


# -- One program --


def same(a: Any) -> Any:
    """What one device has is all there is."""
    return a


def program(case: Case, total: Callable = same, results: Callable = same) -> Callable:
    """The parts of the case.

    `total` sums gradients over the devices, and `results` the parts of a sum over the rows.
    """

    def run(arrays: tuple, tangents: tuple, cotangents: Any) -> dict[str, Any]:
        moving, rest = arrays[: case.moving], arrays[case.moving :]

        def values(moving: tuple) -> Any:
            return case.function(*moving, *rest)

        def scalar(moving: tuple) -> Any:
            parts = jax.tree.map(lambda a, c: jnp.sum(a * c), values(moving), cotangents)
            return sum(jax.tree.leaves(parts))

        gradient = jax.grad(scalar)
        compute = {
            "value": lambda: results(values(moving)),
            "gradient": lambda: total(gradient(moving)),
            "jvp": lambda: results(jax.jvp(values, (moving,), (tangents,))[1]),
            "hessian": lambda: total(jax.jvp(gradient, (moving,), (tangents,))[1]),
        }
        return {part: compute[part]() for part in case.parts}

    return run


def arguments(case: Case, dtype: Any) -> tuple[tuple, tuple, Any]:
    """Arrays, tangents of those that move, and cotangents of the results, in NumPy."""
    rng, found = np.random.default_rng(1), data()
    types = {"f": dtype, "i": np.int32, "b": np.bool_}

    def cast(a: np.ndarray) -> np.ndarray:
        return a.astype(types[a.dtype.kind])

    def draw(a: Any) -> np.ndarray:
        return cast(rng.standard_normal(a.shape).astype(np.float32))

    arrays = tuple(cast(found[name]) for name in case.arguments)
    results = jax.eval_shape(case.function, *arrays)
    return arrays, tuple(map(draw, arrays[: case.moving])), jax.tree.map(draw, results)


def compare(case: Case, found: Any, truth: Any) -> str | None:
    """What is wrong, or None."""
    for part in found:
        pairs = zip(jax.tree.leaves(found[part]), jax.tree.leaves(truth[part]), strict=True)
        for number, (a, t) in enumerate(pairs):
            a, t = np.asarray(a, np.float64), np.asarray(t)
            if not np.array_equal(np.isnan(a), np.isnan(t)):
                return f"{part}[{number}]: other entries are NaN"
            if not np.array_equal(np.isfinite(a), np.isfinite(t)):
                return f"{part}[{number}]: other entries are finite"
            a, t = a[np.isfinite(a)], t[np.isfinite(t)]
            if part in case.exact:
                big = np.abs(t) > np.finfo(np.float32).tiny
                error = np.abs(a - t)[big] / np.spacing(np.abs(t[big]).astype(np.float32))
                if error.size and error.max() > ULP:
                    return f"{part}[{number}]: {error.max():.1f} ulp"
            error = np.abs(a - t).max(initial=0) / max(np.abs(t).max(initial=0), 1e-30)
            if error > CLOSE:
                return f"{part}[{number}]: {error:.1e} of the largest entry"
    return None


# -- Ways of placing arrays --

KINDS = "all-gather|all-to-all|collective-permute|reduce-scatter|ragged-all-to-all"


def traffic(text: str, limit: int) -> str | None:
    """A collective of a compiled program that should not be there, or None."""
    for line in text.splitlines():
        found = re.search(rf"= (\(?[a-z0-9]+\[.*?) ({KINDS}|all-reduce)(-start)?\(", line)
        if found is None:
            continue
        shapes = re.findall(r"[a-z0-9]+\[([\d,]*)\]", found.group(1))
        size = max(int(np.prod([int(i) for i in s.split(",") if i] or [1])) for s in shapes)
        if size > (limit if found.group(2) == "all-reduce" else N):
            return f"{found.group(2)} of {found.group(1)}"
    return None


class Way(NamedTuple):
    """How arrays are placed: over which of their axes, and on what kind of mesh."""

    axis: str
    kind: str


WAYS = {
    "auto rows": Way("n", "auto"),
    "auto classes": Way("k", "auto"),
    "explicit rows": Way("n", "explicit"),
    "explicit classes": Way("k", "explicit"),
    "explicit both": Way("nk", "explicit"),
    "shard_map": Way("n", "manual"),
    "shard_map unchecked": Way("n", "unchecked"),
    "pmap": Way("n", "pmap"),
}
# A factor [K, K] of each row needs the whole row; and places of a sequence that are sharded on an
# Auto mesh, where the type does not show it, are gathered when sequences become rows.
GATHERS = {
    ("gauss_newton_factor", "auto classes"),
    ("gauss_newton_factor", "explicit classes"),
    ("gauss_newton_factor", "explicit both"),
    ("linear_cross_entropy of sequences", "auto classes"),
    ("linear_cross_entropy_sum of sequences", "auto classes"),
}


# These place arrays as another way does, whose Hessian products are compared: "explicit both", and
# "shard_map unchecked", which is what pmap is made of.
WITHOUT_HESSIAN = ("explicit classes", "pmap")


def placed(case: Case, way: Way, arrays: tuple, tangents: tuple, cotangents: Any) -> Any:
    """Run the program with its arrays placed so; a string says what its text has that is wrong."""
    places = [
        PartitionSpec(*(a if a in way.axis else None for a in axes.replace("t", "k")))
        for axes in case.arguments.values()
    ]
    specs = tuple(places), tuple(places[: case.moving]), _of_results(way, cotangents)
    given = arrays, tangents, cotangents
    if way.kind in ("manual", "unchecked"):
        return _shard_map(case, way, specs, given)
    if way.kind == "pmap":
        return _pmap(case, specs, given)
    shape = (2, 4) if way.axis == "nk" else (8,)
    kind = AxisType.Auto if way.kind == "auto" else AxisType.Explicit
    mesh = Mesh(np.array(jax.devices()).reshape(shape), tuple(way.axis), (kind,) * len(shape))
    given = _put(mesh, given, specs)
    # A program finds its mesh in the types of its arrays, or in the context.
    if kind == AxisType.Auto or way.axis == "n":
        return _compiled(program(case), given)
    with jax.set_mesh(mesh):
        return _compiled(program(case), given)


def _put(mesh: Mesh, arrays: Any, specs: Any) -> Any:
    return jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), arrays, specs)


def _of_results(way: Way, results: Any) -> Any:
    """Where results lie: their first axis is that of the rows, and the last one has the classes."""

    def place(a: Any) -> PartitionSpec:
        names = [None] * a.ndim
        if a.ndim and a.shape[0] in (N, SEQUENCES[0]) and "n" in way.axis:
            names[0] = "n"
        if a.ndim == 2 and (a.shape[1] == K or a.shape == SEQUENCES) and "k" in way.axis:
            names[1] = "k"
        return PartitionSpec(*names)

    return jax.tree.map(place, results)


def _compiled(run: Callable, given: tuple) -> Any:
    program = jax.jit(run).lower(*given).compile()
    return program(*given), program.as_text()


def _shard_map(case: Case, way: Way, specs: tuple, given: tuple) -> Any:
    mesh = Mesh(np.array(jax.devices()), ("n",), axis_types=(AxisType.Auto,))
    checked = way.kind == "manual"
    total = same if checked else partial(_totals, specs[1])
    run = jax.shard_map(
        program(case, total, _of_all_rows),
        mesh=mesh,
        in_specs=specs,
        out_specs=_by_part(case, specs),
        check_vma=checked,
    )
    return _compiled(run, _put(mesh, given, specs))


def _by_part(case: Case, specs: tuple) -> dict[str, Any]:
    """Where each part lies: like the results, or like the arrays that move."""
    return {part: specs[2 if part in ("value", "jvp") else 1] for part in case.parts}


def _of_all_rows(results: Any) -> Any:
    return jax.tree.map(lambda a: a if a.ndim else lax.psum(a, "n"), results)


def _totals(places: tuple, gradients: tuple) -> tuple:
    """The sums over devices of the gradients of what is replicated."""
    return tuple(
        g if "n" in tuple(p) else lax.psum(g, "n") for g, p in zip(gradients, places, strict=True)
    )


def _pmap(case: Case, specs: tuple, given: tuple) -> Any:
    def split(a: np.ndarray, place: PartitionSpec) -> np.ndarray:
        return a.reshape(DEVICES, -1, *a.shape[1:]) if "n" in tuple(place) else a

    axes = jax.tree.map(lambda a, p: 0 if "n" in tuple(p) else None, given, specs)
    run = jax.pmap(
        program(case, partial(_totals, specs[1]), _of_all_rows), axis_name="n", in_axes=axes
    )
    found = run(*jax.tree.map(split, given, specs))

    def whole(a: Any, place: PartitionSpec) -> np.ndarray:
        a = np.asarray(a)
        return a.reshape(-1, *a.shape[2:]) if "n" in tuple(place) else a[0]

    return jax.tree.map(whole, found, _by_part(case, specs)), ""


MEANS = ("weighted_mean", "mean_cross_entropy")


def skipped(name: str, case: Case, title: str) -> bool:
    """What a case leaves out, and what a way cannot say: each device has a mean of its own."""
    way = WAYS[title]
    local = way.kind in ("manual", "unchecked", "pmap")
    classes = any("k" in axes or "t" in axes for axes in case.arguments.values())
    without = ("k" in way.axis and not classes) or (local and name in MEANS)
    return without or (case.ways is not None and title not in case.ways)


def lower_thresholds() -> None:
    """Small arrays take the paths of large ones."""
    losses.CPU_BLOCK_ENTRIES = 256
    exponential.SEQUENTIAL_SUM_LIMIT, exponential.BLOCKED_SUM_LIMIT = 32, 64
    exponential.MIN_BLOCK_CLASSES, exponential.MAX_BLOCK_CLASSES = 4, 16
    primitives.LONG_SUM_LIMIT = 40


REAL = "at real sizes"


def at_real_sizes(only: list[str]) -> Iterator[str]:
    """Programs above the thresholds as they are, compiled and not run: memory and traffic."""
    if only and REAL not in only:
        return
    mesh = Mesh(np.array(jax.devices()), ("n",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("n",), ()))
    columns = NamedSharding(mesh, PartitionSpec(None, "n"))

    def of(shape: tuple, place: NamedSharding, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    n, k, d = 4096, 4096, 32
    labels, some = of((n,), rows, jnp.int32), of((n,), whole, jnp.int32)
    fused = partial(js.linear_cross_entropy_sum, memory=2**21)
    programs = {
        "cross_entropy, value": (
            js.cross_entropy, (of((n, k), rows), labels), 0),
        "cross_entropy, value, sequences": (
            js.cross_entropy, (of((8, n // 8, k), rows), of((8, n // 8), rows, jnp.int32)), 0),
        "cross_entropy, classes": (js.cross_entropy, (of((n, 2400), columns), some), n),
        "linear_cross_entropy, classes": (
            lambda x, w, y: js.linear_cross_entropy(x, w, y, memory=2**21).nll,
            (of((n, d), whole), of((d, 2048), columns), some), n),
        "linear_cross_entropy_sum, rows": (
            jax.grad(fused, argnums=(0, 1)), (of((n, d), rows), of((d, 2048), whole), labels),
            d * 2048),
    }  # fmt: skip
    for name, (function, given, limit) in programs.items():
        program = jax.jit(function).lower(*given).compile()
        reason = traffic(program.as_text(), limit)
        # A block of logits and of exponentials, and sums; never the logits.
        size = program.memory_analysis().temp_size_in_bytes
        if size > 4 * 2**20:
            reason = f"{size} bytes of temporaries"
        yield f"{'FAIL' if reason else 'PASS'} {REAL} | {name}" + (f": {reason}" if reason else "")


def main(only: list[str]) -> Iterator[str]:
    """A line for each function and way."""
    yield from at_real_sizes(only)
    lower_thresholds()
    for name, case in cases().items():
        if only and name not in only:
            continue
        with jax.enable_x64():
            truth = jax.jit(program(case))(*arguments(case, np.float64))
            truth = jax.tree.map(np.asarray, truth)
        given = arguments(case, np.float32)
        linear = next(iter(case.arguments)).startswith("x")
        # A gradient of logits that are the same for all rows is summed before they are broadcast.
        large = linear or name == "labels alone are many"
        limit = max(D * K, N * D) if large else 2 * N
        for title, way in WAYS.items():
            if skipped(name, case, title):
                continue
            parts = [p for p in case.parts if p != "hessian" or title not in WITHOUT_HESSIAN]
            try:
                found, text = placed(case._replace(parts=tuple(parts)), way, *given)
                reason = compare(case, found, truth)
                if (name, title) not in GATHERS:
                    reason = reason or traffic(text, limit)
            except Exception as error:
                if os.environ.get("TRACE"):
                    raise
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            yield f"{'FAIL' if reason else 'PASS'} {name} | {title}" + (
                f": {reason}" if reason else ""
            )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    failed = False
    for line in main(sys.argv[1:]):
        failed |= line.startswith("FAIL")
        print(line, flush=True)
    sys.exit(failed)
