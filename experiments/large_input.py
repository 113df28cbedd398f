"""A million rows from a Parquet file: memory and time of a user's command.

Command: `python experiments/large_input.py`, under a minute on two cores. `--smoke` uses 2,000
rows of 20 features and writes no record. The record is results/large_input.json.

Question. The input is 1,000,000 rows of 100 float32 features and one of 10 classes, drawn from a
softmax model, as Parquet in one row group. What is the peak memory of
`jaxsoftmax fit FILE --label y`, as a multiple of the 400 MB of the features, and where does its
time go? The peak is the resident set of the whole process as the system counts it: interpreter,
libraries, data, training, figures and report. Reading and training are timed separately, in a
process that does nothing else.

Findings, on two cores: The peak is 2.74 times the data and occurs while reading: the features once,
the libraries, and 250 MB of Parquet's pages and dictionaries, which are released. Training shares
the arrays that were read, and the metrics and the report need their memory only after the fitted
features are released. Ten epochs of training take twice the time of reading. Most of the command's
24 seconds are neither: they are the metrics of a million examples, the bootstrap of their
intervals, two calibrations, the report, and compilation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet

CLASSES = 10


def main() -> None:
    """Write the file, run the command, time its parts, print and write the record."""
    parser = argparse.ArgumentParser(description="A million rows from a Parquet file.")
    parser.add_argument("--smoke", action="store_true", help="few rows, no record")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows, features, epochs = (
        (2000, 20, 2) if arguments.smoke else (1_000_000, 100, arguments.epochs)
    )
    if arguments.part:
        PARTS[arguments.part](arguments.path, rows, features, epochs)
        return

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        own = [sys.executable, __file__, "--path", str(path), "--epochs", str(epochs)]
        own += ["--smoke"] if arguments.smoke else []
        run([*own, "--part", "write"])
        command = ["jaxsoftmax", "fit", str(path), "--label", "y", "--epochs", str(epochs)]
        whole = run([sys.executable, "-m", *command, "--output", f"{folder}/run", "--quiet"])
        figures = json.loads((Path(folder) / "run" / "metrics.json").read_text())
        parts = json.loads(run([*own, "--part", "parts"])["printed"])
        size = path.stat().st_size

    data_bytes = 4 * rows * features
    record = {
        "rows": rows,
        "features": features,
        "epochs": epochs,
        "data_bytes": data_bytes,
        "file_bytes": size,
        "peak_bytes": whole["peak_bytes"],
        "peak_over_data": whole["peak_bytes"] / data_bytes,
        "peak_over_data_of_reading_and_training": parts.pop("peak_bytes") / data_bytes,
        "seconds": {"command": whole["seconds"], "training": figures["seconds"]},
        "seconds_apart": parts,
        "test_accuracy": figures["test"]["accuracy"],
    }
    show(record)
    if not arguments.smoke:
        print("written:", measure.write_record("large_input", record).name)


def run(command: list[str]) -> dict[str, Any]:
    """Run a command; return its seconds, its peak memory and its output."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        seconds = time.perf_counter() - begun
        output.seek(0)
        return {
            "seconds": seconds,
            "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "printed": output.read(),
        }


def write(path: Path, rows: int, features: int, epochs: int) -> None:
    """Draw features and, from a linear model's probabilities, their classes."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((features, CLASSES), np.float32)
    x = rng.standard_normal((rows, features), np.float32)
    noise = rng.gumbel(size=(rows, CLASSES)).astype(np.float32)
    y = np.argmax(
        x @ w / 3 + noise, axis=1
    )  # the largest of logits + Gumbel noise is a draw from the softmax
    columns = {f"x{j}": x[:, j] for j in range(features)}
    pyarrow.parquet.write_table(pa.table(columns | {"y": y}), path)


def parts(path: Path, rows: int, features: int, epochs: int) -> None:
    """Read and train as the command does, and print the seconds of each."""
    import resource

    from jaxsoftmax.app import data, pipeline

    begun = time.perf_counter()
    dataset = data.load_file(path, label="y")
    read = time.perf_counter()
    pipeline.train(dataset, pipeline.choose(dataset, epochs=epochs))
    trained = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"reading": read - begun, "training": trained - read, "peak_bytes": peak}))


PARTS = {"write": write, "parts": parts}


def show(record: dict[str, Any]) -> None:
    """Print the record as a few lines."""
    apart, whole = record["seconds_apart"], record["seconds"]
    print(f"data {record['data_bytes'] / 1e6:,.0f} MB, file {record['file_bytes'] / 1e6:,.0f} MB")
    print(
        f"peak of the command {record['peak_bytes'] / 1e6:,.0f} MB: "
        f"{record['peak_over_data']:.2f} times the data; for reading and training alone "
        f"{record['peak_over_data_of_reading_and_training']:.2f}"
    )
    print(f"reading {apart['reading']:.1f} s, training {apart['training']:.1f} s, timed separately")
    print(f"the command {whole['command']:.1f} s, of which training {whole['training']:.1f} s")
    print(f"test accuracy {record['test_accuracy']:.2%}")


if __name__ == "__main__":
    main()
