r"""Calibration: rescale the logits of a fitted classifier so that its probabilities can be trusted.

    temperature_scaling    z / T, one temperature for all logits
    vector_scaling         a_k z_k + c_k, a scale and a bias for each class or label

Both minimize the negative log-likelihood of validation data that did not train the classifier. Both
problems are convex, are solved in float64, and never make the likelihood worse on the data they are
fitted to. With integer labels `[N]` and logits `[N, K]` the head is a softmax. With targets of the
logits' shape, or logits `[N, 1]`, it is one sigmoid per label, for which vector scaling is Platt's
method label by label.

Data can fail to determine an answer in two ways, and the result tells them apart:

- The likelihood has no optimum. If all examples are classified correctly, it grows with the scale
  forever, and the temperature stops at 1 / limit; the bias of a class without examples decreases
  forever. The result is then finite, with `converged=False`.
- The probabilities have an optimum, but several scales attain it: those of a class whose logits do
  not vary, or of two classes with logits z and -z. Such a scale stays 1, or as near to 1 as the
  optimum allows, and `determined` is False.
"""

from jaxsoftmax.calibration.result import Fit
from jaxsoftmax.calibration.temperature import temperature_scaling
from jaxsoftmax.calibration.vector import vector_scaling

__all__ = ["Fit", "temperature_scaling", "vector_scaling"]
