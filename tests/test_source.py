"""Sources and windows: every row is seen once, in an order that needs no state."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stream_run

import jaxsoftmax
from jaxsoftmax import linear, training
from jaxsoftmax.sources import Block
from jaxsoftmax.training.windows import Plan, Window, read_windows

SIZES = (5, 8, 1, 7, 8)  # blocks of 29 rows in all


class Numbers:
    """A source whose rows are their own numbers; it counts what is read."""

    def __init__(self, weights: np.ndarray | None = None, sizes: Sequence[int] = SIZES) -> None:
        self.block_sizes = sizes
        self.window = 12
        self.read_blocks: list[int] = []
        self.weights = weights

    def read(self, block: int) -> Block:
        self.read_blocks.append(block)
        start = sum(self.block_sizes[:block])
        rows = np.arange(start, start + self.block_sizes[block])
        weights = None if self.weights is None else self.weights[rows]
        return Block(rows[:, None].astype(np.float32), rows.astype(np.int32), weights)


def windows(
    plan: Plan, *, first: int = 0, parts: range | None = None, **source: Any
) -> list[Window]:
    parts = range(plan.parts) if parts is None else parts
    return [*read_windows(Numbers(**source), plan, seed=[1, 2], first=first, parts=parts)]


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(("batch_size", "steps"), [(4, 1), (4, 3), (8, 2), (12, 9), (32, 1)])
def test_an_epoch_has_every_row_once(parts: int, batch_size: int, steps: int) -> None:
    plan = Plan(29, batch_size, steps, parts)
    found = windows(plan)
    assert [w.weights.shape for w in found] == [
        (batch_size, plan.window_steps(i)) for i in range(plan.windows)
    ]
    seen = np.concatenate([w.targets[w.weights > 0] for w in found])
    assert sorted(seen) == [*range(29)]
    padded = sum(int((w.weights == 0).sum()) for w in found)
    assert padded == plan.total_steps * batch_size - 29
    assert all(np.array_equal(w.features[..., 0], w.targets) for w in found)
    # No minibatch consists of padding.
    assert all((w.weights.sum(0) > 0).all() for w in found)


def test_a_window_is_a_function_of_its_number() -> None:
    plan = Plan(29, 4, 3, 2)
    whole = windows(plan)
    for first in (1, 2):
        jax.tree.map(np.testing.assert_array_equal, windows(plan, first=first), whole[first:])
    halves = [windows(plan, parts=range(p, p + 1)) for p in (0, 1)]
    for a, b, both in zip(*halves, whole, strict=True):
        jax.tree.map(
            lambda *x: np.testing.assert_array_equal(np.concatenate(x[:2]), x[2]), a, b, both
        )
    other = read_windows(Numbers(), plan, seed=[1, 3], first=0, parts=range(2))
    assert not np.array_equal(next(iter(other)).targets, whole[0].targets)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_process_reads_the_blocks_of_its_own_rows(parts: int) -> None:
    """Also where a block is larger than a window."""
    plan, seen = Plan(128, 8, 2, parts), []
    for part in range(parts):
        source = Numbers(sizes=(16,) * 8)
        found = [*read_windows(source, plan, seed=[0], first=0, parts=range(part, part + 1))]
        seen += [w.targets for w in found]
        assert len(source.read_blocks) == len({*source.read_blocks}) == 8 // parts
    assert sorted(np.concatenate([w.ravel() for w in seen])) == [*range(128)]
    together = Numbers(sizes=(16,) * 8)
    [*read_windows(together, plan, seed=[0], first=0, parts=range(parts))]
    assert sorted(together.read_blocks) == [*range(8)]


def test_blocks_are_read_once_and_only_where_they_are_needed() -> None:
    source, plan = Numbers(), Plan(29, 4, 3, 1)
    [*read_windows(source, plan, seed=[0], first=0, parts=range(1))]
    assert sorted(source.read_blocks) == [*range(5)]
    source = Numbers()
    [*read_windows(source, plan, seed=[0], first=2, parts=range(1))]
    assert len(source.read_blocks) < 3


def test_blocks_come_in_another_order_in_every_epoch() -> None:
    orders = []
    for epoch in range(3):
        source = Numbers(sizes=(4,) * 9)
        [*read_windows(source, Plan(36, 4, 1, 1), seed=[7, epoch], first=0, parts=range(1))]
        orders.append(source.read_blocks)
        assert sorted(source.read_blocks) == [*range(9)]
    assert len({tuple(order) for order in [[*range(9)], *orders]}) == 4


def test_the_next_window_is_read_while_one_is_in_use() -> None:
    class Announced(Numbers):
        def read(self, block: int) -> Block:
            found = super().read(block)
            if len(self.read_blocks) == 2:
                is_read.set()
            return found

    is_read = threading.Event()
    reading = read_windows(Announced(sizes=(8, 8)), Plan(16, 4, 2, 1), seed=[0], first=0,
                           parts=range(1))  # fmt: skip
    next(reading)  # which is in use, as nobody asks for the other one
    assert is_read.wait(60)


def test_rows_of_weight_0_are_replaced() -> None:
    weights = (np.arange(29) % 3).astype(np.float64)
    for window in windows(Plan(29, 4, 3, 1), weights=weights):
        assert (window.targets % 3 > 0).all()


TABLE = pa.table(
    {
        "x": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 2),
        "a": np.arange(6) * 0.5,
        "b": np.arange(6, dtype=np.int8),
        "name": list("abcdef"),
        "gap": [1.0, None, 3.0, 4.0, 5.0, 6.0],
        "label": np.array([0, 1, 0, 1, 0, 2], np.int32),
    }
)


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 4), tmp_path / "0.parquet", row_group_size=3)
    pq.write_table(TABLE.slice(4), tmp_path / "1.parquet")
    source = training.ParquetSource(tmp_path, features="x", targets=["a", "b"], weights="b")
    assert source.block_sizes == [3, 1, 2]
    rows = source.read(2)
    assert rows.features.tolist() == [[8, 9], [10, 11]]
    assert rows.targets.tolist() == [[2, 4], [2.5, 5]]
    assert rows.weights is not None
    assert rows.weights.tolist() == [4, 5]
    columns = training.ParquetSource(tmp_path / "0.parquet", features=["a", "b"], targets="label")
    assert columns.read(0).features.dtype == np.float32
    assert columns.read(0).features.tolist() == [[0, 0], [0.5, 1], [1, 2]]
    assert columns.read(1).targets.tolist() == [1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"features": "z", "targets": "label"}, r"has no column \['z'\]; it has \['x', "),
        ({"features": ["gap", "a"], "targets": "label"}, "gap must have no missing values, got"),
        ({"features": "name", "targets": "label"}, "name must be numbers or fixed-size lists"),
    ],
)
def test_columns_that_cannot_be_read(columns: dict, message: str, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=message):
        training.ParquetSource(tmp_path, **columns).read(0)
    with pytest.raises(ValueError, match="paths must be files or a folder, got"):
        training.ParquetSource(tmp_path / "none", features="x", targets="label")


def test_records() -> None:
    class Records(list):
        def __getitems__(self, indices: list[int]) -> list:
            return [self[i] for i in indices]

    data = [([i, 2.0 * i], i % 3, i) for i in range(7)]
    for records in (data, Records(data)):
        source = training.RecordSource(records, lambda record: record, block_size=3)
        assert source.block_sizes == [3, 3, 1]
        rows = source.read(1)
        assert (rows.features.dtype, rows.features[0].tolist()) == (np.float32, [3, 6])
        assert rows.weights is not None
        assert (rows.targets.tolist(), rows.weights.tolist()) == ([0, 1, 2], [3, 4, 5])
    for bad in ({"block_size": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            training.RecordSource(data, lambda record: record, **bad)


@pytest.mark.parametrize(
    "reader", ["array_record.python.array_record_data_source", "grain.sources"]
)
def test_array_record(tmp_path: Path, reader: str) -> None:
    """Files of array_record by its own data source, and by Grain's."""
    files = pytest.importorskip(reader)
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    for shard in range(2):
        file = writer(str(tmp_path / f"{shard}.array_record"), "group_size:1")
        for i in range(5):
            file.write(np.array([5 * shard + i, shard], np.int32).tobytes())
        file.close()
    rows = files.ArrayRecordDataSource(sorted(map(str, tmp_path.iterdir())))
    source = training.RecordSource(
        rows, lambda row: (np.frombuffer(row, np.int32)[:1], row[4]), block_size=4
    )
    assert source.block_sizes == [4, 4, 2]
    assert [source.read(b).features[:, 0].tolist() for b in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9],
    ]  # fmt: skip
    assert source.read(1).targets.tolist() == [0, 1, 1, 1]


LOSS = training.on_logits(jaxsoftmax.cross_entropy)
SGD = optax.sgd(0.1, momentum=0.9)
rng = np.random.default_rng(0)
X = rng.standard_normal((50, 3)).astype(np.float32)
Y = rng.integers(0, 2, 50).astype(np.int32)


def records(x: Any = X, y: Any = Y, window: int = 16) -> training.RecordSource:
    return training.RecordSource(
        [*zip(x, y, strict=True)], lambda r: r, block_size=7, window=window
    )


def fit(source: Any, epochs: int = 2, **options: Any) -> training.FitResult:
    how = {"optimizer": SGD, "key": jax.random.key(3), "batch_size": 8, "params": linear.init(3, 2)}
    return training.fit(LOSS, source, epochs=epochs, **how | options)


def test_fit_takes_the_steps_of_the_windows() -> None:
    """The same steps by hand, with Optax alone."""
    result = fit(records())
    params, key = linear.init(3, 2), jax.random.split(jax.random.key(3))[1]
    state = SGD.init(params)
    for epoch in range(2):
        losses, totals = [], []
        plan, seed = Plan(50, 8, 2, 1), np.asarray(jax.random.key_data(key)).tolist()
        for window in read_windows(records(), plan, seed=seed, first=0, parts=range(1)):
            for x, y, w in zip(*(a.swapaxes(0, 1) for a in window), strict=True):

                def mean(params: Any, x: Any = x, y: Any = y, w: Any = w) -> Any:
                    values = optax.softmax_cross_entropy_with_integer_labels(
                        x @ params.w + params.bias, y
                    )
                    return (values * w).sum() / w.sum()

                value, gradient = jax.value_and_grad(mean)(params)
                updates, state = SGD.update(gradient, state, params)
                params = optax.apply_updates(params, updates)
                losses.append(value)
                totals.append(w.sum())
        key = jax.random.split(key)[1]
        np.testing.assert_allclose(
            result.history["loss"][epoch], np.average(losses, weights=totals), rtol=1e-5
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result.params, params)
    assert (int(result.state.step), int(result.state.epoch)) == (14, 2)


def test_an_epoch_is_resumed_in_its_middle(tmp_path: Path) -> None:
    class BrokenError(Exception):
        pass

    class Breaks(training.RecordSource):
        reads = 0

        def read(self, block: int) -> Block:
            self.reads += 1
            if self.reads == 14:  # in the second epoch of 8 blocks
                raise BrokenError
            return super().read(block)

    wanted = fit(records(), epochs=3)
    source = Breaks([*zip(X, Y, strict=True)], lambda r: r, block_size=7, window=16)
    with pytest.raises(BrokenError):
        fit(source, epochs=3, checkpoint=tmp_path, checkpoint_interval=0)
    newest = max(int(path.name) for path in tmp_path.iterdir() if path.is_dir())
    assert newest % 7, "the newest checkpoint must lie within an epoch"
    got = fit(records(), epochs=3, checkpoint=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    with pytest.raises(ValueError, match="steps of a window must be 2, as in the checkpoint"):
        fit(records(window=32), epochs=4, checkpoint=tmp_path, resume=True)


def test_evaluate_and_validation_read_a_source() -> None:
    weights = (np.arange(50) % 4).astype(np.float32)
    rows = [*zip(np.where(weights[:, None] > 0, X, np.nan), Y, weights, strict=True)]
    source = training.RecordSource(rows, lambda row: row, block_size=7, window=16)
    params = linear.LinearParams(X[:3, :2], X[3, :2])
    for batch_size in (None, 8):
        got = training.evaluate(params, source, loss=LOSS, batch_size=batch_size)
        wanted = training.evaluate(params, X, Y, loss=LOSS, weights=weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)
    result = fit(records(), validation=source, patience=1, epochs=3)
    last = training.evaluate(result.state.params, X, Y, loss=LOSS, weights=weights)["loss"]
    np.testing.assert_allclose(result.history["validation_loss"][-1], last, rtol=1e-5)
    with pytest.raises(ValueError, match="targets must be given with features that are arrays"):
        training.evaluate(params, X, loss=LOSS)
    with pytest.raises(ValueError, match="targets must be None beside a source"):
        training.evaluate(params, source, Y, loss=LOSS)


def test_a_lane_of_a_sweep_takes_the_steps_of_a_fit() -> None:
    keys, rates = jax.random.split(jax.random.key(3), 2), jnp.array([0.1, 0.5])
    params = jax.tree.map(lambda a: jnp.stack([a, a + 1]), linear.init(3, 2))
    how: dict[str, Any] = {"epochs": 2, "batch_size": 8, "validation": records(X[:20], Y[:20])}
    swept = partial(training.sweep, LOSS, make_optimizer=optax.sgd, hyperparams=rates, keys=keys)
    found = swept(records(), params=params, **how)
    for lane, rate in enumerate((0.1, 0.5)):
        options = how | {"params": jax.tree.map(lambda a, i=lane: a[i], params), "key": keys[0]}
        wanted = fit(records(), optimizer=optax.sgd(rate), **options)
        lane_of = (found.params, found.history)
        lane_of = jax.tree.map(lambda a, i=lane: a[i], lane_of)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            lane_of,
            (wanted.params, wanted.history),
        )
    with jax.set_mesh(jax.make_mesh((2,), ("rows",), devices=jax.devices()[:2])):
        rows = jaxsoftmax.Shards(rows="rows")
        shared = swept(records(), params=params, virtual_shards=2, shards=rows, **how)
    alone = swept(records(), params=params, virtual_shards=2, **how)
    jax.tree.map(np.testing.assert_array_equal, shared.params, alone.params)
    with pytest.raises(ValueError, match="params must be given for a source"):
        swept(records(), epochs=1, batch_size=8)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (records(), {"targets": Y}, "targets must be None beside a source"),
        (records(), {"weights": Y}, "weights must be None beside a source"),
        (records(), {"params": None}, "params must be given for a source"),
        (records(), {"order": "global"}, 'order must be "stratified" or None for a source'),
        (records(), {"shards": jaxsoftmax.Shards(rows="d")}, "shards must name axes of the mesh"),
        (records(), {"virtual_shards": 3}, "virtual_shards must be a power of two, got 3"),
        (records(), {"virtual_shards": 16}, "batch_size must be a multiple of the number of shard"),
        (records(np.where(X > 1, np.nan, X)), {}, "block [0-7]: features must be finite"),
        (
            records(y=Y + 1),
            {},
            r"block [0-7]: targets\[[0-6]\]: expected a label from 0 to 1, got 2",
        ),
        (records(X[:, :2]), {}, "block [0-7]: features must have 3 columns"),
        (X, {}, "targets must be given with features that are arrays, got None"),
    ],
)
def test_what_cannot_be_streamed(source: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(source, **options)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [(6, 1, "block 3: expected 7 rows, its size, got 6"),
     (7, 2, "features: expected 1 columns in every block, got 2")],
)  # fmt: skip
def test_solve_refuses_a_block_of_another_shape(rows: int, columns: int, message: str) -> None:
    class Odd(Numbers):
        def read(self, block: int) -> Block:
            x, labels, _ = super().read(block)
            x = x.repeat(columns if block == 3 else 1, axis=1)
            return Block(x, labels % 2, None).take(slice(rows if block == 3 else None))

    with pytest.raises(ValueError, match=message):
        jaxsoftmax.solve(Odd(), C=1.0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["fit", "solve"])
def test_more_data_than_memory(how: str, tmp_path: Path) -> None:
    """2 GiB of features, by a process that holds less than 1 GiB in all."""
    command = [sys.executable, stream_run.__file__, how, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2048 MiB seen"), done.stdout
