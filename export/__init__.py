"""Run directory → folded ONNX bundle (torch, onnx)."""

from cdl_deploy.export.export import Exported, ExportOptions, export_run

__all__ = ["ExportOptions", "Exported", "export_run"]
