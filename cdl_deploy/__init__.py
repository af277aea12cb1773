"""Continual distillation learning for small vision models.

    from cdl_deploy import Classifier
    for result in Classifier("student.onnx").predict(["a.jpg", "b.jpg"]):
        print(result.label, result.probability)

`import cdl_deploy` loads nothing heavy: names below are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdl_deploy.version import __version__

if TYPE_CHECKING:
    from cdl_deploy.runtime.bundle import Bundle, read_bundle
    from cdl_deploy.runtime.classifier import Classifier, Prediction
    from cdl_deploy.runtime.predict import Row, predict_rows

__all__ = ["Bundle", "Classifier", "Prediction", "Row", "__version__", "predict_rows", "read_bundle"]

_HOME = {
    "Bundle": "cdl_deploy.runtime.bundle",
    "Classifier": "cdl_deploy.runtime.classifier",
    "Prediction": "cdl_deploy.runtime.classifier",
    "Row": "cdl_deploy.runtime.predict",
    "predict_rows": "cdl_deploy.runtime.predict",
    "read_bundle": "cdl_deploy.runtime.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cdl_deploy' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
