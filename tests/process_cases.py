"""Several processes with four CPU devices: `process_cases.py RANK PROCESSES PORT FOLDER EXPECTED`.

EXPECTED is the result of `fit_source()` in one process. Rank 0 prints a line "PASS name" or
"FAIL name: reason" for each function of the host that is given arrays of which each process holds a
part. The truth is the same function of the whole arrays, which rank 0 computes alone.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsoftmax as js
from jaxsoftmax import linear, training, validation
from jaxsoftmax.estimator import SoftmaxClassifier
from jaxsoftmax.solvers.stream import Stream

N, D, K = 256, 6, 4
DEVICES = 4
# Compilation takes most of the time, in every process: what four need not repeat, they do not,
# unless JAXSOFTMAX_EVERY_CASE is in the environment.
ONLY_TWO = {
    "an estimator",
    "check_labels names a label",
    "fit, each shard in its own order",
    "fit, resumed",
    "fit of a source, of which each process reads its part",
    "solve of a source, of which each process reads its part",
    "solve of a source with l1",
    "solve with classes that processes share",
    "solve_path",
    "sweep",
}
ONLY_FOUR = {
    "check_labels",
    "evaluate",
    "fit",
    "solve",
    "solve with shards of arrays that every process has",
    "solve names a feature",
}


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Features and labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)).astype(np.float32)
    return x, np.argmax(x[:, :K] + rng.gumbel(size=(N, K)), 1).astype(np.int32)


class Counted(training.RecordSource):
    """A source of examples that counts the rows of the blocks that this process reads."""

    def __init__(self) -> None:
        rows = [*zip(*examples(), strict=True)]
        super().__init__(rows, lambda row: row, block_size=50, window=128)
        self.rows_read = 0

    def read(self, block: int) -> Any:
        self.rows_read += self.block_sizes[block]
        return super().read(block)


def fit_source(source: training.RecordSource | None = None, **division: Any) -> str:
    """Return the bits of a model that is fitted to a source."""
    result = training.fit(
        training.on_logits(js.cross_entropy),
        source or Counted(),
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
        epochs=2,
        batch_size=64,
        params=linear.init(D, K),
        virtual_shards=4,
        **division,
    )
    return b"".join(np.asarray(a).tobytes() for a in result.params).hex()


def certified(solution: js.Solution) -> tuple:
    """Return parameters and objective, after a check that all processes have the same proof."""
    assert np.all(solution.converged), solution.reason
    proof = np.stack([solution.objective, solution.gap, solution.gap_floor, solution.gradient_norm])
    bits = np.concatenate([proof.astype(np.float64).ravel().view(np.uint32),
                           solution.params.w.ravel().view(np.uint32)])  # fmt: skip
    every = multihost_utils.process_allgather(bits)
    assert (every == bits).all(), "another proof on another process"
    return solution.params, solution.objective


def centered(params: js.LinearParams) -> js.LinearParams:
    """Return the parameters without what the biases have in common, which may be anything."""
    assert params.bias is not None
    return params._replace(bias=params.bias - params.bias.mean())


def cases(processes: int, folder: str, expected: str) -> dict[str, Callable[[Any, Any], Any]]:
    """Functions of features and labels."""
    loss = training.on_logits(js.cross_entropy)
    how = {"key": jax.random.key(0), "epochs": 2, "batch_size": 64}

    def is_shared(x: Any) -> bool:
        return isinstance(x, jax.Array)

    def fitted_in_strata(x: Any, y: Any) -> Any:
        division = {"virtual_shards": 4}
        if is_shared(x):
            division |= {"shards": js.Shards(rows="rows")}
        result = training.fit(loss, x, y, optimizer=optax.sgd(0.1), **how, **division)
        return jax.tree.map(lambda a: np.asarray(a).view(np.uint32), result.params)

    def resumed(x: Any, y: Any) -> Any:
        how_long = how | {"optimizer": optax.sgd(0.1)}
        if is_shared(x):
            training.fit(loss, x, y, checkpoint=folder, **how_long | {"epochs": 1})
            how_long |= {"checkpoint": folder, "resume": True}
        return training.fit(loss, x, y, **how_long).history

    def streamed(x: Any, _y: Any) -> str:
        if not is_shared(x):
            return expected
        source = Counted()
        with jax.set_mesh(Mesh(np.array(jax.devices()), ("rows",))):
            found = fit_source(source, shards=js.Shards(rows="rows"))
        # In two epochs, half of the rows and the blocks at both ends of its two spans.
        assert source.rows_read <= 2 * (N // 2 + 4 * 50), source.rows_read
        return found

    def solved_source(x: Any, _y: Any, **penalty: float) -> tuple:
        # From zeros rather than the sample's optimum, which takes programs of its own.
        zeros = js.LinearParams(np.zeros((D, K)), np.zeros(K))
        source, how = Counted(), {"C": 1.0, "gap": 1e-11, "init": zeros, **penalty}
        if not is_shared(x):
            solution = js.solve(source, **how)
            return centered(solution.params), solution.objective
        with (
            jax.set_mesh(Mesh(np.array(jax.devices()), ("rows",))),
            mock.patch.object(
                Stream, "problems", autospec=True, side_effect=Stream.problems
            ) as spy,
        ):
            solution = js.solve(source, shards=js.Shards(rows="rows"), **how)
            passes = 1 + spy.call_count
        # Half of the rows in each pass, and the block that both processes have a part of.
        assert source.rows_read <= passes * (N // processes + 50), (source.rows_read, passes)
        params, objective = certified(solution)
        return centered(params), objective

    def swept(x: Any, y: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 2)
        rates = {"make_optimizer": optax.sgd, "hyperparams": jnp.array([0.1, 1.0]), "keys": keys}
        return training.sweep(loss, x, y, epochs=1, batch_size=64, **rates).history

    def bad_label(_x: Any, y: Any) -> str:
        try:
            js.check_labels(y, K - 1)
        except ValueError as error:
            return str(error)
        return "no error"

    def solved(x: Any, y: Any) -> tuple:
        with mock.patch.object(
            multihost_utils, "process_allgather", wraps=multihost_utils.process_allgather
        ) as spy:
            solution = js.solve(x, y, C=1.0, gap=1e-12)
            gathered = [call.args[0].size for call in spy.call_args_list]
        assert max(gathered, default=0) <= N, "a host has the features"
        return certified(solution) if is_shared(x) else (solution.params, solution.objective)

    def solved_whole(x: Any, y: Any) -> tuple:
        if not is_shared(x):
            return solved(x, y)
        with jax.set_mesh(Mesh(np.array(jax.devices()), ("rows",))):  # each process has all rows
            return certified(js.solve(*examples(), C=1.0, gap=1e-12, shards=js.Shards("rows")))

    def solved_classes(x: Any, y: Any) -> tuple:
        if not is_shared(x):
            return solved(x, y)
        devices = np.array(jax.devices()).reshape(processes, -1)
        with jax.set_mesh(Mesh(devices, ("classes", "rows"))):
            return certified(js.solve(*examples(), C=1.0, gap=1e-12,
                                      shards=js.Shards("rows", "classes")))  # fmt: skip

    def solved_path(x: Any, y: Any) -> tuple:
        path = js.solve_path(x, y, C=[0.1, 1.0], folds=np.arange(N) % 2, gap=1e-12)
        return certified(path) if is_shared(x) else (path.params, path.objective)

    def classified(x: Any, y: Any) -> tuple:
        model = SoftmaxClassifier(tol=1e-12).fit(x, y)
        p = model.predict_proba(x)
        if is_shared(x):
            assert not p.is_fully_addressable, "probabilities have left their rows"
            certified(model.solution_)
        scores = model.score(x, y), model.coef_, validation.to_host(p)
        return *scores, model.predict(x)

    def bad_feature(x: Any, y: Any) -> str:
        try:
            js.solve(jnp.where(jnp.arange(N)[:, None] == 200, jnp.inf, x), y, C=1.0)
        except ValueError as error:
            return str(error)
        return "no error"

    found = {
        "an estimator": classified,
        "check_labels": lambda x, y: js.check_labels(y, K),
        "check_labels names a label": bad_label,
        "evaluate": lambda x, y: training.evaluate(linear.init(D, K), x, y, loss=loss),
        "fit": lambda x, y: training.fit(loss, x, y, optimizer=optax.sgd(0.1), **how).history,
        "fit, each shard in its own order": fitted_in_strata,
        "fit, resumed": resumed,
        "fit of a source, of which each process reads its part": streamed,
        "sweep": swept,
        "solve": solved,
        "solve with shards of arrays that every process has": solved_whole,
        "solve of a source, of which each process reads its part": solved_source,
        "solve of a source with l1": partial(solved_source, C=0.1, l1_ratio=0.6, gap=1e-13),
        "solve with classes that processes share": solved_classes,
        "solve_path": solved_path,
        "solve names a feature": bad_feature,
    }
    left_out = ONLY_FOUR if processes == 2 else ONLY_TWO
    left_out = set() if "JAXSOFTMAX_EVERY_CASE" in os.environ else left_out
    return {name: function for name, function in found.items() if name not in left_out}


def difference(found: Any, truth: Any) -> str | None:
    """What is wrong, or None."""
    if isinstance(truth, str):
        return None if found == truth else f"{found} for {truth}"
    for a, t in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        if not np.allclose(np.asarray(a), np.asarray(t), rtol=1e-5, atol=1e-6):
            return f"{np.asarray(a)} for {np.asarray(t)}"
    return None


def main(rank: int, processes: int, port: str, folder: str, expected: str) -> None:
    """Run all, in the same order on every process."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=rank)
    x, y = examples()
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
    parts = [
        jax.make_array_from_callback(a.shape, rows, lambda place, a=a: a[place]) for a in (x, y)
    ]
    for name, function in cases(processes, folder, expected).items():
        found = function(*parts)
        if rank == 0:
            reason = difference(found, function(x, y))
            print(f"FAIL {name}: {reason}" if reason else f"PASS {name}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
