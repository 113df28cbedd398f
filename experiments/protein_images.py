"""The images of the Human Protein Atlas competition as features, and their 28 classes.

The competition (Kaggle, 2018; Ouyang et al., Nature Methods 16, 2019) provides train.csv, with an
identifier and the numbers of its classes in each row, and four gray images for each identifier, one
for each stain: ID_red.png, ID_green.png, ID_blue.png and ID_yellow.png.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from jaxsoftmax.app.data.dataset import Schema, Split, Task

STAINS = ("red", "green", "blue", "yellow")  # microtubules, the protein, nucleus, reticulum
CLASSES = (
    "Nucleoplasm", "Nuclear membrane", "Nucleoli", "Nucleoli fibrillar center", "Nuclear speckles",
    "Nuclear bodies", "Endoplasmic reticulum", "Golgi apparatus", "Peroxisomes", "Endosomes",
    "Lysosomes", "Intermediate filaments", "Actin filaments", "Focal adhesion sites",
    "Microtubules", "Microtubule ends", "Cytokinetic bridge", "Mitotic spindle",
    "Microtubule organizing center", "Centrosome", "Lipid droplets", "Plasma membrane",
    "Cell junctions", "Mitochondria", "Aggresome", "Cytosol", "Cytoplasmic bodies",
    "Rods & rings",
)  # fmt: skip


def load(table: Path, images: Path, *, size: int = 32) -> tuple[Split, Schema]:
    """Read all examples of a table.

    Args:
        table: train.csv, with the columns Id and Target; class numbers are separated by spaces.
        images: the folder of the images.
        size: the number of rows and columns that each image is reduced to, by means of areas.

    Returns:
        A `Split` of features in 0 to 1, `[N, size * size * 4]`, stains last, and bool targets
        `[N, 28]`; and its `Schema`.

    Raises:
        FileNotFoundError: if an image is missing; names it.
        ValueError: if the table lacks a column or a class number is not in 0 to 27; names the row.
    """
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"Id", "Target"} <= rows[0].keys():
        raise ValueError(f"{table.name}: expected rows with Id and Target")
    targets = np.zeros((len(rows), len(CLASSES)), bool)
    for number, row in enumerate(rows):
        targets[number, classes(row["Target"], f"{table.name}, row {number + 1}")] = True
    features = np.stack([stains(images, row["Id"], size) for row in rows])
    schema = Schema(task=Task.labels, classes=CLASSES, shape=(size, size, 4), divisor=255,
                    target=("Target",), identifier="Id")  # fmt: skip
    ids = np.array([row["Id"] for row in rows])
    return Split(features.reshape(len(rows), -1), targets, ids), schema


def classes(text: str, where: str) -> list[int]:
    """Parse the class numbers of a row."""
    parts = text.split()
    bad = [part for part in parts if not (part.isdecimal() and int(part) < len(CLASSES))]
    if bad or not parts:
        raise ValueError(f"{where}: expected class numbers from 0 to 27, got {text!r}")
    return [int(part) for part in parts]


def stains(folder: Path, identifier: str, size: int) -> np.ndarray:
    """Read the four images of an example, reduced, as `[size, size, 4]` in 0 to 1."""
    channels = [gray(folder / f"{identifier}_{stain}.png", size) for stain in STAINS]
    return np.stack(channels, -1)


def gray(path: Path, size: int) -> np.ndarray:
    """Read one 8-bit image, reduced."""
    with Image.open(path) as image:
        reduced = image.convert("L").resize((size, size), Image.Resampling.BOX)
    return np.asarray(reduced, np.float32) / 255
