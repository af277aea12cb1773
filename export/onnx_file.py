"""A torch module → one ONNX file, with current torch.onnx (dynamo) and a free batch dimension."""

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
from torch import Tensor, nn

from cdl_deploy.bundle import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from cdl_deploy.files import write_atomic

OPSET = 20
EXAMPLE_BATCH = 2  # with an example batch of 1 the exporter takes the batch for a constant


def export_onnx(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """Trace `module` with an example [2, 3, height, width]; checked by onnx, shapes inferred strictly."""
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=[LOGITS_NAME, PROBABILITIES_NAME],
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    # Folding transposes small weights one use at a time: what both passes share would be in the file twice.
    onnx_ir.passes.common.DeduplicateInitializersPass(size_limit=1 << 24)(program.model)
    model = program.model_proto
    _strip_traces(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def save_onnx(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Write the model with `metadata` as its metadata_props; the same model gives the same bytes."""
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    write_atomic(path, lambda file: file.write_bytes(model.SerializeToString(deterministic=True)))


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
    """The exporter talks on stdout and in warnings about its own deprecations; none is about this model."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
