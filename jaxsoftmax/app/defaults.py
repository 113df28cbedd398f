"""The losses and optimizers of the command line, and the default settings for a data set."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax
from jax import Array

from jaxsoftmax import losses
from jaxsoftmax.app.data.dataset import Dataset, Schema
from jaxsoftmax.app.names import TASK_LOSSES, LossName, OptimizerName, Task
from jaxsoftmax.training import Loss, on_logits, weight_decay_mask


@dataclass(frozen=True)
class Settings:
    """The settings of an optimizer.

    `learning_rate` is the initial rate, and None for an optimizer that finds its own steps.
    """

    epochs: int
    batch_size: int
    learning_rate: float | None
    weight_decay: float


# For adamw and softmax, chosen on the validation splits among two or three values of each setting.
KNOWN_SETTINGS = {
    "digits": Settings(epochs=50, batch_size=32, learning_rate=0.03, weight_decay=0.03),
    "mnist": Settings(epochs=30, batch_size=256, learning_rate=0.003, weight_decay=0.03),
    "fashion_mnist": Settings(epochs=30, batch_size=256, learning_rate=0.005, weight_decay=0.1),
    "cifar10": Settings(epochs=30, batch_size=256, learning_rate=0.002, weight_decay=0.1),
}


# The largest second derivative of each loss with respect to a score. The hinge has none and takes
# that of the steepest loss. For softmax, diag(p) - p p' is at most 1/2 (Bohning, 1992).
MAX_CURVATURE = {
    LossName.softmax: 0.5,
    LossName.sigmoid: 0.25,
    LossName.squared_error: 2.0,
    LossName.hinge: 2.0,
}


def default_settings(dataset: Dataset, optimizer: OptimizerName, loss: LossName) -> Settings:
    """Return the default settings for a data set, an optimizer and a loss.

    For adamw the four known data sets have settings of their own, in the table above. For other
    data, the batch size is the power of 2 nearest to a fiftieth of the N training examples, from 32
    to 1,024, and the number of epochs gives about 3,000 steps, from 5 to 500. For features on a
    scale of 1, the learning rate 0.02 and the weight decay 0.03 came within 0.01 of the validation
    loss of scikit-learn's logistic regression or below it (on iris, wine, breast_cancer, digits,
    malware, yeast, and synthetic data of 42,000 x 100). For numbers the rate is proportional to
    their standard deviation, since the steps must cover that distance.

    adam takes the same settings, without weight decay. lbfgs takes all examples as one batch and
    finds its own steps. sgd starts with the longest step that is stable on all the data,
    2 / (c (1 + mean |x|^2)): c bounds the second derivative of the loss with respect to a score, so
    c E[x x'] bounds the Hessian, and its largest eigenvalue is at most c times that mean. Momentum
    0.9 makes each step as long as ten, so momentum starts with a tenth of that rate.

    Args:
        dataset: the data to fit, after preprocessing.
        optimizer: the optimizer.
        loss: the loss to fit.

    Returns:
        Complete `Settings`.

    Example:
        >>> from jaxsoftmax.app import data, defaults
        >>> digits = data.load("digits")
        >>> defaults.default_settings(
        ...     digits, defaults.OptimizerName.adamw, defaults.LossName.softmax)
        Settings(epochs=50, batch_size=32, learning_rate=0.03, weight_decay=0.03)
    """
    optimizer, loss = OptimizerName(optimizer), LossName(loss)
    # A file may be named like a known data set, but does not have its scale.
    known = KNOWN_SETTINGS.get(dataset.name) if dataset.schema.divisor != 1 else None
    settings = known or _settings_from_size(dataset)
    match optimizer:
        case OptimizerName.adamw:
            return settings
        case OptimizerName.adam:
            return replace(settings, weight_decay=0.0)
        case OptimizerName.lbfgs:
            size = len(dataset.train.features)
            return Settings(epochs=100, batch_size=size, learning_rate=None, weight_decay=0.0)
        case OptimizerName.sgd:
            rate = _stable_rate(dataset.train.features, loss)
        case OptimizerName.momentum:
            rate = _stable_rate(dataset.train.features, loss) / 10
    return replace(settings, learning_rate=rate, weight_decay=0.0)


def _settings_from_size(dataset: Dataset) -> Settings:
    size = len(dataset.train.features)
    batch_size = 2 ** int(np.clip(round(math.log2(size / 50)), 5, 10))
    epochs = int(np.clip(round(3000 * batch_size / size), 5, 500))
    rate = 0.02
    if dataset.schema.task is Task.numbers:
        rate *= float(np.std(dataset.train.targets, axis=0).max()) or 1.0
    return Settings(epochs, batch_size, rate, weight_decay=0.03)


def _stable_rate(features: np.ndarray, loss: LossName) -> float:
    """Return a learning rate below which gradient descent on all examples is stable."""
    mean_square = float(np.vdot(features, features)) / len(features)
    return 2 / (MAX_CURVATURE[loss] * (1 + mean_square))


def default_optimizer(schema: Schema) -> OptimizerName:
    """Return the default optimizer for a task.

    Args:
        schema: the schema of the data.

    Returns:
        lbfgs for numbers, since it alone adapts to their scale; adamw for other tasks.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> defaults.default_optimizer(Schema(Task.numbers, ("price",), shape=(3,)))
        <OptimizerName.lbfgs: 'lbfgs'>
    """
    return OptimizerName.lbfgs if schema.task is Task.numbers else OptimizerName.adamw


def scale_ratio(features: np.ndarray) -> float:
    """Return the ratio of the largest to the smallest scale of the columns.

    One learning rate suits all columns as long as the ratio is moderate.

    Args:
        features: `[N, D]`, of which the first 10,000 rows are used.

    Returns:
        The largest standard deviation divided by the smallest, among columns that are not constant;
        at least 1.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import defaults
        >>> defaults.scale_ratio(np.array([[0.0, 0.0, 7.0], [1.0, 500.0, 7.0]]))
        500.0
    """
    deviations = np.std(features[:10_000], axis=0, dtype=np.float64)
    deviations = deviations[deviations > 0]
    return float(deviations.max() / deviations.min()) if deviations.size else 1.0


def default_loss(schema: Schema) -> LossName:
    """Return the default loss for a task.

    Args:
        schema: the schema of the data.

    Returns:
        softmax for several classes; sigmoid, which is logistic regression, for two classes and for
        labels; squared_error for numbers.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> from jaxsoftmax.app.data.dataset import Schema, Task
        >>> defaults.default_loss(Schema(Task.classes, ("no", "yes"), shape=(3,)))
        <LossName.sigmoid: 'sigmoid'>
    """
    match schema.task:
        case Task.numbers:
            return LossName.squared_error
        case Task.labels:
            return LossName.sigmoid
        case Task.classes:
            return LossName.softmax if len(schema.classes) > 2 else LossName.sigmoid


def num_scores(schema: Schema, loss: LossName) -> int:
    """Return the number of scores of a head: one for each class, label or number.

    A sigmoid distinguishes two classes by a single score, that of the second class.

    Args:
        schema: the schema of the data.
        loss: the loss that the head is fitted with.

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
    """Return the loss of a given name, which gives one value per example.

    Args:
        name: For classes, `softmax` is the cross-entropy. `sigmoid` is the sum of one binary
            cross-entropy per class (each class against the rest), and a single one for two classes.
            `squared_error` compares the scores with the one-hot label. `hinge` is the multiclass
            large-margin loss. For labels, `sigmoid` and `hinge` are summed over the labels. For
            numbers, `squared_error` is summed over the numbers.
        schema: the schema of the data.

    Returns:
        A loss for `training.fit`.

    Raises:
        ValueError: if the loss does not suit the task.

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
    name = LossName(name)  # a header has it as text
    if name not in TASK_LOSSES[schema.task]:
        expected = " or ".join(TASK_LOSSES[schema.task])
        raise ValueError(f"--loss must be {expected} for a task of {schema.task}, got {name}")
    if schema.task is Task.labels and name is LossName.hinge:
        return on_logits(losses.hinge)
    return on_logits(_LOSS_FUNCTIONS[name])


def _sigmoid_against_rest(logits: Array, targets: Array) -> Array:
    if targets.ndim < logits.ndim:  # classes; labels, and targets of a single score, are not mapped
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return losses.binary_cross_entropy(logits, targets)


_LOSS_FUNCTIONS: dict[LossName, Callable[[Array, Array], Array]] = {
    LossName.softmax: losses.cross_entropy,
    LossName.sigmoid: _sigmoid_against_rest,
    LossName.squared_error: losses.squared_error,
    LossName.hinge: losses.multiclass_hinge,
}


def make_optimizer(
    name: OptimizerName, settings: Settings, *, num_examples: int
) -> optax.GradientTransformation:
    """Return the Optax optimizer of a given name.

    The learning rate falls to 0 along half a cosine. Weight decay does not apply to the bias; adamw
    keeps it apart from the gradient, and the other optimizers add it to the gradient.

    Args:
        name: sgd, momentum (Nesterov's, 0.9), adam, adamw or lbfgs.
        settings: complete settings.
        num_examples: the number of training examples, which gives the number of steps.

    Returns:
        An Optax gradient transformation.

    Raises:
        ValueError: if lbfgs, whose line search minimizes the loss alone, is given a learning rate
            or a weight decay.

    Example:
        >>> from jaxsoftmax.app import defaults
        >>> settings = defaults.Settings(epochs=2, batch_size=8, learning_rate=0.1, weight_decay=0)
        >>> sgd = defaults.make_optimizer(defaults.OptimizerName.sgd, settings, num_examples=20)
        >>> type(sgd).__name__
        'GradientTransformationExtraArgs'
    """
    name, decay, mask = OptimizerName(name), settings.weight_decay, weight_decay_mask
    if name is OptimizerName.lbfgs:
        if settings.learning_rate is not None or decay:
            raise ValueError(
                "--optimizer lbfgs finds its own steps and minimizes the loss alone: "
                "it takes neither --learning-rate nor --weight-decay"
            )
        return optax.lbfgs()
    assert settings.learning_rate is not None
    num_steps = settings.epochs * -(-num_examples // settings.batch_size)
    rate = optax.cosine_decay_schedule(settings.learning_rate, num_steps)
    match name:
        case OptimizerName.adamw:
            return optax.adamw(rate, weight_decay=decay, mask=mask)
        case OptimizerName.adam:
            step = optax.adam(rate)
        case OptimizerName.sgd:
            step = optax.sgd(rate)
        case OptimizerName.momentum:
            step = optax.sgd(rate, momentum=0.9, nesterov=True)
    return optax.chain(optax.add_decayed_weights(decay, mask), step)
