"""Data sets by name, from files, and more of the same for a model that is fitted already.

names, load      the known data sets, and TensorFlow Datasets' (sources, prepared)
is_file, load_file, read
                 CSV, Parquet, npz and npy (files; tables, arrays, blocks; targets)
folds            a split without chance (splits)
Dataset, Split, Schema, Task
                 what they give (dataset); preprocessing is learned from it
"""

from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.data.files import is_file, load_file
from jaxsoftmax.app.data.sources import load, names, read
from jaxsoftmax.app.data.splits import folds

__all__ = [
    "Dataset",
    "Split",
    "Schema",
    "Task",
    "names",
    "load",
    "is_file",
    "load_file",
    "read",
    "folds",
]
