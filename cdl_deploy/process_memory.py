"""What this process has taken of the memory."""

from __future__ import annotations

import sys
from pathlib import Path


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
