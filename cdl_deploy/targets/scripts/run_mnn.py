"""A model in MNN: converted by mnnconvert, then run."""

import sys
from pathlib import Path

import MNN
from common import command, main


def convert(model, folder, first):
    """See `main`."""
    made = folder / f"{model.stem}.mnn"
    tool = Path(sys.executable).with_name("mnnconvert")
    command(tool, "-f", "ONNX", "--modelFile", model, "--MNNModel", made, "--bizCode", "cdl", made=[made])
    return [made]


def load(model, first, threads):
    """See `main`."""
    own = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    net = MNN.nn.load_module_from_file(str(model), ["image"], ["logits"], runtime_manager=own)

    def run(batch):
        given = MNN.expr.placeholder(list(batch.shape), MNN.expr.NCHW, MNN.expr.float)
        given.write(batch)
        found = MNN.expr.convert(net.forward([given])[0], MNN.expr.NCHW)
        return found.read().copy()

    return run


main("MNN", load, convert)
