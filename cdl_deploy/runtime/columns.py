"""The one schema of a row of `cdl predict`, which the table, JSON Lines, CSV, Parquet and Ray share.

A row as a record is a value for each of `COLUMNS`, by name: None where it has none, as the error of an image that could
be read. `to_record` and `from_record` are inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cdl_deploy.runtime.classifier import Prediction
from cdl_deploy.runtime.predict import Row


@dataclass(frozen=True)
class Column:
    """One value of a row."""

    name: str
    type: type
    """`str`, `float` or `int`; `list` for one that holds a record of `CLASS_COLUMNS` a class, best first."""


CLASS_COLUMNS = (Column("label", str), Column("probability", float))
"""What is said of one class."""
COLUMNS = (
    Column("path", str),
    *CLASS_COLUMNS,
    Column("task", int),
    Column("index", int),
    Column("error", str),
    Column("top_k", list),
)
"""In the order in which they are written. Label and probability are those of the best class."""


def to_record(row: Row) -> dict[str, Any]:
    """The values of a row by the name of their column."""
    record: dict[str, Any] = {column.name: None for column in COLUMNS}
    record |= {"path": row.path, "error": row.error}
    best = row.prediction
    if best is not None:
        record |= {"label": best.label, "probability": best.probability, "task": best.task, "index": best.index}
        record["top_k"] = [{"label": label, "probability": value} for label, value in best.top_k]
    return record


def from_record(record: dict[str, Any]) -> Row:
    """The row of a record, in which values that are None may be missing.

    Raises `KeyError`, `TypeError` or `ValueError` for what is no row.
    """
    path, error = record["path"], record.get("error")
    if not isinstance(path, str):
        raise TypeError(f"path is {path!r}, expected a text")
    if error is not None:
        return Row(path, None, str(error))
    top = tuple((str(item["label"]), float(item["probability"])) for item in record["top_k"])
    label, probability = str(record["label"]), float(record["probability"])
    return Row(path, Prediction(label, probability, top, int(record["task"]), int(record["index"])), None)


def escaped(text: str) -> str:
    """`text` with bytes that are not UTF-8 escaped (`\\udce9`), for formats that hold only valid text."""
    return text.encode("utf-8", "backslashreplace").decode()
