"""A tiny exported model, built node by node: the mean colour of an image, times fixed weights, is its class."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cdl_deploy.cli import main
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.runtime.bundle import Bundle, encode_metadata
from cdl_deploy.runtime.bundle_parts import Accuracy, Method, Parity, RunOrigin, Weights

CLASSES = ("red", "green", "blue", "grün ✓")
WEIGHTS = np.array([[4.0, -1, -1, 0], [-1, 4.0, -1, 0], [-1, -1, 4.0, 0]], dtype=np.float32)
BIAS = np.array([0.0, 0.01, 0.02, -0.5], dtype=np.float32)
OWNERS = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)  # the task of each class
TOP_K = 3
COLOURS = {"red": (230, 10, 20), "green": (15, 220, 30), "blue": (5, 25, 240)}


def example_bundle(path: Path = Path("student.onnx"), **changes: Any) -> Bundle:
    bundle = Bundle(
        path=path,
        role="student",
        classes=CLASSES,
        tasks=(("green", "red"), ("blue", "grün ✓")),
        preprocessing=Preprocessing(
            height=8, width=10, resize=12, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)
        ),
        method=Method(continual="coda", distillation="kdp", query="full", select="in-graph"),
        weights=Weights(model="mini", sha256="0" * 64),
        run=RunOrigin(seed=0, tasks=2, fingerprint="f" * 8),
        parameters=16,
        top_k=3,
        accuracy=Accuracy(final_average_accuracy=91.0, forgetting=3.4),
        parity=Parity(images=4, max_abs_logit_difference=3e-6, top1_agreement=1.0),
    )
    return dataclasses.replace(bundle, **changes)


def build_model(size: tuple[int, int] = (8, 10), classes: int = len(CLASSES), extra_layers: int = 0) -> onnx.ModelProto:
    """image [B, 3, H, W] → mean over pixels → every output of an exported model; extra layers only cost time."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("TopK", ["probabilities", "k"], ["topk_probability", "best"], axis=1),
        helper.make_node("Gather", ["names", "best"], ["topk_label"]),
        helper.make_node("MatMul", ["probabilities", "owners"], ["task_scores"]),
    ]
    previous = "image"
    for i in range(extra_layers):
        nodes.insert(i, helper.make_node("Erf" if i % 2 else "Tanh", [previous], [f"slow{i}"]))
        previous = f"slow{i}"
    nodes[extra_layers].input[0] = previous
    repeats = -(-classes // WEIGHTS.shape[1])
    weights, bias = np.tile(WEIGHTS, (1, repeats))[:, :classes], np.tile(BIAS, repeats)[:classes]
    outputs = {
        "logits": (TensorProto.FLOAT, classes),
        "probabilities": (TensorProto.FLOAT, classes),
        "topk_probability": (TensorProto.FLOAT, TOP_K),
        "topk_label": (TensorProto.STRING, TOP_K),
        "task_scores": (TensorProto.FLOAT, 2),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, *size])],
        [helper.make_tensor_value_info(name, kind, ["B", size]) for name, (kind, size) in outputs.items()],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array([TOP_K], dtype=np.int64), "k"),
            numpy_helper.from_array(np.resize(OWNERS, (classes, 2)), "owners"),
            numpy_helper.from_array(np.resize(np.array(CLASSES, dtype=object), classes), "names"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def set_metadata(model: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    return model


def save_model(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    onnx.save(set_metadata(model, metadata), path)


MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`make_model("a.onnx", metadata={...}, size=..., classes=..., extra_layers=..., **bundle fields)` → path."""

    def make(name: str = "student.onnx", metadata: dict[str, str] | None = None, **changes: Any) -> Path:
        sizes = [key for key in ("size", "classes_in_graph", "extra_layers") if key in changes]
        graph: dict[str, Any] = {key: changes.pop(key) for key in sizes}
        if "classes_in_graph" in graph:
            graph["classes"] = graph.pop("classes_in_graph")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = encode_metadata(example_bundle(path, **changes)) if metadata is None else metadata
        onnx.save(set_metadata(build_model(**graph), stored), path)
        return path

    return make


class Tiny:
    """What tests need to know about the tiny model: an oracle in numpy, and ways to build odd ones."""

    classes, weights, bias, colours = CLASSES, WEIGHTS, BIAS, COLOURS
    bundle = staticmethod(example_bundle)
    build = staticmethod(build_model)
    set_metadata = staticmethod(set_metadata)

    @staticmethod
    def probabilities(batch: np.ndarray) -> np.ndarray:
        """[B, 3, H, W] → [B, C]."""
        logits = batch.mean(axis=(2, 3), dtype=np.float64) @ WEIGHTS + BIAS
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture
def model_path(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """One plain PNG a colour."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = {}
    for name, colour in COLOURS.items():
        paths[name] = folder / f"{name}.png"
        Image.new("RGB", (31, 20), colour).save(paths[name])
    return paths


@contextmanager
def nobody() -> Iterator[None]:
    """The root user may read everything: be someone else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that anybody may read, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def cdl(capsys):
    """`cdl("predict", ...)` → (exit code, stdout, stderr)."""

    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run
