"""A model that can learn: its open file, what it says about itself, and its statistics, all three of one moment."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cdl_deploy.closed_form.statistics_file import MAX_BYTES, StoredStatistics, decode_statistics
from cdl_deploy.errors import BundleError, CdlError
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.learn.onnx_edit import OnnxFile
from cdl_deploy.regular_file import open_regular, read_regular
from cdl_deploy.runtime.bundle import Bundle, decode_metadata
from cdl_deploy.runtime.bundle_parts import StatisticsFile
from cdl_deploy.runtime.onnx_scan import MAX_MODEL

TRIES = 20
PAUSE = 0.05
"""Seconds. Another process may replace model and statistics between two of our reads: then both are read anew."""


@dataclass(frozen=True, eq=False)
class Opened:
    """All of it fits together, whatever other processes do to the path meanwhile."""

    path: Path
    file: BinaryIO
    """Open for reading: the file that was there, also when another one has its name now."""
    onnx: OnnxFile
    bundle: Bundle
    stored: StoredStatistics
    statistics: StatisticsFile
    """Which file `stored` was read from."""

    def is_current(self) -> bool:
        """Whether the file at the path is still the one that is open."""
        try:
            there, own = os.stat(self.path), os.fstat(self.file.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns) == (
            (own.st_dev, own.st_ino, own.st_size, own.st_mtime_ns)
        )

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def open_learnable(path: Path) -> Opened:
    """Open a model with the statistics beside it. Raises `CdlError`, one line, for one that cannot learn."""
    for left in reversed(range(TRIES)):
        try:
            file = open_regular(path, MAX_MODEL)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror or error}; expected an .onnx file that cdl exported") from error
        try:
            return _open(path, file)
        except CdlError:
            replaced = not Opened.is_current(_Only(path, file))  # type: ignore[arg-type]
            file.close()
            if not left or not replaced:
                raise
            time.sleep(PAUSE)
        except BaseException:
            file.close()
            raise
    raise AssertionError


@dataclass(frozen=True)
class _Only:
    path: Path
    file: BinaryIO


def _open(path: Path, file: BinaryIO) -> Opened:
    try:
        onnx = OnnxFile(file, os.fstat(file.fileno()).st_size)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    bundle = decode_metadata(path, onnx.metadata())
    if bundle.features is None or bundle.statistics is None:
        raise LearnError(f"{path} cannot learn: {why_not(bundle)}")
    named = bundle.statistics
    beside = path.parent / named.file
    if Path(named.file).name != named.file:
        raise LearnError(f"{path} names '{named.file}' as its statistics, expected a file beside it; export it again")
    try:
        content = read_regular(beside, MAX_BYTES)
    except OSError as error:
        raise LearnError(
            f"{path} cannot learn without its statistics, {named.file}: {error.strerror or error}; copy that file from "
            "where the model comes from, or export the run again"
        ) from error
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise LearnError(
            f"{beside} is not the file of statistics that {path.name} names: its hash is "
            f"{hashlib.sha256(content).hexdigest()[:12]}, expected {named.sha256[:12]}; copy model and statistics "
            "together, or export the run again"
        )
    stored = decode_statistics(content, beside, bundle.features.sha256)
    if stored.history.total.classes != bundle.classes:
        raise LearnError(f"{beside} has sums of other classes than {path.name}; export the run again")
    if stored.rule.teacher_weight > 0:
        raise LearnError(
            f"{path} cannot learn: its head weighs a teacher's outputs, and the teacher is not in the file; "
            "train with --ridge-teacher-weight 0"
        )
    return Opened(path, file, onnx, bundle, stored, named)


def why_not(bundle: Bundle) -> str:
    """Why a model without statistics cannot learn, and how to get one that can."""
    if bundle.quantization is not None and bundle.features is not None:
        return (
            f"it is an {bundle.quantization.kind} variant without statistics of its own, and those of the float32 "
            "model do not fit its features; give the float32 file of the same export, or export --quantize int8 "
            "again: it says why it has none"
        )
    if bundle.features is not None:
        return "it names no statistics; export the run again: cdl export RUN --onnx"
    return (
        "it was exported without statistics; export a run with a closed-form head and without --no-statistics "
        "(cdl head RUN --head slda --out RUN2 gives a finished run one)"
    )
