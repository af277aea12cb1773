"""A model in OpenVINO, as it is. Its default precision on newer processors is bf16: f32 is asked for."""

import openvino
from common import main


def load(model, folder, first):
    """See `main`."""
    core = openvino.Core()
    compiled = core.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    logits = compiled.output("logits")
    return lambda batch: compiled({"image": batch})[logits], openvino.__version__.partition("-")[0]


main(load)
