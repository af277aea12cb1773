"""What most converters take: a tensor, a fixed batch, no strings, opset 17 to 19. Checked in onnxruntime."""

from cdl_deploy.export.targets.target import Target

QUANTISED = "its operators (QDQ, MatMulInteger) are what converters misread: convert fp32 and quantise with their tool"

TARGET = Target(
    "portable",
    opset=18,
    opsets=(17, 19),
    input="tensor",
    inputs=("tensor",),
    labels="none",
    batch=1,
    refused={"int8": QUANTISED, "int8-dynamic": QUANTISED},
    install="pip install onnxruntime",
    note="the caller preprocesses",
)
