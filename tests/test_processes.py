"""Functions of the host on arrays that processes share: the lines of `process_cases.py`."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import process_cases
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimized")]

SCRIPT = Path(__file__).parent.parent / "experiments" / "train_many_hosts.py"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run_together(commands: list[list[str]], environments: list[dict[str, str]]) -> list[str]:
    """What processes print that run at the same time and all end well."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            **pipes,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert not any(process.returncode for process in started), "".join(e for _, e in outputs)
    return [printed for printed, _ in outputs]


@pytest.mark.parametrize("processes", [2, 4])
def test_arrays_may_span_processes(tmp_path: Path, processes: int) -> None:
    given = str(tmp_path), process_cases.fit_source()
    of_all = str(processes), free_port(), *given
    commands = [[process_cases.__file__, str(rank), *of_all] for rank in range(processes)]
    first, *_ = run_together(commands, [{}] * processes)
    lines = [line for line in first.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert lines == [f"PASS {name}" for name in process_cases.cases(processes, *given)]


def test_processes_of_a_cluster_find_each_other(tmp_path: Path) -> None:
    """`jax.distributed.initialize()` without arguments, from variables that Slurm sets."""
    write = runpy.run_path(str(SCRIPT))["write_synthetic"]
    write(tmp_path, rows=64, features=3, classes=8)
    command = [str(SCRIPT), "--cluster", "--data", str(tmp_path), "--run", str(tmp_path / "run"),
               "--classes", "8", "--class-shards", "2", "--epochs", "1"]  # fmt: skip
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": free_port(),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    ranks = [job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    first, second = run_together([command, command], ranks)
    of_training = ("epoch", "test loss")
    printed = [line for line in first.splitlines() if line.startswith(of_training)]
    assert [line.rsplit(maxsplit=1)[0] for line in printed] == ["epoch 1: loss", "test loss"]
    assert not any(line.startswith(of_training) for line in second.splitlines())
