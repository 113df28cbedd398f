"""The harness that every experiment shares: interleaved timing, the environment, the record.

Timings on a shared machine drift. So the compared functions take turns within one process, each
round in a new random order, so that no function always finds the cache as the same other one left
it. The result is the median of the ratios within a round: a slow minute slows both sides of a
ratio. The minimum is reported beside the median, because disturbances only ever add time.
"""

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def paired(
    functions: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    clocks: dict[str, Callable[[], float]] | None = None,
) -> dict[str, Any]:
    """Time functions without arguments in turn; the first one is the baseline of the ratios.

    Each is called once before the clock starts, to compile. A call ends when the arrays it returns
    are ready (`block_until_ready`). `clocks` are further contestants that run elsewhere, such as in
    another process, and return their own seconds.

    Returns:
        `{"rounds", "baseline", "seconds": {name: summary}, "ratios": {name: summary},
        "times the baseline": {name: float}, "ratios_of_minima": {name: float}}`, where a summary
        has minimum, lower quartile, median, upper quartile; a ratio is the baseline's time over the
        function's in the same round, so that 2 means twice as fast, and times the baseline are the
        inverse of the median.
    """
    timers = {name: partial(clock, function) for name, function in functions.items()}
    timers |= clocks or {}
    for timer in timers.values():
        timer()
    names = list(timers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(names, len(names)):
            seconds[name].append(timers[name]())
    base = seconds[names[0]]
    ratios = {
        name: summary([b / s for b, s in zip(base, seconds[name], strict=True)]) for name in names
    }
    return {
        "rounds": rounds,
        "baseline": names[0],
        "seconds": {name: summary(seconds[name]) for name in names},
        "ratios": ratios,
        "times the baseline": {name: 1 / ratio["median"] for name, ratio in ratios.items()},
        "ratios_of_minima": {name: min(base) / min(seconds[name]) for name in names},
    }


def clock(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    """Return minimum, quartiles and median."""
    if len(values) == 1:
        return dict.fromkeys(("minimum", "lower", "median", "upper"), values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"minimum": min(values), "lower": lower, "median": median, "upper": upper}


def environment() -> dict[str, Any]:
    """Describe the conditions of a timing: device, processor, cores, versions; no names, paths."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "optax", "numpy")
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": os.getloadavg()[0],  # processes that want a core, this one included
        "system": platform.system(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def cpu_model() -> str:
    """Return the processor's name where Linux reports it, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a compiled function needs besides its arguments and results."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise NotImplementedError("this platform reports no memory analysis")
    return int(analysis.temp_size_in_bytes)


def write_record(name: str, record: dict[str, Any], *, folder: Path = RESULTS) -> Path:
    """Write a record with its environment as sorted, indented JSON: results/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(record | {"environment": environment()}, indent=2, sort_keys=True)
    path.write_text(text + "\n")
    return path
