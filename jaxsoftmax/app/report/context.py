"""A run as its report needs it, and what all sections of the report share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxsoftmax.app import evaluation, ranking_curves
from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.data.dataset import Schema, Split, Task
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.evaluation import Baseline
from jaxsoftmax.app.names import LossName
from jaxsoftmax.app.parameters import Params
from jaxsoftmax.app.ranking_curves import RankingCurve
from jaxsoftmax.app.text import shorten

MAX_NAME_WIDTH = 60  # names are cut to this width


@dataclass(frozen=True, eq=False)
class Run:
    """A run, as its report needs it.

    Args:
        header: the header of the run: "loss" and, optionally, "command", "created", "interrupted",
            "data" with "name" and "source", and settings and versions by their names.
        schema: the schema of the data.
        metrics: the result of `evaluation.compute_metrics` for each split.
        history: one number per epoch under each name.
        params: the model.
        scores: the scores of the test examples, `[N, K]`, or `[N, 1]` for a binary sigmoid.
        test: the test examples with features as stored, before preprocessing.
        calibration: the result of `evaluation.calibrate`, or None.
        preprocessing: the map that the model applies to features first.
        path: the result of `linear_probe.ProbePath.to_json` for a probe, or None.
        columns: what was learned about the columns of a table.
    """

    header: Mapping[str, Any]
    schema: Schema
    metrics: Mapping[str, Mapping[str, Any]]
    history: Mapping[str, np.ndarray]
    params: Params
    scores: np.ndarray
    test: Split
    calibration: Mapping[str, Any] | None = None
    preprocessing: Preprocessing = IDENTITY
    path: Mapping[str, Any] | None = None
    columns: Sequence[ColumnSummary] = ()


class Context:
    """The data that all sections share: the run, and its test scores in one form for all tasks.

    A binary sigmoid has one score, that of the second class. Here the first class has the score 0
    beside it, so that the class with the larger score is predicted, as everywhere.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.schema, self.header = run, run.schema, run.header
        self.task = run.schema.task
        self.classes = tuple(shorten(name, MAX_NAME_WIDTH) for name in run.schema.classes)
        self.test_metrics = run.metrics.get("test", {})
        self.scores = np.asarray(run.scores, np.float32)
        self.logits = evaluation.to_logits(self.scores, self.schema, self.loss)
        self.w = np.asarray(run.params.w, np.float32)
        self.has_one_score = self.task is Task.classes and self.w.shape[1] == 1
        if self.has_one_score:
            self.scores, self.w = (
                np.concatenate([np.zeros_like(a), a], 1) for a in (self.scores, self.w)
            )
        self.targets = np.asarray(run.test.targets)
        if self.task is not Task.classes:
            self.targets = self.targets.reshape(self.scores.shape)

    @property
    def loss(self) -> LossName:
        """The loss that was fitted."""
        return LossName(self.header["loss"])

    @property
    def loss_is_nll(self) -> bool:
        """Whether the loss is the log loss of the probabilities."""
        return self.loss == LossName.softmax or self.has_one_score

    @property
    def has_named_outputs(self) -> bool:
        """Whether a mistake is one of several labels or numbers, and must name it."""
        return self.task is Task.labels or (self.task is Task.numbers and len(self.classes) > 1)

    @property
    def has_images(self) -> bool:
        """Whether the features are the pixels of an image."""
        shape = self.schema.shape
        return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))

    @property
    def is_standardized(self) -> bool:
        """Whether the features are standardized."""
        return self.run.preprocessing.mean is not None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the features, cut to a width."""
        numbered = (f"feature {number}" for number in range(1, self.schema.num_features + 1))
        names = self.schema.columns or numbered
        return tuple(shorten(name, MAX_NAME_WIDTH) for name in names)

    def compute_probabilities(self, scale: float = 1.0) -> np.ndarray | None:
        """Return the probabilities of scale times the logits; None where the loss has none."""
        if self.logits is None:
            return None
        return evaluation.link(scale * self.logits, self.task)

    def rank(self) -> Iterator[RankingCurve | None]:
        """Yield how the test examples are ranked by each class or label; nothing without order."""
        if self.task is Task.labels:
            columns = zip(self.scores.T, self.targets.T, strict=True)
            yield from (ranking_curves.rank(z, t) for z, t in columns)
        elif self.logits is not None:
            yield from evaluation.rank_classes(self.logits, self.targets)

    @cached_property
    def ranking_curves(self) -> list[RankingCurve | None]:
        """All curves of `rank`."""
        return list(self.rank())

    @cached_property
    def baseline(self) -> Baseline | None:
        """The metrics of a model without features on the test examples."""
        metrics = self.run.metrics
        if not {"train", "test"} <= set(metrics):
            return None
        return evaluation.baseline(metrics["train"], metrics["test"])

    @property
    def confusion_counts(self) -> np.ndarray:
        """The confusion matrix, without examples that have no prediction."""
        num_classes = len(self.classes)
        predicted = evaluation.predict(self.scores, self.schema)
        cells = (self.targets.astype(np.int64) * num_classes + predicted)[predicted >= 0]
        return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)

    def preprocess(self, examples: np.ndarray | slice) -> np.ndarray:
        """Return the features of some test examples after preprocessing."""
        return self.run.preprocessing.apply(self.run.test.features[examples])

    @cached_property
    def average_features(self) -> np.ndarray | float:
        """The average features after preprocessing; standardization makes their training mean 0."""
        if self.is_standardized:
            return 0.0
        return self.preprocess(slice(10_000)).mean(0, dtype=np.float64)

    @property
    def singular(self) -> str:
        """The word for one class, label or number."""
        return {Task.classes: "class", Task.labels: "label", Task.numbers: "number"}[self.task]
