"""What the parts share: steps, the conditions of a run, and calls that take turns."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure

SECONDS = 0.03  # shorter calls are timed several times in a row
TURN = 8.0  # seconds of a step's rounds, where they are more than LEAST
LEAST, MOST = 3, 15  # rounds
SLOW = 10.0  # seconds of a pass that is measured once
# Whether seconds are those of all cores together, which a CPU's other work disturbs less.
processor_time = False


class Step(NamedTuple):
    """An entry of the record: its title, and the function that measures it."""

    title: str
    run: Callable[[], dict[str, Any]]


class Conditions(NamedTuple):
    """The options of a run: the kind of device, tiny shapes, other libraries' interpreter."""

    platform: str
    smoke: bool = False
    torch: str | None = None
    shapes: tuple[str, ...] = ()
    data_dir: Path | None = None  # of prepared images
    newsgroups: Path | None = None  # scikit-learn's folder of data sets
    cyanure: str | None = None  # an interpreter that has it

    def of(self, sizes: dict[str, Any]) -> Any:
        """Return what belongs to this platform, or to a smoke run."""
        return sizes["smoke" if self.smoke else self.platform]


def torch_python(given: str | None) -> str | None:
    """Return an interpreter with PyTorch: the given one, else this one if it has PyTorch."""
    if given is None and importlib.util.find_spec("torch") is not None:
        return sys.executable
    return given


def timed(
    calls: dict[str, Callable[[], Any]],
    *,
    smoke: bool,
    clocks: dict[str, Callable[[], float]] | None = None,
) -> dict[str, Any]:
    """Return `measure.paired` of seconds a call, in as many rounds as there is time for.

    Clocks are contestants elsewhere, which return their own seconds. One that takes too long for
    rounds is measured once.
    """
    clocks = clocks or {}
    needed = {name: estimated(call) for name, call in calls.items()} if not smoke else {}
    each = {n: partial(seconds_a_call, c, repeats(needed.get(n))) for n, c in calls.items()}
    needed = {n: s * repeats(s) for n, s in needed.items()} | {n: c() for n, c in clocks.items()}
    slow = {name: s for name, s in needed.items() if name in clocks and s > SLOW}
    each |= {name: clock for name, clock in clocks.items() if name not in slow}
    rounds = round(TURN / sum(needed[name] for name in each)) if not smoke else 1
    timing = measure.paired({}, rounds=min(max(rounds, 1 if smoke else LEAST), MOST), clocks=each)
    return with_slow(timing, slow)


def estimated(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, the second one where the first one is short."""
    first = measure.clock(call)
    return first if first > 1 else measure.clock(call)


def repeats(seconds: float | None) -> int:
    """Return how many calls in a row are long enough for the clock."""
    return 1 if seconds is None else max(1, round(SECONDS / seconds))


def compared(seconds: dict[str, float]) -> dict[str, Any]:
    """Return what `timed` does, of seconds that are known; the first are those of the baseline."""
    baseline = next(iter(seconds))
    timing: dict[str, Any] = {name: {} for name in ("seconds", "ratios", "times the baseline")}
    timing["baseline"] = baseline
    for name, of_name in seconds.items():
        timing["seconds"][name] = {"median": of_name}
        timing["ratios"][name] = {"median": seconds[baseline] / of_name}
        timing["times the baseline"][name] = of_name / seconds[baseline]
    return timing


def with_slow(timing: dict[str, Any], slow: dict[str, float]) -> dict[str, Any]:
    """Return a timing with contestants that were measured once."""
    base = timing["seconds"][timing["baseline"]]["median"]
    for name, seconds in slow.items():
        timing["seconds"][name] = measure.summary([seconds])
        timing["ratios"][name] = measure.summary([base / seconds])
        timing["times the baseline"][name] = seconds / base
    return timing


def seconds_a_call(call: Callable[[], Any], times: int) -> float:
    """Return the mean seconds of several calls in a row."""
    # An accelerator runs its programs one after the other, but a CPU may run two at once.
    wait = jax.block_until_ready if jax.default_backend() == "cpu" else lambda found: found
    read = time.process_time if processor_time else time.perf_counter
    start = read()
    for _ in range(times):
        found = wait(call())
    jax.block_until_ready(found)
    return (read() - start) / times


def compiled(
    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]], *, smoke: bool = False
) -> dict[str, jax.stages.Compiled]:
    """Compile functions of arguments, several at a time: tracing holds a lock, compiling none.

    A program that does not exist for this device is left out, with its reason.
    """
    lowered = {}
    for name, (function, arguments) in programs.items():
        try:
            lowered[name] = jax.jit(function).lower(*arguments)
        except NotImplementedError as reason:
            print(f"{name} is left out: {reason}")
    with ThreadPoolExecutor(1 if smoke else 8) as pool:
        built = pool.map(lambda each: each.compile(), lowered.values())
        return dict(zip(lowered, built, strict=True))


def memory(programs: dict[str, jax.stages.Compiled]) -> dict[str, int]:
    """Return the temporary bytes of each program."""
    return {name: measure.temporary_bytes(program) for name, program in programs.items()}


def titled(steps: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> list[Step]:
    """Return steps of titles and functions."""
    return [Step(*each) for each in steps]
