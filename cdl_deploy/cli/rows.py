"""Rows of `cdl predict` as text: a line for people, JSON Lines, or CSV. One row is written at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from cdl_deploy.errors import OptionError, nearest

if TYPE_CHECKING:
    from cdl_deploy.predict import Row

Write = Callable[["Row"], None]


def row_writer(kind: str, out: TextIO, top_k: int) -> Write:
    """A function that writes a row to `out` as `kind`: `"table"`, `"jsonl"` or `"csv"`. Raises `OptionError`."""
    check_format(kind)
    if kind == "jsonl":
        return lambda row: _write_json(row, out)
    if kind == "csv":
        return _csv_writer(out, top_k)
    return lambda row: _write_line(row, out)


def check_format(kind: str) -> None:
    """Raise `OptionError` unless `kind` is a format."""
    known = ("table", "jsonl", "csv")
    if kind not in known:
        raise OptionError(
            f"--format is {kind!r}, expected {', '.join(known[:-1])} or {known[-1]}{nearest(kind, known)}"
        )


def _write_line(row: Row, out: TextIO) -> None:
    if row.prediction is None:
        out.write(f"{row.path}  error: {row.error}\n")
        return
    p = row.prediction
    others = ", ".join(f"{label} {probability:.1%}" for label, probability in p.top_k[1:])
    out.write(f"{row.path}  {p.label} {p.probability:.1%}  task {p.task}{f'  ({others})' if others else ''}\n")


def _write_json(row: Row, out: TextIO) -> None:
    record: dict[str, Any] = {"path": row.path}
    if row.prediction is None:
        record["error"] = row.error
    else:
        p = row.prediction
        record |= {"label": p.label, "probability": round(p.probability, 6), "task": p.task, "index": p.index}
        record["top_k"] = [{"label": label, "probability": round(value, 6)} for label, value in p.top_k]
    text = json.dumps(record, ensure_ascii=False)
    if not _is_unicode(text):  # a path that is not valid UTF-8: escaped, the line is still JSON
        text = json.dumps(record)
    out.write(text + "\n")


def _csv_writer(out: TextIO, top_k: int) -> Write:
    writer = csv.writer(out, lineterminator="\n")
    ranks = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    writer.writerow(["path", "label", "probability", "task", "index", "error", *ranks])

    def write(row: Row) -> None:
        p = row.prediction
        if p is None:
            writer.writerow([row.path, "", "", "", "", row.error, *[""] * len(ranks)])
            return
        others = [item for label, value in p.top_k[1:] for item in (label, f"{value:.6f}")]
        others += [""] * (len(ranks) - len(others))
        writer.writerow([row.path, p.label, f"{p.probability:.6f}", p.task, p.index, "", *others])

    return write


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
