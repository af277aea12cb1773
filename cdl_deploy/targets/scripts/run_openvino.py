"""A model in OpenVINO, as it is. Its default precision on newer processors is bf16: f32 is asked for."""

import openvino
from common import main


def load(model, first, threads):
    """See `main`."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(model), "CPU", options)
    logits = compiled.output("logits")
    return lambda batch: compiled({"image": batch})[logits]


main("openvino", load)
