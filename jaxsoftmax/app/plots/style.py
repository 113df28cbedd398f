"""The style that all figures share: colors, sizes, names of ticks and numbers on axes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from jaxsoftmax.app.text import JOINERS, replace_unprintable, shorten

PALETTE = {
    "page": "#ffffff",
    "ink": "#22272e",
    "muted": "#68707b",
    "grid": "#dfe3e8",
    "blue": "#0a6ebd",
    "orange": "#cc5500",
}
"""The colors of all text and lines. The report gives each a second value for dark pages."""

BLUE, ORANGE = PALETTE["blue"], PALETTE["orange"]

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["ink"],
    "axes.edgecolor": PALETTE["muted"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PALETTE["page"],
    "grid.color": PALETTE["grid"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": PALETTE["muted"],
    "xtick.labelcolor": PALETTE["ink"],
    "ytick.color": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["ink"],
}

WIDTH = 4.6
"""The width of a figure in inches, at which letters are still readable on a phone."""

WIDE = 7.2
"""The width in inches of figures that need more room."""


@contextmanager
def new_figure(width: float, height: float, *, by_hand: bool = False) -> Iterator[Figure]:
    """Yield an empty figure in this module's style, whatever the style of the caller's session."""
    with matplotlib.style.context(["default", STYLE]):
        yield Figure(figsize=(width, height), layout=None if by_hand else "constrained")


def name_ticks(
    axis: Axis, ticks: Sequence[int], names: Sequence[str], *, font_size: float, width: int = 18
) -> None:
    """Label some ticks of an axis with their names."""
    labels = [escape_math(shorten(names[tick], width)) for tick in ticks]
    axis.set_ticks(list(ticks), labels, fontsize=font_size)


def whole_numbers() -> MaxNLocator:
    """Return a locator of ticks at epochs, of which there may be one."""
    return MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def scale_losses(axes: Axes) -> None:
    """Use a log scale where losses span over two decades, and numbers without a common factor."""
    losses = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    losses = losses[np.isfinite(losses)]
    if losses.size and 0 < 100 * losses.min() < losses.max():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(format_number))


def blue_orange_image(is_blue: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return an image `[..., 4]`, blue where `is_blue` and orange elsewhere."""
    image = np.empty((*opacity.shape, 4), np.float32)
    image[..., :3] = np.where(np.asarray(is_blue)[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    image[..., 3] = np.clip(opacity, 0, 1)
    return image


def format_number(value: float, _: int) -> str:
    """Format a number on an axis, with at most ten digits and a true minus."""
    return f"{value:,.10g}".replace("-", "−")


def format_power(value: float, _: int) -> str:
    """Format a power of ten: 0.01, 100, 10k, 1M, and others as 1e9."""
    exponent = round(math.log10(value))
    if exponent >= 9 or exponent < -3:
        return f"1e{exponent}".replace("-", "−")
    unit, factor = ("M", 1e6) if exponent >= 6 else ("k", 1e3) if exponent >= 4 else ("", 1)
    return f"{value / factor:g}{unit}"


def format_percent(value: float, _: int) -> str:
    """Format a share on an axis: 0.5 as 50%."""
    return f"{100 * value:.4g}%"


def escape_math(text: str) -> str:
    r"""Return text that matplotlib draws literally: no formula begins at `$`.

    Control characters are blanked. Joiners stay, because some scripts and emoji are written with
    them.
    """
    return replace_unprintable(text, keep="\n" + JOINERS).replace("$", r"\$")
