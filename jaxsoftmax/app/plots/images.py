"""Images in a grid with captions: templates of the classes, and mistakes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxsoftmax.app.plots.style import (
    WIDE,
    WIDTH,
    blue_orange_image,
    escape_math,
    new_figure,
)
from jaxsoftmax.app.text import shorten


def class_templates(w: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> Figure:
    """The weights of each class as an image that shows what the class responds to.

    For gray images, a bright pixel raises the score of a class where it is blue and lowers it where
    it is orange. For color images, gray is no weight, and any other color is the one that raises
    the score. All images have the same scale, centered at 0.

    Args:
        w: `[D, K]`.
        shape: the shape of an image, `(height, width)`, optionally followed by 1 or 3 channels.
        classes: K names.

    Returns:
        A figure with K images.

    Numerics:
        Weights that are all 0 are drawn as no color, or as gray.

    Raises:
        ValueError: if `shape` is not that of an image.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> len(plots.class_templates(np.eye(4, 3), (2, 2), ["a", "b", "c"]).axes[0].images)
        3
    """
    scale = float(np.max(np.abs(w))) or 1.0
    weights = [
        column.reshape(_pixel_shape(shape)) / scale for column in np.asarray(w, np.float32).T
    ]
    images = [
        (1 + weight) / 2 if weight.ndim == 3 else blue_orange_image(weight > 0, np.abs(weight))
        for weight in weights
    ]
    names = [shorten(name) for name in classes]
    return _draw_tiles(images, names, columns=5 if len(images) < 30 else 10)


def mistakes(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Images with captions below them.

    Args:
        images: `[N, height, width]`, optionally followed by 1 or 3 channels; gray images of any
            scale, color images from 0 to 1.
        captions: N captions of one or more lines, which are cut to the width of an image.

    Returns:
        A figure with N images.

    Numerics:
        Gray images are divided by the largest value of all of them; values outside 0 to 1 are
        clipped.

    Raises:
        ValueError: if the images have another number of channels.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import plots
        >>> len(plots.mistakes(np.ones((2, 8, 8)), ["3, read as 8", "1, read as 7"]).axes[0].texts)
        2
    """
    images = np.asarray(images, np.float32)
    images = images.reshape(len(images), *_pixel_shape(images.shape[1:]))
    if images.ndim == 3:
        images = images / (float(images.max(initial=0)) or 1.0)
    colored = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images]
    return _draw_tiles(colored, captions, columns=4)


def _pixel_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image without a single channel."""
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"shape: expected (height, width), optionally followed by 1 or 3 channels, got {shape}"
        )
    return shape[:2] if shape[2:] == (1,) else shape


TILE_GAP = 0.1
"""The gap between captioned images, in units of the width of an image."""


class _TileLayout(NamedTuple):
    """A grid of captioned images, in units of the width of an image.

    inches: the width of an image in inches. height: of an image. pitch: from one row to the next.
    font_size: of the captions, in points.
    """

    rows: int
    columns: int
    inches: float
    height: float
    pitch: float
    font_size: int

    @property
    def size(self) -> tuple[float, float]:
        """The width and the height of the grid."""
        return self.columns * (1 + TILE_GAP), self.rows * self.pitch

    @property
    def letters(self) -> int:
        """The number of letters in a line of a caption; a letter is about 0.6 font sizes wide."""
        return int(72 * self.inches / (0.6 * self.font_size))


def _lay_out_tiles(
    images: Sequence[np.ndarray], captions: Sequence[str], columns: int
) -> _TileLayout:
    columns = min(columns, max(len(images), 1))
    figure_width, font_size = (WIDTH, 8) if columns <= 5 else (WIDE, 6)
    inches = min(1.6, figure_width / (columns * (1 + TILE_GAP)))
    height = max((image.shape[0] / image.shape[1] for image in images), default=1)
    num_lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    line_height = 1.3 * font_size / 72 / inches
    return _TileLayout(
        rows=math.ceil(len(images) / columns),
        columns=columns,
        inches=inches,
        height=height,
        pitch=height + line_height * num_lines + 2 * TILE_GAP,
        font_size=font_size,
    )


def _draw_tiles(images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int) -> Figure:
    """Draw captioned images in rows, placed by hand on one set of axes."""
    layout = _lay_out_tiles(images, captions, columns)
    width, height = layout.size
    with new_figure(width * layout.inches, height * layout.inches, by_hand=True) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            _draw_tile(axes, layout, index, image, caption)
        axes.set(xlim=(-TILE_GAP / 2, width - TILE_GAP / 2), ylim=(height, 0))
    return figure


def _draw_tile(
    axes: Axes, layout: _TileLayout, index: int, image: np.ndarray, caption: str
) -> None:
    row, column = divmod(index, layout.columns)
    left, top = column * (1 + TILE_GAP), row * layout.pitch + TILE_GAP / 2
    bottom = top + layout.height
    axes.imshow(np.clip(image, 0, 1), interpolation="none", aspect="auto",
                extent=(left, left + 1, bottom, top))  # fmt: skip
    lines = [shorten(line, layout.letters) for line in caption.split("\n")]
    text = escape_math("\n".join(lines))
    axes.text(left, bottom + TILE_GAP / 3, text, va="top", fontsize=layout.font_size)
