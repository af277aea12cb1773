"""PyTorch's graph in the words that most runtimes and converters know; no number that it computes changes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cdl_deploy.errors import OptionError

AXES = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare")
"""What takes its axes as an input from opset 18 on, and as an attribute before."""


def write_plainly(model: onnx.ModelProto) -> None:
    """In place: no `allowzero` (no shape here has a 0), sizes of a Split written out, and the batch read from the first
    convolution where that has it, so that the input has one reader."""
    for node in model.graph.node:
        if node.op_type == "Reshape":
            _drop(node, "allowzero")
    _write_splits(model)
    _read_batch_behind_patches(model)


def lower_to_17(model: onnx.ModelProto) -> None:
    """From opset 18 to 17, in place; what is of 17 already stays as it is. Raises OptionError for an operator that 17
    has in another form or not at all."""
    constants = {value.name: value for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in AXES and len(node.input) == 1:
            continue  # of all axes, or lowered already
        if node.op_type in AXES and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            del node.input[1:]
            _drop(node, "noop_with_empty_axes")
            node.attribute.append(helper.make_attribute("axes", axes))
            continue
        # Split is the same but for `num_outputs`, which `write_plainly` has replaced.
        if node.op_type != "Split" and onnx.defs.get_schema(node.op_type, 18).since_version > 17:
            raise OptionError(
                f"--opset 17 is not possible for this model: its {node.op_type} is of opset 18; leave the option out"
            )
    read = {value for node in model.graph.node for value in node.input}
    for value in [it for it in model.graph.initializer if it.name not in read]:
        model.graph.initializer.remove(value)
    for item in model.opset_import:
        if item.domain == "":
            item.version = 17


def _drop(node: onnx.NodeProto, name: str) -> None:
    for attribute in [it for it in node.attribute if it.name == name]:
        node.attribute.remove(attribute)


def _write_splits(model: onnx.ModelProto) -> None:
    """Equal parts as an input of sizes, where the axis is of known length."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    for node in model.graph.node:
        flags = {it.name: helper.get_attribute_value(it) for it in node.attribute}
        if node.op_type != "Split" or len(node.input) > 1 or node.input[0] not in shapes:
            continue
        length, count = shapes[node.input[0]][flags.get("axis", 0)].dim_value, len(node.output)
        if not length:
            continue
        part = -(-length // count)
        sizes = np.array([part] * (count - 1) + [length - part * (count - 1)], np.int64)
        _drop(node, "num_outputs")
        node.input.append(f"{node.output[0]}.sizes")
        model.graph.initializer.append(numpy_helper.from_array(sizes, node.input[1]))


def _read_batch_behind_patches(model: onnx.ModelProto) -> None:
    """`Shape(input)[0:1]` → `Shape(patches)[0:1]`, right behind the convolution that makes the patches."""
    nodes, source = list(model.graph.node), model.graph.input[0].name
    patches = next((node for node in nodes if node.op_type == "Conv" and node.input[0] == source), None)
    reads = [
        node
        for node in nodes
        if node.op_type == "Shape"
        and node.input[0] == source
        and {it.name: it.i for it in node.attribute} == {"start": 0, "end": 1}
    ]
    if patches is None or not reads:
        return
    for node in reads:
        node.input[0] = patches.output[0]
        nodes.remove(node)
    at = nodes.index(patches) + 1
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *reads, *nodes[at:]])
