"""ncnn: pnnx makes .ncnn.param and .ncnn.bin of a file without strings, TopK, and Gather of several positions."""

from cdl_deploy.targets.portable import BY_CONVERTERS
from cdl_deploy.targets.target import Target

TARGET = Target(
    "ncnn",
    opset=17,
    opsets=(17, 17),  # of a ReduceMean whose axes are an input, opset 18's, pnnx loses the axes
    input="tensor",
    inputs=("tensor",),
    labels="none",
    batch=1,
    batches=1,
    no_best=True,
    no_distance=True,
    no_list_gather=True,
    lacks={
        "ArgMax": "merges patch tokens by ArgMax: leave --tokens out",
        "TopK": "selects prompts by TopK: select once for all images (--select task:K or images:DIR)",
    },
    refused={**BY_CONVERTERS, "fp16": "ncnn stores fp16 itself: pnnx fp16=1"},
    tolerance=1e-3,
    script="run_ncnn.py",
    packages=("ncnn", "pnnx"),
    distribution="ncnn",
    install="pip install ncnn numpy && pip install --no-deps pnnx portalocker",
    converted=(".ncnn.param", ".ncnn.bin"),
    note="blobs are in0, out0 (logits), out1 (probabilities), …; the best classes are the caller's to find; there is "
    "no distance; pnnx misreads a Gather of several positions and opset 18's ReduceMean in silence, so there is none",
)
