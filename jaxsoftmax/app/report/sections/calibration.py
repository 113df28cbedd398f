"""Whether probabilities are frequencies, before and after calibration."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxsoftmax.app import evaluation, host_metrics, plots
from jaxsoftmax.app.data.dataset import Task
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, Table, Text, figure


def render(context: Context) -> Iterator[Element]:
    """Yield the reliability diagram of a classifier, and a table of its calibrations."""
    before, after = _reliability(context), None
    if before is None:
        return
    calibrations = context.run.calibration or {}
    temperature = calibrations.get("temperature", {})
    if "scale" in temperature:
        after = _reliability(context, temperature["scale"])
    output = "the predicted class" if context.task is Task.classes else "each label"
    yield figure(
        plots.reliability_diagram(before, after=after),
        name="reliability",
        label=f"Reliability diagram, calibration error {float(before.error):.3f}.",
        caption=f"Test examples: the probability of {output} against the frequency with which it "
        "is right, in bins with equal counts; thin lines are 95% intervals. Below the diagonal the "
        "probabilities are too high."
        + (" Calibrated: with the temperature below." if after is not None else ""),
    )
    yield from _tables(calibrations)


def _tables(calibrations: Mapping[str, Any]) -> Iterator[Element]:
    fitted = {name: method for name, method in calibrations.items() if "scale" in method}
    if fitted:
        yield _table(fitted)
    for name, method in calibrations.items():
        if "skipped" in method:
            yield Text(f"No {name} scaling: {method['skipped']}.", "muted")


def _table(fitted: Mapping[str, Any]) -> Table:
    columns = [(split, name) for split in ("validation", "test") for name in ("nll", "ece")]
    before = next(iter(fitted.values()))  # the metrics before calibration are those of any method
    rows = [
        ("as fitted", *(evaluation.format_metric(m, before[split][m][0]) for split, m in columns))
    ]
    for name, method in fitted.items():
        title = (
            f"temperature {1 / method['scale']:.3g}" if name == "temperature" else f"{name} scaling"
        )
        title += "" if method["converged"] else ", not determined by the data"
        rows.append(
            (title, *(evaluation.format_metric(m, method[split][m][1]) for split, m in columns))
        )
    headings = ("", *(f"{split} {m.upper()}" for split, m in columns))
    return Table("Calibrations fitted to the validation examples", headings, rows, "lrrrr")


def _reliability(context: Context, scale: float = 1.0) -> host_metrics.Reliability | None:
    """Return the reliability of the probabilities of all labels, or of the predicted class."""
    probabilities = context.compute_probabilities(scale)
    if probabilities is None:
        return None
    if context.task is Task.labels:
        return host_metrics.reliability(probabilities, context.targets)
    is_right = probabilities.argmax(1) == context.targets
    return host_metrics.reliability(probabilities.max(1), is_right)
