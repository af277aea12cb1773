"""int8 by the tool of a target's vendor, of the float file: `student.int8-nncf.xml` for OpenVINO.

It is told which products to quantise, those of tokens with a matrix (`layers.py`), and leaves the rest in float. Scales
come from the images that our own int8 file takes them from, and on the same held-out images no more may be lost. The
tool runs in an interpreter that has it, in a process of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from numpy.typing import NDArray

from cdl_deploy.data.images import load_image, to_square, to_tensor
from cdl_deploy.errors import QuantisationError
from cdl_deploy.export.fixed_shapes import logits_of_file, of_fixed_size
from cdl_deploy.export.images_of_run import CalibrationImages, HeldOut, calibration_images, held_out_images
from cdl_deploy.export.layers import drop_unused, find_layers
from cdl_deploy.export.left_float import left_float
from cdl_deploy.export.onnx_file import save_onnx
from cdl_deploy.export.sensitivity import accuracy
from cdl_deploy.export.variants import Shrink, parity_of
from cdl_deploy.files import write_json
from cdl_deploy.folders import scratch_folder
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import (
    DISTANCE_NAME,
    FEATURES_NAME,
    Bundle,
    description,
    description_file,
    encode_metadata,
)
from cdl_deploy.runtime.bundle_parts import Quantization
from cdl_deploy.targets.checking import BURST, SECONDS, Proof
from cdl_deploy.targets.client import WorkerError
from cdl_deploy.targets.process import Place, job_of, logits_of, start
from cdl_deploy.targets.target import Target

BATCH = 8
"""Images in one run while answers are counted, where the file takes any number."""
COMPARED = 16
"""Images that are answered a second time, beside other ones: the answers are the same bits or are said not to be."""


@dataclass(frozen=True)
class VendorInt8:
    """What was written."""

    bundle: Bundle
    """Its path is the first of the files."""
    proof: Proof
    held_out: int
    """Images that accuracy was measured on."""
    calibration: str
    """Which images its scales come from."""
    products: int
    """Products of tokens with a matrix, all of them in int8."""
    left_float: dict[str, str]
    """What is computed in float all the same, and why."""
    nodes: int


def write_vendor_int8(
    root: Path,
    record: RunRecord,
    bundle: Bundle,
    target: Target,
    python: Path | None,
    shrink: Shrink,
    batch: int | None,
    image_size: tuple[int, int] | None,
    on_step: Callable[[str], None],
) -> VendorInt8:
    """Write int8 files of `target.quantiser` beside the float file `bundle.path`, and run them in its runtime.

    `batch`, `image_size`: what the float file takes, None for any. Raises QuantisationError where the tool fails, or
    where more than `shrink.max_drop` points are lost.
    """
    tool = target.quantiser
    assert tool is not None
    path = bundle.path.with_name(f"{bundle.path.stem}{tool.converted[0]}")
    images = calibration_images(root, record, bundle.preprocessing, shrink.calibrate)
    held_out = held_out_images(root, record, bundle.preprocessing)
    feed = of_fixed_size(np.concatenate([inputs for inputs, _ in held_out.tasks]), image_size)
    on_step(f"{path.name}: counting right answers on {held_out.images} held-out images")
    expected = logits_of_file(bundle.path, feed, batch)
    before = accuracy(expected, held_out)
    model = onnx.load(bundle.path)
    products = products_of(model)
    bare = replace(
        bundle,
        quantization=Quantization("int8", batch_invariant=False, accuracy_before=before),  # as far as is known yet
        parity=None,
        features=None,
        statistics=None,
        unknown_threshold=None,
        unknown_rule=None,
    )
    source = f"{len(images.items)} {images.source}"
    with scratch_folder("cdl-vendor-") as folder:
        given = folder / f"{path.stem}.onnx"
        save_onnx(classifier(model), given, encode_metadata(replace(bare, path=given)))
        np.save(folder / "calibration.npy", of_fixed_size(stacked(images), image_size))
        (folder / "products.json").write_text(json.dumps(products), encoding="utf-8")
        on_step(f"{path.name}: calibrating on {source}, and counting right answers in {target.name}")
        try:
            with start(Place(tool, python), given, SECONDS) as client:
                client.prepare(job_of(given, folder, batch or 1, str(feed.dtype), feed.shape[1:]))
                client.load()
                about = client.inspect(batch or 1)
                logits = logits_of(client, feed, batch or BATCH, folder)
                again = logits_of(client, feed[:COMPARED][::-1], batch or 1, folder)[::-1]
                ms = median(client.burst(batch or 1, 1, BURST))
        except WorkerError as error:
            raise QuantisationError(
                f"{path.name} could not be made or run with {tool.distribution} ({error.why}): {instead(target)}; "
                "nothing was written"
            ) from error
        after = checked(path, expected, logits, held_out, shrink.max_drop, target)
        for made in map(Path, about["files"]):
            shutil.copyfile(made, path.with_name(made.name))
        nodes = path.read_bytes().count(b"<layer ")
    parity, alone = parity_of(expected, logits), bool(np.array_equal(again, logits[:COMPARED]))
    written = replace(bare, path=path, parity=parity, quantization=Quantization("int8", alone, (), before, after))
    write_json(description_file(path), description(written))
    off = float(np.abs(expected - logits).max())
    runtime = f"{target.name} {about['version']}"
    proof = Proof(runtime, len(feed), off, parity.top1_agreement, ms, path.name, int(about["file_bytes"]))
    return VendorInt8(written, proof, held_out.images, source, len(products), left_float(model, ()), nodes)


def products_of(model: onnx.ModelProto) -> list[str]:
    """The nodes of `model` that multiply tokens with a matrix, which our own int8 file quantises as well: their names.

    Raises QuantisationError where there are none.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = {node.name for node in model.graph.node}
    found = [node for layer in find_layers(copy) for node in layer.nodes]
    layers = [node if node in own else node.removesuffix(".product") for node in found]  # a patch embedding is a Conv
    if not layers:
        raise QuantisationError("the graph has no product of tokens with a constant matrix: nothing to quantise")
    assert own.issuperset(layers)
    return layers


def classifier(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without `features` and `distance`: sums over the float file's features do not fit those in int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [it for it in copy.graph.output if it.name not in (FEATURES_NAME, DISTANCE_NAME)]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    drop_unused(copy)
    return copy


def stacked(images: CalibrationImages) -> NDArray[np.generic]:
    """Calibration images [n, …] of one size, of which a graph that preprocesses makes what it makes of whole ones."""
    to_input: Callable[..., NDArray[np.generic]] = to_square if images.preprocessing.input == "image" else to_tensor
    return np.stack([to_input(load_image(item), images.preprocessing) for item in images.items])


def checked(
    path: Path,
    expected: NDArray[np.float32],
    logits: NDArray[np.float32],
    held_out: HeldOut,
    max_drop: float,
    target: Target,
) -> float:
    """Percent of right answers. Raises QuantisationError where these are more than `max_drop` points fewer."""
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        raise QuantisationError(
            f"{path.name} answers with {list(logits.shape)} numbers, or not with numbers, expected "
            f"{list(expected.shape)}: {instead(target)}; nothing was written"
        )
    before, after = accuracy(expected, held_out), accuracy(logits, held_out)
    if before - after > max_drop:
        raise QuantisationError(
            f"{path.name} answers {after:.1f} % right instead of {before:.1f} %, --max-drop {max_drop:g} points "
            f"allowed: allow more, give more images like the model's own with --calibrate, or {instead(target)}; "
            "nothing was written"
        )
    return after


def instead(target: Target) -> str:
    """What else there is."""
    return f"take our own int8 file, which {target.name} runs as well (--onnx --quantize int8, without --target)"
