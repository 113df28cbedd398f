"""The tables of README.md, generated from the records, so that no number is typed by hand.

Command: `python experiments/tables.py`, seconds. It rewrites the text between each pair of markers
`<!-- NAME -->` and `<!-- end -->` in README.md; a test compares the two.
"""

import json
import re
from pathlib import Path
from typing import Any

import measure
from benchmarks.table import entries, markdown, ulps

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Rewrite README.md."""
    README.write_text(rendered(README.read_text()))


def rendered(text: str) -> str:
    """Return the text with new tables."""
    for name, table in TABLES.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        found = "\n".join(table())
        text, count = marked.subn(lambda match, found=found: match[1] + found + match[2], text)
        if count != 1:
            raise ValueError(f"README.md must hold <!-- {name} --> once, got {count}")
    return text


def record(name: str) -> dict[str, Any]:
    """Return a committed record."""
    return json.loads((measure.RESULTS / f"{name}.json").read_text())


def measured(part: str) -> dict[str, Any]:
    """Return what benchmark.py measured of a part on the CPU, in the order of its numbers."""
    return entries(record("benchmark_cpu"), part)


def exactness() -> list[str]:
    """Return the table of the largest errors in ulps, a column for each peer."""
    rows = []
    for name, entry in measured("exactness").items():
        errors = [entry["errors in ulps"][peer] for peer in PEERS]
        cells = (f"{ulps(error['value'])} / {ulps(error['gradient'])}" for error in errors)
        rows.append([name, *cells])
    return markdown(("float32 logits", *PEERS), rows)


def price() -> list[str]:
    """Return the table of times as multiples of Optax's, and temporary memory."""
    rows = []
    for name, found in measured("rows").items():
        # The baseline is this library's loss: a ratio is its time over Optax's.
        times, memory = found["ratios"]["optax"], found["temporary_bytes"]
        rows.append(
            [
                name.removeprefix("float32 "),
                f"{times['median']:.2f} ({times['lower']:.2f} to {times['upper']:.2f})",
                f"{memory[found['baseline']] / 1e6:.2f} MB",
                f"{memory['optax'] / 1e6:.2f} MB",
            ]
        )
    heads = ("logits", "time / Optax's, median (quartiles)", "temporary memory", "Optax's")
    return markdown(heads, rows)


def training() -> list[str]:
    """Return the table of milliseconds of an epoch, and of sweeps as multiples of fits."""
    (found,) = measured("epoch").values()
    seconds = {name: s["median"] for name, s in found["seconds"].items()}
    torch = f"torch {found['versions'].get('torch bare', '')}"
    named = {
        "train_epoch": "`train_epoch`, one compiled scan",
        "python loop": "Python loop over a jitted step with Optax's loss",
        "torch bare": f"{torch}, bare loop",
        "torch loader": f"{torch}, DataLoader",
    }
    rows = [
        [text, f"{seconds[name] / seconds['train_epoch']:.1f}"]
        for name, text in named.items()
        if name in seconds
    ]
    for models, timing in measured("sweep").items():
        ratio = 1 / timing["ratios"]["loop of fits"]["median"]
        rows.append([f"{models} fits one after the other, against one `sweep`", f"{ratio:.1f}"])
    return markdown(("median time", "times `train_epoch`'s or `sweep`'s"), rows)


def fused() -> list[str]:
    """Return the table of the scalar route's speed over its peers, and temporary memory."""
    peers = {"optax": "Optax, dense", "torch": "torch, dense", "torch fused": "torch, fused"}
    rows = []
    for name, found in measured("heads").items():
        shape, *parameters = name.removesuffix(" float32").split("/")
        memory, ratios = found["temporary_bytes"], found["ratios"]
        rows.append(
            [
                shape.replace("x", " x ") + (", w and bias alone" if parameters else ""),
                *(f"{1 / ratios[peer]['median']:.2f}" for peer in peers),
                *(f"{memory[part] / 1e6:,.0f} MB" for part in ("sum", "per example", "optax")),
            ]
        )
    heads = ("N x D x K", *peers.values(), "memory of the sum", "per example", "Optax")
    return markdown(heads, sorted(rows, key=lambda row: -int(row[0].split(" ")[0])))


def solver() -> list[str]:
    """Return the table of scikit-learn's stops, and `solve`'s speed to them and to its gap."""
    rows = []
    for part, text in {
        "mnist": "MNIST, 60,000 x 784, until it stops",
        "fashion_mnist": "Fashion-MNIST, its first 100 iterations",
        "newsgroups": "20 newsgroups, sparse 11,314 x 130,107, C = 100, until it stops",
        "documents": "synthetic documents of the same shape, until it stops",
    }.items():
        (found,) = measured(part).values()
        rows.append(
            [
                text,
                f"{found['scikit-learn above the optimum by at least']:.2%}",
                f"{found["times faster to scikit-learn's objective"]:.1f}",
                f"{found['certified gap']:.0e}",
                f"{1 / found['ratios']['scikit-learn']['median']:.1f}",
            ]
        )
    heads = ("scikit-learn's lbfgs on", "stops above the optimum by", "times as fast to there",
             "certified gap", "times as fast to that")  # fmt: skip
    return markdown(heads, rows)


def data_parallel() -> list[str]:
    """Return the table of times as multiples of Optax's, temporary memory, and collectives."""
    found = record("data_parallel_cpu")
    rows = []
    for name in sorted(found["seconds"], key=lambda name: (not name.startswith("optax"), name)):
        part = found[name]
        sent = ", ".join(f"{count} {kind}" for kind, count in sorted(part["collectives"].items()))
        memory = f"{part['temporary_bytes'] / 1e6:.0f} MB"
        rows.append([name, f"{part['times_optax']:.2f}", memory, sent])
    heads = ("program", "time / Optax's", "temporary memory of each device", "collectives")
    return markdown(heads, rows)


def main_job() -> list[str]:
    """Return the table of accuracies of the command's defaults."""
    rows = [
        [f"`{run['command']}`", f"{run['test']['accuracy']:.2%}", f"{run['test']['loss']:.3f}"]
        for run in record("main_job")["runs"].values()
    ]
    return markdown(("command", "test accuracy", "test loss"), sorted(rows, key=lambda row: row[1]))


def own_data() -> list[str]:
    """Return the commands with their output, the epochs abbreviated."""
    found = record("own_data")
    lines = ["```console"]
    for command, printed in found["commands"].items():
        lines += ["$ " + command.replace(" --drop", " \\\n    --drop")]
        shown = [line for line in printed.splitlines() if line]
        epochs = [i for i, line in enumerate(shown) if line.startswith("epoch ")]
        if epochs:
            shown[epochs[1] : epochs[-1]] = ["..."]
        lines += shown
    lines += ["$ head -2 families.csv", *found["families.csv"][:2]]
    return [*lines, "```"]


def language_model() -> list[str]:
    """Return the table of a language model's step with and without its logits."""
    found = record("language_model_cost")
    rows = []
    for name in ("Flax NNX", "Equinox"):
        memory, ratio = found[name]["temporary MB"], found[name][RATIO]
        cells = (f"{memory[head]:,.0f} MB" for head in ("without logits", "dense"))
        rows.append([name, *cells, f"{ratio:.1f}"])
    heads = ("16,384 words, 2,048 a step", "temporary memory", "with a dense head",
             "times as many words per second")  # fmt: skip
    return markdown(heads, rows)


def on_h200() -> list[str]:
    """Return the table of a large head's milliseconds and memory on an H200, by library."""
    found = record("h200_prototypes")
    ours, others = found[f"{H200_HEAD}, second run"], found[H200_HEAD]
    names = {
        "dense": "Optax, dense, logits in bfloat16",
        "dense, float32 logits": "Optax, dense, logits in float32",
        "sum": "`linear_cross_entropy_sum`",
        "sum, 128 MiB": "... within 128 MiB",
        "per example": "`linear_cross_entropy`",
        "per example, 128 MiB": "... within 128 MiB",
    }
    rows = [
        [text, f"{ours['milliseconds'][name]:.1f}", f"{ours['temporary MB'][name]:,.0f} MB"]
        for name, text in names.items()
    ]
    peers = {"torch": "torch {}, dense", "cut": "cut-cross-entropy {}",
             "tokamax": "tokamax {}, chunked", "liger": "Liger {}"}  # fmt: skip
    for name, text in peers.items():
        memory = others["temporary_bytes"].get(name)
        cell = "" if memory is None else f"{memory / 1e6:,.0f} MB"
        version = others["versions"][name]
        rows.append([text.format(version), f"{others['milliseconds'][name]:.1f}", cell])
    return markdown(("value and gradients, 2048 x 4096 x 128256", "ms", "temporary memory"), rows)


def features() -> list[str]:
    """Return the table of features: tried, or read in the source that the cell links to."""
    found = record("features")
    rows = []
    for feature in FEATURES:
        tried, read = found["tried"][feature], found["read"].get(feature, {})
        cells = {name: "yes" if has else "no" for name, has in tried.items()}
        cells |= {name: f"[{answer}]({source})" for name, (answer, source) in read.items()}
        rows.append([feature, *(cells.get(name, "") for name in LIBRARIES)])
    return markdown(("", *LIBRARIES), rows)


PEERS = ("jaxsoftmax", "optax", "jax.nn", "torch")
RATIO = "time of dense over time without logits"
LIBRARIES = ("jaxsoftmax", "Optax", "jax.nn", "scikit-learn", "torch", "Liger",
             "cut-cross-entropy", "tokamax", "jax-cce", "Cyanure")  # fmt: skip
FEATURES = (
    "a loss of 2.06e-09 is not 0 (float32)",
    "an ignored row has gradient 0, whatever it holds",
    "a label out of range has no other class's loss",
    "exact Hessians by `jax.hessian`",
    "a linear layer and its loss without the logits",
    "... with a softcap",
    "... with one loss per example",
    "a bound on the distance from a linear model's optimum",
    "temperature scaling",
    "losses of sequences (CTC)",
    "group and fused-lasso penalties",
)
H200_HEAD = "head, 2048 x 4096 x 128256"
TABLES = {
    "exactness": exactness,
    "price": price,
    "training": training,
    "language model": language_model,
    "fused": fused,
    "h200": on_h200,
    "data parallel": data_parallel,
    "solver": solver,
    "main job": main_job,
    "features": features,
    "own data": own_data,
}

if __name__ == "__main__":
    main()
