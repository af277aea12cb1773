"""A model for Rockchip's processors: converted by rknn-toolkit2, then run in its simulator (fp16)."""

import os

from common import RefusedError, main
from rknn.api import RKNN

PLATFORM = os.environ.get("CDL_RKNN_PLATFORM", "rk3588")
TOOLS = {}


def build(model, made):
    """From the .onnx file to the .rknn file, and what the simulator runs, which is not that file."""
    tool = RKNN(verbose=False)
    steps = (
        lambda: tool.config(target_platform=PLATFORM),
        lambda: tool.load_onnx(model=str(model)),
        lambda: tool.build(do_quantization=False),
        lambda: tool.export_rknn(str(made)),
    )
    for number, step in enumerate(steps, 1):
        if step():
            raise RefusedError(f"rknn-toolkit2 failed in step {number} of 4 (config, load_onnx, build, export_rknn)")
    return tool


def convert(model, folder, first):
    """See `main`."""
    made = folder / f"{model.stem}.rknn"
    TOOLS[made] = build(model, made)
    return [made]


def load(model, first, threads):
    """See `main`."""
    tool = TOOLS.get(model) or build(model.with_suffix(".onnx"), model)
    if tool.init_runtime():
        raise RefusedError("rknn-toolkit2's simulator does not start")
    return lambda batch: tool.inference(inputs=[batch], data_format="nchw")[0]


main("rknn-toolkit2", load, convert)
