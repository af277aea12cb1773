"""The run directory: what training leaves and export reads. It describes itself; see docs/run-directory.md.

    RUN/run.json                     configuration, tasks, models, accuracy matrices, metrics
    RUN/backbones/<role>.safetensors the frozen weights
    RUN/checkpoints/task-01.safetensors …   everything trained, after each task
    RUN/checkpoints/last.safetensors what has changed since, up to the last finished epoch, with optimizer state
    RUN/heldout/task-01.safetensors … a few held-out test images of each task, for export to compare on
    RUN/views/                       what --cache-views keeps of the images of the stage at hand
    RUN/logs/                        curves for TensorBoard or Weights & Biases, where --log asks for them
    RUN/accuracy_<role>.csv, RUN/accuracy_matrix.png, RUN/accuracy_over_tasks.png, RUN/forgetting.png

`last.safetensors` carries the record in its own header and is written in one atomic step, so whatever interrupts a run
leaves a pair of weights and record that belong together; `run.json` is derived from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import RunError
from cdl_deploy.files import TEMPORARY, is_running, write_atomic, write_text
from cdl_deploy.regular_file import open_regular
from cdl_deploy.run.latest import LAST_CHECKPOINT
from cdl_deploy.run.migrations import current_tensor_name
from cdl_deploy.run.record import FORMAT_VERSION, RunRecord, check_format, parse_record, read_record, write_record
from cdl_deploy.typed_json import short

HELPER_SECONDS = 15.0
"""So long a lock is waited for whose owner has ended and left helpers behind."""


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def record_file(self) -> Path:
        return self.root / "run.json"

    @property
    def last_checkpoint(self) -> Path:
        return self.root / LAST_CHECKPOINT

    def heldout_file(self, number: int) -> Path:
        """Test images kept of task `number`, counted from 1."""
        return self.root / "heldout" / f"task-{number:02d}.safetensors"

    def load_heldout(self, number: int) -> dict[str, Tensor]:
        """Test images kept of a task: `task_1/images` [n, 3, height, width] uint8, `task_1/labels` [n]."""
        return self.load_tensors(self.heldout_file(number))[0]

    def task_checkpoint(self, number: int) -> Path:
        """After task `number`, counted from 1."""
        return self.root / "checkpoints" / f"task-{number:02d}.safetensors"

    def backbone_file(self, role: str) -> Path:
        return self.root / "backbones" / f"{role}.safetensors"

    def check_free(self) -> None:
        """Raise RunError where something is in the way of a new run."""
        if self.last_checkpoint.exists() or self.record_file.exists():
            raise RunError(f"{self.root} already holds a run: continue it with --resume, or choose another --out")
        if self.root.is_file() or (self.root.is_dir() and any(not _is_ours(path) for path in self.root.iterdir())):
            raise RunError(f"{self.root} exists and is not empty: choose another --out, or empty it")

    def create(self) -> None:
        """Make the directory."""
        self.check_free()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {self.root}: {error.strerror}") from None

    def read_record(self) -> RunRecord:
        """The record of run.json. Raises RunError where it is missing, damaged, or of a newer format."""
        return read_record(self.root)

    def latest_record(self) -> RunRecord:
        """The record of the last checkpoint, which run.json follows; that of run.json where there is no checkpoint.

        Raises RunError like `read_record`.
        """
        record = self.read_record()
        if self.last_checkpoint.exists():  # its tensors are read as well: the hash is over all of it
            record = parse_record(self.load_tensors(self.last_checkpoint)[1].get("record"), self.last_checkpoint)
        return record

    def write_record(self, record: RunRecord) -> None:
        """One CSV of accuracies for each role, then run.json."""
        for role, matrix in record.matrices.items():
            write_text(self.root / f"accuracy_{role}.csv", matrix_csv(matrix))
        write_record(self.root, record)

    def save_tensors(self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any] | None = None) -> None:
        """A safetensors file with `header` as JSON in its metadata, atomically."""
        ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps(header or {}, allow_nan=False)
        metadata = {"format_version": str(FORMAT_VERSION), "header": text, "sha256": digest(ready, text)}
        try:
            write_atomic(path, lambda file: file.write_bytes(safetensors.torch.save(ready, metadata)))
        except OSError as error:
            rest = "; the last checkpoint is intact" if self.last_checkpoint.exists() else ""
            raise RunError(f"cannot write {path}: {error.strerror or error}{rest}") from None

    def load_tensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and header of a file that `save_tensors` wrote. Raises RunError where it is not as it was written."""
        with self._open(path) as (file, metadata):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it cannot be iterated over
            written = metadata.get("sha256")  # files of versions up to 0.1.0 have none
            if written is not None and written != digest(tensors, metadata["header"]):
                raise RunError(f"{path} is damaged: it does not hold what was written to it (its hash differs)")
            return {current_tensor_name(name): value for name, value in tensors.items()}, _header(metadata)

    def load_header(self, path: Path) -> dict[str, Any]:
        """The header alone."""
        with self._open(path) as (_, metadata):
            return _header(metadata)

    @contextmanager
    def _open(self, path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
        try:
            open_regular(path).close()  # a pipe would wait for ever
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                check_format(int(metadata.get("format_version", 0)), path)
                yield file, metadata
        except FileNotFoundError:
            raise RunError(f"{path} is missing: the run directory is incomplete") from None
        except KeyError as error:
            raise RunError(f"cannot read {path}: {error} is missing in its header") from None
        except (OSError, ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            raise RunError(f"cannot read {path}: {short(str(error))}") from None

    @contextmanager
    def readable(self, path: Path) -> Iterator[None]:
        """Around what makes learners of a file of this run: raises RunError where it does not fit them."""
        try:
            yield
        except FileNotFoundError:
            raise RunError(f"{path} is missing: the run directory is incomplete") from None
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            raise RunError(
                f"{path} does not fit the run of {self.root}, it is damaged or another run's: {reason[:200]}"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one writer. Raises RunError, which says who it is, where another process holds it.

        The system lets go of the lock when its process ends, however it ends.
        """
        path = self.root / ".lock"
        lock = FileLock(path, blocking=False)
        try:
            try:
                lock.acquire()
            except Timeout:
                if not _is_left_by_the_dead(path):
                    raise
                lock.acquire(timeout=HELPER_SECONDS, blocking=True)
        except Timeout:
            raise RunError(
                f"{self.root} is in use by another process{_holder(path)}: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            with suppress(OSError):  # for the message alone
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            self._remove_leftovers()
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: whoever waits for this file finds that it has gone
            lock.release()

    def _remove_leftovers(self) -> None:
        """Temporary files of a process that was killed in the middle of a write."""
        folders = ("checkpoints", "backbones", "heldout", "views", "logs")
        for folder in (self.root, *(self.root / name for name in folders)):
            for path in folder.glob(TEMPORARY):
                path.unlink(missing_ok=True)


def _header(metadata: dict[str, str]) -> dict[str, Any]:
    header = parse_json(metadata["header"])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def digest(tensors: dict[str, Tensor], header: str) -> str:
    """SHA-256 over the names, shapes, types and bytes of tensors, and the header that goes with them."""
    digest = hashlib.sha256(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.numel():  # of none there is nothing to add, and no bytes to look at
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _holder(lock: Path) -> str:
    """The process that a lock file names."""
    try:
        named = lock.read_text(encoding="utf-8")
    except (OSError, ValueError):
        named = ""
    return f" ({named})" if re.fullmatch(r"process \d+ on [\w.-]+", named) else ""


def _is_left_by_the_dead(lock: Path) -> bool:
    """Whether whoever took the lock was a process of this machine that has ended: helpers that it started, which load
    images, hold it for some seconds more."""
    named = re.match(r" \(process (\d+) on (.*)\)", _holder(lock))
    return named is not None and named[2] == socket.gethostname() and not is_running(int(named[1]))


def _is_ours(path: Path) -> bool:
    """Whether it may lie in a directory whose run was killed before it had a record."""
    return path.name in (".lock", "backbones", "checkpoints") or path.match(TEMPORARY)


def matrix_csv(matrix: list[list[float]]) -> str:
    """Rows `after_task`, columns `task_1` …; cells of later tasks are empty."""
    count = len(matrix)
    lines = [",".join(["after_task", *(f"task_{j + 1}" for j in range(count))])]
    for i, row in enumerate(matrix, start=1):
        lines.append(",".join([str(i), *(f"{value:.4f}" for value in row), *[""] * (count - len(row))]))
    return "\n".join(lines) + "\n"
