"""The machine a benchmark runs on: what it is, in every detail that can move a time."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from cdl_deploy.runtime.cores import usable_cores

VERSIONS = ("cdl-deploy", "onnxruntime", "numpy", "pillow", "torch", "torchvision", "timm")
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve", "bf16"),
)
"""Instruction sets that decide which kernels onnxruntime takes, by their names in /proc/cpuinfo."""
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
"""Environment variables that change how many threads run, or how they wait."""


@dataclass(frozen=True)
class Machine:
    """Recorded in every report. What cannot be read on a system is None or empty."""

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
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that take part, of those that are installed."""
    memory_bytes: int | None = None
    """Memory of the machine."""
    instructions: tuple[str, ...] = ()
    """Instruction sets that matter, of those that the processor has."""
    governor: str | None = None
    """How the system chooses the clock rate, such as `performance` or `powersave`."""
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables that change threads, of those that are set."""

    def differs_from(self, other: Machine) -> list[str]:
        """In words, what makes times of the two machines not comparable; empty where nothing does.

        A cloud's processors of several generations may all give one model name: their instruction sets differ.
        """
        names = ("cpu", "cores", "usable_cores")
        words = {"cpu": "processor", "cores": "cores", "usable_cores": "usable cores"}
        found = [
            f"{words[name]} {getattr(other, name)}, here {getattr(self, name)}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]
        if self.instructions and other.instructions and set(self.instructions) != set(other.instructions):
            found.append(f"instruction sets {', '.join(other.instructions)}, here {', '.join(self.instructions)}")
        return found

    @property
    def processor(self) -> str:
        """Its name and what decides which kernels run, such as `AMD EPYC (avx2)`."""
        return f"{self.cpu} ({', '.join(self.instructions)})" if self.instructions else self.cpu


def cpu_model() -> str:
    """Marketing name of the processor, or its architecture where the name is not to be had."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def describe_machine() -> Machine:
    """The machine as it is now."""
    return Machine(
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=metadata.version("onnxruntime"),
        versions=_versions(),
        memory_bytes=_memory(),
        instructions=_instructions(),
        governor=_setting(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _instructions() -> tuple[str, ...]:
    text = _setting(Path("/proc/cpuinfo")) or ""
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            known = set(line.partition(":")[2].split())
            return tuple(name for name in INSTRUCTIONS if name in known)
    return ()


def _setting(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
