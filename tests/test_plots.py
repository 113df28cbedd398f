"""Figures show the numbers they were given, nothing is cut or runs into anything, and no state."""

import subprocess
import sys
import warnings

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from contents import ODD
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxsoftmax import metrics
from jaxsoftmax.app import plots
from jaxsoftmax.app.ranking_curves import RankingCurve, rank
from jaxsoftmax.app.text import shorten

pytestmark = pytest.mark.usefixtures("unoptimized")

LONG = ("number of bedrooms in the whole house", "NUMBER OF BEDROOMS IN THE HOUSE", *ODD)
HISTORY = {
    "loss": np.array([1.0, 0.5, 0.25, 0.2]),
    "accuracy": np.array([0.5, 0.8, 0.9, 0.95]),
    "validation_loss": np.array([1.1, 0.6, 0.55, 0.7]),
    "validation_accuracy": np.array([0.4, 0.7, 0.75, 0.74]),
}


def names(size: int) -> list[str]:
    return [*LONG, *(f"class {k}" for k in range(size))][:size]


def confusion(size: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(0.3, (size, size)) + np.diag(rng.poisson(20, size))


def reliability(size: int = 400, *, seed: int = 0) -> metrics.Reliability:
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=size)
    return metrics.reliability(jnp.asarray(p, jnp.float32), jnp.asarray(rng.uniform(size=size) < p))


def rankings(size: int) -> list[RankingCurve]:
    rng = np.random.default_rng(0)
    targets = rng.uniform(size=(size, 300)) < 0.3
    scores = targets * np.linspace(3, 1, size)[:, None] + rng.normal(size=targets.shape)
    return [rank(z, t) for z, t in zip(scores, targets, strict=True)]


def with_outliers() -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true numbers, one of which is far from all others."""
    true = np.random.default_rng(0).normal(10, 2, size=500)
    return np.where(np.arange(500) == 7, -927_904, true + np.sin(np.arange(500))), true


def over_decades() -> tuple[np.ndarray, np.ndarray]:
    true = np.geomspace(1, 1e6, 300)
    return np.where(np.arange(300) == 9, -1, true * 1.2), true


FIGURES = {
    "learning_curves": lambda: plots.learning_curves(HISTORY),
    "one epoch": lambda: plots.learning_curves({"loss": np.array([1.0])}),
    "diverged": lambda: plots.learning_curves({k: v * np.nan for k, v in HISTORY.items()}),
    "huge losses": lambda: plots.learning_curves({"loss": np.array([1e9, 1e5, 3.0, 2.0])}),
    **{
        f"confusion of {size}": lambda size=size: plots.confusion_matrix(
            confusion(size), names(size)
        )
        for size in (2, 10, 15, 16, 40, 41, 100)
    },
    "no mistakes": lambda: plots.confusion_matrix(np.diag(np.full(60, 7)), names(60)),
    "reliability": lambda: plots.reliability_diagram(reliability()),
    "before and after": lambda: plots.reliability_diagram(reliability(), after=reliability(seed=1)),
    "templates": lambda: plots.class_templates(np.eye(64, 20), (8, 8), names(20)),
    "a hundred templates": lambda: plots.class_templates(np.eye(48, 100), (4, 4, 3), names(100)),
    "one template": lambda: plots.class_templates(np.zeros((64, 1)), (8, 8, 1), ["yes against no"]),
    "mistakes": lambda: plots.mistakes(np.ones((12, 8, 6)), [f"{n}\nnot\n9%" for n in names(12)]),
    "top_features": lambda: plots.top_features(
        np.random.default_rng(0).normal(size=(20, 15)), names(20), names(15)
    ),
    "one score": lambda: plots.top_features(np.eye(3, 1), names(3), ["yes"], limit=15),
    "rankings": lambda: plots.ranking_curves(rankings(6), names(6)),
    "one ranking": lambda: plots.ranking_curves(rankings(1), ["yes"]),
    "compared intervals": lambda: plots.compare_intervals(
        [0.9, 0.8], [[0.85, 0.95], [0.7, 0.9]], names(2), title="accuracy", is_share=True
    ),
    "compared curves": lambda: plots.compare_curves(
        {name: np.linspace(1, k / 10, 9) for k, name in enumerate(names(10))}
    ),
    "thresholds": lambda: plots.threshold_curves(
        rankings(1)[0], np.linspace(1, 0, len(rankings(1)[0].thresholds)), LONG[0]
    ),
    "outliers": lambda: plots.residuals(*with_outliers(), ["price"]),
    "decades": lambda: plots.residuals(*over_decades(), ["price"]),
    "residuals": lambda: plots.residuals(
        np.random.default_rng(0).normal(size=(50, 3)) * [1, 1e6, 1e-6], np.zeros((50, 3)), names(3)
    ),
}


def drawn(figure: Figure) -> list[Text]:
    """Draw the figure, as when it is saved, and return every text that was really drawn."""
    renderer, texts = FigureCanvasAgg(figure).get_renderer(), []
    draw_text = renderer.draw_text

    def recording(*args: object, mtext: Text | None = None, **kwargs: object) -> None:
        texts.extend([mtext] if mtext else [])  # lines of a text of several come without it
        draw_text(*args, mtext=mtext, **kwargs)

    renderer.draw_text = recording
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.draw(renderer)
    return texts + [t for axes in figure.axes for t in axes.texts if "\n" in t.get_text()]


@pytest.fixture(scope="module", params=FIGURES.values(), ids=FIGURES.keys())
def page(request: pytest.FixtureRequest) -> tuple[Figure, list[Text]]:
    """A figure, drawn once, and its texts."""
    figure = request.param()
    return figure, drawn(figure)


def test_nothing_is_cut(page: tuple[Figure, list[Text]]) -> None:
    figure, texts = page
    assert texts
    whole = figure.bbox
    for text in texts:
        box = text.get_window_extent()
        inside = whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1
        inside = inside and whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1
        assert inside, f"{text.get_text()!r} at {box}, of {whole}"


def test_no_text_runs_into_another(page: tuple[Figure, list[Text]]) -> None:
    upright = [(t, t.get_window_extent()) for t in page[1] if t.get_rotation() % 90 == 0]
    for number, (text, box) in enumerate(upright):
        for other, another in upright[:number]:
            # A box has some air around its letters.
            width = min(box.x1, another.x1) - max(box.x0, another.x0)
            height = min(box.y1, another.y1) - max(box.y0, another.y0)
            apart = width <= 1 or height <= 3
            assert apart, f"{text.get_text()!r} and {other.get_text()!r}: {box}, {another}"


def test_not_empty(page: tuple[Figure, list[Text]]) -> None:
    pixels = np.asarray(page[0].canvas.buffer_rgba()).reshape(-1, 4)
    assert len(np.unique(pixels.view(np.uint32))) > 5


def test_only_colours_that_the_report_can_change(page: tuple[Figure, list[Text]]) -> None:
    """Text has the colours of the palette, which have a second value for dark pages."""
    known = {*plots.PALETTE.values(), "#fffffe"}
    assert {matplotlib.colors.to_hex(text.get_color()) for text in page[1]} <= known


def test_no_state_is_left() -> None:
    code = (
        "import sys, matplotlib, numpy as np; from jaxsoftmax.app import plots;"
        "names = set(matplotlib.rcParams) - {'backend'};"  # to ask for it imports pyplot
        "before = {name: matplotlib.rcParams[name] for name in names};"
        "plots.confusion_matrix(np.eye(3), 'abc');"
        "assert before == {name: matplotlib.rcParams[name] for name in names};"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_style_is_ours() -> None:
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "text.usetex": True}):
        figure = plots.learning_curves(HISTORY)
    assert (
        figure.axes[0].title.get_fontsize()
        == plots.learning_curves(HISTORY).axes[0].title.get_fontsize()
    )
    assert figure.axes[0].get_facecolor() == (0, 0, 0, 0)


# -- What each shows --


def test_learning_curves() -> None:
    upper, lower = plots.learning_curves(HISTORY).axes
    for axes, name in ((upper, "loss"), (lower, "accuracy")):
        training, validation, best = axes.lines
        np.testing.assert_array_equal(training.get_xydata(), np.c_[[1, 2, 3, 4], HISTORY[name]])
        np.testing.assert_array_equal(validation.get_ydata(), HISTORY[f"validation_{name}"])
        np.testing.assert_array_equal(best.get_xydata(), [[3, HISTORY[f"validation_{name}"][2]]])
    (legend,) = upper.figure.legends  # beside the curves, none of which it hides
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["training", "validation", "lowest validation loss, epoch 3"]
    assert upper.get_yscale() == "linear"
    assert FIGURES["huge losses"]().axes[0].get_yscale() == "log"


@pytest.mark.parametrize("epochs", [1, 2, 3, 50])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    (axes,) = plots.learning_curves({"loss": np.ones(epochs)}).axes
    ticks = axes.xaxis.get_major_locator()()
    assert len(ticks)
    assert (ticks == ticks.round()).all()


def test_learning_curves_of_numbers() -> None:
    (axes,) = plots.learning_curves(
        {"rmse": np.array([3.0, 2.0]), "validation_rmse": np.array([2.0, 2.5])}
    ).axes
    assert axes.get_title("left") == "root mean squared error"
    np.testing.assert_array_equal(axes.lines[-1].get_xydata(), [[1, 2.0]])


def test_confusion_matrix_counts_and_colours() -> None:
    counts = np.array([[8, 2, 0], [0, 5, 0], [1, 0, 0]])
    axes = plots.confusion_matrix(counts, ["a", "b", "c"]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    found = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert found == {(0, 0): "8", (0, 1): "2", (1, 1): "5", (2, 0): "1"}
    image = axes.images[0].get_array()
    np.testing.assert_allclose(np.diagonal(image[..., 3]), [0.8, 1, 0], rtol=1e-6)
    # The worst share, all of c, has full colour; the other the square root of its part of that.
    np.testing.assert_allclose([image[2, 0, 3], image[0, 1, 3]], [1, 0.2**0.5], rtol=1e-6)
    blue, orange = (matplotlib.colors.to_rgb(c) for c in (plots.BLUE, plots.ORANGE))
    np.testing.assert_allclose(image[0, 0, :3], blue, rtol=1e-6)
    np.testing.assert_allclose(image[0, 1, :3], orange, rtol=1e-6)


def luminance(color: np.ndarray) -> float:
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(
    ("paper", "ink"),
    [("#ffffff", plots.PALETTE["ink"]), ("#16191d", "#e4e7eb")],
    ids=["light", "dark"],
)
def test_counts_can_be_read_in_every_cell(paper: str, ink: str) -> None:
    """Contrast of 3, what WCAG asks of large print, at every share and on both pages."""
    shares = np.arange(0, 101, 5)
    right = [np.array([[n, 100 - n], [0, 100]]) for n in shares]
    wrong = [np.array([[0, 100, 0], [n, 100 - n, 0], [0, 0, 100]]) for n in shares]
    for counts in right + wrong:
        axes = plots.confusion_matrix(counts, "abc"[: len(counts)]).axes[0]
        for text in axes.texts:
            column, row = text.get_position()
            *color, opacity = axes.images[0].get_array()[row, column]
            behind = opacity * np.array(color) + (1 - opacity) * to_array(paper)
            letters = text.get_color().replace(plots.PALETTE["ink"], ink)
            bright, dim = sorted([luminance(to_array(letters)), luminance(behind)], reverse=True)
            assert (bright + 0.05) / (dim + 0.05) > 3, (counts, text)


def to_array(color: str) -> np.ndarray:
    return np.array(matplotlib.colors.to_rgb(color))


def test_a_hundred_classes_name_what_is_confused_most() -> None:
    counts = np.diag(np.full(100, 50))
    counts[7, 93], counts[41, 12], counts[40, 13], counts[3, 4] = 30, 20, 10, 1
    axes = plots.confusion_matrix(counts, [f"c{k}" for k in range(100)]).axes[0]
    assert not axes.texts
    # 40 and 41, 12 and 13 are nearer than their names are high: the first of them is named.
    assert [t.get_text() for t in axes.get_yticklabels()] == ["c3", "c7", "c40"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["c4", "c12", "c93"]
    circles = {tuple(point) for point in axes.lines[0].get_xydata().astype(int).tolist()}
    assert circles == {(93, 7), (12, 41), (13, 40), (4, 3)}


def test_most_confused() -> None:
    counts = confusion(30)
    pairs = plots.most_confused_pairs(counts, limit=12)
    everything = sorted(
        ((j, k) for j in range(30) for k in range(30) if j != k and counts[j, k]),
        key=lambda pair: (-counts[pair], pair),
    )
    assert pairs == everything[:12]
    assert plots.most_confused_pairs(np.eye(4), limit=3) == []


def test_reliability_diagram() -> None:
    result = reliability()
    upper, lower = plots.reliability_diagram(result, after=result).axes
    for points in upper.lines[1:]:
        np.testing.assert_array_equal(points.get_xdata(), result.confidence)
        np.testing.assert_array_equal(points.get_ydata(), result.accuracy)
    below = lower.lines[0]
    np.testing.assert_array_equal(below.get_xdata(), result.edges)
    np.testing.assert_allclose(
        below.get_ydata(), np.append(0, np.cumsum(result.counts)) / 400, rtol=1e-6
    )


def test_reliability_diagram_of_ties_has_no_empty_bins() -> None:
    result = metrics.reliability(jnp.array([0.5, 0.5, 0.5, 1.0]), jnp.array([1, 0, 0, 1]), bins=4)
    assert (result.counts == 0).any()
    figure = plots.reliability_diagram(result)
    drawn(figure)
    upper, _ = figure.axes
    np.testing.assert_allclose(upper.lines[1].get_xydata(), [[0.5, 1 / 3], [1, 1]], rtol=1e-6)


def test_intervals_are_wilsons() -> None:
    # Of 8 in 10: Wilson's interval in every table of it.
    result = metrics.Reliability(*map(np.array, (0.1, [0.7], [0.8], [10.0], [0.0, 1.0])))
    upper, _ = plots.reliability_diagram(result).axes
    np.testing.assert_allclose(
        upper.collections[0].get_segments()[0][:, 1], [0.4902, 0.9433], atol=1e-4
    )


def test_class_templates() -> None:
    w = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    first, second = plots.class_templates(w, (2, 2), ["a", "b"]).axes[0].images
    opacity = np.array([[0.5, 1], [0, 0]]), np.array([[0, 0], [0.5, 0.25]])
    for image, expected in zip((first, second), opacity, strict=True):
        np.testing.assert_allclose(image.get_array()[..., 3], expected)
    np.testing.assert_allclose(first.get_array()[0, 0, :3], to_array(plots.BLUE), rtol=1e-6)
    np.testing.assert_allclose(first.get_array()[0, 1, :3], to_array(plots.ORANGE), rtol=1e-6)


def test_class_templates_in_colour() -> None:
    w = np.zeros((12, 1))
    w[0], w[4] = 3, -3  # red of the first pixel, green of the second
    image = plots.class_templates(w, (2, 2, 3), ["a"]).axes[0].images[0].get_array()
    np.testing.assert_allclose(image[0], [[1, 0.5, 0.5], [0.5, 0, 0.5]])
    np.testing.assert_allclose(image[1], 0.5)


@pytest.mark.parametrize("shape", [(64,), (8, 8, 2), (4, 4, 2, 2)])
def test_only_images_have_templates(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape: expected \(height, width\)"):
        plots.class_templates(np.zeros((64, 2)), shape, ["a", "b"])


def test_top_features() -> None:
    w = np.array([[0.1, 2.0], [-3.0, 0.0], [1.0, -1.0]])
    left, right = plots.top_features(w, ["p", "q", "r"], ["a", "b"], limit=2).axes
    for axes, title, features, weights in (
        (left, "a", ["q", "r"], [-3, 1]),
        (right, "b", ["p", "r"], [2, -1]),
    ):
        assert axes.get_title("left") == title
        assert [t.get_text() for t in axes.get_yticklabels()] == features
        assert [bar.get_width() for bar in axes.patches] == weights
        colors = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in axes.patches]
        assert colors == [plots.BLUE if weight > 0 else plots.ORANGE for weight in weights]
    assert left.get_xlim() == right.get_xlim()


def test_mistakes_keep_colours_and_scale_greys() -> None:
    grey = plots.mistakes(np.array([[[0.0, 8.0], [16.0, 4.0]]]), ["x"]).axes[0].images[0]
    np.testing.assert_allclose(grey.get_array()[..., 0], [[0, 0.5], [1, 0.25]])
    colored = np.random.default_rng(0).uniform(0, 0.5, (1, 4, 5, 3))
    image = plots.mistakes(colored, ["x"]).axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), colored[0], rtol=1e-6)


def test_residuals_draw_points_over_all_examples() -> None:
    true = np.arange(5000.0)
    left, right = plots.residuals(true + 1, true, ["n"]).axes
    points = left.lines[1].get_xydata()
    assert len(points) == 1000
    assert points[0].tolist() == [0, 1]
    assert points[-1].tolist() == [4999, 5000]
    assert sum(bar.get_height() for bar in right.patches) == 5000


def test_an_outlier_does_not_squeeze_the_others() -> None:
    predicted, true = with_outliers()
    left, right = plots.residuals(predicted, true, ["price"]).axes
    for axes in (left.get_xlim(), left.get_ylim()):
        assert np.ptp(axes) < 3 * np.ptp(true)
    (cross,) = left.lines[2].get_xydata()
    np.testing.assert_allclose(cross, [true[7], left.get_ylim()[0]])
    assert left.texts[0].get_text() == "× 1 outside"
    assert right.get_xlabel() == "residual (1 outside)"
    assert np.ptp(right.get_xlim()) < 10
    assert sum(bar.get_height() for bar in right.patches) == 499


def test_amounts_of_unlike_sizes_have_log_scales() -> None:
    left, right = FIGURES["decades"]().axes
    assert (left.get_xscale(), left.get_yscale(), right.get_xscale()) == ("log", "log", "linear")
    assert left.texts[0].get_text() == "× 1 outside"
    assert plots.residuals(np.ones(9), np.ones(9), ["n"]).axes[0].get_xscale() == "linear"


def test_ranking_curves() -> None:
    curves = rankings(3)
    left, right = plots.ranking_curves(curves, ["a", "b", "c"]).axes
    for axes, area, x, y in (
        (left, "roc_auc", "false_positive_rate", "recall"),
        (right, "average_precision", "recall", "precision"),
    ):
        worst = int(np.argmin([getattr(curve, area) for curve in curves]))
        title = axes.get_title("left")
        assert f"\nlowest: {'abc'[worst]}\n" in title
        assert title.endswith(f" {getattr(curves[worst], area):.3f}")
        line = axes.lines[-1].get_xydata()
        assert axes.lines[-1].get_color() == plots.ORANGE
        expected = np.stack([getattr(curves[worst], x), getattr(curves[worst], y)], 1)
        np.testing.assert_allclose(line[-len(expected) :], expected)
    # Of many examples some are not drawn, but all peaks of a few positives are.
    few = rank(np.arange(1000.0, 0, -1), np.arange(1000) % 9 == 0)
    drawn_points = plots.ranking_curves([few], ["a"]).axes[1].lines[0].get_xydata()
    assert len(drawn_points) < 600
    peaks = np.stack([few.recall, few.precision], 1)[::9]
    assert {tuple(point) for point in peaks} <= {tuple(point) for point in drawn_points}
    single = plots.ranking_curves(curves[:1], ["a"]).axes[1]
    assert single.lines[-1].get_ydata()[0] == curves[0].positives / 300, "what a guess gives"


@pytest.mark.parametrize("name", ODD)
def test_names_are_written_as_they_are(name: str) -> None:
    """No formula of `$`, no control letter, one line."""
    figure = plots.top_features(np.eye(2, 1), [name, "b"], ["c"])
    label = figure.axes[0].get_yticklabels()[0]
    written, is_formula = label._preprocess_math(label.get_text())
    expected = shorten(name, 28)
    assert is_formula is False
    assert written == "".join(c if c.isprintable() else " " for c in expected)
    assert "\n" not in written


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("eighteen letters..", "eighteen letters.."),
        ("nineteen letters...", "nineteen letters.…"),
        ("日本語の分類日本語の", "日本語の分類日本…"),
        (" a \n\t b ", "a b"),
        ("", "(blank)"),
    ],
)
def test_shorten(name: str, short: str) -> None:
    assert shorten(name) == short
