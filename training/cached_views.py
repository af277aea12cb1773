"""`--cache-views V`: what no step of a stage changes is computed once for V fixed views of each image and kept on disk.

Epoch e learns from view e mod V. View v is what an image looks like in epoch v without a cache, and the order of images
is drawn anew for every epoch as ever, so the first V epochs are bit for bit those of a run without a cache. A view is
computed before the first epoch that takes it, in that epoch's own batches, and written to RUN/views in parts of some
megabytes: an interruption costs at most one of them. Nothing there is ever needed: what is missing, damaged, or was
computed by another network or of other images, is removed and computed again, to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from cdl_deploy.data.sources import ImageSource, fingerprint
from cdl_deploy.errors import OptionError, RunError
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import SourceKey, TaskPlan
from cdl_deploy.training.context import Run, Task
from cdl_deploy.training.data.loading import Rows, SeededBatches, Share, TrainingImages, split, to_device
from cdl_deploy.training.frozen import as_rows, row_bytes
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Stage, Stopped
from cdl_deploy.training.run_directory import RunDirectory, digest
from cdl_deploy.training.step import piece_size

PART_BYTES = 32 * 2**20
"""So many are gathered before they are written."""
LABELS = "labels"


def with_cached_views(run: Run, task: Task, stage: Stage, images: TrainingImages) -> TrainingImages:
    """`images`, or in their place what is kept of them, where `--cache-views` asks for it."""
    return CachedViews(run, task, stage, images) if task.optim.cache_views else images


class CachedViews(TrainingImages):
    """The images of a stage as rows of what has been computed of them: see `cdl_deploy.training.frozen`."""

    def __init__(self, run: Run, task: Task, stage: Stage, images: TrainingImages) -> None:
        self.run, self.stage, self.images, self.seed = run, stage, images, task.optim.seed
        self.views = min(task.optim.cache_views, stage.epochs)
        self.fingerprint = fingerprint_of(run, task, stage)
        self.opened: dict[int, View] = {}
        directory = run.directory
        for file in views_folder(directory).glob("*"):
            if not is_of(directory, file, self.fingerprint):
                file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self,
        batch_size: int,
        seed: int,
        scope: tuple[str | int, ...],
        skip: int = 0,
        share: Share = lambda keys: keys,
        drop_last: bool = False,
    ) -> Iterator[tuple[Rows, Tensor]]:
        """Rows and labels, in the order of `SeededBatches`; `scope` ends with the epoch.

        Raises Stopped where the run is to stop while a view is being computed.
        """
        *place, epoch = scope
        view = int(epoch) % self.views
        if view not in self.opened:
            self.opened[view] = View(self._parts(view), self._order(batch_size, seed, (*place, view)))
        for keys in SeededBatches(len(self), batch_size, seed, scope, True, skip, share, drop_last):
            rows = self.opened[view].rows([index for index, _ in keys])
            labels = rows.pop(LABELS)
            yield rows, labels

    def _order(self, batch_size: int, seed: int, scope: tuple[str | int, ...]) -> list[int]:
        """Images in the order of an epoch."""
        return [index for keys in SeededBatches(len(self), batch_size, seed, scope, True) for index, _ in keys]

    def _parts(self, view: int) -> list[dict[str, Tensor]]:
        """All of a view, in the order of its epoch; what is not there yet is computed."""
        run, stage, size = self.run, self.stage, self.stage.batch_size
        parts = self._kept(view)
        done, waiting = sum(len(part[LABELS]) for part in parts), list[dict[str, Tensor]]()
        if done == len(self):
            return parts
        batches = self.images.batches(size, self.seed, (stage.task, stage.role, view), done // size)
        for pixels, labels in batches:
            assert isinstance(pixels, Tensor)
            device = run.processes.device
            rows = compute_rows(run.pair, stage.role, to_device(pixels, device), to_device(labels, device))
            waiting.append({name: value.cpu() for name, value in rows.items()})
            done += len(labels)
            run.progress.caching(stage, view, done)
            stopping = run.stop()
            if done == len(self) or stopping or sum(map(_bytes, waiting)) >= PART_BYTES:
                parts.append(self._written(view, len(parts), waiting))
                waiting = []
            if stopping:
                raise Stopped
        return parts

    def _written(self, view: int, number: int, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows in a file of their own, and read from there."""
        file = part_file(self.run.directory, view, number)
        joined = {name: torch.cat([some[name] for some in rows]) for name in rows[0]}
        self.run.directory.save_tensors(file, joined, {"fingerprint": self.fingerprint})
        return self.run.directory.load_tensors(file)[0]

    def _kept(self, view: int) -> list[dict[str, Tensor]]:
        """What there is of a view, from its beginning. The tensors are maps of the files, not copies."""
        directory, parts = self.run.directory, list[dict[str, Tensor]]()
        files = sorted(views_folder(directory).glob(f"view-{view:03d}-*"))
        with suppress(RunError):  # of a file that is missing or damaged
            for number in range(len(files)):
                parts.append(directory.load_tensors(part_file(directory, view, number))[0])
        for file in reversed(files[len(parts) :]):  # from the end: a kill leaves no gap
            file.unlink()
        return parts


def compute_rows(pair: TeacherStudent, role: Role, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What is kept of a batch, computed in the pieces in which a step would."""
    found = []
    for some in split(pixels, piece_size(labels)):
        assert isinstance(some, Tensor)
        found.append(as_rows(pair, role, some))
    return {name: torch.cat([rows[name] for rows in found]) for name in found[0]} | {LABELS: labels}


class View:
    """One view of all images."""

    def __init__(self, parts: list[dict[str, Tensor]], order: list[int]) -> None:
        """`order`: whose the rows of the parts are, one after another."""
        self.parts = parts
        self.starts = list(accumulate((len(part[LABELS]) for part in parts[:-1]), initial=0))
        self.position = {image: position for position, image in enumerate(order)}

    def rows(self, images: list[int]) -> dict[str, Tensor]:
        """Of these images, in their order."""
        found = []
        for position in (self.position[image] for image in images):
            number = bisect_right(self.starts, position) - 1
            found.append((self.parts[number], position - self.starts[number]))
        return {name: torch.stack([part[name][row] for part, row in found]) for name in self.parts[0]}


# ---- files -----------------------------------------------------------------------------------------------------------


def views_folder(directory: RunDirectory) -> Path:
    """Where the views of the stage at hand lie."""
    return directory.root / "views"


def part_file(directory: RunDirectory, view: int, number: int) -> Path:
    """Part `number` of a view; both count from 0."""
    return views_folder(directory) / f"view-{view:03d}-part-{number:05d}.safetensors"


def discard_views(run: Run) -> None:
    """Remove all views: the learners of the task have learned it."""
    if run.processes.is_main:
        shutil.rmtree(views_folder(run.directory), ignore_errors=True)


def is_of(directory: RunDirectory, file: Path, wanted: str) -> bool:
    """Whether a file of the folder was computed for the stage with this fingerprint."""
    try:
        return directory.load_header(file).get("fingerprint") == wanted
    except RunError:
        return False


def fingerprint_of(run: Run, task: Task, stage: Stage) -> str:
    """Of everything that decides the rows of a stage."""
    assert task.loaded is not None
    images, optim, record = task.loaded[0], task.optim, run.record
    decides = {
        "stage": [stage.task, stage.role, stage.batch_size],
        "images": [fingerprint(images.items), list(images.labels)],
        "preprocessing": record.preprocessing.to_dict(),
        "backbones": {role: info.sha256 for role, info in record.backbones.items()},
        "method": asdict(run.config.method),
        "optim": [optim.seed, optim.precision, optim.compile, optim.resident],
        "teacher": digest_of(run.pair.teacher) if stage.role == "student" else "",
        "machine": [run.processes.device.type, torch.__version__],
    }
    return hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()


def digest_of(learner: Learner | None) -> str:
    """Of everything that it has trained."""
    if learner is None:
        return ""
    return digest({name: value.detach().cpu().contiguous() for name, value in learner.trained_state().items()}, "")


def _bytes(rows: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in rows.values())


# ---- before anything is written --------------------------------------------------------------------------------------


def check_views(
    record: RunRecord,
    pair: TeacherStudent,
    sources: Mapping[SourceKey, ImageSource],
    processes: Processes,
    root: Path,
) -> int:
    """The most bytes that views take in the run at `root` at a time, while it learns the tasks it has left.

    Raises OptionError where they cannot be kept.
    """
    first = len(record.tasks)
    needed: dict[int, tuple[int, str]] = {}
    asked = 0
    for number, plan in enumerate(record.plans[first:], start=first + 1):
        optim = replace(record.config.optim, **plan.optim)
        views = min(optim.cache_views, optim.epochs)
        asked = max(asked, optim.cache_views if not first or "cache_views" in plan.optim else 0)
        if views and record.config.method.trains_in(number):
            classes = sum(len(before.classes) for before in record.plans[:number])
            images = images_of(plan, sources)
            roles = [role for role in pair.learners if role == "student" or record.config.models.teacher_run is None]
            row = 8 + max(row_bytes(pair, role, classes) for role in roles)  # 8 for the label
            needed[views * images * row] = number, f"{images:,} images × {views} views × {row / 1e3:,.1f} kB"
    if not needed:
        if asked:
            raise OptionError(
                f"--cache-views {asked}: nothing trains (see --adapt), so there is nothing to keep: leave it out"
            )
        return 0
    if processes.count > 1:
        raise OptionError(
            f"--cache-views keeps the views of one process, and there are {processes.count}: leave it out, or start one"
        )
    most = max(needed)
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    kept = sum(file.stat().st_size for file in (root / "views").glob("*"))
    free = shutil.disk_usage(existing).free + kept
    if most > free:
        number, how = needed[most]
        raise OptionError(
            f"--cache-views needs {most / 1e6:,.1f} MB for task {number} ({how}), but {existing} has "
            f"{free / 1e6:,.1f} MB free: keep fewer views, or choose another --out"
        )
    return most


def images_of(plan: TaskPlan, sources: Mapping[SourceKey, ImageSource]) -> int:
    """How many a task has to learn from."""
    source = sources[plan.source_key].train
    return sum(len(source.of_class(name)) for name in (*plan.known_classes, *plan.classes))
