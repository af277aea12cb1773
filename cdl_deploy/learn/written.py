"""Model, statistics and description, replaced so that a reader finds the old ones or the new ones, never a mixture.

The statistics have their hash in their name and come first, beside the old ones. Then the model takes the place of the
old one, in one step: from there on it names the new ones. The description, which says nothing that the model does not
say itself, is away meanwhile. Statistics that no model names any more go last, also those of killed processes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from cdl_deploy.closed_form.statistics_file import MAX_BYTES
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import BundleError
from cdl_deploy.files import begun_in, discard_abandoned, json_text, write_atomic
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.learn.onnx_edit import metadata_of
from cdl_deploy.learn.protobuf import Piece, Span, size_of
from cdl_deploy.regular_file import open_regular, read_regular
from cdl_deploy.runtime.bundle import Bundle, description, description_file
from cdl_deploy.runtime.onnx_scan import MAX_MODEL
from cdl_deploy.update.withdrawn import withdrawn

COPIED = 1 << 20
"""Bytes of the old model that are in memory at a time."""


def statistics_name(model: Path, sha256: str) -> str:
    """`student.statistics.1f0c22aa9d3e.safetensors` beside `student.onnx`."""
    return f"{model.stem}.statistics.{sha256[:12]}.safetensors"


def may_be_called(path: Path, content: bytes) -> bool:
    """Whether a file of statistics may have this name: there is none, or the very same."""
    try:
        return read_regular(path, MAX_BYTES) == content
    except FileNotFoundError:
        return True
    except OSError:
        return False


def write_model(
    source: BinaryIO,
    pieces: Sequence[Piece],
    bundle: Bundle,
    statistics: bytes,
    out: Path,
    described: bool,
    before_commit: Callable[[Path], object] = lambda path: None,
) -> None:
    """Write to `out`, resolved, what `bundle` describes. `described`: with its description as a .json file.

    `before_commit` sees the new model while the old one is still there, and may raise: nothing has changed then.
    Raises `LearnError` where the disk is too full, or the folder cannot be written.
    """
    assert bundle.statistics is not None
    sums, beside = out.parent / bundle.statistics.file, description_file(out)
    outdated = _named_in(out)
    if bundle.before_learning is not None:
        exported = bundle.before_learning.statistics
        outdated.setdefault(exported.file, exported.sha256)
    try:
        _check_room(out, size_of(pieces) + len(statistics))
        mode = out.stat().st_mode if out.exists() else None
        if not sums.exists() or not may_be_called(sums, statistics):
            write_atomic(sums, lambda file: file.write_bytes(statistics))
        with ExitStack() as away:

            def fill(temporary: Path) -> None:
                with temporary.open("wb") as file:
                    for piece in pieces:
                        copy_piece(source, piece, file)
                if mode is not None:
                    temporary.chmod(mode)
                before_commit(temporary)
                if described:
                    away.enter_context(withdrawn(beside, json_text(description(bundle))))

            write_atomic(out, fill)
    except OSError as error:
        _remove_unnamed(out, outdated)
        raise LearnError(
            f"{error.filename or out}: {error.strerror or error}; nothing was changed, the old model is as it was"
        ) from error
    except BaseException as error:
        if isinstance(error, Exception):
            _remove_unnamed(out, outdated)
        raise
    _remove_unnamed(out, outdated)


def copy_piece(source: BinaryIO, piece: Piece, file: BinaryIO) -> None:
    """Write a piece of a new model, which may be a span of the old one in `source`, to `file`."""
    if not isinstance(piece, Span):
        file.write(piece)
        return
    source.seek(piece.start)
    left = piece.size
    while left:
        some = source.read(min(left, COPIED))
        if not some:
            raise LearnError("the model was cut short while it was read; nothing was changed: copy it again")
        file.write(some)
        left -= len(some)


def _remove_unnamed(out: Path, outdated: Mapping[str, str]) -> None:
    """Remove statistics that no model in the folder names: those under the name of `out` and a hash, and `outdated`.

    `outdated`, name → SHA-256: what the old model named, whatever it was called when it learned; only where it is that
    very file. Statistics that another model in the folder names stay.
    """
    hashed = re.compile(re.escape(f"{out.stem}.statistics.") + r"[0-9a-f]{12}\.safetensors")
    try:
        own = [path for path in out.parent.iterdir() if hashed.fullmatch(path.name)]
        old = [out.parent / name for name in outdated if not hashed.fullmatch(name)]
        own += [path for path in old if path.is_file() and _is_the(path, outdated[path.name])]
        named = {name for model in out.parent.glob("*.onnx") for name in _named_in(model)} if own else set()
        for path in own:
            if path.name not in named:
                path.unlink(missing_ok=True)
        for path in {*own, *(path for path in begun_in(out.parent) if hashed.fullmatch(path.name))}:
            discard_abandoned(path)
    except OSError:  # another process may be at work in the folder; what is left over is found the next time
        pass


def _is_the(path: Path, sha256: str) -> bool:
    return hashlib.sha256(read_regular(path, MAX_BYTES)).hexdigest() == sha256


def _named_in(model: Path) -> dict[str, str]:
    """The statistics that a model names, as name → SHA-256: one file beside it, or none."""
    try:
        with open_regular(model, MAX_MODEL) as file:
            metadata = metadata_of(file, os.fstat(file.fileno()).st_size)
        named = parse_json(metadata.get("cdl.statistics", "{}"))
    except (BundleError, ValueError, FileNotFoundError):
        return {}
    if not isinstance(named, dict) or not isinstance(named.get("file"), str) or "/" in named["file"]:
        return {}
    return {named["file"]: str(named.get("sha256"))} if named["file"].endswith(".safetensors") else {}


def _check_room(out: Path, needed: int) -> None:
    """Raise `LearnError` before anything is written if the disk has no room; make room from earlier failures first."""
    if out.is_dir():
        raise LearnError(f"{out} is a folder, expected the name of a file: give {out / 'student.onnx'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    discard_abandoned(out)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise LearnError(
            f"{out} needs {needed:,} bytes beside the old model, {free:,} are free on the disk; nothing was changed"
        )
