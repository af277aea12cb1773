"""What to measure: the models and the conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdl_deploy.bench.machine import usable_cores
from cdl_deploy.errors import BundleError, OptionError


@dataclass(frozen=True)
class ModelSpec:
    """One model to measure."""

    path: Path
    """The `.onnx` file: an exported model, or any model with one image input of a fixed size."""
    name: str
    """Short name in the report; unique among the models measured."""


@dataclass(frozen=True)
class BenchOptions:
    """The conditions: every model runs at every batch size with every number of threads."""

    batches: tuple[int, ...] = (1, 8, 32)
    """Batch sizes."""
    threads: tuple[int, ...] = ()
    """Threads of one inference; empty: as many as the cores this process may use."""
    precision: float = 2.0
    """A median is precise enough when its 95 % interval is within ± this percentage of it."""
    time_limit: float = 60.0
    """Seconds for everything, loading included; the report says which medians are then still imprecise."""
    seed: int = 0
    """Seed of the order of measurements and of the input's random values."""

    def __post_init__(self) -> None:
        if not self.threads:
            object.__setattr__(self, "threads", (usable_cores(),))
        for name, values in (("batch", self.batches), ("threads", self.threads)):
            if not values or any(value < 1 for value in values):
                raise OptionError(f"{name} is {list(values)}, expected one or more numbers from 1, such as 1,8")
            if len(set(values)) < len(values):
                raise OptionError(f"{name} is {list(values)}, expected each number once")
        if not 0 < self.precision <= 100:
            raise OptionError(f"precision is {self.precision}, expected a percentage above 0 and up to 100")
        if not self.time_limit > 0:
            raise OptionError(f"time limit is {self.time_limit} seconds, expected more than 0")


def find_models(sources: Sequence[str | Path]) -> list[ModelSpec]:
    """The models that `sources` name: `.onnx` files, export directories, or run directories that were exported.

    A directory stands for its student.onnx and teacher.onnx (or, with neither, for every .onnx file in it); a run
    directory stands for its `export` folder. Raises `BundleError` if a source has no model.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        files += _models_in(source) if source.is_dir() else [source]
    repeated = [str(path) for path, times in Counter(path.resolve() for path in files).items() if times > 1]
    if repeated:
        raise BundleError(f"{repeated[0]} is given twice; to compare it with itself, give a copy")
    return [ModelSpec(path, name) for path, name in zip(files, _names(files), strict=True)]


def _models_in(folder: Path) -> list[Path]:
    pair = [path for path in (folder / "student.onnx", folder / "teacher.onnx") if path.is_file()]
    found = pair or sorted(folder.glob("*.onnx"))
    if found:
        return found
    if (folder / "run.json").is_file():
        exported = folder / "export"
        if exported.is_dir() and any(exported.glob("*.onnx")):
            return _models_in(exported)
        raise BundleError(f"{folder} is a run without an exported model; export it first: cdl export {folder} --onnx")
    raise BundleError(f"{folder}: no .onnx file in this folder; give an export directory, a run, or .onnx files")


def _names(files: Sequence[Path]) -> list[str]:
    """File stems, with as many parent folders as it takes to tell them apart."""
    stems = [path.with_suffix("").resolve().parts for path in files]
    depth = 1
    while len({parts[-depth:] for parts in stems}) < len(stems) and depth < max(map(len, stems)):
        depth += 1
    same = Counter(parts[-1] for parts in stems)
    return ["/".join(parts[-depth:]) if same[parts[-1]] > 1 else parts[-1] for parts in stems]
