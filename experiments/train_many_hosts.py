"""One program for a laptop and for many hosts: a large head, Parquet, checkpoints, to copy.

Command: `python experiments/train_many_hosts.py --data FOLDER --run FOLDER --classes K`. On a
cluster each process runs the same command with `--cluster`: under Slurm
`srun python experiments/train_many_hosts.py --cluster ...`, and likewise on Kubernetes with JAX's
jobs and on Cloud TPU, where `jax.distributed.initialize()` finds the other processes by itself.
Both folders are ones that all processes see. A killed run continues when the command is repeated,
on the same number of devices or on another one. `--smoke` writes SYNTHETIC data and trains in
less than a minute. It needs `pip install 'jaxsoftmax[scale]'`.

The mesh has an axis of rows, over which each minibatch is sharded, and an axis of classes, over
which the head is. Each process reads its own rows of the files; between devices go a few numbers
of each row and the gradients of the head.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import NamedSharding, PartitionSpec

from jaxsoftmax import LinearParams, Shards, linear_cross_entropy, training

BATCH_SIZE, RATE, MEMORY = 4096, 1e-2, 64 * 2**20  # the last in bytes, for a block of logits


def loss(head: LinearParams, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the loss of each row, without storing its logits."""
    return linear_cross_entropy(x, head.w, labels, bias=head.bias, memory=MEMORY).nll


def initial_head(features: int, classes: int) -> LinearParams:
    """Return zeros, each device with its own classes."""
    mesh = jax.sharding.get_mesh()
    w, bias = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "classes"), ("classes",))
    )
    return LinearParams(
        w=jax.device_put(np.zeros((features, classes), np.float32), w),
        bias=jax.device_put(np.zeros(classes, np.float32), bias),
    )


def train(
    data: Path, run: Path, *, classes: int, class_shards: int, epochs: int, batch_size: int
) -> float:
    """Train the head, and return its loss on the rows of test.parquet."""
    shape = jax.device_count() // class_shards, class_shards
    columns = {"features": "x", "targets": "label"}
    test = training.ParquetSource(data / "test.parquet", **columns)
    with jax.set_mesh(jax.make_mesh(shape, ("rows", "classes"))):
        result = training.fit(
            loss,
            training.ParquetSource(sorted(data.glob("train*.parquet")), **columns),
            optimizer=optax.adam(RATE),
            key=jax.random.key(0),
            epochs=epochs,
            params=initial_head(test.read(0).features.shape[1], classes),
            checkpoint=run,
            resume=True,
            callback=report,
            **(how := {"batch_size": batch_size, "score": None, "shards": Shards(rows="rows")}),
        )
        return float(training.evaluate(result.params, test, loss=loss, **how)["loss"])


def report(metrics: dict[str, float]) -> None:
    """Print a line for each epoch, on one process."""
    if jax.process_index() == 0:
        print(f"epoch {metrics['epoch']}: loss {metrics['loss']:.4f}", flush=True)


def write_synthetic(folder: Path, *, rows: int, features: int, classes: int) -> None:
    """Write two files for training and one for the test, of classes around random centers."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((classes, features)).astype(np.float32)
    for name in ("train-0", "train-1", "test"):
        labels = rng.integers(0, classes, rows).astype(np.int32)
        x = centers[labels] + rng.standard_normal((rows, features)).astype(np.float32)
        x = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), features)
        pq.write_table(pa.table({"x": x, "label": labels}), folder / f"{name}.parquet")


def main() -> None:
    """Train, and print the loss of the test rows."""
    parser = argparse.ArgumentParser(description="Train a large head on any number of hosts.")
    parser.add_argument("--data", type=Path, help="train*.parquet and test.parquet, of x and label")
    parser.add_argument("--run", type=Path, help="a folder for checkpoints")
    parser.add_argument("--classes", type=int, help="the number of classes")
    parser.add_argument("--class-shards", type=int, default=1, help="devices that share the head")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cluster", action="store_true", help="one of the processes of a cluster")
    parser.add_argument("--smoke", action="store_true", help="synthetic data, on eight CPU devices")
    given = vars(parser.parse_args())
    if given.pop("cluster"):
        jax.distributed.initialize()
    if not given.pop("smoke"):
        test_loss = train(**given, batch_size=BATCH_SIZE)
        if jax.process_index() == 0:
            print("test loss", test_loss)
        return
    jax.config.update("jax_num_cpu_devices", 8)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_synthetic(data, rows=2048, features=16, classes=64)
        for epochs in (1, 2):  # the second call continues the first
            how = {"classes": 64, "class_shards": 2, "epochs": epochs, "batch_size": 256}
            print("test loss", f"{train(data, data / 'run', **how):.4f}")


if __name__ == "__main__":
    main()
