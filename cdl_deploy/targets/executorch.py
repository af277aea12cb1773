"""ExecuTorch: onnx2torch and XNNPACK's partitioner make a .pte."""

from cdl_deploy.targets.portable import BY_CONVERTERS
from cdl_deploy.targets.target import Target

TARGET = Target(
    "executorch",
    opset=17,
    opsets=(17, 17),
    input="tensor",
    inputs=("tensor",),
    labels="none",
    batch=1,
    no_best=True,
    refused={**BY_CONVERTERS, "fp16": "it was not compared there: export without"},
    script="run_executorch.py",
    packages=("executorch", "onnx2torch"),
    distribution="executorch",
    install="pip install executorch torch onnx2torch",
    converted=(".pte",),
    threads=False,
    note="outputs are logits and probabilities; onnx2torch reads opset 17",
)
