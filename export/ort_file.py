"""An ONNX file → onnxruntime's own format, which is loaded without parsing and optimising it again.

What onnxruntime's convert_onnx_models_to_ort calls the fixed style: optimised once, here, except for what depends on
the processor it was done on.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from cdl_deploy.files import atomic_path

LAYOUT_OPTIMISERS = ["NchwcTransformer"]
"""Rearrange convolutions for the width of this machine's vector registers."""


def write_ort(model: Path) -> Path:
    """Write `student.ort` beside `student.onnx`, metadata included, and return its path."""
    path = model.with_suffix(".ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.save_model_format", "ORT")
    with atomic_path(path) as temporary:
        options.optimized_model_filepath = str(temporary)
        onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=LAYOUT_OPTIMISERS
        )
    return path
