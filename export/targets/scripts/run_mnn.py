"""A model in MNN: converted by mnnconvert, then run."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import MNN
from common import main


def load(model, folder, first):
    """See `main`."""
    converted = folder / f"{model.stem}.mnn"
    command = [Path(sys.executable).with_name("mnnconvert"), "-f", "ONNX", "--modelFile", model]
    done = subprocess.run([*command, "--MNNModel", converted, "--bizCode", "cdl"], capture_output=True, text=True)
    if done.returncode or not converted.exists():
        last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        sys.exit(f"mnnconvert ended with exit code {done.returncode}: {last}")
    own = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": 1},))
    net = MNN.nn.load_module_from_file(str(converted), ["image"], ["logits"], runtime_manager=own)

    def run(batch):
        given = MNN.expr.placeholder(list(batch.shape), MNN.expr.NCHW, MNN.expr.float)
        given.write(batch)
        found = MNN.expr.convert(net.forward([given])[0], MNN.expr.NCHW)
        return found.read().copy()

    return run, version("MNN")


main(load)
