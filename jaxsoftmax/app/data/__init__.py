"""Data sets by name and from files, and more data for a fitted model.

names, load      the known data sets and those of TensorFlow Datasets (sources, prepared)
is_file, load_file, read
                 tables and arrays in files (files; joined_files, roles, tables, text_files,
                 dialects, excel_files, arrays, row_blocks)
                 what columns become (column_learning, column_kinds, column_summaries,
                 table_schema; cells), and labels (targets)
assign_folds     folds without chance (splits)
Dataset, Split, Schema, Task
                 the types of the results (dataset); preprocessing is learned from them
"""

from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.data.files import load_file
from jaxsoftmax.app.data.sources import load, names, read
from jaxsoftmax.app.data.splits import assign_folds
from jaxsoftmax.app.file_formats import is_file

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
    "assign_folds",
]
