"""Rows ↔ a Parquet file, some thousand at a time. The only module that needs pyarrow (the extra `parquet`).

Columns as in JSON Lines: path, label, probability, task, index, error, and top_k, a list of {label, probability}.
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
from cdl_deploy.runtime.classifier import Prediction
from cdl_deploy.runtime.predict import Row
from cdl_deploy.typed_json import short

ROWS_IN_A_GROUP = 65_536
_TOP = pyarrow.struct([("label", pyarrow.string()), ("probability", pyarrow.float64())])
SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("label", pyarrow.string()),
        ("probability", pyarrow.float64()),
        ("task", pyarrow.int32()),
        ("index", pyarrow.int32()),
        ("error", pyarrow.string()),
        ("top_k", pyarrow.list_(_TOP)),
    ]
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
                yield from map(_row, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({short(str(error))})") from error


def _record(row: Row) -> dict[str, Any]:
    path = row.path.encode("utf-8", "backslashreplace").decode()
    p = row.prediction
    if p is None:
        return {"path": path, "error": (row.error or "").encode("utf-8", "backslashreplace").decode()}
    return {
        "path": path,
        "label": p.label,
        "probability": p.probability,
        "task": p.task,
        "index": p.index,
        "top_k": [{"label": label, "probability": probability} for label, probability in p.top_k],
    }


def _row(record: dict[str, Any]) -> Row:
    if record["error"] is not None:
        return Row(record["path"], None, record["error"])
    top = tuple((item["label"], item["probability"]) for item in record["top_k"])
    return Row(
        record["path"], Prediction(record["label"], record["probability"], top, record["task"], record["index"]), None
    )
