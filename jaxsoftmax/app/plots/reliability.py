"""The reliability diagram: frequencies against probabilities."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxsoftmax.app.host_metrics import Reliability
from jaxsoftmax.app.plots.style import BLUE, ORANGE, PALETTE, WIDTH, format_percent, new_figure


def reliability_diagram(before: Reliability, *, after: Reliability | None = None) -> Figure:
    """Frequencies against probabilities and, below, the distribution of the probabilities.

    In the upper panel the points of a calibrated model lie on the diagonal. Each point has its 95%
    interval (Wilson's), which shows whether its distance from the diagonal exceeds chance. The
    lower panel has the share of the examples up to each probability, with a mark at the end of each
    bin.

    Args:
        before: the result of `metrics.expected_calibration_error`, `metrics.reliability` or
            `host_metrics.reliability`.
        after: the same for calibrated probabilities.

    Returns:
        A figure with two panels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> from jaxsoftmax.app import plots
        >>> probabilities, targets = jnp.array([0.2, 0.4, 0.9]), jnp.array([0, 1, 1])
        >>> figure = plots.reliability_diagram(metrics.reliability(probabilities, targets, bins=3))
        >>> figure.axes[0].get_ylabel()
        'frequency'

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    with new_figure(WIDTH, 5.0) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle="--")
        series = [("as fitted", before, ORANGE, "o")]
        if after is not None:
            series.append(("calibrated", after, BLUE, "s"))
        for name, result, color, marker in series:
            label = f"{name}, ECE {float(result.error):.3f}"
            _draw_frequencies(upper, result, label, color, marker)
            _draw_distribution(lower, result, color, marker)
        upper.set(ylabel="frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.legend(loc="upper left")
        lower.set(xlabel="probability", ylabel="cumulative", ylim=(-0.05, 1.05))
        for axis in (upper.yaxis, lower.xaxis, lower.yaxis):
            axis.set_major_formatter(FuncFormatter(format_percent))
        lower.set_yticks([0, 0.5, 1])
    return figure


def _draw_frequencies(axes: Axes, result: Reliability, label: str, color: str, marker: str) -> None:
    arrays = (result.counts, result.confidence, result.accuracy)
    counts, confidence, frequency = (np.asarray(a, float) for a in arrays)
    filled = counts > 0
    counts, confidence, frequency = counts[filled], confidence[filled], frequency[filled]
    axes.vlines(confidence, *_wilson(frequency, counts), color=color, alpha=0.5, linewidth=1.2)
    size = 6 if marker == "o" else 3.5
    axes.plot(confidence, frequency, marker, color=color, label=label, markersize=size)


def _draw_distribution(axes: Axes, result: Reliability, color: str, marker: str) -> None:
    counts = np.asarray(result.counts, float)
    cumulative = np.append(0, np.cumsum(counts)) / max(counts.sum(), 1)
    edges = np.asarray(result.edges)
    axes.plot(edges, cumulative, f"{marker}-", color=color, linewidth=1, markersize=3)


def _wilson(share: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95% interval of a share of `size` examples."""
    z = 1.96
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2)
    return middle - half, middle + half
