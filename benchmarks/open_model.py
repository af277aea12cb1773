"""How long a model takes to open, by its number of classes: linear, and 0.2 s at the 21,841 of ImageNet-21k.

    python benchmarks/open_model.py --out open_model.json

The model is the smallest with so many classes: what is measured is the description and its checks. Median of `--times`,
beside onnxruntime's own share. Exits 1 where 21,841 classes take longer than the bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy import Classifier
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.runtime.bundle import Bundle, encode_metadata
from cdl_deploy.runtime.bundle_parts import Method, RunOrigin, Weights

BAR_CLASSES, BAR_SECONDS = 21_841, 0.2


def write_model(path: Path, classes: int) -> None:
    """Mean colour times a matrix, and every output of an exported model."""
    names = tuple(f"n{number:08d}" for number in range(classes))
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("TopK", ["probabilities", "k"], ["topk_probability", "best"], axis=1),
        helper.make_node("Gather", ["names", "best"], ["topk_label"]),
        helper.make_node("MatMul", ["probabilities", "owners"], ["task_scores"]),
    ]
    outputs = {"logits": classes, "probabilities": classes, "topk_probability": 5, "topk_label": 5, "task_scores": 10}
    constants: dict[str, np.ndarray[Any, Any]] = {
        "weights": np.zeros((3, classes), dtype=np.float32),
        "k": np.array([5], dtype=np.int64),
        "owners": np.ones((classes, 10), dtype=np.float32),
        "names": np.array(names, dtype=object),
    }
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [
            helper.make_tensor_value_info(
                name, TensorProto.STRING if name == "topk_label" else TensorProto.FLOAT, ["B", size]
            )
            for name, size in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    bundle = Bundle(
        path=path, role="student", classes=names, tasks=tuple(names[start::10] for start in range(10)),
        preprocessing=Preprocessing(8, 8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        method=Method("coda", "kdp", "full", "in-graph"), weights=Weights("mini"), run=RunOrigin(0, 10, "f" * 8),
        parameters=3 * classes, top_k=5,
    )  # fmt: skip
    helper.set_model_props(model, encode_metadata(bundle))
    onnx.save(model, path)


def seconds(work: Callable[[], object], times: int) -> float:
    """Median of the time that `work` takes."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(median(taken), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default=f"1000,{BAR_CLASSES},218410", help="numbers of classes, with commas")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for classes in map(int, arguments.classes.split(",")):
            path = Path(folder) / f"{classes}.onnx"
            write_model(path, classes)
            own = [str(path)]
            rows[classes] = {
                "seconds": seconds(lambda path=path: Classifier(path, threads=1), arguments.times),  # type: ignore[misc]
                "onnxruntime_seconds": seconds(
                    lambda own=own: onnxruntime.InferenceSession(*own, providers=["CPUExecutionProvider"]),  # type: ignore[misc]
                    arguments.times,
                ),
                "bytes": path.stat().st_size,
            }
    text = json.dumps({"classes": rows, "bar": {"classes": BAR_CLASSES, "seconds": BAR_SECONDS}}, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if BAR_CLASSES in rows and rows[BAR_CLASSES]["seconds"] > BAR_SECONDS else 0)


if __name__ == "__main__":
    main()
