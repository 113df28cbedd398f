"""`solve` over a source: the optimum that arrays have, a true certificate, and bounded memory."""

import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.sparse

import jaxsoftmax as js
from jaxsoftmax import LinearParams, solve, solve_path
from jaxsoftmax.solvers import class_preconditioner, prepare, stream
from jaxsoftmax.solvers import driver as array_driver
from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.stream.drawing import Drawing
from jaxsoftmax.sources import Block

pytestmark = pytest.mark.usefixtures("unoptimized")

N, D, K = 1500, 6, 4


class Blocks:
    """A source of arrays in their own dtype."""

    def __init__(
        self, x: Any, t: Any, s: Any = None, *, size: int = 200, window: int = 350
    ) -> None:
        self.arrays, self.size, self.window = (x, t, s), size, window
        self.reads = 0

    @property
    def block_sizes(self) -> list[int]:
        n = len(self.arrays[0])
        return [min(self.size, n - start) for start in range(0, n, self.size)]

    @property
    def passes(self) -> float:
        return self.reads / len(self.block_sizes)

    def read(self, block: int) -> Block:
        self.reads += 1
        rows = slice(block * self.size, (block + 1) * self.size)
        return Block(*(None if a is None else a[rows] for a in self.arrays))


def examples(dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features, and labels in the order of the classes, so that no block has all."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)) @ rng.standard_normal((D, D))
    y = np.argmax(x @ rng.standard_normal((D, K)) + 2 * rng.gumbel(size=(N, K)), 1)
    order = np.argsort(y, kind="stable")
    return x[order].astype(dtype), y[order]


def same(found: js.Solution, truth: js.Solution, rtol: float = 1e-5) -> None:
    assert found.converged, found.reason
    np.testing.assert_allclose(found.objective, truth.objective, rtol=1e-12)
    np.testing.assert_allclose(found.params.w, truth.params.w, rtol=rtol, atol=1e-6)
    # All biases of a softmax may move together.
    biases = [each.params.bias - each.params.bias[0] for each in (found, truth)]
    np.testing.assert_allclose(*biases, rtol=rtol, atol=1e-6)


def test_the_optimum_is_that_of_arrays() -> None:
    x, y = examples()
    rng = np.random.default_rng(1)
    # A class without examples, classes of other weights, and a block that is ignored.
    how: dict[str, Any] = {"C": 2.0, "gap": 1e-13, "class_weights": [1.0, 0.5, 3.0, 1.0, 1.0]}
    s = rng.random(N) + 0.1
    x[400:600], s[400:600] = np.nan, 0
    seen: list[dict[str, Any]] = []
    found = solve(Blocks(x, y, s), callback=seen.append, **how)
    truth = solve(x, y, weights=s, **how)
    same(found, truth)
    assert found.params.bias is not None
    assert found.params.bias[4] == -np.inf
    assert found.gap_floor < 1e-13
    assert [figures["iteration"] for figures in seen] == [*range(1, found.iterations + 1)]
    assert seen[-1]["theta"].shape == (1, 5, D + 1)
    # From the optimum, one step at most; and memory for few rows changes nothing.
    again = solve(Blocks(x, y, s), init=found.params, memory=50_000, **how)
    same(again, truth)
    assert again.iterations <= 1


@pytest.mark.parametrize("l1_ratio", [0.0, 0.6])
def test_a_path_is_that_of_arrays(l1_ratio: float) -> None:
    x, y = examples()
    seen: list[dict[str, Any]] = []
    how: dict[str, Any] = {"C": [2.0, 0.01, 0.1], "gap": 1e-11, "class_weights": np.ones(K + 1)}
    how["l1_ratio"] = l1_ratio
    found, truth = solve_path(Blocks(x, y), callback=seen.append, **how), solve_path(x, y, **how)
    assert found.converged.all(), found.reason
    np.testing.assert_allclose(found.objective, truth.objective, rtol=1e-10)
    np.testing.assert_allclose(found.params.w, truth.params.w, rtol=1e-4, atol=1e-5)
    assert np.all(found.params.bias[:, K] == -np.inf)
    assert [figures["C"] for figures in seen] == [0.01, 0.1, 2.0]


def test_sigmoids_in_float32_with_a_label_that_all_have() -> None:
    x, y = examples(np.float32)
    hot = np.eye(K)[y]
    hot[:, 1] = 1
    how: dict[str, Any] = {"loss": js.binary_cross_entropy, "alpha": 1e-3, "gap": 1e-9}
    found, truth = solve(Blocks(x, hot), **how), solve(x, hot, **how)
    assert found.converged
    assert found.params.w.dtype == np.float32
    assert abs(found.objective / truth.objective - 1) <= 1e-9
    assert found.params.bias is not None
    assert found.params.bias[1] == np.inf


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_certificates_at_every_gap_are_true(l1_ratio: float) -> None:
    x, y = examples()
    how: dict[str, Any] = {"alpha": 1e-3 if l1_ratio else 1e-4, "l1_ratio": l1_ratio}
    least = solve(x, y, gap=1e-12, **how).objective
    for gap in (1e-1, 1e-3, 1e-5):
        found = solve(Blocks(x, y), gap=gap, **how)
        assert (found.objective - least) / found.objective <= found.gap + 1e-14
        assert found.gap <= gap


def test_l1_has_the_zeros_of_arrays() -> None:
    x, y = examples()
    how: dict[str, Any] = {"C": 0.02, "l1_ratio": 0.6, "gap": 1e-12}
    how["class_weights"] = [1.0, 0.5, 3.0, 1.0, 1.0]  # one of them of a class without examples
    s = np.random.default_rng(1).random(N) + 0.1
    x[400:600], s[400:600] = np.nan, 0
    found, truth = solve(Blocks(x, y, s), **how), solve(x, y, weights=s, **how)
    same(found, truth, rtol=1e-4)
    np.testing.assert_array_equal(found.params.w == 0, truth.params.w == 0)
    assert 0.2 < np.mean(truth.params.w[:, :4] == 0) < 0.8
    assert found.params.bias is not None
    assert found.params.bias[4] == -np.inf
    assert found.products <= 60
    assert solve(Blocks(x, y, s), init=found.params, **how).iterations <= 1


def test_l1_alone_of_sigmoids_in_float32() -> None:
    x, y = examples(np.float32)
    hot = np.eye(K)[y]
    how: dict[str, Any] = {"loss": js.binary_cross_entropy, "alpha": 0.02, "l1_ratio": 1.0}
    found, truth = (solve(*each, gap=1e-8, **how) for each in [(Blocks(x, hot),), (x, hot)])
    assert found.converged, found.reason
    assert found.params.w.dtype == np.float32
    assert abs(found.objective / truth.objective - 1) <= 1e-8
    np.testing.assert_array_equal(found.params.w == 0, truth.params.w == 0)


def test_l1_with_a_sample_too_small_for_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damping keeps its steps from overshooting, and Newton's steps follow them."""
    x, y = (a[::5] for a in examples())
    x[:, 0] = np.where(np.arange(len(x)) % 50 == 7, 30 * x[:, 0], 0)  # few of the sample have it
    systems: list[Any] = []
    solve_of_all = stream.systems.solve_system
    monkeypatch.setattr(
        stream.systems, "solve_system", lambda *args: systems.append(args[2]) or solve_of_all(*args)
    )
    how: dict[str, Any] = {"alpha": 1e-3, "l1_ratio": 0.9, "gap": 1e-7}
    zeros = LinearParams(np.zeros((D, K)), np.zeros(K))  # for fewer programs
    found = solve(Blocks(x, y, size=50, window=20), init=zeros, **how)
    assert found.converged, found.reason
    assert found.objective <= solve(x, y, **how).objective * (1 + 1e-7)
    assert systems
    assert max(float(each.preconditioner.problem.l2[0]) for each in systems) > 1e-4  # damped


def test_examples_that_fit_into_a_window_are_read_once() -> None:
    x, y = examples()
    for l1_ratio in (0.0, 0.6):
        source, how = Blocks(x, y, window=N), {"C": 0.1, "l1_ratio": l1_ratio}
        found = solve(source, **how)
        assert source.passes == 1
        assert found.converged, found.reason
        assert found.objective <= solve(x, y, **how).objective * (1 + 1e-6)


def test_an_overfitted_sample_costs_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample with fewer examples than parameters, whose optimum is far away, is shortened."""
    x, y = (a[::5] for a in examples())
    found: list[Any] = []
    search = stream.driver._search
    monkeypatch.setattr(
        stream.driver, "_search", lambda *args: found.append(search(*args)) or found[-1]
    )
    source = Blocks(x, y, size=50, window=20)
    assert solve(source, C=1e3, gap=1e-5).converged
    assert source.passes <= 100  # 74, and 149 from the optimum of the sample
    assert 2 < max(passes for _, passes in found) <= 6


def test_a_drawing_has_what_counts_the_most_and_its_sums_are_right() -> None:
    rng = np.random.default_rng(0)
    n, size, values = 4000, 400, np.arange(4000.0)
    importance = rng.exponential(size=n) ** 3
    importance[::3] = 0
    importance[:6:2] = np.nan, np.nan, 1e6
    drawing = Drawing(size)
    for part in np.split(np.arange(n), 8):
        ones = np.ones(len(part))
        window = Data(values[part, None], np.zeros(len(part), int), ones, 1, "softmax")
        drawing.add(window, importance[part])
    kept = drawing.sample()
    rows = kept.features[:, 0].astype(int)
    assert len(rows) == len(set(rows)) == size
    assert np.all(importance[rows] > 0)
    assert kept.weights[rows.tolist().index(4)] == 1  # the one that counts the most
    importance[4], error = 0, size**-0.5  # of the sum of the others
    found = kept.weights @ importance[rows]
    np.testing.assert_allclose(found, np.nansum(importance), rtol=2 * error)
    np.testing.assert_allclose(kept.weights.sum(), np.sum(importance > 0), rtol=6 * error)


def test_columns_that_float32_does_not_resolve_are_solved_in_float64() -> None:
    x, y = examples(np.float32)
    x *= np.logspace(-3, 3, D, dtype=np.float32)
    source = Blocks(x, y)
    found = solve(source, C=100.0)
    assert found.converged, found.reason
    assert source.passes <= 18  # 14, and 25 in float32


def test_the_preconditioner_follows_the_fit_and_the_sample_has_the_penalty_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = examples()
    built, strengths = [], []
    build, minimize = class_preconditioner.build, array_driver.minimize
    monkeypatch.setattr(
        class_preconditioner, "build", lambda *args: built.append(True) or build(*args)
    )
    monkeypatch.setattr(
        array_driver,
        "minimize",
        lambda problem, *args: strengths.append(float(problem.l2[0])) or minimize(problem, *args),
    )
    source = Blocks(x, y)
    found = solve(source, alpha=1e-4, gap=1e-5)
    assert found.converged
    assert source.passes <= 14
    assert 2 <= len(built) <= found.iterations
    (strength,) = strengths
    # A sample of 300 examples, as many as a window: a weaker penalty would let it be overfitted.
    np.testing.assert_allclose(strength * 300 / N, 1e-4, rtol=1e-12)


def test_memory_is_that_of_a_few_windows() -> None:
    n, d, size = 2**19, 64, 2**13  # 128 MiB of features, in blocks of 2 MiB
    rng = np.random.default_rng(0)
    block = rng.standard_normal((size, d)).astype(np.float32)
    labels = (block[:, 0] + rng.standard_normal(size) > 0).astype(int)
    held: list[int] = []

    class Repeated(Blocks):
        def __init__(self, count: int) -> None:
            super().__init__(block, labels, window=size)
            self.count = count

        @property
        def block_sizes(self) -> list[int]:
            return [size] * self.count

        def read(self, block: int) -> Block:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held.append(4096 * pages)
            return Block(self.arrays[0] + np.float32(block % 2), self.arrays[1], None)

    assert solve(Repeated(4), C=1.0, gap=1e-3).converged  # the same programs
    held.clear()
    assert solve(Repeated(n // size), C=1.0, gap=1e-3).converged
    assert max(held) - held[0] < 64 * 2**20


def test_the_next_window_is_read_while_one_is_in_use() -> None:
    class Announced(Blocks):
        def read(self, block: int) -> Block:
            if block == 3:  # the last of the second window
                is_read.set()
            return super().read(block)

    is_read = threading.Event()
    with stream.find_processes(None).computing():
        how: dict[str, Any] = {"class_weights": None, "classes": None, "memory": 2**30}
        source = Announced(*examples(), size=100, window=200)
        windows = stream.open_stream(source, loss=js.cross_entropy, **how).problems()
        is_read.clear()
        next(windows)  # which is in use, as nobody asks for another one
        assert is_read.wait(60)


def test_features_that_no_device_holds_are_refused_with_the_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = examples(np.float32)
    monkeypatch.setattr(prepare, "device_memory", lambda: 4 * N * D + 58 * N * K - 1)
    monkeypatch.setattr(prepare, "MAX_FLOAT64_SIZE", 0)
    with pytest.raises(MemoryError, match=r"features: 36,000 bytes, and 348,000 .*, the device has "
                                          r"383,999: pass a source, .* shards"):  # fmt: skip
        solve(x, y, C=1.0, memory=1000)


def test_the_size_of_imagenet_fits_into_a_large_device_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = jax.ShapeDtypeStruct((1_281_167, 2048), np.dtype(np.float32))
    monkeypatch.setattr(prepare, "device_memory", lambda: 139 * 2**30)
    prepare._require_device_memory(features, 1000)
    monkeypatch.setattr(prepare, "device_memory", lambda: 78 * 2**30)
    with pytest.raises(
        MemoryError, match=r"10,495,320,064 bytes, and 74,307,686,000 .* 83,751,862,272"
    ):
        prepare._require_device_memory(features, 1000)


def test_a_source_that_changes_or_is_sparse_is_named() -> None:
    x, y = examples()

    class Drawn(Blocks):
        def read(self, block: int) -> Block:
            found = super().read(block)
            noise = np.random.default_rng(self.reads).standard_normal(found.features.shape)
            return found._replace(features=found.features + 0.1 * noise)

    class SparseBlocks(Blocks):
        def read(self, block: int) -> Block:
            found = super().read(block)
            return found._replace(features=scipy.sparse.csr_matrix(found.features))

    with pytest.raises(ValueError, match="block 0: features: expected the same values in every"):
        solve(Drawn(x, y), C=1.0)
    with pytest.raises(TypeError, match=r"block 0: features: expected a dense array, got .*csr"):
        solve(SparseBlocks(x, y), C=1.0)


def test_what_a_source_does_not_take_is_named() -> None:
    x, y = examples()
    source = Blocks(x, y)
    with pytest.raises(ValueError, match="targets: expected None beside a source"):
        solve(source, y, C=1.0)
    with pytest.raises(ValueError, match="targets: expected an array"):
        solve(x, C=1.0)
    with pytest.raises(ValueError, match="folds: expected None beside a source"):
        solve_path(source, C=[1.0], folds=np.arange(N) % 2)
    with pytest.raises(ValueError, match="targets: expected an array"):
        solve_path(x, C=[1.0])
    with pytest.raises(ValueError, match=r"l1_ratio: expected a number in \[0, 1\], got 2"):
        solve(source, C=1.0, l1_ratio=2)
    with pytest.raises(ValueError, match=r"alpha: .*source, got 0; arrays that fit"):
        solve(source, alpha=0)
    with pytest.raises(ValueError, match=r"init: expected w \(6, 4\)"):
        solve(source, C=1.0, init=LinearParams(np.zeros((5, 4)), np.zeros(4)))
    x[700, 2] = np.inf
    with pytest.raises(ValueError, match=r"block 3: features: .*got inf at \[100, 2\]"):
        solve(source, C=1.0)
    x[700, 2], y[900] = 0, 2**20
    with pytest.raises(ValueError, match="targets: label 1048576 implies"):
        solve(source, C=1.0)
    y[900] = -1
    with pytest.raises(ValueError, match=r"block 4: targets.*-1"):
        solve(source, C=1.0)
