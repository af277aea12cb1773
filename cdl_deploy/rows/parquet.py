"""Rows ↔ a Parquet file, some thousand at a time. The only module that needs pyarrow (the extra `parquet`).

Its columns are those of `cdl_deploy.runtime.columns`; `top_k` is a list of {label, probability}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cdl_deploy.errors import DataError
from cdl_deploy.files import atomic_path
from cdl_deploy.runtime.columns import CLASS_COLUMNS, COLUMNS, escaped, from_record, to_record
from cdl_deploy.runtime.predict import Row
from cdl_deploy.typed_json import short

ROWS_IN_A_GROUP = 65_536
TYPES = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int32()}
_CLASS = pyarrow.struct([(column.name, TYPES[column.type]) for column in CLASS_COLUMNS])
SCHEMA = pyarrow.schema(
    [(column.name, pyarrow.list_(_CLASS) if column.type is list else TYPES[column.type]) for column in COLUMNS]
)


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Write all `rows` to `path`, atomically. Bytes of a path that are not UTF-8 are escaped (`\\udce9`)."""
    source = iter(rows)
    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, SCHEMA) as writer:
        while group := list(islice(source, ROWS_IN_A_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist([_record(row) for row in group], SCHEMA))


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a file that `write_parquet` wrote. Raises `DataError` for any other."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise DataError(f"{path}: its columns are {file.schema_arrow.names}, not those of cdl predict")
            for batch in file.iter_batches(batch_size=ROWS_IN_A_GROUP // 8):
                yield from map(from_record, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({short(str(error))})") from error


def _record(row: Row) -> dict[str, Any]:
    record = to_record(row)
    return record | {name: escaped(record[name]) for name in ("path", "error") if record[name] is not None}
