"""What else went on while a benchmark ran: other programs, other guests, throttling, and how fast the machine was.

The speed of the machine is the time of a fixed calculation, repeated in every round by the process that waits for the
workers. Where that time changes, the machine has changed and not a model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

CALCULATION = 20_000
"""Additions in the fixed calculation: about half a millisecond."""
REPEATS = 3
CPUS = Path("/sys/devices/system/cpu")
PI_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")


@dataclass(frozen=True)
class Watch:
    """What was seen; None where a system does not tell."""

    others_share: float | None
    """Share of the machine's processor time that other programs used while the workers ran, 0 to 1."""
    stolen_share: float | None
    """Share of it that the host gave to other guests, 0 to 1."""
    load_average: float | None
    """One-minute load average just before the benchmark."""
    throttled: int | None
    """How often the processor slowed itself down because of heat or power during the benchmark."""
    switched_per_second: float | None
    """How often a second a worker was taken from its processor for another program."""
    calculation_ms: tuple[float, ...]
    """Time of the fixed calculation, one number a round."""

    @property
    def machine_drift_percent(self) -> float | None:
        """How much slower the machine itself was in the last third of the rounds than in the first, in percent."""
        third = len(self.calculation_ms) // 3
        if third < 2:
            return None
        return (median(self.calculation_ms[-third:]) / median(self.calculation_ms[:third]) - 1) * 100


class Watcher:
    """Begin when the measuring begins, call `tick` between bursts, `end` when it is over."""

    def __init__(self) -> None:
        self._load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        self._begin, self._ticks, self._throttled = time.monotonic(), cpu_ticks(), throttle_events()
        self._own = time.process_time()
        self._calculations: list[float] = []

    def tick(self) -> None:
        """Time the fixed calculation once more. Takes about 2 ms."""
        self._calculations.append(calculation_ms())

    def end(self, worker_seconds: float, switched: int | None) -> Watch:
        """`worker_seconds`: processor time of all workers, `switched`: how often they were taken from a processor."""
        seconds, after = time.monotonic() - self._begin, cpu_ticks()
        others = stolen = None
        if self._ticks is not None and after is not None and after[0] > self._ticks[0]:
            total, busy, steal = (now - then for now, then in zip(after, self._ticks, strict=True))
            own = (worker_seconds + time.process_time() - self._own) * os.sysconf("SC_CLK_TCK")
            others, stolen = max(0.0, (busy - own) / total), steal / total
        throttled = throttle_events()
        return Watch(
            others_share=others,
            stolen_share=stolen,
            load_average=self._load,
            throttled=throttled - self._throttled if throttled is not None and self._throttled is not None else None,
            switched_per_second=switched / seconds if switched is not None and seconds > 0 else None,
            calculation_ms=tuple(round(value, 4) for value in self._calculations),
        )


def calculation_ms() -> float:
    """Milliseconds of a fixed calculation in pure Python, the fastest of three: one core, no memory."""
    times = []
    for _ in range(REPEATS):
        begin, total = time.perf_counter_ns(), 0
        for number in range(CALCULATION):
            total += number
        times.append((time.perf_counter_ns() - begin) / 1e6)
    return min(times)


def cpu_ticks() -> tuple[int, int, int] | None:
    """(all, in use here, stolen by other guests) ticks of all cores since boot. Linux only."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, idle, waiting, interrupt, soft, stolen = ticks
    busy = user + nice + system + interrupt + soft
    return busy + idle + waiting + stolen, busy, stolen


def throttle_events() -> int | None:
    """How often the processor has throttled itself since boot; on a Raspberry Pi 1 if it ever has."""
    counters = sorted(CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    if counters:
        return _sum(counters)
    try:
        return int(bool(int(PI_THROTTLED.read_text(), 16) & 0x70000))  # bits 16 to 18: has happened since boot
    except (OSError, ValueError):
        return None


def _sum(files: Sequence[Path]) -> int | None:
    try:
        return sum(int(file.read_text()) for file in files)
    except (OSError, ValueError):
        return None
