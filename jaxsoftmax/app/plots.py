"""Figures of a fit, each a matplotlib `Figure` of its own, for a notebook or for the report.

    learning_curves        loss and accuracy by epoch
    regularisation_curve   held-out loss by the strength of the penalty
    confusion_matrix       of true and predicted classes, readable from 2 to 100 of them
    reliability_diagram    probabilities against frequencies, before and after a calibration
    class_templates        the weights of a model of images, as images
    top_features           the features that weigh most for each class
    mistakes               images, with what was read into them
    residuals              predicted numbers against true ones

They are made without pyplot, so they have no state and no backend: `figure.savefig(path)` writes
one, and a notebook after `%matplotlib inline` shows one. Blue and orange, which the colour-blind
tell apart, mean right and wrong, or for and against. Heat maps vary the opacity of a colour rather
than the colour, so that they stand on a light page and on a dark one.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from jaxsoftmax.metrics import Reliability

# Every colour of text and lines. The report gives each a second value, for a dark page.
PALETTE = {
    "page": "#ffffff",
    "ink": "#22272e",
    "muted": "#68707b",
    "grid": "#dfe3e8",
    "blue": "#0a6ebd",
    "orange": "#cc5500",
}
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
WIDTH = 4.6  # inches; a phone shows that with letters that can still be read
WIDE = 7.2  # for what needs more

# Up to so many classes a confusion matrix has counts in its cells, and names on all its rows.
CELLS_WITH_COUNTS = 15
ROWS_WITH_NAMES = 40


def learning_curves(history: Mapping[str, np.ndarray]) -> Figure:
    """Loss and accuracy by epoch, of training and of validation data.

    The epoch of least validation loss, whose parameters a fit with patience keeps, is marked.

    Args:
        history: of `FitResult`, one number per epoch under "loss", and where there are such under
            "accuracy", "validation_loss", "validation_accuracy".

    Returns:
        A figure with one panel for the loss and one for the accuracy, if there is one.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> losses = {"loss": np.array([1.0, 0.5]), "validation_loss": np.array([1.1, 0.7])}
        >>> len(plots.learning_curves(losses).axes)
        1
    """
    panels = [name for name in ("loss", "accuracy") if name in history]
    with _figure(WIDTH, 0.4 + 2.1 * len(panels)) as figure:
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(column, panels, strict=True):
            _curve(axes, history[name], "training", ORANGE)
            if f"validation_{name}" in history:
                _curve(axes, history[f"validation_{name}"], "validation", BLUE)
                _mark_best(axes, history, name)
            axes.set_title(name)
        _scale_losses(column[0])
        if "accuracy" in panels:
            column[-1].yaxis.set_major_formatter(FuncFormatter(_percent))
        column[0].legend(loc="best")
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def regularisation_curve(C: ArrayLike, loss: ArrayLike, *, error: ArrayLike) -> Figure:
    """Held-out loss against the inverse strength of the penalty.

    Args:
        C: `[P]`, rising.
        loss: of held-out examples, `[P]`; the least is marked.
        error: its standard error, `[P]`.

    Returns:
        A figure.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.regularisation_curve([0.1, 1, 10], [2, 1, 1.5], error=[0.1, 0.1, 0.2])
        >>> len(figure.axes)
        1
    """
    strengths, losses, errors = (np.asarray(a, float) for a in (C, loss, error))
    with _figure(WIDTH, 2.6) as figure:
        axes = figure.subplots()
        axes.fill_between(strengths, losses - errors, losses + errors, color=BLUE, alpha=0.2)
        axes.plot(strengths, losses, color=BLUE, marker="o", markersize=3)
        if np.isfinite(losses).any():
            best = int(np.nanargmin(losses))
            axes.plot(strengths[best], losses[best], "o", color=ORANGE, label="least")
            axes.legend(loc="best")
        axes.set_xscale("log")
        _scale_losses(axes)
        axes.set_xlabel("C, weaker penalties to the right")
        axes.set_title("held-out loss")
    return figure


def _curve(axes: Axes, values: np.ndarray, label: str, color: str) -> None:
    epochs = np.arange(1, len(values) + 1)
    alone = "o" if len(values) == 1 else ""  # which no line would show
    axes.plot(epochs, values, label=label, color=color, marker=alone)


def _scale_losses(axes: Axes) -> None:
    """Logarithms where losses go over two decades; numbers in full, without powers of ten aside."""
    losses = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    losses = losses[np.isfinite(losses)]
    if losses.size and 0 < 100 * losses.min() < losses.max():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_number))


def _mark_best(axes: Axes, history: Mapping[str, np.ndarray], name: str) -> None:
    losses = np.asarray(history.get("validation_loss", ()))
    if not np.isfinite(losses).any():
        return
    best = int(np.nanargmin(losses))
    axes.plot(
        best + 1,
        history[f"validation_{name}"][best],
        "o",
        color=BLUE,
        label=f"least validation loss, epoch {best + 1}",
    )


def most_confused(counts: np.ndarray, *, limit: int) -> list[tuple[int, int]]:
    """Find the largest cells beside the diagonal of a confusion matrix.

    Args:
        counts: of `metrics.confusion_matrix`, `[K, K]`.
        limit: how many at most.

    Returns:
        Pairs of a true class and the class that was predicted, the largest count first; those of
        count 0 are left out.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> plots.most_confused(np.array([[5, 1, 0], [3, 5, 0], [0, 0, 5]]), limit=9)
        [(1, 0), (0, 1)]
    """
    beside = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-beside, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order[beside.ravel()[order] > 0], beside.shape)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Examples of each true class (row) by predicted class (column).

    Blue, on the diagonal, is the share of the class that was found; orange the share that was
    taken for another, on a scale of its own by square roots, so that rare mistakes show. Up to 15
    classes the counts stand in the cells, and up to 40 all names stand beside; of more classes
    the pairs that are confused most often are circled and named.

    Args:
        counts: of `metrics.confusion_matrix`, `[K, K]`.
        classes: K names.

    Returns:
        A figure with the matrix and the keys of its two colours.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.confusion_matrix(np.array([[8, 2], [1, 9]]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['8', '2', '1', '9']
    """
    counts, size = np.asarray(counts), len(classes)
    totals = counts.sum(1, keepdims=True)
    share = counts / np.where(totals == 0, 1, totals)
    diagonal = np.eye(size, dtype=bool)
    worst = float(np.max(share, where=~diagonal, initial=0))
    opacity = np.where(diagonal, share, np.sqrt(share / (worst or 1)))
    width = WIDTH if size <= CELLS_WITH_COUNTS else WIDE
    with _figure(width, width + 0.4) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=(width, 0.12), width_ratios=(1, 0.1, 1))
        axes = figure.add_subplot(grid[0, :])
        axes.imshow(_two_colours(diagonal, opacity), interpolation="none")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.grid(visible=False)
        if size <= ROWS_WITH_NAMES:
            for between in np.arange(size - 1) + 0.5:
                axes.axhline(between, color=PALETTE["grid"], linewidth=0.5)
                axes.axvline(between, color=PALETTE["grid"], linewidth=0.5)
        _name_classes(axes, counts, classes)
        if size <= CELLS_WITH_COUNTS:
            _write_counts(axes, counts, opacity)
        steps = np.linspace(0, 1, 128)[None]
        _key(figure.add_subplot(grid[1, 0]), steps, True, 1.0, "found")
        if worst:
            _key(figure.add_subplot(grid[1, 2]), np.sqrt(steps), False, worst, "mistaken")
    return figure


def _name_classes(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    size = len(classes)
    rows = columns = set(range(size))
    if size > ROWS_WITH_NAMES:
        pairs = most_confused(counts, limit=8)
        rows, columns = ({pair[side] for pair in pairs} for side in (0, 1))
        axes.plot(*np.array(pairs).reshape(-1, 2).T[::-1], "o", color=PALETTE["ink"],
                  markersize=9, markerfacecolor="none", markeredgewidth=1)  # fmt: skip
    letters = 9 if size <= CELLS_WITH_COUNTS else 7
    _name_ticks(axes.yaxis, _apart(rows, size), classes, size=letters)
    _name_ticks(axes.xaxis, _apart(columns, size), classes, size=letters)
    if max(len(shortened(classes[k])) for k in columns or {0}) > 3:
        axes.tick_params("x", labelrotation=90 if size > CELLS_WITH_COUNTS else 45)
        for label in axes.get_xticklabels():
            if size <= CELLS_WITH_COUNTS:
                label.set(ha="right", rotation_mode="anchor")


def _apart(indices: set[int], size: int) -> list[int]:
    """Those of the indices, in order, whose names do not run into the one before."""
    gap = size / 50
    kept: list[int] = []
    for index in sorted(indices):
        if not kept or index - kept[-1] >= gap:
            kept.append(index)
    return kept


def _write_counts(axes: Axes, counts: np.ndarray, opacity: np.ndarray) -> None:
    letters = 9 if len(counts) <= 10 else 7
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # On the full colour white can be read on every page; on a faint one what the page has.
            color = "#fffffe" if opacity[row, column] > 0.85 else PALETTE["ink"]
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=color,
                      fontsize=letters)  # fmt: skip


def _two_colours(first: np.ndarray | bool, opacity: np.ndarray) -> np.ndarray:
    """`[..., 4]`: blue where `first`, orange elsewhere, of the opacity given."""
    image = np.empty((*opacity.shape, 4), np.float32)
    image[..., :3] = np.where(np.asarray(first)[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    image[..., 3] = np.clip(opacity, 0, 1)
    return image


def _key(axes: Axes, opacity: np.ndarray, first: bool, top: float, title: str) -> None:
    image = _two_colours(first, opacity)
    axes.imshow(image, interpolation="none", aspect="auto", extent=(0, top, 0, 1))
    axes.set_title(title)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))


def reliability_diagram(before: Reliability, *, after: Reliability | None = None) -> Figure:
    """Frequencies against probabilities, and below how the probabilities are spread.

    The lower panel has the share of the examples up to each probability, with a mark where each bin
    ends. Above, a calibrated model's points lie on the diagonal. Each has its 95 % interval
    (Wilson's), which says whether a distance is more than chance.

    Args:
        before: of `metrics.expected_calibration_error` or `metrics.reliability`.
        after: the same of calibrated probabilities.

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
    with _figure(WIDTH, 5.0) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle="--")
        drawn = [("as fitted", before, ORANGE, "o")]
        if after is not None:
            drawn.append(("calibrated", after, BLUE, "s"))
        for name, result, color, marker in drawn:
            _points(upper, lower, result, f"{name}, ECE {float(result.error):.3f}", color, marker)
        upper.set(ylabel="frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.legend(loc="upper left")
        lower.set(xlabel="probability", ylabel="examples up to", ylim=(-0.05, 1.05))
        for axis in (upper.yaxis, lower.xaxis, lower.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
        lower.set_yticks([0, 0.5, 1])
    return figure


def _points(
    upper: Axes, lower: Axes, result: Reliability, label: str, color: str, marker: str
) -> None:
    counts = np.asarray(result.counts, float)
    full = counts > 0
    n, x, y = (np.asarray(a, float)[full] for a in (counts, result.confidence, result.accuracy))
    upper.vlines(x, *_wilson(y, n), color=color, alpha=0.5, linewidth=1.2)
    upper.plot(x, y, marker, color=color, label=label, markersize=6 if marker == "o" else 3.5)
    below = np.append(0, np.cumsum(counts)) / max(counts.sum(), 1)
    lower.plot(
        np.asarray(result.edges), below, f"{marker}-", color=color, linewidth=1, markersize=3
    )


def _wilson(share: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95 % interval of a share of `size` examples."""
    z = 1.96
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2)
    return middle - half, middle + half


def class_templates(w: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> Figure:
    """The weights of each class as an image: what a class looks for.

    Of grey images, blue raises the score of a class where a pixel is bright and orange lowers it.
    Of colour images, grey is no weight, and a colour is the one that raises the score. All share
    one scale, centred at 0.

    Args:
        w: `[D, K]`.
        shape: of an image, `(height, width)`, or with 1 or 3 channels after them.
        classes: K names.

    Returns:
        A figure with K images.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> len(plots.class_templates(np.eye(4, 3), (2, 2), ["a", "b", "c"]).axes[0].images)
        3
    """
    scale = float(np.max(np.abs(w))) or 1.0
    weights = [column.reshape(_pixels(shape)) / scale for column in np.asarray(w, np.float32).T]
    images = [
        (1 + each) / 2 if each.ndim == 3 else _two_colours(each > 0, np.abs(each))
        for each in weights
    ]
    names = [shortened(name) for name in classes]
    return _tiles(images, names, across=5 if len(images) < 30 else 10)


def mistakes(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Images with a few words below each.

    Args:
        images: `[N, height, width]`, or with 1 or 3 channels after; grey ones of any scale, colour
            ones from 0 to 1.
        captions: of one or more lines, which are cut to the width of an image.

    Returns:
        A figure with N images.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> len(plots.mistakes(np.ones((2, 8, 8)), ["3, read as 8", "1, read as 7"]).axes[0].texts)
        2
    """
    images = np.asarray(images, np.float32)
    images = images.reshape(len(images), *_pixels(images.shape[1:]))
    if images.ndim == 3:
        images = images / (float(images.max(initial=0)) or 1.0)
    tiles = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images]
    return _tiles(tiles, captions, across=4)


def _pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"shape: expected (height, width), with 1 or 3 channels after or without, got {shape}"
        )
    return shape[:2] if shape[2:] == (1,) else shape


def _tiles(images: Sequence[np.ndarray], captions: Sequence[str], *, across: int) -> Figure:
    """Images in rows, each 1 wide, with captions below; placed by hand, as one set of axes."""
    across = min(across, max(len(images), 1))
    gap, letters = 0.1, 8 if across <= 5 else 6
    inches = min(1.6, (WIDTH if across <= 5 else WIDE) / (across * (1 + gap)))
    room = int(72 * inches / (0.6 * letters))  # letters are about 0.6 of their height wide
    captions = ["\n".join(shortened(c, room) for c in each.split("\n")) for each in captions]
    line = 1.3 * letters / 72 / inches
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    height = max((image.shape[0] / image.shape[1] for image in images), default=1)
    pitch = height + line * lines + 2 * gap
    rows = math.ceil(len(images) / across)
    size = across * (1 + gap), rows * pitch
    with _figure(size[0] * inches, size[1] * inches, by_hand=True) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-gap / 2, size[0] - gap / 2), ylim=(size[1], 0))
        axes.axis("off")
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            row, column = divmod(index, across)
            left, top = column * (1 + gap), row * pitch + gap / 2
            axes.imshow(np.clip(image, 0, 1), interpolation="none", aspect="auto",
                        extent=(left, left + 1, top + height, top))  # fmt: skip
            axes.text(left, top + height + gap / 3, _plain(caption), va="top", fontsize=letters)
        axes.set(xlim=(-gap / 2, size[0] - gap / 2), ylim=(size[1], 0))
    return figure


def top_features(
    w: np.ndarray, columns: Sequence[str], classes: Sequence[str], *, limit: int = 6
) -> Figure:
    """The features of largest weight for each class, one panel a class, all of one scale.

    Blue raises the score of the class, orange lowers it. Weights can be compared where features
    have one scale, as standardised ones do.

    Args:
        w: `[D, K]`.
        columns: the names of the D features.
        classes: K names.
        limit: how many features a class.

    Returns:
        A figure with K panels.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> w = np.array([[1.0], [-3.0], [0.5]])
        >>> axes, = plots.top_features(w, ["width", "height", "age"], ["tall"], limit=2).axes
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['height', 'width']
    """
    w = np.asarray(w)
    across, shown = min(2, len(classes)), min(limit, len(columns))
    rows = math.ceil(len(classes) / across)
    with _figure(WIDTH, rows * (0.55 + 0.19 * shown) + 0.2) as figure:
        panels = figure.subplots(rows, across, sharex=True, squeeze=False).ravel()
        for axes, weights, name in zip(panels, w.T, classes, strict=False):
            chosen = np.argsort(-np.abs(weights), kind="stable")[:shown]
            colours = [BLUE if weight > 0 else ORANGE for weight in weights[chosen]]
            axes.barh(np.arange(shown), weights[chosen], color=colours, height=0.7)
            axes.axvline(0, color=PALETTE["muted"], linewidth=0.8)
            axes.set_title(_plain(shortened(name, 32 // across)), fontweight="bold")
            names = [columns[index] for index in chosen]
            _name_ticks(axes.yaxis, range(shown), names, size=8, width=28 // across)
            axes.invert_yaxis()
            axes.tick_params("y", length=0)
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(2))
            axes.xaxis.set_major_formatter(FuncFormatter(_number))
        for axes in panels[len(classes) :]:
            axes.remove()
        for axes in panels[max(len(classes) - across, 0) : len(classes)]:
            axes.set_xlabel("weight")
            axes.tick_params("x", labelbottom=True)
    return figure


def residuals(
    predicted: np.ndarray, targets: np.ndarray, names: Sequence[str], *, limit: int = 1000
) -> Figure:
    """Predicted numbers against true ones, and how the differences are spread.

    Args:
        predicted: `[N, K]`, or `[N]` for one number.
        targets: true numbers, of the same shape.
        names: of the K numbers.
        limit: of the points drawn for each, spread evenly over the examples.

    Returns:
        A figure with two panels a number.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> figure = plots.residuals(np.array([1.0, 2.0]), np.array([1.1, 2.2]), ["price"])
        >>> [axes.get_title("left") for axes in figure.axes]
        ['price', 'predicted less true']
    """
    rows = len(names)
    predicted, targets = (np.asarray(a, float).reshape(-1, rows) for a in (predicted, targets))
    chosen = np.linspace(0, len(targets) - 1, min(limit, len(targets))).astype(int)
    with _figure(WIDTH, 2.6 * rows) as figure:
        for (left, right), name, z, t in zip(
            figure.subplots(rows, 2, squeeze=False), names, predicted.T, targets.T, strict=True
        ):
            ends = [min(z.min(), t.min()), max(z.max(), t.max())]
            left.plot(ends, ends, color=PALETTE["muted"], linewidth=1, linestyle="--")
            left.plot(t[chosen], z[chosen], ".", color=BLUE, alpha=0.4, markersize=4)
            left.set_title(_plain(shortened(name)), fontweight="bold")
            left.set(xlabel="true", ylabel="predicted")
            right.hist(z - t, bins="auto" if len(t) < 10_000 else 100, color=BLUE)
            right.axvline(0, color=PALETTE["muted"], linewidth=1, linestyle="--")
            right.set_title("predicted less true")
            right.set(xlabel="residual", ylabel="examples")
            for axis in (left.xaxis, left.yaxis, right.xaxis):
                axis.set_major_locator(MaxNLocator(3))
                axis.set_major_formatter(FuncFormatter(_number))
    return figure


# -- What they share --


def shortened(name: str, width: int = 18) -> str:
    """Put a name on one line and cut it to so many letters.

    Args:
        name: any text.
        width: how many letters at most; a capital counts more than one, and a Chinese letter two.

    Returns:
        The name, with "…" for what is cut away, or "(blank)".

    Example:
        >>> from jaxsoftmax.app import plots
        >>> plots.shortened("number of bedrooms in the house")
        'number of bedroom…'
    """
    name, used = " ".join(name.split()) or "(blank)", 0.0
    for index, letter in enumerate(name):
        wide = unicodedata.east_asian_width(letter) in "WF"
        used += 2 if wide else 1.4 if letter.isupper() else 1
        if used > width:
            return name[: index - 1].rstrip() + "…"
    return name


@contextmanager
def _figure(width: float, height: float, *, by_hand: bool = False) -> Iterator[Figure]:
    """Yield an empty figure in our style, whatever the style of the caller's session."""
    with matplotlib.style.context(["default", STYLE]):
        yield Figure(figsize=(width, height), layout=None if by_hand else "constrained")


def _name_ticks(
    axis: Axis, places: Sequence[int], names: Sequence[str], *, size: float, width: int = 18
) -> None:
    """Write the names of some places of an axis at them."""
    shown = [_plain(shortened(names[place], width)) for place in places]
    axis.set_ticks(list(places), shown, fontsize=size)


def _number(value: float, _: int) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.4g}%"


def _plain(text: str) -> str:
    r"""Text that matplotlib writes as it is: `$` begins no formula, and control letters are gone.

    Joiners are kept, as some scripts and emoji are written with them.
    """
    shown = (c if c.isprintable() or c in "\n\u200c\u200d" else " " for c in text)
    return "".join(shown).replace("$", r"\$")
