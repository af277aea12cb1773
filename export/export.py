"""Run directory → bundle: `student.onnx`, and `teacher.onnx` where the run has a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdl_deploy.errors import BundleError, OptionError, RunError
from cdl_deploy.export.describe import describe
from cdl_deploy.export.exported import Exported
from cdl_deploy.export.features_hash import features_hash
from cdl_deploy.export.fit_target import fit_target
from cdl_deploy.export.fixed_shapes import check_same_logits, fix_shapes, logits_of_file, of_fixed_size
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.latency import latency_ms
from cdl_deploy.export.learned_sums import sums_of, trained_features
from cdl_deploy.export.merged_export import Compared, merge_for_export
from cdl_deploy.export.merging import check_merging
from cdl_deploy.export.onnx_file import above_limit, export_onnx, file_size, save_onnx
from cdl_deploy.export.options import ExportOptions, check_large, check_tools, int8_tool, own_shrink
from cdl_deploy.export.ort_file import write_ort
from cdl_deploy.export.parity import check_features, check_parity, graph_input, trained_logits
from cdl_deploy.export.preprocessing import check_filter
from cdl_deploy.export.selection import BATCH, Select, check_select, fix_selection, load_images
from cdl_deploy.export.two_views import behind_preprocessing, query_view
from cdl_deploy.export.updates import make_updates, older_models
from cdl_deploy.export.variants import write_variants
from cdl_deploy.export.vendor_int8 import write_vendor_int8
from cdl_deploy.files import write_json
from cdl_deploy.folders import place_for, publish, scratch_folder
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import DISTANCE_NAME, description, description_file, encode_metadata, read_bundle
from cdl_deploy.runtime.threshold import threshold_by_images, threshold_by_sums
from cdl_deploy.targets import find_target
from cdl_deploy.targets.checking import NotInstalled, prove
from cdl_deploy.targets.process import is_installed
from cdl_deploy.targets.target import Target
from cdl_deploy.training.checkpoint import load_heldout, load_run
from cdl_deploy.training.methods.folded import FixedSelection

STAGING = ".cdl-export-"
"""How the names of folders begin in which exports are prepared."""

OnStep = Callable[[str], None]
"""Told what is being done, in a few words."""


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
        check_merging(learner, options.tokens)
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


def left_behind(folder: Path, exported: Sequence[Exported]) -> dict[str, str]:
    """Models in `folder` that an earlier export left and this one did not replace: file → how it differs."""
    written = {item.bundle.path.name for item in exported}
    student = exported[0].bundle
    newest = {"teacher": student} | {item.bundle.role: item.bundle for item in exported}
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
    terms = None
    if learner.closed_form is not None:
        rows = read if sums else trained_features(pair.encoder, learner, images, prompts)
        terms = learner.closed_form.largest_sum(torch.from_numpy(rows))
    elif learner.calibration is not None:
        terms = learner.calibration.largest_sum(expected)
    expected = expected if known is None else expected[:, known]
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
            found = replace(found, left_float=it.left_float, learned_from=it.learned_from, sums_drop=it.sums_drop)
            exported.append(found)
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
