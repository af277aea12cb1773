"""TVM: compiles the file for this processor, without tuning."""

from cdl_deploy.targets.portable import BY_CONVERTERS
from cdl_deploy.targets.target import Target

TARGET = Target(
    "tvm",
    opset=18,
    opsets=(17, 20),
    input="tensor",
    labels="none",
    batch=1,
    refused=BY_CONVERTERS,
    script="run_tvm.py",
    packages=("tvm", "onnx"),
    distribution="apache-tvm",
    install="pip install apache-tvm onnx",
    converted=(".so",),
    note="the .so is for the processor that it was compiled on; untuned it is many times slower than onnxruntime",
)
