"""A model in onnxruntime."""

import onnxruntime
from common import main


def load(model, folder, first):
    """See `main`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {"image": batch})[0], onnxruntime.__version__


main(load)
