"""A model in ncnn: converted by pnnx, then run. pnnx's own wheel imports PyTorch; its program needs none."""

from importlib.util import find_spec
from pathlib import Path

import ncnn
import numpy as np
from common import command, main


def convert(model, folder, first):
    """See `main`."""
    program = Path(find_spec("pnnx").submodule_search_locations[0]) / "pnnx"
    made = [folder / f"{model.stem}.ncnn.{end}" for end in ("param", "bin")]
    shape = ",".join(map(str, first.shape))
    command(program, model, f"inputshape=[{shape}]", "fp16=0", folder=folder, made=made)
    return made


def load(model, first, threads):
    """See `main`."""
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in ("vulkan_compute", "fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    if net.load_param(str(model)) or net.load_model(str(model.with_suffix(".bin"))):
        raise RuntimeError(f"ncnn cannot load {model.name}: an operator of it is unknown there")

    def run(batch):
        extractor, image = net.create_extractor(), np.ascontiguousarray(batch[0])
        given = ncnn.Mat(image)  # which does not keep the array: `image` must live on
        extractor.input("in0", given)
        return np.array(extractor.extract("out0")[1])[None]

    return run


main("ncnn", load, convert)
