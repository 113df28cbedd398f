"""Functions of the host on arrays that two processes share: the lines of `process_cases.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import process_cases
import pytest


@pytest.mark.slow
def test_arrays_may_span_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = str(tmp_path), process_cases.fit_source()
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen(
            [sys.executable, process_cases.__file__, str(rank), port, *given],
            env=environment,
            **pipes,
        )
        for rank in range(2)
    ]
    try:
        (printed, errors), (_, more) = (process.communicate(timeout=600) for process in both)
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors + more
    lines = [line for line in printed.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert lines == [f"PASS {name}" for name in process_cases.cases(*given)]
