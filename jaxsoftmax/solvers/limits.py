"""The limits that all engines keep, from which none of them needs JAX."""

DEFAULT_MEMORY = 4 * 2**30  # bytes, for temporary arrays beside the features
MAX_FLOAT64_SIZE = 2**24  # features x classes x lanes that are computed in float64 from the start

# Iterations.
MAX_IDLE_ITERATIONS = 3  # iterations without progress after which a precision, or the lane, ends
MAX_FORCING, MIN_FORCING = 0.3, 1e-3  # a Newton system's residual relative to the gradient

# Line searches.
MAX_TRIALS = 30
MAX_SLOPE_RATIO = 0.4  # a slope is small enough at this size, relative to the first one

# Certificates.
MAX_INTERCEPT_STEPS = 12  # Newton steps of the intercept
# The Newton decrement of the intercept, relative to the objective, that is left to the correction.
MAX_INTERCEPT_DECREMENT = 1e-12
MAX_ROUNDING = 64  # violation of the intercept's condition left to rounding and its floor, in eps
