"""The model of a run, between its parameters and the arrays and settings that are stored."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax.app.data.dataset import Schema
from jaxsoftmax.app.data.preprocessing import IDENTITY, Preprocessing
from jaxsoftmax.app.parameters import Params
from jaxsoftmax.app.run_header import FORMAT, VERSION


class Model(NamedTuple):
    """A fitted head: its parameters, the preprocessing of its features, and the schema of both.

    `header` holds what `model.json` records of the run besides these.
    """

    params: Params
    schema: Schema
    preprocessing: Preprocessing = IDENTITY
    header: Mapping[str, Any] = MappingProxyType({})


def describe_model(model: Model) -> dict[str, Any]:
    """Return the header of a model without the files of the run."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        **model.header,
        "schema": model.schema.to_json(),
        "preprocessing": {
            "log1p": model.preprocessing.log1p,
            "standardize": model.preprocessing.mean is not None,
        },
    }


def to_arrays(model: Model) -> dict[str, np.ndarray]:
    """Return the arrays of a model by the names under which they are stored."""
    arrays = {
        "w": model.params.w,
        "bias": model.params.bias,
        "mean": model.preprocessing.mean,
        "scale": model.preprocessing.scale,
    }
    return {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}


def parse_schema(path: Path, header: Mapping[str, Any]) -> tuple[Schema, bool]:
    """Return the schema, and whether log(1 + x) is taken of the features."""
    try:
        return Schema.from_json(header["schema"]), bool(header["preprocessing"]["log1p"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: no schema or preprocessing ({error})") from error


def check_arrays(path: Path, arrays: Mapping[str, np.ndarray], schema: Schema) -> None:
    """Raise a ValueError for arrays of the file at `path` that are not those of a model."""
    _check_shapes(path, arrays, schema)
    _check_values(path, arrays)


def _check_shapes(path: Path, arrays: Mapping[str, np.ndarray], schema: Schema) -> None:
    """Check for w: [D, K], optionally bias: [K], and both or neither of mean and scale: [D].

    A model of two classes may have a single score.
    """
    num_features, num_classes = schema.num_features, len(schema.classes)
    shapes = {name: array.shape for name, array in arrays.items()}
    for num_scores in {num_classes, 1 if num_classes == 2 else num_classes}:
        w, bias = {"w": (num_features, num_scores)}, {"bias": (num_scores,)}
        scaling = {"mean": (num_features,), "scale": (num_features,)}
        if shapes in (w, w | bias, w | scaling, w | bias | scaling):
            return
    raise ValueError(
        f"{path} must hold w: ({num_features}, {num_classes}) and what belongs to it, got {shapes}"
    )


def _check_values(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Check for finite floats, of float32 where they are parameters."""
    for name, array in arrays.items():
        expected = "float64" if name in ("mean", "scale") else "float32"
        if array.dtype.name not in (expected, "float64"):
            raise ValueError(f"{path}: {name} must be {expected}, got {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} must be finite, and holds NaN or infinity")
