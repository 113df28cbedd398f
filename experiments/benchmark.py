"""What the device at hand does with this library's functions, beside other libraries: one command.

Command: `python experiments/benchmark.py [--minutes 5] [--torch-python PATH]`, about 5 minutes on a
CPU, GPU or TPU. Parts take turns, each with its most telling measurement first, and what does not
fit the minutes is left out. `--only rows heads` runs some of the parts, which benchmarks/ explains,
without a limit of minutes unless one is given; `--steps TEXT` measures those of their steps whose
title contains TEXT, and writes nothing. `--shapes 8192x768x1000 ...` are other shapes of heads, and
one that ends in `/parameters` differentiates w and bias alone. On a busy CPU, `--processor-time`
counts the seconds of all cores, for parts without PyTorch. PATH is an interpreter that has PyTorch,
with Liger, cut-cross-entropy, QuACK or cyanure-gpu where they are to be compared, by default this
one if it has PyTorch; tokamax and jax-cce are compared if they are installed here.

Parts that compare the solver with other solvers take minutes each, want an idle machine and run
only if they are named: `--only mnist fashion_mnist --data-dir DIR`, where DIR holds the images as
TensorFlow Datasets prepares them; `--only newsgroups --newsgroups FOLDER`, where FOLDER is
scikit-learn's (by default the one that it keeps); `--only documents path grid drawn`; and `--only
cyanure --cyanure PYTHON`, an interpreter that has Cyanure, with DIR and FOLDER for the data that
they have.

The record is results/benchmark_DEVICE.json, written again after each measurement, with a table and
a page of figures of the same name, and of a CPU the picture of the main page. A part that is not
measured keeps its last measurements, and each part has the conditions of its own. `--draw` writes
table and figures again. `--smoke` runs everything at tiny sizes on the CPU, kernels interpreted,
and writes nothing. `--tune heads` and `--tune rows` measure the candidates of the tables in
kernels/. `--compile h200` or `b200` compiles the programs of heads, rows and siblings for an absent
GPU and prints registers, shared memory, spills, temporary bytes and bytes moved for a logit; it
needs `jax[cuda13]`, in a separate environment.

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
import importlib
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import measure
from benchmarks import calls, ceilings, epoch, exactness, heads, rows, solver, table, timing
from benchmarks.timing import Conditions, Step, torch_python

Part = Callable[[Conditions], list[Step]]


def beside_scikit_learn(module: str, steps: str = "steps") -> Part:
    """Return a part whose module needs scikit-learn, and is imported when it is measured."""

    def part(conditions: Conditions) -> list[Step]:
        if find_spec("sklearn") is None:
            print(f"{module} is left out: it needs scikit-learn")
            return []
        return getattr(importlib.import_module(f"benchmarks.{module}"), steps)(conditions)

    return part


# The most telling first.
QUICK: dict[str, Part] = {
    "ceilings": ceilings.steps,
    "heads": heads.steps,
    "rows": rows.steps,
    "heads_by_classes": heads.steps_by_classes,
    "rows_by_classes": rows.steps_by_classes,
    "exactness": exactness.steps,
    "epoch": epoch.steps,
    "solver": solver.steps,
    "sigmoid": heads.steps_of_sigmoid,
    "z_loss": heads.steps_of_z_loss,
    "siblings": rows.steps_of_siblings,
    "default": heads.steps_of_default,
    "sweep": epoch.steps_of_sweeps,
    "calls": calls.steps,
    "small_sets": beside_scikit_learn("small_sets"),
}
# They take minutes, and some need data.
LONG: dict[str, Part] = {
    "mnist": beside_scikit_learn("optimum", "steps_of_mnist"),
    "fashion_mnist": beside_scikit_learn("optimum", "steps_of_fashion_mnist"),
    "newsgroups": beside_scikit_learn("optimum", "steps_of_newsgroups"),
    "documents": beside_scikit_learn("optimum", "steps_of_documents"),
    "path": beside_scikit_learn("path"),
    "grid": beside_scikit_learn("grid"),
    "drawn": beside_scikit_learn("grid", "steps_of_drawn"),
    "cyanure": beside_scikit_learn("beside_cyanure"),
}
PARTS = QUICK | LONG
MINUTES = 5
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
    parser.add_argument("--minutes", type=float, help="nothing is started later")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts")
    parser.add_argument("--steps", default="", help="part of the titles to measure, no record")
    parser.add_argument("--shapes", nargs="*", default=(), help="of heads: NxDxK, in float32")
    parser.add_argument("--torch-python", help="an interpreter with PyTorch's libraries")
    parser.add_argument("--data-dir", type=Path, help="prepared TensorFlow Datasets")
    parser.add_argument("--newsgroups", type=Path, help="scikit-learn's folder of data sets")
    parser.add_argument("--cyanure", metavar="PYTHON", help="an interpreter with Cyanure")
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of all cores, on a busy CPU"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, no record")
    parser.add_argument("--draw", action="store_true", help="tables and pages of all records")
    parser.add_argument("--tune", choices=("heads", "rows"), help="candidates for kernels/")
    parser.add_argument("--compile", metavar="TARGET", help="h200 or b200")
    parser.add_argument("--json", action="store_true", help="print what was compiled as JSON")
    arguments = parser.parse_args()
    if arguments.minutes is None:
        arguments.minutes = math.inf if arguments.only or arguments.smoke else MINUTES
    arguments.only = arguments.only or list(PARTS if arguments.smoke else QUICK)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Measure what there is time for, and present it."""
    timing.processor_time = arguments.processor_time
    conditions = conditions_of(arguments)
    name = f"benchmark_{jax.devices()[0].device_kind.lower().replace(' ', '_')}"
    writes = not (conditions.smoke or arguments.steps)
    record = recorded(name) if writes else {}
    steps = in_turns({part: PARTS[part](conditions) for part in arguments.only})
    wanted = ((part, step) for part, step in steps if arguments.steps in step.title)
    late, failed = measured(wanted, record, name, 60 * arguments.minutes, writes=writes)
    present(name, json.loads(json.dumps(record, sort_keys=True)), writes=writes)
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
    return Conditions(
        platform=jax.default_backend(),
        smoke=arguments.smoke,
        torch=python,
        shapes=tuple(arguments.shapes),
        data_dir=arguments.data_dir,
        newsgroups=arguments.newsgroups,
        cyanure=arguments.cyanure,
    )


def measured(
    steps: Iterable[tuple[str, Step]],
    record: dict[str, Any],
    name: str,
    limit: float,
    *,
    writes: bool,
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
        if not added(record, part, step, keeps_going=writes):
            failed.append(title)
        elif writes:
            measure.write_record(name, record)
        took[part] = time.perf_counter() - START - start
    return late, failed


def in_turns(parts: dict[str, list[Step]]) -> Iterator[tuple[str, Step]]:
    """Yield the first step of each part, then the second of each, and so on."""
    for turn in zip_longest(*parts.values()):
        for part, step in zip(parts, turn, strict=True):
            if step is not None:
                yield part, step


def added(record: dict[str, Any], part: str, step: Step, *, keeps_going: bool) -> bool:
    """Add a step to its part, which is new where an earlier run left it; return whether it ran."""
    try:
        entry = step.run()
    except Exception:  # the rest of the parts is still worth its time
        if not keeps_going:
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
    """Print the table, and write it and the figures beside the record."""
    text = table.rendered(record)
    print(f"\n{text}")
    if writes:
        (measure.RESULTS / f"{name}.md").write_text(text)
    if find_spec("matplotlib") is None:
        print("matplotlib is absent, and the figures are left out (--draw draws them elsewhere)")
        return
    from benchmarks import page, picture

    for module, path in ((page, f"{name}.png"), (picture, f"{name}_classes.png")):
        figure = module.draw(record)
        if writes and figure is not None:
            module.save(figure, measure.RESULTS / path)


if __name__ == "__main__":
    main()
