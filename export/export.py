"""Run directory → bundle: `student.onnx`, and `teacher.onnx` where the run has a teacher."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdl_deploy.data.preprocessing import INPUTS, Preprocessing
from cdl_deploy.errors import BundleError, OptionError, RunError, nearest
from cdl_deploy.export.features_hash import features_hash
from cdl_deploy.export.fit_target import fit_target
from cdl_deploy.export.fixed_shapes import check_fixed, check_same_logits, fix_shapes, logits_of_file, of_fixed_size
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.latency import latency_ms
from cdl_deploy.export.learned_sums import sums_of, trained_features
from cdl_deploy.export.merged_export import Compared, merge_for_export
from cdl_deploy.export.merging import check_share, plan_merging
from cdl_deploy.export.onnx_file import OPSET, above_limit, check_opset, export_onnx, file_size, save_onnx, weights_file
from cdl_deploy.export.ort_file import write_ort
from cdl_deploy.export.parity import check_features, check_parity, graph_input, trained_logits
from cdl_deploy.export.preprocessing import check_filter
from cdl_deploy.export.selection import BATCH, Select, check_select, fix_selection, load_images
from cdl_deploy.export.two_views import behind_preprocessing, query_view
from cdl_deploy.export.updates import MadeUpdate, make_updates, older_models
from cdl_deploy.export.variants import Shrink, write_variants
from cdl_deploy.export.vendor_int8 import write_vendor_int8
from cdl_deploy.files import write_json
from cdl_deploy.folders import place_for, publish, scratch_folder
from cdl_deploy.run import metrics
from cdl_deploy.run.migrations import first_config
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import (
    DISTANCE_NAME,
    MAX_TOP_K,
    Accuracy,
    Bundle,
    Method,
    RunOrigin,
    Weights,
    description,
    description_file,
    encode_metadata,
    read_bundle,
)
from cdl_deploy.runtime.threshold import threshold_by_images, threshold_by_sums
from cdl_deploy.targets import find_target
from cdl_deploy.targets.checking import NotInstalled, Proof, prove
from cdl_deploy.targets.process import is_installed
from cdl_deploy.targets.target import Target
from cdl_deploy.training.checkpoint import load_heldout, load_run
from cdl_deploy.training.methods.folded import FixedSelection
from cdl_deploy.training.models.learner import Learner

STAGING = ".cdl-export-"
"""How the names of folders begin in which exports are prepared."""

LABELS = ("graph", "none")
"""What `--labels` can be."""

OnStep = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True)
class Exported:
    """One file that was written."""

    bundle: Bundle
    bytes: int
    nodes: int
    held_out: int | None = None
    """Of a smaller variant: images that its accuracy was measured on."""
    calibration: str | None = None
    """Of an int8 variant: which images its scales come from."""
    products: int | None = None
    """Of a smaller variant: products of tokens with a matrix, of which `kept_float` stayed float."""
    scores: int | None = None
    """Of a smaller variant: products of queries and keys that are quantised as well."""
    left_float: dict[str, str] = field(default_factory=dict)
    """Of a smaller variant: what is computed in fp32 all the same, and why."""
    learned_from: int | None = None
    """Of an int8 variant with sums of its own: the training images that they are over."""
    proof: Proof | NotInstalled | None = None
    """How it answered in the runtime it is for."""
    quantiser: NotInstalled | None = None
    """Of a float file of which the target's own tool would have made int8, were it installed."""
    latency_ms: float | None = None
    """Milliseconds of one image on this machine, roughly."""
    close: int = 0
    """With `--tokens`: held-out images that were not compared, since two merges are equally good there."""
    closed_form: bool = False
    """Whether its head is a closed-form one."""
    updates: tuple[MadeUpdate, ...] = ()
    """What makes it from older models."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        apart = ("bundle", "updates", "proof", "quantiser")
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in apart}
        own["updates"] = [update.to_dict() for update in self.updates]
        own["proof"] = None if self.proof is None else asdict(self.proof)
        own["quantiser"] = None if self.quantiser is None else asdict(self.quantiser)
        return {**asdict(self.bundle), "path": str(self.bundle.path), **own}

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
    select: str = "in-graph"
    """Who selects prompts: each image, or at export `"task:K"` or `"images:DIR"`, once for all."""
    selection: Select = field(init=False)
    """What `select` says."""
    opset: int = OPSET
    """ONNX opset of the files."""
    shrink: Shrink = field(default_factory=Shrink)
    """Smaller variants to write beside the student."""
    labels: str = "graph"
    """`"graph"`: names of the best classes leave the graph, as strings. `"none"`: their positions alone."""
    target: str | None = None
    """The runtime that the files are for, in which they are tried: a name of `cdl_deploy/targets`."""
    target_python: Path | None = None
    """A Python that has this runtime; by default this one."""
    batch: int | None = None
    """Images in one run; any number by default."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images; any by default."""
    ort: bool = False
    """Write every file in onnxruntime's own format as well."""
    latency: bool = True
    """Measure, roughly, how long each file takes, for the report."""
    statistics: bool = True
    """Of a closed-form head: outputs `features` and `distance`, the threshold of the distance, and the sums beside
    the file. Without: a classifier, and nothing else."""
    tokens: float = 1.0
    """The share of patch tokens that are left after the last merging; 1: none merges."""
    update_from: tuple[Path, ...] = ()
    """Older models, or folders of them: beside each file, the update that makes it from the older one."""

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise OptionError(
                f"unknown --input '{self.input}', expected {' or '.join(INPUTS)}{nearest(self.input, INPUTS)}"
            )
        if self.labels not in LABELS:
            raise OptionError(
                f"unknown --labels '{self.labels}', expected {' or '.join(LABELS)}{nearest(self.labels, LABELS)}"
            )
        if self.target is not None:
            find_target(self.target)
        check_opset(self.opset)
        check_share(self.tokens)
        check_fixed(self.batch, self.image_size, self.input)
        object.__setattr__(self, "selection", Select.parse(self.select))


def export_run(
    run: Path,
    out: Path,
    options: ExportOptions | None = None,
    on_step: OnStep = lambda text: None,
    after: int | None = None,
) -> list[Exported]:
    """Export the learners of `run` after its last finished task, or as they were `after` an earlier one, into `out`.

    All files are written and compared with the trained model in a temporary folder first; only when every one has
    passed do they replace those in `out`, all at once; an older model to update from may be one of them. Raises
    RunError for a run without a finished task, or a folder that cannot be written, ParityError where they differ.
    """
    options = options or ExportOptions()
    check_tools(options)
    record, pair = load_run(run, after)
    images, labels = _known(record, *load_heldout(run, record))
    select = options.selection
    check_select(select, type(pair.student.method), record.config.method.method, len(record.tasks))
    learners = [pair.student]
    if options.teacher and pair.teacher is not None:
        learners.append(pair.teacher)
    fixed: dict[str, FixedSelection] = {}
    if not select.in_graph:
        on_step("selecting prompts once for all images")
        samples = _samples(select, record, images, labels)
        fixed = {it.role: fix_selection(it, pair.encoder, select.task, samples) for it in learners}
    if options.input == "image":
        for learner in learners:
            check_filter(record.preprocessing.of(learner.role).interpolation)
    for learner in learners:
        plan_merging(learner.backbone, options.tokens, learner.first_block)
        query_view(record, learner, learner.method.uses_query and select.in_graph, options.input)
    older = older_models(options.update_from, [learner.role for learner in learners])
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file, expected a folder: choose another")
    with _staging(out) as staging:
        exported = []
        for learner in learners:
            chosen, compared = fixed.get(learner.role), Compared(pair, learner, images)
            if options.tokens < 1:
                compared = merge_for_export(run, record, compared, labels, options.tokens, chosen, on_step)
            exported += _export_learner(run, record, compared, chosen, staging, options, on_step)
        exported = [_with_updates(item, older.get(item.bundle.role, ()), on_step) for item in exported]
        publish(staging, out.resolve(), last=lambda name: name.suffix == ".onnx")
    return [item.moved(out) for item in exported]


def check_tools(options: ExportOptions) -> None:
    """Raise OptionError for a target's interpreter that is none, and for versions that are too old, before any work."""
    if tool := int8_tool(options):
        is_installed(tool, options.target_python)
    if options.target is not None:
        is_installed(find_target(options.target), options.target_python)


def int8_tool(options: ExportOptions) -> Target | None:
    """The target's own, where it is to make int8."""
    if options.target is None or "int8" not in options.shrink.kinds:
        return None
    return find_target(options.target).quantiser


def own_shrink(options: ExportOptions) -> Shrink:
    """The smaller variants that are made here: all, but for int8 where the target's own tool makes that."""
    if int8_tool(options) is None:
        return options.shrink
    kinds = tuple(kind for kind in options.shrink.kinds if kind != "int8")
    return replace(options.shrink, kinds=kinds, calibrate=None)


def left_behind(folder: Path, exported: Sequence[Exported]) -> dict[str, str]:
    """Models in `folder` that an earlier export left and this one did not replace: file → how it differs."""
    written = {item.bundle.path.name for item in exported}
    newest = {item.bundle.role: item.bundle for item in exported}
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.onnx")):
        if path.name in written or path.name.partition(".")[0] not in newest:
            continue
        try:
            old = read_bundle(path)
        except BundleError:
            continue
        new = newest[path.name.partition(".")[0]]
        if old.classes != new.classes or old.run != new.run:
            known = f"knows {len(old.classes)} classes, {new.path.name} {len(new.classes)}"
            found[path.name] = (
                known if len(old.classes) != len(new.classes) else f"is not of the same run as {new.path.name}"
            )
    return found


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Where files are prepared that become visible in `out` at once. Raises RunError where one cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(STAGING, place_for(out.resolve())) as staging:
            yield staging
    except OSError as error:
        raise RunError(f"--out {out}: {error.strerror or error}; nothing was exported") from error


def _with_updates(item: Exported, older: Sequence[Path], on_step: OnStep) -> Exported:
    if item.bundle.path.suffix != ".onnx":  # made by a target's own tool
        return item
    if older:
        on_step(f"{item.bundle.role}: making updates")
    return replace(item, updates=make_updates(item.bundle.path, older))


def _known(record: RunRecord, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images of classes that were not forgotten; all of them where none was."""
    if not record.forgotten:
        return images, labels
    kept = torch.isin(labels, torch.tensor(record.known_positions))
    return images[kept], labels[kept]


def _samples(select: Select, record: RunRecord, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Batches of the images that select: a folder's, or those the run holds out of a task."""
    if select.images is not None:
        return load_images(select.images, record.preprocessing.resize_crop)
    assert select.task is not None
    own = record.tasks[select.task - 1].classes
    positions = torch.tensor([record.classes.index(name) for name in own])
    chosen = images[torch.isin(labels, positions)]
    if not len(chosen):
        raise OptionError(f"--select {select.name}: every class of this task was forgotten, choose another")
    return list(chosen.split(BATCH))


def _export_learner(
    run: Path,
    record: RunRecord,
    compared: Compared,
    fixed: FixedSelection | None,
    folder: Path,
    options: ExportOptions,
    on_step: OnStep,
) -> list[Exported]:
    pair, learner, images = compared.pair, compared.learner, compared.images
    role = learner.role
    path = folder / f"{role}.onnx"
    on_step(f"{role}: building the graph")
    known = record.known_positions if record.forgotten else None
    sums = sums_of(record, learner) if options.statistics and compared.sums_fit else None
    distance, pixels = sums.distance if sums else None, options.input == "image"
    graph = ExportGraph(pair, learner, pixels, fixed, known, distance, options.tokens)
    bundle = replace(describe(record, learner, path, options, graph, fixed), patch_tokens=compared.patch_tokens)
    if sums:
        bundle = replace(bundle, features=sums.features(""))
    view = query_view(record, learner, graph.uses_query, options.input)
    more = {} if view is None else {"query_view": view}
    model = export_onnx(graph, bundle, options.opset, options.labels == "graph", **more)
    seen = learner.backbone.own_pixels(images)
    run_images = None if view is None else behind_preprocessing(model, pair.encoder, learner, images)
    prompts = fixed.prompts if fixed else None
    if sums:
        features = sums.features(features_hash(model))
        read = trained_features(pair.encoder, learner, images, prompts)
        far = sums.distance.distance(sums.map.transform(read))
        threshold, how = threshold_by_images(far) or threshold_by_sums(sums.statistics, sums.rule)
        bundle = replace(
            bundle,
            features=features,
            statistics=sums.write(path, features),
            unknown_threshold=threshold,
            unknown_rule=how,
        )
    if above_limit(model):
        check_large(path, options)
    save_onnx(model, path, encode_metadata(bundle))
    on_step(f"{role}: comparing with the trained model on {len(images)} held-out images")
    expected = trained_logits(pair.encoder, learner, images, prompts)
    expected = expected if known is None else expected[:, known]
    terms = None
    if learner.closed_form is not None:
        rows = read if sums else trained_features(pair.encoder, learner, images, prompts)
        terms = learner.closed_form.largest_sum(torch.from_numpy(rows))
    parity = check_parity(path, bundle.preprocessing, expected, seen, terms, run_images)
    bundle = replace(bundle, parity=parity)
    if sums:
        check_features(path, bundle.preprocessing, read, far, seen, run_images)
    save_onnx(model, path, encode_metadata(bundle))
    write_json(description_file(path), description(bundle))
    exported = [Exported(bundle, file_size(path), len(model.graph.node))]
    exported[0] = replace(exported[0], close=compared.close, closed_form=learner.closed_form is not None)
    if role == "student":
        for it in write_variants(run, record, model, bundle, own_shrink(options), on_step, sums):
            size, nodes = it.bundle.path.stat().st_size, len(it.model.graph.node)
            found = Exported(it.bundle, size, nodes, it.held_out, it.calibration, it.products, it.scores)
            exported.append(replace(found, left_float=it.left_float, learned_from=it.learned_from))
    if options.batch is not None or options.image_size is not None:
        on_step(f"{role}: fixing the shape of the input")
        exported = [_fixed(it, images, options) for it in exported]
    if options.target is not None:
        exported = [_proved(it, images, expected.numpy(), options, on_step) for it in exported]
    by_vendor: list[Exported] = []
    if role == "student" and (tool := int8_tool(options)):
        exported[0], by_vendor = _by_vendor(run, record, exported[0], tool, options, on_step)
    if options.latency:
        exported = [replace(it, latency_ms=latency_ms(it.bundle.path, it.bundle.preprocessing)) for it in exported]
    if options.ort:
        for item in exported:
            on_step(f"{item.bundle.path.stem}.ort: optimising")
            write_ort(item.bundle.path)
    return exported + by_vendor


def _fixed(item: Exported, images: Tensor, options: ExportOptions) -> Exported:
    """The file with the shape of its input fixed, in its place, after it has answered as the file with free sizes."""
    path, bundle = item.bundle.path, item.bundle
    free = onnx.load(path)
    fixed = fix_shapes(free, options.batch, options.image_size)
    if options.target is not None:
        fixed = fit_target(fixed, find_target(options.target))
        if DISTANCE_NAME not in [it.name for it in fixed.graph.output]:
            bundle = replace(bundle, unknown_threshold=None, unknown_rule=None)
            write_json(description_file(path), description(bundle))
    check_same_logits(free, fixed, bundle, images)
    save_onnx(fixed, path, encode_metadata(bundle))
    return replace(item, bundle=bundle, bytes=file_size(path), nodes=len(fixed.graph.node))


def _proved(
    item: Exported, images: Tensor, expected: NDArray[np.float32], options: ExportOptions, on_step: OnStep
) -> Exported:
    """The file with its proof in the runtime it is for: of a smaller variant, and of images of another size than those
    that were trained with, compared with what onnxruntime makes of the same file."""
    target = find_target(options.target or "onnxruntime")
    if not is_installed(target, options.target_python):
        return replace(item, proof=NotInstalled(target.name, target.install, options.target_python))
    path, feed = item.bundle.path, graph_input(images, item.bundle.preprocessing)
    on_step(f"{path.name}: running held-out images in {target.name}")
    own = of_fixed_size(feed, options.image_size)
    if item.bundle.quantization is not None or own.shape != feed.shape:
        expected = logits_of_file(path, own, options.batch)
    return replace(item, proof=prove(target, path, own, expected, options.batch, options.target_python))


def _by_vendor(
    run: Path, record: RunRecord, item: Exported, tool: Target, options: ExportOptions, on_step: OnStep
) -> tuple[Exported, list[Exported]]:
    """The float file, and int8 that the target's own `tool` has made of it; where that is not installed, none, and the
    float file says so."""
    target, python = find_target(options.target or "onnxruntime"), options.target_python
    if not is_installed(tool, python):
        return replace(item, quantiser=NotInstalled(tool.distribution, tool.install, python)), []
    made = write_vendor_int8(
        run, record, item.bundle, target, python, options.shrink, options.batch, options.image_size, on_step
    )
    found = Exported(made.bundle, made.proof.bytes, made.nodes, made.held_out, made.calibration)
    return item, [replace(found, products=made.products, left_float=made.left_float, proof=made.proof)]


def check_large(path: Path, options: ExportOptions) -> None:
    """Raise OptionError for what cannot be made of a model whose weights stand in a file of their own."""
    fixed = options.batch is not None or options.image_size is not None
    asked = {"--quantize or --fp16": options.shrink.kinds, "--ort": options.ort, "--update-from": options.update_from}
    asked["--batch or --image-size"] = fixed
    for name, wanted in asked.items():
        if wanted:
            raise OptionError(
                f"{path.name} has more than 2 GB of weights, which ONNX keeps in a file of their own "
                f"({weights_file(path).name}): {name} cannot be done with it, leave that out"
            )


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
        weights=Weights(model=info.model, sha256=info.sha256),
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
