"""Run directory → bundle: `student.onnx`, and `teacher.onnx` where the run has a teacher."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cdl_deploy.bundle import (
    INPUTS,
    MAX_TOP_K,
    Accuracy,
    Bundle,
    Method,
    Preprocessing,
    RunRecord,
    Weights,
    description,
    description_file,
    encode_metadata,
)
from cdl_deploy.errors import OptionError, RunError, nearest
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.onnx_file import OPSET, check_opset, export_onnx, save_onnx
from cdl_deploy.export.parity import check_parity, trained_logits
from cdl_deploy.export.preprocessing import check_filter
from cdl_deploy.export.updates import MadeUpdate, make_updates, older_models
from cdl_deploy.files import write_json
from cdl_deploy.training import metrics
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.pair import Pair
from cdl_deploy.training.restore import load_heldout, load_run
from cdl_deploy.training.run_directory import Record

OnStep = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True)
class Exported:
    """One file that was written."""

    bundle: Bundle
    bytes: int
    nodes: int
    updates: tuple[MadeUpdate, ...] = ()
    """What makes it from older models."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        description = asdict(self.bundle)
        updates = [update.to_dict() for update in self.updates]
        sizes = {"bytes": self.bytes, "nodes": self.nodes, "updates": updates}
        return {**description, "path": str(self.bundle.path), **sizes}

    def moved(self, folder: Path) -> Exported:
        """The same, with its files in `folder`."""
        updates = tuple(replace(update, path=folder / update.path.name) for update in self.updates)
        return replace(self, bundle=replace(self.bundle, path=folder / self.bundle.path.name), updates=updates)


@dataclass(frozen=True)
class ExportOptions:
    """What the files are to be like."""

    teacher: bool = True
    """Export the teacher as well, where there is one."""
    input: str = "image"
    """`"image"`: the graph resizes, crops and normalises. `"tensor"`: the caller does."""
    opset: int = OPSET
    """ONNX opset of the files."""
    update_from: tuple[Path, ...] = ()
    """Older models, or folders of them: beside each file, the update that makes it from the older one."""

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise OptionError(
                f"unknown --input '{self.input}', expected {' or '.join(INPUTS)}{nearest(self.input, INPUTS)}"
            )
        check_opset(self.opset)


def export_run(
    run: Path, out: Path, options: ExportOptions | None = None, on_step: OnStep = lambda text: None
) -> list[Exported]:
    """Export the learners of `run` after its last finished task into the folder `out`.

    All files are written and compared with the trained model in a temporary folder first; only when every one has
    passed do they replace those in `out`; an older model to update from may be one of them. Raises RunError for a run
    without a finished task, ParityError where they differ.
    """
    options = options or ExportOptions()
    record, pair = load_run(run)
    images, _ = load_heldout(run, record)
    roles: list[Role] = ["student"]
    if options.teacher and pair.teacher is not None:
        roles.append("teacher")
    if options.input == "image":
        check_filter(record.preprocessing["interpolation"])
    older = older_models(options.update_from, roles)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file, expected a folder: choose another")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".cdl-export-", dir=out.parent))
    try:
        exported = [_export_role(record, pair, role, images, staging, options, on_step) for role in roles]
        exported = [_with_updates(item, older.get(item.bundle.role, ()), on_step) for item in exported]
        out.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir()):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [item.moved(out) for item in exported]


def _with_updates(item: Exported, older: Sequence[Path], on_step: OnStep) -> Exported:
    if older:
        on_step(f"{item.bundle.role}: making updates")
    return replace(item, updates=make_updates(item.bundle.path, older))


def _export_role(
    record: Record, pair: Pair, role: Role, images: Tensor, folder: Path, options: ExportOptions, on_step: OnStep
) -> Exported:
    learner = pair.learners[role]
    path = folder / f"{role}.onnx"
    on_step(f"{role}: building the graph")
    graph = ExportGraph(pair, learner, pixels=options.input == "image")
    bundle = describe(record, learner, role, path, options, graph)
    model = export_onnx(graph, bundle, options.opset)
    save_onnx(model, path, encode_metadata(bundle))
    on_step(f"{role}: comparing with the trained model on {len(images)} held-out images")
    expected = trained_logits(pair.encoder, learner, images)
    bundle = replace(bundle, parity=check_parity(path, bundle.preprocessing, expected, images))
    save_onnx(model, path, encode_metadata(bundle))
    write_json(description_file(path), description(bundle))
    return Exported(bundle, path.stat().st_size, len(model.graph.node))


def describe(
    record: Record, learner: Learner, role: Role, path: Path, options: ExportOptions, graph: ExportGraph
) -> Bundle:
    """What the file says about itself."""
    matrix = record.matrices[role]
    info = record.backbones[role]
    preprocessing = record.preprocessing
    trained = sum(value.numel() for name, value in learner.trained_state().items() if is_exported(learner, name))
    uses_query = learner.method.uses_query
    return Bundle(
        path=path,
        role=role,
        classes=tuple(record.classes),
        tasks=tuple(tuple(task["classes"]) for task in record.tasks),
        preprocessing=Preprocessing(
            height=preprocessing["size"],
            width=preprocessing["size"],
            resize=preprocessing["resize"],
            interpolation=preprocessing["interpolation"],
            mean=tuple(info["mean"]),
            std=tuple(info["std"]),
            input=options.input,
        ),
        method=Method(
            continual=record.config["method"]["method"],
            distillation=record.config["method"]["distill"] if role == "student" else None,
            query=record.config["method"].get("query", "full") if uses_query else None,
            select="in-graph" if uses_query else None,
            task_scores="selected" if graph.selection.by_task else None,
        ),
        weights=Weights(model=info["model"], sha256=info["sha256"]),
        run=RunRecord(
            seed=record.config["optim"]["seed"], tasks=len(record.tasks), fingerprint=run_fingerprint(record)
        ),
        parameters=info["parameters"] + trained,
        top_k=min(MAX_TOP_K, len(record.classes)),
        accuracy=Accuracy(metrics.final_average_accuracy(matrix), metrics.forgetting(matrix)),
    )


def is_exported(learner: Learner, name: str) -> bool:
    """Whether the trained tensor `name` has a part in the answer; projections of a distillation have none."""
    part, _, rest = name.partition(".")
    if part == "method":
        return rest not in learner.method.training_only
    return part != "distillation" or learner.distillation.answers


def run_fingerprint(record: Record) -> str:
    """Hash of what the run was made from: configuration, backbones, and the images of every task."""
    content = [record.config, record.backbones, [task["data_fingerprint"] for task in record.tasks]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
