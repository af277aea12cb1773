"""What a run has learned by now: the record of its last checkpoint, which run.json follows.

A run that was killed between the two has a run.json that is behind. Read without PyTorch and without safetensors: only
the header of the checkpoint is looked at, and its hash is left to whoever takes weights from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import RunError
from cdl_deploy.regular_file import open_regular
from cdl_deploy.run.record import FILE, LARGEST, RunRecord, parse_record, read_record_file

LAST_CHECKPOINT = Path("checkpoints", "last.safetensors")


def latest_record(root: Path) -> RunRecord:
    """The latest record of the run in `root`. Raises RunError where there is none, or it is damaged."""
    return parse_record(*latest_content(root))


def latest_content(root: Path) -> tuple[Any, Path]:
    """The JSON value of the latest record, and the file that it is from. Raises RunError like `read_record`."""
    content, file = read_record_file(root), root / LAST_CHECKPOINT
    parse_record(content, root / FILE)  # refuses a newer format, and what is damaged
    if not file.exists():
        return content, root / FILE
    try:
        with open_regular(file) as opened:
            count = int.from_bytes(opened.read(8), "little")
            if not 2 <= count <= LARGEST:
                raise RunError(f"cannot read {file}: it is no safetensors file")
            header = parse_json(parse_json(opened.read(count))["__metadata__"]["header"])
            return header["record"], file
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no checkpoint of a run, or damaged"
        raise RunError(f"cannot read {file}: {reason}") from None
