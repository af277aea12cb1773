"""A model in tract, which is told the shape of its input: it cannot divide by a height that it does not know."""

import tract
from common import main


def load(model, first, threads):
    """See `main`."""
    read = tract.onnx().load(str(model))
    kind = "u8" if first.dtype == "uint8" else "f32"
    read.set_input_fact(0, ",".join([*map(str, first.shape), kind]))
    runnable = read.into_model().into_runnable()
    return lambda batch: runnable.run([batch])[0].to_numpy()  # its first output: it renames them


main("tract", load)
