"""A model in OpenVINO with its own choice of precision: bf16 where the processor has it. For export_peers.py."""

import sys
from pathlib import Path

import openvino

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cdl_deploy" / "targets" / "scripts"))
from common import main


def load(model, first, threads):
    """See `main` of cdl_deploy/targets/scripts/common.py."""
    compiled = openvino.Core().compile_model(str(model), "CPU", {"INFERENCE_NUM_THREADS": threads})
    logits = compiled.output("logits")
    return lambda batch: compiled({"image": batch})[logits]


if __name__ == "__main__":
    main("openvino", load)
