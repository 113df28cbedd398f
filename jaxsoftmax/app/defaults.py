"""What the command line's names stand for: losses, optimizers, and the settings to begin with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import jax
import numpy as np
import optax
from jax import Array

from jaxsoftmax import losses
from jaxsoftmax.app.data.dataset import Dataset, Schema, Task
from jaxsoftmax.training import Loss, on_logits, weight_decay_mask


class LossName(StrEnum):
    """Losses of scores and a class, labels or numbers."""

    softmax = "softmax"
    sigmoid = "sigmoid"
    squared_error = "squared_error"
    hinge = "hinge"


class OptimizerName(StrEnum):
    """Optimizers of Optax."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"
    momentum = "momentum"
    lbfgs = "lbfgs"


@dataclass(frozen=True)
class Settings:
    """How an optimizer walks; the learning rate is the first, and None where it finds its own."""

    epochs: int
    batch_size: int
    learning_rate: float | None
    weight_decay: float


# For adamw and softmax. Chosen on the validation splits, among two or three values of each.
KNOWN = {
    "digits": Settings(epochs=50, batch_size=32, learning_rate=0.03, weight_decay=0.03),
    "mnist": Settings(epochs=30, batch_size=256, learning_rate=0.003, weight_decay=0.03),
    "fashion_mnist": Settings(epochs=30, batch_size=256, learning_rate=0.005, weight_decay=0.1),
    "cifar10": Settings(epochs=30, batch_size=256, learning_rate=0.002, weight_decay=0.1),
}


# The greatest second derivative of each loss in a score; the hinge, which has none, takes that of
# the steepest. Softmax: diag(p) - p p' is at most 1/2 (Bohning, 1992).
CURVATURE = {
    LossName.softmax: 0.5,
    LossName.sigmoid: 0.25,
    LossName.squared_error: 2.0,
    LossName.hinge: 2.0,
}


def default_settings(dataset: Dataset, optimizer: OptimizerName, loss: LossName) -> Settings:
    """Return the settings to begin with.

    For adamw the four known data sets have their own, in the table above. Others take batches of a
    power of 2 near a fiftieth of the N training examples, from 32 to 1,024, and as many epochs as
    make about 3,000 steps, from 5 to 500; with features on a scale of 1, the learning rate 0.02 and
    the weight decay 0.03 came within 0.01 of the validation loss of scikit-learn's logistic
    regression or below it (iris, wine, breast_cancer, digits, malware, yeast, and 42,000 x 100 made
    ones). To numbers the rate is in proportion, for they are reached by steps of that length.

    adam takes the same, but for weight decay. lbfgs takes all examples as one batch and finds its
    steps by itself. sgd begins with the longest step that is stable on all the data,
    2 / (c (1 + mean |x|^2)): c bounds the loss's second derivative in a score, so c E[x x'] bounds
    the Hessian, and its greatest eigenvalue is at most c times that mean. Momentum 0.9 makes ten
    steps of one, and begins with a tenth.

    Args:
        dataset: what will be fitted, after preprocessing.
        optimizer: by what.
        loss: of which loss.

    Returns:
        Complete `Settings`.

    Example:
        >>> from jaxsoftmax.app import data, defaults
        >>> digits = data.load("digits")
        >>> defaults.default_settings(
        ...     digits, defaults.OptimizerName.adamw, defaults.LossName.softmax)
        Settings(epochs=50, batch_size=32, learning_rate=0.03, weight_decay=0.03)
    """
    # A file may have a known name as well, but not the scale that goes with it.
    known = KNOWN.get(dataset.name) if dataset.schema.divisor != 1 else None
    start = known or _start(dataset)
    epochs, batch_size = start.epochs, start.batch_size
    if optimizer is OptimizerName.adamw:
        return start
    if optimizer is OptimizerName.adam:
        return Settings(epochs, batch_size, start.learning_rate, 0.0)
    x = dataset.train.features
    if optimizer is OptimizerName.lbfgs:
        return Settings(epochs=100, batch_size=len(x), learning_rate=None, weight_decay=0.0)
    stable = 2 / (CURVATURE[loss] * (1 + float(np.vdot(x, x)) / len(x)))
    rate = stable if optimizer is OptimizerName.sgd else stable / 10
    return Settings(epochs, batch_size, rate, 0.0)


def _start(dataset: Dataset) -> Settings:
    size = len(dataset.train.features)
    batch_size = 2 ** int(np.clip(round(math.log2(size / 50)), 5, 10))
    epochs = int(np.clip(round(3000 * batch_size / size), 5, 500))
    rate = 0.02
    if dataset.schema.task is Task.numbers:
        rate *= float(np.std(dataset.train.targets, axis=0).max()) or 1.0
    return Settings(epochs, batch_size, rate, weight_decay=0.03)


def default_optimizer(schema: Schema) -> OptimizerName:
    """Return the optimizer to begin with.

    Args:
        schema: of the data.

    Returns:
        lbfgs for numbers, whose scale only it finds by itself; else adamw.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> defaults.default_optimizer(Schema(Task.numbers, ("price",), shape=(3,)))
        <OptimizerName.lbfgs: 'lbfgs'>
    """
    return OptimizerName.lbfgs if schema.task is Task.numbers else OptimizerName.adamw


def scales_apart(features: np.ndarray) -> float:
    """Return how far the scales of columns differ.

    Args:
        features: `[N, D]`; the first 10,000 rows tell.

    Returns:
        The greatest standard deviation over the least, of columns that are not constant; at
        least 1. One learning rate suits them all as long as it is moderate.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import defaults
        >>> defaults.scales_apart(np.array([[0.0, 0.0, 7.0], [1.0, 500.0, 7.0]]))
        500.0
    """
    deviations = np.std(features[:10_000], axis=0, dtype=np.float64)
    deviations = deviations[deviations > 0]
    return float(deviations.max() / deviations.min()) if deviations.size else 1.0


LOSSES = {
    Task.classes: tuple(LossName),
    Task.labels: (LossName.sigmoid, LossName.hinge),
    Task.numbers: (LossName.squared_error,),
}
"""The losses that make sense of each task."""


def default_loss(schema: Schema) -> LossName:
    """Return the loss to begin with.

    Args:
        schema: of the data.

    Returns:
        softmax of several classes; sigmoid, which is logistic regression, of two, and of labels;
        squared_error of numbers.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> defaults.default_loss(Schema(Task.classes, ("no", "yes"), shape=(3,)))
        <LossName.sigmoid: 'sigmoid'>
    """
    if schema.task is Task.classes and len(schema.classes) > 2:
        return LossName.softmax
    return LossName.squared_error if schema.task is Task.numbers else LossName.sigmoid


def num_scores(schema: Schema, loss: LossName) -> int:
    """Return how many scores a head has: one for each class, label or number.

    A sigmoid tells two classes apart by one score, the second class's.

    Args:
        schema: of the data.
        loss: that it is fitted with.

    Returns:
        The number of columns of w.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> defaults.num_scores(Schema(Task.classes, ("no", "yes"), shape=(3,)), "sigmoid")
        1
    """
    count = len(schema.classes)
    return 1 if (schema.task, loss, count) == (Task.classes, LossName.sigmoid, 2) else count


def make_loss(name: LossName, schema: Schema) -> Loss:
    """Return the loss of that name, one value per example.

    Args:
        name: of classes, `softmax` is cross-entropy; `sigmoid` one binary cross-entropy per class,
            summed (each class against the rest), and of two classes a single one; `squared_error`
            that of the scores and the one-hot label; `hinge` the multiclass large margin. Of
            labels, `sigmoid` and `hinge` sum over them. Of numbers, `squared_error` does.
        schema: of the data.

    Returns:
        A loss for `training.fit`.

    Raises:
        ValueError: if the loss is none of the task's.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear
        >>> from jaxsoftmax.app import defaults
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> schema = Schema(Task.classes, ("a", "b", "c", "d"), shape=(3,))
        >>> loss = defaults.make_loss(defaults.LossName.softmax, schema)
        >>> print(loss(linear.init(3, 4), jnp.ones((1, 3)), jnp.array([2])))
        [1.3862944]
    """
    if name not in LOSSES[schema.task]:
        meant = " or ".join(LOSSES[schema.task])
        raise ValueError(f"loss must be {meant} for a task of {schema.task}, got {name}")
    if schema.task is Task.labels and name is LossName.hinge:
        return on_logits(losses.hinge)
    return on_logits(_OF_LOGITS[name])


def _each_against_the_rest(logits: Array, targets: Array) -> Array:
    if targets.ndim < logits.ndim:  # a class; labels, and that of one score, come as they are
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return losses.binary_cross_entropy(logits, targets)


_OF_LOGITS: dict[LossName, Callable[[Array, Array], Array]] = {
    LossName.softmax: losses.cross_entropy,
    LossName.sigmoid: _each_against_the_rest,
    LossName.squared_error: losses.squared_error,
    LossName.hinge: losses.multiclass_hinge,
}


def make_optimizer(
    name: OptimizerName, settings: Settings, *, num_examples: int
) -> optax.GradientTransformation:
    """Return the Optax optimizer of that name.

    The learning rate falls to 0 along half a cosine. Weight decay leaves the bias alone; adamw
    keeps it apart from the gradient, and the others add it.

    Args:
        name: sgd, momentum (Nesterov's, 0.9), adam, adamw or lbfgs.
        settings: complete.
        num_examples: of the training data, which gives the number of steps.

    Returns:
        An Optax gradient transformation.

    Raises:
        ValueError: if lbfgs, whose line search minimises the loss alone, is given a learning rate
            or a weight decay.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> settings = defaults.Settings(epochs=2, batch_size=8, learning_rate=0.1, weight_decay=0)
        >>> sgd = defaults.make_optimizer(defaults.OptimizerName.sgd, settings, num_examples=20)
        >>> type(sgd).__name__
        'GradientTransformationExtraArgs'
    """
    decay, mask = settings.weight_decay, weight_decay_mask
    if name is OptimizerName.lbfgs:
        if settings.learning_rate is not None or decay:
            raise ValueError(
                "lbfgs finds its own steps and minimises the loss alone: "
                "it takes neither a learning rate nor a weight decay"
            )
        return optax.lbfgs()
    assert settings.learning_rate is not None
    steps = settings.epochs * -(-num_examples // settings.batch_size)
    rate = optax.cosine_decay_schedule(settings.learning_rate, steps)
    if name is OptimizerName.adamw:
        return optax.adamw(rate, weight_decay=decay, mask=mask)
    step = {
        OptimizerName.adam: optax.adam(rate),
        OptimizerName.sgd: optax.sgd(rate),
        OptimizerName.momentum: optax.sgd(rate, momentum=0.9, nesterov=True),
    }[name]
    return optax.chain(optax.add_decayed_weights(decay, mask), step)
