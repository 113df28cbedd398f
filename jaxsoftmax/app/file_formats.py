"""The formats of files of data, by their suffixes, and the files of a run; none is opened here."""

from pathlib import Path

TEXT = (".csv", ".tsv", ".txt", ".data")
EXCEL = (".xlsx", ".xls", ".xlsb", ".ods")
PARQUET = ".parquet"
ARRAYS = (".npy", ".npz")
TABLES = (*TEXT, *EXCEL, PARQUET)
ALL = (*TABLES, *ARRAYS)
STDIN = "-"
RUN_FILES = ("model.json", "model.safetensors", "metrics.json", "history.csv", "report.html")


def is_file(source: str | Path) -> bool:
    """Return whether a data source names a file: by its suffix, or because the file exists.

    `-` is standard input, and a named pipe is read as text.

    Args:
        source: a path, or the name of a data set.

    Example:
        >>> from jaxsoftmax.app import file_formats
        >>> file_formats.is_file("nowhere.csv"), file_formats.is_file("digits")
        (True, False)
    """
    path = Path(source)
    # A folder or a device is an error that says so; a name may be that of a folder here.
    is_there = path.exists() and (not path.is_dir() or len(path.parts) > 1)
    return is_table(path) or is_array(path) or is_there


def is_table(path: Path) -> bool:
    """Return whether a path names a table, by its suffix or since it is a pipe.

    Args:
        path: any path.

    Example:
        >>> from pathlib import Path
        >>> from jaxsoftmax.app import file_formats
        >>> file_formats.is_table(Path("table.CSV.gz"))
        True
    """
    name = path.name.lower()
    packed = name.endswith(".gz") and name.removesuffix(".gz").endswith(TEXT)
    return packed or path.suffix.lower() in TABLES or is_pipe(path)


def is_array(path: Path) -> bool:
    """Return whether a path names a file of arrays.

    Args:
        path: any path.

    Example:
        >>> from pathlib import Path
        >>> from jaxsoftmax.app import file_formats
        >>> file_formats.is_array(Path("images.npz"))
        True
    """
    return path.suffix.lower() in ARRAYS


def is_pipe(path: Path) -> bool:
    """Return whether a path is standard input or a named pipe.

    Args:
        path: any path.

    Example:
        >>> from pathlib import Path
        >>> from jaxsoftmax.app import file_formats
        >>> file_formats.is_pipe(Path("-"))
        True
    """
    return str(path) == STDIN or path.is_fifo()
