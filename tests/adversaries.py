"""Logits and labels on which an inexact softmax shows itself, one trap a row."""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray

CLASSES = (2, 3, 10, 127, 128, 129, 500, 1000, 32768, 100_000)
LABELS = ("first", "last", "middle", "leading", "trailing", "random")


def _rows(classes: int, dtype: type) -> Iterator[Array]:
    rng = np.random.default_rng(classes)
    info = np.finfo(dtype)
    depth = -np.log(float(info.tiny))  # exp(-depth) is the smallest normal number
    huge = 0.88 * float(info.max)  # 3e38 in float32

    def normal() -> Array:
        return rng.standard_normal(classes)

    def one_at(value: float, rest: float) -> Array:
        row = np.full(classes, rest)
        row[rng.integers(classes)] = value
        return row

    for scale in (1e-3, 1.0, 30.0, 40.0):
        yield scale * normal()
        for offset in (-1e4, 77.7, 1e4):
            yield scale * normal() + offset
    # Probabilities down to the smallest normal number under a maximum at every kind of place, the
    # sides of 256 (float32's border between the two ways of subtracting) and 2048 among them.
    for largest in (0.0, 40.0, 254.0, 255.99, 256.0, 256.0001, 258.0, 1024.0, 2047.9, 2048.0, 1e6):
        for sign in (1.0, -1.0):
            row = sign * largest - depth * rng.random(classes)
            # That difference left the last bits of float64 empty, which would hide rounding.
            row *= 1 + np.finfo(np.float64).eps * rng.integers(-9, 10, classes)
            row = np.minimum(row, sign * largest)
            row[rng.integers(classes)] = sign * largest
            yield row
    # Half integers times log 2, where the rounding of the binary exponent turns.
    yield (rng.integers(-100, 100, classes) + 0.5) * np.log(2)
    # Confident rows, and ones with a single class far below.
    for margin in (20.0, 87.0, 88.5, 100.0, 740.0, 1e4):
        yield one_at(margin, 0.0)
        yield one_at(-margin, 0.0)
        yield one_at(300.0, 300.0 - margin)
    # A leader over equal others: a sum taken one by one rounds each addition the same way, and so
    # drifts by ulps in the hundreds of classes.
    for leader, rest in ((8.0, 0.0), (13.5, 0.0), (16.1, 0.37), (12.7, 0.61)):
        yield np.where(np.arange(classes) == 0, leader, rest)
    # Ties: all, two, and of huge numbers; numbers too far apart to subtract.
    for value in (0.0, -0.0, 77.7, 1e30, huge, -huge):
        yield np.full(classes, value)
    row = -10 - normal() ** 2
    row[[0, -1]] = 3.3
    yield row
    yield 1e30 * (1 + 1e-7 * normal())
    yield np.where(rng.random(classes) < 0.5, huge, -huge)
    yield one_at(huge, 0.0)
    # Masked classes: half of them, all but one, all.
    for scale, offset in ((1.0, 0.0), (30.0, 0.0), (30.0, 1e4)):
        yield np.where(rng.random(classes) < 0.5, -np.inf, scale * normal() + offset)
    yield one_at(5.0, -np.inf)
    yield np.full(classes, -np.inf)


def logits(classes: int, dtype: type) -> Array:
    """A batch [rows, classes] of traps; the number of rows is even, for tests that split it."""
    rows = list(_rows(classes, dtype))
    rows += [np.arange(classes, dtype=np.float64) % 7] * (len(rows) % 2)
    return np.stack(rows).astype(dtype)


def where(classes: int, shape: tuple[int, ...]) -> Array:
    """A mask that leaves about two thirds of the classes, and none at all in the third row."""
    mask = np.random.default_rng(classes + 1).random(shape) < 0.66
    mask[2] = False
    return mask


def labels(kind: str, batch: Array) -> Array:
    """A label for each row, never a masked class unless all are."""
    rng = np.random.default_rng(7)
    rows, classes = batch.shape
    present = np.where(np.isneginf(batch), np.inf, batch)
    chosen = {
        "first": np.zeros(rows, int),
        "last": np.full(rows, classes - 1),
        "middle": np.full(rows, classes // 2),
        "leading": batch.argmax(-1),
        "trailing": present.argmin(-1),
        "random": rng.integers(0, classes, rows),
    }[kind]
    masked = np.isneginf(np.take_along_axis(batch, chosen[:, None], -1)[:, 0])
    return np.where(masked, batch.argmax(-1), chosen).astype(np.int32)


def scalars(dtype: type) -> Array:
    """Logits of single labels: dense around 0 and through every range of the sigmoid's tails."""
    rng = np.random.default_rng(3)
    depth = 1.2 * -np.log(float(np.finfo(dtype).tiny))
    special = np.array([0.0, -0.0, 1e4, 1e30, 0.88 * float(np.finfo(dtype).max), np.inf])
    positive = np.concatenate(
        [
            special,
            np.geomspace(1e-30, 1.0, 4000),
            depth * rng.random(30_000),
            2 * rng.random(10_000),
            (np.arange(200) + 0.5) * np.log(2),
        ]
    )
    return np.concatenate([positive, -positive]).astype(dtype)
