"""A file as a target's converter reads it: without the outputs and operators that it gets wrong."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cdl_deploy.errors import OptionError
from cdl_deploy.export.layers import drop_unused
from cdl_deploy.runtime.bundle import DISTANCE_NAME, TOPK_INDEX_NAME, TOPK_LABEL_NAME, TOPK_PROBABILITY_NAME
from cdl_deploy.targets.target import Target

BEST = (TOPK_INDEX_NAME, TOPK_LABEL_NAME, TOPK_PROBABILITY_NAME)


def fit_target(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """A copy of `model` for `target`. Raises OptionError for an operator that it lacks."""
    fitted = onnx.ModelProto()
    fitted.CopyFrom(model)
    if target.no_best or target.no_distance:
        gone = (*(BEST if target.no_best else ()), *((DISTANCE_NAME,) if target.no_distance else ()))
        kept = [it for it in fitted.graph.output if it.name not in gone]
        del fitted.graph.output[:]
        fitted.graph.output.extend(kept)
        drop_unused(fitted)
    for operator, why in target.lacks.items():
        if any(node.op_type == operator for node in fitted.graph.node):
            raise OptionError(f"--target {target.name} cannot hold this model, which {why}, or take another target")
    if target.no_list_gather:
        split_gathers(fitted)
        drop_unused(fitted)
    onnx.checker.check_model(fitted, full_check=True)
    return fitted


def split_gathers(model: onnx.ModelProto) -> None:
    """Write a Gather of several constant positions as slices of one, put together again; in place."""
    constants = {it.name: it for it in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        given = constants.get(node.input[1]) if node.op_type == "Gather" else None
        if given is None or len(given.dims) != 1:
            nodes.append(node)
            continue
        axis, name = next((it.i for it in node.attribute if it.name == "axis"), 0), node.output[0]
        parts = []
        for place, at in enumerate(numpy_helper.to_array(given).tolist()):
            ends = {"from": at, "to": at + 1 if at != -1 else np.iinfo(np.int64).max, "axis": axis}
            names = [f"{name}/{end}{place}" for end in ends]
            values = [
                numpy_helper.from_array(np.array([it], np.int64), own)
                for own, it in zip(names, ends.values(), strict=True)
            ]
            model.graph.initializer.extend(values)
            nodes.append(helper.make_node("Slice", [node.input[0], *names], [f"{name}/part{place}"]))
            parts.append(f"{name}/part{place}")
        nodes.append(helper.make_node("Concat", parts, [name], axis=axis))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
