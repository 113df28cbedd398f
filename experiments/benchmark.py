"""What the device at hand does with this library's functions, beside other libraries: one command.

Command: `python experiments/benchmark.py [--minutes 5] [--torch-python PATH]`, about 5 minutes on a
CPU, GPU or TPU. Parts take turns, each with its most telling measurement first, and what does not
fit the minutes is left out. `--only rows heads` runs some of the parts, which benchmarks/ explains;
`--shapes 8192x768x1000 ...` are other shapes of heads, and one that ends in `/parameters`
differentiates w and bias alone. On a busy CPU, `--processor-time` counts the seconds of all cores,
for parts without PyTorch. PATH is an interpreter that has PyTorch, with Liger,
cut-cross-entropy, QuACK or cyanure-gpu where they are to be compared, by default this one if it has
PyTorch; tokamax and jax-cce are compared if they are installed here. The record is
results/benchmark_DEVICE.json, written again after each measurement, with a table and a page of
figures of the same name. A part that is not measured keeps its last measurements, and each part has
the conditions of its own. `--draw` writes table and page again. `--smoke` runs everything at tiny
sizes on the CPU, kernels interpreted, and writes nothing. `--tune heads` and `--tune rows` measure
the candidates of the tables in kernels/. `--compile h200` or `b200` compiles the programs of heads,
rows and siblings for an absent GPU and prints registers, shared memory, spills, temporary bytes and
bytes moved for a logit; it needs `jax[cuda13]`, in a separate environment.

Question. What share of the device's ceilings, the rates of a product and of a copy measured in the
same run, do the losses, the fused heads, an epoch and the solver reach? How long do they take, and
in how much memory, beside Optax and the other libraries that are installed? How far are values and
gradients from the truth?

Findings, on two CPU cores. The fused sum is 1.88 times as fast as Optax on dense logits where
features are data, 1.69 and 1.24 times with 1,000 classes, and 1.10 and 0.99 times where only the
products count. `cross_entropy` of existing logits takes 0.92 to 1.07 times Optax's time, and no
entry of its value or gradient is more than 5.4 ulp from the truth. An epoch as one scan takes 2.2
times less than a Python loop over a jitted step. Each part of benchmarks/ has its own findings, and
those of a prototype on an H200; no accelerator has run this version.
"""

import argparse
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import jax
import measure
from benchmarks import calls, ceilings, epoch, exactness, heads, rows, solver, table, timing
from benchmarks.timing import Conditions, Step, torch_python

# The most telling first.
PARTS: dict[str, Callable[[Conditions], list[Step]]] = {
    "ceilings": ceilings.steps,
    "heads": heads.steps,
    "rows": rows.steps,
    "heads_by_classes": heads.steps_by_classes,
    "rows_by_classes": rows.steps_by_classes,
    "exactness": exactness.steps,
    "epoch": epoch.steps,
    "solver": solver.steps,
    "sigmoid": heads.steps_of_sigmoid,
    "siblings": rows.steps_of_siblings,
    "default": heads.steps_of_default,
    "sweep": epoch.steps_of_sweeps,
    "calls": calls.steps,
}
START, RUN = time.perf_counter(), time.strftime("%Y-%m-%d %H:%M")


def main() -> None:
    """Measure, tune, compile or draw."""
    arguments = parsed()
    if arguments.compile:
        from benchmarks import without_device

        without_device.compile_for(arguments.compile, arguments.only, as_json=arguments.json)
    elif arguments.tune:
        from benchmarks import tuning

        tuning.tune(arguments.tune, smoke=arguments.smoke)
    elif arguments.draw:
        for path in measure.RESULTS.glob("benchmark_*.json"):
            present(path.stem, json.loads(path.read_text()), writes=True)
    else:
        run(arguments)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="nothing is started later")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--shapes", nargs="*", default=(), help="of heads: NxDxK, in float32")
    parser.add_argument("--torch-python", help="an interpreter with PyTorch's libraries")
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of all cores, on a busy CPU"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, no record")
    parser.add_argument("--draw", action="store_true", help="tables and pages of all records")
    parser.add_argument("--tune", choices=("heads", "rows"), help="candidates for kernels/")
    parser.add_argument("--compile", metavar="TARGET", help="h200 or b200")
    parser.add_argument("--json", action="store_true", help="print what was compiled as JSON")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """Measure what there is time for, and present it."""
    timing.processor_time = arguments.processor_time
    conditions = conditions_of(arguments)
    name = f"benchmark_{jax.devices()[0].device_kind.lower().replace(' ', '_')}"
    record = {} if conditions.smoke else recorded(name)
    steps = in_turns({part: PARTS[part](conditions) for part in arguments.only})
    minutes = math.inf if conditions.smoke else arguments.minutes
    late, failed = measured(steps, record, name, 60 * minutes, smoke=conditions.smoke)
    present(name, json.loads(json.dumps(record, sort_keys=True)), writes=not conditions.smoke)
    print(f"\nno time was left for {len(late)} steps: {'; '.join(late)}" if late else "")
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


def conditions_of(arguments: argparse.Namespace) -> Conditions:
    """Return the conditions of a run, before JAX takes the device's memory."""
    if arguments.smoke:
        jax.config.update("jax_platforms", "cpu")
    python = torch_python(arguments.torch_python)
    if python is not None:
        # PyTorch needs the rest of a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    shapes = tuple(arguments.shapes)
    return Conditions(jax.default_backend(), arguments.smoke, python, shapes)


def measured(
    steps: Iterable[tuple[str, Step]],
    record: dict[str, Any],
    name: str,
    limit: float,
    *,
    smoke: bool,
) -> tuple[list[str], list[str]]:
    """Add steps to the record, which is written after each; return those late and those failed.

    A step is late where the one before it in its part took longer than the time that is left.
    """
    late, failed, took = [], [], dict.fromkeys(PARTS, 0.0)
    for part, step in steps:
        title, start = f"{part}: {step.title}", time.perf_counter() - START
        if start + took[part] > limit:
            late.append(title)
            continue
        print(f"\n{title}, after {start:.0f} s", flush=True)
        if not added(record, part, step, smoke=smoke):
            failed.append(title)
        elif not smoke:
            measure.write_record(name, record)
        took[part] = time.perf_counter() - START - start
    return late, failed


def in_turns(parts: dict[str, list[Step]]) -> Iterator[tuple[str, Step]]:
    """Yield the first step of each part, then the second of each, and so on."""
    for turn in zip_longest(*parts.values()):
        for part, step in zip(parts, turn, strict=True):
            if step is not None:
                yield part, step


def added(record: dict[str, Any], part: str, step: Step, *, smoke: bool) -> bool:
    """Add a step to its part, which is new where an earlier run left it; return whether it ran."""
    try:
        entry = step.run()
    except Exception:  # the rest of the parts is still worth its time
        if smoke:
            raise
        traceback.print_exc()
        return False
    if record.get(part, {}).get("run") != RUN:
        clock = "processors" if timing.processor_time else "wall"
        where = {"environment": measure.environment(), "clock": clock}
        record[part] = where | {"run": RUN, "found": {}}
    record[part]["found"][step.title] = entry
    return True


def recorded(name: str) -> dict[str, Any]:
    """Return the parts that earlier runs measured on this device."""
    path = measure.RESULTS / f"{name}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    return {part: found for part, found in record.items() if part in PARTS}


def present(name: str, record: dict[str, Any], *, writes: bool) -> None:
    """Print the table, and write it and the page beside the record."""
    text = table.rendered(record)
    print(f"\n{text}")
    if find_spec("matplotlib") is None:
        print("matplotlib is absent, and the page is left out (--draw draws it elsewhere)")
        figure = None
    else:
        from benchmarks import page

        figure = page.draw(record)
    if writes:
        (measure.RESULTS / f"{name}.md").write_text(text)
        if figure is not None:
            page.save(figure, measure.RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
