"""The table of a record, as Markdown: what each function reaches, beside its ceilings and peers."""

import re
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any


def rendered(record: dict[str, Any]) -> str:
    """Return the page of tables."""
    lines = [f"# {heading(record)}", ""]
    for title, found in tables(record).items():
        lines += [f"## {title}", "", *found, ""]
    return "\n".join(lines)


def heading(record: dict[str, Any]) -> str:
    """Return the device, and the conditions of the parts: versions and days."""
    environments = [part["environment"] for part in parts(record).values()]
    first = environments[0]
    device = first["cpu"] if first["platform"] == "cpu" else first["device"]
    cores = f", {first['cores']} cores" if first["platform"] == "cpu" else ""
    versions = sorted({f"jax {e['versions']['jax']}" for e in environments})
    days = sorted({part["run"][:10] for part in parts(record).values()})
    days = list(dict.fromkeys((days[0], days[-1])))
    return f"{device}{cores}: {' and '.join(versions)}, {' to '.join(days)}"


def parts(record: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a record, without what is said of all."""
    return {name: part for name, part in record.items() if "found" in (part or {})}


def entries(record: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a part, if it was measured, in the order of their numbers."""
    found = record.get(part, {}).get("found", {})
    return {name: found[name] for name in sorted(found, key=by_numbers)}


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that orders names by the numbers in them."""
    parts = re.findall(r"[\d,]*\d|\D+", name)
    return [(int(p.replace(",", "")), "") if p[-1].isdigit() else (-1, p) for p in parts]


def programs(entry: dict[str, Any]) -> list[str]:
    """Return the names of an entry's programs, the one that is compared with the others first."""
    return sorted(entry["seconds"], key=lambda name: (name != entry["baseline"], name))


def tables(record: dict[str, Any]) -> dict[str, list[str]]:
    """Return the lines of each table that has rows."""
    found = {
        "Ceilings": markdown(("", "rate"), ceilings(record)),
        "Linear heads, N x D x K: value and gradients": markdown(TIMED, heads(record, "heads")),
        "Heads with several labels an example": markdown(TIMED, heads(record, "sigmoid")),
        "Heads with a z-loss": markdown(TIMED, heads(record, "z_loss")),
        "Logits that exist: value and gradient": markdown(ROWS, rows(record)),
        "Memory by the number of classes": markdown(GROWING, growing(record)),
        "Errors of loss / gradient, units in the last place": exactness(record),
        "Epoch, solver and path": markdown(("", "ms", "times the first"), others(record)),
        "A certified optimum, and where scikit-learn stops": markdown(OPTIMA, optima(record)),
        "Certified beside Cyanure, which stops at a duality gap": markdown(
            CERTIFIED, beside_cyanure(record)
        ),
        summary(record, "grid"): markdown(GRID, grid(record, "grid")),
        f"Drawn at random: {summary(record, 'drawn')}": markdown(GRID, grid(record, "drawn")),
        "The default beside dense logits": markdown(
            ("N x D x K", "time / dense", "more temporary memory"), default(record)
        ),
    }
    return {title: lines for title, lines in found.items() if len(lines) > 2}


TIMED = ("", "ms", "times the first's", "TFLOP/s", "share of the products", "temporary memory")
ROWS = ("", "us", "times the first's", "share of a copy's rate", "temporary memory")
GROWING = ("classes", "per example", "the sum", "dense logits")
OPTIMA = ("", "lbfgs, s", "above the optimum by", "to there, s", "certified gap", "to that, s")
CERTIFIED = ("", "processor s", "certified gap", "Cyanure's", "its gap", "its objective - ours")
GRID = ("ms of a core", "solve", "lbfgs", "newton-cholesky", "newton-cg", "solve over the fastest")
# Of the parts of the solver.
NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "newsgroups": "20 newsgroups",
    "documents": "synthetic documents",
}


def ceilings(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rates of copy and products."""
    for name, entry in entries(record, "ceilings").items():
        if "bytes per second" in entry:
            yield [name, f"{entry['bytes per second'] / 1e9:,.1f} GB/s"]
        else:
            yield [name, f"{entry['operations per second'] / 1e12:,.3g} TFLOP/s"]


def heads(record: dict[str, Any], part: str) -> Iterator[list[str]]:
    """Yield a line for each program of each head."""
    for shape, entry in entries(record, part).items():
        rates, shares = entry["operations per second"], entry["share of the products"]
        for name in programs(entry):
            yield [
                f"{shape.replace('x', ' x ', 2)}: {name}",
                f"{1e3 * entry['seconds'][name]['median']:,.2f}",
                times(entry, name),
                f"{rates[name] / 1e12:,.3g}" if name in rates else "",
                f"{shares[name]:.2f}" if name in shares else "",
                megabytes(entry, name),
            ]


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a line for each program over logits."""
    for shape, entry in (entries(record, "rows") | entries(record, "siblings")).items():
        for name in programs(entry):
            share = entry.get("share of the copy", {}).get(name)
            yield [
                f"{shape}: {name}",
                f"{1e6 * entry['seconds'][name]['median']:,.0f}",
                times(entry, name),
                "" if share is None else f"{share:.2f}",
                megabytes(entry, name),
            ]


def growing(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the memory of heads with more and more classes."""
    for classes, entry in entries(record, "heads_by_classes").items():
        cells = (megabytes(entry, name) for name in ("per example", "sum", "optax"))
        yield [f"{int(classes):,}", *cells]


def exactness(record: dict[str, Any]) -> list[str]:
    """Return the table of errors, a column for each peer."""
    found = entries(record, "exactness")
    peers = dict.fromkeys(peer for e in found.values() for peer in e["errors in ulps"])
    rows = ([name, *(both(e["errors in ulps"].get(p)) for p in peers)] for name, e in found.items())
    return markdown(("", *peers), rows)


def both(errors: dict[str, float] | None) -> str:
    """Return the errors of value and gradient, if there are any."""
    return f"{ulps(errors['value'])} / {ulps(errors['gradient'])}" if errors else ""


def ulps(error: float) -> str:
    """Format an error, or "all" where it is the whole of a number with 24 bits."""
    return "all" if error > 2**23 else f"{error:,.1f}"


def others(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the ways of an epoch, the sweeps, and the fits to a certified gap."""
    titles = {
        "epoch": "epoch of {}",
        "sweep": "{} fits",
        "solver": "{} to a gap of 1e-3",
        "path": "{}",
    }
    for part, title in titles.items():
        for name, entry in entries(record, part).items():
            for way in programs(entry) if "seconds" in entry else ():
                milliseconds = f"{1e3 * entry['seconds'][way]['median']:,.1f}"
                yield [f"{title.format(name)}: {way}", milliseconds, times(entry, way)]


def optima(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield certified fits, and how far scikit-learn stops from the optimum."""
    for part, text in NAMES.items():
        for shape, entry in entries(record, part).items():
            yield [
                f"{text}, {shape.replace('x', ' x ')}",
                f"{entry['seconds']['scikit-learn']['median']:.1f}",
                f"{entry['scikit-learn above the optimum by at least']:.2%}",
                f"{entry["seconds to scikit-learn's objective"]:.1f}",
                f"{entry['certified gap']:.0e}",
                f"{entry['seconds']['solve']['median']:.1f}",
            ]
    for name, entry in entries(record, "small_sets").items():
        theirs = entry["seconds"].get("scikit-learn")
        yield [
            name,
            f"{theirs['median']:.4f}" if theirs else "",
            f"{entry['scikit-learn above the optimum']:.2%}" if theirs else "",
            "",
            f"{entry['certified gap']:.0e}",
            f"{entry['seconds']['solve']['median']:.4f}",
        ]


def beside_cyanure(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield processor seconds and gaps of both, and the relative distance of the objectives."""
    for name, entry in entries(record, "cyanure").items():
        cells = (
            (f"{entry['processor seconds'][way]:.3g}", f"{entry['gap'][way]:.0e}")
            for way in ("solve", "Cyanure")
        )
        over = f"{entry["Cyanure's objective over ours, less 1"]:+.0e}"
        first, *more = name.split(", ")
        text = ", ".join((NAMES.get(first, first), *more))
        yield [text, *(cell for pair in cells for cell in pair), over]


def summary(record: dict[str, Any], part: str) -> str:
    """Return the title of a table of problems, which says how many are what."""
    ratios = [entry["over the fastest"] for entry in entries(record, part).values()]
    certified = sum(entry["converged"] for entry in entries(record, part).values())
    return (
        f"{certified} of {len(ratios)} problems certified, {sum(r < 1 for r in ratios)} faster "
        f"than all solvers of scikit-learn, {sum(r <= 1.2 for r in ratios)} within 1.2, in the "
        f"median {median(ratios or [0.0]):.2f} of the fastest"
    )


def grid(record: dict[str, Any], part: str) -> Iterator[list[str]]:
    """Yield the processor milliseconds of each problem."""
    for name, entry in entries(record, part).items():
        seconds = entry["scikit-learn processor seconds"]
        cells = (f"{1e3 * seconds[way]:.1f}" if way in seconds else "" for way in GRID[2:5])
        ratio = entry["over the fastest"]
        yield [
            name,
            f"{1e3 * entry['processor seconds']:.1f}",
            *cells,
            f"{ratio:.2f}" if seconds else "none gets there",
        ]


def default(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield each shape of the default."""
    for group in entries(record, "default").values():
        for shape, entry in group.items():
            ratio = entry["ratios"]["optax"]["median"]
            more = f"{entry['excess_bytes'] / 1e6:+,.0f} MB"
            yield [shape.replace("x", " x ", 2), f"{ratio:.2f}", more]


def times(entry: dict[str, Any], name: str) -> str:
    """Return the time of a program as a multiple of the first one's."""
    return f"{1 / entry['ratios'][name]['median']:.2f}"


def megabytes(entry: dict[str, Any], name: str) -> str:
    """Return the temporary memory of a program, if XLA counted it."""
    size = entry.get("temporary_bytes", {}).get(name)
    return "" if size is None else f"{size / 1e6:,.1f} MB"


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return a Markdown table; numbers are aligned right."""
    heads = list(heads)
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (heads, rule, *rows)]
