"""Runs of every kind, small and really fitted, for the tests of the report."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

import jaxsoftmax
from jaxsoftmax.app import data, evaluation, pipeline, report
from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.defaults import LossName

# Names that break pages, figures, or both.
ODD = (
    "<script>alert(1)</script>",
    "a&b",
    "quo\"te's",
    "$x^2$",
    "日本語の分類",
    "العربية",
    "ไทย",
    "two\nlines",
    "",
    "#22272e",
    'id="figure_1"',
    "very " * 20 + "long",
    "🦊 fox",
    "back\\slash",
    "</style>",
    "%s {0} ${name}",
    "\u202etfel ot thgir",
    "\x00\x1b[31m",
    "\ud800 half a letter",
)


def fitted(
    dataset: Dataset,
    *,
    loss: LossName | None = None,
    log1p: bool = False,
    standardize: bool = False,
    interrupted: bool = False,
    brief: bool = False,
    **settings: float,
) -> report.Run:
    """What the command line hands to the report after a fit; in brief, less of it."""
    learned = pipeline.preprocess(dataset, log1p=log1p, standardize=standardize)
    choices = pipeline.choose(dataset, loss=loss, **settings)
    result = pipeline.train(dataset, choices)
    scores = pipeline.score_splits(dataset, result.params, learned)
    judged = (in_brief if brief else pipeline.measure_splits)(dataset, scores, loss=choices.loss)
    header = {
        "jaxsoftmax": jaxsoftmax.__version__,
        "jax": jax.__version__,
        "created": "2026-11-21 10:00:00+00:00",
        "command": f"jaxsoftmax fit {dataset.name} --loss {choices.loss} --seed 0",
        "data": {"name": dataset.name, "source": dataset.source},
        **choices.to_json(),
        "interrupted": interrupted,
        "kept_epoch": result.epochs,
    }
    return report.Run(
        header=header,
        schema=dataset.schema,
        metrics=judged.metrics,
        history=result.history,
        params=result.params,
        scores=scores["test"],
        test=dataset.test,
        calibration=judged.calibration,
        preprocessing=learned,
    )


def in_brief(
    dataset: Dataset, scores: Mapping[str, np.ndarray], *, loss: LossName
) -> pipeline.EvaluationResult:
    """Without calibration and intervals, which take seconds to compile."""
    told = evaluation.compute_metrics(
        scores["test"], dataset.test.targets, dataset.schema, loss=loss
    )
    return pipeline.EvaluationResult({"test": told}, {})


def made(name: str, features: np.ndarray, targets: np.ndarray, schema: Schema) -> Dataset:
    """A data set of examples in order: 70 % train, 15 % validate, 15 % test."""
    ids = np.arange(1, len(features) + 1)
    splits = np.split(np.arange(len(features)), [len(ids) * 70 // 100, len(ids) * 85 // 100])
    return Dataset(name, *(Split(features[s], targets[s], ids[s]) for s in splits), schema, "made")


@functools.cache
def digits() -> report.Run:
    return fitted(data.load("digits"), brief=True, epochs=10)


@functools.cache
def interrupted() -> report.Run:
    """And of a loss without probabilities."""
    return fitted(data.load("digits"), loss=LossName.hinge, brief=True, epochs=3, interrupted=True)


@functools.cache
def table() -> report.Run:
    """Two classes and one score, named features of unlike scales."""
    rng = np.random.default_rng(0)
    columns = ("age", "income", "a feature of quite a long name", *ODD[:5])
    scales = np.geomspace(1, 1e5, len(columns))
    x = rng.lognormal(size=(600, len(columns))) * scales
    targets = (np.log(x / scales) @ np.linspace(-2, 2, len(columns)) + rng.logistic(size=600)) > 0
    schema = Schema(Task.classes, ("no", "yes"), (len(columns),), columns=columns)
    dataset = made("people.csv", x.astype(np.float32), targets.astype(np.int32), schema)
    return fitted(dataset, log1p=True, standardize=True, epochs=10)


@functools.cache
def labels() -> report.Run:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    targets = x @ rng.normal(size=(6, 4)) + rng.logistic(size=(500, 4)) > np.arange(4)
    names = ("sports", "politics", "<b>bold</b>", "rare")
    return fitted(made("news.csv", x, targets, Schema(Task.labels, names, (6,))), epochs=10)


@functools.cache
def numbers() -> report.Run:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    targets = (x @ rng.normal(size=(3, 2)) * 1e4 + rng.normal(size=(400, 2)) * 3e3 + 5e4).astype(
        np.float32
    )
    schema = Schema(Task.numbers, ("price", "$rent$"), (3,), columns=("rooms", "size", "age"))
    return fitted(made("houses.csv", x, targets, schema), standardize=True)


@functools.cache
def hundred() -> report.Run:
    """A hundred classes of colour images, with odd names."""
    rng = np.random.default_rng(3)
    names = (*ODD, *(f"class {k}" for k in range(len(ODD), 100)))
    means = rng.uniform(size=(100, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    targets = rng.integers(100, size=3000).astype(np.int32)
    x = np.clip(means[targets] + rng.normal(size=(3000, 32, 32, 3)), 0, 1).astype(np.float32)
    schema = Schema(Task.classes, names, (32, 32, 3), divisor=255)
    dataset = made("photos <&> more", x.reshape(3000, -1), targets, schema)
    return fitted(dataset, brief=True, epochs=3)


@functools.cache
def many() -> report.Run:
    """A hundred classes of a table, with odd names everywhere."""
    rng = np.random.default_rng(4)
    names = (*ODD, *(f"class {k}" for k in range(len(ODD), 100)))
    columns = (*ODD, *(f"feature_{k}" for k in range(len(ODD), 30)))
    x = rng.normal(size=(6000, 30)).astype(np.float32)
    z = x @ rng.normal(size=(30, 100))
    z[:, 21] = z[:, 20] + rng.normal(size=len(z))
    targets = (z + rng.gumbel(size=z.shape)).argmax(1).astype(np.int32)
    schema = Schema(Task.classes, names, (30,), columns=columns)
    return fitted(made("odd.csv", x, targets, schema), brief=True, standardize=True, epochs=10)


ALL = (digits, interrupted, table, labels, numbers, hundred, many)
