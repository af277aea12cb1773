"""MNN: mnnconvert makes a .mnn of a file without strings."""

from cdl_deploy.targets.target import Target

TARGET = Target(
    "mnn",
    opset=18,
    opsets=(17, 20),
    input="tensor",
    inputs=("tensor",),
    labels="none",
    refused={
        "int8": "MNN's converter aborts on QDQ: convert fp32, and quantise with MNN's own tool",
        "int8-dynamic": "MNN converts it and answers wrongly in silence beyond 32 tokens a thread: convert fp32, "
        "quantise with MNN's own tool",
        "fp16": "MNN stores fp16 itself: mnnconvert --fp16",
    },
    tolerance=1e-3,
    script="run_mnn.py",
    packages=("MNN",),
    distribution="MNN",
    oldest=(3,),
    install="pip install MNN",
    converted=(".mnn",),
    note="mnnconvert crashes on strings and control flow; images are preprocessed by the caller",
)
