"""A torch module → one ONNX file, with current torch.onnx (dynamo) and a free batch dimension.

What torch traces is the core: pixels or a normalised tensor → logits, probabilities, task scores. `assemble` puts the
preprocessing before it and the names of the classes behind it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir.passes.common
import torch
import torch.fx.config
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.errors import OptionError
from cdl_deploy.export.labels import label_graph, label_outputs
from cdl_deploy.export.layer_scale import fold_layer_scale
from cdl_deploy.export.plain_graph import lower_to_17, write_plainly
from cdl_deploy.export.preprocessing import PIXELS_NAME, QUERY_PIXELS_NAME, image_input, preprocessing_graph
from cdl_deploy.files import write_atomic
from cdl_deploy.runtime.bundle import (
    DISTANCE_NAME,
    FEATURES_NAME,
    INPUT_NAME,
    LOGITS_NAME,
    PROBABILITIES_NAME,
    TASK_SCORES_NAME,
    Bundle,
)

OPSET = 20
LOWEST_OPSET = 17
"""The first opset with LayerNormalization."""
HIGHEST_OPSET = 23
"""The last one that the graph is made for; the tests export and run every one."""
LARGEST_FILE = 2_000_000_000
"""Bytes of weights from which on they stand in a file of their own: protobuf holds 2 GiB at most."""
ALIGNMENT = 4096
"""Each weight in such a file begins at a multiple, so that it can be mapped into memory."""
SMALL = 1024
"""Constants up to this size stay in the model: shapes and the like, which readers look at."""
LOWEST_WRITTEN = 18
"""The first opset that torch's exporter writes."""
EXAMPLE_BATCH = 2  # with an example batch of 1 the exporter takes the batch for a constant


def check_opset(opset: int) -> None:
    """Raise OptionError for an opset the graph cannot have."""
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise OptionError(
            f"--opset {opset} is not possible, expected {LOWEST_OPSET} to {HIGHEST_OPSET}: "
            "none below has LayerNormalization, and the graph is made for none above"
        )


def export_onnx(
    module: nn.Module, bundle: Bundle, opset: int = OPSET, labels: bool = True, query_view: ResizeCrop | None = None
) -> onnx.ModelProto:
    """`module` with what `bundle` says about input and classes around it, as one model. `labels`: with `topk_label`.

    `module` takes [B, 3, height, width]: pixels from 0 to 255, or what the bundle's `"tensor"` is. With `query_view` it
    takes pixels of that size as well, behind the others.
    """
    size = bundle.preprocessing
    input_name = PIXELS_NAME if size.input == "image" else INPUT_NAME
    example = torch.zeros(EXAMPLE_BATCH, 3, size.height, size.width)
    second = None if query_view is None else torch.zeros(EXAMPLE_BATCH, 3, query_view.height, query_view.width)
    core = export_core(module, example, input_name, opset, bundle.features is not None, second)
    return assemble(core, bundle, labels, query_view)


def export_core(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    opset: int = OPSET,
    with_features: bool = False,
    second: Tensor | None = None,
) -> onnx.ModelProto:
    """Trace `module` with an example [2, 3, height, width]. `with_features`: it gives features and distance as well.

    `second`: an example of a second input, `query_pixels`.
    """
    examples = (example,) if second is None else (example, second)
    more = [FEATURES_NAME, DISTANCE_NAME] if with_features else []
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            input_names=[input_name, QUERY_PIXELS_NAME][: len(examples)],
            output_names=[LOGITS_NAME, PROBABILITIES_NAME, TASK_SCORES_NAME, *more],
            dynamic_shapes=tuple({0: batch} for _ in examples),
            opset_version=max(opset, LOWEST_WRITTEN),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    # Folding transposes small weights one use at a time: what both passes share would be in the file twice.
    onnx_ir.passes.common.DeduplicateInitializersPass(size_limit=1 << 24)(program.model)
    model = program.model_proto
    _strip_traces(model)
    fold_layer_scale(model)
    write_plainly(model)
    if opset < LOWEST_WRITTEN:
        lower_to_17(model)
    return model


def assemble(
    core: onnx.ModelProto, bundle: Bundle, labels: bool = True, query_view: ResizeCrop | None = None
) -> onnx.ModelProto:
    """The core with what `bundle` says about input and classes around it. It is `core`, changed in place.

    Checked by onnx, shapes inferred strictly: onnxruntime-web refuses a declared shape that is not the inferred one.
    """
    graph = core.graph
    nodes, after = list(graph.node), label_graph(bundle, labels)
    parts = [after]
    if bundle.preprocessing.input == "image":
        before = [preprocessing_graph(bundle.preprocessing)]
        if query_view is not None:
            before.append(preprocessing_graph(query_view, QUERY_PIXELS_NAME))
        parts = [*before, *parts]
        nodes = [node for part in before for node in part.nodes] + nodes
        del graph.input[:]
        graph.input.append(image_input())
    del graph.node[:]
    graph.node.extend(nodes + after.nodes)
    for part in parts:
        graph.initializer.extend(part.initializers)
    if next(it.version for it in core.opset_import if not it.domain) < LOWEST_WRITTEN:
        lower_to_17(core)  # what was written here is in the words of newer opsets
    scores = next(i for i, output in enumerate(graph.output) if output.name == TASK_SCORES_NAME)
    for offset, output in enumerate(label_outputs(bundle, labels)):
        graph.output.insert(scores + offset, output)
    if not above_limit(core):  # otherwise `save_onnx` checks the file
        onnx.checker.check_model(core, full_check=True)
    return core


def save_onnx(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Write the model with `metadata` as its metadata_props; the same model gives the same bytes.

    Of the shapes of values only those of input and outputs are written: whoever wants the others infers them, and some
    runtimes cannot fix a batch that they name. The IR version is the lowest for the opset, so old runtimes load it.
    """
    shapes = list(model.graph.value_info)
    del model.graph.value_info[:]
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    apart = above_limit(model)
    if apart:
        move_weights(model, weights_file(path))
    write_atomic(path, lambda file: file.write_bytes(model.SerializeToString(deterministic=True)))
    model.graph.value_info.extend(shapes)
    if apart:
        onnx.checker.check_model(path, full_check=True)


def above_limit(model: onnx.ModelProto) -> bool:
    """Whether the weights in a model are too many for one file."""
    return sum(len(value.raw_data) for value in model.graph.initializer) > LARGEST_FILE


def weights_file(path: Path) -> Path:
    """Where the weights of a model above 2 GB are: beside it, as ONNX's external data."""
    return path.with_name(f"{path.name}.data")


def file_size(path: Path) -> int:
    """Bytes of a model, with its weights if these have a file of their own."""
    return sum(file.stat().st_size for file in (path, weights_file(path)) if file.exists())


def move_weights(model: onnx.ModelProto, path: Path) -> None:
    """Write the weights into the file `path` and leave in the model, in place, where they are."""

    def write(file: Path) -> None:
        with file.open("wb") as data:
            for value in model.graph.initializer:
                if len(value.raw_data) <= SMALL:
                    continue
                data.write(b"\0" * (-data.tell() % ALIGNMENT))
                set_external_data(value, path.name, data.tell(), len(value.raw_data))
                data.write(value.raw_data)
                value.ClearField("raw_data")

    write_atomic(path, write)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the Python source of every node: paths of the machine it ran on."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for holder in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and in warnings about its own deprecations; none is about this model. Nor does it
    note for every node which line of Python it is of: it takes time, and `_strip_traces` would remove it."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    traced = getattr(torch.fx.config, "do_not_emit_stack_traces", False)
    try:
        torch.fx.config.do_not_emit_stack_traces = True
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = traced
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
