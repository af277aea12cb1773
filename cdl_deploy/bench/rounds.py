"""The benchmark itself: start the workers, warm them up, let them take turns until every median is precise."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from cdl_deploy.bench import statistics as stats
from cdl_deploy.bench.cells import Cell, compare, compare_all, summarise
from cdl_deploy.bench.inputs import photos_in, write_photos
from cdl_deploy.bench.machine import describe_machine
from cdl_deploy.bench.notes import make_notes
from cdl_deploy.bench.options import PHOTO_SIZE, BenchOptions, ModelSpec
from cdl_deploy.bench.processes import check_options, facts_there, job_in_runtime, start
from cdl_deploy.bench.report import BenchProgress, BenchReport, ModelRecord
from cdl_deploy.bench.watch import Watcher
from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.folders import scratch_folder
from cdl_deploy.runtime.bundle import FORMAT_KEY, Bundle, decode_metadata
from cdl_deploy.targets.client import WorkerClient

BURST_SECONDS = 0.05
LOADS = 3
"""So many fresh processes load each model, where the time allows it."""
LOAD_SHARE, WARM_SHARE = 0.15, 0.25
"""Shares of the time limit: repeated loading ends at the first, warming up takes at most the second."""
CHECK_GROWTH = 1.2
"""Intervals are computed anew when there are this many times as many rounds as at the last check."""


@dataclass
class _Model:
    """What is known about a model before and while it is measured."""

    spec: ModelSpec
    facts: dict[str, Any]
    bundle: Bundle | None
    loads: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    bytes_before: int | None = None

    def takes(self, batch: int) -> bool:
        """Whether its input allows this batch size."""
        return self.facts["fixed_batch"] in (None, batch)


def bench_latency(
    models: Sequence[ModelSpec],
    options: BenchOptions | None = None,
    on_progress: Callable[[BenchProgress], object] | None = None,
) -> BenchReport:
    """Measure every model under every condition; see `cdl_deploy.bench` for how and why.

    `on_progress` is called between measurements. Raises `BundleError` for a model that cannot be read or run, or whose
    process dies; `OptionError` without models or for a name given twice. No process is left behind.
    """
    options = options if options is not None else BenchOptions()
    if not models or len({model.name for model in models}) < len(models):
        raise OptionError(f"models are {[m.name for m in models]}, expected at least one, each with a name of its own")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()
    with scratch_folder("cdl-bench-") as folder:
        if any(model.place is not None for model in models):
            check_options(options)
        bench = _Bench(options, on_progress, _photos(options, folder), folder)
        bench.inspect(models)
        bench.load_again()
        watcher = Watcher()
        for number, group in enumerate(options.groups):
            bench.measure(*group, share=1 / (len(options.groups) - number), watcher=watcher)
    watch = watcher.end(bench.worker_seconds, bench.switched)
    records = [_record(model) for model in bench.models]
    measurements = tuple(summarise(cell, options) for cell in bench.cells)
    return BenchReport(
        machine=machine,
        watch=watch,
        options=options,
        seconds=round(bench.elapsed(), 1),
        models=tuple(records),
        measurements=measurements,
        comparisons=tuple(compare_all(bench.cells, reference_of(bench.models), options)),
        notes=tuple(make_notes(machine, watch, options, measurements, records, bench.bundles, bench.elapsed())),
        created=created,
    )


def reference_of(models: Sequence[_Model]) -> str:
    """The exported teacher if there is exactly one, its variants aside; otherwise the last model."""
    teachers = [m for m in models if m.bundle is not None and m.bundle.role == "teacher"]
    plain = [m for m in teachers if m.bundle and m.bundle.quantization is None and m.spec.path.suffix == ".onnx"]
    chosen = plain if len(plain) == 1 else teachers
    return chosen[0].spec.name if len(chosen) == 1 else models[-1].spec.name


def _photos(options: BenchOptions, folder: Path) -> list[Path]:
    if "jpeg" not in options.stages:
        return []
    if options.images is not None:
        return photos_in(options.images)
    return write_photos(folder, options.image_size or PHOTO_SIZE, options.seed)


class _Bench:
    """The state of one benchmark."""

    def __init__(
        self,
        options: BenchOptions,
        on_progress: Callable[[BenchProgress], object] | None,
        photos: Sequence[Path],
        folder: Path,
    ) -> None:
        self._options, self._on_progress, self._photos, self._folder = options, on_progress, photos, folder
        self._begin = time.monotonic()
        self._within: dict[int, float] = {}
        self._rounds = 0
        self.models: list[_Model] = []
        self.cells: list[Cell] = []
        self.worker_seconds, self.switched = 0.0, 0

    @property
    def bundles(self) -> dict[str, Bundle | None]:
        return {model.spec.name: model.bundle for model in self.models}

    def elapsed(self) -> float:
        return time.monotonic() - self._begin

    def inspect(self, specs: Sequence[ModelSpec]) -> None:
        """A process of its own for what is there to know apart from times; whatever cannot be run is found here."""
        batch = min(self._options.batches)
        with ExitStack() as stack:
            plain = [replace(spec, kind="onnx", place=None) if spec.place else spec for spec in specs]
            clients = [stack.enter_context(start(spec)) for spec in plain]  # all import at once
            for spec, own, client in zip(specs, plain, clients, strict=True):
                self._tell("load", spec.name)
                before = client.prepare(self._job(own, *self._options.groups[0], photos=False))
                client.load()
                facts = client.inspect(batch)
                client.close()
                metadata = facts["metadata"]
                bundle = decode_metadata(spec.path, metadata) if FORMAT_KEY in metadata else None
                if spec.place is not None:
                    threads = self._options.threads[0]
                    job = job_in_runtime(spec, facts, self._folder, threads, self._options)
                    facts = facts_there(spec, facts, bundle, job)
                model = _Model(spec, facts, bundle, bytes_before=before)
                if not any(model.takes(size) for size in self._options.batches):
                    raise BundleError(
                        f"{spec.path}: takes batches of {facts['fixed_batch']} only, asked for "
                        f"{', '.join(map(str, self._options.batches))} (--batch)"
                    )
                self.models.append(model)

    def load_again(self) -> None:
        """Time loading and the first run in fresh processes, while the share of the time that is meant for it lasts."""
        for _ in range(LOADS - 1):
            for model in self.models:
                if self.elapsed() > LOAD_SHARE * self._options.time_limit:
                    return
                self._tell("load", model.spec.name)
                with start(model.spec) as client:
                    client.prepare(self._job_of(model, *self._options.groups[0], photos=False))
                    self._load(model, client, keep=True)

    def measure(self, stage: str, threads: int, share: float, watcher: Watcher) -> None:
        """One group: a fresh process for each model, one after the other loaded and warmed up; then rounds.

        It may use `share` of the time that is left.
        """
        limit = self.elapsed() + share * (self._options.time_limit - self.elapsed())
        with ExitStack() as stack:
            clients = {model.spec.name: stack.enter_context(start(model.spec)) for model in self.models}
            for model in self.models:  # all of them import at once; then none loads while another is timed
                ours = model.bundle is not None
                clients[model.spec.name].prepare(self._job_of(model, stage, threads, stage == "jpeg", ours))
            for model in self.models:
                self._tell("load", model.spec.name)
                keep = (stage, threads) == self._options.groups[0]
                self._load(model, clients[model.spec.name], keep and (stage == "graph" or not model.loads))
            conditions = [
                [Cell(model.spec.name, condition) for model in self.models if model.takes(condition.batch)]
                for condition in self._options.conditions(stage, threads)
            ]
            conditions = [cells for cells in conditions if cells]
            before = self._usage(clients)
            self._warm_up(conditions, clients)
            self._take_turns(conditions, clients, limit, watcher)
            after = self._usage(clients)
        self.worker_seconds += after[0] - before[0]
        self.switched += after[1] - before[1]
        self.cells += [cell for cells in conditions for cell in cells]

    def _load(self, model: _Model, client: WorkerClient, keep: bool) -> None:
        """Load and run once; `keep` what both took: graph only, and at the first number of threads."""
        loading = client.load()
        first = client.first(min(size for size in self._options.batches if model.takes(size)))
        if keep:
            model.loads.append(loading)
            model.firsts.append(first)

    def _job_of(self, model: _Model, stage: str, threads: int, photos: bool, ours: bool = False) -> dict[str, Any]:
        if model.spec.place is not None:
            return job_in_runtime(model.spec, model.facts, self._folder, threads, self._options)
        return self._job(model.spec, stage, threads, photos, ours)

    def _job(self, spec: ModelSpec, stage: str, threads: int, photos: bool, ours: bool = False) -> dict[str, Any]:
        return {
            "model": str(spec.path),
            "kind": spec.kind,
            "role": spec.role,
            "threads": threads,
            "seed": self._options.seed,
            "size": None if photos else self._options.image_size,  # that of the photographs, which are there already
            "photos": [str(photo) for photo in self._photos] if photos else [],
            "ours": ours,
        }

    def _warm_up(self, conditions: list[list[Cell]], clients: dict[str, WorkerClient]) -> None:
        """Small batches first, so that the peak memory seen after each belongs to it."""
        cells = sorted((cell for cells in conditions for cell in cells), key=lambda cell: cell.condition.batch)
        groups = len(self._options.groups)
        for cell in cells:
            self._tell("warm up", cell.name)
            seconds = WARM_SHARE * self._options.time_limit / groups / len(cells)
            at = cell.condition
            cell.steady, cell.peak_bytes = clients[cell.model].warm(at.batch, at.streams, seconds)

    def _take_turns(
        self, conditions: list[list[Cell]], clients: dict[str, WorkerClient], limit: float, watcher: Watcher
    ) -> None:
        """Rounds in random order until every median is precise or the time is up; at least one round."""
        order = random.Random(self._options.seed)
        # Short bursts if the time is short, so that there are enough rounds for an interval.
        share = (limit - self.elapsed()) / (sum(map(len, conditions)) * stats.MIN_ROUNDS)
        seconds = max(0.005, min(BURST_SECONDS, 0.5 * share))
        cost: dict[int, float] = {}
        unfinished, check, rounds = list(range(len(conditions))), stats.MIN_ROUNDS, 0
        while unfinished:
            order.shuffle(unfinished)
            watcher.tick()
            for number in unfinished:
                if self.elapsed() + cost.get(number, 0) > limit and rounds:
                    return
                begin = self.elapsed()
                # The models of one condition run side by side in time: their ratio sees the same disturbances.
                for cell in order.sample(conditions[number], len(conditions[number])):
                    self._tell("measure", cell.name)
                    at = cell.condition
                    cell.bursts.append(clients[cell.model].burst(at.batch, at.streams, seconds))
                cost[number] = self.elapsed() - begin
            rounds += 1
            self._rounds += 1
            if rounds >= check:
                unfinished = [number for number in unfinished if not self._precise_enough(conditions[number])]
                check = int(rounds * CHECK_GROWTH) + 1

    def _precise_enough(self, cells: list[Cell]) -> bool:
        """Whether the medians are precise enough, and the models told apart or known to be alike."""
        for cell in cells:
            found = cell.interval(self._options.seed)
            self._within[id(cell)] = found[2] if found else float("inf")
        if any(self._within[id(cell)] > self._options.precision for cell in cells):
            return False
        against = next((cell for cell in cells if cell.model == reference_of(self.models)), None)
        return against is None or all(
            compare(cell, against, self._options).verdict != "unclear" for cell in cells if cell is not against
        )

    def _usage(self, clients: dict[str, WorkerClient]) -> tuple[float, int]:
        found = [client.usage() for client in clients.values()]
        return sum(used for used, _ in found), sum(switched for _, switched in found)

    def _tell(self, phase: str, detail: str) -> None:
        if self._on_progress is not None:
            precise = sum(within <= self._options.precision for within in self._within.values())
            medians = len(self.models) * len(self._options.groups) * len(self._options.conditions("graph", 1))
            self._on_progress(BenchProgress(phase, detail, self.elapsed(), self._rounds, precise, medians))


def _record(model: _Model) -> ModelRecord:
    facts, bundle = model.facts, model.bundle
    return ModelRecord(
        name=model.spec.name,
        path=str(model.spec.path),
        kind=model.spec.kind,
        role=bundle.role if bundle else model.spec.role,
        file_bytes=facts["file_bytes"],
        sha256=facts["sha256"],
        input=facts["inputs"],
        parameters=bundle.parameters if bundle else facts["parameters"],
        macs=facts["macs"],
        uncounted=tuple(facts["uncounted"]),
        accuracy=_accuracy(bundle, facts),
        classes=len(bundle.classes) if bundle else facts["classes"],
        load_ms=median(model.loads),
        first_inference_ms=median(model.firsts),
        loads_ms=tuple(model.loads),
        firsts_ms=tuple(model.firsts),
        bytes_before=model.bytes_before,
        runtime=facts.get("runtime"),
    )


def _accuracy(bundle: Bundle | None, facts: dict[str, Any]) -> float | None:
    """Final average accuracy in percent, less what merging patch tokens and quantising took."""
    if bundle is None:
        accuracy = facts["accuracy"]
        return float(accuracy) if accuracy is not None else None
    if bundle.accuracy is None:
        return None
    accuracy = bundle.accuracy.final_average_accuracy
    for change in (bundle.patch_tokens, bundle.quantization):
        if change is not None and change.accuracy_before is not None and change.accuracy_after is not None:
            accuracy -= change.accuracy_before - change.accuracy_after
    return accuracy
