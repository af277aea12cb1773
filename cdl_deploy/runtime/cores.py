"""How many processor cores this process may use. Standard library only."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container is allowed."""


def usable_cores() -> int:
    """Cores this process may use, at least 1. onnxruntime looks at the host's instead, whatever a container allows."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = container_limit()
    return max(1, affinity if limit is None else min(affinity, limit))


def container_limit(cgroup: Path = CGROUP) -> int | None:
    """Cores that the container's quota amounts to, rounded up; None where there is no quota. cgroup v2, else v1."""
    for read in (_quota_v2, _quota_v1):
        try:
            quota, period = read(cgroup)
            return math.ceil(quota / period) if quota > 0 else None  # v1 writes -1 for no quota
        except (OSError, ValueError, ZeroDivisionError):  # not this version, or "max": no limit
            continue
    return None


def _quota_v2(cgroup: Path) -> tuple[int, int]:
    quota, period = (cgroup / "cpu.max").read_text().split()[:2]
    return int(quota), int(period)


def _quota_v1(cgroup: Path) -> tuple[int, int]:
    quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)
