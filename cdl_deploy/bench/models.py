"""Which models the command line's words mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cdl_deploy.bench.options import ModelSpec
from cdl_deploy.errors import BundleError, OptionError, RunError
from cdl_deploy.printable import as_typed
from cdl_deploy.run.latest import latest_record
from cdl_deploy.run.record_parts import Role
from cdl_deploy.targets.process import Place

SUFFIXES = (".onnx", ".ort")
ROLES: tuple[Role, ...] = ("student", "teacher")


def find_models(sources: Sequence[str | Path], torch: bool = False) -> list[ModelSpec]:
    """The models that `sources` name: model files, export directories, or run directories that were exported.

    A directory stands for its model files, the student first and the teacher last; a run directory stands for its
    `export` folder and, with `torch`, also for its models in PyTorch. Raises `BundleError` if a source has no model,
    `OptionError` for `torch` without a run.
    """
    files: list[Path] = []
    trained: list[ModelSpec] = []
    for source in map(Path, sources):
        if torch and (source / "run.json").is_file():
            trained += _trained(source)
        files += _models_in(source) if source.is_dir() else [source]
    repeated = [str(path) for path, times in Counter(path.resolve() for path in files).items() if times > 1]
    if repeated:
        raise BundleError(f"{repeated[0]} is given twice; to compare it with itself, give a copy")
    if torch and not trained:
        raise OptionError("--torch measures the models of a run, and no run directory is given: add one")
    found = [ModelSpec(path, name) for path, name in zip(files, _names(files), strict=True)]
    return _last(found + _distinct(trained))


def in_runtimes(models: Sequence[ModelSpec], places: Sequence[Place]) -> list[ModelSpec]:
    """Each model in each runtime, onnxruntime last: it is what the others are compared with.

    Raises OptionError for what other runtimes cannot run.
    """
    for model in models:
        if model.kind != "onnx" or model.path.suffix != ".onnx":
            raise OptionError(f"--runtime is about .onnx files, and {model.name} is none: leave it out")
    found = []
    for place in sorted(places, key=lambda it: it.name == "onnxruntime"):
        own = place if place.python is not None or place.name != "onnxruntime" else None
        kind = "onnx" if own is None else "runtime"
        found += [replace(it, name=f"{it.name} ({place.name})", kind=kind, place=own) for it in models]
    return found


def _models_in(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    if found:
        # The student first, and last what it is compared with: the teacher, its .onnx file after an .ort file of it.
        return sorted(
            found,
            key=lambda f: (
                f.stem != "student",
                f.stem == "teacher",
                f.stem == "teacher" and f.suffix == ".onnx",
                f.name,
            ),
        )
    if (folder / "run.json").is_file():
        exported = folder / "export"
        if exported.is_dir() and any(file.suffix in SUFFIXES for file in exported.iterdir()):
            return _models_in(exported)
        raise BundleError(
            f"{folder} is a run without an exported model; export it first: cdl export {as_typed(folder)} --onnx"
        )
    raise BundleError(f"{folder}: no .onnx file in this folder; give an export directory, a run, or .onnx files")


def _trained(run: Path) -> list[ModelSpec]:
    """The models of a run in PyTorch: the student, and the teacher where there was one."""
    try:
        record = latest_record(run)
    except RunError as error:
        raise BundleError(str(error)) from None
    roles = [role for role in ROLES if record.matrices.get(role)]
    return [ModelSpec(run, f"{role} (torch)", "torch", role) for role in roles]


def _last(models: list[ModelSpec]) -> list[ModelSpec]:
    """A lone teacher goes to the end, where the reference of a comparison stands."""
    return sorted(models, key=lambda model: model.kind == "onnx" and model.path.stem == "teacher" and len(models) > 1)


def _distinct(models: list[ModelSpec]) -> list[ModelSpec]:
    """Models of several runs carry the run's name."""
    same = Counter(model.name for model in models)
    return [replace(m, name=f"{m.path.name}/{m.name}") if same[m.name] > 1 else m for m in models]


def _names(files: Sequence[Path]) -> list[str]:
    """File stems, with as many parent folders as it takes to tell them apart."""
    whole = [path.resolve() for path in files]
    stems = [(*path.parent.parts, path.stem if path.suffix == ".onnx" else path.name) for path in whole]
    depth = 1
    while len({parts[-depth:] for parts in stems}) < len(stems) and depth < max(map(len, stems)):
        depth += 1
    same = Counter(parts[-1] for parts in stems)
    return ["/".join(parts[-depth:]) if same[parts[-1]] > 1 else parts[-1] for parts in stems]
