#!/usr/bin/env bash
# onnx2tf writes over the .onnx file that it reads, and takes the axes of an image for something else.
#
# onnx2tf 2.6.9 (Python 3.12), ai-edge-litert 2.1.2. `onnx2tf -i model.onnx -o out` leaves another model.onnx behind: it is
# simplified in place. Its hash, a signature, a file that is under version control or that a device already has are no
# longer those of the model, and nothing is said. And an input uint8 [1, height, width, 3], pixels as every camera and
# decoder gives them, is taken for [1, channels, height, width]: the .tflite wants [1, width, 3, height], with the same
# names and types. With `-kat NAME` it keeps the axes.
#
# Seen (it exits with 1 where this changes):
#   model.onnx: rewritten
#   image: ONNX [1, 24, 32, 3], LiteRT [1, 32, 3, 24], with -kat image [1, 24, 32, 3]
#   logits: the same, each with its own axes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx2tf==2.6.9 ai-edge-litert==2.1.2 onnx==1.20.1 onnxruntime==1.26.0 numpy==2.2.6
cd "$folder"
cat > make.py <<'CODE'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
    helper.make_node("Transpose", ["floats"], ["channels_first"], perm=[0, 3, 1, 2]),
    helper.make_node("Conv", ["channels_first", "kernel"], ["patches"], kernel_shape=[4, 4], strides=[4, 4]),
    helper.make_node("GlobalAveragePool", ["patches"], ["pooled"]),
    helper.make_node("Flatten", ["pooled"], ["logits"]),
]
kernel = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32) / 255
graph = helper.make_graph(
    nodes,
    "classifier",
    [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 24, 32, 3])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
    [numpy_helper.from_array(kernel, "kernel")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
for name in ("model.onnx", "copy.onnx", "original.onnx"):
    onnx.save(model, name)
CODE
cat > compare.py <<'CODE'
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from onnx.reference import ReferenceEvaluator

image = np.random.default_rng(1).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
expected = ReferenceEvaluator("original.onnx").run(None, {"image": image})[0]


def run(file, axes):
    """The shape that a .tflite wants, and whether it answers right when the image's axes are turned so."""
    interpreter = Interpreter(file)
    interpreter.allocate_tensors()
    (wanted,) = interpreter.get_input_details()
    interpreter.set_tensor(wanted["index"], np.ascontiguousarray(image.transpose(axes)))
    interpreter.invoke()
    (found,) = interpreter.get_output_details()
    return wanted["shape"].tolist(), bool(np.allclose(interpreter.get_tensor(found["index"]), expected, atol=1e-3))


rewritten = open("model.onnx", "rb").read() != open("original.onnx", "rb").read()
plain, right = run("plain/model_float32.tflite", (0, 2, 3, 1))
kept, kept_right = run("kept/copy_float32.tflite", (0, 1, 2, 3))
print(f"model.onnx: {'rewritten' if rewritten else 'as it was'}")
print(f"image: ONNX {list(image.shape)}, LiteRT {plain}, with -kat image {kept}")
print(f"logits: {'the same, each with its own axes' if right and kept_right else 'others'}")
as_seen = rewritten and (plain, kept) == ([1, 32, 3, 24], [1, 24, 32, 3]) and right and kept_right
sys.exit(0 if as_seen else 1)
CODE
export PATH="$folder/venv/bin:$PATH"
python make.py
onnx2tf -i model.onnx -o plain > log.txt 2>&1
onnx2tf -i copy.onnx -o kept -kat image >> log.txt 2>&1
python compare.py 2> /dev/null && code=0 || code=$?
exit "$code"
