"""Other libraries, each only where it is installed: those of JAX, and those of PyTorch.

The latter run in a separate process, whose interpreter need not have JAX. It answers a line with
the seconds of a pass, so that both libraries can take turns.
"""

import json
import select
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from benchmarks.head_programs import Shape

SCRIPT = Path(__file__).with_name("in_torch.py")
PATIENCE = 300.0  # seconds for an answer: the first one waits for the compilers of all libraries
PAUSE = 0.05  # seconds: OpenMP's threads spin for some milliseconds more, at the cost of the next


class Others:
    """A process with PyTorch and one problem; without an interpreter there are no others."""

    def __init__(self, python: str | None, problem: dict[str, Any]) -> None:
        """Start the process, whose first line has the contestants' versions."""
        self.versions: dict[str, str] = {}
        self.process = None
        if python is None:
            return
        command = [python, str(SCRIPT), json.dumps(problem)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.versions = json.loads(self._read() or "{}")

    def __enter__(self) -> "Others":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """End the process, which releases its memory."""
        if self.process is not None:
            self.process.communicate()

    def clocks(self) -> dict[str, Callable[[], float]]:
        """Return functions that return their own seconds, for `timing.timed`."""
        return {name: partial(self.ask, name) for name in self.versions}

    def ask(self, name: str) -> float:
        """Run one pass there and return its seconds."""
        self.process.stdin.write(name + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        seconds = float(self._read())
        time.sleep(PAUSE)
        return seconds

    def _read(self) -> str:
        """Return a line, empty where the process has ended; without one for long, end it."""
        answer: Any = self.process.stdout  # type: ignore[union-attr]
        if not select.select([answer], [], [], PATIENCE)[0]:
            print(f"PyTorch's libraries gave no answer in {PATIENCE:.0f} s")
            self.process.kill()  # type: ignore[union-attr]
        return answer.readline()


def of_head(python: str | None, shape: Shape) -> Others:
    """Return the other libraries' heads of a shape."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return Others(python, {"kind": "head", "device": device} | shape._asdict())


def of_epoch(python: str | None, sizes: tuple[int, ...]) -> Others:
    """Return PyTorch's loops over minibatches: examples, features, classes, batch size."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return Others(python, {"kind": "epoch", "device": device, "sizes": sizes})


def of_solver(python: str | None, file: Path, alpha: float) -> Others:
    """Return the solvers that run in PyTorch, for the arrays x and y of a file."""
    return Others(python, {"kind": "solver", "file": str(file), "alpha": alpha})


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
