"""What the command line's names stand for: losses, optimizers, and the settings to begin with."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import jax
import numpy as np
import optax
from jax import Array

from jaxsoftmax import losses
from jaxsoftmax.data import Dataset
from jaxsoftmax.training import Loss, on_logits, weight_decay_mask


class LossName(StrEnum):
    """Losses of K scores and a class."""

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
DEFAULTS = {
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

    adamw takes those of the table above, and so does adam, but for weight decay. lbfgs takes all
    examples as one batch and finds its steps by itself. sgd begins with the longest step that is
    stable on all the data, 2 / (c (1 + mean |x|^2)): c bounds the loss's second derivative in a
    score, so c E[x x'] bounds the Hessian, and its greatest eigenvalue is at most c times that
    mean. Momentum 0.9 makes ten steps of one, and begins with a tenth.

    Args:
        dataset: what will be fitted.
        optimizer: by what.
        loss: of which loss.

    Returns:
        Complete `Settings`.

    Example:
        >>> from jaxsoftmax import data, recipes
        >>> digits = data.load("digits")
        >>> recipes.default_settings(
        ...     digits, recipes.OptimizerName.adamw, recipes.LossName.softmax)
        Settings(epochs=50, batch_size=32, learning_rate=0.03, weight_decay=0.03)
    """
    start = DEFAULTS[dataset.name]
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


def make_loss(name: LossName) -> Loss:
    """Return the loss of that name, one value per example with an integer label.

    Args:
        name: `softmax` is cross-entropy; `sigmoid` one binary cross-entropy per class, summed
            (each class against the rest); `squared_error` that of the scores and the one-hot
            label; `hinge` the multiclass large margin.

    Returns:
        A loss for `training.fit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear, recipes
        >>> loss = recipes.make_loss(recipes.LossName.softmax)
        >>> print(loss(linear.init(3, 4), jnp.ones((1, 3)), jnp.array([2])))
        [1.3862944]
    """
    of_logits: dict[LossName, Callable[[Array, Array], Array]] = {
        LossName.softmax: losses.cross_entropy,
        LossName.sigmoid: _each_against_the_rest,
        LossName.squared_error: losses.squared_error,
        LossName.hinge: losses.multiclass_hinge,
    }
    return on_logits(of_logits[name])


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
        >>> from jaxsoftmax import recipes
        >>> settings = recipes.Settings(epochs=2, batch_size=8, learning_rate=0.1, weight_decay=0)
        >>> sgd = recipes.make_optimizer(recipes.OptimizerName.sgd, settings, num_examples=20)
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


def _each_against_the_rest(logits: Array, label: Array) -> Array:
    targets = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return losses.binary_cross_entropy(logits, targets)
