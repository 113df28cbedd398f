"""The row kernels: interpreted against exact values, compiled for GPUs that are only described.

A block of entries has 1,024, a vector 4 or 8; the shapes lie on both sides of each, and the tunings
are those of `plans` in every choice that they make, with fewer warpgroups and smaller chunks.
Blocks that share a row are interpreted with one warpgroup each: the interpreter needs a thread for
every warpgroup that waits.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import adversaries
import cuda_python
import gpu_interpreter
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

import jaxsoftmax as js
from jaxsoftmax import few_passes
from jaxsoftmax.kernels import linear_binary_cross_entropy_sum, target
from jaxsoftmax.kernels.gpu import rows
from jaxsoftmax.kernels.gpu.rows import implementation, plans
from jaxsoftmax.kernels.gpu.rows.pipeline import IGNORED, UNDEFINED
from jaxsoftmax.kernels.gpu.rows.plans import Tuning

pytestmark = pytest.mark.usefixtures("strict", "unoptimized")

SCRIPT = Path(__file__).parent.parent / "experiments" / "benchmark.py"
INF, NAN = np.inf, np.nan
HALF_ULP = 0.51  # of the format of a gradient in half precision
SHAPES = {
    # A warpgroup for each row; less than a block of entries, whole vectors; several waves.
    "short rows": ((9, 1000), jnp.bfloat16, Tuning(1, 1, False, 3, 2, 4096), False),
    # Unaligned rows of which the last ends within a vector.
    "unaligned": ((9, 1029), jnp.float32, Tuning(1, 1, True, 1, 2, 4096), False),
    # Two warpgroups for each row, two chunks each, one of which is empty; in place.
    "empty chunk": ((12, 3000), jnp.float16, Tuning(2, 1, True, 1, 2, 2048, 5), True),
    # The last vector, of which some entries are stored one by one, would be in a chunk of its own.
    "two blocks": ((12, 4095), jnp.bfloat16, Tuning(1, 2, True, 1, 1, 2048), True),
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip what is interpreted where this JAX cannot."""
    gpu_interpreter.skip_where_absent(monkeypatch)


# -- The kernels --


@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_row(name: str):
    (n, k), dtype, tuning, in_place = SHAPES[name]
    z, labels = rows_of_all_kinds(n, k, dtype)
    if name == "unaligned":
        adversarial = adversaries.logits(k, np.float32).astype(np.float64)[::3]
        z = np.concatenate([z, adversarial])
        labels = np.int32(np.concatenate([labels, np.arange(len(adversarial)) * 17 % k]))
        n = len(z)
    cotangents = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    plan = plans.plan(k, jnp.dtype(dtype).itemsize, tuning)
    values, gradient = jax.jit(
        partial(
            implementation.losses_and_gradient,
            plan=plan, cores=2, interpret=True, in_place=in_place,
        )
    )(jnp.asarray(z, dtype), jnp.asarray(labels), jnp.asarray(cotangents))  # fmt: skip
    want, slope = truth(z, labels)
    oracles.assert_ulps(values, want)
    weighted = slope * cotangents.astype(oracles.extended)[:, None]
    assert_rounded(gradient, weighted, 8 if dtype == jnp.float32 else HALF_ULP)
    if name == "short rows":
        alone = jax.jit(partial(implementation.losses, plan=plan, cores=2, interpret=True))
        np.testing.assert_array_equal(alone(jnp.asarray(z, dtype), jnp.asarray(labels)), values)


def rows_of_all_kinds(n: int, k: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are confident, shifted, far from 0, infinite, masked, NaN, ignored or undefined."""
    rng = np.random.default_rng(k)
    z, labels = 3 * rng.standard_normal((n, k)), rng.integers(0, k, n)
    far = 6e4 if dtype == jnp.float16 else 2e6
    kinds: list[Callable[[int], None]] = [
        lambda r: put(r, slice(None), 30 * z[r], k - 1),
        lambda r: put(r, labels[r], z[r, labels[r]] + 60),
        lambda r: put(r, slice(None), z[r] + 1e3, 0),
        lambda r: put(r, slice(None), z[r] - far, k // 2),
        lambda r: put(r, slice(None), z[r] + far),
        lambda r: put(r, [1, 5, k - 1], INF, 5),
        lambda r: put(r, [0, k - 1], INF, 3),
        lambda r: put(r, slice(None), -INF),
        lambda r: put(r, k // 3, NAN),
        lambda r: put(r, slice(None), NAN, IGNORED),
        lambda r: put(r, 7, 2.0, UNDEFINED),
        lambda r: put(r, labels[r], -INF),
    ]

    def put(r: int, where: object, value: object, label: int | None = None) -> None:
        z[r, where] = value
        labels[r] = labels[r] if label is None else label

    for r in range(n):
        # Nine rows have every second kind, and then some of the others.
        kinds[r * (1 if n == len(kinds) else 5) % len(kinds)](r)
    return np.float64(jnp.asarray(z, dtype)), np.int32(labels)


def truth(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact losses and gradients, with what bad labels mean."""
    is_class, ignored = labels >= 0, labels == IGNORED
    y = np.where(is_class, labels, 0)
    known = np.where(ignored[:, None] | np.isnan(z).any(1)[:, None], 0, z)
    with np.errstate(invalid="ignore"):
        values = oracles.cross_entropy(known, y)
        gradient = oracles.cross_entropy_gradient(known, y)
    # Infinite logits share the mass.
    share = (known == INF) / np.maximum((known == INF).sum(1), 1)[:, None]
    infinite = share.any(1)
    own = np.take_along_axis(share, y[:, None], 1)[:, 0]
    with np.errstate(divide="ignore"):
        values = np.where(infinite, -np.log(own.astype(oracles.extended)), values)
    shared = share - oracles.onehot(y, z.shape[1])
    gradient = np.where(infinite[:, None], shared, gradient)
    lost = (~is_class & ~ignored) | (np.isnan(z).any(1) & ~ignored)
    values = np.where(lost, NAN, np.where(ignored, 0, values))
    return values, np.where(lost[:, None], NAN, np.where(ignored[:, None], 0, gradient))


def assert_rounded(got: jax.Array, true: np.ndarray, limit: float) -> None:
    """Entries are within a share of an ulp of their format, or of its smallest normal number."""
    info = jnp.finfo(got.dtype)
    size = np.where(np.isfinite(true), np.maximum(np.abs(true), float(info.tiny)), 1)
    unit = np.ldexp(oracles.extended(1), np.frexp(size)[1] - 1 - info.nmant)
    found = np.asarray(got.astype(jnp.float32), oracles.extended)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(true))
    error = np.where(np.isfinite(true), np.abs(found - true) / unit, 0)
    # Below the normal numbers the device gives 0.
    error = np.where(np.abs(true) < 2 * float(info.tiny), np.minimum(error, limit), error)
    assert np.nanmax(error) <= limit


# -- Plans --


@pytest.mark.parametrize("itemsize", [2, 4])
def test_plans_cover_each_row_once(itemsize: int):
    limits = [limit // itemsize for limit, *_ in plans.MEASURED]
    sizes = {768, 1000, 1009, 4096, 32_000, 50_257, 65_536, 128_256, 131_072}
    sizes |= {limit + d for limit in limits for d in (-1, 0, 1)}
    sizes |= {1024 * blocks - 1 for blocks in (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32, 40, 44)}
    for k in sizes:
        tuning = plans.choose(k, itemsize)
        if tuning is None:
            # Too long in float32, or unaligned and so near to a limit that a window does not fit.
            assert k * itemsize > 384 * 1024 or k % (16 // itemsize)
            continue
        plan = plans.plan(k, itemsize, tuning)
        assert plan.fits
        vector = plan.vector
        assert plan.chunks <= plan.parts * plan.steps
        # What is stored entry by entry at the end of an unaligned row is in one chunk.
        assert plan.is_aligned or (plan.chunks - 1) * plan.chunk <= k // vector * vector
        for low, high in ((0, plan.window), (vector, k // vector * vector)):
            covered = np.zeros(plan.window, int)
            for first, last, begin, length in plan.spans(low, high):
                assert begin * itemsize % 16 == length * itemsize % 16 == 0
                for q in range(first, last + 1):
                    covered[q * plan.chunk + begin : q * plan.chunk + begin + length] += 1
            np.testing.assert_array_equal(np.flatnonzero(covered == 1), np.arange(low, high))
            assert covered.max() == 1


def test_where_no_kernel_was_measured_to_be_faster():
    for k, itemsize, nearest in ((767, 2, 768), (98_305, 4, 98_304), (262_145, 2, 262_144)):
        assert plans.choose(k, itemsize) is None
        assert plans.choose(nearest, itemsize) is not None


# -- Behind the public functions --


@contextmanager
def interpreting() -> Iterator[None]:
    """Programs traced here run the kernels, of blocks with one warpgroup: 8 rows are enough."""
    # A program that was traced for the CPU must not be found instead.
    jax.clear_caches()
    measured = ((4096, Tuning(1, 1, False, 1, 1, 4096), 1.0),)
    with pytest.MonkeyPatch.context() as patch, target.assumed("gpu", interpret=True):
        patch.setattr(plans, "MEASURED", measured)
        yield
    jax.clear_caches()


K = 800


def logits_and_labels() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    z = (3 * jax.random.normal(keys[0], (2, 8, K))).astype(jnp.bfloat16)
    return z, jax.random.randint(keys[1], z.shape[:2], -1, K)


def derivatives(z: jax.Array, labels: jax.Array) -> dict[str, object]:
    """Every transformation of the public losses, of masked and ignored examples."""
    where = jnp.arange(K) % 5 != 0
    valid = (labels >= 0) & (labels % 3 != 0)
    cotangents = jnp.cos(jnp.arange(labels.size, dtype=jnp.float32)).reshape(labels.shape)
    dz = jnp.flip(z, 0)

    def weighted(z: jax.Array) -> jax.Array:
        return jnp.vdot(cotangents, js.cross_entropy(z, labels, where=where, valid=valid))

    def mean(z: jax.Array, labels: jax.Array, valid: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.float32(3) * js.mean_cross_entropy(z, labels, valid=valid, weights=weights)

    weights = jnp.abs(cotangents)
    return {
        "losses": js.cross_entropy(z, labels, where=where, valid=valid),
        "gradient and Hessian product": jax.jvp(jax.grad(weighted), (z,), (dz,)),
        # Two lanes of eight rows: the kernel of the sixteen rows above.
        "means": jax.vmap(jax.value_and_grad(mean, (0, 3)))(z, labels, valid, weights),
    }


def test_the_public_losses_are_those_of_the_other_form():
    z, labels = logits_and_labels()
    with interpreting():
        assert "cross_entropy_rows" in str(jax.make_jaxpr(js.cross_entropy)(z, labels))
        found = jax.jit(derivatives)(z, labels)
    want = jax.jit(derivatives)(z, labels)
    for name, b in want.items():
        for one, other in zip(jax.tree.leaves(found[name]), jax.tree.leaves(b), strict=True):
            assert one.dtype == other.dtype, name
            a, b = np.float32(one), np.float32(other)
            # Both round a gradient of half precision, and one of them in two steps.
            rtol = 4e-6 if one.dtype == jnp.float32 else float(jnp.finfo(one.dtype).eps)
            largest = np.abs(b[np.isfinite(b)]).max(initial=0)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 * largest, err_msg=name)


def test_types_in_shard_map():
    z, labels = (a.reshape(-1, *a.shape[2:]) for a in logits_and_labels())
    z, labels = jnp.tile(z, (2, 1)), jnp.tile(labels, 2)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def total(z: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.lax.psum(js.mean_cross_entropy(z, labels, valid=labels >= 0), "rows")

    def gradient(z: jax.Array, labels: jax.Array) -> jax.Array:
        both = jax.shard_map(total, mesh=mesh, in_specs=P("rows"), out_specs=P())
        return jax.grad(both)(z, labels)

    with interpreting():
        assert "cross_entropy_rows" in str(jax.make_jaxpr(gradient)(z, labels))
        jax.jit(gradient).lower(z, labels)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("measured on this GPU", {"kind": "NVIDIA B200"}),
        ("one of", {"dtype": jnp.float64}),
        ("last axis", {"axis": 0}),
        ("faster at 512", {"shape": (4096, 512)}),
        ("rows to keep", {"shape": (8, 1000)}),
        ("fewer than 2^31", {"shape": (2**22, 1001)}),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_the_other_form_computes(reason: str, change: dict):
    case = {"kind": "NVIDIA H200", "dtype": jnp.bfloat16, "shape": (4096, 1000), "axis": 1}
    case |= change

    def reasons(z: jax.Array) -> jax.Array:
        assert reason in rows.unsupported(z, case["axis"])
        return z

    with (
        jax.enable_x64(case["dtype"] == jnp.float64),
        target.assumed("gpu", interpret=True, kind=case["kind"]),
    ):
        jax.eval_shape(reasons, jax.ShapeDtypeStruct(case["shape"], case["dtype"]))


def test_a_size_that_is_a_symbol_and_a_mesh():
    (b,) = export.symbolic_shape("b")
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))

    def reasons(z: jax.Array) -> jax.Array:
        found = rows.unsupported(z, 1)
        assert found is not None
        assert "numbers" in found or "among devices" in found
        return z

    with target.assumed("gpu", interpret=True):
        export.export(jax.jit(reasons))(jax.ShapeDtypeStruct((b, 1000), jnp.float32))
        with jax.set_mesh(mesh):
            z = jax.ShapeDtypeStruct((4096, 1000), jnp.float32)
            sharded = z.update(sharding=jax.sharding.NamedSharding(mesh, P("rows")))
            jax.eval_shape(reasons, sharded)


@contextmanager
def described(kind: str) -> Iterator[None]:
    """Programs traced here are for a GPU that is absent."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=132, platform="cuda")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("one",), auto, abstract_device=device)
    jax.clear_caches()
    with target.assumed("gpu"), jax.sharding.use_abstract_mesh(mesh):
        yield
    jax.clear_caches()


def test_a_program_has_the_kernel_on_cuda_alone():
    z = jax.ShapeDtypeStruct((16_384, 1000), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct(z.shape[:1], jnp.int32)
    mean = jax.value_and_grad(js.mean_cross_entropy)
    by_lane = jax.vmap(js.cross_entropy)
    for kind, platforms, function, is_there in (
        ("NVIDIA H200", ("cuda",), mean, True),
        ("NVIDIA H200", ("cuda",), by_lane, True),
        ("NVIDIA H200", ("cuda",), lambda z, y: js.cross_entropy(z[0], y[0]), False),
        ("NVIDIA H200", ("cpu",), mean, False),
        ("NVIDIA H200", ("cpu", "cuda", "tpu"), mean, False),
        ("NVIDIA B200", ("cuda",), mean, False),
    ):
        with described(kind):
            program = jax.jit(function).trace(z, labels)
        text = program.lower(lowering_platforms=platforms).as_text()
        assert ("mosaic_gpu" in text) == is_there, (kind, platforms)


# -- What XLA computes on a GPU --


def siblings(z: jax.Array, t: jax.Array) -> dict[str, object]:
    """The functions whose exponentials a GPU computes again, with their gradients."""
    labels = jnp.arange(z.shape[0]) % z.shape[1]
    c = jnp.cos(jnp.arange(z.size, dtype=jnp.float32)).reshape(z.shape)
    by_row: tuple[Callable, ...] = (
        js.logsumexp,
        partial(js.cross_entropy, labels=labels),
        partial(js.soft_cross_entropy, targets=t),
    )
    by_entry: tuple[Callable, ...] = (
        js.softmax,
        js.log_softmax,
        partial(js.binary_cross_entropy, targets=t),
    )
    found = [jax.value_and_grad(lambda z, f=f: jnp.vdot(c[:, 0], f(z)))(z) for f in by_row]
    return found + [jax.value_and_grad(lambda z, f=f: jnp.vdot(c, f(z)))(z) for f in by_entry]


def test_exponentials_are_computed_again_and_the_same():
    z, t = jax.random.normal(jax.random.key(0), (2, 6, 40))
    z, t = z.at[0, 3].set(-INF).at[1, 4].set(INF).at[2].mul(30), jax.nn.softmax(t)
    want = jax.jit(siblings)(z, t)
    jax.clear_caches()
    with target.assumed("gpu"):  # one that is not Hopper: no kernel
        assert str(jax.make_jaxpr(siblings)(z, t)).count("optimization_barrier") >= 5
        found = jax.jit(siblings)(z, t)
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_a_head_of_labels_is_one_pass():
    x, w = jax.random.normal(jax.random.key(0), (2, 5, 5))
    t = jnp.eye(5).at[0, 1].set(0.5)
    total = partial(linear_binary_cross_entropy_sum, implementation="xla_chunked")
    run = jax.value_and_grad(total, (0, 1))
    want = jax.jit(run)(x, w, t)
    jax.clear_caches()
    with target.assumed("gpu"):
        program = jax.jit(run).lower(x, w, t)
        assert "optimization_barrier" in program.as_text()
        found = program.compile()(x, w, t)
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@pytest.fixture
def however_small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use few passes for small arrays too, in programs that are traced afresh."""
    monkeypatch.setattr(few_passes, "LEAST_ENTRIES", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


def in_few_passes(z: jax.Array, u: jax.Array) -> tuple:
    """Functions of `few_passes`, with derivatives of every order and kind."""
    labels = jnp.arange(len(z)) % z.shape[1]
    valid = labels != 3

    def brier(z: jax.Array) -> jax.Array:
        return js.brier(z, jnp.where(labels == 5, -9, labels), valid=valid)

    def pull(f: Callable, z: jax.Array) -> jax.Array:
        return jax.vjp(f, z)[1](f(z) * u if f(z).ndim == z.ndim else u[:, 0])[0]

    def total(z: jax.Array) -> jax.Array:
        return js.cross_entropy(z, labels, valid=valid).sum()

    functions = js.softmax, js.log_softmax, js.entropy, brier
    derivatives = [(f(z), jax.jvp(partial(pull, f), (z,), (u,))) for f in functions]
    forward = [jax.vmap(partial(jax.jvp, f))((z,), (u,)) for f in functions[:3]]
    return derivatives, forward, jax.jvp(jax.grad(total), (z,), (u,))


@pytest.mark.usefixtures("however_small")
def test_few_passes_are_the_other_form_in_every_transformation():
    z, u = jax.random.normal(jax.random.key(3), (2, 18, 9))
    z = z.at[0].mul(30).at[1, 3].set(-INF).at[2].set(-INF).at[3].set(NAN).at[4].set(INF)
    z = z.at[6].set(1e4).at[7, ::2].set(7).at[8, 1].set(NAN).at[9].mul(50).at[10].mul(1e4)
    want = jax.jit(in_few_passes)(z, u)
    jax.clear_caches()
    with target.assumed("gpu"):
        assert "linear_map" in str(jax.make_jaxpr(in_few_passes)(z, u))
        found = jax.jit(in_few_passes)(z, u)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


def with_targets(z: jax.Array, t: jax.Array, log_t: jax.Array, u: jax.Array) -> list:
    """Losses with targets or margins: gradients in all arguments, and derivatives of these."""
    labels = jnp.arange(len(z)) % z.shape[1]
    valid, known = labels != 3, jnp.where(labels == 5, -9, labels)

    def smoothed(z: jax.Array, a: jax.Array, c: jax.Array) -> jax.Array:
        options = {"smoothing": a, "class_weights": c, "valid": valid}
        return js.smoothed_cross_entropy(z, known, **options)

    functions: tuple[tuple[Callable, tuple], ...] = (
        (js.soft_cross_entropy, (t,)),
        (js.kl_divergence, (t,)),
        (partial(js.kl_divergence, log_targets=True), (log_t,)),
        (smoothed, (jnp.float32(0.1), jnp.cos(jnp.arange(9.0)) ** 2)),
        (lambda z: js.smoothed_cross_entropy(z, known, smoothing=0.2), ()),
        (lambda z: js.multiclass_hinge(z, known, valid=valid), ()),
    )

    def all_of(f: Callable, rest: tuple) -> tuple:
        def pulled(z: jax.Array) -> tuple:
            value, pull = jax.vjp(f, z, *rest)
            return value, pull(u[:, 0])

        return jax.jvp(pulled, (z,), (u,))

    by_row = jax.vmap(partial(jax.jvp, js.soft_cross_entropy))((z, t), (u, u))
    return [all_of(f, rest) for f, rest in functions] + [by_row]


@pytest.mark.usefixtures("however_small")
def test_losses_with_targets_are_the_other_form_in_every_transformation():
    z, u, t = jax.random.normal(jax.random.key(3), (3, 18, 9))
    z = z.at[0].mul(30).at[1, 3].set(-INF).at[2].set(-INF).at[3].set(NAN).at[4].set(INF)
    z = z.at[6].set(1e4).at[7, ::2].set(7).at[8, 1].set(NAN).at[9].mul(50).at[10].mul(100)
    z = z.at[11, 2].set(-INF).at[12, 4].set(INF)
    t = jax.nn.softmax(t).at[1, 3].set(0).at[5, ::2].set(0).at[13].set(0)
    arguments = z, t, jnp.log(t), u
    want = jax.jit(with_targets)(*arguments)
    jax.clear_caches()
    with target.assumed("gpu"):
        found = jax.jit(with_targets)(*arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("however_small")
def test_the_form_for_a_gpu_is_exact():
    z = adversaries.logits(10, np.float32)
    z = z[np.isfinite(z).any(1)]
    t = np.random.default_rng(0).dirichlet(np.full(10, 0.3), len(z)).astype(np.float32)
    t[::3] *= 1000
    t = np.where(z == -INF, 0, t)
    with np.errstate(divide="ignore"):
        log_t = np.log(t)
    u = np.random.default_rng(1).standard_normal(z.shape).astype(np.float32)
    labels = adversaries.labels("random", z)

    def functions(z: jax.Array) -> tuple:
        slope = jax.grad(lambda z: js.logsumexp(z).sum())(z)
        basics = js.logsumexp(z), slope, js.log_softmax(z), js.soft_cross_entropy(z, t)
        pulled = [jax.vjp(f, z)[1](u)[0] for f in (js.softmax, js.log_softmax)]
        slope_of_brier = jax.grad(lambda z: js.brier(z, labels).sum())(z)
        slope_of_soft = jax.grad(lambda z: js.soft_cross_entropy(z, t).sum())(z)
        divergences = js.kl_divergence(z, t), js.kl_divergence(z, log_t, log_targets=True)
        rest = js.entropy(z), js.brier(z, labels), slope_of_brier, slope_of_soft, divergences
        return *basics, js.cross_entropy_hessian_product(z, u), *pulled, *rest

    with target.assumed("gpu"):
        (
            lse,
            p,
            log_p,
            soft,
            *products,
            pulled,
            entropy,
            brier,
            slope,
            soft_slope,
            divergences,
        ) = jax.jit(functions)(z)
    value, size = oracles.logsumexp(z)
    oracles.assert_ulps(lse, value, scale=size)
    oracles.assert_ulps(p, oracles.softmax(z))
    oracles.assert_ulps(log_p, oracles.log_softmax(z))
    value, size = oracles.soft_cross_entropy(z, t)
    oracles.assert_ulps(soft, value, scale=size)
    value, size = oracles.soft_cross_entropy_gradient(z, t)
    oracles.assert_ulps(soft_slope, value, scale=size)
    value, size = oracles.kl_divergence(z, t)
    oracles.assert_ulps(divergences[0], value, scale=size)
    value, size = oracles.kl_divergence(z, np.exp(log_t.astype(np.longdouble)))
    oracles.assert_ulps(divergences[1], value, scale=size)
    value, size = oracles.softmax_hessian_product(z, u)
    for product in products:  # of the public function, and softmax's own
        # Nine equal terms share their error, and the scale is one of them.
        oracles.assert_ulps(product, value, scale=size, limit=10)
    p, seen = oracles.softmax(z), np.where(z == -INF, 0, u)
    largest = np.maximum(np.abs(seen), p * np.abs(seen).sum(1, keepdims=True))
    oracles.assert_ulps(pulled, seen - p * seen.sum(1, keepdims=True), scale=largest)
    # Terms below the normal numbers are lost, and squares that are.
    tiny = float(np.finfo(np.float32).tiny)
    lost = oracles.entropy_of_subnormals(z, np.float32) * 2.0**23
    value = oracles.entropy(z)
    oracles.assert_ulps(entropy, value, scale=np.maximum(value, lost))
    value = oracles.brier(z, labels)
    oracles.assert_ulps(brier, value, scale=np.maximum(value, 10 * tiny * 2.0**23))
    value, size = oracles.softmax_hessian_product(z, oracles.cross_entropy_gradient(z, labels))
    oracles.assert_ulps(slope, 2 * value, scale=2 * size)


# -- Compiled without the device --

# Bytes of bfloat16 for a logit, value and gradient, beside the fewest possible.
MOST_OF_LEAST = 1.03


# An H100 has the instructions, registers and shared memory of an H200.
@pytest.mark.parametrize("name", ["h200", "b200"])
def test_compiled_without_the_device(name: str):
    done = subprocess.run(
        [
            cuda_python.find(),
            str(SCRIPT),
            "--compile",
            name,
            "--only",
            "rows",
            "siblings",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[name]
    siblings = [title for title, program in found.items() if "least" in program]
    assert len(siblings) >= 12
    for title in siblings:
        program = found.pop(title)
        assert program["bytes_per_logit"] <= MOST_OF_LEAST * program["least"], title
        # Up to five sums of parts of rows, not the logits, of 512 MiB.
        assert program["temporary_bytes"] <= 2**25, title
    assert len(found) >= 8
    for title, program in found.items():
        (kernel,) = program["kernels"].values()
        assert kernel["registers"] <= 128, title
        assert kernel["shared_bytes"] <= 232_448, title
        assert kernel["spilled_bytes"] == 0, title
        # Losses and what they are made of, not the logits: 4 MB at most.
        assert program["temporary_bytes"] <= 2**22, title
