"""Files of tables for the tests of what is read from them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def table(path: Path, columns: dict[str, Any]) -> Path:
    """Write columns as the suffix says."""
    content = pa.table(columns)
    if path.suffix == ".parquet":
        pa.parquet.write_table(content, path)
    else:
        pa.csv.write_csv(content, path)
    return path
