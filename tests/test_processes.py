"""Functions of the host on arrays that processes share: the lines of `process_cases.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import process_cases
import pytest

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_arrays_may_span_processes(tmp_path: Path, processes: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = str(tmp_path), process_cases.fit_source()
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            [sys.executable, process_cases.__file__, str(rank), str(processes), port, *given],
            env=environment,
            **pipes,
        )
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "".join(e for _, e in outputs)
    lines = [line for line in outputs[0][0].splitlines() if line.startswith(("PASS", "FAIL"))]
    assert lines == [f"PASS {name}" for name in process_cases.cases(processes, *given)]
