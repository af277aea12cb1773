"""A model in tract, which is told the shape of its input: it cannot divide by a height that it does not know."""

from importlib.metadata import version

import tract
from common import main


def load(model, folder, first):
    """See `main`."""
    read = tract.onnx().load(str(model))
    kind = "u8" if first.dtype == "uint8" else "f32"
    read.set_input_fact(0, ",".join([*map(str, first.shape), kind]))
    runnable = read.into_model().into_runnable()
    return lambda batch: runnable.run([batch])[0].to_numpy(), version("tract")  # its first output: it renames them


main(load)
