"""What is recorded about the machine, and what is noticed about its other users."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from cdl_deploy.bench import Watch
from cdl_deploy.bench import watch as watching
from cdl_deploy.bench.machine import cpu_model, describe_machine
from cdl_deploy.process_memory import peak_memory
from cdl_deploy.runtime.cores import usable_cores
from cdl_deploy.targets.scripts.worker import switched_away
from tests.runtime.bench.conftest import CALM, QUIET


def test_machine():
    machine = describe_machine()
    assert machine.usable_cores == usable_cores()
    assert 1 <= machine.usable_cores <= machine.cores == (os.cpu_count() or 1)
    assert machine.cpu == cpu_model() != ""
    assert {"numpy", "onnxruntime", "pillow"} <= set(machine.versions)
    assert machine.memory_bytes is None or machine.memory_bytes > 100_000_000
    peak = peak_memory()
    assert peak is None or peak > 5_000_000
    switched = switched_away()
    assert switched is None or switched >= 0


def test_environment_that_changes_threads_is_recorded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    settings = describe_machine().settings
    assert settings["OMP_NUM_THREADS"] == "7"
    assert "OMP_WAIT_POLICY" not in settings


def test_what_makes_two_machines_different():
    assert QUIET.differs_from(replace(QUIET, python="3.12", versions={}, governor="powersave")) == []
    other = replace(QUIET, cpu="pentium", usable_cores=1)
    assert QUIET.differs_from(other) == ["processor pentium, here cpu", "usable cores 1, here 2"]


def test_two_generations_under_one_name_are_two_machines():
    old, new = (replace(QUIET, instructions=sets) for sets in (("avx2",), ("avx2", "avx512f")))
    assert new.differs_from(old) == ["instruction sets avx2, here avx2, avx512f"]
    assert new.differs_from(QUIET) == [], "an old report does not say"
    assert [it.processor for it in (new, QUIET)] == ["cpu (avx2, avx512f)", "cpu"]


def test_shares_of_the_processor(monkeypatch):
    """Of 1,000 ticks of all cores 600 were busy and 50 stolen; the workers took 3 s at 100 ticks a second."""
    ticks = iter([(10_000, 4_000, 100), (11_000, 4_600, 150)])
    monkeypatch.setattr(watching, "cpu_ticks", lambda: next(ticks))
    monkeypatch.setattr(watching.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(watching.time, "process_time", lambda: 7.0)
    events = iter([3, 8])
    monkeypatch.setattr(watching, "throttle_events", lambda: next(events))
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(clock))
    watcher = watching.Watcher()
    seen = watcher.end(worker_seconds=3.0, switched=20)
    assert seen.others_share == pytest.approx(0.3)
    assert seen.stolen_share == pytest.approx(0.05)
    assert (seen.throttled, seen.switched_per_second) == (5, 2.0)


def test_ticks_and_the_fixed_calculation():
    first, second = watching.cpu_ticks(), watching.cpu_ticks()
    assert first is None or (second is not None and second[0] >= first[0] >= first[1] > 0)
    assert watching.calculation_ms() > 0
    watcher = watching.Watcher()
    watcher.tick()
    watcher.tick()
    assert len(watcher.end(0.0, None).calculation_ms) == 2


def test_a_machine_that_becomes_slower():
    assert CALM.machine_drift_percent == 0
    slower = Watch(None, None, None, None, None, (1.0,) * 10 + (1.1,) * 10 + (1.2,) * 10)
    assert slower.machine_drift_percent == pytest.approx(20)
    assert Watch(None, None, None, None, None, (1.0, 2.0)).machine_drift_percent is None


def test_throttling_is_counted_over_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "CPUS", tmp_path)
    monkeypatch.setattr(watching, "PI_THROTTLED", tmp_path / "get_throttled")
    assert watching.throttle_events() is None
    (tmp_path / "get_throttled").write_text("0x50005\n")  # bits 16 and 18: happened since boot
    assert watching.throttle_events() == 1
    (tmp_path / "get_throttled").write_text("5\n")  # now, but not counted as an event that came meanwhile
    assert watching.throttle_events() == 0
    for cpu, events in enumerate((3, 4)):
        (tmp_path / f"cpu{cpu}" / "thermal_throttle").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "thermal_throttle" / "core_throttle_count").write_text(f"{events}\n")
    assert watching.throttle_events() == 7
