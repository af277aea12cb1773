"""A model in onnxruntime."""

import onnxruntime
from common import main


def load(model, first, threads):
    """See `main`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {"image": batch})[0]


main("onnxruntime", load)
