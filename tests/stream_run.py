"""2 GiB of Parquet in less than 1 GiB of memory: `python tests/stream_run.py fit|solve FOLDER`."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq

import jaxsoftmax
from jaxsoftmax import linear, training

ROWS, D, GROUP = 2**20, 512, 2**14
LIMIT = 2**30


def write(path: Path) -> None:
    """Write one row group."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.integers(-1, 2, (GROUP // 256, D)).astype(np.float32), 256, axis=0)
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), D)
    table = pa.table({"x": values, "y": (x[:, 0] > 0).astype(np.int32)})
    pq.write_table(table, path, row_group_size=GROUP)


def most_memory() -> int:
    """Return the most bytes that this program held; getrusage counts what started it, too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def fit(source: training.ParquetSource) -> None:
    """Train for one epoch."""
    result = training.fit(
        training.on_logits(jaxsoftmax.cross_entropy),
        source,
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
        epochs=1,
        batch_size=2048,
        params=linear.init(D, 2),
    )
    assert int(result.state.step) == ROWS // 2048
    assert result.history["accuracy"][0] > 0.9


def solve(source: training.ParquetSource) -> None:
    """Find a certified optimum, in as few passes as one can take."""
    found = jaxsoftmax.solve(source, alpha=10.0, gap=0.01)
    assert found.converged, found.reason


def main(how: str, folder: Path) -> None:
    """Fit or solve, and print the most memory that the process held."""
    path = folder / "0.parquet"
    write(path)
    files = [path] * (ROWS // GROUP)  # read as if they were different
    {"fit": fit, "solve": solve}[how](
        training.ParquetSource(files, features="x", targets="y", window=GROUP)
    )
    peak = most_memory()
    print(f"{ROWS * D * 4 >> 20} MiB seen, at most {peak >> 20} MiB held")
    assert peak < LIMIT, f"{peak >> 20} MiB"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
