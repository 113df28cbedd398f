"""A fit by Cyanure in its own interpreter, whose scikit-learn is an older one.

Command: `PYTHON in_cyanure.py FILE C TOLERANCE`, where FILE holds the arrays y and x, or the parts
of a CSR matrix. It prints the figures and writes coef and intercept beside FILE.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from cyanure.estimators import Classifier


def main() -> None:
    """Fit once, print the figures and write the parameters."""
    file, C, tol = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    arrays = np.load(file)
    y = arrays["y"]
    if "x" in arrays:
        x = arrays["x"]
    else:
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        x = scipy.sparse.csr_matrix(parts, shape=tuple(arrays["shape"]))
    model = Classifier(
        loss="multiclass-logistic",
        penalty="l2",
        lambda_1=1 / (C * len(y)),
        tol=tol,
        max_iter=100_000,
        fit_intercept=True,
        verbose=False,
    )
    wall, processor = time.perf_counter(), time.process_time()
    model.fit(x, y)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    iterations, *_, gap, _, _ = model.optimization_info_[0][:, -1]
    np.savez(file.with_suffix(".fit.npz"), coef=model.coef_, intercept=model.intercept_)
    figures = {
        "seconds": wall,
        "processor seconds": processor,
        "gap": float(gap),
        "iterations": int(iterations),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
