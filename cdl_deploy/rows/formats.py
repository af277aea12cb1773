"""Rows as text, one after another: JSON Lines, CSV, lines for people; and the first two back from a file.

What a killed program left half written at the end of a file is not read.

    {"path": "a.jpg", "label": "red", "probability": 0.93, "task": 1, "index": 0, "top_k": [{"label": …}, …]}
    {"path": "b.jpg", "error": "b.jpg: empty file (0 bytes), expected an image"}

Probabilities have six digits. Paths that are not valid UTF-8 are escaped in JSON and kept as they are in CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from cdl_deploy.errors import DataError
from cdl_deploy.runtime.classifier import Prediction
from cdl_deploy.runtime.predict import Row
from cdl_deploy.typed_json import short


@dataclass(frozen=True)
class Stored:
    """A whole row that was read back."""

    row: Row
    end: int
    """Offset in the file of what follows it."""


class RowFormat(Protocol):
    """How rows become bytes and bytes become rows."""

    def header(self) -> bytes:
        """What comes before the first row."""
        ...

    def encode(self, row: Row) -> bytes:
        """One row, ready to be written."""
        ...

    def decode(self, file: BinaryIO) -> Iterator[Stored]:
        """The whole rows from the beginning of `file`, which ends anywhere. Raises `DataError` for what is no row."""
        ...


def row_format(kind: str, top_k: int) -> RowFormat:
    """The format of a kind, with `top_k` classes a row. Parquet is made of JSON Lines when all rows are there."""
    if kind == "csv":
        return Csv(top_k)
    return Table() if kind == "table" else JsonLines()


class Table:
    """A line for people. It cannot be read back."""

    def header(self) -> bytes:
        return b""

    def encode(self, row: Row) -> bytes:
        p = row.prediction
        if p is None:
            text = f"{row.path}  error: {row.error}\n"
        else:
            others = ", ".join(f"{label} {probability:.1%}" for label, probability in p.top_k[1:])
            others = f"  ({others})" if others else ""
            text = f"{row.path}  {p.label} {p.probability:.1%}  task {p.task}{others}\n"
        return text.encode("utf-8", "surrogateescape")

    def decode(self, file: BinaryIO) -> Iterator[Stored]:
        raise DataError("a table cannot be read back")


class JsonLines:
    """A JSON object a line."""

    def header(self) -> bytes:
        return b""

    def encode(self, row: Row) -> bytes:
        record: dict[str, Any] = {"path": row.path}
        if row.prediction is None:
            record["error"] = row.error
        else:
            p = row.prediction
            record |= {"label": p.label, "probability": round(p.probability, 6), "task": p.task, "index": p.index}
            record["top_k"] = [{"label": label, "probability": round(value, 6)} for label, value in p.top_k]
        try:
            return f"{json.dumps(record, ensure_ascii=False)}\n".encode()
        except UnicodeEncodeError:  # a path that is not valid UTF-8: escaped, the line is still JSON
            return f"{json.dumps(record)}\n".encode()

    def decode(self, file: BinaryIO) -> Iterator[Stored]:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = _row_of_json(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"line {number} is no row of cdl predict: {_shown(line)}") from error
            yield Stored(row, end)


class Csv:
    """A line of comma-separated values a row, the first of them their names."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        ranks = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
        self._columns = ["path", "label", "probability", "task", "index", "error", *ranks]

    def header(self) -> bytes:
        return _csv_line(self._columns)

    def encode(self, row: Row) -> bytes:
        p = row.prediction
        if p is None:
            return _csv_line([row.path, "", "", "", "", row.error, *[""] * (len(self._columns) - 6)])
        others = [item for label, value in p.top_k[1:] for item in (label, f"{value:.6f}")]
        return _csv_line([row.path, p.label, f"{p.probability:.6f}", p.task, p.index, "", *others])

    def decode(self, file: BinaryIO) -> Iterator[Stored]:
        end = 0  # of the lines that the reader has asked for: a quoted path may span several

        def lines() -> Iterator[str]:
            nonlocal end
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield line.decode("utf-8", "surrogateescape")

        reader = csv.reader(lines(), strict=True)
        try:
            for number, values in enumerate(reader):
                if number == 0:
                    if values != self._columns:
                        raise DataError(
                            f"its columns are {short(','.join(values))}, expected {short(','.join(self._columns))}: "
                            "give the same --top-k"
                        )
                    continue
                try:
                    row = self._row(values)
                except (ValueError, IndexError) as error:
                    raise DataError(f"line {reader.line_num} is no row of cdl predict: {short(values)}") from error
                yield Stored(row, end)
        except csv.Error as error:
            if "unexpected end of data" not in str(error):  # that is a row cut within quotes
                raise DataError(f"line {reader.line_num} is no CSV ({error})") from error

    def _row(self, values: list[str]) -> Row:
        if len(values) != len(self._columns):
            raise ValueError
        path, label, probability, task, index, error, *others = values
        if error:
            return Row(path, None, error)
        pairs = [(label, float(probability))]
        pairs += [(others[i], float(others[i + 1])) for i in range(0, len(others), 2)]
        return Row(path, Prediction(label, pairs[0][1], tuple(pairs), int(task), int(index)), None)


def _csv_line(values: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # of a line's ends it quotes only these characters
    return f"{text.getvalue()[:-2]}\n".encode("utf-8", "surrogateescape")


def _row_of_json(record: Any) -> Row:
    path = record["path"]
    if not isinstance(path, str):
        raise TypeError
    if "error" in record:
        return Row(path, None, str(record["error"]))
    top = tuple((str(item["label"]), float(item["probability"])) for item in record["top_k"])
    prediction = Prediction(
        str(record["label"]), float(record["probability"]), top, int(record["task"]), int(record["index"])
    )
    return Row(path, prediction, None)


def _shown(line: bytes) -> str:
    return short(line.decode("utf-8", "replace"))
