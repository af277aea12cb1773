"""A session of onnxruntime with a model that is being exported: on the CPU, without warnings about its shapes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime


def cpu_session(model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model of a file, or one that is in none yet."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
