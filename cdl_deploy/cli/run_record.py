"""The record of a run, run.json, as the commands that only read it need it: plain JSON, without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cdl_deploy.errors import RunError

RECORD_FORMAT = 2


def read_record(run: Path) -> dict[str, Any]:
    """What `RUN/run.json` holds. Raises RunError where it is missing, damaged, or of a newer format."""
    file = run / "run.json"
    record = read_json(file, f"{run} is no run directory: it has no run.json; make one with cdl train")
    if not isinstance(record, dict) or not isinstance(record.get("format_version"), int):
        raise RunError(f"{file} is no run record: it has no format_version")
    if record["format_version"] > RECORD_FORMAT:
        raise RunError(
            f"{file} has format version {record['format_version']}, "
            f"this cdl-deploy reads up to {RECORD_FORMAT}: upgrade cdl-deploy"
        )
    return record


def read_json(path: Path, missing: str) -> Any:
    """The JSON value in a file. Raises RunError with `missing` where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(missing) from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from None
