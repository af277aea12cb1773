"""Continual distillation learning for small vision models.

    import cdl_deploy
    cdl_deploy.train("photos/", tasks=10, out="runs/photos")
    cdl_deploy.export("runs/photos", "bundle")
    for prediction in cdl_deploy.Classifier("bundle/student.onnx").predict(["a.jpg", "b.jpg"]):
        print(prediction.label, prediction.probability)

`import cdl_deploy` loads nothing heavy: names below are imported when first used, and PyTorch when `train` or `export`
is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cdl_deploy.version import __version__

if TYPE_CHECKING:
    from cdl_deploy.api import evaluate, export, train
    from cdl_deploy.errors import CdlError
    from cdl_deploy.learn.learner import Learner
    from cdl_deploy.runtime.bundle import Bundle, read_bundle
    from cdl_deploy.runtime.classifier import Classifier, Prediction
    from cdl_deploy.runtime.predict import Row, predict_rows

__all__ = [
    "Bundle",
    "CdlError",
    "Classifier",
    "Learner",
    "Prediction",
    "Row",
    "__version__",
    "evaluate",
    "export",
    "predict_rows",
    "read_bundle",
    "train",
]

_HOME = {
    "Bundle": "cdl_deploy.runtime.bundle",
    "CdlError": "cdl_deploy.errors",
    "Classifier": "cdl_deploy.runtime.classifier",
    "Learner": "cdl_deploy.learn.learner",
    "Prediction": "cdl_deploy.runtime.classifier",
    "Row": "cdl_deploy.runtime.predict",
    "evaluate": "cdl_deploy.api",
    "export": "cdl_deploy.api",  # and once the subpackage of that name is imported, its module, which can be called too
    "predict_rows": "cdl_deploy.runtime.predict",
    "read_bundle": "cdl_deploy.runtime.bundle",
    "train": "cdl_deploy.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cdl_deploy' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
