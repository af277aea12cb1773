"""A model with the inputs and outputs of an exported one, made by hand: random weights on a shrunken photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TASKS = (("temple", "flower"), ("portrait", "sky"), ("leaf",))
CLASSES = tuple(name for task in TASKS for name in task)
SIDE = 32


def write_model(path: Path) -> None:
    """uint8 [B, height, width, 3] → top-k labels and probabilities, task scores."""
    weights = 0.15 * np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, len(CLASSES)))
    members = [[name in task for task in TASKS] for name in CLASSES]
    constants = {
        "half": np.float32(127.5),
        "one": np.float32(1),
        "weights": weights.astype(np.float32),
        "size": np.array([SIDE, SIDE]),
        "k": np.array([len(CLASSES)]),
        "labels": np.array(CLASSES, dtype=object),
        "members": np.array(members, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "size"], ["small"], mode="cubic", antialias=1, axes=[2, 3]),
        helper.make_node("Div", ["small", "half"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        helper.make_node("Flatten", ["centred"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("TopK", ["probabilities", "k"], ["topk_probability", "best"]),
        helper.make_node("Gather", ["labels", "best"], ["topk_label"]),
        helper.make_node("MatMul", ["probabilities", "members"], ["task_scores"]),
    ]
    float32, k = TensorProto.FLOAT, len(CLASSES)
    outputs = {"topk_probability": (float32, k), "topk_label": (TensorProto.STRING, k), "task_scores": (float32, 3)}
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", "height", "width", 3])],
        [helper.make_tensor_value_info(name, kind, ["B", size]) for name, (kind, size) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
