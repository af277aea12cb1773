"""What to measure: the models and the conditions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cdl_deploy.errors import OptionError, nearest
from cdl_deploy.runtime.cores import usable_cores
from cdl_deploy.targets.process import Place

STAGES = ("graph", "jpeg")
"""Where a measurement starts: at what the graph takes, or at an image file on the disk."""
PHOTO_SIZE = (640, 480)
"""(width, height) of the photographs that are made up where none are given."""


@dataclass(frozen=True)
class ModelSpec:
    """One model to measure."""

    path: Path
    """The `.onnx` file, ours or anybody's; for a PyTorch model its run directory."""
    name: str
    """Short name in the report; unique among the models measured."""
    kind: str = "onnx"
    """`"onnx"`, `"torch"`, or `"runtime"` for another runtime than onnxruntime."""
    role: str | None = None
    """Which model of a run, for `"torch"`: `"student"` or `"teacher"`."""
    place: Place | None = None
    """For `"runtime"`: which, and where it is."""


@dataclass(frozen=True)
class Condition:
    """What a time depends on, beside the model."""

    stage: str
    """Where it starts: one of `STAGES`."""
    threads: int
    """Threads of one inference."""
    streams: int
    """Inferences at the same time in one process."""
    batch: int
    """Images in one inference."""


@dataclass(frozen=True)
class BenchOptions:
    """The conditions: every model runs at every batch size, number of threads, number of streams, and stage."""

    batches: tuple[int, ...] = (1, 8, 32)
    """Batch sizes."""
    threads: tuple[int, ...] = ()
    """Threads of one inference; empty: as many as the cores this process may use."""
    streams: tuple[int, ...] = (1,)
    """Inferences at the same time in one process, each on a thread of the caller's."""
    stages: tuple[str, ...] = ("graph",)
    """Where to start: `"graph"`, `"jpeg"`, or both."""
    image_size: tuple[int, int] | None = None
    """(width, height) of made-up images, where a model takes any. None: for the graph the size that the model scales
    to by itself, and `PHOTO_SIZE` for JPEG."""
    images: Path | None = None
    """A folder with photographs to use for JPEG instead of made-up ones."""
    precision: float = 2.0
    """A median is precise enough when its 95 % interval is within ± this percentage of it."""
    min_effect: float = 3.0
    """A difference of fewer percent is never called faster or slower: two copies of one file can differ by as much."""
    time_limit: float = 60.0
    """Seconds for everything, loading included; the report says which medians are then still imprecise."""
    seed: int = 0
    """Seed of the order of measurements and of made-up values."""

    def __post_init__(self) -> None:
        if not self.threads:
            object.__setattr__(self, "threads", (usable_cores(),))
        for name, values in (("batch", self.batches), ("threads", self.threads), ("streams", self.streams)):
            if not values or any(value < 1 for value in values):
                raise OptionError(f"{name} is {list(values)}, expected one or more numbers from 1, such as 1,8")
            if len(set(values)) < len(values):
                raise OptionError(f"{name} is {list(values)}, expected each number once")
        for stage in self.stages:
            if stage not in STAGES:
                raise OptionError(f"--from is {stage!r}, expected graph, jpeg or graph,jpeg{nearest(stage, STAGES)}")
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise OptionError(f"--from is {list(self.stages)}, expected graph, jpeg or graph,jpeg")
        if self.image_size is not None and not all(1 <= side <= 10_000 for side in self.image_size):
            raise OptionError(f"image size is {self.image_size}, expected width and height from 1 to 10000")
        for name, percent in (("precision", self.precision), ("min effect", self.min_effect)):
            if not 0 < percent <= 100:
                raise OptionError(f"{name} is {percent}, expected a percentage above 0 and up to 100")
        if not self.time_limit > 0:
            raise OptionError(f"time limit is {self.time_limit} seconds, expected more than 0")

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(stage, threads): what one set of processes measures."""
        return [(stage, threads) for stage in self.stages for threads in self.threads]

    def conditions(self, stage: str, threads: int) -> list[Condition]:
        """The conditions of one group: small batches first."""
        return [Condition(stage, threads, streams, batch) for streams in self.streams for batch in sorted(self.batches)]
