"""A report against an earlier one of the same machine: what became slower since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from cdl_deploy.bench.machine import Machine
from cdl_deploy.bench.options import BenchOptions, ModelSpec
from cdl_deploy.bench.report import REPORT_VERSION, BenchReport, Change, Key, Measurement, key_of
from cdl_deploy.bench.statistics import compare_runs
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import OptionError
from cdl_deploy.regular_file import read_regular
from cdl_deploy.typed_json import short

TOO_BUSY = 0.25
"""Share of the processor in other hands above which times of two moments say nothing about a model: unlike two models
that take turns, they saw different neighbours."""


LARGEST = 64 << 20
"""Bytes of a report."""


class Baseline:
    """An earlier report, read and checked. Raises OptionError where FILE is none, or does not fit this machine."""

    def __init__(self, path: Path, here: Machine, other_machine: bool = False) -> None:
        """With `other_machine`, one that was measured elsewhere is taken all the same."""
        self.path = path
        try:
            record = parse_json(read_regular(path, LARGEST))
        except OSError as error:
            raise OptionError(f"--baseline {path}: {error.strerror or error}; make one with --save") from error
        except ValueError as error:
            raise OptionError(f"--baseline {path} is no JSON: {error}; make one with --save") from error
        version = record.get("report_version") if isinstance(record, dict) else None
        if version != REPORT_VERSION:
            raise OptionError(
                f"--baseline {path} is no report that this version reads: report_version is {short(version)}, "
                f"expected {REPORT_VERSION}; make one with --save"
            )
        try:
            self.machine = _machine(record["machine"])
            others = record["watch"]["others_share"]
            self.others_share = None if others is None else float(others)
            self.calculation_ms = tuple(float(value) for value in record["watch"]["calculation_ms"])
            self.medians = {_key(row): [float(v) for v in row["round_medians_ms"]] for row in record["measurements"]}
            self.p50 = {_key(row): float(row["p50_ms"]) for row in record["measurements"]}
            self.versions = {str(name): str(number) for name, number in record["machine"]["versions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"--baseline {path} is damaged ({short(repr(error))}); make one with --save") from error
        self.differences = here.differs_from(self.machine)
        if self.differences and not other_machine:
            raise OptionError(
                f"--baseline {path} was measured on another machine ({'; '.join(self.differences)}), and times of two "
                "machines do not compare: measure a new one here, or add --other-machine"
            )

    def check(self, models: Sequence[ModelSpec], options: BenchOptions) -> None:
        """Raise OptionError where nothing that is about to be measured is in the baseline."""
        wanted = {
            (model.name, at.stage, at.threads, at.streams, at.batch)
            for model in models
            for group in options.groups
            for at in options.conditions(*group)
        }
        if not wanted & set(self.medians):
            names = sorted({key[0] for key in self.medians})
            raise OptionError(
                f"--baseline {self.path} has none of these models under these conditions; it has {', '.join(names)}: "
                "check --batch, --threads, --streams and --from"
            )

    def compare(self, report: BenchReport) -> tuple[tuple[Change, ...], list[str]]:
        """Every measurement that both have, and notes about what cannot be compared."""
        speed = self._machine_ratio(report)
        changes = [self._change(m, report.options, speed) for m in report.measurements if key_of(m) in self.medians]
        if self._busy(report):
            changes = [replace(change, verdict="unclear") for change in changes]
        return tuple(changes), list(self._notes(report, speed))

    def _busy(self, report: BenchReport) -> list[str]:
        """When other programs used so much of the processor that nothing can be said."""
        shares = {"at the baseline": self.others_share, "now": report.watch.others_share}
        return [f"{share:.0%} {when}" for when, share in shares.items() if share is not None and share > TOO_BUSY]

    def _machine_ratio(self, report: BenchReport) -> float:
        """Time of the fixed calculation now over then: above 1, the machine itself is slower now."""
        if not self.calculation_ms or not report.watch.calculation_ms:
            return 1.0
        return median(report.watch.calculation_ms) / median(self.calculation_ms)

    def _change(self, now: Measurement, options: BenchOptions, speed: float) -> Change:
        before = self.medians[key_of(now)]
        found = compare_runs(now.round_medians_ms, before, options.min_effect, speed, options.seed)
        return Change(
            model=now.model,
            stage=now.stage,
            threads=now.threads,
            streams=now.streams,
            batch=now.batch,
            before_ms=self.p50[key_of(now)],
            now_ms=now.p50_ms,
            ratio=found.ratio,
            low=found.low,
            high=found.high,
            verdict=found.verdict,
        )

    def _notes(self, report: BenchReport, speed: float) -> list[str]:
        notes = []
        if self.differences:
            notes.append(f"the baseline is from another machine: {'; '.join(self.differences)}")
        changed = [
            f"{name} {self.versions[name]}, now {number}"
            for name, number in report.machine.versions.items()
            if name in self.versions and self.versions[name] != number and name != "cdl-deploy"
        ]
        if changed:
            notes.append(f"the baseline was measured with other versions: {'; '.join(changed)}")
        if busy := self._busy(report):
            notes.append(
                f"nothing is said about the baseline: other programs used {' and '.join(busy)} of the processor, "
                f"at most {TOO_BUSY:.0%} allowed; run it again when the machine is quieter"
            )
        if abs(speed - 1) > report.options.min_effect / 100:
            more = "slower" if speed > 1 else "faster"
            notes.append(
                f"the machine itself is {abs(speed - 1):.0%} {more} than at the baseline (a fixed calculation is): a "
                "model counts as slower only where it is slower both with and without this taken out"
            )
        missing = [key_of(m) for m in report.measurements if key_of(m) not in self.medians]
        if missing:
            names = ", ".join(dict.fromkeys(f"{key[0]} at batch {key[4]}" for key in missing))
            notes.append(f"not in the baseline: {names}")
        return notes


def _key(row: dict[str, Any]) -> Key:
    return row["model"], row["stage"], row["threads"], row["streams"], row["batch"]


def _machine(record: dict[str, Any]) -> Machine:
    names = ("cpu", "cores", "usable_cores", "platform", "python", "onnxruntime")
    return Machine(**{name: record[name] for name in names}, instructions=tuple(record.get("instructions", ())))
