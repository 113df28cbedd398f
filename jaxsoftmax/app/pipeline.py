"""One fit, from data to a judged model: preprocessing, choices, training, figures."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsoftmax import linear, training
from jaxsoftmax.app import defaults, evaluation
from jaxsoftmax.app.data import preprocessing
from jaxsoftmax.app.data.dataset import Dataset
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.app.defaults import LossName, OptimizerName, Settings
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.training import FitResult

MANY = 200_000
"""Examples above which only the test split is told what needs a sort of all scores."""


@dataclass(frozen=True)
class Choices:
    """All that tells one fit from another on the same data.

    Args:
        loss: what is fitted.
        optimizer: by what.
        settings: how it walks.
        patience: epochs without a lower validation loss after which to stop, or None.
        seed: of the first weights and the order of minibatches.
    """

    loss: LossName
    optimizer: OptimizerName
    settings: Settings
    patience: int | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The choices by the names of the command line's options."""
        named = {"loss": self.loss.value, "optimizer": self.optimizer.value}
        return {**named, **asdict(self.settings), "patience": self.patience, "seed": self.seed}


def preprocess(dataset: Dataset, *, log1p: bool, standardize: bool) -> Preprocessing:
    """Learn preprocessing from the training split, and apply it in place to what is fitted.

    The test split stays as it is stored: `evaluation.scores` maps it by parts.

    Args:
        dataset: the features of its train and validation splits are overwritten; a copy of large
            data may not fit in memory.
        log1p: whether to take logarithms of 1 + x.
        standardize: whether to give each column mean 0 and deviation 1.

    Returns:
        What was learned.

    Raises:
        ValueError: if a logarithm is asked of -1 or less.

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
    """Complete the choices with what suits the data.

    Args:
        dataset: after preprocessing.
        loss: None for the task's own.
        optimizer: None for the task's own.
        patience: see `Choices`.
        seed: see `Choices`.
        settings: those of `defaults.Settings`, None for what suits data, optimizer and loss.

    Returns:
        Complete `Choices`.

    Raises:
        ValueError: if they do not go together.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> choices = pipeline.choose(data.load("digits"), epochs=3)
        >>> choices.loss.value, choices.settings.epochs, choices.settings.batch_size
        ('softmax', 3, 32)
    """
    loss = loss or defaults.default_loss(dataset.schema)
    defaults.make_loss(loss, dataset.schema)
    optimizer = optimizer or defaults.default_optimizer(dataset.schema)
    complete = replace(
        defaults.default_settings(dataset, optimizer, loss),
        **{name: value for name, value in settings.items() if value is not None},  # type: ignore[arg-type]
    )
    defaults.make_optimizer(optimizer, complete, num_examples=len(dataset.train.features))
    return Choices(loss, optimizer, complete, patience, seed)


def fit(
    dataset: Dataset,
    choices: Choices,
    *,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> FitResult:
    """Fit a linear model to the training split, watched on the validation split.

    Args:
        dataset: after preprocessing.
        choices: of `choose`.
        callback: as of `training.fit`.

    Returns:
        As `training.fit`.

    Raises:
        training.Interrupted: at Ctrl-C, with the result so far.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> digits = data.load("digits")
        >>> result = pipeline.fit(digits, pipeline.choose(digits, epochs=2))
        >>> result.epochs, result.params.w.shape
        (2, (64, 10))
    """
    settings = choices.settings
    # On a CPU device_put shares memory where jnp.asarray would copy: large data fit once.
    x, t, held_x, held_t = map(jax.device_put, (*dataset.train[:2], *dataset.validation[:2]))
    key = jax.random.key(choices.seed)
    # Not as many scores as the training targets show: the schema knows every class.
    count = defaults.num_scores(dataset.schema, choices.loss)
    return training.fit(
        defaults.make_loss(choices.loss, dataset.schema),
        x,
        t,
        optimizer=defaults.make_optimizer(choices.optimizer, settings, num_examples=len(x)),
        key=key,
        params=linear.init(x.shape[1], count, key=jax.random.split(key)[0]),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        validation=(held_x, held_t),
        patience=choices.patience,
        callback=callback,
    )


def score(dataset: Dataset, params: LinearParams, learned: Preprocessing) -> dict[str, np.ndarray]:
    """Score the examples of each split.

    Args:
        dataset: after `preprocess`.
        params: of the model.
        learned: from `preprocess`.

    Returns:
        `[N, K]` of "train", "validation" and "test".

    Example:
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import data, pipeline
        >>> from jaxsoftmax.app.data import preprocessing
        >>> digits = data.load("digits")
        >>> scores = pipeline.score(digits, linear.init(64, 10), preprocessing.IDENTITY)
        >>> scores["test"].shape
        (355, 10)
    """
    return {
        "train": evaluation.scores(params, dataset.train.features),
        "validation": evaluation.scores(params, dataset.validation.features),
        "test": evaluation.scores(params, dataset.test.features, preprocessing=learned),
    }


def lightened(dataset: Dataset) -> Dataset:
    """Let go of the features that were fitted; once there are scores only the test ones are shown.

    Args:
        dataset: any.

    Returns:
        The same with train and validation features of length 0.

    Example:
        >>> from jaxsoftmax.app import data, pipeline
        >>> digits = pipeline.lightened(data.load("digits"))
        >>> digits.train.features.shape, digits.train.targets.shape
        ((0, 64), (1085,))
    """
    train, validation = (
        split._replace(features=np.empty((0, dataset.schema.num_features), np.float32))
        for split in (dataset.train, dataset.validation)
    )
    return replace(dataset, train=train, validation=validation)


class Judgement(NamedTuple):
    """How good a model is: `evaluation.figures` of each split, of the test split with all of them.

    calibration: of `evaluation.calibrate`.
    """

    figures: dict[str, dict[str, Any]]
    calibration: dict[str, Any]


def judge(dataset: Dataset, scores: Mapping[str, np.ndarray], *, loss: LossName) -> Judgement:
    """Judge a model on each split.

    Args:
        dataset: of which the targets count.
        scores: of `score`.
        loss: that the model was fitted with.

    Returns:
        A `Judgement`.

    Example:
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import data, pipeline
        >>> from jaxsoftmax.app.data import preprocessing
        >>> digits = data.load("digits")
        >>> scores = pipeline.score(digits, linear.init(64, 10), preprocessing.IDENTITY)
        >>> judged = pipeline.judge(digits, scores, loss="softmax")
        >>> f"{judged.figures['test']['nll']:.4f}"
        '2.3026'
    """
    pairs = {name: (z, getattr(dataset, name).targets) for name, z in scores.items()}
    figures = {}
    for name, pair in pairs.items():
        last = name == "test"
        figures[name] = evaluation.figures(
            *pair,
            dataset.schema,
            loss=loss,
            rankings=last or len(pair[0]) <= MANY,
            intervals=last,
        )
    calibration = evaluation.calibrate(
        pairs["validation"], pairs["test"], dataset.schema, loss=loss
    )
    return Judgement(figures, calibration)
