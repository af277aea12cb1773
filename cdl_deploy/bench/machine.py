"""The machine a benchmark ran on, and how busy it was with other work. Standard library only."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Recorded in every report."""

    cpu: str
    """Model name of the processor."""
    cores: int
    """Logical cores of the machine."""
    usable_cores: int
    """Cores that this process may use: its affinity and its container's limit."""
    platform: str
    """Operating system and architecture."""
    python: str
    """Python version."""
    onnxruntime: str
    """onnxruntime version."""
    load_average: float | None
    """One-minute load average just before the benchmark."""
    busy_before: float | None
    """Share of the CPU that other programs used just before the benchmark, 0 to 1; None where it cannot be read."""
    busy_after: float | None = None
    """The same, just after it."""


def usable_cores() -> int:
    """Cores this process may use, at least 1. onnxruntime looks at the host's instead, whatever a container allows."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        limit = affinity
    return max(1, min(affinity, limit))


def cpu_model() -> str:
    """Marketing name of the processor, or its architecture where the name is not to be had."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def busy_share(seconds: float = 0.3) -> float | None:
    """Share of all cores' time in use during the next `seconds`, 0 to 1, while this process sleeps. Linux only."""
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    if before is None or after is None or after[0] <= before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes, or None where it cannot be read."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # ru_maxrss can inherit the peak of the process that started this one
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine() -> Machine:
    """The machine now; takes 0.3 s, in which nothing should be measured."""
    return Machine(
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=metadata.version("onnxruntime"),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        busy_before=busy_share(),
    )


def _cpu_ticks() -> tuple[int, int] | None:
    """(all, not idle) ticks of all cores since boot; time stolen by other guests counts as busy."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4]
