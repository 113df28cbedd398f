"""One fit, from data to an evaluated model: preprocessing, choices, training and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsoftmax import training
from jaxsoftmax.app import defaults, evaluation
from jaxsoftmax.app.data import preprocessing
from jaxsoftmax.app.data.dataset import Dataset
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.app.defaults import LossName, OptimizerName, Settings
from jaxsoftmax.app.parameters import Params
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.training import FitResult

MAX_RANKED_EXAMPLES = 200_000
"""The number of examples above which only the test split has metrics that sort all scores."""


@dataclass(frozen=True)
class Choices:
    """The choices that distinguish one fit from another on the same data.

    Args:
        loss: the loss to fit.
        optimizer: the optimizer.
        settings: the settings of the optimizer.
        patience: the number of epochs without a lower validation loss after which to stop, or None.
        seed: the seed of the order of minibatches.
    """

    loss: LossName
    optimizer: OptimizerName
    settings: Settings
    patience: int | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the choices under the names of the command-line options."""
        names = {"loss": self.loss.value, "optimizer": self.optimizer.value}
        return {**names, **asdict(self.settings), "patience": self.patience, "seed": self.seed}


def preprocess(dataset: Dataset, *, log1p: bool, standardize: bool) -> Preprocessing:
    """Learn preprocessing from the training split, and apply it in place to the splits of a fit.

    The test split is left as it is stored; `evaluation.compute_scores` preprocesses it in blocks.

    Args:
        dataset: the data. The features of its train and validation splits are overwritten, since a
            copy of large data may not fit in memory.
        log1p: whether to take the logarithm of 1 + x.
        standardize: whether to give each column mean 0 and standard deviation 1.

    Returns:
        The learned preprocessing.

    Raises:
        ValueError: if the logarithm would be taken of a feature of -1 or less.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> digits = data.load("digits")
        >>> learned = pipeline.preprocess(digits, log1p=False, standardize=True)
        >>> f"{abs(digits.train.features.mean()):.5f} {digits.test.features.mean():.2f}"
        '0.00000 0.31'
    """
    columns = dataset.schema.columns
    train, validation = dataset.train, dataset.validation
    learned = preprocessing.learn(
        train.features, log1p=log1p, standardize=standardize, columns=columns, ids=train.ids
    )
    for split in (train, validation):
        learned.apply(split.features, in_place=True, columns=columns, ids=split.ids)
    return learned


def choose(
    dataset: Dataset,
    *,
    loss: LossName | None = None,
    optimizer: OptimizerName | None = None,
    patience: int | None = None,
    seed: int = 0,
    **settings: float | None,
) -> Choices:
    """Complete the choices with defaults that suit the data.

    Args:
        dataset: the data, after preprocessing.
        loss: the loss, or None for the default of the task.
        optimizer: the optimizer, or None for the default of the task.
        patience: as in `Choices`.
        seed: as in `Choices`.
        settings: fields of `defaults.Settings`; None stands for a default that suits the data, the
            optimizer and the loss.

    Returns:
        Complete `Choices`.

    Raises:
        ValueError: if the choices contradict each other.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> choices = pipeline.choose(data.load("digits"), epochs=3)
        >>> choices.loss.value, choices.settings.epochs, choices.settings.batch_size
        ('softmax', 3, 32)
    """
    loss = LossName(loss or defaults.default_loss(dataset.schema))
    defaults.make_loss(loss, dataset.schema)
    optimizer = OptimizerName(optimizer or defaults.default_optimizer(dataset.schema))
    complete = replace(
        defaults.default_settings(dataset, optimizer, loss),
        **{name: value for name, value in settings.items() if value is not None},  # type: ignore[arg-type]
    )
    for name in ("learning_rate", "weight_decay"):
        value = getattr(complete, name)
        if value is not None and not np.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} must be finite, got {value}")
    defaults.make_optimizer(optimizer, complete, num_examples=len(dataset.train.features))
    return Choices(loss, optimizer, complete, patience, seed)


def train(
    dataset: Dataset,
    choices: Choices,
    *,
    callback: Callable[[dict[str, Any]], object] | None = None,
    checkpoint: Path | None = None,
    interval: float | None = None,
) -> FitResult:
    """Train a linear model on the training split, and evaluate each epoch on the validation split.

    Args:
        dataset: the data, after preprocessing.
        choices: complete choices, from `choose`.
        callback: as in `training.fit`.
        checkpoint: a folder for checkpoints, from which the training continues, or None.
        interval: the least number of seconds between two checkpoints.

    Returns:
        The result of `training.fit`. Its parameters are those of the epoch with the smallest
        validation loss, and those of its state are the last ones.

    Raises:
        training.Interrupted: at Ctrl-C, or if the callback raises KeyboardInterrupt, with the
            result so far.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> digits = data.load("digits")
        >>> result = pipeline.train(digits, pipeline.choose(digits, epochs=2))
        >>> result.epochs, result.params.w.shape
        (2, (64, 10))
    """
    settings = choices.settings
    # The schema has all classes, some of which may be absent from the training targets.
    K = defaults.num_scores(dataset.schema, choices.loss)
    x, t = dataset.train[:2]
    shapes = (x.shape[1], K), (K,)
    return training.fit(
        defaults.make_loss(choices.loss, dataset.schema),
        x,
        t,
        optimizer=defaults.make_optimizer(choices.optimizer, settings, num_examples=len(x)),
        key=jax.random.key(choices.seed),
        # All losses here are convex: zeros lead to the optimum too, and NumPy's need no program.
        params=LinearParams(*jax.device_put([np.zeros(shape, np.float32) for shape in shapes])),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        validation=dataset.validation[:2],
        # With a patience of all epochs it never stops early, but returns the best parameters.
        patience=choices.patience or settings.epochs,
        callback=callback,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        checkpoint_interval=interval or 0,
    )


def score_splits(dataset: Dataset, params: Params, learned: Preprocessing) -> dict[str, np.ndarray]:
    """Compute the scores of the examples of each split.

    Args:
        dataset: the data, after `preprocess`.
        params: the parameters of the model.
        learned: the preprocessing, from `preprocess`.

    Returns:
        `[N, K]` for each of "train", "validation" and "test".

    Example:
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import data, pipeline
        >>> from jaxsoftmax.app.data import preprocessing
        >>> digits = data.load("digits")
        >>> scores = pipeline.score_splits(digits, linear.init(64, 10), preprocessing.IDENTITY)
        >>> scores["test"].shape
        (355, 10)
    """
    test = evaluation.compute_scores(params, dataset.test.features, preprocessing=learned)
    return {
        "train": evaluation.compute_scores(params, dataset.train.features),
        "validation": evaluation.compute_scores(params, dataset.validation.features),
        "test": test,
    }


def drop_fitted_features(dataset: Dataset) -> Dataset:
    """Drop the train and validation features, which are not needed once all splits have scores.

    Args:
        dataset: any data.

    Returns:
        The same data with train and validation features of length 0.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> digits = pipeline.drop_fitted_features(data.load("digits"))
        >>> digits.train.features.shape, digits.train.targets.shape
        ((0, 64), (1085,))
    """
    no_features = np.empty((0, dataset.schema.num_features), np.float32)
    return replace(
        dataset,
        train=dataset.train._replace(features=no_features),
        validation=dataset.validation._replace(features=no_features),
    )


class EvaluationResult(NamedTuple):
    """The metrics of each split, from `evaluation.compute_metrics`, and the calibrations.

    metrics: by split; the test split has all metrics and intervals.
    calibration: from `evaluation.calibrate`.
    """

    metrics: dict[str, dict[str, Any]]
    calibration: dict[str, Any]


def measure_splits(
    dataset: Dataset, scores: Mapping[str, np.ndarray], *, loss: LossName
) -> EvaluationResult:
    """Compute the metrics of a model on each split, and calibrate it.

    Args:
        dataset: the data, of which the targets are used.
        scores: the scores of each split, from `score_splits`.
        loss: the loss that the model was fitted with.

    Returns:
        An `EvaluationResult`.

    Example:
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import data, pipeline
        >>> from jaxsoftmax.app.data import preprocessing
        >>> digits = data.load("digits")
        >>> scores = pipeline.score_splits(digits, linear.init(64, 10), preprocessing.IDENTITY)
        >>> result = pipeline.measure_splits(digits, scores, loss="softmax")
        >>> f"{result.metrics['test']['nll']:.4f}"
        '2.3026'
    """
    pairs = {name: (z, getattr(dataset, name).targets) for name, z in scores.items()}
    metrics = {
        name: evaluation.compute_metrics(
            z,
            targets,
            dataset.schema,
            loss=loss,
            rankings=name == "test" or len(z) <= MAX_RANKED_EXAMPLES,
            intervals=name == "test",
        )
        for name, (z, targets) in pairs.items()
    }
    calibration = evaluation.calibrate(
        pairs["validation"], pairs["test"], dataset.schema, loss=loss
    )
    return EvaluationResult(metrics, calibration)
