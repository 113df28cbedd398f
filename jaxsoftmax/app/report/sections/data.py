"""The data: its source, its examples, its features, and their preprocessing."""

from collections.abc import Iterator

from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, Table
from jaxsoftmax.app.report.sections import formats


def render(context: Context) -> Iterator[Element]:
    """Yield a table."""
    schema, data = context.schema, context.header.get("data", {})
    sizes = [f"{values['examples']:,} {split}" for split, values in context.run.metrics.items()]
    rows = [
        ("source", data.get("source", formats.ABSENT)),
        ("examples", ", ".join(sizes) or formats.ABSENT),
        ("features", _describe_features(context)),
        ("preprocessing", _describe_preprocessing(context)),
        (str(schema.task), f"{len(schema.classes):,}: {formats.list_names(context.classes)}"),
    ]
    yield Table("Source, examples and features", ("", ""), rows, "ll")


def _describe_features(context: Context) -> str:
    schema = context.schema
    if schema.columns is not None:
        return f"{schema.num_features:,}: {formats.list_names(context.columns)}"
    if len(schema.shape) == 1:
        return f"{schema.num_features:,}"
    return f"{schema.num_features:,}, of shape {' × '.join(map(str, schema.shape))}"


def _describe_preprocessing(context: Context) -> str:
    divisor = context.schema.divisor
    steps = [f"divided by {divisor:g}"] if divisor != 1 else []
    steps += ["logarithm of 1 + x"] if context.run.preprocessing.log1p else []
    steps += ["standardized with the training data"] if context.is_standardized else []
    return ", then ".join(steps) or "none"
