"""What an exported file says about itself, from the record of its run and the learner that is exported."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.options import ExportOptions
from cdl_deploy.run import metrics
from cdl_deploy.run.migrations import first_config
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import MAX_TOP_K, Bundle
from cdl_deploy.runtime.bundle_parts import Accuracy, Method, RunOrigin, Weights
from cdl_deploy.training.methods.folded import FixedSelection
from cdl_deploy.training.models.learner import Learner


def describe(
    record: RunRecord,
    learner: Learner,
    path: Path,
    options: ExportOptions,
    graph: ExportGraph,
    fixed: FixedSelection | None = None,
) -> Bundle:
    """What the file says about itself."""
    role, select = learner.role, options.selection
    matrix = record.matrices[role]
    info = record.backbones[role]
    preprocessing = record.preprocessing.of(role)
    uses_query = graph.uses_query
    known = set(record.known_classes)
    return Bundle(
        path=path,
        role=role,
        classes=tuple(record.known_classes),
        tasks=tuple(tuple(name for name in task.classes if name in known) for task in record.tasks),
        preprocessing=Preprocessing(
            height=preprocessing.height,
            width=preprocessing.width,
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
            mean=info.mean,
            std=info.std,
            input=options.input,
        ),
        method=Method(
            continual=record.config.method.method,
            distillation=record.config.method.distill if role == "student" else None,
            query=record.config.method.query if uses_query else None,
            select=select.name if uses_query or not select.in_graph else None,
            task_scores="selected" if graph.selection.by_task else None,
        ),
        weights=Weights(model=info.words, sha256=info.sha256),
        run=RunOrigin(seed=record.config.optim.seed, tasks=len(record.tasks), fingerprint=run_fingerprint(record)),
        parameters=info.parameters + trained_parameters(learner, fixed),
        top_k=min(MAX_TOP_K, len(known)),
        accuracy=Accuracy(metrics.final_average_accuracy(matrix), metrics.forgetting(matrix)),
    )


def trained_parameters(learner: Learner, fixed: FixedSelection | None) -> int:
    """How many trained values have a part in the prediction; of a fixed selection only the prompts it has chosen."""
    state = learner.prediction_state()
    if fixed is None:
        return sum(value.numel() for value in state.values())
    prefixes = [prompt.prefix for prompt in fixed.prompts.values() if prompt.prefix is not None]
    chosen = sum(rows.numel() for prefix in prefixes for rows in prefix)
    return chosen + sum(value.numel() for name, value in state.items() if not name.startswith("method."))


def run_fingerprint(record: RunRecord) -> str:
    """Hash of what the run was made from: configuration, backbones, and the images of every task."""
    config = first_config(record.recorded_config())
    config["data"] = {name: value for name, value in config["data"].items() if name != "labels" or value is not None}
    for section, name in (("data", "data"), ("data", "labels"), ("models", "teacher_run")):  # wherever they lie
        value = config[section].get(name)
        if value is not None and os.path.isabs(value):
            config[section] = {**config[section], name: os.path.basename(value)}
    content = [
        config,
        record.recorded_backbones(),
        [task.data_fingerprint for task in record.tasks],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
