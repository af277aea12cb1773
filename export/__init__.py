"""Run directory → folded ONNX bundle (torch, onnx)."""

from cdl_deploy.export.export import Exported, ExportOptions, export_run
from cdl_deploy.export.variants import Shrink

__all__ = ["ExportOptions", "Exported", "Shrink", "export_run"]
