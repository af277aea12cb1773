"""A model in TVM: compiled for this processor, without tuning, then run."""

import os

import onnx
import tvm
from common import main
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx


def convert(model, folder, first):
    """See `main`."""
    made = folder / f"{model.stem}.so"
    module = from_onnx(onnx.load(model), shape_dict={"image": list(first.shape)}, keep_params_in_input=False)
    tvm.compile(module, target=tvm.target.Target("llvm")).export_library(str(made))
    return [made]


def load(model, first, threads):
    """See `main`."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(model)), tvm.cpu())
    return lambda batch: machine["main"](tvm.runtime.tensor(batch))[0].numpy()


main("apache-tvm", load, convert)
