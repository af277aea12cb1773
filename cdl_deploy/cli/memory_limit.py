"""No command that runs somebody's model takes more memory than the machine has: it ends with a line, not the machine.

What a graph makes is known when it runs. Where the system counts no such limit (macOS), there is none.
"""

from __future__ import annotations

from pathlib import Path

CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""A container's share: cgroup version 2, and 1, which has a number larger than any memory for none."""
PROC = Path("/proc")


def limit_memory() -> None:
    """Limit what this process may add to its data: to the machine's memory with its swap, or a container's share."""
    try:
        import resource

        most = _of("meminfo", "MemTotal") + _of("meminfo", "SwapTotal")
        if (share := _share()) is not None:
            most = min(most, share)
        most += _of("self/status", "VmData")  # which is mapped, and mostly not used
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))
    except (ImportError, OSError, ValueError):
        pass


def _of(file: str, name: str) -> int:
    """Bytes of one line of a file of /proc."""
    for line in (PROC / file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(name)


def _share() -> int | None:
    """Bytes that a container may use, swap aside; None without a limit."""
    for file in CGROUPS:
        try:
            return int(file.read_text())
        except (OSError, ValueError):  # of the other version, or "max"
            continue
    return None
