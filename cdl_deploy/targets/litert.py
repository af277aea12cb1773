"""LiteRT: onnx2tf makes a .tflite, for images of one size or for a tensor."""

from cdl_deploy.targets.portable import BY_CONVERTERS
from cdl_deploy.targets.target import Target

TARGET = Target(
    "litert",
    opset=18,
    opsets=(17, 20),
    input="tensor",
    fixed_image=True,
    labels="none",
    batch=1,
    refused={**BY_CONVERTERS, "fp16": "onnx2tf makes a float16 file itself"},
    script="run_litert.py",
    packages=("ai_edge_litert", "onnx2tf"),
    distribution="ai-edge-litert",
    install="pip install ai-edge-litert==2.1.2 onnx2tf",
    converted=(".tflite",),
    note="a tensor is [1, height, width, 3] there; --input image --image-size H,W takes the pixels themselves; onnx2tf "
    "wants Python 3.12, and changes the .onnx file that it is given: hand it a copy, with -kat image where the input "
    "is pixels (findings/onnx2tf_input.sh)",
)
