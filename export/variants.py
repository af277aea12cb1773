"""Smaller variants of an exported model, each in a file of its own beside it: `student.int8.onnx`, `student.fp16.onnx`.

A variant is written only if it answers as well as the float model, on held-out images, to within `max_drop` points.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cdl_deploy.errors import OptionError, nearest
from cdl_deploy.export.calibration import calibrated
from cdl_deploy.export.features_hash import features_hash
from cdl_deploy.export.fp16 import beyond_half, to_fp16
from cdl_deploy.export.images_of_run import CalibrationImages, HeldOut, calibration_images, held_out_images
from cdl_deploy.export.learned_sums import LearnedSums
from cdl_deploy.export.left_float import left_float
from cdl_deploy.export.onnx_file import save_onnx
from cdl_deploy.export.own_sums import OwnSums, images_of_tasks, own_sums
from cdl_deploy.export.preprocessing import PIXELS_NAME
from cdl_deploy.export.quantise import prepare, quantise_dynamic, quantise_static
from cdl_deploy.export.sensitivity import Quantise, accuracy, logits_of, most_sensitive, outputs_of, within_drop
from cdl_deploy.files import write_json
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import DISTANCE_NAME, Bundle, description, description_file, encode_metadata
from cdl_deploy.runtime.bundle_parts import QUANTIZATIONS, Parity, Quantization
from cdl_deploy.runtime.threshold import threshold_by_images, threshold_by_sums

MAX_DROP = 0.5
RANKING_IMAGES = 32
"""Calibration images that layers are ranked on: one session a layer makes more of them slow."""


@dataclass(frozen=True)
class Shrink:
    """Which variants to write beside the float model."""

    kinds: tuple[str, ...] = ()
    """Of `QUANTIZATIONS`."""
    calibrate: Path | None = None
    """Folder of images for `int8`; by default the run's own."""
    max_drop: float = MAX_DROP
    """Points of accuracy that a variant may lose."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in QUANTIZATIONS:
                known = [name for name in QUANTIZATIONS if name != "fp16"]
                raise OptionError(f"unknown --quantize '{kind}', expected {' or '.join(known)}{nearest(kind, known)}")
        if not 0 <= self.max_drop <= 100:
            raise OptionError(f"--max-drop is {self.max_drop:g}, expected points of accuracy from 0 to 100")
        if self.calibrate is not None and "int8" not in self.kinds:
            raise OptionError(
                "--calibrate is for --quantize int8, which alone has fixed scales: add it, or leave it out"
            )


@dataclass(frozen=True)
class Variant:
    """One variant that was written."""

    bundle: Bundle
    model: onnx.ModelProto
    held_out: int
    """Images that accuracy was measured on."""
    calibration: str | None
    """Which images its scales come from."""
    products: int
    """Products of tokens with a matrix, of which those of `kept_float` are left."""
    scores: int
    """Products of queries and keys that are quantised."""
    left_float: dict[str, str]
    """What is computed in fp32 all the same, and why."""
    learned_from: int | None = None
    """Training images that its own sums are over; None where it has none, and cannot learn."""
    sums_drop: float | None = None
    """Points of accuracy that a head from its own sums would lose, where that is why it has none."""


def write_variants(
    root: Path,
    record: RunRecord,
    model: onnx.ModelProto,
    bundle: Bundle,
    shrink: Shrink,
    on_step: Callable[[str], None],
    sums: LearnedSums | None = None,
) -> list[Variant]:
    """Write each variant of `model`, whose file is `bundle.path`, beside it. `sums`: of its closed-form head.

    Raises QuantisationError where one loses more than it may, DataError where there is nothing to calibrate on.
    """
    if not shrink.kinds:
        return []
    calibration = calibration_images(root, record, bundle.preprocessing, shrink.calibrate)
    held_out = held_out_images(root, record, bundle.preprocessing)
    on_step(f"{bundle.role}: counting right answers on {held_out.images} held-out images")
    expected = logits_of(model, held_out)
    images = images_of_tasks(root, record) if sums is not None and "int8" in shrink.kinds else None
    own = None if sums is None or images is None else partial(own_sums, sums=sums, tasks=images)
    return [_write(model, expected, bundle, kind, calibration, held_out, shrink, on_step, own) for kind in shrink.kinds]


def variant_path(path: Path, kind: str) -> Path:
    """`student.onnx` → `student.int8.onnx`."""
    return path.with_name(f"{path.stem}.{kind}{path.suffix}")


def _write(
    model: onnx.ModelProto,
    expected: npt.NDArray[np.float32],
    bundle: Bundle,
    kind: str,
    calibration: CalibrationImages,
    held_out: HeldOut,
    shrink: Shrink,
    on_step: Callable[[str], None],
    own: Callable[[Path], OwnSums | None] | None,
) -> Variant:
    path = variant_path(bundle.path, kind)
    prepared = prepare(model, static=kind == "int8")
    always: list[str] = []
    quantise: Quantise
    if kind == "int8":
        on_step(f"{path.name}: calibrating on {len(calibration.items)} {calibration.source}")
        prepared, ranges, rounding = calibrated(prepared, calibration)
        quantise = partial(quantise_static, prepared, ranges, exact=(PIXELS_NAME,), rounding=rounding)
    elif kind == "int8-dynamic":
        quantise = partial(quantise_dynamic, prepared)
    else:
        always = beyond_half(prepared)
        quantise = partial(to_fp16, prepared, always=always)

    def ranking() -> list[str]:
        on_step(f"{path.name}: looking for the layers that suffer most")
        return most_sensitive(prepared, quantise, itertools.islice(calibration, RANKING_IMAGES))

    logits = expected

    def measure(it: onnx.ModelProto) -> float:
        nonlocal logits
        on_step(f"{path.name}: counting right answers")
        logits = logits_of(it, held_out)
        return accuracy(logits, held_out)

    before = accuracy(expected, held_out)
    small, kept, after = within_drop(
        quantise, ranking, measure, before, shrink.max_drop, path.name, scores=bool(prepared.scores)
    )
    written = replace(
        bundle,
        path=path,
        parity=parity_of(expected, logits),  # those of the last model that was measured, which is `small`
        **_own_features(small, bundle, held_out),
        quantization=Quantization(kind, kind != "int8-dynamic", tuple(sorted({*always, *kept})), before, after),
    )
    save_onnx(small, path, encode_metadata(written))
    learned_from = drop = None
    if own is not None and kind == "int8":
        on_step(f"{path.name}: summing up its own features of the training images")
        found = own(path)
        if found is not None:
            written, small, drop = _with_own_sums(written, small, found, expected, held_out, shrink.max_drop)
            learned_from = found.images if drop is None else None
            save_onnx(small, path, encode_metadata(written))
    write_json(description_file(path), description(written))
    source = f"{len(calibration.items)} {calibration.source}" if kind == "int8" else None
    scores = len(prepared.scores_but(kept))
    left = left_float(small, set(kept) - set(always), always, scores=scores > 0)
    return Variant(written, small, held_out.images, source, len(prepared.nodes()), scores, left, learned_from, drop)


def _with_own_sums(
    bundle: Bundle,
    model: onnx.ModelProto,
    own: OwnSums,
    expected: npt.NDArray[np.float32],
    held_out: HeldOut,
    max_drop: float,
) -> tuple[Bundle, onnx.ModelProto, float | None]:
    """With head and distance from its own sums, and the sums beside it; unchanged where that loses more points of
    accuracy than `max_drop`, with how many."""
    solved = own.solved(bundle.path, bundle)
    answers = logits_of(solved, held_out)
    assert bundle.features is not None
    assert bundle.quantization is not None
    before, after = bundle.quantization.accuracy_before, accuracy(answers, held_out)
    if before is not None and before - after > max_drop:
        return bundle, model, before - after
    far = outputs_of(solved, held_out, DISTANCE_NAME)
    threshold, how = threshold_by_images(far) or threshold_by_sums(own.statistics, own.sums.rule)
    changed = replace(
        bundle,
        parity=parity_of(expected, answers),
        quantization=replace(bundle.quantization, accuracy_after=after),
        statistics=own.write(bundle.path, bundle.features),
        unknown_threshold=threshold,
        unknown_rule=how,
    )
    return changed, solved, None


def _own_features(small: onnx.ModelProto, bundle: Bundle, held_out: HeldOut) -> dict[str, Any]:
    """A smaller model's features are its own: sums of the float model's do not fit, and its threshold is measured.

    Where there are too few images to measure it there is none.
    """
    if bundle.features is None:
        return {}
    threshold, how = threshold_by_images(outputs_of(small, held_out, DISTANCE_NAME)) or (None, None)
    features = replace(bundle.features, sha256=features_hash(small))
    return {"features": features, "statistics": None, "unknown_threshold": threshold, "unknown_rule": how}


def parity_of(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> Parity:
    """How the variant's logits compare with those of the float model; nothing is demanded of them."""
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    difference = float(np.abs(expected - found).max())
    return Parity(len(same), float(f"{difference:.1g}"), float(same.mean()))
