"""Run directory → folded ONNX bundle (torch, onnx)."""

from cdl_deploy.export.export import Exported, export_run

__all__ = ["Exported", "export_run"]
