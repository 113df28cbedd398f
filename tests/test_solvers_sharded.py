"""The solvers on features whose rows two devices share: the same optimum, and what crosses."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsoftmax as js
from jaxsoftmax import Shards, solve, solve_path
from jaxsoftmax.solvers import (
    certificate,
    class_preconditioner,
    prepare,
    row_shards,
    shared_preconditioner,
    steps,
)
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.training import RecordSource

pytestmark = pytest.mark.usefixtures("unoptimized")

N, D, K = 4800, 12, 5
ROWS = Shards(rows="rows")


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    return Mesh(np.array(jax.devices()[:2]), ("rows",), axis_types=(request.param,))


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of unequal scales, and labels that no linear model separates."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)) @ rng.standard_normal((D, D)) * np.exp(rng.normal(size=D))
    scores = x @ rng.standard_normal((D, K)) / 3 + rng.standard_normal(K)
    return x.astype(np.float32), np.argmax(scores + rng.gumbel(size=(N, K)), 1)


def same(found: js.Solution, truth: js.Solution) -> None:
    assert np.all(found.converged), found.reason
    np.testing.assert_allclose(found.objective, truth.objective, rtol=1e-10)
    np.testing.assert_allclose(found.params.w, truth.params.w, rtol=1e-4, atol=1e-5)


def test_shards_and_sharded_arrays_are_solved_where_they_are(mesh: Mesh) -> None:
    x, y = examples()
    truth = solve(x, y, C=1.0, gap=1e-11)
    on_devices = jax.device_put(x, NamedSharding(mesh, P("rows")))
    found = solve(on_devices, y, C=1.0, gap=1e-11)
    same(found, truth)
    seen: list[Any] = []
    with jax.set_mesh(mesh):

        def note(_: dict[str, Any]) -> None:
            seen.append((jax.sharding.get_mesh(), jnp.ones(2).dtype))

        # One row more than the devices divide.
        weights = np.append(np.ones(N), 0)
        more = np.concatenate([x, np.full((1, D), np.nan, np.float32)]), np.append(y, -1)
        padded = solve(*more, C=1.0, gap=1e-11, shards=ROWS, weights=weights, callback=note)
    same(padded, truth)
    assert set(seen) == {(mesh, jnp.dtype("float32"))}  # the caller's own


def test_a_large_problem_has_its_sample_and_its_preconditioner_from_every_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = examples()
    truth = solve(x, y, C=1.0, gap=1e-10)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)  # as if it were large
    monkeypatch.setattr(class_preconditioner, "MIN_ROWS", 400)
    monkeypatch.setattr(class_preconditioner, "cost_in_products", lambda *_: 1)
    built: list[bool] = []
    build = class_preconditioner.build
    monkeypatch.setattr(
        class_preconditioner, "build", lambda *args: built.append(True) or build(*args)
    )
    with jax.set_mesh(Mesh(np.array(jax.devices()[:2]), ("rows",))):
        found = solve(x, y, C=1.0, gap=1e-6, shards=ROWS)
    assert found.converged
    assert built
    assert truth.objective * (1 - 1e-10) <= found.objective <= truth.objective * (1 + 1e-6)


def test_rows_that_are_drawn_stay_on_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the preconditioners take to a host are matrices of the features, never examples."""
    x, y = examples()
    inner = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("rows",)), P("rows", None))
    shared = row_shards.shard_features(jax.device_put(x, inner), None)
    zero, array, pulled = np.zeros(1), type(shared.values), []
    for module in (shared_preconditioner, class_preconditioner):
        monkeypatch.setattr(module, "MIN_ROWS", 400)
    data = prepare.prepare_data(
        shared, y, loss=js.cross_entropy, weights=None, class_weights=None, memory=2**30
    )
    with row_shards.computing_with(shared):
        lanes = prepare.prepare_lanes(data, data.weights[None], y[None], zero, zero)
        variance = row_shards.to_device(shared, np.full((1, K, N), 1 / K))
        to_numpy, value = array.__array__, array._value.fget

        def watched(a: Any, *how: Any, **options: Any) -> Any:
            pulled.append(a.shape)
            return to_numpy(a, *how, **options)

        monkeypatch.setattr(array, "_value", property(lambda a: pulled.append(a.shape) or value(a)))
        monkeypatch.setattr(array, "__array__", watched)
        shared_preconditioner.build(lanes.features, lanes.weights[0], 2**30)
        assert class_preconditioner.build(lanes, "softmax", variance) is not None
    assert {(D, D), (K, D + 1, D + 1)} <= {*pulled}
    assert max(map(np.prod, pulled)) <= K * (D + 1) ** 2 < 400 * D


def test_a_path_of_sigmoids_with_folds() -> None:
    x, y = examples()
    folds, hot = np.arange(N) % 2, np.eye(K)[y]
    grid: dict[str, Any] = {"loss": js.binary_cross_entropy, "C": [0.01, 1.0], "folds": folds}
    with jax.set_mesh(Mesh(np.array(jax.devices()[:2]), ("rows",))):
        path = solve_path(x, hot, gap=1e-10, shards=ROWS, **grid)
    same(path, solve_path(x, hot, gap=1e-10, **grid))


def test_devices_share_the_rows_of_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples()
    # Windows of 1,250 rows, whose last one two devices do not divide.
    rows = [*zip(x[:2493], y, strict=False)]
    source = RecordSource(rows, lambda row: row, block_size=500, window=1250)
    shards, put = [], row_shards.put_rows
    monkeypatch.setattr(
        row_shards, "put_rows", lambda *args: shards.append(put(*args)) or shards[-1]
    )
    with jax.set_mesh(Mesh(np.array(jax.devices()[:2]), ("rows",))):
        found = solve(source, C=1.0, gap=1e-6, shards=ROWS)
        with pytest.raises(
            ValueError, match=r"shards: expected Shards\(rows=\.\.\.\) alone for a "
        ):
            solve(source, C=1.0, shards=Shards(rows="rows", classes="rows"))
        with pytest.raises(ValueError, match=r"axes of the mesh, \('rows',\), got 'data'"):
            solve(source, C=1.0, shards=Shards(rows="data"))
    truth = solve(x[:2493], y[:2493], C=1.0, gap=1e-10)
    assert found.converged, found.reason
    assert truth.objective * (1 - 1e-9) <= found.objective <= truth.objective * (1 + 1e-6)
    assert {shard.count for shard in shards} == {2}
    assert {len(shard) for shard in shards} >= {1248}  # of 1,247 examples in each window


def collectives(program: Any, *args: Any, **options: Any) -> list[tuple[str, int]]:
    """Each collective operation of a program and the most numbers in one of its results."""
    text = program.lower(*args, **options).compile().as_text()
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({names})(?:-start)?\(", text)
    assert found, "the program has no collective at all"
    size = [
        max(int(np.prod([int(n) for n in dims.split(",") if n]))
            for dims in re.findall(r"\[([\d,]*)\]", shapes))
        for shapes, _ in found
    ]  # fmt: skip
    return [(name, most) for (_, name), most in zip(found, size, strict=True)]


def test_what_crosses_is_a_sum_of_the_size_of_the_parameters() -> None:
    x, y = examples()
    inner = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("rows",)), P("rows", None))
    shared = row_shards.shard_features(jax.device_put(x, inner), None)
    data = prepare.prepare_data(
        shared, y, loss=js.cross_entropy, weights=None, class_weights=None, memory=2**30
    )
    alpha = np.array([1e-3])
    with row_shards.computing_with(shared):
        lanes = prepare.prepare_lanes(data, data.weights[None], y[None], alpha, 0 * alpha)
        lanes = lanes._replace(features=shared)
        pre = shared_preconditioner.build(shared, lanes.weights[0], 2**30)
        theta = jnp.zeros((1, K, D + 1))
        smooth: dict[str, Any] = {"link": "softmax", "intercept": True}
        point, g = steps.point_and_gradient(lanes, theta=theta, **smooth)
        sample = steps.Sample(problems.take_rows(lanes, np.arange(100)), np.arange(100))
        step = lanes, "softmax", point, g, pre, jnp.ones(1)
        rows = np.arange(0, N // 2, 4)
        certify = lanes, "softmax", point, g, jnp.ones(1), rows
        programs = [
            collectives(steps.newton_cg, *step, sample, intercept=True),
            collectives(certificate._certify_without_centering, *certify, intercept=True),
            collectives(certificate.certify_rounded, lanes, theta=theta, trial=theta,
                        dtype="float32", **smooth),
        ]  # fmt: skip
    for found in programs:
        assert {name for name, _ in found} == {"all-reduce"}
        assert max(size for _, size in found) <= K * (D + 1)


def test_a_sharded_feature_that_is_bad_is_named(mesh: Mesh) -> None:
    x, y = examples()
    x[N - 2, 3] = np.inf
    on_devices = jax.device_put(x, NamedSharding(mesh, P("rows")))
    with pytest.raises(ValueError, match=rf"features: .*finite.* got inf at \[{N - 2}, 3\]"):
        solve(on_devices, y, C=1.0)
    x[N - 2, 3] = 1e20
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=rf"1e\+15, got 1e\+20 at \[{N - 2}"):
        solve(x, y, C=1.0, shards=ROWS)


def test_shards_that_do_not_fit_are_refused(mesh: Mesh) -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    x, y = examples()
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=r"axes of the mesh, \('rows',\), got 'data'"):
            solve(x, y, C=1.0, shards=Shards(rows="data"))
        with pytest.raises(ValueError, match=r"different axes of rows and classes, got \{'rows'\}"):
            solve(x, y, C=1.0, shards=Shards(rows="rows", classes="rows"))
        on_devices = jax.device_put(x, NamedSharding(mesh, P("rows")))
        with pytest.raises(ValueError, match="classes: expected axes other than the rows'"):
            solve(on_devices, y, C=1.0, shards=Shards(classes="rows"))
        with pytest.raises(TypeError, match=r"expected Shards\(rows"):
            solve(x, y, C=1.0, shards="rows")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="sparse"):
            solve(scipy_sparse.csr_array(x), y, C=1.0, shards=ROWS)
