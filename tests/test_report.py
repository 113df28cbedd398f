"""The report: what it says, that names cannot break it, and that a browser shows all of it."""

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import contents
import matplotlib
import numpy as np
import pytest
from browser import Browser, chromium
from matplotlib.figure import Figure
from PIL import Image

from jaxsoftmax.app import evaluation, plots, report
from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.data.dataset import Schema, Split, Task
from jaxsoftmax.app.report import Run, svg
from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.text import shorten
from jaxsoftmax.linear import LinearParams

pytestmark = pytest.mark.usefixtures("unoptimized")

CLASSIFIER = {"learning-curves", "confusion-matrix", "ranking-curves", "reliability"}
FIGURES = {
    "digits": CLASSIFIER | {"templates", "worst-mistakes"},
    "interrupted": {"learning-curves", "confusion-matrix", "templates", "worst-mistakes"},
    "table": CLASSIFIER | {"threshold-curves", "top-features"},
    "labels": {"learning-curves", "ranking-curves", "reliability", "top-features"},
    "numbers": {"learning-curves", "residuals", "top-features"},
    "hundred": CLASSIFIER | {"templates", "worst-mistakes"},
    "many": CLASSIFIER,
}


class Parsed(HTMLParser):
    """The elements of a page, as (tag, attributes), and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


class Made(NamedTuple):
    """A report of one kind of run."""

    name: str
    content: Run
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=contents.ALL, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    name, content = request.param.__name__, request.param()
    path = tmp_path_factory.mktemp("reports") / f"{name}.html"
    report.write(path, content)
    return Made(name, content, path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


# -- What it says --


def test_is_small(made: Made) -> None:
    assert made.path.stat().st_size < 3e6


def test_every_figure_is_there_and_says_what_it_is(made: Made) -> None:
    parsed = Parsed(made.text)
    assert {each["id"] for each in parsed.all("figure")} == FIGURES[made.name]
    drawings = parsed.all("svg")
    assert len(drawings) == len(FIGURES[made.name])
    for each in drawings:
        assert each["role"] == "img"
        assert len(each["aria-label"] or "") > 20


def test_elements_have_ids_of_their_own(made: Made) -> None:
    parsed = Parsed(made.text)
    ids = [each["id"] for _, each in parsed.elements if "id" in each]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([\w-]+)', made.text)
    assert set(used) <= set(ids)
    assert used


def test_headings_are_in_order(made: Made) -> None:
    parsed = Parsed(made.text)
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert parsed.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all(
        "meta"
    )


def test_has_one_script_and_asks_for_nothing(made: Made) -> None:
    parsed = Parsed(made.text)
    assert not {"iframe", "object", "embed", "b"} & {tag for tag, _ in parsed.elements}
    assert parsed.all("script") == [{}], "one, inline"
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(http" not in made.text
    assert "@import" not in made.text


def test_same_content_same_bytes(made: Made) -> None:
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.grid": False}):
        assert report.html(made.content) == made.text


def test_the_command_and_the_figures_of_the_run(made: Made) -> None:
    text, figures = " ".join("".join(Parsed(made.text).words).split()), made.content.metrics["test"]
    assert made.content.header["command"] in text
    if "accuracy_interval" in figures:
        low, high = figures["accuracy_interval"]
        assert f"{figures['accuracy']:.2%}" in text
        assert f"95% interval {low:.2%} to {high:.2%}" in text
    for split, told in made.content.metrics.items():
        assert f"{told['examples']:,} {split}" in text
    assert ("This run was interrupted" in text) is (made.name == "interrupted")


def test_calibration_before_and_after(made: Made) -> None:
    told = (made.content.calibration or {}).get("temperature", {})
    text = " ".join(Parsed(made.text).words)
    assert ("temperature" in text) is ("scale" in told)
    if "scale" in told:
        assert f"{1 / told['scale']:.3g}" in text
        for split in ("validation", "test"):
            for name, before_and_after in told[split].items():
                for value in before_and_after:
                    assert evaluation.format_metric(name, value) in text


def test_mistakes_are_those_of_the_model(made: Made) -> None:
    """The first mistake that is told is one, and the surest."""
    content = made.content
    if content.schema.task is not Task.classes or content.header["loss"] == "hinge":
        return
    p = np.exp(content.scores - content.scores.max(1, keepdims=True))
    if p.shape[1] == 1:
        p = 1 / (1 + np.exp(-content.scores))
        p = np.concatenate([1 - p, p], 1)
    p = p / p.sum(1, keepdims=True)
    wrong = p.argmax(1) != content.test.targets
    first = int(np.argmax(np.where(wrong, p.max(1), 0)))
    text = made.text[made.text.index('<section id="mistakes"') :]
    row = re.search(r"<tbody>\s*<tr>(.*?)</tr>", text, re.S)[1]
    words = [word for word in Parsed(row).words if word.strip()]
    assert words[0] == str(content.test.ids[first])
    for word, k in ((words[1], content.test.targets[first]), (words[2], p[first].argmax())):
        assert word == page_name(content.schema.classes[k])
    assert words[3] == f"{p[first].max():.1%}"


def page_name(name: str) -> str:
    shown = shorten(name, 60)
    return "".join(c if c.isprintable() else " " for c in shown)


def test_pushes_add_up() -> None:
    """Of a table, what argued for the first mistake are the largest parts of the lead."""
    content = contents.table()
    answers = Context(content)
    text = report.html(content)
    told = re.search(r"<td class=w[^>]*>(.*?)</td>", text, re.S)[1]
    pushes = [float(each) for each in re.findall(r"\(\+([\d.]+)\)", told)]
    row = int(
        np.flatnonzero(
            content.test.ids
            == int(re.search(r"<bdi>(\d+)</bdi>", text[text.index("mistakes among") :])[1])
        )[0]
    )
    x = content.preprocessing.apply(content.test.features[row : row + 1])[0]
    w = np.asarray(content.params.w)[:, 0]
    sign = 1 if answers.scores[row, 1] > 0 else -1
    parts = sorted(sign * w * x, reverse=True)[:5]
    np.testing.assert_allclose(pushes, [float(f"{part:.2g}") for part in parts if part > 0])


def test_names_are_escaped(made: Made) -> None:
    words = " ".join(Parsed(made.text).words)
    schema = made.content.schema
    for name in (*schema.classes, *(schema.columns or ())):
        if name in contents.ODD:
            assert page_name(name) in words
    for dangerous in ("<script>alert", "\x00", "\x1b", "\u202e", "\ud800", "<b>"):
        assert dangerous not in made.text


def test_a_run_without_mistakes_figures_or_history() -> None:
    """What is not there is left out, or said."""
    content = contents.digits()
    right = content.test._replace(targets=content.scores.argmax(1).astype(np.int32))
    bare = dataclasses.replace(
        content, test=right, history={}, metrics={}, calibration=None, header={"loss": "softmax"}
    )
    text = report.html(bare)
    assert "None: every test example is right." in text
    assert {each["id"] for each in Parsed(text).all("figure")} == {
        "confusion-matrix", "ranking-curves", "reliability", "templates",
    }  # fmt: skip


def test_thousands_of_classes() -> None:
    """What no page can show is left out and said, and the rest is told."""
    rng = np.random.default_rng(0)
    size, scores = 1500, rng.normal(size=(50, 1500)).astype(np.float32)
    x, targets = rng.uniform(size=(50, 4)).astype(np.float32), rng.integers(size, size=50)
    text = report.html(
        Run(
            header={"loss": "softmax"},
            schema=Schema(Task.classes, tuple(f"class {k}" for k in range(size)), (2, 2)),
            metrics={},
            history={},
            params=LinearParams(rng.normal(size=(4, size)), None),
            scores=scores,
            test=Split(x, targets, np.arange(50)),
        )
    )
    assert "No matrix is drawn for more than 1,000 classes." in text
    assert "The first 100 of 1,500 are drawn." in text
    aucs = [curve.roc_auc for curve in evaluation.rank_classes(scores, targets) if curve.positives]
    areas = section(text, "ranking")
    assert f"macro AUC {np.mean(aucs):.3f}" in areas
    assert areas.count(" 0.") >= 40, "the areas of the ten lowest and of the ten highest"
    for order, auc in (("lowest", min(aucs)), ("highest", max(aucs))):
        table = areas.partition(f"with the {order} ROC-AUC")[2]
        assert evaluation.format_metric("roc_auc", auc) in " ".join(table.split()[:13]), table
    assert len(text) < 3e6


# -- Figures as inline SVG --


def inline(figure: Figure, name: str = "f") -> str:
    return f'<figure id="{name}">{svg.convert(figure, name=name, label="l", colors=plots.PALETTE)}'


def test_figures_do_not_share_names() -> None:
    """Two equal figures refer to their own parts, whatever matplotlib calls them."""
    history = {"loss": np.array([1.0, 0.5])}
    first, second = (inline(plots.learning_curves(history), name) for name in ("a", "b"))
    for text, name in ((first, "a"), (second, "b")):
        ids = re.findall(r'\bid="([^"]*)"', text)
        assert ids[0] == name
        assert len(ids) > 2
        assert all(each == name or each.startswith(f"{name}-") for each in ids)
        references = re.findall(r'(?:href="|url\()#([^")]*)', text)
        assert references
        assert set(references) <= set(ids)


def test_a_figure_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda *given: draws.append(draw(*given)))
    svg.convert(plots.residuals([1.0, 2.0], [1.0, 2.5], ["price"]), name="r", label="A", colors={})
    assert len(draws) == 1


@pytest.mark.parametrize(
    "name", [plots.PALETTE["ink"], 'id="x" url(#x) href="#x"', "font-family:x;"]
)
def test_text_in_figures_is_left_alone(name: str) -> None:
    """Only attributes are rewritten, so that a name which looks like one stays."""
    shown = inline(plots.top_features(np.eye(2, 1), [name, "b"], ["c"]))
    assert shorten(name, 28) in Parsed(shown).words


def test_figures_take_the_colours_of_the_page() -> None:
    shown = inline(plots.confusion_matrix(np.eye(20) * 5 + 1, list("abcdefghijklmnopqrst")))
    assert "var(--ink)" in shown
    outside_images = re.sub(r'href="data:[^"]*"', "", shown)
    assert not re.findall(r"#[0-9a-f]{6}\b", outside_images)
    assert "<style" not in shown, "its rules would hold for the whole page"
    assert "font-family" not in shown


# -- In a browser --


def colors(png: bytes) -> int:
    image = Image.open(BytesIO(png)).convert("RGB")
    found = image.getcolors(maxcolors=image.width * image.height)
    return len(found)


def test_opens_without_errors_or_requests(browser: Browser, made: Made) -> None:
    browser.open(made.path)
    assert browser.run("return document.readyState") == "complete"
    assert browser.errors() == []
    assert browser.requests() == set()
    assert browser.run("return document.scripts.length") == 1


def test_every_figure_is_drawn(browser: Browser, made: Made) -> None:
    browser.open(made.path)
    boxes = browser.boxes("figure svg")
    assert len(boxes) == len(FIGURES[made.name])
    for box in boxes:
        assert box["width"] > 200
        assert box["height"] > 80
        assert colors(browser.picture(box)) > 20
    for box in browser.boxes("figure svg image"):
        assert box["width"] > 1
        assert box["height"] > 1


def test_every_letter_of_a_figure_is_inside_it(browser: Browser, made: Made) -> None:
    """With the browser's fonts, which are not those that matplotlib measured."""
    browser.open(made.path)
    outside = browser.run(
        """return [...document.querySelectorAll('figure svg')].flatMap(svg => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].filter(t => {
            const box = t.getBoundingClientRect();
            return box.left < frame.left - 8 || box.right > frame.right + 8
              || box.top < frame.top - 8 || box.bottom > frame.bottom + 8;
          }).map(t => t.textContent)})"""
    )
    assert outside == []


def test_fits_a_phone(browser: Browser, made: Made) -> None:
    browser.open(made.path, width=360)
    assert browser.run("return innerWidth") == 360
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    for box in browser.boxes("figure svg"):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    scrolled = browser.run(
        """return [...document.querySelectorAll('.scroll')]
          .filter(e => e.scrollWidth > e.clientWidth).map(e => e.querySelectorAll('th[scope=col]'))
          .map(e => e.length)"""
    )
    assert all(columns <= 4 for columns in scrolled), "more columns stand in blocks"
    # A table of long names scrolls in its own box, and the keyboard reaches it.
    assert browser.run(
        "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0)"
    )


def test_a_shadow_tells_that_a_table_goes_on(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "table.html"
    report.write(path, contents.table())
    browser.open(path, width=560)  # wide enough for tables without blocks
    wide = "[...document.querySelectorAll('.scroll')].findIndex(e => e.scrollWidth > e.clientWidth)"
    place = browser.run(f"return {wide}")

    def edges() -> list[bool]:
        """Whether the left and the right edge are darker than the page, between the letters."""
        shown = Image.open(BytesIO(browser.picture(browser.boxes(".scroll")[place]))).convert("L")
        columns = (np.asarray(shown)[:, [1, -2]] < 250).mean(0)
        return (columns > 0.9).tolist()

    assert edges() == [False, True]
    scroll = "document.querySelectorAll('.scroll')[arguments[0]].scrollLeft = arguments[1]"
    browser.run(scroll, place, 40)
    assert edges() == [True, True]
    browser.run(scroll, place, 10_000)
    assert edges() == [True, False]


CONTRASTS = """
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim()) continue;
    const color = parse(e.closest('svg') ? style.fill : style.color);
    if (color[2] == 254) continue;  // on the colour of a cell, see test_plots
    const [a, b] = [light(color), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.data.trim().slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]).slice(0, 1)[0];
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(browser: Browser, made: Made, dark: bool) -> None:
    """A contrast of 4.5, WCAG's level AA, for every letter of the page and of its figures."""
    browser.open(made.path, dark=dark)
    contrast, words = browser.run(CONTRASTS)
    assert contrast >= 4.5, words


def test_dark_mode(browser: Browser, made: Made) -> None:
    def background() -> str:
        return browser.run("return getComputedStyle(document.documentElement).backgroundColor")

    def lines() -> str:
        style = "return getComputedStyle(document.querySelector('figure svg text')).fill"
        return browser.run(style)

    browser.open(made.path)
    light = background(), lines()
    browser.open(made.path, dark=True)
    assert sum(map(int, re.findall(r"\d+", light[0]))) > 700
    assert sum(map(int, re.findall(r"\d+", background()))) < 120
    assert lines() != light[1]
    # The whole figure is dark, so it carries no light ground of its own.
    corner = Image.open(BytesIO(browser.picture(browser.boxes("figure svg")[0]))).convert("RGB")
    assert sum(corner.getpixel((1, 1))) < 120


PAGE_HEIGHT = 26.7 / 2.54 * 96  # of A4 without its margins, in pixels


def test_on_paper(browser: Browser, made: Made) -> None:
    browser.open(made.path, dark=True)
    pdf = browser.pdf()
    streams = [
        zlib.decompress(each)
        for each in re.findall(rb"/FlateDecode[^>]*>>\s*stream\r?\n(.*?)endstream", pdf, re.S)
    ]
    written = [each for each in streams if re.search(rb"\bT[jJ]\b", each)]
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pages > 1
    assert len(written) >= pages - 1, "pages with text"
    browser.emulate(media="print", dark=True)
    paper = browser.run("return getComputedStyle(document.documentElement).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    shown = browser.run(
        "return [...document.querySelectorAll('details table')].every(e => e.checkVisibility())"
    )
    assert shown, "what is folded on a screen is printed"
    browser.open(made.path, width=680)  # about that of A4 without its margins
    browser.emulate(media="print")
    height = browser.run("return document.documentElement.scrollHeight")
    assert pages <= 2 or height / pages > 0.55 * PAGE_HEIGHT, "pages are filled"


def test_figures_are_not_cut_by_a_page(browser: Browser, made: Made) -> None:
    browser.open(made.path)
    browser.emulate(media="print")
    rules = browser.run(
        "return [...document.querySelectorAll('figure')].map(e => getComputedStyle(e).breakInside)"
    )
    assert set(rules) == {"avoid"}
    tables = browser.run(
        """return [...document.querySelectorAll('.scroll')].map(
          e => [e.querySelectorAll('tbody tr').length, getComputedStyle(e).breakInside])"""
    )
    assert all((rule == "avoid") == (rows <= 15) for rows, rule in tables), tables
    # A4 less margins is some 25 cm high.
    assert all(box["height"] < 25 / 2.54 * 96 for box in browser.boxes("figure svg"))


def test_the_command_is_selected_as_it_is_typed(browser: Browser, made: Made) -> None:
    browser.open(made.path)
    browser.run("getSelection().selectAllChildren(document.querySelector('pre'))")
    assert browser.run("return getSelection().toString()") == made.content.header["command"]
    assert browser.run("return getComputedStyle(document.querySelector('pre')).userSelect") == "all"


def test_a_script_in_a_name_would_not_run(browser: Browser, tmp_path: Path) -> None:
    """Were a name not escaped, the page's policy would stop it: and the console would say so."""
    content = contents.digits()
    text = report.html(content).replace("<h1>", "<script>document.title = 'run'</script><h1>")
    path = tmp_path / "broken.html"
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    assert browser.run("return document.title") != "run"
    assert any("Content Security Policy" in error for error in browser.errors())


def test_the_columns_of_a_table_have_a_page() -> None:
    found = (
        ColumnSummary("age", "number", 0.25, "the number", "median 3", counts=(4, 0, 8),
                      edges=(0.0, 10.0, 20.0, 30.0)),
        ColumnSummary("<b>kind", "category", 0.0, "one-hot: 2 values", counts=(3, 1),
                      labels=("<i>", "rose")),
        ColumnSummary("day", "date", 0.0, "year", counts=(1,), edges=(0.0, 365.0)),
        ColumnSummary("id", "number", 0.0, "all different", is_omitted=True),
        ColumnSummary("cabin", "category", 0.5, "whether there is a value", counts=(2, 98),
                      labels=("B96", "9 others"), num_values=100),
    )  # fmt: skip
    text = report.html(dataclasses.replace(contents.table(), columns=found))
    assert "<b>" not in text
    assert "<i>" not in text
    parsed = Parsed(text)
    section = re.search(r'<section id="columns".*?</section>', text, re.S)[0]
    bars = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', section)]
    assert bars == [14, 0, 28, 28, 9.3, 28, 1, 28]
    words = " ".join(parsed.words)
    for said in ("25.0%", "0 to 30", "the number; missing values: median 3, and a feature that",
                 "1970-01-01 to 1971-01-01", "left out: all different",
                 "100 values, 2.0% at most"):  # fmt: skip
        assert said in words, said
    assert "B96" not in words
    assert '<section id="columns"' not in report.html(contents.table())


def section(text: str, name: str) -> str:
    """The words of a section."""
    found = re.search(rf'<section id="{name}".*?</section>', text, re.S)
    return " ".join(" ".join(Parsed(found[0]).words).split())


def test_main_figures_have_a_baseline() -> None:
    """The commonest class of the training examples, and the mean of their numbers."""
    content = contents.table()
    train = [one["support"] for one in content.metrics["train"]["per_class"]]
    share = np.mean(content.test.targets == np.argmax(train))
    name = content.schema.classes[int(np.argmax(train))]
    assert f"baseline {share:.2%}, always {name}" in report.html(content)
    numbers = contents.numbers()
    means = np.array([one["mean"] for one in numbers.metrics["train"]["per_number"]])
    error = np.sqrt(np.mean((numbers.test.targets - means) ** 2))
    assert f"baseline {error:,.0f}, always the mean" in report.html(numbers)
    labels = contents.labels()
    train = labels.metrics["train"]
    common = [2 * one["support"] > train["examples"] for one in train["per_label"]]
    assert f"baseline {np.mean(labels.test.targets == common):.2%}, always" in report.html(labels)


def test_thresholds_and_their_costs() -> None:
    content = contents.table()
    p = evaluation.compute_probabilities(content.scores, content.schema, "sigmoid")[:, 1]
    is_yes, at = content.test.targets == 1, 1 / 6
    missed = np.sum(is_yes & (p <= at))
    false_alarms, usual = (np.sum(~is_yes & (p > t)) for t in (at, 0.5))
    row = (
        f"5 16.7% {np.sum(is_yes & (p > at)) / np.sum(p > at):.1%} "
        f"{1 - missed / is_yes.sum():.1%} {missed} {false_alarms} {5 * missed + false_alarms} "
        f"{5 * np.sum(is_yes & (p <= 0.5)) + usual}"
    )
    assert row in section(report.html(content), "thresholds")
    rows = section(report.html(contents.labels()), "thresholds")
    assert rows.count(" 1 50.0% ") == len(contents.labels().schema.classes)
    assert '<section id="thresholds"' not in report.html(contents.digits())


def test_class_balance() -> None:
    content = contents.table()
    sizes = [content.metrics[split]["per_class"][1]["support"] for split in content.metrics]
    row = " ".join(map(str, ["yes", *sizes, f"{sum(sizes) / 600:.1%}"]))
    assert row in section(report.html(content), "balance")


def test_numbers_are_told_in_their_own_unit() -> None:
    content = contents.numbers()
    text = report.html(content)
    assert f"{content.metrics['test']['rmse']:,.0f}" in text
    curves = section(text, "learning")
    assert "root mean squared error" in curves
    assert "loss" not in curves.replace("lowest validation loss", "")


def test_tables_are_sorted_by_a_click(browser: Browser, tmp_path: Path) -> None:
    """From a file, by numbers as they are written, and back; without what is empty in between."""
    path = tmp_path / "table.html"
    report.write(path, contents.table())
    browser.open(path)

    def column(heading: str) -> list[str]:
        """Click a heading of the mistakes, and read its column."""
        return browser.run(
            """const table = document.querySelector('#mistakes table');
            const all = [...table.querySelectorAll('thead th')];
            const index = all.findIndex(e => e.textContent == arguments[0]);
            all[index].querySelector('button').click();
            return [...table.tBodies[0].rows].map(row => row.cells[index].textContent)""",
            heading,
        )

    descending, ascending, original = (column("example") for _ in range(3))
    assert descending == sorted(original, key=int, reverse=True)
    assert ascending == descending[::-1]
    assert original not in (ascending, descending)
    assert column("true") == sorted(column("true"), reverse=True)
    assert browser.errors() == []


@pytest.mark.parametrize("width", [1280, 1920])
def test_a_wide_screen_has_two_columns(browser: Browser, made: Made, width: int) -> None:
    browser.open(made.path, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    narrow, wide = browser.boxes("section:not(.wide)"), browser.boxes("section.wide")
    assert len({round(box["x"]) for box in narrow}) == 2
    assert all(box["width"] > 1.9 * narrow[0]["width"] for box in wide)
