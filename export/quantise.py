"""Integer arithmetic for the layers of an exported graph and attention's scores; everything else stays as it is.

* `quantise_static`: U8 activations with fixed scales, S8 weights from -64 to 64 with one scale a channel, in QDQ form;
  attention's scores too (`attention_scores.py`). An image's logits do not depend on its neighbours in the batch. What
  calibration images show is used three times more (`calibration.py`).
* `quantise_dynamic`: weights of the same range, each rounded alone; activations are scaled by what the batch at hand
  spans. No calibration, not batch-invariant, and attention's scores stay float.

Weights use 7 of their 8 bits (`reduce_range`): x86 processors without VNNI add two U8·S8 products in 16 bits, and with
weights up to ±127 they cut off what does not fit, in silence. Up to ±64 nothing can overflow: 2 · 255 · 64 < 2¹⁵.

Both are onnxruntime's own quantisers. What they leave out they leave out in silence, so `check_quantised` counts.
All else is computed in fp32; what else is large is stored in fp16 (`store_half`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType, create_calibrator, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from cdl_deploy.errors import QuantisationError
from cdl_deploy.export.attention_scores import Scores, check_scores, find_scores, key_scales, keys_in_bytes
from cdl_deploy.export.layers import FLOATS, Graph, Layer, bias_inside, drop_unused, find_layers, float_products
from cdl_deploy.export.outlier_units import clip_where_float
from cdl_deploy.export.rounding import Rounding
from cdl_deploy.folders import scratch_folder
from cdl_deploy.runtime.bundle_parts import SCORES

STORED_HALF = ("selection.", "last.", "query_last.")
"""How those initializers begin that are no layer and yet large: prompts and keys, and the last block's stacks."""
LARGEST_WEIGHT = 64
"""Of whole numbers: what `reduce_range` leaves."""
LARGE = 1 << 15
"""Numbers in such a constant that is worth storing in fp16."""
Feeds = Mapping[str, npt.NDArray[Any]]
"""Inputs of a session by name."""


@dataclass(frozen=True)
class PreparedModel:
    """A float model whose layers stand ready to be quantised, and attention's scores where they are quantised too."""

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    scores: tuple[Scores, ...] = ()
    clipped: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What layers take no more of than this: least and greatest (`outlier_units.py`)."""

    def nodes(self, keep: Collection[str] = ()) -> list[str]:
        """The products with a matrix to quantise: those of every layer whose name is not in `keep`."""
        return [node for layer in self.layers if layer.name not in keep for node in layer.nodes]

    def scores_but(self, keep: Collection[str] = ()) -> tuple[Scores, ...]:
        """The scores to quantise: all or, where `keep` has SCORES, none."""
        return () if SCORES in keep else self.scores


def prepare(model: onnx.ModelProto, static: bool) -> PreparedModel:
    """A copy of `model` with its layers written out, for `quantise_static` or `quantise_dynamic`.

    Raises QuantisationError where there are none.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    layers = find_layers(copy)
    if not layers:
        raise QuantisationError("the graph has no product of tokens with a constant matrix: nothing to quantise")
    if static:
        bias_inside(copy, layers)
    drop_unused(copy)
    scores = tuple(find_scores(copy)) if static else ()
    return PreparedModel(onnx.shape_inference.infer_shapes(copy), tuple(layers), scores)


def calibrate(prepared: PreparedModel, batches: Iterable[Feeds]) -> TensorsData:
    """The least and the greatest value that every product's sides take over `batches` of calibration images."""
    with scratch_folder("cdl-calibrate-") as folder, _silent():
        path = folder / "model.onnx"
        onnx.save(prepared.model, path)
        calibrator = create_calibrator(
            path,
            ["Gemm", "MatMul"],
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(batches))
        found: TensorsData = calibrator.compute_data()
        del calibrator  # it holds the file open
    for name, (least, greatest) in prepared.clipped.items():
        found.data[name] = TensorData(lowest=np.float32(least), highest=np.float32(greatest))
    return found


def quantise_static(
    prepared: PreparedModel,
    ranges: TensorsData,
    keep: Collection[str] = (),
    exact: Collection[str] = (),
    rounding: Rounding | None = None,
) -> onnx.ModelProto:
    """QDQ: U8 activations within `ranges`, S8 weights. Layers named in `keep` stay float; so do SCORES.

    `exact`: values that are whole numbers from 0 to 255 already; they get the scale 1. `rounding`: how weights become
    whole numbers; by default each becomes the nearest.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    scores = prepared.scores_but(keep)
    nodes = prepared.nodes(keep) + [product.node for product in scores]
    clip_where_float(model, prepared.clipped, nodes)
    if not nodes:  # an empty list would mean every node
        return _finished(model, prepared, keep)
    pixels = [{"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}]
    options = {
        # The products end in float: what follows them (softmax, GELU, residual adds) stays float.
        "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        "TensorQuantOverrides": {**dict.fromkeys(_pixel_values(model, exact), pixels), **key_scales(scores, ranges)},
    }
    with _silent():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=["Gemm", "MatMul"],
            extra_options=options,
        )
        quantizer.quantize_model()
        if rounding is not None:
            _round(quantizer.model.model, prepared, keep, rounding)
        keys_in_bytes(quantizer.model.model, scores)
        quantizer.model.topological_sort()
    return _finished(quantizer.model.model, prepared, keep)


def _round(model: onnx.ModelProto, prepared: PreparedModel, keep: Collection[str], rounding: Rounding) -> None:
    """Other whole numbers for the matrices, in the steps that the quantiser has chosen. In place."""
    matrices = {value.name: value for value in prepared.model.graph.initializer}
    stored = {value.name: value for value in model.graph.initializer}
    for layer in prepared.layers:
        if layer.name not in keep:
            whole, steps = (stored[f"{layer.weight}{suffix}"] for suffix in (TENSOR_NAME_QUANT_SUFFIX, "_scale"))
            matrix, columns = numpy_helper.to_array(matrices[layer.weight]), numpy_helper.to_array(steps)
            found = rounding(layer.weight, matrix, columns, LARGEST_WEIGHT)
            whole.CopyFrom(numpy_helper.from_array(found, whole.name))


def quantise_dynamic(prepared: PreparedModel, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Activations scaled as the batch at hand needs, S8 weights. Layers named in `keep` stay float."""
    copy = onnx.ModelProto()
    copy.CopyFrom(prepared.model)
    nodes = prepared.nodes(keep)
    if not nodes:  # an empty list would mean every node
        return _finished(copy, prepared, keep)
    with scratch_folder("cdl-quantise-") as folder, _silent():
        path = folder / "model.onnx"
        quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
        model = onnx.load(path)
    return _finished(model, prepared, keep)


def check_quantised(
    model: onnx.ModelProto, prepared: PreparedModel, keep: Collection[str] = (), types: Collection[int] = FLOATS
) -> int:
    """Count, in the model alone, what was quantised. Returns the number of products with a matrix.

    `types`: those that a matrix must not have any more.

    Raises QuantisationError where a product of tokens is still float though nobody asked for it.
    """
    check_scores(model, prepared.scores_but(keep))
    meant = set(prepared.nodes(keep))
    kept = set(prepared.nodes()) - meant
    left = {name: size for name, size in float_products(model, types).items() if name not in kept}
    if left:
        largest = sorted(left, key=lambda name: -left[name])
        raise QuantisationError(
            f"{len(left)} of {len(meant)} products were left in float by the quantiser, such as {largest[0]} "
            f"({left[largest[0]]:,} weights); nothing was written"
        )
    own = {layer.weight for layer in prepared.layers if layer.name not in keep}
    shared = {value.name for value in model.graph.initializer if value.data_type in types} & own
    if shared:
        raise QuantisationError(
            f"{len(shared)} quantised matrices are in the file in float as well, such as {min(shared)}; "
            "nothing was written"
        )
    return len(meant)


def _finished(model: onnx.ModelProto, prepared: PreparedModel, keep: Collection[str]) -> onnx.ModelProto:
    drop_unused(model)
    check_quantised(model, prepared, keep)
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def store_half(model: onnx.ModelProto) -> None:
    """Keep large prompts, keys and stacks in the file as fp16, turned into fp32 when the model is loaded. In place.

    With ten tasks of CODA they are a quarter of an int8 file, and rounding them is a thousandth of what int8 does to
    the tokens. The few keys of a selection that chooses the largest (L2P, DualPrompt) are too small to be worth it.
    """
    for value in list(model.graph.initializer):
        if not value.name.startswith(STORED_HALF) or value.data_type != onnx.TensorProto.FLOAT:
            continue
        numbers = numpy_helper.to_array(value)
        stored = numbers.astype(np.float16)
        if numbers.size < LARGE or not np.isfinite(stored).all():
            continue
        widen_at_load(model, value)


def widen_at_load(model: onnx.ModelProto, value: onnx.TensorProto) -> None:
    """Keep the initializer `value` of a model as fp16, and its name for what a Cast makes of that. In place."""
    half, name = f"{value.name}.half", value.name
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value).astype(np.float16), half))
    model.graph.node.insert(0, helper.make_node("Cast", [half], [name], name, to=onnx.TensorProto.FLOAT))


def _pixel_values(model: onnx.ModelProto, exact: Collection[str]) -> Iterator[str]:
    """What is fed to layers and is one of `exact`, but for its shape."""
    graph = Graph(model)
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            value = node.input[0]
            while value in graph.producer and graph.producer[value].op_type in ("Reshape", "Transpose"):
                value = graph.producer[value].input[0]
            if value in exact:
                yield node.input[0]


class _Reader:
    """Batches, as onnxruntime's calibrators read them."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Feeds | None:
        return next(self.batches, None)

    def __iter__(self) -> Iterator[Feeds]:
        return self.batches


@contextmanager
def _silent() -> Iterator[None]:
    """onnxruntime's quantisers advise, on the root logger, a preparation that has been done here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
