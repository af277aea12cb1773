"""What most converters take: a tensor, a fixed batch, no strings, opset 17 to 19. Checked in onnxruntime."""

from cdl_deploy.targets.target import Target

QUANTISED = "its operators (QDQ, MatMulInteger) are what converters misread: convert fp32 and quantise with their tool"
BY_CONVERTERS = {"int8": QUANTISED, "int8-dynamic": QUANTISED}
"""`Target.refused` of runtimes that a converter writes for."""

TARGET = Target(
    "portable",
    opset=18,
    opsets=(17, 19),
    input="tensor",
    inputs=("tensor",),
    labels="none",
    batch=1,
    refused=BY_CONVERTERS,
    install="pip install onnxruntime",
    runtime=False,
    note="the caller preprocesses",
)
