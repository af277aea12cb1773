"""Rows as text, one after another: JSON Lines, CSV, lines for people; and the first two back from a file.

What a killed program left half written at the end of a file is not read.

    {"path": "a.jpg", "label": "red", "probability": 0.93, "task": 1, "index": 0, "top_k": [{"label": …}, …]}
    {"path": "b.jpg", "error": "b.jpg: empty file (0 bytes), expected an image"}

In CSV, a text that a spreadsheet would take for a formula has an apostrophe before it. Probabilities have six digits.
Paths that are not valid UTF-8 are escaped in JSON and kept as they are in CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import DataError
from cdl_deploy.printable import as_it_was, json_printable, no_formula, printable
from cdl_deploy.runtime.columns import CLASS_COLUMNS, COLUMNS, from_record, to_record
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
            text = f"{row.path}  error: {row.error}"
        else:
            known = p.label == p.top_k[0][0]
            others = ", ".join(f"{label} {probability:.1%}" for label, probability in p.top_k[known:])
            others = f"  ({others})" if others else ""
            said = f"{p.label} {p.probability:.1%}  task {p.task}" if known else p.label
            text = f"{row.path}  {said}{others}"
        return f"{printable(text)}\n".encode("utf-8", "surrogateescape")

    def decode(self, file: BinaryIO) -> Iterator[Stored]:
        raise DataError("a table cannot be read back")


class JsonLines:
    """A JSON object a line."""

    def header(self) -> bytes:
        return b""

    def encode(self, row: Row) -> bytes:
        record = {name: _rounded(value) for name, value in to_record(row).items() if value is not None}
        try:
            return f"{json_printable(json.dumps(record, ensure_ascii=False, allow_nan=False))}\n".encode()
        except UnicodeEncodeError:  # a path that is not valid UTF-8: escaped, the line is still JSON
            return f"{json.dumps(record)}\n".encode()

    def decode(self, file: BinaryIO) -> Iterator[Stored]:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = from_record(parse_json(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"line {number} is no row of cdl predict: {_shown(line)}") from error
            yield Stored(row, end)


class Csv:
    """A line of comma-separated values a row, the first of them their names.

    The columns of `COLUMNS`, and in place of `top_k` two for each further class: `label_2`, `probability_2`, …
    """

    def __init__(self, top_k: int) -> None:
        self._plain = [column for column in COLUMNS if column.type is not list]
        further = [f"{column.name}_{rank}" for rank in range(2, top_k + 1) for column in CLASS_COLUMNS]
        self._columns = [column.name for column in self._plain] + further

    def header(self) -> bytes:
        return _csv_line(self._columns)

    def encode(self, row: Row) -> bytes:
        record = to_record(row)
        others = [item[column.name] for item in (record["top_k"] or [])[1:] for column in CLASS_COLUMNS]
        values = [record[column.name] for column in self._plain] + others
        values += [None] * (len(self._columns) - len(values))
        return _csv_line([f"{value:.6f}" if isinstance(value, float) else no_formula(value) for value in values])

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
            for number, cells in enumerate(reader):
                values = [as_it_was(cell) for cell in cells]
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
        plain, others = values[: len(self._plain)], values[len(self._plain) :]
        record: dict[str, Any] = {
            column.name: value if column.type is str else column.type(value or 0)
            for column, value in zip(self._plain, plain, strict=True)
        }
        record["error"] = record["error"] or None
        pairs = (
            [(record["label"], record["probability"]), *zip(others[::2], map(float, others[1::2]), strict=True)]
            if not record["error"]
            else []
        )
        record["top_k"] = [{"label": label, "probability": probability} for label, probability in pairs]
        return from_record(record)


def _csv_line(values: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # of a line's ends it quotes only these characters
    return f"{text.getvalue()[:-2]}\n".encode("utf-8", "surrogateescape")


def _rounded(value: Any) -> Any:
    """Probabilities with six digits, at any depth."""
    if isinstance(value, list):
        return [{name: _rounded(inner) for name, inner in item.items()} for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _shown(line: bytes) -> str:
    return short(line.decode("utf-8", "replace"))
