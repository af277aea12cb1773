"""`--batch N` and `--image-size H,W`: a file whose input has one shape, with what depends on that computed beforehand.

What becomes constant is computed by onnxruntime with the nodes of the file itself, so the answers are those of the file
with free sizes. Constants keep their names, and `cdl.features` its hash: the features are the same.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cdl_deploy.errors import OptionError, ParityError
from cdl_deploy.export.layers import drop_unused
from cdl_deploy.export.parity import TOLERANCE, graph_input
from cdl_deploy.export.session import cpu_session
from cdl_deploy.runtime.bundle import INPUT_NAME, LOGITS_NAME, Bundle
from cdl_deploy.runtime.session_input import in_batches, input_shape
from cdl_deploy.training.shapes import Pixels

MAX_BATCH, MAX_IMAGE_SIDE = 4096, 16384
SMALL = 64
"""Whole numbers in a constant that is a shape or a position, and no weight."""
COMPARED = 16
"""Images that the two files are compared on."""


def parse_image_size(text: str) -> tuple[int, int]:
    """From `H,W`. Raises OptionError."""
    found = re.fullmatch(r"([0-9]{1,6})[,x×]([0-9]{1,6})", text.replace(" ", ""))
    if not found:
        raise OptionError(f"--image-size is '{text}', expected height and width in pixels, such as 480,640")
    return int(found[1]), int(found[2])


def check_fixed(batch: int | None, image_size: tuple[int, int] | None, graph_input: str) -> None:
    """Raise OptionError for a shape that the input cannot have."""
    if batch is not None and not 1 <= batch <= MAX_BATCH:
        raise OptionError(f"--batch is {batch}, expected 1 to {MAX_BATCH} images")
    if image_size is None:
        return
    if graph_input != "image":
        raise OptionError("--image-size is for --input image: a tensor has the size that the network sees already")
    if not all(1 <= side <= MAX_IMAGE_SIDE for side in image_size):
        raise OptionError(
            f"--image-size is {image_size[0]},{image_size[1]}, expected height and width from 1 to {MAX_IMAGE_SIDE}"
        )


def fix_shapes(model: onnx.ModelProto, batch: int | None, image_size: tuple[int, int] | None) -> onnx.ModelProto:
    """A copy of `model` for `batch` images of `image_size` (height, width); None leaves a size free."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    dims = fixed.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, (batch, *(image_size or ())), strict=False):
        if size is not None:
            dim.dim_value = size
    if batch is not None:
        for output in fixed.graph.output:
            output.type.tensor_type.shape.dim[0].dim_value = batch
    while _fold(fixed):
        pass
    _skip_expands(fixed)
    _skip_slices(fixed)
    drop_unused(fixed)
    onnx.checker.check_model(fixed, full_check=True)
    return fixed


def check_same_logits(free: onnx.ModelProto, fixed: onnx.ModelProto, bundle: Bundle, images: Pixels) -> None:
    """Raise ParityError where the two differ on held-out images, enlarged or reduced to the fixed size.

    One run at a time, and one image in a run unless the file takes more: photographs are large.
    """
    own, other = cpu_session(free), cpu_session(fixed)
    batch, size = input_shape(other, bundle.preprocessing)
    feed = graph_input(images[:COMPARED], bundle.preprocessing)
    count = batch or 1
    for start in range(0, len(feed), count):
        part = of_fixed_size(np.resize(feed[start : start + count], (count, *feed.shape[1:])), size)
        expected, found = (it.run([LOGITS_NAME], {it.get_inputs()[0].name: part})[0] for it in (own, other))
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        off = float(np.abs(expected - found).max())
        if not off <= allowed:
            raise ParityError(
                f"{bundle.path.name} with fixed sizes differs from the file with free ones: a logit by {off:.2g}, at "
                f"most {allowed:.2g} allowed; nothing was written"
            )


def of_fixed_size(feed: NDArray[np.generic], size: tuple[int, int] | None) -> NDArray[np.generic]:
    """Images [n, height, width, 3] as images of `size`, pixels repeated or left out; as they are without one."""
    if size is None or size == feed.shape[1:3]:
        return feed
    rows, columns = (np.arange(side) * before // side for side, before in zip(size, feed.shape[1:3], strict=True))
    return feed[:, rows][:, :, columns]


def logits_of_file(path: Path, feed: NDArray[np.generic], batch: int | None) -> NDArray[np.float32]:
    """The file's logits in onnxruntime, image by image where any number may be in one run."""
    session = cpu_session(path)
    return in_batches(feed, batch or 1, lambda rows: session.run([LOGITS_NAME], {INPUT_NAME: rows}))[0]


def _fold(model: onnx.ModelProto) -> bool:
    """Replace by constants what has become one, in place; whether anything has."""
    shapes = _shapes(model)
    constants = {it.name: it for it in model.graph.initializer if _counts(it)}
    outputs = {value.name for value in model.graph.output}
    known, folded = set(constants), []
    new: dict[str, NDArray[np.int64]] = {}
    for node in model.graph.node:
        if node.op_type == "Shape":
            sizes = _part(node, shapes.get(node.input[0]))
            if sizes is not None:
                new[node.output[0]] = sizes
                known.add(node.output[0])
        elif not outputs & set(node.output) and node.input and all(name in known for name in node.input if name):
            folded.append(node)
            known.update(node.output)
    if not new and not folded:
        return False
    gone = {name for node in folded for name in node.output} | set(new)
    kept = [node for node in model.graph.node if not gone & set(node.output)]
    read = {name for node in kept for name in node.input}
    added = [numpy_helper.from_array(value, name) for name, value in new.items()]
    wanted = [name for node in folded for name in node.output if name in read]
    if wanted:
        added_to = [*constants.values(), *added]
        ends = [helper.make_empty_tensor_value_info(name) for name in wanted]
        graph = helper.make_graph(folded, "constants", [], ends, added_to)
        part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        part = onnx.shape_inference.infer_shapes(part)
        session = cpu_session(part)
        values = session.run(wanted, {})
        model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in zip(wanted, values, strict=True))
    model.graph.initializer.extend(it for it in added if it.name in read)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return True


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Sizes of each value; None where one is free."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _counts(value: onnx.TensorProto) -> bool:
    """Whether a constant is a shape, a position or part of resizing, rather than a weight."""
    if value.name.startswith("preprocessing/"):
        return True
    return value.data_type == onnx.TensorProto.INT64 and int(np.prod(value.dims)) <= SMALL


def _part(node: onnx.NodeProto, shape: list[int | None] | None) -> NDArray[np.int64] | None:
    """What a Shape node gives, where that is known."""
    if shape is None:
        return None
    flags = {it.name: it.i for it in node.attribute}
    sizes = [size for size in shape[flags.get("start", 0) : flags.get("end", len(shape))] if size is not None]
    whole = len(shape[flags.get("start", 0) : flags.get("end", len(shape))])
    return np.array(sizes, np.int64) if len(sizes) == whole else None


def _skip_expands(model: onnx.ModelProto) -> None:
    """Leave out an Expand to the shape that a constant has already, as with one image; not of an output."""
    constants = {it.name: it for it in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    same: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "Expand" or node.output[0] in outputs or not all(it in constants for it in node.input):
            continue
        own = list(constants[node.input[0]].dims)
        target = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if len(target) == len(own) and all(size in (1, has) for size, has in zip(target, own, strict=True)):
            same[node.output[0]] = node.input[0]
    _read_instead(model, same)


def _skip_slices(model: onnx.ModelProto) -> None:
    """Leave out a Slice that takes all there is, or one of the values that a Concat has just joined: the preprocessing
    computes some pixels and copies others, and one size needs either. Not of an output."""
    shapes, constants = _shapes(model), {it.name: it for it in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    joins = {node.output[0]: node for node in model.graph.node if node.op_type == "Concat"}
    same: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "Slice" or node.output[0] in outputs or not all(it in constants for it in node.input[1:]):
            continue
        starts, ends, axes, *steps = (numpy_helper.to_array(constants[it]).tolist() for it in node.input[1:])
        own, join = shapes.get(node.input[0]), joins.get(node.input[0])
        if steps or own is None:
            continue
        sizes = [own[axis] for axis in axes]
        if not any(starts) and all(size is not None and size <= end for size, end in zip(sizes, ends, strict=True)):
            same[node.output[0]] = node.input[0]
        elif join is not None and axes == [join.attribute[0].i]:
            parts = [shapes[name][axes[0]] for name in join.input]
            places = list(itertools.accumulate((part or 0 for part in parts), initial=0))
            if None not in parts and (*starts, *ends) in itertools.pairwise(places):
                same[node.output[0]] = join.input[places.index(starts[0])]
    _read_instead(model, same)


def _read_instead(model: onnx.ModelProto, same: dict[str, str]) -> None:
    """Every node reads what `same` has for a value, in place."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[place] = name
